//! Two engines and a wire, in real time that hardly passes: what each promise of the data path looks like from outside.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, unreachable_pub)]

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use adit_mesh_proto::segment::{Offload, OffloadKind, PartialChecksum};
use adit_mesh_proto::{DropReason, Event, Policy, PresharedKey, Protocol, Rule, Source};
use proptest::prelude::*;
use world::{
    Link, World, address_of, node_config, packet_v4, packet_v6, peer_config, preshared, private_key,
    strangers,
};

const MOMENT: Duration = Duration::from_millis(20);

fn still(_: Duration) {}

fn pair() -> World {
    World::pair(1, still, |_, _| {})
}

/// A pair with a session that both sides use.
fn connected() -> World {
    let mut world = pair();
    world.send(0, &packet_v4(0, 1, b"hello"));
    world.run_for(MOMENT);
    assert_eq!(world.nodes[1].delivered.len(), 1);
    world.nodes[1].delivered.clear();
    world
}

fn payloads(world: &World, node: usize) -> Vec<Vec<u8>> {
    world.nodes[node].delivered.iter().map(|(_, packet)| packet.clone()).collect()
}

#[test]
fn the_first_packet_waits_for_the_handshake_and_arrives() {
    let mut world = pair();
    let packet = packet_v4(0, 1, b"first");
    world.send(0, &packet);
    assert_eq!(world.nodes[0].mesh.statistics().staged, 1);
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 1), [packet]);
    assert_eq!(world.nodes[0].mesh.statistics().staged, 0);
    assert!(matches!(world.nodes[0].events[..], [Event::SessionEstablished { initiator: true, .. }]));
    assert!(
        world.nodes[1].events.iter().any(|e| matches!(e, Event::SessionEstablished { initiator: false, .. }))
    );
    assert_eq!(world.peer(1).path.unwrap().remote, address_of(0));
}

#[test]
fn packets_of_both_versions_pass_both_ways_with_and_without_a_preshared_key() {
    for secret in [None, Some(preshared())] {
        let mut world = World::pair(2, still, |_, config| config.peers[0].preshared_key = secret.clone());
        world.send(0, &packet_v4(0, 1, b"a"));
        world.run_for(MOMENT);
        world.send(1, &packet_v4(1, 0, b"b"));
        world.send(1, &packet_v6(1, 0, b"c"));
        world.send(0, &packet_v6(0, 1, b"d"));
        world.run_for(MOMENT);
        assert_eq!(payloads(&world, 0), [packet_v4(1, 0, b"b"), packet_v6(1, 0, b"c")]);
        assert_eq!(payloads(&world, 1), [packet_v4(0, 1, b"a"), packet_v6(0, 1, b"d")]);
    }
}

#[test]
fn a_wrong_preshared_key_never_connects() {
    let mut world = World::pair(3, still, |number, config| {
        config.peers[0].preshared_key = Some(PresharedKey::new([u8::try_from(number).unwrap(); 32]));
    });
    world.send(0, &packet_v4(0, 1, b"x"));
    world.run_for(MOMENT);
    assert!(!world.peer(0).connected);
    assert!(world.nodes[1].delivered.is_empty());
    assert_eq!(world.drops(0, DropReason::InvalidHandshake), 1);
}

#[test]
fn everything_sent_twice_is_delivered_once() {
    let mut world = pair();
    world.link.duplicated = 1000;
    for number in 0..50_u8 {
        world.send(0, &packet_v4(0, 1, &[number]));
        world.run_for(Duration::from_millis(2));
    }
    world.run_for(MOMENT);
    assert_eq!(world.nodes[1].delivered.len(), 50);
    assert!(world.drops(1, DropReason::Replay) >= 49);
}

#[test]
fn the_replay_window_holds_1024_messages() {
    let mut world = connected();
    world.capture = Some(Vec::new());
    world.link.lost = 1000;
    world.link.lost = 0;
    world.nodes[1].up = false;
    for _ in 0..1100 {
        world.send(0, &packet_v4(0, 1, b"w"));
    }
    world.run_for(MOMENT);
    world.nodes[1].up = true;
    let flights = world.capture.take().unwrap();
    let from = address_of(0);
    let newest = flights.len() - 1;
    world.inject(from, 1, &flights[newest].datagram);
    // The window reaches 1,024 back from the next counter.
    for (back, fresh) in [(1, true), (1022, true), (1023, true), (1024, false), (1090, false)] {
        let before = world.nodes[1].delivered.len();
        world.inject(from, 1, &flights[newest - back].datagram);
        assert_eq!(world.nodes[1].delivered.len() > before, fresh, "{back} back");
    }
    assert_eq!(world.drops(1, DropReason::Replay), 2);
}

