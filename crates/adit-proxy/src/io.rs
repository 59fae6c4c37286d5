//! Sockets of every kind behind one pair of read and write halves.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio_rustls::{client, server};

use crate::inlet::{ByteStream, Inlet};
use crate::tcp::splice::Plain;

/// A connected byte stream.
#[derive(Debug)]
pub enum Io {
    /// TCP in the clear.
    Tcp(TcpStream),
    /// In the clear, and no socket of the kernel.
    Other(Box<dyn ByteStream>),
    /// A unix socket in the clear.
    Unix(UnixStream),
    /// TLS that we ended.
    TlsServer(Box<server::TlsStream<Inlet>>),
    /// TLS that we started, over anything but a unix socket.
    TlsClient(Box<client::TlsStream<Inlet>>),
    /// TLS that we started over a unix socket.
    TlsUnix(Box<client::TlsStream<UnixStream>>),
}

/// The reading half of an [`Io`].
#[derive(Debug)]
pub enum ReadIo {
    /// See [`Io::Tcp`].
    Tcp(tcp::OwnedReadHalf),
    /// See [`Io::Other`].
    Other(tokio::io::ReadHalf<Box<dyn ByteStream>>),
    /// See [`Io::Unix`].
    Unix(unix::OwnedReadHalf),
    /// See [`Io::TlsServer`].
    TlsServer(tokio::io::ReadHalf<Box<server::TlsStream<Inlet>>>),
    /// See [`Io::TlsClient`].
    TlsClient(tokio::io::ReadHalf<Box<client::TlsStream<Inlet>>>),
    /// See [`Io::TlsUnix`].
    TlsUnix(tokio::io::ReadHalf<Box<client::TlsStream<UnixStream>>>),
}

/// The writing half of an [`Io`].
#[derive(Debug)]
pub enum WriteIo {
    /// See [`Io::Tcp`].
    Tcp(tcp::OwnedWriteHalf),
    /// See [`Io::Other`].
    Other(tokio::io::WriteHalf<Box<dyn ByteStream>>),
    /// See [`Io::Unix`].
    Unix(unix::OwnedWriteHalf),
    /// See [`Io::TlsServer`].
    TlsServer(tokio::io::WriteHalf<Box<server::TlsStream<Inlet>>>),
    /// See [`Io::TlsClient`].
    TlsClient(tokio::io::WriteHalf<Box<client::TlsStream<Inlet>>>),
    /// See [`Io::TlsUnix`].
    TlsUnix(tokio::io::WriteHalf<Box<client::TlsStream<UnixStream>>>),
}

impl Io {
    /// Both halves; TCP and unix sockets share nothing but the descriptor, others a short lock.
    pub fn into_split(self) -> (ReadIo, WriteIo) {
        match self {
            Self::Tcp(io) => {
                let (read, write) = io.into_split();
                (ReadIo::Tcp(read), WriteIo::Tcp(write))
            }
            Self::Other(io) => {
                let (read, write) = tokio::io::split(io);
                (ReadIo::Other(read), WriteIo::Other(write))
            }
            Self::Unix(io) => {
                let (read, write) = io.into_split();
                (ReadIo::Unix(read), WriteIo::Unix(write))
            }
            Self::TlsServer(io) => {
                let (read, write) = tokio::io::split(io);
                (ReadIo::TlsServer(read), WriteIo::TlsServer(write))
            }
            Self::TlsClient(io) => {
                let (read, write) = tokio::io::split(io);
                (ReadIo::TlsClient(read), WriteIo::TlsClient(write))
            }
            Self::TlsUnix(io) => {
                let (read, write) = tokio::io::split(io);
                (ReadIo::TlsUnix(read), WriteIo::TlsUnix(write))
            }
        }
    }

    /// The protocol that ALPN chose, if TLS is spoken.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Tcp(_) | Self::Other(_) | Self::Unix(_) => None,
            Self::TlsServer(io) => io.get_ref().1.alpn_protocol(),
            Self::TlsClient(io) => io.get_ref().1.alpn_protocol(),
            Self::TlsUnix(io) => io.get_ref().1.alpn_protocol(),
        }
    }
}

impl From<Inlet> for Io {
    fn from(inlet: Inlet) -> Self {
        match inlet {
            Inlet::Tcp(io) => Self::Tcp(io),
            Inlet::Other(io) => Self::Other(io),
        }
    }
}

/// Hands a call on to whichever socket is inside.
macro_rules! each {
    ($kind:ident, $value:expr, $io:ident => $call:expr) => {
        match $value {
            $kind::Tcp($io) => $call,
            $kind::Other($io) => $call,
            $kind::Unix($io) => $call,
            $kind::TlsServer($io) => $call,
            $kind::TlsClient($io) => $call,
            $kind::TlsUnix($io) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncRead for ReadIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), io => Pin::new(io).poll_read(cx, buf))
    }
}

macro_rules! async_write {
    ($name:ident) => {
        impl AsyncWrite for $name {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                each!(Self, self.get_mut(), io => Pin::new(io).poll_write(cx, buf))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                each!(Self, self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, bufs))
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!(Self, self.get_mut(), io => Pin::new(io).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!(Self, self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
            }
        }
    };
}

async_write!(Io);
async_write!(WriteIo);

