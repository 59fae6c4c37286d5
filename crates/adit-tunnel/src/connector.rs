//! The connector: keeps a tunnel's connections to the edge up and hands requests to its handler.
//!
//! `run` drives `adit_tunnel_proto::Supervisor`; each connection is a task in `quic.rs` or `http2.rs`.

mod configuration;
mod control;
mod discovery;
mod http2;
mod quic;
mod shared;
mod status;
mod stream;

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_config::{EdgeIpVersion, Protocol as ProtocolChoice, TunnelCredentials};
use adit_tunnel_proto::{
    Command, EdgeEndpoint, Failure, Next, Outcome, Protocol, Supervisor, SupervisorOptions,
};
use bytes::Bytes;
use rand::{SeedableRng, rngs::StdRng};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
    time::{sleep_until, timeout},
};
use uuid::Uuid;

use self::shared::{Order, Shared};
pub use self::status::{ConnectionPhase, ConnectionStatus};
use crate::{metrics::ConnectorMetrics, request::RequestHandler, tls::TlsError};

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
    /// PEM text in place of that file: the authority that an edge in the same process has made.
    pub ca_pem: Option<String>,
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
    /// Local rules told to the edge (§3.7), as `adit_config::Ingress::to_local_push` makes them.
    pub local_configuration: Option<Bytes>,
    /// Longest wait for an answer on the control stream.
    pub rpc_timeout: Duration,
    /// Longest service after unregistering (§3.6).
    pub grace_period: Duration,
    /// Runtimes of one thread, over which connections are spread by index: whatever a request of one waits
    /// for wakes the thread that runs it. Empty = the caller's runtime.
    pub lanes: Vec<Handle>,
}

/// Why a connector ended, or could not start.
#[derive(Debug, Error)]
pub enum ConnectorError {
    /// TLS cannot be set up.
    #[error("cannot set up TLS towards the edge")]
    Tls(#[from] TlsError),
    /// A metric's name is taken.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
    /// The edge refused the registration for good.
    #[error("edge refused the tunnel: {cause}")]
    Refused {
        /// The edge's words.
        cause: String,
    },
}

/// A connector, ready to run.
pub struct Connector<H> {
    shared: Arc<Shared<H>>,
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
        let metrics = ConnectorMetrics::register(registry)?;
        Ok(Self { shared: Arc::new(Shared::new(options, handler, metrics)?) })
    }

    /// A handle that outlives [`Connector::run`].
    pub fn handle(&self) -> ConnectorHandle {
        ConnectorHandle {
            connector_id: self.shared.client.id,
            status: self.shared.status.clone(),
            local_configuration: self.shared.local_configuration.clone(),
        }
    }

    /// Keeps the tunnel up until `shutdown` turns true; then drains (tunnel-protocol.md §3.6):
    /// unregisters, serves until the edge closes or the grace period ends, closes. Dropping the
    /// future closes everything at once.
    ///
    /// # Errors
    /// When the edge refused the tunnel for good.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) -> Result<(), ConnectorError> {
        let options = &self.shared.options;
        tracing::info!(tunnelID = %options.credentials.tunnel_id, "Starting tunnel");
        tracing::info!("Generated Connector ID: {}", self.shared.client.id);
        let initial = match options.protocol {
            ProtocolChoice::Auto | ProtocolChoice::Quic => Protocol::Quic,
            ProtocolChoice::Http2 => Protocol::Http2,
        };
        tracing::info!("Initial protocol {}", initial.as_str());
        let supervisor = Supervisor::new(
            SupervisorOptions {
                connections: options.connections,
                retries: options.retries,
                address_retries: options.edge_address_retries,
                protocol: options.protocol,
                grace_period: options.grace_period,
            },
            &options.edge,
            StdRng::from_rng(&mut rand::rng()),
        );
        let (registered, registrations) = mpsc::channel(REGISTRATIONS_MAX);
        let mut runner =
            Runner { shared: self.shared, supervisor, registered, tasks: JoinSet::new(), lines: Vec::new() };
        runner.supervisor.handle_start(Instant::now());
        runner.run(registrations, &mut shutdown).await
    }
}

