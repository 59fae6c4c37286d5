//! One peer's cryptographic session: handshake, keys, timers.
//!
//! [`Session`] is all the engine knows. [`NoiseSession`] implements it with `boringtun::noise`, whose defects are
//! countered here from outside; each counter-measure says which. The crate reads its own clock (boot time), so what is
//! decided here from `now` mirrors what it will decide from its own, with a margin.

use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use crate::drops::DropReason;
use crate::keys::{PresharedKey, PrivateKey, PublicKey};

/// Keys and timers of one peer.
pub(crate) trait Session {
    /// Whether [`Self::encrypt`] would work.
    fn is_connected(&self) -> bool;
    /// Whether an initiation waits for its response, and will be repeated.
    fn is_initiating(&self) -> bool;
    /// Whether a response would be taken: also shortly after the peer's own initiation overtook ours.
    fn awaits_response(&self, now: Instant) -> bool;
    /// Whether a session has been agreed on that the peer will confirm any moment.
    fn awaits_confirmation(&self, now: Instant) -> bool;
    /// Seals `packet` (empty: a keepalive) into `datagram`, which holds [`DATA_OVERHEAD`] bytes more, and says how long
    /// the datagram is; `None` without a session.
    fn encrypt(&mut self, packet: &[u8], datagram: &mut [u8], now: Instant) -> Option<usize>;
    /// Opens a data message into `packet`, which is as long as the datagram less 16 bytes, and says how long the packet
    /// is; 0 is a keepalive.
    fn decrypt(&mut self, datagram: &[u8], packet: &mut [u8], now: Instant) -> Result<usize, DropReason>;
    /// Takes a handshake message whose first MAC is known to be right.
    fn handle_handshake(
        &mut self,
        datagram: &[u8],
        out: &mut [u8],
        now: Instant,
    ) -> Result<Reply, DropReason>;
    /// Writes an initiation to `out` unless one waits for its response.
    fn initiate(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Option<usize>;
    /// Does what time demands.
    fn handle_timeout(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Tick;
    /// When [`Self::handle_timeout`] should be called next; `None` while nothing can become due.
    fn poll_timeout(&self, now: Instant) -> Option<Instant>;
}

/// What a handshake message led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Nothing to send: a cookie was taken.
    Nothing,
    /// An initiation was accepted; its response has this length.
    Response(usize),
    /// A response was accepted: connected, and the keepalive that confirms it has this length.
    Established(usize),
}

/// What time led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    /// Nothing to send.
    Nothing,
    /// A handshake initiation of this length.
    Initiation(usize),
    /// A keepalive of this length.
    Keepalive(usize),
    /// The session or the attempt to get one ended.
    Expired,
}

/// `boringtun::noise::Tunn` and the shadow of its timers.
pub(crate) struct NoiseSession {
    tunn: Tunn,
    connected: bool,
    /// What `TimeCurrent` inside stands for: the moment of the last `update_timers`.
    clock: Instant,
    /// `clock` when the last authenticated message came: boringtun's `TimeLastPacketReceived`.
    received_stamp: Instant,
    /// `clock` when the last data message went: boringtun's `TimeLastDataPacketSent`.
    data_sent_stamp: Option<Instant>,
    /// When the first data since the last authenticated message went.
    unanswered_since: Option<Instant>,
    /// When the first data came that nothing has been sent after.
    owes_answer_since: Option<Instant>,
    /// When the last data went or came.
    last_data: Option<Instant>,
    initiation: Option<Initiation>,
    /// When an initiation of the peer overtook ours.
    overtaken: Option<Instant>,
    /// Whether the latest session was begun here.
    is_initiator: bool,
    /// When the latest session was agreed on, confirmed or not.
    established: Option<Instant>,
    /// When the latest handshake was complete on both sides.
    completed: Option<Instant>,
    last_received: Option<Instant>,
    last_sent: Option<Instant>,
    latency: Option<Duration>,
    /// Our index of a session whose initiator has not confirmed it yet.
    unconfirmed: Option<u32>,
}

