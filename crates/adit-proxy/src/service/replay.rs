//! Request content that may have to be sent again: streamed the first time, kept on the way.
//!
//! Nothing is read ahead: the first receiver gets every chunk as soon as the visitor sent it, and what passed is copied
//! up to a limit. A second receiver gets the copy first and then what the first one has not taken.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::oneshot;

use crate::body::{Batch, Body, BodyError, BodySource, Length};

/// Content with a memory.
#[derive(Debug)]
pub struct Replay {
    shared: Arc<Mutex<Shared>>,
    finished: Option<oneshot::Receiver<()>>,
}

/// What to do when more content comes than may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The content ends with [`BodyError::TooLarge`].
    Refuse,
    /// It goes on and can no longer be sent again.
    Forget,
}

impl Replay {
    /// Takes over `body`; at most `bytes_max` bytes are kept, and never more than [`KEPT_BYTES_MAX`].
    pub fn new(body: Body, bytes_max: Option<u64>, overflow: Overflow) -> Self {
        let (sender, finished) = oneshot::channel();
        let limit = bytes_max
            .map_or(KEPT_BYTES_MAX, |max| usize::try_from(max).unwrap_or(KEPT_BYTES_MAX).min(KEPT_BYTES_MAX));
        // Our own cap must not refuse what the operator allowed.
        let refuse = overflow == Overflow::Refuse && bytes_max.is_some_and(|max| max <= limit as u64);
        let shared = Shared {
            length: body.length(),
            body,
            kept: Some(Kept::default()),
            limit,
            refuse,
            done: false,
            trailers: None,
            finished: Some(sender),
        };
        Self { shared: Arc::new(Mutex::new(shared)), finished: Some(finished) }
    }

    /// Content for the next receiver, from its beginning; the receiver before must be gone.
    ///
    /// `None` if something passed that was not kept.
    pub fn attempt(&self) -> Option<Body> {
        let shared = lock(&self.shared);
        shared.kept.as_ref()?;
        let length = shared.length;
        if length == Length::Known(0) {
            return Some(Body::empty());
        }
        drop(shared);
        Some(Body::stream(Attempt { shared: Arc::clone(&self.shared), sent: 0, done: false }, length))
    }

    /// Waits until all content has passed the first receiver, and returns it with its trailers.
    ///
    /// `None` if it was too large, broke off, or was not read to its end.
    pub async fn complete(mut self) -> Option<Copies> {
        if lock(&self.shared).length == Length::Known(0) {
            return Some(Copies { chunks: Arc::default(), length: Length::Known(0), trailers: None });
        }
        self.finished.take()?.await.ok()?;
        let mut shared = lock(&self.shared);
        let kept = shared.kept.take()?;
        let length = shared.length;
        Some(Copies { chunks: Arc::new(kept), length, trailers: shared.trailers.take() })
    }
}

/// Whole content that can be given to any number of receivers.
#[derive(Clone, Debug)]
pub struct Copies {
    chunks: Arc<Kept>,
    length: Length,
    trailers: Option<HeaderMap>,
}

impl Copies {
    /// One copy.
    pub fn body(&self) -> Body {
        if self.length == Length::Known(0) {
            return Body::empty();
        }
        Body::stream(Copy { of: self.clone() }, self.length)
    }
}

#[derive(Debug)]
struct Shared {
    body: Body,
    /// What passed; gone once something passed that could not be kept.
    kept: Option<Kept>,
    limit: usize,
    refuse: bool,
    done: bool,
    trailers: Option<HeaderMap>,
    length: Length,
    finished: Option<oneshot::Sender<()>>,
}

impl Shared {
    fn poll_more(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let mut batch = Batch::new();
        let more = match ready!(self.body.poll_chunks(cx, &mut batch)) {
            Ok(more) => more,
            Err(error) => {
                self.forget();
                return Poll::Ready(Err(error));
            }
        };
        self.keep(&batch)?;
        out.append(&mut batch);
        if !more {
            self.done = true;
            self.trailers = self.body.take_trailers();
            if let Some(finished) = self.finished.take() {
                let _ = finished.send(());
            }
        }
        Poll::Ready(Ok(more))
    }

