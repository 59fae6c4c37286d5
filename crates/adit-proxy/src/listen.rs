//! Entry points: accept under a permit, end TLS, find the protocol, serve.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::BytesMut;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::drain::Drain;
use crate::h1::server::Options;
use crate::io::Io;
use crate::message::{Service, Visitor};
use crate::{h1, h2};

/// A bound entry point.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
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
    name: Arc<str>,
    options: ListenerOptions,
    permits: Arc<Semaphore>,
}

impl Active {
    fn new(options: ListenerOptions) -> Self {
        let permits = Arc::new(Semaphore::new(options.connections_max));
        Self { name: options.name.as_str().into(), options, permits }
    }
}

impl ListenerHandle {
    /// Takes new settings for connections accepted from now on.
    pub fn set(&self, options: ListenerOptions) {
        let before = self.active.load();
        let mut active = Active::new(options);
        if active.options.connections_max == before.options.connections_max {
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
    /// Ends TLS with these certificates, or speaks in the clear.
    pub tls: Option<Arc<ServerConfig>>,
    /// Connections at once; further ones wait in the kernel's backlog.
    pub connections_max: usize,
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
        let socket = bind_tcp(address).map_err(|source| ListenError { name, address, source })?;
        Ok(Self { socket, active: Arc::new(ArcSwap::from_pointee(Active::new(options))) })
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
        self.socket.local_addr()
    }

    /// Accepts until `drain` begins, then waits for the connections to finish.
    ///
    /// To end without waiting, drop the future: remaining connections are cut.
    pub async fn run<S: Service>(self, service: Arc<S>, drain: Drain) {
        let mut connections = JoinSet::new();
        loop {
            let permits = Arc::clone(&self.active.load().permits);
            let permit = tokio::select! {
                permit = permits.acquire_owned() => permit,
                () = drain.started() => break,
                Some(_) = connections.join_next() => continue,
            };
            let Ok(permit) = permit else { break };
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = drain.started() => break,
                Some(_) = connections.join_next() => continue,
            };
            let active = self.active.load_full();
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: the backlog holds the visitors meanwhile.
                    tracing::warn!(entry_point = %active.name, %error, reason = "accept", "cannot accept");
                    active.options.connection.metrics.refused("accept");
                    sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            connections.spawn(serve_accepted(
                active,
                stream,
                remote,
                permit,
                Arc::clone(&service),
                drain.clone(),
            ));
        }
        self.empty_backlog(&mut connections, &service, &drain).await;
        drop(self.socket);
        while connections.join_next().await.is_some() {}
    }
}

impl Listener {
    /// Takes the connections that the kernel has accepted already: closing the socket would reset them.
    async fn empty_backlog<S: Service>(
        &self,
        connections: &mut JoinSet<()>,
        service: &Arc<S>,
        drain: &Drain,
    ) {
        for _ in 0..BACKLOG {
            let accepted = poll_fn(|cx| match self.socket.poll_accept(cx) {
                Poll::Ready(Ok(accepted)) => Poll::Ready(Some(accepted)),
                Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
            });
            let Some((stream, remote)) = accepted.await else { return };
            let active = self.active.load_full();
            let Ok(permit) = Arc::clone(&active.permits).try_acquire_owned() else { return };
            connections.spawn(serve_accepted(
                active,
                stream,
                remote,
                permit,
                Arc::clone(service),
                drain.clone(),
            ));
        }
    }
}

/// Serves one connection with the settings of the moment it was accepted.
async fn serve_accepted<S: Service>(
    active: Arc<Active>,
    stream: TcpStream,
    remote: SocketAddr,
    permit: OwnedSemaphorePermit,
    service: Arc<S>,
    drain: Drain,
) {
    let connection = Accepted {
        tls: active.options.tls.clone(),
        options: active.options.connection.clone(),
        entry_point: Arc::clone(&active.name),
        drain,
    };
    connection.serve(stream, remote, service).await;
    drop(permit);
}

struct Accepted {
    tls: Option<Arc<ServerConfig>>,
    options: Options,
    entry_point: Arc<str>,
    drain: Drain,
}

impl Accepted {
    async fn serve<S: Service>(self, stream: TcpStream, remote: SocketAddr, service: Arc<S>) {
        let _open = self.options.metrics.connection();
        let Ok(local) = stream.local_addr() else { return };
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let secure = self.tls.is_some();
        let visitor = Arc::new(Visitor { remote, local, secure, entry_point: Arc::clone(&self.entry_point) });
        let mut io = match &self.tls {
            None => Io::Tcp(stream),
            Some(config) => {
                match timeout(TLS_TIMEOUT, TlsAcceptor::from(Arc::clone(config)).accept(stream)).await {
                    Ok(Ok(stream)) => Io::TlsServer(Box::new(stream)),
                    Ok(Err(error)) => {
                        tracing::debug!(%error, reason = "tls_handshake", "TLS handshake refused");
                        self.options.metrics.refused("tls_handshake");
                        return;
                    }
                    Err(_) => return self.options.metrics.refused("tls_slow"),
                }
            }
        };
        let is_h2 = match io.alpn() {
            Some(protocol) => protocol == b"h2",
            None => match self.sniff(&mut io).await {
                Some((true, start)) => {
                    let io = Rewind { start, io };
                    return self.serve_h2(io, &service, &visitor).await;
                }
                Some((false, start)) => {
                    return h1::server::serve(io, start, &*service, &visitor, &self.options, &self.drain)
                        .await;
                }
                None => return,
            },
        };
        if is_h2 {
            self.serve_h2(io, &service, &visitor).await;
        } else {
            h1::server::serve(io, BytesMut::new(), &*service, &visitor, &self.options, &self.drain).await;
        }
    }

    async fn serve_h2<S: Service>(
        &self,
        io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
        service: &Arc<S>,
        visitor: &Arc<Visitor>,
    ) {
        h2::server::serve(io, service, visitor, &self.options, &self.drain).await;
    }

    /// Reads the first bytes to tell HTTP/2 with prior knowledge (RFC 9113 §3.3) from HTTP/1.1.
    async fn sniff(&self, io: &mut Io) -> Option<(bool, BytesMut)> {
        let mut start = BytesMut::with_capacity(4096);
        let reading = async {
            loop {
                let read = io.read_buf(&mut start).await.ok()?;
                if read == 0 && start.is_empty() {
                    return None;
                }
                let known = start.len().min(H2_PREFACE.len());
                if start[..known] != H2_PREFACE[..known] || read == 0 {
                    return Some(false);
                }
                if known == H2_PREFACE.len() {
                    return Some(true);
                }
            }
        };
        let is_h2 = tokio::select! {
            biased;
            // What has been sent before a drain began is still answered.
            read = timeout(self.options.header_timeout, reading) => read.ok()??,
            () = self.drain.started() => return None,
        };
        Some((is_h2, start))
    }
}

/// A stream whose first bytes were read already.
struct Rewind {
    start: BytesMut,
    io: Io,
}

impl tokio::io::AsyncRead for Rewind {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start.is_empty() {
            return std::pin::Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let take = this.start.len().min(buf.remaining());
        buf.put_slice(&this.start.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Rewind {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that the kernel holds while all permits are taken.
const BACKLOG: i32 = 4096;
/// For a visitor's TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept; not a busy loop when descriptors are short.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
