//! The edge: accepts connectors' connections and opens request streams on them.
//!
//! A visitor's request: `open.rs` (pick a connection, open a stream, write the head, read the answer).
//! A connector's connection: `session.rs` (register, serve its calls, drain, close).

mod book;
mod error;
mod open;
mod push;
mod session;
mod status;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::ThreadId,
    time::Duration,
};

use adit_config::TunnelId;
use adit_tunnel_proto::{Grant, RequestHead};
use quinn::{Endpoint, Incoming, VarInt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinError, JoinSet},
    time::timeout,
};

use self::book::Book;
pub use self::{
    book::LearntHostnames,
    error::{EdgeError, OpenError, ResponseError},
    open::{EncodedHead, Opened, PendingResponse},
    push::PushAnswer,
    status::{EdgeConnectionStatus, TunnelStatus},
};
use crate::{
    credit::Budget,
    metrics::EdgeMetrics,
    tls,
    transport::{self, Configs, Listener},
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
    /// Over which connections are spread: whatever a request waits for wakes the thread that serves its visitor, if that
    /// is one of these. Empty = the caller's runtime.
    pub lanes: Vec<EdgeLane>,
}

/// A runtime of one thread that runs connections.
#[derive(Clone, Debug)]
pub struct EdgeLane {
    /// The runtime.
    pub runtime: Handle,
    /// How many it runs now.
    pub connections: Arc<AtomicUsize>,
}

/// A certificate chain and its key.
#[derive(Debug)]
pub struct EdgeCertificate {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

/// A certificate that [`EdgeHandle::set_certificate`] can take: chain and key belong together.
pub struct CheckedCertificate(Configs);

/// A bound edge, ready to run.
pub struct Edge {
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

/// What all connections of one edge have in common.
struct Shared {
    options: Limits,
    location: Arc<str>,
    book: Book,
    /// For visitors who read slowly.
    budget: Arc<Budget>,
    listener: Listener,
    metrics: EdgeMetrics,
    lanes: Vec<EdgeLane>,
}

/// The numbers among [`EdgeOptions`].
#[derive(Clone, Copy, Debug)]
struct Limits {
    registration_timeout: Duration,
    grace_period: Duration,
    connections_max: usize,
    streams_per_connection_max: usize,
}

impl Edge {
    /// Binds the listener; its metrics go into `registry`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address or the certificate is of no use, or a metric's name is taken.
    pub fn bind(
        options: EdgeOptions,
        grants: Vec<Grant>,
        registry: &prometheus::Registry,
    ) -> Result<Self, EdgeError> {
        let metrics = EdgeMetrics::register(registry)?;
        metrics.connections_max.set(i64::from(options.connections_max));
        let configs = configs(options.certificate)?;
        let listen = |source| EdgeError::Listen { address: options.listen, source };
        let endpoint = transport::listening_endpoint(options.listen, configs.first(), &metrics.udp);
        let endpoint = endpoint.map_err(listen)?;
        let shared = Shared {
            options: Limits {
                registration_timeout: options.registration_timeout,
                grace_period: options.grace_period,
                connections_max: options.connections_max as usize,
                streams_per_connection_max: options.streams_per_connection_max as usize,
            },
            location: options.location.into(),
            book: Book::new(grants, usize::from(options.hostnames_per_tunnel_max)),
            budget: Budget::new(metrics.credit.clone()),
            listener: Listener::new(configs),
            metrics,
            lanes: options.lanes,
        };
        Ok(Self { endpoint, shared: Arc::new(shared) })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// When the socket has none.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// A handle that outlives [`Edge::run`].
    pub fn handle(&self) -> EdgeHandle {
        EdgeHandle { endpoint: self.endpoint.clone(), shared: Arc::clone(&self.shared) }
    }

    /// Serves connectors until `shutdown` turns true; then takes no new connection, waits for what
    /// is in flight at most the grace period, and closes every connection.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        // Bounded by `connections_max`.
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming, &mut sessions),
                    None => break,
                },
                Some(done) = sessions.join_next() => report_panic(done),
                // A sender that is gone can no longer ask for anything but the end.
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        self.drain().await;
        sessions.shutdown().await;
    }

    /// Waits for what is in flight, then closes every connection.
    async fn drain(&self) {
        self.endpoint.set_server_config(None);
        if timeout(self.shared.options.grace_period, self.shared.book.wait_idle()).await.is_err() {
            let in_flight = self.shared.book.in_flight();
            tracing::warn!(in_flight, reason = "grace_period", "edge closes with requests in flight");
        }
        self.endpoint.close(CLOSE_CODE, b"");
        // What is not sent by then the connectors' timers find out.
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }

