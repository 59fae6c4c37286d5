//! The edge while the process runs: its listener for connectors, its table of hosts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use adit_config::{Config, Edge as EdgeSettings, HostPattern, Secret, TunnelCredentials, TunnelId};
use adit_route::Table;
use adit_tunnel::{CheckedCertificate, Edge, EdgeHandle, EdgeLane, EdgeOptions, Grant};
use arc_swap::ArcSwap;
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::DaemonError;
use crate::access_log::AccessLog;
use crate::answer::RequestMetrics;
use crate::certificates::{EdgeIdentity, edge_identity};
use crate::edge_service::{EdgeService, Trust, TunnelRoute};
use crate::request_id::RequestIds;

/// A running edge.
pub(super) struct RunningEdge {
    handle: EdgeHandle,
    address: SocketAddr,
    service: Arc<EdgeService>,
    hosts: HostsWriter,
    trust: Arc<ArcSwap<Trust>>,
    made: MadeTunnels,
    ca_pem: Option<String>,
    public: Vec<String>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<()>,
    follower: JoinHandle<()>,
}

/// An edge's part of a new configuration, ready to be taken.
pub(super) struct Plan {
    certificate: Option<CheckedCertificate>,
    pub(super) grants: Vec<Grant>,
    made: MadeTunnels,
}

/// Credentials of one of these tunnels, for a connector in this process.
pub(super) fn credentials(grants: &[Grant], name: &str) -> Option<TunnelCredentials> {
    let grant = grants.iter().find(|grant| grant.name == name)?;
    Some(TunnelCredentials {
        account_tag: grant.account_tag.clone().unwrap_or_else(|| "adit".to_owned()),
        secret: grant.secret.clone(),
        tunnel_id: grant.id,
        endpoint: None,
    })
}

/// Whether all that this process serves are visitors of its tunnels.
fn is_alone(config: &Config, edge: &EdgeSettings) -> bool {
    config.providers.file.is_none()
        && config.dynamic.http.routers.is_empty()
        && config.entry_points.keys().all(|name| edge.public.contains(name))
}

/// Ids and secrets of tunnels that were given none, kept for the life of the process.
type MadeTunnels = HashMap<String, (TunnelId, Secret)>;

impl RunningEdge {
    pub(super) fn start(
        config: &Config,
        settings: &EdgeSettings,
        registry: &Registry,
        requests: &RequestMetrics,
        (access_log, lanes): (Option<AccessLog>, Vec<EdgeLane>),
    ) -> Result<Self, DaemonError> {
        let EdgeIdentity { certificate, ca_pem, ca_path } =
            edge_identity(config, settings.certificate.as_ref())?;
        if let Some(path) = ca_path {
            tracing::info!(ca = %path.display(), "connectors trust this edge with the authority in this file");
        }
        let mut made = MadeTunnels::new();
        let grants = grants(settings, &mut made);
        let options = EdgeOptions {
            listen: settings.listen,
            certificate,
            location: settings.location.clone(),
            registration_timeout: settings.registration_timeout,
            grace_period: settings.grace_period,
            connections_max: config.limits.tunnel_connections_max,
            streams_per_connection_max: config.limits.streams_per_tunnel_connection_max,
            hostnames_per_tunnel_max: config.limits.hostnames_per_tunnel_max,
            lanes,
        };
        // Where the first connection will be: a connector with one has all on one thread. Unless others work there whose
        // turns are long, as relays of large content do: the packets of all tunnels would wait for them.
        let lane = options.lanes.first().filter(|_| is_alone(config, settings));
        let lane = lane.map(|lane| lane.runtime.clone());
        let entered = lane.as_ref().map(|runtime| runtime.enter());
        let edge = Edge::bind(options, grants.clone(), registry)?;
        drop(entered);
        let address = edge
            .local_addr()
            .map_err(|source| adit_tunnel::EdgeError::Listen { address: settings.listen, source })?;
        let handle = edge.handle();
        let hosts = HostsWriter::new(grants);
        let trust = Arc::new(ArcSwap::from_pointee(Trust { entry_points: config.entry_points.clone() }));
        let service = Arc::new(EdgeService {
            hosts: Arc::clone(&hosts.table),
            edge: handle.clone(),
            entry_points: Arc::clone(&trust),
            location: settings.location.clone(),
            ids: RequestIds::new(),
            metrics: requests.clone(),
            access_log,
        });
        let (shutdown, stop) = watch::channel(false);
        tracing::info!(%address, location = %settings.location, "edge listens for connectors");
        let task = tokio::spawn(edge.run(stop));
        let follower = tokio::spawn(follow(handle.clone(), hosts.clone()));
        Ok(Self {
            handle,
            address,
            service,
            hosts,
            trust,
            made,
            ca_pem,
            public: settings.public.clone(),
            shutdown,
            task,
            follower,
        })
    }

