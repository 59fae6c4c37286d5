//! IP headers, parsed once and conservatively: what cannot be told for certain is said to be unknown.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::segment::checksum;

/// What the engine needs to know of an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IpHeader {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Protocol right behind the IP header; for IPv6 perhaps that of an extension header.
    pub(crate) protocol: u8,
    /// Where the transport header begins.
    pub(crate) transport: usize,
    /// Length of the packet by its own account; at most that of the buffer.
    pub(crate) len: usize,
    pub(crate) shape: Shape,
    /// IPv4 only: the packet must not be split on its way.
    pub(crate) dont_fragment: bool,
}

/// Whether `transport` points at a whole transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Yes.
    Plain,
    /// Part of a packet.
    Fragment,
    /// IPv4 options or IPv6 extension headers stand in between. They are not walked: what is behind them could be read
    /// differently by somebody else.
    Extended,
}

impl IpHeader {
    /// Reads the header of a packet that lies wholly in `packet`; `None` if it is none.
    #[inline]
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; IPV4_LEN] = packet.first_chunk()?;
        let transport = usize::from(header[0] & 0xf) * 4;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if transport < IPV4_LEN || len < transport || len > packet.len() {
            return None;
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let shape = match () {
            () if fragment & MORE_AND_OFFSET != 0 => Shape::Fragment,
            () if transport > IPV4_LEN => Shape::Extended,
            () => Shape::Plain,
        };
        Some(Self {
            source: IpAddr::V4(Ipv4Addr::from(*header[12..].first_chunk::<4>()?)),
            destination: IpAddr::V4(Ipv4Addr::from(*header[16..].first_chunk::<4>()?)),
            protocol: header[9],
            transport,
            len,
            shape,
            dont_fragment: fragment & DONT_FRAGMENT != 0,
        })
    }

    #[inline]
    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let header: &[u8; IPV6_LEN] = packet.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([header[4], header[5]])) + IPV6_LEN;
        if len > packet.len() {
            return None;
        }
        let shape = match header[6] {
            FRAGMENT => Shape::Fragment,
            protocol if EXTENSIONS.contains(&protocol) => Shape::Extended,
            _ => Shape::Plain,
        };
        Some(Self {
            source: IpAddr::V6(Ipv6Addr::from(*header[8..].first_chunk::<16>()?)),
            destination: IpAddr::V6(Ipv6Addr::from(*header[24..].first_chunk::<16>()?)),
            protocol: header[6],
            transport: IPV6_LEN,
            len,
            shape,
            dont_fragment: true,
        })
    }

    /// Source and destination port of TCP or UDP.
    #[inline]
    pub(crate) fn ports(&self, packet: &[u8]) -> Option<(u16, u16)> {
        let known = self.shape == Shape::Plain && matches!(self.protocol, TCP | UDP);
        let ports: &[u8; 4] = packet.get(self.transport..self.len)?.first_chunk()?;
        known.then(|| (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
    }
}

/// The two bits of explicit congestion notification (RFC 3168) of a packet that has been parsed.
#[inline]
pub(crate) fn ecn(packet: &[u8]) -> u8 {
    match packet {
        [first, class, ..] if first >> 4 == 6 => class >> 4 & ECN_CE,
        [_, class, ..] => class & ECN_CE,
        _ => 0,
    }
}

/// Hands on that the outer packet met congestion; `false` if the inner one must be dropped instead, because its ends do not
/// know the signal (RFC 6040 section 4.2).
pub(crate) fn mark_congestion(packet: &mut [u8]) -> bool {
    if ecn(packet) == 0 {
        return false;
    }
    match packet.first().map(|first| first >> 4) {
        Some(6) => packet[1] |= ECN_CE << 4,
        _ if packet.len() >= IPV4_LEN => {
            let old = u16::from_be_bytes([packet[0], packet[1]]);
            packet[1] |= ECN_CE;
            let new = u16::from_be_bytes([packet[0], packet[1]]);
            let sum = checksum::update([packet[10], packet[11]], old, new);
            packet[10..12].copy_from_slice(&sum);
        }
        _ => return false,
    }
    true
}

/// "Congestion experienced", and the mask of the field.
pub(crate) const ECN_CE: u8 = 3;

pub(crate) const IPV4_LEN: usize = 20;
pub(crate) const IPV6_LEN: usize = 40;
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

const MORE_AND_OFFSET: u16 = 0x3fff;
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT: u8 = 44;
/// Hop-by-hop, routing, ESP, authentication, no next header, destination options, mobility, HIP, Shim6, and the two for
/// experiments (IANA's list of IPv6 extension header types).
const EXTENSIONS: [u8; 11] = [0, 43, 50, 51, 59, 60, 135, 139, 140, 253, 254];

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 or IPv6 packet with this transport header and payload; checksums of IPv4 and TCP or UDP are right.
    pub(crate) fn packet(source: &str, destination: &str, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => v4(source, destination, protocol, transport),
            (IpAddr::V6(source), IpAddr::V6(destination)) => v6(source, destination, protocol, transport),
            _ => panic!("addresses of one version"),
        };
        let start = packet.len() - transport.len();
        packet[start..].copy_from_slice(transport);
        packet
    }

    fn v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV4_LEN + transport.len()];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(IPV4_LEN + transport.len()).unwrap().to_be_bytes());
        packet[6] = 0x40;
        packet[8] = 64;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&destination.octets());
        let sum = checksum::Sum::default().with(&packet[..IPV4_LEN]).finish();
        packet[10..12].copy_from_slice(&sum);
        packet
    }

    fn v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_LEN + transport.len()];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&u16::try_from(transport.len()).unwrap().to_be_bytes());
        packet[6] = protocol;
        packet[7] = 64;
        packet[8..24].copy_from_slice(&source.octets());
        packet[24..40].copy_from_slice(&destination.octets());
        packet
    }

    /// UDP header and payload.
    pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        datagram.extend(source.to_be_bytes());
        datagram.extend(destination.to_be_bytes());
        datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        datagram
    }

    #[test]
    fn a_plain_packet_shows_its_ports() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let packet = packet(source, destination, UDP, &udp(53, 4000, b"x"));
            let header = IpHeader::parse(&packet).unwrap();
            assert_eq!(header.source.to_string(), source);
            assert_eq!(header.destination.to_string(), destination);
            assert_eq!(header.len, packet.len());
            assert_eq!(header.ports(&packet), Some((53, 4000)));
        }
    }

    #[test]
    fn fragments_options_and_extension_headers_have_no_ports() {
        let mut fragment = packet("10.0.0.1", "10.0.0.2", UDP, &udp(53, 4000, b"x"));
        fragment[7] = 1;
        let header = IpHeader::parse(&fragment).unwrap();
        assert_eq!((header.shape, header.ports(&fragment)), (Shape::Fragment, None));

        let mut options = packet("10.0.0.1", "10.0.0.2", UDP, &[0; 12]);
        options[0] = 0x46;
        assert_eq!(IpHeader::parse(&options).unwrap().shape, Shape::Extended);

        for (protocol, shape) in [(44, Shape::Fragment), (0, Shape::Extended), (60, Shape::Extended)] {
            let packet = packet("fd00::1", "fd00::2", protocol, &udp(53, 4000, b"x"));
            let header = IpHeader::parse(&packet).unwrap();
            assert_eq!((header.shape, header.ports(&packet)), (shape, None));
        }
    }

    #[test]
    fn congestion_is_marked_only_where_the_ends_know_it() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let mut packet = packet(source, destination, UDP, &udp(53, 4000, b"x"));
            let unmarked = packet.clone();
            assert!(!mark_congestion(&mut packet));
            assert_eq!(packet, unmarked);
            let v4 = packet[0] >> 4 == 4;
            packet[1] |= if v4 { 2 } else { 0x20 };
            if v4 {
                packet[10..12].fill(0);
                let sum = checksum::Sum::default().with(&packet[..IPV4_LEN]).finish();
                packet[10..12].copy_from_slice(&sum);
            }
            assert_eq!(ecn(&packet), 2);
            assert!(mark_congestion(&mut packet));
            assert_eq!(ecn(&packet), ECN_CE);
            assert!(!v4 || checksum::Sum::default().with(&packet[..IPV4_LEN]).is_valid());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(header) = IpHeader::parse(&bytes) {
                prop_assert!(header.len <= bytes.len() && header.transport <= header.len);
                header.ports(&bytes);
            }
        }
    }
}
