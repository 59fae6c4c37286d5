//! When the next line is due, and when the run ends.

use std::time::Duration;

use crate::recorder::Recorder;

/// The times of interval lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    step: f64,
    next: f64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Due {
    /// Nothing but the end of all flows.
    Never,
    Line(f64),
    End(f64),
}

impl Ticks {
    pub(crate) fn new(step: Duration) -> Self {
        Self { step: step.as_secs_f64(), next: step.as_secs_f64() }
    }

    pub(crate) fn advance(&mut self) {
        self.next += self.step;
    }
}

impl Due {
    /// A line that would fall on the end, or just before it, is part of the last one.
    pub(crate) fn next(end: Option<f64>, ticks: Option<&Ticks>) -> Self {
        match (end, ticks) {
            (None, None) => Self::Never,
            (Some(end), Some(ticks)) if ticks.next + ticks.step * LEFT_OVER > end => Self::End(end),
            (_, Some(ticks)) => Self::Line(ticks.next),
            (Some(end), None) => Self::End(end),
        }
    }

    /// Waits for it.
    pub(crate) async fn wait(self, recorder: &Recorder) {
        let (Self::Line(at) | Self::End(at)) = self else { return std::future::pending().await };
        tokio::time::sleep(Duration::from_secs_f64((at - recorder.elapsed()).max(0.0))).await;
    }
}

/// Share of an interval that makes no line of its own.
const LEFT_OVER: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_that_of_the_end() {
        let mut ticks = Ticks::new(Duration::from_secs(1));
        assert_eq!(Due::next(Some(2.0), Some(&ticks)), Due::Line(1.0));
        ticks.advance();
        assert_eq!(Due::next(Some(2.0), Some(&ticks)), Due::End(2.0));
        assert_eq!(Due::next(None, Some(&ticks)), Due::Line(2.0));
        assert_eq!(Due::next(Some(2.0), None), Due::End(2.0));
        assert_eq!(Due::next(None, None), Due::Never);
    }
}
