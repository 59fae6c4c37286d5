//! The tunnel's QUIC without the tunnel: what `adit bench` measures a path with.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use quinn::{Connection, Endpoint, ServerConfig, TransportConfig, VarInt};

use crate::bdp::Bdp;
use crate::credit::LINE_BYTES_MAX;
use crate::transport;
use crate::transport::{CONNECTION_WINDOW_BYTES, SEND_WINDOW_BYTES};
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

/// What fits a connection's windows to the line, as a tunnel's are whose streams are read at once: to be called with it twice a
/// second.
#[must_use]
pub fn fit() -> Box<dyn FnMut(&Connection) + Send> {
    let (mut received, mut sent) = (Bdp::new(Instant::now()), Bdp::new(Instant::now()));
    let mut windows = (u64::from(CONNECTION_WINDOW_BYTES), SEND_WINDOW_BYTES);
    Box::new(move |connection| {
        let (now, stats, rtt) = (Instant::now(), connection.stats(), connection.rtt());
        let receive = received.observe(stats.udp_rx.bytes, now, rtt);
        let receive = receive.clamp(CONNECTION_WINDOW_BYTES.into(), LINE_BYTES_MAX);
        let send = sent.observe(stats.udp_tx.bytes, now, rtt).clamp(SEND_WINDOW_BYTES, LINE_BYTES_MAX);
        if std::mem::replace(&mut windows, (receive, send)) != (receive, send) {
            connection.set_receive_window(VarInt::from_u64(receive).unwrap_or(VarInt::MAX));
            connection.set_send_window(send);
        }
    })
}
