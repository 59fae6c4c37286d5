//! The ingress while the process runs: its providers, its certificates, what each entry point does with a connection.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use adit_acme::Acme;
use adit_config::dynamic::{Dynamic, TlsDynamic};
use adit_config::{Config, DynamicFiles, EntryPointNetwork, EntryPointTransport, Ingress, Tunnel};
use adit_proxy::listen::Switch;
use adit_proxy::mesh::MeshVisitors;
use adit_proxy::tcp::layer::TcpLayers;
use adit_proxy::tcp::service::TcpServices;
use adit_proxy::tcp::table::{TcpParts, TcpRouters};
use adit_proxy::tls::options::TlsOptionSets;
use adit_proxy::tls::{CertificateStore, Certificates};
use adit_proxy::udp::{UdpRoute, UdpRoutes, UdpServices};
use adit_route::mesh::MeshPeers;
use adit_route::udp::UdpTable;
use arc_swap::ArcSwap;

use crate::acme::{self, AcmeViews, TcpHosts};
use crate::gateway::files::{Files, Look, Place};
use crate::gateway::internal::Internal;
use crate::gateway::merge::{Part, merge};
use crate::gateway::mesh_names::disable_open;
use crate::gateway::{Gateway, Generation, Inputs};

/// The ingress of a process.
pub(super) struct RunningIngress {
    gateway: Arc<Gateway>,
    store: Arc<CertificateStore>,
    options: Arc<TlsOptionSets>,
    files: Files,
    /// By entry point; listeners hold the same.
    switches: HashMap<String, Arc<ArcSwap<Switch>>>,
    /// By UDP entry point; its listener holds the same.
    udp_routes: HashMap<String, Arc<ArcSwap<UdpRoutes>>>,
    streams: Streams,
    watched: Vec<PathBuf>,
    internal: Internal,
    acme: Acme,
}

/// A new generation with what belongs to it, not in force yet.
struct Planned {
    inputs: Inputs,
    certificates: Certificates,
    options: TlsOptionSets,
    watched: Vec<PathBuf>,
}

/// What TCP and UDP routers refer to; kept so that unchanged parts keep their state.
#[derive(Default)]
struct Streams {
    layers: TcpLayers,
    tcp: TcpServices,
    udp: UdpServices,
}

/// The TCP and UDP routers of all entry points.
#[derive(Default)]
struct Routes {
    tcp: HashMap<String, TcpRouters>,
    udp: HashMap<String, UdpTable<UdpRoute>>,
}

impl RunningIngress {
    /// Compiles what `config` and its files have.
    pub(super) fn start(
        config: &Config,
        acme: &AcmeViews,
        make_gateway: impl FnOnce(Generation) -> Gateway,
    ) -> Self {
        let store = Arc::new(CertificateStore::default());
        let acme = acme.resolvers(&store);
        let mut files = Files::default();
        let planned = plan(config, &mut files, &store, None);
        let options = Arc::new(planned.options);
        let mut ingress = Self {
            gateway: Arc::new(make_gateway(Generation::compile(Inputs::default(), None))),
            store,
            options: Arc::clone(&options),
            files,
            switches: HashMap::new(),
            udp_routes: HashMap::new(),
            streams: Streams::default(),
            watched: planned.watched,
            internal: Internal::default(),
            acme,
        };
        ingress.take(config, planned.inputs, planned.certificates, options);
        ingress.open_gate();
        ingress
    }

    /// Our own services, for which the process is to show itself.
    pub(super) fn internal(&self) -> &Internal {
        &self.internal
    }

    pub(super) fn store(&self) -> &Arc<CertificateStore> {
        &self.store
    }

    pub(super) fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// What an entry point does with a connection.
    pub(super) fn switch(&self, entry_point: &str) -> Option<Arc<ArcSwap<Switch>>> {
        self.switches.get(entry_point).cloned()
    }

