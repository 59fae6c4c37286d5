//! Echo requests through the mesh (RFC 792, RFC 4443): what is timed is the path that packets take.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use clap::ArgMatches;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Failure, fetch, name};

/// `ping`.
pub(super) fn main(matches: &ArgMatches) -> Result<(), Failure> {
    let wanted = name(matches);
    let address = match wanted.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => {
            let mesh = fetch(matches)?;
            if mesh["mode"] == "netstack" {
                let why = "this mesh has no interface (`mode: netstack`), which echo requests could go through; \
                           `adit mesh show` has the latency of each peer";
                return Err(Failure::new(why));
            }
            address_of(&mesh, wanted)?
        }
    };
    let count = *matches.get_one::<u16>("count").unwrap_or(&COUNT_DEFAULT);
    let echo = Echo::open(address).map_err(|error| {
        Failure::new(format!(
            "cannot send echo requests: {error} (it needs CAP_NET_RAW, or ping_group_range)"
        ))
    })?;
    let mut times = Vec::new();
    for sequence in 1..=count {
        let began = Instant::now();
        match echo.ask(sequence, began + ANSWER_TIME_MAX) {
            Ok(Some(time)) => {
                times.push(time);
                crate::print(&format!("{address} ({wanted}): seq={sequence} time={}\n", milliseconds(time)));
            }
            Ok(None) => crate::print(&format!("{address} ({wanted}): seq={sequence} no answer\n")),
            Err(error) => crate::print(&format!("{address} ({wanted}): seq={sequence} {error}\n")),
        }
        if sequence < count {
            std::thread::sleep(INTERVAL.saturating_sub(began.elapsed()));
        }
    }
    summarize(count, &mut times)
}

fn summarize(count: u16, times: &mut [Duration]) -> Result<(), Failure> {
    times.sort();
    let lost = usize::from(count) - times.len();
    let (Some(least), Some(most)) = (times.first(), times.last()) else {
        return Err(Failure::new(format!("{count} sent, none answered")));
    };
    crate::print(&format!(
        "{count} sent, {lost} lost, least/median/most {}/{}/{}\n",
        milliseconds(*least),
        milliseconds(times[times.len() / 2]),
        milliseconds(*most)
    ));
    Ok(())
}

/// The first single address of a peer.
fn address_of(mesh: &Value, wanted: &str) -> Result<IpAddr, Failure> {
    let peers = mesh["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let peer = peers
        .iter()
        .find(|peer| peer["name"] == *wanted)
        .ok_or_else(|| Failure::new(format!("there is no peer `{wanted}`")))?;
    let nets = peer["allowedIps"].as_array().into_iter().flatten().filter_map(Value::as_str);
    nets.filter_map(|net| net.parse::<ipnet::IpNet>().ok())
        .find(|net| net.prefix_len() == net.max_prefix_len())
        .map(|net| net.addr())
        .ok_or_else(|| Failure::new(format!("{wanted} has no address of its own: give one behind it")))
}

/// A socket for echo requests to one address.
struct Echo {
    socket: Socket,
    is_v6: bool,
    /// Raw sockets see everybody's answers, and those of IPv4 with their IP header.
    is_raw: bool,
    identifier: u16,
}

impl Echo {
    fn open(address: IpAddr) -> io::Result<Self> {
        let is_v6 = address.is_ipv6();
        let (domain, protocol) =
            if is_v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let (socket, is_raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
            Ok(socket) => (socket, false),
            Err(_) => (Socket::new(domain, Type::RAW, Some(protocol))?, true),
        };
        socket.connect(&SocketAddr::new(address, 0).into())?;
        let identifier = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
        Ok(Self { socket, is_v6, is_raw, identifier })
    }

    /// Sends one request and waits for its answer; `None` if there is none in time.
    fn ask(&self, sequence: u16, until: Instant) -> io::Result<Option<Duration>> {
        let request = self.request(sequence);
        let began = Instant::now();
        self.socket.send(&request)?;
        let mut buffer = [0; ANSWER_BYTES_MAX];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match (&self.socket).read(&mut buffer) {
                Ok(length) if self.answers(&buffer[..length], sequence) => return Ok(Some(began.elapsed())),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn request(&self, sequence: u16) -> Vec<u8> {
        let mut request = vec![if self.is_v6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST_V4 }, 0, 0, 0];
        request.extend(self.identifier.to_be_bytes());
        request.extend(sequence.to_be_bytes());
        request.extend([PATTERN; PAYLOAD_BYTES]);
        // The kernel fills in ICMPv6's, which covers addresses (RFC 3542 §3.1).
        if !self.is_v6 {
            let sum = checksum(&request);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        request
    }

    fn answers(&self, answer: &[u8], sequence: u16) -> bool {
        let header = match (self.is_raw && !self.is_v6, answer.first()) {
            (true, Some(first)) => usize::from(first & 15) * 4,
            _ => 0,
        };
        let wanted = if self.is_v6 { ECHO_REPLY_V6 } else { ECHO_REPLY_V4 };
        let Some(&[kind, _, _, _, id0, id1, seq0, seq1]) = answer.get(header..header + 8) else {
            return false;
        };
        // The kernel has put its own identifier into requests of sockets that are not raw, and looks at it itself.
        let is_ours = !self.is_raw || [id0, id1] == self.identifier.to_be_bytes();
        kind == wanted && is_ours && [seq0, seq1] == sequence.to_be_bytes()
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

const COUNT_DEFAULT: u16 = 4;
const INTERVAL: Duration = Duration::from_secs(1);
/// Longer than a handshake that has to be repeated once (5 s).
const ANSWER_TIME_MAX: Duration = Duration::from_secs(6);
/// As ping has it: 84 bytes with both headers.
const PAYLOAD_BYTES: usize = 56;
const PATTERN: u8 = 0x5a;
const ANSWER_BYTES_MAX: usize = 2048;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_makes_the_whole_sum_up_to_nothing() {
        let mut bytes = vec![8, 0, 0, 0, 1, 2, 0, 7, 0x5a];
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&bytes), 0);
    }

    #[test]
    fn the_loopback_answers_where_we_may_ask() {
        let Ok(echo) = Echo::open([127, 0, 0, 1].into()) else {
            eprintln!("skipped: no right to send echo requests");
            return;
        };
        assert!(echo.ask(7, Instant::now() + ANSWER_TIME_MAX).unwrap().is_some());
    }
}
