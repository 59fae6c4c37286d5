//! One connector's connection at the edge, from handshake to close (tunnel-protocol.md §3, §9; E1–E7,
//! E15, E17, E20, E21).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use adit_tunnel_proto::{
    ConnectionKey, Preamble, PreambleDecoder, Protocol, Refusal, Registered, Registration, RpcServer,
    ServerEvent, Service,
    rpc::{AnswerId, SHUTDOWN_REASON},
};
use bytes::Bytes;
use quinn::{ConnectionError, Incoming, VarInt};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use uuid::Uuid;

use super::{CLOSE_CODE, Shared, book::Connection};
use crate::{
    channel::{Channel, ChannelError},
    credit::Credit,
    in_flight::{Load, Unanswered},
    liveness::{DEAD, LOOK_INTERVAL, Liveness, QUIET},
    request::ConnectionLabel,
    streams::{Loss, RecvHalf, SendHalf},
    transport,
};

/// Serves one connection to its end.
pub(super) async fn run(shared: Arc<Shared>, incoming: Incoming) {
    shared.metrics.connections.inc();
    let remote = incoming.remote_address();
    if let Err(reason) = accept(&shared, incoming, remote).await {
        shared.metrics.refusals.with_label_values(&[reason]).inc();
        tracing::debug!(%remote, reason, "connection did not register");
    }
    shared.metrics.connections.dec();
}

/// Handshake and registration within their time, then service; the reason if it never registered.
async fn accept(shared: &Arc<Shared>, incoming: Incoming, remote: SocketAddr) -> Result<(), &'static str> {
    let deadline = shared.options.registration_timeout;
    let begin = async {
        let config = shared.listener.config(remote.ip());
        let connecting = incoming.accept_with(config).map_err(|_| "handshake_failed")?;
        let quic = connecting.await.map_err(|_| "handshake_failed")?;
        shared.listener.remember(remote.ip(), quic.min_rtt());
        // A probe closes here (E1).
        let (send, recv) = quic.accept_bi().await.map_err(|error| before_registration(&error))?;
        let (send, recv) = (SendHalf::quic(send), RecvHalf::rpc(recv, Bytes::new()));
        let mut control = Channel::serving(Service::Registration, send, recv);
        let (call, registration) = first_call(&mut control).await?;
        Ok::<_, &'static str>((quic, control, call, registration))
    };
    let (quic, mut control, call, registration) = match timeout(deadline, begin).await {
        Ok(begun) => begun?,
        Err(_) => return Err("registration_timeout"),
    };
    let key = shared.book.key();
    match admit(shared, key, &registration) {
        Ok(()) => {
            let mut session = Session::new(shared, key, quic, control, &registration, remote);
            session.welcome(call).await?;
            session.serve().await;
            Ok(())
        }
        Err(refusal) => {
            tracing::warn!(
                %remote,
                tunnelID = %registration.tunnel,
                connector = %registration.client.id,
                connIndex = registration.index,
                reason = refusal.reason(),
                "registration is refused"
            );
            control.end.answer_registration(call, &Err(refusal.rejection()));
            // The connector closes once it has read the answer (§3.5); so do we, if it does not.
            drop(timeout(REFUSED_LINGER, linger(&mut control, &quic)).await);
            quic.close(CLOSE_CODE, b"");
            Err(refusal.reason())
        }
    }
}

async fn first_call(control: &mut Channel<RpcServer>) -> Result<(AnswerId, Box<Registration>), &'static str> {
    loop {
        match control.next().await {
            Ok(ServerEvent::Register { call, registration }) => return Ok((call, registration)),
            Ok(ServerEvent::Unregister { call } | ServerEvent::LocalConfiguration { call, .. }) => {
                control.end.acknowledge(call);
            }
            Ok(ServerEvent::Refused { reason }) => {
                tracing::debug!(reason, "call before registration is refused")
            }
            Ok(ServerEvent::Configuration { .. } | ServerEvent::UdpSession { .. }) => {}
            Ok(ServerEvent::Ended { .. }) => return Err("ended_before_registration"),
            Err(error) => return Err(error.reason()),
        }
    }
}

/// Sends the answer and waits for the connector to close.
async fn linger(control: &mut Channel<RpcServer>, quic: &quinn::Connection) {
    let _ = control.flush().await;
    quic.closed().await;
}

fn before_registration(error: &ConnectionError) -> &'static str {
    match error {
        ConnectionError::ApplicationClosed(_) => "probe",
        error => Loss::from(error).reason(),
    }
}

fn admit(shared: &Shared, key: ConnectionKey, registration: &Registration) -> Result<(), Refusal> {
    let admission = shared.book.register(key, registration)?;
    if let Some(older) = admission.superseded {
        shared.book.close(older);
    }
    shared.metrics.registrations.inc();
    Ok(())
}

