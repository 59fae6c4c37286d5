//! Content between HTTP/2 streams and [`Body`].

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use crate::body::{BATCH_BYTES_MAX, Batch, Body, BodyError, BodySource};
use crate::h1::scratch;
use crate::headers;
use crate::idle::Idle;

/// Content that arrives on a stream. Flow-control credit is given back when a chunk is taken, so a slow reader on the
/// other side stops the sender.
pub(super) struct Incoming {
    stream: RecvStream,
    trailers: Option<HeaderMap>,
    data_done: bool,
    idle: Option<Idle>,
}

impl Incoming {
    /// `idle` limits silence while content is wanted.
    pub(super) fn new(stream: RecvStream, idle: Option<Duration>) -> Self {
        Self { stream, trailers: None, data_done: false, idle: idle.map(Idle::new) }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        match &mut self.idle {
            Some(idle) => idle.poll(cx).map(|()| Err(BodyError::Idle)),
            None => Poll::Pending,
        }
    }

    fn touch(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.touch();
        }
    }
}

impl BodySource for Incoming {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let mut taken = 0;
        while !self.data_done && taken < BATCH_BYTES_MAX {
            match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    taken += data.len();
                    self.touch();
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if !data.is_empty() {
                        out.push_back(data);
                    }
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(BodyError::Truncated)),
                Poll::Ready(None) => self.data_done = true,
                Poll::Pending if taken > 0 => return Poll::Ready(Ok(true)),
                Poll::Pending => return self.poll_idle(cx),
            }
        }
        if !self.data_done {
            return Poll::Ready(Ok(true));
        }
        match self.stream.poll_trailers(cx) {
            Poll::Ready(Ok(trailers)) => {
                self.trailers = trailers.map(headers::tidy_trailers).transpose()?;
                Poll::Ready(Ok(false))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(BodyError::Truncated)),
            Poll::Pending if taken > 0 => Poll::Ready(Ok(true)),
            Poll::Pending => self.poll_idle(cx),
        }
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}

/// Content on its way out.
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    body: Body,
    batch: Batch,
    body_done: bool,
    finished: bool,
    stall: Idle,
}

/// How sending ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendFailure {
    /// The other end reset the stream or the connection is gone.
    Peer,
    /// The other end granted no credit for too long.
    Stalled,
    /// The content broke off; the stream was reset so that the other end knows.
    Body,
}

impl Outgoing {
    /// `stall` limits how long the other end may grant no credit while content waits.
    pub(super) fn new(stream: SendStream<Bytes>, body: Body, stall: Duration) -> Self {
        Self {
            stream,
            body,
            batch: scratch::batch(),
            body_done: false,
            finished: false,
            stall: Idle::new(stall),
        }
    }

    /// Sends until all content and the trailers are handed to the connection.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        loop {
            if self.finished {
                return Poll::Ready(Ok(()));
            }
            if self.batch.is_empty() && !self.body_done {
                match self.body.poll_chunks(cx, &mut self.batch) {
                    Poll::Ready(Ok(more)) => {
                        self.body_done = !more;
                        self.stall.touch();
                    }
                    Poll::Ready(Err(_)) => {
                        self.stream.send_reset(h2::Reason::INTERNAL_ERROR);
                        return Poll::Ready(Err(SendFailure::Body));
                    }
                    // Whatever is sent tells of a reset itself; only who waits for content has to ask. NO_ERROR as well: the
                    // answer is complete, the rest of the content is not wanted (RFC 9113 §8.1).
                    Poll::Pending => return self.stream.poll_reset(cx).map(|_| Err(SendFailure::Peer)),
                }
            }
            let Some(front) = self.batch.front_mut() else {
                if self.body_done {
                    self.finish()?;
                }
                continue;
            };
            self.stream.reserve_capacity(front.len());
            let granted = match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(granted))) => granted,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(SendFailure::Peer)),
                Poll::Pending => {
                    self.body.poll_background(cx);
                    if self.body.poll_due(cx).is_ready() {
                        self.stream.send_reset(h2::Reason::INTERNAL_ERROR);
                        return Poll::Ready(Err(SendFailure::Body));
                    }
                    return self.stall.poll(cx).map(|()| Err(SendFailure::Stalled));
                }
            };
            self.stall.touch();
            let take = granted.min(front.len());
            let piece = front.split_to(take);
            if front.is_empty() {
                self.batch.pop_front();
            }
            let last = self.body_done && self.batch.is_empty();
            let trailers = if last { self.body.take_trailers() } else { None };
            self.stream.send_data(piece, last && trailers.is_none()).map_err(|_| SendFailure::Peer)?;
            if let Some(trailers) = trailers {
                self.stream.send_trailers(trailers).map_err(|_| SendFailure::Peer)?;
            }
            self.finished = last;
        }
    }

    fn finish(&mut self) -> Result<(), SendFailure> {
        self.finished = true;
        match self.body.take_trailers() {
            Some(trailers) => self.stream.send_trailers(trailers),
            None => self.stream.send_data(Bytes::new(), true),
        }
        .map_err(|_| SendFailure::Peer)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            self.stream.send_reset(h2::Reason::CANCEL);
        }
        scratch::keep(std::mem::take(&mut self.batch));
    }
}
