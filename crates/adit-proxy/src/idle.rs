//! A time limit on silence that costs one clock read per progress, not one timer operation.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, Sleep};

use crate::body::{Batch, Body, BodyError, BodySource};
use crate::clock;
use crate::tcp::splice::Pipe;

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
        Self { limit, last: clock::now(), timer: None }
    }

    /// Something happened.
    pub fn touch(&mut self) {
        self.last = clock::now();
    }

    /// Gives the timer up until somebody waits again.
    pub fn disarm(&mut self) {
        self.timer = None;
    }

    /// Starts counting afresh with another limit.
    pub fn restart(&mut self, limit: Duration) {
        self.limit = limit;
        self.touch();
    }

    /// Ready when the limit has passed in silence.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.last + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        // One armed for a longer limit would fire too late; one that fires too early is moved then.
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if clock::now() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

/// A body that must be through within a time, however steadily it flows (Traefik's `readTimeout` and `writeTimeout`).
pub struct Deadline {
    body: Body,
    due: Pin<Box<Sleep>>,
}

impl Deadline {
    /// Limits `body` if there is a limit; the clock starts now.
    pub fn limit(body: Body, limit: Option<Duration>) -> Body {
        let Some(limit) = limit.filter(|_| !body.is_replayable()) else { return body };
        let length = body.length();
        Body::stream(Self { body, due: Box::pin(tokio::time::sleep(limit)) }, length)
    }
}

impl BodySource for Deadline {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        if self.due.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(BodyError::Late));
        }
        self.body.poll_chunks(cx, out)
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<Option<bool>, BodyError>> {
        if self.due.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(BodyError::Late));
        }
        self.body.poll_pipe(cx, pipe)
    }

    fn lend_pipe(&self) -> Option<Pipe> {
        self.body.lend_pipe()
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }

    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.due.as_mut().poll(cx)
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
