//! A visitor: plain HTTP/1.1 over TCP, byte by byte under the test's control, with bodies made of the tests' pattern.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// The pattern of test bodies: bytes 0 to 250 again and again, so that no power of two fits.
const PERIOD: usize = 251;
const PIECE: usize = 64 * 1024;

/// One connection of a visitor.
pub(crate) struct Visitor {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

/// A response: head as text, body length, whether the body is the pattern, and its beginning as text.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) bytes: u64,
    pub(crate) patterned: bool,
    pub(crate) text: String,
}

impl Visitor {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let reader = BufReader::with_capacity(PIECE, stream.try_clone()?);
        Ok(Self { stream, reader })
    }

    /// GET on this connection, which stays open.
    pub(crate) fn get(&mut self, host: &str, path: &str, headers: &str) -> io::Result<Seen> {
        write!(self.stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n")?;
        self.receive()
    }

    /// POST of `bytes` bytes of the pattern with Content-Length.
    pub(crate) fn post(&mut self, host: &str, path: &str, bytes: u64) -> io::Result<Seen> {
        write!(self.stream, "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {bytes}\r\n\r\n")?;
        let block = pattern_block();
        let mut sent = 0;
        while sent < bytes {
            let start = position(sent);
            let length = piece(bytes - sent);
            self.stream.write_all(&block[start..start + length])?;
            sent += length as u64;
        }
        self.receive()
    }

    /// Asks for a WebSocket; the response has no body of its own.
    pub(crate) fn upgrade(&mut self, host: &str, path: &str) -> io::Result<Seen> {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13";
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        write!(self.stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n{key}\r\n\r\n")?;
        self.receive()
    }

    /// Sends bytes of the pattern and reads as many back; whether they are the same.
    pub(crate) fn echo(&mut self, bytes: usize) -> io::Result<bool> {
        let data: Vec<u8> =
            (0..bytes).map(|index| u8::try_from(index % PERIOD).unwrap_or_default()).collect();
        let data = data.as_slice();
        let mut writer = self.stream.try_clone()?;
        let mut back = vec![0; bytes];
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || writer.write_all(data));
            self.reader.read_exact(&mut back)?;
            sending.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
        })?;
        Ok(back == data)
    }

    /// Writes raw bytes, well-formed or not.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads one response.
    pub(crate) fn receive(&mut self) -> io::Result<Seen> {
        let mut head = String::new();
        loop {
            let start = head.len();
            if self.reader.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if &head[start..] == "\r\n" {
                break;
            }
        }
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut seen = Seen { status, head, bytes: 0, patterned: true, text: String::new() };
        let chunked = seen.header("transfer-encoding").iter().any(|value| value == "chunked");
        let length = seen.header("content-length").first().and_then(|value| value.parse().ok());
        if chunked {
            self.receive_chunks(&mut seen)?;
        } else if let Some(length) = length {
            self.receive_bytes(&mut seen, length)?;
        }
        Ok(seen)
    }

    fn receive_chunks(&mut self, seen: &mut Seen) -> io::Result<()> {
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
            self.receive_bytes(seen, length)?;
            let mut end = String::new();
            self.reader.read_line(&mut end)?;
            if length == 0 {
                return Ok(());
            }
        }
    }

    fn receive_bytes(&mut self, seen: &mut Seen, mut left: u64) -> io::Result<()> {
        let block = pattern_block();
        let mut buffer = vec![0; PIECE];
        while left > 0 {
            let length = piece(left);
            let read = self.reader.read(&mut buffer[..length])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let start = position(seen.bytes);
            seen.patterned = seen.patterned && buffer[..read] == block[start..start + read];
            if seen.text.len() < PIECE {
                seen.text.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
            seen.bytes += read as u64;
            left -= read as u64;
        }
        Ok(())
    }
}

impl Seen {
    /// Values of a header, in order.
    pub(crate) fn header(&self, name: &str) -> Vec<String> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }
}

/// One visit on a connection of its own.
pub(crate) fn visit(address: SocketAddr, host: &str, path: &str) -> io::Result<Seen> {
    Visitor::connect(address)?.get(host, path, "")
}

/// Enough of the pattern for a piece that starts anywhere in a period.
pub(crate) fn pattern_block() -> Vec<u8> {
    (0..PIECE + PERIOD).map(|index| u8::try_from(index % PERIOD).unwrap_or_default()).collect()
}

/// Where in the block the pattern continues after `offset` bytes.
pub(crate) fn position(offset: u64) -> usize {
    usize::try_from(offset % PERIOD as u64).unwrap_or_default()
}

fn piece(left: u64) -> usize {
    usize::try_from(left).unwrap_or(PIECE).min(PIECE)
}
