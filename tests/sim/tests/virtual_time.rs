//! Hours of a mesh in seconds: how many handshakes the engine makes, what it delivers, and how soon it recovers. The numbers
//! of unmodified boringtun in the same situations are in the comments; they are what the engine's counter-measures are for.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, unreachable_pub, dead_code)]

#[path = "../../../crates/adit-mesh-proto/tests/support/world.rs"]
mod world;

use std::time::Duration;

use adit_mesh_proto::{DropReason, Event};
use mock_instant::MockClock;
use world::{Link, World, address_of, packet_v4, strangers};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn pair(seed: u64) -> World {
    World::pair(seed, MockClock::advance, |_, _| {})
}

fn keeping_alive(seed: u64, interval: Duration) -> World {
    World::pair(seed, MockClock::advance, |_, config| config.peers[0].keepalive = Some(interval))
}

/// Connects, and forgets how.
fn connect(world: &mut World) {
    world.send(0, &packet_v4(0, 1, b"hello"));
    world.run_for(SECOND);
    world.send(1, &packet_v4(1, 0, b"hello"));
    world.run_for(SECOND);
    for node in &mut world.nodes {
        assert_eq!(node.delivered.len(), 1);
        node.delivered.clear();
    }
}

fn handshakes(world: &World) -> u64 {
    world.peer(0).statistics.handshakes
}

fn initiations(world: &World) -> usize {
    world.nodes.iter().map(|node| node.initiations).sum()
}

#[test]
fn slow_a_day_with_a_packet_a_second_each_way_loses_nothing_and_rekeys_every_two_minutes() {
    let mut world = pair(1);
    for _ in 0..86_400 {
        world.send(0, &packet_v4(0, 1, b"there"));
        if world.peer(1).path.is_some() {
            world.send(1, &packet_v4(1, 0, b"back"));
        }
        world.run_for(SECOND);
    }
    assert_eq!(world.nodes[1].delivered.len(), 86_400);
    assert_eq!(world.nodes[0].delivered.len(), 86_399);
    let count = handshakes(&world);
    assert!((716..=721).contains(&count), "{count} handshakes, one each 120 s are 720");
    assert_eq!(initiations(&world) as u64, count, "none repeated, none at the same time from both");
}

#[test]
fn an_idle_day_costs_one_handshake_and_then_no_wakeup() {
    let mut world = pair(2);
    connect(&mut world);
    world.run_for(10 * MINUTE);
    assert!(world.nodes.iter().all(|node| node.mesh.poll_timeout().is_none()));
    world.run_for(24 * HOUR);
    assert_eq!(initiations(&world), 1);
    world.send(0, &packet_v4(0, 1, b"morning"));
    world.run_for(SECOND);
    assert_eq!(world.nodes[1].delivered.len(), 1);
}

#[test]
fn slow_an_idle_day_with_keepalives_stays_connected() {
    // boringtun: 433 handshakes, and no session for some 20 s after each has run out.
    let mut world = keeping_alive(3, 25 * SECOND);
    connect(&mut world);
    for _ in 0..8640 {
        world.run_for(10 * SECOND);
        assert!(world.peer(0).connected && world.peer(1).connected);
    }
    let count = handshakes(&world);
    assert!(count <= 721, "{count} handshakes");
    assert_eq!(initiations(&world) as u64, count);
    world.send(0, &packet_v4(0, 1, b"there"));
    world.send(1, &packet_v4(1, 0, b"back"));
    world.run_for(SECOND);
    assert!(world.nodes[0].delivered.len() == 1 && world.nodes[1].delivered.len() == 1);
    assert!(world.peer(0).reachable && world.peer(1).reachable);
}

#[test]
fn a_request_every_half_minute_does_not_look_unanswered() {
    // boringtun: 20 handshakes in ten minutes, one per request (reference, section 1.4 row 2).
    let mut world = pair(4);
    for _ in 0..20 {
        world.send(0, &packet_v4(0, 1, b"request"));
        world.run_for(Duration::from_millis(50));
        world.send(1, &packet_v4(1, 0, b"reply"));
        world.run_for(30 * SECOND);
    }
    assert_eq!(world.nodes[1].delivered.len(), 20);
    let count = handshakes(&world);
    assert!(count <= 5, "{count} handshakes in ten minutes, one each 120 s are 5");
    assert_eq!(initiations(&world) as u64, count);
}

