//! smoltcp's view of the lane: packets go in one at a time, segments come out into the lane's buffer.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken,
};
use smoltcp::wire::HardwareAddress;

use super::packet::{IPV4_LEN, TCP_LEN};

/// An interface without addresses of its own: who is asked is decided before.
pub(super) struct Link {
    interface: Interface,
    capabilities: DeviceCapabilities,
    /// Where smoltcp's clock began.
    epoch: Instant,
}

/// The links of a stack: smoltcp ties the length of segments to the interface, not to the connection.
pub(super) struct Links([Link; 3]);

/// How long the segments of a connection may be now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// As the mesh's MTU says, and many at once where smoltcp can.
    Wide,
    /// As the mesh's MTU says, one by one.
    Single,
    /// As every path carries them: some path is narrower than the mesh.
    Narrow,
}

/// What came out of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Emitted {
    pub(super) len: usize,
    /// Payload bytes of each segment, if they have yet to be cut.
    pub(super) segment_size: Option<u16>,
}

/// Packets that wait to be read: answers to what came in.
#[derive(Debug, Default)]
pub(super) struct Answers {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
    /// Answers that found no room, not counted yet.
    overflows: u64,
}

impl Links {
    /// Links of a mesh whose packets have at most `mtu` bytes.
    pub(super) fn new(mtu: u16, epoch: Instant) -> Self {
        let narrow = mtu.min(NARROW_MTU);
        Self([Link::new(mtu, true, epoch), Link::new(mtu, false, epoch), Link::new(narrow, false, epoch)])
    }

    pub(super) fn of(&mut self, width: Width) -> &mut Link {
        &mut self.0[width as usize]
    }
}

impl Link {
    fn new(mtu: u16, joins: bool, epoch: Instant) -> Self {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(mtu);
        capabilities.checksum = ChecksumCapabilities::ignored();
        // WireGuard has authenticated what comes in. What goes out: IPv4 headers here, TCP when it is known whether
        // the segment is still to be cut.
        capabilities.checksum.ipv4 = Checksum::Tx;
        // smoltcp 0.14 cuts IPv6 itself: it would drop larger packets in `dispatch_ip`.
        capabilities.segmentation.tcpv4 =
            NonZeroUsize::new(super_packet_len(usize::from(mtu))).filter(|_| joins);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rand::random();
        let mut idle = Egress { buffer: &mut [], emitted: None, capabilities: &capabilities };
        let mut interface = Interface::new(config, &mut idle, smoltcp::time::Instant::ZERO);
        interface.set_any_ip(true);
        Self { interface, capabilities, epoch }
    }

    /// The same moment on smoltcp's clock.
    pub(super) fn clock(&self, now: Instant) -> smoltcp::time::Instant {
        smoltcp::time::Instant::ZERO + smoltcp_time(now.saturating_duration_since(self.epoch))
    }

    /// For sockets that begin to connect.
    pub(super) fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.interface.context()
    }

    /// Hands a packet to the only socket in `sockets`, or has it reset if there is none.
    pub(super) fn ingress(
        &mut self,
        packet: &[u8],
        sockets: &mut SocketSet<'static>,
        answers: &mut Answers,
        now: Instant,
    ) {
        let now = self.clock(now);
        let mut device = Ingress { packet: Some(packet), answers, capabilities: &self.capabilities };
        self.interface.poll_ingress_single(now, &mut device, sockets);
    }

    /// The next segment of the only socket in `sockets`, written to `buffer`.
    pub(super) fn egress(
        &mut self,
        buffer: &mut [u8],
        sockets: &mut SocketSet<'static>,
        now: Instant,
    ) -> Option<Emitted> {
        let now = self.clock(now);
        let mut device = Egress { buffer, emitted: None, capabilities: &self.capabilities };
        match self.interface.poll_egress(now, &mut device, sockets) {
            PollResult::None => None,
            PollResult::SocketStateChanged => device.emitted,
        }
    }

    /// When the socket wants to be asked again.
    pub(super) fn poll_at(&mut self, sockets: &SocketSet<'static>, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(self.clock(now), sockets)?;
        Some(self.epoch + Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0) / CLOCK_RATE))
    }
}

impl Answers {
    /// Queues a packet unless [`ANSWER_BYTES_MAX`] wait already.
    pub(super) fn push(&mut self, packet: Vec<u8>) {
        if self.bytes + packet.len() > ANSWER_BYTES_MAX {
            self.overflows += 1;
            return;
        }
        self.bytes += packet.len();
        self.packets.push_back(packet);
    }

