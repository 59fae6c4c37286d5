//! What the engine alone costs: super-packets in, trains out, back in, super-packets out, in one thread and without a
//! system call. `cargo run --release -p adit-mesh-proto --example loopback [GiB]`
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use adit_mesh_proto::segment::{Offload, OffloadKind, PartialChecksum};
use adit_mesh_proto::{Config, Mesh, Outgoing, Path, PeerConfig, PrivateKey};

const MTU: usize = 1408;
const SEGMENT: usize = MTU - 40;
const FLOOD: u32 = 200_000;

fn main() {
    let gib: f64 = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(2.0);
    let now = Instant::now();
    let mut sender = Mesh::new(config(1, 2), [1; 32], now);
    let mut receiver = Mesh::new(config(2, 1), [2; 32], now);
    connect(&mut sender, &mut receiver, now);
    let (packet, offload) = super_packet(44 * SEGMENT);
    let rounds = (gib * 1024.0 * 1024.0 * 1024.0 / (44 * SEGMENT) as f64) as usize;
    let mut contents = vec![0; packet.len()];
    let (mut out, mut back, mut received, mut groups) = (Duration::ZERO, Duration::ZERO, 0, 0);
    let mut trains: Vec<(usize, Vec<u8>)> = Vec::new();
    for round in 0..rounds {
        contents.copy_from_slice(&packet);
        let sequence = u32::try_from(round * 44 * SEGMENT % (1 << 32)).unwrap();
        contents[24..28].copy_from_slice(&sequence.to_be_bytes());
        let begin = Instant::now();
        sender.handle_packet(Outgoing { contents: &mut contents, offload }, begin);
        let mut count = 0;
        while let Some(transmit) = sender.poll_transmit() {
            if trains.len() == count {
                trains.push((0, Vec::with_capacity(65_536)));
            }
            trains[count].0 = transmit.segment_size.unwrap_or(transmit.contents.len());
            trains[count].1.clear();
            trains[count].1.extend_from_slice(transmit.contents);
            count += 1;
        }
        let middle = Instant::now();
        for (stride, train) in &trains[..count] {
            receiver.handle_datagram(path(1), train, *stride, middle);
            while let Some(packet) = receiver.poll_packet() {
                received += packet.contents.len() - 40;
                groups += 1;
            }
        }
        out += middle - begin;
        back += middle.elapsed();
    }
    assert_eq!(received, rounds * 44 * SEGMENT, "nothing is lost on the way");
    let per_packet = |time: Duration| time.as_nanos() as f64 / (rounds * 44) as f64;
    let gib = received as f64 / (1024.0 * 1024.0 * 1024.0);
    println!("{gib:.1} GiB in {groups} super-packets of {rounds} sent");
    println!("out: {:.0} ns a packet, {:.2} s/GiB", per_packet(out), out.as_secs_f64() / gib);
    println!("in:  {:.0} ns a packet, {:.2} s/GiB", per_packet(back), back.as_secs_f64() / gib);
    strangers(&mut receiver);
}

/// What messages of strangers cost: the bound on what a flood can take from the peers.
fn strangers(mesh: &mut Mesh) {
    let initiation = initiation();
    let (mut bad_mac, mut bad_index) = (initiation.clone(), vec![4, 0, 0, 0]);
    bad_mac[120] ^= 1;
    bad_index.resize(1440, 0x5a);
    let now = Instant::now();
    for (name, message) in
        [("of an unknown index", bad_index), ("with a wrong MAC", bad_mac), ("with a right MAC", initiation)]
    {
        let begin = Instant::now();
        for number in 0..FLOOD {
            // A new address each time, as if all were forged.
            let remote = (number.to_be_bytes(), 4000).into();
            mesh.handle_datagram(Path { remote, local: None }, &message, message.len(), now);
            while mesh.poll_transmit().is_some() {}
        }
        let each = begin.elapsed().as_nanos() / u128::from(FLOOD);
        println!("stranger's message {name}: {each} ns, {} computed", mesh.statistics().handshakes_computed);
    }
}

/// An initiation to the receiver from somebody it does not know.
fn initiation() -> Vec<u8> {
    let mut stranger = Mesh::new(config(3, 2), [3; 32], Instant::now());
    let (mut packet, _) = super_packet(100);
    stranger.handle_packet(Outgoing { contents: &mut packet, offload: Offload::NONE }, Instant::now());
    stranger.poll_transmit().unwrap().contents.to_vec()
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::new([number * 16; 32])
}

fn path(number: u8) -> Path {
    Path { remote: ([192, 0, 2, number], 51_820).into(), local: None }
}

fn config(own: u8, peer: u8) -> Config {
    Config {
        private_key: key(own),
        addresses: vec![format!("10.0.0.{own}/24").parse().unwrap()],
        mtu: u16::try_from(MTU).unwrap(),
        peers: vec![PeerConfig {
            name: "peer".into(),
            public_key: key(peer).public(),
            preshared_key: None,
            allowed_ips: vec![format!("10.0.0.{peer}/32").parse().unwrap()],
            endpoint: Some(path(peer).remote),
            keepalive: None,
            mtu: None,
            groups: Vec::new(),
        }],
        policy: None,
    }
}

fn connect(sender: &mut Mesh, receiver: &mut Mesh, now: Instant) {
    let (mut packet, _) = super_packet(100);
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

/// TCP over IPv4 with this much payload, as the kernel hands it over.
fn super_packet(payload: usize) -> (Vec<u8>, Offload) {
    let mut packet = vec![0; 40 + payload];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(40 + payload).unwrap().to_be_bytes());
    (packet[6], packet[8], packet[9]) = (0x40, 64, 6);
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet[20..24].copy_from_slice(&[0x10, 0, 0x20, 0]);
    (packet[32], packet[33]) = (0x50, 0x10);
    let partial_checksum = Some(PartialChecksum { start: 20, offset: 16 });
    let segment_size = u16::try_from(SEGMENT).unwrap();
    (packet, Offload { kind: OffloadKind::Tcp4, header_len: 40, segment_size, partial_checksum })
}
