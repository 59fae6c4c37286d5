//! Requests over HTTP/1.1: a connection for each worker.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::framing::BodyReader;
use super::load::{Failure, SILENCE_MAX, Worker, connect};
use super::origin::PATTERN_BYTES;

/// How a connection ended that did nothing wrong.
enum End {
    /// There are no requests left.
    Done,
    /// The peer asked for a new one.
    Closing,
}

/// Makes requests; `Ok` when there are none left, an error when the connection is of no more use.
pub(super) async fn work(worker: &mut Worker) -> Result<(), Failure> {
    loop {
        worker.waits();
        let stream = connect(&worker.load).await?;
        let end = match worker.load.tls.clone() {
            None => serve(worker, stream).await?,
            Some(tls) => {
                let stream = tokio::time::timeout(SILENCE_MAX, tls.connect(stream)).await;
                serve(worker, stream.map_err(|_| Failure::Silent)?.map_err(|_| Failure::Tls)?).await?
            }
        };
        if matches!(end, End::Done) {
            return Ok(());
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &mut Worker,
    mut stream: S,
) -> Result<End, Failure> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    worker.connected();
    while worker.begin().await {
        let began = worker.waits();
        match exchange(worker, &mut stream, &mut buffer).await {
            Ok(keep) => {
                worker.succeeded(began);
                if !keep {
                    return Ok(End::Closing);
                }
            }
            Err((failure @ Failure::Status(_), true)) => worker.failed(failure),
            Err((failure, _)) => return Err(failure),
        }
    }
    Ok(End::Done)
}

/// An answer's head.
struct Head {
    status: u16,
    body: BodyReader,
    keep_alive: bool,
}

/// One request and its answer; whether the connection may be used again, of a failure too.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &mut Worker,
    stream: &mut S,
    buffer: &mut BytesMut,
) -> Result<bool, (Failure, bool)> {
    let lost = |failure| (failure, false);
    let head = worker.ask().head.clone();
    let head = if worker.ask().body == 0 {
        stream.write_all(&head).await.map_err(|_| lost(Failure::Closed))?;
        stream.flush().await.map_err(|_| lost(Failure::Closed))?;
        read_head(stream, buffer).await.map_err(lost)?
    } else {
        upload(worker, stream, buffer, &head).await.map_err(lost)?
    };
    let Head { status, mut body, keep_alive } = head;
    let counts = !worker.flow.is_up && status < 400;
    while !body.is_done() {
        if buffer.is_empty() {
            worker.pause().await;
            buffer.reserve(PATTERN_BYTES);
            match tokio::time::timeout(SILENCE_MAX, stream.read_buf(buffer)).await {
                Ok(Ok(0)) if body == BodyReader::UntilClose => break,
                Ok(Ok(1..)) => {}
                Err(_) => return Err(lost(Failure::Silent)),
                _ => return Err(lost(Failure::Closed)),
            }
        }
        let (taken, content) = body.take(buffer).map_err(|_| lost(Failure::Malformed))?;
        // Keeps the allocation: what was taken whole is overwritten.
        if taken == buffer.len() {
            buffer.clear();
        } else {
            buffer.advance(taken);
        }
        if counts {
            worker.carried(usize::try_from(content).unwrap_or(usize::MAX));
        }
    }
    let keep = keep_alive && body != BodyReader::UntilClose;
    if status >= 400 { Err((Failure::Status(status), keep)) } else { Ok(keep) }
}

/// Sends head and body while looking for an answer that comes before the end.
async fn upload<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &mut Worker,
    stream: &mut S,
    buffer: &mut BytesMut,
    head: &[u8],
) -> Result<Head, Failure> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent = {
        let reading = read_head(&mut reader, buffer);
        tokio::pin!(reading);
        tokio::select! {
            biased;
            sent = send_body(worker, &mut writer, head) => sent,
            head = &mut reading => return Err(match head {
                Ok(Head { status: status @ 400.., .. }) => Failure::Status(status),
                Ok(_) => Failure::Early,
                Err(failure) => failure,
            }),
        }
    };
    sent?;
    read_head(&mut reader, buffer).await
}

