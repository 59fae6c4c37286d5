//! Flows that the policy has allowed, so that their answers pass: a small connection table without sequence numbers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::ip::{ICMP, ICMPV6, IpHeader, TCP, UDP};
use crate::keys::PublicKey;

/// What the policy of one node has allowed, for all its lanes: a flow may come by one lane and be answered by another.
#[derive(Debug, Clone)]
pub struct FlowTable {
    pub(crate) flows: Arc<Mutex<Flows>>,
    /// From when its seconds count.
    pub(crate) began: Instant,
}

/// Allowed flows, found from either direction.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    flows: HashMap<FlowKey, Flow>,
    /// How many each peer has begun.
    of_peer: HashMap<PublicKey, usize>,
    /// One entry per flow: when to look whether it has expired. Looked at only when a flow is added, two for each, so that
    /// what has expired never costs more than what comes.
    expiries: BinaryHeap<Reverse<(u32, FlowKey)>>,
}

/// What became of a packet that may belong to a known flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It belongs to none.
    Unknown,
    /// It does.
    Passed,
    /// It does, and so will the flow's next packets of this second.
    Settled,
}

impl FlowTable {
    /// An empty one.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { flows: Arc::default(), began: now }
    }

    /// Held for one look-up at a time, and only where a packet is not of the same flow and second as the one before.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both ends and the protocol, the same for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FlowKey {
    protocol: u8,
    low: (IpAddr, u16),
    high: (IpAddr, u16),
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    /// Seconds since the engine began.
    expires: u32,
    /// Whether the lower end began it.
    begun_by_low: bool,
    answered: bool,
    /// Whether its beginner has gone on after the answer: a SYN alone costs nothing, so it does not earn a long life.
    confirmed: bool,
    /// The peer that began it; none for this node and what is behind it.
    beginner: Option<PublicKey>,
    /// FIN from the lower and the higher end.
    finished: [bool; 2],
    reset: bool,
}

/// The part of a packet that the flow table looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) source: (IpAddr, u16),
    pub(crate) destination: (IpAddr, u16),
    /// FIN, SYN and RST of TCP.
    pub(crate) flags: u8,
}

impl Tuple {
    /// Of a plain packet; `None` for ICMP that is no echo and for headers cut short.
    #[inline]
    pub(crate) fn of(header: &IpHeader, packet: &[u8]) -> Option<Self> {
        let transport = packet.get(header.transport..header.len)?;
        let (source, destination, flags) = match header.protocol {
            TCP => {
                let (source, destination) = header.ports(packet)?;
                (source, destination, *transport.get(13)? & (FIN | SYN | RST))
            }
            UDP => header.ports(packet).map(|(source, destination)| (source, destination, 0))?,
            ICMP | ICMPV6 => {
                let echo: &[u8; 8] = transport.first_chunk()?;
                let known = matches!((header.protocol, echo[0]), (ICMP, 0 | 8) | (ICMPV6, 128 | 129));
                let id = known.then_some(u16::from_be_bytes([echo[4], echo[5]]))?;
                (id, id, 0)
            }
            _ => (0, 0, 0),
        };
        Some(Self {
            protocol: header.protocol,
            source: (header.source, source),
            destination: (header.destination, destination),
            flags,
        })
    }

    /// The same for both directions.
    #[inline]
    pub(crate) fn key(&self) -> FlowKey {
        let (low, high) = if self.source <= self.destination {
            (self.source, self.destination)
        } else {
            (self.destination, self.source)
        };
        FlowKey { protocol: self.protocol, low, high }
    }

    fn is_from_low(&self) -> bool {
        self.source <= self.destination
    }
}

impl Flows {
    /// Whether the packet belongs to a known flow, which then lives on. `now` is in seconds.
    pub(crate) fn pass(&mut self, tuple: &Tuple, now: u32) -> Passage {
        let key = tuple.key();
        let Some(flow) = self.flows.get_mut(&key).filter(|flow| now < flow.expires) else {
            return Passage::Unknown;
        };
        let from_low = tuple.is_from_low();
        let is_beginners = from_low == flow.begun_by_low;
        flow.answered |= !is_beginners;
        flow.confirmed |= flow.answered && is_beginners && tuple.flags & (SYN | RST) == 0;
        flow.finished[usize::from(!from_low)] |= tuple.flags & FIN != 0;
        flow.reset |= tuple.flags & RST != 0;
        if tuple.flags & SYN != 0 && is_beginners {
            // The same ports again: a new connection.
            (flow.finished, flow.reset) = ([false; 2], false);
        }
        flow.expires = now + flow.lifetime(tuple.protocol);
        if flow.confirmed { Passage::Settled } else { Passage::Passed }
    }

