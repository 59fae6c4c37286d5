//! The origin's HTTP/1.1: heads are parsed, bodies counted or made, one buffer a connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::framing::BodyReader;
use super::origin::{Answer, Origin, PATTERN_BYTES, Run};

/// Serves requests one after the other until the client closes, is silent, or breaks the rules.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(origin: &Origin, mut stream: S, from: IpAddr) {
    let mut buffer = BytesMut::with_capacity(HEAD_BYTES_MAX);
    while let Ok(Some(head)) = read_head(&mut stream, &mut buffer).await {
        let answer = origin.route(&head.method, &head.target, from);
        let exchange = exchange(origin, &mut stream, &mut buffer, (head, answer));
        if !matches!(tokio::time::timeout(origin.request_max(), exchange).await, Ok(Ok(true))) {
            break;
        }
    }
    let _ = stream.shutdown().await;
}

/// What matters of a request's head.
struct Head {
    method: Method,
    target: String,
    body: BodyReader,
    keep_alive: bool,
    expects_continue: bool,
}

/// Why a connection ends.
enum Stop {
    Gone,
    Malformed,
}

async fn read_head<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
) -> Result<Option<Head>, Stop> {
    loop {
        if !buffer.is_empty()
            && let Some((head, length)) = parse(buffer)?
        {
            buffer.advance(length);
            return Ok(Some(head));
        }
        if buffer.len() >= HEAD_BYTES_MAX {
            return Err(Stop::Malformed);
        }
        buffer.reserve(READ_BYTES);
        match tokio::time::timeout(SILENCE_MAX, stream.read_buf(buffer)).await {
            Ok(Ok(length)) if length > 0 => {}
            _ if buffer.is_empty() => return Ok(None),
            _ => return Err(Stop::Gone),
        }
    }
}

fn parse(buffer: &[u8]) -> Result<Option<(Head, usize)>, Stop> {
    let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Stop::Malformed),
    };
    let method = request.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    let field = |name: &str, value: &[u8]| {
        request
            .headers
            .iter()
            .any(|header| header.name.eq_ignore_ascii_case(name) && header.value.eq_ignore_ascii_case(value))
    };
    let keep_alive =
        request.version == Some(1) && !field("connection", b"close") || field("connection", b"keep-alive");
    let expects_continue = field("expect", b"100-continue");
    let head = Head {
        method: method.ok_or(Stop::Malformed)?,
        target: request.path.unwrap_or_default().to_owned(),
        body: BodyReader::of(request.headers, false).map_err(|_| Stop::Malformed)?,
        keep_alive,
        expects_continue,
    };
    Ok(Some((head, length)))
}

/// Answers one request; whether another may follow.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    origin: &Origin,
    stream: &mut S,
    buffer: &mut BytesMut,
    (mut head, answer): (Head, Answer),
) -> Result<bool, Stop> {
    if head.expects_continue && !head.body.is_done() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| Stop::Gone)?;
    }
    let run = if let Answer::Sink(run) = &answer { run.as_deref() } else { None };
    let received = drain(stream, buffer, &mut head.body, run).await?;
    let keep = head.keep_alive;
    match answer {
        Answer::Text(status, text) => {
            write(stream, status, "application/json", keep, text.as_bytes()).await?
        }
        Answer::Sink(_) => {
            let text = format!("{{\"bytes\":{received}}}");
            write(stream, StatusCode::OK, "application/json", keep, text.as_bytes()).await?;
        }
        Answer::Bytes(count, _) if head.method == Method::HEAD => {
            let head = head_text(StatusCode::OK, "application/octet-stream", keep, count);
            stream.write_all(head.as_bytes()).await.map_err(|_| Stop::Gone)?;
        }
        Answer::Bytes(count, run) => send_bytes(origin, stream, count, run, keep).await?,
    }
    stream.flush().await.map_err(|_| Stop::Gone)?;
    Ok(keep)
}

/// Reads a body to its end and counts it.
async fn drain<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    body: &mut BodyReader,
    run: Option<&Run>,
) -> Result<u64, Stop> {
    let mut all = 0;
    while !body.is_done() {
        if buffer.is_empty() {
            buffer.reserve(PATTERN_BYTES);
            let read = tokio::time::timeout(SILENCE_MAX, stream.read_buf(buffer)).await;
            if !matches!(read, Ok(Ok(length)) if length > 0) {
                return Err(Stop::Gone);
            }
        }
        let (taken, content) = body.take(buffer).map_err(|_| Stop::Malformed)?;
        // Keeps the allocation: what was taken whole is overwritten.
        if taken == buffer.len() {
            buffer.clear();
        } else {
            buffer.advance(taken);
        }
        all += content;
        if let Some(run) = run {
            run.received.fetch_add(content, Ordering::Relaxed);
            run.touch();
        }
    }
    Ok(all)
}

async fn send_bytes<S: AsyncWrite + Unpin>(
    origin: &Origin,
    stream: &mut S,
    count: u64,
    run: Option<Arc<Run>>,
    keep: bool,
) -> Result<(), Stop> {
    let head = head_text(StatusCode::OK, "application/octet-stream", keep, count);
    // Before they are sent: whoever has received the last ones may ask for the count at once.
    let sends = |bytes: usize| {
        if let Some(run) = &run {
            run.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    };
    let unsent = |bytes: usize| {
        if let Some(run) = &run {
            run.sent.fetch_sub(bytes as u64, Ordering::Relaxed);
        }
    };
    if count <= SMALL_BYTES {
        // One segment for head and body.
        let body = &origin.pattern[..usize::try_from(count).unwrap_or_default()];
        let message = [head.as_bytes(), body].concat();
        sends(body.len());
        return stream.write_all(&message).await.map_err(|_| {
            unsent(body.len());
            Stop::Gone
        });
    }
    stream.write_all(head.as_bytes()).await.map_err(|_| Stop::Gone)?;
    let mut left = count;
    while left > 0 {
        let length = origin.pattern.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        sends(length);
        let written = tokio::time::timeout(SILENCE_MAX, stream.write(&origin.pattern[..length])).await;
        let written = written.ok().and_then(Result::ok).unwrap_or_default();
        unsent(length - written);
        if written == 0 {
            return Err(Stop::Gone);
        }
        run.iter().for_each(|run| run.touch());
        left -= written as u64;
    }
    Ok(())
}

async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: StatusCode,
    kind: &str,
    keep: bool,
    body: &[u8],
) -> Result<(), Stop> {
    let head = head_text(status, kind, keep, body.len() as u64);
    stream.write_all(&[head.as_bytes(), body].concat()).await.map_err(|_| Stop::Gone)
}

fn head_text(status: StatusCode, kind: &str, keep: bool, length: u64) -> String {
    let close = if keep { "" } else { "connection: close\r\n" };
    // `no-store`: what stands between shall carry the load, not answer it.
    format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {kind}\r\ncache-control: no-store\r\ncontent-length: {length}\r\n{close}\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default()
    )
}

/// A request's head, whole.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const FIELDS_MAX: usize = 100;
const READ_BYTES: usize = 4096;
/// Bodies up to this are copied behind their head.
const SMALL_BYTES: u64 = 16 * 1024;
/// A client that neither sends nor takes for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
