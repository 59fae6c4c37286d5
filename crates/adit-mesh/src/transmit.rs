//! Sends what the engine has made, as each path takes it.

use std::io;
use std::time::{Duration, Instant};

use adit_mesh_proto::{Path, Transmit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::health::Health;
use crate::statistics::IoStatistics;
use crate::udp::Socket;

/// Sends a train as the path takes it: in one call, or datagram by datagram.
pub(crate) fn send(
    socket: &Socket,
    health: &mut Health,
    statistics: &mut IoStatistics,
    transmit: &Transmit<'_>,
    now: Instant,
) {
    let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
    let datagrams = transmit.contents.len().div_ceil(size) as u64;
    if datagrams <= 1 || health.takes_trains(transmit.path.remote, now) {
        match send_once(socket, statistics, transmit, datagrams) {
            Ok(()) => {
                if datagrams > 1 {
                    statistics.trains += 1;
                }
                return;
            }
            Err(error) if datagrams > 1 && is_refusal_of_trains(&error) => {
                health.refused(transmit.path, size, &error, now);
            }
            Err(error) => return count_refusal(health, statistics, transmit, datagrams, &error),
        }
    }
    for datagram in transmit.contents.chunks(size) {
        let single = Transmit { segment_size: None, contents: datagram, ..*transmit };
        if let Err(error) = send_once(socket, statistics, &single, 1) {
            count_refusal(health, statistics, &single, 1, &error);
        }
    }
}

fn count_refusal(
    health: &mut Health,
    statistics: &mut IoStatistics,
    transmit: &Transmit<'_>,
    datagrams: u64,
    error: &io::Error,
) {
    if error.kind() == io::ErrorKind::WouldBlock {
        statistics.send_buffer_full += datagrams;
        return;
    }
    if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) {
        health.too_long(transmit.path, transmit.contents.len());
    }
    statistics.send_refused += datagrams;
    tracing::trace!(remote = %transmit.path.remote, %error, "not sent");
}

/// One call; waits a little for room in the send buffer, because TCP inside the tunnel would take the
/// drop for congestion of the path.
fn send_once(
    socket: &Socket,
    statistics: &mut IoStatistics,
    transmit: &Transmit<'_>,
    datagrams: u64,
) -> io::Result<()> {
    let mut outcome = socket.send(transmit);
    if outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
        let mut descriptors = [PollFd::new(socket, PollFlags::OUT)];
        let _ = poll(&mut descriptors, Some(&timespec(SEND_WAIT)));
        outcome = socket.send(transmit);
    }
    if transmit.path.local.is_some() && outcome.as_ref().is_err_and(is_refusal_of_source) {
        // The address that the peer knows us by is ours no more. From another one the peer will answer, and follow.
        let path = Path { local: None, ..transmit.path };
        outcome = socket.send(&Transmit { path, ..*transmit });
    }
    if outcome.is_ok() {
        statistics.sends += 1;
        statistics.sent_datagrams += datagrams;
    }
    outcome
}

/// What drivers and kernels answer to a train that they cannot send (EIO: no checksum offload; EINVAL
/// and EMSGSIZE: a segment longer than the link's MTU, which may go out alone as fragments).
fn is_refusal_of_trains(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::IO, Errno::INVAL, Errno::MSGSIZE, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// What the kernel answers to a source address that is not, or no more, the node's own, or has no route of its own.
fn is_refusal_of_source(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::ADDRNOTAVAIL, Errno::NETUNREACH, Errno::HOSTUNREACH]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// A duration as `poll` takes it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}

/// How long to wait for room in the send buffer before a drop: it holds 8 ms at 8 Gbit/s.
const SEND_WAIT: Duration = Duration::from_millis(5);
