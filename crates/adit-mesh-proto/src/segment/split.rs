//! Cuts a super-packet into packets, in place.

use super::checksum::{Sum, pseudo_header};
use super::virtio::{Offload, OffloadKind};

/// Cuts one packet from the TUN device into packets that fit the tunnel, completing checksums.
///
/// Nothing but headers is copied: the header of segment N is written right in front of payload N, over
/// the tail of payload N − 1. Each segment is therefore gone (encrypted) before the next is asked for,
/// which the borrow of [`Splitter::next`] enforces.
#[derive(Debug)]
pub struct Splitter<'a> {
    packet: &'a mut [u8],
    /// Copy of all headers, because cutting in place overwrites them.
    header: [u8; MAX_HEADER_LEN],
    layout: Layout,
    segment_size: usize,
    /// Start of the next payload in `packet`.
    at: usize,
    index: u16,
}

/// Why a packet from the TUN device cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The headers do not fit into the packet.
    #[error("packet is shorter than its headers")]
    Truncated,
    /// Neither IPv4 nor IPv6, or not of the version that the offload names.
    #[error("IP version does not fit the offload")]
    Version,
    /// Not the protocol that the offload names, or behind extension headers or a fragment header.
    #[error("transport protocol does not fit the offload")]
    Protocol,
    /// The place of the checksum lies outside of the packet.
    #[error("checksum lies outside of the packet")]
    Checksum,
    /// Longer than an IP packet may be.
    #[error("packet is longer than 65,535 bytes")]
    Oversize,
}

impl<'a> Splitter<'a> {
    /// Checks the headers of `packet` against `offload`.
    ///
    /// # Errors
    /// [`SplitError`] for packets whose headers and offload do not fit together.
    pub fn new(packet: &'a mut [u8], offload: Offload) -> Result<Self, SplitError> {
        if packet.len() > MAX_PACKET_LEN {
            return Err(SplitError::Oversize);
        }
        let (layout, segment_size) = if offload.kind == OffloadKind::None {
            complete_checksum(packet, offload)?;
            (Layout { transport: 0, header_len: 0, protocol: 0, v6: false }, packet.len())
        } else {
            (Layout::parse(packet, offload.kind)?, usize::from(offload.segment_size))
        };
        let mut header = [0; MAX_HEADER_LEN];
        header[..layout.header_len].copy_from_slice(&packet[..layout.header_len]);
        Ok(Self { at: layout.header_len, packet, header, layout, segment_size, index: 0 })
    }

    /// How many packets there are, all told.
    #[must_use]
    pub fn segments(&self) -> usize {
        (self.packet.len() - self.layout.header_len).div_ceil(self.segment_size.max(1)).max(1)
    }

    /// The next packet, complete with lengths and checksums.
    #[expect(clippy::should_implement_trait, reason = "the item borrows from the splitter")]
    pub fn next(&mut self) -> Option<&mut [u8]> {
        if self.at >= self.packet.len() && self.index > 0 {
            return None;
        }
        let end = (self.at + self.segment_size).min(self.packet.len());
        let last = end == self.packet.len();
        let start = self.at - self.layout.header_len;
        let segment = &mut self.packet[start..end];
        if self.layout.header_len > 0 {
            segment[..self.layout.header_len].copy_from_slice(&self.header[..self.layout.header_len]);
            self.layout.finish(segment, self.index, self.segment_size, last);
        }
        self.at = end;
        self.index += 1;
        Some(segment)
    }
}

/// Where the headers of a super-packet are.
#[derive(Debug, Clone, Copy)]
struct Layout {
    transport: usize,
    header_len: usize,
    protocol: u8,
    v6: bool,
}