/// An initiation on its way.
#[derive(Debug, Clone, Copy)]
struct Initiation {
    /// When the first of this attempt went.
    began: Instant,
    sent: Instant,
    /// Added to the retransmission timeout (WireGuard section 6.1: 0 to 333 ms); boringtun has none (defect 3).
    jitter: Duration,
}

impl NoiseSession {
    /// A session that has not begun. `index` has 24 bits and is random, so that indices cannot be guessed (defect 12).
    pub(crate) fn new(
        private: &PrivateKey,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
        index: u32,
        limiter: Arc<RateLimiter>,
        now: Instant,
    ) -> Self {
        debug_assert!(index <= INDEX_MAX, "an index has 24 bits");
        // Keepalives are the engine's own: boringtun's would queue a packet and go on a fixed grid.
        let tunn = Tunn::new(
            private.secret().clone(),
            peer.x25519(),
            preshared.map(PresharedKey::to_bytes),
            None,
            index,
            Some(limiter),
        );
        Self {
            tunn,
            connected: false,
            clock: now,
            received_stamp: now,
            data_sent_stamp: None,
            unanswered_since: None,
            owes_answer_since: None,
            last_data: None,
            initiation: None,
            overtaken: None,
            is_initiator: false,
            established: None,
            completed: None,
            last_received: None,
            last_sent: None,
            latency: None,
            unconfirmed: None,
        }
    }

    /// When the latest handshake completed.
    pub(crate) fn completed(&self) -> Option<Instant> {
        self.completed
    }

    /// When the last authenticated message came.
    pub(crate) fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    /// When the last message went.
    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// Round trip of the last handshake.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// Share of data messages that never came, as boringtun estimates it from counters.
    pub(crate) fn loss(&self) -> f32 {
        self.tunn.stats().3
    }