    /// What a new configuration makes of this edge; everything that can fail happens here.
    pub(super) fn plan(&self, config: &Config, settings: &EdgeSettings) -> Result<Plan, DaemonError> {
        let certificate = match &settings.certificate {
            Some(files) => Some(CheckedCertificate::new(edge_identity(config, Some(files))?.certificate)?),
            None => None,
        };
        let mut made = self.made.clone();
        let grants = grants(settings, &mut made);
        Ok(Plan { certificate, grants, made })
    }

    /// Takes tunnels, hosts, trust and certificate of a planned configuration.
    pub(super) fn apply(&mut self, plan: Plan, config: &Config, settings: &EdgeSettings) {
        if let Some(certificate) = plan.certificate {
            self.handle.set_certificate(certificate);
        }
        self.made = plan.made;
        self.handle.set_grants(plan.grants.clone());
        self.hosts.set_grants(plan.grants);
        self.trust.store(Arc::new(Trust { entry_points: config.entry_points.clone() }));
        self.public.clone_from(&settings.public);
    }

    /// What is in force, as a plan that changes nothing.
    pub(super) fn grants(&self) -> Vec<Grant> {
        self.hosts.grants.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn service(&self) -> &Arc<EdgeService> {
        &self.service
    }

    pub(super) fn handle(&self) -> EdgeHandle {
        self.handle.clone()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The authority made at start, for a connector in this process.
    pub(super) fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Stops accepting connectors, waits for requests in flight, closes.
    pub(super) async fn drain(self) {
        self.follower.abort();
        self.shutdown.send_replace(true);
        let _ = self.task.await;
    }
}

/// The table of hosts and what it is made of.
#[derive(Clone)]
struct HostsWriter {
    table: Arc<ArcSwap<Table<TunnelRoute>>>,
    grants: Arc<Mutex<Vec<Grant>>>,
    learnt: Arc<Mutex<Arc<Learnt>>>,
}

type Learnt = Vec<(TunnelId, Vec<HostPattern>)>;

impl HostsWriter {
    fn new(grants: Vec<Grant>) -> Self {
        let writer = Self {
            table: Arc::new(ArcSwap::from_pointee(Table::from_hosts([]))),
            grants: Arc::new(Mutex::new(grants)),
            learnt: Arc::default(),
        };
        writer.rebuild();
        writer
    }

    fn set_grants(&self, grants: Vec<Grant>) {
        *self.grants.lock().unwrap_or_else(PoisonError::into_inner) = grants;
        self.rebuild();
    }

    fn set_learnt(&self, learnt: Arc<Learnt>) {
        *self.learnt.lock().unwrap_or_else(PoisonError::into_inner) = learnt;
        self.rebuild();
    }

    fn rebuild(&self) {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        let routes: HashMap<TunnelId, TunnelRoute> = grants
            .iter()
            .map(|grant| (grant.id, TunnelRoute { id: grant.id, name: grant.name.as_str().into() }))
            .collect();
        // What the operator wrote comes first: a host that two claim goes to the first.
        let configured =
            grants.iter().flat_map(|g| g.hostnames.iter().map(|h| (h.clone(), routes[&g.id].clone())));
        let learnt = learnt.iter().flat_map(|(id, hosts)| {
            let route = routes.get(id);
            hosts.iter().filter_map(move |host| Some((host.clone(), route?.clone())))
        });
        self.table.store(Arc::new(Table::from_hosts(configured.chain(learnt))));
    }
}

/// Keeps the table up with what connectors push.
async fn follow(handle: EdgeHandle, hosts: HostsWriter) {
    let mut learnt = handle.learnt_hostnames();
    loop {
        hosts.set_learnt(Arc::clone(&learnt.borrow_and_update()));
        if learnt.changed().await.is_err() {
            return;
        }
    }
}

fn grants(settings: &EdgeSettings, made: &mut MadeTunnels) -> Vec<Grant> {
    settings
        .tunnels
        .iter()
        .map(|tunnel| {
            let make = || (TunnelId(uuid::Uuid::new_v4()), random_secret());
            let made = made.entry(tunnel.name.clone()).or_insert_with(make);
            Grant {
                id: tunnel.id.unwrap_or(made.0),
                name: tunnel.name.clone(),
                secret: tunnel.secret.clone().unwrap_or_else(|| made.1.clone()),
                account_tag: tunnel.account_tag.clone(),
                hostnames: tunnel.hostnames.clone(),
                connections_max: tunnel.connections_max,
            }
        })
        .collect()
}

/// At least the 32 random bytes that cloudflared makes (tunnel-protocol.md §7.1).
pub(crate) fn random_secret() -> Secret {
    // Each random UUID brings 122 random bits: three of them more than 256.
    let bytes = (0..3).flat_map(|_| uuid::Uuid::new_v4().into_bytes()).collect();
    Secret::new(bytes)
}