    /// Whether an ICMP error quotes a packet of a known flow.
    pub(crate) fn knows(&self, tuple: &Tuple, now: u32) -> bool {
        self.flows.get(&tuple.key()).is_some_and(|flow| now < flow.expires)
    }

    /// Remembers a flow that was allowed; `false` when the table is full, or its beginner's share of it.
    pub(crate) fn add(&mut self, tuple: &Tuple, beginner: Option<PublicKey>, now: u32) -> bool {
        self.expire(now, 2);
        if self.flows.len() >= FLOWS_MAX {
            self.expire(now, EXPIRED_AT_ONCE);
        }
        let share = match &beginner {
            Some(peer) => self.of_peer.get(peer).copied().unwrap_or(0) < PEER_FLOWS_MAX,
            None => true,
        };
        let reserve = if beginner.is_some() { OWN_FLOWS_MIN } else { 0 };
        if self.flows.len() + reserve >= FLOWS_MAX || !share {
            return false;
        }
        let key = tuple.key();
        let mut flow = Flow {
            expires: 0,
            begun_by_low: tuple.is_from_low(),
            answered: false,
            confirmed: false,
            beginner,
            finished: [false; 2],
            reset: false,
        };
        flow.expires = now + flow.lifetime(tuple.protocol);
        match self.flows.insert(key, flow) {
            None => self.expiries.push(Reverse((flow.expires, key))),
            Some(before) => self.forget(before.beginner),
        }
        if let Some(peer) = beginner {
            *self.of_peer.entry(peer).or_default() += 1;
        }
        true
    }

    /// Forgets everything: the policy changed, and what it allowed before may be forbidden now.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    fn expire(&mut self, now: u32, most: usize) {
        for _ in 0..most {
            let Some(Reverse((at, key))) = self.expiries.peek().copied() else { return };
            if at > now {
                return;
            }
            self.expiries.pop();
            match self.flows.get(&key) {
                Some(flow) if flow.expires > now => self.expiries.push(Reverse((flow.expires, key))),
                _ => {
                    if let Some(flow) = self.flows.remove(&key) {
                        self.forget(flow.beginner);
                    }
                }
            }
        }
    }

    /// Takes a flow off its beginner's share.
    fn forget(&mut self, beginner: Option<PublicKey>) {
        let Some(peer) = beginner else { return };
        if let Some(count) = self.of_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.of_peer.remove(&peer);
            }
        }
    }
}

impl Flow {
    /// How long it lives without another packet, in seconds.
    fn lifetime(self, protocol: u8) -> u32 {
        match protocol {
            TCP if self.reset || self.finished == [true; 2] => 10,
            TCP if self.confirmed => TCP_IDLE,
            TCP => 60,
            UDP if self.answered => 180,
            _ => 30,
        }
    }
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
/// An idle connection: longer than RFC 5382 asks of a NAT (2 h 4 min), so that TCP keepalives of 2 h keep it.
const TCP_IDLE: u32 = 3 * 3600;
/// Flows of one node: 65,536 × about 230 bytes in both collections = 15 MiB.
const FLOWS_MAX: usize = 65_536;
/// Flows that one peer may have begun: four of them together leave the others without, not one alone.
const PEER_FLOWS_MAX: usize = FLOWS_MAX / 4;
/// Kept for what this node itself and the networks behind it begin.
const OWN_FLOWS_MIN: usize = FLOWS_MAX / 16;
/// Looked at when the table is full, to find one that has expired.
const EXPIRED_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(protocol: u8, source: u16, destination: u16, flags: u8) -> Tuple {
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        Tuple { protocol, source: (a, source), destination: (b, destination), flags }
    }

    fn passes(flows: &mut Flows, tuple: &Tuple, now: u32) -> bool {
        flows.pass(tuple, now) != Passage::Unknown
    }

