//! What an entry point accepts from: the kernel, or a network stack of this process.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A byte stream that is no socket of the kernel.
pub trait ByteStream: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin> ByteStream for T {}

/// A connection before anybody has looked at it. Sockets of the kernel are held as they are: nothing is boxed for them.
#[derive(Debug)]
pub enum Inlet {
    /// A socket of the kernel.
    Tcp(TcpStream),
    /// Anything else.
    Other(Box<dyn ByteStream>),
}

/// Accepts connections that do not come from the kernel.
pub trait Incoming: Debug + Send {
    /// The next connection; `None` when there will be no more.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arrival>>;
}

/// A connection that does not come from the kernel.
#[derive(Debug)]
pub struct Arrival {
    /// Its bytes.
    pub stream: Box<dyn ByteStream>,
    /// The visitor's end.
    pub remote: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
}

/// Datagrams that do not come from the kernel.
pub trait Datagrams: Debug + Send + Sync {
    /// The next datagram, cut to `buffer`: its length and sender. One task at a time is woken.
    ///
    /// # Errors
    /// When there will be no more.
    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>>;

    /// Sends a datagram or drops it; nothing waits.
    ///
    /// # Errors
    /// Why it was dropped.
    fn send_to(&self, datagram: &[u8], remote: SocketAddr) -> io::Result<usize>;
}

/// Where connections are accepted from.
#[derive(Debug)]
pub(crate) enum Source {
    Kernel(TcpListener),
    Other { incoming: Box<dyn Incoming>, local: SocketAddr },
}

/// A connection from either source, with its visitor's end.
#[derive(Debug)]
pub(crate) enum Accepted {
    Kernel(TcpStream, SocketAddr),
    Other(Arrival),
}

/// What datagrams are received from and sent by.
#[derive(Debug)]
pub(crate) enum DatagramSource {
    Kernel(UdpSocket),
    Other { datagrams: Box<dyn Datagrams>, local: SocketAddr },
}

impl Source {
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Kernel(socket) => socket.local_addr(),
            Self::Other { local, .. } => Ok(*local),
        }
    }

    /// The next connection; `None` when there will be no more.
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Accepted>>> {
        match self {
            Self::Kernel(socket) => {
                socket.poll_accept(cx).map_ok(|(stream, remote)| Some(Accepted::Kernel(stream, remote)))
            }
            Self::Other { incoming, .. } => incoming.poll_accept(cx).map(|one| Ok(one.map(Accepted::Other))),
        }
    }
}

impl DatagramSource {
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Kernel(socket) => socket.local_addr(),
            Self::Other { local, .. } => Ok(*local),
        }
    }

    pub(crate) async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match self {
            Self::Kernel(socket) => socket.recv_from(buffer).await,
            Self::Other { datagrams, .. } => {
                std::future::poll_fn(|cx| datagrams.poll_recv_from(cx, buffer)).await
            }
        }
    }

    pub(crate) async fn send_to(&self, datagram: &[u8], remote: SocketAddr) -> io::Result<usize> {
        match self {
            Self::Kernel(socket) => socket.send_to(datagram, remote).await,
            Self::Other { datagrams, .. } => datagrams.send_to(datagram, remote),
        }
    }
}

/// Hands a call on to whichever stream is inside.
macro_rules! either {
    ($value:expr, $io:ident => $call:expr) => {
        match $value {
            Inlet::Tcp($io) => $call,
            Inlet::Other($io) => $call,
        }
    };
}

impl AsyncRead for Inlet {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Inlet {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        either!(self, io => io.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }
}
