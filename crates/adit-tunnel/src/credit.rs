//! Keeps streams that are read slowly from starving the others of their QUIC connection.
//!
//! Every stream whose reader lags is taken to hold a whole stream window, and the connection's window
//! is raised by as much, so that the rest always share the window that a connection has anyway. What
//! it is raised by is borrowed from a budget that all connections share. Where the budget ends, the
//! streams that are as good as not read are taken from their readers, longest stalled first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use prometheus::{IntCounter, IntGauge};
use quinn::VarInt;

use crate::{
    reader::Readers,
    streams::StreamError,
    transport::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES},
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

    /// Lends at most `wanted` bytes.
    fn borrow(&self, wanted: u64) -> u64 {
        let mut got = 0;
        // Never refuses, so there is no error to handle.
        let _ = self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lent| {
            got = wanted.min(self.bytes_max.saturating_sub(lent));
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
    ledger: Ledger,
    borrowed: u64,
}

impl Credit {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), readers: Arc::default(), ledger: Ledger::default(), borrowed: 0 }
    }

    /// Where the connection's streams are to be counted.
    pub(crate) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Fits the window to the readers' pace; whether slow readers may starve the others all the same.
    pub(crate) fn look(&mut self, now: Instant, connection: &quinn::Connection) -> bool {
        self.ledger.handle_taken(self.readers.taken());
        let survey = self.readers.survey(now);
        let held = survey.lagging * STREAM_BYTES;
        let wanted = held.min(EXTRA_BYTES_PER_CONNECTION_MAX);
        let before = self.ledger.extra;
        let missing = wanted.saturating_sub(self.ledger.lent());
        if missing > 0 {
            let got = self.budget.borrow(missing);
            self.borrowed += got;
            self.ledger.raise(got);
        } else {
            self.ledger.lower(wanted);
        }
        if self.ledger.extra != before {
            let window = u64::from(CONNECTION_WINDOW_BYTES) + self.ledger.extra;
            connection.set_receive_window(VarInt::from_u64(window).unwrap_or(VarInt::MAX));
        }
        self.give_back(self.borrowed - self.ledger.lent());
        let short = held.saturating_sub(self.ledger.lent());
        let evictions = usize::try_from(short.div_ceil(STREAM_BYTES)).unwrap_or(usize::MAX);
        for (since, reader) in survey.slow.iter().take(evictions) {
            reader.evict();
            self.budget.metrics.evicted.inc();
            let stalled_ms = now.saturating_duration_since(*since).as_millis();
            tracing::info!(reason = StreamError::SlowReader.reason(), stalled_ms, "stream is stopped");
        }
        short > 0
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

/// What a connection's peer may send beyond [`CONNECTION_WINDOW_BYTES`] at most.
///
/// A window that is lowered does not take credit back that the peer already has: it goes as the next
/// bytes are read (as quinn does it), and is owed to the budget until then.
#[derive(Clone, Copy, Debug, Default)]
struct Ledger {
    /// What the window is raised by.
    extra: u64,
    /// What it was lowered by and the peer still has.
    owed: u64,
    /// Bytes read when last heard.
    taken: u64,
}

impl Ledger {
    fn handle_taken(&mut self, taken: u64) {
        self.owed = self.owed.saturating_sub(taken - self.taken);
        self.taken = taken;
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

const STREAM_BYTES: u64 = STREAM_WINDOW_BYTES as u64;
/// Beyond its own window, of one connection: 32 streams that nobody reads.
const EXTRA_BYTES_PER_CONNECTION_MAX: u64 = 256 * 1024 * 1024;
/// Of all connections together. Worst-case receive memory of an edge or a connector is therefore
/// 512 MiB, and [`CONNECTION_WINDOW_BYTES`] for each registered connection; that is what slow readers
/// can cost, whatever their number.
pub(crate) const EXTRA_BYTES_MAX: u64 = 512 * 1024 * 1024;

#[cfg(test)]
mod tests;
