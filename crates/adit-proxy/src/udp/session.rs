//! One visitor's session: a socket towards its server, and the way back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use adit_route::mesh::MeshIdentity;
use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::listener::Active;
use crate::connect;
use crate::inlet::{DatagramLink, DatagramSource};
use crate::metrics::Metrics;

/// The listener's side of a session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    link: Arc<Link>,
    /// Datagrams that arrive before the server's address is known.
    early: mpsc::Sender<Bytes>,
}

/// As whom a visitor was let in, and where that can be seen to be true still.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) active: Arc<ArcSwap<Active>>,
    pub(super) address: IpAddr,
    pub(super) router: Arc<str>,
    /// On the mesh.
    pub(super) peer: Option<Arc<MeshIdentity>>,
}

/// What a session is opened with.
pub(super) struct Opening {
    pub(super) id: u64,
    pub(super) visitor: SocketAddr,
    /// `host:port`.
    pub(super) server: String,
    pub(super) idle: Duration,
    pub(super) admission: Admission,
}

/// What both sides of a session share.
#[derive(Debug)]
struct Link {
    admission: Admission,
    server: OnceLock<DatagramLink>,
    started: Instant,
    /// Last datagram in either direction, in ms since `started`.
    active_ms: AtomicU64,
}

impl Admission {
    /// Elsewhere sessions stay with their server; on the mesh they last as long as their peer would be let in again: its
    /// address may have become another's.
    fn holds(&self) -> bool {
        let active = self.active.load();
        if self.peer.is_none() && !active.is_on_mesh() {
            return true;
        }
        let routes = active.routes.load();
        active.admit(&routes, self.address).is_ok_and(|(route, peer)| {
            *route.name == *self.router && peer.map(|peer| &**peer) == self.peer.as_deref()
        })
    }
}

impl Link {
    fn touch(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active_ms.store(elapsed, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.active_ms.load(Ordering::Relaxed))
    }
}

/// The running side of a session.
#[derive(Debug)]
pub(super) struct Worker {
    link: Arc<Link>,
    early: mpsc::Receiver<Bytes>,
    visitor: SocketAddr,
    listener: Arc<DatagramSource>,
    server: String,
    idle: Duration,
    metrics: Arc<Metrics>,
}

/// Both sides of a new session.
pub(super) fn open(
    opening: Opening,
    listener: Arc<DatagramSource>,
    metrics: Arc<Metrics>,
) -> (Session, Worker) {
    let Opening { id, visitor, server, idle, admission } = opening;
    let (sender, receiver) = mpsc::channel(EARLY_DATAGRAMS_MAX);
    let link = Arc::new(Link {
        admission,
        server: OnceLock::new(),
        started: Instant::now(),
        active_ms: AtomicU64::new(0),
    });
    let session = Session { id, link: Arc::clone(&link), early: sender };
    (session, Worker { link, early: receiver, visitor, listener, server, idle, metrics })
}

impl Session {
    /// Whether its visitor is still who it was, and still let in.
    pub(super) fn holds(&self) -> bool {
        self.link.admission.holds()
    }

    /// Passes a datagram on, or says why it is dropped: nothing ever waits.
    pub(super) fn forward(&self, datagram: &[u8]) -> Result<(), &'static str> {
        self.link.touch();
        match self.link.server.get() {
            Some(server) => match server.try_send(datagram) {
                // A server that is not there is noticed by the way back, which reports the same error.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err("udp_server_full"),
                _ => Ok(()),
            },
            None => self.early.try_send(Bytes::copy_from_slice(datagram)).map_err(|_| "udp_session_starting"),
        }
    }
}

impl Worker {
    /// Runs until both directions have been silent for the idle time, or the server is not there.
    pub(super) async fn run(mut self) {
        let connected = timeout(RESOLVE_TIMEOUT, connect(&self.server)).await;
        let socket = match connected {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                tracing::debug!(server = %self.server, %error, reason = "udp_connect", "no UDP session");
                return self.metrics.refused("udp_connect");
            }
            Err(_) => return self.metrics.refused("udp_resolve_slow"),
        };
        let server = self.link.server.get_or_init(|| socket);
        self.early.close();
        while let Some(datagram) = self.early.recv().await {
            let _ = server.send(&datagram).await;
        }
        loop {
            let ready = tokio::select! {
                ready = server.readable() => ready,
                () = sleep_until(self.link.last() + self.idle) => {
                    if self.link.last() + self.idle <= Instant::now() {
                        return;
                    }
                    continue;
                }
            };
            if ready.is_err() || self.answer(server).await.is_err() {
                return;
            }
        }
    }

    /// Sends all answers that have arrived to the visitor.
    async fn answer(&self, server: &DatagramLink) -> io::Result<()> {
        // Only sessions with something to read hold a buffer.
        let mut buffer = BytesMut::with_capacity(DATAGRAM_BYTES_MAX);
        for _ in 0..ANSWERS_MAX {
            buffer.clear();
            match server.try_recv_buf(&mut buffer) {
                Ok(_) => {
                    if !self.link.admission.holds() {
                        self.metrics.refused("mesh_peer_changed");
                        return Err(io::ErrorKind::PermissionDenied.into());
                    }
                    self.link.touch();
                    let _ = self.listener.send_to(&buffer, self.visitor).await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Nobody listens there: the next datagram of the visitor starts anew.
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

async fn connect(server: &str) -> io::Result<DatagramLink> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in tokio::net::lookup_host(server).await? {
        if let Some(datagrams) = connect::datagrams_to(address.ip()) {
            return Ok(DatagramLink::Other { datagrams: datagrams?, server: address });
        }
        let any: SocketAddr =
            if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        match socket.connect(address).await {
            Ok(()) => return Ok(DatagramLink::Kernel(socket)),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Kept per session while its server's name is looked up.
const EARLY_DATAGRAMS_MAX: usize = 4;
/// What IPv4 and IPv6 without jumbograms can carry.
pub(super) const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Answers sent in a row before others have their turn.
const ANSWERS_MAX: usize = 32;
/// For the server's name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
