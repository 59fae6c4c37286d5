//! The node itself moves: its own address changes in the middle of a session.

use super::cable;
use super::stock;
use super::support::netns::{Engine, Side};

#[test]
fn a_node_whose_own_address_changes_goes_on() {
    let (Some(cable), Some(peer)) = (cable(1500), stock()) else { return };
    for peer in [peer, Engine::Adit] {
        let mut sides = Side::pair();
        sides[1].dials = false;
        let [left, right] = &sides;
        let _left = Engine::Adit.start(&cable.left, left, right);
        let _right = peer.start(&cable.right, right, left);
        cable.left.wait_for_ping(&right.inner(false));
        // The datagrams so far named 192.0.2.1 as their source, which is gone now.
        cable.left.ip(&["addr", "add", "192.0.2.66/24", "dev", "cable"]);
        cable.left.ip(&["addr", "del", "192.0.2.1/24", "dev", "cable"]);
        cable.left.ip(&["addr", "replace", "192.0.2.66/24", "dev", "cable"]);
        cable.left.wait_for_ping(&right.inner(false));
        cable.right.wait_for_ping(&left.inner(false));
        cable.left.ip(&["addr", "add", "192.0.2.1/24", "dev", "cable"]);
        cable.left.ip(&["addr", "del", "192.0.2.66/24", "dev", "cable"]);
        cable.left.ip(&["addr", "replace", "192.0.2.1/24", "dev", "cable"]);
    }
}
