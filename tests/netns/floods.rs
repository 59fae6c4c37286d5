//! Floods of datagrams at the mesh's port while a session carries traffic.

use super::cable;
use super::support::netns::{Cable, Engine, Flood, Iperf, PORT, Side};
use super::support::process::Process;
use super::support::{require, wait_for};

/// Sends 148-byte initiations with random keys and no right MAC, and datagrams of random length and content, for as long as
/// it lives but at most five seconds.
fn flood(cable: &Cable) -> Process {
    let script = format!(
        "import os, socket, time\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         junk = os.urandom(65536)\n\
         end = time.monotonic() + 5\n\
         at = 0\n\
         while time.monotonic() < end:\n    \
             for _ in range(256):\n        \
                 at = (at + 151) % 60000\n        \
                 s.sendto(b'\\x01\\0\\0\\0' + junk[at:at+144], ('192.0.2.2', {PORT}))\n        \
                 s.sendto(b'\\x04\\0\\0\\0' + junk[at:at+at%1400], ('192.0.2.2', {PORT}))\n    \
             time.sleep(0.002)\n"
    );
    Process::start("flood", cable.left.command("python3").args(["-c", &script]))
}

#[test]
fn slow_a_session_goes_on_under_a_flood_of_forged_handshakes_and_junk() {
    let Some(cable) = cable(1500) else { return };
    if !require("python3") {
        return;
    }
    let sides = Side::pair();
    let [left, right] = &sides;
    let _left = Engine::Adit.start(&cable.left, left, right);
    let mut node = Engine::Adit.start(&cable.right, right, left);
    cable.left.wait_for_ping(&right.inner(false));
    let _flood = flood(&cable);
    for reason in ["invalid_mac", "unknown_index"] {
        wait_for(&format!("a drop as {reason}"), || {
            let dropped = cable.right.metric(&format!("adit_mesh_drops_total{{reason=\"{reason}\"}}"));
            (dropped > 0).then_some(())
        });
    }
    let address = right.inner(false).parse().expect("an address");
    let forged = || cable.right.metric("adit_mesh_drops_total{reason=\"invalid_mac\"}");
    let before = forged();
    let report = Iperf::serve(&cable.right).run(&cable.left, address, &["-n", "20M"]);
    assert!(forged() > before, "the flood was over before it could disturb");
    assert!(Iperf::received_mib(&report) >= 10, "{report}");
    assert!(node.process.ended().is_none());
}

#[test]
fn slow_nothing_of_a_session_is_dropped_for_a_flood_of_handshakes_with_a_right_first_mac() {
    let Some(cable) = cable(1500) else { return };
    if !require("python3") {
        return;
    }
    let sides = Side::pair();
    let [left, right] = &sides;
    let _nodes =
        [Engine::Adit.start(&cable.left, left, right), Engine::Adit.start(&cable.right, right, left)];
    // So that cookies to sources that do not exist are sent as any others.
    cable.right.ip(&["route", "add", "default", "via", "192.0.2.1"]);
    cable.left.wait_for_ping(&right.inner(false));
    let address = right.inner(false).parse().expect("an address");
    for kind in ["spoofed", "single"] {
        // A machine without a core to spare drops some by itself; what is dropped for the flood is dropped each time.
        let undisturbed = (0..ATTEMPTS).find(|_| {
            let _flood = Flood::start(&cable.left, kind, PORT, right.public_key(), 20_000);
            let before = cable.right.metric(COOKIES);
            wait_for("the flood to be answered by cookies", || {
                (cable.right.metric(COOKIES) > before + 5000).then_some(())
            });
            let before = cable.right.metric(COOKIES);
            // Datagrams, because TCP would repeat what was dropped.
            let arguments = ["-u", "-b", "20M", "-t", "1", "-w", "2M"];
            let report = Iperf::serve(&cable.right).run(&cable.left, address, &arguments);
            assert!(cable.right.metric(COOKIES) > before, "the flood was over before it could disturb");
            report["end"]["sum"]["lost_packets"] == 0
        });
        assert!(undisturbed.is_some(), "{kind}: datagrams were lost each time");
    }
    // What the engine itself would drop for want of room.
    for reason in ["receive_full", "transmit_full", "staged_full"] {
        assert_eq!(
            cable.right.metric(&format!("adit_mesh_drops_total{{reason=\"{reason}\"}}")),
            0,
            "{reason}"
        );
    }
    let computed = cable.right.metric("adit_mesh_drops_total{reason=\"unknown_peer\"}");
    assert!((1..5000).contains(&computed), "{computed} of these handshakes were computed");
}

const ATTEMPTS: u32 = 4;
const COOKIES: &str = "adit_mesh_drops_total{reason=\"cookie_required\"}";
