//! Bytes between a visitor and a server, in both directions, with half-close.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use super::splice::{COPIED_BYTES_MIN, Pipe, Pipes, Plain};

use crate::idle::Idle;

/// What a relay carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes from the visitor to the server.
    pub up: u64,
    /// Bytes from the server to the visitor.
    pub down: u64,
}

/// How a connection is relayed.
#[derive(Debug)]
pub(crate) struct Relaying<'a> {
    /// Read from the visitor before.
    pub(crate) ahead: BytesMut,
    /// How long one direction may be silent after the other has ended; `None` = however long it takes.
    pub(crate) termination_delay: Option<Duration>,
    /// For directions that carry much.
    pub(crate) pipes: &'a Pipes,
}

/// Relays until both directions have ended, or one has and the other is silent for too long.
///
/// Memory: two buffers of [`BUFFER_BYTES`] while bytes flow, none while nothing does. A direction between two sockets that
/// fills its buffer again and again is moved by the kernel, if a pipe is free.
///
/// # Errors
/// Either socket's; both are closed by then.
pub(crate) async fn relay<V, S>(
    visitor: &mut V,
    server: &mut S,
    relaying: Relaying<'_>,
) -> io::Result<Carried>
where
    V: AsyncRead + AsyncWrite + Plain + Unpin,
    S: AsyncRead + AsyncWrite + Plain + Unpin,
{
    let Relaying { ahead, termination_delay, pipes } = relaying;
    let mut up = Direction::new(ahead, pipes);
    let mut down = Direction::new(BytesMut::new(), pipes);
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

struct Direction<'a> {
    buffer: BytesMut,
    /// What was in a pipe that the receiver let wait; written before what is read next.
    reclaimed: Bytes,
    /// Bytes that are copied before a pipe is asked for again.
    copied_first: u64,
    state: State,
    carried: u64,
    /// Something was written that the transport (TLS) may still hold back.
    unflushed: bool,
    pipes: &'a Pipes,
    /// Lent while bytes flow through it.
    pipe: Option<Pipe>,
    /// How many reads in a row have filled the buffer; from [`BULK_READS`] on, how many more may be small.
    full_reads: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The sender has ended: the receiver is told.
    Closing,
    Ended,
}

impl<'a> Direction<'a> {
    fn new(buffer: BytesMut, pipes: &'a Pipes) -> Self {
        Self {
            buffer,
            reclaimed: Bytes::new(),
            copied_first: 0,
            state: State::Reading,
            carried: 0,
            unflushed: false,
            pipes,
            pipe: None,
            full_reads: 0,
        }
    }

