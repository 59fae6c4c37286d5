//! Entry points: accept under a permit, find out what the visitor speaks, hand the connection on.
//!
//! Read on in `listen/accepted.rs`: PROXY protocol, ClientHello, TLS, and who serves the rest.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::drain::Drain;
use crate::h1::server::Options;
use crate::inlet::{self, Incoming, Source};
use crate::lanes::{LaneName, Lanes};
use crate::mesh::MeshVisitors;
use crate::message::Service;
use crate::proxy_protocol::ProxyProtocolPolicy;

mod accepted;
mod rewind;
mod start;
mod switch;
#[cfg(test)]
pub(crate) mod tests;

pub use switch::{Switch, TlsChallenges};

use accepted::Accepted;

/// A bound entry point.
#[derive(Debug)]
pub struct Listener {
    source: Source,
    active: Arc<ArcSwap<Active>>,
}

/// Changes the settings of a running listener; its socket and its connections stay.
#[derive(Clone, Debug)]
pub struct ListenerHandle {
    active: Arc<ArcSwap<Active>>,
}

/// What connections accepted from now on are served with.
#[derive(Debug)]
struct Active {
    shared: Arc<Shared>,
    lanes: Option<Lanes>,
    unsent_bytes_max: Option<u32>,
    connections_max: usize,
    permits: Arc<Semaphore>,
}

/// What all connections of an entry point have in common.
#[derive(Debug)]
struct Shared {
    name: LaneName,
    tls: Option<Arc<ServerConfig>>,
    switch: Option<Arc<ArcSwap<Switch>>>,
    proxy_protocol: Option<ProxyProtocolPolicy>,
    /// Accepted at a socket that only peers of the mesh reach.
    on_mesh: bool,
    options: Options,
}

impl Active {
    fn new(options: ListenerOptions) -> Self {
        let permits = Arc::new(Semaphore::new(options.connections_max));
        let shared = Shared {
            name: options.name.into(),
            tls: options.tls,
            switch: options.switch,
            proxy_protocol: options.proxy_protocol,
            on_mesh: options.device.is_some(),
            options: options.connection,
        };
        let ListenerOptions { connections_max, lanes, unsent_bytes_max, .. } = options;
        Self { shared: Arc::new(shared), lanes, unsent_bytes_max, connections_max, permits }
    }

    /// Tells of changes of the mesh's gate, where only its peers come.
    fn turns(&self) -> Option<watch::Receiver<u64>> {
        let switch = self.shared.switch.as_ref().filter(|_| self.shared.on_mesh)?.load();
        switch.mesh.as_ref().map(MeshVisitors::turns)
    }

    /// Serves one connection with these settings.
    fn serve<S: Service>(
        &self,
        tasks: &mut JoinSet<()>,
        accepted: inlet::Accepted,
        permit: OwnedSemaphorePermit,
        (service, drain): (&Arc<S>, &Drain),
    ) {
        let connection = Accepted { shared: Arc::clone(&self.shared), drain: drain.clone() };
        if let (inlet::Accepted::Kernel(socket, _), Some(bytes)) = (&accepted, self.unsent_bytes_max) {
            // A socket that cannot do it serves all the same.
            let _ = SockRef::from(socket).set_tcp_notsent_lowat(bytes);
        }
        // A network stack of this process wakes whom it likes: nothing is gained by a lane.
        let lanes = self.lanes.as_ref().filter(|_| matches!(accepted, inlet::Accepted::Kernel(..)));
        let service = Arc::clone(service);
        let serving = async move {
            connection.serve(accepted, service).await;
            drop(permit);
        };
        match lanes {
            Some(lanes) => lanes.spawn(tasks, serving),
            None => drop(tasks.spawn(serving)),
        }
    }
}

impl ListenerHandle {
    /// Takes new settings for connections accepted from now on.
    pub fn set(&self, options: ListenerOptions) {
        let before = self.active.load();
        let mut active = Active::new(options);
        if active.connections_max == before.connections_max {
            // Connections that are open keep counting.
            active.permits = Arc::clone(&before.permits);
        }
        self.active.store(Arc::new(active));
    }
}

/// What an entry point is set up with.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// Name in logs and metrics.
    pub name: String,
    /// Ends TLS with these certificates, or speaks in the clear. Without effect where there is a `switch`.
    pub tls: Option<Arc<ServerConfig>>,
    /// Decides for each connection: HTTP, HTTPS and TCP routers on one port.
    pub switch: Option<Arc<ArcSwap<Switch>>>,
    /// Reads PROXY protocol headers and believes these peers.
    pub proxy_protocol: Option<ProxyProtocolPolicy>,
    /// Connections at once; further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// Whether other processes may bind the same port (`SO_REUSEPORT`); read when binding only.
    pub reuse_port: bool,
    /// Takes only what arrives through this interface (`SO_BINDTODEVICE`): that of the mesh, whose peers are known by
    /// their addresses. Bound when binding only.
    pub device: Option<String>,
    /// Bytes of a connection that the kernel takes ahead of what it may send (`TCP_NOTSENT_LOWAT`), so that it shows how fast
    /// a visitor reads; none for as many as its buffer holds, which costs a few percent less.
    pub unsent_bytes_max: Option<u32>,
    /// The threads that serve its connections; none for the runtime that accepts.
    pub lanes: Option<Lanes>,
    /// Limits of each connection.
    pub connection: Options,
}

