//! One QUIC connection of a connector, from dial to close (tunnel-protocol.md §2.2, §3.6).

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use adit_tunnel_proto::{Failure, Protocol};
use bytes::Bytes;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    control::{Control, label},
    shared::{Dial, Order, Shared},
    stream,
};
use crate::{
    channel::Channel,
    credit::Credit,
    liveness::{DEAD, LOOK_INTERVAL, Liveness},
    metrics::Counted,
    request::{ConnectionLabel, RequestHandler},
    streams::{Loss, RecvHalf, SendHalf},
    tls::QUIC_SERVER_NAME,
    transport::{self, STREAM_WINDOW_FIRST_BYTES},
    udp::{TurnRuntime, payload_max_towards},
};

/// Dials, registers and serves; why it ended.
pub(super) async fn run<H: RequestHandler>(shared: Arc<Shared<H>>, mut dial: Dial) -> Failure {
    let peer = match shared.resolve(&dial.endpoint, dial.previous_attempts).await {
        Ok(peer) => peer,
        Err(failure) => return failure,
    };
    shared.status.dialled(dial.slot, peer);
    let path = Path { peer, payload_max: payload_max_towards(peer) };
    match dial_and_serve(&shared, &mut dial, path, None).await {
        End::Failed(failure) => failure,
        End::Long { window } => match dial_and_serve(&shared, &mut dial, path, Some(window)).await {
            End::Failed(failure) => failure,
            End::Long { .. } => Failure::Lost,
        },
    }
}

/// To one edge.
#[derive(Clone, Copy)]
struct Path {
    peer: SocketAddr,
    /// Largest UDP payload worth trying, in bytes.
    payload_max: u16,
}

/// How a connection ended.
enum End {
    Failed(Failure),
    /// Before it registered: streams need this window, and a connection has the one that it began with.
    Long {
        window: u32,
    },
}

/// Dials once, with `window` for streams if the line is known.
async fn dial_and_serve<H: RequestHandler>(
    shared: &Arc<Shared<H>>,
    dial: &mut Dial,
    path: Path,
    window: Option<u32>,
) -> End {
    let (bind, port) = (shared.options.bind_address, dial.port.last());
    let runtime = TurnRuntime { metrics: shared.metrics.udp.clone(), payload_max: path.payload_max };
    let endpoint = match transport::dialling_endpoint(path.peer, bind, port, runtime) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            tracing::warn!(connIndex = dial.slot, %error, "cannot open a UDP socket");
            return End::Failed(if error.kind() == std::io::ErrorKind::PermissionDenied {
                Failure::DialForbidden
            } else {
                Failure::Dial
            });
        }
    };
    if let Ok(local) = endpoint.local_addr() {
        dial.port.remember(local.port());
    }
    shared.metrics.quic.total_connections.inc();
    let end = connect_and_serve(shared, dial, &endpoint, (path, window)).await;
    shared.metrics.quic.closed_connections.inc();
    endpoint.close(CLOSE_CODE, b"");
    // The close is sent, and the port freed for the next attempt (C15).
    let closed = async move { drop(timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await) };
    match end {
        End::Failed(_) => closed.await,
        // Nobody waits for that port.
        End::Long { .. } => drop(tokio::spawn(closed)),
    }
    end
}

async fn connect_and_serve<H: RequestHandler>(
    shared: &Arc<Shared<H>>,
    dial: &mut Dial,
    endpoint: &Endpoint,
    (path, window): (Path, Option<u32>),
) -> End {
    let config = shared.quic.config(path.payload_max, window.unwrap_or(STREAM_WINDOW_FIRST_BYTES));
    let connection = tokio::select! {
        connection = connect(endpoint, config, path.peer, dial.slot) => match connection {
            Ok(connection) => connection,
            Err(failure) => return End::Failed(failure),
        },
        () = dial.order_closed() => return End::Failed(Failure::Lost),
    };
    if window.is_none() && long_window(&connection).is_some() {
        // Who computes slowly only seems to be far away, in a handshake: by now probes of the path's MTU are answered too. And the
        // edge learns what line it is from the same handshake, which has to end there before the next begins.
        sleep(connection.min_rtt() + ANSWER_DELAY_MAX).await;
        if let Some(window) = long_window(&connection) {
            tracing::debug!(connIndex = dial.slot, round_trip = ?connection.min_rtt(), window, "line is long");
            return End::Long { window };
        }
    }
    End::Failed(register_and_serve(shared, dial, connection, path.peer).await)
}

/// What streams need, if it is worth another handshake.
fn long_window(connection: &Connection) -> Option<u32> {
    Some(transport::stream_window(connection.min_rtt())).filter(|window| *window >= LONG_WINDOW_BYTES)
}

/// Registers a connection and serves it; why it ended.
async fn register_and_serve<H: RequestHandler>(
    shared: &Arc<Shared<H>>,
    dial: &mut Dial,
    connection: Connection,
    peer: SocketAddr,
) -> Failure {
    let registration = shared.registration(dial.slot, dial.previous_attempts, connection.local_ip());
    let control = tokio::select! {
        control = register(shared, &connection, &registration) => match control {
            Ok(control) => control,
            Err(failure) => return failure,
        },
        () = dial.order_closed() => return Failure::Lost,
    };
    let label = label(dial.slot, &control.registered, peer, Protocol::Quic);
    control.announce(shared, &label);
    // The runner outlives its tasks.
    let _ = dial.registered.send(dial.slot).await;
    let credit = Credit::new(&shared.budget);
    let mut serving = Serving { shared, connection, credit, control, label, requests: JoinSet::new() };
    let failure = serving.run(dial).await;
    serving.control.retract(shared, &serving.label);
    serving.connection.close(CLOSE_CODE, b"");
    serving.requests.shutdown().await;
    failure
}