    /// Makes room for entry points that `config` adds, so that they can be bound before [`Self::reload`].
    pub(super) fn reserve(&mut self, config: &Config) {
        for name in config.entry_points.keys() {
            self.switches
                .entry(name.clone())
                .or_insert_with(|| Arc::new(ArcSwap::from_pointee(Switch::http(Arc::clone(&self.options)))));
        }
    }

    /// Keeps everybody from the addresses of the mesh that will be another's when `config` is in force; to be done before
    /// the mesh changes. Says whether there are any.
    pub(super) fn hold_gate(&self, config: &Config) -> bool {
        let after = config.mesh.as_ref().map(MeshPeers::new).unwrap_or_default();
        self.gateway.gate().hold(&after);
        let before = self.gateway.load().inputs.mesh.clone().unwrap_or_default();
        before.moving(&after).is_some()
    }

    /// All that decides who is who is in force: the mesh, [`Self::reload`] and the entry points.
    pub(super) fn open_gate(&self) {
        self.gateway.gate().open(self.gateway.load().inputs.mesh.clone().unwrap_or_default());
    }

    pub(super) fn watched(&self) -> &[PathBuf] {
        &self.watched
    }

    /// Takes configuration and files as they are now; what is wrong in them is disabled alone. [`Self::open_gate`] is to
    /// follow.
    pub(super) fn reload(&mut self, config: &Config) {
        let planned = plan(config, &mut self.files, &self.store, Some(&self.options));
        self.watched = planned.watched;
        self.take(config, planned.inputs, planned.certificates, Arc::new(planned.options));
    }

    fn take(
        &mut self,
        config: &Config,
        mut inputs: Inputs,
        certificates: Certificates,
        options: Arc<TlsOptionSets>,
    ) {
        self.store.swap(certificates);
        inputs.internal = self.internal.of(config);
        self.options = options;
        let previous = self.gateway.load();
        let mut routes = self.streams.compile(config, &mut inputs, &self.options);
        let mut generation = Generation::compile(inputs, Some(&previous));
        let wanted =
            acme::wanted(config, &generation, &tcp_hosts(&routes), &|name| self.store.is_configured(name));
        generation.verdicts.warnings.extend(wanted.warnings.iter().map(ToString::to_string));
        report(&generation);
        self.set_switches(config, &generation, &mut routes);
        self.set_udp_routes(config, &generation, routes.udp);
        self.gateway.store(generation);
        self.acme.apply(&config.tls.resolvers, &wanted.list);
    }

    /// Lets orders begin: the entry points listen.
    pub(super) fn open_orders(&self) {
        self.acme.open();
    }

    /// Ends orders that are under way.
    pub(super) async fn stop_orders(&mut self) {
        self.acme.stop().await;
    }

    /// What each entry point does with a connection; cells that listeners hold are changed in place.
    fn set_switches(&mut self, config: &Config, generation: &Generation, routes: &mut Routes) {
        let mut held = std::mem::take(&mut self.switches);
        for name in config.entry_points.keys() {
            let tcp = routes.tcp.remove(name).unwrap_or_default();
            let switch = Switch {
                plain: tcp.plain,
                secure: tcp.secure,
                hosts: generation.tls_hosts(name),
                mesh: self.mesh_of(config, &generation.inputs, name),
                challenges: Some(self.gateway.acme().tls_challenges()),
                ..Switch::http(Arc::clone(&self.options))
            };
            let cell = match held.remove(name) {
                Some(cell) => {
                    cell.store(Arc::new(switch));
                    cell
                }
                None => Arc::new(ArcSwap::from_pointee(switch)),
            };
            self.switches.insert(name.clone(), cell);
        }
        // Who comes late to an entry point of the mesh that is no more is not decided about by what nobody keeps true.
        for cell in held.into_values().filter(|cell| cell.load().mesh.is_some()) {
            cell.store(Arc::new(Switch::http(Arc::clone(&self.options))));
        }
    }

