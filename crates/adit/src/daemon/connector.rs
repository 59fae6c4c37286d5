//! The connector while the process runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use adit_config::{CredentialsSource, Tunnel};
use adit_proxy::fields::Configured;
use adit_proxy::message::Visitor;
use adit_tunnel::{Connector, ConnectorOptions, Grant};
use arc_swap::ArcSwapOption;
use http::{HeaderName, HeaderValue};
use prometheus::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::DaemonError;
use super::edge::RunningEdge;
use crate::admin::ConnectorView;
use crate::cloudflared_metrics::ProxyMetrics;
use crate::connector_service::ConnectorService;
use crate::gateway::Gateway;
use crate::hello::Hello;
use crate::ingress::{IngressState, Served, chain};

/// A connector that could be set up: nothing of it runs yet.
pub(super) struct NewConnector {
    connector: Connector<ConnectorService>,
    stop: watch::Receiver<bool>,
    running: RunningConnector,
}

/// What a reload makes of the connector; nothing of it is in force yet.
pub(super) enum ConnectorChange {
    /// Everything that is not a rule stays.
    Rules(Box<Served>),
    /// There is to be none, or another in its place.
    Replace(Option<Box<NewConnector>>),
}

/// A running connector.
pub(super) struct RunningConnector {
    settings: Tunnel,
    reach: Reach,
    view: Arc<ConnectorView>,
    shutdown: watch::Sender<bool>,
    task: Option<JoinHandle<Result<(), adit_tunnel::ConnectorError>>>,
}

impl NewConnector {
    /// Lets it dial.
    pub(super) fn start(self) -> RunningConnector {
        let Self { connector, stop, mut running } = self;
        running.task = Some(tokio::spawn(connector.run(stop)));
        running
    }
}

impl RunningConnector {
    /// Sets a connector up.
    ///
    /// # Errors
    /// Rules that cannot be served, and what [`Connector::new`] refuses.
    pub(super) fn prepare(
        tunnel: &Tunnel,
        reach: Reach,
        grace: Duration,
        gateway: Option<Arc<Gateway>>,
        lanes: Vec<Handle>,
    ) -> Result<NewConnector, DaemonError> {
        // Of its own: a connector that replaces another after a reload starts its counters afresh.
        let registry = Registry::new();
        let options = ConnectorOptions { lanes, ..options(tunnel, &reach, grace) };
        let ingress = Arc::new(IngressState::new(&tunnel.ingress)?);
        let tunnel_id = options.credentials.tunnel_id;
        let metrics = ProxyMetrics::new(&registry)?;
        let name = tunnel.name.clone().unwrap_or_else(|| tunnel_id.to_string());
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let visitor = Visitor {
            remote: unknown,
            local: unknown,
            secure: false,
            tls: None,
            entry_point: "tunnel".into(),
            peer: None,
            address: adit_proxy::message::AddressText::default(),
        };
        let service = Arc::new(ConnectorService {
            ingress: Arc::clone(&ingress),
            gateway,
            hello: Hello::new(name),
            tags: OnceLock::new(),
            metrics,
            visitor: Arc::new(visitor),
        });
        let connector = Connector::new(options, Arc::clone(&service), &registry)?;
        let _ = service.tags.set(tags(tunnel, connector.handle().connector_id()));
        let view = Arc::new(ConnectorView {
            tunnel: tunnel_id,
            handle: connector.handle(),
            ingress,
            warp_routing: tunnel.warp_routing.clone(),
            registry,
            stopped: ArcSwapOption::empty(),
        });
        let (shutdown, stop) = watch::channel(false);
        let running = Self { settings: tunnel.clone(), reach, view, shutdown, task: None };
        Ok(NewConnector { connector, stop, running })
    }

    pub(super) fn view(&self) -> Arc<ConnectorView> {
        Arc::clone(&self.view)
    }

    pub(super) fn ready_connections(&self) -> usize {
        self.view.handle.ready_connections()
    }

    /// True if it still runs and a reload to `tunnel`, reached by `reach`, changes nothing but rules.
    pub(super) fn serves(&self, tunnel: &Tunnel, reach: &Reach) -> bool {
        let rules_aside = Tunnel { ingress: tunnel.ingress.clone(), ..self.settings.clone() };
        rules_aside == *tunnel && self.reach == *reach && self.task.is_some()
    }

    /// The rules of a new configuration, compiled.
    ///
    /// # Errors
    /// Rules that cannot be served.
    pub(super) fn plan(&self, tunnel: &Tunnel) -> Result<Served, DaemonError> {
        Ok(self.view.ingress.compile(&tunnel.ingress)?)
    }

