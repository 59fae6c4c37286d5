//! What becomes of a connection: opened under limits, announced when established, forgotten when over.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use adit_mesh_proto::PeerId;
use smoltcp::socket::tcp::{CongestionControl, Socket, State};
use tokio::sync::{mpsc, oneshot};

use super::demux::Netstack;
use super::drops::StackDrop;
use super::link::{Emitted, Width, smoltcp_time};
use super::packet::{FourTuple, PartialAck, Segment};
use super::shared::{Connect, Port, TcpPort, add};
use super::stream::{Connection, Stream};
use super::{ConnectError, ephemeral_ports};

/// The lane's side of a connection.
pub(super) struct Entry {
    connection: Arc<Connection>,
    /// Whose packets it takes; learnt from the first for those that we open.
    peer: Option<PeerId>,
    /// Who waits for it.
    opening: Option<Opening>,
    /// Its place in the timers.
    scheduled: Option<Instant>,
    /// It is in the queue of those to be drained.
    is_ready: bool,
    /// smoltcp may hold an acknowledgement back.
    delays_ack: bool,
    /// Its segments must be short.
    is_narrow: bool,
    /// Segments of the first flight that are still to be sent.
    first_flight: u8,
    /// What the peer has acknowledged.
    acknowledged: Option<u32>,
    /// Nobody holds the stream: latest end.
    ends_at: Option<Instant>,
    /// Over on both sides, and the peer has been told: only what it repeats is answered.
    is_quiet: bool,
    state: State,
}

/// Who is told when a connection is established.
enum Opening {
    /// A listener, with its place in the queue.
    Accept(mpsc::OwnedPermit<Stream>),
    /// A caller.
    Connect(oneshot::Sender<Result<Stream, ConnectError>>),
}

/// What made a connection's state change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Packet,
    Time,
}

impl Entry {
    fn new(connection: Arc<Connection>, peer: Option<PeerId>, opening: Opening) -> Self {
        Self {
            connection,
            peer,
            opening: Some(opening),
            scheduled: None,
            is_ready: false,
            delays_ack: false,
            is_narrow: false,
            first_flight: FIRST_FLIGHT,
            acknowledged: None,
            ends_at: None,
            is_quiet: false,
            state: State::Closed,
        }
    }

    /// Whose packets it takes, if it has taken any.
    pub(super) fn peer(&self) -> Option<PeerId> {
        self.peer
    }

    /// A connection that is over on both sides gives way to a new one between the same ports (RFC 9293 §3.6.1). What
    /// is late from the old one WireGuard has dropped as a replay.
    pub(super) fn may_be_replaced(&self) -> bool {
        matches!(self.state, State::TimeWait | State::Closed)
    }

    fn width(&self) -> Width {
        match (self.is_narrow, self.first_flight) {
            (true, _) => Width::Narrow,
            (false, 0) => Width::Wide,
            (false, _) => Width::Single,
        }
    }
}

/// Connections that are over and whose streams may hold what has not been read. As many as there are streams, whose
/// buffers are under the budget, and as many again that have gone meanwhile.
#[derive(Default)]
pub(super) struct Departed {
    all: Vec<(IpAddr, PeerId, Weak<Connection>)>,
    /// Length from which on those that have gone are looked for.
    full: usize,
}

impl Departed {
    fn add(&mut self, tuple: &FourTuple, entry: &Entry) {
        let connection = &entry.connection;
        let Some(peer) = entry.peer.filter(|_| !connection.lock().is_revoked()) else { return };
        if self.all.len() >= self.full {
            self.all.retain(|(_, _, stream)| stream.strong_count() > 0);
            self.full = 2 * self.all.len() + DEPARTED_MIN;
        }
        self.all.push((tuple.remote.ip(), peer, Arc::downgrade(connection)));
    }

