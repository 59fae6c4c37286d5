//! One accepted connection: who is it, what does it speak, who takes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit_route::mesh::MeshIdentity;
use adit_route::tcp::TcpHead;
use bytes::BytesMut;
use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::Shared;
use super::rewind::Rewind;
use super::start::{Hello, Protocol, Start, StartError};
use super::switch::{Switch, TlsDecision};
use crate::drain::Drain;
use crate::inlet::{self, Arrival, Inlet};
use crate::io::Io;
use crate::mesh::MeshVisitors;
use crate::message::{Service, Visitor};
use crate::middleware::TlsInfo;

use crate::tcp::route::{Opening, RouteTls, TcpRoute};
use crate::tls::options::{Stamp, suite_name};
use crate::{h1, h2};

/// Runs one connection through its life.
///
/// Each protocol's part is boxed where it begins: a future is as large as the largest thing that it may ever wait for, and
/// ten thousand idle connections would hold all of that ten thousand times.
pub(super) struct Accepted {
    pub(super) shared: Arc<Shared>,
    pub(super) drain: Drain,
}

/// Both ends of a connection, as its peer or a trusted PROXY protocol header says.
#[derive(Clone, Copy)]
struct Ends<'a> {
    remote: SocketAddr,
    local: SocketAddr,
    /// The mesh's peer that was let in.
    peer: Option<&'a Arc<MeshIdentity>>,
}

impl Ends<'_> {
    /// Makes a connection ready to be served; `None` if it has gone already.
    fn of(accepted: inlet::Accepted) -> Option<(Inlet, Self)> {
        let (stream, remote, local) = match accepted {
            inlet::Accepted::Other(Arrival { stream, remote, local }) => {
                (Inlet::Other(stream), remote, local)
            }
            inlet::Accepted::Kernel(stream, remote) => {
                let local = stream.local_addr().ok()?;
                // Here and not where it was accepted: from now on it wakes this thread.
                (Inlet::Tcp(TcpStream::from_std(stream).ok()?), remote, local)
            }
        };
        // A socket of both families names its IPv4 visitors `::ffff:…`; nobody else should have to know.
        Some((stream, Self { remote: super::canonical(remote), local: super::canonical(local), peer: None }))
    }
}

impl Accepted {
    pub(super) async fn serve<S: Service>(self, accepted: inlet::Accepted, service: Arc<S>) {
        let _open = self.shared.options.metrics.connection(&self.shared.name);
        let Some((stream, mut ends)) = Ends::of(accepted) else { return };
        let mut start = Start::new(stream);
        if !self.take_proxy_header(&mut start, &mut ends).await {
            return;
        }
        match (&self.shared.switch, &self.shared.tls) {
            (Some(switch), _) => {
                let switch = switch.load_full();
                match (&switch.mesh, self.shared.on_mesh) {
                    (None, false) => self.switched(start, ends, &switch, &service).await,
                    (Some(visitors), true) => {
                        Box::pin(self.of_mesh(start, ends, (&switch, visitors), &service)).await;
                    }
                    // Its entry point is elsewhere by now, and what is routed there is not for its visitors.
                    _ => self.shared.options.metrics.refused("entry_point_moved"),
                }
            }
            (None, Some(config)) => {
                if let Some(io) = Box::pin(self.end_tls(start, config)).await {
                    self.serve_http(io, Stamp::default(), BytesMut::new(), ends, &service).await;
                }
            }
            (None, None) => {
                let io = Io::from(start.stream);
                self.serve_http(io, Stamp::default(), start.buffer, ends, &service).await;
            }
        }
    }

    /// False if the connection is to be closed.
    async fn take_proxy_header(&self, start: &mut Start, ends: &mut Ends<'_>) -> bool {
        let Some(policy) = &self.shared.proxy_protocol else { return true };
        let taken = timeout(PROXY_HEADER_TIMEOUT, start.take_proxy_header()).await;
        match taken.map(|taken| self.counted(taken)) {
            Ok(Ok(Some(addresses))) => {
                if policy.trusts(ends.remote.ip()) {
                    *ends = Ends { remote: addresses.source, local: addresses.destination, peer: None };
                }
                true
            }
            Ok(Ok(None)) => true,
            Ok(Err(_)) => false,
            // Nothing came at all: a protocol whose server speaks first, from a peer that sends no header.
            Err(_) if start.buffer.is_empty() => true,
            Err(_) => {
                self.shared.options.metrics.refused("proxy_protocol_slow");
                false
            }
        }
    }

