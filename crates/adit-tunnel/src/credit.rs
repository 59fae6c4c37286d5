//! Keeps streams that are read slowly from starving the others of their QUIC connection.
//!
//! What the streams whose readers lag hold together, the connection's window is raised by, so that the rest always share the
//! window that a connection has anyway. So it is for a connection that fills a long line: by what that holds beyond it. What it
//! is raised by is borrowed from a budget that all connections share. Where the budget ends, the streams that are as good as not
//! read are taken from their readers, longest stalled first.
//!
//! Credit that a peer has cannot be taken back (RFC 9000 §4.1), only not be renewed: so the window is lowered *before* what a
//! stream held is freed, when its visitor leaves or begins to read. What was lent for it is free again then.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge};
use quinn::VarInt;

use crate::{
    bdp::Bdp,
    reader::{Mark, Readers},
    streams::StreamError,
    transport::{CONNECTION_WINDOW_BYTES, SEND_WINDOW_BYTES},
};

/// What the connections of one edge or connector may borrow together.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: u64,
    lent: AtomicU64,
    metrics: CreditMetrics,
}

/// What a budget counts.
#[derive(Clone, Debug)]
pub(crate) struct CreditMetrics {
    /// Bytes lent now.
    pub(crate) lent_bytes: IntGauge,
    /// Streams taken from slow readers.
    pub(crate) evicted: IntCounter,
}

impl Budget {
    pub(crate) fn new(metrics: CreditMetrics) -> Arc<Self> {
        Self::with_limit(EXTRA_BYTES_MAX, metrics)
    }

    fn with_limit(bytes_max: u64, metrics: CreditMetrics) -> Arc<Self> {
        Arc::new(Self { bytes_max, lent: AtomicU64::new(0), metrics })
    }

    /// Lends at most `wanted` bytes to a connection that has borrowed `mine`: none ever has more than half of what the others
    /// leave, so that the next one gets something, too, whatever visitors of the first do.
    fn borrow(&self, wanted: u64, mine: u64) -> u64 {
        let mut got = 0;
        // Never refuses, so there is no error to handle.
        let _ = self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lent| {
            let left_by_others = self.bytes_max.saturating_sub(lent - mine);
            got = wanted.min((left_by_others / 2).saturating_sub(mine));
            Some(lent + got)
        });
        self.metrics.lent_bytes.add(got.try_into().unwrap_or(i64::MAX));
        got
    }

    fn give_back(&self, bytes: u64) {
        self.lent.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.lent_bytes.sub(bytes.try_into().unwrap_or(i64::MAX));
    }
}

/// The receive window of one connection.
#[derive(Debug)]
pub(crate) struct Credit {
    budget: Arc<Budget>,
    readers: Arc<Readers>,
    borrowed: u64,
    received: Bdp,
    sent: Bdp,
    send_window: u64,
}

impl Credit {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        let now = Instant::now();
        Self {
            budget: Arc::clone(budget),
            readers: Arc::default(),
            borrowed: 0,
            received: Bdp::new(now),
            sent: Bdp::new(now),
            send_window: SEND_WINDOW_BYTES,
        }
    }

    /// Where the connection's streams are to be counted.
    pub(crate) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Fits the windows to the line and the readers' pace; whether slow readers may starve the others
    /// all the same.
    pub(crate) fn look(&mut self, now: Instant, connection: &quinn::Connection) -> bool {
        let (stats, taken, rtt) = (connection.stats(), self.readers.taken(), connection.rtt());
        self.fit_send_window(now, rtt, stats.udp_tx.bytes, connection);
        let around = stats.udp_rx.datagrams * PACKET_OVERHEAD_BYTES;
        let received = stats.udp_rx.bytes.saturating_sub(around);
        let mark = Mark { received, taken: self.readers.freed() };
        let survey = self.readers.survey(now, mark);
        let held = survey.held_bytes.next_multiple_of(STEP_BYTES);
        let on_the_line = self.received.observe(taken, now, rtt).min(LINE_BYTES_MAX);
        let beyond = on_the_line.saturating_sub(u64::from(CONNECTION_WINDOW_BYTES));
        let wanted = held.min(EXTRA_BYTES_PER_CONNECTION_MAX) + beyond;
        let lent = self.fit_receive_window(wanted, connection);
        self.give_back(self.borrowed - self.lent_to_send() - lent);
        let short = held.saturating_sub(lent);
        let each = (held / survey.lagging.max(1)).max(1);
        let evictions = usize::try_from(short.div_ceil(each)).unwrap_or(usize::MAX);
        let mut still_short = short;
        for (since, reader) in survey.slow.iter().take(evictions) {
            let freed = self.readers.evict(reader, still_short);
            still_short = still_short.saturating_sub(freed);
            self.budget.metrics.evicted.inc();
            let stalled_ms = now.saturating_duration_since(*since).as_millis();
            tracing::info!(reason = StreamError::SlowReader.reason(), stalled_ms, "stream is stopped");
        }
        short > 0
    }

    /// Raises the window by what is wanted, or as much of it as there is; what is lent then.
    fn fit_receive_window(&mut self, wanted: u64, connection: &quinn::Connection) -> u64 {
        let readers = Arc::clone(&self.readers);
        let mut loan = readers.loan().lock();
        loan.connection.get_or_insert_with(|| connection.clone());
        loan.ledger.handle_freed(readers.freed());
        let missing = wanted.saturating_sub(loan.ledger.lent());
        if missing > 0 {
            let got = self.borrow(missing);
            loan.ledger.raise(got);
        } else {
            loan.ledger.lower(wanted);
        }
        loan.set_window();
        loan.ledger.lent()
    }

    fn fit_send_window(&mut self, now: Instant, rtt: Duration, sent: u64, connection: &quinn::Connection) {
        let wanted = self.sent.observe(sent, now, rtt).clamp(SEND_WINDOW_BYTES, LINE_BYTES_MAX);
        let before = self.send_window;
        if wanted > before {
            self.send_window += self.borrow(wanted - before);
        } else {
            self.send_window = wanted;
            self.give_back(before - wanted);
        }
        if self.send_window != before {
            connection.set_send_window(self.send_window);
        }
    }

    /// What the send window has of what is borrowed.
    fn lent_to_send(&self) -> u64 {
        self.send_window - SEND_WINDOW_BYTES
    }

    fn borrow(&mut self, bytes: u64) -> u64 {
        let got = self.budget.borrow(bytes, self.borrowed);
        self.borrowed += got;
        got
    }

    fn give_back(&mut self, bytes: u64) {
        self.budget.give_back(bytes);
        self.borrowed -= bytes;
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.give_back(self.borrowed);
    }
}