    /// Takes from streams what came from addresses that are another's now; how many streams that were.
    pub(super) fn forget_others(&mut self, owner: &dyn Fn(IpAddr) -> Option<PeerId>) -> usize {
        let mut revoked = 0;
        self.all.retain(|(address, peer, stream)| {
            let Some(stream) = stream.upgrade() else { return false };
            let stays = owner(*address) == Some(*peer);
            if !stays {
                stream.lock().revoke(io::ErrorKind::ConnectionReset);
                revoked += 1;
            }
            stays
        });
        revoked
    }
}

impl Netstack {
    /// Makes a socket for a peer that asks for a connection; `false` if nobody listens there.
    pub(super) fn open(&mut self, peer: PeerId, tuple: FourTuple, now: Instant) -> Result<bool, StackDrop> {
        let Some(port) = self.listener_of(&tuple) else { return Ok(false) };
        let limits = self.shared.limits;
        if self.half_open >= limits.half_open_max {
            return Err(StackDrop::HalfOpen);
        }
        let of_peer = self.peer(peer, now);
        if of_peer.half_open >= limits.half_open_peer_max {
            return Err(StackDrop::HalfOpenPeer);
        }
        let bytes = Arc::clone(&of_peer.bytes);
        let permit = port.accepted.try_reserve_owned().map_err(|_| StackDrop::Backlog)?;
        let reservation = self.shared.budget.reserve(port.class, Some(&bytes))?;
        let connection = Connection::new(tuple, port.class, reservation);
        let mut held = connection.lock();
        let socket = held.socket();
        socket.set_timeout(Some(HALF_OPEN_TIMEOUT));
        // Before it is established: smoltcp sends a first keep-alive at once.
        socket.set_keep_alive(Some(KEEP_ALIVE));
        // Cannot fail: the socket is new and port 0 is refused when a segment is read.
        let listens = socket.listen(tuple.local).is_ok();
        drop(held);
        debug_assert!(listens, "a new socket listens");
        self.peer(peer, now).half_open += 1;
        self.half_open += 1;
        self.insert(tuple, Entry::new(connection, Some(peer), Opening::Accept(permit)));
        Ok(true)
    }

    /// Begins an outgoing connection.
    pub(super) fn connect(&mut self, connect: Connect, now: Instant) {
        let Connect { remote, class, answer } = connect;
        match self.begin(remote, class) {
            Ok((tuple, connection)) => {
                self.insert(tuple, Entry::new(connection, None, Opening::Connect(answer)));
                self.attend(&tuple, now);
            }
            Err(error) => {
                if let ConnectError::Refused(reason) = error {
                    self.shared.drops.count(reason);
                }
                // Whoever has gone away meanwhile does not need to know.
                let _ = answer.send(Err(error));
            }
        }
    }

