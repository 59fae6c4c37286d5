//! Networks behind nodes: routed both ways, judged by policy, large packets told their size.

use super::cable;
use super::support::netns::{ADMIN, Cable, Namespace, Node, Side};
use super::support::wait_for;

/// Two adits with a network behind each.
struct Sites {
    cable: Cable,
    sides: [Side; 2],
    nodes: [Node; 2],
}

impl Sites {
    /// `policies` of the left and the right one.
    fn start(policies: [&str; 2]) -> Option<Self> {
        let cable = cable(1500)?;
        let sides = Side::pair();
        for (side, number) in [(&cable.left, 1), (&cable.right, 2)] {
            side.ip(&["link", "add", "lan", "type", "veth", "peer", "name", "lan-end"]);
            side.ip(&["addr", "add", &format!("192.168.{number}.1/24"), "dev", "lan"]);
            side.ip(&["addr", "add", &format!("fd00:{number}::1/64"), "dev", "lan", "nodad"]);
            ["lan", "lan-end"].iter().for_each(|link| side.ip(&["link", "set", link, "up"]));
        }
        let nodes = [0, 1].map(|index| {
            let namespace = if index == 0 { &cable.left } else { &cable.right };
            Node::adit(namespace, [&sides[index], &sides[1 - index]], |interface| {
                configuration(interface, index, &sides[1 - index], policies[index])
            })
        });
        Some(Self { cable, sides, nodes })
    }

    fn reconfigure_left(&self, policy: &str) {
        self.nodes[0].reconfigure(&configuration(&self.nodes[0].interface, 0, &self.sides[1], policy));
    }
}

fn configuration(interface: &str, index: usize, other: &Side, policy: &str) -> String {
    let (own, behind) = (index + 1, 2 - index);
    let key = other.public_key();
    format!(
        "admin: {{ address: \"{ADMIN}\" }}\nmesh:\n  interface: {interface}\n  import: wg.conf\n  \
         advertise: [192.168.{own}.0/24, \"fd00:{own}::/64\"]\n  peers:\n    other:\n      public-key: \"{key}\"\n      \
         groups: [sites]\n      accept: [192.168.{behind}.0/24, \"fd00:{behind}::/64\"]\n  networks:\n    \
         here: {{ interface: lan }}\n{policy}"
    )
}

/// Whether a ping from one address to another comes back.
fn pings(namespace: &Namespace, from: &str, to: &str, more: &[&str]) -> bool {
    let arguments = [&["-n", "-c", "1", "-W", "1", "-I", from][..], more, &[to]].concat();
    namespace.run("ping", &arguments).status.success()
}

#[track_caller]
fn wait_for_ping(namespace: &Namespace, from: &str, to: &str) {
    wait_for(&format!("{to} to answer {from}"), || pings(namespace, from, to, &[]).then_some(()));
}

#[test]
fn networks_behind_two_nodes_reach_each_other() {
    let Some(sites) = Sites::start(["", ""]) else { return };
    wait_for_ping(&sites.cable.left, "192.168.1.1", "192.168.2.1");
    wait_for_ping(&sites.cable.right, "fd00:2::1", "fd00:1::1");
    // Larger than the tunnel: in fragments, which are joined again on the other side.
    assert!(pings(&sites.cable.left, "192.168.1.1", "192.168.2.1", &["-s", "4000"]));
    // A network that nobody accepted is no source: dropped where it arrives.
    sites.cable.left.ip(&["addr", "add", "192.168.99.1/32", "dev", "lan"]);
    assert!(!pings(&sites.cable.left, "192.168.99.1", "192.168.2.1", &[]));
    let shown = sites.cable.right.run(env!("CARGO_BIN_EXE_adit"), &["mesh", "show"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("source_not_allowed"), "{shown}");
}

#[test]
fn rules_name_networks_by_interface_and_let_answers_back() {
    let one_way = "  policy: { allow: [ { from: here, to: sites, protocol: icmp } ] }\n";
    let Some(sites) = Sites::start([one_way, ""]) else { return };
    wait_for_ping(&sites.cable.left, "192.168.1.1", "192.168.2.1");
    wait_for_ping(&sites.cable.left, "fd00:1::1", "fd00:2::1");
    // The other way nothing is allowed. What a node itself begins may always go.
    assert!(!pings(&sites.cable.right, "192.168.2.1", "192.168.1.1", &[]));
    assert!(pings(&sites.cable.left, "10.9.0.1", "192.168.2.1", &[]));
    sites.reconfigure_left("  policy: { allow: [ { from: [here, sites], to: any } ] }\n");
    wait_for_ping(&sites.cable.right, "192.168.2.1", "192.168.1.1");
}
