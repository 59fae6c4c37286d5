//! The exchanges of one connection, all run by the connection's own task.
//!
//! With a task each, every answer would cost an allocation, two passes through the scheduler and a turn of the connection
//! of its own. Here whatever is woken by the same events is taken up in one turn, and the connection only after it, so
//! that the frames of all go out together.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

/// Futures that are polled when they are woken, and what else their task is to see to: its connection.
pub(super) struct Streams<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    wakes: Arc<Wakes>,
    connection: Waker,
    /// Slots that were woken and are to be polled in this pass.
    turn: VecDeque<usize>,
    /// Slots for the next pass: taken since, or woken while they were polled.
    next: Vec<usize>,
}

struct Slot<F> {
    /// No memory once it has ended: it is much, and most connections are idle.
    future: Option<Pin<Box<F>>>,
    wake: Arc<SlotWake>,
    waker: Waker,
}

/// What was woken since it was looked at.
#[derive(Debug, Default)]
struct Wakes(Mutex<Woken>);

#[derive(Debug, Default)]
struct Woken {
    slots: Vec<usize>,
    connection: bool,
    /// The task runs, or has been told to: then it looks by itself.
    awake: bool,
    task: Option<Waker>,
}

#[derive(Debug)]
struct SlotWake {
    wakes: Arc<Wakes>,
    slot: usize,
    /// [`WOKEN`] and [`OURS`].
    state: AtomicU8,
}

struct ConnectionWake(Arc<Wakes>);

impl<F: Future<Output = ()>> Streams<F> {
    /// None yet; the connection is to be polled.
    pub(super) fn new() -> Self {
        let wakes = Arc::new(Wakes::default());
        wakes.lock().connection = true;
        let connection = Waker::from(Arc::new(ConnectionWake(Arc::clone(&wakes))));
        let (slots, free, turn, next) = (Vec::new(), Vec::new(), VecDeque::new(), Vec::new());
        Self { slots, free, wakes, connection, turn, next }
    }

    /// What wakes the connection.
    pub(super) fn connection_waker(&self) -> Waker {
        self.connection.clone()
    }

    /// True if nothing is being answered.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    /// Takes one more, to be polled in the next turn.
    pub(super) fn push(&mut self, future: F) {
        let slot = self.free.pop().unwrap_or_else(|| self.add_slot());
        self.slots[slot].future = Some(Box::pin(future));
        self.next.push(slot);
    }

