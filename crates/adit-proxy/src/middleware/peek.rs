//! The beginning of a body, looked at before its head goes out.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::body::{Batch, Body, BodyError, BodySource};

/// What the beginning of a body told.
pub(super) struct Peeked {
    /// The whole body, the beginning included.
    pub(super) body: Body,
    /// Up to as many bytes as were wanted, and what came along with them.
    pub(super) bytes: u64,
    /// The body ends here.
    pub(super) is_complete: bool,
    /// Up to [`SAMPLE_BYTES_MAX`] bytes of it.
    pub(super) sample: Bytes,
}

/// Reads until `bytes_wanted` are there, the body is complete, or its sender pauses: who pauses is streaming, and
/// neither the head nor what is here is to wait for more.
pub(super) async fn peek(mut body: Body, bytes_wanted: u64) -> Peeked {
    let kept = body.length();
    let mut first = Batch::new();
    let more = poll_fn(|cx| {
        loop {
            match body.poll_chunks(cx, &mut first) {
                Poll::Ready(Ok(true)) if length(&first) < bytes_wanted => {}
                Poll::Ready(result) => return Poll::Ready(result),
                Poll::Pending => return Poll::Ready(Ok(true)),
            }
        }
    })
    .await;
    Peeked {
        bytes: length(&first),
        is_complete: more == Ok(false),
        sample: sample(&first),
        body: Body::stream(Resumed { first, more, rest: body }, kept),
    }
}

/// Reads a whole body into memory.
///
/// # Errors
/// [`BodyError::TooLarge`] beyond `bytes_max`, else the sender's.
pub(super) async fn collect(mut body: Body, bytes_max: u64) -> Result<Bytes, BodyError> {
    let mut all = BytesMut::new();
    loop {
        let mut batch = Batch::new();
        let more = poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await?;
        for chunk in batch {
            if (all.len() + chunk.len()) as u64 > bytes_max {
                return Err(BodyError::TooLarge);
            }
            all.extend_from_slice(&chunk);
        }
        if !more {
            return Ok(all.freeze());
        }
    }
}

/// A body whose beginning was read already.
struct Resumed {
    first: Batch,
    /// What the last poll said.
    more: Result<bool, BodyError>,
    rest: Body,
}

impl BodySource for Resumed {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        if !self.first.is_empty() {
            out.append(&mut self.first);
            return Poll::Ready(Ok(self.more != Ok(false)));
        }
        match self.more {
            Ok(true) => self.rest.poll_chunks(cx, out),
            ended => Poll::Ready(ended),
        }
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.rest.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.rest.poll_background(cx);
    }
}

fn length(batch: &Batch) -> u64 {
    batch.iter().map(|chunk| chunk.len() as u64).sum()
}

fn sample(batch: &Batch) -> Bytes {
    let mut sample = BytesMut::new();
    for chunk in batch {
        let take = chunk.len().min(SAMPLE_BYTES_MAX - sample.len());
        sample.extend_from_slice(&chunk[..take]);
    }
    sample.freeze()
}

/// As much as content sniffing looks at (WHATWG MIME Sniffing §5.2 reads more, Go 512).
pub(super) const SAMPLE_BYTES_MAX: usize = 512;