    /// Since when the peer owes an answer: to data, or to the first initiation of an attempt.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        let attempt = self.initiation.map(|initiation| initiation.began);
        match (attempt, self.unanswered_since) {
            (Some(attempt), Some(data)) => Some(attempt.min(data)),
            (attempt, data) => attempt.or(data),
        }
    }

    /// Whether a keepalive should renew the session, as data would (Rekey-After-Time): boringtun lets a session that only
    /// keeps alive run out, and the peers lose each other until the next keepalive.
    pub(crate) fn is_due_for_renewal(&self, now: Instant) -> bool {
        self.is_initiator
            && self.initiation.is_none()
            && self.age(now).is_some_and(|age| age >= REKEY_AFTER_TIME)
    }

    /// Whether the data message with our index `index` is the first of a session that the peer began.
    pub(crate) fn confirms(&mut self, index: u32, now: Instant) -> bool {
        let confirmed = self.unconfirmed == Some(index);
        if confirmed {
            self.unconfirmed = None;
            self.completed = Some(now);
            // An initiator confirms at once, with data or an empty message.
            self.latency = self.established.map(|response_sent| now.duration_since(response_sent));
        }
        confirmed
    }

    fn note_received(&mut self, now: Instant) {
        self.received_stamp = self.clock;
        self.unanswered_since = None;
        self.last_received = Some(now);
    }

    fn note_sent(&mut self, now: Instant) {
        self.last_sent = Some(now);
        self.owes_answer_since = None;
    }

    fn note_initiation(&mut self, jitter: Duration, now: Instant) {
        let began = self.initiation.map_or(now, |initiation| initiation.began);
        self.initiation = Some(Initiation { began, sent: now, jitter });
        self.note_sent(now);
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        self.established.map(|at| now.duration_since(at))
    }

    /// Whether the session is too old to be used (Reject-After-Time); boringtun sees to it only in `update_timers`.
    fn is_outlived(&self, now: Instant) -> bool {
        self.age(now).is_some_and(|age| age >= REJECT_AFTER_TIME)
    }

    /// Whether `update_timers` has to wait, because it would send an initiation that is not due.
    fn is_held(&self, now: Instant) -> bool {
        self.hold_until(now).is_some_and(|until| now < until)
    }

    /// Another defect of boringtun: an initiator that has used its session at all renews it at 120 s (165 s if it only
    /// received), though nobody uses it any more; WireGuard section 6.2 does so only when data is sent or comes then. The
    /// timers are kept from running until data passes again, or until the keys are to be wiped.
    fn idle_until(&self, now: Instant) -> Option<Instant> {
        let established = self.established.filter(|_| self.is_initiator)?;
        let due = established + REKEY_AFTER_TIME - MARGIN;
        let idle = self.last_data.is_none_or(|at| at < due);
        (idle && now >= due).then_some(established + REJECT_AFTER_TIME * 3)
    }

    /// Until when `update_timers` must not be called.
    ///
    /// Defect 2: boringtun counts "no answer for 15 s" from the last message received, so that the first packet after a
    /// pause looks unanswered at once and costs a handshake. The timer is kept from running until 15 s after that packet
    /// (or until an answer). A session old enough to need new keys is not held.
    /// Defect 3: a retransmission waits for its jitter.
    fn hold_until(&self, now: Instant) -> Option<Instant> {
        if let Some(initiation) = self.initiation {
            let due = initiation.sent + REKEY_TIMEOUT;
            return (now + MARGIN >= due).then_some(due + initiation.jitter);
        }
        if let Some(until) = self.idle_until(now) {
            return Some(until);
        }
        let since = self.unanswered_since?;
        let young = self.age(now).is_some_and(|age| age < HOLD_AGE_MAX);
        let fires = self.data_sent_stamp.is_some_and(|sent| sent > self.received_stamp)
            && now + MARGIN >= self.received_stamp + ANSWER_TIMEOUT;
        (young && fires).then_some(since + ANSWER_TIMEOUT)
    }

    /// Lets boringtun's timers run, held or not.
    fn update_timers(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Tick {
        if out.len() < HANDSHAKE_MAX {
            return Tick::Nothing;
        }
        let result = self.tunn.update_timers(out);
        self.clock = now;
        if self.is_outlived(now) {
            self.unconfirmed = None;
        }
        let tick = match result {
            TunnResult::WriteToNetwork(message) if is_data(message) => Tick::Keepalive(message.len()),
            TunnResult::WriteToNetwork(message) => Tick::Initiation(message.len()),
            TunnResult::Err(_) => return self.expire(),
            _ => Tick::Nothing,
        };
        let was_connected = self.connected;
        self.refresh_connected();
        match tick {
            Tick::Initiation(_) => self.note_initiation(jitter, now),
            Tick::Keepalive(_) => self.note_sent(now),
            // The last session ran out with nothing on its way.
            Tick::Nothing if was_connected && !self.connected => return Tick::Expired,
            _ => {}
        }
        tick
    }

    fn refresh_connected(&mut self) {
        self.connected = self.tunn.time_since_last_handshake().is_some();
    }

    fn expire(&mut self) -> Tick {
        let ended = self.connected || self.initiation.is_some();
        self.connected = false;
        self.initiation = None;
        self.established = None;
        self.unanswered_since = None;
        self.data_sent_stamp = None;
        self.received_stamp = self.clock;
        if ended { Tick::Expired } else { Tick::Nothing }
    }

    fn take_response(&mut self, len: usize, now: Instant) -> Reply {
        if let Some(initiation) = self.initiation.take() {
            self.latency = Some(now.duration_since(initiation.sent));
        }
        self.note_received(now);
        self.overtaken = None;
        self.is_initiator = true;
        self.established = Some(now);
        self.completed = Some(now);
        self.connected = true;
        self.note_sent(now);
        Reply::Established(len)
    }

    fn take_initiation(&mut self, response: &[u8], now: Instant) -> Reply {
        // boringtun does not repeat its own initiation any more, but would still take the response to it.
        self.overtaken = self.initiation.take().map(|_| now);
        self.is_initiator = false;
        self.note_received(now);
        self.note_sent(now);
        self.established = Some(now);
        self.unconfirmed = response.get(4..8).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes);
        self.refresh_connected();
        Reply::Response(response.len())
    }
}