    /// Takes what [`Self::plan`] has made of `tunnel` and tells the edge.
    pub(super) fn reload(&mut self, rules: Served, tunnel: &Tunnel) {
        self.view.ingress.apply_local(rules);
        self.view.handle.set_local_configuration(push(tunnel));
        self.settings = tunnel.clone();
    }

    pub(super) fn sweep(&self) {
        self.view.ingress.sweep();
    }

    /// Waits for the connector to end by itself, and says why.
    pub(super) async fn stopped(&mut self) -> String {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let why = match task.await {
            Ok(Ok(())) => "the connector ended".to_owned(),
            Ok(Err(error)) => chain(&error),
            Err(error) => format!("the connector failed: {error}"),
        };
        self.task = None;
        tracing::error!(error = %why, "the tunnel has stopped");
        self.view.stopped.store(Some(Arc::new(why.clone())));
        why
    }

    /// Unregisters, serves what is under way, closes.
    pub(super) async fn drain(mut self) {
        self.shutdown.send_replace(true);
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

/// With what, where to and trusting whom a connector dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    credentials: adit_config::TunnelCredentials,
    addresses: Vec<String>,
    ca_pem: Option<String>,
}

impl Reach {
    /// Looks up what `tunnel` refers to; `grants` are those of this process's edge.
    pub(super) fn of(
        tunnel: &Tunnel,
        edge: Option<&RunningEdge>,
        grants: &[Grant],
    ) -> Result<Self, DaemonError> {
        match &tunnel.credentials {
            CredentialsSource::Given(credentials) => {
                let addresses = tunnel.edge.clone();
                Ok(Self { credentials: credentials.clone(), addresses, ca_pem: None })
            }
            CredentialsSource::InProcess(name) => in_process(tunnel, name, edge, grants),
        }
    }
}

fn options(tunnel: &Tunnel, reach: &Reach, grace: Duration) -> ConnectorOptions {
    let Reach { credentials, addresses, ca_pem } = reach.clone();
    ConnectorOptions {
        credentials,
        edge: addresses,
        region: tunnel.region.clone(),
        ip_version: tunnel.edge_ip_version,
        bind_address: tunnel.edge_bind_address,
        ca: tunnel.ca.clone(),
        ca_pem,
        connections: tunnel.connections,
        protocol: tunnel.protocol,
        retries: tunnel.retries,
        edge_address_retries: tunnel.edge_address_retries,
        features: tunnel.features.clone(),
        post_quantum: tunnel.post_quantum,
        disable_pmtu_discovery: tunnel.disable_pmtu_discovery,
        version: VERSION.to_owned(),
        local_configuration: Some(push(tunnel)),
        rpc_timeout: tunnel.rpc_timeout,
        grace_period: grace,
        lanes: Vec::new(),
    }
}

/// The tunnel of this process's own edge.
fn in_process(
    tunnel: &Tunnel,
    name: &str,
    edge: Option<&RunningEdge>,
    grants: &[Grant],
) -> Result<Reach, DaemonError> {
    let wiring = |why: &str| DaemonError::Wiring(format!("tunnel.name {name:?}: {why}"));
    let edge = edge.ok_or_else(|| wiring("this process has no edge"))?;
    let credentials =
        super::edge::credentials(grants, name).ok_or_else(|| wiring("edge.tunnels has none of this name"))?;
    let mut address = edge.address();
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let addresses = match tunnel.edge.is_empty() {
        // Each connection needs an address of its own (tunnel-protocol.md §1.2).
        true => vec![address.to_string(); usize::from(tunnel.connections.max(1))],
        false => tunnel.edge.clone(),
    };
    let ca_pem = edge.ca_pem().filter(|_| tunnel.ca.is_none()).map(str::to_owned);
    Ok(Reach { credentials, addresses, ca_pem })
}

fn tags(tunnel: &Tunnel, connector_id: uuid::Uuid) -> Vec<Arc<Configured>> {
    let own = ("ID".to_owned(), connector_id.to_string());
    let configured = tunnel.tags.iter().map(|tag| (tag.name.clone(), tag.value.clone()));
    configured
        .chain([own])
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(format!("cf-warp-tag-{name}").as_bytes()).ok()?;
            Some(Arc::new(Configured::new(name, HeaderValue::from_str(&value).ok()?)))
        })
        .collect()
}

fn push(tunnel: &Tunnel) -> bytes::Bytes {
    tunnel.ingress.to_local_push(&tunnel.pushed_flags, &tunnel.warp_routing).into()
}

/// What the edge is told we are.
const VERSION: &str = concat!("adit-", env!("CARGO_PKG_VERSION"));
