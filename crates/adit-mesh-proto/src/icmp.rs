//! ICMP errors: what one quotes, and those that this engine itself sends.

use std::net::IpAddr;

use crate::ip::{ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, IpHeader, Shape, TCP, UDP};
use crate::segment::checksum::{Sum, pseudo_header};
use crate::state::flows::Tuple;

/// The packet that an ICMP error quotes, if the error is addressed to who sent it.
pub(crate) fn quoted(header: &IpHeader, packet: &[u8]) -> Option<Tuple> {
    let message = packet.get(header.transport..header.len)?;
    let is_error = match header.protocol {
        ICMP => matches!(message.first()?, 3 | 11 | 12),
        ICMPV6 => matches!(message.first()?, 1..=4),
        _ => false,
    };
    let inner = message.get(ICMP_LEN..).filter(|_| is_error)?;
    let quoted = parse_cut(inner)?;
    (quoted.source.0 == header.destination).then_some(quoted)
}

/// Reads the beginning of a packet that was cut off behind its transport header's first bytes.
fn parse_cut(packet: &[u8]) -> Option<Tuple> {
    // Its own length field tells of bytes that are not there; one copy with the length set right is read instead.
    let mut copy = [0; IPV6_LEN + ICMP_LEN];
    let len = packet.len().min(copy.len());
    copy[..len].copy_from_slice(&packet[..len]);
    let (at, length) = match copy[0] >> 4 {
        4 => (2, len),
        _ => (4, len.checked_sub(IPV6_LEN)?),
    };
    copy[at..at + 2].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    let header = IpHeader::parse(&copy[..len])?;
    if header.shape != Shape::Plain {
        return None;
    }
    match header.protocol {
        TCP | UDP => {
            let (source, destination) = header.ports(&copy[..len])?;
            Some(Tuple {
                protocol: header.protocol,
                source: (header.source, source),
                destination: (header.destination, destination),
                flags: 0,
            })
        }
        _ => Tuple::of(&header, &copy[..len]),
    }
}

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// It is larger than this many bytes (RFC 1191 section 4, RFC 4443 section 3.2).
    TooBig(usize),
    /// Nobody has its destination, or nobody knows where that peer is (RFC 792, RFC 4443 section 3.1).
    Unreachable,
}

impl Problem {
    /// Type, code and the four bytes behind the checksum.
    fn message(self, v4: bool) -> (u8, u8, [u8; 4]) {
        match (self, v4) {
            (Self::TooBig(mtu), true) => {
                (3, 4, u32::from(u16::try_from(mtu).unwrap_or(u16::MAX)).to_be_bytes())
            }
            (Self::TooBig(mtu), false) => (2, 0, u32::try_from(mtu).unwrap_or(u32::MAX).to_be_bytes()),
            (Self::Unreachable, true) => (3, 1, [0; 4]),
            (Self::Unreachable, false) => (1, 3, [0; 4]),
        }
    }
}

/// Writes the error that tells the sender of `packet` what is wrong with it, and says how long it is. It comes in the name
/// of the packet's destination: a kernel takes no packet from outside that has an address of its own as source. `None`
/// where no error may be sent: about errors, fragments, and senders that are no single host (RFC 1122 section 3.2.2).
pub(crate) fn write_error(
    header: &IpHeader,
    packet: &[u8],
    problem: Problem,
    out: &mut [u8],
) -> Option<usize> {
    let is_error = match header.protocol {
        ICMP => !matches!(packet.get(header.transport)?, 0 | 8),
        ICMPV6 => *packet.get(header.transport)? < 128,
        _ => false,
    };
    let nobody =
        header.source.is_unspecified() || header.source.is_multicast() || header.destination.is_multicast();
    if is_error || nobody || header.shape == Shape::Fragment {
        return None;
    }
    let (kind, code, rest) = problem.message(header.source.is_ipv4());
    let (ip_len, quote) = match header.source {
        IpAddr::V4(_) => (IPV4_LEN, QUOTE_V4),
        IpAddr::V6(_) => (IPV6_LEN, QUOTE_V6),
    };
    let quote = packet.get(..header.len.min(quote))?;
    let len = ip_len + ICMP_LEN + quote.len();
    let (ip, message) = out.get_mut(..len)?.split_at_mut(ip_len);
    (message[0], message[1]) = (kind, code);
    message[2..4].fill(0);
    message[4..8].copy_from_slice(&rest);
    message[ICMP_LEN..].copy_from_slice(quote);
    let pseudo = write_ip(header, u16::try_from(message.len()).ok()?, ip)?;
    let checksum = pseudo.with(message).finish();
    message[2..4].copy_from_slice(&checksum);
    Some(len)
}

