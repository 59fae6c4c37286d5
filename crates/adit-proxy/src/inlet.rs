//! What an entry point accepts from: the kernel, or a network stack of this process.

use std::fmt::Debug;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};

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

/// A second handle of a kernel's socket, by which it can be reset after whoever uses it has let go of it.
#[derive(Debug)]
pub(crate) struct Cut(Option<OwnedFd>);

impl Inlet {
    /// For connections that may have to end without another byte. Other stacks reset by themselves.
    pub(crate) fn cut(&self) -> Cut {
        Cut(match self {
            Self::Tcp(stream) => stream.as_fd().try_clone_to_owned().ok(),
            Self::Other(_) => None,
        })
    }
}

impl Cut {
    /// Once every other handle is closed, the connection is reset and what waits in its buffer is dropped.
    pub(crate) fn reset(self) {
        if let Some(socket) = &self.0 {
            // A socket that cannot is closed all the same.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
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
    /// Ready when [`Self::try_recv_from`] has something to say; one task at a time is woken.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// The next datagram, cut to `buffer`: its length and sender.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, `NotConnected` if there will be none any more.
    fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Sends a datagram or drops it; nothing waits.
    ///
    /// # Errors
    /// Why it was dropped.
    fn send_to(&self, datagram: &[u8], remote: SocketAddr) -> io::Result<usize>;
}

/// Where connections are accepted from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Not tokio's listener: what that accepts is bound to the runtime that accepts.
    Kernel(AsyncFd<std::net::TcpListener>),
    Other {
        incoming: Box<dyn Incoming>,
        local: SocketAddr,
    },
}

/// A connection from either source, with its visitor's end.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// Non-blocking.
    Kernel(std::net::TcpStream, SocketAddr),
    Other(Arrival),
}

/// What datagrams are received from and sent by.
#[derive(Debug)]
pub(crate) enum DatagramSource {
    Kernel(UdpSocket),
    Other { datagrams: Box<dyn Datagrams>, local: SocketAddr },
}

/// Datagrams to and from one server.
#[derive(Debug)]
pub(crate) enum DatagramLink {
    /// Connected.
    Kernel(UdpSocket),
    Other {
        datagrams: Box<dyn Datagrams>,
        server: SocketAddr,
    },
}

impl DatagramLink {
    /// Passes a datagram on, or says why not; nothing waits.
    pub(crate) fn try_send(&self, datagram: &[u8]) -> io::Result<usize> {
        match self {
            Self::Kernel(socket) => socket.try_send(datagram),
            Self::Other { datagrams, server } => datagrams.send_to(datagram, *server),
        }
    }

    pub(crate) async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        match self {
            Self::Kernel(socket) => socket.send(datagram).await,
            Self::Other { .. } => self.try_send(datagram),
        }
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Kernel(socket) => socket.readable().await,
            Self::Other { datagrams, .. } => {
                poll_fn(|cx| datagrams.poll_readable(cx)).await;
                Ok(())
            }
        }
    }

    /// The next answer, behind what `buffer` has; its capacity is what an answer may have.
    pub(crate) fn try_recv_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let (datagrams, server) = match self {
            Self::Kernel(socket) => return socket.try_recv_buf(buffer),
            Self::Other { datagrams, server } => (datagrams, server),
        };
        let before = buffer.len();
        buffer.resize(buffer.capacity(), 0);
        let received = loop {
            match datagrams.try_recv_from(&mut buffer[before..]) {
                // As a connected socket: others are not heard.
                Ok((_, from)) if from != *server => {}
                received => break received,
            }
        };
        buffer.truncate(before + received.as_ref().map_or(0, |(len, _)| *len));
        received.map(|(len, _)| len)
    }
}

impl Source {
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Kernel(socket) => socket.get_ref().local_addr(),
            Self::Other { local, .. } => Ok(*local),
        }
    }

    /// The next connection; `None` when there will be no more.
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Accepted>>> {
        match self {
            Self::Kernel(socket) => loop {
                let mut ready = ready!(socket.poll_read_ready(cx))?;
                if let Ok(accepted) = ready.try_io(|socket| accept(socket.get_ref())) {
                    return Poll::Ready(accepted.map(Some));
                }
            },
            Self::Other { incoming, .. } => incoming.poll_accept(cx).map(|one| Ok(one.map(Accepted::Other))),
        }
    }

    /// A connection that is there already, even if nobody has been woken for it yet; an error says nothing of the others.
    pub(crate) fn take(&mut self) -> io::Result<Option<Accepted>> {
        match self {
            Self::Kernel(socket) => match accept(socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                accepted => accepted.map(Some),
            },
            Self::Other { incoming, .. } => {
                Ok(match incoming.poll_accept(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(one) => one.map(Accepted::Other),
                    Poll::Pending => None,
                })
            }
        }
    }
}

fn accept(socket: &std::net::TcpListener) -> io::Result<Accepted> {
    let (stream, remote) = socket.accept()?;
    stream.set_nonblocking(true)?;
    Ok(Accepted::Kernel(stream, remote))
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
            Self::Other { datagrams, .. } => loop {
                poll_fn(|cx| datagrams.poll_readable(cx)).await;
                match datagrams.try_recv_from(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    received => return received,
                }
            },
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
