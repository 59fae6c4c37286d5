//! cloudflared's request counters under cloudflared's names (tunnel-protocol.md §8.3).

use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters of the connector's proxy.
#[derive(Clone, Debug)]
pub(crate) struct ProxyMetrics {
    total: IntCounter,
    errors: IntCounter,
    concurrent: IntGauge,
    by_code: IntCounterVec,
    connect_latency: Histogram,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Running {
    concurrent: IntGauge,
}

impl ProxyMetrics {
    /// Creates and registers the counters.
    ///
    /// # Errors
    /// If the registry has them already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            total: IntCounter::new(
                "cloudflared_tunnel_total_requests",
                "Requests that came through the tunnel",
            )?,
            errors: IntCounter::new(
                "cloudflared_tunnel_request_errors",
                "Requests that failed at the connector",
            )?,
            concurrent: IntGauge::new(
                "cloudflared_tunnel_concurrent_requests_per_tunnel",
                "Requests being answered through the tunnel",
            )?,
            by_code: IntCounterVec::new(
                Opts::new("cloudflared_tunnel_response_by_code", "Answers by status"),
                &["status_code"],
            )?,
            connect_latency: Histogram::with_opts(
                HistogramOpts::new(
                    "cloudflared_proxy_connect_latency",
                    "Milliseconds until an origin's answer began",
                )
                .buckets(vec![1.0, 10.0, 25.0, 50.0, 100.0, 500.0, 1000.0, 5000.0]),
            )?,
        };
        registry.register(Box::new(metrics.total.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.concurrent.clone()))?;
        registry.register(Box::new(metrics.by_code.clone()))?;
        registry.register(Box::new(metrics.connect_latency.clone()))?;
        Ok(metrics)
    }

    /// Counts a request for as long as the guard lives.
    pub(crate) fn begin(&self) -> Running {
        self.total.inc();
        self.concurrent.inc();
        Running { concurrent: self.concurrent.clone() }
    }

    /// Counts a failed request.
    pub(crate) fn failed(&self) {
        self.errors.inc();
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.by_code.with_label_values(&[status.as_str()]).inc();
    }

    /// Notes how long an origin took.
    pub(crate) fn connected(&self, after: Duration) {
        self.connect_latency.observe(after.as_secs_f64() * 1000.0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.concurrent.dec();
    }
}
