//! What the HTTP data path counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::tcp::splice::Pipes;

/// Counters of listeners and connections; labels are names from our own code only.
#[derive(Debug)]
pub struct Metrics {
    connections: IntGauge,
    accepted: IntCounter,
    refused: IntCounterVec,
    aborted: IntCounter,
    udp_sessions: IntGauge,
    pipes: Pipes,
    /// By entry point and protocol; registered only where somebody wants Traefik's names.
    open: IntGaugeVec,
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
            pipes: Pipes::new(registry)?,
            open: IntGaugeVec::new(
                Opts::new("traefik_open_connections", "Visitors' connections open now"),
                &["entrypoint", "protocol"],
            )?,
        };
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.accepted.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.aborted.clone()))?;
        registry.register(Box::new(metrics.udp_sessions.clone()))?;
        Ok(metrics)
    }

    /// What TCP content may be moved through without a copy.
    pub(crate) fn pipes(&self) -> &Pipes {
        &self.pipes
    }

    /// Counts a refusal under its name.
    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// How often something was refused for this reason.
    #[cfg(test)]
    pub(crate) fn refusals(&self, reason: &str) -> u64 {
        self.refused.with_label_values(&[reason]).get()
    }

    /// Counts an exchange that was cut short.
    pub fn aborted(&self) {
        self.aborted.inc();
    }

    /// Counts a TCP connection of an entry point for as long as the guard lives.
    pub fn connection(&self, entry_point: &str) -> ConnectionGuard {
        self.accepted.inc();
        self.guard(&self.connections, entry_point, "TCP")
    }

    /// Counts a QUIC connection of an entry point for as long as the guard lives.
    pub fn quic_connection(&self, entry_point: &str) -> ConnectionGuard {
        self.accepted.inc();
        self.guard(&self.connections, entry_point, "UDP")
    }

    /// Counts a UDP session of an entry point for as long as the guard lives.
    pub fn udp_session(&self, entry_point: &str) -> ConnectionGuard {
        self.guard(&self.udp_sessions, entry_point, "UDP")
    }

    /// `traefik_open_connections`, for a registry of the caller's choice.
    pub fn open_connections(&self) -> IntGaugeVec {
        self.open.clone()
    }

    fn guard(&self, all: &IntGauge, entry_point: &str, protocol: &str) -> ConnectionGuard {
        let guard =
            ConnectionGuard { all: all.clone(), own: self.open.with_label_values(&[entry_point, protocol]) };
        guard.all.inc();
        guard.own.inc();
        guard
    }
}

/// Keeps `adit_proxy_connections` or `adit_proxy_udp_sessions`, and `traefik_open_connections`, true.
#[derive(Debug)]
pub struct ConnectionGuard {
    all: IntGauge,
    own: IntGauge,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.all.dec();
        self.own.dec();
    }
}