    fn begin(
        &mut self,
        remote: std::net::SocketAddr,
        class: super::BufferClass,
    ) -> Result<(FourTuple, Arc<Connection>), ConnectError> {
        let local = self.place.local_for(remote.ip()).ok_or(ConnectError::NoAddress)?;
        let tuple = ephemeral_ports()
            .map(|port| FourTuple { local: std::net::SocketAddr::new(local, port), remote })
            .find(|tuple| !self.connections.contains_key(tuple))
            .ok_or(ConnectError::Refused(StackDrop::PortsExhausted))?;
        let reservation = self.shared.budget.reserve(class, None).map_err(ConnectError::Refused)?;
        let connection = Connection::new(tuple, class, reservation);
        let mut held = connection.lock();
        let socket = held.socket();
        socket.set_timeout(Some(CONNECT_TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let connected = socket.connect(self.links.of(Width::Wide).context(), remote, tuple.local);
        drop(held);
        // Port 0 or the unspecified address.
        connected.map_err(|_| ConnectError::NoAddress)?;
        Ok((tuple, connection))
    }

    /// Hands a segment to its connection.
    pub(super) fn feed(
        &mut self,
        peer: PeerId,
        segment: &Segment,
        packet: &[u8],
        now: Instant,
    ) -> Result<(), StackDrop> {
        let tuple = segment.tuple;
        let Some(entry) = self.connections.get_mut(&tuple) else { return Err(StackDrop::PortClosed) };
        if *entry.peer.get_or_insert(peer) != peer {
            return Err(StackDrop::PeerChanged);
        }
        let connection = Arc::clone(&entry.connection);
        let mut held = connection.lock();
        // smoltcp delays the acknowledgement of any first packet, even if it is a whole train that its sender waits
        // to have acknowledged. One that is delayed already is forced by data (RFC 9293 §3.8.6.3). Behind the peer's end
        // there is nothing to wait for.
        let is_small = segment.payload_len < SMALL_PAYLOAD && !segment.ends();
        let delay = (is_small || entry.delays_ack).then_some(ACK_DELAY);
        held.socket().set_ack_delay(delay.map(smoltcp_time));
        entry.delays_ack |= is_small && segment.payload_len > 0;
        let link = self.links.of(entry.width());
        let queued = held.socket().send_queue();
        if segment.acknowledges() {
            let before = entry.acknowledged.replace(segment.acknowledged).unwrap_or(segment.acknowledged);
            let mut steps = steps(before, segment.acknowledged, queued).peekable();
            if steps.peek().is_some() {
                let mut partial = PartialAck::of(segment, packet);
                for step in steps {
                    link.ingress(partial.up_to(step), &mut held.sockets, &mut self.answers, now);
                }
            }
        }
        if segment.opens() && entry.opening.is_none() {
            // A peer that has forgotten this connection. smoltcp says nothing to its SYN; what it says to an ACK out of
            // nowhere tells the peer to reset it (RFC 9293 §3.10.7.4).
            let mut out_of_nowhere = PartialAck::of(segment, packet);
            let packet = out_of_nowhere.up_to(entry.acknowledged.unwrap_or_default());
            link.ingress(packet, &mut held.sockets, &mut self.answers, now);
        } else {
            link.ingress(packet, &mut held.sockets, &mut self.answers, now);
        }
        // smoltcp's probe of a shut window never ends when our end has been acknowledged, and is sent in a busy loop: nothing
        // more is to be sent, so that it may as well be open.
        let is_shut = segment.window == 0 && segment.acknowledges() && !segment.ends();
        if is_shut && held.socket().state() == State::FinWait2 {
            let mut open = PartialAck::of(segment, packet);
            link.ingress(open.with_room(segment), &mut held.sockets, &mut self.answers, now);
        }
        drop(held);
        self.settle(&tuple, Cause::Packet, now);
        self.mark(&tuple);
        Ok(())
    }

    /// The next segment of a connection, which stays ready as long as there are any.
    pub(super) fn drain(&mut self, tuple: &FourTuple, buffer: &mut [u8], now: Instant) -> Option<Emitted> {
        let entry = self.connections.get_mut(tuple)?;
        entry.is_ready = false;
        let (connection, is_quiet) = (Arc::clone(&entry.connection), entry.is_quiet);
        let mut held = connection.lock();
        let link = self.links.of(entry.width());
        // smoltcp would throw away what has not been read yet when TIME-WAIT is over.
        let emitted = if is_quiet { None } else { link.egress(buffer, &mut held.sockets, now) };
        if let Some(emitted) = emitted {
            entry.delays_ack = false;
            if entry.opening.is_none() && emitted.len > SHORT_PACKET && entry.first_flight > 0 {
                entry.first_flight -= 1;
                if entry.first_flight == 0 {
                    held.socket().set_congestion_control(CongestionControl::Cubic);
                }
            }
            drop(held);
            self.settle(tuple, Cause::Time, now);
            self.mark(tuple);
            return Some(emitted);
        }
        let at = if is_quiet { None } else { link.poll_at(&held.sockets, now) };
        let has_peer = held.socket().remote_endpoint().is_some();
        let abandoned = held.abandoned;
        drop(held);
        self.settle(tuple, Cause::Time, now);
        let entry = self.connections.get_mut(tuple)?;
        // The peer's end may still have to be acknowledged: without that it would repeat it for a minute.
        let owes_ack = at.is_some_and(|at| at <= now + ACK_DELAY);
        entry.is_quiet = entry.state == State::TimeWait && !owes_ack;
        if !has_peer || (entry.is_quiet && abandoned) {
            // What is left to read, the stream has.
            self.forget(tuple);
        } else if !entry.is_quiet {
            let at = at.map(|at| at.max(now + TIMER_MIN));
            let at = at.into_iter().chain(entry.ends_at).min();
            self.schedule(tuple, at);
        }
        None
    }

    /// A stream was read from, written to or dropped.
    pub(super) fn attend(&mut self, tuple: &FourTuple, now: Instant) {
        let Some(entry) = self.connections.get(tuple) else { return };
        entry.connection.take_touch();
        self.settle(tuple, Cause::Time, now);
        self.mark(tuple);
    }

    /// A path does not carry packets as long as the mesh's.
    pub(super) fn narrow(&mut self, tuple: FourTuple) {
        if let Some(entry) = self.connections.get_mut(&tuple) {
            // What was lost is repeated in shorter segments.
            entry.is_narrow = true;
        }
    }

    /// Whoever is to be connected to cannot be reached. Established connections outlast such news (RFC 1122 §4.2.3.9).
    pub(super) fn give_up(&mut self, tuple: &FourTuple) {
        let Some(entry) = self.connections.get_mut(tuple) else { return };
        if entry.state != State::SynSent {
            return;
        }
        let opening = entry.opening.take();
        entry.connection.lock().socket().abort();
        self.forget(tuple);
        if let Some(opening) = opening {
            opening.fail(ConnectError::Unreachable);
        }
    }

    /// Looks at the connections whose time has come.
    pub(super) fn fire(&mut self, now: Instant) {
        while let Some(&(at, tuple)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, tuple));
            let Some(entry) = self.connections.get_mut(&tuple) else { continue };
            entry.scheduled = None;
            if entry.ends_at.is_some_and(|ends_at| ends_at <= now) {
                entry.connection.lock().socket().abort();
            }
            self.mark(&tuple);
        }
    }

