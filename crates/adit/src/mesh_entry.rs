//! Entry points and servers on the mesh's own network stack: where `adit-mesh` and `adit-proxy` meet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};

use adit_config::{Mesh, MeshTable};
use adit_mesh::netstack::{BufferClass, Listener, Stack, UdpSocket};
use adit_proxy::connect::{self, Dial, Dialling};
use adit_proxy::inlet::{Arrival, ByteStream, Datagrams, Incoming};
use adit_proxy::listen::{self, ListenError, ListenerOptions};
use adit_proxy::udp::{UdpListener, UdpOptions};
use ipnet::IpNet;

/// Listens on the stack for connections.
///
/// # Errors
/// [`ListenError`] if the port is taken or the address not ours.
pub(crate) fn listen(
    stack: &Stack,
    address: SocketAddr,
    options: ListenerOptions,
) -> Result<listen::Listener, ListenError> {
    let listener = stack.listen(address, BufferClass::default()).map_err(|error| ListenError {
        name: options.name.clone(),
        address,
        source: error.into(),
    })?;
    let local = listener.local_addr();
    Ok(listen::Listener::over(Box::new(Visitors(listener)), local, options))
}

/// Listens on the stack for datagrams.
///
/// # Errors
/// [`ListenError`] if the port is taken or the address not ours.
pub(crate) fn bind_udp(
    stack: &Stack,
    address: SocketAddr,
    options: UdpOptions,
) -> Result<UdpListener, ListenError> {
    let socket = stack.bind_udp(address).map_err(|error| ListenError {
        name: options.name.clone(),
        address,
        source: error.into(),
    })?;
    let local = socket.local_addr();
    Ok(UdpListener::over(Box::new(MeshDatagrams(socket)), local, options))
}

/// Opens connections to servers behind peers through the stack, as a kernel with a TUN device would route them.
/// Default routes are left out: what else this machine reaches, nobody here knows.
pub(crate) fn route_through(stack: Option<&Stack>, mesh: &Mesh) {
    let networks = mesh.peers.iter().flat_map(|peer| &peer.allowed_ips).copied();
    let networks = match mesh.table {
        MeshTable::Off => Vec::new(),
        _ => networks.filter(|network| network.prefix_len() > 0).collect(),
    };
    connect::route_through(
        stack.map(|stack| Box::new(MeshRoutes { stack: stack.clone(), networks }) as Box<dyn Dial>),
    );
}

/// No mesh: everything goes through the kernel.
pub(crate) fn route_directly() {
    connect::route_through(None);
}

struct MeshRoutes {
    stack: Stack,
    networks: Vec<IpNet>,
}

impl Dial for MeshRoutes {
    fn covers(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address)) && !self.stack.is_ours(address)
    }

    fn connect(&self, address: SocketAddr) -> Dialling {
        let stack = self.stack.clone();
        let canonical = SocketAddr::new(address.ip().to_canonical(), address.port());
        Box::pin(async move {
            let stream = stack.connect(canonical, BufferClass::default()).await?;
            Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }

    fn datagrams(&self, address: IpAddr) -> io::Result<Box<dyn Datagrams>> {
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Ok(Box::new(MeshDatagrams(self.stack.bind_udp(SocketAddr::new(any, 0))?)))
    }
}

#[derive(Debug)]
struct Visitors(Listener);

impl Incoming for Visitors {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arrival>> {
        self.0.poll_accept(cx).map(|accepted| {
            let (stream, remote) = accepted?;
            let local = stream.local_addr();
            Some(Arrival { stream: Box::new(stream), remote, local })
        })
    }
}

/// An entry point is bound to one address, and a session with a server has one of its own: answers find their way.
#[derive(Debug)]
struct MeshDatagrams(UdpSocket);

impl Datagrams for MeshDatagrams {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_readable(cx)
    }

    fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.try_recv_from(buffer).map(|(len, remote, _)| (len, remote))
    }

    fn send_to(&self, datagram: &[u8], remote: SocketAddr) -> io::Result<usize> {
        self.0.send_to(datagram, remote)
    }
}
