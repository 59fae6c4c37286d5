//! Message bodies: batches of [`Bytes`] pulled by whoever writes them out.
//!
//! A body is pulled, never pushed: nothing is read from a socket until the other side has taken what was read before,
//! so back-pressure reaches from the slowest reader to the sender without a queue in between.

use std::collections::VecDeque;
use std::fmt;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http::header::HeaderName;
use thiserror::Error;

use crate::tcp::splice::Pipe;

/// Chunks on their way from one socket to another, in order.
pub type Batch = VecDeque<Bytes>;

/// How many bytes one [`BodySource::poll_chunks`] call may append: with one batch in flight per direction this is the
/// memory that a body holds, beside the buffers of the kernel and the transports.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Where body bytes come from: a socket, a tunnel stream, a generator.
///
/// Dropping a source before its end tells the sender that nobody reads on (connection closed, stream stopped).
pub trait BodySource: Send {
    /// Appends at least one chunk to `out`, at most about [`BATCH_BYTES_MAX`] bytes.
    ///
    /// `Ok(true)`: more may follow. `Ok(false)`: the body is complete (chunks may have been appended as well); the
    /// source is not polled again.
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>>;

    /// Moves some content into an empty pipe, as [`Self::poll_chunks`] would append it; `None` if it has to be asked for chunks,
    /// which is so wherever content is looked at or comes over anything but a socket.
    fn poll_pipe(
        &mut self,
        _cx: &mut Context<'_>,
        _pipe: &mut Pipe,
    ) -> Poll<Result<Option<bool>, BodyError>> {
        Poll::Ready(Ok(None))
    }

    /// A pipe for [`Self::poll_pipe`], where the content is much and may be moved by one; for whoever has none of its own.
    fn lend_pipe(&self) -> Option<Pipe> {
        None
    }

    /// The trailer section (RFC 9110 §6.5), at most once and only after the body is complete.
    fn take_trailers(&mut self) -> Option<HeaderMap> {
        None
    }

    /// Drives work that belongs to the exchange while nobody wants chunks, such as an upload that is still running.
    fn poll_background(&mut self, _cx: &mut Context<'_>) {}

    /// Ready when no more time is left for the body, whoever it is that takes so long; asked while nobody wants chunks.
    fn poll_due(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// What is known about a body's size before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Exactly this many bytes.
    Known(u64),
    /// Delimited by the transport (chunked coding, END_STREAM, FIN).
    Unknown,
    /// Not a body: the bytes of an upgraded connection, in both directions until each side ends.
    Raw,
}

/// A request's or response's content.
pub struct Body {
    kind: Kind,
    length: Length,
    /// Names that may trail; none for all.
    trailing: Option<Box<[HeaderName]>>,
}

/// Why a body ended before its end.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BodyError {
    /// The sender closed or reset its side before the announced end.
    #[error("the sender ended the body early")]
    Truncated,
    /// The sender's chunked coding breaks RFC 9112 §7.1.
    #[error("malformed chunked coding")]
    Chunked,
    /// No byte for longer than the idle limit.
    #[error("no byte of the body arrived within the idle limit")]
    Idle,
    /// Not through within the configured whole time.
    #[error("the body took longer than the configured whole time")]
    Late,
    /// A trailer section over the limit or malformed.
    #[error("malformed or oversized trailer section")]
    Trailers,
    /// More bytes than the limit of this route or listener.
    #[error("the body is larger than allowed")]
    TooLarge,
}

impl BodyError {
    /// The name of this error in logs and metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "body_truncated",
            Self::Chunked => "body_chunked_malformed",
            Self::Idle => "body_idle",
            Self::Late => "body_late",
            Self::Trailers => "body_trailers_malformed",
            Self::TooLarge => "body_too_large",
        }
    }
}

impl Body {
    /// No content.
    pub fn empty() -> Self {
        Self { kind: Kind::Empty, length: Length::Known(0), trailing: None }
    }

