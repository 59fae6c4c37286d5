//! What was answered lately: counts over ten seconds, latencies over a minute.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Sliding windows that forget a slice at a time.
pub(super) struct Window {
    /// Answers by status; statuses are three digits, so a slice never has more than 900 entries.
    statuses: Slices<BTreeMap<u16, u64>>,
    latencies: Option<Slices<Histogram>>,
}

impl Window {
    pub(super) fn new(with_latency: bool, now: Instant) -> Self {
        Self {
            statuses: Slices::new(STATUS_SLICES, STATUS_SLICE, now),
            latencies: with_latency.then(|| Slices::new(LATENCY_SLICES, LATENCY_SLICE, now)),
        }
    }

    pub(super) fn record(&mut self, status: u16, latency: Duration, now: Instant) {
        *self.statuses.current(now).entry(status).or_insert(0) += 1;
        if let Some(latencies) = &mut self.latencies {
            latencies.current(now).record(latency);
        }
    }

    /// Answers with a status from `from` up to but not including `to`.
    pub(super) fn count(&mut self, from: u16, to: u16, now: Instant) -> u64 {
        self.statuses.current(now);
        let slices = self.statuses.all.iter();
        slices
            .flat_map(|slice| slice.iter())
            .filter(|(status, _)| (from..to).contains(status))
            .map(|(_, n)| n)
            .sum()
    }

    /// Whole milliseconds within which `percent` of the answers came.
    pub(super) fn latency_ms(&mut self, percent: f64, now: Instant) -> f64 {
        let Some(latencies) = &mut self.latencies else { return 0.0 };
        latencies.current(now);
        (Histogram::quantile_micros(&latencies.all, percent) / 1000) as f64
    }

    pub(super) fn clear(&mut self, now: Instant) {
        *self = Self::new(self.latencies.is_some(), now);
    }
}

/// The last slices of time, newest at the back.
struct Slices<T> {
    all: VecDeque<T>,
    slices_max: usize,
    length: Duration,
    /// Where the newest begins.
    since: Instant,
}

impl<T: Default> Slices<T> {
    fn new(slices_max: usize, length: Duration, now: Instant) -> Self {
        Self { all: VecDeque::from([T::default()]), slices_max, length, since: now }
    }

    /// The slice of now; those that are too old go.
    fn current(&mut self, now: Instant) -> &mut T {
        let mut begun = 0;
        while now.duration_since(self.since) >= self.length && begun < self.slices_max {
            self.all.push_back(T::default());
            self.since += self.length;
            begun += 1;
        }
        if begun == self.slices_max {
            self.since = now;
        }
        while self.all.len() > self.slices_max.max(1) {
            self.all.pop_front();
        }
        if self.all.is_empty() {
            self.all.push_back(T::default());
        }
        let last = self.all.len() - 1;
        &mut self.all[last]
    }
}

/// Latencies to about 1 %: each doubling is cut into 64 steps. 7 KiB, whatever is counted.
struct Histogram {
    counts: Vec<u32>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; step_of(u64::from(u32::MAX)) + 1] }
    }
}

impl Histogram {
    fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        let count = &mut self.counts[step_of(micros)];
        *count = count.saturating_add(1);
    }

    fn quantile_micros(slices: &VecDeque<Self>, percent: f64) -> u64 {
        let total: u64 = slices.iter().flat_map(|slice| &slice.counts).map(|count| u64::from(*count)).sum();
        let wanted = (percent.clamp(0.0, 100.0) / 100.0 * total as f64 + 0.5) as u64;
        let mut seen = 0;
        for step in 0..step_of(u64::from(u32::MAX)) + 1 {
            seen += slices.iter().map(|slice| u64::from(slice.counts[step])).sum::<u64>();
            if seen >= wanted && seen > 0 {
                return highest_of(step);
            }
        }
        0
    }
}

fn step_of(micros: u64) -> usize {
    let exponent = (u64::BITS - micros.leading_zeros()).saturating_sub(STEP_BITS + 1);
    let mantissa = micros >> exponent;
    exponent as usize * STEPS + usize::try_from(mantissa).unwrap_or(0)
}

/// The largest value that is counted in the step.
fn highest_of(step: usize) -> u64 {
    let (exponent, mantissa) = match step.checked_sub(STEPS) {
        None => (0, step),
        Some(above) => (above / STEPS, above % STEPS + STEPS),
    };
    ((mantissa as u64 + 1) << exponent) - 1
}

const STEP_BITS: u32 = 6;
const STEPS: usize = 1 << STEP_BITS;
const STATUS_SLICES: usize = 10;
const STATUS_SLICE: Duration = Duration::from_secs(1);
const LATENCY_SLICES: usize = 6;
const LATENCY_SLICE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_go_after_ten_seconds() {
        let start = Instant::now();
        let mut window = Window::new(false, start);
        window.record(500, Duration::ZERO, start);
        window.record(200, Duration::ZERO, start + Duration::from_secs(5));
        assert_eq!(window.count(500, 600, start + Duration::from_secs(9)), 1);
        assert_eq!(window.count(500, 600, start + Duration::from_secs(10)), 0);
        assert_eq!(window.count(0, 600, start + Duration::from_secs(10)), 1);
        assert_eq!(window.count(0, 600, start + Duration::from_secs(3600)), 0);
        window.record(200, Duration::ZERO, start + Duration::from_secs(3600));
        assert_eq!(window.count(0, 600, start + Duration::from_secs(3601)), 1);
    }

    proptest! {
        #[test]
        fn a_step_holds_its_values_to_two_percent(micros in 0u64..u64::from(u32::MAX)) {
            let highest = highest_of(step_of(micros));
            prop_assert!(highest >= micros);
            prop_assert!(highest - micros <= micros / 50 + 1);
        }

        #[test]
        fn the_median_is_in_the_middle(mut all in prop::collection::vec(1u64..10_000_000, 1..100)) {
            let now = Instant::now();
            let mut window = Window::new(true, now);
            for micros in &all {
                window.record(200, Duration::from_micros(*micros), now);
            }
            all.sort_unstable();
            let wanted = (0.5 * all.len() as f64 + 0.5) as usize;
            let expected = all[wanted.max(1) - 1];
            let found = window.latency_ms(50.0, now) * 1000.0;
            prop_assert!((found - expected as f64).abs() <= expected as f64 * 0.02 + 1001.0);
        }
    }
}