    /// Serves a peer of the mesh for as long as it is this peer that speaks from its address.
    async fn of_mesh<S: Service>(
        &self,
        start: Start,
        ends: Ends<'_>,
        (switch, visitors): (&Switch, &MeshVisitors),
        service: &Arc<S>,
    ) {
        let peer = ends.remote.ip().to_canonical();
        let (entry_point, metrics) = (&self.shared.name, &self.shared.options.metrics);
        let Some(mut admitted) = visitors.admit(peer) else {
            tracing::debug!(%peer, reason = "mesh_peer_unknown", %entry_point, "connection refused");
            return metrics.refused("mesh_peer_unknown");
        };
        let identity = Arc::clone(&admitted.identity);
        let ends = Ends { peer: Some(&identity), ..ends };
        let cut = start.stream.cut();
        tokio::select! {
            // First of all: what lies in the socket's buffer may be somebody else's.
            biased;
            () = admitted.changed() => {
                tracing::debug!(peer = %identity.name, reason = "mesh_peer_changed", %entry_point, "connection closed");
                metrics.refused("mesh_peer_changed");
                // What has not been sent yet is not for whoever speaks from there now.
                cut.reset();
            }
            () = self.switched(start, ends, switch, service) => {}
        }
    }

    async fn switched<S: Service>(
        &self,
        mut start: Start,
        ends: Ends<'_>,
        switch: &Switch,
        service: &Arc<S>,
    ) {
        let peer = ends.remote.ip().to_canonical();
        let mesh = ends.peer.map(|peer| &**peer);
        let unknown = TcpHead { server_name: "", alpn: &[], peer, mesh };
        if let Some(route) = switch.speaks_first(&unknown) {
            return self.serve_tcp(route, Io::from(start.stream), start.buffer, ends).await;
        }
        let may_be_postgres = !switch.secure.is_empty();
        let protocol = tokio::select! {
            biased;
            // What has been sent before a drain began is still answered.
            first = timeout(self.shared.options.header_timeout, start.protocol(may_be_postgres)) => first,
            () = self.drain.settled() => return,
        };
        let Ok(Ok(protocol)) = protocol else { return };
        if protocol == Protocol::PostgresTls {
            return Box::pin(self.postgres(start, ends, switch)).await;
        }
        if protocol == Protocol::Plain {
            return match switch.decide_plain(&unknown) {
                Some(route) => self.serve_tcp(route, Io::from(start.stream), start.buffer, ends).await,
                None => {
                    let io = Io::from(start.stream);
                    self.serve_http(io, Stamp::default(), start.buffer, ends, service).await;
                }
            };
        }
        if let Some((io, stamp)) = Box::pin(self.switched_tls(start, ends, switch)).await {
            self.serve_http(io, stamp, BytesMut::new(), ends, service).await;
        }
    }

    /// Ends TLS with the one configuration that there is.
    async fn end_tls(&self, mut start: Start, config: &Arc<ServerConfig>) -> Option<Io> {
        let hello = self.within_tls_timeout(start.client_hello()).await?;
        let hello = self.counted(hello).ok()?;
        let io = self.handshake(hello, start.stream, config).await?;
        Some(Io::TlsServer(Box::new(io)))
    }