#[test]
fn counters_near_their_end_are_refused_before_they_are_added_to() {
    let mut world = connected();
    world.capture = Some(Vec::new());
    world.send(0, &packet_v4(0, 1, b"x"));
    let flight = world.capture.take().unwrap().remove(0);
    for counter in [1_u64 << 63, u64::MAX - 1023, u64::MAX - 1, u64::MAX] {
        let mut forged = flight.datagram.clone();
        forged[8..16].copy_from_slice(&counter.to_le_bytes());
        world.inject(address_of(0), 1, &forged);
    }
    assert_eq!(world.drops(1, DropReason::CounterOverflow), 4);
    let mut forged = flight.datagram;
    forged[8..16].copy_from_slice(&((1_u64 << 63) - 1).to_le_bytes());
    world.inject(address_of(0), 1, &forged);
    assert_eq!(world.drops(1, DropReason::InvalidData), 1);
}

#[test]
fn a_source_outside_the_allowed_networks_is_dropped_and_counted() {
    let mut world = connected();
    world.send(0, &packet_v4(7, 1, b"not mine"));
    world.run_for(MOMENT);
    assert!(world.nodes[1].delivered.is_empty());
    assert_eq!(world.drops(1, DropReason::SourceNotAllowed), 1);
    assert_eq!(world.peer(1).statistics.drops.of(DropReason::SourceNotAllowed), 1);
}

#[test]
fn packets_to_nobody_and_to_the_unheard_are_dropped_by_name() {
    let mut world = pair();
    world.send(0, &packet_v4(0, 9, b"x"));
    world.send(1, &packet_v4(1, 0, b"x"));
    world.send(0, b"no packet");
    assert_eq!(world.drops(0, DropReason::NoRoute), 1);
    assert_eq!(world.drops(1, DropReason::NoEndpoint), 1);
    assert_eq!(world.drops(0, DropReason::MalformedPacket), 1);
    for node in 0..2 {
        let (_, error) = &world.nodes[node].delivered[0];
        assert_eq!((error[9], error[20], error[21]), (1, 3, 1), "ICMP: host unreachable");
        assert_eq!(error[16..20], packet_v4(node, 9, b"")[12..16], "to the sender");
    }
    for _ in 0..1000 {
        world.send(0, &packet_v4(0, 9, b"x"));
    }
    assert_eq!(world.nodes[0].delivered.len(), 50, "and no more than a burst of them");
}

#[test]
fn what_waits_for_a_session_is_bounded() {
    let mut world = pair();
    world.nodes[1].up = false;
    for _ in 0..1000 {
        world.send(0, &packet_v4(0, 1, &[0; 1000]));
    }
    assert_eq!(world.nodes[0].mesh.statistics().staged, 128);
    assert_eq!(world.drops(0, DropReason::StagedFull), 872);
}

#[test]
fn a_peer_is_followed_to_a_new_address_but_not_by_old_messages() {
    let mut world = connected();
    assert!(!world.nodes[0].events.iter().any(|event| matches!(event, Event::Roamed { .. })));
    world.capture = Some(Vec::new());
    world.send(0, &packet_v4(0, 1, b"one"));
    world.send(0, &packet_v4(0, 1, b"two"));
    let flights = world.capture.take().unwrap();
    world.nodes[0].address = address_of(50);
    world.send(0, &packet_v4(0, 1, b"three"));
    world.run_for(MOMENT);
    assert_eq!(world.peer(1).path.unwrap().remote, address_of(50));
    assert!(
        world.nodes[1]
            .events
            .iter()
            .any(|event| matches!(event, Event::Roamed { path, .. } if path.remote == address_of(50)))
    );
    // A copy of something old, sent on by somebody else, moves nobody; nor does a message that was overtaken.
    for flight in &flights {
        world.inject(address_of(66), 1, &flight.datagram);
    }
    assert_eq!(world.peer(1).path.unwrap().remote, address_of(50));
    world.send(1, &packet_v4(1, 0, b"answer"));
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 0), [packet_v4(1, 0, b"answer")]);
}