    /// Ends a connection without a word to its peer.
    pub(super) fn fail(&mut self, tuple: &FourTuple, failure: io::ErrorKind) {
        let Some(entry) = self.connections.get(tuple) else { return };
        entry.connection.lock().revoke(failure);
        self.forget(tuple);
    }

    /// Lets go of a connection. Its stream may still read what has arrived.
    pub(super) fn forget(&mut self, tuple: &FourTuple) {
        let Some(mut entry) = self.connections.remove(tuple) else { return };
        if let Some(at) = entry.scheduled {
            self.timers.remove(&(at, *tuple));
        }
        if let Some(opening) = self.conclude(&mut entry) {
            opening.fail(ConnectError::Ended);
        }
        self.shared.gauges.connections.store(self.connections.len() as u64, Ordering::Relaxed);
        self.departed.add(tuple, &entry);
    }

    /// Draws the consequences of a connection's state.
    fn settle(&mut self, tuple: &FourTuple, cause: Cause, now: Instant) {
        let Some(entry) = self.connections.get_mut(tuple) else { return };
        let mut held = entry.connection.lock();
        let before = std::mem::replace(&mut entry.state, held.socket().state());
        let state = entry.state;
        if held.abandoned {
            entry.ends_at = orphan(held.socket(), entry.ends_at, now);
            entry.state = held.socket().state();
        } else if state == State::Closed
            && !matches!(before, State::Closed | State::LastAck | State::TimeWait)
        {
            held.failure.get_or_insert(cause.failure());
        }
        let Some(opening) = &entry.opening else {
            return keep_alive(held.socket());
        };
        match state {
            State::SynSent | State::SynReceived => {
                if opening.is_given_up() {
                    held.socket().abort();
                }
                return;
            }
            State::Listen | State::Closed => {}
            _ => {
                held.socket().set_timeout(Some(SILENCE_TIMEOUT));
                held.socket().set_congestion_control(CongestionControl::None);
            }
        }
        drop(held);
        self.announce(tuple, state, cause);
    }

