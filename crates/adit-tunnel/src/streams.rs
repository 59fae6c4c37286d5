//! The two halves of a request stream, over QUIC or HTTP/2; chunks are handed on, never copied.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use quinn::VarInt;
use thiserror::Error;
use tokio::time::{error::Elapsed, timeout};

use crate::{
    http2,
    in_flight::InFlight,
    reader::{QuicBody, Readers},
};

/// Why a stream ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The peer reset its sending side: what arrived is truncated.
    #[error("stream was reset by the peer")]
    Reset,
    /// The peer no longer reads what we send.
    #[error("peer stopped reading the stream")]
    Stopped,
    /// The stream was already ended on our side.
    #[error("stream is already closed")]
    Closed,
    /// The head cannot be put on the wire.
    #[error("head is too large for the tunnel")]
    HeadTooLarge,
    /// The stream was as good as not read while what it held was needed for others.
    #[error("stream was read too slowly")]
    SlowReader,
    /// The connection under the stream is gone.
    #[error("tunnel connection was lost ({})", .0.reason())]
    ConnectionLost(Loss),
}

impl StreamError {
    /// The name under which logs and metrics count this error.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Reset => "stream_reset",
            Self::Stopped => "stream_stopped",
            Self::Closed => "stream_closed",
            Self::HeadTooLarge => "head_too_large",
            Self::SlowReader => "slow_reader",
            Self::ConnectionLost(loss) => loss.reason(),
        }
    }
}

/// How a tunnel connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing was heard from the peer for the idle time.
    Silent,
    /// The peer closed the connection.
    ClosedByPeer,
    /// We closed the connection.
    ClosedByUs,
    /// The peer no longer knows the connection (it restarted).
    Forgotten,
    /// The transport failed.
    Transport,
}

impl Loss {
    /// The name under which logs and metrics count this loss.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Silent => "connection_silent",
            Self::ClosedByPeer => "connection_closed_by_peer",
            Self::ClosedByUs => "connection_closed",
            Self::Forgotten => "connection_forgotten",
            Self::Transport => "connection_failed",
        }
    }
}

impl From<&quinn::ConnectionError> for Loss {
    fn from(error: &quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::TimedOut => Self::Silent,
            quinn::ConnectionError::ApplicationClosed(_) | quinn::ConnectionError::ConnectionClosed(_) => {
                Self::ClosedByPeer
            }
            quinn::ConnectionError::LocallyClosed => Self::ClosedByUs,
            quinn::ConnectionError::Reset => Self::Forgotten,
            _ => Self::Transport,
        }
    }
}

/// The half that receives a body. Dropping it before the end tells the peer to stop sending.
pub struct RecvHalf {
    inner: RecvInner,
    /// Body bytes that arrived in the same packets as the head.
    early: Bytes,
    /// Keeps the connection's load count until the half is dropped.
    _in_flight: Option<InFlight>,
}

enum RecvInner {
    /// All there was has been read.
    Ended,
    Quic(QuicBody),
    Http2(http2::RecvBody),
}

impl RecvHalf {
    /// The half of an RPC stream.
    pub(crate) fn rpc(stream: quinn::RecvStream, early: Bytes) -> Self {
        Self { inner: RecvInner::Quic(QuicBody::new(stream, None)), early, _in_flight: None }
    }

    /// The half of a request stream, counted among those of its connection.
    pub(crate) fn quic(
        stream: quinn::RecvStream,
        early: Bytes,
        readers: &Arc<Readers>,
        in_flight: Option<InFlight>,
    ) -> Self {
        Self { inner: RecvInner::Quic(QuicBody::new(stream, Some(readers))), early, _in_flight: in_flight }
    }

    /// The half of a request stream whose head has just been read: nothing is kept of it where that was all.
    pub(crate) fn request(mut stream: quinn::RecvStream, early: Bytes, readers: &Arc<Readers>) -> Self {
        if has_ended(&mut stream) {
            return Self { inner: RecvInner::Ended, early, _in_flight: None };
        }
        Self::quic(stream, early, readers, None)
    }

    pub(crate) fn http2(body: http2::RecvBody) -> Self {
        Self { inner: RecvInner::Http2(body), early: Bytes::new(), _in_flight: None }
    }

