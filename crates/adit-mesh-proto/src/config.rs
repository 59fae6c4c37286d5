//! What the mesh is to be: this node, its peers, and who may reach what.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::keys::{PresharedKey, PrivateKey, PublicKey};

/// Checked description of the mesh as one lane of one node sees it.
#[derive(Debug, Clone)]
pub struct Config {
    /// This lane's identity.
    pub private_key: PrivateKey,
    /// This node's own addresses inside the mesh, with their networks.
    pub addresses: Vec<IpNet>,
    /// Largest IP packet inside the mesh, in bytes, 1280 to 65,455; a multiple of 16 hides lengths best.
    pub mtu: u16,
    /// Everybody this node talks to, at most [`PEERS_MAX`].
    pub peers: Vec<PeerConfig>,
    /// Who may reach what; `None` lets every packet pass that allowed IPs let pass.
    pub policy: Option<Policy>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Name for logs, metrics and headers.
    pub name: Arc<str>,
    /// The peer's identity.
    pub public_key: PublicKey,
    /// Symmetric key mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Networks that may be its source and are sent to it; a network belongs to the last peer that claims it.
    pub allowed_ips: Vec<IpNet>,
    /// Where to reach it before it has been heard.
    pub endpoint: Option<SocketAddr>,
    /// How often to send something even when there is nothing to say; 1 to 65,535 s.
    pub keepalive: Option<Duration>,
    /// Largest IP packet that the way to it carries, in bytes, if smaller than [`Config::mtu`].
    pub mtu: Option<u16>,
    /// Groups that the policy names.
    pub groups: Vec<Arc<str>>,
}

/// Default-deny policy: what no rule allows is dropped, what answers an allowed packet passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is allowed; the order has no meaning.
    pub rules: Vec<Rule>,
}

/// One permission: sources → destinations, protocol and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Who may begin: any of these.
    pub from: Vec<Source>,
    /// What may be reached; empty means everything behind the mesh.
    pub to: Vec<IpNet>,
    /// Which protocol.
    pub protocol: Protocol,
    /// Destination ports of TCP and UDP; empty means all.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// Whose packets a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Every peer, this node, and networks behind it.
    Any,
    /// This node: packets that leave it with one of its own addresses.
    Myself,
    /// Peers that carry this group.
    Group(Arc<str>),
    /// The peer of this name.
    Peer(Arc<str>),
    /// Packets with a source in one of these networks, from a peer or from behind this node.
    Networks(Vec<IpNet>),
}

/// Protocol of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// All.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP of either IP version; answers and errors that belong to allowed packets pass anyway.
    Icmp,
    /// Another protocol by its number.
    Number(u8),
}

/// Most peers of one lane: 10,000 wanted by the design, with room; about 14 KiB each with a live session
/// (11 KiB of them boringtun's session ring), 230 MiB in all. Peers beyond it are refused by name.
pub const PEERS_MAX: usize = 16_384;