#[test]
fn a_restarted_peer_is_back_with_its_first_packet() {
    let mut world = connected();
    let seed = [3; 32];
    let mut config = node_config(0);
    config.peers.push(peer_config(1, Some(address_of(1))));
    world.nodes[0].mesh = adit_mesh_proto::Mesh::new(config, seed, world.now);
    // The one that stayed accepts initiations no closer than 20 ms.
    world.run_for(Duration::from_millis(30));
    world.send(0, &packet_v4(0, 1, b"again"));
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 1), [packet_v4(0, 1, b"again")]);
    world.send(1, &packet_v4(1, 0, b"welcome"));
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 0), [packet_v4(1, 0, b"welcome")]);
}

#[test]
fn lengths_are_hidden_in_steps_of_16_but_never_beyond_the_mtu() {
    let mut world = World::pair(5, still, |_, config| config.mtu = 1420);
    world.send(0, &packet_v4(0, 1, b""));
    world.run_for(MOMENT);
    for (payload, expected) in
        [(0, 32), (4, 32), (5, 48), (1376, 1408), (1380, 1408), (1381, 1420), (1392, 1420)]
    {
        world.capture = Some(Vec::new());
        world.send(0, &packet_v4(0, 1, &vec![0; payload]));
        let flight = world.capture.take().unwrap().remove(0);
        assert_eq!(flight.datagram.len(), expected + 32, "payload of {payload}");
    }
}

#[test]
fn a_changed_configuration_leaves_untouched_peers_their_session() {
    let mut world = connected();
    let mut config = node_config(0);
    config.peers.push(peer_config(2, Some(address_of(2))));
    config.peers.push(peer_config(1, Some(address_of(1))));
    config.peers[1].groups.push("family".into());
    world.nodes[0].mesh.reconfigure(config.clone(), world.now);
    world.send(0, &packet_v4(0, 1, b"still"));
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 1), [packet_v4(0, 1, b"still")]);
    assert_eq!(world.nodes[0].initiations, 1);

    config.peers.remove(1);
    world.nodes[0].mesh.reconfigure(config, world.now);
    world.send(0, &packet_v4(0, 1, b"gone"));
    assert_eq!(world.drops(0, DropReason::NoRoute), 1);
    world.send(1, &packet_v4(1, 0, b"to nobody"));
    world.run_for(MOMENT);
    assert_eq!(world.drops(0, DropReason::UnknownIndex), 1);
}

#[test]
fn a_changed_private_key_leaves_each_peer_its_place() {
    let mut world = World::pair(3, still, |number, config| {
        if number == 0 {
            config.peers.insert(0, peer_config(2, Some(address_of(2))));
            config.peers.push(peer_config(3, Some(address_of(3))));
        }
    });
    let mut config = node_config(0);
    config.peers = (1..4).map(|number| peer_config(number, Some(address_of(number)))).collect();
    let ids = |world: &World| -> std::collections::BTreeMap<[u8; 32], _> {
        world.nodes[0].mesh.peers().map(|peer| (peer.public_key.0, peer.id)).collect()
    };
    let before = ids(&world);
    assert_eq!(before.len(), 3);
    config.private_key = private_key(77);
    // Somebody new comes first and takes nobody's place.
    config.peers.insert(0, peer_config(9, None));
    world.nodes[0].mesh.reconfigure(config.clone(), world.now);
    let after = ids(&world);
    assert!(before.iter().all(|(key, id)| after.get(key) == Some(id)), "{before:?} {after:?}");
    assert_eq!(after.len(), 4);
}

/// A TCP super-packet from node 0 to node 1.
fn super_packet(payload: usize) -> (Vec<u8>, Offload) {
    let mut packet = packet_v4(0, 1, &vec![0x5a; 12 + payload]);
    packet[9] = 6;
    packet[20..40].fill(0);
    packet[20..24].copy_from_slice(&[0x10, 0, 0x20, 0]);
    packet[32] = 0x50;
    packet[33] = 0x10;
    let partial_checksum = Some(PartialChecksum { start: 20, offset: 16 });
    let offload = Offload { kind: OffloadKind::Tcp4, header_len: 40, segment_size: 1368, partial_checksum };
    (packet, offload)
}

