//! Two nodes with two lanes each, and what somebody could try with them.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_mesh_proto::segment::Offload;
use adit_mesh_proto::{
    Config, DropReason, Event, FlowTable, Lane, LaneAddress, LanePeer, Mesh, Outgoing, Path, PeerConfig,
    PeerId, Policy, PrivateKey, PublicKey,
};

/// A node: its first lane and a further one.
struct Node {
    number: u8,
    lanes: [Mesh; 2],
    flows: FlowTable,
    delivered: usize,
    announced: Vec<(Vec<LaneAddress>, bool)>,
}

struct Pair {
    now: Instant,
    nodes: [Node; 2],
}

impl Node {
    fn new(number: u8, policy: Option<Policy>, now: Instant) -> Self {
        let config = Config { policy, ..config(number) };
        let flows = FlowTable::new(now);
        let lanes = engines(&config, &flows, number, now);
        Self { number, lanes, flows, delivered: 0, announced: Vec::new() }
    }

    /// As a process that starts again: other keys of further lanes.
    fn restart(&mut self, seed: u8, now: Instant) {
        self.lanes = engines(&config(self.number), &self.flows, seed, now);
    }

    /// Hands on what both engines have made; what is to be sent, with the lane it goes to.
    fn drain(&mut self, now: Instant) -> Vec<(usize, Vec<u8>)> {
        let mut sent = Vec::new();
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            while let Some(transmit) = lane.poll_transmit() {
                let size = transmit.segment_size.unwrap_or(transmit.contents.len());
                sent.extend(transmit.contents.chunks(size).map(|datagram| (number, datagram.to_vec())));
            }
            while lane.poll_packet().is_some() {
                self.delivered += 1;
            }
        }
        while let Some(event) = self.lanes[0].poll_event() {
            if let Event::Lanes { lanes, begin, .. } = event {
                self.announced.push((lanes, begin));
            }
        }
        while let Some(event) = self.lanes[1].poll_event() {
            if let Event::SessionEstablished { peer, .. }
            | Event::SessionExpired { peer }
            | Event::Reachability { peer, .. } = event
                && let Some(identity) = self.lanes[1].identity_of(peer)
            {
                let up = self.lanes[1].carries(peer);
                self.lanes[0].note_lane(identity, 1, up, now);
            }
        }
        sent
    }

    /// What the shell does when a peer has announced its lanes.
    fn obey(&mut self, now: Instant) {
        let other = 1 - self.number;
        for (lanes, begin) in std::mem::take(&mut self.announced) {
            match lanes.first() {
                Some(lane) => {
                    let remote = address(other, usize::from(lane.port));
                    let identity = key(other).public();
                    let joined = self.lanes[1].join(LanePeer { identity, key: lane.key, remote, begin }, now);
                    let up = joined.is_some_and(|id| self.lanes[1].carries(id));
                    self.lanes[0].note_lane(key(other).public(), 1, up, now);
                }
                None => self.lanes[1].leave(key(other).public()),
            }
        }
    }

    /// A packet from the device; says which lane it took.
    fn send(&mut self, packet: &mut [u8], now: Instant) -> usize {
        let lane = self.lanes[0].lane_of(packet);
        self.lanes[lane].handle_packet(Outgoing { contents: packet, offload: Offload::NONE }, now);
        lane
    }
}

impl Pair {
    fn new(policy: Option<Policy>) -> Self {
        let now = Instant::now();
        Self { now, nodes: [Node::new(0, policy, now), Node::new(1, None, now)] }
    }

    /// Lets datagrams fly until there are none.
    fn settle(&mut self) {
        loop {
            let mut any = false;
            for from in 0..2 {
                for (lane, datagram) in self.nodes[from].drain(self.now) {
                    any = true;
                    let remote = address(u8::try_from(from).unwrap(), lane);
                    let path = Path { remote, local: None };
                    self.nodes[1 - from].lanes[lane].handle_datagram(
                        path,
                        &datagram,
                        datagram.len(),
                        self.now,
                    );
                }
                self.nodes[from].obey(self.now);
            }
            if !any {
                return;
            }
        }
    }

