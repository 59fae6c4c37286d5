//! QUIC transport parameters and the UDP sockets under them (tunnel-protocol.md §2.2; C4, C15, E21).

mod announce;
#[cfg(test)]
mod line;
mod listener;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
    crypto::rustls::{NoInitialCipherSuite, QuicClientConfig},
};

use self::announce::Dialling;
pub(crate) use self::listener::{Configs, Listener};
use crate::{
    congestion::CubicConfig,
    udp::{self, JUMBO_PAYLOAD_BYTES, TurnRuntime, UdpMetrics},
};

/// Transport of a connector, for any edge.
#[derive(Clone)]
pub(crate) struct Dialler {
    crypto: Arc<Dialling>,
    mtu_discovery: bool,
}

impl Dialler {
    pub(crate) fn new(tls: rustls::ClientConfig, mtu_discovery: bool) -> Result<Self, NoInitialCipherSuite> {
        let crypto = Arc::new(QuicClientConfig::try_from(tls)?);
        Ok(Self { crypto: Arc::new(Dialling(crypto)), mtu_discovery })
    }

    /// Transport of one connection over a path that may carry UDP payloads of `payload_max` bytes, with `stream_window` for
    /// streams that are read.
    pub(crate) fn config(&self, payload_max: u16, stream_window: u32) -> ClientConfig {
        let mut transport = common(CLIENT_IDLE_TIMEOUT_MS, payload_max);
        transport.stream_receive_window(VarInt::from_u32(stream_window));
        transport.max_concurrent_bidi_streams(VarInt::from_u32(REQUEST_STREAMS_MAX));
        transport.receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
        transport.keep_alive_interval(Some(KEEP_ALIVE));
        if !self.mtu_discovery {
            transport.mtu_discovery_config(None);
        }
        let mut config = ClientConfig::new(Arc::<Dialling>::clone(&self.crypto));
        config.transport_config(Arc::new(transport));
        config
    }
}

/// Gives a registered connection its full window.
pub(crate) fn admit(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
}

/// What one stream needs to carry 10 Gbit/s over a line of this round trip: a power of two.
pub(crate) fn stream_window(round_trip: Duration) -> u32 {
    let wanted = (round_trip.as_secs_f64() * STREAM_BYTES_PER_SECOND) as u32;
    wanted.clamp(STREAM_WINDOW_FIRST_BYTES, STREAM_WINDOW_BYTES).next_power_of_two().min(STREAM_WINDOW_BYTES)
}

/// A UDP socket for one connection of a connector, on `port` again if that is free (C15).
pub(crate) fn dialling_endpoint(
    remote: SocketAddr,
    bind: Option<IpAddr>,
    port: Option<u16>,
    runtime: TurnRuntime,
) -> io::Result<Endpoint> {
    let ip = bind.unwrap_or(match remote {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    });
    let again = port.and_then(|port| udp::bind(SocketAddr::new(ip, port)).ok());
    let socket = match again {
        Some(socket) => socket,
        None => udp::bind(SocketAddr::new(ip, 0))?,
    };
    let mut config = endpoint_config(&runtime);
    config.cid_generator(|| Box::new(ZeroLength));
    Endpoint::new(config, None, socket, Arc::new(runtime))
}

/// The edge's UDP socket.
pub(crate) fn listening_endpoint(
    address: SocketAddr,
    config: ServerConfig,
    metrics: &UdpMetrics,
) -> io::Result<Endpoint> {
    let runtime = TurnRuntime { metrics: metrics.clone(), payload_max: JUMBO_PAYLOAD_BYTES };
    let socket = udp::bind(address)?;
    Endpoint::new(endpoint_config(&runtime), Some(config), socket, Arc::new(runtime))
}

/// What both ends of a registered connection have, over a path that may carry UDP payloads of `payload_max` bytes.
pub(crate) fn registered(payload_max: u16) -> TransportConfig {
    let mut transport = common(CLIENT_IDLE_TIMEOUT_MS, payload_max);
    transport.receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    transport.stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES));
    transport
}

fn endpoint_config(runtime: &TurnRuntime) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    let set = config.max_udp_payload_size(runtime.payload_max);
    debug_assert!(set.is_ok(), "every size in use is allowed");
    config
}

fn common(idle_timeout_ms: u32, payload_max: u16) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let congestion = CubicConfig { initial_window: INITIAL_WINDOW_BYTES };
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(payload_max);
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_timeout_ms))))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_FIRST_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .congestion_controller_factory(Arc::new(congestion))
        .mtu_discovery_config(Some(mtu));
    transport
}

/// Connection ids of no length: each connection has a socket of its own (§2.2).
struct ZeroLength;

impl ConnectionIdGenerator for ZeroLength {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&[])
    }

    fn cid_len(&self) -> usize {
        0
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Announced by the connector (C4); the lower of both sides holds.
const CLIENT_IDLE_TIMEOUT_MS: u32 = 5_000;
/// Between PINGs of an idle connection (C4).
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Requests at once that a connector takes on one connection. The stock connector announces 2^60
/// (C4), but quinn keeps an entry of some 50 bytes for every stream announced: 4096 cost 200 KiB,
/// and are four times what any edge is seen to use. Bounds the connector's tasks too.
const REQUEST_STREAMS_MAX: u32 = 4096;

/// Unread bytes of one stream over the longest lines, once it has been read for a while: 128 MiB carry 9.4 Gbit/s over 100 ms.
/// quinn knows one size for all streams of a connection, so it is chosen when the line is known (`listener.rs`); what streams
/// hold together the connection's window bounds.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 128 * 1024 * 1024;
/// Unread bytes of one stream over lines of 13 ms and less, and until as many were read: what a visitor who never reads
/// costs. An eighth of the largest, because quinn renews a stream's window whenever an eighth of it was read; with less, a
/// stream would stand still for ever.
pub(crate) const STREAM_WINDOW_FIRST_BYTES: u32 = STREAM_WINDOW_BYTES / 8;
/// What windows are made for.
const STREAM_BYTES_PER_SECOND: f64 = 1.25e9;
/// Unread bytes of one connection, for all streams that are read as fast as bytes come; more where a
/// long line is filled. Streams that are not read so are given as much again as they can hold, from a
/// budget (`credit.rs`), so that they leave this to the others; two that stop at once use it up until
/// the next look, half a second at most.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Unacknowledged and unsent bytes of one connection, until a long line is seen to hold more. A stream
/// that its reader does not read cannot fill it: quinn takes from a writer only what the peer's
/// windows allow, and that the peer's transport acknowledges whether or not it is read.
pub(crate) const SEND_WINDOW_BYTES: u64 = 32 * 1024 * 1024;
/// Datagrams are announced (C4) but not read yet; older ones are dropped beyond this.
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;
/// 32 packets, as the stock connector begins (§10).
const INITIAL_WINDOW_BYTES: u64 = 32 * 1232;
