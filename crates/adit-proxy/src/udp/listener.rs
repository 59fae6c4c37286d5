//! A UDP entry point: datagrams in, sessions kept.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit_route::mesh::MeshIdentity;
use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::service::{UdpRoute, UdpRoutes};
use super::session::{self, Admission, DATAGRAM_BYTES_MAX, Opening, Session};
use crate::drain::Drain;
use crate::inlet::{DatagramSource, Datagrams};
use crate::listen::{ListenError, bind_device};
use crate::metrics::Metrics;

/// A bound UDP entry point.
#[derive(Debug)]
pub struct UdpListener {
    socket: Arc<DatagramSource>,
    active: Arc<ArcSwap<Active>>,
}

/// Changes the settings of a running entry point; its socket and its sessions stay.
#[derive(Clone, Debug)]
pub struct UdpHandle {
    active: Arc<ArcSwap<Active>>,
}

/// What sessions are opened with from now on.
#[derive(Debug)]
pub(super) struct Active {
    options: UdpOptions,
    pub(super) routes: Arc<ArcSwap<UdpRoutes>>,
}

impl Active {
    /// A socket bound to the interface of the mesh.
    pub(super) fn is_on_mesh(&self) -> bool {
        self.options.device.is_some()
    }

    /// As [`UdpRoutes::admit`], for routes made for such a socket as this one.
    pub(super) fn admit<'r>(
        &self,
        routes: &'r UdpRoutes,
        address: IpAddr,
    ) -> Result<(&'r UdpRoute, Option<&'r Arc<MeshIdentity>>), &'static str> {
        match self.is_on_mesh() == routes.mesh.is_some() {
            true => routes.admit(address),
            false => Err("entry_point_moved"),
        }
    }
}

impl UdpHandle {
    /// Takes another name, other settings and routes; all but the device, for which it was bound. Sessions stay with their
    /// server.
    pub fn set(&self, options: UdpOptions, routes: Arc<ArcSwap<UdpRoutes>>) {
        let device = self.active.load().options.device.clone();
        self.active.store(Arc::new(Active { options: UdpOptions { device, ..options }, routes }));
    }
}

/// What a UDP entry point is set up with.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// Name in logs and metrics.
    pub name: String,
    /// Silence of both directions that ends a session (Traefik: 3 s).
    pub idle_timeout: Duration,
    /// Sessions at once; each is a socket and a task of some KiB. Datagrams of further visitors are dropped.
    pub sessions_max: usize,
    /// Takes only what arrives through this interface (`SO_BINDTODEVICE`): that of the mesh, whose peers are known by
    /// their addresses.
    pub device: Option<String>,
    /// Where drops are counted.
    pub metrics: Arc<Metrics>,
}

impl UdpListener {
    /// Binds the socket.
    ///
    /// # Errors
    /// [`ListenError`] if the address is taken or not ours.
    pub fn bind(address: SocketAddr, options: UdpOptions) -> Result<Self, ListenError> {
        let name = options.name.clone();
        let device = options.device.as_deref();
        let socket = bind(address, device).map_err(|source| ListenError { name, address, source })?;
        Ok(Self::from_source(DatagramSource::Kernel(socket), options))
    }

    /// Takes datagrams of somebody else than the kernel; `local` is what [`Self::local_addr`] says.
    pub fn over(datagrams: Box<dyn Datagrams>, local: SocketAddr, options: UdpOptions) -> Self {
        Self::from_source(DatagramSource::Other { datagrams, local }, options)
    }

    fn from_source(source: DatagramSource, options: UdpOptions) -> Self {
        let active = Active { options, routes: Arc::default() };
        Self { socket: Arc::new(source), active: Arc::new(ArcSwap::from_pointee(active)) }
    }

    /// For routes, without which nobody is served, and for later changes.
    pub fn handle(&self) -> UdpHandle {
        UdpHandle { active: Arc::clone(&self.active) }
    }

    /// The bound address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `drain` begins, and then the sessions that are open until they are silent.
    ///
    /// Routes may be swapped at any time: sessions stay with their server, new ones follow the new routes.
    pub async fn run(self, drain: Drain) {
        let mut sessions =
            Sessions { listener: self, open: HashMap::new(), workers: JoinSet::new(), next: 0 };
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        let socket = Arc::clone(&sessions.listener.socket);
        loop {
            if drain.is_started() && sessions.open.is_empty() {
                return;
            }
            tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok((length, visitor)) => {
                        sessions.take(&buffer[..length], visitor, drain.is_started());
                    }
                    // Its network stack has ended, and will not say anything else.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                    // An ICMP error about a visitor that has gone.
                    Err(error) => tracing::trace!(%error, "UDP receive"),
                },
                Some(ended) = sessions.workers.join_next() => sessions.forget(ended.ok()),
                () = drain.started(), if !drain.is_started() => {}
            }
        }
    }
}