/// A registered connection.
struct Session<'a> {
    shared: &'a Arc<Shared>,
    connection: Arc<Connection>,
    credit: Credit,
    /// Gone once the connector ended it.
    control: Option<Channel<RpcServer>>,
    /// Bounded by the streams that the edge announces.
    rpc_streams: JoinSet<()>,
    /// Set once the connector unregistered.
    drain: Option<Drain>,
}

/// The limits of a connection's drain.
#[derive(Clone, Copy, Debug)]
struct Drain {
    /// Until then an idle connection is kept, so that the connector hears that its unregistering was
    /// taken; it ends the control stream when it has (§3.6).
    linger_until: Instant,
    /// Then it is closed whatever is in flight.
    deadline: Instant,
}

impl Drain {
    fn begun(now: Instant, grace_period: Duration) -> Self {
        Self { linger_until: now + UNREGISTER_LINGER, deadline: now + grace_period }
    }
}

impl<'a> Session<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        key: ConnectionKey,
        quic: quinn::Connection,
        control: Channel<RpcServer>,
        registration: &Registration,
        remote: SocketAddr,
    ) -> Self {
        transport::admit(&quic);
        let credit = Credit::new(&shared.budget);
        let connection = Arc::new(Connection {
            key,
            id: Uuid::new_v4(),
            tunnel: registration.tunnel,
            client: registration.client.clone(),
            label: ConnectionLabel {
                index: registration.index,
                location: Arc::clone(&shared.location),
                peer: remote,
                protocol: Protocol::Quic,
            },
            quic,
            lane: shared.lane(),
            load: Arc::<Load>::default(),
            unanswered: Unanswered::new(),
            draining: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            readers: Arc::clone(credit.readers()),
            since: Instant::now(),
            close: Notify::new(),
        });
        Self { shared, connection, credit, control: Some(control), rpc_streams: JoinSet::new(), drain: None }
    }

    /// Answers the registration and takes requests; the reason if it may not any more.
    async fn welcome(&mut self, call: AnswerId) -> Result<(), &'static str> {
        let registered = Registered {
            connection_id: self.connection.id,
            location: self.shared.location.to_string(),
            remotely_managed: false,
        };
        if let Some(control) = &mut self.control {
            control.end.answer_registration(call, &Ok(registered));
            // Before any request, so that the connector is ready for it; a loss shows below.
            drop(timeout(WELCOME_TIMEOUT, control.flush()).await);
        }
        if !self.shared.book.enter(&self.connection) {
            self.connection.quic.close(CLOSE_CODE, b"");
            return Err("admission_revoked");
        }
        self.shared.metrics.registered.inc();
        let client = &self.connection.client;
        tracing::info!(
            tunnelID = %self.connection.tunnel,
            connIndex = self.connection.label.index,
            connection = %self.connection.id,
            connector = %client.id,
            ip = %self.connection.label.peer.ip(),
            version = client.version,
            protocol = "quic",
            "connector registered"
        );
        Ok(())
    }

    async fn serve(&mut self) {
        let reason = self.drive().await;
        // Better known than after the handshake.
        let peer = self.connection.label.peer;
        self.shared.listener.remember(peer.ip(), self.connection.quic.min_rtt());
        self.connection.quic.close(CLOSE_CODE, b"");
        self.shared.book.leave(&self.connection);
        self.shared.book.publish(&self.shared.metrics);
        self.shared.metrics.registered.dec();
        self.shared.metrics.closed.with_label_values(&[reason]).inc();
        tracing::info!(
            tunnelID = %self.connection.tunnel,
            connIndex = self.connection.label.index,
            connection = %self.connection.id,
            reason,
            "connector disconnected"
        );
    }

    /// Runs until the connection ends; why.
    async fn drive(&mut self) -> &'static str {
        let connection = Arc::clone(&self.connection);
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut liveness = Liveness::new(Instant::now());
        loop {
            let draining = self.drain.is_some();
            let drain = self.drain.unwrap_or(Drain::begun(Instant::now(), Duration::ZERO));
            let linger = if self.control.is_some() { Some(drain.linger_until) } else { None };
            tokio::select! {
                event = next_event(&mut self.control) => self.handle(event),
                stream = connection.quic.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        self.rpc_streams.spawn(serve_rpc(Arc::clone(self.shared), send, recv));
                    }
                    Err(error) => return Loss::from(&error).reason(),
                },
                Some(_) = self.rpc_streams.join_next() => {}
                () = connection.close.notified() => return "closed_by_edge",
                () = drained(&connection, linger), if draining => return "drained",
                () = sleep_until(drain.deadline.into()), if draining => return "grace_period",
                now = look.tick() => {
                    let received = connection.quic.stats().udp_rx.datagrams;
                    let silence = liveness.observe(received, now.into());
                    connection.silent.store(silence >= QUIET, Ordering::Relaxed);
                    let short = self.credit.look(now.into(), &connection.quic);
                    // A head that was not taken counts until here; then the connection has its next try.
                    connection.stalled.store(short, Ordering::Relaxed);
                    if silence >= DEAD {
                        return "connection_silent";
                    }
                }
            }
        }
    }

    fn handle(&mut self, event: Result<ServerEvent, ChannelError>) {
        let Some(control) = &mut self.control else { return };
        match event {
            Ok(ServerEvent::Unregister { call }) => {
                control.end.acknowledge(call);
                // E20.
                self.connection.draining.store(true, Ordering::SeqCst);
                self.drain = Some(Drain::begun(Instant::now(), self.shared.options.grace_period));
            }
            Ok(ServerEvent::LocalConfiguration { call, json }) => {
                control.end.acknowledge(call);
                self.learn(&json);
            }
            Ok(ServerEvent::Register { call, .. }) => {
                control.end.answer_registration(call, &Err(Refusal::Twice.rejection()));
                self.shared.metrics.refusals.with_label_values(&[Refusal::Twice.reason()]).inc();
            }
            Ok(ServerEvent::Refused { reason }) => {
                tracing::debug!(connection = %self.connection.id, reason, "call is refused");
            }
            // Not served on this channel, so answered already.
            Ok(ServerEvent::Configuration { .. } | ServerEvent::UdpSession { .. }) => {}
            // E3: release, abort `rpc: shutdown` and FIN are the normal end.
            Ok(ServerEvent::Ended { reason }) => {
                if reason != SHUTDOWN_REASON {
                    tracing::warn!(connection = %self.connection.id, reason, "connector aborted its control stream");
                }
                self.end_control();
            }
            Err(error) => {
                tracing::debug!(connection = %self.connection.id, reason = error.reason(), "control stream ended");
                self.end_control();
            }
        }
    }

    fn end_control(&mut self) {
        if let Some(mut control) = self.control.take() {
            control.finish();
        }
    }

    fn learn(&self, json: &[u8]) {
        let refused = |reason: &str, count: usize| {
            self.shared.metrics.hostnames_refused.with_label_values(&[reason]).inc_by(count as u64);
        };
        match self.shared.book.learn(self.connection.key, json) {
            Ok(learnt) => {
                if learnt.not_allowed > 0 {
                    refused("not_allowed", learnt.not_allowed);
                    tracing::warn!(
                        tunnelID = %self.connection.tunnel,
                        count = learnt.not_allowed,
                        reason = "not_allowed",
                        "hosts of the connector's rules are not among the tunnel's"
                    );
                }
                self.shared.book.publish(&self.shared.metrics);
            }
            Err(error) => {
                refused(error.reason(), 1);
                tracing::warn!(
                    tunnelID = %self.connection.tunnel,
                    reason = error.reason(),
                    %error,
                    "connector's rules are not taken"
                );
            }
        }
    }
}

