//! Streams over UDP and QUIC that arrive for runs under way.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Server;
use super::registry::Arrived;
use crate::error::BenchError;
use crate::plan::{CONNECTIONS_MAX, STREAMS_MAX};
use crate::quic::{self, server_config};
use crate::udp::{HELLO_BYTES, UdpFlow};
use crate::wire::{HEADER_BYTES, Header, Kind};

/// The UDP port that streams of load begin on.
#[derive(Debug)]
pub(super) struct UdpDoor {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl UdpDoor {
    pub(super) fn bind(address: SocketAddr) -> Result<Self, BenchError> {
        let bound = || {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
            // Sockets of single streams share the port.
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            let state = UdpSocketState::new((&socket).into())?;
            let socket = UdpSocket::from_std(socket.into())?;
            let local = socket.local_addr()?;
            Ok((socket, state, local))
        };
        let (socket, state, local) = bound().map_err(BenchError::io("cannot bind the UDP port for load"))?;
        Ok(Self { socket, state, local })
    }

    pub(super) fn port(&self) -> u16 {
        self.local.port()
    }

    /// Answers questions, and hands on streams whose token is right.
    pub(super) async fn run(self, server: Arc<Server>) {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        loop {
            let mut meta = [RecvMeta::default()];
            let received = self
                .socket
                .async_io(Interest::READABLE, || {
                    self.state.recv((&self.socket).into(), &mut [IoSliceMut::new(&mut buffer)], &mut meta)
                })
                .await;
            match received {
                Ok(_) => self.handle(&server, &buffer[..meta[0].len.min(meta[0].stride)], &meta[0]),
                // An ICMP error of an answer; waiting keeps a broken socket from spinning.
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
        }
    }

    fn handle(&self, server: &Arc<Server>, datagram: &[u8], meta: &RecvMeta) {
        let Ok(hello) = <&[u8; HELLO_BYTES]>::try_from(datagram) else { return };
        let Some((head, token)) = hello.split_first_chunk::<HEADER_BYTES>() else { return };
        let Ok(header) = Header::decode(head) else { return };
        if header.kind != Kind::Data || !server.registry.knows(&header.cookie) {
            return;
        }
        let wanted = hmac::sign(&server.token_key, &[head, meta.addr.to_string().as_bytes()].concat());
        let wanted = &wanted.as_ref()[..HELLO_BYTES - HEADER_BYTES];
        if token == wanted {
            if let Ok(flow) = self.open(meta) {
                server.registry.arrive(header, Arrived::Udp(flow));
            }
        } else if token.iter().all(|byte| *byte == 0) {
            let answer = [head, wanted].concat();
            let transmit = Transmit {
                destination: meta.addr,
                ecn: None,
                contents: &answer,
                segment_size: None,
                src_ip: meta.dst_ip,
            };
            // A lost answer is asked for again.
            let _ = self.state.try_send((&self.socket).into(), &transmit);
        }
    }

    /// A socket for this peer alone, from the address that it asked at.
    fn open(&self, meta: &RecvMeta) -> io::Result<UdpFlow> {
        let ip = match (self.local.ip(), meta.dst_ip) {
            (ip, Some(asked)) if ip.is_unspecified() => as_family_of(meta.addr, asked),
            (ip, _) => ip,
        };
        UdpFlow::open(SocketAddr::new(ip, self.local.port()), meta.addr, None, true)
    }
}

/// Takes QUIC connections while a run expects some.
pub(super) async fn accept_quic(server: Arc<Server>, endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let room =
            endpoint.open_connections() < usize::from(CONNECTIONS_MAX) * server.registry.limits().tests;
        let window = server.registry.quic_window(incoming.remote_address().ip()).filter(|_| room);
        let config = window.and_then(|window| server_config(&server.parts, &server.certificate, window).ok());
        match config.map(Arc::new) {
            Some(config) => {
                let fits = window.flatten().is_none();
                drop(tokio::spawn(serve_quic(Arc::clone(&server), incoming, config, fits)));
            }
            None => incoming.refuse(),
        }
    }
}

/// `fits` says whether the windows are those of the line; a plan that names one wants just that.
async fn serve_quic(
    server: Arc<Server>,
    incoming: quinn::Incoming,
    config: Arc<quinn::ServerConfig>,
    fits: bool,
) {
    let Ok(connecting) = incoming.accept_with(config) else { return };
    let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await else { return };
    // A stream's header is waited for apart, so that one that stays silent does not hold up the others.
    let mut streams = tokio::task::JoinSet::new();
    let mut left = 2 * u32::from(STREAMS_MAX) + 1;
    let mut fit = pin!(quic::fit(&server.parts, &connection));
    while left > 0 {
        tokio::select! {
            () = &mut fit, if fits => {}
            accepted = connection.accept_bi() => {
                let Ok((send, receive)) = accepted else { break };
                left -= 1;
                streams.spawn(take_stream(Arc::clone(&server), connection.clone(), send, receive));
            }
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
        }
    }
    while streams.join_next().await.is_some() {}
}

async fn take_stream(
    server: Arc<Server>,
    connection: quinn::Connection,
    send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) {
    let mut bytes = [0; HEADER_BYTES];
    let read = tokio::time::timeout(HANDSHAKE_TIMEOUT, receive.read_exact(&mut bytes)).await;
    if !matches!(read, Ok(Ok(()))) {
        return;
    }
    match Header::decode(&bytes) {
        Ok(header) if header.kind != Kind::Control && server.registry.knows(&header.cookie) => {
            server.registry.arrive(header, Arrived::Quic { connection, send, receive });
        }
        // Whoever does not know a cookie has no business here.
        _ => connection.close(1u32.into(), b"unknown run"),
    }
}

/// An IPv4 address on a socket of IPv6 is written as one of IPv6.
fn as_family_of(peer: SocketAddr, ip: IpAddr) -> IpAddr {
    match (peer, ip) {
        (SocketAddr::V6(_), IpAddr::V4(ip)) => ip.to_ipv6_mapped().into(),
        (_, ip) => ip,
    }
}

/// Questions are 48 bytes; what is longer is cut and no question.
const DATAGRAM_BYTES_MAX: usize = 2048;
const ERROR_PAUSE: Duration = Duration::from_millis(1);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
