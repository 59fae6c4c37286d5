//! More than one lane between two adit nodes.

use super::support::netns::{ADMIN, Cable, Iperf, Namespace, Node, Side};
use super::support::wait_for;
use super::{cable, stock};

/// adit with so many lanes.
fn start(namespace: &Namespace, sides: [&Side; 2], lanes: usize) -> Node {
    Node::adit(namespace, sides, |interface| {
        format!(
            "mesh: {{ interface: {interface}, import: wg.conf, lanes: {lanes} }}\n\
             admin: {{ address: \"{ADMIN}\" }}\nlog: {{ level: DEBUG }}\n"
        )
    })
}

/// Waits until so many lanes to the only peer are up.
#[track_caller]
fn wait_for_lanes(namespace: &Namespace, lanes: u64, to: &str) {
    wait_for(&format!("{lanes} lanes to be up"), || {
        // Only a session in use is looked after.
        namespace.pings(to);
        (namespace.metric("adit_mesh_peer_lanes{") == lanes).then_some(())
    });
}

fn sent(namespace: &Namespace, lane: usize) -> u64 {
    namespace.metric(&format!("adit_mesh_lane_datagrams_total{{direction=\"sent\",lane=\"{lane}\"}}"))
}

#[track_caller]
fn transfers(cable: &Cable, right: &Side, arguments: &[&str]) {
    let address = right.inner(false).parse().expect("an address");
    let report = Iperf::serve(&cable.right).run(&cable.left, address, arguments);
    let received = Iperf::received_mib(&report);
    assert!(received >= 4, "{received} MiB: {}", report["end"]["sum_sent"]);
}

#[test]
fn streams_between_two_adits_spread_over_their_lanes() {
    let Some(cable) = cable(1500) else { return };
    let mut sides = Side::pair();
    Side::share_secret(&mut sides);
    // Only one knows where the other is, as behind a NAT.
    sides[1].dials = false;
    let [left, right] = &sides;
    let _nodes = [start(&cable.left, [left, right], 3), start(&cable.right, [right, left], 2)];
    wait_for_lanes(&cable.left, 2, &right.inner(false));
    wait_for_lanes(&cable.right, 2, &left.inner(false));
    // Sixteen streams all take the same of two lanes once in 30,000 runs.
    transfers(&cable, right, &["-P", "16", "-n", "32M"]);
    for side in [&cable.left, &cable.right] {
        for lane in 0..2 {
            assert!(
                sent(side, lane) > 1000 / if std::ptr::eq(side, &cable.left) { 1 } else { 20 },
                "lane {lane}"
            );
        }
        for reason in ["device_refused", "invalid_data", "source_not_allowed", "lane_full"] {
            assert_eq!(side.metric(&format!("adit_mesh_drops_total{{reason=\"{reason}\"}}")), 0, "{reason}");
        }
    }
    // Whichever lane a flow takes, its packets stay in order.
    let address = right.inner(false).parse().expect("an address");
    let arguments = ["-u", "-b", "20M", "-t", "1", "-w", "2M"];
    let report = Iperf::serve(&cable.right).run(&cable.left, address, &arguments);
    let end = &report["end"];
    assert_eq!(end["sum"]["lost_packets"], 0, "{report}");
    assert_eq!(end["streams"][0]["udp"]["out_of_order"], 0, "{report}");
}

#[test]
fn slow_lanes_come_and_go_with_the_peer() {
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let _left = start(&cable.left, [left, right], 3);
    for lanes in [2, 1, 4] {
        let node = start(&cable.right, [right, left], lanes);
        // The restarted side speaks first: its peer's session is with one that is no more.
        cable.right.wait_for_ping(&left.inner(false));
        wait_for_lanes(&cable.left, lanes.min(3) as u64, &right.inner(false));
        transfers(&cable, right, &["-P", "8", "-n", "32M"]);
        drop(node);
    }
}