async fn next_event(control: &mut Option<Channel<RpcServer>>) -> Result<ServerEvent, ChannelError> {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

/// Returns when nothing is in flight and the time to linger, if there is one, is over.
async fn drained(connection: &Connection, linger_until: Option<Instant>) {
    if let Some(until) = linger_until {
        sleep_until(until.into()).await;
    }
    connection.load.wait_idle().await;
}

/// Serves a stream that a connector opened: only RPC, only the end of UDP sessions (E15), within its
/// time (E17).
async fn serve_rpc(shared: Arc<Shared>, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    let reason = match timeout(RPC_STREAM_TIMEOUT, read_signature(&mut recv)).await {
        Ok(Ok(early)) => {
            let recv = RecvHalf::rpc(recv, early);
            let mut channel = Channel::serving(Service::Sessions, SendHalf::quic(send), recv);
            let served = timeout(RPC_STREAM_TIMEOUT, async { while channel.next().await.is_ok() {} }).await;
            if served.is_ok() {
                channel.finish();
            }
            if served.is_ok() { "served" } else { "rpc_timeout" }
        }
        Ok(Err(reason)) => {
            drop(recv.stop(VarInt::from_u32(0)));
            drop(send.reset(VarInt::from_u32(0)));
            reason
        }
        Err(_) => "stalled_preamble",
    };
    shared.metrics.rpc_streams.with_label_values(&[reason]).inc();
}

async fn read_signature(recv: &mut quinn::RecvStream) -> Result<Bytes, &'static str> {
    let mut decoder = PreambleDecoder::new();
    loop {
        match recv.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => decoder.handle_chunk(chunk.bytes),
            Ok(None) | Err(_) => return Err("ended_early"),
        }
        match decoder.poll_preamble() {
            Ok(Some(Preamble::Rpc)) => return Ok(decoder.into_rest()),
            // Requests go the other way.
            Ok(Some(Preamble::Request(_))) => return Err("unexpected_request"),
            Ok(None) => {}
            Err(error) => return Err(error.reason()),
        }
    }
}

/// Longest wait for a refused connector to close.
const REFUSED_LINGER: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a registration to be taken by the transport.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait of an idle connection for the end of its control stream after it unregistered.
const UNREGISTER_LINGER: Duration = Duration::from_secs(1);
/// Longest life of an RPC stream (E17).
const RPC_STREAM_TIMEOUT: Duration = Duration::from_secs(5);