    /// Moves what can be moved; ready when this direction has ended.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Plain + Unpin,
        W: AsyncWrite + Plain + Unpin,
    {
        // A busy direction gives way after some rounds, so that the other one is not starved.
        for _ in 0..ROUNDS_MAX {
            ready!(self.poll_write(cx, to))?;
            if self.state == State::Reading
                && self.full_reads >= BULK_READS
                && self.copied_first == 0
                && let (Some(from), Some(to)) = (from.socket(), to.socket())
            {
                ready!(self.poll_splice(cx, from, to))?;
                continue;
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

    /// Writes what was read.
    fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        loop {
            let is_reclaimed = !self.reclaimed.is_empty();
            let rest = if is_reclaimed { &self.reclaimed[..] } else { &self.buffer[..] };
            if rest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let written = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
            match (written, is_reclaimed) {
                (0, _) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                (_, true) => self.reclaimed.advance(written),
                (_, false) => self.buffer.advance(written),
            }
            self.carried += written as u64;
            self.unflushed = true;
        }
    }

    /// Moves one pipe's content; without a pipe it goes on by copies.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<io::Result<()>> {
        let Some(pipe) = self.pipe.take().or_else(|| self.pipes.lend()) else {
            self.full_reads = 0;
            return Poll::Ready(Ok(()));
        };
        let pipe = self.pipe.insert(pipe);
        if pipe.filled() == 0 {
            match pipe.poll_fill(cx, from, u64::MAX) {
                Poll::Ready(Ok(0)) => {
                    // A read says whether this is the end.
                    (self.pipe, self.full_reads) = (None, 0);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(bytes)) if bytes < BUFFER_BYTES => self.full_reads -= 1,
                Poll::Ready(Ok(_)) => self.full_reads = BULK_READS + SMALL_MOVES_MAX,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // Others may have the pipe meanwhile.
                    self.pipe = None;
                    return Poll::Pending;
                }
            }
        }
        while pipe.filled() > 0 {
            match pipe.poll_drain(cx, to) {
                Poll::Ready(drained) => self.carried += drained? as u64,
                Poll::Pending => {
                    self.reclaimed = ready!(pipe.poll_reclaim(cx))?;
                    (self.pipe, self.full_reads, self.copied_first) = (None, 0, COPIED_BYTES_MIN);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        if self.full_reads < BULK_READS {
            self.pipe = None;
        }
        Poll::Ready(Ok(()))
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
            Poll::Ready(Ok(bytes)) => {
                self.copied_first = self.copied_first.saturating_sub(bytes as u64);
                self.full_reads = if bytes >= BUFFER_BYTES { self.full_reads.saturating_add(1) } else { 0 };
                Poll::Ready(Ok(()))
            }
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
/// Reads in a row that have filled the buffer before the kernel is asked to move what follows.
const BULK_READS: u8 = 4;
/// Moves in a row that would have fitted into the buffer before what follows is copied again.
const SMALL_MOVES_MAX: u8 = 32;
/// Reads of one direction before the other has its turn.
const ROUNDS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::TcpListener;

    use super::*;

    impl Plain for DuplexStream {
        fn socket(&self) -> Option<&TcpStream> {
            None
        }
    }

    impl Plain for TcpStream {
        fn socket(&self) -> Option<&TcpStream> {
            Some(self)
        }
    }

    fn pipes() -> Pipes {
        Pipes::new(&Registry::new()).unwrap()
    }

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn much_content_between_sockets_arrives_whole_and_pipes_go_back() {
        let (mut client, mut visitor) = connection().await;
        let (mut server, mut origin) = connection().await;
        let pipes = pipes();
        let relaying = Relaying { ahead: BytesMut::new(), termination_delay: None, pipes: &pipes };
        let sent: Vec<u8> = (0..8_000_000u32).map(|byte| (byte % 251) as u8).collect();
        let client_side = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let origin_side = async {
            let mut all = Vec::new();
            origin.read_to_end(&mut all).await.unwrap();
            origin.write_all(b"thanks").await.unwrap();
            origin.shutdown().await.unwrap();
            all
        };
        let (carried, answer, all) =
            tokio::join!(relay(&mut visitor, &mut server, relaying), client_side, origin_side);
        assert_eq!(carried.unwrap(), Carried { up: 8_000_000, down: 6 });
        assert_eq!(answer, "thanks");
        assert!(all == sent, "the content has changed on the way");
        assert_eq!(pipes.usage(), (1, 0), "one pipe was opened, and none is lent");
    }

    #[tokio::test]
    async fn a_pipe_that_nobody_empties_is_given_back_and_its_content_arrives() {
        let (mut client, mut visitor) = connection().await;
        let (mut server, mut origin) = connection().await;
        let pipes = pipes();
        let relaying = Relaying { ahead: BytesMut::new(), termination_delay: None, pipes: &pipes };
        let sent: Vec<u8> = (0..32_000_000u32).map(|byte| (byte % 251) as u8).collect();
        let client_side = async {
            // Nothing is read until the pipe is free for others.
            while pipes.reclaimed() == 0 || pipes.usage().1 > 0 {
                tokio::task::yield_now().await;
            }
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            client.shutdown().await.unwrap();
            all
        };
        let origin_side = async {
            origin.write_all(&sent).await.unwrap();
            origin.shutdown().await.unwrap();
        };
        let (carried, all, ()) =
            tokio::join!(relay(&mut visitor, &mut server, relaying), client_side, origin_side);
        assert_eq!(carried.unwrap(), Carried { up: 0, down: 32_000_000 });
        assert!(all == sent, "the content has changed on the way");
    }

    #[tokio::test]
    async fn both_directions_are_carried_and_half_closes_passed_on() {
        let (mut client, mut visitor) = duplex(4096);
        let (mut server, mut origin) = duplex(4096);
        let relaying = tokio::spawn(async move {
            let ahead = BytesMut::from(&b"ahead "[..]);
            let relaying = Relaying { ahead, termination_delay: None, pipes: &pipes() };
            relay(&mut visitor, &mut server, relaying).await.unwrap()
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
        let relaying = Relaying { ahead: BytesMut::new(), termination_delay: delay, pipes: &pipes() };
        let carried = relay(&mut visitor, &mut server, relaying).await.unwrap();
        assert_eq!(carried, Carried::default());
        assert_eq!(start.elapsed().as_millis(), 100);
        let mut end = Vec::new();
        origin.read_to_end(&mut end).await.unwrap();
    }
}