    /// Lets time pass while the first node says something now and then.
    fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds * 4 {
            self.now += Duration::from_millis(250);
            let now = self.now;
            self.nodes[0].send(&mut datagram(0, 9, b"x"), now);
            for node in &mut self.nodes {
                for lane in &mut node.lanes {
                    if lane.poll_timeout().is_some_and(|at| at <= now) {
                        lane.handle_timeout(now);
                    }
                }
            }
            self.settle();
        }
    }

    fn lanes_up(&self) -> [usize; 2] {
        [0, 1].map(|node: usize| self.nodes[node].lanes[0].peers().next().unwrap().lanes_up)
    }
}

fn engines(config: &Config, flows: &FlowTable, seed: u8, now: Instant) -> [Mesh; 2] {
    let private_key = PrivateKey::new([100 + seed; 32]);
    let lane = LaneAddress { key: private_key.public(), port: 1 };
    let further = Config { private_key, ..config.clone() };
    [
        Mesh::on_lane(config.clone(), Lane::First(vec![lane]), flows.clone(), [seed + 1; 32], now),
        Mesh::on_lane(further, Lane::Further, flows.clone(), [seed + 7; 32], now),
    ]
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::new([8 * (number + 1); 32])
}

/// The port is the number of the lane.
fn address(node: u8, lane: usize) -> SocketAddr {
    ([192, 0, 2, node + 1], u16::try_from(lane).unwrap()).into()
}

fn config(number: u8) -> Config {
    let other = 1 - number;
    let peer = PeerConfig {
        name: "other".into(),
        public_key: key(other).public(),
        preshared_key: None,
        allowed_ips: vec![format!("10.0.{other}.0/24").parse().unwrap()],
        endpoint: (number == 0).then(|| address(other, 0)),
        keepalive: None,
        mtu: None,
        groups: Vec::new(),
    };
    let addresses = vec![format!("10.0.{number}.1/24").parse().unwrap()];
    Config { private_key: key(number), addresses, mtu: 1408, peers: vec![peer], policy: None }
}

/// TCP from 10.0.`from`.1 to the other node, whose port says which flow it is.
fn datagram(from: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    packet(from, (40_000 + port, 80), payload)
}

fn packet(from: u8, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40 + payload.len()];
    let len = u16::try_from(packet.len()).unwrap();
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..20].copy_from_slice(&[10, 0, from, 1, 10, 0, 1 - from, 1]);
    packet[20..22].copy_from_slice(&ports.0.to_be_bytes());
    packet[22..24].copy_from_slice(&ports.1.to_be_bytes());
    packet[32..34].copy_from_slice(&[0x50, 0x10]);
    packet[40..].copy_from_slice(payload);
    packet
}

#[test]
fn two_nodes_tell_each_other_their_lanes_and_use_them() {
    let mut pair = Pair::new(None);
    pair.pass(3);
    assert_eq!(pair.lanes_up(), [2, 2]);
    let now = pair.now;
    let taken: Vec<usize> =
        (0..100).map(|port| pair.nodes[0].send(&mut datagram(0, port, b"data"), now)).collect();
    assert!(taken.contains(&0) && taken.contains(&1));
    let before = pair.nodes[1].delivered;
    pair.settle();
    assert_eq!(pair.nodes[1].delivered, before + 100);
}

#[test]
fn lanes_live_as_long_as_they_are_used_and_come_back_when_they_are_used_again() {
    let mut pair = Pair::new(None);
    pair.pass(200);
    assert_eq!(pair.lanes_up(), [2, 2]);
    pair.now += Duration::from_secs(1000);
    pair.pass(12);
    assert_eq!(pair.lanes_up(), [2, 2]);
}

#[test]
fn a_node_that_starts_again_is_forgotten_on_all_lanes_and_found_again() {
    let mut pair = Pair::new(None);
    pair.pass(3);
    let now = pair.now;
    pair.nodes[1].restart(5, now);
    pair.nodes[1].lanes[0]
        .handle_packet(Outgoing { contents: &mut datagram(1, 1, b"hello"), offload: Offload::NONE }, now);
    // It does not know where the other is: the other has to notice.
    pair.pass(40);
    assert_eq!(pair.lanes_up(), [2, 2]);
    let peers: Vec<PublicKey> = pair.nodes[0].lanes[1].peers().map(|peer| peer.public_key).collect();
    assert_eq!(peers, [key(1).public()], "one, and not one for each life");
}

