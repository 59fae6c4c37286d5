//! The UDP side of an entry point with HTTP/3.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_route::mesh::MeshIdentity;
use arc_swap::ArcSwap;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::drain::Drain;
use crate::h1::server::Options;
use crate::lanes::LaneName;
use crate::listen::{ListenError, Switch, bind_device, canonical};
use crate::mesh::Admitted;
use crate::message::{Service, Visitor};
use crate::middleware::TlsInfo;
use crate::tls::options::{DEFAULT_OPTIONS, Stamp};

/// A bound HTTP/3 entry point.
#[derive(Debug)]
pub struct H3Listener {
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    active: Arc<ArcSwap<H3Options>>,
    permits: Arc<Semaphore>,
    /// The configuration in use.
    current: Mutex<Option<Made>>,
}

/// Changes the settings of a running listener; its socket and its connections stay.
#[derive(Clone, Debug)]
pub struct H3Handle {
    active: Arc<ArcSwap<H3Options>>,
}

/// A configuration and what it was made of.
#[derive(Clone, Debug)]
struct Made {
    of: Arc<ServerConfig>,
    options: Arc<H3Options>,
    config: Arc<quinn::ServerConfig>,
}

impl H3Handle {
    /// Takes new settings for connections accepted from now on; all but the device, for which it was bound, and the number
    /// of connections.
    pub fn set(&self, options: H3Options) {
        let device = self.active.load().device.clone();
        self.active.store(Arc::new(H3Options { device, ..options }));
    }
}

/// What an HTTP/3 entry point is set up with.
#[derive(Clone, Debug)]
pub struct H3Options {
    /// Name in logs and metrics: that of its TCP side.
    pub name: String,
    /// The TCP side's: TLS options and which hosts have their own.
    pub switch: Arc<ArcSwap<Switch>>,
    /// Connections at once; further ones are refused.
    pub connections_max: usize,
    /// Takes only what arrives through this interface (`SO_BINDTODEVICE`): that of the mesh, whose peers are known by
    /// their addresses.
    pub device: Option<String>,
    /// Limits of each connection.
    pub connection: Options,
}

