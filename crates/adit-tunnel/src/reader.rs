//! The receiving halves of one QUIC connection's streams, and which of them are read too slowly.
//!
//! What a stream holds unread uses up the credit that all streams of its connection share (RFC 9000
//! §4.1), and quinn tells nobody how much that is. Each look asks of every stream whether its reader
//! kept up since the last one; what a lagging one holds has arrived since it last did. `credit.rs` acts on
//! the answer.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::VarInt;

use crate::{
    credit::{Loan, STEP_BYTES},
    streams::{CHUNKS_MAX, StreamError, has_ended, read_error},
    transport::{STREAM_WINDOW_BYTES, STREAM_WINDOW_FIRST_BYTES},
};

/// The streams of one connection that carry bodies.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    /// Bounded by the streams that are open.
    live: Mutex<Live>,
    /// Bytes handed out by all of them since the connection began.
    taken: AtomicU64,
    /// Bytes of visitors who left before they were handed out.
    discarded: AtomicU64,
    loan: Loan,
}

#[derive(Debug, Default)]
struct Live {
    next: u64,
    readers: BTreeMap<u64, Arc<Reader>>,
    /// As of the last look.
    mark: Mark,
}

/// How far a connection was at some moment, in bytes since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    /// Arrived for streams, at most.
    pub(crate) received: u64,
    /// Handed out by all streams, or thrown away.
    pub(crate) taken: u64,
}

impl Mark {
    /// The most that has arrived since `before` and was not handed out.
    fn unread_since(self, before: Self) -> u64 {
        self.received.saturating_sub(before.received).saturating_sub(self.taken - before.taken)
    }
}

/// What a look at all streams of a connection found.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Streams whose reader does not keep up.
    pub(crate) lagging: u64,
    /// The most that they hold together.
    pub(crate) held_bytes: u64,
    /// Those that are as good as not read at all, and since when.
    pub(crate) slow: Vec<(Instant, Arc<Reader>)>,
}

impl Readers {
    /// Bytes handed out so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes handed out or thrown away so far.
    pub(crate) fn freed(&self) -> u64 {
        self.taken() + self.discarded.load(Ordering::Relaxed)
    }

    /// What the connection's window is raised by.
    pub(crate) fn loan(&self) -> &Loan {
        &self.loan
    }

    /// Takes the stream from a reader that does not read: what it holds is freed and the peer told to
    /// stop; its owner gets [`StreamError::SlowReader`]. `short` bytes are for others, what is more is not lent any longer.
    pub(crate) fn evict(&self, reader: &Reader, short: u64) -> u64 {
        let mut state = lock(&reader.0);
        let freed = self.discard(&mut state, short);
        // Fails only for a stream that has ended, which holds nothing.
        drop(state.stream.stop(VarInt::from_u32(0)));
        state.broken.get_or_insert(StreamError::SlowReader);
        freed
    }

    /// Throws away what a stream holds that lagged at the last look; how much. Of the credit for it the peer gets `short`
    /// bytes back, the rest is not lent any longer.
    fn discard(&self, state: &mut State, short: u64) -> u64 {
        // What comes meanwhile is not waited for.
        let bytes_max = if state.lags { state.tempo.window() } else { 0 };
        let mut freed = 0;
        while freed < bytes_max {
            if freed >= short {
                self.loan.prepare(self.freed());
            }
            let Some(bytes) = state.discard_some() else { break };
            self.discarded.fetch_add(bytes, Ordering::Relaxed);
            self.loan.handle_freed(bytes);
            freed += bytes;
        }
        freed
    }

    /// Looks at every stream of a connection that is at `mark`.
    pub(crate) fn survey(&self, now: Instant, mark: Mark) -> Survey {
        let mut survey = Survey::default();
        let (mut windows, mut unread) = (0, 0);
        let mut live = lock(&self.live);
        let last = std::mem::replace(&mut live.mark, mark);
        for reader in live.readers.values() {
            let Look { pace, before, window } = reader.look(now, last);
            if pace == Pace::Prompt {
                continue;
            }
            survey.lagging += 1;
            windows += window;
            // That of the one that lags longest has the others' in it.
            unread = mark.unread_since(before).max(unread);
            if let Pace::Slow { since } = pace {
                survey.slow.push((since, Arc::clone(reader)));
            }
        }
        survey.held_bytes = unread.min(windows);
        survey.slow.sort_by_key(|(since, _)| *since);
        survey
    }
}

