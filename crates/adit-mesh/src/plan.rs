//! What the operator's mesh means to engine and interface.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use adit_config::{
    Mesh, MeshMode, MeshNetwork, MeshParty, MeshPeer, MeshPolicy, MeshProtocol, MeshRule, MeshTable,
};
use adit_mesh_proto::{
    Config, PeerConfig, Policy, PresharedKey, PrivateKey, Protocol, PublicKey, Rule, Source,
};
use ipnet::IpNet;

use crate::netlink::{Exit, InterfaceSpec};
use crate::udp::SocketSpec;

/// Rules of the configuration as the engine knows them, names resolved.
///
/// `endpoints` finds the address of a peer whose endpoint is a name. A party that stands for no network
/// at all allows nothing.
pub(crate) fn engine_config(mesh: &Mesh, endpoints: impl Fn(&MeshPeer) -> Option<SocketAddr>) -> Config {
    Config {
        private_key: PrivateKey::new(*mesh.private_key.expose()),
        addresses: mesh.addresses.clone(),
        mtu: mesh.mtu,
        peers: mesh.peers.iter().map(|peer| peer_config(peer, endpoints(peer))).collect(),
        policy: mesh.policy.as_ref().map(|policy| engine_policy(mesh, policy)),
    }
}

/// How the interface is to look: addresses, MTU, routes to what peers may use.
pub(crate) fn interface_spec(mesh: &Mesh) -> InterfaceSpec {
    let networks: Vec<IpNet> = mesh.addresses.iter().map(IpNet::trunc).collect();
    let covered = |net: &IpNet| networks.iter().any(|own| own.contains(net));
    let all = mesh.peers.iter().flat_map(|peer| &peer.allowed_ips).copied();
    let (routes, table) = match mesh.table {
        MeshTable::Off => (Vec::new(), None),
        MeshTable::Auto => (all.filter(|net| !covered(net) && net.prefix_len() > 0).collect(), None),
        // Another table does not know the addresses' own networks.
        MeshTable::Number(table) => (all.collect(), Some(table)),
    };
    let addresses = mesh.addresses.clone();
    InterfaceSpec { mtu: u32::from(mesh.mtu), addresses, routes, table, exit: exit(mesh) }
}

/// Port and mark of the socket.
pub(crate) fn socket_spec(mesh: &Mesh) -> SocketSpec {
    SocketSpec { port: mesh.listen_port, mark: mesh.fwmark.or_else(|| exit(mesh).map(|exit| exit.mark)) }
}

/// A default route to a peer takes the mesh's own datagrams as well unless they are told apart.
fn exit(mesh: &Mesh) -> Option<Exit> {
    let default = |v4: bool| {
        let all = mesh.peers.iter().flat_map(|peer| &peer.allowed_ips);
        all.into_iter().any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == v4)
    };
    let exit = Exit { mark: mesh.fwmark.unwrap_or(EXIT_MARK), v4: default(true), v6: default(false) };
    // Without an interface there is no route that could take them.
    let routes = mesh.mode == MeshMode::Tun && mesh.table == MeshTable::Auto;
    (routes && (exit.v4 || exit.v6)).then_some(exit)
}

/// The address of a peer whose endpoint is an address already.
pub(crate) fn literal_endpoint(peer: &MeshPeer) -> Option<SocketAddr> {
    let endpoint = peer.endpoint.as_ref()?;
    Some((endpoint.host.parse::<IpAddr>().ok()?, endpoint.port).into())
}

/// The key by which the engine knows a peer.
pub(crate) fn key_of(peer: &MeshPeer) -> PublicKey {
    PublicKey(peer.public_key.0)
}

fn peer_config(peer: &MeshPeer, endpoint: Option<SocketAddr>) -> PeerConfig {
    PeerConfig {
        name: Arc::from(peer.name.as_str()),
        public_key: key_of(peer),
        preshared_key: peer.preshared_key.as_ref().map(|key| PresharedKey::new(*key.expose())),
        allowed_ips: peer.allowed_ips.clone(),
        endpoint,
        keepalive: peer.persistent_keepalive,
        mtu: peer.mtu,
        groups: peer.groups.iter().map(|group| Arc::from(group.as_str())).collect(),
    }
}

fn engine_policy(mesh: &Mesh, policy: &MeshPolicy) -> Policy {
    Policy { rules: policy.allow.iter().filter_map(|rule| engine_rule(mesh, rule)).collect() }
}

fn engine_rule(mesh: &Mesh, rule: &MeshRule) -> Option<Rule> {
    let anywhere = rule.to.contains(&MeshParty::Any);
    let to: Vec<IpNet> = rule.to.iter().flat_map(|party| networks_of(mesh, party)).collect();
    let from: Vec<Source> = rule.from.iter().filter_map(|party| source_of(mesh, party)).collect();
    // To the engine an empty list means everywhere, to the operator a party without addresses nowhere.
    if from.is_empty() || (to.is_empty() && !anywhere) {
        return None;
    }
    let to = if anywhere { Vec::new() } else { to };
    Some(Rule { from, to, protocol: protocol_of(rule.protocol), ports: rule.ports.clone() })
}

fn source_of(mesh: &Mesh, party: &MeshParty) -> Option<Source> {
    match party {
        MeshParty::Any => Some(Source::Any),
        MeshParty::Group(name) => Some(Source::Group(Arc::from(name.as_str()))),
        MeshParty::Peer(name) => Some(Source::Peer(Arc::from(name.as_str()))),
        MeshParty::Myself => Some(Source::Myself),
        MeshParty::Network(_) | MeshParty::Cidr(_) => {
            let networks = networks_of(mesh, party);
            (!networks.is_empty()).then_some(Source::Networks(networks))
        }
    }
}

fn networks_of(mesh: &Mesh, party: &MeshParty) -> Vec<IpNet> {
    let of_peers = |fits: &dyn Fn(&MeshPeer) -> bool| {
        mesh.peers.iter().filter(|peer| fits(peer)).flat_map(|peer| peer.allowed_ips.clone()).collect()
    };
    match party {
        MeshParty::Any => Vec::new(),
        MeshParty::Myself => mesh.addresses.iter().map(|address| IpNet::from(address.addr())).collect(),
        MeshParty::Group(name) => of_peers(&|peer| peer.groups.contains(name)),
        MeshParty::Peer(name) => of_peers(&|peer| peer.name == *name),
        MeshParty::Network(name) => match mesh.networks.get(name) {
            Some(MeshNetwork::Cidrs(networks)) => networks.clone(),
            // The daemon has put the interface's networks here; one that has none allows nothing.
            Some(MeshNetwork::Interface(_)) | None => Vec::new(),
        },
        MeshParty::Cidr(network) => vec![*network],
    }
}

fn protocol_of(protocol: MeshProtocol) -> Protocol {
    match protocol {
        MeshProtocol::Any => Protocol::Any,
        MeshProtocol::Tcp => Protocol::Tcp,
        MeshProtocol::Udp => Protocol::Udp,
        MeshProtocol::Icmp => Protocol::Icmp,
        MeshProtocol::Number(number) => Protocol::Number(number),
    }
}

/// Mark and routing table of an exit where the operator names none: WireGuard's customary number.
const EXIT_MARK: u32 = 51_820;
