//! What can be seen of the stack.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::Stack;
use super::drops::StackDrop;

/// Counters and gauges of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackStatistics {
    /// TCP connections, those being opened or closed included.
    pub connections: u64,
    /// Of these, being opened by peers.
    pub half_open: u64,
    /// Connections that listeners were given.
    pub accepted: u64,
    /// Connections opened from here.
    pub connected: u64,
    /// Bytes that connections' buffers may hold.
    pub buffer_bytes: u64,
    /// And the most that they may.
    pub buffer_bytes_max: u64,
    /// What was refused, by reason.
    pub drops: Vec<(StackDrop, u64)>,
}

impl StackStatistics {
    /// How often one reason applied.
    #[must_use]
    pub fn of(&self, reason: StackDrop) -> u64 {
        self.drops[reason as usize].1
    }
}

impl Stack {
    /// What can be seen of the stack now.
    #[must_use]
    pub fn statistics(&self) -> StackStatistics {
        let shared = &self.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StackStatistics {
            connections: read(&shared.gauges.connections),
            half_open: read(&shared.gauges.half_open),
            accepted: read(&shared.gauges.accepted),
            connected: read(&shared.gauges.connected),
            buffer_bytes: shared.budget.used() as u64,
            buffer_bytes_max: shared.budget.max() as u64,
            drops: StackDrop::ALL.iter().map(|reason| (*reason, shared.drops.of(*reason))).collect(),
        }
    }
}

/// The stack's statistics in a Prometheus registry; shows the stack that it was told last.
#[derive(Debug, Clone)]
pub struct StackMetrics {
    stack: Arc<Mutex<Option<Stack>>>,
}

impl StackMetrics {
    /// Registers the metrics, which stay empty until [`StackMetrics::watch`].
    ///
    /// # Errors
    /// If the registry has them already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let stack = Arc::default();
        registry.register(Box::new(Reading { stack: Arc::clone(&stack), described: Families::new()? }))?;
        Ok(Self { stack })
    }

    /// Shows this stack from now on.
    pub fn watch(&self, stack: &Stack) {
        *self.stack.lock().unwrap_or_else(PoisonError::into_inner) = Some(stack.clone());
    }
}

struct Reading {
    stack: Arc<Mutex<Option<Stack>>>,
    described: Families,
}

struct Families {
    gauges: IntGaugeVec,
    opened: IntCounterVec,
    drops: IntCounterVec,
}

impl Families {
    fn new() -> prometheus::Result<Self> {
        let gauges = Opts::new("adit_mesh_stack_state", "Connections and buffer bytes of the stack, by kind");
        let opened = Opts::new("adit_mesh_stack_connections_total", "TCP connections established, by side");
        let drops = Opts::new("adit_mesh_stack_drops_total", "Packets and connections refused, by reason");
        Ok(Self {
            gauges: IntGaugeVec::new(gauges, &["kind"])?,
            opened: IntCounterVec::new(opened, &["side"])?,
            drops: IntCounterVec::new(drops, &["reason"])?,
        })
    }

    fn fill(&self, statistics: &StackStatistics) {
        let gauges = [
            ("connections", statistics.connections),
            ("half_open", statistics.half_open),
            ("buffer_bytes", statistics.buffer_bytes),
            ("buffer_bytes_max", statistics.buffer_bytes_max),
        ];
        for (kind, value) in gauges {
            self.gauges.with_label_values(&[kind]).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.opened.with_label_values(&["accepted"]).inc_by(statistics.accepted);
        self.opened.with_label_values(&["connected"]).inc_by(statistics.connected);
        for (reason, count) in &statistics.drops {
            self.drops.with_label_values(&[reason.name()]).inc_by(*count);
        }
    }

    fn all(&self) -> [&dyn Collector; 3] {
        [&self.gauges, &self.opened, &self.drops]
    }
}

impl Collector for Reading {
    fn desc(&self) -> Vec<&Desc> {
        self.described.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let stack = self.stack.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Anew for each question: scrapes at the same time must not count twice.
        let (Some(stack), Ok(families)) = (stack, Families::new()) else { return Vec::new() };
        families.fill(&stack.statistics());
        families.all().into_iter().flat_map(Collector::collect).collect()
    }
}
