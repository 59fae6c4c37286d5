//! Whether the server is still there while a run goes on or winds up.
//!
//! A connection that nothing comes on says nothing by itself: a path that is cut is silent, a process that stands still has a
//! kernel that goes on acknowledging, and a slow line that the load fills keeps small questions waiting. So everything that
//! comes is a sign: answers to pings, load, and what is acknowledged of our own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::error::BenchError;
use crate::flow::Flow;
use crate::plan::{Plan, Transport};

/// Looks for signs of the server.
#[derive(Debug)]
pub(super) struct Watch {
    flows: Vec<Arc<Flow>>,
    /// Pings that were answered.
    answers: Arc<AtomicU64>,
    looks: Interval,
    silence: Silence,
    /// Whether our own load may drown every sign.
    drowns: bool,
}

/// How long which signs have been missing.
#[derive(Debug)]
struct Silence {
    /// Sum of what only the server's process can have said, and when it grew.
    heard: (u64, Instant),
    /// Sum of what any kernel on the way may have acknowledged, and when it grew.
    acknowledged: (u64, Instant),
}

impl Watch {
    pub(super) fn new(plan: &Plan, flows: &[Arc<Flow>], answers: Arc<AtomicU64>) -> Self {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            flows: flows.to_vec(),
            answers,
            looks,
            silence: Silence::new(Instant::now()),
            drowns: plan.transport == Transport::Udp && plan.up > 0,
        }
    }

    /// Our load is over: what was owed an answer is counted from here.
    pub(super) fn load_is_over(&mut self) {
        self.drowns = false;
        self.silence = Silence::new(Instant::now());
    }

    /// Resolves when the server has been silent for too long; may be dropped and called again.
    pub(super) async fn lost(&mut self) -> BenchError {
        loop {
            self.looks.tick().await;
            let signs = self.flows.iter().map(|flow| flow.signs());
            let (heard, acknowledged) = signs.fold((0u64, 0u64), |sum, signs| {
                (sum.0.saturating_add(signs.0), sum.1.saturating_add(signs.1))
            });
            let heard = heard.saturating_add(self.answers.load(Ordering::Relaxed));
            // Datagrams are sent at their rate whatever comes of them, and fill a slow line until nothing else passes. Such
            // a run ends by itself; meanwhile the control connection's probes, which do not back off, tell of a cut.
            if let Some(why) = self.silence.look(Instant::now(), heard, acknowledged)
                && !self.drowns
            {
                return BenchError::Lost(why);
            }
        }
    }
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { heard: (0, now), acknowledged: (0, now) }
    }

    /// Takes the sums as they are; in words, what has been missing for too long.
    fn look(&mut self, now: Instant, heard: u64, acknowledged: u64) -> Option<String> {
        for (mark, sum) in [(&mut self.heard, heard), (&mut self.acknowledged, acknowledged)] {
            if mark.0 != sum {
                *mark = (sum, now);
            }
        }
        let heard = now.saturating_duration_since(self.heard.1);
        let acknowledged = now.saturating_duration_since(self.acknowledged.1);
        if heard.min(acknowledged) >= SILENCE_MAX {
            Some(format!("nothing came from it for {} s", SILENCE_MAX.as_secs()))
        } else if heard >= STANDSTILL_MAX {
            Some(format!("it answered nothing for {} s", STANDSTILL_MAX.as_secs()))
        } else {
            None
        }
    }
}

const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// No sign of any kind. A connection over a line that loses four repetitions in a row comes back after 6.2 s (0.2 s, doubled
/// each time: RFC 6298 §5.5).
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Load is acknowledged, and nothing else comes: a process that stands still, whose kernel's buffers a slow rate takes long to
/// fill; or a question that waits in a queue, which holds 30 s at 400 kbit/s where it is as long as Linux makes it (1,000
/// packets).
const STANDSTILL_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks each second at sums that `signs` gives; the second in which the server is lost.
    fn lost_after(signs: impl Fn(u64) -> (u64, u64)) -> Option<(u64, String)> {
        let began = Instant::now();
        let mut silence = Silence::new(began);
        (0..600).find_map(|second| {
            let (heard, acknowledged) = signs(second);
            let why = silence.look(began + Duration::from_secs(second), heard, acknowledged);
            why.map(|why| (second, why))
        })
    }

    #[test]
    fn a_path_that_is_cut_is_lost_after_ten_seconds() {
        let (second, why) = lost_after(|second| (second.min(7), second.min(5))).unwrap();
        assert_eq!((second, why.as_str()), (17, "nothing came from it for 10 s"));
    }

    #[test]
    fn a_process_that_stands_still_is_lost_though_its_kernel_acknowledges() {
        let (second, why) = lost_after(|second| (second.min(7), second)).unwrap();
        assert_eq!((second, why.as_str()), (37, "it answered nothing for 30 s"));
        // Soon its buffers are full.
        assert_eq!(lost_after(|second| (second.min(7), second.min(9))).unwrap().0, 19);
    }

    #[test]
    fn a_slow_line_that_the_load_fills_is_not_lost() {
        // Answers come each 25 s, and meanwhile the load is acknowledged now and then.
        assert_eq!(lost_after(|second| (second / 25, second / 9)), None);
        // Load comes now and then, and answers nearly never.
        assert_eq!(lost_after(|second| (second / 9, 0)), None);
    }
}