    /// Appends what has arrived, at most [`CHUNKS_MAX`] chunks and what came with the head, to `out`.
    ///
    /// `true` means that at least one chunk was appended, none of them empty, and more may come;
    /// `false` the clean end of the body, with nothing appended.
    ///
    /// # Errors
    /// When the peer reset the stream or the connection is gone; what arrived before was given out.
    /// [`StreamError::SlowReader`] when the rest was given up because it was not read.
    pub fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut VecDeque<Bytes>,
    ) -> Poll<Result<bool, StreamError>> {
        if !self.early.is_empty() {
            out.push_back(std::mem::take(&mut self.early));
            if let RecvInner::Quic(body) = &mut self.inner {
                // The rest of a short body has mostly come with it: who writes it out writes once.
                body.take_chunks(cx, out);
            }
            return Poll::Ready(Ok(true));
        }
        match &mut self.inner {
            RecvInner::Ended => Poll::Ready(Ok(false)),
            RecvInner::Quic(body) => body.poll_chunks(cx, out),
            RecvInner::Http2(body) => body.poll_chunks(cx, out),
        }
    }

    /// What to keep until a request without content has been answered, so that the peer's end of the stream, which is on
    /// its way, is met and the peer need not be told to stop. Nothing where that costs others: what HTTP/2 holds unread
    /// is taken from all of a connection's streams.
    pub fn into_unread(self) -> Option<Self> {
        matches!(self.inner, RecvInner::Quic(_)).then_some(self)
    }

    /// The whole body, if it is at most `bytes_max` long and ends cleanly.
    pub(crate) async fn read_to_end(&mut self, bytes_max: usize) -> Option<Vec<u8>> {
        let (mut all, mut chunks) = (Vec::new(), VecDeque::new());
        while poll_fn(|cx| self.poll_chunks(cx, &mut chunks)).await.ok()? {
            for chunk in chunks.drain(..) {
                if all.len() + chunk.len() > bytes_max {
                    return None;
                }
                all.extend_from_slice(&chunk);
            }
        }
        Some(all)
    }

    /// Tells the peer that the rest is not wanted (STOP_SENDING 0).
    pub fn stop(&mut self) {
        self.early = Bytes::new();
        match &mut self.inner {
            RecvInner::Ended => {}
            RecvInner::Quic(body) => body.stop(),
            RecvInner::Http2(body) => body.stop(),
        }
    }
}

impl fmt::Debug for RecvHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvHalf").field("early", &self.early.len()).finish_non_exhaustive()
    }
}

/// The half that sends a body. Dropping it before [`SendHalf::finish`] resets the stream.
pub struct SendHalf {
    inner: SendInner,
    ended: bool,
}

enum SendInner {
    Quic {
        stream: quinn::SendStream,
        stopped: Option<StoppedFuture>,
    },
    Http2(http2::SendBody),
    /// Reset, or being so.
    Gone,
}

type StoppedFuture = Pin<Box<dyn Future<Output = Result<Option<VarInt>, quinn::StoppedError>> + Send + Sync>>;

impl SendHalf {
    pub(crate) fn quic(stream: quinn::SendStream) -> Self {
        Self { inner: SendInner::Quic { stream, stopped: None }, ended: false }
    }

    pub(crate) fn http2(body: http2::SendBody) -> Self {
        Self { inner: SendInner::Http2(body), ended: false }
    }

