//! The UDP socket of a lane: trains out in one call, batches of coalesced datagrams in.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use adit_mesh_proto::{Path, Transmit};
use quinn_udp::{EcnCodepoint, RecvMeta, UdpSocketState};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Type};

/// What a lane's socket is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketSpec {
    /// Port on all addresses; 0 for any.
    pub port: u16,
    /// Firewall mark of what is sent.
    pub mark: Option<u32>,
}

/// A UDP socket on all addresses of both IP versions.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    v6: bool,
    port: u16,
}

/// Why a lane has no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The port is taken, or there is no network at all.
    #[error("cannot bind UDP port {port}")]
    Bind {
        /// Wanted port.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An option was refused.
    #[error("cannot set `{option}` of the mesh's UDP socket")]
    Option {
        /// Which one.
        option: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SocketSpec {
    /// The socket of a further lane: the next ports, so that a firewall can be told.
    #[must_use]
    pub fn of_lane(&self, number: u16) -> Self {
        let port = if self.port == 0 { 0 } else { self.port.checked_add(number).unwrap_or(0) };
        Self { port, mark: self.mark }
    }
}

impl Socket {
    /// Binds one socket for IPv6 and IPv4, or for IPv4 alone where the kernel has no IPv6.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(spec: &SocketSpec) -> Result<Self, SocketError> {
        let (socket, v6) = match open(Ipv6Addr::UNSPECIFIED.into(), spec.port) {
            Ok(socket) => (socket, true),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(SocketError::Bind { port: spec.port, source: error });
            }
            Err(_) => {
                let bind = |source| SocketError::Bind { port: spec.port, source };
                (open(Ipv4Addr::UNSPECIFIED.into(), spec.port).map_err(bind)?, false)
            }
        };
        let option = |option| move |source| SocketError::Option { option, source };
        if let Some(mark) = spec.mark {
            socket.set_mark(mark).map_err(option("SO_MARK"))?;
        }
        enlarge_buffers(&socket);
        let state = UdpSocketState::new((&socket).into()).map_err(option("UDP_GRO"))?;
        without_timestamps(&socket).map_err(option("SO_TIMESTAMPNS"))?;
        allow_fragments(&socket, v6).map_err(option("IP_MTU_DISCOVER"))?;
        let socket = UdpSocket::from(socket);
        let port = socket.local_addr().map_err(option("port"))?.port();
        Ok(Self { socket, state, v6, port })
    }

    /// The port that it is bound to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the kernel takes trains at all.
    #[must_use]
    pub fn takes_trains(&self) -> bool {
        self.state.max_gso_segments() > 1
    }

    /// Datagrams that the kernel has dropped because the receive buffer was full, as /proc/net/udp tells; 0 where it does not.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        let itself = format!("/proc/self/fd/{}", self.socket.as_raw_fd());
        let Ok(inode) = std::fs::metadata(itself).map(|metadata| metadata.ino()) else { return 0 };
        let table = if self.v6 { "/proc/thread-self/net/udp6" } else { "/proc/thread-self/net/udp" };
        std::fs::read_to_string(table).ok().and_then(|table| dropped(&table, inode)).unwrap_or_default()
    }

    /// Lets the kernel join received datagrams of one sender (UDP_GRO), as it does from the start, or not.
    ///
    /// # Errors
    /// What the kernel says; one without the option joins nothing anyhow.
    pub fn set_coalescing(&self, on: bool) -> io::Result<()> {
        Ok(nix::sys::socket::setsockopt(&self.socket, nix::sys::socket::sockopt::UdpGroSegment, &on)?)
    }

    /// Sends datagrams in one call; more than one only to a kernel that [takes
    /// trains](Self::takes_trains).
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer is full; else what the kernel says.
    pub fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: self.native(transmit.path.remote),
            ecn: EcnCodepoint::from_bits(transmit.ecn),
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: transmit.path.local,
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }

    /// Longest IP packet that the first link towards `remote` carries, if the kernel tells.
    #[must_use]
    pub fn mtu_towards(remote: SocketAddr) -> Option<u32> {
        let any: IpAddr =
            if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let probe = UdpSocket::bind((any, 0)).ok()?;
        probe.connect(remote).ok()?;
        sockopt::ip_mtu(&probe).ok()
    }

    /// An address as this socket's family writes it.
    fn native(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.v6 => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            other => other,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Buffers that datagrams are received into.
#[derive(Debug)]
pub struct Receiver {
    bytes: Vec<u8>,
    batches: [RecvMeta; BATCHES],
}

impl Default for Receiver {
    fn default() -> Self {
        Self { bytes: vec![0; BATCHES * BATCH_LEN], batches: [RecvMeta::default(); BATCHES] }
    }
}

impl Receiver {
    /// Receives what is there, at most [`BATCHES`] coalesced batches; says how many.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; else what the kernel says, such as an ICMP error of an
    /// earlier datagram.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        let mut chunks = self.bytes.chunks_exact_mut(BATCH_LEN);
        let mut slices: [IoSliceMut<'_>; BATCHES] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        socket.state.recv((&socket.socket).into(), &mut slices, &mut self.batches)
    }

    /// How many datagrams a batch of the last [`Receiver::receive`] has.
    #[must_use]
    pub fn datagrams(&self, index: usize) -> usize {
        let meta = &self.batches[index];
        meta.len.div_ceil(meta.stride.max(1))
    }

    /// Congestion bits of the outer headers of a batch (RFC 3168), 0 to 3.
    #[must_use]
    pub fn ecn(&self, index: usize) -> u8 {
        self.batches[index].ecn.map_or(0, |ecn| ecn as u8)
    }

    /// One batch of the last [`Receiver::receive`]: from where to where, its bytes, and the length of
    /// each datagram but the last.
    pub fn batch(&mut self, index: usize) -> (Path, &mut [u8], usize) {
        let meta = &self.batches[index];
        let path = Path { remote: canonical(meta.addr), local: meta.dst_ip.map(|ip| ip.to_canonical()) };
        let start = index * BATCH_LEN;
        (path, &mut self.bytes[start..start + meta.len], meta.stride)
    }
}

/// The last column of the socket's line; its inode is the tenth (proc_net_udp(5)).
fn dropped(table: &str, inode: u64) -> Option<u64> {
    let inode = inode.to_string();
    let line = table.lines().find(|line| line.split_ascii_whitespace().nth(9) == Some(&inode))?;
    line.split_ascii_whitespace().last()?.parse().ok()
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        // Flow label and scope are kept: link-local peers need the scope.
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => SocketAddr::V6(v6),
        other => (other.ip().to_canonical(), other.port()).into(),
    }
}

