//! Writing batches to a socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::body::Batch;
use crate::idle::Idle;
use crate::tcp::splice::Pipe;

/// A reader that takes nothing: the time since a write last moved, counted only while one is blocked.
#[derive(Debug)]
pub struct Stall {
    limit: Duration,
    blocked: Option<Idle>,
}

impl Stall {
    /// Nothing is blocked yet.
    pub fn new(limit: Duration) -> Self {
        Self { limit, blocked: None }
    }

    /// Writes and flushes `batch`; see [`poll_write_batch`].
    ///
    /// # Errors
    /// The socket's, or [`io::ErrorKind::TimedOut`] when the reader took nothing for the limit.
    pub fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        io: &mut W,
        cx: &mut Context<'_>,
        batch: &mut Batch,
    ) -> Poll<io::Result<()>> {
        let before = bytes_of(batch);
        let written = poll_write_batch(io, cx, batch);
        self.judge(cx, written, before > bytes_of(batch))
    }

    /// Writes what is in a pipe.
    ///
    /// # Errors
    /// As [`Self::poll_write`].
    pub(crate) fn poll_pipe(
        &mut self,
        to: &TcpStream,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<()>> {
        let before = pipe.filled();
        let drained = loop {
            if pipe.filled() == 0 {
                break Poll::Ready(Ok(()));
            }
            match pipe.poll_drain(cx, to) {
                Poll::Ready(Ok(_)) => {}
                other => break other.map_ok(|_| ()),
            }
        };
        self.judge(cx, drained, before > pipe.filled())
    }

    /// Flushes what the transport still holds, such as TLS records.
    ///
    /// # Errors
    /// As [`Self::poll_write`].
    pub fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        io: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let flushed = Pin::new(io).poll_flush(cx);
        self.judge(cx, flushed, false)
    }

    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<()>>,
        moved: bool,
    ) -> Poll<io::Result<()>> {
        if result.is_ready() {
            self.blocked = None;
            return result;
        }
        let limit = self.limit;
        let blocked = self.blocked.get_or_insert_with(|| Idle::new(limit));
        if moved {
            blocked.touch();
        }
        blocked.poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Bytes of all chunks.
pub(crate) fn bytes_of(batch: &Batch) -> u64 {
    batch.iter().map(|chunk| chunk.len() as u64).sum()
}

/// Writes `batch` until it is empty, many chunks a system call.
///
/// # Errors
/// The socket's.
pub fn poll_write_batch<W: AsyncWrite + Unpin>(
    io: &mut W,
    cx: &mut Context<'_>,
    batch: &mut Batch,
) -> Poll<io::Result<()>> {
    while !batch.is_empty() {
        let written = if batch.len() == 1 {
            ready!(Pin::new(&mut *io).poll_write(cx, &batch[0]))?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(batch.iter()) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        consume(batch, written);
    }
    Poll::Ready(Ok(()))
}

fn consume(batch: &mut Batch, mut written: usize) {
    while let Some(front) = batch.front_mut() {
        if front.len() > written {
            front.advance(written);
            return;
        }
        written -= front.len();
        batch.pop_front();
    }
}

/// Slices per `writev`: 64 QUIC packets' worth of content.
const SLICES_MAX: usize = 64;
