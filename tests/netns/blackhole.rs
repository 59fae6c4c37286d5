//! A path that swallows large datagrams without a word.

use super::cable;
use super::support::netns::{Engine, Iperf, Side};
use super::support::wait_for;

#[test]
fn slow_bulk_gets_through_where_large_datagrams_vanish() {
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let node = Engine::Adit.start(&cable.left, left, right);
    let _right = Engine::Adit.start(&cable.right, right, left);
    cable.left.wait_for_ping(&right.inner(false));
    // One datagram at a time on the cable, whose far end takes nothing above 1,400 bytes and says nothing about it.
    for side in [&cable.left, &cable.right] {
        side.ip(&["link", "set", "cable", "gso_max_segs", "1"]);
    }
    cable.right.ip(&["link", "set", "cable", "mtu", "1400"]);
    let large = ["-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1380", &right.inner(false)];
    assert!(!cable.left.run("ping", &large).status.success(), "a packet of the tunnel's MTU got through");
    let address = right.inner(false).parse().expect("an address");
    let report = Iperf::serve(&cable.right).run(&cable.left, address, &["-n", "4M"]);
    let received = Iperf::received_mib(&report);
    assert!(received >= 1, "{received} MiB: {report}");
    // Whoever asks is told now.
    wait_for("the sender of a large packet to be told", || {
        let output = cable.left.run("ping", &large);
        String::from_utf8_lossy(&output.stdout)
            .contains("Frag needed")
            .then_some(())
            .or_else(|| String::from_utf8_lossy(&output.stderr).contains("message too long").then_some(()))
    });
    drop(node);
}
