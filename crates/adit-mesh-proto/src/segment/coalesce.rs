//! Joins decrypted packets into super-packets for the TUN device.

use std::collections::VecDeque;

use super::flow::{Ids, Shape};
use super::split::{FIN, MAX_HEADER_LEN, MAX_PACKET_LEN, PSH};
use super::virtio::Offload;

/// Collects the packets of one batch and merges what the kernel's receive offload would merge.
///
/// Each packet is decrypted to where it most likely belongs: in front of the end of the group that grew
/// last, so that its payload already lies in place and its header, once read, gives way to the bytes
/// saved from under it. Packets of one flow leave in the order in which they came; a packet that cannot
/// be merged ends its flow's group.
///
/// # Contract
/// [`Coalescer::slot`], write a packet, then [`Coalescer::commit`] or [`Coalescer::abort`]; after the
/// batch, [`Coalescer::poll`] until empty.
#[derive(Debug)]
pub struct Coalescer {
    slots: Vec<Slot>,
    /// Unused slots. A stack, so that the cache knows the memory of the next one.
    free: Vec<usize>,
    /// Used slots, in order of their first packets.
    queue: VecDeque<usize>,
    /// Groups that may still grow, the latest last.
    open: Vec<usize>,
    /// Where the packet is being written that [`Coalescer::slot`] made room for.
    pending: Option<Pending>,
    /// What the pending packet's header overwrites.
    saved: [u8; MAX_HEADER_LEN],
    /// Slot that the last [`Coalescer::poll`] handed out.
    lent: Option<usize>,
}

/// A packet or super-packet for the TUN device.
#[derive(Debug)]
pub struct Merged<'a> {
    /// What the kernel has to finish.
    pub offload: Offload,
    /// The key given to [`Coalescer::commit`].
    pub key: u32,
    /// How many packets came in for it.
    pub packets: u16,
    /// The IP packet.
    pub contents: &'a mut [u8],
}

