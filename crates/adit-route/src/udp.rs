//! UDP routers: which service a session goes to.
//!
//! In Traefik an entry point has one UDP router and that takes everybody. Here routers may have a rule of who it is for, so
//! that a port of the mesh can be kept for some; a router without one takes whom no rule has taken.

use std::{cmp::Reverse, net::IpAddr};

use adit_config::dynamic::network;
use ipnet::IpNet;

use crate::{
    condition::{Condition, Leaf},
    index::Anchor,
    mesh::MeshIdentity,
    router::{Disabled, PRIORITY_MAX},
    rule::{Call, Expression, UDP_MATCHERS},
};

/// What a session is routed by.
#[derive(Debug, Clone, Copy)]
pub struct UdpHead<'a> {
    /// Where its datagrams come from.
    pub peer: IpAddr,
    /// The mesh's peer that sends them; absent on entry points that are not on the mesh.
    pub mesh: Option<&'a MeshIdentity>,
}

/// One router as configured.
#[derive(Debug, Clone)]
pub struct UdpRouterSpec<R> {
    /// Unique name.
    pub name: String,
    /// Rule as written; empty = everybody.
    pub rule: String,
    /// 0 = the rule's length.
    pub priority: i64,
    /// What answers.
    pub target: R,
}

/// UDP routers of one entry point in the order in which they are asked.
#[derive(Debug)]
pub struct UdpTable<R> {
    routers: Vec<Router<R>>,
}

#[derive(Debug)]
struct Router<R> {
    name: String,
    priority: i64,
    /// Absent = everybody.
    condition: Option<Condition<UdpLeaf>>,
    target: R,
}

impl<R> UdpTable<R> {
    /// Builds the table; a router that is at fault, or behind another one that takes everybody, is left out alone.
    pub fn build(specs: impl IntoIterator<Item = UdpRouterSpec<R>>) -> (Self, Vec<Disabled>) {
        let mut disabled = Vec::new();
        let mut routers: Vec<Router<R>> = Vec::new();
        for spec in specs {
            let name = spec.name.clone();
            match compile(spec) {
                Ok(router) => routers.push(router),
                Err(reason) => disabled.push(Disabled { name, reason }),
            }
        }
        routers.sort_by(|left, right| {
            let rank = |router: &Router<R>| (router.condition.is_none(), Reverse(router.priority));
            rank(left).cmp(&rank(right)).then_with(|| left.name.cmp(&right.name))
        });
        let first_open = routers.iter().position(|router| router.condition.is_none());
        let behind = first_open.map(|first| routers.split_off(first + 1)).unwrap_or_default();
        if let Some(first) = routers.last() {
            let reason = format!("UDP router {} takes everybody there already", first.name);
            disabled.extend(behind.into_iter().map(|r| Disabled { name: r.name, reason: reason.clone() }));
        }
        (Self { routers }, disabled)
    }

    /// What takes a session; `None` if no router is for this visitor.
    pub fn decide(&self, head: &UdpHead<'_>) -> Option<&R> {
        let is_for =
            |router: &&Router<R>| router.condition.as_ref().is_none_or(|condition| condition.matches(head));
        self.routers.iter().find(is_for).map(|router| &router.target)
    }
}

impl<R> Default for UdpTable<R> {
    fn default() -> Self {
        Self { routers: Vec::new() }
    }
}

#[derive(Debug)]
enum UdpLeaf {
    ClientIp(IpNet),
    MeshPeer(Box<str>),
    MeshGroup(Box<str>),
}

impl UdpLeaf {
    fn new(call: &Call) -> Result<Self, String> {
        let [argument] = call.arguments.as_slice() else {
            return Err(format!("{} takes 1 argument, not {}", call.matcher, call.arguments.len()));
        };
        Ok(match call.matcher {
            "ClientIP" => Self::ClientIp(
                network(argument)
                    .ok_or_else(|| format!("ClientIP: `{argument}` is no address and no network"))?,
            ),
            "MeshPeer" => Self::MeshPeer(argument.as_str().into()),
            "MeshGroup" => Self::MeshGroup(argument.as_str().into()),
            other => return Err(format!("there is no matcher `{other}` for UDP")),
        })
    }
}

impl Leaf for UdpLeaf {
    type Subject<'a> = UdpHead<'a>;

