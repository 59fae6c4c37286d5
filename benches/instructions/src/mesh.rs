//! Packets through the mesh's engine, in super-packets as the kernel hands them over.

use std::hint::black_box;
use std::time::Instant;

use adit_mesh_proto::segment::{Coalescer, Offload, OffloadKind, PartialChecksum, Splitter};
use adit_mesh_proto::{Config, Mesh, Outgoing, Path, PeerConfig, PrivateKey};

/// Packets of a super-packet.
pub(crate) const TRAIN: u32 = 44;

pub(crate) fn split(turns: u32) {
    let (packet, offload) = super_packet(TRAIN as usize * SEGMENT);
    let mut contents = packet.clone();
    for _ in 0..turns {
        contents.copy_from_slice(&packet);
        let mut splitter = Splitter::new(&mut contents, offload).expect("the packet is right");
        while let Some(segment) = splitter.next() {
            black_box(segment);
        }
    }
}

pub(crate) fn coalesce(turns: u32) {
    let (mut packet, offload) = super_packet(TRAIN as usize * SEGMENT);
    let mut splitter = Splitter::new(&mut packet, offload).expect("the packet is right");
    let mut segments = Vec::new();
    while let Some(segment) = splitter.next() {
        segments.push(segment.to_vec());
    }
    let mut coalescer = Coalescer::new(64);
    for _ in 0..turns {
        for segment in &segments {
            let slot = coalescer.slot(segment.len()).expect("there is room");
            slot.copy_from_slice(segment);
            coalescer.commit(segment.len(), 1);
        }
        let merged = coalescer.poll().expect("there is a packet");
        assert_eq!(u32::from(merged.packets), TRAIN, "all are in one");
        assert!(coalescer.poll().is_none(), "there is one");
    }
}

pub(crate) fn out(turns: u32) {
    pass(turns, super_packet(TRAIN as usize * SEGMENT), false);
}

pub(crate) fn there_and_back(turns: u32) {
    pass(turns, super_packet(TRAIN as usize * SEGMENT), true);
}

pub(crate) fn small(turns: u32) {
    let (packet, _) = super_packet(60);
    pass(turns, (packet, Offload::NONE), true);
}

fn pass(turns: u32, (packet, offload): (Vec<u8>, Offload), back: bool) {
    let now = Instant::now();
    let mut sender = Mesh::new(config(1, 2), [1; 32], now);
    let mut receiver = Mesh::new(config(2, 1), [2; 32], now);
    connect(&mut sender, &mut receiver, now);
    let mut contents = packet.clone();
    let mut received = 0;
    for _ in 0..turns {
        contents.copy_from_slice(&packet);
        sender.handle_packet(Outgoing { contents: &mut contents, offload }, now);
        while let Some(transmit) = sender.poll_transmit() {
            let stride = transmit.segment_size.unwrap_or(transmit.contents.len());
            if back {
                receiver.handle_datagram(path(1), transmit.contents, stride, now);
            }
            black_box(stride);
        }
        while let Some(packet) = receiver.poll_packet() {
            received += packet.contents.len();
        }
    }
    let whole = if back { turns as usize * packet.len() } else { 0 };
    assert_eq!(received, whole, "nothing is lost on the way");
}

fn connect(sender: &mut Mesh, receiver: &mut Mesh, now: Instant) {
    let (mut packet, _) = super_packet(60);
    sender.handle_packet(Outgoing { contents: &mut packet, offload: Offload::NONE }, now);
    for _ in 0..4 {
        exchange(sender, receiver, path(1), now);
        exchange(receiver, sender, path(2), now);
    }
}

fn exchange(from: &mut Mesh, to: &mut Mesh, path: Path, now: Instant) {
    while let Some(transmit) = from.poll_transmit() {
        let stride = transmit.segment_size.unwrap_or(transmit.contents.len());
        to.handle_datagram(path, transmit.contents, stride, now);
    }
    while to.poll_packet().is_some() {}
}

fn config(own: u8, peer: u8) -> Config {
    Config {
        private_key: key(own),
        addresses: vec![format!("10.0.0.{own}/24").parse().expect("a network")],
        mtu: MTU,
        peers: vec![PeerConfig {
            name: "peer".into(),
            public_key: key(peer).public(),
            preshared_key: None,
            allowed_ips: vec![format!("10.0.0.{peer}/32").parse().expect("a network")],
            endpoint: Some(path(peer).remote),
            keepalive: None,
            mtu: None,
            groups: Vec::new(),
        }],
        policy: None,
    }
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::new([number * 16; 32])
}

fn path(number: u8) -> Path {
    Path { remote: ([192, 0, 2, number], 51_820).into(), local: None }
}

/// TCP over IPv4 with this much payload, as the kernel hands it over.
fn super_packet(payload: usize) -> (Vec<u8>, Offload) {
    let mut packet = vec![0; 40 + payload];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(40 + payload).expect("an IP packet").to_be_bytes());
    (packet[6], packet[8], packet[9]) = (0x40, 64, 6);
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet[20..24].copy_from_slice(&[0x10, 0, 0x20, 0]);
    (packet[32], packet[33]) = (0x50, 0x10);
    let partial_checksum = Some(PartialChecksum { start: 20, offset: 16 });
    let segment_size = u16::try_from(SEGMENT).expect("a segment");
    (packet, Offload { kind: OffloadKind::Tcp4, header_len: 40, segment_size, partial_checksum })
}

const MTU: u16 = 1408;
const SEGMENT: usize = MTU as usize - 40;
