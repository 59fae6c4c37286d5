//! What the connector hands to whoever serves requests, and how that one answers.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use adit_tunnel_proto::{
    ConnectResponse, ConnectionType, HeaderPairs, Headers, PreambleError, Protocol, RequestHead,
    ResponseHead, encode_pairs, encode_response,
};
use bytes::Bytes;

use crate::{
    http2,
    streams::{RecvHalf, SendHalf, StreamError, write_error},
};

/// Serves the requests that arrive through a tunnel.
pub trait RequestHandler: Send + Sync + 'static {
    /// Serves one request to its end; runs in a task of its own, which is aborted when the
    /// connection is lost.
    fn handle(&self, request: TunnelRequest) -> impl Future<Output = ()> + Send;

    /// Takes a configuration pushed by the edge (JSON of tunnel-protocol.md §3.7) under its
    /// version; called only for versions newer than the last applied one.
    ///
    /// # Errors
    /// The text that the edge is told; the old configuration stays in force.
    fn apply_configuration(&self, version: i32, json: &[u8]) -> Result<(), String>;
}

/// One request from a visitor, carried by the edge.
#[derive(Debug)]
pub struct TunnelRequest {
    /// What is asked for.
    pub head: RequestHead<Headers>,
    /// The request's body, or the visitor's half of an upgraded connection.
    pub body: RecvHalf,
    /// The way back.
    pub reply: Reply,
    /// The connection that carried it.
    pub connection: ConnectionLabel,
}

/// The way to answer one request. Dropping it unused answers with a failure.
pub struct Reply {
    inner: Option<ReplyInner>,
    kind: ConnectionType,
    stopped: Option<Stopped>,
}

/// Resolves when the edge no longer wants the answer.
type Stopped =
    Pin<Box<dyn Future<Output = Result<Option<quinn::VarInt>, quinn::StoppedError>> + Send + Sync>>;

enum ReplyInner {
    Quic(quinn::SendStream),
    Http2(http2::Respond),
}

impl Reply {
    pub(crate) fn quic(stream: quinn::SendStream, kind: ConnectionType) -> Self {
        Self { inner: Some(ReplyInner::Quic(stream)), kind, stopped: None }
    }

    pub(crate) fn http2(respond: http2::Respond, kind: ConnectionType) -> Self {
        Self { inner: Some(ReplyInner::Http2(respond)), kind, stopped: None }
    }

    /// Ready when the edge has given the request up: the visitor went away, or the connection is lost.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.inner {
            Some(ReplyInner::Quic(stream)) => {
                let stopped = self.stopped.get_or_insert_with(|| Box::pin(stream.stopped()));
                stopped.as_mut().poll(cx).map(drop)
            }
            Some(ReplyInner::Http2(respond)) => respond.poll_stopped(cx),
            None => Poll::Ready(()),
        }
    }

    /// Sends the response head; the body goes through the half that comes back.
    ///
    /// # Errors
    /// When the head is too large for the tunnel (the edge is told), or the edge is gone.
    pub async fn head<H: HeaderPairs>(mut self, head: ResponseHead<H>) -> Result<SendHalf, StreamError> {
        match self.inner.take() {
            Some(ReplyInner::Quic(stream)) => {
                let bytes = encode_pairs(&ConnectResponse::Head(head));
                send_quic_head(stream, bytes).await
            }
            Some(ReplyInner::Http2(respond)) => {
                respond.head(&ResponseHead { status: head.status, headers: head.headers.into_map() })
            }
            None => Err(StreamError::Closed),
        }
    }

    /// Says that a TCP flow was opened; bytes go through the half that comes back.
    ///
    /// # Errors
    /// When the edge is gone.
    pub async fn accept(mut self) -> Result<SendHalf, StreamError> {
        match self.inner.take() {
            Some(ReplyInner::Quic(stream)) => {
                send_quic_head(stream, encode_response(&ConnectResponse::Accepted)).await
            }
            Some(ReplyInner::Http2(respond)) => respond.accept(),
            None => Err(StreamError::Closed),
        }
    }

    /// Says that no answer could be had, with the reason in words; the edge answers 502.
    pub async fn fail(mut self, text: &str) {
        self.send_failure(text, false);
    }

    /// Says that the flow limit refused the request; the edge answers 429 or 503.
    pub async fn fail_rate_limited(mut self, text: &str) {
        self.send_failure(text, true);
    }

    fn send_failure(&mut self, text: &str, rate_limited: bool) {
        match self.inner.take() {
            Some(ReplyInner::Quic(mut stream)) => {
                // Cut to what any edge logs; keeps the message within one packet.
                let text = text.chars().take(FAILURE_CHARS_MAX).collect();
                let response = ConnectResponse::Failed { text, rate_limited };
                if let Ok(bytes) = encode_response(&response) {
                    // A task, because this also runs when the reply is dropped: the stream may have
                    // to wait for the connection's window.
                    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                        runtime.spawn(async move {
                            if stream.write_chunk(bytes).await.is_ok() {
                                drop(stream.finish());
                            }
                        });
                    }
                }
            }
            Some(ReplyInner::Http2(respond)) => respond.fail(rate_limited),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send_failure("request was dropped", false);
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Which connection something travelled on.
#[derive(Clone, Debug)]
pub struct ConnectionLabel {
    /// The connector's index of the connection, 0 first.
    pub index: u8,
    /// The edge's name for where it is.
    pub location: Arc<str>,
    /// Address of the other end.
    pub peer: SocketAddr,
    /// The transport.
    pub protocol: Protocol,
}

async fn send_quic_head(
    mut stream: quinn::SendStream,
    encoded: Result<Bytes, PreambleError>,
) -> Result<SendHalf, StreamError> {
    let (bytes, error) = match encoded {
        Ok(bytes) => (bytes, None),
        Err(reason) => {
            let text = format!("response head refused: {}", reason.reason());
            let failed = ConnectResponse::Failed { text, rate_limited: false };
            let bytes = encode_response(&failed).map_err(|_| StreamError::HeadTooLarge)?;
            (bytes, Some(StreamError::HeadTooLarge))
        }
    };
    let mut half = match stream.write_chunk(bytes).await {
        Ok(()) => SendHalf::quic(stream),
        Err(error) => return Err(write_error(&error)),
    };
    match error {
        None => Ok(half),
        Some(error) => {
            half.finish();
            Err(error)
        }
    }
}

/// Longest failure text sent, in characters.
const FAILURE_CHARS_MAX: usize = 512;
