//! Counts the requests in flight on one connection, without a lock on the request path.
//!
//! Sequentially consistent, because a request enters and then looks whether the connection is
//! draining, while a drain begins and then looks whether anything is in flight: one must see the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// The load of one connection.
#[derive(Debug, Default)]
pub(crate) struct Load {
    count: AtomicUsize,
    idle: Notify,
}

impl Load {
    /// Requests in flight now.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Counts one more request until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.count.fetch_add(1, Ordering::SeqCst);
        InFlight(Arc::clone(self))
    }

    /// Returns when no request is in flight.
    pub(crate) async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.count() == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Requests sent since the last answer: whether a connection answers at all, long before it is known to be lost. What races
/// here costs a request its best place and nothing else.
#[derive(Debug)]
pub(crate) struct Unanswered {
    began: Instant,
    requests: AtomicU32,
    /// Milliseconds from `began` to the first of them.
    since: AtomicU64,
}

impl Unanswered {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), requests: AtomicU32::new(0), since: AtomicU64::new(0) }
    }

    /// One more was sent.
    pub(crate) fn sent(&self) {
        if self.requests.fetch_add(1, Ordering::Relaxed) == 0 {
            self.since.store(self.elapsed(), Ordering::Relaxed);
        }
    }

    /// One was answered.
    pub(crate) fn answered(&self) {
        self.requests.store(0, Ordering::Relaxed);
    }

    /// Whether several have been waiting, and no answer has come for [`HUSH`].
    pub(crate) fn is_hushed(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > HUSHED_MIN
            && self.elapsed().saturating_sub(self.since.load(Ordering::Relaxed)) >= HUSH.as_millis() as u64
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One request in flight.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Load>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Longer than origins usually take; a connection's peer is asked for a sign of life after 2.5 s only.
const HUSH: Duration = Duration::from_millis(100);

/// Requests that may take longer than that while nothing is wrong.
const HUSHED_MIN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// The first of `requests` was sent two seconds ago.
    fn waiting(requests: u32) -> Unanswered {
        let began = Instant::now() - Duration::from_secs(2);
        Unanswered { began, requests: AtomicU32::new(requests), since: AtomicU64::new(0) }
    }

    #[test]
    fn a_connection_is_hushed_when_several_requests_wait_and_none_is_answered() {
        assert!(waiting(HUSHED_MIN + 1).is_hushed());
        assert!(!waiting(HUSHED_MIN).is_hushed(), "a few may take long");
        let unanswered = waiting(0);
        for _ in 0..100 {
            unanswered.sent();
        }
        assert!(!unanswered.is_hushed(), "they have just been sent");
        let unanswered = waiting(100);
        unanswered.answered();
        assert!(!unanswered.is_hushed());
    }
}
