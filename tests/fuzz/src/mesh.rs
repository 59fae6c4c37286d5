//! The mesh's engine against strangers and against the packets of peers.

use std::time::Instant;

use adit_mesh_proto::segment::{Offload, OffloadKind, PartialChecksum};
use adit_mesh_proto::{Config, Mesh, Outgoing, Path, PeerConfig, Policy, PrivateKey, Protocol, Rule, Source};

/// Commands of one kind byte, one length byte and that many bytes: datagrams, damaged messages of a live session, inner
/// packets and super-packets. At the end the session must still work.
pub fn mesh(data: &[u8]) {
    let now = Instant::now();
    let mut pair = Pair::connected(now);
    let mut rest = data;
    while let [kind, len, tail @ ..] = rest {
        let (bytes, after) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = after;
        match kind % 4 {
            0 => pair.inject(bytes),
            1 => pair.damage(bytes),
            2 => pair.send(bytes.to_vec(), Offload::NONE),
            _ => pair.send_offloaded(bytes),
        }
    }
    pair.received.clear();
    let packet = known_packet();
    pair.send(packet.clone(), Offload::NONE);
    assert_eq!(pair.received, [packet], "whatever came before, the session works");
}

struct Pair {
    from: Mesh,
    to: Mesh,
    now: Instant,
    /// A message of the session that was never delivered.
    template: Vec<u8>,
    received: Vec<Vec<u8>>,
}

impl Pair {
    fn connected(now: Instant) -> Self {
        let (from, to) = (Mesh::new(config(1, 2), [1; 32], now), Mesh::new(config(2, 1), [2; 32], now));
        let mut pair = Self { from, to, now, template: Vec::new(), received: Vec::new() };
        pair.send(known_packet(), Offload::NONE);
        assert_eq!(pair.received.len(), 1, "a handshake and a packet");
        let mut packet = known_packet();
        pair.from.handle_packet(Outgoing { contents: &mut packet, offload: Offload::NONE }, now);
        while let Some(transmit) = pair.from.poll_transmit() {
            pair.template = transmit.contents.to_vec();
        }
        pair
    }

    fn inject(&mut self, datagram: &[u8]) {
        self.to.handle_datagram(path(9), datagram, datagram.len().max(1), self.now);
        self.drain();
    }

    fn damage(&mut self, bytes: &[u8]) {
        let mut datagram = self.template.clone();
        let keep = bytes.first().map_or(0, |byte| usize::from(*byte) % (datagram.len() + 1));
        datagram.truncate(keep);
        for (place, byte) in bytes.iter().enumerate().skip(1) {
            let at = (place * 7) % datagram.len().max(1);
            if let Some(target) = datagram.get_mut(at) {
                *target ^= byte | 1;
            }
        }
        self.inject(&datagram);
    }

    fn send_offloaded(&mut self, bytes: &[u8]) {
        let [kind, size, start, offset, packet @ ..] = bytes else { return };
        let kind = [OffloadKind::None, OffloadKind::Tcp4, OffloadKind::Tcp6, OffloadKind::Udp]
            [usize::from(kind % 4)];
        let partial = PartialChecksum { start: u16::from(*start), offset: u16::from(*offset) };
        let offload = Offload {
            kind,
            header_len: 40,
            segment_size: u16::from(*size).max(1),
            partial_checksum: (start % 2 == 0).then_some(partial),
        };
        // Long enough for several trains.
        let mut packet = packet.to_vec();
        let pattern = packet.clone();
        while !pattern.is_empty() && packet.len() < 2000 {
            packet.extend_from_slice(&pattern);
        }
        fix_length(&mut packet);
        self.send(packet, offload);
    }

    fn send(&mut self, mut packet: Vec<u8>, offload: Offload) {
        self.from.handle_packet(Outgoing { contents: &mut packet, offload }, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            let before = self.from.is_drained() && self.to.is_drained();
            carry(&mut self.from, &mut self.to, path(1), self.now);
            carry(&mut self.to, &mut self.from, path(2), self.now);
            while let Some(packet) = self.to.poll_packet() {
                assert!(packet.contents.len() >= 20, "an IP packet");
                self.received.push(packet.contents.to_vec());
            }
            while self.from.poll_packet().is_some() {}
            while self.to.poll_event().is_some() || self.from.poll_event().is_some() {}
            if before {
                return;
            }
        }
    }
}

fn carry(from: &mut Mesh, to: &mut Mesh, path: Path, now: Instant) {
    while let Some(transmit) = from.poll_transmit() {
        let stride = transmit.segment_size.unwrap_or(transmit.contents.len());
        assert!(transmit.contents.len() <= 65_507, "one send");
        assert!(transmit.contents.chunks(stride).count() <= 64, "one send");
        to.handle_datagram(path, transmit.contents, stride, now);
    }
}

fn fix_length(packet: &mut [u8]) {
    let len = packet.len();
    match packet.first().map(|first| first >> 4) {
        Some(4) if len >= 20 => packet[2..4].copy_from_slice(&u16::try_from(len).unwrap_or(0).to_be_bytes()),
        Some(6) if len >= 40 => {
            packet[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap_or(0).to_be_bytes())
        }
        _ => {}
    }
}

fn path(number: u8) -> Path {
    Path { remote: ([192, 0, 2, number], 51_820).into(), local: None }
}

fn config(own: u8, peer: u8) -> Config {
    let key = |number: u8| PrivateKey::new([number * 16; 32]);
    let everything = || vec!["0.0.0.0/0".parse().expect("a network"), "::/0".parse().expect("a network")];
    let rule = Rule { from: vec![Source::Any], to: everything(), protocol: Protocol::Any, ports: Vec::new() };
    Config {
        private_key: key(own),
        addresses: vec![format!("10.0.0.{own}/24").parse().expect("a network")],
        mtu: 1408,
        peers: vec![PeerConfig {
            name: "peer".into(),
            public_key: key(peer).public(),
            preshared_key: None,
            allowed_ips: everything(),
            endpoint: Some(path(peer).remote),
            keepalive: None,
            mtu: Some(1300),
            groups: Vec::new(),
        }],
        // The receiver judges, so that its parsers see what the sender let pass.
        policy: (own == 2).then(|| Policy { rules: vec![rule] }),
    }
}

fn known_packet() -> Vec<u8> {
    let mut packet = vec![0; 32];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 32, 64, 17);
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet[20..26].copy_from_slice(&[0x0f, 0xa0, 0, 53, 0, 12]);
    packet
}