#[test]
fn data_that_is_not_answered_is_acknowledged_by_a_keepalive_after_ten_seconds() {
    // boringtun: the one that got a quick reply stays silent, and its peer takes it for dead after 15 s.
    for pause in [Duration::ZERO, Duration::from_millis(5), 2 * SECOND] {
        let mut world = pair(40);
        connect(&mut world);
        world.run_for(30 * SECOND);
        world.send(0, &packet_v4(0, 1, b"request"));
        world.run_for(Duration::from_millis(2) + pause);
        world.capture = Some(Vec::new());
        world.send(1, &packet_v4(1, 0, b"reply"));
        let replied = world.now;
        world.run_for(14 * SECOND);
        let flights = world.capture.take().unwrap();
        let keepalives: Vec<_> = flights.iter().filter(|flight| flight.datagram.len() == 32).collect();
        assert_eq!(keepalives.len(), 1, "after a pause of {pause:?}");
        assert_eq!(keepalives[0].from, address_of(0));
        let after = keepalives[0].arrives - replied;
        // boringtun counts from what was sent last, on a clock a second late; only too late would do harm.
        assert!((6 * SECOND..12 * SECOND).contains(&after), "{after:?}");
    }
}

#[test]
fn data_in_one_direction_only_rekeys_every_two_minutes() {
    for sender in [0, 1] {
        let mut world = pair(5);
        connect(&mut world);
        for _ in 0..6000 {
            world.send(sender, &packet_v4(sender, 1 - sender, b"stream"));
            world.run_for(SECOND / 10);
        }
        assert_eq!(world.nodes[1 - sender].delivered.len(), 6000);
        let count = initiations(&world);
        assert!(count <= 6, "{count} initiations in ten minutes when node {sender} sends");
    }
}

#[test]
fn a_dead_peer_is_tried_for_90_seconds_with_jitter_and_then_given_up() {
    let mut world = pair(6);
    world.nodes[1].up = false;
    world.capture = Some(Vec::new());
    world.send(0, &packet_v4(0, 1, b"anybody"));
    world.run_for(10 * MINUTE);
    let sent: Vec<_> = world.capture.take().unwrap().into_iter().map(|flight| flight.arrives).collect();
    assert!((17..=18).contains(&sent.len()), "{} initiations", sent.len());
    let gaps: Vec<Duration> = sent.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (5 * SECOND..=Duration::from_millis(5340)).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "no two peers stay in step");
    assert_eq!(world.drops(0, DropReason::HandshakeFailed), 1);
    let events = &world.nodes[0].events;
    assert!(events.iter().any(|event| matches!(event, Event::Reachability { reachable: false, .. })));
    assert!(events.iter().any(|event| matches!(event, Event::SessionExpired { .. })));
    assert!(!world.peer(0).reachable);

    world.nodes[1].up = true;
    world.send(0, &packet_v4(0, 1, b"again"));
    world.run_for(SECOND);
    assert_eq!(world.nodes[1].delivered.len(), 1);
    assert!(world.peer(0).reachable);
}

#[test]
fn after_an_outage_packets_pass_again_within_seconds() {
    for outage in [1, 10, 60, 100, 170, 200, 600, 3600] {
        let mut world = pair(100 + outage);
        connect(&mut world);
        world.link.lost = 1000;
        for _ in 0..outage {
            world.send(0, &packet_v4(0, 1, b"lost"));
            world.send(1, &packet_v4(1, 0, b"lost"));
            world.run_for(SECOND);
        }
        world.link.lost = 0;
        // What waited for a handshake arrives as well; only what is new counts.
        let mut waited = 0;
        let fresh =
            |world: &World, node: usize| world.nodes[node].delivered.iter().any(|(_, p)| p.ends_with(b"new"));
        while !(fresh(&world, 0) && fresh(&world, 1)) {
            world.send(0, &packet_v4(0, 1, b"new"));
            world.send(1, &packet_v4(1, 0, b"new"));
            world.run_for(SECOND / 10);
            waited += 1;
            assert!(waited <= 60, "not back 6 s after an outage of {outage} s");
        }
    }
}

#[test]
fn slow_loss_reordering_and_duplication_over_many_rekeys_cost_no_packet_of_their_own() {
    let mut world = pair(7);
    connect(&mut world);
    world.link = Link {
        delay: Duration::from_millis(10),
        jitter: Duration::from_millis(5),
        lost: 50,
        duplicated: 50,
        ..Link::PERFECT
    };
    let sent = 40_000_u32;
    for number in 0..sent {
        world.send(0, &packet_v4(0, 1, &number.to_be_bytes()));
        world.send(1, &packet_v4(1, 0, &number.to_be_bytes()));
        world.run_for(SECOND);
    }
    for node in &mut world.nodes {
        let count = node.delivered.len();
        node.delivered.sort();
        node.delivered.dedup();
        assert_eq!(node.delivered.len(), count, "nothing twice");
        // A copy is lost with 5 %; 5 % have a second copy: 4.76 % are expected to be missing.
        let missing = 1.0 - count as f64 / f64::from(sent);
        assert!((0.04..0.055).contains(&missing), "{missing} missing");
    }
    let count = handshakes(&world);
    // 333 without loss; a lost message of a handshake costs 5 s, not another handshake.
    assert!((310..=370).contains(&count), "{count} handshakes");
}

