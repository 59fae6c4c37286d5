//! The origin's HTTP/2.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::origin::{Answer, Origin, PATTERN_BYTES, Run};

/// Serves the streams of one connection until the client closes it.
pub(crate) async fn serve<S>(origin: Arc<Origin>, stream: S, from: IpAddr)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buffer_size(PATTERN_BYTES)
        .max_concurrent_reset_streams(RESETS_MAX)
        .handshake(stream);
    let Ok(Ok(mut connection)) = tokio::time::timeout(SILENCE_MAX, handshake).await else { return };
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            // Also what drives the connection, and so the streams.
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => drop(streams.spawn(answer(Arc::clone(&origin), request, respond, from))),
                _ => break,
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            () = tokio::time::sleep(SILENCE_MAX), if streams.is_empty() => break,
        }
    }
}

async fn answer(
    origin: Arc<Origin>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    from: IpAddr,
) {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let answer = origin.route(request.method(), &target, from);
    // A stream that was reset has no one to tell.
    let _ =
        tokio::time::timeout(origin.request_max(), send(&origin, request.into_body(), respond, answer)).await;
}

async fn send(
    origin: &Origin,
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
    answer: Answer,
) -> Result<(), h2::Error> {
    let run = if let Answer::Sink(run) = &answer { run.as_deref() } else { None };
    let received = drain(body, run).await?;
    let head = |status: StatusCode, length: u64| {
        let head = Response::builder()
            .status(status)
            .header("cache-control", "no-store")
            .header("content-length", length);
        head.body(()).map_err(|_| h2::Error::from(Reason::INTERNAL_ERROR))
    };
    let text = match answer {
        Answer::Text(status, text) => Some((status, text)),
        Answer::Sink(_) => Some((StatusCode::OK, format!("{{\"bytes\":{received}}}"))),
        Answer::Bytes(0, _) => Some((StatusCode::OK, String::new())),
        Answer::Bytes(count, run) => {
            let stream = respond.send_response(head(StatusCode::OK, count)?, false)?;
            pour(origin, stream, count, run.as_deref()).await?;
            None
        }
    };
    if let Some((status, text)) = text {
        let mut stream = respond.send_response(head(status, text.len() as u64)?, text.is_empty())?;
        if !text.is_empty() {
            stream.send_data(Bytes::from(text), true)?;
        }
    }
    Ok(())
}

async fn drain(mut body: RecvStream, run: Option<&Run>) -> Result<u64, h2::Error> {
    let mut all = 0;
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
        all += length as u64;
        if let Some(run) = run {
            run.received.fetch_add(length as u64, Ordering::Relaxed);
            run.touch();
        }
    }
    Ok(all)
}

async fn pour(
    origin: &Origin,
    mut stream: SendStream<Bytes>,
    count: u64,
    run: Option<&Run>,
) -> Result<(), h2::Error> {
    let mut left = count;
    while left > 0 {
        let room = super::capacity(&mut stream, left).await?;
        let chunk = origin.pattern.slice(..room);
        left -= room as u64;
        if let Some(run) = run {
            // Before it is sent: whoever has received the last of it may ask for the count at once.
            run.sent.fetch_add(room as u64, Ordering::Relaxed);
            run.touch();
        }
        stream.send_data(chunk, left == 0)?;
    }
    Ok(())
}

/// Twice what one of our clients opens.
const STREAMS_MAX: u32 = 256;
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Unread bytes of one connection: they are counted as they come, so that this is a path's, not a store's.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// Streams reset and not yet forgotten (CVE-2023-44487).
const RESETS_MAX: usize = 32;
const SILENCE_MAX: Duration = Duration::from_secs(60);
