//! The PROXY protocol, versions 1 and 2: the first bytes of a connection say who is really at its other end.
//!
//! Pure codec; `listen.rs` reads headers, `tcp/` writes them. Format: the specification of HAProxy, "The PROXY protocol",
//! §2.1 (version 1, one line) and §2.2 (version 2, binary).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use thiserror::Error;

/// Whose headers are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyProtocolPolicy {
    /// Peers whose word counts. A header from anybody else is read and ignored, as Traefik does.
    pub trusted: Vec<IpNet>,
    /// Everybody's word counts.
    pub insecure: bool,
}

impl ProxyProtocolPolicy {
    /// True if this peer's word counts.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.insecure || self.trusted.iter().any(|network| network.contains(&peer))
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// What the first bytes of a connection turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Could still become a header: read on.
    More,
    /// No header: all bytes belong to the connection.
    Absent,
    /// A header of this many bytes; without addresses it speaks of its sender itself (`LOCAL`, `UNKNOWN`, unix sockets).
    Header(usize, Option<Addresses>),
}

/// A header that begins like one and is none.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProxyProtocolError {
    /// Version 1 without a line end in 107 bytes, or not its grammar.
    #[error("malformed PROXY protocol line")]
    Line,
    /// Another version or command, or too few bytes for its addresses.
    #[error("malformed PROXY protocol header of version 2")]
    Binary,
    /// More than 2 KiB of extensions.
    #[error("PROXY protocol header larger than allowed")]
    TooLarge,
}

impl ProxyProtocolError {
    /// The name of this error in logs and metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Line => "proxy_protocol_line",
            Self::Binary => "proxy_protocol_binary",
            Self::TooLarge => "proxy_protocol_too_large",
        }
    }
}

/// Looks at the first bytes of a connection.
///
/// # Errors
/// [`ProxyProtocolError`] as soon as the bytes can no longer become a header.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyProtocolError> {
    if starts_alike(bytes, SIGNATURE) {
        return parse_binary(bytes);
    }
    if starts_alike(bytes, LINE_START) {
        return parse_line(bytes);
    }
    Ok(Parsed::Absent)
}

/// The line of version 1.
pub fn encode_v1(addresses: &Addresses) -> Vec<u8> {
    let Addresses { source, destination } = same_family(addresses);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    )
    .into_bytes()
}

/// The header of version 2 for a stream, without extensions.
pub fn encode_v2(addresses: &Addresses) -> Vec<u8> {
    let Addresses { source, destination } = same_family(addresses);
    let mut header = Vec::with_capacity(HEAD_BYTES + 36);
    header.extend_from_slice(SIGNATURE);
    header.push(VERSION_2 | COMMAND_PROXY);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.push(TCP_OVER_IPV4);
            header.extend_from_slice(&12u16.to_be_bytes());
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
        }
        (from, to) => {
            header.push(TCP_OVER_IPV6);
            header.extend_from_slice(&36u16.to_be_bytes());
            header.extend_from_slice(&ipv6(from).octets());
            header.extend_from_slice(&ipv6(to).octets());
        }
    }
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header
}

fn starts_alike(bytes: &[u8], pattern: &[u8]) -> bool {
    let known = bytes.len().min(pattern.len());
    bytes[..known] == pattern[..known]
}

fn parse_line(bytes: &[u8]) -> Result<Parsed, ProxyProtocolError> {
    let Some(end) = bytes.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(Parsed::More) } else { Err(ProxyProtocolError::Line) };
    };
    let line = std::str::from_utf8(&bytes[..end]).map_err(|_| ProxyProtocolError::Line)?;
    let line = line.strip_suffix('\r').ok_or(ProxyProtocolError::Line)?;
    let mut words = line.split(' ').skip(1);
    let family = words.next().ok_or(ProxyProtocolError::Line)?;
    if family == "UNKNOWN" {
        return Ok(Parsed::Header(end + 1, None));
    }
    let [Some(from), Some(to), Some(from_port), Some(to_port), None] =
        [words.next(), words.next(), words.next(), words.next(), words.next()]
    else {
        return Err(ProxyProtocolError::Line);
    };
    let source = line_address(family, from, from_port)?;
    let destination = line_address(family, to, to_port)?;
    Ok(Parsed::Header(end + 1, Some(Addresses { source, destination })))
}

fn line_address(family: &str, ip: &str, port: &str) -> Result<SocketAddr, ProxyProtocolError> {
    let bad = |_| ProxyProtocolError::Line;
    let ip = match family {
        "TCP4" => IpAddr::V4(ip.parse::<Ipv4Addr>().map_err(bad)?),
        "TCP6" => IpAddr::V6(ip.parse::<Ipv6Addr>().map_err(bad)?),
        _ => return Err(ProxyProtocolError::Line),
    };
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ProxyProtocolError::Line);
    }
    Ok(SocketAddr::new(ip, port.parse().map_err(|_| ProxyProtocolError::Line)?))
}

