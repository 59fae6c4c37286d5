//! Default routes into the mesh: a table of their own that all but the mesh's datagrams look into.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::socket::RouteSocket;
use super::{InterfaceError, family, route_message};

/// Which IP versions leave through the mesh, and by which mark its own datagrams are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Mark of the mesh's datagrams, and number of the routing table.
    pub mark: u32,
    /// IPv4 leaves.
    pub v4: bool,
    /// IPv6 leaves.
    pub v6: bool,
}

/// Sets or removes routes and rules of `exit`.
pub(super) fn set(socket: &RouteSocket, index: u32, exit: Exit, add: bool) -> Result<(), InterfaceError> {
    let refused = |source| InterfaceError::Refused {
        what: format!("{} the default route into the interface", if add { "set" } else { "remove" }),
        source,
    };
    let any: [(bool, IpAddr); 2] =
        [(exit.v4, Ipv4Addr::UNSPECIFIED.into()), (exit.v6, Ipv6Addr::UNSPECIFIED.into())];
    for (_, address) in any.into_iter().filter(|(wanted, _)| *wanted) {
        if add {
            let route = IpNet::new_assert(address, 0);
            let message = RouteNetlinkMessage::NewRoute(route_message(route, index, Some(exit.mark)));
            socket.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map_err(refused)?;
        }
        for rule in rules(address, exit.mark) {
            rule_request(socket, rule, add).map_err(refused)?;
        }
    }
    if add && exit.v4 {
        accept_marked_answers();
    }
    Ok(())
}

/// More exact routes of the main table first; then, for everything without the mark, the exit's table.
fn rules(address: IpAddr, mark: u32) -> [RuleMessage; 2] {
    let rule = |flags: RuleFlags, table: u32, attributes: Vec<RuleAttribute>| {
        let mut message = RuleMessage::default();
        message.header.family = family(address);
        message.header.action = RuleAction::ToTable;
        message.header.flags = flags;
        message.attributes = attributes;
        message.attributes.push(RuleAttribute::Table(table));
        message
    };
    let to_exit = vec![RuleAttribute::FwMark(mark), RuleAttribute::Priority(PRIORITY + 1)];
    let exact_first = vec![RuleAttribute::SuppressPrefixLen(0), RuleAttribute::Priority(PRIORITY)];
    [rule(RuleFlags::empty(), MAIN, exact_first), rule(RuleFlags::Invert, mark, to_exit)]
}

fn rule_request(socket: &RouteSocket, rule: RuleMessage, add: bool) -> io::Result<()> {
    let (message, flags, harmless) = if add {
        // A rule that a killed process left behind is the same rule.
        let exclusive = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        (RouteNetlinkMessage::NewRule(rule), exclusive, rustix::io::Errno::EXIST)
    } else {
        (RouteNetlinkMessage::DelRule(rule), NLM_F_ACK, rustix::io::Errno::NOENT)
    };
    match socket.request(message, flags) {
        Err(error) if error.raw_os_error() == Some(harmless.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// The reverse-path filter looks answers to marked datagrams up without the mark unless told otherwise,
/// and would drop them.
fn accept_marked_answers() {
    if let Err(error) = std::fs::write(SRC_VALID_MARK, "1") {
        tracing::warn!(%error, file = SRC_VALID_MARK, "a strict reverse-path filter would drop the mesh's datagrams");
    }
}

/// Before the main table's rule (32766), behind what operators usually set themselves.
const PRIORITY: u32 = 32_760;
/// RT_TABLE_MAIN.
const MAIN: u32 = 254;
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";