impl H3Listener {
    /// Binds a UDP socket.
    ///
    /// # Errors
    /// [`ListenError`] if the address is taken or not ours.
    pub fn bind(address: SocketAddr, options: H3Options) -> Result<Self, ListenError> {
        let fail = |source| ListenError { name: options.name.clone(), address, source };
        let socket = bind(address, options.device.as_deref()).map_err(fail)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        // The endpoint needs some configuration to answer at all; each connection gets the one of its moment.
        let switch = options.switch.load();
        let config = switch
            .options
            .find(DEFAULT_OPTIONS)
            .and_then(|default| quic_config(&options, default))
            .map_err(|reason| fail(io::Error::other(reason)))?;
        let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(config), socket, runtime)
            .map_err(fail)?;
        let address = endpoint.local_addr().map_err(fail)?;
        let permits = Arc::new(Semaphore::new(options.connections_max));
        let active = Arc::new(ArcSwap::from_pointee(options));
        Ok(Self { endpoint, address, active, permits, current: Mutex::new(None) })
    }

    /// For later changes of settings.
    pub fn handle(&self) -> H3Handle {
        H3Handle { active: Arc::clone(&self.active) }
    }

    /// The bound address, with the port that the system chose for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until `drain` begins, then waits for the connections to finish.
    ///
    /// To end without waiting, drop the future: remaining connections are cut.
    pub async fn run<S: Service>(self, service: Arc<S>, drain: Drain) {
        let mut connections = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                () = drain.started() => break,
                Some(_) = connections.join_next() => continue,
            };
            let Some(incoming) = incoming else { break };
            let options = self.active.load_full();
            let metrics = &options.connection.metrics;
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                metrics.refused("h3_connections_full");
                incoming.refuse();
                continue;
            };
            // RFC 9000 §8.1.2: under load a visitor proves its address before it costs a handshake.
            if !incoming.remote_address_validated() && self.endpoint.open_connections() > UNVALIDATED_MAX {
                metrics.refused("h3_retry");
                let _ = incoming.retry();
                continue;
            }
            let peer = match admit(&options, incoming.remote_address()) {
                Ok(peer) => peer,
                Err(reason) => {
                    tracing::debug!(reason, "HTTP/3 connection refused");
                    metrics.refused(reason);
                    incoming.refuse();
                    continue;
                }
            };
            let (config, stamp) = match self.config(&options) {
                Ok(config) => config,
                Err(reason) => {
                    tracing::debug!(%reason, reason = "h3_tls", "HTTP/3 connection refused");
                    metrics.refused("h3_tls");
                    incoming.refuse();
                    continue;
                }
            };
            let Ok(connecting) = incoming.accept_with(config) else { continue };
            let accepted = Accepted {
                entry_point: options.name.as_str().into(),
                local: self.address,
                stamp,
                options: options.connection.clone(),
                drain: drain.clone(),
            };
            let service = Arc::clone(&service);
            connections.spawn(async move {
                let _permit = permit;
                accepted.serve_while(peer, connecting, service).await;
            });
        }
        while connections.join_next().await.is_some() {}
        self.endpoint.wait_idle().await;
    }

    /// The configuration of this moment; made anew only when the TLS options have changed.
    fn config(&self, options: &Arc<H3Options>) -> Result<(Arc<quinn::ServerConfig>, Stamp), String> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = options.switch.load();
        let default = switch.options.find(DEFAULT_OPTIONS)?;
        let stamp = switch.options.stamp(DEFAULT_OPTIONS).unwrap_or_default();
        if let Some(made) = &*current
            && Arc::ptr_eq(&made.of, default)
            && Arc::ptr_eq(&made.options, options)
        {
            return Ok((Arc::clone(&made.config), stamp));
        }
        let config = Arc::new(quic_config(options, default)?);
        *current =
            Some(Made { of: Arc::clone(default), options: Arc::clone(options), config: Arc::clone(&config) });
        Ok((config, stamp))
    }
}

/// The peer of the mesh that asks, where only those may; the error is the refusal's name.
fn admit(options: &H3Options, remote: SocketAddr) -> Result<Option<Admitted>, &'static str> {
    let switch = options.switch.load();
    match (&switch.mesh, &options.device) {
        (None, None) => Ok(None),
        (Some(visitors), Some(_)) => {
            visitors.admit(canonical(remote).ip()).map(Some).ok_or("mesh_peer_unknown")
        }
        _ => Err("entry_point_moved"),
    }
}

struct Accepted {
    entry_point: LaneName,
    local: SocketAddr,
    /// Of the TLS options that the handshake is made under.
    stamp: Stamp,
    options: Options,
    drain: Drain,
}

impl Accepted {
    /// Serves a peer of the mesh for as long as it is this peer that speaks from its address.
    async fn serve_while<S: Service>(
        self,
        peer: Option<Admitted>,
        connecting: quinn::Connecting,
        service: Arc<S>,
    ) {
        let Some(mut admitted) = peer else { return self.serve(connecting, service, None).await };
        let metrics = Arc::clone(&self.options.metrics);
        let identity = Arc::clone(&admitted.identity);
        tokio::select! {
            biased;
            () = admitted.changed() => {
                tracing::debug!(peer = %identity.name, reason = "mesh_peer_changed", "connection closed");
                metrics.refused("mesh_peer_changed");
            }
            () = self.serve(connecting, service, Some(Arc::clone(&identity))) => {}
        }
    }

    async fn serve<S: Service>(
        self,
        connecting: quinn::Connecting,
        service: Arc<S>,
        peer: Option<Arc<MeshIdentity>>,
    ) {
        let metrics = &self.options.metrics;
        let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::debug!(%error, reason = "h3_handshake", "QUIC handshake refused");
                return metrics.refused("h3_handshake");
            }
            Err(_) => return metrics.refused("tls_slow"),
        };
        let _open = metrics.quic_connection(&self.entry_point);
        let visitor = Visitor {
            remote: canonical(connection.remote_address()),
            local: self.local,
            secure: true,
            entry_point: Arc::clone(self.entry_point.own()),
            peer,
            tls: Some(Arc::new(TlsInfo { options: self.stamp, ..tls_info(&connection) })),
            address: crate::message::AddressText::default(),
        };
        super::connection::serve(connection, service, Arc::new(visitor), &self.options, &self.drain).await;
    }
}

