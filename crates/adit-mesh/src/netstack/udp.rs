//! UDP sockets of the stack.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use adit_mesh_proto::PeerId;

use super::drops::StackDrop;
use super::packet::{FourTuple, udp_packet, udp_payload_max};
use super::shared::{Port, Shared};

/// A UDP socket in the mesh; dropping it closes the port.
#[derive(Debug)]
pub struct UdpSocket {
    shared: Arc<Shared>,
    address: SocketAddr,
    port: Arc<UdpPort>,
}

/// The lane's side of a socket.
#[derive(Debug, Default)]
pub(super) struct UdpPort(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Datagram {
    peer: PeerId,
    remote: SocketAddr,
    local: IpAddr,
    payload: Vec<u8>,
}

impl UdpPort {
    /// Queues what has arrived; says whether there was room.
    pub(super) fn push(&self, peer: PeerId, tuple: &FourTuple, payload: &[u8]) -> bool {
        let mut queue = self.lock();
        let cost = payload.len() + DATAGRAM_OVERHEAD;
        if queue.bytes + cost > RECEIVE_BYTES_MAX {
            return false;
        }
        queue.bytes += cost;
        let payload = payload.to_vec();
        let datagram = Datagram { peer, remote: tuple.remote, local: tuple.local.ip(), payload };
        queue.datagrams.push_back(datagram);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Lets go of what waits from addresses that are another's now; how many datagrams that was.
    pub(super) fn forget_others(&self, owner: &dyn Fn(IpAddr) -> Option<PeerId>) -> usize {
        let mut queue = self.lock();
        let before = queue.datagrams.len();
        queue.datagrams.retain(|datagram| owner(datagram.remote.ip()) == Some(datagram.peer));
        queue.bytes = queue.datagrams.iter().map(|datagram| datagram.payload.len() + DATAGRAM_OVERHEAD).sum();
        before - queue.datagrams.len()
    }

    /// The lane has ended.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UdpSocket {
    pub(super) fn new(shared: Arc<Shared>, address: SocketAddr, port: Arc<UdpPort>) -> Self {
        Self { shared, address, port }
    }

    /// Where it is bound, with the port that was chosen for port 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next datagram, cut to `buf`: its length, its sender, and which of our addresses it was sent to.
    ///
    /// # Errors
    /// `NotConnected` when the lane has ended.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr, IpAddr)> {
        loop {
            std::future::poll_fn(|cx| self.poll_readable(cx)).await;
            match self.try_recv_from(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
    }

    /// Ready when [`Self::try_recv_from`] has something to say; one task at a time is woken.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.port.lock();
        if queue.closed || !queue.datagrams.is_empty() {
            return Poll::Ready(());
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// As [`Self::recv_from`], at once.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, `NotConnected` when the lane has ended.
    pub fn try_recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr, IpAddr)> {
        let mut queue = self.port.lock();
        let Some(datagram) = queue.datagrams.pop_front() else {
            let kind = if queue.closed { io::ErrorKind::NotConnected } else { io::ErrorKind::WouldBlock };
            return Err(kind.into());
        };
        queue.bytes -= datagram.payload.len() + DATAGRAM_OVERHEAD;
        let len = datagram.payload.len().min(buf.len());
        buf[..len].copy_from_slice(&datagram.payload[..len]);
        Ok((len, datagram.remote, datagram.local))
    }

    /// Sends one datagram, from the bound address or else from the one nearest to `remote`.
    ///
    /// # Errors
    /// `InvalidInput` for what is longer than a packet of the mesh, `WouldBlock` if the queue is full (the datagram is
    /// dropped and counted), `AddrNotAvailable` without an address of that family, `NotConnected` when the lane has
    /// ended.
    pub fn send_to(&self, payload: &[u8], remote: SocketAddr) -> io::Result<usize> {
        let place = self.shared.place();
        if payload.len() > udp_payload_max(remote.ip(), place.mtu) {
            self.shared.drops.count(StackDrop::UdpTooLong);
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bound = Port::of(self.address).address.filter(|ip| ip.is_ipv4() == remote.is_ipv4());
        let Some(local) = bound.or_else(|| place.local_for(remote.ip())) else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let tuple = FourTuple { local: SocketAddr::new(local, self.address.port()), remote };
        match self.shared.send_packet(udp_packet(&tuple, payload)) {
            Ok(true) => Ok(payload.len()),
            Ok(false) => {
                self.shared.drops.count(StackDrop::UdpSendFull);
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        let port = Port::of(self.address);
        self.shared.ports().udp.remove(&port);
    }
}

/// What may wait in one socket, bookkeeping included: a second of 8 Mbit/s.
const RECEIVE_BYTES_MAX: usize = 1024 * 1024;
/// Counted for each datagram, so that empty ones are bounded, too.
const DATAGRAM_OVERHEAD: usize = 128;
