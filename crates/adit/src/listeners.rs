//! The public entry points while the process runs: started, changed on reload, drained.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit_config::{Config, EntryPoint, EntryPointNetwork, EntryPointTransport};
use adit_mesh::netstack::Stack;
use adit_proxy::drain::{self, DrainSignal};
use adit_proxy::h1::server::Options;
use adit_proxy::h3::listener::{H3Handle, H3Listener, H3Options};
use adit_proxy::lanes::Lanes;
use adit_proxy::listen::{ListenError, Listener, ListenerHandle, ListenerOptions, Switch};
use adit_proxy::message::Service;
use adit_proxy::metrics::Metrics;
use adit_proxy::proxy_protocol::ProxyProtocolPolicy;
use adit_proxy::tls::CertificateStore;
use adit_proxy::udp::{UdpHandle, UdpListener, UdpOptions, UdpRoutes};
use adit_tunnel::EdgeLane;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

use crate::mesh_entry;

/// All entry points that are listening.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// By where they listen: a socket outlives changes of name and settings.
    running: BTreeMap<Place, Running>,
    udp: BTreeMap<Place, RunningUdp<UdpHandle>>,
    /// The UDP sides of entry points with HTTP/3.
    h3: BTreeMap<Place, RunningUdp<H3Handle>>,
    /// Those that a reload took away, still serving what they had.
    leaving: JoinSet<()>,
    /// The mesh's own network stack, if it has one: entry points on the mesh listen there.
    stack: Option<Stack>,
    /// The threads that serve visitors.
    lanes: Lanes,
    tls: Arc<ServerConfig>,
    metrics: Arc<Metrics>,
}

/// What an entry point does with a connection, if the ingress decides it.
pub(crate) type Switches<'a> = dyn Fn(&str) -> Option<Arc<ArcSwap<Switch>>> + 'a;

/// What a UDP entry point does with datagrams.
pub(crate) type UdpCells<'a> = dyn Fn(&str) -> Option<Arc<ArcSwap<UdpRoutes>>> + 'a;

/// A socket of an entry point, for people and the API.
#[derive(Clone, Debug)]
pub(crate) struct Listening {
    pub(crate) entry_point: String,
    /// With the port that the system chose for port 0.
    pub(crate) address: SocketAddr,
    /// `http`, `https`, `h3` or `udp`.
    pub(crate) scheme: &'static str,
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// As configured.
    address: SocketAddr,
    /// Where the port is for the system to choose, entry points are told apart by name.
    name: Option<String>,
    /// The interface of the mesh, for those that nobody else may reach.
    device: Option<String>,
}

impl Place {
    /// The sockets that an entry point asks for: one, or on the mesh one for each of its addresses.
    fn all(name: &str, entry_point: &EntryPoint, config: &Config) -> Vec<Self> {
        let on_mesh = entry_point.on == EntryPointNetwork::Mesh;
        // Checked: an entry point on the mesh has one.
        let mesh = config.mesh.as_ref().filter(|_| on_mesh);
        let addresses = match (on_mesh, mesh) {
            (true, Some(mesh)) => entry_point.mesh_addresses(mesh),
            (true, None) => Vec::new(),
            (false, _) => vec![entry_point.address],
        };
        let place = |address: SocketAddr| Self {
            address,
            name: (address.port() == 0).then(|| name.to_owned()),
            device: mesh.map(|mesh| mesh.interface.clone()),
        };
        addresses.into_iter().map(place).collect()
    }
}

/// A UDP entry point, or the UDP side of one with HTTP/3.
#[derive(Debug)]
struct RunningUdp<H> {
    name: String,
    address: SocketAddr,
    handle: H,
    leave: Leave,
    drain: DrainSignal,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Running {
    name: String,
    settings: Settings,
    address: SocketAddr,
    handle: ListenerHandle,
    drain: DrainSignal,
    task: JoinHandle<()>,
}

/// What a listener is started with; a change of any of it restarts the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    entry_point: EntryPoint,
    limits: adit_config::Limits,
    /// Its visitors may be for tunnels.
    is_edges: bool,
    /// All of them are: there are no routers.
    is_edges_alone: bool,
}