/// Writes the IP header of an answer to a packet; what the checksum of its message begins with.
fn write_ip(header: &IpHeader, message_len: u16, ip: &mut [u8]) -> Option<Sum> {
    ip.fill(0);
    match (header.destination, header.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (ip[0], ip[8], ip[9]) = (0x45, TTL, ICMP);
            ip[2..4].copy_from_slice(&(message_len + 20).to_be_bytes());
            ip[12..16].copy_from_slice(&from.octets());
            ip[16..20].copy_from_slice(&to.octets());
            let checksum = Sum::default().with(ip).finish();
            ip[10..12].copy_from_slice(&checksum);
            Some(Sum::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (ip[0], ip[6], ip[7]) = (0x60, ICMPV6, TTL);
            ip[4..6].copy_from_slice(&message_len.to_be_bytes());
            ip[8..24].copy_from_slice(&from.octets());
            ip[24..40].copy_from_slice(&to.octets());
            Some(pseudo_header(&ip[8..40], ICMPV6, message_len))
        }
        _ => None,
    }
}

const ICMP_LEN: usize = 8;
const TTL: u8 = 64;
/// What is quoted: RFC 1812 section 4.3.2.3 for IPv4 (576 bytes in all), RFC 4443 section 2.4 for IPv6 (1,280 in all).
const QUOTE_V4: usize = 576 - IPV4_LEN - ICMP_LEN;
const QUOTE_V6: usize = 1280 - IPV6_LEN - ICMP_LEN;
/// Longest error.
pub(crate) const ERROR_LEN_MAX: usize = 1280;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::tests::{packet, udp};

    #[test]
    fn the_error_quotes_the_packet_and_has_right_checksums() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let sent = packet(source, destination, UDP, &udp(4000, 53, &[0x5a; 1400]));
            let header = IpHeader::parse(&sent).unwrap();
            let mut out = [0; ERROR_LEN_MAX];
            let len = write_error(&header, &sent, Problem::TooBig(1280), &mut out).unwrap();
            let error = IpHeader::parse(&out[..len]).unwrap();
            assert_eq!((error.len, error.destination), (len, header.source));
            assert_eq!(quoted(&error, &out[..len]), Tuple::of(&header, &sent));
            let message = &out[error.transport..len];
            let sum = if header.source.is_ipv4() {
                assert!(Sum::default().with(&out[..20]).is_valid());
                assert_eq!(message[6..8], 1280_u16.to_be_bytes());
                Sum::default()
            } else {
                assert_eq!(message[4..8], 1280_u32.to_be_bytes());
                pseudo_header(&out[8..40], ICMPV6, u16::try_from(message.len()).unwrap())
            };
            assert!(sum.with(message).is_valid());
        }
    }

    #[test]
    fn errors_are_not_answered_by_errors() {
        let mut out = [0; ERROR_LEN_MAX];
        let error = packet("10.0.0.1", "10.0.0.2", ICMP, &[3, 1, 0, 0, 0, 0, 0, 0]);
        let header = IpHeader::parse(&error).unwrap();
        assert_eq!(write_error(&header, &error, Problem::Unreachable, &mut out), None);
        let ping = packet("10.0.0.1", "10.0.0.2", ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]);
        let header = IpHeader::parse(&ping).unwrap();
        assert!(write_error(&header, &ping, Problem::Unreachable, &mut out).is_some());
    }
}