#[test]
fn a_peer_whose_address_changes_every_five_minutes_is_never_lost() {
    let mut world = keeping_alive(8, 10 * SECOND);
    connect(&mut world);
    for number in 0..100 {
        world.nodes[0].address = address_of(100 + number);
        world.run_for(15 * SECOND);
        world.nodes[1].delivered.clear();
        world.nodes[0].delivered.clear();
        world.send(1, &packet_v4(1, 0, b"found"));
        world.run_for(5 * MINUTE);
        assert_eq!(world.nodes[0].delivered.len(), 1, "after move {number}");
    }
}

#[test]
fn slow_round_trip_and_loss_of_a_path_in_use_are_measured() {
    let mut world = pair(10);
    connect(&mut world);
    world.link.delay = Duration::from_millis(40);
    for number in 0..600 {
        world.link.lost = if number < 300 { 0 } else { 200 };
        for _ in 0..10 {
            world.send(0, &packet_v4(0, 1, b"load"));
            world.run_for(SECOND / 10);
        }
        if number == 290 {
            let peer = world.peer(0);
            assert!(peer.probed && peer.sent_loss.is_some_and(|loss| loss < 0.01), "{:?}", peer.sent_loss);
            assert!((78..90).contains(&peer.latency.unwrap().as_millis()), "{:?}", peer.latency);
        }
    }
    let lost = world.peer(0).sent_loss.unwrap();
    assert!((0.1..0.3).contains(&lost), "{lost} measured of 0.2");
    assert!((0.1..0.3).contains(&world.peer(1).loss), "{} measured of 0.2", world.peer(1).loss);
}

#[test]
fn slow_a_path_that_swallows_large_packets_is_found_out_and_its_recovery_too() {
    let mut world = pair(11);
    connect(&mut world);
    world.link.longest = 1376 + 32;
    let largest = packet_v4(0, 1, &[7; 1380]);
    let mut waited = 0;
    while world.peer(0).path_mtu.is_none() {
        world.send(0, &largest);
        world.run_for(SECOND);
        waited += 1;
        assert!(waited < 90, "not found out in 90 s");
    }
    assert_eq!(world.peer(0).path_mtu, Some(1376));
    // From now on the sender is told.
    world.nodes[0].delivered.clear();
    world.send(0, &largest);
    let error = &world.nodes[0].delivered.last().unwrap().1;
    assert_eq!((error[9], error[20], error[21]), (1, 3, 4), "ICMP: fragmentation needed");
    assert_eq!(error[26..28], 1376_u16.to_be_bytes());
    assert_eq!(world.drops(0, DropReason::TooBig), 1);

    world.link.longest = 65_535;
    for _ in 0..700 {
        world.send(0, &packet_v4(0, 1, b"in use"));
        world.run_for(SECOND);
    }
    assert_eq!(world.peer(0).path_mtu, None);
    assert!(world.nodes[0].events.contains(&Event::PathMtu { peer: world.peer(0).id, mtu: None }));
}

#[test]
fn an_outage_is_not_taken_for_a_small_mtu() {
    let mut world = pair(12);
    connect(&mut world);
    for second in 0..600 {
        world.link.lost = if second % 60 < 40 { 1000 } else { 0 };
        world.send(0, &packet_v4(0, 1, b"in use"));
        world.run_for(SECOND);
        assert_eq!(world.peer(0).path_mtu, None, "second {second}");
    }
}

#[test]
fn a_suspended_node_is_back_with_its_first_packet() {
    let mut world = pair(13);
    connect(&mut world);
    // Its clock stood still for it, but not for boringtun's (boot time), nor for the peer.
    for pause in [MINUTE, 5 * MINUTE, 24 * HOUR] {
        world.nodes[0].up = false;
        MockClock::advance(pause);
        world.now += pause;
        world.nodes[0].up = true;
        world.run_for(SECOND);
        world.nodes[1].delivered.clear();
        world.send(0, &packet_v4(0, 1, b"awake"));
        world.run_for(6 * SECOND);
        assert_eq!(world.nodes[1].delivered.len(), 1, "after {pause:?}");
    }
}

