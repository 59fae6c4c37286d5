//! Bytes from socket to socket without a copy: `splice(2)` through a pipe.
//!
//! A pipe of 1 MiB halves what a copy through our memory costs (limits-and-peers.md §1). Pipes are few and lent for as long
//! as bytes flow; whoever gets none copies. So does whoever lets a pipe wait: what is in it is read into memory, and the pipe
//! is for others, or a few slow readers had all of them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use prometheus::{IntCounter, IntGauge, Registry};
use rustix::io::{Errno, read};
use rustix::net::{RecvFlags, recv};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::body::BATCH_BYTES_MAX;
use crate::idle::Idle;
use crate::io::{Io, ReadIo, WriteIo};

/// A stream that may be a socket of the kernel with nothing on top of it.
pub trait Plain {
    /// The socket, if there is nothing but it.
    fn socket(&self) -> Option<&TcpStream>;
}

impl Plain for ReadIo {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(half) => Some(half.as_ref()),
            _ => None,
        }
    }
}

impl Plain for WriteIo {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(half) => Some(half.as_ref()),
            _ => None,
        }
    }
}

impl Plain for Io {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(socket) => Some(socket),
            _ => None,
        }
    }
}

/// The pipes of a process; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pipes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The system does not splice for this process, as under some sandboxes.
    is_refused: AtomicBool,
    lent: IntGauge,
    denied: IntCounter,
    reclaimed: IntCounter,
    /// What was read out of pipes and is more than a batch, while its readers have yet to take it.
    stranded: IntGauge,
    bytes: IntCounter,
}

#[derive(Debug, Default)]
struct State {
    /// Empty ones.
    idle: Vec<Ends>,
    /// All that there are, those that are lent included.
    open: usize,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe on loan; given back when it is dropped.
#[derive(Debug)]
pub struct Pipe {
    /// Absent only while it is given back.
    ends: Option<Ends>,
    /// Bytes in it.
    filled: usize,
    /// Since it was filled.
    patience: Idle,
    from: Arc<Shared>,
}

/// What was in a pipe.
struct Reclaimed {
    content: Vec<u8>,
    from: Arc<Shared>,
}

impl Pipes {
    /// None yet; registers what it counts.
    ///
    /// # Errors
    /// If the registry has that already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let lent = IntGauge::new("adit_proxy_splice_pipes", "Pipes that carry TCP content now")?;
        let denied = IntCounter::new(
            "adit_proxy_splice_denied_total",
            "Times that content was copied because all pipes were in use or the system gave none",
        )?;
        let reclaimed = IntCounter::new(
            "adit_proxy_splice_reclaimed_total",
            "Times that a pipe was taken from content whose reader let it wait",
        )?;
        let stranded = IntGauge::new(
            "adit_proxy_splice_stranded_buffers",
            "Contents of reclaimed pipes above 256 KiB that wait for their readers",
        )?;
        let bytes = IntCounter::new(
            "adit_proxy_spliced_bytes_total",
            "Content that the kernel moved from socket to socket",
        )?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(lent.clone()))?;
        registry.register(Box::new(denied.clone()))?;
        registry.register(Box::new(reclaimed.clone()))?;
        registry.register(Box::new(stranded.clone()))?;
        Ok(Self(Arc::new(Shared {
            state: Mutex::default(),
            is_refused: AtomicBool::new(false),
            lent,
            denied,
            reclaimed,
            stranded,
            bytes,
        })))
    }

    /// How many pipes were taken from slow readers.
    #[cfg(test)]
    pub(crate) fn reclaimed(&self) -> u64 {
        self.0.reclaimed.get()
    }

    /// How many pipes are open, and how many of them are lent.
    #[cfg(test)]
    pub(crate) fn usage(&self) -> (usize, i64) {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.open, self.0.lent.get())
    }

    /// An empty pipe, if one is free.
    pub(crate) fn lend(&self) -> Option<Pipe> {
        let ends = self.0.take();
        match &ends {
            Some(_) => self.0.lent.inc(),
            None => self.0.denied.inc(),
        }
        Some(Pipe { ends: Some(ends?), filled: 0, patience: Idle::new(PATIENCE), from: Arc::clone(&self.0) })
    }
}