fn open(address: IpAddr, port: u16) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 },
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&SocketAddr::from((address, port)).into())?;
    Ok(socket)
}

/// Privileged first: `net.core.rmem_max` is 208 KiB on most systems, which is 0.2 ms at 8 Gbit/s.
fn enlarge_buffers(socket: &socket2::Socket) {
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_LEN).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER_LEN);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER_LEN).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_LEN);
    }
    let received = socket.recv_buffer_size().unwrap_or_default();
    if received < BUFFER_LEN {
        tracing::warn!(
            bytes = received,
            wanted = BUFFER_LEN,
            "the mesh's receive buffer is smaller than wanted: raise net.core.rmem_max"
        );
    }
}

/// `quinn-udp` asks for the time of each datagram, which nobody here reads; and its 96 bytes for control
/// messages do not hold time, stride, address and congestion bits together, so that the bits get lost.
fn without_timestamps(socket: &socket2::Socket) -> io::Result<()> {
    Ok(nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::ReceiveTimestampns, &false)?)
}

/// WireGuard lets its datagrams be fragmented, so that a tunnel whose MTU is set too high still works.
fn allow_fragments(socket: &socket2::Socket, v6: bool) -> io::Result<()> {
    sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::DONT)?;
    if v6 {
        sockopt::set_ipv6_mtu_discover(socket, sockopt::Ipv6PathMtuDiscovery::DONT)?;
    }
    Ok(())
}

