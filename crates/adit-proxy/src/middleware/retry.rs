//! retry: another attempt where the first one failed before it could have had an effect, or with a listed status.

use std::time::Duration;

use adit_config::dynamic;
use http::Method;
use tokio::time::{Instant, sleep};

use super::status_ranges::StatusRanges;
use super::{Around, BoxFuture, Ctx, Next, Outcome};
use crate::body::Body;
use crate::message::{Request, Response};
use crate::service::replay::{Overflow, Replay};

/// `retry`.
pub(super) struct Retry {
    /// In all.
    attempts: u32,
    statuses: StatusRanges,
    on_network_error: bool,
    any_method: bool,
    body_bytes_max: Option<u64>,
    initial_interval: Duration,
    /// No further attempt begins after this long.
    timeout: Option<Duration>,
}

impl Retry {
    pub(super) fn new(config: &dynamic::Retry) -> Result<Self, String> {
        let attempts = u32::try_from(config.attempts).ok().filter(|attempts| *attempts > 0);
        if config.status.is_empty() && config.disable_retry_on_network_error {
            return Err("neither a status nor network errors are to be retried".to_owned());
        }
        Ok(Self {
            attempts: attempts
                .ok_or_else(|| format!("incorrect (or empty) value for attempts ({})", config.attempts))?,
            statuses: StatusRanges::parse(&config.status)?,
            on_network_error: !config.disable_retry_on_network_error,
            any_method: config.retry_non_idempotent_method,
            body_bytes_max: config.request_body_bytes_max,
            initial_interval: config.initial_interval,
            timeout: (!config.timeout.is_zero()).then_some(config.timeout),
        })
    }

    /// Whether a listed status may be retried at all for this method.
    fn retries_statuses(&self, method: &Method) -> bool {
        let may_have_effect = matches!(*method, Method::POST | Method::PATCH) || method.as_str() == "LOCK";
        !self.statuses.is_empty() && (self.any_method || !may_have_effect)
    }

    /// The wait before attempt `attempt + 1`: it grows to twice the first one, each with a share of chance so that
    /// many visitors do not come back at once.
    fn interval(&self, attempt: u32) -> Duration {
        if self.initial_interval.is_zero() {
            return Duration::ZERO;
        }
        let steps = f64::from(self.attempts.saturating_sub(1).max(1));
        let grown = 2f64.powf(f64::from(attempt - 1) / steps);
        self.initial_interval.mul_f64(grown * (0.5 + rand::random::<f64>()))
    }

    async fn repeat(&self, mut request: Request, ctx: &mut Ctx, next: Next<'_>) -> Response {
        let start = Instant::now();
        let by_status = self.retries_statuses(&request.method);
        // Without a status to wait for, a second attempt is made only if nothing was sent: nothing need be kept. What
        // follows an upgrade is not sent before the server has agreed to it.
        let is_kept = by_status && request.upgrade.is_none();
        let bytes_max = if is_kept { self.body_bytes_max } else { Some(0) };
        let body = std::mem::replace(&mut request.body, Body::empty());
        let replay = Replay::new(body, bytes_max, Overflow::Forget);
        let Some(mut body) = replay.attempt() else { return next.run(request, ctx).await };
        let mut attempt = 1;
        let path_is_empty = ctx.path_is_empty;
        loop {
            ctx.outcome = Outcome::Unasked;
            let began = Instant::now();
            ctx.path_is_empty = path_is_empty;
            let response = next.run(copy(&request, body), ctx).await;
            let has_failed = (self.on_network_error && ctx.outcome == Outcome::Unsent)
                || (by_status && self.statuses.contains(response.status));
            let is_late = self.timeout.is_some_and(|timeout| start.elapsed() >= timeout);
            if !has_failed || is_late || attempt >= self.attempts {
                return response;
            }
            // What the failed attempt has not read is the next one's.
            let Some(again) = replay.attempt() else { return response };
            let status = response.status;
            drop(response);
            body = again;
            let interval = self.interval(attempt);
            attempt += 1;
            ctx.replaced(status, began);
            tracing::debug!(router = %ctx.router, attempt, outcome = ?ctx.outcome, "request is tried again");
            if !interval.is_zero() {
                sleep(interval).await;
            }
        }
    }
}

impl Around for Retry {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        if self.attempts == 1 {
            return next.run(request, ctx);
        }
        Box::pin(self.repeat(request, ctx, next))
    }
}

