//! Paths that change, lose, shrink and break.

use super::support::netns::{Cable, Engine, Iperf, Side};
use super::support::process::Process;
use super::support::wait_for;
use super::{cable, stock};

/// 8 MiB from left to right; fails if they do not arrive.
#[track_caller]
fn transfers(cable: &Cable, right: &Side) {
    let address = right.inner(false).parse().expect("an address");
    let report = Iperf::serve(&cable.right).run(&cable.left, address, &["-n", "8M"]);
    let received = Iperf::received_mib(&report);
    assert!(received >= 2, "{received} MiB: {report}");
}

#[test]
fn a_peer_that_roams_is_followed() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    let mut sides = Side::pair();
    sides[0].dials = false;
    let [left, right] = &sides;
    let _left = Engine::Adit.start(&cable.left, left, right);
    let node = peer.start(&cable.right, right, left);
    cable.right.wait_for_ping(&left.inner(false));
    // Another address and another port, in the middle of a session.
    cable.right.ip(&["addr", "del", "192.0.2.2/24", "dev", "cable"]);
    cable.right.ip(&["addr", "add", "192.0.2.77/24", "dev", "cable"]);
    assert!(cable.right.run("wg", &["set", &node.interface, "listen-port", "4242"]).status.success());
    cable.right.wait_for_ping(&left.inner(false));
    cable.left.wait_for_ping(&right.inner(false));
}

#[test]
fn a_cable_narrower_than_the_tunnel_still_carries_bulk() {
    let Some(cable) = cable(1280) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let _nodes =
        [Engine::Adit.start(&cable.left, left, right), Engine::Adit.start(&cable.right, right, left)];
    cable.left.wait_for_ping(&right.inner(false));
    transfers(&cable, right);
}

#[test]
fn loss_slows_but_does_not_break() {
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let _nodes =
        [Engine::Adit.start(&cable.left, left, right), Engine::Adit.start(&cable.right, right, left)];
    cable.left.wait_for_ping(&right.inner(false));
    cable.right.filter("input", &["meta l4proto udp numgen random mod 100 < 2 drop"]);
    cable.left.filter("input", &["meta l4proto udp numgen random mod 100 < 2 drop"]);
    transfers(&cable, right);
}

#[test]
fn slow_packets_from_outside_the_allowed_ips_are_dropped() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let _left = Engine::Adit.start(&cable.left, left, right);
    let node = peer.start(&cable.right, right, left);
    cable.right.wait_for_ping(&left.inner(false));
    cable.right.ip(&["addr", "add", "10.9.0.99/32", "dev", &node.interface]);
    let forged = ["-n", "-c", "2", "-W", "1", "-I", "10.9.0.99", &left.inner(false)];
    assert!(!cable.right.run("ping", &forged).status.success(), "a forged source was answered");
    assert!(cable.right.pings(&left.inner(false)));
}

#[test]
fn slow_an_outage_ends_when_the_cable_is_back() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let _left = Engine::Adit.start(&cable.left, left, right);
    let _right = peer.start(&cable.right, right, left);
    cable.left.wait_for_ping(&right.inner(false));
    cable.right.ip(&["link", "set", "cable", "down"]);
    assert!(!cable.left.pings(&right.inner(false)));
    cable.right.ip(&["link", "set", "cable", "up"]);
    cable.left.wait_for_ping(&right.inner(false));
}

#[test]
fn stopping_takes_the_interface_away() {
    let Some(cable) = cable(1500) else { return };
    let [left, right] = Side::pair();
    let mut node = Engine::Adit.start(&cable.left, &left, &right);
    node.process.signal("TERM");
    assert!(node.process.wait().success());
    wait_for("the interface to vanish", || {
        let output = cable.left.run("ip", &["link", "show", "dev", &node.interface]);
        (!output.status.success()).then_some(())
    });
}

#[test]
fn slow_trains_that_the_path_swallows_are_noticed_and_given_up() {
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let mut node = Engine::Adit.start(&cable.left, left, right);
    let _right = Engine::Adit.start(&cable.right, right, left);
    cable.left.wait_for_ping(&right.inner(false));
    // What a network card with broken segmentation does: several datagrams at once vanish, one alone does not.
    cable.right.filter("input", &["meta l4proto udp meta length > 2000 drop"]);
    let _server = Iperf::serve(&cable.right);
    let mut client = cable.left.command("iperf3");
    let _client = Process::start("iperf3", client.args(["-c", &right.inner(false), "-t", "60"]));
    node.process.wait_for_line("trains get lost on this path");
    let steps = cable.left.metric("adit_mesh_io_total{kind=\"train_steps_down\"}");
    assert_eq!(steps, 1);
}
