//! Tunnels and connections as they stand, for the admin endpoint.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_config::TunnelId;
use adit_tunnel_proto::features::DatagramVersion;
use uuid::Uuid;

/// A declared tunnel, as it stands.
#[derive(Clone, Debug)]
pub struct TunnelStatus {
    /// The tunnel.
    pub id: TunnelId,
    /// Its name.
    pub name: String,
    /// Its connections.
    pub connections: Vec<EdgeConnectionStatus>,
}

/// A registered connection at the edge, as it stands.
#[derive(Clone, Debug)]
pub struct EdgeConnectionStatus {
    /// The edge's id of the connection.
    pub id: Uuid,
    /// The connector's index of it.
    pub index: u8,
    /// The connector.
    pub connector_id: Uuid,
    /// The connector's release.
    pub version: String,
    /// The connector's operating system and architecture.
    pub arch: String,
    /// Its feature strings.
    pub features: Vec<String>,
    /// Layout of datagrams to be used on it (E16); none is sent yet.
    pub datagrams: DatagramVersion,
    /// Where it dialled from.
    pub remote: SocketAddr,
    /// Requests in flight.
    pub in_flight: usize,
    /// Whether it takes no new requests.
    pub draining: bool,
    /// When it registered.
    pub since: Instant,
    /// Round-trip time.
    pub rtt: Duration,
}
