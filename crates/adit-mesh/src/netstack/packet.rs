//! IP packets of the stack: read conservatively, and the few that are built by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use adit_mesh_proto::segment::checksum::{Sum, pseudo_header};

use super::drops::StackDrop;

/// What the stack needs to know of a packet before somebody takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Where the transport header begins.
    pub(super) transport: usize,
    /// Length of the packet by its own account; at most that of the buffer.
    pub(super) len: usize,
}

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FourTuple {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// What the demultiplexer needs to know of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) header: Header,
    pub(super) tuple: FourTuple,
    pub(super) flags: u8,
    /// What it acknowledges, if it does.
    pub(super) acknowledged: u32,
    /// As it is written: not scaled.
    pub(super) window: u16,
    pub(super) payload_len: usize,
}

/// A header without payload that acknowledges part of what a real one does.
#[derive(Debug)]
pub(super) struct PartialAck {
    packet: [u8; IPV6_LEN + TCP_LEN],
    transport: usize,
}

impl Header {
    /// Reads the header of a whole packet that may be for us.
    pub(super) fn parse(packet: &[u8]) -> Result<Self, StackDrop> {
        let header = match packet.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(packet)?,
            Some(6) => Self::parse_v6(packet)?,
            _ => return Err(StackDrop::Malformed),
        };
        if header.len > packet.len() || header.transport > header.len {
            return Err(StackDrop::Malformed);
        }
        if is_martian(header.source) {
            return Err(StackDrop::Martian);
        }
        Ok(header)
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, StackDrop> {
        let header: &[u8; IPV4_LEN] = packet.first_chunk().ok_or(StackDrop::Malformed)?;
        let transport = usize::from(header[0] & 0xf) * 4;
        if transport < IPV4_LEN {
            return Err(StackDrop::Malformed);
        }
        // More fragments follow, or this is not the first (RFC 791 §3.1).
        if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
            return Err(StackDrop::Fragment);
        }
        Ok(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            transport,
            len: usize::from(u16::from_be_bytes([header[2], header[3]])),
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, StackDrop> {
        let header: &[u8; IPV6_LEN] = packet.first_chunk().ok_or(StackDrop::Malformed)?;
        let address = |at: usize| {
            let octets = header[at..].first_chunk::<16>();
            Ipv6Addr::from(*octets.expect("the header has 40 bytes, addresses end at 24 and 40"))
        };
        match header[6] {
            IPV6_FRAGMENT => Err(StackDrop::Fragment),
            // Extension headers are none of these: what is behind them is nobody's business here.
            protocol @ (TCP | UDP | ICMPV6) => Ok(Self {
                source: address(8).into(),
                destination: address(24).into(),
                protocol,
                transport: IPV6_LEN,
                len: usize::from(u16::from_be_bytes([header[4], header[5]])) + IPV6_LEN,
            }),
            _ => Err(StackDrop::Protocol),
        }
    }

    /// The TCP header behind this one.
    pub(super) fn segment(&self, packet: &[u8]) -> Result<Segment, StackDrop> {
        let tcp = &packet[self.transport..self.len];
        let header: &[u8; TCP_LEN] = tcp.first_chunk().ok_or(StackDrop::Malformed)?;
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < TCP_LEN || header_len > tcp.len() {
            return Err(StackDrop::Malformed);
        }
        let tuple = self.tuple(header[0], header[1], header[2], header[3]);
        if tuple.remote.port() == 0 || tuple.local.port() == 0 {
            return Err(StackDrop::Malformed);
        }
        let acknowledged = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        Ok(Segment {
            header: *self,
            tuple,
            flags: header[13],
            acknowledged,
            window: u16::from_be_bytes([header[14], header[15]]),
            payload_len: tcp.len() - header_len,
        })
    }

    /// The ends and the payload of a UDP datagram, or of several joined.
    pub(super) fn datagram<'a>(
        &self,
        packet: &'a [u8],
        joined: bool,
    ) -> Result<(FourTuple, &'a [u8]), StackDrop> {
        let udp = &packet[self.transport..self.len];
        let header: &[u8; UDP_LEN] = udp.first_chunk().ok_or(StackDrop::Malformed)?;
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let end = if joined { udp.len() } else { len };
        let payload = udp.get(UDP_LEN..end).ok_or(StackDrop::Malformed)?;
        Ok((self.tuple(header[0], header[1], header[2], header[3]), payload))
    }

    fn tuple(&self, high: u8, low: u8, local_high: u8, local_low: u8) -> FourTuple {
        FourTuple {
            local: SocketAddr::new(self.destination, u16::from_be_bytes([local_high, local_low])),
            remote: SocketAddr::new(self.source, u16::from_be_bytes([high, low])),
        }
    }
}

