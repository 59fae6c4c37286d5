//! The UDP sockets under QUIC: what one connection has to send in one turn of its driver leaves in one
//! system call.
//!
//! quinn hands over at most 10 datagrams at a time and 20 a turn; the kernel takes 64 (`UDP_SEGMENT`), and
//! its network stack is passed once for each call. `train.rs` joins what may be joined, `turn.rs` knows
//! when a turn begins and ends. Nothing is ever held beyond the end of a turn but what the kernel refused.

mod train;
mod turn;

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket},
    pin::Pin,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use prometheus::{IntCounter, IntGauge};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use rustix::net::sockopt;
use socket2::{Domain, Socket, Type};
use tokio::{io::Interest, net::UdpSocket as TokioSocket};

pub(crate) use self::turn::TurnRuntime;

/// What the sockets of an edge or a connector count.
#[derive(Clone, Debug)]
pub(crate) struct UdpMetrics {
    /// System calls that sent.
    pub(crate) sends: IntCounter,
    /// Datagrams that they sent.
    pub(crate) datagrams: IntCounter,
    /// Sends that waited for room in the socket's buffer.
    pub(crate) blocked: IntCounter,
    /// Sockets without segmentation offload.
    pub(crate) plain_sockets: IntGauge,
}

impl Default for UdpMetrics {
    /// Counters that nobody reads.
    fn default() -> Self {
        let counter = || IntCounter::new("uncounted", "Read by nobody.").expect("the name is legal");
        Self {
            sends: counter(),
            datagrams: counter(),
            blocked: counter(),
            plain_sockets: IntGauge::new("uncounted", "Read by nobody.").expect("the name is legal"),
        }
    }
}

/// A bound socket with buffers of the size wanted, or as near as the system allows.
pub(crate) fn bind(address: SocketAddr) -> io::Result<StdSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // Beyond net.core.rmem_max and wmem_max only with CAP_NET_ADMIN; the kernel caps the other silently.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        drop(socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES));
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        drop(socket.set_send_buffer_size(SOCKET_BUFFER_BYTES));
    }
    let got = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    if got < SOCKET_BUFFER_BYTES {
        SMALL_BUFFERS.call_once(|| {
            tracing::info!(
                wanted_bytes = SOCKET_BUFFER_BYTES,
                got_bytes = got,
                "UDP socket buffers are smaller than wanted; raise net.core.rmem_max and wmem_max"
            );
        });
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The largest UDP payload worth trying towards `remote`: what fits the first link, which the kernel
/// knows, but no less than Ethernet's and no more than jumbo frames'.
pub(crate) fn payload_max_towards(remote: SocketAddr) -> u16 {
    let mtu = first_link_mtu(remote).unwrap_or_default();
    let payload = mtu.saturating_sub(HEADER_BYTES);
    u16::try_from(payload).unwrap_or(u16::MAX).clamp(ETHERNET_PAYLOAD_BYTES, JUMBO_PAYLOAD_BYTES)
}

/// Connecting a datagram socket sends nothing; it only looks the route up.
fn first_link_mtu(remote: SocketAddr) -> io::Result<u32> {
    let any: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = StdSocket::bind(any)?;
    socket.connect(remote)?;
    Ok(if remote.is_ipv4() { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) }?)
}

/// A socket as quinn sees it.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    line: Arc<Line>,
    /// Datagrams that one receive of 64 KiB can join; quinn sizes its buffers by it.
    receive_segments: usize,
}

impl UdpSocket {
    /// Takes over a bound socket that is to receive datagrams of `payload_max` bytes at most. Must be
    /// called within a tokio runtime.
    pub(crate) fn new(socket: StdSocket, payload_max: u16, metrics: UdpMetrics) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let line = Line { io: TokioSocket::from_std(socket)?, state, plain: AtomicBool::new(false), metrics };
        line.look_for_offload(None);
        let joined = RECEIVE_BYTES_MAX.div_ceil(usize::from(payload_max));
        let receive_segments = joined.min(line.state.gro_segments());
        Ok(Self { line: Arc::new(line), receive_segments })
    }
}

