//! How well a path works, as two adit nodes measure it: round trip, loss on the way out, and the largest packet that
//! arrives. Of a peer that does not answer probes only the round trip of handshakes is known.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::control::{CONTROL_LEN, Control, Kind};

/// What is known of one peer's path.
pub(crate) struct Health {
    /// Names our counters to the peer.
    epoch: u32,
    /// Whether the peer has ever answered a probe: it is an adit.
    speaks: bool,
    /// Sessions in which one that never answered was asked.
    asked: u32,
    pending: VecDeque<Pending>,
    next_probe: Option<Instant>,
    last_used: Option<Instant>,
    latency: Option<Duration>,
    /// When the latest small probe that was answered had been sent.
    passed: Option<Instant>,
    loss: Option<f32>,
    /// The peer's epoch and count, and our own count, as of its latest answer.
    counted: Option<(u32, u64, u64)>,
    search: Search,
    answers: Answers,
}

/// A probe on its way.
#[derive(Debug, Clone, Copy)]
struct Pending {
    id: u64,
    sent_at: Instant,
    /// Datagrams that had been sent to the peer, this one included.
    sent: u64,
    len: usize,
}

/// Search for the largest packet that arrives, as RFC 8899 describes it, with a few sizes.
#[derive(Debug, Clone, Copy, Default)]
struct Search {
    /// Size on trial, as a place in [`Search::size`]; `None` while none is.
    step: Option<usize>,
    failures: u32,
    next: Option<Instant>,
}

/// Answers that may be given, so that a peer cannot make us send at will.
#[derive(Debug, Clone, Copy)]
struct Answers {
    left: u32,
    since: Option<Instant>,
}

/// What an answer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learnt {
    /// Round trip of a probe.
    Latency(Duration),
    /// Packets of this size arrive; larger ones than it do not.
    Limit(usize),
    /// Packets of the largest size arrive.
    Unlimited,
}

impl Health {
    pub(crate) fn new(epoch: u32) -> Self {
        Self {
            epoch,
            speaks: false,
            asked: 0,
            pending: VecDeque::new(),
            next_probe: None,
            last_used: None,
            latency: None,
            passed: None,
            loss: None,
            counted: None,
            search: Search::default(),
            answers: Answers { left: ANSWERS, since: None },
        }
    }

