//! An origin that shows what it was sent and misbehaves on request. Paths choose what it does:
//!
//! | Path | Answer |
//! |---|---|
//! | `/upload` | reads the body; says `bytes=N framing=length\|chunked\|none intact=true\|false` |
//! | `/download/N` | N bytes of the pattern with Content-Length |
//! | `/stream/N` | N bytes of the pattern, chunked |
//! | `/truncated` | promises 1,000,000 bytes, sends 100,000 and closes |
//! | `/twice` | the header `X-Twice` with `first` and then `second` |
//! | `/private` | headers of kinds that must not cross an HTTP/2 tunnel |
//! | `/trailers` | a chunked body and the trailer `X-Sum: 7` |
//! | `/events` | one server-sent event, and another when the test calls `release` |
//! | `/endless` | a chunked body that ends only when nobody takes it any more |
//! | `/status/NNN` | that status without a body |
//! | `/hold` | nothing until the test calls `release` |
//! | `/websocket` | 101, then every byte comes back |
//! | anything else | the request head as the body |

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A running origin on 127.0.0.1; its threads end with the test process.
pub(crate) struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Request line and header lines, without the empty line.
    pub(crate) head: String,
    /// Which connection it came on, from 0.
    pub(crate) connection: usize,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    released: Mutex<bool>,
    release: Condvar,
    endless_bytes: AtomicU64,
    endless_ended: AtomicBool,
}

/// Largest piece that is compared or written at once.
const PIECE: usize = 64 * 1024;
/// How long the pattern of test bodies is.
const PERIOD: usize = 251;

impl Origin {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let served = Arc::clone(&served);
                // A peer that goes away ends the thread; there is nobody to tell.
                std::thread::spawn(move || serve(stream, connection, &served));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of `/endless` that somebody took.
    pub(crate) fn endless_bytes(&self) -> u64 {
        self.shared.endless_bytes.load(Ordering::Relaxed)
    }

    /// Whether `/endless` found that nobody takes its bytes any more.
    pub(crate) fn endless_ended(&self) -> bool {
        self.shared.endless_ended.load(Ordering::Relaxed)
    }

    /// Lets all requests of `/hold` go on.
    pub(crate) fn release(&self) {
        *self.shared.released.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.release.notify_all();
    }
}

impl Seen {
    /// Values of a header, in order.
    pub(crate) fn header(&self, name: &str) -> Vec<String> {
        header(&self.head, name)
    }
}

fn serve(stream: TcpStream, connection: usize, shared: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let head = read_head(&mut reader)?;
        let path = head.split(' ').nth(1)?.to_owned();
        let seen = Seen { head: head.clone(), connection };
        shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        if path == "/websocket" {
            return echo(reader, stream);
        }
        let upload = read_body(&head, &mut reader)?;
        let path = path.split('?').next().unwrap_or_default();
        answer(path, &head, &upload, &mut stream, shared)?;
    }
}

fn answer(path: &str, head: &str, upload: &str, stream: &mut TcpStream, shared: &Shared) -> Option<()> {
    let number = || path.rsplit('/').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    match path.split('/').nth(1).unwrap_or_default() {
        "upload" => respond(stream, "", upload.as_bytes()),
        "download" => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", number()).ok()?;
            write_pattern(stream, number())
        }
        "stream" => respond_chunked(stream, number()),
        "twice" => respond(stream, "X-Twice: first\r\nX-Twice: second\r\n", b"twice"),
        "private" => {
            respond(stream, "Cf-Int-A: 1\r\nCf-Cloudflared-B: 1\r\nCf-Proxy-C: 1\r\nX-Kept: 1\r\n", b"")
        }
        "trailers" => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(b"4\r\nbody\r\n0\r\nX-Sum: 7\r\n\r\n").ok()
        }
        "events" => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(b"b\r\ndata: one\n\n\r\n").ok()?;
            wait_for_release(shared);
            stream.write_all(b"b\r\ndata: two\n\n\r\n0\r\n\r\n").ok()
        }
        "endless" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
            let chunk = [b"1000\r\n".as_slice(), &[0; 0x1000], b"\r\n"].concat();
            while stream.write_all(&chunk).is_ok() {
                shared.endless_bytes.fetch_add(0x1000, Ordering::Relaxed);
            }
            shared.endless_ended.store(true, Ordering::Relaxed);
            None
        }
        "status" => write!(stream, "HTTP/1.1 {} Chosen\r\nContent-Length: 0\r\n\r\n", number()).ok(),
        "truncated" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").ok()?;
            write_pattern(stream, 100_000)?;
            // Ends the loop of `serve`, and with it the connection.
            None
        }
        "hold" => {
            wait_for_release(shared);
            respond(stream, "", b"held")
        }
        _ => respond(stream, "", head.as_bytes()),
    }
}