#[test]
fn a_super_packet_leaves_as_trains_and_arrives_as_what_was_sent() {
    let mut world = connected();
    let (packet, offload) = super_packet(64_000);
    let mut contents = packet.clone();
    let now = world.now;
    world.nodes[0].mesh.handle_packet(adit_mesh_proto::Outgoing { contents: &mut contents, offload }, now);
    let mut trains = Vec::new();
    while let Some(transmit) = world.nodes[0].mesh.poll_transmit() {
        trains.push((transmit.segment_size, transmit.contents.to_vec()));
    }
    assert_eq!(trains[0].0, Some(1408 + 32));
    assert_eq!(trains.len(), 2, "45 datagrams of 1440 bytes fill one send");
    let mut received = Vec::new();
    for (segment, train) in &trains {
        let path = adit_mesh_proto::Path { remote: address_of(0), local: None };
        world.nodes[1].mesh.handle_datagram(path, train, segment.unwrap_or(train.len()), now);
        while let Some(packet) = world.nodes[1].mesh.poll_packet() {
            assert!(packet.contents.len() < 65_536);
            received.extend_from_slice(&packet.contents[40..]);
        }
    }
    assert_eq!(received, packet[40..]);
}

#[test]
fn congestion_bits_go_out_with_the_datagram_and_come_in_with_the_packet() {
    let mut world = connected();
    let now = world.now;
    let path = adit_mesh_proto::Path { remote: address_of(0), local: None };
    for (inner, outer, expected) in [(0, 0, Some(0)), (2, 2, Some(2)), (2, 3, Some(3)), (0, 3, None)] {
        let mut packet = packet_v4(0, 1, b"x");
        packet[1] |= inner;
        let (mesh, offload) = (&mut world.nodes[0].mesh, Offload::NONE);
        mesh.handle_packet(adit_mesh_proto::Outgoing { contents: &mut packet, offload }, now);
        let transmit = mesh.poll_transmit().unwrap();
        assert_eq!(transmit.ecn, inner);
        let datagram = transmit.contents.to_vec();
        let mesh = &mut world.nodes[1].mesh;
        mesh.handle_marked_datagram(path, &datagram, datagram.len(), outer, now);
        assert_eq!(mesh.poll_packet().map(|packet| packet.contents[1] & 3), expected);
    }
    assert_eq!(world.drops(1, DropReason::Congestion), 1);
}

/// A SYN that states this MSS.
fn syn(mss: u16) -> Vec<u8> {
    let mut packet = packet_v4(0, 1, &[0; 16]);
    packet[9] = 6;
    packet[20..44].fill(0);
    (packet[32], packet[33], packet[40], packet[41]) = (0x60, 2, 2, 4);
    packet[42..44].copy_from_slice(&mss.to_be_bytes());
    packet
}

#[test]
fn a_syn_states_what_the_tunnel_carries() {
    let mut world = World::pair(6, still, |number, config| {
        if number == 1 {
            config.peers[0].mtu = Some(1300);
        }
    });
    for (stated, arrives) in [(1460, 1260), (1000, 1000)] {
        world.send(0, &syn(stated));
        world.run_for(MOMENT);
        let packet = &world.nodes[1].delivered.last().unwrap().1;
        assert_eq!(u16::from_be_bytes([packet[42], packet[43]]), arrives);
    }
}

#[test]
fn what_is_too_big_for_a_peer_is_answered_and_tcp_is_cut_smaller() {
    let mut world = World::pair(7, still, |_, config| config.peers[0].mtu = Some(1280));
    world.send(0, &packet_v4(0, 1, b"connect"));
    world.run_for(MOMENT);
    world.nodes[1].delivered.clear();
    world.send(0, &packet_v4(0, 1, &[0; 1300]));
    let error = world.nodes[0].delivered.pop().unwrap().1;
    assert_eq!((error[9], error[20], error[21]), (1, 3, 4), "ICMP: fragmentation needed");
    assert_eq!(error[12..16], packet_v4(0, 1, b"")[16..20], "in the name of the destination");
    assert_eq!(world.drops(0, DropReason::TooBig), 1);

    let (packet, offload) = super_packet(10_000);
    world.capture = Some(Vec::new());
    world.send_offloaded(0, &packet, offload);
    let longest = world.capture.take().unwrap().iter().map(|flight| flight.datagram.len()).max();
    assert_eq!(longest, Some(1280 + 32));
    world.run_for(MOMENT);
    let arrived: usize = world.nodes[1].delivered.iter().map(|(_, packet)| packet.len() - 40).sum();
    assert_eq!(arrived, 10_000);
}