impl AsyncUdpSocket for UdpSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(TurnPoller)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        turn::send(&self.line, transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let line = &*self.line;
        let count = buffers.len().min(RECEIVE_BATCHES);
        loop {
            ready!(line.io.poll_recv_ready(cx))?;
            let received = line.io.try_io(Interest::READABLE, || {
                line.state.recv((&line.io).into(), &mut buffers[..count], meta)
            });
            if let Ok(count) = received {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.line.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.line.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.receive_segments
    }

    fn may_fragment(&self) -> bool {
        self.line.state.may_fragment()
    }
}

/// The socket itself, shared with whoever waits for room in its buffer.
struct Line {
    io: TokioSocket,
    state: UdpSocketState,
    /// Known to be without segmentation offload.
    plain: AtomicBool,
    metrics: UdpMetrics,
}

impl Line {
    /// Sends at once; the only error is [`io::ErrorKind::WouldBlock`], since whatever else is lost QUIC
    /// finds out.
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.state.send((&self.io).into(), transmit))?;
        self.metrics.sends.inc();
        let segments = transmit.segment_size.map_or(1, |size| transmit.contents.len().div_ceil(size.max(1)));
        self.metrics.datagrams.inc_by(segments as u64);
        if segments > 1 {
            self.look_for_offload(Some(transmit.destination));
        }
        Ok(())
    }

    /// A socket that loses its offload costs three times the CPU: that is said, once.
    fn look_for_offload(&self, destination: Option<SocketAddr>) {
        if self.state.max_gso_segments() == 1 && !self.plain.swap(true, Ordering::Relaxed) {
            self.metrics.plain_sockets.inc();
            let destination = destination.map(|destination| destination.ip());
            tracing::warn!(
                reason = "gso_unavailable",
                ?destination,
                "UDP segmentation offload does not work here; datagrams are sent one by one"
            );
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.plain.load(Ordering::Relaxed) {
            self.metrics.plain_sockets.dec();
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("io", &self.io).finish_non_exhaustive()
    }
}

/// quinn asks before each send; what waits is known to the turn, which also wakes the driver.
#[derive(Debug)]
struct TurnPoller;

impl UdpPoller for TurnPoller {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if turn::is_blocked() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

/// Every dial finds the same; it is said once.
static SMALL_BUFFERS: Once = Once::new();

/// A burst of 1 Gbit/s for 64 ms fits; the default of 208 KiB holds less than 2 ms.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// IPv6's header and UDP's; IPv4's is shorter, but a path may change its family (NAT64).
const HEADER_BYTES: u32 = 48;
/// What Ethernet's 1500 bytes leave; stock connectors announce it too (§2.2).
pub(crate) const ETHERNET_PAYLOAD_BYTES: u16 = 1452;
/// What jumbo frames of 9000 bytes leave.
pub(crate) const JUMBO_PAYLOAD_BYTES: u16 = 8952;

/// Bytes that the kernel joins into one receive at most. quinn has 32 buffers of this size for each
/// socket, of which [`RECEIVE_BATCHES`] are ever written: 512 KiB a socket.
const RECEIVE_BYTES_MAX: usize = 64 * 1024;

/// Joined receives taken by one call, of up to 64 KiB each: few enough that they are still in the CPU's
/// cache when they are decrypted.
const RECEIVE_BATCHES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_tried_with_jumbo_frames_only_where_its_first_link_has_them() {
        let documentation = payload_max_towards("192.0.2.1:7844".parse().unwrap());
        assert!((ETHERNET_PAYLOAD_BYTES..=JUMBO_PAYLOAD_BYTES).contains(&documentation));
        let loopback = payload_max_towards("127.0.0.1:7844".parse().unwrap());
        let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
        let fits = mtu.trim().parse::<u32>().unwrap().saturating_sub(HEADER_BYTES);
        let wanted = fits.clamp(ETHERNET_PAYLOAD_BYTES.into(), JUMBO_PAYLOAD_BYTES.into());
        assert_eq!(u32::from(loopback), wanted);
    }
}
