//! adit beside stock peers: both roles, both IP versions inside and outside, preshared keys.

use super::support::netns::{Cable, Engine, Iperf, Node, Side};
use super::support::note;
use super::{cable, stock};

/// adit on the left, `peer` on the right.
fn join(cable: &Cable, peer: &Engine, sides: &[Side; 2]) -> [Node; 2] {
    let [left, right] = sides;
    [Engine::Adit.start(&cable.left, left, right), peer.start(&cable.right, right, left)]
}

/// Nobody packages these: they may be absent, even where all peers are required.
fn unpackaged(peer: Option<Engine>, name: &str, variable: &str) -> Option<Engine> {
    if peer.is_none() {
        note(&format!("skipped: {name} is neither on PATH nor in {variable}"));
    }
    peer
}

/// Pings both ways over both IP versions, then bulk in both directions.
fn carries(cable: &Cable, [left, right]: &[Side; 2]) {
    for v6 in [false, true] {
        cable.left.wait_for_ping(&right.inner(v6));
        cable.right.wait_for_ping(&left.inner(v6));
    }
    for (v6, arguments) in [(false, &["-n", "20M"][..]), (true, &["-n", "20M", "-R"])] {
        let address = right.inner(v6).parse().expect("an address");
        let report = Iperf::serve(&cable.right).run(&cable.left, address, arguments);
        let received = Iperf::received_mib(&report);
        assert!(received >= 10, "{received} MiB of 20: {report}");
    }
}

#[test]
fn adit_and_wireguard_go_carry_traffic_over_ipv4_with_a_preshared_key() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    let mut sides = Side::pair();
    Side::share_secret(&mut sides);
    let _nodes = join(&cable, &peer, &sides);
    carries(&cable, &sides);
}

#[test]
fn adit_and_wireguard_go_carry_traffic_over_ipv6() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    let mut sides = Side::pair();
    sides.iter_mut().for_each(|side| side.over_v6 = true);
    let _nodes = join(&cable, &peer, &sides);
    carries(&cable, &sides);
}

#[test]
fn adit_and_boringtun_carry_traffic() {
    let Some(peer) = unpackaged(Engine::boringtun(), "boringtun-cli", "BORINGTUN") else { return };
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let _nodes = join(&cable, &peer, &sides);
    carries(&cable, &sides);
}

#[test]
fn adit_and_gotatun_carry_traffic() {
    let Some(peer) = unpackaged(Engine::gotatun(), "gotatun", "GOTATUN") else { return };
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let _nodes = join(&cable, &peer, &sides);
    carries(&cable, &sides);
}

#[test]
fn two_adits_carry_traffic() {
    let Some(cable) = cable(1500) else { return };
    let mut sides = Side::pair();
    Side::share_secret(&mut sides);
    let _nodes = join(&cable, &Engine::Adit, &sides);
    carries(&cable, &sides);
    let address = sides[1].inner(false).parse().expect("an address");
    let report = Iperf::serve(&cable.right).run(&cable.left, address, &["-P", "4", "-n", "20M"]);
    assert!(Iperf::received_mib(&report) >= 10, "{report}");
    // 20 Mbit/s of datagrams must arrive whole; the window keeps iperf3's own socket from dropping them on a busy machine.
    let arguments = ["-u", "-b", "20M", "-t", "1", "-w", "2M"];
    let report = Iperf::serve(&cable.right).run(&cable.left, address, &arguments);
    assert_eq!(report["end"]["sum"]["lost_packets"], 0, "{report}");
    // Whatever was merged for the kernel, the kernel took.
    for side in [&cable.left, &cable.right] {
        assert!(side.metric("adit_mesh_io_total{kind=\"trains\"}") > 0);
        assert_eq!(side.metric("adit_mesh_io_total{kind=\"device_steps_down\"}"), 0);
        assert_eq!(side.metric("adit_mesh_drops_total{reason=\"device_refused\"}"), 0);
        assert_eq!(side.metric("adit_mesh_drops_total{reason=\"invalid_data\"}"), 0);
    }
}

#[test]
fn only_the_side_that_knows_the_other_dials() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    for dialler in [0, 1] {
        let mut sides = Side::pair();
        sides[1 - dialler].dials = false;
        let _nodes = join(&cable, &peer, &sides);
        let (from, to) = if dialler == 0 { (&cable.left, &sides[1]) } else { (&cable.right, &sides[0]) };
        from.wait_for_ping(&to.inner(false));
    }
}

#[test]
fn a_peer_that_restarts_is_heard_again() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    let sides = Side::pair();
    let [_left, right] = join(&cable, &peer, &sides);
    cable.left.wait_for_ping(&sides[1].inner(false));
    drop(right);
    let _right = peer.start(&cable.right, &sides[1], &sides[0]);
    // The restarted side has no session: the first packet of ours is lost on it, its own starts a handshake.
    cable.right.wait_for_ping(&sides[0].inner(false));
    cable.left.wait_for_ping(&sides[1].inner(false));
}

#[test]
fn slow_a_peer_with_another_key_gets_nothing() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    let sides = Side::pair();
    let [_, stranger] = Side::pair();
    let _left = Engine::Adit.start(&cable.left, &sides[0], &sides[1]);
    let _right = peer.start(&cable.right, &stranger, &sides[0]);
    for _ in 0..3 {
        assert!(!cable.right.pings(&sides[0].inner(false)), "a stranger was answered");
    }
}
