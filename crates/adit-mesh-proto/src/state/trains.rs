//! Outgoing datagrams: trains of equal length for one send each, and single handshake messages before them.

use std::collections::VecDeque;

use crate::packet::{Path, Transmit};
use crate::session::{DATA_OVERHEAD, HANDSHAKE_MAX};

/// Buffers for datagrams in the order in which they go.
#[derive(Default)]
pub(crate) struct Trains {
    trains: Vec<Train>,
    free: Vec<usize>,
    queue: VecDeque<usize>,
    /// Handed out by the last poll; free again at the next.
    lent: Option<usize>,
    handshakes: VecDeque<Handshake>,
    sent_handshake: Option<Handshake>,
}

/// A peer's train that may still grow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenTrain {
    train: usize,
    generation: u64,
}

struct Train {
    path: Path,
    ecn: u8,
    /// Length of each datagram but the last.
    segment_size: usize,
    len: usize,
    count: usize,
    /// A shorter datagram ended it.
    closed: bool,
    /// Counts uses, so that an [`OpenTrain`] of an earlier use is known as such.
    generation: u64,
    buffer: Box<[u8]>,
}

/// One handshake message.
#[derive(Clone, Copy)]
struct Handshake {
    path: Path,
    len: usize,
    message: [u8; HANDSHAKE_MAX],
}

impl Trains {
    /// Queues a handshake message; `false` when the queue is full.
    pub(crate) fn push_handshake(&mut self, path: Path, message: &[u8]) -> bool {
        if self.handshakes.len() >= HANDSHAKES_MAX || message.len() > HANDSHAKE_MAX {
            return false;
        }
        let mut handshake = Handshake { path, len: message.len(), message: [0; HANDSHAKE_MAX] };
        handshake.message[..message.len()].copy_from_slice(message);
        self.handshakes.push_back(handshake);
        true
    }

    /// Room for a datagram of `len` bytes behind the peer's earlier ones; [`Self::commit`] or nothing must follow.
    /// `None` when all buffers are in use. The slice is longer than `len` so that a session can always write.
    pub(crate) fn room(
        &mut self,
        open: &mut Option<OpenTrain>,
        path: Path,
        ecn: u8,
        len: usize,
    ) -> Option<&mut [u8]> {
        let at = match open.filter(|open| self.takes(*open, path, ecn, len)) {
            Some(open) => open.train,
            None => {
                let at = self.start(path, ecn, len)?;
                *open = Some(OpenTrain { train: at, generation: self.trains[at].generation });
                at
            }
        };
        let train = &mut self.trains[at];
        Some(&mut train.buffer[train.len..(train.len + len).max(train.len + HANDSHAKE_MAX)])
    }

    /// Keeps the `len` bytes written into the last room.
    pub(crate) fn commit(&mut self, open: &Option<OpenTrain>, len: usize) {
        let Some(train) = open.and_then(|open| self.trains.get_mut(open.train)) else { return };
        debug_assert!(len <= train.segment_size, "a datagram fits the room it was given");
        train.len += len;
        train.count += 1;
        train.closed = len < train.segment_size || train.count == SEGMENTS_MAX;
    }

    /// What to send next; handshakes first.
    pub(crate) fn poll(&mut self) -> Option<Transmit<'_>> {
        self.free.extend(self.lent.take());
        self.sent_handshake = self.handshakes.pop_front();
        if self.sent_handshake.is_none() {
            return self.poll_train();
        }
        let handshake = self.sent_handshake.as_ref()?;
        let contents = &handshake.message[..handshake.len];
        Some(Transmit { path: handshake.path, segment_size: None, ecn: 0, contents })
    }

    fn poll_train(&mut self) -> Option<Transmit<'_>> {
        while let Some(at) = self.queue.pop_front() {
            // Nobody may append to what is handed out.
            self.trains[at].generation += 1;
            if self.trains[at].count == 0 {
                self.free.push(at);
                continue;
            }
            self.lent = Some(at);
            let train = &self.trains[at];
            let segment_size = (train.count > 1).then_some(train.segment_size);
            let contents = &train.buffer[..train.len];
            return Some(Transmit { path: train.path, segment_size, ecn: train.ecn, contents });
        }
        None
    }

    /// Whether [`Self::poll`] has nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.handshakes.is_empty() && self.queue.is_empty()
    }

    fn takes(&self, open: OpenTrain, path: Path, ecn: u8, len: usize) -> bool {
        let train = &self.trains[open.train];
        train.generation == open.generation
            && !train.closed
            && train.path == path
            && train.ecn == ecn
            && len <= train.segment_size
            && train.len + len <= TRAIN_BYTES_MAX
    }

    fn start(&mut self, path: Path, ecn: u8, len: usize) -> Option<usize> {
        if len > TRAIN_BYTES_MAX {
            return None;
        }
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.trains.len() < TRAINS_MAX => {
                self.trains.push(Train::new(path));
                self.trains.len() - 1
            }
            None => return None,
        };
        let train = &mut self.trains[at];
        (train.path, train.ecn, train.segment_size) = (path, ecn, len);
        (train.len, train.count, train.closed) = (0, 0, false);
        self.queue.push_back(at);
        Some(at)
    }
}

impl Train {
    fn new(path: Path) -> Self {
        Self {
            path,
            ecn: 0,
            segment_size: 0,
            len: 0,
            count: 0,
            closed: true,
            generation: 0,
            // Room behind the last datagram: a session wants as much as a handshake has, even for a keepalive.
            buffer: vec![0; TRAIN_BYTES_MAX + HANDSHAKE_MAX + DATA_OVERHEAD].into(),
        }
    }
}

/// Most datagrams in one send: UDP_MAX_SEGMENTS of older kernels.
pub(crate) const SEGMENTS_MAX: usize = 64;
/// Most bytes in one send: the largest UDP datagram over IPv4.
pub(crate) const TRAIN_BYTES_MAX: usize = 65_507;
/// Trains before the shell must drain: 64 × 64 KiB = 4 MiB, about what 60 super-packets need.
const TRAINS_MAX: usize = 64;
/// Handshake messages before the shell must drain: 512 × 200 bytes = 100 KiB.
const HANDSHAKES_MAX: usize = 512;
