//! A small Internet in one thread: engines with addresses, a wire that delays, loses, duplicates and reorders, and a clock
//! that jumps from one event to the next. The same seed gives the same run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use adit_mesh_proto::segment::Offload;
use adit_mesh_proto::{
    Config, DropReason, Event, Mesh, Outgoing, Path, PeerConfig, PeerId, PeerSnapshot, PresharedKey,
    PrivateKey,
};

/// Engines and the wire between them.
pub struct World {
    pub now: Instant,
    pub nodes: Vec<Node>,
    pub link: Link,
    /// Every datagram that was sent, if asked for.
    pub capture: Option<Vec<Flight>>,
    wire: BinaryHeap<Reverse<Flight>>,
    /// Moves the clock that boringtun reads, where that is possible.
    advance_clock: fn(Duration),
    random: u64,
    sequence: u64,
}

/// How the wire treats each datagram.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub delay: Duration,
    /// Added at random, so that datagrams overtake each other.
    pub jitter: Duration,
    /// Shares of a thousand.
    pub lost: u64,
    pub duplicated: u64,
    /// Longer datagrams vanish without a word.
    pub longest: usize,
}

/// One engine and what came out of it.
pub struct Node {
    pub mesh: Mesh,
    pub address: SocketAddr,
    /// While false, what is sent to it or by it is lost.
    pub up: bool,
    pub delivered: Vec<(PeerId, Vec<u8>)>,
    pub events: Vec<Event>,
    pub initiations: usize,
}

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flight {
    pub arrives: Instant,
    sequence: u64,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub datagram: Vec<u8>,
}

impl Link {
    pub const PERFECT: Self = Self {
        delay: Duration::from_millis(1),
        jitter: Duration::ZERO,
        lost: 0,
        duplicated: 0,
        longest: 65_535,
    };
}

impl World {
    pub fn new(seed: u64, advance_clock: fn(Duration)) -> Self {
        Self {
            now: Instant::now(),
            nodes: Vec::new(),
            link: Link::PERFECT,
            capture: None,
            wire: BinaryHeap::new(),
            advance_clock,
            random: seed | 1,
            sequence: 0,
        }
    }

    /// Two nodes that know each other; the first knows the second's address, the second waits.
    pub fn pair(seed: u64, advance_clock: fn(Duration), change: impl Fn(usize, &mut Config)) -> Self {
        let mut world = Self::new(seed, advance_clock);
        for number in 0..2 {
            let mut config = node_config(number);
            config.peers.push(peer_config(1 - number, (number == 0).then(|| address_of(1))));
            change(number, &mut config);
            world.add(number, config);
        }
        world
    }

    pub fn add(&mut self, number: usize, config: Config) -> usize {
        let seed = [u8::try_from(self.draw() % 256).unwrap(); 32];
        let mesh = Mesh::new(config, seed, self.now);
        self.nodes.push(Node {
            mesh,
            address: address_of(number),
            up: true,
            delivered: Vec::new(),
            events: Vec::new(),
            initiations: 0,
        });
        self.nodes.len() - 1
    }

    /// Hands a packet to a node's engine.
    pub fn send(&mut self, node: usize, packet: &[u8]) {
        self.send_offloaded(node, packet, Offload::NONE);
    }

    pub fn send_offloaded(&mut self, node: usize, packet: &[u8], offload: Offload) {
        let mut contents = packet.to_vec();
        self.nodes[node].mesh.handle_packet(Outgoing { contents: &mut contents, offload }, self.now);
        self.drain(node);
    }

