//! The table of peers: by place, by key and by session index.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::keys::PublicKey;
use crate::packet::PeerId;
use crate::session::INDEX_MAX;
use crate::state::peer::Peer;

/// All peers of the lane.
#[derive(Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Peer>>,
    free: Vec<u32>,
    by_key: HashMap<PublicKey, PeerId>,
    by_index: HashMap<u32, PeerId, BuildHasherDefault<Spread>>,
}

impl Peers {
    /// The place that the next peer will take.
    pub(crate) fn next_id(&self) -> PeerId {
        PeerId(self.free.last().copied().unwrap_or(u32::try_from(self.slots.len()).unwrap_or(u32::MAX)))
    }

    /// Puts a peer where [`Self::next_id`] said.
    pub(crate) fn insert(&mut self, peer: Peer) {
        debug_assert_eq!(peer.id, self.next_id(), "peers take the next place");
        let id = peer.id;
        self.by_key.insert(peer.key, id);
        self.by_index.insert(peer.index, id);
        match self.free.pop() {
            Some(slot) => self.slots[slot as usize] = Some(peer),
            None => self.slots.push(Some(peer)),
        }
    }

    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let peer = self.slots.get_mut(id.0 as usize)?.take()?;
        self.by_key.remove(&peer.key);
        self.by_index.remove(&peer.index);
        self.free.push(id.0);
        Some(peer)
    }

    #[inline]
    pub(crate) fn find(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// As [`Self::find`], to look only.
    pub(crate) fn look(&self, id: PeerId) -> Option<&Peer> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn id_of_key(&self, key: PublicKey) -> Option<PeerId> {
        self.by_key.get(&key).copied()
    }

    /// Whose session `index` names, as it stands in a message.
    #[inline]
    pub(crate) fn id_of_index(&self, index: u32) -> Option<PeerId> {
        self.by_index.get(&(index >> 8)).copied()
    }

    /// Makes `draw` until it yields an index that is free.
    pub(crate) fn draw_index(&self, mut draw: impl FnMut() -> u32) -> u32 {
        // With at most 2^14 of 2^24 taken, the first draw is free in 999 of 1000 cases.
        loop {
            let index = draw() & INDEX_MAX;
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().flatten()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.slots.iter_mut().flatten()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }
}

/// Hash of an index: multiplication spreads it well enough, since we draw the indices and others only ask for them.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