    /// Where the datagrams of each UDP entry point go.
    fn set_udp_routes(
        &mut self,
        config: &Config,
        generation: &Generation,
        tables: HashMap<String, UdpTable<UdpRoute>>,
    ) {
        let mut held = std::mem::take(&mut self.udp_routes);
        for (name, table) in tables {
            let cell = held.remove(&name).unwrap_or_default();
            let mesh = self.mesh_of(config, &generation.inputs, &name);
            cell.store(Arc::new(UdpRoutes { table, mesh }));
            self.udp_routes.insert(name, cell);
        }
        // Sessions of an entry point that is no more may still look here.
        held.into_values().for_each(|cell| cell.store(Arc::default()));
    }

    /// Who may come to an entry point, if it is on the mesh.
    fn mesh_of(&self, config: &Config, inputs: &Inputs, entry_point: &str) -> Option<MeshVisitors> {
        let is_here = is_on_mesh(config, entry_point);
        let peers = is_here.then(|| inputs.mesh.clone().unwrap_or_default())?;
        Some(MeshVisitors::new(peers, Arc::clone(self.gateway.gate())))
    }

    /// Where a UDP entry point's sessions go.
    pub(super) fn udp_routes(&self, entry_point: &str) -> Option<Arc<ArcSwap<UdpRoutes>>> {
        self.udp_routes.get(entry_point).cloned()
    }
}

/// Reads the providers and puts their parts together.
pub(crate) fn inputs(config: &Config, files: &mut Files) -> (Inputs, Vec<PathBuf>) {
    let mut parts = vec![Part {
        provider: "inline",
        origin: config.sources.first().map(|path| path.display().to_string()).unwrap_or_default(),
        dynamic: config.dynamic.clone(),
    }];
    let mut look = Look::default();
    if let Some(provider) = &config.providers.file {
        let place = match &provider.files {
            DynamicFiles::File(path) => Place::File(path.clone()),
            DynamicFiles::Directory(path) => Place::Folder(path.clone()),
        };
        look = files.look(&place);
        if !provider.watch {
            look.paths.clear();
        }
    }
    parts.append(&mut look.parts);
    let mut faults = look.faults;
    let mut dynamic = merge(&parts, &mut faults);
    let mut entry_points = config.entry_points.clone();
    if serves_tunnel(config) {
        // What comes through the tunnel has no listener, but the same routers.
        let mut tunnel = adit_config::EntryPoint::new(std::net::SocketAddr::from(([0, 0, 0, 0], 0)));
        // Applications look for `https`; only files of Traefik expect `wss`, and those name listeners.
        tunnel.forwarded_websocket_scheme = false;
        tunnel.as_default = true;
        entry_points.entry(TUNNEL.to_owned()).or_insert(tunnel);
    }
    let server = adit_proxy::forwarded::server_name();
    let mesh = config.mesh.as_ref().map(|mesh| Arc::new(MeshPeers::new(mesh)));
    disable_open(&mut dynamic, mesh.as_deref());
    let tunnel_names = match (serves_tunnel(config), &config.tunnel) {
        (true, Some(tunnel)) => tunnel.entry_points.clone(),
        _ => Vec::new(),
    };
    let inputs = Inputs {
        dynamic,
        entry_points,
        server,
        mesh,
        faults,
        tunnel_names,
        internal: Internal::default().of(config),
        ..Inputs::default()
    };
    (inputs, look.paths)
}

fn plan(
    config: &Config,
    files: &mut Files,
    store: &Arc<CertificateStore>,
    previous: Option<&Arc<TlsOptionSets>>,
) -> Planned {
    let (mut inputs, watched) = inputs(config, files);
    let tls: &TlsDynamic = &inputs.dynamic.tls;
    let (certificates, errors) = Certificates::compile(tls, Some(&store.load()));
    let options = TlsOptionSets::compile(&tls.options, store, previous.map(|p| &**p));
    let faults = errors.iter().map(ToString::to_string);
    let option_faults = options.faults().map(|(name, why)| format!("TLS options {name}: {why}"));
    let all: Vec<String> = faults.chain(option_faults).collect();
    inputs.faults.extend(all);
    inputs.tls_options = Some(options.stamps());
    Planned { inputs, certificates, options, watched }
}