struct Sessions {
    listener: UdpListener,
    open: HashMap<SocketAddr, Session>,
    /// At most `sessions_max`: of those that are open, and of those let go of that have not noticed yet.
    workers: JoinSet<(SocketAddr, u64)>,
    next: u64,
}

impl Sessions {
    fn take(&mut self, datagram: &[u8], visitor: SocketAddr, is_draining: bool) {
        let active = self.listener.active.load_full();
        let metrics = &active.options.metrics;
        if self.open.get(&visitor).is_some_and(|session| !session.holds()) {
            // Its other side ends when it is silent or has something to say.
            self.open.remove(&visitor);
        }
        if !self.open.contains_key(&visitor) {
            let started = if is_draining { Err("udp_no_route") } else { self.start(visitor, &active) };
            if let Err(reason) = started {
                return metrics.refused(reason);
            }
        }
        if let Some(session) = self.open.get(&visitor)
            && let Err(reason) = session.forward(datagram)
        {
            metrics.refused(reason);
        }
    }

    fn start(&mut self, visitor: SocketAddr, active: &Active) -> Result<(), &'static str> {
        let options = &active.options;
        let routes = active.routes.load();
        if routes.mesh.as_ref().is_some_and(|visitors| visitors.is_own(visitor.ip())) {
            return Err("mesh_peer_unknown");
        }
        let (route, peer) = active.admit(&routes, visitor.ip())?;
        if self.workers.len() >= options.sessions_max {
            return Err("udp_sessions_full");
        }
        let server = route.service.choose().ok_or("udp_no_server")?.to_string();
        self.next += 1;
        let listener = Arc::clone(&self.listener.socket);
        let metrics = Arc::clone(&options.metrics);
        let name = peer.map(|peer| &*peer.name);
        tracing::debug!(router = %route.name, %server, peer = name, "UDP session");
        let admission = Admission {
            active: Arc::clone(&self.listener.active),
            address: visitor.ip(),
            router: Arc::clone(&route.name),
            peer: peer.cloned(),
        };
        let idle = options.idle_timeout;
        let opening = Opening { id: self.next, visitor, server, idle, admission };
        let (session, worker) = session::open(opening, listener, metrics);
        let id = session.id;
        let open = options.metrics.udp_session(&options.name);
        self.workers.spawn(async move {
            let _open = open;
            worker.run().await;
            (visitor, id)
        });
        self.open.insert(visitor, session);
        Ok(())
    }

    fn forget(&mut self, ended: Option<(SocketAddr, u64)>) {
        let Some((visitor, id)) = ended else { return };
        if self.open.get(&visitor).is_some_and(|session| session.id == id) {
            self.open.remove(&visitor);
        }
    }
}