/// The same request with another body.
pub(super) fn copy(request: &Request, body: Body) -> Request {
    Request {
        method: request.method.clone(),
        uri: request.uri.clone(),
        version: request.version,
        host: request.host.clone(),
        headers: request.headers.clone(),
        body,
        upgrade: request.upgrade.clone(),
        visitor: std::sync::Arc::clone(&request.visitor),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Echo, content, ctx, request};
    use super::super::{Layer, run};
    use super::*;

    fn config(attempts: i64, status: &[&str]) -> dynamic::Retry {
        let status = status.iter().map(|text| (*text).to_owned()).collect();
        dynamic::Retry { attempts, status, ..Default::default() }
    }

    async fn asked(config: &dynamic::Retry, target: &Echo, method: Method) -> (Response, Ctx) {
        let chain = [Layer::around("m", Retry::new(config).unwrap())];
        let mut request = request("/");
        request.method = method;
        request.body = Body::full("content");
        let mut ctx = ctx();
        let response = run(&chain, target, request, &mut ctx).await;
        (response, ctx)
    }

    #[tokio::test]
    async fn a_refused_upgrade_is_asked_for_again() {
        let mut upgrade = request("/");
        upgrade.upgrade = Some("websocket".into());
        upgrade.body = Body::stream(Unread, crate::body::Length::Raw);
        let target = Echo::failing(&[(503, Outcome::Unsent), (101, Outcome::Unsent)]);
        let config = dynamic::Retry { disable_retry_on_network_error: true, ..config(3, &["503"]) };
        let chain = [Layer::around("m", Retry::new(&config).unwrap())];
        assert_eq!(run(&chain, &target, upgrade, &mut ctx()).await.status.as_u16(), 101);
    }

    struct Unread;

    impl crate::body::BodySource for Unread {
        fn poll_chunks(
            &mut self,
            _cx: &mut std::task::Context<'_>,
            _out: &mut crate::body::Batch,
        ) -> std::task::Poll<Result<bool, crate::body::BodyError>> {
            panic!("nothing is read before the server has agreed")
        }
    }

    #[tokio::test]
    async fn what_was_not_sent_is_tried_again_whatever_the_method() {
        let target = Echo::failing(&[(502, Outcome::Unsent), (200, Outcome::Answered)]);
        let (response, ctx) = asked(&config(3, &[]), &target, Method::POST).await;
        assert_eq!((response.status.as_u16(), ctx.log.retries), (200, 1));
        assert_eq!(target.seen_content(), ["", "content"]);
    }

    #[tokio::test]
    async fn what_was_sent_is_not_tried_again_without_a_listed_status() {
        for outcome in [Outcome::Failed, Outcome::Answered, Outcome::Unasked] {
            let target = Echo::failing(&[(503, outcome), (200, Outcome::Answered)]);
            let (response, _) = asked(&config(3, &[]), &target, Method::GET).await;
            assert_eq!(response.status.as_u16(), 503);
        }
    }

    #[tokio::test]
    async fn a_listed_status_is_tried_again_for_idempotent_methods_only() {
        let flaky = || Echo::failing(&[(503, Outcome::Answered), (200, Outcome::Answered)]);
        let target = flaky();
        assert_eq!(asked(&config(2, &["500-599"]), &target, Method::PUT).await.0.status.as_u16(), 200);
        assert_eq!(target.seen_content(), ["content", "content"]);
        assert_eq!(asked(&config(2, &["503"]), &flaky(), Method::POST).await.0.status.as_u16(), 503);
        let any_method = dynamic::Retry { retry_non_idempotent_method: true, ..config(2, &["503"]) };
        assert_eq!(asked(&any_method, &flaky(), Method::POST).await.0.status.as_u16(), 200);
    }

    #[tokio::test]
    async fn the_last_answer_is_the_visitors() {
        let target =
            Echo::failing(&[(503, Outcome::Answered), (500, Outcome::Answered), (200, Outcome::Answered)]);
        let (response, ctx) = asked(&config(2, &["500-599"]), &target, Method::GET).await;
        assert_eq!((response.status.as_u16(), ctx.log.retries), (500, 1));
        assert_eq!(content(response.body).await, b"answer 2");
    }

    #[tokio::test]
    async fn too_large_a_body_is_sent_once() {
        let target = Echo::failing(&[(503, Outcome::Answered), (200, Outcome::Answered)]);
        let small = dynamic::Retry { request_body_bytes_max: Some(3), ..config(2, &["503"]) };
        assert_eq!(asked(&small, &target, Method::GET).await.0.status.as_u16(), 503);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_wait_and_end_with_the_time_allowed() {
        let target = Echo::failing(&[(503, Outcome::Answered); 9]);
        let slow = dynamic::Retry {
            initial_interval: Duration::from_secs(1),
            timeout: Duration::from_millis(400),
            ..config(9, &["503"])
        };
        let (_, ctx) = asked(&slow, &target, Method::GET).await;
        assert_eq!(ctx.log.retries, 1);
    }

    #[test]
    fn no_attempts_and_nothing_to_retry_are_faults() {
        assert!(Retry::new(&config(0, &[])).is_err());
        assert!(
            Retry::new(&dynamic::Retry { disable_retry_on_network_error: true, ..config(2, &[]) }).is_err()
        );
        assert!(Retry::new(&config(2, &["x"])).is_err());
    }
}