    /// Serves a visitor who begins with TLS, by its ClientHello; the plain text if it is HTTP, and
    /// under which options the handshake was made.
    async fn switched_tls(&self, mut start: Start, ends: Ends<'_>, switch: &Switch) -> Option<(Io, Stamp)> {
        let peer = ends.remote.ip().to_canonical();
        let hello = self.within_tls_timeout(start.client_hello()).await?;
        let hello = self.counted(hello).ok()?;
        let alpn: Vec<&[u8]> = hello.alpn.iter().map(Vec::as_slice).collect();
        switch.look_for_challenge(&alpn).await;
        let mesh = ends.peer.map(|peer| &**peer);
        let head = TcpHead { server_name: &hello.server_name, alpn: &alpn, peer, mesh };
        match switch.decide_tls(&head) {
            TlsDecision::Http(config, stamp) => {
                let config = match hello.server_name.is_empty() {
                    true => switch.options.for_address(config, ends.local.ip()),
                    false => Arc::clone(config),
                };
                let io = self.handshake(hello, start.stream, &config).await?;
                return Some((Io::TlsServer(Box::new(io)), stamp));
            }
            TlsDecision::Tcp(route) => self.serve_tls(route, hello, start, ends, Opening::None).await,
            TlsDecision::Challenge(config) => {
                if let Some(mut io) = self.handshake(hello, start.stream, &config).await {
                    // RFC 8737 §3: the validator has what it wants; nothing is sent.
                    let _ = tokio::io::AsyncWriteExt::shutdown(&mut io).await;
                }
            }
            TlsDecision::Refuse(reason) => {
                self.shared.options.metrics.refused(reason);
                refuse_handshake(&mut start.stream).await;
            }
        }
        None
    }

    /// A PostgreSQL client asks for TLS in the clear first; only TCP routers with TLS can be meant.
    async fn postgres(&self, mut start: Start, ends: Ends<'_>, switch: &Switch) {
        let granted = start.grant_postgres_tls().await;
        if self.counted(granted).is_err() {
            return;
        }
        let Some(hello) = self.within_tls_timeout(start.client_hello()).await else { return };
        let Ok(hello) = self.counted(hello) else { return };
        let alpn: Vec<&[u8]> = hello.alpn.iter().map(Vec::as_slice).collect();
        let peer = ends.remote.ip().to_canonical();
        let mesh = ends.peer.map(|peer| &**peer);
        let head = TcpHead { server_name: &hello.server_name, alpn: &alpn, peer, mesh };
        match switch.secure.decide(&head) {
            Some(router) => self.serve_tls(&router.target, hello, start, ends, Opening::Postgres).await,
            None => self.shared.options.metrics.refused("tcp_no_route"),
        }
    }

    async fn serve_tls(
        &self,
        route: &Arc<TcpRoute>,
        hello: Hello,
        start: Start,
        ends: Ends<'_>,
        opening: Opening,
    ) {
        match &route.tls {
            RouteTls::Terminate(config) => {
                if let Some(io) = self.handshake(hello, start.stream, config).await {
                    let io = Io::TlsServer(Box::new(io));
                    self.serve_tcp(route, io, BytesMut::new(), ends).await;
                }
            }
            RouteTls::Passthrough | RouteTls::Plain => {
                drop(hello);
                let Ends { remote, local, .. } = ends;
                let metrics = &self.shared.options.metrics;
                let mut io = Io::from(start.stream);
                route.serve_after(opening, &mut io, start.buffer, (remote, local), metrics).await;
            }
        }
    }

    async fn serve_tcp(&self, route: &Arc<TcpRoute>, mut io: Io, ahead: BytesMut, ends: Ends<'_>) {
        let metrics = &self.shared.options.metrics;
        Box::pin(route.serve(&mut io, ahead, ends.remote, ends.local, metrics)).await;
    }

    async fn within_tls_timeout<T>(&self, reading: impl Future<Output = T>) -> Option<T> {
        let read = timeout(TLS_TIMEOUT, reading).await;
        if read.is_err() {
            self.shared.options.metrics.refused("tls_slow");
        }
        read.ok()
    }

    fn counted<T>(&self, result: Result<T, StartError>) -> Result<T, StartError> {
        if let Err(error) = &result
            && let Some(reason) = error.reason()
        {
            tracing::debug!(%error, reason, entry_point = %self.shared.name, "connection refused");
            self.shared.options.metrics.refused(reason);
        }
        result
    }

