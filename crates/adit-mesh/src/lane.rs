//! A lane: one thread that owns one engine, one device and one socket, and the handle to steer it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use adit_mesh_proto::{Config, Event, Mesh, MeshStatistics, PeerSnapshot, PublicKey};
use rustix::event::{EventfdFlags, eventfd};

use crate::device::Device;
use crate::pump::Pump;
use crate::statistics::IoStatistics;
use crate::udp::Socket;

/// Steers a lane from other threads. Dropping the last handle stops the lane.
#[derive(Debug, Clone)]
pub struct LaneHandle {
    inner: Arc<Inner>,
}

/// As [`LaneHandle`], for those that the lane does not live for.
#[derive(Debug, Clone)]
pub(crate) struct WeakLane(Weak<Inner>);

/// What can be seen of a lane.
#[derive(Debug, Clone)]
pub struct LaneSnapshot {
    /// All peers.
    pub peers: Vec<PeerSnapshot>,
    /// Counters of the engine.
    pub mesh: MeshStatistics,
    /// Counters of device and socket.
    pub io: IoStatistics,
}

/// Called by the lane's thread for each [`Event`]; must not block.
pub type EventSink = Box<dyn FnMut(Event) + Send>;

/// The lane's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mesh's lane has ended")]
pub struct LaneEnded;

/// What a handle can ask for.
pub(crate) enum Control {
    /// Answered when the new peers are in force.
    Reconfigure(Box<Config>, SyncSender<()>),
    SetEndpoint(PublicKey, SocketAddr),
    Initiate(PublicKey),
    Snapshot(SyncSender<LaneSnapshot>),
    Stop,
}

/// The lane's end of its handles: what was asked, and the descriptor that wakes it.
pub(crate) struct Controls {
    pub(crate) requests: Receiver<Control>,
    pub(crate) wake: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Inner {
    requests: SyncSender<Control>,
    wake: Arc<OwnedFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts a lane on a thread of its own.
///
/// # Errors
/// No thread or no descriptor left.
pub fn spawn<D: Device + 'static>(
    mesh: Mesh,
    device: D,
    socket: Socket,
    events: EventSink,
) -> io::Result<LaneHandle> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (requests, receiver) = sync_channel(REQUESTS_MAX);
    let controls = Controls { requests: receiver, wake: Arc::clone(&wake) };
    let pump = Pump::new(mesh, device, socket, controls, events);
    let thread = std::thread::Builder::new().name("mesh-lane-0".to_owned()).spawn(move || pump.run())?;
    Ok(LaneHandle { inner: Arc::new(Inner { requests, wake, thread: Mutex::new(Some(thread)) }) })
}

impl LaneHandle {
    /// Becomes what `config` says; untouched peers keep their sessions. Blocks until no packet is taken by the old one any
    /// more, at most 10 s.
    ///
    /// # Errors
    /// [`LaneEnded`], also for a lane that does not answer.
    pub fn reconfigure(&self, config: Config) -> Result<(), LaneEnded> {
        let (sender, done) = sync_channel(1);
        self.inner.request(Control::Reconfigure(Box::new(config), sender))?;
        done.recv_timeout(RECONFIGURE_WAIT).map_err(|error| match error {
            RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected => LaneEnded,
        })
    }

    /// Sends to `remote` from now on what is for the peer with this key.
    ///
    /// # Errors
    /// [`LaneEnded`].
    pub fn set_endpoint(&self, peer: PublicKey, remote: SocketAddr) -> Result<(), LaneEnded> {
        self.inner.request(Control::SetEndpoint(peer, remote))
    }

    /// Starts a handshake with a peer that has no session.
    ///
    /// # Errors
    /// [`LaneEnded`].
    pub fn initiate(&self, peer: PublicKey) -> Result<(), LaneEnded> {
        self.inner.request(Control::Initiate(peer))
    }

    /// What the lane looks like now. Blocks for as long as the lane needs for one turn of its loop, at
    /// most [`SNAPSHOT_WAIT`].
    ///
    /// # Errors
    /// [`LaneEnded`], also for a lane that does not answer.
    pub fn snapshot(&self) -> Result<LaneSnapshot, LaneEnded> {
        let (sender, receiver) = sync_channel(1);
        self.inner.request(Control::Snapshot(sender))?;
        receiver.recv_timeout(SNAPSHOT_WAIT).map_err(|error| match error {
            RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected => LaneEnded,
        })
    }

    /// A handle that does not keep the lane alive.
    pub(crate) fn downgrade(&self) -> WeakLane {
        WeakLane(Arc::downgrade(&self.inner))
    }

    /// Whether the thread has ended, because it was asked to or because its device is gone.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the lane, however many handles there are, and waits until device and socket are closed.
    pub fn stop(&self) {
        self.inner.stop();
    }
}

impl WeakLane {
    /// The lane, if it is still held elsewhere.
    pub(crate) fn upgrade(&self) -> Option<LaneHandle> {
        self.0.upgrade().map(|inner| LaneHandle { inner })
    }
}

impl Inner {
    fn request(&self, control: Control) -> Result<(), LaneEnded> {
        // A full queue makes the caller wait; a lane that has ended has dropped its end.
        self.requests.send(control).map_err(|_| LaneEnded)?;
        // The counter cannot overflow before the lane reads it; if it could, it would be awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        Ok(())
    }

    fn stop(&self) {
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let _ = self.request(Control::Stop);
        // A handle that is dropped by the lane's own thread (in an event) cannot wait for it.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Requests that wait for the lane's next turn; further callers wait. Configurations are the largest, and
/// 16 of 10,000 peers are some 32 MiB.
const REQUESTS_MAX: usize = 16;
/// How long a lane may take to become another: each of 10,000 new peers costs some 0.1 ms.
const RECONFIGURE_WAIT: Duration = Duration::from_secs(10);
/// How long a snapshot may take: the lane answers between two batches, which take well under 1 ms each.
pub const SNAPSHOT_WAIT: Duration = Duration::from_secs(1);
