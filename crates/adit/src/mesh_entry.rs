//! Entry points on the mesh's own network stack: where `adit-mesh` and `adit-proxy` meet.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use adit_mesh::netstack::{BufferClass, Listener, Stack, UdpSocket};
use adit_proxy::inlet::{Arrival, Datagrams, Incoming};
use adit_proxy::listen::{self, ListenError, ListenerOptions};
use adit_proxy::udp::{UdpListener, UdpOptions};

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

/// An entry point is bound to one address: answers leave from it.
#[derive(Debug)]
struct MeshDatagrams(UdpSocket);

impl Datagrams for MeshDatagrams {
    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        self.0.poll_recv_from(cx, buffer).map_ok(|(len, remote, _)| (len, remote))
    }

    fn send_to(&self, datagram: &[u8], remote: SocketAddr) -> io::Result<usize> {
        self.0.send_to(datagram, remote)
    }
}
