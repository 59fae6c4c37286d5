//! Bytes between a visitor and a server, in both directions, with half-close.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::idle::Idle;

/// What a relay carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes from the visitor to the server.
    pub up: u64,
    /// Bytes from the server to the visitor.
    pub down: u64,
}

/// Relays until both directions have ended, or one has and the other is silent for `termination_delay` (`None` = however
/// long it takes).
///
/// `ahead` was read from the visitor before. Memory: two buffers of [`BUFFER_BYTES`] while bytes flow, none while
/// nothing does.
///
/// # Errors
/// Either socket's; both are closed by then.
pub async fn relay<V, S>(
    visitor: &mut V,
    server: &mut S,
    ahead: BytesMut,
    termination_delay: Option<Duration>,
) -> io::Result<Carried>
where
    V: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Direction::new(ahead);
    let mut down = Direction::new(BytesMut::new());
    let mut silence: Option<(Idle, u64)> = None;
    poll_fn(|cx| {
        let up_ended = up.poll(cx, visitor, server)?.is_ready();
        let down_ended = down.poll(cx, server, visitor)?.is_ready();
        if up_ended && down_ended {
            return Poll::Ready(io::Result::Ok(()));
        }
        if let Some(delay) = termination_delay.filter(|_| up_ended || down_ended) {
            let carried = up.carried + down.carried;
            let (idle, before) = silence.get_or_insert_with(|| (Idle::new(delay), carried));
            if *before != carried {
                *before = carried;
                idle.touch();
            }
            ready!(idle.poll(cx));
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await?;
    Ok(Carried { up: up.carried, down: down.carried })
}

struct Direction {
    buffer: BytesMut,
    state: State,
    carried: u64,
    /// Something was written that the transport (TLS) may still hold back.
    unflushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The sender has ended: the receiver is told.
    Closing,
    Ended,
}

impl Direction {
    fn new(buffer: BytesMut) -> Self {
        Self { buffer, state: State::Reading, carried: 0, unflushed: false }
    }

    /// Moves what can be moved; ready when this direction has ended.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        // A busy direction gives way after some rounds, so that the other one is not starved.
        for _ in 0..ROUNDS_MAX {
            while !self.buffer.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.buffer.advance(written);
                self.carried += written as u64;
                self.unflushed = true;
            }
            match self.state {
                State::Reading => ready!(self.poll_read(cx, from, to))?,
                State::Closing => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_read<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.buffer.reserve(BUFFER_BYTES);
        let read = {
            // The future borrows only its arguments and keeps no state of its own between polls.
            let read = pin!(from.read_buf(&mut self.buffer));
            read.poll(cx)
        };
        match read {
            Poll::Ready(Ok(0)) => {
                self.buffer = BytesMut::new();
                self.state = State::Closing;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
            // A peer that closed TLS without `close_notify` has ended all the same.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.state = State::Closing;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.buffer = BytesMut::new();
                if self.unflushed {
                    ready!(Pin::new(to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                Poll::Pending
            }
        }
    }
}

/// One read: large enough to make system calls cheap, small enough for thousands of busy relays.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// Reads of one direction before the other has its turn.
const ROUNDS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn both_directions_are_carried_and_half_closes_passed_on() {
        let (mut client, mut visitor) = duplex(4096);
        let (mut server, mut origin) = duplex(4096);
        let relaying = tokio::spawn(async move {
            relay(&mut visitor, &mut server, BytesMut::from(&b"ahead "[..]), None).await.unwrap()
        });
        client.write_all(&[b'a'; 1000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut up = Vec::new();
        origin.read_to_end(&mut up).await.unwrap();
        assert_eq!(up.len(), 1006);
        assert!(up.starts_with(b"ahead aaa"));
        origin.write_all(b"answer after the half-close").await.unwrap();
        origin.shutdown().await.unwrap();
        let mut down = Vec::new();
        client.read_to_end(&mut down).await.unwrap();
        assert_eq!(down, b"answer after the half-close");
        assert_eq!(relaying.await.unwrap(), Carried { up: 1006, down: 27 });
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_direction_ends_after_the_termination_delay() {
        let (client, mut visitor) = duplex(64);
        let (mut server, mut origin) = duplex(4096);
        let start = tokio::time::Instant::now();
        drop(client);
        let delay = Some(Duration::from_millis(100));
        let carried = relay(&mut visitor, &mut server, BytesMut::new(), delay).await.unwrap();
        assert_eq!(carried, Carried::default());
        assert_eq!(start.elapsed().as_millis(), 100);
        let mut end = Vec::new();
        origin.read_to_end(&mut end).await.unwrap();
    }
}
