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
//!
//! What all lanes write to for each request (a counter, the references to a name) is as good as a lock: the cache line goes
//! back and forth between them. [`PerLane`], [`LaneName`] and [`LaneShared`] give each its own.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::num::NonZero;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::clock;

/// Threads that serve connections; cheap to clone. What they still do ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Lanes {
    lanes: Arc<[Lane]>,
    near_tunnels: bool,
}

#[derive(Debug)]
struct Lane {
    handle: Handle,
    /// Connections that it serves now.
    load: Arc<AtomicUsize>,
    /// Connections of tunnels that it runs now, counted by whoever runs them.
    tunnels: Arc<AtomicUsize>,
    /// Dropping it ends the thread.
    _stop: oneshot::Sender<()>,
}

/// A value for each lane, on cache lines of its own, and one for all other threads.
#[derive(Debug)]
pub struct PerLane<T>(Box<[Padded<T>]>);

/// Two lines: processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

/// A text that is handed on with many requests: each lane counts the references to a copy of its own.
#[derive(Debug)]
pub struct LaneName {
    text: Box<str>,
    /// Made by the lane that asks for it, so that it lies in memory which no other lane writes to.
    own: Box<[OnceLock<Arc<str>>]>,
}

/// A value that is handed on with every request: each lane counts the references that it has given out.
#[derive(Debug)]
pub struct LaneShared<T> {
    value: Arc<T>,
    own: Box<[OnceLock<LaneArc<T>>]>,
}

/// A reference that is counted apart from those of other lanes.
#[derive(Debug)]
pub struct LaneArc<T>(Arc<Counted<T>>);

/// Keeps the value alive for all who have been lent it from here.
#[derive(Debug)]
struct Counted<T>(Arc<T>);

impl<T> PerLane<T> {
    /// A value for each.
    pub fn new(make: impl Fn() -> T) -> Self {
        Self((0..shards()).map(|_| Padded(make())).collect())
    }

    /// The value of the lane that this thread is.
    pub fn own(&self) -> &T {
        &self.0[own_of(self.0.len())].0
    }

    /// Those of all lanes.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|shard| &shard.0)
    }
}

impl LaneName {
    /// The text as this lane hands it on.
    pub fn own(&self) -> &Arc<str> {
        self.own[own_of(self.own.len())].get_or_init(|| Arc::from(&*self.text))
    }
}

impl<T> LaneShared<T> {
    /// For all lanes.
    pub fn new(value: Arc<T>) -> Self {
        Self { value, own: unmade() }
    }

    /// The value as this lane hands it on.
    pub fn own(&self) -> &LaneArc<T> {
        self.own[own_of(self.own.len())].get_or_init(|| LaneArc::new(Arc::clone(&self.value)))
    }
}

impl<T> LaneArc<T> {
    /// Counts references to it from now on; to be made by the lane that hands it on.
    pub fn new(value: Arc<T>) -> Self {
        Self(Arc::new(Counted(value)))
    }

    /// Whether this is that value.
    pub fn is(&self, value: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.0.0, value)
    }
}

impl<T> Clone for LaneArc<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for LaneArc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}

fn unmade<T>() -> Box<[OnceLock<T>]> {
    (0..shards()).map(|_| OnceLock::new()).collect()
}

impl<S: Into<Box<str>>> From<S> for LaneName {
    fn from(text: S) -> Self {
        Self { text: text.into(), own: unmade() }
    }
}

impl Deref for LaneName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<T> Deref for LaneShared<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.value
    }
}

impl Lanes {
    /// Starts as many threads as wanted, but at least one and at most [`LANES_MAX`].
    ///
    /// # Errors
    /// The system's, if it has no more threads or descriptors.
    pub fn start(wanted: usize) -> io::Result<Self> {
        let lanes = (1..=wanted.clamp(1, LANES_MAX)).map(Lane::start);
        Ok(Self { lanes: lanes.collect::<io::Result<Vec<_>>>()?.into(), near_tunnels: false })
    }

    /// The same for visitors of tunnels alone: they are served where a tunnel's connections are run, up to
    /// 64 more of them than elsewhere.
    #[must_use]
    pub fn near_tunnels(&self) -> Self {
        Self { near_tunnels: true, ..self.clone() }
    }

    /// Serves one connection on the lane with fewest; it is cut when `tasks` is dropped.
    pub fn spawn(&self, tasks: &mut JoinSet<()>, connection: impl Future<Output = ()> + Send + 'static) {
        let away = |lane: &Lane| self.near_tunnels && lane.tunnels.load(Ordering::Relaxed) == 0;
        let load =
            |lane: &&Lane| lane.load.load(Ordering::Relaxed) + if away(lane) { NEAR_TUNNELS_MAX } else { 0 };
        let Some(lane) = self.lanes.iter().min_by_key(load) else { return };
        let load = Load::new(&lane.load);
        let connection = clock::ticking(connection);
        let serving = async move {
            connection.await;
            drop(load);
        };
        tasks.spawn_on(serving, &lane.handle);
    }

    /// The lanes' runtimes, for what lives as long as they and is spread over them otherwise.
    pub fn handles(&self) -> Vec<Handle> {
        self.lanes.iter().map(|lane| lane.handle.clone()).collect()
    }

    /// [`Self::handles`] with where the tunnels' connections that each runs are to be counted.
    pub fn tunnels(&self) -> impl Iterator<Item = (Handle, Arc<AtomicUsize>)> {
        self.lanes.iter().map(|lane| (lane.handle.clone(), Arc::clone(&lane.tunnels)))
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
        Ok(Self { handle, load: Arc::default(), tunnels: Arc::default(), _stop: stop })
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

/// How many values there are of what each lane has: the first is for whoever is no lane, and for lanes beyond the machine's
/// processors.
pub(crate) fn shards() -> usize {
    static SHARDS: OnceLock<usize> = OnceLock::new();
    *SHARDS.get_or_init(|| 1 + std::thread::available_parallelism().map_or(1, NonZero::get).min(LANES_MAX))
}

/// The place of this thread's value among so many.
pub(crate) fn own_of(shards: usize) -> usize {
    let lane = current();
    if lane < shards { lane } else { 0 }
}

/// The number of the lane that this thread is, from 1; 0 for all other threads.
pub(crate) fn current() -> usize {
    CURRENT.get()
}

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// How many visitors more a lane serves for having what their requests go through. A QUIC connection's packets are made
/// and read under one lock: threads that share it among so few visitors mostly wait for each other.
const NEAR_TUNNELS_MAX: usize = 64;

/// Lanes of a process: pools of idle connections are kept apart by lane, and each costs 128 bytes an origin.
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
        // Now more on one lane, which runs a tunnel's connection.
        let near = lanes.near_tunnels();
        let (_, tunnels) = near.tunnels().nth(1).unwrap();
        tunnels.fetch_add(1, Ordering::Relaxed);
        let mut seen = [0; 3];
        for _ in 0..NEAR_TUNNELS_MAX + 4 {
            let tell = tell.clone();
            near.spawn(&mut tasks, async move {
                let _ = tell.send(current()).await;
                std::future::pending().await
            });
            seen[told.recv().await.unwrap()] += 1;
        }
        assert_eq!(seen, [0, 2, NEAR_TUNNELS_MAX + 2]);
        drop(tasks);
        drop(tell);
        // The tasks are gone, and with them the last senders.
        assert_eq!(told.recv().await, None);
    }
}