    fn matches(&self, head: &UdpHead<'_>) -> bool {
        match self {
            Self::ClientIp(network) => network.contains(&head.peer.to_canonical()),
            Self::MeshPeer(name) => head.mesh.is_some_and(|peer| peer.name == *name),
            Self::MeshGroup(group) => head.mesh.is_some_and(|peer| peer.is_in(group)),
        }
    }

    fn anchor(&self) -> Anchor {
        Anchor::ANY
    }
}

fn compile<R>(spec: UdpRouterSpec<R>) -> Result<Router<R>, String> {
    if spec.priority > PRIORITY_MAX {
        return Err(format!("priorities above {PRIORITY_MAX} are reserved"));
    }
    if spec.rule.is_empty() {
        if spec.priority != 0 {
            return Err(
                "a `priority` needs a `rule`: without one a router takes whom no rule takes".to_owned()
            );
        }
        return Ok(Router { name: spec.name, priority: 0, condition: None, target: spec.target });
    }
    let in_rule = |error: &dyn std::fmt::Display| format!("rule `{}`: {error}", spec.rule);
    let expression = Expression::parse(&spec.rule, &UDP_MATCHERS).map_err(|error| in_rule(&error))?;
    let condition = Condition::new(&expression, &UdpLeaf::new).map_err(|error| in_rule(&error))?;
    let priority = match spec.priority {
        0 => i64::try_from(spec.rule.len()).unwrap_or(PRIORITY_MAX),
        given => given,
    };
    Ok(Router { name: spec.name, priority, condition: Some(condition), target: spec.target })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rules: &[(&str, i64)]) -> (UdpTable<usize>, Vec<Disabled>) {
        let spec = |(index, (rule, priority)): (usize, &(&str, i64))| UdpRouterSpec {
            name: format!("r{index}"),
            rule: (*rule).to_owned(),
            priority: *priority,
            target: index,
        };
        UdpTable::build(rules.iter().enumerate().map(spec))
    }

    fn identity(name: &str, groups: &[&str]) -> MeshIdentity {
        MeshIdentity {
            name: name.into(),
            key: adit_config::PeerKey([1; 32]),
            groups: groups.iter().map(|group| (*group).into()).collect(),
        }
    }

    #[test]
    fn rules_choose_by_peer_group_and_address_and_the_router_without_one_takes_the_rest() {
        let (table, disabled) = table(&[
            ("", 0),
            ("MeshGroup(`admins`)", 0),
            ("MeshPeer(`phone`) || ClientIP(`10.9.0.7`)", 0),
            ("!MeshGroup(`admins`) && ClientIP(`10.8.0.0/16`)", 100),
        ]);
        assert!(disabled.is_empty(), "{disabled:?}");
        let (laptop, phone) = (identity("laptop", &["admins"]), identity("phone", &[]));
        let ask = |peer: &str, mesh| table.decide(&UdpHead { peer: peer.parse().unwrap(), mesh }).copied();
        assert_eq!(ask("10.9.0.2", Some(&laptop)), Some(1));
        assert_eq!(ask("10.9.0.3", Some(&phone)), Some(2));
        assert_eq!(ask("::ffff:10.9.0.7", None), Some(2));
        assert_eq!(ask("10.8.1.1", Some(&phone)), Some(3));
        assert_eq!(ask("10.9.0.9", None), Some(0));
    }

    #[test]
    fn without_a_router_for_everybody_others_are_not_served() {
        let (table, _) = table(&[("MeshGroup(`admins`)", 0)]);
        assert!(table.decide(&UdpHead { peer: [10, 9, 0, 2].into(), mesh: None }).is_none());
        let phone = identity("phone", &[]);
        assert!(table.decide(&UdpHead { peer: [10, 9, 0, 2].into(), mesh: Some(&phone) }).is_none());
    }

    #[test]
    fn a_router_at_fault_is_left_out_alone() {
        let (_, disabled) = table(&[
            ("", 0),
            ("", 0),
            ("HostSNI(`*`)", 0),
            ("ClientIP(`nowhere`)", 0),
            ("MeshPeer(`a`, `b`)", 0),
            ("", 7),
            ("MeshPeer(`a`)", i64::MAX),
        ]);
        let mut names: Vec<&str> = disabled.iter().map(|disabled| disabled.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["r1", "r2", "r3", "r4", "r5", "r6"]);
        let second = disabled.iter().find(|disabled| disabled.name == "r1").unwrap();
        assert_eq!(second.reason, "UDP router r0 takes everybody there already");
    }
}