impl Shared {
    fn take(&self) -> Option<Ends> {
        if self.is_refused.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(idle) = state.idle.pop() {
            return Some(idle);
        }
        if state.open == PIPES_MAX {
            return None;
        }
        let ends = Ends::open().ok()?;
        state.open += 1;
        Some(ends)
    }

    /// What is put into a pipe at most: what a copy holds as well, while much was read out of others.
    fn fill_bytes_max(&self) -> usize {
        if self.stranded.get() < STRANDED_MAX { PIPE_BYTES } else { BATCH_BYTES_MAX }
    }

    /// No more pipes are lent: whoever asks for one copies.
    fn refuse(&self, error: Errno) {
        if !self.is_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, reason = "splice_refused", "the system does not splice; content is copied");
        }
    }
}

impl Ends {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Users without privileges have 64 MiB for all their pipes; a smaller one still spares the copy.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Self { read, write })
    }
}

impl Pipe {
    /// Bytes taken from the sender and not yet given to the receiver.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Takes what the sender has sent into the empty pipe, but no more than `bytes_max`.
    ///
    /// After 0 the sender is to be read from: that it has ended is not all that it may mean. The kernel splices nothing
    /// beyond an urgent byte (RFC 6093 §3.1), and some sandboxes do not let it splice at all.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        bytes_max: u64,
    ) -> Poll<io::Result<usize>> {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(PIPE_BYTES).min(self.from.fill_bytes_max());
        debug_assert_eq!(self.filled, 0, "a full pipe looks like a silent socket");
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(from.poll_read_ready(cx))?;
            let moved = from.try_io(Interest::READABLE, || {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                let mut moved = splice(from, None, &ends.write, None, bytes_max, flags);
                if moved == Err(Errno::AGAIN) {
                    has_come(from)?;
                    // Something has: if it came only now it is moved now.
                    moved = splice(from, None, &ends.write, None, bytes_max, flags);
                }
                match moved {
                    // The socket has what it does not give away like this.
                    Err(Errno::AGAIN) => Ok(0),
                    Err(error @ (Errno::PERM | Errno::NOSYS | Errno::INVAL | Errno::NOMEM)) => {
                        self.from.refuse(error);
                        Ok(0)
                    }
                    moved => Ok(moved?),
                }
            });
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(bytes) => {
                    self.filled = bytes;
                    self.patience.touch();
                    self.from.bytes.inc_by(bytes as u64);
                    return Poll::Ready(Ok(bytes));
                }
            }
        }
    }

    /// Gives the receiver some of what is in the pipe; how much.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(to.poll_write_ready(cx))?;
            let moved = to.try_io(Interest::WRITABLE, || {
                Ok(splice(
                    &ends.read,
                    None,
                    to,
                    None,
                    self.filled,
                    SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
                )?)
            });
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(bytes) => {
                    self.filled -= bytes;
                    return Poll::Ready(Ok(bytes));
                }
            }
        }
    }
}

impl Pipe {
    /// Ready when the reader has had long enough to empty the pipe: what is left, to be written from memory. The pipe is empty
    /// then and has to be given back, and [`COPIED_BYTES_MIN`] have to be copied before another is asked for.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn poll_reclaim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        ready!(self.patience.poll(cx));
        Poll::Ready(self.reclaim())
    }

    fn reclaim(&mut self) -> io::Result<Bytes> {
        let Some(ends) = &self.ends else { return Ok(Bytes::new()) };
        let mut content = vec![0; self.filled];
        while self.filled > 0 {
            let at = content.len() - self.filled;
            match read(&ends.read, &mut content[at..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => self.filled -= bytes,
            }
        }
        self.from.reclaimed.inc();
        let content = Reclaimed { content, from: Arc::clone(&self.from) };
        if content.is_stranded() {
            self.from.stranded.inc();
        }
        Ok(Bytes::from_owner(content))
    }
}

impl Reclaimed {
    fn is_stranded(&self) -> bool {
        self.content.len() > BATCH_BYTES_MAX
    }
}