    fn keep(&mut self, batch: &Batch) -> Result<(), BodyError> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        let bytes: usize = batch.iter().map(Bytes::len).sum();
        let over = kept.room.bytes + bytes > self.limit;
        if over && self.refuse {
            self.forget();
            return Err(BodyError::TooLarge);
        }
        if over || !kept.room.reserve(bytes) {
            self.forget();
            return Ok(());
        }
        // Copied, because a chunk is a slice of a read buffer that may be much larger than what is counted here.
        kept.chunks.extend(batch.iter().filter(|c| !c.is_empty()).map(|c| Bytes::copy_from_slice(c)));
        Ok(())
    }

    fn forget(&mut self) {
        self.kept = None;
        self.finished = None;
    }
}

/// Chunks that count against [`ALL_KEPT_BYTES_MAX`] while they are held.
#[derive(Debug, Default)]
struct Kept {
    chunks: Vec<Bytes>,
    room: Room,
}

/// A part of [`ALL_KEPT_BYTES_MAX`], given back when dropped.
#[derive(Debug, Default)]
struct Room {
    bytes: usize,
}

impl Room {
    fn reserve(&mut self, bytes: usize) -> bool {
        let reserved = ALL_KEPT_BYTES
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
                all.checked_add(bytes).filter(|all| *all <= ALL_KEPT_BYTES_MAX)
            })
            .is_ok();
        if reserved {
            self.bytes += bytes;
        }
        reserved
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        ALL_KEPT_BYTES.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why content could not be kept whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepError {
    /// The visitor's.
    Body(BodyError),
    /// [`ALL_KEPT_BYTES_MAX`] is reached.
    NoRoom,
}

/// Reads a whole body into memory, counted against [`ALL_KEPT_BYTES_MAX`] until the last copy of the bytes is dropped.
///
/// # Errors
/// [`BodyError::TooLarge`] beyond `bytes_max`.
pub async fn keep_whole(mut body: Body, bytes_max: u64) -> Result<Bytes, KeepError> {
    let mut whole = Whole::default();
    loop {
        let mut batch = Batch::new();
        let more = poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await.map_err(KeepError::Body)?;
        for chunk in batch {
            let bytes = whole.content.len() + chunk.len();
            if bytes as u64 > bytes_max {
                return Err(KeepError::Body(BodyError::TooLarge));
            }
            // What it grows to is what it takes, not what is in it.
            whole.content.reserve(chunk.len());
            let grown = whole.content.capacity() - whole.room.bytes;
            if !whole.room.reserve(grown) {
                return Err(KeepError::NoRoom);
            }
            whole.content.extend_from_slice(&chunk);
        }
        if !more {
            return Ok(Bytes::from_owner(whole));
        }
    }
}

/// Content in one piece.
#[derive(Default)]
struct Whole {
    content: Vec<u8>,
    room: Room,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

/// One receiver's view.
struct Attempt {
    shared: Arc<Mutex<Shared>>,
    /// Kept chunks that this receiver had already.
    sent: usize,
    done: bool,
}

impl BodySource for Attempt {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let mut shared = lock(&self.shared);
        if let Some(kept) = &shared.kept
            && self.sent < kept.chunks.len()
        {
            out.extend(kept.chunks[self.sent..].iter().cloned());
            self.sent = kept.chunks.len();
            self.done = shared.done;
            return Poll::Ready(Ok(!shared.done));
        }
        if shared.done {
            self.done = true;
            return Poll::Ready(Ok(false));
        }
        let result = ready!(shared.poll_more(cx, out));
        self.sent = shared.kept.as_ref().map_or(self.sent, |kept| kept.chunks.len());
        self.done = shared.done;
        Poll::Ready(result)
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        if self.done { lock(&self.shared).trailers.clone() } else { None }
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        lock(&self.shared).body.poll_background(cx);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Whoever waits for the whole content must not wait for a receiver that is gone.
        lock(&self.shared).finished = None;
    }
}