impl Coalescer {
    /// With room for `slots` packets or groups at a time; each takes 64 KiB from when it is first used.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| Slot::new()).collect(),
            free: (0..slots).rev().collect(),
            queue: VecDeque::with_capacity(slots),
            open: Vec::with_capacity(OPEN_GROUPS_MAX + 1),
            pending: None,
            saved: [0; MAX_HEADER_LEN],
            lent: None,
        }
    }

    /// How many packets fit for certain before the next [`Coalescer::poll`].
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Whether nothing waits for [`Coalescer::poll`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Where to write the next packet, `room` bytes long (at most 65,535 and a tag of 16 bytes).
    /// Nothing if all slots are taken or the packet cannot be one. Ends a pending packet.
    pub fn slot(&mut self, room: usize) -> Option<&mut [u8]> {
        self.abort();
        self.release_lent();
        // Even a packet that would go into an open group may turn out to need a slot of its own.
        if room > MAX_PACKET_LEN + TAG_LEN || self.free.is_empty() {
            return None;
        }
        let pending = match self.open.last() {
            Some(&slot) if self.slots[slot].len + room <= SLOT_LEN => {
                let group = &self.slots[slot];
                let covered = group.shape.map_or(0, |shape| shape.header_len);
                let at = group.len - covered;
                self.saved[..covered].copy_from_slice(&group.bytes[at..group.len]);
                Pending { slot, at, covered }
            }
            _ => Pending { slot: self.take_free()?, at: 0, covered: 0 },
        };
        self.pending = Some(pending);
        self.slots[pending.slot].bytes.get_mut(pending.at..pending.at + room)
    }

    /// Takes the first `len` bytes of the slot as a packet; packets with different keys never merge.
    pub fn commit(&mut self, len: usize, key: u32) {
        let Some(pending) = self.pending.take() else { return };
        let packet = &self.slots[pending.slot].bytes[pending.at..pending.at + len];
        let shape = Shape::parse(packet);
        let group = shape.and_then(|shape| self.group_of(&shape, packet, key));
        let begins = shape.is_some_and(|shape| shape.may_begin(packet));
        match (shape, group) {
            (Some(shape), Some(group)) if begins => {
                if let Some(ids) = self.slots[group].accepts(&shape, packet) {
                    return self.append(group, pending, len, ids);
                }
                self.close(group);
            }
            (_, Some(group)) => self.close(group),
            // Whose flow it is cannot be told (a fragment, say): nothing may overtake it.
            (None, None) => self.open.clear(),
            (Some(_), None) => {}
        }
        self.settle(pending, len, key, shape.filter(|_| begins));
    }

    /// Forgets the packet for which [`Coalescer::slot`] made room.
    pub fn abort(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.undo(pending);
        }
    }

    /// The next packet in order; no group grows any more once this is called.
    pub fn poll(&mut self) -> Option<Merged<'_>> {
        self.abort();
        self.release_lent();
        self.open.clear();
        let slot = self.queue.pop_front()?;
        self.lent = Some(slot);
        Some(self.slots[slot].finish())
    }

    /// Drops everything that waits.
    pub fn clear(&mut self) {
        while self.poll().is_some() {}
        self.release_lent();
    }

    fn group_of(&self, shape: &Shape, packet: &[u8], key: u32) -> Option<usize> {
        // The latest group first: that is where bulk goes on.
        self.open.iter().rev().copied().find(|&slot| {
            let group = &self.slots[slot];
            group.key == key
                && group.shape.is_some_and(|other| shape.same_flow(packet, &other, group.header(&other)))
        })
    }

    fn append(&mut self, group: usize, pending: Pending, len: usize, ids: Ids) {
        let header_len = self.slots[group].shape.map_or(0, |shape| shape.header_len);
        let payload = len - header_len;
        let flags_at = self.slots[group].shape.map_or(0, |shape| shape.transport + 13);
        let flags = self.slots[pending.slot].bytes[pending.at + flags_at];
        if group == pending.slot {
            self.undo(pending);
        } else {
            let from = pending.at + header_len;
            let to = self.slots[group].len;
            if let Ok([source, target]) = self.slots.get_disjoint_mut([pending.slot, group]) {
                target.bytes[to..to + payload].copy_from_slice(&source.bytes[from..from + payload]);
            }
            self.undo(pending);
        }
        if self.slots[group].grow(payload, flags, ids) {
            // Keeps the group that grew last at the end, where `slot` looks for it.
            if self.open.last() != Some(&group) {
                self.close(group);
                self.open.push(group);
            }
        } else {
            self.close(group);
        }
    }

    /// Gives the pending packet a slot of its own, open for more if it has a shape.
    fn settle(&mut self, pending: Pending, len: usize, key: u32, shape: Option<Shape>) {
        let slot = if pending.is_fresh() {
            pending.slot
        } else {
            let slot = self.take_free().expect("`slot` gives out nothing without a free slot in reserve");
            if let Ok([source, target]) = self.slots.get_disjoint_mut([pending.slot, slot]) {
                target.bytes[..len].copy_from_slice(&source.bytes[pending.at..pending.at + len]);
            }
            self.undo(pending);
            slot
        };
        self.slots[slot].begin(len, key, shape);
        self.queue.push_back(slot);
        if shape.is_some() && self.slots[slot].may_grow() {
            self.open.push(slot);
            if self.open.len() > OPEN_GROUPS_MAX {
                self.open.remove(0);
            }
        }
    }

    fn take_free(&mut self) -> Option<usize> {
        let slot = self.free.pop()?;
        let bytes = &mut self.slots[slot].bytes;
        if bytes.is_empty() {
            *bytes = vec![0; SLOT_LEN];
        }
        Some(slot)
    }

    fn undo(&mut self, pending: Pending) {
        if pending.is_fresh() {
            self.free.push(pending.slot);
        } else {
            let end = pending.at + pending.covered;
            self.slots[pending.slot].bytes[pending.at..end].copy_from_slice(&self.saved[..pending.covered]);
        }
    }

    fn close(&mut self, group: usize) {
        self.open.retain(|&open| open != group);
    }

    fn release_lent(&mut self) {
        self.free.extend(self.lent.take());
    }
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    slot: usize,
    at: usize,
    covered: usize,
}

