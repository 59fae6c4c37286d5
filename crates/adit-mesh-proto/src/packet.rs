//! What crosses the engine's border: packets, datagrams, events and what can be seen of a peer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::drops::DropCounts;
use crate::keys::PublicKey;
use crate::segment::Offload;

/// Where datagrams come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path {
    /// The peer's side.
    pub remote: SocketAddr,
    /// Our side, where the socket tells it; `None` lets the system choose.
    pub local: Option<IpAddr>,
}

/// One IP packet, or one super-packet to be segmented, on its way to a peer.
///
/// Its contents are scratch: segmentation and encryption overwrite them.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The packet, from its IP header on.
    pub contents: &'a mut [u8],
    /// What the kernel left to do.
    pub offload: Offload,
}

/// One IP packet, or several of one flow joined, decrypted and allowed.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// Who sent it; for packets that the engine itself makes (ICMP errors), the peer they are about, or
    /// [`PeerId::NOBODY`].
    pub peer: PeerId,
    /// What a receiver with segmentation offload needs to know.
    pub offload: Offload,
    /// The packet, from its IP header on; the headers may still be changed by the receiver.
    pub contents: &'a mut [u8],
}

/// Datagrams for one send call.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// From where to where.
    pub path: Path,
    /// Length of each datagram but the last, which may be shorter; `None` for a single one.
    pub segment_size: Option<usize>,
    /// Congestion bits for the outer header (RFC 3168), 0 to 3.
    pub ecn: u8,
    /// All datagrams, one behind the other: at most 64, at most 65,507 bytes.
    pub contents: &'a [u8],
}

/// Datagrams that came otherwise than a peer sends them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Damage {
    /// Data of an existing session that fails to authenticate; who is not on the path does not know its index.
    pub forged: u64,
    /// Datagrams that are no WireGuard message, or of no session, beside one of a session: alone, they may be anybody's.
    pub nonsense: u64,
}

/// A peer's place in this lane; stays the same while the peer is configured, and may be taken by another afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

impl PeerId {
    /// No peer at all: what an error about a packet without a route is about.
    pub const NOBODY: Self = Self(u32::MAX);
}

/// Where one further lane of a node is reached: a WireGuard peer of its own, at the node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneAddress {
    /// The lane's identity.
    pub key: PublicKey,
    /// Its UDP port.
    pub port: u16,
}

/// A peer as another lane than the first is to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanePeer {
    /// Who it is: the key in the configuration.
    pub identity: PublicKey,
    /// What it is called on this lane.
    pub key: PublicKey,
    /// Where it should be.
    pub remote: SocketAddr,
    /// Whether the handshake is ours to begin; the other side may not be able to reach us.
    pub begin: bool,
}

/// Something that happened to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A handshake completed: data can flow.
    SessionEstablished {
        /// Whose.
        peer: PeerId,
        /// Whether we began it.
        initiator: bool,
    },
    /// Keys ran out and nobody renewed them, or a handshake got no answer for 90 s.
    SessionExpired {
        /// Whose.
        peer: PeerId,
    },
    /// Authenticated packets come from another address now; ours go there.
    Roamed {
        /// Who.
        peer: PeerId,
        /// The new address.
        path: Path,
    },
    /// A probe was answered.
    Probed {
        /// By whom.
        peer: PeerId,
        /// Its round trip.
        latency: Duration,
    },
    /// The path to a peer was found to carry only packets of this size, or all of the usual size again (`None`).
    PathMtu {
        /// To whom.
        peer: PeerId,
        /// Largest inner packet in bytes.
        mtu: Option<usize>,
    },
    /// The peer has said by which further lanes it is reached; none if it has begun anew. Only from the first lane.
    Lanes {
        /// Who.
        peer: PeerId,
        /// Its lanes after the first, of which we have as many or more.
        lanes: Vec<LaneAddress>,
        /// Whether the handshakes are ours to begin: we began the latest one on the first lane, or the other did not.
        begin: bool,
    },
    /// The peer does not answer (handshakes or traffic unanswered for 15 s), or answers again.
    Reachability {
        /// Who.
        peer: PeerId,
        /// Whether it answers.
        reachable: bool,
    },
}

