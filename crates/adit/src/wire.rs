//! Where the two shells meet: tunnel streams as bodies, bodies into tunnel streams.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use adit_proxy::body::{Batch, Body, BodyError, BodySource, Length};
use adit_proxy::fields::Fields;
use adit_proxy::idle::Idle;
use adit_tunnel::{RecvHalf, SendHalf, StreamError};
use adit_tunnel_proto::HeaderPairs;
use http::HeaderMap;
use http::header::{self, HeaderValue};

/// Content that arrives through a tunnel, with the content that goes the other way beside it.
#[derive(Debug)]
pub(crate) struct TunnelSource {
    recv: RecvHalf,
    /// Bytes still announced; the stream's end frames the rest.
    left: Option<u64>,
    upload: Option<TunnelUpload>,
    /// Counts once the visitor has ended its direction of a raw stream and ours is silent.
    lingering: Option<Idle>,
}

/// Content on its way into a tunnel.
#[derive(Debug)]
pub(crate) struct TunnelUpload {
    body: Body,
    send: SendHalf,
    batch: Batch,
    body_done: bool,
    /// Raw streams of an upgraded connection: a stock connector takes our FIN as the end of both directions
    /// (conformance statement E12), so it is held back for as long as the other direction still has something to say.
    hold_fin: bool,
}

impl TunnelSource {
    /// Content with the announced length; `upload` is polled along with it.
    pub(crate) fn new(recv: RecvHalf, length: Length, upload: Option<TunnelUpload>) -> Self {
        let left = match length {
            Length::Known(bytes) => Some(bytes),
            Length::Unknown | Length::Raw => None,
        };
        Self { recv, left, upload, lingering: None }
    }
}

impl BodySource for TunnelSource {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        self.poll_background(cx);
        let before = out.len();
        let more = match self.recv.poll_chunks(cx, out) {
            Poll::Ready(more) => more.map_err(|_| BodyError::Truncated)?,
            Poll::Pending => {
                // The visitor has gone and nothing comes any more: what is left is to say so.
                let lingering = self.lingering.as_mut();
                ready!(lingering.map_or(Poll::Pending, |idle| idle.poll(cx)));
                self.end_upload();
                return Poll::Ready(Ok(false));
            }
        };
        if let Some(lingering) = &mut self.lingering {
            lingering.touch();
        }
        if !more {
            self.end_upload();
        }
        let Some(left) = &mut self.left else { return Poll::Ready(Ok(more)) };
        let arrived: u64 = out.iter().skip(before).map(|chunk| chunk.len() as u64).sum();
        if arrived > *left {
            // The sender's head and content contradict each other: what follows could be read as another message.
            return Poll::Ready(Err(BodyError::TooLarge));
        }
        *left -= arrived;
        match (*left, more) {
            (0, _) => Poll::Ready(Ok(false)),
            (_, true) => Poll::Ready(Ok(true)),
            (_, false) => Poll::Ready(Err(BodyError::Truncated)),
        }
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        let Some(upload) = &mut self.upload else { return };
        if let Poll::Ready(done) = upload.poll(cx) {
            if done.is_ok() && upload.hold_fin {
                self.lingering.get_or_insert_with(|| Idle::new(HELD_FIN_SILENCE_MAX));
            } else {
                self.upload = None;
            }
        }
    }
}

impl TunnelSource {
    fn end_upload(&mut self) {
        if let Some(mut upload) = self.upload.take()
            && upload.body_done
        {
            upload.send.finish();
        }
    }
}

impl TunnelUpload {
    /// Starts moving `body` into `send`.
    pub(crate) fn new(body: Body, send: SendHalf, hold_fin: bool) -> Self {
        Self { body, send, batch: Batch::new(), body_done: false, hold_fin }
    }

    /// Moves as much as both sides allow; ready when all was sent.
    ///
    /// # Errors
    /// The tunnel's, or [`StreamError::Closed`] after the content broke off (the stream is reset then).
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        loop {
            if !self.batch.is_empty() {
                match self.send.poll_write(cx, &mut self.batch) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => {
                        self.body.poll_background(cx);
                        return Poll::Pending;
                    }
                }
            }
            if self.body_done {
                if !self.hold_fin {
                    match self.body.take_trailers() {
                        Some(trailers) => self.send.finish_with_trailers(trailers),
                        None => self.send.finish(),
                    }
                }
                return Poll::Ready(Ok(()));
            }
            match self.body.poll_chunks(cx, &mut self.batch) {
                Poll::Ready(Ok(more)) => self.body_done = !more,
                Poll::Ready(Err(_)) => {
                    self.send.reset();
                    return Poll::Ready(Err(StreamError::Closed));
                }
                // Nobody may be left on the other side while the content is silent.
                Poll::Pending => return self.send.poll_stopped(cx).map(|_| Err(StreamError::Stopped)),
            }
        }
    }
}

/// Puts the field that frames a body back onto a head that is about to cross a tunnel (statements C19 and E8).
pub(crate) fn announce_length(headers: &mut HeaderMap, length: Length, chunked_if_unknown: bool) {
    headers.remove(header::TRANSFER_ENCODING);
    match length {
        // A length without content describes what another method would have got.
        Length::Known(0) => {}
        Length::Raw => drop(headers.remove(header::CONTENT_LENGTH)),
        Length::Known(bytes) => {
            headers.insert(header::CONTENT_LENGTH, bytes.into());
        }
        Length::Unknown if chunked_if_unknown => {
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Length::Unknown => drop(headers.remove(header::CONTENT_LENGTH)),
    }
}

/// [`announce_length`] for an answer on its way into a tunnel.
pub(crate) fn announce_answer(headers: &mut Fields, length: Length) {
    match length {
        _ if !headers.lack_framing() => announce_length(headers, length, false),
        Length::Known(bytes) if bytes > 0 => headers.add_length(bytes),
        Length::Known(_) | Length::Unknown | Length::Raw => {}
    }
}

/// A message's fields, as the tunnel writes them.
pub(crate) struct TunnelFields(pub(crate) Fields);

impl HeaderPairs for TunnelFields {
    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.pairs()
    }

    fn into_map(self) -> HeaderMap {
        self.0.into_map()
    }
}

/// Takes the framing fields off a head that came through a tunnel.
///
/// # Errors
/// The name of the refusal if they contradict each other.
pub(crate) fn take_length(headers: &mut HeaderMap, framed_by_stream: bool) -> Result<Length, &'static str> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let first = lengths.next().cloned();
    if lengths.next().is_some() {
        return Err("framing_length");
    }
    let chunked = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|v| v.as_bytes().to_ascii_lowercase().windows(7).any(|w| w == b"chunked"));
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    match first {
        Some(value) => {
            adit_proxy::h1::framing::parse_length(&value).map(Length::Known).ok_or("framing_length")
        }
        None if chunked || framed_by_stream => Ok(Length::Unknown),
        None => Ok(Length::Known(0)),
    }
}

/// How long the origin's direction of an upgraded connection may be silent after the visitor ended its own.
const HELD_FIN_SILENCE_MAX: Duration = Duration::from_secs(5);