/// One receiving half, as its owner and its connection's look share it.
#[derive(Debug)]
pub(crate) struct Reader(Mutex<State>);

#[derive(Debug)]
struct State {
    stream: quinn::RecvStream,
    tempo: Tempo,
    /// Before the look at which it was last seen to keep up.
    before: Mark,
    /// It lagged at the last look, so that the window was raised for what it holds.
    lags: bool,
    /// It lagged, and took next to nothing since the look before.
    rests: bool,
    /// Given to the owner at every poll from now on; quinn gives an error only once.
    broken: Option<StreamError>,
}

/// What was found about one stream.
struct Look {
    pace: Pace,
    /// All that it holds has arrived since.
    before: Mark,
    /// The most that its peer may have sent and it not handed out.
    window: u64,
}

impl Reader {
    fn look(&self, now: Instant, last: Mark) -> Look {
        let mut state = lock(&self.0);
        // What is broken holds nothing.
        if state.broken.is_some() || (state.tempo.may_lag() && !state.holds_unread()) {
            state.tempo.handle_emptied();
        }
        let pace = state.tempo.look(now);
        state.lags = pace != Pace::Prompt;
        state.rests = state.tempo.took_since_look() < STEP_BYTES && state.lags;
        if pace == Pace::Prompt {
            state.before = last;
        }
        Look { pace, before: state.before, window: state.tempo.window() }
    }
}

impl State {
    fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut VecDeque<Bytes>,
    ) -> Poll<Result<Option<u64>, StreamError>> {
        if let Some(error) = self.broken {
            return Poll::Ready(Err(error));
        }
        let mut chunks: [Bytes; CHUNKS_MAX] = [const { Bytes::new() }; CHUNKS_MAX];
        // Cancel-safe by quinn's contract: polled once, dropped, polled anew.
        let polled = pin!(self.stream.read_chunks(&mut chunks)).poll(cx);
        match polled {
            Poll::Ready(Ok(Some(count))) => {
                // quinn gives out no chunk without bytes.
                let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
                out.extend(chunks.into_iter().take(count));
                self.tempo.handle_read(bytes, count < CHUNKS_MAX);
                Poll::Ready(Ok(Some(bytes)))
            }
            Poll::Ready(Ok(None)) => Poll::Ready(Ok(None)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.break_off(&error))),
            Poll::Pending => {
                self.tempo.handle_wait();
                Poll::Pending
            }
        }
    }

    /// Reads what has arrived, and throws it away.
    fn discard_some(&mut self) -> Option<u64> {
        let mut chunks: [Bytes; CHUNKS_MAX] = [const { Bytes::new() }; CHUNKS_MAX];
        let mut cx = Context::from_waker(Waker::noop());
        let polled = pin!(self.stream.read_chunks(&mut chunks)).poll(&mut cx);
        match polled {
            Poll::Ready(Ok(Some(count))) => {
                Some(chunks[..count].iter().map(|chunk| chunk.len() as u64).sum())
            }
            _ => None,
        }
    }

    /// Whether bytes have arrived that the owner could read now. Only for a stream whose owner does
    /// not wait in a poll, because it takes the place of the owner's waker.
    fn holds_unread(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let polled = pin!(self.stream.read_chunk(0, true)).poll(&mut cx);
        match polled {
            Poll::Ready(Ok(Some(_))) => true,
            Poll::Ready(Ok(None)) | Poll::Pending => false,
            Poll::Ready(Err(error)) => {
                self.break_off(&error);
                false
            }
        }
    }

    fn break_off(&mut self, error: &quinn::ReadError) -> StreamError {
        *self.broken.insert(read_error(error))
    }
}

