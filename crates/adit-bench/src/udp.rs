//! Load over UDP: numbered datagrams at a rate, and what the receiver sees of loss, order and jitter.
//!
//! A stream begins with a question and an answer, so that nobody can have a server send to an address that did not ask:
//! ```text
//! client → server   header, 16 zero bytes        on the server's UDP port
//! server → client   header, token                as long as the question: nothing is amplified
//! client → server   header, token                from now on a socket of its own, connected to this client
//! datagrams         number: u64 | sent at: u64 (ns since 1970) | …   padded to the run's length
//! ```

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, SockRef, Socket, Type};

use crate::cpu;
use crate::flow::{Flow, Pace, Switch};
use crate::plan::Plan;
use crate::tcp::{note_thread, pattern};
use crate::wire::{HEADER_BYTES, MAGIC};

/// A connected UDP socket.
#[derive(Debug)]
pub(crate) struct UdpFlow {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    remote: SocketAddr,
}

/// Header and token.
pub(crate) const HELLO_BYTES: usize = HEADER_BYTES + 16;

impl UdpFlow {
    /// A socket between two addresses; `shared` where the port is another socket's as well.
    pub(crate) fn open(
        local: SocketAddr,
        remote: SocketAddr,
        window: Option<u32>,
        shared: bool,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, None)?;
        socket.set_reuse_address(shared)?;
        // Best effort: the kernel caps the size silently.
        let window = window.map_or(SOCKET_BUFFER_BYTES, |window| window as usize);
        let buffers = SockRef::from(&socket);
        drop(buffers.set_recv_buffer_size(window));
        drop(buffers.set_send_buffer_size(window));
        socket.bind(&local.into())?;
        socket.connect(&remote.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        // A thread of its own serves it, and waits in the kernel.
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(QUIET))?;
        let socket = UdpSocket::from(socket);
        let local = socket.local_addr()?;
        Ok(Self { socket, state, local, remote })
    }

    /// Our address and the peer's.
    pub(crate) fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.local, self.remote)
    }

    /// The socket itself, for the question and the answer.
    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}