/// What one connection's window is raised by, as its looks and the streams for which it is raised share it.
#[derive(Debug, Default)]
pub(crate) struct Loan(Mutex<Lent>);

#[derive(Debug, Default)]
struct Lent {
    ledger: Ledger,
    /// What the window was lowered by for bytes that are still to be freed.
    ahead: u64,
    /// What it is raised by, as the transport knows it.
    set: u64,
    /// Known from the first look on.
    connection: Option<quinn::Connection>,
}

impl Loan {
    /// Lowers the window before bytes for which it was raised are freed, of which `freed` were before.
    pub(crate) fn prepare(&self, freed: u64) {
        let mut loan = self.lock();
        if loan.ahead < AHEAD_BYTES && loan.ledger.extra > 0 {
            loan.ledger.handle_freed(freed);
            let lowered = loan.ledger.extra.saturating_sub(STEP_BYTES);
            loan.ahead += loan.ledger.extra - lowered;
            loan.ledger.lower(lowered);
            loan.set_window();
        }
    }

    /// So many bytes for which the window was raised have been freed.
    pub(crate) fn handle_freed(&self, bytes: u64) {
        let mut loan = self.lock();
        loan.ahead = loan.ahead.saturating_sub(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Lent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent {
    fn set_window(&mut self) {
        let extra = self.ledger.extra;
        if let Some(connection) = self.connection.as_ref().filter(|_| self.set != extra) {
            let window = u64::from(CONNECTION_WINDOW_BYTES) + extra;
            connection.set_receive_window(VarInt::from_u64(window).unwrap_or(VarInt::MAX));
            self.set = extra;
        }
    }
}

/// What a connection's peer may send beyond [`CONNECTION_WINDOW_BYTES`] at most.
///
/// A window that is lowered does not take credit back that the peer already has: it goes as the next
/// bytes are read or thrown away (as quinn does it), and is owed to the budget until then.
#[derive(Clone, Copy, Debug, Default)]
struct Ledger {
    /// What the window is raised by.
    extra: u64,
    /// What it was lowered by and the peer still has.
    owed: u64,
    /// Bytes read or thrown away when last heard.
    freed: u64,
}

impl Ledger {
    fn handle_freed(&mut self, freed: u64) {
        // Streams on other threads may have told more, and sooner.
        let freed = freed.max(self.freed);
        self.owed = self.owed.saturating_sub(freed - self.freed);
        self.freed = freed;
    }

    fn lent(&self) -> u64 {
        self.extra + self.owed
    }

    fn raise(&mut self, bytes: u64) {
        self.extra += bytes;
    }

    fn lower(&mut self, extra: u64) {
        self.owed += self.extra.saturating_sub(extra);
        self.extra = self.extra.min(extra);
    }
}

/// What is lent at a time.
pub(crate) const STEP_BYTES: u64 = 1024 * 1024;
/// By how much the window is lowered ahead of bytes that are freed: more than one read gives out, [`CHUNKS_MAX`] datagrams.
///
/// [`CHUNKS_MAX`]: crate::streams::CHUNKS_MAX
const AHEAD_BYTES: u64 = 512 * 1024;
/// Around the frames of a packet at least: flags, a byte of packet number, and the seal.
const PACKET_OVERHEAD_BYTES: u64 = 18;
/// Largest window of one connection, either way, for streams that are read as fast as bytes come: 8
/// Gbit/s over 128 ms. Sending, it is the worst case of what is kept until it is acknowledged.
pub(crate) const LINE_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Beyond its own window, of one connection: 16 streams of which nothing is read, or two that were read once.
const EXTRA_BYTES_PER_CONNECTION_MAX: u64 = 256 * 1024 * 1024;
/// Of all connections together, both ways. Worst-case memory of an edge or a connector is therefore
/// 512 MiB, and [`CONNECTION_WINDOW_BYTES`] and [`SEND_WINDOW_BYTES`] for each registered connection; that is what slow
/// readers and long lines can cost, whatever their number. A single connection gets half of it at most.
pub(crate) const EXTRA_BYTES_MAX: u64 = 512 * 1024 * 1024;

#[cfg(test)]
mod tests;