/// The loop around the supervisor.
struct Runner<H> {
    shared: Arc<Shared<H>>,
    supervisor: Supervisor,
    registered: mpsc::Sender<u8>,
    /// At most one task per connection, and one discovery.
    tasks: JoinSet<Done>,
    /// By connection index.
    lines: Vec<Line>,
}

/// One connection, as the loop holds it.
#[derive(Default)]
struct Line {
    orders: watch::Sender<Order>,
    /// The local UDP port it had last (C15).
    port: Arc<shared::Port>,
    task: Option<Id>,
}

enum Done {
    Connection { slot: u8, failure: Failure },
    Discovery([Vec<std::net::SocketAddr>; 2]),
}

impl<H: RequestHandler> Runner<H> {
    async fn run(
        &mut self,
        mut registrations: mpsc::Receiver<u8>,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), ConnectorError> {
        let mut stopping = false;
        loop {
            while let Some(command) = self.supervisor.poll_command() {
                if let Some(outcome) = self.execute(command) {
                    self.finish().await;
                    return match outcome {
                        Outcome::Drained => Ok(()),
                        Outcome::Refused { cause } => Err(ConnectorError::Refused { cause }),
                    };
                }
            }
            let due = self.supervisor.poll_timeout();
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                () = sleep_until(due.unwrap_or(far).into()) => self.supervisor.handle_timeout(Instant::now()),
                Some(slot) = registrations.recv() => self.supervisor.handle_registered(slot, Instant::now()),
                Some(done) = self.tasks.join_next() => self.handle_done(done),
                // A sender that is gone can no longer ask for anything but the end.
                _ = shutdown.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    self.supervisor.handle_shutdown(Instant::now());
                }
            }
        }
    }

    /// Lets what was told to close send its close.
    async fn finish(&mut self) {
        let closed = async { while self.tasks.join_next().await.is_some() {} };
        // Whoever takes longer is dropped, which closes too.
        let _ = timeout(CLOSE_TIMEOUT, closed).await;
        self.tasks.shutdown().await;
    }

    /// Carries a command out; the outcome if it was the last.
    fn execute(&mut self, command: Command) -> Option<Outcome> {
        match command {
            Command::Dial { slot, endpoint, protocol, previous_attempts } => {
                self.dial(slot, endpoint, protocol, previous_attempts);
            }
            Command::Unregister { slot } => self.order(slot, Order::Drain),
            Command::Close { slot } => self.order(slot, Order::Close),
            Command::Discover => {
                let region = self.shared.options.region.clone();
                let endpoint = self.shared.options.credentials.endpoint.clone();
                let ip_version = self.shared.options.ip_version;
                self.tasks.spawn(async move {
                    Done::Discovery(discovery::discover(region.or(endpoint), ip_version).await)
                });
            }
            Command::Finish(outcome) => return Some(outcome),
        }
        None
    }

    fn dial(&mut self, slot: u8, endpoint: EdgeEndpoint, protocol: Protocol, previous_attempts: u8) {
        let at = usize::from(slot);
        if self.lines.len() <= at {
            self.lines.resize_with(at + 1, Line::default);
        }
        let line = &mut self.lines[at];
        line.orders = watch::Sender::new(Order::Serve);
        if self.shared.status.connecting(slot, protocol).is_some_and(|before| before != protocol) {
            tracing::info!(connIndex = slot, "Switching to fallback protocol {}", protocol.as_str());
        }
        let dial = shared::Dial {
            slot,
            endpoint,
            previous_attempts,
            port: Arc::clone(&line.port),
            order: line.orders.subscribe(),
            registered: self.registered.clone(),
        };
        let shared = Arc::clone(&self.shared);
        let serving = async move {
            let failure = match protocol {
                Protocol::Quic => Box::pin(quic::run(shared, dial)).await,
                Protocol::Http2 => Box::pin(http2::run(shared, dial)).await,
            };
            Done::Connection { slot, failure }
        };
        let lanes = &self.shared.options.lanes;
        let task = match at.checked_rem(lanes.len()) {
            Some(lane) => self.tasks.spawn_on(serving, &lanes[lane]),
            None => self.tasks.spawn(serving),
        };
        line.task = Some(task.id());
    }

    fn order(&self, slot: u8, order: Order) {
        if let Some(line) = self.lines.get(usize::from(slot)) {
            line.orders.send_replace(order);
        }
    }

    fn handle_done(&mut self, done: Result<Done, JoinError>) {
        let (slot, failure) = match done {
            Ok(Done::Connection { slot, failure }) => (slot, failure),
            Ok(Done::Discovery(found)) => {
                return self.supervisor.handle_discovered(found, Instant::now());
            }
            // A panic of ours: the connection is gone, and is tried again as any other.
            Err(error) => {
                tracing::error!(%error, "connection task failed");
                let slot = (0u8..).zip(&self.lines).find(|(_, line)| line.task == Some(error.id()));
                let Some((slot, _)) = slot else {
                    return self.supervisor.handle_discovered(Default::default(), Instant::now());
                };
                (slot, Failure::Lost)
            }
        };
        self.shared.metrics.failures.with_label_values(&[reason_of(&failure)]).inc();
        match self.supervisor.handle_failed(slot, &failure, Instant::now()) {
            Next::Retry(wait) => {
                self.shared.status.waiting(slot);
                tracing::warn!(
                    connIndex = slot,
                    reason = reason_of(&failure),
                    cause = cause_of(&failure),
                    "Retrying connection in up to {wait:?}"
                );
            }
            Next::Stop => self.shared.status.stopped(slot),
        }
    }
}

