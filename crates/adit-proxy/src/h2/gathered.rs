//! Frames of many streams in one write.
//!
//! `h2` writes and flushes each larger DATA frame by itself, which over TLS is a record and a system call for every small
//! answer. Frames are gathered here instead until whoever runs the connection has nothing more to do at the moment.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes are gathered until they are flushed, or [`GATHERED_BYTES_MAX`] are waiting. Clones are the same
/// stream: one for `h2`, one for whoever runs the connection; the lock between them is never waited for.
#[derive(Debug)]
pub(super) struct Gathered<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    /// Flushes wait for [`Gathered::poll_drain`].
    held: AtomicBool,
    /// Nothing was left to read in this turn; whoever asked is woken when there is.
    dry: AtomicBool,
    gathering: Mutex<Gathering<T>>,
}

#[derive(Debug)]
struct Gathering<T> {
    io: T,
    /// No memory while it is empty.
    waiting: Vec<u8>,
    /// Bytes of [`Self::waiting`] that the stream below has taken.
    taken: usize,
    /// Bytes that the stream below has taken, over and over again.
    written: usize,
}

impl<T> Gathered<T> {
    pub(super) fn new(io: T) -> Self {
        Self(Arc::new(Shared {
            held: AtomicBool::new(false),
            dry: AtomicBool::new(false),
            gathering: Mutex::new(Gathering { io, waiting: Vec::new(), taken: 0, written: 0 }),
        }))
    }

    /// From now on each turn of the connection begins with [`Self::begin`] and ends with [`Self::poll_drain`], and nothing
    /// else needs to flush.
    pub(super) fn hold(&self) {
        self.0.held.store(true, Ordering::Relaxed);
    }

    /// Begins a turn of the connection, which was woken: there may be something to read.
    pub(super) fn begin(&self) {
        self.0.dry.store(false, Ordering::Relaxed);
    }

    /// Whether something has yet to be written.
    pub(super) fn is_waiting(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Something that is another number once something has been written.
    pub(super) fn written(&self) -> usize {
        self.lock().written
    }

    fn is_held(&self) -> bool {
        self.0.held.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Gathering<T>> {
        self.0.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Gathered<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    /// Writes what is waiting and flushes it.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.lock();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }
}

impl<T: AsyncWrite + Unpin> Gathering<T> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.taken < self.waiting.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.waiting[self.taken..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += written;
            self.written = self.written.wrapping_add(written);
        }
        self.taken = 0;
        self.waiting.clear();
        SPARE.set(std::mem::take(&mut self.waiting));
        Poll::Ready(Ok(()))
    }

    /// Makes room for some bytes.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.len() >= GATHERED_BYTES_MAX { self.poll_drain(cx) } else { Poll::Ready(Ok(())) }
    }

    fn gather(&mut self, buf: &[u8]) -> usize {
        let bytes = buf.len().min(GATHERED_BYTES_MAX - self.waiting.len());
        if self.waiting.capacity() == 0 {
            self.waiting = SPARE.take();
            self.waiting.reserve(bytes.max(GATHERED_BYTES_MIN));
        } else if self.waiting.capacity() - self.waiting.len() < bytes {
            self.waiting.reserve_exact(GATHERED_BYTES_MAX - self.waiting.len());
        }
        self.waiting.extend_from_slice(&buf[..bytes]);
        bytes
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // `h2` looks again with each request that it hands out.
        if self.0.dry.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.lock().io).poll_read(cx, buf);
        if read.is_pending() && self.is_held() {
            self.0.dry.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut this = self.lock();
        ready!(this.poll_room(cx))?;
        Poll::Ready(Ok(this.gather(buf)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut this = self.lock();
        ready!(this.poll_room(cx))?;
        Poll::Ready(Ok(bufs.iter().map(|buf| this.gather(buf)).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_held() { Poll::Ready(Ok(())) } else { self.poll_drain(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.lock();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

thread_local! {
    /// The memory of what was written last: most turns gather, write and leave nothing behind, each in the same few cache
    /// lines, whichever connection's they are. At most [`GATHERED_BYTES_MAX`].
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What one connection holds at most before it writes: four whole TLS records, which go out by one system call.
const GATHERED_BYTES_MAX: usize = 64 * 1024;
/// Room made at first: most turns write no more.
const GATHERED_BYTES_MIN: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn writes_wait_for_a_flush_or_a_full_buffer() {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut gathered = Gathered::new(ours);
        let slices = [IoSlice::new(b"one "), IoSlice::new(b"two")];
        assert_eq!(gathered.write_vectored(&slices).await.unwrap(), 7);
        let mut read = [0; 16];
        assert!(tokio::time::timeout(std::time::Duration::ZERO, theirs.read(&mut read)).await.is_err());
        gathered.flush().await.unwrap();
        assert_eq!(theirs.read(&mut read).await.unwrap(), 7);
        assert_eq!(gathered.lock().waiting.capacity(), 0);
        let large = vec![1; GATHERED_BYTES_MAX];
        gathered.write_all(&large).await.unwrap();
        gathered.write_all(b"more").await.unwrap();
        let mut first = vec![0; GATHERED_BYTES_MAX];
        theirs.read_exact(&mut first).await.unwrap();
        gathered.shutdown().await.unwrap();
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        assert_eq!((first, rest.as_slice()), (large, &b"more"[..]));
        let kept = SPARE.take().capacity();
        assert!((GATHERED_BYTES_MIN..=GATHERED_BYTES_MAX).contains(&kept), "{kept}");
    }

    #[tokio::test]
    async fn what_was_read_dry_is_read_again_in_the_next_turn() {
        let (ours, mut theirs) = duplex(16);
        let mut gathered = Gathered::new(ours);
        gathered.hold();
        gathered.begin();
        let (mut read, zero) = ([0; 4], std::time::Duration::ZERO);
        assert!(tokio::time::timeout(zero, gathered.read(&mut read)).await.is_err());
        theirs.write_all(b"one").await.unwrap();
        assert!(tokio::time::timeout(zero, gathered.read(&mut read)).await.is_err());
        gathered.begin();
        assert_eq!(gathered.read(&mut read).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn held_writes_wait_for_who_runs_the_connection() {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut gathered = Gathered::new(ours);
        gathered.hold();
        gathered.write_all(b"one").await.unwrap();
        gathered.flush().await.unwrap();
        let mut read = [0; 16];
        assert!(tokio::time::timeout(std::time::Duration::ZERO, theirs.read(&mut read)).await.is_err());
        poll_fn(|cx| gathered.poll_drain(cx)).await.unwrap();
        assert_eq!(theirs.read(&mut read).await.unwrap(), 3);
    }
}