    /// Puts a datagram on the wire as if it came from `from`.
    pub fn inject(&mut self, from: SocketAddr, node: usize, datagram: &[u8]) {
        let path = Path { remote: from, local: None };
        let now = self.now;
        self.nodes[node].mesh.handle_datagram(path, datagram, datagram.len().max(1), now);
        self.drain(node);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let wire = self.wire.peek().map(|Reverse(flight)| flight.arrives);
            let timers = self.nodes.iter().filter_map(|node| node.mesh.poll_timeout()).min();
            let next = [wire, timers].into_iter().flatten().min().unwrap_or(end).min(end);
            if next > self.now {
                (self.advance_clock)(next - self.now);
                self.now = next;
            }
            self.deliver();
            for node in 0..self.nodes.len() {
                self.nodes[node].mesh.handle_timeout(self.now);
                self.drain(node);
            }
            let waiting = self.wire.peek().is_some_and(|Reverse(flight)| flight.arrives <= self.now);
            if self.now >= end && !waiting {
                return;
            }
        }
    }

    pub fn peer(&self, node: usize) -> PeerSnapshot {
        self.nodes[node].mesh.peers().next().unwrap()
    }

    pub fn drops(&self, node: usize, reason: DropReason) -> u64 {
        self.nodes[node].mesh.statistics().drops.of(reason)
    }

    /// A random number.
    pub fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn deliver(&mut self) {
        while self.wire.peek().is_some_and(|Reverse(flight)| flight.arrives <= self.now) {
            let Some(Reverse(flight)) = self.wire.pop() else { return };
            let target = self.nodes.iter().position(|node| node.address == flight.to && node.up);
            if let Some(node) = target {
                self.inject(flight.from, node, &flight.datagram);
            }
        }
    }

    fn drain(&mut self, node: usize) {
        let mut sent = Vec::new();
        let Node { mesh, address, up, delivered, events, initiations } = &mut self.nodes[node];
        while let Some(transmit) = mesh.poll_transmit() {
            let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
            assert!(transmit.contents.len() <= 65_507, "one send");
            assert!(transmit.contents.chunks(segment).count() <= 64, "one send");
            for datagram in transmit.contents.chunks(segment) {
                *initiations += usize::from(datagram[0] == 1);
                if *up {
                    sent.push((*address, transmit.path.remote, datagram.to_vec()));
                }
            }
        }
        while let Some(packet) = mesh.poll_packet() {
            delivered.push((packet.peer, packet.contents.to_vec()));
        }
        while let Some(event) = mesh.poll_event() {
            events.push(event);
        }
        for (from, to, datagram) in sent {
            self.launch(from, to, &datagram);
        }
    }

    fn launch(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let copies = 1 + u64::from(self.draw() % 1000 < self.link.duplicated);
        for _ in 0..copies {
            if self.draw() % 1000 < self.link.lost || datagram.len() > self.link.longest {
                continue;
            }
            let jitter = self.link.jitter.mul_f64((self.draw() % 1000) as f64 / 1000.0);
            self.sequence += 1;
            let flight = Flight {
                arrives: self.now + self.link.delay + jitter,
                sequence: self.sequence,
                from,
                to,
                datagram: datagram.to_vec(),
            };
            if let Some(capture) = &mut self.capture {
                capture.push(flight.clone());
            }
            self.wire.push(Reverse(flight));
        }
    }
}

/// Initiations as a stranger or a peer would send them, each with an ephemeral key of its own.
pub fn strangers(from: usize, count: usize) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for seed in 0..count {
        let mut config = node_config(from);
        config.peers.push(peer_config(1, Some(address_of(1))));
        let mut world = World::new(seed as u64 + 1, |_| {});
        world.capture = Some(Vec::new());
        world.add(from, config);
        world.send(0, &packet_v4(from, 1, b"x"));
        found.push(world.capture.take().unwrap().remove(0).datagram);
    }
    found
}

pub fn private_key(number: usize) -> PrivateKey {
    let mut bytes = [7; 32];
    // X25519 ignores the lowest three bits of the first byte.
    bytes[8..16].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    PrivateKey::new(bytes)
}

pub fn address_of(number: usize) -> SocketAddr {
    let number = u16::try_from(number).unwrap();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 1000 + number)
}

/// Inner addresses: 10.0.x.y and fd00::xy.
pub fn inner_v4(number: usize) -> String {
    format!("10.0.{}.{}", number / 250, number % 250 + 1)
}

pub fn inner_v6(number: usize) -> String {
    format!("fd00::{:x}", number + 1)
}

pub fn node_config(number: usize) -> Config {
    Config {
        private_key: private_key(number),
        addresses: vec![format!("{}/24", inner_v4(number)).parse().unwrap()],
        mtu: 1408,
        peers: Vec::new(),
        policy: None,
    }
}

pub fn peer_config(number: usize, endpoint: Option<SocketAddr>) -> PeerConfig {
    PeerConfig {
        name: format!("node-{number}").into(),
        public_key: private_key(number).public(),
        preshared_key: None,
        allowed_ips: vec![
            format!("{}/32", inner_v4(number)).parse().unwrap(),
            format!("{}/128", inner_v6(number)).parse().unwrap(),
        ],
        endpoint,
        keepalive: None,
        mtu: None,
        groups: Vec::new(),
    }
}

pub fn preshared() -> PresharedKey {
    PresharedKey::new([9; 32])
}

/// An IPv4 UDP packet between two nodes' inner addresses.
pub fn packet_v4(from: usize, to: usize, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&inner_v4(from).parse::<Ipv4Addr>().unwrap().octets());
    packet[16..20].copy_from_slice(&inner_v4(to).parse::<Ipv4Addr>().unwrap().octets());
    packet[20..22].copy_from_slice(&4000_u16.to_be_bytes());
    packet[22..24].copy_from_slice(&5000_u16.to_be_bytes());
    packet[24..26].copy_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    packet.extend(payload);
    let len = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = adit_mesh_proto::segment::checksum::Sum::default().with(&packet[..20]).finish();
    packet[10..12].copy_from_slice(&sum);
    packet
}

/// An IPv6 UDP packet between two nodes' inner addresses.
pub fn packet_v6(from: usize, to: usize, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    packet[6] = 17;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&inner_v6(from).parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet[24..40].copy_from_slice(&inner_v6(to).parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet[40..42].copy_from_slice(&4000_u16.to_be_bytes());
    packet[42..44].copy_from_slice(&5000_u16.to_be_bytes());
    packet[44..46].copy_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    packet.extend(payload);
    packet
}