#[test]
fn an_answer_may_come_by_another_lane_than_the_request_went() {
    let mut pair = Pair::new(Some(Policy::default()));
    pair.pass(3);
    let now = pair.now;
    let mut request = datagram(0, 7, b"request");
    pair.nodes[0].lanes[0].handle_packet(Outgoing { contents: &mut request, offload: Offload::NONE }, now);
    pair.settle();
    let before = pair.nodes[0].delivered;
    let mut answer = packet(1, (80, 40_007), b"answer");
    pair.nodes[1].lanes[1].handle_packet(Outgoing { contents: &mut answer, offload: Offload::NONE }, now);
    pair.settle();
    assert_eq!(pair.nodes[0].delivered, before + 1);
    let mut unasked = packet(1, (80, 40_099), b"unasked");
    pair.nodes[1].lanes[1].handle_packet(Outgoing { contents: &mut unasked, offload: Offload::NONE }, now);
    pair.settle();
    assert_eq!(pair.nodes[0].delivered, before + 1);
    assert_eq!(pair.nodes[0].lanes[1].statistics().drops.of(DropReason::Policy), 1);
}

#[test]
fn a_further_lane_lets_in_only_addresses_of_the_peer_and_nobody_without_an_announcement() {
    let mut pair = Pair::new(None);
    pair.settle();
    let stranger = LanePeer {
        identity: PublicKey([9; 32]),
        key: PublicKey([10; 32]),
        remote: address(1, 1),
        begin: true,
    };
    let now = pair.now;
    assert_eq!(pair.nodes[0].lanes[1].join(stranger, now), None);
    assert_eq!(pair.nodes[0].lanes[1].peers().count(), 0);
    pair.pass(3);
    let mut forged = datagram(1, 1, b"forged");
    forged[14] = 77;
    pair.nodes[1].lanes[1].handle_packet(Outgoing { contents: &mut forged, offload: Offload::NONE }, now);
    pair.settle();
    assert_eq!(pair.nodes[0].lanes[1].statistics().drops.of(DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_peer_that_announces_the_key_of_another_does_not_take_its_place() {
    let now = Instant::now();
    let mut config = config(0);
    let other = PeerConfig {
        name: "third".into(),
        public_key: PublicKey([33; 32]),
        allowed_ips: vec!["10.0.3.0/24".parse().unwrap()],
        ..config.peers[0].clone()
    };
    config.peers.push(other.clone());
    let [_, mut lane] = engines(&config, &FlowTable::new(now), 0, now);
    let lane_key = PrivateKey::new([101; 32]).public();
    let join = |identity| LanePeer { identity, key: lane_key, remote: address(1, 1), begin: false };
    assert_eq!(lane.join(join(key(1).public()), now), Some(PeerId(0)));
    assert_eq!(lane.join(join(other.public_key), now), None);
    let peers: Vec<PublicKey> = lane.peers().map(|peer| peer.public_key).collect();
    assert_eq!(peers, [key(1).public()]);
    assert_eq!(lane.identity_of(PeerId(0)), Some(key(1).public()));
}

#[test]
fn a_peer_heard_elsewhere_on_one_lane_is_asked_there_on_the_first_and_found_on_all() {
    let mut pair = Pair::new(None);
    pair.pass(3);
    let now = pair.now;
    let elsewhere: std::net::IpAddr = [192, 0, 2, 99].into();
    let first = &mut pair.nodes[0].lanes[0];
    let at = |lane: &Mesh| lane.peers().next().unwrap().path.unwrap().remote;
    let before = at(first);
    first.ask_at(key(1).public(), elsewhere, now);
    let asked: Vec<SocketAddr> =
        std::iter::from_fn(|| first.poll_transmit().map(|sent| sent.path.remote)).collect();
    assert_eq!(asked, [SocketAddr::from((elsewhere, before.port()))]);
    assert_eq!(at(first), before, "nobody has answered");
    first.ask_at(key(1).public(), before.ip(), now);
    assert!(first.poll_transmit().is_none(), "it is there already");

    let further = &mut pair.nodes[0].lanes[1];
    let port = at(further).port();
    further.relocate(key(1).public(), elsewhere, now);
    assert_eq!(at(further), SocketAddr::from((elsewhere, port)));
}