    /// Tells whoever waits for a connection that it is there, or why not.
    fn announce(&mut self, tuple: &FourTuple, state: State, cause: Cause) {
        let Some(mut entry) = self.connections.remove(tuple) else { return };
        let opening = self.conclude(&mut entry);
        let connection = Arc::clone(&entry.connection);
        self.connections.insert(*tuple, entry);
        let Some(opening) = opening else { return };
        match (state, cause) {
            (State::Listen | State::Closed, Cause::Packet) => opening.fail(ConnectError::Reset),
            (State::Listen | State::Closed, Cause::Time) => opening.fail(ConnectError::TimedOut),
            _ => {
                let counter = match opening {
                    Opening::Accept(_) => &self.shared.gauges.accepted,
                    Opening::Connect(_) => &self.shared.gauges.connected,
                };
                add(counter, 1);
                opening.succeed(Stream::new(Arc::clone(&self.shared), connection));
            }
        }
    }

    /// A connection is no longer being opened.
    fn conclude(&mut self, entry: &mut Entry) -> Option<Opening> {
        let opening = entry.opening.take()?;
        if matches!(opening, Opening::Accept(_)) {
            self.half_open -= 1;
            self.shared.gauges.half_open.store(self.half_open as u64, Ordering::Relaxed);
            if let Some(of_peer) = entry.peer.and_then(|peer| self.peers.get_mut(&peer)) {
                of_peer.half_open -= 1;
            }
        }
        Some(opening)
    }

    fn insert(&mut self, tuple: FourTuple, entry: Entry) {
        self.connections.insert(tuple, entry);
        self.shared.gauges.connections.store(self.connections.len() as u64, Ordering::Relaxed);
        self.shared.gauges.half_open.store(self.half_open as u64, Ordering::Relaxed);
    }

    fn listener_of(&self, tuple: &FourTuple) -> Option<TcpPort> {
        let ports = self.shared.ports();
        let on = |address| Port { address, port: tuple.local.port() };
        ports.tcp.get(&on(Some(tuple.local.ip()))).or_else(|| ports.tcp.get(&on(None))).cloned()
    }

    fn mark(&mut self, tuple: &FourTuple) {
        if let Some(entry) = self.connections.get_mut(tuple)
            && !std::mem::replace(&mut entry.is_ready, true)
        {
            self.ready.push_back(*tuple);
        }
    }

    /// Has a connection looked at; one that will be looked at earlier anyway stays where it is.
    fn schedule(&mut self, tuple: &FourTuple, at: Option<Instant>) {
        let (Some(at), Some(entry)) = (at, self.connections.get_mut(tuple)) else { return };
        match entry.scheduled {
            Some(before) if before <= at => return,
            Some(before) => self.timers.remove(&(before, *tuple)),
            None => false,
        };
        entry.scheduled = Some(at);
        self.timers.insert((at, *tuple));
    }
}

/// smoltcp's window grows by one segment for each acknowledgement, however much that is for: receivers that join
/// packets (GRO) acknowledge a whole train at once, and the window would grow by a segment in a round trip. One that is for
/// many is therefore shown as the several that it stands for (RFC 3465 §2.1). All are for no more than `queued` bytes
/// and our end.
fn steps(before: u32, acknowledged: u32, queued: usize) -> impl Iterator<Item = u32> {
    let bytes = acknowledged.wrapping_sub(before);
    let is_fresh = usize::try_from(bytes).is_ok_and(|bytes| bytes <= queued + 1);
    let step = ACK_STEP.max(bytes / ACK_STEPS_MAX);
    let steps = if is_fresh { bytes.saturating_sub(1) / step } else { 0 };
    (1..=steps).map(move |number| before.wrapping_add(number * step))
}

impl Opening {
    fn is_given_up(&self) -> bool {
        match self {
            // The SYN is answered all the same: a listener that is gone lets go of its connections when it has them.
            Self::Accept(_) => false,
            Self::Connect(answer) => answer.is_closed(),
        }
    }

    /// Whoever has gone away meanwhile drops the stream, which closes it.
    fn succeed(self, stream: Stream) {
        match self {
            Self::Accept(permit) => drop(permit.send(stream)),
            Self::Connect(answer) => drop(answer.send(Ok(stream))),
        }
    }

