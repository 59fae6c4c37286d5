//! What the lane's thread and the handles have in common.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc, oneshot};

use super::budget::{Budget, BufferClass};
use super::drops::{DropCounters, StackDrop};
use super::packet::FourTuple;
use super::stream::Stream;
use super::udp::UdpPort;
use super::{ConnectError, Limits};

/// Everything that both sides touch.
#[derive(Debug)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
    ports: Mutex<Ports>,
    place: Mutex<Arc<Place>>,
    pub(super) limits: Limits,
    pub(super) budget: Arc<Budget>,
    /// Of datagrams that have not been read by the lane yet.
    datagram_bytes: AtomicUsize,
    pub(super) drops: DropCounters,
    pub(super) gauges: Gauges,
}

/// Counters and gauges that the lane keeps.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub(super) connections: AtomicU64,
    pub(super) half_open: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) connected: AtomicU64,
}

/// Where this node is in the mesh.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) addresses: Vec<IpNet>,
    pub(super) mtu: u16,
}

/// What the handles want of the lane.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Connections whose stream was read from, written to or dropped; each at most once.
    pub(super) touched: Vec<FourTuple>,
    pub(super) connects: Vec<Connect>,
    pub(super) datagrams: Vec<Vec<u8>>,
    pub(super) place: Option<Arc<Place>>,
    /// The lane waits and has to be woken.
    asleep: bool,
    /// The lane has ended.
    closed: bool,
}

/// An outgoing connection to be.
#[derive(Debug)]
pub(super) struct Connect {
    pub(super) remote: SocketAddr,
    pub(super) class: BufferClass,
    pub(super) answer: oneshot::Sender<Result<Stream, ConnectError>>,
}

/// Who listens where.
#[derive(Debug, Default)]
pub(super) struct Ports {
    pub(super) tcp: HashMap<Port, TcpPort>,
    pub(super) udp: HashMap<Port, Arc<UdpPort>>,
}

/// A port on one address of ours, or on all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Port {
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

/// A listener's end in the table.
#[derive(Debug, Clone)]
pub(super) struct TcpPort {
    pub(super) class: BufferClass,
    pub(super) accepted: mpsc::Sender<Stream>,
}

impl Port {
    /// The port of a socket address; the unspecified address of either family stands for all of ours.
    pub(super) fn of(address: SocketAddr) -> Self {
        Self { address: Some(address.ip()).filter(|ip| !ip.is_unspecified()), port: address.port() }
    }
}

impl Place {
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }

    /// Our address towards `remote`: the one whose network it is in, else the first of its family.
    pub(super) fn local_for(&self, remote: IpAddr) -> Option<IpAddr> {
        let of_family = || self.addresses.iter().filter(|net| net.addr().is_ipv4() == remote.is_ipv4());
        let near = of_family().find(|net| net.contains(&remote));
        near.or_else(|| of_family().next()).map(IpNet::addr)
    }
}

impl Shared {
    pub(super) fn new(place: Place, limits: Limits) -> std::io::Result<Self> {
        Ok(Self {
            inbox: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            ports: Mutex::default(),
            place: Mutex::new(Arc::new(place)),
            budget: Arc::new(Budget::new(limits.buffer_bytes_max)),
            limits,
            datagram_bytes: AtomicUsize::new(0),
            drops: DropCounters::default(),
            gauges: Gauges::default(),
        })
    }

