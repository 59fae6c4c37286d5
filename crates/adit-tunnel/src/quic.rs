//! The tunnel's QUIC without the tunnel: what `adit bench` measures a path with.

use std::io;
use std::net::{IpAddr, SocketAddr};

use quinn::{Endpoint, ServerConfig, TransportConfig};

use crate::transport;
use crate::udp::{JUMBO_PAYLOAD_BYTES, TurnRuntime, UdpMetrics, payload_max_towards};

/// Windows, congestion control and packet sizes of a registered connection, of a connector towards `remote` or of an edge;
/// streams are for the caller to allow.
#[must_use]
pub fn transport(remote: Option<SocketAddr>) -> TransportConfig {
    transport::registered(remote.map_or(JUMBO_PAYLOAD_BYTES, payload_max_towards))
}

/// Socket of one connection towards `remote`.
///
/// # Errors
/// What the kernel says.
pub fn dial(remote: SocketAddr, bind: Option<IpAddr>) -> io::Result<Endpoint> {
    let runtime = TurnRuntime { metrics: UdpMetrics::default(), payload_max: payload_max_towards(remote) };
    transport::dialling_endpoint(remote, bind, None, runtime)
}

/// Socket of an edge.
///
/// # Errors
/// What the kernel says.
pub fn listen(address: SocketAddr, config: ServerConfig) -> io::Result<Endpoint> {
    transport::listening_endpoint(address, config, &UdpMetrics::default())
}