async fn send_body<W: AsyncWrite + Unpin>(
    worker: &mut Worker,
    writer: &mut W,
    head: &[u8],
) -> Result<(), Failure> {
    let pattern = worker.load.pattern.clone();
    let mut left = worker.ask().body;
    if left <= SMALL_BYTES {
        // One segment for head and body.
        let body = &pattern[..usize::try_from(left).unwrap_or_default()];
        writer.write_all(&[head, body].concat()).await.map_err(|_| Failure::Closed)?;
        worker.carried(body.len());
        return writer.flush().await.map_err(|_| Failure::Closed);
    }
    writer.write_all(head).await.map_err(|_| Failure::Closed)?;
    while left > 0 {
        worker.pause().await;
        let length = pattern.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let written = tokio::time::timeout(SILENCE_MAX, writer.write(&pattern[..length])).await;
        let written = written.map_err(|_| Failure::Silent)?.map_err(|_| Failure::Closed)?;
        if written == 0 {
            return Err(Failure::Closed);
        }
        left -= written as u64;
        worker.carried(written);
    }
    writer.flush().await.map_err(|_| Failure::Closed)
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Result<Head, Failure> {
    loop {
        if !buffer.is_empty()
            && let Some((head, length)) = parse(buffer)?
        {
            buffer.advance(length);
            // Interim answers (RFC 9110 §15.2).
            if head.status >= 200 {
                return Ok(head);
            }
            continue;
        }
        if buffer.len() >= HEAD_BYTES_MAX {
            return Err(Failure::Malformed);
        }
        buffer.reserve(READ_BYTES);
        match tokio::time::timeout(SILENCE_MAX, stream.read_buf(buffer)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return Err(Failure::Closed),
            Err(_) => return Err(Failure::Silent),
        }
    }
}

fn parse(buffer: &[u8]) -> Result<Option<(Head, usize)>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Failure::Malformed),
    };
    let status = response.code.unwrap_or_default();
    let has_no_body = matches!(status, 100..=199 | 204 | 304);
    let body = if has_no_body {
        BodyReader::Length(0)
    } else {
        BodyReader::of(response.headers, true).map_err(|_| Failure::Malformed)?
    };
    let closes = response.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("connection")
            && header.value.to_ascii_lowercase().windows(5).any(|w| w == b"close")
    });
    Ok(Some((Head { status, body, keep_alive: response.version == Some(1) && !closes }, length)))
}

/// Status and text of a small answer, once it is complete.
pub(super) fn text_of(buffer: &[u8]) -> Result<Option<(u16, String)>, Failure> {
    let Some((mut head, length)) = parse(buffer)? else { return Ok(None) };
    if head.body == BodyReader::UntilClose {
        return Err(Failure::Malformed);
    }
    let mut text = Vec::new();
    for byte in &buffer[length..] {
        if head.body.is_done() {
            break;
        }
        let (_, content) = head.body.take(std::slice::from_ref(byte)).map_err(|_| Failure::Malformed)?;
        if content > 0 {
            text.push(*byte);
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(head.body.is_done().then_some((head.status, text)))
}

const READ_BYTES: usize = 16 * 1024;
const HEAD_BYTES_MAX: usize = 64 * 1024;
const FIELDS_MAX: usize = 128;
/// Bodies up to this are copied behind their head.
const SMALL_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_answer_is_read_whole_in_either_framing() {
        let length = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(text_of(length), Ok(Some((200, "{}".to_owned()))));
        assert_eq!(text_of(&length[..length.len() - 1]), Ok(None));
        let chunked = b"HTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n";
        assert_eq!(text_of(chunked), Ok(Some((403, "{}".to_owned()))));
    }

    #[test]
    fn an_answer_without_content_has_none() {
        let (head, _) = parse(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n").unwrap().unwrap();
        assert!(head.body.is_done() && head.keep_alive);
        let (head, _) =
            parse(b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n").unwrap().unwrap();
        assert!(!head.keep_alive);
    }
}