    fn answer(of: Tuple, flags: u8) -> Tuple {
        Tuple { source: of.destination, destination: of.source, flags, ..of }
    }

    #[test]
    fn an_answer_passes_and_an_unasked_packet_does_not() {
        let mut flows = Flows::default();
        let request = tuple(UDP, 4000, 53, 0);
        assert!(!passes(&mut flows, &answer(request, 0), 0));
        assert!(flows.add(&request, None, 0));
        assert!(passes(&mut flows, &answer(request, 0), 1));
        assert!(!passes(&mut flows, &tuple(UDP, 4001, 53, 0), 1));
        assert!(!passes(&mut flows, &tuple(TCP, 4000, 53, 0), 1));
    }

    #[test]
    fn flows_end_by_silence_and_by_the_end_of_tcp() {
        let mut flows = Flows::default();
        let request = tuple(UDP, 4000, 53, 0);
        flows.add(&request, None, 0);
        assert!(!passes(&mut flows, &answer(request, 0), 30), "unanswered for 30 s");

        let syn = tuple(TCP, 4000, 443, SYN);
        flows.add(&syn, None, 0);
        assert!(passes(&mut flows, &answer(syn, SYN), 1));
        assert!(passes(&mut flows, &tuple(TCP, 4000, 443, 0), 2));
        assert!(passes(&mut flows, &tuple(TCP, 4000, 443, 0), 3600));
        assert!(passes(&mut flows, &tuple(TCP, 4000, 443, FIN), 3601));
        assert!(passes(&mut flows, &answer(syn, FIN), 3601));
        assert!(passes(&mut flows, &tuple(TCP, 4000, 443, 0), 3610), "the last acknowledgement");
        assert!(!passes(&mut flows, &tuple(TCP, 4000, 443, 0), 3630));
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_for_new_flows_as_old_ones_expire() {
        let mut flows = Flows::default();
        let mut add = |number: u32, now: u32| {
            let mut tuple = tuple(UDP, 1, 2, 0);
            tuple.source.0 = IpAddr::V4(number.into());
            flows.add(&tuple, None, now)
        };
        let max = u32::try_from(FLOWS_MAX).unwrap();
        assert!((0..max).all(|number| add(number, 0)));
        assert!(!add(max, 1));
        assert!((max..2 * max).all(|number| add(number, 31)));
        assert!(flows.len() <= FLOWS_MAX);
        assert!(flows.expiries.len() <= FLOWS_MAX);
    }

    #[test]
    fn a_connection_that_was_only_answered_lives_no_longer_than_one_that_was_not() {
        let mut flows = Flows::default();
        let syn = tuple(TCP, 4000, 443, SYN);
        flows.add(&syn, None, 0);
        assert!(passes(&mut flows, &answer(syn, SYN), 1));
        assert!(!passes(&mut flows, &tuple(TCP, 4000, 443, 0), 62));
    }

    #[test]
    fn one_peer_has_a_share_of_the_table_and_this_node_a_reserve() {
        let mut flows = Flows::default();
        let peer = |number: u8| Some(PublicKey([number; 32]));
        let mut add = |number: usize, beginner, now| {
            let mut tuple = tuple(UDP, 1, 2, 0);
            tuple.source.0 = IpAddr::V4(u32::try_from(number).unwrap().into());
            flows.add(&tuple, beginner, now)
        };
        let begun = (0..FLOWS_MAX).filter(|number| add(*number, peer(1), 0)).count();
        assert_eq!(begun, PEER_FLOWS_MAX);
        assert!(add(FLOWS_MAX, peer(2), 0), "another peer is not hit");
        let rest = (0..FLOWS_MAX)
            .filter(|number| add(FLOWS_MAX + 1 + *number, peer(3 + (number % 8) as u8), 0))
            .count();
        assert_eq!(rest, FLOWS_MAX - OWN_FLOWS_MIN - PEER_FLOWS_MAX - 1);
        assert!(add(3 * FLOWS_MAX, None, 0), "this node itself is not hit");
        let later = (0..100).filter(|number| add(4 * FLOWS_MAX + number, peer(1), 1000)).count();
        assert!(later > 50, "what has expired is given back: {later}");
    }
}
