//! The mesh, spelt out; keys are masked, public keys are not keys of this kind.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::{duration, insert};
use crate::{
    Mesh, MeshMode, MeshNetwork, MeshParty, MeshPeer, MeshPolicy, MeshProtocol, MeshRule, MeshTable,
};

pub(super) fn mesh(mesh: &Mesh) -> Value {
    let mut fields = Map::new();
    let mode = match mesh.mode {
        MeshMode::Tun => "tun",
        MeshMode::Netstack => "netstack",
    };
    fields.insert("mode".into(), json!(mode));
    fields.insert("interface".into(), json!(mesh.interface));
    fields.insert("private-key".into(), json!(mesh.private_key.to_string()));
    fields.insert("address".into(), nets(&mesh.addresses));
    fields.insert("listen-port".into(), json!(mesh.listen_port));
    fields.insert("mtu".into(), json!(mesh.mtu));
    fields.insert("lanes".into(), json!(mesh.lanes));
    insert(&mut fields, "fwmark", mesh.fwmark.map(|mark| json!(format!("{mark:#x}"))));
    let table = match mesh.table {
        MeshTable::Auto => "auto".to_owned(),
        MeshTable::Off => "off".to_owned(),
        MeshTable::Number(number) => number.to_string(),
    };
    fields.insert("table".into(), json!(table));
    insert(&mut fields, "endpoint", mesh.endpoint.as_ref().map(|endpoint| json!(endpoint.to_string())));
    fields.insert("dns".into(), json!(mesh.dns));
    fields.insert("advertise".into(), nets(&mesh.advertise));
    let peers: Map<_, _> = mesh.peers.iter().map(|p| (p.name.clone(), peer(p))).collect();
    fields.insert("peers".into(), peers.into());
    let networks: Map<_, _> = mesh.networks.iter().map(|(name, n)| (name.clone(), network(n))).collect();
    fields.insert("networks".into(), networks.into());
    insert(&mut fields, "policy", mesh.policy.as_ref().map(policy));
    fields.into()
}

fn peer(peer: &MeshPeer) -> Value {
    let mut fields = Map::new();
    fields.insert("public-key".into(), json!(peer.public_key.to_string()));
    insert(&mut fields, "preshared-key", peer.preshared_key.as_ref().map(|key| json!(key.to_string())));
    fields.insert("allowed-ips".into(), nets(&peer.allowed_ips));
    fields.insert("accept".into(), nets(&peer.accept));
    insert(&mut fields, "endpoint", peer.endpoint.as_ref().map(|endpoint| json!(endpoint.to_string())));
    let keepalive = peer.persistent_keepalive.map_or_else(|| "off".to_owned(), duration);
    fields.insert("persistent-keepalive".into(), json!(keepalive));
    insert(&mut fields, "mtu", peer.mtu.map(|mtu| json!(mtu)));
    fields.insert("groups".into(), json!(peer.groups));
    fields.into()
}

fn network(network: &MeshNetwork) -> Value {
    match network {
        MeshNetwork::Cidrs(cidrs) => json!({ "cidr": nets(cidrs) }),
        MeshNetwork::Interface(name) => json!({ "interface": name }),
    }
}

fn policy(policy: &MeshPolicy) -> Value {
    json!({ "allow": policy.allow.iter().map(rule).collect::<Vec<_>>() })
}

fn rule(rule: &MeshRule) -> Value {
    let parties = |parties: &[MeshParty]| parties.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut fields = Map::new();
    fields.insert("from".into(), json!(parties(&rule.from)));
    fields.insert("to".into(), json!(parties(&rule.to)));
    let protocol = match rule.protocol {
        MeshProtocol::Any => "any".to_owned(),
        MeshProtocol::Tcp => "tcp".to_owned(),
        MeshProtocol::Udp => "udp".to_owned(),
        MeshProtocol::Icmp => "icmp".to_owned(),
        MeshProtocol::Number(number) => number.to_string(),
    };
    fields.insert("protocol".into(), json!(protocol));
    let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    if !rule.ports.is_empty() {
        fields.insert("ports".into(), json!(rule.ports.iter().map(range).collect::<Vec<_>>()));
    }
    fields.into()
}

fn nets(nets: &[IpNet]) -> Value {
    nets.iter().map(ToString::to_string).collect()
}
