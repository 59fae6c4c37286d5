//! What waits for the access log's writer: lines, put together by the lanes that have answered, each in memory of its own.
//!
//! A wake-up costs more than a line. A writer with work behind it therefore lingers for [`LINGER`] before it looks again, and
//! only a writer that sleeps, or a queue that fills, is woken. Lines are numbered over all lanes, and written in that order.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adit_proxy::lanes::PerLane;

/// What the writer is told besides lines.
#[derive(Debug)]
pub(super) enum Order {
    /// Someone moved the file away.
    Reopen,
    /// Everything so far is to be in the file; answered then.
    Flush(SyncSender<()>),
}

/// A queue with one writer at its end; each lane has an `L` to make its lines with.
#[derive(Debug)]
pub(super) struct Queue<L> {
    lanes: PerLane<Mutex<Lane<L>>>,
    /// Lines so far: the number of the next.
    count: AtomicU64,
    /// What the lanes may hold of `bytes_max`.
    granted: AtomicUsize,
    bytes_max: usize,
    /// [`BUSY`], [`LINGERS`] or [`SLEEPS`].
    writer: AtomicU8,
    told: Mutex<Told>,
    wake: Condvar,
}

#[derive(Debug)]
struct Lane<L> {
    own: L,
    waiting: Lines,
    granted: usize,
}

/// What others have told the writer.
#[derive(Debug, Default)]
struct Told {
    orders: Vec<Order>,
    is_woken: bool,
    is_closed: bool,
}

/// Lines one behind the other.
#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    /// Number and end of each.
    marks: Vec<(u64, usize)>,
}

/// What the writer has taken; kept between two looks, for its memory.
#[derive(Debug, Default)]
pub(super) struct Batch {
    lanes: Vec<Lines>,
    /// Lines whose predecessors may not all be there yet.
    early: Lines,
}

impl<L> Queue<L> {
    /// Holds at most so many bytes.
    pub(super) fn new(bytes_max: usize, own: impl Fn() -> L) -> Self {
        let lane = || Mutex::new(Lane { own: own(), waiting: Lines::default(), granted: 0 });
        Self {
            lanes: PerLane::new(lane),
            count: AtomicU64::new(1),
            granted: AtomicUsize::new(0),
            bytes_max,
            writer: AtomicU8::new(BUSY),
            told: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// What this lane makes its lines with.
    pub(super) fn with_own<R>(&self, with: impl FnOnce(&mut L) -> R) -> R {
        with(&mut lock(self.lanes.own()).own)
    }

    /// Adds a line, which is appended to what it is given together with its number; false if there is no room for it.
    pub(super) fn push(&self, line: impl FnOnce(&mut L, &mut Vec<u8>, u64)) -> bool {
        let mut lane = lock(self.lanes.own());
        let Lane { own, waiting, granted } = &mut *lane;
        let before = waiting.text.len();
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        line(own, &mut waiting.text, number);
        let end = waiting.text.len();
        let wanted = end + (waiting.marks.len() + 1) * size_of::<(u64, usize)>();
        if wanted > *granted && !self.grant(granted, wanted) {
            waiting.text.truncate(before);
            waiting.text.shrink_to(KEPT_BYTES.max(*granted * 2));
            return false;
        }
        waiting.marks.push((number, end));
        drop(lane);
        // Either this sees that the writer sleeps, or the writer sees the line before it falls asleep.
        fence(Ordering::SeqCst);
        match self.writer.load(Ordering::Relaxed) {
            SLEEPS => self.tell(|told| told.is_woken = true),
            LINGERS if self.granted.load(Ordering::Relaxed) > self.bytes_max / 2 => {
                self.tell(|told| told.is_woken = true);
            }
            _ => {}
        }
        true
    }

    /// Lets a lane hold `wanted` bytes; in steps, so that lanes rarely ask.
    fn grant(&self, granted: &mut usize, wanted: usize) -> bool {
        let more = (wanted - *granted).next_multiple_of(GRANT_BYTES);
        let least = wanted - *granted;
        for step in [more, least] {
            let grant = |now: usize| now.checked_add(step).filter(|sum| *sum <= self.bytes_max);
            if self.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant).is_ok() {
                *granted += step;
                return true;
            }
        }
        false
    }

    /// Adds an order behind the lines so far; false if too many wait.
    pub(super) fn order(&self, order: Order) -> bool {
        self.tell(|told| {
            let has_room = told.orders.len() < ORDERS_MAX;
            if has_room {
                told.orders.push(order);
                told.is_woken = true;
            }
            has_room
        })
    }

    /// No more lines come.
    pub(super) fn close(&self) {
        self.tell(|told| (told.is_closed, told.is_woken) = (true, true));
    }

    fn tell<R>(&self, what: impl FnOnce(&mut Told) -> R) -> R {
        let result = what(&mut self.told());
        self.wake.notify_one();
        result
    }

    /// Waits for something to do, at most until `until` if given, and takes all of it; false once the queue is closed.
    pub(super) fn take(&self, batch: &mut Batch, orders: &mut Vec<Order>, until: Option<Instant>) -> bool {
        let mut told = self.wait(LINGERS, self.told(), Some(LINGER));
        while !told.is_woken && !batch.has_early() && !self.has_lines() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            told = self.wait(SLEEPS, told, left);
        }
        told.is_woken = false;
        orders.append(&mut told.orders);
        let is_open = !told.is_closed;
        drop(told);
        // Whatever has a smaller number is there, or was begun together with what is.
        let up_to = if is_open { self.count.load(Ordering::SeqCst) } else { u64::MAX };
        self.sweep(batch, up_to);
        is_open
    }