#[test]
fn a_policy_lets_in_what_it_names_and_the_answers_to_what_goes_out() {
    let mut world = World::pair(8, still, |number, config| {
        if number == 1 {
            config.policy = Some(Policy {
                rules: vec![Rule {
                    from: vec![Source::Group("family".into())],
                    to: Vec::new(),
                    protocol: Protocol::Udp,
                    ports: vec![5000..=5000],
                }],
            });
            config.peers[0].groups = vec!["guests".into()];
        }
    });
    world.send(0, &packet_v4(0, 1, b"guest"));
    world.run_for(MOMENT);
    assert!(world.nodes[1].delivered.is_empty());
    assert_eq!(world.peer(1).statistics.drops.of(DropReason::Policy), 1);
    // From port 4000 to port 5000: the guest's packets now look like answers.
    let mut request = packet_v4(1, 0, b"asked");
    request[20..24].copy_from_slice(&[0x13, 0x88, 0x0f, 0xa0]);
    world.send(1, &request);
    world.send(0, &packet_v4(0, 1, b"answer"));
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 1), [packet_v4(0, 1, b"answer")]);
}

#[test]
fn control_packets_do_not_leak_in_or_out() {
    let mut world = connected();
    let mut forged = packet_v6(0, 1, b"forged control packet of the right length and more");
    forged[8..24].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    world.send(0, &forged);
    assert_eq!(world.drops(0, DropReason::SourceNotAllowed), 1);
    let id = world.peer(0).id;
    let now = world.now;
    assert!(world.nodes[0].mesh.probe(id, now));
    world.run_for(MOMENT);
    world.run_for(MOMENT);
    assert!(world.nodes[1].delivered.is_empty());
    assert!(world.nodes[0].events.iter().any(|event| matches!(event, Event::Probed { .. })));
    assert!(world.peer(0).probed);
}

#[test]
fn outputs_that_nobody_drains_are_bounded() {
    let mut world = connected();
    let (packet, offload) = super_packet(64_000);
    let now = world.now;
    for _ in 0..200 {
        let mut contents = packet.clone();
        world.nodes[0]
            .mesh
            .handle_packet(adit_mesh_proto::Outgoing { contents: &mut contents, offload }, now);
    }
    assert!(world.drops(0, DropReason::TransmitFull) > 0);
    let mut sends = 0;
    while world.nodes[0].mesh.poll_transmit().is_some() {
        sends += 1;
    }
    assert_eq!(sends, 64);
    assert!(world.nodes[0].mesh.is_drained());
}

#[test]
fn a_source_that_floods_is_asked_for_a_cookie_while_others_pass() {
    let mut world = connected();
    let flood = strangers(30, 40);
    for message in &flood {
        world.inject("203.0.113.1:66".parse().unwrap(), 1, message);
    }
    assert_eq!(world.drops(1, DropReason::UnknownPeer), 16, "the burst of one source");
    assert_eq!(world.drops(1, DropReason::CookieRequired), 24);
    let statistics = world.nodes[1].mesh.statistics();
    assert_eq!((statistics.cookies, statistics.handshakes_computed), (24, 17));

    // Wrong MACs cost nothing but a hash.
    let mut forged = flood[0].clone();
    forged[120] ^= 1;
    world.inject("203.0.113.9:1".parse().unwrap(), 1, &forged);
    assert_eq!(world.drops(1, DropReason::InvalidMac), 1);

    world.send(0, &packet_v4(0, 1, b"unharmed"));
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 1), [packet_v4(0, 1, b"unharmed")]);
}

#[test]
fn a_replayed_or_hasty_initiation_changes_nothing() {
    let mut world = pair();
    world.capture = Some(Vec::new());
    world.send(0, &packet_v4(0, 1, b"x"));
    let initiation = world.capture.as_ref().unwrap()[0].datagram.clone();
    world.run_for(MOMENT);
    world.inject(address_of(66), 1, &initiation);
    world.run_for(MOMENT * 2);
    world.inject(address_of(66), 1, &initiation);
    let hasty = world.drops(1, DropReason::HandshakeTooSoon);
    assert_eq!(hasty + world.drops(1, DropReason::InvalidHandshake), 2);
    assert_eq!(world.peer(1).path.unwrap().remote, address_of(0));
}

