//! Content between HTTP/3 streams and [`Body`].

use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::h3::error::Code;
use ::h3::server::RequestStream;
use bytes::{Buf, Bytes};
use http::HeaderMap;
use tokio::time::timeout;

use super::bounded::BoundedRecv;
use crate::body::{BATCH_BYTES_MAX, Batch, Body, BodyError, BodySource};
use crate::headers;
use crate::idle::Idle;

/// Content that arrives on a stream.
pub(super) struct Incoming {
    stream: RequestStream<BoundedRecv, Bytes>,
    /// What `Content-Length` still promises: `h3` leaves it to us (RFC 9114 §4.1.2).
    left: Option<u64>,
    trailers: Option<HeaderMap>,
    data_done: bool,
    idle: Idle,
}

impl Incoming {
    /// `idle` limits silence while content is wanted.
    pub(super) fn new(
        stream: RequestStream<BoundedRecv, Bytes>,
        length: Option<u64>,
        idle: Duration,
    ) -> Self {
        Self { stream, left: length, trailers: None, data_done: false, idle: Idle::new(idle) }
    }

    /// Counts what arrived against what was announced.
    fn account(&mut self, bytes: usize) -> Result<(), BodyError> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(bytes as u64).ok_or(BodyError::Truncated)?;
        }
        Ok(())
    }
}

impl BodySource for Incoming {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let mut taken = 0;
        while !self.data_done && taken < BATCH_BYTES_MAX {
            match self.stream.poll_recv_data(cx) {
                Poll::Ready(Ok(Some(mut data))) => {
                    let data = data.copy_to_bytes(data.remaining());
                    self.account(data.len())?;
                    taken += data.len();
                    self.idle.touch();
                    if !data.is_empty() {
                        out.push_back(data);
                    }
                }
                Poll::Ready(Ok(None)) => {
                    if self.left.is_some_and(|left| left > 0) {
                        return Poll::Ready(Err(BodyError::Truncated));
                    }
                    self.data_done = true;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(BodyError::Truncated)),
                Poll::Pending if taken > 0 => return Poll::Ready(Ok(true)),
                Poll::Pending => return self.idle.poll(cx).map(|()| Err(BodyError::Idle)),
            }
        }
        if !self.data_done {
            return Poll::Ready(Ok(true));
        }
        match self.stream.poll_recv_trailers(cx) {
            Poll::Ready(Ok(trailers)) => {
                self.trailers = trailers.map(headers::tidy_trailers).transpose()?;
                Poll::Ready(Ok(false))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(BodyError::Trailers)),
            Poll::Pending if taken > 0 => Poll::Ready(Ok(true)),
            Poll::Pending => self.idle.poll(cx).map(|()| Err(BodyError::Idle)),
        }
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}

/// The sending half of a request's stream.
pub(super) type Sender = RequestStream<h3_quinn::SendStream<Bytes>, Bytes>;

/// How sending ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendFailure {
    /// The visitor stopped the stream, or the connection is gone.
    Peer,
    /// The visitor took nothing for too long.
    Stalled,
    /// The content broke off; the stream was reset so that the visitor knows.
    Body,
}

/// Sends an answer's head, content and trailers; `stall` limits how long the visitor may take nothing.
pub(super) async fn send(
    sender: &mut Sender,
    head: http::Response<()>,
    mut body: Body,
    stall: Duration,
) -> Result<(), SendFailure> {
    let sending = sender.send_response(head);
    timeout(stall, sending).await.map_err(|_| SendFailure::Stalled)?.map_err(|_| SendFailure::Peer)?;
    let mut batch = Batch::new();
    loop {
        let more = match std::future::poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await {
            Ok(more) => more,
            Err(_) => {
                sender.stop_stream(Code::H3_INTERNAL_ERROR);
                return Err(SendFailure::Body);
            }
        };
        while let Some(chunk) = batch.pop_front() {
            send_chunk(sender, chunk, &mut body, stall).await?;
        }
        if !more {
            break;
        }
    }
    if let Some(trailers) = body.take_trailers() {
        let sending = sender.send_trailers(trailers);
        timeout(stall, sending).await.map_err(|_| SendFailure::Stalled)?.map_err(|_| SendFailure::Peer)?;
    }
    sender.finish().await.map_err(|_| SendFailure::Peer)
}

async fn send_chunk(
    sender: &mut Sender,
    chunk: Bytes,
    body: &mut Body,
    stall: Duration,
) -> Result<(), SendFailure> {
    let sent = {
        let mut sending = pin!(sender.send_data(chunk));
        let with_background = std::future::poll_fn(|cx| {
            if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                return Poll::Ready(sent.map_err(|_| SendFailure::Peer));
            }
            // The upload that belongs to this exchange goes on while its answer is stuck.
            body.poll_background(cx);
            body.poll_due(cx).map(|()| Err(SendFailure::Body))
        });
        timeout(stall, with_background).await.map_err(|_| SendFailure::Stalled)?
    };
    if sent == Err(SendFailure::Body) {
        sender.stop_stream(Code::H3_INTERNAL_ERROR);
    }
    sent
}