    fn fail(self, error: ConnectError) {
        match self {
            Self::Accept(permit) => drop(permit),
            Self::Connect(answer) => drop(answer.send(Err(error))),
        }
    }
}

impl Cause {
    fn failure(self) -> io::ErrorKind {
        match self {
            Self::Packet => io::ErrorKind::ConnectionReset,
            Self::Time => io::ErrorKind::TimedOut,
        }
    }
}

/// Asks sooner after a peer that has yet to acknowledge something: smoltcp repeats neither an end that was lost before three
/// duplicate acknowledgements nor what was lost as the window shut, until the peer has been asked.
fn keep_alive(socket: &mut Socket<'_>) {
    let is_owed = socket.send_queue() > 0
        || matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
    let wanted = if is_owed { KEEP_ALIVE_OWED } else { KEEP_ALIVE };
    if socket.keep_alive() != Some(wanted) {
        socket.set_keep_alive(Some(wanted));
    }
}

/// A connection whose stream is gone delivers what was written, but not for ever; its latest end.
fn orphan(socket: &mut Socket<'_>, ends_at: Option<Instant>, now: Instant) -> Option<Instant> {
    if ends_at.is_none() {
        socket.set_timeout(Some(ORPHAN_SILENCE));
    }
    // Bytes for nobody (RFC 9293 §3.6, RFC 2525 §2.17).
    if socket.recv_queue() > 0 && !matches!(socket.state(), State::TimeWait | State::Closed) {
        socket.abort();
    }
    let latest = ends_at.unwrap_or(now + ORPHAN_MAX);
    // Our end is acknowledged: nothing is owed any more.
    let all_said = socket.state() == State::FinWait2;
    Some(if all_said { latest.min(now + FIN_WAIT) } else { latest })
}

/// [`Departed`] are not looked through for fewer.
const DEPARTED_MIN: usize = 64;
/// Payload up to which an acknowledgement may wait for an answer to ride on.
const SMALL_PAYLOAD: usize = 1024;
/// Bytes of one step of [`steps`]: about a segment.
const ACK_STEP: u32 = 1368;
/// Steps of one acknowledgement: a train of 45 segments has so many.
const ACK_STEPS_MAX: u32 = 48;
/// Segments that may be sent before the first of them is acknowledged (RFC 6928). smoltcp begins with two: its control
/// begins when these are out.
const FIRST_FLIGHT: u8 = 10;
/// Packets up to this length carry no payload worth counting: headers with selective acknowledgements.
const SHORT_PACKET: usize = 100;
/// How long it waits: an answer of a server nearby takes less.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// For the last packet of a handshake that a peer began.
const HALF_OPEN_TIMEOUT: smoltcp::time::Duration = smoltcp_time(Duration::from_secs(20));
/// For the answer to a SYN of ours.
const CONNECT_TIMEOUT: smoltcp::time::Duration = smoltcp_time(Duration::from_secs(60));
/// As the entry points' kernel sockets; finds peers that vanished.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp_time(Duration::from_secs(180));
/// The same while the peer has yet to acknowledge something.
const KEEP_ALIVE_OWED: smoltcp::time::Duration = smoltcp_time(Duration::from_secs(15));
/// Nothing heard for so long, keep-alives included, ends a connection.
const SILENCE_TIMEOUT: smoltcp::time::Duration = smoltcp_time(Duration::from_secs(600));
/// The same where nobody holds the stream any more.
const ORPHAN_SILENCE: smoltcp::time::Duration = smoltcp_time(Duration::from_secs(60));
/// What nobody holds any more may take so long to deliver, however often the peer says that it has no room.
const ORPHAN_MAX: Duration = Duration::from_secs(600);
/// For the peer's end after ours, where nobody waits for it (Linux: `tcp_fin_timeout`).
const FIN_WAIT: Duration = Duration::from_secs(60);
/// Least time between two looks at a connection that has nothing to send: never a busy loop.
const TIMER_MIN: Duration = Duration::from_millis(1);