impl Segment {
    /// Whether this asks for a connection.
    pub(super) fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Whether it acknowledges something of an open connection, and nothing else happens.
    pub(super) fn acknowledges(&self) -> bool {
        self.flags & (SYN | ACK | RST) == ACK
    }

    pub(super) fn resets(&self) -> bool {
        self.flags & RST != 0
    }

    /// Whether nothing comes after it.
    pub(super) fn ends(&self) -> bool {
        self.flags & FIN != 0
    }
}

impl PartialAck {
    /// A copy of the headers of `packet`, which `segment` was read from; without options, and with checksums that nobody
    /// looks at.
    pub(super) fn of(segment: &Segment, packet: &[u8]) -> Self {
        let header = &segment.header;
        let mut copy = [0; IPV6_LEN + TCP_LEN];
        let transport = if header.source.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
        copy[..transport].copy_from_slice(&packet[..transport]);
        let tcp = &packet[header.transport..header.transport + TCP_LEN];
        copy[transport..transport + TCP_LEN].copy_from_slice(tcp);
        if header.source.is_ipv4() {
            copy[0] = 0x45;
            copy[2..4].copy_from_slice(&[0, 40]);
        } else {
            copy[4..6].copy_from_slice(&[0, 20]);
        }
        copy[transport + 12] = 5 << 4;
        copy[transport + 13] = ACK;
        Self { packet: copy, transport }
    }

    /// The same from behind the payload, with room for a byte.
    pub(super) fn with_room(&mut self, segment: &Segment) -> &[u8] {
        let tcp = &mut self.packet[self.transport..self.transport + TCP_LEN];
        let payload_len = u32::try_from(segment.payload_len).unwrap_or(0);
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(payload_len);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[14..16].copy_from_slice(&[0, 1]);
        &self.packet[..self.transport + TCP_LEN]
    }

    /// The packet that acknowledges up to here.
    pub(super) fn up_to(&mut self, acknowledged: u32) -> &[u8] {
        self.packet[self.transport + 8..self.transport + 12].copy_from_slice(&acknowledged.to_be_bytes());
        &self.packet[..self.transport + TCP_LEN]
    }
}

/// The answer to an ICMP echo request (RFC 792, RFC 4443 §4.2); `None` if `packet` is none.
pub(super) fn echo_reply(header: &Header, packet: &[u8]) -> Option<Vec<u8>> {
    let icmp = &packet[header.transport..header.len];
    if icmp.len() < ICMP_LEN || icmp[1] != 0 {
        return None;
    }
    let reply = match (header.protocol, icmp[0]) {
        (ICMP, 8) => 0,
        (ICMPV6, 128) => 129,
        _ => return None,
    };
    let mut body = icmp.to_vec();
    body[0] = reply;
    Some(icmp_packet(header.destination, header.source, body))
}

