//! One connection's place in the supervisor.

use std::time::Instant;

use super::{Failure, Protocol};
use crate::backoff::Backoff;

/// ```text
/// Idle ─► Waiting ─► Connecting ─► Registered ─► Draining ─► Stopped
///            ▲           │             │
///            └───────────┴─── failed ──┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Until connection 0 has registered.
    Idle,
    Waiting {
        until: Instant,
    },
    Connecting,
    Registered,
    Draining,
    Stopped,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    pub(super) protocol: Protocol,
    pub(super) backoff: Backoff,
    unreachable: u8,
    silent: u8,
}

impl Slot {
    pub(super) fn new(protocol: Protocol, retries: u8) -> Self {
        Self { phase: Phase::Idle, protocol, backoff: Backoff::new(retries), unreachable: 0, silent: 0 }
    }

    pub(super) fn registered(&mut self) {
        self.phase = Phase::Registered;
        self.backoff.reset();
        self.unreachable = 0;
        self.silent = 0;
    }

    pub(super) fn note_unreachable(&mut self, failure: &Failure) {
        self.unreachable = self.unreachable.saturating_add(1);
        if matches!(failure, Failure::DialSilent | Failure::DialForbidden) {
            self.silent = self.silent.saturating_add(1);
        }
    }

    /// Whether the other transport should be tried: the stock rule, or sooner where nothing at all
    /// comes back, as on networks that drop UDP. From then on attempts alternate until one registers,
    /// so that an edge that was only down is found on either.
    pub(super) fn may_fall_back(&self, address_retries: u8) -> bool {
        self.unreachable >= address_retries.max(1) || self.silent >= SILENT_DIALS_MAX
    }
}

/// Dials without any answer after which UDP is taken to be blocked: some 10 s instead of minutes.
const SILENT_DIALS_MAX: u8 = 2;
