//! What boringtun's timers will do, and when they may.
//!
//! boringtun reads its own clock (boot time) and stamps messages with the moment of its last `update_timers`. This mirrors
//! those stamps from `now`, with a margin, beside what really happened, and says when `update_timers` has to wait because it
//! would do what is not due.

use std::time::{Duration, Instant};

/// Stamps as boringtun has them, and as they should be.
pub(super) struct Shadow {
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
    /// When the latest session was agreed on, confirmed or not, and whether it was begun here.
    established: Option<(Instant, bool)>,
    last_received: Option<Instant>,
    last_sent: Option<Instant>,
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

impl Shadow {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            clock: now,
            received_stamp: now,
            data_sent_stamp: None,
            unanswered_since: None,
            owes_answer_since: None,
            last_data: None,
            initiation: None,
            established: None,
            last_received: None,
            last_sent: None,
        }
    }

    pub(super) fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    pub(super) fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    pub(super) fn is_initiating(&self) -> bool {
        self.initiation.is_some()
    }

    /// When the latest session was agreed on.
    pub(super) fn established(&self) -> Option<Instant> {
        self.established.map(|(at, _)| at)
    }

    /// Age of the latest session.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        self.established().map(|at| now.duration_since(at))
    }

    /// Whether the session is too old to be used (Reject-After-Time); boringtun sees to it only in `update_timers`.
    pub(super) fn is_outlived(&self, now: Instant) -> bool {
        self.age(now).is_some_and(|age| age >= REJECT_AFTER_TIME)
    }

    /// Whether the session was begun here and is as old as one may be that goes on in use (Rekey-After-Time).
    pub(super) fn is_due_for_renewal(&self, now: Instant) -> bool {
        let begun_here = self.established.is_some_and(|(_, begun_here)| begun_here);
        begun_here && self.initiation.is_none() && self.age(now).is_some_and(|age| age >= REKEY_AFTER_TIME)
    }

    /// Since when the peer owes an answer: to data, or to the first initiation of an attempt.
    pub(super) fn unanswered_since(&self) -> Option<Instant> {
        let attempt = self.initiation.map(|initiation| initiation.began);
        match (attempt, self.unanswered_since) {
            (Some(attempt), Some(data)) => Some(attempt.min(data)),
            (attempt, data) => attempt.or(data),
        }
    }

    /// Whether data came that has not been answered for as long as it may be (WireGuard section 6.5). boringtun sends a
    /// keepalive only where the data came at least a tick after what was sent last, so that peers would take the sender of a
    /// quickly answered request for dead.
    pub(super) fn owes_keepalive(&self, now: Instant) -> bool {
        self.owes_answer_since.is_some_and(|since| now.duration_since(since) >= KEEPALIVE_TIMEOUT)
    }

    /// Whether a response that comes after the peer's own initiation did, at `overtaken`, is still one to ours.
    pub(super) fn may_answer(overtaken: Instant, now: Instant) -> bool {
        now.duration_since(overtaken) < REKEY_TIMEOUT
    }

    pub(super) fn note_update(&mut self, now: Instant) {
        self.clock = now;
    }

    /// An authenticated message came.
    pub(super) fn note_received(&mut self, now: Instant) {
        self.received_stamp = self.clock;
        self.unanswered_since = None;
        self.last_received = Some(now);
    }

    /// It held data.
    pub(super) fn note_received_data(&mut self, now: Instant) {
        self.last_data = Some(now);
        self.owes_answer_since.get_or_insert(now);
    }

    /// A message went.
    pub(super) fn note_sent(&mut self, now: Instant) {
        self.last_sent = Some(now);
        self.owes_answer_since = None;
    }

    /// It held data.
    pub(super) fn note_sent_data(&mut self, now: Instant) {
        self.data_sent_stamp = Some(self.clock);
        self.last_data = Some(now);
        self.unanswered_since.get_or_insert(now);
    }

    pub(super) fn note_initiation(&mut self, jitter: Duration, now: Instant) {
        let began = self.initiation.map_or(now, |initiation| initiation.began);
        self.initiation = Some(Initiation { began, sent: now, jitter });
        self.note_sent(now);
    }

    /// A session was agreed on; when the initiation on its way, if any, had been sent.
    pub(super) fn note_session(&mut self, begun_here: bool, now: Instant) -> Option<Instant> {
        self.note_received(now);
        self.note_sent(now);
        self.established = Some((now, begun_here));
        self.initiation.take().map(|initiation| initiation.sent)
    }

    /// boringtun has forgotten everything.
    pub(super) fn note_expiry(&mut self) {
        self.initiation = None;
        self.established = None;
        self.unanswered_since = None;
        self.data_sent_stamp = None;
        self.received_stamp = self.clock;
    }

    /// Whether `update_timers` has to wait, because it would send an initiation that is not due.
    pub(super) fn is_held(&self, now: Instant) -> bool {
        self.hold_until(now).is_some_and(|until| now < until)
    }

    /// When to look at the timers next, of a session that is alive (`live`) or was.
    pub(super) fn poll_timeout(&self, live: bool, now: Instant) -> Option<Instant> {
        if !live {
            // Nothing but wiping the last keys (WireGuard section 6.3).
            return self.established().map(|at| at + REJECT_AFTER_TIME * 3);
        }
        let period = if self.last_sent.max(self.last_received) >= Some(self.clock) { BUSY } else { QUIET };
        let next = now + period;
        // A repetition comes exactly when its jitter says; everything else may be late by a period.
        match self.hold_until(next) {
            Some(until) if self.initiation.is_some() => Some(until.max(now)),
            _ => Some(next),
        }
    }

    /// Another defect of boringtun: an initiator that has used its session at all renews it at 120 s (165 s if it only
    /// received), though nobody uses it any more; WireGuard section 6.2 does so only when data is sent or comes then. The
    /// timers are kept from running until data passes again, or until the keys are to be wiped.
    fn idle_until(&self, now: Instant) -> Option<Instant> {
        let (established, _) = self.established.filter(|(_, begun_here)| *begun_here)?;
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
}

// WireGuard section 6.1.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Keepalive-Timeout and Rekey-Timeout.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest jitter of a retransmission.
pub(crate) const JITTER_MAX: Duration = Duration::from_millis(333);

/// Age from which a session's timers are never held: Reject-After-Time less the longest hold.
const HOLD_AGE_MAX: Duration = Duration::from_secs(165);
/// How much boringtun's clock may be ahead of `now`.
const MARGIN: Duration = Duration::from_millis(100);
/// Between two looks at the timers of a session in use, and of a quiet one; the shortest timer is 5 s.
const BUSY: Duration = Duration::from_millis(250);
const QUIET: Duration = Duration::from_secs(1);