#[test]
fn a_lane_that_a_firewall_stops_is_not_taken() {
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    cable.right.filter("input", &["udp dport 51821 drop"]);
    cable.left.filter("input", &["udp dport 51821 drop"]);
    let _nodes = [start(&cable.left, [left, right], 3), start(&cable.right, [right, left], 3)];
    // Lane 2 comes up, lane 1 does not.
    wait_for_lanes(&cable.left, 2, &right.inner(false));
    // A third of the flows is lane 2's: of 32, none is in one of 400,000 runs.
    transfers(&cable, right, &["-P", "32", "-n", "64M"]);
    assert!(sent(&cable.left, 2) > 300);
}

#[test]
fn a_stock_peer_stays_on_the_first_lane() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let _left = start(&cable.left, [left, right], 2);
    let _right = peer.start(&cable.right, right, left);
    cable.left.wait_for_ping(&right.inner(false));
    transfers(&cable, right, &["-P", "8", "-n", "32M"]);
    assert_eq!(sent(&cable.left, 1), 0);
    assert_eq!(cable.left.metric("adit_mesh_peer_lanes{"), 1);
}

#[test]
fn a_policy_knows_flows_whichever_lane_they_take() {
    let Some(cable) = cable(1500) else { return };
    let sides = Side::pair();
    let [left, right] = &sides;
    let strict = |namespace: &Namespace, sides: [&Side; 2]| {
        Node::adit(namespace, sides, |interface| {
            // What this node begins may always go, and only its answers may come; pings for the test's own sake.
            format!(
                "mesh:\n  interface: {interface}\n  import: wg.conf\n  lanes: 4\n  \
                 policy: {{ allow: [{{ from: any, to: self, protocol: icmp }}] }}\n\
                 admin: {{ address: \"{ADMIN}\" }}\nlog: {{ level: DEBUG }}\n"
            )
        })
    };
    let _left = strict(&cable.left, [left, right]);
    let _right = start(&cable.right, [right, left], 4);
    wait_for_lanes(&cable.left, 4, &right.inner(false));
    wait_for_lanes(&cable.right, 4, &left.inner(false));
    transfers(&cable, right, &["-P", "8", "-n", "32M"]);
    assert!((0..4).filter(|lane| sent(&cable.left, *lane) > 100).count() > 1);
    // The other way round nothing may begin, on any lane.
    let _server = Iperf::serve(&cable.left);
    let refused = ["-c", &left.inner(false), "--connect-timeout", "1000", "-n", "1K"];
    assert!(!cable.right.run("iperf3", &refused).status.success());
    assert!(cable.left.metric("adit_mesh_drops_total{reason=\"policy\"}") > 0);
}

#[test]
fn all_lanes_follow_a_peer_that_roams() {
    let Some(cable) = cable(1500) else { return };
    let mut sides = Side::pair();
    sides[0].dials = false;
    let [left, right] = &sides;
    let _nodes = [start(&cable.left, [left, right], 3), start(&cable.right, [right, left], 3)];
    cable.right.wait_for_ping(&left.inner(false));
    wait_for_lanes(&cable.left, 3, &right.inner(false));
    for (v6, from, to) in [(false, "192.0.2.2/24", "192.0.2.77/24"), (true, "192.0.2.77/24", "192.0.2.78/24")]
    {
        cable.right.ip(&["addr", "del", from, "dev", "cable"]);
        cable.right.ip(&["addr", "add", to, "dev", "cable"]);
        // A packet on one lane, whichever it is, tells where the peer is on all.
        cable.right.wait_for_ping(&left.inner(v6));
        let before = [0, 1, 2].map(|lane| sent(&cable.left, lane));
        transfers(&cable, right, &["-P", "16", "-n", "32M"]);
        for (lane, before) in before.into_iter().enumerate() {
            assert!(sent(&cable.left, lane) > before + 500, "lane {lane}");
        }
    }
}