/// A reading half with what was read ahead of the parser.
#[derive(Debug)]
pub struct Reader {
    io: ReadIo,
    /// Bytes read and not yet consumed.
    pub buffer: BytesMut,
    chunk: usize,
}

impl Reader {
    /// Takes a half and bytes that were read from it before.
    pub fn new(io: ReadIo, buffer: BytesMut) -> Self {
        Self { io, buffer, chunk: READ_BYTES_MIN }
    }

    /// The socket, if there is nothing on top of it and nothing was read ahead.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        if self.buffer.is_empty() { self.io.socket() } else { None }
    }

    /// The content that follows is not read through here: what comes behind it is small again.
    pub(crate) fn expect_little(&mut self) {
        self.chunk = READ_BYTES_MIN;
    }

    /// True if neither a byte nor an end has arrived. If one has, nothing can be read of it any more.
    pub fn is_silent(&mut self) -> bool {
        match &self.io {
            // As far as the reactor knows: no system call where it knows of nothing.
            ReadIo::Tcp(io) => {
                let read = io.try_read(&mut [0]);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            _ => self.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending(),
        }
    }

    /// Both halves, unless a byte or an end waits in the kernel, of which the reactor may not have heard yet: one system
    /// call. Halves of TLS are put together for it, and taken apart again.
    pub(crate) fn if_silent(self, writer: WriteIo) -> Option<(Self, WriteIo)> {
        let (io, writer) = match (self.io, writer) {
            (ReadIo::Tcp(read), write) => (has_nothing(read.as_ref()).then_some(ReadIo::Tcp(read))?, write),
            (ReadIo::Unix(read), write) => (has_nothing(read.as_ref()).then_some(ReadIo::Unix(read))?, write),
            (ReadIo::TlsClient(read), WriteIo::TlsClient(write)) => {
                let stream = read.unsplit(write);
                let is_silent = match stream.get_ref().0 {
                    Inlet::Tcp(socket) => has_nothing(socket),
                    Inlet::Other(_) => true,
                };
                is_silent.then(|| Io::TlsClient(stream).into_split())?
            }
            (ReadIo::TlsUnix(read), WriteIo::TlsUnix(write)) => {
                let stream = read.unsplit(write);
                has_nothing(stream.get_ref().0).then(|| Io::TlsUnix(stream).into_split())?
            }
            // What is no socket of the kernel has told everything itself.
            halves => halves,
        };
        Some((Self { io, ..self }, writer))
    }

    /// Reads once. `Ok(0)` is the end of the stream.
    ///
    /// The buffer grows with a sender that fills it and is given back while nothing arrives, so that an idle
    /// connection holds none.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.chunk == READ_BYTES_MIN {
            return self.poll_fill_little(cx);
        }
        // Parsed heads keep slices of the old allocation alive: a small rest of capacity is not worth a read.
        if self.buffer.capacity() - self.buffer.len() < self.chunk / 2 {
            self.buffer.reserve(self.chunk);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let before = self.buffer.len();
        let poll = tokio_util_read(&mut self.io, cx, &mut self.buffer);
        match poll {
            Poll::Ready(Ok(())) => {
                let read = self.buffer.len() - before;
                if read == room && self.chunk < READ_BYTES_MAX {
                    self.chunk = (self.chunk * 4).min(READ_BYTES_MAX);
                } else if read < self.chunk / 8 {
                    self.chunk = (self.chunk / 2).max(READ_BYTES_MIN);
                }
                Poll::Ready(Ok(read))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if self.buffer.is_empty() {
                    self.buffer = BytesMut::new();
                }
                Poll::Pending
            }
        }
    }
}

impl Reader {
    /// [`Self::poll_fill`] for heads and small content: most of it is copied once from a buffer that all connections of a
    /// thread share, so that each allocates no more than what has arrived.
    fn poll_fill_little(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut shared = SHARED.take().unwrap_or_else(|| vec![0; READ_BYTES_MIN].into_boxed_slice());
        let mut read = ReadBuf::new(&mut shared);
        let poll = Pin::new(&mut self.io).poll_read(cx, &mut read);
        let bytes = read.filled().len();
        if bytes == READ_BYTES_MIN {
            self.chunk = READ_BYTES_MIN * 4;
        }
        if bytes > 0 {
            self.buffer.extend_from_slice(read.filled());
        } else if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        SHARED.set(Some(shared));
        poll.map_ok(|()| bytes)
    }
}

/// Whether neither a byte nor an end waits in a socket.
fn has_nothing(socket: &impl AsFd) -> bool {
    recv(socket, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) == Err(Errno::AGAIN)
}

thread_local! {
    /// Taken while it is in use: whoever reads through another reader meanwhile makes one of its own.
    static SHARED: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

fn tokio_util_read(io: &mut ReadIo, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<()>> {
    use std::future::Future;
    use tokio::io::AsyncReadExt;
    // The future borrows only its arguments and keeps no state of its own between polls.
    let mut read = std::pin::pin!(io.read_buf(buffer));
    read.as_mut().poll(cx).map_ok(|_| ())
}

/// First read of a connection, and each as long as none fills it: most heads fit.
const READ_BYTES_MIN: usize = 8 * 1024;
/// Largest read: beyond it a copy costs more in cache misses than the saved system calls (limits-and-peers.md §1).
const READ_BYTES_MAX: usize = 128 * 1024;
