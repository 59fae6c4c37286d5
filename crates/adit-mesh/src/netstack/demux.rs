//! The lane's end of the stack: what happens to a packet from a peer, and what goes out next.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use adit_mesh_proto::segment::{Offload, OffloadKind};
use adit_mesh_proto::{Incoming, PeerId};
use smoltcp::iface::SocketSet;

use super::budget::PeerBytes;
use super::drops::StackDrop;
use super::lifecycle::{Departed, Entry};
use super::link::{Answers, Emitted, Links, Width};
use super::packet::{
    FourTuple, Header, ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, Segment, TCP, TCP_LEN, UDP, complete_tcp,
    echo_reply, port_unreachable, too_big, unreachable,
};
use super::shared::{Inbox, Place, Port, Shared};
use crate::device::Device;

/// A network stack as a lane's [`Device`]. Owned by the lane's thread; dropping it ends all its connections.
pub struct Netstack {
    pub(super) shared: Arc<Shared>,
    pub(super) place: Arc<Place>,
    pub(super) links: Links,
    pub(super) connections: HashMap<FourTuple, Entry>,
    /// Connections that may have something to send; each is in it at most once.
    pub(super) ready: VecDeque<FourTuple>,
    /// When connections are to be looked at; one entry each at most.
    pub(super) timers: BTreeSet<(Instant, FourTuple)>,
    pub(super) answers: Answers,
    /// What handles want sent; [`Shared`] bounds its bytes.
    datagrams: VecDeque<Vec<u8>>,
    /// One for each peer that has sent something, of at most 10,000 configured ones.
    pub(super) peers: HashMap<PeerId, PeerUse>,
    pub(super) half_open: usize,
    pub(super) departed: Departed,
    inbox: Inbox,
    epoch: Instant,
}

/// What one peer uses of the stack.
#[derive(Debug)]
pub(super) struct PeerUse {
    pub(super) bytes: PeerBytes,
    pub(super) half_open: usize,
    /// Answers to refused packets that it may still get, and since when.
    tokens: u32,
    refilled: Instant,
}

impl PeerUse {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: PeerBytes::default(), half_open: 0, tokens: ANSWERS_BURST, refilled: now }
    }

    fn may_answer(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.refilled).as_millis() / ANSWER_INTERVAL.as_millis();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(ANSWERS_BURST);
            self.refilled = now;
        }
        self.tokens.checked_sub(1).map(|left| self.tokens = left).is_some()
    }
}

impl Netstack {
    pub(super) fn on(shared: Arc<Shared>) -> Self {
        let epoch = Instant::now();
        let place = shared.place();
        Self {
            links: Links::new(place.mtu, epoch),
            place,
            shared,
            connections: HashMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            answers: Answers::default(),
            datagrams: VecDeque::new(),
            peers: HashMap::new(),
            half_open: 0,
            departed: Departed::default(),
            inbox: Inbox::default(),
            epoch,
        }
    }

    fn take(&mut self, packet: &Incoming<'_>, now: Instant) -> Result<(), StackDrop> {
        let contents = &*packet.contents;
        let header = Header::parse(contents)?;
        if !self.place.is_ours(header.destination) {
            return Err(StackDrop::NotOurs);
        }
        if self.place.is_ours(header.source) {
            return Err(StackDrop::Martian);
        }
        match header.protocol {
            TCP => {
                let segment = header.segment(contents)?;
                self.take_segment(packet.peer, &segment, &contents[..header.len], now)
            }
            UDP => self.take_datagrams(packet, &header, now),
            ICMP | ICMPV6 => {
                if let Some(reply) = echo_reply(&header, contents) {
                    self.answers.push(reply);
                } else if let Some(tuple) = too_big(&header, contents) {
                    self.narrow(tuple);
                } else if let Some(tuple) = unreachable(&header, contents) {
                    self.give_up(&tuple);
                }
                Ok(())
            }
            _ => Err(StackDrop::Protocol),
        }
    }

