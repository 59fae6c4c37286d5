//! The mesh in WireGuard's terms: this node, its peers, named networks and who may reach what.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use ipnet::IpNet;

use super::{PeerKey, PrivateKey};

/// This process as a node of a WireGuard mesh (`mesh`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Where packets come out.
    pub mode: MeshMode,
    /// Name of the TUN interface; in netstack mode the name of the UAPI socket and in logs.
    pub interface: String,
    /// This node's key.
    pub private_key: PrivateKey,
    /// This node's addresses with the networks they are in.
    pub addresses: Vec<IpNet>,
    /// UDP port; 0 = any free one.
    pub listen_port: u16,
    /// Largest packet inside the tunnel: a multiple of 16, so that no length says more than bulk or tail.
    pub mtu: u16,
    /// Threads with a WireGuard session and a port each towards other adit nodes, 1 to 8.
    pub lanes: u16,
    /// Mark on datagrams that leave (`SO_MARK`), for routing rules; absent = none.
    pub fwmark: Option<u32>,
    /// Which routes are set towards peers.
    pub table: MeshTable,
    /// Networks behind this node that peers may route here: they enter [`Mesh::policy`]'s reach and exported peers' files.
    pub advertise: Vec<IpNet>,
    /// How exported peers reach this node (`host:port`).
    pub endpoint: Option<MeshEndpoint>,
    /// Resolvers written into exported peers' files.
    pub dns: Vec<String>,
    /// Peers, each key once, no network twice.
    pub peers: Vec<MeshPeer>,
    /// Networks by name, for rules.
    pub networks: BTreeMap<String, MeshNetwork>,
    /// Who may reach what; absent = whatever allowed IPs admit.
    pub policy: Option<MeshPolicy>,
}

/// Where a mesh's packets come out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MeshMode {
    /// At a TUN interface of this machine, which needs `CAP_NET_ADMIN`.
    #[default]
    Tun,
    /// At a netstack inside the process, for entry points only; needs no privilege.
    Netstack,
}

/// Which routes are set towards peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MeshTable {
    /// One for each of the peers' networks in the main table.
    #[default]
    Auto,
    /// None.
    Off,
    /// As with [`Self::Auto`], in this table.
    Number(u32),
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPeer {
    /// Unique name; `peer-` and the start of the key where none was given.
    pub name: String,
    /// Its key.
    pub public_key: PeerKey,
    /// A secret shared with it beside the keys.
    pub preshared_key: Option<PrivateKey>,
    /// Source addresses that it may use and that are routed to it; networks, host bits are zero. Holds [`Self::accept`] too.
    pub allowed_ips: Vec<IpNet>,
    /// Networks behind it that are routed to it; a part of [`Self::allowed_ips`].
    pub accept: Vec<IpNet>,
    /// Where it is dialled; absent = it dials us.
    pub endpoint: Option<MeshEndpoint>,
    /// How often something is sent to it at least; absent = only when there is something to say.
    pub persistent_keepalive: Option<Duration>,
    /// Largest packet inside the tunnel to it, at most [`Mesh::mtu`]; absent = that.
    pub mtu: Option<u16>,
    /// Groups that rules and routers know it by.
    pub groups: Vec<String>,
}

/// A UDP endpoint by address or by name; names are looked up again when the peer is silent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshEndpoint {
    /// Host name, or IP address without brackets.
    pub host: String,
    /// UDP port, not 0.
    pub port: u16,
}

/// A network that rules know by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshNetwork {
    /// These addresses.
    Cidrs(Vec<IpNet>),
    /// The networks that this interface of the machine is in, as they are at start and at each reload.
    Interface(String),
}

/// Default deny: a packet that no rule allows and that belongs to no allowed flow is dropped. What this node itself begins
/// may always go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshPolicy {
    /// What may start a flow; answers belong to it.
    pub allow: Vec<MeshRule>,
}

/// Flows that may be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshRule {
    /// Who starts it: any of these.
    pub from: Vec<MeshParty>,
    /// Towards whom: any of these.
    pub to: Vec<MeshParty>,
    /// With what.
    pub protocol: MeshProtocol,
    /// Destination ports, ends included; empty = all. Only with TCP and UDP.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// One side of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeshParty {
    /// Everybody (`any`).
    Any,
    /// This node's own mesh addresses (`self`).
    Myself,
    /// Peers of this group, with all their allowed IPs.
    Group(String),
    /// The peer of this name, with all its allowed IPs.
    Peer(String),
    /// A named network.
    Network(String),
    /// Addresses.
    Cidr(IpNet),
}

/// What a rule lets through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MeshProtocol {
    /// Every protocol; TCP and UDP if the rule has ports.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP over IPv4 and ICMPv6 over IPv6.
    Icmp,
    /// The protocol of this IP number.
    Number(u8),
}

impl Mesh {
    /// The peer of this name.
    pub fn peer(&self, name: &str) -> Option<&MeshPeer> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}

impl MeshPeer {
    /// Addresses that are this peer itself rather than a network behind it: single hosts among its allowed IPs.
    pub fn addresses(&self) -> impl Iterator<Item = std::net::IpAddr> + '_ {
        self.allowed_ips.iter().filter(|net| net.prefix_len() == net.max_prefix_len()).map(IpNet::addr)
    }
}

impl MeshPolicy {
    /// Whether anything is allowed at all.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty()
    }
}

impl std::fmt::Display for MeshEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl std::fmt::Display for MeshParty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Myself => f.write_str("self"),
            Self::Group(name) | Self::Peer(name) | Self::Network(name) => f.write_str(name),
            Self::Cidr(net) => net.fmt(f),
        }
    }
}

/// Interface name where none is given.
pub(crate) const INTERFACE_DEFAULT: &str = "adit0";
/// 16 × 88: with WireGuard's and IPv6's headers 1,488 bytes, which fit through Ethernet and PPPoE (`mesh.md §5.2`).
pub(crate) const MTU_DEFAULT: u16 = 1408;
