//! Bytes from socket to socket without a copy: `splice(2)` through a pipe.
//!
//! A pipe of 1 MiB halves what a copy through our memory costs (limits-and-peers.md §1). Pipes are few and lent for as long
//! as bytes flow; whoever gets none copies.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use prometheus::{IntCounter, IntGauge, Registry};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

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
    lent: IntGauge,
    denied: IntCounter,
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
        let bytes = IntCounter::new(
            "adit_proxy_spliced_bytes_total",
            "Content that the kernel moved from socket to socket",
        )?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(lent.clone()))?;
        registry.register(Box::new(denied.clone()))?;
        Ok(Self(Arc::new(Shared { state: Mutex::default(), lent, denied, bytes })))
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
        Some(Pipe { ends: Some(ends?), filled: 0, from: Arc::clone(&self.0) })
    }
}

impl Shared {
    fn take(&self) -> Option<Ends> {
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

    /// Takes what the sender has sent into the empty pipe, but no more than `bytes_max`; 0 is its end.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        bytes_max: u64,
    ) -> Poll<io::Result<usize>> {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(PIPE_BYTES).min(PIPE_BYTES);
        debug_assert_eq!(self.filled, 0, "a full pipe looks like a silent socket");
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(from.poll_read_ready(cx))?;
            let moved = from.try_io(Interest::READABLE, || {
                Ok(splice(
                    from,
                    None,
                    &ends.write,
                    None,
                    bytes_max,
                    SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
                )?)
            });
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(bytes) => {
                    self.filled = bytes;
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

impl Drop for Pipe {
    fn drop(&mut self) {
        self.from.lent.dec();
        let mut state = self.from.state.lock().unwrap_or_else(PoisonError::into_inner);
        match self.ends.take().filter(|_| self.filled == 0) {
            Some(ends) => state.idle.push(ends),
            // What is left in it is nobody else's.
            None => state.open -= 1,
        }
    }
}

/// Content that is worth a pipe: several times what one read brings.
pub(crate) const SPLICED_BYTES_MIN: u64 = 256 * 1024;
/// What one pipe holds: the system's limit for users without privileges (`fs.pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;
/// Pipes at once, two descriptors each: 64 MiB of the kernel's memory while all are full, which is also what users without
/// privileges may have (`fs.pipe-user-pages-soft`).
const PIPES_MAX: usize = 64;

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
        assert_eq!((state.idle.len(), state.open, pipes.0.lent.get()), (63, 63, 0));
    }
}
