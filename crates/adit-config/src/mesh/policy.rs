//! `networks` and `policy`: who may start which flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use super::{
    model::{MeshNetwork, MeshParty, MeshPeer, MeshPolicy, MeshProtocol, MeshRule},
    values::{one_or_more, read_interface, read_networks},
};
use crate::{
    document::read_name,
    dynamic::network,
    read::{Field, nearest},
    yaml::Value,
};

/// Names that rules may give, and what each stands for.
pub(super) struct Names<'a> {
    groups: BTreeSet<&'a str>,
    peers: BTreeSet<&'a str>,
    networks: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn new(peers: &'a [MeshPeer], networks: &'a BTreeMap<String, MeshNetwork>) -> Self {
        Self {
            groups: peers.iter().flat_map(|peer| &peer.groups).map(String::as_str).collect(),
            peers: peers.iter().map(|peer| peer.name.as_str()).collect(),
            networks: networks.keys().map(String::as_str).collect(),
        }
    }

    /// What a name stands for; a name of two things says neither.
    fn find(&self, field: &Field<'_>) -> Option<MeshParty> {
        let name = field.text()?;
        match name {
            "any" => return Some(MeshParty::Any),
            "self" => return Some(MeshParty::Myself),
            _ => {}
        }
        if let Some(net) = network(name) {
            return Some(MeshParty::Cidr(net));
        }
        let owned = || name.to_owned();
        let found = (self.groups.contains(name), self.peers.contains(name), self.networks.contains(name));
        match found {
            (true, false, false) => Some(MeshParty::Group(owned())),
            (false, true, false) => Some(MeshParty::Peer(owned())),
            (false, false, true) => Some(MeshParty::Network(owned())),
            (false, false, false) => {
                let all: Vec<&str> =
                    self.groups.iter().chain(&self.peers).chain(&self.networks).copied().collect();
                let expected = "expected a group, a peer, a named network, `self`, `any` or a network";
                match nearest(name, &all) {
                    Some(near) => field.reject_with(expected, format!("did you mean `{near}`?")),
                    None => field.reject(expected),
                }
                None
            }
            _ => {
                field.reject("this name stands for more than one of group, peer and network: rename one");
                None
            }
        }
    }
}

/// `networks`: by name, each by addresses or by interface.
pub(super) fn read_named_networks(field: &Field<'_>) -> BTreeMap<String, MeshNetwork> {
    let mut networks = BTreeMap::new();
    for (name, field) in field.named() {
        if is_reserved(name) || network(name).is_some() {
            field.reject_hidden("expected another name: `any`, `self` and addresses mean themselves");
        }
        if let Some(network) = read_network(&field) {
            networks.insert(name.to_owned(), network);
        }
    }
    if networks.len() > NAMED_MAX {
        field.reject_hidden(format!("expected at most {NAMED_MAX} networks"));
    }
    networks
}

fn read_network(field: &Field<'_>) -> Option<MeshNetwork> {
    if !matches!(field.node.value, Value::Mapping(_)) {
        return read_networks(field).map(MeshNetwork::Cidrs);
    }
    let mut section = field.section()?;
    let cidrs = section.optional("cidr", read_networks);
    let interface = section.optional("interface", read_interface);
    let mark = section.take("mark");
    if let Some(field) = &mark {
        field.reject_hidden(
            "refused: packets reach the mesh through its interface, which carries no marks; \
             name the network by `cidr` or `interface`",
        );
    }
    let itself = section.itself().clone();
    section.finish();
    match (cidrs, interface) {
        (Some(cidrs), None) => Some(MeshNetwork::Cidrs(cidrs)),
        (None, Some(interface)) => Some(MeshNetwork::Interface(interface)),
        (None, None) if mark.is_some() => None,
        _ => {
            itself.reject_hidden("expected either `cidr` or `interface`");
            None
        }
    }
}

