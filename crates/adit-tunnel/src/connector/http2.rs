//! One HTTP/2 connection of a connector: the edge is the HTTP/2 client (tunnel-protocol.md §2.3, §6).

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use adit_tunnel_proto::{
    ConnectionType, EdgeEndpoint, Failure, Headers, Protocol,
    http2::{Http2Request, configuration_answer, configuration_push, lacks_body_framing, request_head},
};
use bytes::Bytes;
use h2::{
    Ping, PingPong,
    server::{Builder, SendResponse},
};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header::TRANSFER_ENCODING, request::Parts};
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    control::{Control, label},
    shared::{Dial, Order, Shared},
};
use crate::{
    channel::Channel,
    http2::{RecvBody, Respond},
    is_management,
    liveness::DEAD,
    request::{ConnectionLabel, Reply, RequestHandler, TunnelRequest},
    streams::RecvHalf,
    tls::HTTP2_SERVER_NAME,
};

/// Dials, registers and serves; why it ended.
pub(super) async fn run<H: RequestHandler>(shared: Arc<Shared<H>>, mut dial: Dial) -> Failure {
    let begun = tokio::select! {
        begun = begin(&shared, dial.slot, dial.endpoint.clone(), dial.previous_attempts) => begun,
        () = dial.order_closed() => return Failure::Lost,
    };
    let (connection, peer, local) = match begun {
        Ok(begun) => begun,
        Err(failure) => return failure,
    };
    let mut serving = Serving {
        shared,
        stage: Stage::Waiting { since: Instant::now() },
        previous_attempts: dial.previous_attempts,
        slot: dial.slot,
        peer,
        local,
        requests: JoinSet::new(),
    };
    let failure = serving.run(connection, &mut dial).await;
    if let Stage::Registered { control, label } = &serving.stage {
        control.retract(&serving.shared, label);
    }
    serving.requests.shutdown().await;
    failure
}

type Connection = h2::server::Connection<TlsStream<TcpStream>, Bytes>;

async fn begin<H: RequestHandler>(
    shared: &Shared<H>,
    slot: u8,
    endpoint: EdgeEndpoint,
    attempt: u8,
) -> Result<(Connection, SocketAddr, SocketAddr), Failure> {
    let peer = shared.resolve(&endpoint, attempt).await?;
    shared.status.dialled(slot, peer);
    let failed = |reason: &str| {
        tracing::warn!(connIndex = slot, ip = %peer.ip(), reason, "cannot connect to the edge");
        Failure::Dial
    };
    let stream = match timeout(CONNECT_TIMEOUT, connect(shared, peer)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(&error.to_string())),
        Err(_) => return Err(failed("connect_timeout")),
    };
    let local = stream.local_addr().map_err(|error| failed(&error.to_string()))?;
    let name = ServerName::try_from(HTTP2_SERVER_NAME).map_err(|error| failed(&error.to_string()))?;
    let tls = TlsConnector::from(Arc::clone(&shared.tcp)).connect(name, stream);
    let tls = match timeout(CONNECT_TIMEOUT, tls).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return Err(failed(&error.to_string())),
        Err(_) => return Err(failed("handshake_timeout")),
    };
    let handshake = Builder::new()
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .handshake(tls);
    match timeout(PREFACE_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => Ok((connection, peer, local)),
        Ok(Err(error)) => Err(failed(&error.to_string())),
        Err(_) => Err(failed("preface_timeout")),
    }
}

