//! An origin for bulk: bytes of any number out, any number in, so that neither a disk nor a server's temporary files count.
//!
//! `GET /N` answers N bytes; anything with a body is read to its end. Its CPU time is nobody's here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Starts it on a port of loopback's; it ends with the process.
pub(crate) fn start() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A thread each: the loads open a few dozen at most.
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Bytes of bodies with a length that it has read since it was started.
pub(crate) fn received() -> u64 {
    RECEIVED.load(Ordering::Relaxed)
}

/// Closes the WebSockets that it holds.
pub(crate) fn release() {
    if let Ok(mut held) = HELD.lock() {
        held.clear();
    }
}

/// Answers until the other side ends or fails.
fn serve(mut stream: TcpStream) -> Option<()> {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::with_capacity(BLOCK, stream.try_clone().ok()?);
    let zeros = vec![0; BLOCK];
    loop {
        let Head { path, mut length, chunked, upgrade } = read_head(&mut reader)?;
        if upgrade {
            stream.write_all(SWITCHING.as_bytes()).ok()?;
            // Held without a thread.
            HELD.lock().ok()?.push(stream);
            return None;
        }
        while length > 0 {
            let read = reader.fill_buf().ok().filter(|bytes| !bytes.is_empty())?.len();
            let taken = read.min(usize::try_from(length).unwrap_or(usize::MAX));
            reader.consume(taken);
            length -= taken as u64;
            RECEIVED.fetch_add(taken as u64, Ordering::Relaxed);
        }
        if chunked {
            skip_chunks(&mut reader)?;
        }
        let mut wanted: u64 = path.trim_start_matches('/').parse().unwrap_or(0);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {wanted}\r\nContent-Type: text/plain\r\n\r\n")
            .ok()?;
        while wanted > 0 {
            let part = zeros.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
            stream.write_all(&zeros[..part]).ok()?;
            wanted -= part as u64;
        }
    }
}

struct Head {
    path: String,
    /// Content-Length.
    length: u64,
    chunked: bool,
    /// Whether it asks for a WebSocket.
    upgrade: bool,
}

fn read_head(reader: &mut BufReader<TcpStream>) -> Option<Head> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut head =
        Head { path: line.split(' ').nth(1)?.to_owned(), length: 0, chunked: false, upgrade: false };
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Some(head) };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => head.length = value.trim().parse().ok()?,
            "transfer-encoding" => head.chunked = true,
            "upgrade" => head.upgrade = true,
            _ => {}
        }
    }
}

fn skip_chunks(reader: &mut BufReader<TcpStream>) -> Option<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let length = u64::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
        std::io::copy(&mut reader.by_ref().take(length + 2), &mut std::io::sink()).ok()?;
        if length == 0 {
            return Some(());
        }
    }
}

static RECEIVED: AtomicU64 = AtomicU64::new(0);
static HELD: Mutex<Vec<TcpStream>> = Mutex::new(Vec::new());
/// The answer to the key of RFC 6455 section 1.3, which all clients here send.
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const BLOCK: usize = 256 * 1024;