struct Copy {
    of: Copies,
}

impl BodySource for Copy {
    fn poll_chunks(&mut self, _cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        out.extend(self.of.chunks.chunks.iter().cloned());
        Poll::Ready(Ok(false))
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.of.trailers.take()
    }
}

/// The bytes of content that is in memory already; `None` if it has to be read.
pub fn in_memory(body: Body) -> Result<Bytes, Body> {
    if !body.is_replayable() {
        return Err(body);
    }
    let mut body = body;
    let mut batch = Batch::new();
    let _ = body.poll_chunks(&mut Context::from_waker(Waker::noop()), &mut batch);
    Ok(batch.pop_front().unwrap_or_default())
}

/// Content kept of all requests at the moment, in bytes; for the metrics.
pub fn kept_bytes() -> usize {
    ALL_KEPT_BYTES.load(Ordering::Relaxed)
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Nothing of ours panics while it is held, and a body that does is not polled again.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Content kept of one request, whatever the operator allows: an upload of any size still streams, it is only not
/// sent a second time.
pub const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Content kept of all requests together, so that many uploads at once cannot add up.
pub const ALL_KEPT_BYTES_MAX: usize = 256 * 1024 * 1024;

static ALL_KEPT_BYTES: AtomicUsize = AtomicUsize::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its chunks one by one.
    struct Chunks(Vec<&'static [u8]>);

    impl BodySource for Chunks {
        fn poll_chunks(&mut self, _cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
            out.push_back(Bytes::from_static(self.0.remove(0)));
            Poll::Ready(Ok(!self.0.is_empty()))
        }
    }

    fn body() -> Body {
        Body::stream(Chunks(vec![b"one", b"two", b"three"]), Length::Unknown)
    }

    async fn read(body: &mut Body, polls: usize) -> Result<Vec<u8>, BodyError> {
        let mut all = Vec::new();
        for _ in 0..polls {
            let mut batch = Batch::new();
            let more = poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await?;
            all.extend(batch.into_iter().flatten());
            if !more {
                break;
            }
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_second_receiver_gets_what_passed_and_then_the_rest() {
        let replay = Replay::new(body(), None, Overflow::Forget);
        let mut first = replay.attempt().unwrap();
        assert_eq!(read(&mut first, 1).await.unwrap(), b"one");
        drop(first);
        let mut second = replay.attempt().unwrap();
        assert_eq!(read(&mut second, 9).await.unwrap(), b"onetwothree");
    }

    #[tokio::test]
    async fn content_over_the_limit_is_refused_or_forgotten() {
        let refusing = Replay::new(body(), Some(4), Overflow::Refuse);
        assert_eq!(read(&mut refusing.attempt().unwrap(), 9).await, Err(BodyError::TooLarge));
        let forgetting = Replay::new(body(), Some(4), Overflow::Forget);
        let mut first = forgetting.attempt().unwrap();
        assert_eq!(read(&mut first, 9).await.unwrap(), b"onetwothree");
        drop(first);
        assert!(forgetting.attempt().is_none());
        assert!(forgetting.complete().await.is_none());
    }

    #[tokio::test]
    async fn copies_are_whole_or_none() {
        let replay = Replay::new(body(), None, Overflow::Forget);
        read(&mut replay.attempt().unwrap(), 9).await.unwrap();
        let copies = replay.complete().await.unwrap();
        for _ in 0..2 {
            assert_eq!(read(&mut copies.body(), 9).await.unwrap(), b"onetwothree");
        }
        let broken_off = Replay::new(body(), None, Overflow::Forget);
        read(&mut broken_off.attempt().unwrap(), 1).await.unwrap();
        assert!(broken_off.complete().await.is_none());
    }

    #[test]
    fn content_in_memory_is_taken_as_it_is() {
        assert_eq!(in_memory(Body::full("abc")).unwrap(), "abc");
        assert_eq!(in_memory(Body::empty()).unwrap(), "");
        assert!(in_memory(body()).is_err());
    }
}
