//! Lanes: threads that each serve the connections given to them, from accept to close.
//!
//! A lane is a runtime of one thread. Whatever a connection waits for, be it its visitor, its timers or its connection to
//! an origin, wakes the thread that serves it: no request crosses threads, and no thread looks for another's work. The
//! price is that a lane which computes for long lets its other connections wait; what may take long (password hashes,
//! names, files) runs on threads of its own.
//!
//! One task accepts for all lanes and gives each connection to the lane that has fewest. `SO_REUSEPORT` would spare that
//! hand-over, but chooses by hash: it gives one lane twice another's share and resets what waits in the backlog of a
//! socket that closes.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::clock;

/// Threads that serve connections; cheap to clone. What they still do ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Lanes(Arc<[Lane]>);

#[derive(Debug)]
struct Lane {
    handle: Handle,
    /// Connections that it serves now.
    load: Arc<AtomicUsize>,
    /// Dropping it ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Lanes {
    /// Starts as many threads as wanted, but at least one and at most [`LANES_MAX`].
    ///
    /// # Errors
    /// The system's, if it has no more threads or descriptors.
    pub fn start(wanted: usize) -> io::Result<Self> {
        let lanes = (1..=wanted.clamp(1, LANES_MAX)).map(Lane::start);
        Ok(Self(lanes.collect::<io::Result<Vec<_>>>()?.into()))
    }

    /// Serves one connection on the lane with fewest; it is cut when `tasks` is dropped.
    pub fn spawn(&self, tasks: &mut JoinSet<()>, connection: impl Future<Output = ()> + Send + 'static) {
        let Some(lane) = self.0.iter().min_by_key(|lane| lane.load.load(Ordering::Relaxed)) else { return };
        let load = Load::new(&lane.load);
        let serving = async move {
            clock::ticking(connection).await;
            drop(load);
        };
        tasks.spawn_on(serving, &lane.handle);
    }

    /// The lanes' runtimes, for what lives as long as they and is spread over them otherwise.
    pub fn handles(&self) -> Vec<Handle> {
        self.0.iter().map(|lane| lane.handle.clone()).collect()
    }
}

impl Lane {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name(format!("lane-{number}")).spawn(move || {
            CURRENT.set(number);
            // The sender is never used, only dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, load: Arc::default(), _stop: stop })
    }
}

/// One connection, counted for as long as it lives.
struct Load(Arc<AtomicUsize>);

impl Load {
    fn new(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The number of the lane that this thread is, from 1; 0 for all other threads.
pub(crate) fn current() -> usize {
    CURRENT.get()
}

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Lanes of a process: pools of idle connections are kept apart by lane, and each costs 64 bytes an origin.
pub const LANES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connections_go_where_fewest_are_and_stay_there() {
        let lanes = Lanes::start(2).unwrap();
        let (tell, mut told) = mpsc::channel(4);
        let mut tasks = JoinSet::new();
        let mut seen = Vec::new();
        for _ in 0..4 {
            let tell = tell.clone();
            lanes.spawn(&mut tasks, async move {
                let before = current();
                tokio::task::yield_now().await;
                assert_eq!(before, current());
                let _ = tell.send(before).await;
                std::future::pending().await
            });
            seen.extend(told.recv().await);
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 1, 2, 2]);
        drop(tasks);
        drop(tell);
        // The tasks are gone, and with them the last senders.
        assert_eq!(told.recv().await, None);
    }
}