/// Looks into a running connector.
#[derive(Clone)]
pub struct ConnectorHandle {
    connector_id: Uuid,
    status: status::Board,
    local_configuration: Arc<watch::Sender<Option<Bytes>>>,
}

impl ConnectorHandle {
    /// Connections registered and not draining; what `/ready` counts.
    pub fn ready_connections(&self) -> usize {
        self.status.ready()
    }

    /// The connector's id, made anew by each process.
    pub fn connector_id(&self) -> Uuid {
        self.connector_id
    }

    /// Every connection and its phase, by index.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        self.status.all()
    }

    /// Replaces the local rules told to the edge; a registered connection 0 pushes them at once.
    pub fn set_local_configuration(&self, json: Bytes) {
        self.local_configuration.send_replace(Some(json));
    }
}

impl fmt::Debug for ConnectorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectorHandle").field("connector_id", &self.connector_id).finish_non_exhaustive()
    }
}

/// The name under which logs and metrics count a failure.
fn reason_of(failure: &Failure) -> &'static str {
    match failure {
        Failure::Dial => "dial_failed",
        Failure::DialSilent => "dial_silent",
        Failure::DialForbidden => "dial_forbidden",
        Failure::Rejected(rejection) if rejection.is_duplicate() => "duplicate_connection",
        Failure::Rejected(_) => "registration_refused",
        Failure::Unanswered => "registration_unanswered",
        Failure::Silent => "connection_silent",
        Failure::Lost => "connection_lost",
    }
}

/// The edge's words, where it gave any; without, the field is left out of the log.
fn cause_of(failure: &Failure) -> Option<&str> {
    match failure {
        Failure::Rejected(rejection) => {
            Some(&rejection.cause).filter(|cause| !cause.is_empty()).map(|cause| &**cause)
        }
        _ => None,
    }
}

/// Longest wait for the last closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Registrations not yet taken by the loop; one per connection is the most there can be, and a
/// task that finds it full just waits.
const REGISTRATIONS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use adit_tunnel_proto::Rejection;

    use super::*;

    #[test]
    fn a_retry_without_the_edges_words_has_no_cause_in_the_log() {
        assert_eq!(cause_of(&Failure::Dial), None);
        assert_eq!(cause_of(&Failure::Rejected(Rejection::temporary("", Duration::ZERO))), None);
        let busy = Failure::Rejected(Rejection::temporary("busy", Duration::ZERO));
        assert_eq!(cause_of(&busy), Some("busy"));
    }
}