    /// Writes from the front of `chunks` until it is empty.
    ///
    /// # Errors
    /// When the peer stopped the stream or the connection is gone.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<Result<(), StreamError>> {
        if self.ended {
            return Poll::Ready(Err(StreamError::Closed));
        }
        match &mut self.inner {
            SendInner::Quic { stream, .. } => poll_quic_write(stream, cx, chunks),
            SendInner::Http2(body) => body.poll_write(cx, chunks),
            SendInner::Gone => Poll::Ready(Err(StreamError::Closed)),
        }
    }

    /// Writes one chunk.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        let mut chunks = VecDeque::from([chunk]);
        poll_fn(|cx| self.poll_write(cx, &mut chunks)).await
    }

    /// Ends the body cleanly (FIN); what was written is still delivered.
    pub fn finish(&mut self) {
        self.finish_with(None);
    }

    /// Ends the body with trailers where the transport carries them (HTTP/2), else just ends it.
    pub fn finish_with_trailers(&mut self, trailers: HeaderMap) {
        self.finish_with(Some(trailers));
    }

    fn finish_with(&mut self, trailers: Option<HeaderMap>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &mut self.inner {
            // Fails only for a stream that the peer stopped or that is closed: nothing left to end.
            SendInner::Quic { stream, .. } => drop(stream.finish()),
            SendInner::Http2(body) => body.finish(trailers),
            SendInner::Gone => {}
        }
    }

    /// Ends the body as truncated (RESET_STREAM 0), after what was written just before.
    pub fn reset(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match std::mem::replace(&mut self.inner, SendInner::Gone) {
            SendInner::Quic { mut stream, .. } => reset_soon(move || {
                // Fails only for a stream that has ended otherwise.
                let _ = stream.reset(VarInt::from_u32(0));
            }),
            SendInner::Http2(body) => body.reset(),
            SendInner::Gone => {}
        }
    }

    /// Ready when the peer no longer reads (it stopped the stream, or the connection is gone), or,
    /// after [`SendHalf::finish`], when it has acknowledged everything (`Ok`).
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match &mut self.inner {
            SendInner::Quic { stream, stopped } => {
                let future = stopped.get_or_insert_with(|| Box::pin(stream.stopped()));
                let outcome = ready!(future.as_mut().poll(cx));
                *stopped = None;
                Poll::Ready(match outcome {
                    Ok(Some(_)) => Err(StreamError::Stopped),
                    Ok(None) => Ok(()),
                    Err(quinn::StoppedError::ConnectionLost(error)) => {
                        Err(StreamError::ConnectionLost(Loss::from(&error)))
                    }
                    Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Closed),
                })
            }
            SendInner::Http2(body) => body.poll_stopped(cx),
            SendInner::Gone => Poll::Ready(Err(StreamError::Closed)),
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        // quinn would end a dropped stream cleanly, and the peer would take a cut body for a whole one.
        self.reset();
    }
}

impl fmt::Debug for SendHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendHalf").field("ended", &self.ended).finish_non_exhaustive()
    }
}

fn poll_quic_write(
    stream: &mut quinn::SendStream,
    cx: &mut Context<'_>,
    chunks: &mut VecDeque<Bytes>,
) -> Poll<Result<(), StreamError>> {
    loop {
        // quinn reports an empty write as blocked, never as done.
        while chunks.front().is_some_and(Bytes::is_empty) {
            chunks.pop_front();
        }
        let (front, _) = chunks.as_mut_slices();
        if front.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let written = match ready!(pin!(stream.write_chunks(front)).poll(cx)) {
            Ok(written) => written,
            Err(error) => return Poll::Ready(Err(write_error(&error))),
        };
        chunks.drain(..written.chunks);
    }
}

/// A reset discards what is still buffered; a moment lets the head and the last bytes leave first, as
/// the reference does (C20), so that a truncated response is seen as one and not as none.
pub(crate) fn reset_soon(reset: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move {
            tokio::time::sleep(RESET_DELAY).await;
            reset();
        })),
        Err(_) => reset(),
    }
}

/// Whether all was read and the end has come; only for a stream that nobody waits for, because it takes the place of the
/// owner's waker.
pub(crate) fn has_ended(stream: &mut quinn::RecvStream) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(pin!(stream.read_chunk(0, true)).poll(&mut cx), Poll::Ready(Ok(None)))
}

/// [`tokio::time::timeout`] for what is mostly ready at once: the clock is read only if it is not.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut future = pin!(future);
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(done) => Ok(done),
        Poll::Pending => timeout(limit, future).await,
    }
}

pub(crate) fn read_error(error: &quinn::ReadError) -> StreamError {
    match error {
        quinn::ReadError::Reset(_) => StreamError::Reset,
        quinn::ReadError::ConnectionLost(error) => StreamError::ConnectionLost(Loss::from(error)),
        _ => StreamError::Closed,
    }
}

pub(crate) fn write_error(error: &quinn::WriteError) -> StreamError {
    match error {
        quinn::WriteError::Stopped(_) => StreamError::Stopped,
        quinn::WriteError::ConnectionLost(error) => StreamError::ConnectionLost(Loss::from(error)),
        _ => StreamError::Closed,
    }
}

/// Between the last bytes and a reset: a few turns of the connection's task.
const RESET_DELAY: Duration = Duration::from_millis(20);

/// Most chunks that one poll gives out; a chunk is at most a UDP datagram's worth, so a poll holds
/// the connection's lock for some 48 KiB at a time.
pub const CHUNKS_MAX: usize = 32;