/// Why the entry points cannot be as configured.
#[derive(Debug, Error)]
pub(crate) enum ListenersError {
    /// One cannot be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// One cannot be bound, and what overlaps it is ours until the reload is over.
    #[error(
        "{holder} still listens on this port: take it away in one reload and add the new one in the next, or restart"
    )]
    Held {
        /// Name of the entry point that has the port.
        holder: String,
        /// What the system says.
        source: ListenError,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The threads that serve visitors.
    #[error("cannot start the threads that serve visitors")]
    Threads(#[source] io::Error),
}

/// What is to listen, with the sockets that are new.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    wanted: BTreeMap<Place, (String, Settings, Option<Listener>)>,
    udp: BTreeMap<Place, (UdpOptions, Option<UdpListener>)>,
    h3: BTreeMap<Place, (H3Options, Leave, Option<H3Listener>)>,
}

impl Prepared {
    fn has(&self, transport: EntryPointTransport, place: &Place) -> bool {
        match transport {
            EntryPointTransport::Udp => self.udp.contains_key(place),
            EntryPointTransport::Tcp => self.wanted.contains_key(place),
        }
    }
}

/// How an entry point ends (`transport.lifeCycle`).
#[derive(Clone, Copy, Debug)]
struct Leave {
    /// Still accepts for so long.
    accept: Duration,
    /// Then lets what it has finish for so long.
    finish: Duration,
}

impl Leave {
    fn of(entry_point: &EntryPoint) -> Self {
        Self { accept: entry_point.request_accept_grace, finish: entry_point.grace_period }
    }

    /// Without accepting any longer.
    fn now(self) -> Self {
        Self { accept: Duration::ZERO, ..self }
    }
}

impl Listeners {
    /// None yet.
    ///
    /// # Errors
    /// If TLS cannot be set up, or there are no threads.
    pub(crate) fn new(store: &Arc<CertificateStore>, metrics: Arc<Metrics>) -> Result<Self, ListenersError> {
        Ok(Self {
            running: BTreeMap::new(),
            udp: BTreeMap::new(),
            h3: BTreeMap::new(),
            leaving: JoinSet::new(),
            stack: None,
            // As many as the runtime has: both obey `TOKIO_WORKER_THREADS`.
            lanes: Lanes::start(Handle::current().metrics().num_workers())
                .map_err(ListenersError::Threads)?,
            tls: store.server_config()?,
            metrics,
        })
    }

    /// The threads that serve visitors.
    pub(crate) fn lanes(&self) -> Vec<Handle> {
        self.lanes.handles()
    }

    /// The same for the connections of connectors.
    pub(crate) fn edge_lanes(&self) -> Vec<EdgeLane> {
        self.lanes.tunnels().map(|(runtime, connections)| EdgeLane { runtime, connections }).collect()
    }

    /// Listens for entry points on the mesh here from now on; `None` = at sockets of the kernel.
    pub(crate) fn reach(&mut self, stack: Option<Stack>) {
        self.stack = stack;
    }

    /// Binds what `config` has and neither we nor `prepared` have yet; nothing that runs is touched. Addresses on the mesh
    /// that are not `reachable` yet are left for a second call.
    ///
    /// # Errors
    /// [`ListenersError`] of the first that cannot be bound.
    pub(crate) fn prepare(
        &self,
        config: &Config,
        switches: &Switches<'_>,
        mut prepared: Prepared,
        reachable: &dyn Fn(IpAddr) -> bool,
    ) -> Result<Prepared, ListenersError> {
        for (name, entry_point) in &config.entry_points {
            for place in Place::all(name, entry_point, config) {
                let is_reachable = place.device.is_none() || reachable(place.address.ip());
                if !is_reachable || prepared.has(entry_point.transport, &place) {
                    continue;
                }
                let port = place.address.port();
                let bound = if entry_point.transport == EntryPointTransport::Udp {
                    self.prepare_udp(name, entry_point, place, config, &mut prepared)
                } else {
                    let is_edges = config.edge.iter().any(|edge| edge.public.contains(name));
                    let settings = Settings {
                        entry_point: entry_point.clone(),
                        limits: config.limits.clone(),
                        is_edges,
                        is_edges_alone: is_edges
                            && config.providers.file.is_none()
                            && config.dynamic.http.routers.is_empty(),
                    };
                    self.prepare_tcp((name, settings), place, switches, &mut prepared)
                };
                bound.map_err(|error| self.explain(error, entry_point.transport, port))?;
            }
        }
        Ok(prepared)
    }