#[test]
fn a_peer_behind_the_address_of_a_flooder_proves_itself_by_the_cookie() {
    let mut world = pair(14);
    let flood = strangers(30, 64);
    let mut sent = 0;
    // From the peer's own address, as fast as to keep its network's budget empty.
    let mut burst = |world: &mut World| {
        for _ in 0..32 {
            world.inject(address_of(66), 1, &flood[sent % flood.len()]);
            sent += 1;
        }
    };
    burst(&mut world);
    world.send(0, &packet_v4(0, 1, b"let me in"));
    for _ in 0..60 {
        burst(&mut world);
        world.run_for(SECOND / 10);
    }
    assert_eq!(world.nodes[1].delivered.len(), 1);
    assert_eq!(world.nodes[0].initiations, 2, "one answered by a cookie, one with it");
    let statistics = world.nodes[1].mesh.statistics();
    assert!(statistics.handshakes_computed < 16 + 70, "{} computed", statistics.handshakes_computed);
    assert!(statistics.cookies > 1000);
}

#[test]
fn a_peer_that_went_home_without_a_word_is_found_there() {
    let mut world = keeping_alive(15, 25 * SECOND);
    connect(&mut world);
    let home = world.nodes[1].address;
    world.nodes[1].address = address_of(70);
    world.send(1, &packet_v4(1, 0, b"from elsewhere"));
    world.run_for(MINUTE);
    assert_eq!(world.peer(0).path.unwrap().remote, address_of(70));
    // Back where it was configured to be, restarted, and waiting to be called.
    world.nodes[1].address = home;
    let mut config = world::node_config(1);
    config.peers.push(world::peer_config(0, None));
    world.nodes[1].mesh = adit_mesh_proto::Mesh::new(config, [5; 32], world.now);
    world.run_for(5 * MINUTE);
    assert!(world.peer(0).connected && world.peer(0).reachable);
    assert_eq!(world.peer(0).path.unwrap().remote, home);
}

#[test]
fn two_peers_that_both_know_and_both_begin_agree() {
    let mut world = World::pair(9, MockClock::advance, |number, config| {
        config.peers[0].endpoint = Some(address_of(1 - number));
    });
    for hour in 0..24 {
        world.send(0, &packet_v4(0, 1, b"both"));
        world.send(1, &packet_v4(1, 0, b"both"));
        world.run_for(10 * SECOND);
        assert_eq!(world.nodes[0].delivered.len(), 1, "hour {hour}");
        assert_eq!(world.nodes[1].delivered.len(), 1, "hour {hour}");
        world.nodes.iter_mut().for_each(|node| node.delivered.clear());
        world.run_for(HOUR);
    }
    assert!(initiations(&world) <= 24 * 4, "{} initiations", initiations(&world));
}

#[test]
fn slow_random_lives_of_two_peers_always_end_connected() {
    for seed in 1..60_u64 {
        let mut world = World::pair(seed, MockClock::advance, |number, config| {
            config.peers[0].endpoint = Some(address_of(1 - number));
            config.peers[0].keepalive = (seed % 3 == 0).then_some(25 * SECOND);
        });
        for _ in 0..60 {
            match world.draw() % 8 {
                0 => world.link.lost = world.draw() % 400,
                1 => world.link.jitter = Duration::from_millis(world.draw() % 500),
                2 => world.link.duplicated = world.draw() % 300,
                3 => world.link.lost = 1000,
                4 => world.link = Link::PERFECT,
                5 => {
                    let number = 200 + usize::try_from(world.draw() % 50).unwrap();
                    world.nodes[0].address = address_of(number);
                }
                _ => {}
            }
            let from = usize::try_from(world.draw() % 2).unwrap();
            for _ in 0..world.draw() % 20 {
                world.send(from, &packet_v4(from, 1 - from, b"life"));
                let pause = Duration::from_millis(world.draw() % 3000);
                world.run_for(pause);
            }
            let pause = SECOND * u32::try_from(world.draw() % 300).unwrap();
            world.run_for(pause);
        }
        world.link = Link::PERFECT;
        // The one that moved speaks first, or nobody could know where it is.
        for _ in 0..60 {
            world.send(0, &packet_v4(0, 1, b"end"));
            world.send(1, &packet_v4(1, 0, b"end"));
            world.run_for(SECOND);
        }
        for node in &mut world.nodes {
            node.delivered.clear();
        }
        world.send(0, &packet_v4(0, 1, b"after"));
        world.send(1, &packet_v4(1, 0, b"after"));
        world.run_for(SECOND);
        let counts: Vec<usize> = world.nodes.iter().map(|node| node.delivered.len()).collect();
        assert_eq!(counts, [1, 1], "seed {seed}");
    }
}
