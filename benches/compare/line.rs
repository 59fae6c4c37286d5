//! A line of some length: a UDP relay of one thread that holds every datagram back for half a round trip.
//!
//! Linux can delay packets by itself where its kernel has netem; that of a small virtual machine often has not. Batches that
//! the kernel joined on the way in (GRO) leave joined (GSO), so that the line costs a fraction of what its ends do.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

/// How long and how wide a line is.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) round_trip: Duration,
    /// One datagram of so many is lost; none if zero.
    pub(crate) lost_one_in: u64,
}

/// A running line between one dialler and one listener; ends when dropped.
pub(crate) struct Line {
    /// Where to dial.
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Datagrams that found the buffer full, or that the shape loses.
    dropped: AtomicU64,
    ended: AtomicBool,
}

impl Line {
    /// Lays a line to `to`.
    pub(crate) fn lay(to: SocketAddr, shape: Shape) -> Self {
        let ends = [End::open(), End::open()];
        let address = ends[0].socket.local_addr().expect("a bound socket has an address");
        let counts = Arc::<Counts>::default();
        let relay = Relay {
            ends,
            far: [None, Some(to)],
            ways: [Way::default(), Way::default()],
            pool: Vec::new(),
            shape,
            counts: Arc::clone(&counts),
        };
        thread::spawn(move || relay.run());
        Self { address, counts }
    }

    /// Datagrams dropped since it was laid.
    pub(crate) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.counts.ended.store(true, Ordering::Relaxed);
    }
}

/// A socket with buffers as large as asked for.
pub(crate) struct End {
    pub(crate) socket: UdpSocket,
    pub(crate) state: UdpSocketState,
}

impl End {
    pub(crate) fn open() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        for set in [sockopt::set_socket_recv_buffer_size_force, sockopt::set_socket_send_buffer_size_force] {
            // Without privileges the system's limit holds, and the line loses more.
            let _ = set(&socket, SOCKET_BYTES);
        }
        let state = UdpSocketState::new((&socket).into()).expect("the system has UDP");
        Self { socket, state }
    }

    /// Whether it was taken; what fails for another reason than a full buffer is lost as on any line.
    fn send(&self, to: SocketAddr, batch: &Batch) -> bool {
        let contents = &batch.bytes[batch.start..batch.end];
        let segment_size = (contents.len() > batch.stride).then_some(batch.stride);
        let transmit = Transmit { destination: to, ecn: batch.ecn, contents, segment_size, src_ip: None };
        let sent = self.state.try_send((&self.socket).into(), &transmit);
        !sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Datagrams that came at once.
struct Batch {
    due: Instant,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    stride: usize,
    ecn: Option<EcnCodepoint>,
}

/// One direction.
#[derive(Default)]
struct Way {
    batches: VecDeque<Batch>,
    held_bytes: usize,
    datagrams: u64,
}

struct Relay {
    /// The dialler's and the listener's.
    ends: [End; 2],
    /// Who is beyond each; the dialler once it has said something, the last if there were several.
    far: [Option<SocketAddr>; 2],
    /// From each end to the other.
    ways: [Way; 2],
    pool: Vec<Vec<u8>>,
    shape: Shape,
    counts: Arc<Counts>,
}

impl Relay {
    fn run(mut self) {
        let mut buffers = vec![vec![0; BATCH_BYTES]; BATCHES];
        while !self.counts.ended.load(Ordering::Relaxed) {
            let mut received = 0;
            for from in 0..2 {
                received += self.receive(from, &mut buffers);
                self.forward();
            }
            if received == 0 {
                self.wait();
            }
        }
    }

    /// Takes what has arrived at an end.
    fn receive(&mut self, from: usize, buffers: &mut [Vec<u8>]) -> usize {
        let mut metas = [RecvMeta::default(); BATCHES];
        let mut slices: Vec<IoSliceMut<'_>> =
            buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let end = &self.ends[from];
        let count = end.state.recv((&end.socket).into(), &mut slices, &mut metas).unwrap_or(0);
        let due = Instant::now() + self.shape.round_trip / 2;
        for (meta, buffer) in metas[..count].iter().zip(buffers) {
            if from == 0 {
                self.far[0] = Some(meta.addr);
            }
            let bytes = if meta.len > BATCH_BYTES / 8 {
                let empty = self.pool.pop().unwrap_or_else(|| vec![0; BATCH_BYTES]);
                std::mem::replace(buffer, empty)
            } else {
                buffer[..meta.len].to_vec()
            };
            self.hold(
                from,
                Batch { due, bytes, start: 0, end: meta.len, stride: meta.stride.max(1), ecn: meta.ecn },
            );
        }
        count
    }

    fn hold(&mut self, from: usize, batch: Batch) {
        let way = &mut self.ways[from];
        let (length, datagrams) = (batch.end, batch.end.div_ceil(batch.stride) as u64);
        if way.held_bytes + length > HELD_BYTES_MAX {
            self.counts.dropped.fetch_add(datagrams, Ordering::Relaxed);
            return;
        }
        let before = way.datagrams;
        way.datagrams += datagrams;
        way.held_bytes += length;
        let every = self.shape.lost_one_in;
        if every == 0 || before / every == way.datagrams / every {
            way.batches.push_back(batch);
            return;
        }
        // What is before the lost one, and what is behind it.
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        let lost = usize::try_from(every - 1 - before % every).unwrap_or(0) * batch.stride;
        let behind = (lost + batch.stride).min(length);
        way.held_bytes -= behind - lost;
        if lost > 0 {
            way.batches.push_back(Batch { bytes: batch.bytes[..lost].to_vec(), end: lost, ..batch });
        }
        if behind < length {
            way.batches.push_back(Batch { start: behind, ..batch });
        }
    }

    /// Sends what is due.
    fn forward(&mut self) {
        let now = Instant::now();
        for from in 0..2 {
            let Some(to) = self.far[1 - from] else { continue };
            let way = &mut self.ways[from];
            while way.batches.front().is_some_and(|batch| batch.due <= now) {
                let Some(batch) = way.batches.pop_front() else { break };
                if !self.ends[1 - from].send(to, &batch) {
                    way.batches.push_front(batch);
                    break;
                }
                way.held_bytes -= batch.end - batch.start;
                if batch.bytes.len() == BATCH_BYTES {
                    self.pool.push(batch.bytes);
                }
            }
        }
    }

    /// Until something arrives or is due.
    fn wait(&self) {
        let due = self.ways.iter().filter_map(|way| way.batches.front()).map(|batch| batch.due).min();
        let left = due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()).min(IDLE));
        let left = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        let [near, far] = &self.ends;
        let mut sockets = [near, far].map(|end| PollFd::new(&end.socket, PollFlags::IN));
        // An interrupted wait is a short one.
        let _ = poll(&mut sockets, Some(&left));
    }
}

/// Largest joined batch.
pub(crate) const BATCH_BYTES: usize = 64 * 1024;
/// Batches taken at once, from an end before the other has its turn.
const BATCHES: usize = 16;
/// Of each end's buffers, which have to last while another thread has the CPU: 26 ms at 10 Gbit/s.
const SOCKET_BYTES: usize = 32 * 1024 * 1024;
/// What a direction holds at most: 10 Gbit/s for 200 ms. Where small batches wait in large buffers it costs eight times as much.
const HELD_BYTES_MAX: usize = 250_000_000;
/// Between looks at whether to end.
const IDLE: Duration = Duration::from_millis(20);