    /// Lets others know what the writer does, and waits until it is woken.
    fn wait<'a>(
        &'a self,
        state: u8,
        told: MutexGuard<'a, Told>,
        left: Option<Duration>,
    ) -> MutexGuard<'a, Told> {
        self.writer.store(state, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let is_idle = |told: &mut Told| !told.is_woken;
        let told = match left {
            _ if state == SLEEPS && self.has_lines() => told,
            Some(left) => {
                self.wake.wait_timeout_while(told, left, is_idle).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.wake.wait_while(told, is_idle).unwrap_or_else(PoisonError::into_inner),
        };
        self.writer.store(BUSY, Ordering::Relaxed);
        told
    }

    fn has_lines(&self) -> bool {
        self.lanes.iter().any(|lane| !lock(lane).waiting.marks.is_empty())
    }

    /// Takes what the lanes have; lines from the number `up_to` on are held for the next time.
    fn sweep(&self, batch: &mut Batch, up_to: u64) {
        let mut taken = std::mem::take(&mut batch.lanes);
        taken.resize_with(self.lanes.iter().count() + 1, Lines::default);
        for (lane, taken) in self.lanes.iter().zip(&mut taken) {
            taken.clear();
            let mut lane = lock(lane);
            std::mem::swap(&mut lane.waiting, taken);
            self.granted.fetch_sub(std::mem::take(&mut lane.granted), Ordering::Relaxed);
        }
        if let Some(held) = taken.last_mut() {
            held.clear();
            std::mem::swap(held, &mut batch.early);
        }
        for lines in &mut taken {
            lines.split_early(up_to, &mut batch.early);
        }
        batch.lanes = taken;
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }
}

impl Lines {
    fn clear(&mut self) {
        self.text.clear();
        self.marks.clear();
        // A burst is not to hold its memory for ever.
        self.text.shrink_to(KEPT_BYTES);
        self.marks.shrink_to(KEPT_BYTES / size_of::<(u64, usize)>());
    }

    fn split_early(&mut self, up_to: u64, early: &mut Self) {
        // Numbers of a lane grow.
        let keep = self.marks.partition_point(|(number, _)| *number < up_to);
        let mut start = keep.checked_sub(1).map_or(0, |last| self.marks[last].1);
        let kept = start;
        for (number, end) in self.marks.drain(keep..) {
            early.text.extend_from_slice(&self.text[start..end]);
            early.marks.push((number, early.text.len()));
            start = end;
        }
        self.text.truncate(kept);
    }
}

impl Batch {
    /// Hands on all lines by number.
    pub(super) fn each(&self, mut line: impl FnMut(&[u8])) {
        let mut all: Vec<(u64, &[u8])> = Vec::new();
        for Lines { text, marks } in &self.lanes {
            let mut start = 0;
            for (number, end) in marks {
                all.push((*number, &text[start..*end]));
                start = *end;
            }
        }
        // Each lane's are in order: merging is what a stable sort does then.
        all.sort_by_key(|(number, _)| *number);
        all.into_iter().for_each(|(_, text)| line(text));
    }

