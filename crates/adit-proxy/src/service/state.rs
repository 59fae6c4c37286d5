//! What is known of one server: its health, what it is busy with, how fast it answers. Outlives a reload.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use adit_config::dynamic::PassiveHealthCheck;
use http::HeaderMap;
use tokio::time::Instant;

use crate::body::{Batch, Body, BodyError, BodySource};
use crate::tcp::splice::Pipe;

/// One server's state, by service and URL.
#[derive(Debug)]
pub(super) struct ServerState {
    began: Instant,
    /// What the last probe said; true before the first.
    probed_up: AtomicBool,
    /// Milliseconds after `began` until which visitors' failures keep it out; 0 if they do not.
    out_until_ms: AtomicU64,
    /// True while `failures` is not empty, so that a success costs no lock.
    is_failing: AtomicBool,
    failures: Mutex<VecDeque<Instant>>,
    in_flight: AtomicUsize,
    times: Mutex<Times>,
}

impl Default for ServerState {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            probed_up: AtomicBool::new(true),
            out_until_ms: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
            failures: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            times: Mutex::default(),
        }
    }
}

impl ServerState {
    /// Whether visitors are sent to it.
    pub(super) fn is_up(&self) -> bool {
        if !self.probed_up.load(Ordering::Relaxed) {
            return false;
        }
        match self.out_until_ms.load(Ordering::Relaxed) {
            0 => true,
            until => self.now_ms() >= until,
        }
    }

    /// Takes over what a probe found; true if that is news.
    pub(super) fn probed(&self, up: bool) -> bool {
        self.probed_up.swap(up, Ordering::Relaxed) != up
    }

    /// Forgets what is no longer looked at, after a reload that took a health check away.
    pub(super) fn reset(&self, probed: bool, judged: bool) {
        if !probed {
            self.probed_up.store(true, Ordering::Relaxed);
        }
        if !judged {
            self.out_until_ms.store(0, Ordering::Relaxed);
            self.is_failing.store(false, Ordering::Relaxed);
            lock(&self.failures).clear();
        }
    }

    /// Counts the outcome of a visitor's request; true if that took the server out.
    ///
    /// Where the server is probed as well, the next good probe brings it back, else the end of the window does.
    pub(super) fn judge(&self, failed: bool, rule: &PassiveHealthCheck, is_probed: bool) -> bool {
        if !failed {
            if self.is_failing.swap(false, Ordering::Relaxed) {
                lock(&self.failures).clear();
            }
            return false;
        }
        let now = Instant::now();
        let count_max = usize::try_from(rule.failed_attempts_max.clamp(1, FAILURES_MAX)).unwrap_or(1);
        let reached = {
            let mut failures = lock(&self.failures);
            self.is_failing.store(true, Ordering::Relaxed);
            while failures.front().is_some_and(|at| now.duration_since(*at) >= rule.failure_window) {
                failures.pop_front();
            }
            if failures.len() >= count_max {
                failures.pop_front();
            }
            failures.push_back(now);
            failures.len() >= count_max
        };
        if !reached || !self.is_up() {
            return false;
        }
        if is_probed {
            return self.probed(false);
        }
        let until = self.now_ms().saturating_add(millis(rule.failure_window)).max(1);
        self.out_until_ms.store(until, Ordering::Relaxed);
        true
    }

    /// Requests whose answers are not through yet; counted only where the strategy asks for it.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request until the guard is gone.
    pub(super) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Mean time to the response head over the last answers, in whole milliseconds each; 0 before the first.
    pub(super) fn response_time_ms(&self) -> f64 {
        lock(&self.times).mean()
    }

    /// Takes another response time into the mean.
    pub(super) fn answered_in(&self, elapsed: Duration) {
        lock(&self.times).add(millis(elapsed));
    }

    fn now_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

/// One request being answered.
#[derive(Debug)]
pub(super) struct InFlight(Arc<ServerState>);

impl InFlight {
    /// Ties the count to a response's content: a long download is load as well.
    pub(super) fn follow(self, body: Body) -> Body {
        if body.is_replayable() {
            return body;
        }
        let length = body.length();
        Body::stream(Followed { body, _guard: self }, length)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Followed {
    body: Body,
    _guard: InFlight,
}

impl BodySource for Followed {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        self.body.poll_chunks(cx, out)
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<Option<bool>, BodyError>> {
        self.body.poll_pipe(cx, pipe)
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}

/// The last response times.
#[derive(Debug, Default)]
struct Times {
    samples: VecDeque<u64>,
    sum: u64,
}

impl Times {
    fn add(&mut self, ms: u64) {
        if self.samples.len() == SAMPLES_MAX {
            self.sum -= self.samples.pop_front().unwrap_or(0);
        }
        self.samples.push_back(ms);
        self.sum += ms;
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean for comparison")]
    fn mean(&self) -> f64 {
        if self.samples.is_empty() { 0.0 } else { self.sum as f64 / self.samples.len() as f64 }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Response times that the mean is taken over.
const SAMPLES_MAX: usize = 100;
/// Failures remembered of one server, 16 bytes each; more in a window is as bad.
const FAILURES_MAX: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Length;

    fn rule(attempts: u32) -> PassiveHealthCheck {
        PassiveHealthCheck { failure_window: Duration::from_secs(10), failed_attempts_max: attempts }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_window_take_a_server_out_for_a_window() {
        let state = ServerState::default();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!state.judge(true, &rule(2), false));
        assert!(state.is_up());
        assert!(state.judge(true, &rule(2), false));
        assert!(!state.is_up());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(state.is_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_between_failures_clears_them() {
        let state = ServerState::default();
        state.judge(true, &rule(2), false);
        state.judge(false, &rule(2), false);
        assert!(!state.judge(true, &rule(2), false));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(!state.judge(true, &rule(2), false), "the failure before has left the window");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probed_server_comes_back_by_a_probe_only() {
        let state = ServerState::default();
        assert!(state.judge(true, &rule(1), true));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!state.is_up());
        assert!(state.probed(true));
        assert!(state.is_up());
    }

    #[tokio::test]
    async fn load_lasts_as_long_as_the_content() {
        let state = Arc::new(ServerState::default());
        drop(state.enter().follow(Body::full("x")));
        assert_eq!(state.in_flight(), 0);
        struct Silent;
        impl BodySource for Silent {
            fn poll_chunks(&mut self, _: &mut Context<'_>, _: &mut Batch) -> Poll<Result<bool, BodyError>> {
                Poll::Pending
            }
        }
        let body = state.enter().follow(Body::stream(Silent, Length::Unknown));
        assert_eq!(state.in_flight(), 1);
        drop(body);
        assert_eq!(state.in_flight(), 0);
    }

    #[test]
    fn the_mean_is_over_the_last_hundred() {
        let mut times = Times::default();
        for ms in 0..200 {
            times.add(ms);
        }
        assert_eq!(times.mean(), (100..200).sum::<u64>() as f64 / 100.0);
    }
}