    async fn handshake(
        &self,
        hello: Hello,
        stream: Inlet,
        config: &Arc<ServerConfig>,
    ) -> Option<TlsStream<Inlet>> {
        let handshake = StartHandshake::from_parts(hello.accepted, stream).into_stream(Arc::clone(config));
        match self.within_tls_timeout(handshake).await? {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::debug!(%error, reason = "tls_handshake", "TLS handshake refused");
                self.shared.options.metrics.refused("tls_handshake");
                None
            }
        }
    }

    /// `options` are those of the handshake, if TLS is spoken.
    async fn serve_http<S: Service>(
        &self,
        mut io: Io,
        options: Stamp,
        ahead: BytesMut,
        ends: Ends<'_>,
        service: &Arc<S>,
    ) {
        let tls = match &io {
            Io::TlsServer(stream) => Some(Arc::new(TlsInfo { options, ..tls_info(stream) })),
            _ => None,
        };
        let visitor = Arc::new(Visitor {
            remote: ends.remote,
            local: ends.local,
            secure: tls.is_some(),
            entry_point: Arc::clone(self.shared.name.own()),
            peer: ends.peer.cloned(),
            tls,
            address: crate::message::AddressText::default(),
        });
        let (is_h2, start) = match io.alpn() {
            Some(protocol) => (protocol == b"h2", ahead),
            None => match self.sniff(&mut io, ahead).await {
                Some(sniffed) => sniffed,
                None => return,
            },
        };
        let (options, drain) = (&self.shared.options, &self.drain);
        if !is_h2 {
            Box::pin(h1::server::serve(io, start, &**service, &visitor, options, drain)).await;
        } else if start.is_empty() {
            Box::pin(h2::server::serve(io, service, &visitor, options, drain)).await;
        } else {
            Box::pin(h2::server::serve(Rewind::new(start, io), service, &visitor, options, drain)).await;
        }
    }

    /// Reads the first bytes to tell HTTP/2 with prior knowledge (RFC 9113 §3.3) from HTTP/1.1.
    async fn sniff(&self, io: &mut Io, mut start: BytesMut) -> Option<(bool, BytesMut)> {
        let reading = async {
            loop {
                let known = start.len().min(H2_PREFACE.len());
                if start[..known] != H2_PREFACE[..known] {
                    return Some(false);
                }
                if known == H2_PREFACE.len() {
                    return Some(true);
                }
                if start.capacity() == start.len() {
                    start.reserve(4096);
                }
                match io.read_buf(&mut start).await.ok()? {
                    0 if start.is_empty() => return None,
                    0 => return Some(false),
                    _ => {}
                }
            }
        };
        let is_h2 = tokio::select! {
            biased;
            // What has been sent before a drain began is still answered.
            read = timeout(self.shared.options.header_timeout, reading) => read.ok()??,
            () = self.drain.settled() => return None,
        };
        Some((is_h2, start))
    }
}

/// What a finished handshake settled.
fn tls_info(stream: &TlsStream<Inlet>) -> TlsInfo {
    let session = stream.get_ref().1;
    TlsInfo {
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "1.3",
        },
        cipher: session.negotiated_cipher_suite().map_or("", |suite| suite_name(suite.suite())),
        server_name: session.server_name().map(|name| name.to_ascii_lowercase().into_boxed_str()),
        client_certificates: session
            .peer_certificates()
            .map(|chain| chain.iter().map(|cert| cert.clone().into_owned()).collect())
            .unwrap_or_default(),
        options: Stamp::default(),
    }
}

/// Tells the visitor that its name is not served, in place of a silent close.
async fn refuse_handshake(stream: &mut Inlet) {
    let _ = tokio::io::AsyncWriteExt::write_all(stream, ALERT_UNRECOGNIZED_NAME).await;
}

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A fatal `unrecognized_name` alert (RFC 8446 §6) in its record.
const ALERT_UNRECOGNIZED_NAME: &[u8] = &[0x15, 3, 3, 0, 2, 2, 112];
/// For a visitor's ClientHello, and for the rest of its handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// For a PROXY protocol header; balancers send it in their first packet.
const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