    /// Begins a turn of the task: until its end nothing that is woken wakes the task, because the task looks by itself.
    pub(super) fn begin(&mut self, cx: &Context<'_>) {
        let mut woken = self.wakes.lock();
        woken.awake = true;
        match &mut woken.task {
            Some(task) => task.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Whether there is anything to do.
    pub(super) fn are_woken(&self) -> bool {
        !self.next.is_empty() || self.wakes.lock().is_any()
    }

    /// Begins a pass: those that were taken or woken until now are polled in it, once each.
    pub(super) fn begin_pass(&mut self) {
        self.turn.extend(self.wakes.lock().slots.drain(..));
        self.turn.extend(self.next.drain(..));
    }

    /// Polls some of the pass; true if there are more. The connection is to be polled between: frames that wait for it
    /// grow lists of `h2` that it never gives back.
    pub(super) fn poll_some(&mut self) -> bool {
        let some = self.turn.len().min(SOME_MAX);
        for _ in 0..some {
            if let Some(slot) = self.turn.pop_front() {
                self.poll(slot);
            }
        }
        if self.is_empty() && self.slots.len() > SLOTS_KEPT {
            // An idle connection keeps little memory of its busiest moment.
            self.slots.truncate(SLOTS_KEPT);
            self.free.clear();
            self.free.extend(0..SLOTS_KEPT);
            self.slots.shrink_to(SLOTS_KEPT);
            self.free.shrink_to(SLOTS_KEPT);
            self.turn.shrink_to(SLOTS_KEPT);
            self.next.shrink_to(SLOTS_KEPT);
        }
        !self.turn.is_empty()
    }

    /// Whether the connection is to be polled; not a second time for the same.
    pub(super) fn take_connection(&mut self) -> bool {
        std::mem::take(&mut self.wakes.lock().connection)
    }

    /// Has the connection polled once more.
    pub(super) fn wake_connection(&mut self) {
        self.wakes.lock().connection = true;
    }

    /// Ends the turn. What has not been taken up wakes the task again, behind all others that wait for their turn.
    pub(super) fn end(&mut self, cx: &Context<'_>) {
        let mut woken = self.wakes.lock();
        woken.awake = !self.next.is_empty() || woken.is_any();
        if woken.awake {
            cx.waker().wake_by_ref();
        }
    }

    fn poll(&mut self, slot: usize) {
        // One that has ended, or whose slot has been given up, may be woken by who still knows of it.
        let Some(Slot { future: place, wake, waker }) = self.slots.get_mut(slot) else { return };
        // Whatever was done before it was woken is seen from here on.
        wake.state.swap(OURS, Ordering::AcqRel);
        let Some(future) = place else { return };
        let mut cx = Context::from_waker(waker);
        // A fault of one answer is not to end those beside it, as it would not if each had a task.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx)));
        if !matches!(polled, Ok(poll) if poll.is_pending()) {
            // Whoever still wakes it wakes nobody: the state stays ours.
            *place = None;
            self.free.push(slot);
        } else if !wake.release() {
            self.next.push(slot);
        }
    }

    fn add_slot(&mut self) -> usize {
        let slot = self.slots.len();
        let wakes = Arc::clone(&self.wakes);
        let wake = Arc::new(SlotWake { wakes, slot, state: AtomicU8::new(OURS) });
        let waker = Waker::from(Arc::clone(&wake));
        self.slots.push(Slot { future: None, wake, waker });
        slot
    }
}

impl<F> Drop for Streams<F> {
    /// Sockets of origins in a pool know who has waited last, and are not to keep the memory of a task that has ended.
    fn drop(&mut self) {
        let task = self.wakes.lock().task.take();
        drop(task);
    }
}

impl Wakes {
    fn lock(&self) -> MutexGuard<'_, Woken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Woken {
    fn is_any(&self) -> bool {
        self.connection || !self.slots.is_empty()
    }

    fn wake_task(&mut self) {
        if !self.awake {
            self.awake = true;
            self.task.iter().for_each(Waker::wake_by_ref);
        }
    }
}

impl SlotWake {
    fn queue(&self) {
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) == 0 {
            let mut woken = self.wakes.lock();
            woken.slots.push(self.slot);
            woken.wake_task();
        }
    }

    /// Lets who wakes it put it among the woken again; false if it was woken meanwhile, and is to be polled once more.
    fn release(&self) -> bool {
        self.state.compare_exchange(OURS, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Wake for SlotWake {
    fn wake(self: Arc<Self>) {
        self.queue();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.queue();
    }
}

impl Wake for ConnectionWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut woken = self.0.lock();
        woken.connection = true;
        woken.wake_task();
    }
}

/// A slot was woken and has not been polled since.
const WOKEN: u8 = 1;
/// A slot is empty, waits for its first poll or is being polled: [`Streams`] looks by itself whether it is woken.
const OURS: u8 = 2;
/// Slots that an idle connection keeps, some 100 bytes each: most visitors ask for few things at a time.
const SLOTS_KEPT: usize = 8;
/// How many are polled before the connection takes their frames: two for a small answer, of some 300 bytes each in `h2`.
const SOME_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::sync::atomic::AtomicUsize;
    use std::task::Poll;

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn turn<F: Future<Output = ()>>(streams: &mut Streams<F>, task: &Waker) {
        let cx = Context::from_waker(task);
        streams.begin(&cx);
        streams.take_connection();
        streams.begin_pass();
        while streams.poll_some() {}
        streams.end(&cx);
    }

    type Boxed = Pin<Box<dyn Future<Output = ()>>>;

    #[test]
    fn one_is_polled_when_it_was_woken_and_wakes_the_task_once() {
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut streams = Streams::<Boxed>::new();
        let (polls, theirs) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None::<Waker>)));
        let (counted, kept) = (Arc::clone(&polls), Arc::clone(&theirs));
        streams.push(Box::pin(poll_fn(move |cx| {
            *kept.lock().unwrap() = Some(cx.waker().clone());
            if counted.fetch_add(1, Ordering::SeqCst) == 1 { Poll::Ready(()) } else { Poll::Pending }
        })));
        streams.push(Box::pin(pending()));
        turn(&mut streams, &waker);
        turn(&mut streams, &waker);
        assert_eq!((polls.load(Ordering::SeqCst), task.0.load(Ordering::SeqCst)), (1, 0));
        let theirs = theirs.lock().unwrap().take().unwrap();
        theirs.wake_by_ref();
        theirs.wake_by_ref();
        streams.connection_waker().wake();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
        turn(&mut streams, &waker);
        assert_eq!((polls.load(Ordering::SeqCst), streams.is_empty()), (2, false));
        // It has ended: whoever still wakes it wakes nobody.
        theirs.wake();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
        turn(&mut streams, &waker);
        assert_eq!(polls.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn one_that_wakes_itself_lets_the_task_pass_first() {
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut streams = Streams::<Boxed>::new();
        streams.push(Box::pin(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        })));
        turn(&mut streams, &waker);
        assert!(streams.are_woken());
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn one_that_is_woken_while_it_ends_leaves_a_slot_for_another() {
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut streams = Streams::<Boxed>::new();
        streams.push(Box::pin(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Ready(())
        })));
        turn(&mut streams, &waker);
        assert!(streams.is_empty() && !streams.are_woken());
        let theirs = Arc::new(Mutex::new(None::<Waker>));
        let kept = Arc::clone(&theirs);
        streams.push(Box::pin(poll_fn(move |cx| match kept.lock().unwrap().replace(cx.waker().clone()) {
            Some(_) => Poll::Ready(()),
            None => Poll::Pending,
        })));
        turn(&mut streams, &waker);
        assert_eq!((streams.slots.len(), streams.is_empty(), task.0.load(Ordering::SeqCst)), (1, false, 0));
        theirs.lock().unwrap().as_ref().unwrap().wake_by_ref();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
        turn(&mut streams, &waker);
        assert!(streams.is_empty());
    }

    #[test]
    fn a_panic_ends_one_and_nothing_beside_it() {
        let waker = Waker::from(Arc::new(Task::default()));
        let mut streams = Streams::<Boxed>::new();
        streams.push(Box::pin(async { assert!(streams_are_isolated(), "a fault for the test") }));
        streams.push(Box::pin(pending()));
        turn(&mut streams, &waker);
        assert!(!streams.is_empty());
        assert_eq!(streams.free.len(), 1);
    }

    fn streams_are_isolated() -> bool {
        false
    }

    #[test]
    fn an_idle_connection_keeps_few_slots() {
        let waker = Waker::from(Arc::new(Task::default()));
        let mut streams = Streams::<Boxed>::new();
        for _ in 0..100 {
            streams.push(Box::pin(async {}));
        }
        turn(&mut streams, &waker);
        assert!(streams.is_empty() && streams.slots.capacity() <= SLOTS_KEPT);
        assert_eq!(streams.slots.len(), SLOTS_KEPT);
    }
}