/// The owner's side of a receiving half. Dropping it before the end tells the peer to stop.
#[derive(Debug)]
pub(crate) struct QuicBody {
    reader: Arc<Reader>,
    /// Absent for streams that carry RPC, which are few and short and read at once.
    entry: Option<Entry>,
}

impl QuicBody {
    pub(crate) fn new(stream: quinn::RecvStream, readers: Option<&Arc<Readers>>) -> Self {
        // All of it arrives later than the last look.
        let before = readers.map(|readers| lock(&readers.live).mark).unwrap_or_default();
        let state =
            State { stream, tempo: Tempo::default(), before, lags: false, rests: false, broken: None };
        let reader = Arc::new(Reader(Mutex::new(state)));
        let entry = readers.map(|readers| Entry::new(readers, &reader));
        Self { reader, entry }
    }

    pub(crate) fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut VecDeque<Bytes>,
    ) -> Poll<Result<bool, StreamError>> {
        let mut state = lock(&self.reader.0);
        let Some(Entry { readers, .. }) = &self.entry else {
            return state.poll_chunks(cx, out).map_ok(|taken| taken.is_some());
        };
        let rests = state.rests;
        if rests {
            readers.loan.prepare(readers.freed());
        }
        let polled = state.poll_chunks(cx, out);
        // From here on it reads what comes, and not what it held.
        state.rests &= state.tempo.may_lag();
        polled.map_ok(|taken| {
            if let Some(bytes) = taken {
                readers.taken.fetch_add(bytes, Ordering::Relaxed);
                if rests {
                    readers.loan.handle_freed(bytes);
                }
            }
            taken.is_some()
        })
    }

    /// Appends what has arrived behind bytes that are on their way out already; what else there is, an end or an error, the
    /// next poll tells.
    pub(crate) fn take_chunks(&mut self, cx: &mut Context<'_>, out: &mut VecDeque<Bytes>) {
        if self.poll_chunks(cx, out).is_pending() {
            // Nobody waits: the bytes in hand are to be written first.
            lock(&self.reader.0).tempo.handle_unwaited();
        }
    }

    pub(crate) fn stop(&mut self) {
        self.discard();
        // An already finished stream has nothing to stop.
        drop(lock(&self.reader.0).stream.stop(VarInt::from_u32(0)));
    }

    /// Throws away what a stream holds that the window was raised for, so that what was lent for it is not lent any longer:
    /// quinn, which does the same as the stream is stopped, does not tell how much it was.
    fn discard(&mut self) {
        if let Some(Entry { readers, .. }) = &self.entry {
            readers.discard(&mut lock(&self.reader.0), 0);
        }
    }
}

impl Drop for QuicBody {
    fn drop(&mut self) {
        self.discard();
        // A peer that has ended the stream need not be told to stop, and quinn knows only by reading.
        has_ended(&mut lock(&self.reader.0).stream);
    }
}

/// A stream's place among its connection's.
#[derive(Debug)]
struct Entry {
    readers: Arc<Readers>,
    key: u64,
}

impl Entry {
    fn new(readers: &Arc<Readers>, reader: &Arc<Reader>) -> Self {
        let mut live = lock(&readers.live);
        let key = live.next;
        live.next += 1;
        live.readers.insert(key, Arc::clone(reader));
        Self { readers: Arc::clone(readers), key }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Dropped after the lock is: the last owner of a stream talks to quinn.
        let gone = lock(&self.readers.live).readers.remove(&self.key);
        drop(gone);
    }
}