impl Session for NoiseSession {
    fn is_connected(&self) -> bool {
        self.connected
    }

    fn is_initiating(&self) -> bool {
        self.initiation.is_some()
    }

    fn awaits_response(&self, now: Instant) -> bool {
        self.initiation.is_some() || self.overtaken.is_some_and(|at| now.duration_since(at) < REKEY_TIMEOUT)
    }

    fn awaits_confirmation(&self, now: Instant) -> bool {
        self.unconfirmed.is_some() && self.age(now).is_some_and(|age| age < CONFIRMATION_MAX)
    }

    fn encrypt(&mut self, packet: &[u8], datagram: &mut [u8], now: Instant) -> Option<usize> {
        // boringtun panics on a short buffer and would queue without a session (defects 13 and the unbounded sizes of
        // its queue).
        if !self.connected || datagram.len() < (packet.len() + DATA_OVERHEAD).max(HANDSHAKE_MAX) {
            return None;
        }
        let TunnResult::WriteToNetwork(sealed) = self.tunn.encapsulate(packet, datagram) else {
            self.connected = false;
            return None;
        };
        let len = sealed.len();
        self.note_sent(now);
        if !packet.is_empty() {
            self.data_sent_stamp = Some(self.clock);
            self.last_data = Some(now);
            self.unanswered_since.get_or_insert(now);
        }
        Some(len)
    }

    fn decrypt(&mut self, datagram: &[u8], packet: &mut [u8], now: Instant) -> Result<usize, DropReason> {
        let len = datagram.len();
        let counter = datagram.get(8..16).and_then(|field| field.try_into().ok()).map(u64::from_le_bytes);
        let counter = counter.ok_or(DropReason::MalformedDatagram)?;
        if len < DATA_OVERHEAD || packet.len() < len - DATA_HEADER {
            return Err(DropReason::MalformedDatagram);
        }
        // Defect 11: boringtun adds to the counter without a check and knows no end of a session.
        if counter >= COUNTER_MAX {
            return Err(DropReason::CounterOverflow);
        }
        if self.is_outlived(now) && !self.connected {
            return Err(DropReason::NoSession);
        }
        let opened = match self.tunn.decapsulate(None, datagram, packet) {
            TunnResult::Done => 0,
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => packet.len(),
            TunnResult::Err(error) => return Err(data_reason(&error)),
            TunnResult::WriteToNetwork(_) => return Err(DropReason::InvalidData),
        };
        self.note_received(now);
        if opened > 0 {
            self.last_data = Some(now);
            self.owes_answer_since.get_or_insert(now);
        }
        if !self.connected {
            self.refresh_connected();
        }
        Ok(opened)
    }

