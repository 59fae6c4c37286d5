//! A visitor's request into a tunnel: pick a connection, open a stream, send the head, read the answer.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use adit_config::TunnelId;
use adit_tunnel_proto::{
    Candidate, ConnectResponse, ConnectionType, HeaderLines, HeaderPairs, PickError, RequestHead,
    ResponseDecoder, ResponseHead, encode_request, pick,
};
use bytes::Bytes;
use http::StatusCode;
use quinn::VarInt;

use super::{
    Shared,
    book::{Connection, Routes},
    error::{OpenError, ResponseError},
};
use crate::{
    in_flight::InFlight,
    is_management,
    request::ConnectionLabel,
    streams::{Loss, RecvHalf, SendHalf, StreamError, read_error, within, write_error},
};

/// An opened request stream.
#[derive(Debug)]
pub struct Opened {
    /// For the request's body.
    pub send: SendHalf,
    /// For the response.
    pub response: PendingResponse,
    /// The connection that carries it.
    pub connection: ConnectionLabel,
}

/// A request's head as it is sent, or why it cannot be.
#[derive(Clone, Debug)]
pub struct EncodedHead {
    kind: ConnectionType,
    /// One buffer, one write (E7); cloning it for another attempt copies nothing.
    preamble: Result<Bytes, OpenError>,
}

impl EncodedHead {
    /// Puts a head on the wire's form.
    pub fn new<H: HeaderPairs>(head: &RequestHead<H>) -> Self {
        let preamble = match is_management(&head.host) {
            true => Err(OpenError::ManagementHost),
            false => encode_request(head).map_err(|_| OpenError::HeadTooLarge),
        };
        Self { kind: head.kind, preamble }
    }
}

/// A response that has not come yet. Dropping it gives the request up.
pub struct PendingResponse {
    recv: quinn::RecvStream,
    connection: Arc<Connection>,
    kind: ConnectionType,
    in_flight: InFlight,
    shared: Arc<Shared>,
}