fn parse_binary(bytes: &[u8]) -> Result<Parsed, ProxyProtocolError> {
    let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) else { return Ok(Parsed::More) };
    if head[12] & 0xf0 != VERSION_2 {
        return Err(ProxyProtocolError::Binary);
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > BODY_BYTES_MAX {
        return Err(ProxyProtocolError::TooLarge);
    }
    let Some(body) = rest.get(..length) else { return Ok(Parsed::More) };
    let total = HEAD_BYTES + length;
    match head[12] & 0x0f {
        COMMAND_LOCAL => return Ok(Parsed::Header(total, None)),
        COMMAND_PROXY => {}
        _ => return Err(ProxyProtocolError::Binary),
    }
    let addresses = match head[13] {
        TCP_OVER_IPV4 | UDP_OVER_IPV4 => Some(binary_addresses::<4>(body)?),
        TCP_OVER_IPV6 | UDP_OVER_IPV6 => Some(binary_addresses::<16>(body)?),
        // Unspecified and unix: the receiver uses the connection's own addresses.
        _ => None,
    };
    Ok(Parsed::Header(total, addresses))
}

fn binary_addresses<const BYTES: usize>(body: &[u8]) -> Result<Addresses, ProxyProtocolError>
where
    IpAddr: From<[u8; BYTES]>,
{
    let (source, rest) = body.split_first_chunk::<BYTES>().ok_or(ProxyProtocolError::Binary)?;
    let (destination, rest) = rest.split_first_chunk::<BYTES>().ok_or(ProxyProtocolError::Binary)?;
    let (source_port, rest) = rest.split_first_chunk::<2>().ok_or(ProxyProtocolError::Binary)?;
    let (destination_port, _) = rest.split_first_chunk::<2>().ok_or(ProxyProtocolError::Binary)?;
    Ok(Addresses {
        source: SocketAddr::new(IpAddr::from(*source), u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new(IpAddr::from(*destination), u16::from_be_bytes(*destination_port)),
    })
}

/// Both in one family: IPv4 only if both are, else both as IPv6.
fn same_family(addresses: &Addresses) -> Addresses {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (source, destination) = (canonical(addresses.source), canonical(addresses.destination));
    if source.is_ipv4() && destination.is_ipv4() {
        return Addresses { source, destination };
    }
    let wide = |address: SocketAddr| SocketAddr::new(IpAddr::V6(ipv6(address.ip())), address.port());
    Addresses { source: wide(source), destination: wide(destination) }
}

fn ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

const LINE_START: &[u8] = b"PROXY ";
/// The longest line that the specification allows, with its line end.
const LINE_BYTES_MAX: usize = 107;
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const HEAD_BYTES: usize = 16;
/// Addresses and extensions; cloud balancers send some hundred bytes.
const BODY_BYTES_MAX: usize = 2048;
const VERSION_2: u8 = 0x20;
const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const TCP_OVER_IPV4: u8 = 0x11;
const UDP_OVER_IPV4: u8 = 0x12;
const TCP_OVER_IPV6: u8 = 0x21;
const UDP_OVER_IPV6: u8 = 0x22;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn a_line_of_version_1_is_read() {
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET /";
        let want = addresses("192.0.2.1:56324", "192.0.2.2:443");
        assert_eq!(parse(line), Ok(Parsed::Header(42, Some(want))));
        assert_eq!(parse(b"PROXY UNKNOWN ffff::1 ::2 1 2\r\n"), Ok(Parsed::Header(31, None)));
        for start in 0..42 {
            assert_eq!(parse(&line[..start]), Ok(Parsed::More), "{start}");
        }
    }

    #[test]
    fn other_protocols_are_left_alone() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n", b"\r\nGET /"] {
            assert_eq!(parse(bytes), Ok(Parsed::Absent));
        }
    }

    #[test]
    fn malformed_headers_are_refused_by_name() {
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 120]].concat();
        for line in [
            &b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n"[..],
            b"PROXY TCP4 ::1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            &long,
        ] {
            assert_eq!(parse(line), Err(ProxyProtocolError::Line));
        }
        let mut header = encode_v2(&addresses("1.2.3.4:1", "1.2.3.4:2"));
        header[12] = 0x11;
        assert_eq!(parse(&header), Err(ProxyProtocolError::Binary));
        header[12] = 0x21;
        header[14] = 0xff;
        assert_eq!(parse(&header), Err(ProxyProtocolError::TooLarge));
    }

    #[test]
    fn a_local_header_keeps_the_connections_own_addresses() {
        let mut header = encode_v2(&addresses("1.2.3.4:1", "1.2.3.4:2"));
        header[12] = 0x20;
        assert_eq!(parse(&header), Ok(Parsed::Header(28, None)));
    }

    #[test]
    fn only_trusted_peers_are_believed() {
        let policy = ProxyProtocolPolicy { trusted: vec!["10.0.0.0/8".parse().unwrap()], insecure: false };
        assert!(policy.trusts("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!policy.trusts("192.0.2.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic_the_parser(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = parse(&[SIGNATURE, &bytes].concat());
            let _ = parse(&[LINE_START, &bytes].concat());
        }

        #[test]
        fn what_is_encoded_is_read_back(source: SocketAddr, destination: SocketAddr) {
            let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
            let given = Addresses { source: plain(source), destination: plain(destination) };
            let want = same_family(&given);
            for header in [encode_v1(&given), encode_v2(&given)] {
                prop_assert_eq!(parse(&header), Ok(Parsed::Header(header.len(), Some(want))));
            }
        }
    }
}