    /// The next packet, copied to `buffer`; its length.
    pub(super) fn pop(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let mut packet = self.packets.pop_front()?;
        let len = packet.len();
        self.bytes -= len;
        buffer[..len].copy_from_slice(&packet);
        if self.spare.len() < SPARE_BUFFERS_MAX {
            packet.clear();
            self.spare.push(packet);
        }
        Some(len)
    }

    /// Takes what must be counted as dropped.
    pub(super) fn take_overflows(&mut self) -> u64 {
        std::mem::take(&mut self.overflows)
    }
}

struct Ingress<'a> {
    packet: Option<&'a [u8]>,
    answers: &'a mut Answers,
    capabilities: &'a DeviceCapabilities,
}

struct Egress<'a> {
    buffer: &'a mut [u8],
    emitted: Option<Emitted>,
    capabilities: &'a DeviceCapabilities,
}

struct Received<'a>(&'a [u8]);

struct Answer<'a>(&'a mut Answers);

struct Slot<'a> {
    buffer: &'a mut [u8],
    emitted: &'a mut Option<Emitted>,
    segment_size: Option<u16>,
}

impl Device for Ingress<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Answer<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received<'_>, Answer<'_>)> {
        Some((Received(self.packet.take()?), Answer(self.answers)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Answer<'_>> {
        Some(Answer(self.answers))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

impl Device for Egress<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Slot<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received<'_>, Slot<'_>)> {
        None
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Slot<'_>> {
        let free = self.emitted.is_none();
        free.then_some(Slot { buffer: self.buffer, emitted: &mut self.emitted, segment_size: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Answer<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = self.0.spare.pop().unwrap_or_default();
        packet.resize(len, 0);
        let result = f(&mut packet);
        super::packet::complete_tcp(&mut packet);
        self.0.push(packet);
        result
    }
}

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let result = f(&mut self.buffer[..len]);
        *self.emitted = Some(Emitted { len, segment_size: self.segment_size });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size.map(std::num::NonZeroU16::get);
    }
}

/// How long something takes on smoltcp's clock.
#[expect(clippy::cast_possible_truncation, reason = "2^64 µs are half a million years")]
pub(super) const fn smoltcp_time(duration: Duration) -> smoltcp::time::Duration {
    smoltcp::time::Duration::from_micros(duration.as_micros() as u64 * CLOCK_RATE)
}

/// As many segments as one train holds: each is sealed and padded, and a train is at most one UDP send.
fn super_packet_len(mtu: usize) -> usize {
    let segments = (TRAIN_BYTES_MAX / (mtu + SEALED_BYTES_MAX)).clamp(1, TRAIN_SEGMENTS_MAX);
    let headers = IPV4_LEN + TCP_LEN;
    headers + segments * mtu.saturating_sub(headers)
}

/// smoltcp's clock runs so much faster than ours. It never repeats a lost segment in less than a second of its own
/// (RFC 6298 §2.4), which is an age for a path whose round trip takes 20 ms; Linux has used 200 ms for decades. CUBIC
/// measures time on the same clock and regains its window in a quarter of the time after a loss.
const CLOCK_RATE: u64 = 4;
/// The least MTU of IPv6, which every path has (RFC 8200 §5).
const NARROW_MTU: u16 = 1280;
/// UDP payload of one send.
const TRAIN_BYTES_MAX: usize = 65_507;
/// Segments of one send (`UDP_MAX_SEGMENTS` of older kernels).
const TRAIN_SEGMENTS_MAX: usize = 64;
/// WireGuard's header and tag, and padding to 16 bytes.
const SEALED_BYTES_MAX: usize = 48;
/// Answers that wait to be read: with 256 KiB some 4,000 resets or acknowledgements.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Buffers kept for the next answers; most are smaller than 100 bytes.
const SPARE_BUFFERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_packets_fit_a_train_and_an_ip_packet() {
        for mtu in [576, 1280, 1408, 1500, 9000, 65_456] {
            let len = super_packet_len(mtu);
            assert!(len <= 65_535, "{mtu}: {len}");
            let segments = (len - 40).div_ceil(mtu - 40);
            assert!(segments == 1 || segments * (mtu + SEALED_BYTES_MAX) <= TRAIN_BYTES_MAX, "{mtu}");
        }
    }

    #[test]
    fn answers_beyond_their_bytes_are_counted() {
        let mut answers = Answers::default();
        for _ in 0..ANSWER_BYTES_MAX / 1024 + 3 {
            answers.push(vec![0; 1024]);
        }
        assert_eq!(answers.take_overflows(), 3);
        let mut buffer = [0; 2048];
        while answers.pop(&mut buffer).is_some() {}
        assert_eq!(answers.bytes, 0);
    }
}