impl PendingResponse {
    /// Waits for the response head; sets no time limit of its own.
    ///
    /// The request counts as in flight until the half that comes back is dropped.
    ///
    /// # Errors
    /// When the connector fails, breaks off or is lost.
    pub async fn recv(mut self) -> Result<(ResponseHead<HeaderLines>, RecvHalf), ResponseError> {
        let response = read_response(&mut self.recv, self.kind).await;
        if !matches!(response, Err(ResponseError::ConnectionLost(_))) {
            self.connection.unanswered.answered();
        }
        match response {
            Ok((head, early)) => {
                let readers = &self.connection.readers;
                let body = RecvHalf::quic(self.recv, early, readers, Some(self.in_flight));
                Ok((head, body))
            }
            Err(error) => {
                self.shared.metrics.stream_failures.with_label_values(&[error.reason()]).inc();
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for PendingResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingResponse").field("kind", &self.kind).finish_non_exhaustive()
    }
}

pub(super) async fn open(
    shared: &Arc<Shared>,
    tunnel: TunnelId,
    EncodedHead { kind, preamble }: EncodedHead,
    is_whole: bool,
) -> Result<Opened, OpenError> {
    let preamble = preamble?;
    let routes = shared.book.routes(tunnel).ok_or(OpenError::UnknownTunnel)?;
    // Why the connections tried did not take the head, and which these were.
    let (mut failed, mut tried) = (None, Vec::new());
    for _ in 0..ATTEMPTS_MAX {
        let connection = match choose(shared, &routes) {
            Ok(connection) => connection,
            Err(error) => return Err(failed.unwrap_or(error)),
        };
        if tried.contains(&connection.key) {
            // There is no better one.
            break;
        }
        let in_flight = connection.load.enter();
        if connection.draining.load(Ordering::SeqCst) {
            // It began to drain between the pick and now.
            continue;
        }
        match begin(&connection, preamble.clone(), is_whole).await {
            Ok((send, recv)) => {
                shared.metrics.streams.inc();
                connection.unanswered.sent();
                let label = connection.label.clone();
                let shared = Arc::clone(shared);
                let response = PendingResponse { recv, connection, kind, in_flight, shared };
                return Ok(Opened { send, response, connection: label });
            }
            // The connector cannot have seen a whole head, so another connection may carry it.
            Err(error) => {
                if matches!(error, OpenError::ConnectionLost(_)) {
                    connection.draining.store(true, Ordering::SeqCst);
                } else {
                    connection.stalled.store(true, Ordering::Relaxed);
                }
                tried.push(connection.key);
                failed = Some(error);
            }
        }
    }
    Err(failed.unwrap_or(OpenError::NoConnection))
}

fn choose(shared: &Shared, routes: &Routes) -> Result<Arc<Connection>, OpenError> {
    let (in_flight_max, lane) = (shared.options.streams_per_connection_max, shared.lane());
    let connections = routes.connections.load();
    let start = routes.turn.fetch_add(1, Ordering::Relaxed);
    let picked = pick(connections.len(), start, in_flight_max, |at| {
        let connection = &connections[at];
        let count = connection.load.count();
        // What another thread runs is taken when this one's has much more to do, or does not answer.
        let is_near = connection.lane == lane && !connection.unanswered.is_hushed();
        let away = if is_near { 0 } else { AWAY_COST };
        Candidate {
            in_flight: count.max((count + away).min(in_flight_max.saturating_sub(1))),
            draining: connection.draining.load(Ordering::Relaxed),
            silent: connection.silent.load(Ordering::Relaxed) || connection.stalled.load(Ordering::Relaxed),
        }
    });
    match picked {
        Ok(at) => Ok(Arc::clone(&connections[at])),
        Err(PickError::NoConnection) => Err(OpenError::NoConnection),
        Err(PickError::Draining) => Err(OpenError::Draining),
        Err(PickError::Full) => Err(OpenError::StreamLimit),
    }
}

async fn begin(
    connection: &Connection,
    preamble: Bytes,
    is_whole: bool,
) -> Result<(SendHalf, quinn::RecvStream), OpenError> {
    let opened = within(STREAM_WAIT, connection.quic.open_bi()).await.map_err(|_| OpenError::StreamLimit)?;
    let (mut send, recv) = opened.map_err(|error| OpenError::ConnectionLost(Loss::from(&error)))?;
    let Ok(written) = within(HEAD_WAIT, send.write_chunk(preamble)).await else {
        // quinn would end it cleanly. Fails only for a stream that the connector stopped just now.
        drop(send.reset(VarInt::from_u32(0)));
        return Err(OpenError::Stalled);
    };
    match written.map_err(|error| write_error(&error)) {
        Ok(()) => {
            let mut send = SendHalf::quic(send);
            if is_whole {
                // At once, so that one packet takes both.
                send.finish();
            }
            Ok((send, recv))
        }
        Err(StreamError::ConnectionLost(loss)) => Err(OpenError::ConnectionLost(loss)),
        // The connector refused the stream before its head was written: take it for full.
        Err(_) => Err(OpenError::StreamLimit),
    }
}

async fn read_response(
    recv: &mut quinn::RecvStream,
    kind: ConnectionType,
) -> Result<(ResponseHead<HeaderLines>, Bytes), ResponseError> {
    let mut decoder = ResponseDecoder::new();
    let response = loop {
        match recv.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => decoder.handle_chunk(chunk.bytes),
            Ok(None) => return Err(ResponseError::Reset),
            Err(error) => {
                return Err(match read_error(&error) {
                    StreamError::ConnectionLost(loss) => ResponseError::ConnectionLost(loss),
                    _ => ResponseError::Reset,
                });
            }
        }
        match decoder.poll_lines() {
            Ok(Some(response)) => break response,
            Ok(None) => {}
            Err(error) => return Err(ResponseError::Malformed(error.reason())),
        }
    };
    let head = match response {
        // RFC 9110 §15.2: nothing would come after it to end the exchange; and only who asked to
        // switch protocols may be told so.
        ConnectResponse::Head(head) if head.status.is_informational() && !switches(&head, kind) => {
            return Err(ResponseError::Malformed("interim_status"));
        }
        ConnectResponse::Head(head) => head,
        ConnectResponse::Accepted if kind == ConnectionType::Tcp => {
            ResponseHead { status: StatusCode::OK, headers: HeaderLines::default() }
        }
        ConnectResponse::Accepted => return Err(ResponseError::Malformed("no_status")),
        ConnectResponse::Failed { text, rate_limited: true } => return Err(ResponseError::RateLimited(text)),
        ConnectResponse::Failed { text, rate_limited: false } => return Err(ResponseError::Origin(text)),
    };
    Ok((head, decoder.into_rest()))
}

fn switches(head: &ResponseHead<HeaderLines>, kind: ConnectionType) -> bool {
    head.status == StatusCode::SWITCHING_PROTOCOLS && kind == ConnectionType::Websocket
}

/// Connections tried for one request when they turn out to be lost, full or stalled.
const ATTEMPTS_MAX: usize = 4;

/// Requests in flight that a wake-up of another thread is worth.
const AWAY_COST: usize = 16;

/// Longest wait for a connector that has as many streams open as it announced.
const STREAM_WAIT: Duration = Duration::from_secs(1);

/// Longest wait for a connection to take a head; longer than slow readers can hold its window.
const HEAD_WAIT: Duration = Duration::from_secs(2);