async fn connect(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    peer: SocketAddr,
    slot: u8,
) -> Result<Connection, Failure> {
    let connecting = endpoint.connect_with(config, peer, QUIC_SERVER_NAME).map_err(|error| {
        tracing::warn!(connIndex = slot, %error, "cannot dial the edge");
        Failure::Dial
    })?;
    match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(ConnectionError::TimedOut)) | Err(_) => {
            tracing::warn!(connIndex = slot, ip = %peer.ip(), reason = "silent", "cannot connect to the edge");
            Err(Failure::DialSilent)
        }
        Ok(Err(error)) => {
            tracing::warn!(connIndex = slot, ip = %peer.ip(), %error, "cannot connect to the edge");
            Err(Failure::Dial)
        }
    }
}

async fn register<H: RequestHandler>(
    shared: &Shared<H>,
    connection: &Connection,
    registration: &adit_tunnel_proto::Registration,
) -> Result<Control, Failure> {
    // The first stream, so it has id 0 (C5).
    let opened = connection.open_bi().await;
    let (send, recv) = opened.map_err(|error| failure_of(Loss::from(&error)))?;
    let channel = Channel::control(SendHalf::quic(send), RecvHalf::rpc(recv, Bytes::new()));
    Control::register(shared, channel, registration).await
}

struct Serving<'a, H> {
    shared: &'a Arc<Shared<H>>,
    connection: Connection,
    credit: Credit,
    control: Control,
    label: ConnectionLabel,
    /// Bounded by the streams that the connection announces.
    requests: JoinSet<()>,
}

impl<H: RequestHandler> Serving<'_, H> {
    async fn run(&mut self, dial: &mut Dial) -> Failure {
        let mut local_configuration = self.shared.local_configuration.subscribe();
        // The rules are told once at first.
        local_configuration.mark_changed();
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut liveness = Liveness::new(Instant::now());
        let mut counted = Counted::default();
        loop {
            tokio::select! {
                stream = self.connection.accept_bi() => match stream {
                    Ok(stream) => self.serve(stream).await,
                    Err(error) => return self.ended(&error),
                },
                () = self.control.drive(self.shared) => {}
                _ = local_configuration.changed(), if self.control.pushes() => {
                    let json = local_configuration.borrow_and_update().clone();
                    if let Some(json) = json {
                        self.control.push(self.shared, &json);
                    }
                }
                order = dial.next_order() => match order {
                    Order::Serve => {}
                    Order::Drain => {
                        self.shared.status.draining(self.label.index);
                        self.control.unregister();
                    }
                    Order::Close => return Failure::Lost,
                },
                now = look.tick() => {
                    self.reap();
                    let stats = self.connection.stats();
                    if liveness.observe(stats.udp_rx.datagrams, now.into()) >= DEAD {
                        tracing::warn!(connIndex = self.label.index, reason = "connection_silent", "edge is silent");
                        return Failure::Silent;
                    }
                    self.credit.look(now.into(), &self.connection);
                    let index = self.label.index.to_string();
                    let min_rtt = self.connection.min_rtt();
                    self.shared.metrics.quic.observe(&index, &stats, min_rtt, &mut counted);
                }
            }
        }
    }

    /// Begins to serve a stream, and those that have come with it.
    async fn serve(&mut self, first: (SendStream, RecvStream)) {
        self.reap();
        let mut next = Some(first);
        while let Some(stream) = next.take() {
            let shared = Arc::clone(self.shared);
            let readers = Arc::clone(self.credit.readers());
            // Boxed, because a task is moved several times before it runs.
            self.requests.spawn(Box::pin(stream::serve(shared, self.label.clone(), readers, stream)));
            next = poll_fn(|cx| match pin!(self.connection.accept_bi()).poll(cx) {
                Poll::Ready(stream) => Poll::Ready(stream.ok()),
                // An error comes again to whoever accepts next.
                Poll::Pending => Poll::Ready(None),
            })
            .await;
        }
    }

    /// Lets go of the tasks that have ended: nobody waits for them, so that they wake nobody.
    fn reap(&mut self) {
        while let Some(done) = self.requests.try_join_next() {
            report_panic(done);
        }
    }

    fn ended(&self, error: &ConnectionError) -> Failure {
        let loss = Loss::from(error);
        tracing::info!(connIndex = self.label.index, reason = loss.reason(), %error, "tunnel connection ended");
        failure_of(loss)
    }
}

fn report_panic(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        tracing::error!(%error, "request task failed");
    }
}

fn failure_of(loss: Loss) -> Failure {
    match loss {
        Loss::Silent => Failure::Silent,
        Loss::ClosedByPeer | Loss::ClosedByUs | Loss::Forgotten | Loss::Transport => Failure::Lost,
    }
}

/// Streams of a connection that needs as much are worth another handshake: its line is longer than 13 ms.
const LONG_WINDOW_BYTES: u32 = 2 * STREAM_WINDOW_FIRST_BYTES;
/// QUIC's default bound on the delay of an acknowledgement (RFC 9000 section 18.2).
const ANSWER_DELAY_MAX: Duration = Duration::from_millis(25);
/// Application code of every close (§2.2).
const CLOSE_CODE: VarInt = VarInt::from_u32(0);
/// Longest handshake (§1.3).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a close to be sent and its port to be free.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
