//! Reading content off an HTTP/1.1 connection, whichever side we are.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::framing::{Chunk, ChunkedDecoder, Framing};
use crate::body::{Batch, BodyError};
use crate::idle::Idle;
use crate::io::Reader;
use crate::tcp::splice::Pipe;

/// The state of one message's content.
#[derive(Debug)]
pub struct Content {
    decoder: Decoder,
    idle: Option<Idle>,
    trailers: Option<HeaderMap>,
}

#[derive(Debug)]
enum Decoder {
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
    Raw,
    Done,
}

impl Content {
    /// Content framed as the head said; `idle` limits silence while it is being read, except on raw streams.
    pub fn new(framing: Framing, idle: Option<Duration>) -> Self {
        let decoder = match framing {
            Framing::Empty => Decoder::Done,
            Framing::Length(bytes) => Decoder::Length(bytes),
            Framing::Chunked => Decoder::Chunked(ChunkedDecoder::default()),
            Framing::UntilClose => Decoder::UntilClose,
            Framing::Raw => Decoder::Raw,
        };
        Self { decoder, idle: idle.filter(|_| framing != Framing::Raw).map(Idle::new), trailers: None }
    }

    /// True once all of it was read.
    pub fn is_done(&self) -> bool {
        matches!(self.decoder, Decoder::Done)
    }

    /// Appends what is buffered, else what one read brings; see [`crate::body::BodySource::poll_chunks`].
    ///
    /// # Errors
    /// [`BodyError`]; the connection cannot be used for another message then.
    pub fn poll_chunks(
        &mut self,
        reader: &mut Reader,
        cx: &mut Context<'_>,
        out: &mut Batch,
    ) -> Poll<Result<bool, BodyError>> {
        loop {
            let before = out.len();
            self.decode(reader, out)?;
            if self.is_done() || out.len() > before {
                if let Some(idle) = &mut self.idle {
                    idle.touch();
                }
                return Poll::Ready(Ok(!self.is_done()));
            }
            match reader.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(self.end()),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(BodyError::Truncated)),
                Poll::Pending => {
                    return match &mut self.idle {
                        Some(idle) => idle.poll(cx).map(|()| Err(BodyError::Idle)),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Moves content of a known length from the socket into an empty pipe; see [`crate::body::BodySource::poll_pipe`].
    ///
    /// # Errors
    /// As [`Self::poll_chunks`].
    pub(crate) fn poll_pipe(
        &mut self,
        reader: &Reader,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Result<Option<bool>, BodyError>> {
        let (Decoder::Length(left), Some(socket)) = (&mut self.decoder, reader.socket()) else {
            return Poll::Ready(Ok(None));
        };
        match pipe.poll_fill(cx, socket, *left) {
            // A read says whether this is the end.
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
            Poll::Ready(Err(_)) => return Poll::Ready(Err(BodyError::Truncated)),
            Poll::Ready(Ok(bytes)) => *left = left.saturating_sub(bytes as u64),
            Poll::Pending => {
                return match &mut self.idle {
                    Some(idle) => idle.poll(cx).map(|()| Err(BodyError::Idle)),
                    None => Poll::Pending,
                };
            }
        }
        if *left == 0 {
            self.decoder = Decoder::Done;
        }
        if let Some(idle) = &mut self.idle {
            idle.touch();
        }
        Poll::Ready(Ok(Some(!self.is_done())))
    }

    /// The trailer section of a chunked message, once it was read.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    fn end(&mut self) -> Result<bool, BodyError> {
        match self.decoder {
            Decoder::UntilClose | Decoder::Raw => {
                self.decoder = Decoder::Done;
                Ok(false)
            }
            _ => Err(BodyError::Truncated),
        }
    }

    fn decode(&mut self, reader: &mut Reader, out: &mut Batch) -> Result<(), BodyError> {
        let buffer = &mut reader.buffer;
        match &mut self.decoder {
            Decoder::Done => {}
            Decoder::UntilClose | Decoder::Raw => push(out, buffer.split().freeze()),
            Decoder::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= take as u64;
                push(out, buffer.split_to(take).freeze());
                if *left == 0 {
                    self.decoder = Decoder::Done;
                }
            }
            Decoder::Chunked(decoder) => loop {
                match decoder.decode(buffer)? {
                    Chunk::Data(data) => push(out, data),
                    Chunk::More => break,
                    Chunk::Done => {
                        self.trailers = decoder.take_trailers();
                        self.decoder = Decoder::Done;
                        break;
                    }
                }
            },
        }
        Ok(())
    }
}

fn push(out: &mut Batch, data: Bytes) {
    if !data.is_empty() {
        out.push_back(data);
    }
}