/// Which of our addresses packets to `remote` carry, as the kernel's routes have it; nothing is sent.
pub(crate) fn source_towards(remote: SocketAddr, bind: Option<IpAddr>) -> Option<IpAddr> {
    let socket = UdpSocket::bind(any_address(remote, bind)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Any address of the family of `remote`, or `bind`.
pub(crate) fn any_address(remote: SocketAddr, bind: Option<IpAddr>) -> SocketAddr {
    let any = if remote.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    SocketAddr::new(bind.unwrap_or(any), 0)
}

/// Sends numbered datagrams until stopped, or until the flow's share is sent.
pub(crate) fn send(socket: &UdpFlow, flow: &Flow, switch: &Switch, plan: &Plan) {
    let before = (Instant::now(), cpu::thread());
    if let Err(error) = pour(socket, flow, switch, plan) {
        flow.fail(if quinn_udp::is_msg_size_err(&error) {
            format!("datagrams of {} bytes do not fit the path; give a smaller --len", plan.length)
        } else {
            error.to_string()
        });
    }
    note_thread(flow, before);
}

/// Asks until answered, then repeats the answer until the server has all streams of the run.
pub(crate) fn knock(socket: &UdpSocket, header: [u8; HEADER_BYTES], collected: &AtomicBool) {
    let mut hello = [0; HELLO_BYTES];
    hello[..HEADER_BYTES].copy_from_slice(&header);
    while !collected.load(Ordering::Relaxed) {
        // A refusal by ICMP shows here; the server says over the control connection what it lacks.
        let _ = socket.send(&hello);
        let mut answer = [0; HELLO_BYTES];
        let answered = socket.recv(&mut answer).is_ok_and(|length| length == HELLO_BYTES);
        if answered && answer[..HEADER_BYTES] == header {
            hello = answer;
        }
    }
}

/// Counts what comes until stopped and quiet, or until all that is to come has come.
pub(crate) fn receive(socket: &UdpFlow, flow: &Flow, switch: &Switch, plan: &Plan) {
    let before = (Instant::now(), cpu::thread());
    let mut sequence = Sequence::new();
    let mut buffer = vec![0; BATCH_BYTES];
    let mut stopped_at: Option<Instant> = None;
    let mut last = Instant::now();
    let expected = plan.share(flow.index).map(|bytes| bytes.div_ceil(u64::from(plan.length)));
    loop {
        if expected.is_some_and(|expected| sequence.next >= expected || last.elapsed() > silence(plan)) {
            break;
        }
        let mut meta = [RecvMeta::default()];
        let received =
            socket.state.recv((&socket.socket).into(), &mut [IoSliceMut::new(&mut buffer)], &mut meta);
        if switch.is_stopped() && stopped_at.get_or_insert_with(Instant::now).elapsed() > DRAIN_MAX {
            break;
        }
        match received {
            Ok(count) if count > 0 => {
                let datagrams = buffer[..meta[0].len].chunks(meta[0].stride.max(1));
                datagrams.for_each(|datagram| sequence.take(datagram, flow));
                last = Instant::now();
            }
            // Silence, or an ICMP error of something that we sent, such as the peer's port that has closed.
            Ok(_) | Err(_) if switch.is_stopped() => break,
            Ok(_) | Err(_) => {}
        }
    }
    note_thread(flow, before);
}

/// What a receiver knows of the numbers that came.
#[derive(Debug)]
struct Sequence {
    /// One above the largest number that came.
    next: u64,
    /// Which of the last [`WINDOW`] numbers came, by their remainder: tells a late datagram from one that comes twice.
    came: Box<[u64]>,
    transit_ns: Option<i64>,
    jitter_ns: f64,
}

impl Sequence {
    fn new() -> Self {
        let came = vec![0; (WINDOW / 64) as usize].into_boxed_slice();
        Self { next: 0, came, transit_ns: None, jitter_ns: 0.0 }
    }

    fn take(&mut self, datagram: &[u8], flow: &Flow) {
        // Answers of the handshake that were repeated come late.
        if datagram.starts_with(MAGIC) || datagram.len() < DATAGRAM_HEAD_BYTES {
            return;
        }
        let word = |at: usize| datagram[at..at + 8].try_into().map_or(0, u64::from_be_bytes);
        let (number, sent_ns) = (word(0), word(8));
        if number == u64::MAX {
            return;
        }
        let counters = &flow.counters;
        if number >= self.next {
            Flow::count(&counters.lost, self.advance(number));
            counters.numbered.store(self.next, Ordering::Relaxed);
        } else if self.is_new(number) {
            // Counted as lost when a later one came before it.
            Flow::count(&counters.out_of_order, 1);
            let lost = counters.lost.load(Ordering::Relaxed);
            counters.lost.store(lost.saturating_sub(1), Ordering::Relaxed);
        } else {
            // Twice the bytes are not twice the load; counted apart, they neither hide a loss nor make one.
            Flow::count(&counters.duplicates, 1);
            return;
        }
        Flow::count(&counters.bytes, datagram.len() as u64);
        Flow::count(&counters.packets, 1);
        self.note_transit(sent_ns, flow);
    }

    /// Takes a number above all others; how many were left out before it.
    fn advance(&mut self, number: u64) -> u64 {
        let left_out = number - self.next;
        if left_out >= WINDOW {
            self.came.fill(0);
        } else {
            (self.next..number).for_each(|missing| self.note(missing, false));
        }
        self.note(number, true);
        self.next = number + 1;
        left_out
    }

    /// Notes a number below the largest; false if it came before, or is so late that nobody knows any more.
    fn is_new(&mut self, number: u64) -> bool {
        let is_known = self.next - number <= WINDOW;
        let is_new = is_known && self.came[Self::word(number)] >> (number % 64) & 1 == 0;
        if is_new {
            self.note(number, true);
        }
        is_new
    }

    fn note(&mut self, number: u64, came: bool) {
        let word = &mut self.came[Self::word(number)];
        let bit = 1 << (number % 64);
        *word = if came { *word | bit } else { *word & !bit };
    }

    fn word(number: u64) -> usize {
        (number % WINDOW / 64) as usize
    }

    /// RFC 3550 §6.4.1: differences of transit times, so that the clocks need not agree.
    fn note_transit(&mut self, sent_ns: u64, flow: &Flow) {
        let transit = now_ns().wrapping_sub(sent_ns) as i64;
        if let Some(before) = self.transit_ns.replace(transit) {
            let difference = transit.wrapping_sub(before).unsigned_abs() as f64;
            self.jitter_ns += (difference - self.jitter_ns) / 16.0;
            flow.counters.jitter_ns.store(self.jitter_ns as u64, Ordering::Relaxed);
        }
    }
}

fn pour(socket: &UdpFlow, flow: &Flow, switch: &Switch, plan: &Plan) -> io::Result<()> {
    let length = plan.length as usize;
    let mut batch = pattern(length * segments(&socket.state, length, plan.rate));
    let mut left = plan.share(flow.index).unwrap_or(u64::MAX).div_ceil(length as u64);
    let mut pace = Pace::new(plan.rate);
    let mut number = 0u64;
    while left > 0 && !switch.is_stopped() {
        // The kernel may have refused trains meanwhile.
        let most = segments(&socket.state, length, plan.rate).min(batch.len() / length);
        let count = most.min(usize::try_from(left).unwrap_or(usize::MAX));
        let sent_ns = now_ns();
        for segment in batch.chunks_exact_mut(length).take(count) {
            segment[..8].copy_from_slice(&number.to_be_bytes());
            segment[8..16].copy_from_slice(&sent_ns.to_be_bytes());
            number += 1;
        }
        let sent = transmit(socket, &batch[..count * length], length);
        match sent {
            Ok(()) => {}
            Err(error) if is_passing(&error) => {
                // Not on the wire: the same numbers are sent again.
                number -= count as u64;
                std::thread::sleep(RETRY);
                continue;
            }
            Err(error) => return Err(error),
        }
        left -= count as u64;
        Flow::count(&flow.counters.packets, count as u64);
        Flow::count(&flow.counters.bytes, (count * length) as u64);
        flow.counters.numbered.store(number, Ordering::Relaxed);
        if let Some(pace) = &mut pace {
            pace.sleep(count * length, switch);
        }
    }
    Ok(())
}

fn transmit(socket: &UdpFlow, contents: &[u8], length: usize) -> io::Result<()> {
    let segment_size = (contents.len() > length).then_some(length);
    let transmit = Transmit { destination: socket.remote, ecn: None, contents, segment_size, src_ip: None };
    socket.state.try_send((&socket.socket).into(), &transmit)
}

/// Datagrams of one call: as many as the kernel takes, or as belong to a millisecond of the rate.
fn segments(state: &UdpSocketState, length: usize, rate: Option<u64>) -> usize {
    let most = state.max_gso_segments().min(BATCH_BYTES / length).max(1);
    let paced = rate.map(|rate| usize::try_from(rate / 8 / 1000).unwrap_or(usize::MAX) / length);
    most.min(paced.unwrap_or(most).max(1))
}

/// How long a receiver that waits for a number of bytes waits for the next datagram: the last ones may be lost.
fn silence(plan: &Plan) -> Duration {
    let gap = plan.rate.map_or(0.0, |rate| f64::from(plan.length) * 8.0 / rate as f64);
    SILENCE_MIN.max(Duration::from_secs_f64((gap * 10.0).min(60.0)))
}

/// Whether the same send may work a moment later: queues full, a train refused, an ICMP error of an earlier one.
fn is_passing(error: &io::Error) -> bool {
    use nix::libc::{EIO, ENOBUFS};
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || matches!(error.raw_os_error(), Some(ENOBUFS | EIO))
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or_default()
}

/// Numbers whose datagrams are told apart when they come late: a tenth of a second at a million a second. 16 KiB for each
/// stream, 4 MiB for a run of 256. What is later than that counts as having come twice, so that its loss stays counted.
const WINDOW: u64 = 128 * 1024;
/// Number and time.
const DATAGRAM_HEAD_BYTES: usize = 16;
/// One call of GSO or GRO (RFC 768's length, less headers).
const BATCH_BYTES: usize = 65_507;
/// The kernel's default of 208 KiB holds 2 ms of 1 Gbit/s.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// After the end, silence of this length means that nothing more comes.
const QUIET: Duration = Duration::from_millis(200);
/// After the end, datagrams are waited for no longer than this.
const DRAIN_MAX: Duration = Duration::from_secs(3);
const SILENCE_MIN: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_micros(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Under;

    fn flow() -> Flow {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        Flow::new(0, true, false, (address, address), Under::Nothing)
    }

    fn datagram(number: u64) -> Vec<u8> {
        [number.to_be_bytes(), now_ns().to_be_bytes(), [0; 8]].concat()
    }

    #[test]
    fn a_datagram_that_comes_late_is_out_of_order_and_not_lost() {
        let look = look_after([0, 1, 4, 2, 6]);
        assert_eq!((look.packets, look.lost, look.out_of_order), (5, 2, 1));
    }

    fn look_after(numbers: impl IntoIterator<Item = u64>) -> crate::flow::Look {
        let (flow, mut sequence) = (flow(), Sequence::new());
        numbers.into_iter().for_each(|number| sequence.take(&datagram(number), &flow));
        flow.look()
    }

    #[test]
    fn a_datagram_that_comes_twice_is_a_duplicate_and_takes_no_loss_away() {
        let look = look_after([0, 0, 1, 1, 3, 3, 1]);
        assert_eq!((look.packets, look.lost, look.out_of_order, look.duplicates), (3, 1, 0, 4));
        assert_eq!((look.bytes, look.numbered), (3 * 24, 4));
        let late = look_after([0, 2, 1, 1]);
        assert_eq!((late.packets, late.lost, late.out_of_order, late.duplicates), (3, 0, 1, 1));
    }

    #[test]
    fn a_number_too_late_to_be_known_stays_lost() {
        let look = look_after([0, WINDOW + 2, 2, 1, 3]);
        assert_eq!((look.lost, look.out_of_order, look.duplicates), (WINDOW + 1 - 1, 1, 2), "{look:?}");
        let wild = look_after([u64::MAX, u64::MAX - 1, u64::MAX - 1, u64::MAX, 7, 0]);
        assert_eq!((wild.packets, wild.lost, wild.duplicates), (1, u64::MAX - 1, 3));
    }

    #[test]
    fn numbers_come_round_in_the_window() {
        let numbers = (0..3 * WINDOW).filter(|number| number % 1000 != 7);
        let look = look_after(numbers.chain([3 * WINDOW - 1]));
        assert_eq!((look.lost, look.duplicates), ((3 * WINDOW).div_ceil(1000), 1));
    }

    #[test]
    fn what_is_no_datagram_of_the_load_is_not_counted() {
        let (flow, mut sequence) = (flow(), Sequence::new());
        sequence.take(&[0; 15], &flow);
        sequence.take(&[MAGIC.as_slice(), &[0; 38]].concat(), &flow);
        assert_eq!(flow.look().packets, 0);
    }

    #[test]
    fn the_address_towards_a_peer_is_one_of_ours() {
        let here = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(source_towards(SocketAddr::new(here, 9), None), Some(here));
    }

    #[test]
    fn trains_are_no_longer_than_a_millisecond_of_the_rate() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let state = UdpSocketState::new((&socket).into()).unwrap();
        assert_eq!(segments(&state, 1000, Some(8_000_000)), 1);
        assert!(segments(&state, 1000, Some(80_000_000)) <= 10);
        assert!(segments(&state, 1000, None) * 1000 <= BATCH_BYTES);
    }
}