    /// Tells an address that somebody else has from one that overlaps ours: an entry point that goes to the mesh or comes
    /// from there, or to one address of many, with the port that it had.
    fn explain(&self, error: ListenersError, transport: EntryPointTransport, port: u16) -> ListenersError {
        let ListenersError::Listen(source) = error else { return error };
        let mut tcp = self.running.values().map(|running| (running.address, &running.name));
        let mut udp = self.udp.values().map(|udp| (udp.address, &udp.name));
        let mut h3 = self.h3.values().map(|h3| (h3.address, &h3.name));
        let has_port = |(address, _): &(SocketAddr, &String)| address.port() == port;
        let holder = match transport {
            _ if source.source.kind() != io::ErrorKind::AddrInUse => None,
            EntryPointTransport::Tcp => tcp.find(has_port),
            EntryPointTransport::Udp => udp.find(has_port).or_else(|| h3.find(has_port)),
        };
        match holder {
            Some((address, name)) => {
                ListenersError::Held { holder: format!("the entry point {name} ({address})"), source }
            }
            None => source.into(),
        }
    }

    fn prepare_udp(
        &self,
        name: &str,
        entry_point: &EntryPoint,
        place: Place,
        config: &Config,
        prepared: &mut Prepared,
    ) -> Result<(), ListenersError> {
        let options = UdpOptions {
            name: name.to_owned(),
            idle_timeout: entry_point.udp_timeout,
            sessions_max: config.limits.connections_max as usize,
            device: place.device.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        let listener = match (self.udp.contains_key(&place), self.stack_of(&place)) {
            (true, _) => None,
            (false, Some(stack)) => Some(mesh_entry::bind_udp(stack, place.address, options.clone())?),
            (false, None) => Some(UdpListener::bind(place.address, options.clone())?),
        };
        prepared.udp.insert(place, (options, listener));
        Ok(())
    }

    fn prepare_tcp(
        &self,
        (name, settings): (&str, Settings),
        place: Place,
        switches: &Switches<'_>,
        prepared: &mut Prepared,
    ) -> Result<(), ListenersError> {
        let address = place.address;
        let listener = match self.running.contains_key(&place) {
            true => None,
            false => {
                let options = ListenerOptions {
                    device: place.device.clone(),
                    ..self.options(name, &settings, switches)
                };
                Some(match self.stack_of(&place) {
                    Some(stack) => mesh_entry::listen(stack, address, options)?,
                    None => Listener::bind(address, options)?,
                })
            }
        };
        if settings.entry_point.http3.is_some()
            && let Some(switch) = switches(name)
        {
            // HTTP/3 has the port of its TCP side, also where the system chose that.
            let bound = listener.as_ref().and_then(|listener| listener.local_addr().ok());
            let running = || self.running.get(&place).map(|running| running.address);
            let options = H3Options {
                name: name.to_owned(),
                switch,
                connections_max: settings.limits.connections_max as usize,
                device: place.device.clone(),
                connection: self.connection_options(&settings),
            };
            let listener = match self.h3.contains_key(&place) {
                true => None,
                false => Some(H3Listener::bind(bound.or_else(running).unwrap_or(address), options.clone())?),
            };
            let leave = Leave::of(&settings.entry_point);
            prepared.h3.insert(place.clone(), (options, leave, listener));
        }
        prepared.wanted.insert(place, (name.to_owned(), settings, listener));
        Ok(())
    }

    /// Starts what was prepared, changes what stays, and lets go of what the configuration no longer has.
    pub(crate) fn commit<S: Service>(
        &mut self,
        prepared: Prepared,
        service: &Arc<S>,
        switches: &Switches<'_>,
        routes: &UdpCells<'_>,
    ) {
        self.commit_udp(prepared.udp, routes);
        self.commit_h3(prepared.h3, service);
        let gone: Vec<Place> =
            self.running.keys().filter(|p| !prepared.wanted.contains_key(p)).cloned().collect();
        for running in gone.iter().filter_map(|place| self.running.remove(place)).collect::<Vec<_>>() {
            tracing::info!(entry_point = %running.name, address = %running.address, "entry point closed");
            self.leave(running);
        }
        for (place, (name, settings, listener)) in prepared.wanted {
            let options =
                ListenerOptions { device: place.device.clone(), ..self.options(&name, &settings, switches) };
            match (self.running.get_mut(&place), listener) {
                (Some(running), _) => {
                    running.handle.set(options);
                    (running.name, running.settings) = (name, settings);
                }
                (None, Some(listener)) => {
                    let Ok(address) = listener.local_addr() else { continue };
                    let (drain, drained) = drain::channel();
                    let handle = listener.handle();
                    let task = tokio::spawn(listener.run(Arc::clone(service), drained));
                    let tls = settings.entry_point.tls;
                    tracing::info!(entry_point = %name, %address, tls, "entry point listens");
                    self.running.insert(place, Running { name, settings, address, handle, drain, task });
                }
                (None, None) => {}
            }
        }
        // Those that have finished leaving are forgotten.
        while self.leaving.try_join_next().is_some() {}
    }

    /// The same for UDP entry points; `routes` tells where their sessions go.
    fn commit_udp(
        &mut self,
        prepared: BTreeMap<Place, (UdpOptions, Option<UdpListener>)>,
        routes: &UdpCells<'_>,
    ) {
        let gone: Vec<Place> =
            self.udp.keys().filter(|place| !prepared.contains_key(place)).cloned().collect();
        for udp in gone.iter().filter_map(|place| self.udp.remove(place)).collect::<Vec<_>>() {
            self.leave_udp(udp);
        }
        for (place, (options, listener)) in prepared {
            let (name, Some(routes)) = (options.name.clone(), routes(&options.name)) else { continue };
            match (self.udp.get_mut(&place), listener) {
                (Some(running), _) => {
                    running.handle.set(options, routes);
                    running.name = name;
                }
                (None, Some(listener)) => {
                    let Ok(address) = listener.local_addr() else { continue };
                    let handle = listener.handle();
                    handle.set(options, routes);
                    let (drain, drained) = drain::channel();
                    tracing::info!(entry_point = %name, %address, transport = "udp", "entry point listens");
                    let task = tokio::spawn(listener.run(drained));
                    let leave = Leave { accept: Duration::ZERO, finish: FOREVER };
                    self.udp.insert(place, RunningUdp { name, address, handle, leave, drain, task });
                }
                (None, None) => {}
            }
        }
    }

    /// The same for HTTP/3.
    fn commit_h3<S: Service>(
        &mut self,
        prepared: BTreeMap<Place, (H3Options, Leave, Option<H3Listener>)>,
        service: &Arc<S>,
    ) {
        let gone: Vec<Place> =
            self.h3.keys().filter(|place| !prepared.contains_key(place)).cloned().collect();
        for h3 in gone.iter().filter_map(|place| self.h3.remove(place)).collect::<Vec<_>>() {
            self.leave_udp(h3);
        }
        for (place, (options, leave, listener)) in prepared {
            let name = options.name.clone();
            match (self.h3.get_mut(&place), listener) {
                (Some(running), _) => {
                    running.handle.set(options);
                    (running.name, running.leave) = (name, leave);
                }
                (None, Some(listener)) => {
                    let (address, handle) = (listener.local_addr(), listener.handle());
                    let (drain, drained) = drain::channel();
                    tracing::info!(entry_point = %name, %address, transport = "http3", "entry point listens");
                    let task = tokio::spawn(listener.run(Arc::clone(service), drained));
                    self.h3.insert(place, RunningUdp { name, address, handle, leave, drain, task });
                }
                (None, None) => {}
            }
        }
    }

    fn leave_udp<H>(&mut self, udp: RunningUdp<H>) {
        tracing::info!(entry_point = %udp.name, address = %udp.address, "entry point closed");
        self.leave_with(udp.leave.now(), udp.address, udp.drain, udp.task);
    }

    /// What listens where; an entry point with HTTP/3 is there twice.
    pub(crate) fn addresses(&self) -> Vec<Listening> {
        let tcp = self.running.values().map(|running| Listening {
            entry_point: running.name.clone(),
            address: running.address,
            scheme: if running.settings.entry_point.tls { "https" } else { "http" },
        });
        let with = |(name, address): (&String, &SocketAddr), scheme| Listening {
            entry_point: name.clone(),
            address: *address,
            scheme,
        };
        let h3 = self.h3.values().map(|h3| with((&h3.name, &h3.address), "h3"));
        let udp = self.udp.values().map(|udp| with((&udp.name, &udp.address), "udp"));
        tcp.chain(h3).chain(udp).collect()
    }

    /// Stops accepting and waits until every visitor has its answer; drop the future to cut the rest.
    pub(crate) async fn drain(&mut self) {
        for (_, running) in std::mem::take(&mut self.running) {
            let leave = Leave::of(&running.settings.entry_point);
            self.leave_with(leave, running.address, running.drain, running.task);
        }
        for (_, udp) in std::mem::take(&mut self.udp) {
            self.leave_with(udp.leave, udp.address, udp.drain, udp.task);
        }
        for (_, h3) in std::mem::take(&mut self.h3) {
            self.leave_with(h3.leave, h3.address, h3.drain, h3.task);
        }
        while self.leaving.join_next().await.is_some() {}
    }

    /// Lets go of what a reload took away: at once, so that its address is free for the next.
    fn leave(&mut self, running: Running) {
        let leave = Leave::of(&running.settings.entry_point).now();
        self.leave_with(leave, running.address, running.drain, running.task);
    }

    fn leave_with(
        &mut self,
        leave: Leave,
        address: SocketAddr,
        drain: DrainSignal,
        mut task: JoinHandle<()>,
    ) {
        self.leaving.spawn(async move {
            // Balancers in front learn of our end by `/ping` and `/ready` meanwhile.
            tokio::time::sleep(leave.accept).await;
            drain.start();
            if tokio::time::timeout(leave.finish, &mut task).await.is_err() {
                tracing::warn!(%address, reason = "grace_period", "entry point's last requests are cut");
                task.abort();
            }
        });
    }

    /// Where a socket of the mesh is, if the kernel does not know of the mesh.
    fn stack_of(&self, place: &Place) -> Option<&Stack> {
        self.stack.as_ref().filter(|_| place.device.is_some())
    }

    fn connection_options(&self, settings: &Settings) -> Options {
        let (entry_point, limits) = (&settings.entry_point, &settings.limits);
        let body_idle_timeout =
            if limits.body_idle_timeout.is_zero() { FOREVER } else { limits.body_idle_timeout };
        Options {
            header_timeout: entry_point.read_header_timeout,
            keep_alive_timeout: entry_point.idle_timeout,
            body_idle_timeout,
            write_idle_timeout: body_idle_timeout,
            read_timeout: entry_point.read_timeout,
            write_timeout: entry_point.write_timeout,
            head_bytes_max: match entry_point.header_bytes_max {
                // Go lets a head be that much longer than it is told, and files are tuned against that.
                Some(told) => told as usize + HEAD_BYTES_SLACK,
                None => limits.header_bytes_max as usize,
            },
            head_fields_max: usize::from(limits.headers_max),
            streams_max: entry_point.http2_streams_max.unwrap_or(limits.streams_per_connection_max),
            metrics: Arc::clone(&self.metrics),
        }
    }

    fn options(&self, name: &str, settings: &Settings, switches: &Switches<'_>) -> ListenerOptions {
        let entry_point = &settings.entry_point;
        ListenerOptions {
            name: name.to_owned(),
            tls: entry_point.tls.then(|| Arc::clone(&self.tls)),
            switch: switches(name),
            proxy_protocol: entry_point.proxy_protocol.as_ref().map(|trust| ProxyProtocolPolicy {
                trusted: trust.trusted.clone(),
                insecure: trust.insecure,
            }),
            connections_max: settings.limits.connections_max as usize,
            reuse_port: entry_point.reuse_port,
            device: None,
            unsent_bytes_max: settings.is_edges.then_some(UNSENT_BYTES_MAX),
            lanes: Some(if settings.is_edges_alone { self.lanes.near_tunnels() } else { self.lanes.clone() }),
            connection: self.connection_options(settings),
        }
    }
}

/// Where a tunnel's credit is short, the streams of who reads next to nothing are stopped: less than 64 KiB in 10 s. The kernel
/// would take up to 4 MiB (`net.ipv4.tcp_wmem`), and no more before a third of that has left, for which a visitor of 160
/// kbit/s needs a minute. With this it asks for more after each half of it.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;
/// What Go's server adds to `maxHeaderBytes`.
const HEAD_BYTES_SLACK: usize = 4096;
/// Stands for "no limit": longer than any process lives.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