    fn take_segment(
        &mut self,
        peer: PeerId,
        segment: &Segment,
        packet: &[u8],
        now: Instant,
    ) -> Result<(), StackDrop> {
        let tuple = segment.tuple;
        if segment.opens() && self.connections.get(&tuple).is_some_and(Entry::may_be_replaced) {
            self.forget(&tuple);
        }
        let is_known = self.connections.contains_key(&tuple);
        let is_open = is_known || (segment.opens() && self.open(peer, tuple, now)?);
        if !is_open {
            return self.reset(peer, segment, packet, now);
        }
        self.feed(peer, segment, packet, now)
    }

    /// Tells a peer that there is no such connection (RFC 9293 §3.10.7.1).
    fn reset(
        &mut self,
        peer: PeerId,
        segment: &Segment,
        packet: &[u8],
        now: Instant,
    ) -> Result<(), StackDrop> {
        if segment.resets() {
            return Ok(());
        }
        if !self.peer(peer, now).may_answer(now) {
            return Err(StackDrop::AnswerRate);
        }
        self.links.of(Width::Wide).ingress(packet, &mut SocketSet::new(Vec::new()), &mut self.answers, now);
        Err(StackDrop::PortClosed)
    }

    fn take_datagrams(
        &mut self,
        packet: &Incoming<'_>,
        header: &Header,
        now: Instant,
    ) -> Result<(), StackDrop> {
        let joined = packet.offload.kind == OffloadKind::Udp;
        let (tuple, payload) = header.datagram(packet.contents, joined)?;
        let ports = self.shared.ports();
        let on = |address| Port { address, port: tuple.local.port() };
        let port = ports.udp.get(&on(Some(header.destination))).or_else(|| ports.udp.get(&on(None)));
        let Some(port) = port.map(Arc::clone) else {
            drop(ports);
            if !self.peer(packet.peer, now).may_answer(now) {
                return Err(StackDrop::AnswerRate);
            }
            self.answers.push(port_unreachable(header, packet.contents));
            return Err(StackDrop::UdpPortClosed);
        };
        drop(ports);
        let size =
            if joined { usize::from(packet.offload.segment_size).max(1) } else { payload.len().max(1) };
        let mut datagrams = payload.chunks(size);
        // An empty datagram is one, too.
        let first = datagrams.next().unwrap_or_default();
        let refused = std::iter::once(first)
            .chain(datagrams)
            .filter(|one| !port.push(packet.peer, &tuple, one))
            .count();
        (0..refused).for_each(|_| self.shared.drops.count(StackDrop::UdpReceiveFull));
        Ok(())
    }

    pub(super) fn peer(&mut self, peer: PeerId, now: Instant) -> &mut PeerUse {
        self.peers.entry(peer).or_insert_with(|| PeerUse::new(now))
    }

    /// The next packet of any connection, and what is to be done to it.
    fn next(&mut self, buffer: &mut [u8], now: Instant) -> Option<(Offload, usize)> {
        loop {
            if self.shared.collect(&mut self.inbox, false) {
                self.obey(now);
            }
            self.fire(now);
            if let Some(len) = self.answers.pop(buffer) {
                return Some((Offload::NONE, len));
            }
            if let Some(datagram) = self.datagrams.pop_front() {
                self.shared.release_packet(datagram.len());
                buffer[..datagram.len()].copy_from_slice(&datagram);
                return Some((Offload::NONE, datagram.len()));
            }
            while let Some(tuple) = self.ready.pop_front() {
                if let Some(emitted) = self.drain(&tuple, buffer, now) {
                    return Some((finish(buffer, emitted), emitted.len));
                }
            }
            if !self.shared.collect(&mut self.inbox, true) {
                return None;
            }
            self.obey(now);
        }
    }

    /// Does what the handles ask.
    fn obey(&mut self, now: Instant) {
        let mut inbox = std::mem::take(&mut self.inbox);
        if let Some(place) = inbox.place.take() {
            self.move_to(place, now);
        }
        for tuple in inbox.touched.drain(..) {
            self.attend(&tuple, now);
        }
        for connect in inbox.connects.drain(..) {
            self.connect(connect, now);
        }
        self.datagrams.extend(inbox.datagrams.drain(..));
        self.inbox = inbox;
    }

