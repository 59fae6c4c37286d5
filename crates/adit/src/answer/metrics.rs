//! What public listeners answer, counted by each lane for itself and put together when somebody asks.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_proxy::lanes::{LaneArc, LaneShared, PerLane};
use prometheus::core::{Collector, Desc};
use prometheus::local::LocalHistogram;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counts what public listeners answer; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RequestMetrics(Arc<LaneShared<Counters>>);

/// The counters behind [`RequestMetrics`].
#[derive(Debug)]
pub(super) struct Counters {
    lanes: PerLane<Lane>,
    in_flight: IntGauge,
    answered: IntCounterVec,
    /// By first digit of the status; looked up once, not for each request.
    by_class: [IntCounter; 5],
    failed: IntCounterVec,
    duration: Histogram,
}

/// What one lane has counted since somebody last asked.
#[derive(Debug)]
struct Lane {
    /// Below zero where requests begin on another lane than they end on.
    in_flight: AtomicI64,
    by_class: [AtomicU64; 5],
    duration: Mutex<LocalHistogram>,
}

/// Asked by the registry.
struct Collected(Arc<Counters>);

impl RequestMetrics {
    /// Creates and registers the counters.
    ///
    /// # Errors
    /// If the registry has them already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let buckets = vec![0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];
        let answered = IntCounterVec::new(
            Opts::new("adit_requests_total", "Requests answered, by class of status"),
            &["class"],
        )?;
        let duration = Histogram::with_opts(
            HistogramOpts::new("adit_request_duration_seconds", "From request head to end of answer")
                .buckets(buckets),
        )?;
        let lane = || Lane {
            in_flight: AtomicI64::new(0),
            by_class: Default::default(),
            duration: Mutex::new(duration.local()),
        };
        let counters = Arc::new(Counters {
            lanes: PerLane::new(lane),
            in_flight: IntGauge::new("adit_requests_in_flight", "Requests being answered")?,
            by_class: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| answered.with_label_values(&[class])),
            answered,
            failed: IntCounterVec::new(
                Opts::new(
                    "adit_requests_failed_total",
                    "Requests answered by adit itself because a hop failed",
                ),
                &["reason"],
            )?,
            duration,
        });
        registry.register(Box::new(counters.failed.clone()))?;
        registry.register(Box::new(Collected(Arc::clone(&counters))))?;
        Ok(Self(Arc::new(LaneShared::new(counters))))
    }

    /// Requests being answered now.
    pub(crate) fn in_flight(&self) -> i64 {
        self.0.in_flight()
    }

    /// As this lane hands it on.
    pub(super) fn own(&self) -> &LaneArc<Counters> {
        self.0.own()
    }
}

impl Counters {
    pub(super) fn begun(&self) {
        self.lanes.own().in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn answered(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.lanes.own().by_class[class].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a failure under its name.
    pub(super) fn failed(&self, reason: &str) {
        self.failed.with_label_values(&[reason]).inc();
    }

    pub(super) fn ended(&self, after: Duration) {
        let lane = self.lanes.own();
        lane.in_flight.fetch_sub(1, Ordering::Relaxed);
        lane.duration.lock().unwrap_or_else(PoisonError::into_inner).observe(after.as_secs_f64());
    }

    fn in_flight(&self) -> i64 {
        self.lanes.iter().map(|lane| lane.in_flight.load(Ordering::Relaxed)).sum()
    }

    fn gather(&self) {
        self.in_flight.set(self.in_flight());
        for lane in self.lanes.iter() {
            for (counted, total) in lane.by_class.iter().zip(&self.by_class) {
                // Taken, not read: two who ask at once must not add the same twice.
                total.inc_by(counted.swap(0, Ordering::Relaxed));
            }
            lane.duration.lock().unwrap_or_else(PoisonError::into_inner).flush();
        }
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        let Counters { in_flight, answered, duration, .. } = &*self.0;
        [in_flight.desc(), answered.desc(), duration.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.gather();
        let Counters { in_flight, answered, duration, .. } = &*self.0;
        [in_flight.collect(), answered.collect(), duration.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lanes_have_counted_is_there_once_for_whoever_asks() {
        let registry = Registry::new();
        let metrics = RequestMetrics::new(&registry).unwrap();
        let text = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        metrics.own().begun();
        metrics.own().begun();
        metrics.own().answered(204);
        metrics.own().ended(Duration::from_millis(2));
        for _ in 0..2 {
            let text = text();
            for line in [
                "adit_requests_in_flight 1\n",
                "adit_requests_total{class=\"2xx\"} 1\n",
                "adit_request_duration_seconds_bucket{le=\"0.001\"} 0\n",
                "adit_request_duration_seconds_bucket{le=\"0.005\"} 1\n",
                "adit_request_duration_seconds_count 1\n",
            ] {
                assert!(text.contains(line), "{line}{text}");
            }
        }
        assert_eq!(metrics.in_flight(), 1);
    }
}