    /// Lets a handshake begin, within the limits.
    fn admit(&self, incoming: Incoming, sessions: &mut JoinSet<()>) {
        let strangers = sessions.len().saturating_sub(self.shared.book.registered());
        let refused = |reason| {
            self.shared.metrics.refusals.with_label_values(&[reason]).inc();
            tracing::debug!(remote = %incoming.remote_address(), reason, "connection is refused");
        };
        if sessions.len() >= self.shared.options.connections_max {
            refused("connections_max");
            return incoming.refuse();
        }
        if strangers >= STRANGERS_UNVALIDATED_MAX && incoming.may_retry() {
            refused("address_unvalidated");
            // It may retry, so this does not fail.
            return drop(incoming.retry());
        }
        let serving = session::run(Arc::clone(&self.shared), incoming);
        let Some(lane) = self.shared.lanes.iter().min_by_key(|lane| lane.connections.load(Ordering::Relaxed))
        else {
            return drop(sessions.spawn(serving));
        };
        let running = Running::new(&lane.connections);
        let serving = async move {
            serving.await;
            drop(running);
        };
        sessions.spawn_on(serving, &lane.runtime);
    }
}

impl Shared {
    /// This thread, if connections stay on the thread that they begin on.
    fn lane(&self) -> Option<ThreadId> {
        (!self.lanes.is_empty()).then(|| std::thread::current().id())
    }
}

/// One connection, counted for as long as it lives.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connections))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // Handles keep the endpoint and the connections alive, but nobody would serve them.
        self.endpoint.close(CLOSE_CODE, b"");
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").field("local_addr", &self.endpoint.local_addr().ok()).finish_non_exhaustive()
    }
}

/// Opens streams through a running edge, and looks into it.
#[derive(Clone)]
pub struct EdgeHandle {
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

impl EdgeHandle {
    /// Opens a request stream on the least loaded connection of `tunnel` and sends `head`.
    ///
    /// # Errors
    /// When the tunnel has no connection that takes it; nothing was delivered then.
    pub async fn open(&self, tunnel: TunnelId, head: &RequestHead) -> Result<Opened, OpenError> {
        self.open_encoded(tunnel, EncodedHead::new(head), false).await
    }

    /// [`Self::open`] with a head that is ready to be sent; for a request without content, which `is_whole`, the half to
    /// send it is finished.
    ///
    /// # Errors
    /// The same.
    pub async fn open_encoded(
        &self,
        tunnel: TunnelId,
        head: EncodedHead,
        is_whole: bool,
    ) -> Result<Opened, OpenError> {
        let opened = open::open(&self.shared, tunnel, head, is_whole).await;
        if let Err(error) = &opened {
            self.shared.metrics.stream_failures.with_label_values(&[error.reason()]).inc();
        }
        opened
    }

    /// Hosts learnt from connectors' rules, within what each tunnel may serve; changes are announced.
    pub fn learnt_hostnames(&self) -> watch::Receiver<LearntHostnames> {
        self.shared.book.learnt()
    }

    /// Replaces the declared tunnels: connections of a removed tunnel, or one whose secret changed,
    /// are closed.
    pub fn set_grants(&self, grants: Vec<Grant>) {
        let closed = self.shared.book.replace_grants(grants);
        self.shared.book.publish(&self.shared.metrics);
        tracing::info!(closed, "tunnels are replaced");
    }

    /// Replaces the certificate for connections to come.
    pub fn set_certificate(&self, certificate: CheckedCertificate) {
        self.endpoint.set_server_config(Some(certificate.0.first()));
        self.shared.listener.replace(certificate.0);
    }

    /// Pushes a configuration (JSON of tunnel-protocol.md §3.7) to every connection of `tunnel`; what
    /// each answered.
    ///
    /// # Errors
    /// When the tunnel is not declared or has no connection.
    pub async fn push_configuration(
        &self,
        tunnel: TunnelId,
        version: i32,
        json: &[u8],
    ) -> Result<Vec<PushAnswer>, OpenError> {
        push::push(&self.shared, tunnel, version, json).await
    }

    /// Every declared tunnel and its connections.
    pub fn tunnels(&self) -> Vec<TunnelStatus> {
        self.shared.book.status()
    }
}

impl fmt::Debug for EdgeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeHandle").finish_non_exhaustive()
    }
}

fn report_panic(done: Result<(), JoinError>) {
    if let Err(error) = done {
        tracing::error!(%error, "connection task failed");
    }
}

impl CheckedCertificate {
    /// Looks whether an edge could show it.
    ///
    /// # Errors
    /// [`EdgeError::Certificate`].
    pub fn new(certificate: EdgeCertificate) -> Result<Self, EdgeError> {
        configs(certificate).map(Self)
    }
}

impl fmt::Debug for CheckedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckedCertificate")
    }
}

fn configs(certificate: EdgeCertificate) -> Result<Configs, EdgeError> {
    let tls = tls::server_config(certificate.chain, certificate.key).map_err(EdgeError::Certificate)?;
    // The suites offered include the one that QUIC's first packets need.
    Configs::new(tls).map_err(|error| EdgeError::Certificate(rustls::Error::General(error.to_string())))
}

/// Application code of every close.
const CLOSE_CODE: VarInt = VarInt::from_u32(0);
/// Longest wait for the closes to be sent.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that have not registered from which on a stranger must prove its address (RFC 9000
/// §8.1.2); a restart of a few connectors stays below.
const STRANGERS_UNVALIDATED_MAX: usize = 256;
