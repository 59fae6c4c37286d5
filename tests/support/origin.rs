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
//! | `/status/NNN` | that status without a body |
//! | `/hold` | nothing until the test calls `release` |
//! | `/websocket` | 101, then every byte comes back |
//! | anything else | the request head as the body |

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
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
}

/// How long the pattern of test bodies is; tests/peer/edge.py has the same.
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
    let number = || path.rsplit('/').next().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    match path.split('/').nth(1).unwrap_or_default() {
        "upload" => respond(stream, "", upload.as_bytes()),
        "download" => respond(stream, "", &pattern(number())),
        "stream" => respond_chunked(stream, &pattern(number())),
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
        "status" => write!(stream, "HTTP/1.1 {} Chosen\r\nContent-Length: 0\r\n\r\n", number()).ok(),
        "truncated" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").ok()?;
            stream.write_all(&pattern(100_000)).ok()?;
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

fn respond_chunked(stream: &mut TcpStream, body: &[u8]) -> Option<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
    for piece in body.chunks(10_000) {
        write!(stream, "{:x}\r\n", piece.len()).ok()?;
        stream.write_all(piece).ok()?;
        stream.write_all(b"\r\n").ok()?;
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

/// Reads the body by its framing and describes it in one line.
fn read_body(head: &str, reader: &mut BufReader<TcpStream>) -> Option<String> {
    let length = header(head, "content-length").first().map(|text| text.parse::<usize>().unwrap_or(0));
    let chunked = header(head, "transfer-encoding").iter().any(|value| value.contains("chunked"));
    let (body, framing) = match length {
        _ if chunked => (read_chunks(reader)?, "chunked"),
        Some(length) => {
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            (body, "length")
        }
        None => (Vec::new(), "none"),
    };
    let intact = body == pattern(body.len());
    Some(format!("bytes={} framing={framing} intact={intact}", body.len()))
}

fn read_chunks(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        let start = body.len();
        body.resize(start + length, 0);
        reader.read_exact(&mut body[start..]).ok()?;
        let mut end = String::new();
        reader.read_line(&mut end).ok()?;
        if length == 0 {
            return Some(body);
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

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index % PERIOD).unwrap_or_default()).collect()
}
