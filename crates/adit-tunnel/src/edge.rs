//! The edge: accepts connectors' connections and opens request streams on them.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_config::{HostPattern, TunnelId};
use adit_tunnel_proto::{Grant, RequestHead, ResponseHead};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    request::ConnectionLabel,
    streams::{Loss, RecvHalf, SendHalf},
};

/// Where the edge listens and what it says of itself.
#[derive(Debug)]
pub struct EdgeOptions {
    /// UDP address for connectors.
    pub listen: SocketAddr,
    /// Shown to connectors; its names must include `quic.cftunnel.com` for stock ones.
    pub certificate: EdgeCertificate,
    /// Location name told to connectors.
    pub location: String,
    /// Longest time from the first packet to the registration.
    pub registration_timeout: Duration,
    /// Longest service of a connection that is draining.
    pub grace_period: Duration,
    /// Connections at once, registered or not.
    pub connections_max: u32,
    /// Requests at once on one connection.
    pub streams_per_connection_max: u32,
    /// Hosts learnt from one tunnel's connectors.
    pub hostnames_per_tunnel_max: u16,
}

/// A certificate chain and its key.
#[derive(Debug)]
pub struct EdgeCertificate {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

/// Why an edge cannot start.
#[derive(Debug, Error)]
pub enum EdgeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The certificate or its key is of no use.
    #[error("certificate for connectors is unusable")]
    Certificate(#[source] rustls::Error),
    /// A metric's name is taken.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
}

/// Why no request stream could be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// No such tunnel is declared.
    #[error("tunnel is not declared")]
    UnknownTunnel,
    /// No connector is connected.
    #[error("tunnel has no connection")]
    NoConnection,
    /// Every connection is draining.
    #[error("every connection of the tunnel is draining")]
    Draining,
    /// Every connection is full.
    #[error("tunnel carries as many requests as it may")]
    StreamLimit,
    /// The connection was lost while the stream was opened; nothing was delivered.
    #[error("tunnel connection was lost ({})", .0.reason())]
    ConnectionLost(Loss),
    /// The head cannot be put on the wire.
    #[error("request head is too large for the tunnel")]
    HeadTooLarge,
    /// The host belongs to the connector's management service, which the edge does not offer (E22).
    #[error("host is reserved for management")]
    ManagementHost,
}

impl OpenError {
    /// The name under which logs and metrics count this error.
    pub fn reason(self) -> &'static str {
        match self {
            Self::UnknownTunnel => "unknown_tunnel",
            Self::NoConnection => "no_connection",
            Self::Draining => "draining",
            Self::StreamLimit => "stream_limit",
            Self::ConnectionLost(loss) => loss.reason(),
            Self::HeadTooLarge => "head_too_large",
            Self::ManagementHost => "management_host",
        }
    }
}

/// Why no response head came back on an opened stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// The connector could not get an answer from the origin.
    #[error("connector got no answer: {0}")]
    Origin(String),
    /// The connector refused because of its flow limit.
    #[error("connector refused because of its flow limit: {0}")]
    RateLimited(String),
    /// The connector reset the stream or ended it before a whole head.
    #[error("connector broke the stream off")]
    Reset,
    /// The answer is not a response head.
    #[error("connector answered with a bad head ({0})")]
    Malformed(&'static str),
    /// The connection was lost.
    #[error("tunnel connection was lost ({})", .0.reason())]
    ConnectionLost(Loss),
}

impl ResponseError {
    /// The name under which logs and metrics count this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Origin(_) => "origin_failed",
            Self::RateLimited(_) => "rate_limited",
            Self::Reset => "stream_reset",
            Self::Malformed(_) => "malformed_head",
            Self::ConnectionLost(loss) => loss.reason(),
        }
    }
}

/// An opened request stream.
#[derive(Debug)]
pub struct Opened {
    /// For the request's body.
    pub send: SendHalf,
    /// For the response.
    pub response: PendingResponse,
    /// The connection that carries it.
    pub connection: ConnectionLabel,
}

/// A response that has not come yet. Dropping it gives the request up.
#[derive(Debug)]
pub struct PendingResponse {}

impl PendingResponse {
    /// Waits for the response head; sets no time limit of its own.
    ///
    /// # Errors
    /// When the connector fails, breaks off or is lost.
    pub async fn recv(self) -> Result<(ResponseHead, RecvHalf), ResponseError> {
        Err(ResponseError::Reset)
    }
}

/// A bound edge, ready to run.
pub struct Edge {}

impl Edge {
    /// Binds the listener; its metrics go into `registry`.
    ///
    /// # Errors
    /// When the address or the certificate is of no use.
    pub fn bind(
        options: EdgeOptions,
        grants: Vec<Grant>,
        registry: &prometheus::Registry,
    ) -> Result<Self, EdgeError> {
        let _ = (options, grants, registry);
        Ok(Self {})
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// When the socket has none.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Err(std::io::ErrorKind::NotConnected.into())
    }

    /// A handle that outlives [`Edge::run`].
    pub fn handle(&self) -> EdgeHandle {
        EdgeHandle {}
    }

    /// Serves connectors until `shutdown` turns true; then takes no new connection, waits for what
    /// is in flight at most the grace period, and closes every connection.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let _ = shutdown.wait_for(|stop| *stop).await;
    }
}

/// Opens streams through a running edge, and looks into it.
#[derive(Clone, Debug)]
pub struct EdgeHandle {}

impl EdgeHandle {
    /// Opens a request stream on the least loaded connection of `tunnel` and sends `head`.
    ///
    /// # Errors
    /// When the tunnel has no connection that takes it; nothing was delivered then.
    pub async fn open(&self, tunnel: TunnelId, head: &RequestHead) -> Result<Opened, OpenError> {
        let _ = (tunnel, head);
        Err(OpenError::NoConnection)
    }

    /// Hosts learnt from connectors' rules, within what each tunnel may serve; changes are announced.
    pub fn learnt_hostnames(&self) -> watch::Receiver<Arc<Vec<(TunnelId, Vec<HostPattern>)>>> {
        watch::channel(Arc::default()).1
    }

    /// Replaces the declared tunnels: connections of a removed tunnel, or one whose secret changed, are closed.
    pub fn set_grants(&self, grants: Vec<Grant>) {
        drop(grants);
    }

    /// Replaces the certificate for connections to come.
    ///
    /// # Errors
    /// When it is of no use; the old one stays.
    pub fn set_certificate(&self, certificate: EdgeCertificate) -> Result<(), EdgeError> {
        drop(certificate);
        Ok(())
    }

    /// Every declared tunnel and its connections.
    pub fn tunnels(&self) -> Vec<TunnelStatus> {
        Vec::new()
    }
}

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