#[test]
fn forged_responses_and_cookies_leave_the_pending_handshake_alone() {
    let mut world = pair();
    world.capture = Some(Vec::new());
    world.send(0, &packet_v4(0, 1, b"x"));
    let initiation = world.capture.take().unwrap().remove(0).datagram;
    for (kind, len) in [(2, 92), (3, 64)] {
        let mut forged = vec![0xa5; len];
        forged[..4].copy_from_slice(&[kind, 0, 0, 0]);
        let at = if kind == 2 { 8 } else { 4 };
        forged[at..at + 4].copy_from_slice(&initiation[4..8]);
        world.inject(address_of(1), 0, &forged);
    }
    assert_eq!(world.drops(0, DropReason::InvalidMac), 1);
    assert_eq!(world.drops(0, DropReason::InvalidHandshake), 1);
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 1), [packet_v4(0, 1, b"x")]);
}

#[test]
fn ten_thousand_peers_are_configured_and_the_last_one_connects() {
    let mut world = World::new(8, still);
    let mut config = node_config(0);
    config.peers = (1..=10_000).map(|number| peer_config(number, None)).collect();
    world.add(0, config);
    let mut config = node_config(10_000);
    config.peers.push(peer_config(0, Some(address_of(0))));
    world.add(10_000, config);
    world.send(1, &packet_v4(10_000, 0, b"last"));
    world.run_for(MOMENT);
    assert_eq!(payloads(&world, 0), [packet_v4(10_000, 0, b"last")]);
    assert_eq!(world.nodes[0].mesh.statistics().peers, 10_000);
}

#[test]
fn secrets_do_not_show_in_a_configuration() {
    let mut config = node_config(0);
    config.peers.push(peer_config(1, None));
    config.peers[0].preshared_key = Some(preshared());
    let shown = format!("{config:?}");
    let secret = format!("{:?}", private_key(0).to_bytes());
    assert!(shown.contains("***") && !shown.contains(&secret));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_and_damaged_datagrams_never_hurt_a_session(
        noise in prop::collection::vec((0..5_u8, prop::collection::vec(any::<u8>(), 0..200)), 1..40),
        damage in prop::collection::vec((0..64_usize, any::<u8>(), 0..100_usize), 1..40),
    ) {
        let mut world = connected();
        world.capture = Some(Vec::new());
        world.send(0, &packet_v4(0, 1, b"template"));
        let template = world.capture.take().unwrap().remove(0).datagram;
        world.run_for(MOMENT);
        for (kind, mut bytes) in noise {
            if let Some(first) = bytes.get_mut(..4) {
                first.copy_from_slice(&[kind, 0, 0, 0]);
            }
            world.inject(address_of(66), 1, &bytes);
        }
        for (at, bit, cut) in damage {
            let mut datagram = template.clone();
            let at = at % datagram.len();
            datagram[at] ^= bit.max(1);
            datagram.truncate(template.len() - cut % template.len());
            world.inject(address_of(66), 1, &datagram);
        }
        world.nodes[1].delivered.clear();
        world.send(0, &packet_v4(0, 1, b"after"));
        world.run_for(MOMENT);
        prop_assert_eq!(payloads(&world, 1), [packet_v4(0, 1, b"after")]);
        prop_assert_eq!(world.peer(1).path.unwrap().remote, address_of(0));
    }

    #[test]
    fn whatever_the_wire_does_nothing_is_delivered_twice_or_changed(
        seed in any::<u64>(), lost in 0..300_u64, duplicated in 0..500_u64, jitter in 0..30_u64,
    ) {
        let mut world = World::pair(seed, still, |_, _| {});
        world.send(0, &packet_v4(0, 1, &[0xff; 2]));
        world.run_for(MOMENT);
        world.nodes[1].delivered.clear();
        world.link = Link {
            delay: Duration::from_millis(1), jitter: Duration::from_millis(jitter), lost, duplicated, ..Link::PERFECT
        };
        let sent: Vec<Vec<u8>> = (0..100_u16).map(|n| packet_v4(0, 1, &n.to_be_bytes())).collect();
        for packet in &sent {
            world.send(0, packet);
        }
        world.run_for(Duration::from_millis(100));
        let mut got = payloads(&world, 1);
        let count = got.len();
        got.sort();
        got.dedup();
        prop_assert_eq!(got.len(), count, "nothing twice");
        prop_assert!(got.iter().all(|packet| sent.contains(packet)));
        if lost == 0 {
            prop_assert_eq!(count, sent.len());
        }
    }
}