impl Pending {
    fn is_fresh(&self) -> bool {
        self.covered == 0
    }
}

#[derive(Debug)]
struct Slot {
    bytes: Vec<u8>,
    len: usize,
    key: u32,
    /// Shape of the packets, if the slot holds a group or what may become one.
    shape: Option<Shape>,
    ids: Ids,
    segment_size: usize,
    packets: u16,
    next_sequence: u32,
    /// A short segment, FIN or PSH has come: nothing may follow.
    ended: bool,
}

impl Slot {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            len: 0,
            key: 0,
            shape: None,
            ids: Ids::Open,
            segment_size: 0,
            packets: 0,
            next_sequence: 0,
            ended: false,
        }
    }

    fn begin(&mut self, len: usize, key: u32, shape: Option<Shape>) {
        self.len = len;
        self.key = key;
        self.shape = shape;
        self.ids = Ids::Open;
        self.packets = 1;
        if let Some(shape) = shape {
            let packet = &self.bytes[..len];
            self.segment_size = len - shape.header_len;
            self.ended = shape.ends_group(packet);
            if shape.tcp {
                let payload =
                    u32::try_from(self.segment_size).expect("a packet is at most 65,535 bytes long");
                self.next_sequence = shape.sequence(packet).wrapping_add(payload);
            }
        }
    }

    fn header(&self, shape: &Shape) -> &[u8] {
        &self.bytes[..shape.header_len]
    }

    fn may_grow(&self) -> bool {
        !self.ended
    }

    /// Whether `packet`, of the same flow and fit to be merged, comes next; how the ids go on if so.
    fn accepts(&self, shape: &Shape, packet: &[u8]) -> Option<Ids> {
        let header = self.header(shape);
        let payload = packet.len() - shape.header_len;
        let fits = self.shape.as_ref() == Some(shape)
            && payload <= self.segment_size
            && self.len + payload <= MAX_PACKET_LEN
            && usize::from(self.packets) < if shape.tcp { usize::MAX } else { UDP_SEGMENTS_MAX }
            && (!shape.tcp || shape.sequence(packet) == self.next_sequence)
            && shape.headers_continue(packet, header);
        if fits { shape.ids_continue(self.ids, packet, header, self.packets) } else { None }
    }

    /// Takes `payload` bytes more, which already lie behind the others; whether it may grow on.
    fn grow(&mut self, payload: usize, flags: u8, ids: Ids) -> bool {
        self.len += payload;
        self.packets += 1;
        self.ids = ids;
        self.ended = payload < self.segment_size;
        if let Some(shape) = self.shape.filter(|shape| shape.tcp) {
            let payload = u32::try_from(payload).expect("a packet is at most 65,535 bytes long");
            self.next_sequence = self.next_sequence.wrapping_add(payload);
            self.bytes[shape.transport + 13] |= flags & (FIN | PSH);
            self.ended |= flags & (FIN | PSH) != 0;
        }
        self.may_grow()
    }

    fn finish(&mut self) -> Merged<'_> {
        let contents = &mut self.bytes[..self.len];
        let offload = match self.shape {
            Some(shape) if self.packets > 1 => {
                let size = u16::try_from(self.segment_size).expect("a packet is at most 65,535 bytes long");
                shape.finish(contents, size)
            }
            _ => Offload::NONE,
        };
        Merged { offload, key: self.key, packets: self.packets, contents }
    }
}

/// Length of an AEAD tag, which stands behind a packet while it is decrypted.
const TAG_LEN: usize = 16;
/// A whole group, or a packet of the greatest length with its tag.
pub(super) const SLOT_LEN: usize = MAX_PACKET_LEN + TAG_LEN + 1;
/// Groups that grow at the same time. Searched linearly for each packet, and one batch of at most 64
/// datagrams rarely holds more flows.
const OPEN_GROUPS_MAX: usize = 8;
/// `UDP_MAX_SEGMENTS` of Linux before 6.9; a longer group would be refused by `write`.
const UDP_SEGMENTS_MAX: usize = 64;