/// How one stream is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Its reader was seen to have taken all there was.
    Prompt,
    /// Its reader was behind for the whole time between two looks.
    Lagging,
    /// It took less than [`SLOW_BYTES`] in [`SLOW_PERIOD`] while it was behind.
    Slow { since: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Tempo {
    taken: u64,
    /// Has had everything at some moment since the last look.
    caught_up: bool,
    /// The last poll found nothing, so the owner waits to be woken.
    waiting: bool,
    /// Since when it is behind, and how much had been taken then.
    behind: Option<(Instant, u64)>,
    /// What had been taken at the last two looks.
    looks: [u64; 2],
}

impl Default for Tempo {
    fn default() -> Self {
        Self { taken: 0, caught_up: true, waiting: false, behind: None, looks: [0; 2] }
    }
}

impl Tempo {
    fn handle_read(&mut self, bytes: u64, all: bool) {
        self.taken += bytes;
        self.caught_up |= all;
        self.waiting = false;
    }

    fn handle_wait(&mut self) {
        self.waiting = true;
    }

    fn handle_emptied(&mut self) {
        self.caught_up = true;
    }

    /// A poll found nothing more, but its owner does not wait.
    fn handle_unwaited(&mut self) {
        self.caught_up = true;
        self.waiting = false;
    }

    fn window(&self) -> u64 {
        let first = u64::from(STREAM_WINDOW_FIRST_BYTES);
        if self.taken < first { first } else { u64::from(STREAM_WINDOW_BYTES) }
    }

    /// Between the last two looks.
    fn took_since_look(&self) -> u64 {
        self.looks[1] - self.looks[0]
    }

    fn may_lag(&self) -> bool {
        !self.caught_up && !self.waiting
    }

    fn look(&mut self, now: Instant) -> Pace {
        let lags = self.may_lag();
        self.looks = [self.looks[1], self.taken];
        self.caught_up = false;
        if !lags {
            self.behind = None;
            return Pace::Prompt;
        }
        let (since, before) = *self.behind.get_or_insert((now, self.taken));
        if now.saturating_duration_since(since) < SLOW_PERIOD {
            return Pace::Lagging;
        }
        if self.taken - before < SLOW_BYTES {
            return Pace::Slow { since };
        }
        self.behind = Some((now, self.taken));
        Pace::Lagging
    }
}

/// No section that holds a lock can leave its data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a reader must be behind before its stream may be taken from it.
pub(crate) const SLOW_PERIOD: Duration = Duration::from_secs(10);
/// What it must take in that time to keep it: 52 kbit/s, the pace of a modem.
const SLOW_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(500);

    #[test]
    fn a_reader_that_waits_for_bytes_never_lags() {
        let (mut tempo, now) = (Tempo::default(), Instant::now());
        tempo.handle_wait();
        for look in 0..100 {
            assert_eq!(tempo.look(now + LOOK * look), Pace::Prompt);
        }
    }

    #[test]
    fn a_reader_that_empties_the_stream_now_and_then_does_not_lag() {
        let (mut tempo, now) = (Tempo::default(), Instant::now());
        for look in 0..100 {
            tempo.handle_read(1, false);
            tempo.handle_read(1, true);
            tempo.handle_read(1, false);
            assert_eq!(tempo.look(now + LOOK * look), Pace::Prompt);
        }
    }

    #[test]
    fn a_reader_that_takes_nothing_lags_at_once_and_is_slow_in_the_end() {
        let (mut tempo, now) = (Tempo::default(), Instant::now());
        tempo.look(now);
        assert_eq!(tempo.look(now + LOOK), Pace::Lagging);
        assert_eq!(tempo.look(now + SLOW_PERIOD), Pace::Lagging);
        assert_eq!(tempo.look(now + LOOK + SLOW_PERIOD), Pace::Slow { since: now + LOOK });
    }

    #[test]
    fn a_reader_that_has_all_there_is_and_never_comes_back_lags() {
        let (mut tempo, now) = (Tempo::default(), Instant::now());
        tempo.handle_wait();
        tempo.handle_unwaited();
        assert_eq!(tempo.look(now), Pace::Prompt);
        assert_eq!(tempo.look(now + LOOK), Pace::Lagging);
    }

    #[test]
    fn a_reader_that_is_behind_but_moves_on_is_not_slow() {
        let (mut tempo, now) = (Tempo::default(), Instant::now());
        tempo.look(now);
        for period in 1..10 {
            assert_eq!(tempo.look(now + SLOW_PERIOD * period), Pace::Lagging);
            tempo.handle_read(SLOW_BYTES, false);
        }
    }
}