/// Tells the sender of `packet` that nobody listens on its port (RFC 792, RFC 4443 §3.1).
pub(super) fn port_unreachable(header: &Header, packet: &[u8]) -> Vec<u8> {
    let (kind, code, quoted_max) = match header.source {
        IpAddr::V4(_) => (3, 3, ICMPV4_QUOTE_MAX),
        IpAddr::V6(_) => (1, 4, ICMPV6_QUOTE_MAX),
    };
    let quoted = &packet[..header.len.min(quoted_max)];
    let mut body = vec![kind, code, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(quoted);
    icmp_packet(header.destination, header.source, body)
}

/// The connection, seen from us, whose packet was too big for a path (RFC 1191, RFC 8201); `None` if `packet` says
/// nothing of the kind.
pub(super) fn too_big(header: &Header, packet: &[u8]) -> Option<FourTuple> {
    let icmp = &packet[header.transport..header.len];
    let is_too_big = matches!((header.protocol, icmp.first()?, icmp.get(1)?), (ICMP, 3, 4) | (ICMPV6, 2, 0));
    is_too_big.then(|| quoted(icmp))?
}

/// The connection, seen from us, whose other end says of itself that it cannot be reached (RFC 792, RFC 4443 §3.1): in the
/// name of that end, which nobody but its peer can use, speaks the engine too. `None` if `packet` says nothing of the kind.
pub(super) fn unreachable(header: &Header, packet: &[u8]) -> Option<FourTuple> {
    let icmp = &packet[header.transport..header.len];
    let is_unreachable = match (header.protocol, icmp.first()?, icmp.get(1)?) {
        (ICMP, 3, code) => *code != 4,
        (ICMPV6, kind, _) => *kind == 1,
        _ => false,
    };
    quoted(icmp).filter(|tuple| is_unreachable && tuple.remote.ip() == header.source)
}

/// The connection that an ICMP error quotes, seen from us.
fn quoted(icmp: &[u8]) -> Option<FourTuple> {
    let quoted = icmp.get(ICMP_LEN..)?;
    let (source, destination, protocol, transport): (IpAddr, IpAddr, u8, usize) = match quoted.first()? >> 4 {
        4 => {
            let header: &[u8; IPV4_LEN] = quoted.first_chunk()?;
            let source = Ipv4Addr::from(*header[12..].first_chunk::<4>()?);
            let destination = Ipv4Addr::from(*header[16..].first_chunk::<4>()?);
            (source.into(), destination.into(), header[9], usize::from(header[0] & 0xf) * 4)
        }
        6 => {
            let header: &[u8; IPV6_LEN] = quoted.first_chunk()?;
            let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
            let destination = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
            (source.into(), destination.into(), header[6], IPV6_LEN)
        }
        _ => return None,
    };
    let ports: &[u8; 4] = quoted.get(transport..)?.first_chunk()?;
    (protocol == TCP).then(|| FourTuple {
        local: SocketAddr::new(source, u16::from_be_bytes([ports[0], ports[1]])),
        remote: SocketAddr::new(destination, u16::from_be_bytes([ports[2], ports[3]])),
    })
}

/// A UDP datagram in its packet; both ends are of one family.
pub(super) fn udp_packet(tuple: &FourTuple, payload: &[u8]) -> Vec<u8> {
    let mut packet = ip_header(tuple.local.ip(), tuple.remote.ip(), UDP, UDP_LEN + payload.len());
    let start = packet.len();
    let len = u16::try_from(UDP_LEN + payload.len()).unwrap_or(u16::MAX);
    packet.extend_from_slice(&tuple.local.port().to_be_bytes());
    packet.extend_from_slice(&tuple.remote.port().to_be_bytes());
    packet.extend_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    let checksum = match transport_checksum(&packet, start, UDP) {
        // RFC 768: zero says that there is none.
        [0, 0] => [0xff, 0xff],
        other => other,
    };
    packet[start + 6..start + 8].copy_from_slice(&checksum);
    packet
}

/// Writes the checksum of a TCP segment whose own field is zero.
pub(super) fn complete_tcp(packet: &mut [u8]) {
    let start = match packet.first().map(|first| first >> 4) {
        Some(4) => usize::from(packet[0] & 0xf) * 4,
        _ => IPV6_LEN,
    };
    if packet.len() >= start + TCP_LEN {
        packet[start + 16..start + 18].fill(0);
        let checksum = transport_checksum(packet, start, TCP);
        packet[start + 16..start + 18].copy_from_slice(&checksum);
    }
}

/// Longest UDP payload in a packet of `mtu` bytes to this address.
pub(super) fn udp_payload_max(remote: IpAddr, mtu: u16) -> usize {
    let header = if remote.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
    usize::from(mtu).saturating_sub(header + UDP_LEN)
}

fn icmp_packet(source: IpAddr, destination: IpAddr, mut body: Vec<u8>) -> Vec<u8> {
    body[2..4].fill(0);
    let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
    let mut packet = ip_header(source, destination, protocol, body.len());
    let start = packet.len();
    packet.append(&mut body);
    let checksum = match source {
        IpAddr::V4(_) => Sum::default().with(&packet[start..]).finish(),
        IpAddr::V6(_) => transport_checksum(&packet, start, ICMPV6),
    };
    packet[start + 2..start + 4].copy_from_slice(&checksum);
    packet
}

/// An IP header with room behind it; callers keep packets below 64 KiB.
fn ip_header(source: IpAddr, destination: IpAddr, protocol: u8, payload_len: usize) -> Vec<u8> {
    let mut packet = Vec::with_capacity(IPV6_LEN + payload_len);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let len = u16::try_from(IPV4_LEN + payload_len).unwrap_or(u16::MAX).to_be_bytes();
            // Do not fragment: whoever cannot carry it is to say so (RFC 1191).
            packet.extend_from_slice(&[0x45, 0, len[0], len[1], 0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            let checksum = Sum::default().with(&packet).finish();
            packet[10..12].copy_from_slice(&checksum);
        }
        (source, destination) => {
            let len = u16::try_from(payload_len).unwrap_or(u16::MAX).to_be_bytes();
            packet.extend_from_slice(&[0x60, 0, 0, 0, len[0], len[1], protocol, HOP_LIMIT]);
            packet.extend_from_slice(&octets_v6(source));
            packet.extend_from_slice(&octets_v6(destination));
        }
    }
    packet
}

fn octets_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn transport_checksum(packet: &[u8], start: usize, protocol: u8) -> [u8; 2] {
    let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
    let len = u16::try_from(packet.len() - start).unwrap_or(u16::MAX);
    pseudo_header(&packet[addresses], protocol, len).with(&packet[start..]).finish()
}

/// Addresses that no host sends from (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3, §2.7).
fn is_martian(source: IpAddr) -> bool {
    let mapped = matches!(source, IpAddr::V6(source) if source.to_ipv4_mapped().is_some());
    let broadcast = source == IpAddr::V4(Ipv4Addr::BROADCAST);
    source.is_unspecified() || source.is_multicast() || source.is_loopback() || broadcast || mapped
}

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const IPV4_LEN: usize = 20;
pub(super) const IPV6_LEN: usize = 40;
pub(super) const TCP_LEN: usize = 20;
pub(super) const UDP_LEN: usize = 8;
const ICMP_LEN: usize = 8;
const IPV6_FRAGMENT: u8 = 44;
const HOP_LIMIT: u8 = 64;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// RFC 1812 §4.3.2.3: an IPv4 error is at most 576 bytes long.
const ICMPV4_QUOTE_MAX: usize = 576 - IPV4_LEN - ICMP_LEN;
/// RFC 4443 §3.1: as much as fits the least MTU of IPv6.
const ICMPV6_QUOTE_MAX: usize = 1280 - IPV6_LEN - ICMP_LEN;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(local: &str, remote: &str) -> FourTuple {
        FourTuple { local: local.parse().unwrap(), remote: remote.parse().unwrap() }
    }

    /// The same datagram as its receiver sees it.
    fn received(packet: &[u8]) -> (FourTuple, Vec<u8>) {
        let header = Header::parse(packet).unwrap();
        assert_eq!(header.len, packet.len());
        let (tuple, payload) = header.datagram(packet, false).unwrap();
        (FourTuple { local: tuple.remote, remote: tuple.local }, payload.to_vec())
    }

    #[test]
    fn a_datagram_reads_as_it_was_written() {
        for tuple in [tuple("10.0.0.1:53", "10.0.0.2:4000"), tuple("[fd00::1]:53", "[fd00::2]:4000")] {
            let packet = udp_packet(&tuple, b"payload");
            assert_eq!(received(&packet), (tuple, b"payload".to_vec()));
        }
    }

    #[test]
    fn an_echo_request_is_turned_around() {
        let source: IpAddr = "10.0.0.9".parse().unwrap();
        let ours: IpAddr = "10.0.0.1".parse().unwrap();
        let request = icmp_packet(source, ours, vec![8, 0, 0, 0, 1, 2, 3, 4, b'x']);
        let reply = echo_reply(&Header::parse(&request).unwrap(), &request).unwrap();
        let header = Header::parse(&reply).unwrap();
        assert_eq!((header.source, header.destination), (ours, source));
        assert_eq!(&reply[24..], [1, 2, 3, 4, b'x']);
        assert!(Sum::default().with(&reply[20..]).is_valid());
        assert_eq!(echo_reply(&header, &reply), None, "a reply is not answered");
    }

    #[test]
    fn an_unreachable_port_quotes_the_packet() {
        for tuple in [tuple("10.0.0.1:53", "10.0.0.2:4000"), tuple("[fd00::1]:53", "[fd00::2]:4000")] {
            let packet = udp_packet(&tuple, &[7; 1400]);
            let error = port_unreachable(&Header::parse(&packet).unwrap(), &packet);
            let header = Header::parse(&error).unwrap();
            assert_eq!(header.destination, tuple.local.ip());
            assert!(packet.starts_with(&error[header.transport + 8..]));
            assert!(error.len() <= 1280);
        }
    }

    #[test]
    fn fragments_martians_and_extension_headers_have_names() {
        let mut fragment = udp_packet(&tuple("10.0.0.1:53", "10.0.0.2:4000"), b"x");
        fragment[7] = 1;
        assert_eq!(Header::parse(&fragment), Err(StackDrop::Fragment));
        let martian = udp_packet(&tuple("127.0.0.1:53", "10.0.0.2:4000"), b"x");
        assert_eq!(Header::parse(&martian), Err(StackDrop::Martian));
        let mut extended = udp_packet(&tuple("[fd00::1]:53", "[fd00::2]:4000"), b"x");
        extended[6] = 0;
        assert_eq!(Header::parse(&extended), Err(StackDrop::Protocol));
        extended.truncate(30);
        assert_eq!(Header::parse(&extended), Err(StackDrop::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x40 | (*first & 0xf) };
            }
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!(header.len <= bytes.len() && header.transport <= header.len);
                let _ = header.segment(&bytes);
                let _ = header.datagram(&bytes, false);
                let _ = header.datagram(&bytes, true);
                echo_reply(&header, &bytes);
                too_big(&header, &bytes);
                port_unreachable(&header, &bytes);
            }
        }
    }
}
