//! The time, read once each time that a connection's task runs.
//!
//! A request asks for the time a dozen times, and each answer costs as much as parsing a field. What a task does between
//! two waits takes microseconds, so that one reading serves all of it; a task that computes for long sees its limits pass
//! when it runs the next time.

use std::cell::Cell;
use std::future::poll_fn;

use tokio::time::Instant;

/// The time at which the running task was taken up, if it is a [`ticking`] one, else the time.
pub fn now() -> Instant {
    TAKEN_UP.get().unwrap_or_else(Instant::now)
}

/// A task to which [`now`] is the time at which it was taken up. It is behind a pointer: a future that is handed on by value
/// is kept once more by each that it is handed to.
pub fn ticking<T>(task: impl Future<Output = T>) -> impl Future<Output = T> {
    let mut task = Box::pin(task);
    poll_fn(move |cx| {
        let _reset = Reset;
        TAKEN_UP.set(Some(Instant::now()));
        task.as_mut().poll(cx)
    })
}

/// Other tasks of the thread are not to see this one's time, even if it panics.
struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        TAKEN_UP.set(None);
    }
}

thread_local! {
    static TAKEN_UP: Cell<Option<Instant>> = const { Cell::new(None) };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_between_two_waits_and_only_for_the_task() {
        let start = Instant::now();
        ticking(async {
            tokio::time::advance(Duration::from_secs(1)).await;
            let before = now();
            assert_eq!((before - start).as_secs(), 1);
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!((now() - before).as_secs(), 2);
            assert!(TAKEN_UP.get().is_some());
        })
        .await;
        assert!(TAKEN_UP.get().is_none());
    }
}
