//! The life of the process: start, serve, reload, drain, stop.

mod connector;
mod edge;
pub(crate) mod ingress;
pub(crate) mod mesh;
mod signals;

pub(crate) use self::edge::random_secret;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use adit_config::{Config, DynamicFiles, EntryPointNetwork, FileProvider, Problems};
use adit_mesh::NodeError;
use adit_proxy::drain;
use adit_proxy::h1::server::Options;
use adit_proxy::listen::{ListenError, Listener, ListenerOptions};
use adit_proxy::metrics::Metrics;
use arc_swap::{ArcSwap, ArcSwapOption};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use thiserror::Error;
use tokio::task::JoinSet;

use self::connector::{ConnectorChange, Reach, RunningConnector};
use self::edge::{Plan, RunningEdge};
use self::ingress::{RunningIngress, has_switch, serves_tunnel};
use self::mesh::RunningMesh;
use self::signals::Signal;
pub(crate) use self::signals::Signals;
use crate::access_log::{AccessLog, AccessLogError};
use crate::acme::AcmeViews;
use crate::admin::Admin;
use crate::answer::RequestMetrics;
use crate::certificates::IdentityError;
use crate::front::{Front, PublicEntry};
use crate::gateway::Gateway;
use crate::ingress::{IngressError, chain};
use crate::listeners::{Listeners, ListenersError, Prepared};
use crate::load::Source;
use crate::observe::gauges;
use crate::observe::traefik::TraefikMetrics;
use crate::phase::{Phase, PhaseCell};
use crate::telemetry::LevelHandle;
use crate::watch::{FileWatch, Watched};
use crate::{announce, notify_systemd};