fn tls_info(connection: &quinn::Connection) -> TlsInfo {
    let handshake = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let identity =
        connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    TlsInfo {
        version: "1.3",
        // quinn does not tell.
        cipher: "",
        server_name: handshake
            .and_then(|handshake| handshake.server_name)
            .map(|name| name.to_ascii_lowercase().into_boxed_str()),
        client_certificates: identity.map(|chain| *chain).unwrap_or_default(),
        options: Stamp::default(),
    }
}

/// QUIC over the TLS options named `default`: the only ones that can be chosen before a name is known.
fn quic_config(options: &H3Options, default: &Arc<ServerConfig>) -> Result<quinn::ServerConfig, String> {
    let mut tls = ServerConfig::clone(default);
    tls.alpn_protocols = vec![b"h3".to_vec()];
    // 0-RTT could be replayed, and a resumed session would never be asked which certificate it may see.
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
    tls.cert_resolver =
        Arc::new(DefaultOnly { inner: Arc::clone(&tls.cert_resolver), switch: Arc::clone(&options.switch) });
    let crypto =
        QuicServerConfig::try_from(tls).map_err(|_| "HTTP/3 needs TLS 1.3 with AES-128".to_owned())?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(&options.connection)));
    config.max_incoming(INCOMING_MAX).incoming_buffer_size(INCOMING_BYTES_MAX);
    config.incoming_buffer_size_total(INCOMING_BYTES_MAX * INCOMING_MAX as u64 / 16);
    // A peer of the mesh is known by the address that its connection began with.
    config.migration(options.device.is_none());
    Ok(config)
}

fn transport(options: &Options) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    let idle = options.keep_alive_timeout.clamp(IDLE_MIN, IDLE_MAX);
    transport
        .max_concurrent_bidi_streams(options.streams_max.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(idle.try_into().ok());
    transport
}

/// Shows no certificate to visitors whose host has TLS options of its own (mTLS, say): they come back over TCP.
#[derive(Debug)]
struct DefaultOnly {
    inner: Arc<dyn ResolvesServerCert>,
    switch: Arc<ArcSwap<Switch>>,
}

impl ResolvesServerCert for DefaultOnly {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let switch = self.switch.load();
        let options = hello.server_name().and_then(|name| switch.hosts.options_of(name));
        if options.is_some_and(|options| options != DEFAULT_OPTIONS) {
            return None;
        }
        self.inner.resolve(hello)
    }
}

fn bind(address: SocketAddr, device: Option<&str>) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // What the system does not grant is not an error.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    bind_device(&socket, device)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// For a visitor's handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections open before addresses are validated first.
const UNVALIDATED_MAX: usize = 1024;
/// Handshakes not yet looked at; each may hold [`INCOMING_BYTES_MAX`].
const INCOMING_MAX: usize = 1024;
/// First packets of one handshake, kept until it is looked at.
const INCOMING_BYTES_MAX: u64 = 16 * 1024;
/// Control and two QPACK streams, and some that visitors open for no reason (RFC 9114 §6.2.3).
const UNI_STREAMS_MAX: u32 = 8;
/// Upload credit of one stream: fills 400 Mbit/s at 20 ms.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Credit of all streams of a connection: the most that a visitor can make us hold in each direction.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Silence of a connection, whatever the keep-alive time-out says.
const IDLE_MIN: Duration = Duration::from_secs(5);
/// See [`IDLE_MIN`]; middle boxes forget UDP flows earlier.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// Bursts of packets between two wake-ups.
const SOCKET_BUFFER_BYTES: usize = 2 * 1024 * 1024;
