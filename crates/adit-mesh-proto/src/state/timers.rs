//! Which peer wants to be woken when.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::packet::PeerId;

/// One deadline per peer, kept in order.
#[derive(Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Instant, PeerId)>,
}

/// A peer's own copy of its deadline, without which it could not be found in the order.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Timers {
    /// Replaces the peer's deadline.
    pub(crate) fn set(&mut self, peer: PeerId, deadline: &mut Deadline, at: Option<Instant>) {
        if deadline.0 == at {
            return;
        }
        if let Some(old) = deadline.0 {
            self.order.remove(&(old, peer));
        }
        if let Some(new) = at {
            self.order.insert((new, peer));
        }
        deadline.0 = at;
    }

    /// The peer whose deadline comes first, if it has passed.
    pub(crate) fn due(&self, now: Instant) -> Option<PeerId> {
        self.order.first().filter(|(at, _)| *at <= now).map(|(_, peer)| *peer)
    }

    /// The first deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }
}

impl Deadline {
    /// Whether nothing is due for the peer.
    pub(crate) fn is_none(self) -> bool {
        self.0.is_none()
    }
}