fn wait_for_release(shared: &Shared) {
    let released = shared.released.lock().unwrap_or_else(PoisonError::into_inner);
    let wait = shared.release.wait_while(released, |released| !*released);
    drop(wait.unwrap_or_else(PoisonError::into_inner));
}

fn respond(stream: &mut TcpStream, headers: &str, body: &[u8]) -> Option<()> {
    write!(stream, "HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).ok()?;
    stream.write_all(body).ok()
}

fn respond_chunked(stream: &mut TcpStream, length: u64) -> Option<()> {
    const CHUNK: usize = 10_000;
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
    let block = pattern_block();
    let mut sent = 0;
    while sent < length {
        let start = position(sent);
        let size = usize::try_from(length - sent).unwrap_or(CHUNK).min(CHUNK);
        write!(stream, "{size:x}\r\n").ok()?;
        stream.write_all(&block[start..start + size]).ok()?;
        stream.write_all(b"\r\n").ok()?;
        sent += size as u64;
    }
    stream.write_all(b"0\r\n\r\n").ok()
}

/// Completes a WebSocket handshake (RFC 6455 §1.3, with the accept value of its example key) and sends back what comes.
fn echo(mut reader: BufReader<TcpStream>, mut stream: TcpStream) -> Option<()> {
    let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = reader.read(&mut buffer).ok()?;
        if length == 0 {
            return Some(());
        }
        stream.write_all(&buffer[..length]).ok()?;
    }
}

fn read_head(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            return Some(head);
        }
        head.push_str(&line);
    }
}

/// Reads the body by its framing, without keeping it, and describes it in one line.
fn read_body(head: &str, reader: &mut BufReader<TcpStream>) -> Option<String> {
    let length = header(head, "content-length").first().map(|text| text.parse::<u64>().unwrap_or(0));
    let chunked = header(head, "transfer-encoding").iter().any(|value| value.contains("chunked"));
    let mut body = Body { bytes: 0, intact: true };
    let framing = match length {
        _ if chunked => {
            read_chunks(reader, &mut body)?;
            "chunked"
        }
        Some(length) => {
            body.read(reader, length)?;
            "length"
        }
        None => "none",
    };
    Some(format!("bytes={} framing={framing} intact={}", body.bytes, body.intact))
}

/// How much came, and whether it is the pattern.
struct Body {
    bytes: u64,
    intact: bool,
}

impl Body {
    fn read(&mut self, reader: &mut BufReader<TcpStream>, mut left: u64) -> Option<()> {
        let block = pattern_block();
        while left > 0 {
            let data = reader.fill_buf().ok()?;
            let length = data.len().min(usize::try_from(left).unwrap_or(usize::MAX)).min(PIECE);
            if length == 0 {
                return None;
            }
            let start = position(self.bytes);
            self.intact = self.intact && data[..length] == block[start..start + length];
            reader.consume(length);
            self.bytes += length as u64;
            left -= length as u64;
        }
        Some(())
    }
}

fn read_chunks(reader: &mut BufReader<TcpStream>, body: &mut Body) -> Option<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let length = u64::from_str_radix(line.trim(), 16).ok()?;
        body.read(reader, length)?;
        let mut end = String::new();
        reader.read_line(&mut end).ok()?;
        if length == 0 {
            return Some(());
        }
    }
}

fn header(head: &str, name: &str) -> Vec<String> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().to_owned())
        .collect()
}

/// Writes `length` bytes of the pattern, piece by piece.
fn write_pattern(stream: &mut TcpStream, length: u64) -> Option<()> {
    let block = pattern_block();
    let mut sent = 0;
    while sent < length {
        let start = position(sent);
        let size = usize::try_from(length - sent).unwrap_or(PIECE).min(PIECE);
        stream.write_all(&block[start..start + size]).ok()?;
        sent += size as u64;
    }
    Some(())
}

/// Enough of the pattern for a piece that starts anywhere in a period: bytes 0 to 250 again and again, so that no power of
/// two fits. tests/peer/edge.py has the same.
fn pattern_block() -> Vec<u8> {
    (0..PIECE + PERIOD).map(|index| u8::try_from(index % PERIOD).unwrap_or_default()).collect()
}

/// Where in the block the pattern continues after `offset` bytes.
fn position(offset: u64) -> usize {
    usize::try_from(offset % PERIOD as u64).unwrap_or_default()
}