async fn connect<H>(shared: &Shared<H>, peer: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if peer.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(ip) = shared.options.bind_address {
        socket.bind(SocketAddr::new(ip, 0))?;
    }
    let stream = socket.connect(peer).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// How far the control channel has come.
enum Stage {
    /// For the edge to open the control stream (§6.1).
    Waiting {
        since: Instant,
    },
    Registering {
        registration: Pin<Box<dyn Future<Output = Result<Control, Failure>> + Send>>,
        /// The edge's streams may overtake the answer on the control stream, or come in the same
        /// read as it; at most [`HELD_MAX`].
        held: Vec<Visit>,
    },
    Registered {
        control: Box<Control>,
        label: ConnectionLabel,
    },
}

/// A visitor's request, as it came.
struct Visit {
    parts: Parts,
    kind: ConnectionType,
    body: h2::RecvStream,
    respond: SendResponse<Bytes>,
}

struct Serving<H> {
    shared: Arc<Shared<H>>,
    stage: Stage,
    previous_attempts: u8,
    slot: u8,
    peer: SocketAddr,
    local: SocketAddr,
    /// Bounded by the streams that the connection announces.
    requests: JoinSet<()>,
}

impl<H: RequestHandler> Serving<H> {
    async fn run(&mut self, mut connection: Connection, dial: &mut Dial) -> Failure {
        let mut local_configuration = self.shared.local_configuration.subscribe();
        // The rules are told once at first.
        local_configuration.mark_changed();
        let mut pulse = Pulse::new(connection.ping_pong());
        let mut look = interval(PING_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let pushes = matches!(&self.stage, Stage::Registered { control, .. } if control.pushes());
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => self.dispatch(request, respond),
                    Some(Err(error)) => return self.ended(&error.to_string()),
                    None => return self.ended("closed_by_edge"),
                },
                Some(_) = self.requests.join_next() => {}
                outcome = self.stage.advance(&self.shared) => match outcome {
                    Ok(control) => self.registered(control, dial).await,
                    Err(failure) => return failure,
                },
                _ = local_configuration.changed(), if pushes => self.push(&mut local_configuration),
                order = dial.next_order() => match order {
                    Order::Serve => {}
                    Order::Drain => self.drain(),
                    Order::Close => return Failure::Lost,
                },
                () = std::future::poll_fn(|cx| pulse.poll_heard(cx)) => {}
                _ = look.tick() => {
                    if !pulse.beat(Instant::now()) {
                        tracing::warn!(connIndex = self.slot, reason = "connection_silent", "edge is silent");
                        return Failure::Silent;
                    }
                    if matches!(&self.stage, Stage::Waiting { since } if since.elapsed() > CONTROL_TIMEOUT) {
                        return Failure::Unanswered;
                    }
                }
            }
        }
    }

    fn dispatch(&mut self, request: Request<h2::RecvStream>, respond: SendResponse<Bytes>) {
        let (parts, body) = request.into_parts();
        match (Http2Request::classify(&parts.headers), &mut self.stage) {
            (Http2Request::ControlStream, Stage::Waiting { .. }) => {
                self.begin_registration(RecvHalf::http2(RecvBody::new(body)), Respond::new(respond));
            }
            (Http2Request::UpdateConfiguration, _) => {
                let shared = Arc::clone(&self.shared);
                let body = RecvHalf::http2(RecvBody::new(body));
                self.requests.spawn(update_configuration(shared, body, Respond::new(respond)));
            }
            (Http2Request::Visitor(kind), Stage::Registered { label, .. }) => {
                let label = label.clone();
                self.serve(Visit { parts, kind, body, respond }, label);
            }
            (Http2Request::Visitor(kind), Stage::Registering { held, .. }) if held.len() < HELD_MAX => {
                held.push(Visit { parts, kind, body, respond });
            }
            (Http2Request::ControlStream | Http2Request::Visitor(_), _) => {
                self.shared.metrics.streams_refused.with_label_values(&["out_of_order"]).inc();
                Respond::new(respond).fail(false);
            }
        }
    }

    fn serve(&mut self, visit: Visit, connection: ConnectionLabel) {
        let Visit { mut parts, kind, body, respond } = visit;
        let ends = body.is_end_stream();
        if kind == ConnectionType::Http && lacks_body_framing(&parts.method, &parts.headers, ends) {
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let head = request_head(parts, kind).map_headers(Headers::Map);
        let reply = Reply::http2(Respond::new(respond), kind);
        if is_management(&head.host) && kind != ConnectionType::Tcp {
            // Answers with a failure.
            return drop(reply);
        }
        let body = RecvHalf::http2(RecvBody::new(body));
        let request = TunnelRequest { head, body, reply, connection };
        let handler = Arc::clone(&self.shared.handler);
        self.requests.spawn(async move { handler.handle(request).await });
    }

    fn begin_registration(&mut self, body: RecvHalf, respond: Respond) {
        let Ok(send) = respond.send(StatusCode::OK, HeaderMap::new()) else { return };
        let shared = Arc::clone(&self.shared);
        let registration = shared.registration(self.slot, self.previous_attempts, Some(self.local.ip()));
        let registration =
            Box::pin(
                async move { Control::register(&shared, Channel::control(send, body), &registration).await },
            );
        self.stage = Stage::Registering { registration, held: Vec::new() };
    }

    async fn registered(&mut self, control: Control, dial: &Dial) {
        let label = label(self.slot, &control.registered, self.peer, Protocol::Http2);
        control.announce(&self.shared, &label);
        // The runner outlives its tasks.
        let _ = dial.registered.send(self.slot).await;
        let registered = Stage::Registered { control: Box::new(control), label: label.clone() };
        if let Stage::Registering { held, .. } = std::mem::replace(&mut self.stage, registered) {
            for visit in held {
                self.serve(visit, label.clone());
            }
        }
    }

    fn push(&mut self, local_configuration: &mut watch::Receiver<Option<Bytes>>) {
        let json = local_configuration.borrow_and_update().clone();
        if let (Stage::Registered { control, .. }, Some(json)) = (&mut self.stage, json) {
            control.push(&self.shared, &json);
        }
    }

    fn drain(&mut self) {
        self.shared.status.draining(self.slot);
        if let Stage::Registered { control, .. } = &mut self.stage {
            control.unregister();
        }
    }

    fn ended(&self, reason: &str) -> Failure {
        tracing::info!(connIndex = self.slot, reason, "tunnel connection ended");
        Failure::Lost
    }
}

