//! Memory of connections: reserved before a connection exists, given back when its last byte has been read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::drops::StackDrop;

/// How large a connection's buffers are. The window is the buffer: what a connection can carry in one round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BufferClass {
    /// 64 KiB in each direction: consoles and shells.
    Small,
    /// 256 KiB: everything that was not told otherwise; 100 Mbit/s at 20 ms.
    #[default]
    Medium,
    /// 4 MiB: registries, uploads, backups; 1.4 Gbit/s at 20 ms.
    Large,
}

impl BufferClass {
    /// Bytes of each of the two buffers.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Small => 64 * 1024,
            Self::Medium => 256 * 1024,
            Self::Large => 4 * 1024 * 1024,
        }
    }
}

/// All bytes that connections may hold.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    peer_max: usize,
    used: AtomicUsize,
}

/// What one peer holds.
pub(super) type PeerBytes = Arc<AtomicUsize>;

/// The bytes of one connection; given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    peer: Option<PeerBytes>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        // One peer alone must not be able to lock out all others.
        Self { max, peer_max: max / 4 * 3, used: AtomicUsize::new(0) }
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Both buffers of a connection, on account of `peer` if it asked for it.
    pub(super) fn reserve(
        self: &Arc<Self>,
        class: BufferClass,
        peer: Option<&PeerBytes>,
    ) -> Result<Reservation, StackDrop> {
        let bytes = 2 * class.bytes();
        take(&self.used, bytes, self.max).ok_or(StackDrop::Budget)?;
        if let Some(peer) = peer
            && take(peer, bytes, self.peer_max).is_none()
        {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(StackDrop::BudgetPeer);
        }
        Ok(Reservation { budget: Arc::clone(self), peer: peer.map(Arc::clone), bytes })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(peer) = &self.peer {
            peer.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

fn take(used: &AtomicUsize, bytes: usize, max: usize) -> Option<()> {
    let within = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= max);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).ok().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_take_everything_and_what_is_dropped_comes_back() {
        let budget = Arc::new(Budget::new(4 * 2 * BufferClass::Small.bytes()));
        let peer = PeerBytes::default();
        let mut held: Vec<_> =
            (0..3).map(|_| budget.reserve(BufferClass::Small, Some(&peer)).unwrap()).collect();
        assert_eq!(budget.reserve(BufferClass::Small, Some(&peer)).err(), Some(StackDrop::BudgetPeer));
        held.push(budget.reserve(BufferClass::Small, None).unwrap());
        assert_eq!(budget.reserve(BufferClass::Small, None).err(), Some(StackDrop::Budget));
        assert_eq!(budget.used(), budget.max());
        held.clear();
        assert_eq!((budget.used(), peer.load(Ordering::Relaxed)), (0, 0));
    }
}
