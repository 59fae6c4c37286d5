//! Accepting TCP connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;

use super::shared::{Port, Shared};
use super::stream::Stream;

/// Accepts connections to one port; dropping it closes the port and resets what nobody has accepted.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepted: mpsc::Receiver<Stream>,
}

impl Listener {
    pub(super) fn new(shared: Arc<Shared>, address: SocketAddr, accepted: mpsc::Receiver<Stream>) -> Self {
        Self { shared, address, accepted }
    }

    /// Where it listens, with the port that was chosen for port 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next connection and its other end; `None` when the lane has ended.
    pub async fn accept(&mut self) -> Option<(Stream, SocketAddr)> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`Self::accept`].
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Stream, SocketAddr)>> {
        loop {
            match ready!(self.accepted.poll_recv(cx)) {
                // Whoever has its address now has not asked for it.
                Some(stream) if stream.is_revoked() => {}
                Some(stream) => {
                    let remote = stream.peer_addr();
                    return Poll::Ready(Some((stream, remote)));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let port = Port::of(self.address);
        // Gone with the lane otherwise.
        if !self.shared.is_closed() {
            self.shared.ports().tcp.remove(&port);
        }
        self.accepted.close();
        while let Ok(stream) = self.accepted.try_recv() {
            stream.abort();
        }
    }
}

/// Connections of one listener that are established or half open and not accepted. Their buffers are under the budget.
pub(super) const BACKLOG: usize = 512;
