//! [`Session`] by `boringtun::noise::Tunn`, with what it lacks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use super::shadow::Shadow;
use super::{DATA_HEADER, DATA_OVERHEAD, HANDSHAKE_MAX, INDEX_MAX, Reply, Session, Tick};
use crate::drops::DropReason;
use crate::keys::{PresharedKey, PrivateKey, PublicKey};

/// boringtun's tunnel and the shadow of its timers.
pub(crate) struct NoiseSession {
    tunn: Tunn,
    shadow: Shadow,
    connected: bool,
    /// When an initiation of the peer overtook ours.
    overtaken: Option<Instant>,
    /// When the latest handshake was complete on both sides.
    completed: Option<Instant>,
    latency: Option<Duration>,
    /// Our index of a session whose initiator has not confirmed it yet.
    unconfirmed: Option<u32>,
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
            shadow: Shadow::new(now),
            connected: false,
            overtaken: None,
            completed: None,
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
        self.shadow.last_received()
    }

    /// When the last message went.
    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.shadow.last_sent()
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
        self.shadow.unanswered_since()
    }

    /// Whether a keepalive should renew the session, as data would (Rekey-After-Time): boringtun lets a session that only
    /// keeps alive run out, and the peers lose each other until the next keepalive.
    pub(crate) fn is_due_for_renewal(&self, now: Instant) -> bool {
        self.shadow.is_due_for_renewal(now)
    }

    /// Whether the data message with our index `index` is the first of a session that the peer began.
    pub(crate) fn confirms(&mut self, index: u32, now: Instant) -> bool {
        let confirmed = self.unconfirmed == Some(index);
        if confirmed {
            self.unconfirmed = None;
            self.completed = Some(now);
            // An initiator confirms at once, with data or an empty message.
            self.latency = self.shadow.established().map(|response_sent| now.duration_since(response_sent));
        }
        confirmed
    }

    /// Lets boringtun's timers run, held or not.
    fn update_timers(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Tick {
        if out.len() < HANDSHAKE_MAX {
            return Tick::Nothing;
        }
        let result = self.tunn.update_timers(out);
        self.shadow.note_update(now);
        if self.shadow.is_outlived(now) {
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
            Tick::Initiation(_) => self.shadow.note_initiation(jitter, now),
            Tick::Keepalive(_) => self.shadow.note_sent(now),
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
        let ended = self.connected || self.shadow.is_initiating();
        self.connected = false;
        self.shadow.note_expiry();
        if ended { Tick::Expired } else { Tick::Nothing }
    }

    fn take_response(&mut self, len: usize, now: Instant) -> Reply {
        if let Some(sent) = self.shadow.note_session(true, now) {
            self.latency = Some(now.duration_since(sent));
        }
        self.overtaken = None;
        self.completed = Some(now);
        self.connected = true;
        Reply::Established(len)
    }

    fn take_initiation(&mut self, response: &[u8], now: Instant) -> Reply {
        // boringtun does not repeat its own initiation any more, but would still take the response to it.
        self.overtaken = self.shadow.note_session(false, now).map(|_| now);
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
        self.shadow.is_initiating()
    }

    fn awaits_response(&self, now: Instant) -> bool {
        self.shadow.is_initiating() || self.overtaken.is_some_and(|at| Shadow::may_answer(at, now))
    }

    fn awaits_confirmation(&self, now: Instant) -> bool {
        self.unconfirmed.is_some() && self.shadow.age(now).is_some_and(|age| age < CONFIRMATION_MAX)
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
        self.shadow.note_sent(now);
        if !packet.is_empty() {
            self.shadow.note_sent_data(now);
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
        if self.shadow.is_outlived(now) && !self.connected {
            return Err(DropReason::NoSession);
        }
        let opened = match self.tunn.decapsulate(None, datagram, packet) {
            TunnResult::Done => 0,
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => packet.len(),
            TunnResult::Err(error) => return Err(data_reason(&error)),
            TunnResult::WriteToNetwork(_) => return Err(DropReason::InvalidData),
        };
        self.shadow.note_received(now);
        if opened > 0 {
            self.shadow.note_received_data(now);
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
        if !self.connected && !self.shadow.is_initiating() {
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
        if self.shadow.is_initiating() || out.len() < HANDSHAKE_MAX {
            return None;
        }
        // The timers of a peer without session stand still until now; without this the attempt would look old at once.
        if let Tick::Initiation(len) = self.update_timers(out, jitter, now) {
            return Some(len);
        }
        match self.tunn.format_handshake_initiation(out, false) {
            TunnResult::WriteToNetwork(initiation) => {
                let len = initiation.len();
                self.shadow.note_initiation(jitter, now);
                Some(len)
            }
            _ => None,
        }
    }

    fn handle_timeout(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Tick {
        let tick =
            if self.shadow.is_held(now) { Tick::Nothing } else { self.update_timers(out, jitter, now) };
        if tick != Tick::Nothing {
            return tick;
        }
        if self.connected && !self.shadow.is_initiating() && self.shadow.is_outlived(now) {
            self.connected = false;
            return Tick::Expired;
        }
        if self.shadow.owes_keepalive(now) {
            return self.encrypt(&[], out, now).map_or(Tick::Nothing, Tick::Keepalive);
        }
        Tick::Nothing
    }

    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let live = self.connected || self.shadow.is_initiating() || self.unconfirmed.is_some();
        self.shadow.poll_timeout(live, now)
    }
}

/// First counter that is refused: far beyond what a session can use (2^60 messages, WireGuard section 6.1), far
/// below where sums inside boringtun overflow.
const COUNTER_MAX: u64 = 1 << 63;

/// How long a peer's confirmation is waited for before a handshake of our own is begun.
const CONFIRMATION_MAX: Duration = Duration::from_secs(1);

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
