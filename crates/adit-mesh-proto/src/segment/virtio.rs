//! The ten bytes of `virtio_net_hdr` that stand before each packet of a TUN device with IFF_VNET_HDR.

/// Length of the virtio header in bytes (`virtio_net_hdr` without `num_buffers`).
pub const VIRTIO_HEADER_LEN: usize = 10;

/// What a packet still needs done: which segmentation, and which checksum is only half there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Which kind of super-packet, if it is one.
    pub kind: OffloadKind,
    /// Length in bytes of all headers. A hint: on the forward path the kernel sets it to the length of
    /// the whole first packet, so nothing here believes it.
    pub header_len: u16,
    /// Payload bytes of each segment but the last; 0 without segmentation.
    pub segment_size: u16,
    /// The transport checksum covers only the pseudo-header so far.
    pub partial_checksum: Option<PartialChecksum>,
}

/// Kind of segmentation that a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OffloadKind {
    /// One ordinary packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of equal size (the last may be shorter), IPv4 or IPv6.
    Udp,
}

/// Where the checksum that has to be completed begins and stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte that it covers, from the start of the IP packet.
    pub start: u16,
    /// Where its two bytes are, from `start`.
    pub offset: u16,
}

/// Why a virtio header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedOffload {
    /// Fewer than [`VIRTIO_HEADER_LEN`] bytes.
    #[error("virtio header is shorter than {VIRTIO_HEADER_LEN} bytes")]
    Short,
    /// A kind of segmentation that was never negotiated.
    #[error("unknown kind of segmentation {0}")]
    Kind(u8),
    /// A super-packet without a segment size.
    #[error("segmentation without a segment size")]
    SegmentSize,
}

impl Offload {
    /// A packet that needs nothing.
    pub const NONE: Self =
        Self { kind: OffloadKind::None, header_len: 0, segment_size: 0, partial_checksum: None };

    /// Reads the header as the kernel wrote it (native byte order: the device is legacy virtio).
    ///
    /// # Errors
    /// [`MalformedOffload`] for what a kernel does not send with the offloads that were asked for.
    pub fn parse(header: &[u8]) -> Result<Self, MalformedOffload> {
        let header: &[u8; VIRTIO_HEADER_LEN] = header.first_chunk().ok_or(MalformedOffload::Short)?;
        let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let kind = match header[1] & !GSO_ECN {
            GSO_NONE => OffloadKind::None,
            GSO_TCPV4 => OffloadKind::Tcp4,
            GSO_TCPV6 => OffloadKind::Tcp6,
            GSO_UDP_L4 => OffloadKind::Udp,
            other => return Err(MalformedOffload::Kind(other)),
        };
        let segment_size = field(4);
        if kind != OffloadKind::None && segment_size == 0 {
            return Err(MalformedOffload::SegmentSize);
        }
        let partial_checksum = (header[0] & FLAG_NEEDS_CHECKSUM != 0)
            .then(|| PartialChecksum { start: field(6), offset: field(8) });
        Ok(Self { kind, header_len: field(2), segment_size, partial_checksum })
    }

    /// The header as the kernel reads it.
    #[must_use]
    pub fn encode(&self) -> [u8; VIRTIO_HEADER_LEN] {
        let mut header = [0; VIRTIO_HEADER_LEN];
        header[1] = match self.kind {
            OffloadKind::None => GSO_NONE,
            OffloadKind::Tcp4 => GSO_TCPV4,
            OffloadKind::Tcp6 => GSO_TCPV6,
            OffloadKind::Udp => GSO_UDP_L4,
        };
        header[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        header[4..6].copy_from_slice(&self.segment_size.to_ne_bytes());
        if let Some(partial) = self.partial_checksum {
            header[0] = FLAG_NEEDS_CHECKSUM;
            header[6..8].copy_from_slice(&partial.start.to_ne_bytes());
            header[8..10].copy_from_slice(&partial.offset.to_ne_bytes());
        }
        header
    }
}

// linux/virtio_net.h
const FLAG_NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside a TCP kind when the first segment carries CWR; the splitter looks at the flag itself.
const GSO_ECN: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_way_to_the_kernel_and_back() {
        for kind in [OffloadKind::None, OffloadKind::Tcp4, OffloadKind::Tcp6, OffloadKind::Udp] {
            for partial_checksum in [None, Some(PartialChecksum { start: 40, offset: 16 })] {
                let offload = Offload { kind, header_len: 52, segment_size: 1368, partial_checksum };
                assert_eq!(Offload::parse(&offload.encode()), Ok(offload));
            }
        }
    }

    #[test]
    fn headers_that_no_kernel_sends_are_refused_by_name() {
        assert_eq!(Offload::parse(&[0; 9]), Err(MalformedOffload::Short));
        assert_eq!(Offload::parse(&[0, 3, 0, 0, 1, 0, 0, 0, 0, 0]), Err(MalformedOffload::Kind(3)));
        assert_eq!(Offload::parse(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Err(MalformedOffload::SegmentSize));
    }
}
