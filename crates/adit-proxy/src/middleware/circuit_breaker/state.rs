//! When the circuit opens and closes; time is an argument.
//!
//! ```text
//! Closed ── condition ──▶ Open ── fallback over ──▶ Recovering ── recovery over ──▶ Closed
//!                           ▲──────── condition ────────┘
//! ```

use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::super::expression::{Expression, Kind, Term, Value};
use super::window::Window;

/// A circuit breaker.
pub(super) struct Breaker {
    condition: Expression<Measure>,
    timing: Timing,
    state: State,
    window: Window,
    /// Not looked at the condition again before.
    next_check: Instant,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) check_period: Duration,
    pub(super) fallback: Duration,
    pub(super) recovery: Duration,
}

enum State {
    Closed,
    Open { until: Instant },
    Recovering { since: Instant, admitted: u32, refused: u32 },
}

impl Breaker {
    pub(super) fn new(condition: Expression<Measure>, timing: Timing, now: Instant) -> Self {
        let needs_latency = condition.mentions(&|measure| matches!(measure, Measure::LatencyAtQuantile(_)));
        Self {
            condition,
            timing,
            state: State::Closed,
            window: Window::new(needs_latency, now),
            next_check: now,
        }
    }

    /// Whether a request is let through now.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        if let State::Open { until } = self.state {
            if now < until {
                return false;
            }
            self.state = State::Recovering { since: until, admitted: 0, refused: 0 };
        }
        let State::Recovering { since, admitted, refused } = &mut self.state else { return true };
        let elapsed = now.duration_since(*since);
        if elapsed > self.timing.recovery {
            self.state = State::Closed;
            return true;
        }
        // The share let through grows to one half; from there on as many pass as do not, and the circuit closes.
        let share = 0.5 * elapsed.as_secs_f64() / self.timing.recovery.as_secs_f64();
        let with_this = f64::from(*admitted + 1) / f64::from(*admitted + *refused + 1);
        let admits = with_this < share;
        *(if admits { admitted } else { refused }) += 1;
        admits
    }

    /// Counts an answer; true if the circuit opened because of it.
    pub(super) fn record(&mut self, status: StatusCode, latency: Duration, now: Instant) -> bool {
        self.window.record(status.as_u16(), latency, now);
        if now <= self.next_check {
            return false;
        }
        self.next_check = now + self.timing.check_period;
        let window = &mut self.window;
        if matches!(self.state, State::Open { .. })
            || !self.condition.holds(&mut |measure| measure.of(window, now))
        {
            return false;
        }
        self.state = State::Open { until: now + self.timing.fallback };
        self.window.clear(now);
        true
    }
}

/// What the condition can ask about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Measure {
    /// Milliseconds within which this percentage of requests was answered.
    LatencyAtQuantile(f64),
    /// Share of 502 and 504.
    NetworkErrorRatio,
    /// Answers with a status from the first up to the second, divided by those from the third up to the fourth.
    ResponseCodeRatio([u16; 4]),
    /// Requests counted.
    Requests,
}

impl Measure {
    fn of(self, window: &mut Window, now: Instant) -> Value {
        Value::Number(match self {
            Self::LatencyAtQuantile(percent) => window.latency_ms(percent, now),
            Self::NetworkErrorRatio => {
                let errors = window.count(502, 503, now) + window.count(504, 505, now);
                ratio(errors, window.count(0, u16::MAX, now))
            }
            Self::ResponseCodeRatio([from, to, of_from, of_to]) => {
                ratio(window.count(from, to, now), window.count(of_from, of_to, now))
            }
            Self::Requests => window.count(0, u16::MAX, now) as f64,
        })
    }
}

impl Term for Measure {
    fn bind(name: &str, arguments: &[Value]) -> Result<Self, String> {
        let code = |value: &Value| match value {
            Value::Number(number) if (0.0..=1000.0).contains(number) => Ok(*number as u16),
            _ => Err(format!("{name}: {value:?} is not a status")),
        };
        match (name, arguments) {
            ("LatencyAtQuantileMS", [Value::Number(percent)]) => Ok(Self::LatencyAtQuantile(*percent)),
            ("NetworkErrorRatio", []) => Ok(Self::NetworkErrorRatio),
            ("ResponseCodeRatio", [from, to, of_from, of_to]) => {
                Ok(Self::ResponseCodeRatio([code(from)?, code(to)?, code(of_from)?, code(of_to)?]))
            }
            ("RequestThreshold", []) => Ok(Self::Requests),
            ("LatencyAtQuantileMS" | "NetworkErrorRatio" | "ResponseCodeRatio" | "RequestThreshold", _) => {
                Err(format!("{name}: wrong arguments"))
            }
            _ => Err(format!("unsupported function: {name}")),
        }
    }

    fn kind(&self) -> Kind {
        Kind::Number
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(expression: &str, now: Instant) -> Breaker {
        let timing = Timing {
            check_period: Duration::from_millis(100),
            fallback: Duration::from_secs(10),
            recovery: Duration::from_secs(10),
        };
        Breaker::new(Expression::parse(expression).unwrap(), timing, now)
    }

    const TICK: Duration = Duration::from_millis(150);

    #[test]
    fn the_condition_is_looked_at_once_a_period() {
        let mut now = Instant::now();
        let mut breaker = breaker("NetworkErrorRatio() > 0.5 && RequestThreshold() >= 3", now);
        for opens in [false, false, true] {
            now += TICK;
            assert_eq!(breaker.record(StatusCode::BAD_GATEWAY, Duration::ZERO, now), opens);
        }
        assert!(!breaker.admits(now));
        assert!(!breaker.record(StatusCode::BAD_GATEWAY, Duration::ZERO, now + TICK));
    }

    #[test]
    fn recovery_lets_more_and_more_through_and_then_everything() {
        let start = Instant::now();
        let mut breaker = breaker("NetworkErrorRatio() > 0.5", start);
        assert!(breaker.record(StatusCode::GATEWAY_TIMEOUT, Duration::ZERO, start + TICK));
        let open_until = start + TICK + Duration::from_secs(10);
        let mut admitted_in = |from: u64| {
            (0..500)
                .filter(|step| breaker.admits(open_until + Duration::from_millis(from + step * 10)))
                .count()
        };
        let (first, second) = (admitted_in(0), admitted_in(5000));
        assert!(first > 0 && second > first && first + second < 500, "{first} {second}");
        assert!(breaker.admits(open_until + Duration::from_millis(10_001)));
    }

    #[test]
    fn slow_answers_count_by_quantile() {
        let start = Instant::now();
        let mut breaker = breaker("LatencyAtQuantileMS(50.0) > 100", start);
        assert!(!breaker.record(StatusCode::OK, Duration::from_millis(50), start + TICK));
        assert!(!breaker.record(StatusCode::OK, Duration::from_millis(300), start + TICK + TICK));
        assert!(breaker.record(StatusCode::OK, Duration::from_millis(300), start + TICK * 3));
    }
}
