//! One visitor's HTTP/2 connection: a task for the connection and one for each request.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use super::stream::{Incoming, Outgoing};
use crate::body::{Body, Length};
use crate::date;
use crate::drain::Drain;
use crate::h1::server::Options;
use crate::h1::{framing, head};
use crate::idle::Deadline;
use crate::message::{Request, Response, Service, Visitor};

/// Serves requests until the connection ends or `drain` begins and the last stream is done.
pub async fn serve<S: Service>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    service: &Arc<S>,
    visitor: &Arc<Visitor>,
    options: &Options,
    drain: &Drain,
) {
    let Options { head_bytes_max, metrics, .. } = options;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(options.streams_max)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(*head_bytes_max).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(io));
    let Ok(Ok(mut connection)) = handshake.await else {
        metrics.refused("h2_handshake");
        return;
    };
    // Cloned into each request: more than one owner means that something is being answered.
    let exchange = Arc::new(Exchange {
        service: Arc::clone(service),
        visitor: Arc::clone(visitor),
        options: options.clone(),
    });
    let mut draining = false;
    let mut look = Instant::now() + options.keep_alive_timeout;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = sleep_until(look) => {
                let busy = Arc::strong_count(&exchange) > 1;
                if !busy && draining {
                    // GOAWAY waits for an answer that a silent visitor never gives.
                    metrics.refused("h2_silent");
                    return;
                }
                if !busy {
                    draining = true;
                    connection.graceful_shutdown();
                }
                look = Instant::now() + if draining { GOAWAY_TIME } else { options.keep_alive_timeout };
                continue;
            }
            () = drain.started(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                look = Instant::now() + GOAWAY_TIME;
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                look = Instant::now() + if draining { GOAWAY_TIME } else { options.keep_alive_timeout };
                tokio::spawn(answer(request, respond, Arc::clone(&exchange)));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, reason = "h2_connection", "connection ended");
                if !error.is_io() {
                    metrics.refused("h2_protocol");
                }
                return;
            }
            None => return,
        }
    }
}

/// What the requests of a connection share.
struct Exchange<S> {
    service: Arc<S>,
    visitor: Arc<Visitor>,
    options: Options,
}

async fn answer<S: Service>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    exchange: Arc<Exchange<S>>,
) {
    let metrics = &exchange.options.metrics;
    let is_head = *request.method() == Method::HEAD;
    let request = match translate(request, &exchange) {
        Ok(request) => request,
        Err(reason) => {
            metrics.refused(reason);
            let mut refusal = http::Response::new(());
            *refusal.status_mut() = StatusCode::BAD_REQUEST;
            let _ = respond.send_response(refusal, true);
            return;
        }
    };
    let mut call = pin!(exchange.service.call(request));
    let response = poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        // The visitor reset the stream: dropping the call aborts the exchange with the origin.
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    })
    .await;
    let Some(response) = response else {
        metrics.aborted();
        return;
    };
    let body = Deadline::limit(response.body, exchange.options.write_timeout);
    let response = Response { body, ..response };
    if send(response, &mut respond, is_head, exchange.options.write_idle_timeout).await.is_err() {
        metrics.aborted();
    }
}

async fn send(
    response: Response,
    respond: &mut SendResponse<Bytes>,
    is_head: bool,
    stall: Duration,
) -> Result<(), ()> {
    let Response { status, mut headers, body } = response;
    let described = headers.remove(header::CONTENT_LENGTH);
    let bodiless = is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let length = match body.length() {
        Length::Known(bytes) if !bodiless || bytes > 0 => Some(HeaderValue::from(bytes)),
        Length::Known(_) if bodiless => described,
        _ => None,
    };
    if let Some(length) = length.filter(|_| status != StatusCode::NO_CONTENT) {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    if !headers.contains_key(header::DATE)
        && let Ok(now) = date::with_now(HeaderValue::from_bytes)
    {
        headers.insert(header::DATE, now);
    }
    let mut head = http::Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = headers;
    let body = if bodiless { Body::empty() } else { body };
    let ends = body.is_empty();
    let stream = respond.send_response(head, ends).map_err(|_| ())?;
    if ends {
        return Ok(());
    }
    let mut outgoing = Outgoing::new(stream, body, stall);
    poll_fn(|cx| outgoing.poll(cx)).await.map_err(|_| ())
}

/// The request in our own form, with the checks that HTTP/1.1's parser does for its side.
fn translate<S>(request: http::Request<RecvStream>, exchange: &Exchange<S>) -> Result<Request, &'static str> {
    let (parts, stream) = request.into_parts();
    let mut headers = parts.headers;
    if headers.len() > exchange.options.head_fields_max {
        return Err("head_too_many_fields");
    }
    // RFC 9113 §8.2.2: fields of one HTTP/1.1 connection have no place here.
    if headers.contains_key(header::CONNECTION) || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err("h2_connection_field");
    }
    if parts.method == Method::CONNECT {
        return Err("head_target");
    }
    let path = parts.uri.path();
    if !(path.starts_with('/') || path.is_empty() || (path == "*" && parts.method == Method::OPTIONS)) {
        return Err("head_target");
    }
    let host = match (parts.uri.authority(), headers.get(header::HOST)) {
        (Some(authority), None) => authority.as_str().to_owned(),
        // RFC 9113 §8.3.1: a Host that contradicts :authority makes the request malformed.
        (Some(authority), Some(host))
            if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            authority.as_str().to_owned()
        }
        (None, Some(host)) => host.to_str().map_err(|_| "head_host")?.to_owned(),
        _ => return Err("head_host"),
    };
    if !head::is_host(&host) || headers.get_all(header::HOST).iter().count() > 1 {
        return Err("head_host");
    }
    headers.remove(header::HOST);
    join_cookies(&mut headers);
    let length = match headers.remove(header::CONTENT_LENGTH) {
        _ if stream.is_end_stream() => Length::Known(0),
        Some(value) => Length::Known(framing::parse_length(&value).ok_or("framing_length")?),
        None => Length::Unknown,
    };
    let body = match length {
        Length::Known(0) => Body::empty(),
        length => {
            let body = Body::stream(Incoming::new(stream, Some(exchange.options.body_idle_timeout)), length);
            Deadline::limit(body, exchange.options.read_timeout)
        }
    };
    Ok(Request {
        method: parts.method,
        uri: parts.uri,
        version: http::Version::HTTP_2,
        host,
        headers,
        body,
        upgrade: None,
        visitor: Arc::clone(&exchange.visitor),
    })
}

/// RFC 9113 §8.2.3: cookie crumbs are one field to anything that is not HTTP/2.
fn join_cookies(headers: &mut http::HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// Upload credit of one stream: fills 400 Mbit/s at 20 ms.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Upload credit of all streams of a connection, so the most that a visitor can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Download bytes buffered per stream beyond the socket.
const SEND_BUFFER_BYTES_MAX: usize = 512 * 1024;
/// Streams reset by us that are remembered for late frames.
const RESET_STREAMS_MAX: usize = 64;
/// Streams that a visitor may open and reset before we see them (rapid reset, CVE-2023-44487): then the connection ends.
const PENDING_RESETS_MAX: usize = 32;
/// From GOAWAY, or the last answer after it, to the end of the connection.
const GOAWAY_TIME: Duration = Duration::from_secs(3);
/// For the client preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