    /// Content that is in memory already.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Self::empty();
        }
        Self { length: Length::Known(bytes.len() as u64), kind: Kind::Full(bytes), trailing: None }
    }

    /// Content that arrives while it is sent on.
    pub fn stream(source: impl BodySource + 'static, length: Length) -> Self {
        Self { kind: Kind::Stream(Box::new(source)), length, trailing: None }
    }

    /// What is known of the size.
    pub fn length(&self) -> Length {
        self.length
    }

    /// True if there is nothing to send and nothing to wait for.
    pub fn is_empty(&self) -> bool {
        matches!(self.kind, Kind::Empty)
    }

    /// True if the content is in memory, so that a request can be sent a second time.
    pub fn is_replayable(&self) -> bool {
        !matches!(self.kind, Kind::Stream(_))
    }

    /// The whole content, if it is in memory and no more than this: then it can be sent with the head.
    pub(crate) fn take_little(&mut self, bytes_max: usize) -> Option<Bytes> {
        match &mut self.kind {
            Kind::Full(bytes) if bytes.len() <= bytes_max => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Appends the next chunks; see [`BodySource::poll_chunks`]. After `Ok(false)` the body is empty.
    ///
    /// # Errors
    /// The source's; the body is finished then.
    pub fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(Ok(false)),
            Kind::Full(bytes) => {
                out.push_back(std::mem::take(bytes));
                self.kind = Kind::Empty;
                Poll::Ready(Ok(false))
            }
            Kind::Stream(source) => source.poll_chunks(cx, out),
        }
    }

    /// See [`BodySource::poll_pipe`].
    ///
    /// # Errors
    /// The source's; the body is finished then.
    pub fn poll_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Result<Option<bool>, BodyError>> {
        match &mut self.kind {
            Kind::Stream(source) => source.poll_pipe(cx, pipe),
            Kind::Empty | Kind::Full(_) => Poll::Ready(Ok(None)),
        }
    }

    /// See [`BodySource::lend_pipe`].
    pub fn lend_pipe(&self) -> Option<Pipe> {
        match &self.kind {
            Kind::Stream(source) => source.lend_pipe(),
            Kind::Empty | Kind::Full(_) => None,
        }
    }

    /// See [`BodySource::take_trailers`].
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        let Kind::Stream(source) = &mut self.kind else { return None };
        let trailers = source.take_trailers();
        let Some(names) = &self.trailing else { return trailers };
        let mut trailers = trailers?;
        let unfit: Vec<HeaderName> = trailers.keys().filter(|name| !names.contains(name)).cloned().collect();
        for name in unfit {
            trailers.remove(name);
        }
        (!trailers.is_empty()).then_some(trailers)
    }

    /// Lets only these fields trail, of those that might before.
    pub fn limit_trailers(&mut self, mut names: Vec<HeaderName>) {
        if let Some(before) = &self.trailing {
            names.retain(|name| before.contains(name));
        }
        self.trailing = Some(names.into_boxed_slice());
    }

    /// See [`BodySource::poll_background`].
    pub fn poll_background(&mut self, cx: &mut Context<'_>) {
        if let Kind::Stream(source) = &mut self.kind {
            source.poll_background(cx);
        }
    }

    /// See [`BodySource::poll_due`].
    pub fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            Kind::Stream(source) => source.poll_due(cx),
            Kind::Empty | Kind::Full(_) => Poll::Pending,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("length", &self.length).finish_non_exhaustive()
    }
}

enum Kind {
    Empty,
    Full(Bytes),
    Stream(Box<dyn BodySource>),
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Trailed;

    impl BodySource for Trailed {
        fn poll_chunks(&mut self, _cx: &mut Context<'_>, _out: &mut Batch) -> Poll<Result<bool, BodyError>> {
            Poll::Ready(Ok(false))
        }

        fn take_trailers(&mut self) -> Option<HeaderMap> {
            let names = ["x-a", "x-b", "remote-user"].map(HeaderName::from_static);
            Some(names.into_iter().map(|name| (name, "1".parse().unwrap())).collect())
        }
    }

    #[test]
    fn trailers_can_only_become_fewer() {
        let names = |names: &[&'static str]| names.iter().map(|name| HeaderName::from_static(name)).collect();
        let mut body = Body::stream(Trailed, Length::Unknown);
        body.limit_trailers(names(&["x-a", "x-b"]));
        body.limit_trailers(names(&["x-b", "remote-user"]));
        let trailers = body.take_trailers().unwrap();
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-b"]);
        body.limit_trailers(Vec::new());
        assert!(body.take_trailers().is_none());
    }
}