impl Stage {
    /// Drives the control channel; comes back only with the outcome of the registration. May be
    /// dropped and called again.
    async fn advance<H: RequestHandler>(&mut self, shared: &Shared<H>) -> Result<Control, Failure> {
        match self {
            Self::Waiting { .. } => std::future::pending().await,
            Self::Registering { registration, .. } => registration.as_mut().await,
            Self::Registered { control, .. } => {
                control.drive(shared).await;
                std::future::pending().await
            }
        }
    }
}

/// PINGs, because a TCP connection to an edge that is gone looks alive for minutes (the stock
/// connector sends none and waits for them).
struct Pulse {
    ping_pong: Option<PingPong>,
    waiting_since: Option<Instant>,
}

impl Pulse {
    fn new(ping_pong: Option<PingPong>) -> Self {
        Self { ping_pong, waiting_since: None }
    }

    /// Sends a PING unless one waits; whether the peer is alive.
    fn beat(&mut self, now: Instant) -> bool {
        match (self.waiting_since, &mut self.ping_pong) {
            (Some(since), _) => now.saturating_duration_since(since) < DEAD,
            (None, Some(ping_pong)) => {
                if ping_pong.send_ping(Ping::opaque()).is_ok() {
                    self.waiting_since = Some(now);
                }
                true
            }
            (None, None) => true,
        }
    }

    fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match (self.waiting_since, &mut self.ping_pong) {
            (Some(_), Some(ping_pong)) => ping_pong.poll_pong(cx).map(|_| self.waiting_since = None),
            _ => Poll::Pending,
        }
    }
}

/// Applies a configuration pushed as a request (§3.7).
async fn update_configuration<H: RequestHandler>(
    shared: Arc<Shared<H>>,
    mut body: RecvHalf,
    respond: Respond,
) {
    let read = timeout(PUSH_TIMEOUT, body.read_to_end(PUSH_BYTES_MAX)).await;
    let push = read.ok().flatten().as_deref().and_then(configuration_push);
    let Some((version, json)) = push else {
        shared.metrics.streams_refused.with_label_values(&["bad_configuration_push"]).inc();
        return respond.fail(false);
    };
    let (current, error) = shared.configuration.apply(&*shared.handler, &shared.metrics, version, &json);
    shared.metrics.served("config", "update_configuration", error.is_some());
    let answer = Bytes::from(configuration_answer(current, error.as_deref()));
    if let Ok(mut send) = respond.send(StatusCode::OK, HeaderMap::new()) {
        // An edge that does not wait for the answer does not need it.
        let _ = timeout(PUSH_TIMEOUT, send.write(answer)).await;
        send.finish();
    }
}

/// Of the connect and of the TLS handshake, each (§1.3).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Until the edge's preface (§2.3).
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the edge opens the control stream; nothing else can happen before.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between PINGs.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Until a pushed configuration is read, and again until it is answered.
const PUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest pushed configuration, as over QUIC.
const PUSH_BYTES_MAX: usize = 1024 * 1024;

/// As the stock connector announces (§2.3).
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
/// Requests at once on one connection, as over QUIC.
const STREAMS_MAX: u32 = 4096;
/// Largest request head; as the head of a QUIC stream. With `STREAMS_MAX` heads at once the worst
/// case is 1 GiB, but heads are handed on one by one.
const HEADER_BYTES_MAX: u32 = 256 * 1024;
/// Requests that wait for the answer to the registration; a few come while it is on its way, and this
/// many of the largest heads take 16 MiB.
const HELD_MAX: usize = 64;
/// Unread bytes of one stream.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Unread bytes of one connection, the worst case of its receive memory; the stock 1 MiB is shared
/// by all uploads and starves them (§10). 64 uploads that an origin does not read fill it.
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024 * 1024;
/// Unsent bytes of one stream.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