/// What can be seen of one peer.
#[derive(Debug, Clone)]
pub struct PeerSnapshot {
    /// Its place.
    pub id: PeerId,
    /// Its configured name.
    pub name: Arc<str>,
    /// Its identity.
    pub public_key: PublicKey,
    /// Its groups.
    pub groups: Vec<Arc<str>>,
    /// Its networks.
    pub allowed_ips: Vec<IpNet>,
    /// Where datagrams to it go now.
    pub path: Option<Path>,
    /// Configured keepalive.
    pub keepalive: Option<Duration>,
    /// Whether packets to it can be encrypted now.
    pub connected: bool,
    /// When the last handshake completed.
    pub last_handshake: Option<Instant>,
    /// When the last authenticated datagram came.
    pub last_received: Option<Instant>,
    /// Round trip: of probes where the peer is an adit and the session is in use, else of the last handshake.
    pub latency: Option<Duration>,
    /// Share of the peer's data datagrams that never came, 0 to 1, over the latest sessions.
    pub loss: f32,
    /// Share of our datagrams that never reached the peer, 0 to 1; only an adit tells.
    pub sent_loss: Option<f32>,
    /// Whether the peer answers probes: it is an adit.
    pub probed: bool,
    /// Largest inner packet that the path carries, where that is less than the mesh's MTU.
    pub path_mtu: Option<usize>,
    /// Whether it answers, see [`Event::Reachability`].
    pub reachable: bool,
    /// Lanes that both nodes have, the first included.
    pub lanes: usize,
    /// Of these, those that carry data now or can at once.
    pub lanes_up: usize,
    /// Counters.
    pub statistics: PeerStatistics,
}

/// Counters of one peer since it was configured.
#[derive(Debug, Clone, Default)]
pub struct PeerStatistics {
    /// Bytes of datagrams sent to it, headers of WireGuard included.
    pub sent_bytes: u64,
    /// Datagrams sent to it.
    pub sent_datagrams: u64,
    /// Bytes of authenticated datagrams from it.
    pub received_bytes: u64,
    /// Authenticated datagrams from it.
    pub received_datagrams: u64,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Handshake initiations sent, repetitions included.
    pub initiations: u64,
    /// Packets and datagrams dropped after they were known to be this peer's.
    pub drops: DropCounts,
}

/// Counters of the whole lane.
#[derive(Debug, Clone, Default)]
pub struct MeshStatistics {
    /// Drops of every kind, those of peers included.
    pub drops: DropCounts,
    /// Handshake messages that cost public-key operations.
    pub handshakes_computed: u64,
    /// Cookies sent.
    pub cookies: u64,
    /// Peers configured.
    pub peers: usize,
    /// Peers with a session.
    pub sessions: usize,
    /// Packets waiting for sessions.
    pub staged: usize,
    /// Flows that the policy remembers.
    pub flows: usize,
}

impl PeerSnapshot {
    /// Adds what another lane knows of the same peer; the first lane may be quiet while others carry everything.
    pub fn absorb(&mut self, other: &Self) {
        self.statistics.absorb(&other.statistics);
        self.reachable |= other.connected && other.reachable;
        self.connected |= other.connected;
        self.last_handshake = self.last_handshake.max(other.last_handshake);
        self.last_received = self.last_received.max(other.last_received);
    }
}

impl PeerStatistics {
    /// Adds what another lane to the same peer counts.
    pub fn absorb(&mut self, other: &Self) {
        self.sent_bytes += other.sent_bytes;
        self.sent_datagrams += other.sent_datagrams;
        self.received_bytes += other.received_bytes;
        self.received_datagrams += other.received_datagrams;
        self.handshakes += other.handshakes;
        self.initiations += other.initiations;
        self.drops.absorb(&other.drops);
    }
}

impl MeshStatistics {
    /// Adds what another lane of the node counts. Peers and flows are those of all.
    pub fn absorb(&mut self, other: &Self) {
        self.drops.absorb(&other.drops);
        self.handshakes_computed += other.handshakes_computed;
        self.cookies += other.cookies;
        self.staged += other.staged;
    }
}