/// Batches of one system call. Eight of 64 KiB stay in the cache of one core; more are only filled
/// when the thread is late anyhow.
pub const BATCHES: usize = 8;
/// The longest that coalesced datagrams can be: 64 KiB.
const BATCH_LEN: usize = 65_536;
/// Socket buffer in each direction: 8 ms at 8 Gbit/s, for as long as the thread may be off its core.
/// The kernel doubles the number for its own overhead; worst case 32 MiB a lane.
const BUFFER_LEN: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &Socket, receiver: &mut Receiver) -> usize {
        loop {
            match receiver.receive(socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                other => return other.unwrap(),
            }
        }
    }

    #[test]
    fn a_train_arrives_as_its_datagrams_over_ipv4_and_ipv6() {
        let sender = Socket::bind(&SocketSpec::default()).unwrap();
        let target = Socket::bind(&SocketSpec::default()).unwrap();
        let mut receiver = Receiver::default();
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let path = Path { remote: (ip, target.port()).into(), local: None };
            let contents: Vec<u8> = (0..10_007_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
            sender.send(&Transmit { path, segment_size: Some(1000), ecn: 2, contents: &contents }).unwrap();
            let mut got = Vec::new();
            while got.len() < contents.len() {
                for index in 0..receive(&target, &mut receiver) {
                    let ecn = receiver.ecn(index);
                    let (path, datagrams, stride) = receiver.batch(index);
                    assert_eq!(path.remote, (ip, sender.port()).into());
                    assert_eq!(path.local, Some(ip));
                    assert_eq!(ecn, 2);
                    assert!(stride == 1000 || datagrams.len() <= 1000);
                    got.extend_from_slice(datagrams);
                }
            }
            assert_eq!(got, contents);
        }
    }

    #[test]
    fn trains_arrive_one_by_one_where_joining_is_off() {
        let sender = Socket::bind(&SocketSpec::default()).unwrap();
        let target = Socket::bind(&SocketSpec::default()).unwrap();
        target.set_coalescing(false).unwrap();
        let path = Path { remote: (Ipv4Addr::LOCALHOST, target.port()).into(), local: None };
        let contents = vec![7; 10_000];
        sender.send(&Transmit { path, segment_size: Some(1000), ecn: 0, contents: &contents }).unwrap();
        let mut receiver = Receiver::default();
        let mut datagrams = 0;
        while datagrams < 10 {
            for index in 0..receive(&target, &mut receiver) {
                assert_eq!(receiver.batch(index).1.len(), 1000);
                datagrams += receiver.datagrams(index);
            }
        }
    }

    #[test]
    fn datagrams_that_found_the_buffer_full_are_counted() {
        let sender = Socket::bind(&SocketSpec::default()).unwrap();
        let target = Socket::bind(&SocketSpec::default()).unwrap();
        assert_eq!(target.overflows(), 0);
        let path = Path { remote: (Ipv4Addr::LOCALHOST, target.port()).into(), local: None };
        let contents = vec![7; 60_000];
        let train = Transmit { path, segment_size: Some(1000), ecn: 0, contents: &contents };
        // Twice what the largest buffer takes.
        for _ in 0..1000 {
            sender.send(&train).unwrap();
        }
        assert!(target.overflows() > 0);
    }

    #[test]
    fn a_taken_port_is_an_error_and_not_a_fallback_to_ipv4() {
        let first = Socket::bind(&SocketSpec::default()).unwrap();
        let spec = SocketSpec { port: first.port(), mark: None };
        assert!(matches!(Socket::bind(&spec), Err(SocketError::Bind { .. })));
    }

    #[test]
    fn the_first_links_mtu_is_known() {
        assert!(Socket::mtu_towards((Ipv4Addr::LOCALHOST, 9).into()).is_some_and(|mtu| mtu >= 1280));
    }
}