impl Layout {
    fn parse(packet: &[u8], kind: OffloadKind) -> Result<Self, SplitError> {
        let version = packet.first().ok_or(SplitError::Truncated)? >> 4;
        let v6 = match (version, kind) {
            (4, OffloadKind::Tcp4 | OffloadKind::Udp) => false,
            (6, OffloadKind::Tcp6 | OffloadKind::Udp) => true,
            _ => return Err(SplitError::Version),
        };
        let protocol = if kind == OffloadKind::Udp { UDP } else { TCP };
        let transport = if v6 { IPV6_LEN } else { usize::from(packet[0] & 0xf) * 4 };
        let at = if v6 { 6 } else { 9 };
        if transport < 20 || packet.len() < transport + UDP_LEN {
            return Err(SplitError::Truncated);
        }
        let fragment = !v6 && (packet[6] & 0x3f, packet[7]) != (0, 0);
        if packet[at] != protocol || fragment {
            return Err(SplitError::Protocol);
        }
        let transport_len = match protocol {
            UDP => UDP_LEN,
            _ => usize::from(packet.get(transport + 12).ok_or(SplitError::Truncated)? >> 4) * 4,
        };
        let header_len = transport + transport_len;
        let shortest = if protocol == UDP { UDP_LEN } else { TCP_LEN };
        if transport_len < shortest || packet.len() < header_len {
            return Err(SplitError::Truncated);
        }
        Ok(Self { transport, header_len, protocol, v6 })
    }

    /// Writes what differs between segments: lengths, IPv4 id, TCP sequence number and flags, checksums.
    fn finish(&self, segment: &mut [u8], index: u16, segment_size: usize, last: bool) {
        let total = u16::try_from(segment.len()).expect("the packet is at most 65,535 bytes long");
        let transport_len = total - u16::try_from(self.transport).expect("a header length");
        if self.v6 {
            segment[4..6].copy_from_slice(&(total - 40).to_be_bytes());
        } else {
            segment[2..4].copy_from_slice(&total.to_be_bytes());
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(index);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
            segment[10..12].fill(0);
            let checksum = Sum::default().with(&segment[..self.transport]).finish();
            segment[10..12].copy_from_slice(&checksum);
        }
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let pseudo = pseudo_header(&segment[addresses], self.protocol, transport_len);
        let transport = &mut segment[self.transport..];
        if self.protocol == UDP {
            finish_udp(transport, transport_len, pseudo);
        } else {
            let offset = u32::from(index) * u32::try_from(segment_size).expect("a 16-bit size");
            finish_tcp(transport, offset, index == 0, last, pseudo);
        }
    }
}

fn finish_udp(datagram: &mut [u8], len: u16, pseudo: Sum) {
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    datagram[6..8].fill(0);
    let checksum = match pseudo.with(datagram).finish() {
        // RFC 768: a checksum of zero goes out as all ones, because zero says that there is none.
        [0, 0] => [0xff, 0xff],
        other => other,
    };
    datagram[6..8].copy_from_slice(&checksum);
}

fn finish_tcp(segment: &mut [u8], offset: u32, first: bool, last: bool, pseudo: Sum) {
    let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]).wrapping_add(offset);
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    if !last {
        segment[13] &= !(FIN | PSH);
    }
    // RFC 3168 section 6.1.2: one window reduction, one CWR.
    if !first {
        segment[13] &= !CWR;
    }
    segment[16..18].fill(0);
    let checksum = pseudo.with(segment).finish();
    segment[16..18].copy_from_slice(&checksum);
}

/// Completes the checksum of a single packet; the kernel has already put the pseudo-header's sum there.
fn complete_checksum(packet: &mut [u8], offload: Offload) -> Result<(), SplitError> {
    let Some(partial) = offload.partial_checksum else { return Ok(()) };
    let start = usize::from(partial.start);
    let at = start + usize::from(partial.offset);
    if at + 2 > packet.len() {
        return Err(SplitError::Checksum);
    }
    let checksum = match Sum::default().with(&packet[start..]).finish() {
        // Only UDP gives zero a meaning; all ones is the same number for everyone else.
        [0, 0] => [0xff, 0xff],
        other => other,
    };
    packet[at..at + 2].copy_from_slice(&checksum);
    Ok(())
}

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const IPV6_LEN: usize = 40;
pub(super) const TCP_LEN: usize = 20;
pub(super) const UDP_LEN: usize = 8;
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// IPv4 with options (60) and TCP with options (60) are the longest headers; IPv6 with extension
/// headers is refused.
pub(super) const MAX_HEADER_LEN: usize = 120;
/// Longest IP packet: the 16-bit total length of IPv4, which also bounds what TUN hands over.
pub(super) const MAX_PACKET_LEN: usize = 65_535;
