//! A body compressed while it is passed on.

use std::io::{self, Write as _};
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::HeaderMap;

use super::accept::Coding;
use crate::body::{Batch, Body, BodyError, BodySource, Length};

/// `body` in the coding.
///
/// # Errors
/// If the encoder cannot be set up, for want of memory.
pub(super) fn compressed(body: Body, coding: Coding) -> io::Result<Body> {
    let source = Compressing {
        body,
        encoder: Some(Encoder::new(coding)?),
        input: Batch::new(),
        ended: false,
        dirty: false,
    };
    Ok(Body::stream(source, Length::Unknown))
}

struct Compressing {
    body: Body,
    /// Gone once the stream is complete.
    encoder: Option<Encoder>,
    input: Batch,
    /// The body is complete; what is left is in `input`.
    ended: bool,
    /// Something went into the encoder that did not come out yet.
    dirty: bool,
}

impl BodySource for Compressing {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let Some(encoder) = self.encoder.as_mut() else { return Poll::Ready(Ok(false)) };
        let (mut made, mut worked) = (0, 0);
        loop {
            while let Some(mut chunk) = self.input.pop_front() {
                // Other visitors wait for this thread meanwhile.
                if worked >= INPUT_BYTES_MAX && made > 0 {
                    self.input.push_front(chunk);
                    return Poll::Ready(Ok(true));
                }
                if chunk.len() > INPUT_BYTES_MAX {
                    self.input.push_front(chunk.split_off(INPUT_BYTES_MAX));
                }
                encoder.write(&chunk).map_err(|_| BodyError::Truncated)?;
                self.dirty = true;
                worked += chunk.len();
                made += encoder.take(out);
            }
            if self.ended {
                let rest = self.encoder.take().map(Encoder::finish).transpose();
                push(out, rest.map_err(|_| BodyError::Truncated)?.unwrap_or_default());
                return Poll::Ready(Ok(false));
            }
            if made >= OUTPUT_BYTES_WANTED {
                return Poll::Ready(Ok(true));
            }
            match self.body.poll_chunks(cx, &mut self.input) {
                Poll::Ready(more) => self.ended = !more?,
                // Whoever reads along an event or a token at a time gets what there is: the sender pauses.
                Poll::Pending => {
                    if self.dirty {
                        encoder.flush().map_err(|_| BodyError::Truncated)?;
                        self.dirty = false;
                        made += encoder.take(out);
                    }
                    return if made == 0 { Poll::Pending } else { Poll::Ready(Ok(true)) };
                }
            }
        }
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}

enum Encoder {
    Gzip(Box<GzEncoder<Vec<u8>>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Encoder {
    fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => {
                Self::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))))
            }
            Coding::Brotli => {
                let writer = brotli::CompressorWriter::new(
                    Vec::new(),
                    BUFFER_BYTES,
                    BROTLI_QUALITY,
                    BROTLI_WINDOW_LOG,
                );
                Self::Brotli(Box::new(writer))
            }
            Coding::Zstd => {
                let mut writer = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                writer.window_log(ZSTD_WINDOW_LOG)?;
                Self::Zstd(Box::new(writer))
            }
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(writer) => writer.write_all(bytes),
            Self::Brotli(writer) => writer.write_all(bytes),
            Self::Zstd(writer) => writer.write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(writer) => writer.flush(),
            Self::Brotli(writer) => writer.flush(),
            Self::Zstd(writer) => writer.flush(),
        }
    }

    /// Moves what has come out to `out`; how many bytes.
    fn take(&mut self, out: &mut Batch) -> usize {
        let made = match self {
            Self::Gzip(writer) => std::mem::take(writer.get_mut()),
            Self::Brotli(writer) => std::mem::take(writer.get_mut()),
            Self::Zstd(writer) => std::mem::take(writer.get_mut()),
        };
        let bytes = made.len();
        push(out, made);
        bytes
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(writer) => writer.finish(),
            Self::Brotli(writer) => Ok(writer.into_inner()),
            Self::Zstd(writer) => writer.finish(),
        }
    }
}

fn push(out: &mut Batch, bytes: Vec<u8>) {
    if !bytes.is_empty() {
        out.push_back(Bytes::from(bytes));
    }
}

/// Input that is worked through at once, a few milliseconds at most.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Output that is passed on without waiting for more input.
const OUTPUT_BYTES_WANTED: usize = 16 * 1024;
const BUFFER_BYTES: usize = 16 * 1024;
/// Levels and windows are chosen for answers made while somebody waits: a fraction of a millisecond per 16 KiB, and per
/// answer under way about 0.3 MiB with gzip, 1.5 MiB with brotli and 2 MiB with zstd.
const GZIP_LEVEL: u32 = 6;
const BROTLI_QUALITY: u32 = 5;
const BROTLI_WINDOW_LOG: u32 = 18;
const ZSTD_LEVEL: i32 = 3;
const ZSTD_WINDOW_LOG: u32 = 19;
