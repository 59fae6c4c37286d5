//! What waits for the access log's writer: filled by requests under a short lock, emptied whole, woken rarely.
//!
//! A wake-up costs more than a line. A writer with work behind it therefore lingers for [`LINGER`] before it looks again, and
//! only a writer that sleeps, or a queue that fills, is woken.

use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the writer is told besides lines.
#[derive(Debug)]
pub(super) enum Order {
    /// Someone moved the file away.
    Reopen,
    /// Everything so far is to be in the file; answered then.
    Flush(SyncSender<()>),
}

/// A queue with one writer at its end.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
    lines_max: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct State<T> {
    lines: Vec<T>,
    /// What the lines hold.
    bytes: usize,
    orders: Vec<Order>,
    writer: Writer,
    closed: bool,
}

/// What the writer does.
#[derive(Debug, PartialEq, Eq)]
enum Writer {
    /// Writes; it will look again by itself.
    Busy,
    /// Waits for more to write at once; not to be woken for a line.
    Lingers,
    /// Waits for anything.
    Sleeps,
}

impl<T> Queue<T> {
    /// Holds at most so many lines and bytes.
    pub(super) fn new(lines_max: usize, bytes_max: usize) -> Self {
        let state =
            State { lines: Vec::new(), bytes: 0, orders: Vec::new(), writer: Writer::Busy, closed: false };
        Self { state: Mutex::new(state), wake: Condvar::new(), lines_max, bytes_max }
    }

    /// Adds a line of about `weight` bytes; false if there is no room.
    pub(super) fn push(&self, line: T, weight: usize) -> bool {
        let mut state = self.lock();
        if state.lines.len() >= self.lines_max || state.bytes + weight > self.bytes_max {
            return false;
        }
        state.bytes += weight;
        state.lines.push(line);
        let is_filling = state.lines.len() > self.lines_max / 2 || state.bytes > self.bytes_max / 2;
        match state.writer {
            Writer::Sleeps => self.wake_writer(state),
            Writer::Lingers if is_filling => self.wake_writer(state),
            Writer::Lingers | Writer::Busy => {}
        }
        true
    }

    /// Adds an order behind the lines so far; false if too many wait.
    pub(super) fn order(&self, order: Order) -> bool {
        let mut state = self.lock();
        if state.orders.len() >= ORDERS_MAX {
            return false;
        }
        state.orders.push(order);
        self.wake_writer(state);
        true
    }

    /// No more lines come.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake_writer(state);
    }

    /// Waits for something to do, at most until `until` if given, and takes all of it into the (empty) vectors; false once
    /// the queue is closed.
    pub(super) fn take(&self, lines: &mut Vec<T>, orders: &mut Vec<Order>, until: Option<Instant>) -> bool {
        let mut state = self.lock();
        if !state.closed && state.orders.is_empty() {
            state = self.linger(state);
        }
        while state.lines.is_empty() && state.orders.is_empty() && !state.closed {
            state.writer = Writer::Sleeps;
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => break,
                Some(left) => self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.writer = Writer::Busy;
        state.bytes = 0;
        std::mem::swap(&mut state.lines, lines);
        std::mem::swap(&mut state.orders, orders);
        !state.closed
    }

    /// Lets lines gather behind those just written.
    fn linger<'a>(&'a self, mut state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        state.writer = Writer::Lingers;
        let waited = self.wake.wait_timeout_while(state, LINGER, |state| state.writer == Writer::Lingers);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn wake_writer(&self, mut state: MutexGuard<'_, State<T>>) {
        state.writer = Writer::Busy;
        drop(state);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long lines gather before they are written together.
const LINGER: Duration = Duration::from_millis(20);
/// Orders are a person's or a shutdown's.
const ORDERS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn everything_pushed_is_taken_in_order_and_then_the_close() {
        let queue = Arc::new(Queue::new(10_000, usize::MAX));
        let filling = Arc::clone(&queue);
        let thread = std::thread::spawn(move || {
            for n in 0..5000 {
                assert!(filling.push(n, 1));
            }
            filling.close();
        });
        let (mut all, mut lines, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        while queue.take(&mut lines, &mut orders, None) {
            all.append(&mut lines);
        }
        all.append(&mut lines);
        thread.join().unwrap();
        assert_eq!(all, (0..5000).collect::<Vec<_>>());
    }

    #[test]
    fn lines_and_bytes_are_bounded() {
        let queue = Queue::new(3, 10);
        assert!(queue.push((), 5));
        assert!(!queue.push((), 6));
        assert!(queue.push((), 1));
        assert!(queue.push((), 1));
        assert!(!queue.push((), 1));
        queue.close();
        let (mut lines, mut orders) = (Vec::new(), Vec::new());
        assert!(!queue.take(&mut lines, &mut orders, None));
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn an_order_wakes_a_writer_that_lingers() {
        let queue = Arc::new(Queue::<()>::new(3, 10));
        let (done, flushed) = std::sync::mpsc::sync_channel(1);
        let ordering = Arc::clone(&queue);
        let thread = std::thread::spawn(move || assert!(ordering.order(Order::Flush(done))));
        let (mut lines, mut orders) = (Vec::new(), Vec::new());
        assert!(queue.take(&mut lines, &mut orders, None));
        assert!(matches!(orders.as_slice(), [Order::Flush(_)]));
        drop((orders, thread.join()));
        assert!(flushed.recv().is_err());
    }
}
