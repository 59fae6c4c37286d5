//! Which packets belong to one flow and may be merged: the rules of the kernel's receive offload
//! (`tcp_gro_receive`, `udp_gro_receive`, `inet_gro_receive`).

use super::checksum::{Sum, pseudo_header};
use super::split::{FIN, IPV6_LEN, PSH, TCP, TCP_LEN, UDP, UDP_LEN};
use super::virtio::{Offload, OffloadKind, PartialChecksum};

/// Where the headers of a packet are that has a flow: TCP or UDP, no fragment, no extension header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) v6: bool,
    pub(super) tcp: bool,
    pub(super) transport: usize,
    pub(super) header_len: usize,
}

/// How the IPv4 ids of a group have gone on so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ids {
    /// Only one packet so far, or IPv6.
    Open,
    /// One more with each packet, as every segmentation offload numbers them.
    Counting,
    /// The same in all packets. Only where fragmentation is forbidden, where the id means nothing
    /// (RFC 6864 section 4.1).
    Fixed,
}

impl Shape {
    /// Reads headers; nothing if the packet has no flow that later packets could be merged into.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let v6 = match packet.first()? >> 4 {
            4 => false,
            6 => true,
            _ => return None,
        };
        let transport = if v6 { IPV6_LEN } else { IPV4_LEN };
        if packet.len() < transport + UDP_LEN {
            return None;
        }
        // IPv4 options are left alone as in the kernel; MF, an offset and the reserved bit as well.
        let plain = v6 || (packet[0] == 0x45 && packet[6] & !0x40 == 0 && packet[7] == 0);
        let length = usize::from(be16(packet, if v6 { 4 } else { 2 })) + if v6 { IPV6_LEN } else { 0 };
        if !plain || length != packet.len() {
            return None;
        }
        let (tcp, transport_len) = match packet[if v6 { 6 } else { 9 }] {
            UDP => (false, UDP_LEN),
            TCP => (true, usize::from(packet.get(transport + 12)? >> 4) * 4),
            _ => return None,
        };
        let header_len = transport + transport_len;
        let long_enough = transport_len >= if tcp { TCP_LEN } else { UDP_LEN };
        (long_enough && packet.len() >= header_len).then_some(Self { v6, tcp, transport, header_len })
    }

    /// Addresses as they stand in the header.
    pub(super) fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        if self.v6 { &packet[8..40] } else { &packet[12..20] }
    }

    /// Whether both packets have the same addresses, ports and protocol.
    pub(super) fn same_flow(&self, packet: &[u8], other: &Self, header: &[u8]) -> bool {
        self.v6 == other.v6
            && self.tcp == other.tcp
            && packet[self.transport..self.transport + 4] == header[other.transport..other.transport + 4]
            && self.addresses(packet) == other.addresses(header)
    }

    /// Whether this packet may begin a group at all: it carries data, none of the flags that end a
    /// flow, and right checksums. A wrong checksum must not be merged, or the rewritten checksum
    /// would launder it.
    pub(super) fn may_begin(&self, packet: &[u8]) -> bool {
        if packet.len() == self.header_len {
            return false;
        }
        if self.tcp {
            let flags = packet[self.transport + 13];
            // ACK has to be there; SYN, RST, URG and CWR must not.
            if flags & 0b1011_0110 != ACK {
                return false;
            }
        } else if be16(packet, self.transport + 4) as usize != packet.len() - self.transport
            || be16(packet, self.transport + 6) == 0
        {
            return false;
        }
        self.checksums_valid(packet)
    }

    fn checksums_valid(&self, packet: &[u8]) -> bool {
        let Ok(transport_len) = u16::try_from(packet.len() - self.transport) else { return false };
        let protocol = if self.tcp { TCP } else { UDP };
        let header_valid = self.v6 || Sum::default().with(&packet[..IPV4_LEN]).is_valid();
        header_valid
            && pseudo_header(self.addresses(packet), protocol, transport_len)
                .with(&packet[self.transport..])
                .is_valid()
    }

    /// Whether `packet` continues a group whose first header is `header`, ids aside. Lengths and
    /// sequence numbers are the group's business.
    pub(super) fn headers_continue(&self, packet: &[u8], header: &[u8]) -> bool {
        let ip = if self.v6 {
            // Version, class and flow label; hop limit.
            packet[..4] == header[..4] && packet[7] == header[7]
        } else {
            // Type of service; flags; time to live.
            packet[1] == header[1] && packet[6] == header[6] && packet[8] == header[8]
        };
        if !ip || !self.tcp {
            return ip;
        }
        let (packet, header) = (&packet[self.transport..self.header_len], &header[self.transport..]);
        packet[8..13] == header[8..13]
            && (packet[13] ^ header[13]) & !(FIN | PSH) == 0
            && packet[14..16] == header[14..16]
            && packet[18..] == header[18..packet.len()]
    }

    /// How the IPv4 id of the packet after `merged` others fits, or nothing.
    pub(super) fn ids_continue(&self, ids: Ids, packet: &[u8], header: &[u8], merged: u16) -> Option<Ids> {
        if self.v6 {
            return Some(Ids::Open);
        }
        let first = be16(header, 4);
        let id = be16(packet, 4);
        let counting = id == first.wrapping_add(merged);
        let fixed = id == first && packet[6] & 0x40 != 0;
        match ids {
            Ids::Open | Ids::Counting if counting => Some(Ids::Counting),
            Ids::Open | Ids::Fixed if fixed => Some(Ids::Fixed),
            _ => None,
        }
    }

    /// TCP sequence number.
    pub(super) fn sequence(&self, packet: &[u8]) -> u32 {
        let at = self.transport + 4;
        u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
    }

    /// Whether FIN or PSH is set, which ends a group.
    pub(super) fn ends_group(&self, packet: &[u8]) -> bool {
        self.tcp && packet[self.transport + 13] & (FIN | PSH) != 0
    }

    /// Turns the first packet's header into that of the whole group, whose checksum the kernel
    /// completes, and says what offload it needs.
    pub(super) fn finish(&self, group: &mut [u8], segment_size: u16) -> Offload {
        let total = u16::try_from(group.len()).expect("a group is at most 65,535 bytes long");
        let transport_len = total - u16::try_from(self.transport).expect("a header length");
        if self.v6 {
            group[4..6].copy_from_slice(&(total - 40).to_be_bytes());
        } else {
            group[2..4].copy_from_slice(&total.to_be_bytes());
            group[10..12].fill(0);
            let checksum = Sum::default().with(&group[..IPV4_LEN]).finish();
            group[10..12].copy_from_slice(&checksum);
        }
        let protocol = if self.tcp { TCP } else { UDP };
        let partial = pseudo_header(self.addresses(group), protocol, transport_len).partial();
        let offset = if self.tcp { 16 } else { 6 };
        let at = self.transport + offset;
        group[at..at + 2].copy_from_slice(&partial);
        if !self.tcp {
            group[self.transport + 4..self.transport + 6].copy_from_slice(&transport_len.to_be_bytes());
        }
        let kind = match (self.tcp, self.v6) {
            (true, false) => OffloadKind::Tcp4,
            (true, true) => OffloadKind::Tcp6,
            (false, _) => OffloadKind::Udp,
        };
        let narrow = |length: usize| u16::try_from(length).expect("a header length");
        let partial_checksum =
            Some(PartialChecksum { start: narrow(self.transport), offset: narrow(offset) });
        Offload { kind, header_len: narrow(self.header_len), segment_size, partial_checksum }
    }
}

fn be16(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

const IPV4_LEN: usize = 20;
const ACK: u8 = 0x10;
