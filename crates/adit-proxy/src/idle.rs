//! A time limit on silence that costs one clock read per progress, not one timer operation.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Fires when `limit` has passed since the last [`Idle::touch`].
///
/// The timer is armed only when somebody waits, and moved only when it fires, so a busy transfer never touches it.
#[derive(Debug)]
pub struct Idle {
    limit: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    /// Starts counting now.
    pub fn new(limit: Duration) -> Self {
        Self { limit, last: Instant::now(), timer: None }
    }

    /// Something happened.
    pub fn touch(&mut self) {
        self.last = Instant::now();
    }

    /// Starts counting afresh with another limit.
    pub fn restart(&mut self, limit: Duration) {
        self.limit = limit;
        self.touch();
        // A timer armed for a longer limit would fire too late.
        self.timer = None;
    }

    /// Ready when the limit has passed in silence.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.last + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn fires_only_after_silence_of_the_whole_limit() {
        let mut idle = Idle::new(Duration::from_secs(10));
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(poll_fn(|cx| Poll::Ready(idle.poll(cx).is_pending())).await);
        idle.touch();
        poll_fn(|cx| idle.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 16);
    }
}
