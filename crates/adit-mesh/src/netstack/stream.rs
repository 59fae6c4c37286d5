//! A connection: its socket, which the lane and the stream share, and the stream itself.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::{BufferClass, Reservation};
use super::packet::FourTuple;
use super::shared::Shared;

/// A TCP connection through the mesh. Dropping it sends what was written and closes, or resets the connection if
/// something received was not read.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

/// What lane and stream share of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    tuple: FourTuple,
    /// Whether it stands in the lane's inbox.
    touched: AtomicBool,
    held: Mutex<Held>,
}

/// A socket in a set of its own, as smoltcp's interface wants it: a packet is offered to one socket only.
pub(super) struct Held {
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Nobody holds the stream any more.
    pub(super) abandoned: bool,
    /// Why the connection is over, if not by agreement.
    pub(super) failure: Option<io::ErrorKind>,
    /// Its address has changed hands, or is none of ours any more: what it brought is nobody's.
    revoked: bool,
    /// Bytes read whose room the peer has not been told of.
    unannounced: usize,
    _reservation: Reservation,
}

impl Connection {
    /// A closed socket with buffers of `class`.
    pub(super) fn new(tuple: FourTuple, class: BufferClass, reservation: Reservation) -> Arc<Self> {
        // Zeroed pages that nobody has touched cost no memory. Less than a power of two: smoltcp takes the window of its
        // SYN, at most 65,535 and never scaled (RFC 7323 §2.2), for a scaled one, and would accept more than there is
        // room for, which ends in a panic.
        let buffer = || SocketBuffer::new(vec![0; class.bytes() - 1]);
        let mut socket = Socket::new(buffer(), buffer());
        // Writers here write whole answers: waiting for more only adds a round trip (RFC 896).
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let held = Held {
            sockets,
            handle,
            abandoned: false,
            failure: None,
            revoked: false,
            unannounced: 0,
            _reservation: reservation,
        };
        Arc::new(Self { tuple, touched: AtomicBool::new(false), held: Mutex::new(held) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane has taken it out of its inbox.
    pub(super) fn take_touch(&self) {
        self.touched.store(false, Ordering::Release);
    }
}

impl Held {
    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Ends the connection with nothing left to read.
    pub(super) fn revoke(&mut self, failure: io::ErrorKind) {
        (self.failure, self.revoked) = (Some(failure), true);
        let socket = self.socket();
        // A ring holds its bytes in up to two pieces.
        for _ in 0..2 {
            let _ = socket.recv(|bytes| (bytes.len(), ()));
        }
        socket.abort();
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.revoked
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the buffers: they are somebody's traffic.
        let socket: &Socket<'_> = self.sockets.get(self.handle);
        f.debug_struct("Held").field("state", &socket.state()).field("abandoned", &self.abandoned).finish()
    }
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, connection: Arc<Connection>) -> Self {
        Self { shared, connection }
    }

    /// Our end.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.connection.tuple.local
    }

    /// The other end; its address belongs to one peer only.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.connection.tuple.remote
    }

    /// Ends the connection at once: the peer gets a reset.
    pub fn abort(self) {
        self.connection.lock().socket().abort();
    }

    /// Whether the connection ended because of who its peer is.
    pub(super) fn is_revoked(&self) -> bool {
        self.connection.lock().revoked
    }

    fn touch(&self) {
        if !self.connection.touched.swap(true, Ordering::AcqRel) {
            self.shared.touch(self.connection.tuple);
        }
    }

    /// Writes what fits. `None` if nothing does: `waker` is told when that changes.
    fn write(&self, bufs: &[io::IoSlice<'_>], waker: &Waker) -> Option<io::Result<usize>> {
        let mut held = self.connection.lock();
        if let Some(failure) = held.failure {
            return Some(Err(failure.into()));
        }
        let socket = held.socket();
        let mut written = 0;
        for buf in bufs {
            match socket.send_slice(buf) {
                Ok(taken) => written += taken,
                Err(_) if socket.is_open() => return Some(Err(io::ErrorKind::BrokenPipe.into())),
                Err(_) => return Some(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
        if written == 0 && bufs.iter().any(|buf| !buf.is_empty()) {
            socket.register_send_waker(waker);
            return None;
        }
        drop(held);
        self.touch();
        Some(Ok(written))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut held = self.connection.lock();
        let failure = held.failure;
        if held.revoked {
            // Not an end: what is missing was taken away.
            return Poll::Ready(Err(failure.unwrap_or(io::ErrorKind::ConnectionReset).into()));
        }
        let socket = held.socket();
        if !socket.can_recv() && socket.may_recv() {
            socket.register_recv_waker(cx.waker());
            return Poll::Pending;
        }
        match socket.recv_slice(buf.initialize_unfilled()) {
            Ok(read) => {
                buf.advance(read);
                let enough = held.socket().recv_capacity() / 4;
                held.unannounced += read;
                if held.unannounced >= enough {
                    held.unannounced = 0;
                    drop(held);
                    self.touch();
                }
                Poll::Ready(Ok(()))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) => {
                Poll::Ready(Err(failure.unwrap_or(io::ErrorKind::ConnectionReset).into()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(&[io::IoSlice::new(buf)], cx.waker()).map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(bufs, cx.waker()).map_or(Poll::Pending, Poll::Ready)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is on its way without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.lock().socket().close();
        self.touch();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut held = self.connection.lock();
        held.abandoned = true;
        let socket = held.socket();
        // RFC 2525 §2.17: the sender must learn that its bytes were not taken.
        if socket.recv_queue() > 0 && socket.state() != State::TimeWait {
            socket.abort();
        } else {
            socket.close();
        }
        drop(held);
        self.touch();
    }
}