fn bind(address: SocketAddr, device: Option<&str>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    bind_device(&socket, device)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use adit_config::dynamic::{UdpDynamic, UdpService};

    use super::*;
    use adit_route::mesh::MeshPeers;
    use adit_route::udp::{UdpRouterSpec, UdpTable};

    use crate::drain;
    use crate::mesh::tests::{believing, peers};
    use crate::mesh::{MeshGate, MeshVisitors};
    use crate::udp::service::UdpServices;

    async fn echo() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                socket.send_to(&buffer[..length], from).await.unwrap();
            }
        });
        address
    }

    /// One router, for whom `rule` says.
    fn routes(server: SocketAddr, rule: &str, mesh: Option<MeshVisitors>) -> UdpRoutes {
        let spec =
            UdpRouterSpec { name: "r".to_owned(), rule: rule.to_owned(), priority: 0, target: route(server) };
        UdpRoutes { table: UdpTable::build([spec]).0, mesh }
    }

    fn route(server: SocketAddr) -> UdpRoute {
        let mut dynamic = UdpDynamic::default();
        let service = UdpService::LoadBalancer { servers: vec![server.to_string()] };
        dynamic.services.insert("s".to_owned(), service);
        UdpRoute { name: "r".into(), service: UdpServices::compile(&dynamic, None).find("s").unwrap() }
    }

    fn options(sessions_max: usize) -> UdpOptions {
        UdpOptions {
            name: "dns".to_owned(),
            idle_timeout: Duration::from_millis(50),
            sessions_max,
            device: None,
            metrics: Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap()),
        }
    }

    #[tokio::test]
    async fn answers_find_their_visitor_and_silent_sessions_end() {
        let listener = UdpListener::bind("127.0.0.1:0".parse().unwrap(), options(2)).unwrap();
        let address = listener.local_addr().unwrap();
        let (start, drained) = drain::channel();
        listener.handle().set(options(2), Arc::new(ArcSwap::from_pointee(routes(echo().await, "", None))));
        let running = tokio::spawn(listener.run(drained));
        for round in 0..3u8 {
            for _ in 0..2 {
                let visitor = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                visitor.connect(address).await.unwrap();
                let mut answer = [0; 16];
                // A third visitor is dropped until an earlier session has ended: asked again, it is served.
                loop {
                    visitor.send(&[round; 3]).await.unwrap();
                    let received =
                        tokio::time::timeout(Duration::from_millis(200), visitor.recv(&mut answer)).await;
                    if let Ok(Ok(length)) = received {
                        assert_eq!(&answer[..length], [round; 3]);
                        break;
                    }
                }
            }
        }
        start.start();
        running.await.unwrap();
    }

    /// What comes back for one datagram within `patience`.
    async fn answer(visitor: &UdpSocket, patience: Duration) -> Option<Vec<u8>> {
        let mut answer = [0; 16];
        visitor.send(b"ask").await.unwrap();
        let received = tokio::time::timeout(patience, visitor.recv(&mut answer)).await;
        received.ok()?.ok().map(|length| answer[..length].to_vec())
    }

    async fn is_served(visitor: &UdpSocket) -> bool {
        answer(visitor, Duration::from_secs(5)).await.as_deref() == Some(&b"ask"[..])
    }

    /// Looks for a moment only: what is wrong is found on most machines, what is right on every one.
    async fn is_ignored(visitor: &UdpSocket) -> bool {
        answer(visitor, Duration::from_millis(300)).await.is_none()
    }

    #[tokio::test]
    async fn on_the_mesh_only_peers_that_a_router_is_for_are_served_and_only_while_they_are() {
        let of =
            |mesh: &Arc<MeshPeers>, gate: &Arc<MeshGate>| Some(believing(Arc::clone(mesh), Arc::clone(gate)));
        let admins = peers(&[("laptop", 1, "127.0.0.1", "admins"), ("site", 2, "127.9.0.0/16", "")]);
        let gate = Arc::new(MeshGate::default());
        gate.open(Arc::clone(&admins));
        let server = echo().await;
        let settings = UdpOptions { idle_timeout: Duration::from_secs(60), ..options(8) };
        let listener = UdpListener::bind("127.0.0.1:0".parse().unwrap(), settings.clone()).unwrap();
        let address = listener.local_addr().unwrap();
        // As if it were bound to the interface, which takes a privilege.
        let on_mesh = UdpOptions { device: Some("lo".to_owned()), ..settings };
        let cell = Arc::new(ArcSwap::from_pointee(routes(server, "MeshGroup(`admins`)", of(&admins, &gate))));
        listener.active.store(Arc::new(Active { options: on_mesh, routes: Arc::clone(&cell) }));
        let metrics = Arc::clone(&listener.active.load().options.metrics);
        let (_start, drained) = drain::channel();
        tokio::spawn(listener.run(drained));
        let from = async |source: &str| {
            let visitor = UdpSocket::bind(SocketAddr::new(source.parse().unwrap(), 0)).await.unwrap();
            visitor.connect(address).await.unwrap();
            visitor
        };
        let (laptop, site, nobody) =
            (from("127.0.0.1").await, from("127.9.0.1").await, from("127.8.0.1").await);
        assert!(is_served(&laptop).await);
        assert!(is_ignored(&site).await, "a peer that no router is for");
        assert!(is_ignored(&nobody).await);
        let refused = |reason: &str| metrics.refusals(reason);
        assert_eq!((refused("udp_no_route"), refused("mesh_peer_unknown")), (1, 1));
        // Another has the address now: the session is not his, nor are the answers that are still to come.
        let moved = peers(&[("thief", 3, "127.0.0.1", "admins")]);
        gate.hold(&moved);
        assert!(is_ignored(&laptop).await);
        cell.store(Arc::new(routes(server, "MeshGroup(`admins`)", of(&moved, &gate))));
        gate.open(Arc::clone(&moved));
        assert!(is_served(&laptop).await, "as a session of his own");
        let revoked = peers(&[("thief", 3, "127.0.0.1", "")]);
        gate.hold(&revoked);
        cell.store(Arc::new(routes(server, "MeshGroup(`admins`)", of(&revoked, &gate))));
        gate.open(revoked);
        assert!(is_ignored(&laptop).await, "who has left the group is not served any longer");
        // A name that has become one of the public: nobody of the mesh goes along.
        cell.store(Arc::new(routes(server, "", None)));
        assert!(is_ignored(&laptop).await);
        assert_eq!(refused("entry_point_moved"), 1);
    }
}
