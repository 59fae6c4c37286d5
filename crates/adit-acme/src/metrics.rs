//! What is counted.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Counters of ACME; labels are names of resolvers (from the configuration) and of outcomes.
#[derive(Clone, Debug)]
pub struct Metrics {
    orders: IntCounterVec,
    certificates: IntGaugeVec,
    first_expiry: GaugeVec,
    answered: IntCounterVec,
    pending: IntGauge,
}

impl Metrics {
    /// Registers all.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            orders: IntCounterVec::new(
                Opts::new("adit_acme_orders_total", "Orders of certificates, by resolver and how they ended"),
                &["resolver", "result"],
            )?,
            certificates: IntGaugeVec::new(
                Opts::new("adit_acme_certificates", "Certificates that are wanted, by resolver and state"),
                &["resolver", "state"],
            )?,
            first_expiry: GaugeVec::new(
                Opts::new(
                    "adit_acme_first_expiry_timestamp_seconds",
                    "End of validity of the resolver's certificate that ends first, in seconds since 1970",
                ),
                &["resolver"],
            )?,
            answered: IntCounterVec::new(
                Opts::new("adit_acme_challenges_answered_total", "Looks at pending challenges, by type"),
                &["type"],
            )?,
            pending: IntGauge::new("adit_acme_challenges_pending", "Challenges that wait for the CA's look")?,
        };
        registry.register(Box::new(metrics.orders.clone()))?;
        registry.register(Box::new(metrics.certificates.clone()))?;
        registry.register(Box::new(metrics.first_expiry.clone()))?;
        registry.register(Box::new(metrics.answered.clone()))?;
        registry.register(Box::new(metrics.pending.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn ordered(&self, resolver: &str, result: &str) {
        self.orders.with_label_values(&[resolver, result]).inc();
    }

    pub(crate) fn states(&self, resolver: &str, counts: [(&str, usize); 3]) {
        for (state, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.certificates.with_label_values(&[resolver, state]).set(count);
        }
    }

    pub(crate) fn first_expiry(&self, resolver: &str, end: Option<SystemTime>) {
        match end.and_then(|end| end.duration_since(UNIX_EPOCH).ok()) {
            Some(end) => self.first_expiry.with_label_values(&[resolver]).set(end.as_secs_f64()),
            None => drop(self.first_expiry.remove_label_values(&[resolver])),
        }
    }

    /// Forgets a resolver that the configuration no longer has; its orders stay counted.
    pub(crate) fn forget(&self, resolver: &str) {
        for state in ["valid", "waiting", "failed"] {
            let _ = self.certificates.remove_label_values(&[resolver, state]);
        }
        let _ = self.first_expiry.remove_label_values(&[resolver]);
    }

    pub(crate) fn answered(&self, kind: &str) {
        self.answered.with_label_values(&[kind]).inc();
    }

    pub(crate) fn pending(&self, count: usize) {
        self.pending.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
