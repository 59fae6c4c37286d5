//! The life of the process, as the admin endpoint and the metrics show it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use prometheus::{IntGaugeVec, Opts, Registry};

/// Where in its life the process is; only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Binding sockets, making keys.
    Starting,
    /// Serving.
    Ready,
    /// Told to stop: nothing new is accepted, requests in flight go on.
    Draining,
    /// The grace period is over: what remains is cut.
    Closing,
    /// Done.
    Stopped,
}

const ALL: [Phase; 5] = [Phase::Starting, Phase::Ready, Phase::Draining, Phase::Closing, Phase::Stopped];

impl Phase {
    /// Lower-case name, as in metrics and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Closing => "closing",
            Self::Stopped => "stopped",
        }
    }
}

/// The current phase, shared.
#[derive(Clone, Debug)]
pub(crate) struct PhaseCell {
    current: Arc<AtomicU8>,
    gauge: IntGaugeVec,
}

impl PhaseCell {
    /// Starts in [`Phase::Starting`].
    ///
    /// # Errors
    /// If the registry has the metric already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = IntGaugeVec::new(
            Opts::new("adit_phase", "1 for the phase that the process is in, 0 for the others"),
            &["phase"],
        )?;
        registry.register(Box::new(gauge.clone()))?;
        let cell = Self { current: Arc::new(AtomicU8::new(0)), gauge };
        cell.set(Phase::Starting);
        Ok(cell)
    }

    /// The phase now.
    pub(crate) fn load(&self) -> Phase {
        ALL.get(usize::from(self.current.load(Ordering::Acquire))).copied().unwrap_or(Phase::Stopped)
    }

    /// Moves on.
    pub(crate) fn set(&self, phase: Phase) {
        self.current.store(phase as u8, Ordering::Release);
        for other in ALL {
            self.gauge.with_label_values(&[other.name()]).set(i64::from(other == phase));
        }
    }
}