    fn has_early(&self) -> bool {
        !self.early.marks.is_empty()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A line that was not marked is written over or behind; nothing else can be half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The writer writes; it will look again by itself.
const BUSY: u8 = 0;
/// It waits for more to write at once; not to be woken for a line.
const LINGERS: u8 = 1;
/// It waits for anything.
const SLEEPS: u8 = 2;

/// How long lines gather before they are written together.
const LINGER: Duration = Duration::from_millis(20);
/// Orders are a person's or a shutdown's.
const ORDERS_MAX: usize = 16;
/// What a lane is let have at once.
const GRANT_BYTES: usize = 64 * 1024;
/// What a lane's memory for lines is cut down to once they are written.
const KEPT_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn number(_: &mut (), line: &mut Vec<u8>, number: u64) {
        line.extend_from_slice(format!("{number}\n").as_bytes());
    }

    fn text(batch: &Batch) -> String {
        let mut all = Vec::new();
        batch.each(|line| all.extend_from_slice(line));
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn everything_pushed_is_taken_in_order_and_then_the_close() {
        let queue = Arc::new(Queue::new(usize::MAX, || ()));
        let filling = Arc::clone(&queue);
        let thread = std::thread::spawn(move || {
            for _ in 0..5000 {
                assert!(filling.push(number));
            }
            filling.close();
        });
        let (mut all, mut batch, mut orders) = (String::new(), Batch::default(), Vec::new());
        loop {
            let is_open = queue.take(&mut batch, &mut orders, None);
            all.push_str(&text(&batch));
            if !is_open {
                break;
            }
        }
        thread.join().unwrap();
        let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn lines_of_several_lanes_are_written_by_number() {
        let queue = Arc::new(Queue::new(usize::MAX, || ()));
        let lanes = adit_proxy::lanes::Lanes::start(2).unwrap();
        let handles = lanes.handles();
        for turn in 0..100 {
            let (queue, (done, was_done)) = (Arc::clone(&queue), std::sync::mpsc::channel::<()>());
            handles[turn % 2].spawn(async move {
                assert!(queue.push(number));
                drop(done);
            });
            assert!(was_done.recv().is_err());
        }
        let (mut batch, mut orders) = (Batch::default(), Vec::new());
        assert!(queue.take(&mut batch, &mut orders, None));
        let expected: String = (1..=100).map(|n| format!("{n}\n")).collect();
        assert_eq!(text(&batch), expected);
    }

    #[test]
    fn a_line_waits_for_those_before_it() {
        let queue = Queue::new(usize::MAX, || ());
        let (mut batch, mut orders) = (Batch::default(), Vec::new());
        for _ in 0..3 {
            assert!(queue.push(number));
        }
        queue.sweep(&mut batch, 2);
        assert_eq!(text(&batch), "1\n");
        assert!(queue.push(number));
        queue.sweep(&mut batch, 4);
        assert_eq!(text(&batch), "2\n3\n");
        queue.close();
        assert!(!queue.take(&mut batch, &mut orders, None));
        assert_eq!(text(&batch), "4\n");
    }

    #[test]
    fn bytes_are_bounded() {
        let queue = Queue::new(60, || ());
        let five = |_: &mut (), line: &mut Vec<u8>, _: u64| line.extend_from_slice(b"1234\n");
        let many = |_: &mut (), line: &mut Vec<u8>, _: u64| line.extend_from_slice(&[b'1'; 40]);
        assert!(queue.push(five));
        assert!(!queue.push(many));
        assert!(queue.push(five));
        assert!(!queue.push(five));
        let (mut batch, mut orders) = (Batch::default(), Vec::new());
        assert!(queue.take(&mut batch, &mut orders, None));
        assert_eq!(text(&batch), "1234\n1234\n");
        assert!(queue.push(many), "what is taken makes room");
    }

    #[test]
    fn an_order_wakes_a_writer_that_lingers() {
        let queue = Arc::new(Queue::new(10, || ()));
        let (done, flushed) = std::sync::mpsc::sync_channel(1);
        let ordering = Arc::clone(&queue);
        let thread = std::thread::spawn(move || assert!(ordering.order(Order::Flush(done))));
        let (mut batch, mut orders) = (Batch::default(), Vec::new());
        assert!(queue.take(&mut batch, &mut orders, None));
        assert!(matches!(orders.as_slice(), [Order::Flush(_)]));
        drop((orders, thread.join()));
        assert!(flushed.recv().is_err());
    }
}
