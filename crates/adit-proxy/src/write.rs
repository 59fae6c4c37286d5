//! Writing batches to a socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::AsyncWrite;

use crate::body::Batch;

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
