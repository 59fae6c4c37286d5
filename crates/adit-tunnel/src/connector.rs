//! The connector: keeps a tunnel's connections to the edge up and hands requests to its handler.

use std::{fmt, net::{IpAddr, SocketAddr}, path::PathBuf, sync::Arc, time::{Duration, Instant}};

use adit_config::{EdgeIpVersion, Protocol as ProtocolChoice, TunnelCredentials};
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::watch;
use uuid::Uuid;

use crate::request::{Protocol, RequestHandler};

/// How a connector reaches its edge and what it says of itself.
#[derive(Clone, Debug)]
pub struct ConnectorOptions {
    /// What it registers with.
    pub credentials: TunnelCredentials,
    /// `host:port` of the edge, one per wanted connection, looked up at each dial; empty = discovery
    /// through DNS (tunnel-protocol.md §1.1).
    pub edge: Vec<String>,
    /// Region of the discovery, such as `us`.
    pub region: Option<String>,
    /// Address family towards the edge.
    pub ip_version: EdgeIpVersion,
    /// Local address to dial from.
    pub bind_address: Option<IpAddr>,
    /// PEM file that replaces every trusted root; absent = the system's and the built-in ones.
    pub ca: Option<PathBuf>,
    /// Wanted connections; never more than the edge has addresses (C10).
    pub connections: u8,
    /// Transport, or which may be tried.
    pub protocol: ProtocolChoice,
    /// Cap of the backoff exponent (C12).
    pub retries: u8,
    /// Failed dials of one connection after which `Auto` may fall back (§1.3).
    pub edge_address_retries: u8,
    /// Feature strings beside those always sent (§1.5).
    pub features: Vec<String>,
    /// Offer only post-quantum key exchange (C2).
    pub post_quantum: bool,
    /// Turns off path MTU discovery.
    pub disable_pmtu_discovery: bool,
    /// Release told to the edge, such as `2026.8.2`.
    pub version: String,
    /// Local rules told to the edge (§3.7); `adit_tunnel_proto::local_configuration` makes it.
    pub local_configuration: Option<Bytes>,
    /// Longest wait for an answer on the control stream.
    pub rpc_timeout: Duration,
    /// Longest service after unregistering (§3.6).
    pub grace_period: Duration,
}

/// Why a connector ended, or could not start.
#[derive(Debug, Error)]
pub enum ConnectorError {
    /// The edge refused the registration for good.
    #[error("edge refused the tunnel: {cause}")]
    Refused {
        /// The edge's words.
        cause: String,
    },
}

/// What one connection of a connector is doing.
#[derive(Clone, Debug)]
pub struct ConnectionStatus {
    /// Index, 0 first.
    pub index: u8,
    /// Its phase.
    pub phase: ConnectionPhase,
    /// Transport in use or to be used.
    pub protocol: Protocol,
    /// The edge's address, once dialled.
    pub edge: Option<SocketAddr>,
    /// The edge's location name, once registered.
    pub location: Option<Arc<str>>,
    /// The edge's id of the connection, once registered.
    pub connection_id: Option<Uuid>,
    /// When the phase began.
    pub since: Instant,
}

/// The life of one connection of a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionPhase {
    /// Waiting for its turn or for its backoff.
    Waiting,
    /// Dialling or registering.
    Connecting,
    /// Registered and serving.
    Registered,
    /// Unregistered, serving what is in flight.
    Draining,
    /// Over.
    Stopped,
}

/// A connector, ready to run.
pub struct Connector<H> {
    handle: ConnectorHandle,
    #[expect(dead_code, reason = "first cut of the API")]
    handler: Arc<H>,
}

impl<H: RequestHandler> Connector<H> {
    /// A connector that will serve requests through `handler`; its metrics go into `registry`.
    ///
    /// # Errors
    /// When the roots cannot be read or a metric's name is taken.
    pub fn new(
        options: ConnectorOptions,
        handler: Arc<H>,
        registry: &prometheus::Registry,
    ) -> Result<Self, ConnectorError> {
        let _ = (options, registry);
        Ok(Self { handle: ConnectorHandle {}, handler })
    }

    /// A handle that outlives [`Connector::run`].
    pub fn handle(&self) -> ConnectorHandle {
        self.handle.clone()
    }

    /// Keeps the tunnel up until `shutdown` turns true; then drains (tunnel-protocol.md §3.6):
    /// unregisters, serves until the edge closes or the grace period ends, closes.
    ///
    /// # Errors
    /// When the edge refused the tunnel for good.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) -> Result<(), ConnectorError> {
        let _ = shutdown.wait_for(|stop| *stop).await;
        Ok(())
    }
}

/// Looks into a running connector.
#[derive(Clone)]
pub struct ConnectorHandle {}

impl ConnectorHandle {
    /// Connections registered and not draining; what `/ready` counts.
    pub fn ready_connections(&self) -> usize {
        0
    }

    /// The connector's id, made anew by each process.
    pub fn connector_id(&self) -> Uuid {
        Uuid::nil()
    }

    /// Every connection and its phase, by index.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        Vec::new()
    }

    /// Replaces the local rules told to the edge; a registered connection 0 pushes them at once.
    pub fn set_local_configuration(&self, json: Bytes) {
        drop(json);
    }
}

impl fmt::Debug for ConnectorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectorHandle").finish_non_exhaustive()
    }
}