    fn handle_handshake(
        &mut self,
        datagram: &[u8],
        out: &mut [u8],
        now: Instant,
    ) -> Result<Reply, DropReason> {
        if out.len() < HANDSHAKE_MAX {
            return Err(DropReason::InvalidHandshake);
        }
        if !self.connected && self.initiation.is_none() {
            // As in `initiate`; what this might send is superseded by the handshake at hand.
            self.update_timers(out, Duration::ZERO, now);
        }
        match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::Done => Ok(Reply::Nothing),
            TunnResult::WriteToNetwork(reply) if is_data(reply) => {
                let len = reply.len();
                Ok(self.take_response(len, now))
            }
            TunnResult::WriteToNetwork(reply) => {
                let reply: &[u8] = reply;
                Ok(self.take_initiation(reply, now))
            }
            _ => Err(DropReason::InvalidHandshake),
        }
    }

    fn initiate(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Option<usize> {
        if self.initiation.is_some() || out.len() < HANDSHAKE_MAX {
            return None;
        }
        // The timers of a peer without session stand still until now; without this the attempt would look old at once.
        if let Tick::Initiation(len) = self.update_timers(out, jitter, now) {
            return Some(len);
        }
        match self.tunn.format_handshake_initiation(out, false) {
            TunnResult::WriteToNetwork(initiation) => {
                let len = initiation.len();
                self.note_initiation(jitter, now);
                Some(len)
            }
            _ => None,
        }
    }

    fn handle_timeout(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Tick {
        let tick = if self.is_held(now) { Tick::Nothing } else { self.update_timers(out, jitter, now) };
        if tick != Tick::Nothing {
            return tick;
        }
        if self.connected && self.initiation.is_none() && self.is_outlived(now) {
            self.connected = false;
            return Tick::Expired;
        }
        // WireGuard section 6.5. boringtun does so only where the data came at least a tick after what was sent last, so that
        // peers would take the sender of a quickly answered request for dead.
        if self.owes_answer_since.is_some_and(|since| now.duration_since(since) >= KEEPALIVE_TIMEOUT) {
            return self.encrypt(&[], out, now).map_or(Tick::Nothing, Tick::Keepalive);
        }
        Tick::Nothing
    }

    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        if !self.connected && self.initiation.is_none() && self.unconfirmed.is_none() {
            // Nothing but wiping the last keys (WireGuard section 6.3).
            return self.established.map(|at| at + REJECT_AFTER_TIME * 3);
        }
        let period = if self.last_sent.max(self.last_received) >= Some(self.clock) { BUSY } else { QUIET };
        let next = now + period;
        // A repetition comes exactly when its jitter says; everything else may be late by a period.
        match self.hold_until(next) {
            Some(until) if self.initiation.is_some() => Some(until.max(now)),
            _ => Some(next),
        }
    }
}

/// Bytes that a data message adds to a packet: header and tag.
pub(crate) const DATA_OVERHEAD: usize = 32;
/// Bytes before the ciphertext.
pub(crate) const DATA_HEADER: usize = 16;
/// Longest handshake message; every output buffer is at least this long.
pub(crate) const HANDSHAKE_MAX: usize = 148;
/// Largest index of a peer: boringtun keeps 8 of the 32 bits for the number of the session.
pub(crate) const INDEX_MAX: u32 = (1 << 24) - 1;
/// First counter that is refused: far beyond what a session can use (2^60 messages, WireGuard section 6.1), far
/// below where sums inside boringtun overflow.
const COUNTER_MAX: u64 = 1 << 63;

// WireGuard section 6.1.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Keepalive-Timeout and Rekey-Timeout.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest jitter of a retransmission.
pub(crate) const JITTER_MAX: Duration = Duration::from_millis(333);

/// How long a peer's confirmation is waited for before a handshake of our own is begun.
const CONFIRMATION_MAX: Duration = Duration::from_secs(1);
/// Age from which a session's timers are never held: Reject-After-Time less the longest hold.
const HOLD_AGE_MAX: Duration = Duration::from_secs(165);
/// How much boringtun's clock may be ahead of `now`.
const MARGIN: Duration = Duration::from_millis(100);
/// Between two looks at the timers of a session in use, and of a quiet one; the shortest timer is 5 s.
const BUSY: Duration = Duration::from_millis(250);
const QUIET: Duration = Duration::from_secs(1);

fn is_data(message: &[u8]) -> bool {
    message.first() == Some(&4)
}

fn data_reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replay,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => DropReason::NoSession,
        WireGuardError::InvalidPacket => DropReason::MalformedPacket,
        _ => DropReason::InvalidData,
    }
}