    fn move_to(&mut self, place: Arc<Place>, now: Instant) {
        if place.mtu != self.place.mtu {
            self.links = Links::new(place.mtu, self.epoch);
        }
        self.place = place;
        let gone: Vec<_> =
            self.connections.keys().filter(|t| !self.place.is_ours(t.local.ip())).copied().collect();
        for tuple in gone {
            self.fail(&tuple, io::ErrorKind::AddrNotAvailable);
        }
        let all: Vec<_> = self.connections.keys().copied().collect();
        all.iter().for_each(|tuple| self.attend(tuple, now));
    }

    fn note_overflows(&mut self) {
        for _ in 0..self.answers.take_overflows() {
            self.shared.drops.count(StackDrop::AnswersFull);
        }
    }
}

impl Device for Netstack {
    fn read(&mut self, buffer: &mut Vec<u8>, now: Instant) -> io::Result<(Offload, Range<usize>)> {
        let next = self.next(buffer, now);
        self.note_overflows();
        next.map(|(offload, len)| (offload, 0..len)).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, packet: &Incoming<'_>, now: Instant) -> io::Result<()> {
        if let Err(reason) = self.take(packet, now) {
            self.shared.drops.count(reason);
        }
        Ok(())
    }

    fn forget_others(&mut self, owner: &dyn Fn(IpAddr) -> Option<PeerId>) {
        let is_others = |tuple: &FourTuple, entry: &Entry| {
            entry.peer().is_some_and(|peer| owner(tuple.remote.ip()) != Some(peer))
        };
        let gone: Vec<_> = self
            .connections
            .iter()
            .filter(|(tuple, entry)| is_others(tuple, entry))
            .map(|(t, _)| *t)
            .collect();
        for tuple in gone {
            self.shared.drops.count(StackDrop::PeerChanged);
            self.fail(&tuple, io::ErrorKind::ConnectionReset);
        }
        let udp: Vec<_> = self.shared.ports().udp.values().map(Arc::clone).collect();
        let datagrams: usize = udp.iter().map(|port| port.forget_others(owner)).sum();
        let waiting = self.departed.forget_others(owner) + datagrams;
        (0..waiting).for_each(|_| self.shared.drops.count(StackDrop::PeerChanged));
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.wake_fd().as_fd())
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }
}

impl Drop for Netstack {
    fn drop(&mut self) {
        self.shared.close();
        let all: Vec<_> = self.connections.keys().copied().collect();
        for tuple in all {
            self.fail(&tuple, io::ErrorKind::NotConnected);
        }
        self.shared.gauges.connections.store(0, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Netstack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netstack")
            .field("addresses", &self.place.addresses)
            .field("connections", &self.connections.len())
            .finish()
    }
}

/// Completes a segment, or says how the engine is to cut it.
fn finish(buffer: &mut [u8], emitted: Emitted) -> Offload {
    let packet = &mut buffer[..emitted.len];
    let Some(segment_size) = emitted.segment_size else {
        complete_tcp(packet);
        return Offload::NONE;
    };
    let (kind, ip_len) = match packet[0] >> 4 {
        4 => (OffloadKind::Tcp4, IPV4_LEN),
        _ => (OffloadKind::Tcp6, IPV6_LEN),
    };
    // Only a hint; our segments have no options once the connection is open.
    let header_len = u16::try_from(ip_len + TCP_LEN).unwrap_or(u16::MAX);
    Offload { kind, header_len, segment_size, partial_checksum: None }
}

/// Answers to refused packets that one peer may get at once: a browser that tries a dozen closed ports.
const ANSWERS_BURST: u32 = 64;
/// And then one per so long: 100 a second, as Linux allows (`icmp_msgs_per_sec` is for all of them).
const ANSWER_INTERVAL: Duration = Duration::from_millis(10);
