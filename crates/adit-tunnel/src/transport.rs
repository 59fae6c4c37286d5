//! QUIC transport parameters and the UDP sockets under them (tunnel-protocol.md §2.2; C4, C15, E21).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig},
};

use crate::udp::{self, JUMBO_PAYLOAD_BYTES, TurnRuntime, UdpMetrics};

/// Transport of a connector, for any edge.
#[derive(Clone)]
pub(crate) struct Dialler {
    crypto: Arc<QuicClientConfig>,
    mtu_discovery: bool,
}

impl Dialler {
    pub(crate) fn new(tls: rustls::ClientConfig, mtu_discovery: bool) -> Result<Self, NoInitialCipherSuite> {
        Ok(Self { crypto: Arc::new(QuicClientConfig::try_from(tls)?), mtu_discovery })
    }

    /// Transport of one connection over a path that may carry UDP payloads of `payload_max` bytes.
    pub(crate) fn config(&self, payload_max: u16) -> ClientConfig {
        let mut transport = common(CLIENT_IDLE_TIMEOUT_MS, payload_max);
        transport.max_concurrent_bidi_streams(VarInt::from_u32(REQUEST_STREAMS_MAX));
        transport.receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
        transport.keep_alive_interval(Some(KEEP_ALIVE));
        if !self.mtu_discovery {
            transport.mtu_discovery_config(None);
        }
        let crypto = Arc::clone(&self.crypto);
        let mut config = ClientConfig::new(crypto);
        config.transport_config(Arc::new(transport));
        config
    }
}

/// Transport of an edge; connections begin with a small window (see [`admit`]).
pub(crate) fn server(tls: rustls::ServerConfig) -> Result<ServerConfig, NoInitialCipherSuite> {
    // What a connector announces bounds it further: its first link decides for both directions.
    let mut transport = common(SERVER_IDLE_TIMEOUT_MS, JUMBO_PAYLOAD_BYTES);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(CONNECTOR_STREAMS_MAX));
    transport.receive_window(VarInt::from_u32(UNREGISTERED_WINDOW_BYTES));
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    config.max_incoming(INCOMING_MAX);
    // A handshake is a few packets; what comes before it is accepted need not be kept.
    config.incoming_buffer_size(INCOMING_BUFFER_BYTES);
    config.incoming_buffer_size_total(INCOMING_BUFFER_BYTES * INCOMING_MAX as u64);
    Ok(config)
}

/// Gives a registered connection its full window.
pub(crate) fn admit(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
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
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW_BYTES);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(payload_max);
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_timeout_ms))))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
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
/// Above 5 s, so that the connector's value holds (E21).
const SERVER_IDLE_TIMEOUT_MS: u32 = 10_000;
/// Between PINGs of an idle connection (C4).
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Requests at once that a connector takes on one connection. The stock connector announces 2^60
/// (C4), but quinn keeps an entry of some 50 bytes for every stream announced: 4096 cost 200 KiB,
/// and are four times what any edge is seen to use. Bounds the connector's tasks too.
const REQUEST_STREAMS_MAX: u32 = 4096;

/// Streams at once that a connector opens: the control stream and short RPC streams (E15).
const CONNECTOR_STREAMS_MAX: u32 = 16;

/// Unread bytes of one stream: 16 MiB carry 6.7 Gbit/s over 20 ms and 1.3 Gbit/s over 100 ms. quinn
/// knows one size for all streams, and a visitor who stops reading holds as much of our memory.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Unread bytes of one connection, for all streams that are read as fast as bytes come; more where a
/// long line is filled. Streams that are not read so are given as much again as they can hold, from a
/// budget (`credit.rs`), so that they leave this to the others; two that stop at once use it up until
/// the next look, half a second at most.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Unread bytes of a connection that has not registered: enough for the largest RPC message's start,
/// and 4,096 strangers cost 256 MiB at most.
const UNREGISTERED_WINDOW_BYTES: u32 = 64 * 1024;
/// Unacknowledged and unsent bytes of one connection, until a long line is seen to hold more. A stream
/// that its reader does not read cannot fill it: quinn takes from a writer only what the peer's
/// windows allow, and that the peer's transport acknowledges whether or not it is read.
pub(crate) const SEND_WINDOW_BYTES: u64 = 32 * 1024 * 1024;
/// Datagrams are announced (C4) but not read yet; older ones are dropped beyond this.
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;
/// 32 packets, as the stock connector begins (§10).
const INITIAL_WINDOW_BYTES: u64 = 32 * 1232;
/// Handshakes not yet looked at.
const INCOMING_MAX: usize = 1024;
/// Bytes kept for each of them: a hybrid ClientHello has two packets (E2).
const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;