    /// Names our counters, and our lanes, to the peer.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(crate) fn speaks(&self) -> bool {
        self.speaks
    }

    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// Share of our datagrams that did not reach the peer.
    pub(crate) fn loss(&self) -> Option<f32> {
        self.loss
    }

    /// Notes that somebody uses the session: only then is it probed.
    #[inline]
    pub(crate) fn note_use(&mut self, now: Instant) {
        self.last_used = Some(now);
    }

    /// A session began: whether the peer speaks, and what the path carries, is asked anew.
    pub(crate) fn begin(&mut self, now: Instant) {
        if self.speaks {
            self.next_probe = Some(now);
            self.search = Search { step: Some(0), failures: 0, next: Some(now) };
            return;
        }
        // A stock peer notes each question as a packet from a wrong source: it is asked in its first sessions and then about
        // once an hour, in case it was replaced by an adit.
        self.asked = self.asked.wrapping_add(1);
        self.next_probe =
            (self.asked <= ASKED_FIRST || self.asked.is_multiple_of(ASKED_EVERY)).then_some(now);
    }

    /// The path changed: what was measured on the other means nothing.
    pub(crate) fn forget_path(&mut self, now: Instant) {
        (self.latency, self.loss, self.counted) = (None, None, None);
        self.begin(now);
    }

    /// Length of the probe that is due, if one is. `limit` is the largest packet for this peer.
    pub(crate) fn due(&mut self, limit: usize, now: Instant) -> Option<usize> {
        self.expire(limit, now);
        if self.pending.len() >= PENDING_MAX {
            return None;
        }
        if self.next_probe.is_some_and(|at| at <= now) {
            let used = self.last_used.is_some_and(|at| now.duration_since(at) < USED_WITHIN);
            // To one that never answered only one probe goes in a session.
            self.next_probe = self.speaks.then_some(now + INTERVAL);
            if used || !self.speaks {
                return Some(CONTROL_LEN);
            }
        }
        let step = self.search.step?;
        let waits = self.pending.iter().any(|pending| pending.len > CONTROL_LEN);
        let used = self.last_used.is_some_and(|at| now.duration_since(at) < USED_WITHIN);
        if waits || !used || self.search.next.is_some_and(|at| at > now) {
            return None;
        }
        // A small one goes behind it: only if that arrives, the size is to blame.
        self.next_probe = Some(now);
        Search::size(step, limit)
    }

    /// The probe itself, of the length that [`Self::due`] named. `sent` counts datagrams to the peer, this one included.
    pub(crate) fn probe(&mut self, id: u64, len: usize, sent: u64, received: u64, now: Instant) -> Control {
        self.pending.push_back(Pending { id, sent_at: now, sent, len });
        Control { kind: Kind::Probe, id, epoch: self.epoch, received }
    }

    /// The answer to a probe, if one may be given.
    pub(crate) fn answer(&mut self, probe: Control, received: u64, now: Instant) -> Option<Control> {
        self.may_answer(now).then_some(())?;
        Some(Control { kind: Kind::Answer, id: probe.id, epoch: self.epoch, received })
    }

    /// Whether one more answer of any kind may go in this second.
    pub(crate) fn may_answer(&mut self, now: Instant) -> bool {
        if self.answers.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            self.answers = Answers { left: ANSWERS, since: Some(now) };
        }
        let left = self.answers.left.checked_sub(1);
        self.answers.left = left.unwrap_or_default();
        left.is_some()
    }

    /// Takes an answer; `None` if nobody asked.
    pub(crate) fn learn(&mut self, answer: Control, limit: usize, now: Instant) -> Option<Learnt> {
        let at = self.pending.iter().position(|pending| pending.id == answer.id)?;
        let pending = self.pending.remove(at)?;
        let first = !self.speaks;
        self.speaks = true;
        if first {
            self.next_probe = Some(now + INTERVAL);
            self.search = Search { step: Some(0), failures: 0, next: Some(now) };
        }
        if pending.len > CONTROL_LEN {
            return Some(self.finish_search(pending.len, limit, now));
        }
        let latency = now.duration_since(pending.sent_at);
        // As TCP smooths it (RFC 6298).
        let smoothed = self.latency.map_or(latency, |old| (old * 7 + latency) / 8);
        self.latency = Some(smoothed);
        self.passed = self.passed.max(Some(pending.sent_at));
        self.count_loss(answer, pending.sent);
        Some(Learnt::Latency(latency))
    }

    fn count_loss(&mut self, answer: Control, sent: u64) {
        if let Some((epoch, received_before, sent_before)) = self.counted
            && epoch == answer.epoch
        {
            let sent = sent.saturating_sub(sent_before);
            let received = answer.received.saturating_sub(received_before);
            if sent < LOSS_SAMPLE_MIN {
                return;
            }
            let lost = 1.0 - (received as f32 / sent as f32).min(1.0);
            self.loss = Some(self.loss.map_or(lost, |old| old * 0.75 + lost * 0.25));
        }
        self.counted = Some((answer.epoch, answer.received, sent));
    }

    fn finish_search(&mut self, len: usize, limit: usize, now: Instant) -> Learnt {
        self.search.failures = 0;
        if len >= Search::size(0, limit).unwrap_or(len) {
            // Looked at again, because a path may become worse without telling.
            self.search = Search { step: Some(0), failures: 0, next: Some(now + VERIFY_INTERVAL) };
            return Learnt::Unlimited;
        }
        self.search = Search { step: Some(0), failures: 0, next: Some(now + RAISE_INTERVAL) };
        Learnt::Limit(len)
    }

    /// Gives up probes that nobody answered.
    fn expire(&mut self, limit: usize, now: Instant) {
        while let Some(pending) = self.pending.front().copied() {
            let patience = self
                .latency
                .map_or(ANSWER_WITHIN, |latency| (latency * 4).clamp(ANSWER_WITHIN / 4, ANSWER_WITHIN));
            if now.duration_since(pending.sent_at) < patience {
                return;
            }
            self.pending.pop_front();
            if pending.len > CONTROL_LEN {
                self.fail_search(pending, limit);
            }
        }
    }

    fn fail_search(&mut self, pending: Pending, limit: usize) {
        let Some(step) = self.search.step else { return };
        if self.passed < Some(pending.sent_at) {
            return;
        }
        self.search.failures += 1;
        if self.search.failures >= FAILURES {
            let next = step + 1;
            self.search.failures = 0;
            self.search.step = Some(if Search::size(next, limit).is_some() { next } else { 0 });
        }
    }
}

impl Search {
    /// Sizes to try, from the largest that is allowed down to the least that IPv6 needs.
    fn size(step: usize, limit: usize) -> Option<usize> {
        let largest = limit.min(PROBE_MAX);
        let smaller = SIZES.into_iter().filter(|size| *size < largest);
        std::iter::once(largest).chain(smaller).nth(step)
    }
}

/// Between two probes of a session in use.
const INTERVAL: Duration = Duration::from_secs(10);
/// How recently a packet must have passed for a session to be in use.
const USED_WITHIN: Duration = Duration::from_secs(30);
/// How long an answer is waited for at most; less where answers come soon.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Probes of one size that must fail.
const FAILURES: u32 = 3;
/// When a working size is looked at again, and when a larger one is tried again (RFC 8899 section 5.1.1).
const VERIFY_INTERVAL: Duration = Duration::from_secs(60);
const RAISE_INTERVAL: Duration = Duration::from_secs(600);
/// Inner packets that fit usual paths less 80 bytes: relays, PPPoE, tunnels in tunnels, IPv6's least.
const SIZES: [usize; 6] = [8912, 4080, 1408, 1376, 1328, 1280];
/// Longest probe: the search ends at jumbo frames.
pub(crate) const PROBE_MAX: usize = 9216;
/// Probes waiting for answers, 40 bytes each.
const PENDING_MAX: usize = 8;
/// Sessions in which a peer is asked whether it is an adit, and which one of those after them.
const ASKED_FIRST: u32 = 3;
const ASKED_EVERY: u32 = 30;
/// Answers a second and peer.
const ANSWERS: u32 = 10;
/// Datagrams below which a share says nothing.
const LOSS_SAMPLE_MIN: u64 = 20;