/// Why the process cannot start, or a reload cannot be taken.
#[derive(Debug, Error)]
pub(crate) enum DaemonError {
    /// The configuration.
    #[error("{0}")]
    Config(Problems),
    /// Signals.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    /// The admin endpoint.
    #[error("cannot open the admin endpoint")]
    Admin(#[source] ListenError),
    /// An entry point.
    #[error(transparent)]
    Listeners(#[from] ListenersError),
    /// The edge's certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The edge.
    #[error(transparent)]
    Edge(#[from] adit_tunnel::EdgeError),
    /// The connector.
    #[error(transparent)]
    Connector(#[from] adit_tunnel::ConnectorError),
    /// The mesh.
    #[error(transparent)]
    Mesh(#[from] NodeError),
    /// Ingress rules.
    #[error(transparent)]
    Ingress(#[from] IngressError),
    /// The access log.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// A metric's name is taken.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
    /// The tunnel refers to something this process does not have.
    #[error("{0}")]
    Wiring(String),
}

/// A started process.
pub(crate) struct Daemon {
    source: Source,
    config: Config,
    phase: PhaseCell,
    admin: Arc<Admin>,
    admin_address: SocketAddr,
    admin_drain: drain::DrainSignal,
    listeners: Listeners,
    ingress: RunningIngress,
    front: Arc<Front>,
    edge: Option<RunningEdge>,
    connector: Option<RunningConnector>,
    mesh: RunningMesh,
    requests: RequestMetrics,
    reloads: IntCounterVec,
    level: LevelHandle,
    /// Connectors that a reload replaced, serving what they had.
    leaving: JoinSet<()>,
}

/// What a reload is going to put in force.
struct Planned {
    edge: Option<Plan>,
    connector: Option<ConnectorChange>,
    listeners: Prepared,
}

impl Daemon {
    /// Binds everything and starts serving. Signals are listened for first: one that comes now is obeyed, not died of.
    ///
    /// # Errors
    /// [`DaemonError`]; nothing is left running.
    pub(crate) async fn start(
        source: Source,
        config: Config,
        level: LevelHandle,
    ) -> Result<(Self, Signals), DaemonError> {
        let signals = Signals::listen().map_err(DaemonError::Signals)?;
        let registry = Registry::new();
        let phase = PhaseCell::new(&registry)?;
        let requests = RequestMetrics::new(&registry)?;
        let proxy_metrics = Arc::new(Metrics::new(&registry)?);
        let reloads = register_reloads(&registry)?;
        register_build(&registry)?;
        let access_log =
            config.access_log.as_ref().map(|settings| AccessLog::open(settings, &registry)).transpose()?;
        let traefik = traefik(&config, &registry, &proxy_metrics)?;
        let acme = AcmeViews::new(&registry)?;
        let ingress = RunningIngress::start(&config, &acme, |generation| {
            Gateway::new(generation, requests.clone(), access_log.clone(), traefik, acme.clone())
        });
        gauges::register(&registry, ingress.gateway(), ingress.store())?;
        let mesh = RunningMesh::start(&config, &registry)?;
        let mut listeners = Listeners::new(ingress.store(), Arc::clone(&proxy_metrics))?;
        listeners.reach(mesh.stack());
        let edge = match &config.edge {
            Some(settings) => {
                let shared = (access_log, listeners.edge_lanes());
                Some(RunningEdge::start(&config, settings, &registry, &requests, shared)?)
            }
            None => None,
        };
        let front = Arc::new(Front {
            gateway: Arc::clone(ingress.gateway()),
            edge: edge.as_ref().map(|edge| Arc::clone(edge.service())),
            public: Arc::new(ArcSwap::from_pointee(public(&config))),
        });
        let switches = |name: &str| ingress.switch(name).filter(|_| has_switch(&config, name));
        let prepared = listeners.prepare(&config, &switches, Prepared::default(), &|_| true)?;
        listeners.commit(prepared, &front, &switches, &|name| ingress.udp_routes(name));
        let connector = start_connector(&source, &config, &ingress, (edge.as_ref(), &listeners))?;
        let (admin, admin_address, admin_drain) = start_admin(
            &source,
            &config,
            &registry,
            &phase,
            (edge.as_ref(), &front.gateway),
            &proxy_metrics,
        )?;
        ingress.internal().show(&admin);
        admin.connector.store(connector.as_ref().map(RunningConnector::view));
        admin.mesh.store(mesh.view());
        admin.listeners.store(Arc::new(listeners.addresses()));
        tracing::info!("Starting metrics server on {admin_address}/metrics");
        let daemon = Self {
            source,
            config,
            phase,
            admin,
            admin_address,
            admin_drain,
            listeners,
            ingress,
            front,
            edge,
            connector,
            mesh,
            requests,
            reloads,
            level,
            leaving: JoinSet::new(),
        };
        Ok((daemon, signals))
    }

    /// Serves until told to stop; the exit code.
    pub(crate) async fn run(
        mut self,
        mut signals: Signals,
        announce_to_person: bool,
        begun: SystemTime,
    ) -> u8 {
        // Before anybody is told that we are ready, and may write the next version.
        let mut watch = FileWatch::start(self.watched(), begun);
        self.phase.set(Phase::Ready);
        self.ingress.open_orders();
        if announce_to_person {
            let edge = self.edge.as_ref().map(RunningEdge::address);
            crate::print(&announce::text(
                &self.config,
                &self.listeners.addresses(),
                edge,
                self.admin_address,
            ));
        }
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_INTERVAL);
        // A connector announces itself when its first connection is registered, everything else at once.
        let mut announced = self.source.is_cloudflared();
        if !announced {
            notify_systemd::ready();
        }
        let stop = loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Reload => self.reload(&mut watch).await,
                    Signal::Stop => break None,
                },
                () = watch.changed() => self.reload(&mut watch).await,
                _ = housekeeping.tick() => {
                    notify_systemd::alive();
                    self.mesh.watch();
                    if let Some(connector) = &self.connector {
                        connector.sweep();
                        if announced && connector.ready_connections() > 0 {
                            notify_systemd::ready();
                            announced = false;
                        }
                    }
                }
                why = stopped(&mut self.connector) => {
                    // A tunnel refused for good ends a process that is nothing but this tunnel.
                    if self.edge.is_none() {
                        break Some(why);
                    }
                }
            }
        };
        if let Some(why) = stop {
            tracing::error!(error = %why, "the tunnel has stopped for good");
            self.phase.set(Phase::Stopped);
            return 1;
        }
        self.drain(signals).await;
        0
    }

    /// Takes the configuration as it is now, or keeps the old one and says why.
    async fn reload(&mut self, watch: &mut FileWatch) {
        notify_systemd::reloading();
        match self.try_reload().await {
            Ok(()) => {
                tracing::info!("configuration reloaded");
                self.reloads.with_label_values(&["ok"]).inc();
                if let Some(traefik) = self.ingress.gateway().traefik() {
                    traefik.reloaded();
                }
                self.admin.reload_problem.store(None);
            }
            Err(error) => {
                let text = chain(&error);
                tracing::error!(error = %text, "reload refused, the old configuration stays in force");
                self.reloads.with_label_values(&["refused"]).inc();
                self.admin.reload_problem.store(Some(Arc::new((Instant::now(), text))));
            }
        }
        watch.watch(self.watched());
        notify_systemd::ready();
    }

    /// Everything whose change is a reason to reload.
    fn watched(&self) -> Watched {
        let mut files = self.config.sources.clone();
        for pair in
            self.config.tls.certificates.iter().chain(self.config.edge.iter().flat_map(|e| &e.certificate))
        {
            files.extend([pair.cert.clone(), pair.key.clone()]);
        }
        files.extend_from_slice(self.ingress.watched());
        let providers = &self.config.providers;
        let folder = match &providers.file {
            Some(FileProvider { files: DynamicFiles::Directory(folder), watch: true }) => {
                Some(folder.clone())
            }
            _ => None,
        };
        Watched { files, folder, throttle: providers.throttle }
    }

    /// What can fail without touching what runs comes first, then the mesh and what only listens where the mesh is new;
    /// what follows cannot fail.
    async fn try_reload(&mut self) -> Result<(), DaemonError> {
        let config = self.source.load().map_err(DaemonError::Config)?;
        if self.mesh.is_to_be_restored() {
            self.restore_mesh()?;
        }
        let planned = self.plan(&config)?;
        let is_held = self.ingress.hold_gate(&config);
        let prepared = match self.change_mesh(&config, planned.listeners) {
            Ok(prepared) => prepared,
            Err(error) => {
                // If it fails, it has said so, and the gate stays as it is.
                let _ = self.restore_mesh();
                return Err(error);
            }
        };
        if let (Some(edge), Some(settings), Some(plan)) = (&mut self.edge, &config.edge, planned.edge) {
            edge.apply(plan, &config, settings);
        }
        self.ingress.reload(&config);
        self.front.public.store(Arc::new(public(&config)));
        let switches = |name: &str| self.ingress.switch(name).filter(|_| has_switch(&config, name));
        self.listeners.commit(prepared, &self.front, &switches, &|name| self.ingress.udp_routes(name));
        self.admin.mesh.store(self.mesh.view().filter(|_| config.mesh.is_some()));
        self.mesh.commit(&config);
        self.commit_connector(planned.connector, &config);
        self.level.set(config.log.level);
        let waiting = restart_needs(&self.config, &config);
        if !waiting.is_empty() {
            tracing::warn!(keys = waiting.join(", "), "these changes take effect only after a restart");
        }
        self.admin.restart_needed.store(Arc::new(waiting));
        self.admin.config.store(Arc::new(config.to_effective()));
        self.admin.listeners.store(Arc::new(self.listeners.addresses()));
        self.config = config;
        if is_held {
            tokio::time::sleep(GATE_REST).await;
        }
        self.ingress.open_gate();
        Ok(())
    }

    /// Everything of `config` that can be tried while the old configuration runs on.
    fn plan(&mut self, config: &Config) -> Result<Planned, DaemonError> {
        self.mesh.check(config)?;
        let edge = match (&self.edge, &config.edge) {
            (Some(edge), Some(settings)) => Some(edge.plan(config, settings)?),
            _ => None,
        };
        let connector = self.plan_connector(config, edge.as_ref())?;
        self.ingress.reserve(config);
        let switches = |name: &str| self.ingress.switch(name).filter(|_| has_switch(config, name));
        let reachable = |address| self.mesh.has(address);
        let listeners = self.listeners.prepare(config, &switches, Prepared::default(), &reachable)?;
        Ok(Planned { edge, connector, listeners })
    }

    /// Changes the mesh, and binds the entry points that had to wait for it.
    fn change_mesh(&mut self, config: &Config, prepared: Prepared) -> Result<Prepared, DaemonError> {
        self.mesh.change(config)?;
        self.listeners.reach(self.mesh.stack());
        let switches = |name: &str| self.ingress.switch(name).filter(|_| has_switch(config, name));
        Ok(self.listeners.prepare(config, &switches, prepared, &|_| true)?)
    }

    /// Takes a change of the mesh back. Only when that has worked, addresses that were to move are known again.
    fn restore_mesh(&mut self) -> Result<(), DaemonError> {
        let restored = self.mesh.restore();
        self.listeners.reach(self.mesh.stack());
        restored?;
        self.front.gateway.gate().reopen();
        Ok(())
    }

    /// What becomes of the connector, if there is or will be one.
    fn plan_connector(
        &self,
        config: &Config,
        plan: Option<&Plan>,
    ) -> Result<Option<ConnectorChange>, DaemonError> {
        let Some(tunnel) = &config.tunnel else {
            return Ok(self.connector.is_some().then_some(ConnectorChange::Replace(None)));
        };
        let grants = match (plan, &self.edge) {
            (Some(plan), _) => plan.grants.clone(),
            (None, Some(edge)) => edge.grants(),
            (None, None) => Vec::new(),
        };
        let reach = Reach::of(tunnel, self.edge.as_ref(), &grants)?;
        if let Some(running) = self.connector.as_ref().filter(|running| running.serves(tunnel, &reach)) {
            return Ok(Some(ConnectorChange::Rules(Box::new(running.plan(tunnel)?))));
        }
        let gateway = gateway_of(config, &self.ingress);
        let (grace, lanes) = (grace(&self.source, config), self.listeners.lanes());
        let new = RunningConnector::prepare(tunnel, reach, grace, gateway, lanes)?;
        Ok(Some(ConnectorChange::Replace(Some(Box::new(new)))))
    }

    fn commit_connector(&mut self, change: Option<ConnectorChange>, config: &Config) {
        while self.leaving.try_join_next().is_some() {}
        match change {
            Some(ConnectorChange::Replace(new)) => {
                let new = new.map(|new| new.start());
                if let Some(old) = std::mem::replace(&mut self.connector, new) {
                    self.leaving.spawn(old.drain());
                }
                self.admin.connector.store(self.connector.as_ref().map(RunningConnector::view));
            }
            Some(ConnectorChange::Rules(rules)) => {
                if let (Some(running), Some(tunnel)) = (&mut self.connector, &config.tunnel) {
                    running.reload(*rules, tunnel);
                }
            }
            None => {}
        }
    }

    /// Lets visitors finish, then tells the edge or the connectors, then cuts what remains after the grace period.
    async fn drain(mut self, mut signals: Signals) {
        self.phase.set(Phase::Draining);
        notify_systemd::stopping();
        let grace = grace(&self.source, &self.config);
        tracing::info!(grace_seconds = grace.as_secs(), "Initiating graceful shutdown");
        let draining = async {
            tokio::join!(self.ingress.stop_orders(), self.listeners.drain());
            if let Some(connector) = self.connector.take() {
                connector.drain().await;
            }
            while self.leaving.join_next().await.is_some() {}
            if let Some(edge) = self.edge.take() {
                edge.drain().await;
            }
            self.mesh.deliver().await;
        };
        let finished = tokio::select! {
            () = draining => true,
            // The connector closes its connections at the end of its own grace period: it gets the time to say so.
            () = tokio::time::sleep(grace + CLOSING_TIME) => false,
            signal = signals.stop_again() => {
                tracing::warn!("second signal, stopping at once");
                std::process::exit(128 + signal);
            }
        };
        if !finished {
            self.phase.set(Phase::Closing);
            let left = self.requests.in_flight();
            tracing::warn!(requests_in_flight = left, "the grace period is over, cutting what remains");
        }
        self.admin_drain.start();
        if let Some(log) = self.ingress.gateway().access_log() {
            log.flush();
        }
        self.phase.set(Phase::Stopped);
        tracing::info!("stopped");
    }
}

/// Entry points of the edge.
fn public(config: &Config) -> Vec<PublicEntry> {
    let names = config.edge.iter().flat_map(|edge| &edge.public);
    let entry = |name: &String| {
        let entry_point = config.entry_points.get(name)?;
        let on_mesh = entry_point.on == EntryPointNetwork::Mesh;
        Some(PublicEntry { name: name.clone(), tls: entry_point.tls, on_mesh })
    };
    names.filter_map(entry).collect()
}

/// The routers answer what comes through a tunnel that has no rules of its own.
fn gateway_of(config: &Config, ingress: &RunningIngress) -> Option<Arc<Gateway>> {
    serves_tunnel(config).then(|| Arc::clone(ingress.gateway()))
}

fn start_connector(
    source: &Source,
    config: &Config,
    ingress: &RunningIngress,
    (edge, listeners): (Option<&RunningEdge>, &Listeners),
) -> Result<Option<RunningConnector>, DaemonError> {
    let Some(tunnel) = &config.tunnel else { return Ok(None) };
    let (reach, gateway) = (reach(tunnel, edge)?, gateway_of(config, ingress));
    let grace = grace(source, config);
    Ok(Some(RunningConnector::prepare(tunnel, reach, grace, gateway, listeners.lanes())?.start()))
}

/// What the tunnel of a starting process dials.
fn reach(tunnel: &adit_config::Tunnel, edge: Option<&RunningEdge>) -> Result<Reach, DaemonError> {
    Reach::of(tunnel, edge, &edge.map(RunningEdge::grants).unwrap_or_default())
}

/// Keys whose new values wait for a restart.
fn restart_needs(old: &Config, new: &Config) -> Vec<&'static str> {
    let edge = |config: &Config| {
        config.edge.as_ref().map(|e| {
            let shown = (e.location.clone(), e.registration_timeout, e.grace_period);
            (e.listen, shown, e.certificate.is_some())
        })
    };
    let limits = |config: &Config| {
        let l = &config.limits;
        (l.tunnel_connections_max, l.streams_per_tunnel_connection_max, l.hostnames_per_tunnel_max)
    };
    let changes = [
        ("admin", old.admin != new.admin),
        ("accessLog", old.access_log != new.access_log),
        ("metrics", old.metrics != new.metrics),
        ("log.format", old.log.format != new.log.format),
        ("edge (listen, location, timeouts, or with and without certificate)", edge(old) != edge(new)),
        ("limits (of tunnels)", old.edge.is_some() && limits(old) != limits(new)),
        ("state-dir", old.state_dir != new.state_dir),
    ];
    changes.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
}

/// Traefik's metrics, where the configuration wants them; the start counts as the first reload.
fn traefik(
    config: &Config,
    registry: &Registry,
    proxy: &Metrics,
) -> prometheus::Result<Option<Arc<TraefikMetrics>>> {
    let Some(settings) = &config.metrics.prometheus else { return Ok(None) };
    registry.register(Box::new(proxy.open_connections()))?;
    let traefik = TraefikMetrics::new(settings, config.metrics.add_internals, registry)?;
    traefik.reloaded();
    Ok(Some(Arc::new(traefik)))
}

fn register_reloads(registry: &Registry) -> prometheus::Result<IntCounterVec> {
    let about = Opts::new("adit_config_reloads_total", "Reloads of the configuration, by result");
    let reloads = IntCounterVec::new(about, &["result"])?;
    registry.register(Box::new(reloads.clone()))?;
    Ok(reloads)
}

/// From the signal to the cut: cloudflared's flag in its mode, else `shutdown`.
fn grace(source: &Source, config: &Config) -> Duration {
    let whole = config.shutdown.grace_period;
    match &config.tunnel {
        Some(tunnel) if source.is_cloudflared() => tunnel.grace_period,
        Some(tunnel) => tunnel.grace_period.min(whole),
        None => whole,
    }
}

/// cloudflared's `build_info` (tunnel-protocol.md §8.3), which dashboards join on.
fn register_build(registry: &Registry) -> prometheus::Result<()> {
    let labels = ["goversion", "type", "revision", "version"];
    let build = IntGaugeVec::new(Opts::new("build_info", "Always 1; the labels tell the build"), &labels)?;
    build.with_label_values(&["none", "adit", "", env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(build))
}

/// Waits for the connector to end for good; for ever if there is none.
async fn stopped(connector: &mut Option<RunningConnector>) -> String {
    match connector {
        Some(connector) => connector.stopped().await,
        None => std::future::pending().await,
    }
}

fn start_admin(
    source: &Source,
    config: &Config,
    registry: &Registry,
    phase: &PhaseCell,
    (edge, gateway): (Option<&RunningEdge>, &Arc<Gateway>),
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Admin>, SocketAddr, drain::DrainSignal), DaemonError> {
    let mut last = None;
    for address in source.admin_addresses(config) {
        let options = ListenerOptions {
            name: "admin".to_owned(),
            tls: None,
            switch: None,
            proxy_protocol: None,
            connections_max: ADMIN_CONNECTIONS_MAX,
            reuse_port: false,
            device: None,
            unsent_bytes_max: None,
            lanes: None,
            connection: Options {
                header_timeout: Duration::from_secs(10),
                keep_alive_timeout: Duration::from_secs(60),
                body_idle_timeout: Duration::from_secs(10),
                write_idle_timeout: Duration::from_secs(10),
                read_timeout: None,
                write_timeout: None,
                head_bytes_max: 16 * 1024,
                head_fields_max: 100,
                streams_max: 16,
                metrics: Arc::clone(metrics),
            },
        };
        match Listener::bind(address, options) {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                let admin = Arc::new(Admin {
                    phase: phase.clone(),
                    registry: registry.clone(),
                    gateway: Arc::clone(gateway),
                    connector: ArcSwapOption::empty(),
                    edge: edge.map(|edge| (edge.handle(), edge.address())),
                    config: ArcSwap::from_pointee(config.to_effective()),
                    reload_problem: ArcSwapOption::empty(),
                    restart_needed: ArcSwap::default(),
                    listeners: ArcSwap::default(),
                    mesh: ArcSwapOption::empty(),
                    address,
                    started: Instant::now(),
                });
                let (signal, drained) = drain::channel();
                tokio::spawn(listener.run(Arc::clone(&admin), drained));
                return Ok((admin, address, signal));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(
        || DaemonError::Wiring("no address for the admin endpoint".to_owned()),
        DaemonError::Admin,
    ))
}

/// Admin connections at once: scrapers and a person.
const ADMIN_CONNECTIONS_MAX: usize = 64;
/// Beyond the grace period, for the packets that close connections.
const CLOSING_TIME: Duration = Duration::from_millis(500);
/// Addresses that have changed hands are nobody's for so long after that: what their former owners sent, and what still
/// lay in sockets and tasks, has been looked at and turned away by then.
const GATE_REST: Duration = Duration::from_secs(1);
/// Origin pools are swept and systemd's watchdog is fed this often.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(5);