/// `policy`: present = default deny.
pub(super) fn read_policy(field: &Field<'_>, names: &Names<'_>) -> Option<MeshPolicy> {
    let mut section = field.section()?;
    let mut allow = Vec::new();
    if let Some(rules) = section.take("allow") {
        let items = rules.items();
        if items.len() > RULES_MAX {
            rules.reject_hidden(format!("expected at most {RULES_MAX} rules"));
        }
        allow = items.iter().take(RULES_MAX).filter_map(|item| read_rule(item, names)).collect();
    }
    section.finish();
    Some(MeshPolicy { allow })
}

fn read_rule(field: &Field<'_>, names: &Names<'_>) -> Option<MeshRule> {
    let mut section = field.section()?;
    let parties = |field: Field<'_>| -> Vec<MeshParty> {
        let found = one_or_more(&field).iter().filter_map(|item| names.find(item)).collect::<Vec<_>>();
        if matches!(&field.node.value, Value::Sequence(items) if items.is_empty()) {
            field.reject_hidden("expected at least one name");
        }
        if found.len() > PARTIES_MAX {
            field.reject_hidden(format!("expected at most {PARTIES_MAX} names"));
        }
        found
    };
    let from = section.require("from").map(&parties).unwrap_or_default();
    let to = section.require("to").map(&parties).unwrap_or_default();
    let protocol = section.optional("protocol", read_protocol).unwrap_or_default();
    let ports_field = section.take("ports");
    let ports = ports_field.as_ref().map(read_ports).unwrap_or_default();
    if let Some(field) = ports_field.filter(|_| !protocol.has_ports()) {
        field.reject_hidden("only TCP and UDP have ports");
    }
    section.finish();
    // A side that is empty or could not be read matches nothing.
    Some(MeshRule { from, to, protocol, ports })
}

impl MeshProtocol {
    fn has_ports(self) -> bool {
        matches!(self, Self::Any | Self::Tcp | Self::Udp)
    }
}

fn read_protocol(field: &Field<'_>) -> Option<MeshProtocol> {
    field.parse("`any`, `tcp`, `udp`, `icmp` or the number of an IP protocol", |text| match text {
        "any" => Some(MeshProtocol::Any),
        "tcp" | "6" => Some(MeshProtocol::Tcp),
        "udp" | "17" => Some(MeshProtocol::Udp),
        "icmp" => Some(MeshProtocol::Icmp),
        _ => text.parse().ok().map(MeshProtocol::Number),
    })
}

fn read_ports(field: &Field<'_>) -> Vec<RangeInclusive<u16>> {
    let read = |item: &Field<'_>| {
        item.parse("a port such as `22` or a range such as `8000-8099`", |text| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first > 0 && first <= last).then_some(first..=last)
        })
    };
    let items = one_or_more(field);
    if items.len() > PORTS_MAX {
        field.reject_hidden(format!("expected at most {PORTS_MAX} ports"));
        return Vec::new();
    }
    items.iter().filter_map(read).collect()
}

/// Groups of a peer.
pub(super) fn read_groups(field: &Field<'_>) -> Option<Vec<String>> {
    let mut groups: Vec<String> = Vec::new();
    for item in one_or_more(field) {
        let Some(name) = read_name(&item) else { continue };
        if is_reserved(&name) {
            item.reject("expected another name: `any` and `self` mean themselves");
        } else if !groups.contains(&name) {
            groups.push(name);
        }
    }
    if groups.len() > GROUPS_MAX {
        field.reject_hidden(format!("expected at most {GROUPS_MAX} groups"));
        return None;
    }
    Some(groups)
}

/// Names that rules use for something else.
pub(super) fn is_reserved(name: &str) -> bool {
    matches!(name, "any" | "self")
}

/// Groups of one peer: they travel in a header to origins.
const GROUPS_MAX: usize = 32;
/// VLANs of a large site.
const NAMED_MAX: usize = 1_024;
/// Each is looked at once per new flow: a hand-written policy stays below a hundred.
const RULES_MAX: usize = 4_096;
/// Names on one side of a rule.
const PARTIES_MAX: usize = 256;
/// Ports of one rule.
const PORTS_MAX: usize = 256;
