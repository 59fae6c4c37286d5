//! Latencies in buckets that are 3 % wide: percentiles of any number of samples in 16 KiB.

use std::time::Duration;

/// Counts of latencies from 1 microsecond to over an hour.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum_us: u64,
    max_us: u64,
    min_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, sum_us: 0, max_us: 0, min_us: u64::MAX }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).min(MICROS_MAX);
        self.buckets[bucket(micros)] += 1;
        self.count += 1;
        self.sum_us += micros;
        self.max_us = self.max_us.max(micros);
        self.min_us = self.min_us.min(micros);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
        self.sum_us += other.sum_us;
        self.max_us = self.max_us.max(other.max_us);
        self.min_us = self.min_us.min(other.min_us);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The latency that `share` of all samples (0–1) do not exceed; `None` without samples.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(Duration::from_micros(upper_bound(index).min(self.max_us).max(self.min_us)));
            }
        }
        None
    }

    pub(crate) fn mean(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_micros(self.sum_us / self.count))
    }

    pub(crate) fn max(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_micros(self.max_us))
    }

    pub(crate) fn min(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_micros(self.min_us))
    }
}

/// Values below [`STEPS`] have a bucket each; above, each doubling has [`STEPS`] of them.
fn bucket(micros: u64) -> usize {
    let bits = 64 - (micros | 1).leading_zeros();
    let shift = bits.saturating_sub(STEP_BITS + 1);
    (shift as usize) * STEPS + (micros >> shift) as usize
}

/// Greatest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    if bucket < 2 * STEPS {
        return bucket as u64;
    }
    let shift = (bucket / STEPS - 1) as u32;
    let mantissa = (bucket - (shift as usize) * STEPS) as u64;
    ((mantissa + 1) << shift) - 1
}

/// 32 steps a doubling: no value is off by more than 1/32.
const STEP_BITS: u32 = 5;
const STEPS: usize = 1 << STEP_BITS;
/// 2^36 us are 19 hours.
const MICROS_MAX: u64 = (1 << 36) - 1;
const BUCKETS: usize = (36 - STEP_BITS as usize + 1) * STEPS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_thirtieth() {
        let mut histogram = Histogram::default();
        (1..=100_000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        for share in [0.01, 0.5, 0.99, 0.999, 1.0] {
            let found = histogram.quantile(share).unwrap().as_micros() as f64;
            let wanted = 100_000.0 * share;
            assert!((found - wanted).abs() <= wanted / 30.0 + 1.0, "{share}: {found} instead of {wanted}");
        }
        assert_eq!(histogram.max(), Some(Duration::from_micros(100_000)));
        assert_eq!(histogram.min(), Some(Duration::from_micros(1)));
    }

    #[test]
    fn every_value_lies_in_its_bucket() {
        for micros in (0..4096).chain([MICROS_MAX, MICROS_MAX / 2, 1 << 30]) {
            let at = bucket(micros);
            assert!(at < BUCKETS, "{micros}");
            assert!(upper_bound(at) >= micros, "{micros}");
            assert!(at == 0 || upper_bound(at - 1) < micros, "{micros}");
        }
    }

    #[test]
    fn nothing_measured_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(Histogram::default().mean(), None);
    }
}
