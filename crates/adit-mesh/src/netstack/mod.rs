//! A network stack in this process: TCP, UDP and ICMP echo on the mesh's addresses without a TUN device.
//!
//! [`Netstack`] is the lane's end, a [`crate::Device`]; [`Stack`] is the handle for tokio's tasks. A packet finds its
//! connection by its four-tuple in one step, and each connection is a smoltcp socket in a set of its own, shared between
//! the lane (which feeds it packets and takes segments) and its [`Stream`] (which reads and writes its buffers).
//!
//! Read on in `demux.rs`: what happens to a packet; `lifecycle.rs`: what becomes of a connection.

mod budget;
mod demux;
mod drops;
mod lifecycle;
mod link;
mod listener;
mod packet;
mod shared;
mod statistics;
mod stream;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

pub use budget::BufferClass;
pub use demux::Netstack;
pub use drops::StackDrop;
pub use listener::Listener;
pub use statistics::{StackMetrics, StackStatistics};
pub use stream::Stream;
pub use udp::UdpSocket;

use shared::{Connect, Place, Port, Shared, TcpPort};
use udp::UdpPort;

/// Opens listeners, connections and sockets on a [`Netstack`]. Clones are the same stack.
#[derive(Debug, Clone)]
pub struct Stack {
    shared: Arc<Shared>,
}

/// What the stack may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all connections' buffers; one peer may have three quarters of them.
    pub buffer_bytes_max: usize,
    /// Connections that are being opened by peers.
    pub half_open_max: usize,
    /// Of these, by one peer.
    pub half_open_peer_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // 2,048 connections of 256 KiB in each direction. Pages are taken when bytes arrive: idle connections hold
            // next to nothing, and this is the worst case.
            buffer_bytes_max: 1024 * 1024 * 1024,
            // Peers are authenticated: no cookies, and no more than a burst of one browser needs.
            half_open_max: 512,
            half_open_peer_max: 64,
        }
    }
}

/// Why a port cannot be listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("port {0} of the mesh is taken")]
    InUse(u16),
    /// Not one of ours.
    #[error("{0} is not an address of this node in the mesh")]
    NotOurs(IpAddr),
    /// None of 28,232 ports is free.
    #[error("no port is free")]
    Exhausted,
    /// The lane has ended.
    #[error("the mesh's lane has ended")]
    Ended,
}

/// Why a connection was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The peer reset it.
    #[error("connection refused")]
    Reset,
    /// The peer did not answer for a minute.
    #[error("connection timed out")]
    TimedOut,
    /// No peer has that address, or nobody knows where it is.
    #[error("no route to host")]
    Unreachable,
    /// This node has no address of that family in the mesh.
    #[error("this node has no address of that family in the mesh")]
    NoAddress,
    /// A limit of ours.
    #[error("connection refused here: {}", .0.name())]
    Refused(StackDrop),
    /// The lane has ended.
    #[error("the mesh's lane has ended")]
    Ended,
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::Reset => io::ErrorKind::ConnectionRefused,
            ConnectError::TimedOut => io::ErrorKind::TimedOut,
            ConnectError::Unreachable => io::ErrorKind::HostUnreachable,
            ConnectError::NoAddress => io::ErrorKind::AddrNotAvailable,
            ConnectError::Refused(_) => io::ErrorKind::QuotaExceeded,
            ConnectError::Ended => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        let kind = match error {
            BindError::InUse(_) | BindError::Exhausted => io::ErrorKind::AddrInUse,
            BindError::NotOurs(_) => io::ErrorKind::AddrNotAvailable,
            BindError::Ended => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

impl Netstack {
    /// A stack with these addresses, whose packets have at most `mtu` bytes, and its handle.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new(addresses: Vec<IpNet>, mtu: u16, limits: Limits) -> io::Result<(Self, Stack)> {
        let shared = Arc::new(Shared::new(Place { addresses, mtu }, limits)?);
        Ok((Self::on(Arc::clone(&shared)), Stack { shared }))
    }
}

impl Stack {
    /// Accepts TCP connections to a port: of one address, or with the unspecified address of all. Port 0 chooses one.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn listen(&self, address: SocketAddr, class: BufferClass) -> Result<Listener, BindError> {
        let (accepted, receiver) = mpsc::channel(listener::BACKLOG);
        let bound = self.bind(address, Taker::Tcp(TcpPort { class, accepted }))?;
        Ok(Listener::new(Arc::clone(&self.shared), bound, receiver))
    }

    /// Binds a UDP socket; addresses as with [`Self::listen`].
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind_udp(&self, address: SocketAddr) -> Result<UdpSocket, BindError> {
        let udp = Arc::new(UdpPort::default());
        let bound = self.bind(address, Taker::Udp(Arc::clone(&udp)))?;
        Ok(UdpSocket::new(Arc::clone(&self.shared), bound, udp))
    }

    /// Opens a connection to an address behind one of the peers. Dropping the future gives it up.
    ///
    /// # Errors
    /// [`ConnectError`]; after a minute without an answer at the latest.
    pub async fn connect(&self, remote: SocketAddr, class: BufferClass) -> Result<Stream, ConnectError> {
        let (answer, opened) = oneshot::channel();
        self.shared.connect(Connect { remote, class, answer })?;
        opened.await.unwrap_or(Err(ConnectError::Ended))
    }

    /// Has other addresses or another MTU from now on. Connections of addresses that are gone end.
    pub fn relocate(&self, addresses: Vec<IpNet>, mtu: u16) {
        self.shared.relocate(Place { addresses, mtu });
    }

    /// Whether an address is one of this node's in the mesh.
    #[must_use]
    pub fn is_ours(&self, address: IpAddr) -> bool {
        self.shared.place().is_ours(address)
    }

    /// Takes the port that is asked for, or a free one.
    fn bind(&self, address: SocketAddr, taker: Taker) -> Result<SocketAddr, BindError> {
        let wanted = Port::of(address);
        if let Some(ours) = wanted.address
            && !self.is_ours(ours)
        {
            return Err(BindError::NotOurs(ours));
        }
        if self.shared.is_closed() {
            return Err(BindError::Ended);
        }
        let mut ports = self.shared.ports();
        let is_free = |port: &Port| match &taker {
            Taker::Tcp(_) => !ports.tcp.contains_key(port),
            Taker::Udp(_) => !ports.udp.contains_key(port),
        };
        let port = match wanted.port {
            0 => ephemeral_ports()
                .map(|port| Port { port, ..wanted })
                .find(is_free)
                .ok_or(BindError::Exhausted)?,
            _ if is_free(&wanted) => wanted,
            port => return Err(BindError::InUse(port)),
        };
        match taker {
            Taker::Tcp(tcp) => ports.tcp.insert(port, tcp).is_some(),
            Taker::Udp(udp) => ports.udp.insert(port, udp).is_some(),
        };
        Ok(SocketAddr::new(address.ip(), port.port))
    }
}

/// Who takes a port.
enum Taker {
    Tcp(TcpPort),
    Udp(Arc<UdpPort>),
}

/// All ports that are chosen for somebody, from a random one on (RFC 6056 §3.3.1).
fn ephemeral_ports() -> impl Iterator<Item = u16> {
    let count = EPHEMERAL_LAST - EPHEMERAL_FIRST + 1;
    let first = rand::random::<u16>() % count;
    (0..count).map(move |step| EPHEMERAL_FIRST + (first + step) % count)
}

/// As Linux chooses.
const EPHEMERAL_FIRST: u16 = 32_768;
const EPHEMERAL_LAST: u16 = 60_999;