impl Streams {
    /// Compiles TCP and UDP; what is wrong goes into `inputs`, to be shown with the rest.
    fn compile(&mut self, config: &Config, inputs: &mut Inputs, options: &TlsOptionSets) -> Routes {
        let dynamic = &inputs.dynamic;
        self.layers = TcpLayers::compile(&dynamic.tcp.middlewares, Some(&self.layers));
        self.tcp = TcpServices::compile(&dynamic.tcp, Some(&self.tcp));
        self.udp = UdpServices::compile(&dynamic.udp, Some(&self.udp));
        let parts = TcpParts { layers: &self.layers, services: &self.tcp, options };
        let mut routes = Routes::default();
        let (mut tcp_faults, mut udp_faults) = (BTreeMap::new(), BTreeMap::new());
        for (name, entry_point) in &config.entry_points {
            if entry_point.transport == EntryPointTransport::Udp {
                let (table, disabled) = self.udp.table(&dynamic.udp, name, entry_point.as_default);
                udp_faults.extend(disabled);
                routes.udp.insert(name.clone(), table);
            } else {
                let routers = TcpRouters::compile(&dynamic.tcp, name, entry_point.as_default, parts);
                tcp_faults.extend(routers.disabled.iter().map(|d| (d.name.clone(), d.reason.clone())));
                routes.tcp.insert(name.clone(), routers);
            }
        }
        // Nobody above has seen those of which no entry point exists; of some, others do.
        let mut warnings = Vec::new();
        let mut look = |name: &String, names: &[String], faults: &mut BTreeMap<String, String>| {
            let missing = names.iter().filter(|name| !config.entry_points.contains_key(*name));
            let missing: Vec<String> =
                missing.map(|missing| format!("there is no entry point {missing}")).collect();
            if missing.len() == names.len() {
                faults.extend(missing.into_iter().next().map(|why| (name.clone(), why)));
            } else {
                warnings.extend(missing.iter().map(|why| format!("router {name}: {why}")));
            }
        };
        for (name, router) in &dynamic.tcp.routers {
            look(name, &router.entry_points, &mut tcp_faults);
        }
        for (name, router) in &dynamic.udp.routers {
            look(name, &router.entry_points, &mut udp_faults);
        }
        (inputs.tcp_faults, inputs.udp_faults, inputs.stream_warnings) = (tcp_faults, udp_faults, warnings);
        routes
    }
}

fn is_on_mesh(config: &Config, entry_point: &str) -> bool {
    config.entry_points.get(entry_point).is_some_and(|settings| settings.on == EntryPointNetwork::Mesh)
}

/// The names of TCP routers with TLS, by router.
fn tcp_hosts(routes: &Routes) -> Vec<TcpHosts> {
    let routers = routes.tcp.values().flat_map(|routers| routers.secure.routers());
    routers.map(TcpHosts::of).collect()
}

/// Says what is disabled and why, once a generation.
fn report(generation: &Generation) {
    for problem in generation.verdicts.problems() {
        tracing::error!(reason = "disabled", "{problem}");
    }
    for warning in &generation.verdicts.warnings {
        tracing::warn!("{warning}");
    }
}

/// The entry point of requests that come through the tunnel.
pub(crate) const TUNNEL: &str = "tunnel";

/// Whether routers answer what comes through the tunnel: it has no rules of its own.
pub(crate) fn serves_tunnel(config: &Config) -> bool {
    let has_rules = |tunnel: &Tunnel| tunnel.ingress != Ingress::unavailable();
    has_ingress(config) && config.tunnel.as_ref().is_some_and(|tunnel| !has_rules(tunnel))
}

/// Whether connections are looked at before it is known who takes them: routers below HTTP, challenges of tls-alpn-01, and
/// who is no peer of the mesh.
pub(super) fn has_switch(config: &Config, entry_point: &str) -> bool {
    has_ingress(config) || !config.tls.resolvers.is_empty() || is_on_mesh(config, entry_point)
}

/// Whether a configuration has anything for the ingress.
pub(crate) fn has_ingress(config: &Config) -> bool {
    config.providers.file.is_some() || config.dynamic != Dynamic::default()
}