/// Why an entry point cannot listen.
#[derive(Debug, Error)]
#[error("cannot listen on {address} (entry point {name})")]
pub struct ListenError {
    /// The entry point.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl Listener {
    /// Binds a TCP socket.
    ///
    /// # Errors
    /// [`ListenError`] if the address is taken or not ours.
    pub fn bind(address: SocketAddr, options: ListenerOptions) -> Result<Self, ListenError> {
        let name = options.name.clone();
        let socket = bind_tcp(address, options.reuse_port, options.device.as_deref())
            .map_err(|source| ListenError { name, address, source })?;
        Ok(Self::from_source(Source::Kernel(socket), options))
    }

    /// Accepts from somebody else than the kernel; `local` is what [`Self::local_addr`] says.
    pub fn over(incoming: Box<dyn Incoming>, local: SocketAddr, options: ListenerOptions) -> Self {
        Self::from_source(Source::Other { incoming, local }, options)
    }

    fn from_source(source: Source, options: ListenerOptions) -> Self {
        Self { source, active: Arc::new(ArcSwap::from_pointee(Active::new(options))) }
    }

    /// For later changes of settings.
    pub fn handle(&self) -> ListenerHandle {
        ListenerHandle { active: Arc::clone(&self.active) }
    }

    /// The bound address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.source.local_addr()
    }

    /// Accepts until `drain` begins, then waits for the connections to finish.
    ///
    /// To end without waiting, drop the future: remaining connections are cut.
    pub async fn run<S: Service>(mut self, service: Arc<S>, drain: Drain) {
        let mut connections = JoinSet::new();
        let mut full = false;
        // While connections may wait in the backlog: the mesh's gate as it was when they began to.
        let mut backlog = None;
        loop {
            let active = self.active.load_full();
            let permits = Arc::clone(&active.permits);
            if permits.available_permits() == 0 && !full {
                backlog = backlog.or_else(|| active.turns());
                // Once for each time that the limit bites; who comes now waits in the backlog.
                tracing::debug!(entry_point = %active.shared.name, reason = "connections_full", "no more connections");
                active.shared.options.metrics.refused("connections_full");
                full = true;
            }
            let permit = tokio::select! {
                permit = permits.acquire_owned() => permit,
                () = drain.started() => break,
                Some(_) = connections.join_next() => continue,
            };
            full = false;
            let Ok(permit) = permit else { break };
            if let Some(turns) = &mut backlog
                && !self.turn_strangers_away(turns, &active.shared)
            {
                sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
            let accepted = tokio::select! {
                accepted = poll_fn(|cx| {
                    let accepted = self.source.poll_accept(cx);
                    if accepted.is_pending() {
                        backlog = None;
                    }
                    accepted
                }) => accepted,
                () = drain.started() => break,
                Some(_) = connections.join_next() => continue,
            };
            let active = self.active.load_full();
            let accepted = match accepted {
                Ok(Some(accepted)) => accepted,
                // A network stack that has ended: what it carried ends by itself.
                Ok(None) => break,
                Err(error) => {
                    // Out of descriptors, most likely: the backlog holds the visitors meanwhile.
                    tracing::warn!(entry_point = %active.shared.name, %error, reason = "accept", "cannot accept");
                    active.shared.options.metrics.refused("accept");
                    backlog = backlog.or_else(|| active.turns());
                    sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            active.serve(&mut connections, accepted, permit, (&service, &drain));
        }
        self.empty_backlog(&mut connections, &service, &drain);
        drop(self.source);
        while connections.join_next().await.is_some() {}
    }
}

impl Listener {
    /// Closes what waits in the backlog if the mesh's gate has turned since it began to wait: an address there may have been
    /// another's when it came. False if some are left.
    fn turn_strangers_away(&mut self, turns: &mut watch::Receiver<u64>, shared: &Shared) -> bool {
        if !turns.has_changed().unwrap_or(true) {
            return true;
        }
        // Before the look: what comes until the next turn is judged by that one.
        turns.mark_unchanged();
        for _ in 0..=BACKLOG {
            match self.source.take() {
                Ok(Some(_)) => shared.options.metrics.refused("mesh_peer_changed"),
                Ok(None) => return true,
                Err(_) => break,
            }
        }
        turns.mark_changed();
        false
    }

    /// Takes the connections that the kernel has accepted already: closing the socket would reset them.
    fn empty_backlog<S: Service>(&mut self, connections: &mut JoinSet<()>, service: &Arc<S>, drain: &Drain) {
        for _ in 0..BACKLOG {
            let Ok(Some(accepted)) = self.source.take() else { return };
            let active = self.active.load_full();
            let Ok(permit) = Arc::clone(&active.permits).try_acquire_owned() else { return };
            active.serve(connections, accepted, permit, (service, drain));
        }
    }
}

/// The same address without the IPv6 clothes that a socket of both families gives to IPv4 peers (RFC 4291 §2.5.5.2).
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Where a device is given, before the address: no packet of another interface may ever meet the socket.
pub(crate) fn bind_device(socket: &Socket, device: Option<&str>) -> io::Result<()> {
    device.map_or(Ok(()), |device| socket.bind_device(Some(device.as_bytes())))
}

fn bind_tcp(address: SocketAddr, reuse_port: bool, device: Option<&str>) -> io::Result<AsyncFd<TcpListener>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Linux gives these to each connection that it accepts.
    socket.set_tcp_nodelay(true)?;
    // A socket that cannot do it serves all the same.
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE));
    bind_device(&socket, device)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; std's listener keeps its descriptor for as long as it lives"
    )]
    AsyncFd::new(socket.into())
}

/// Connections that the kernel holds while all permits are taken.
const BACKLOG: i32 = 4096;
/// Traefik's interval: finds visitors that vanished, even from a relay that knows no idle limit.
const KEEP_ALIVE: Duration = Duration::from_secs(180);
/// After a failed accept; not a busy loop when descriptors are short.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
