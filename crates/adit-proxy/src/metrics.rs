//! What the HTTP data path counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters of listeners and connections; labels are names from our own code only.
#[derive(Debug)]
pub struct Metrics {
    connections: IntGauge,
    accepted: IntCounter,
    refused: IntCounterVec,
    aborted: IntCounter,
    udp_sessions: IntGauge,
}

impl Metrics {
    /// Creates and registers the counters.
    ///
    /// # Errors
    /// If the registry has them already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            connections: IntGauge::new("adit_proxy_connections", "Visitors' connections open now")?,
            accepted: IntCounter::new(
                "adit_proxy_connections_accepted_total",
                "Visitors' connections accepted",
            )?,
            refused: IntCounterVec::new(
                Opts::new("adit_proxy_refused_total", "Connections and requests refused, by reason"),
                &["reason"],
            )?,
            aborted: IntCounter::new(
                "adit_proxy_aborted_total",
                "Exchanges that ended before the visitor had the whole answer",
            )?,
            udp_sessions: IntGauge::new("adit_proxy_udp_sessions", "UDP visitors' sessions open now")?,
        };
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.accepted.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.aborted.clone()))?;
        registry.register(Box::new(metrics.udp_sessions.clone()))?;
        Ok(metrics)
    }

    /// Counts a refusal under its name.
    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Counts an exchange that was cut short.
    pub fn aborted(&self) {
        self.aborted.inc();
    }

    /// Counts a connection for as long as the guard lives.
    pub fn connection(&self) -> ConnectionGuard {
        self.accepted.inc();
        self.connections.inc();
        ConnectionGuard { connections: self.connections.clone() }
    }

    /// Counts a UDP session for as long as the guard lives.
    pub fn udp_session(&self) -> ConnectionGuard {
        self.udp_sessions.inc();
        ConnectionGuard { connections: self.udp_sessions.clone() }
    }
}

/// Keeps `adit_proxy_connections` or `adit_proxy_udp_sessions` true.
#[derive(Debug)]
pub struct ConnectionGuard {
    connections: IntGauge,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.dec();
    }
}
