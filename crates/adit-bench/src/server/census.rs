//! Who uses the server's CPU: runs of both kinds together, so that each can say whether it was alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Runs over the bench's own protocol and over HTTP, and requests of no run.
#[derive(Debug, Default)]
pub(crate) struct Census(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Ever begun: tells whether another one came meanwhile.
    begun: u64,
    under_way: u64,
}

/// One run, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    census: Arc<Census>,
    /// The number of its beginning.
    begun: u64,
    began_alone: bool,
}

impl Census {
    /// Counts a run.
    pub(crate) fn enter(self: &Arc<Self>) -> Counted {
        let mut counts = self.lock();
        let began_alone = counts.under_way == 0;
        counts.under_way += 1;
        counts.begun += 1;
        Counted { census: Arc::clone(self), begun: counts.begun, began_alone }
    }

    /// Counts a request that belongs to no run, but uses the CPU as one does.
    pub(crate) fn pass(&self) {
        self.lock().begun += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    /// Whether nothing else has used the server since it began.
    pub(crate) fn was_alone(&self) -> bool {
        self.began_alone && self.census.lock().begun == self.begun
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.census.lock().under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_met_another_was_not_alone_even_when_that_is_over() {
        let census = Arc::<Census>::default();
        let first = census.enter();
        assert!(first.was_alone());
        let second = census.enter();
        assert!(!first.was_alone() && !second.was_alone());
        drop(first);
        assert!(!second.was_alone());
        drop(second);
        let third = census.enter();
        assert!(third.was_alone());
        census.pass();
        assert!(!third.was_alone());
    }
}
