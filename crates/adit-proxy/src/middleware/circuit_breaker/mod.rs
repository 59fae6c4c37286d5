//! circuitBreaker: stops asking a service that fails, and lets it back in by and by.

mod state;
mod window;

use std::sync::{Mutex, MutexGuard, PoisonError};

use adit_config::dynamic;
use http::StatusCode;
use tokio::time::Instant;

use self::state::{Breaker, Timing};
use super::expression::Expression;
use super::{Around, BoxFuture, Ctx, Next, reply};
use crate::message::{Request, Response};

/// `circuitBreaker`.
pub(super) struct CircuitBreaker {
    breaker: Mutex<Breaker>,
    refusal: StatusCode,
}

impl CircuitBreaker {
    pub(super) fn new(config: &dynamic::CircuitBreaker) -> Result<Self, String> {
        let or = |given: std::time::Duration, default| if given.is_zero() { default } else { given };
        let defaults = dynamic::CircuitBreaker::default();
        let timing = Timing {
            check_period: or(config.check_period, defaults.check_period),
            fallback: or(config.fallback_duration, defaults.fallback_duration),
            recovery: or(config.recovery_duration, defaults.recovery_duration),
        };
        let condition = Expression::parse(&config.expression)?;
        Ok(Self {
            breaker: Mutex::new(Breaker::new(condition, timing, Instant::now())),
            refusal: reply::status(config.response_code)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Around for CircuitBreaker {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        let start = Instant::now();
        if !self.lock().admits(start) {
            ctx.refused("circuit_open");
            return Box::pin(std::future::ready(reply::status_text(self.refusal)));
        }
        Box::pin(async move {
            let response = next.run(request, ctx).await;
            let now = Instant::now();
            if self.lock().record(response.status, now.duration_since(start), now) {
                tracing::warn!(router = %ctx.router, "circuit breaker opened");
            }
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{Echo, ctx, request};
    use super::super::{Layer, Outcome, run};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failing_service_is_left_alone_and_then_asked_again() {
        let config = dynamic::CircuitBreaker {
            expression: "ResponseCodeRatio(500, 600, 0, 600) > 0.3".to_owned(),
            response_code: 418,
            ..Default::default()
        };
        let chain = [Layer::around("m", CircuitBreaker::new(&config).unwrap())];
        let failing = Echo::failing(&[(500, Outcome::Answered); 99]);
        let mut ctx = ctx();
        tokio::time::advance(Duration::from_millis(101)).await;
        assert_eq!(run(&chain, &failing, request("/"), &mut ctx).await.status.as_u16(), 500);
        let refused = run(&chain, &failing, request("/"), &mut ctx).await;
        assert_eq!((refused.status.as_u16(), ctx.log.refusal), (418, Some("circuit_open")));
        tokio::time::advance(Duration::from_secs(21)).await;
        assert_eq!(run(&chain, &Echo::default(), request("/"), &mut ctx).await.status.as_u16(), 200);
    }

    #[test]
    fn an_expression_that_is_none_is_a_fault() {
        for expression in ["", "Unknown() > 1", "NetworkErrorRatio()", "LatencyAtQuantileMS() > 1"] {
            let config = dynamic::CircuitBreaker { expression: expression.to_owned(), ..Default::default() };
            assert!(CircuitBreaker::new(&config).is_err(), "{expression}");
        }
    }
}