impl AsRef<[u8]> for Reclaimed {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Reclaimed {
    fn drop(&mut self) {
        if self.is_stranded() {
            self.from.stranded.dec();
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.from.lent.dec();
        let ends = self.ends.take();
        let mut state = self.from.state.lock().unwrap_or_else(PoisonError::into_inner);
        // What is left in it is nobody else's.
        if self.filled == 0 && state.idle.len() < IDLE_MAX {
            state.idle.extend(ends);
        } else {
            state.open -= 1;
        }
    }
}

/// Whether a socket has something to read, its end included; it would block if not.
fn has_come(socket: &TcpStream) -> io::Result<()> {
    recv(socket, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(())
}

/// Content that is worth a pipe: several times what one read brings.
pub(crate) const SPLICED_BYTES_MIN: u64 = 256 * 1024;
/// Pipes filled and emptied for one body before others of its thread have their turn.
pub(crate) const SPLICES_MAX: usize = 16;
/// What one pipe holds: the system's limit for users without privileges (`fs.pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;
/// Pipes at once, two descriptors each: 64 MiB of the kernel's memory while all are full, which is also what users without
/// privileges may have (`fs.pipe-user-pages-soft`).
const PIPES_MAX: usize = 64;
/// For a reader to empty a pipe: 17 Mbit/s keep a full one. Below that a copy costs next to nothing.
const PATIENCE: Duration = Duration::from_millis(500);
/// What is copied, after a pipe was reclaimed, before another is asked for: a visitor of 10 Mbit/s has one for an eighth of
/// its time, one who takes nothing once.
pub(crate) const COPIED_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Contents of reclaimed pipes above a batch at once: 64 MiB, and as much again if the pipes that are lent then are full and
/// reclaimed, too. From there on pipes are not filled with more than a copy holds.
const STRANDED_MAX: i64 = 64;
/// Pipes kept while nobody uses them; the kernel gives memory to what is in one only, but counts all of it.
const IDLE_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_bounded_and_used_again_unless_something_is_left_in_them() {
        let pipes = Pipes::new(&Registry::new()).unwrap();
        let mut lent: Vec<Pipe> = (0..PIPES_MAX).map(|_| pipes.lend().unwrap()).collect();
        assert!(pipes.lend().is_none());
        assert_eq!((pipes.0.lent.get(), pipes.0.denied.get()), (64, 1));
        lent[0].filled = 1;
        drop(lent);
        let state = pipes.0.state.lock().unwrap();
        assert_eq!((state.idle.len(), state.open, pipes.0.lent.get()), (IDLE_MAX, IDLE_MAX, 0));
    }

    #[tokio::test]
    async fn what_is_read_out_of_pipes_for_slow_readers_is_bounded() {
        let pipes = Pipes::new(&Registry::new()).unwrap();
        let fill = |bytes: usize| {
            let mut pipe = pipes.lend().unwrap();
            let written = rustix::io::write(&pipe.ends.as_ref().unwrap().write, &vec![7; bytes]).unwrap();
            pipe.filled = written;
            pipe.reclaim().unwrap()
        };
        assert_eq!(fill(BATCH_BYTES_MAX), vec![7; BATCH_BYTES_MAX]);
        assert_eq!((pipes.0.stranded.get(), pipes.0.fill_bytes_max()), (0, PIPE_BYTES));
        let mut waiting: Vec<Bytes> = (0..STRANDED_MAX).map(|_| fill(BATCH_BYTES_MAX + 1)).collect();
        assert_eq!((pipes.0.stranded.get(), pipes.0.fill_bytes_max()), (STRANDED_MAX, BATCH_BYTES_MAX));
        waiting.pop();
        assert_eq!(pipes.0.fill_bytes_max(), PIPE_BYTES);
        assert_eq!(pipes.usage(), (1, 0), "the same pipe each time");
    }

    #[test]
    fn a_system_that_refuses_is_not_asked_again() {
        let pipes = Pipes::new(&Registry::new()).unwrap();
        let lent = pipes.lend().unwrap();
        lent.from.refuse(Errno::PERM);
        drop(lent);
        assert!(pipes.lend().is_none());
        assert_eq!((pipes.0.lent.get(), pipes.0.denied.get()), (0, 1));
    }
}