    pub(super) fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    pub(super) fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn place(&self) -> Arc<Place> {
        Arc::clone(&self.place.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the lane look after a connection. Callers see to it that each is in the list once.
    pub(super) fn touch(&self, tuple: FourTuple) {
        self.post(|inbox| inbox.touched.push(tuple));
    }

    /// Asks for an outgoing connection.
    pub(super) fn connect(&self, connect: Connect) -> Result<(), ConnectError> {
        let full = self.post(|inbox| {
            let full = inbox.connects.len() >= CONNECTS_MAX;
            if !full {
                inbox.connects.push(connect);
            }
            full
        });
        match full {
            Some(false) => Ok(()),
            Some(true) => {
                self.drops.count(StackDrop::ConnectsFull);
                Err(ConnectError::Refused(StackDrop::ConnectsFull))
            }
            None => Err(ConnectError::Ended),
        }
    }

    /// Queues a packet of a UDP socket; says whether there was room.
    pub(super) fn send_packet(&self, packet: Vec<u8>) -> Result<bool, ConnectError> {
        let queued = self.post(|inbox| {
            // Only here does it grow, and under the lock.
            let room = self.datagram_bytes.load(Ordering::Relaxed) + packet.len() <= DATAGRAM_BYTES_MAX;
            if room {
                self.datagram_bytes.fetch_add(packet.len(), Ordering::Relaxed);
                inbox.datagrams.push(packet);
            }
            room
        });
        queued.ok_or(ConnectError::Ended)
    }

    /// A datagram of `len` bytes waits no longer.
    pub(super) fn release_packet(&self, len: usize) {
        self.datagram_bytes.fetch_sub(len, Ordering::Relaxed);
    }

    /// Has other addresses or another MTU from now on.
    pub(super) fn relocate(&self, place: Place) {
        let place = Arc::new(place);
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&place);
        self.post(|inbox| inbox.place = Some(place));
    }

    /// Swaps what has come in with `taken`, which is empty; says whether there was anything. If not and `rest` is
    /// wished, the next to come wakes the lane.
    pub(super) fn collect(&self, taken: &mut Inbox, rest: bool) -> bool {
        let mut inbox = self.inbox();
        if taken.asleep && !inbox.asleep {
            // Woken: taken back before the next sleep begins, under the same lock, so that no wake-up is lost.
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        let is_empty = inbox.touched.is_empty()
            && inbox.connects.is_empty()
            && inbox.datagrams.is_empty()
            && inbox.place.is_none();
        inbox.asleep = is_empty && rest;
        taken.asleep = inbox.asleep;
        if is_empty {
            return false;
        }
        std::mem::swap(&mut inbox.touched, &mut taken.touched);
        std::mem::swap(&mut inbox.connects, &mut taken.connects);
        std::mem::swap(&mut inbox.datagrams, &mut taken.datagrams);
        taken.place = inbox.place.take();
        true
    }

    /// The lane has ended: nobody is told anything any more, and whoever listens learns it.
    pub(super) fn close(&self) {
        let mut inbox = self.inbox();
        let connects = std::mem::take(&mut inbox.connects);
        inbox.closed = true;
        drop(inbox);
        for connect in connects {
            // Whoever has gone away meanwhile does not need to know.
            let _ = connect.answer.send(Err(ConnectError::Ended));
        }
        let mut ports = self.ports();
        let (tcp, udp) = (std::mem::take(&mut ports.tcp), std::mem::take(&mut ports.udp));
        drop(ports);
        drop(tcp);
        udp.values().for_each(|port| port.close());
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inbox().closed
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the inbox and wakes the lane if it sleeps; `None` if it has ended. The descriptor is written under the
    /// lock, so that a lane that finds something after having slept knows that it is readable.
    fn post<R>(&self, change: impl FnOnce(&mut Inbox) -> R) -> Option<R> {
        let mut inbox = self.inbox();
        if inbox.closed {
            return None;
        }
        let result = change(&mut inbox);
        if std::mem::take(&mut inbox.asleep) {
            // Only an overflow of the counter could fail, and one write precedes each sleep.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
        Some(result)
    }
}

pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Outgoing connections that wait for the lane's next turn, which takes less than a millisecond.
const CONNECTS_MAX: usize = 1024;
/// Datagrams that wait for the lane to seal them, in bytes.
const DATAGRAM_BYTES_MAX: usize = 4 * 1024 * 1024;
