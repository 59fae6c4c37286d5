//! A lane: one thread that owns one engine, one device and one socket, and the handle to steer it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use adit_mesh_proto::{Config, Event, LanePeer, Mesh, MeshStatistics, PeerSnapshot, PublicKey};
use rustix::event::{EventfdFlags, eventfd};

use crate::branch::{Branch, Outbox};
use crate::device::Device;
use crate::fleet::{Fleet, Line, Sibling};
use crate::pump::Pump;
use crate::statistics::IoStatistics;
use crate::udp::Socket;

/// Steers a node's lanes from other threads. Dropping the last handle stops them.
#[derive(Debug, Clone)]
pub struct LaneHandle {
    inner: Arc<Inner>,
    /// The lanes after the first.
    further: Vec<Arc<Inner>>,
}

/// As [`LaneHandle`], for those that the lane does not live for.
#[derive(Debug, Clone)]
pub(crate) struct WeakLane(Weak<Inner>, Vec<Weak<Inner>>);

/// What a lane's thread owns from the start.
pub(crate) struct Gear<D> {
    pub(crate) mesh: Mesh,
    pub(crate) device: D,
    pub(crate) socket: Socket,
}

/// What can be seen of a lane.
#[derive(Debug, Clone)]
pub struct LaneSnapshot {
    /// All peers.
    pub peers: Vec<PeerSnapshot>,
    /// Counters of the engine.
    pub mesh: MeshStatistics,
    /// Counters of device and socket.
    pub io: IoStatistics,
    /// What each lane carries, the first first; all else is of all lanes together.
    pub lanes: Vec<LaneLoad>,
}

/// What one lane carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneLoad {
    /// Peers with a session on it.
    pub sessions: usize,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
}

/// Called by the lane's thread for each [`Event`]; must not block.
pub type EventSink = Box<dyn FnMut(Event) + Send>;

/// The lane's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mesh's lane has ended")]
pub struct LaneEnded;

/// Why a lane has not become another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReconfigureError {
    /// It has ended.
    #[error(transparent)]
    Ended(#[from] LaneEnded),
    /// It has not said so in time, and may still do it.
    #[error("the mesh's lane has not answered within 10 s, and may still change")]
    Late,
}

/// What a handle can ask for.
pub(crate) enum Control {
    /// Answered when the new peers are in force.
    Reconfigure(Box<Config>, SyncSender<()>),
    SetEndpoint(PublicKey, SocketAddr),
    Initiate(PublicKey),
    /// A further lane tells the first whether it carries data to a peer.
    NoteLane {
        identity: PublicKey,
        lane: usize,
        up: bool,
    },
    /// Or that a peer was heard from another address.
    AskAt(PublicKey, IpAddr),
    /// The first lane tells a further one what a peer is called there.
    Join(LanePeer),
    /// Or at which address it is now.
    Relocate(PublicKey, IpAddr),
    /// Or that it is not there any more.
    Leave(PublicKey),
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
    line: Line,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts a node's lanes, each on a thread of its own; `events` hears of the first.
///
/// # Errors
/// No thread or no descriptor left.
pub(crate) fn spawn<D: Device + 'static>(
    first: Gear<D>,
    further: Vec<(Gear<Branch>, Outbox)>,
    events: EventSink,
) -> io::Result<LaneHandle> {
    let (line, controls) = connect()?;
    let mut siblings = Vec::new();
    let mut handles = Vec::new();
    for (number, (gear, outbox)) in (1..).zip(further) {
        let (own_line, own_controls) = connect()?;
        siblings.push(Sibling { line: own_line.clone(), outbox });
        let fleet = Fleet::further(number, line.clone());
        handles.push(start(number, Pump::new(gear, own_controls, fleet, Box::new(|_| {})), own_line)?);
    }
    let pump = Pump::new(first, controls, Fleet::First(siblings), events);
    Ok(LaneHandle { inner: start(0, pump, line)?, further: handles })
}

fn connect() -> io::Result<(Line, Controls)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (requests, receiver) = sync_channel(REQUESTS_MAX);
    Ok((Line { requests, wake: Arc::clone(&wake) }, Controls { requests: receiver, wake }))
}

fn start<D: Device + 'static>(number: usize, pump: Pump<D>, line: Line) -> io::Result<Arc<Inner>> {
    let thread = std::thread::Builder::new().name(format!("mesh-lane-{number}"));
    let thread = thread.spawn(move || pump.run())?;
    Ok(Arc::new(Inner { line, thread: Mutex::new(Some(thread)) }))
}

impl LaneHandle {
    /// Becomes what `config` says; untouched peers keep their sessions. Blocks until no packet is taken by the old one any
    /// more, at most 10 s.
    ///
    /// # Errors
    /// [`ReconfigureError`]; lanes before the one at fault have changed, or will.
    pub fn reconfigure(&self, config: Config) -> Result<(), ReconfigureError> {
        let until = Instant::now() + RECONFIGURE_WAIT;
        let mut answers = Vec::new();
        for lane in &self.further {
            // One that has ended takes no packets of anybody.
            match lane.reconfigure(config.clone(), until) {
                Err(ReconfigureError::Ended(_)) => {}
                answer => answers.push(answer?),
            }
        }
        answers.push(self.inner.reconfigure(config, until)?);
        for done in answers {
            match done.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return Err(ReconfigureError::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(LaneEnded.into()),
            }
        }
        Ok(())
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
        let mut whole = self.inner.snapshot()?;
        whole.lanes.push(whole.load());
        let further: Vec<_> = self.further.iter().filter_map(|lane| lane.snapshot().ok()).collect();
        whole.absorb(&further);
        Ok(whole)
    }

    /// A handle that does not keep the lane alive.
    pub(crate) fn downgrade(&self) -> WeakLane {
        WeakLane(Arc::downgrade(&self.inner), self.further.iter().map(Arc::downgrade).collect())
    }

    /// Whether the thread has ended, because it was asked to or because its device is gone.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends all lanes, however many handles there are, and waits until device and sockets are closed.
    pub fn stop(&self) {
        self.further.iter().chain([&self.inner]).for_each(|lane| lane.stop());
    }
}

impl LaneSnapshot {
    fn load(&self) -> LaneLoad {
        LaneLoad {
            sessions: self.mesh.sessions,
            sent_datagrams: self.io.sent_datagrams,
            received_datagrams: self.io.received_datagrams,
        }
    }

    /// Adds what further lanes count.
    fn absorb(&mut self, further: &[Self]) {
        if further.is_empty() {
            return;
        }
        let places = self.peers.iter().enumerate().map(|(place, peer)| (peer.public_key, place));
        let places: HashMap<PublicKey, usize> = places.collect();
        for lane in further {
            self.lanes.push(lane.load());
            self.mesh.absorb(&lane.mesh);
            self.io.absorb(&lane.io);
            for peer in &lane.peers {
                if let Some(place) = places.get(&peer.public_key) {
                    self.peers[*place].absorb(peer);
                }
            }
        }
    }
}

impl WeakLane {
    /// The lane, if it is still held elsewhere.
    pub(crate) fn upgrade(&self) -> Option<LaneHandle> {
        let further = self.1.iter().filter_map(Weak::upgrade).collect();
        self.0.upgrade().map(|inner| LaneHandle { inner, further })
    }
}

impl Inner {
    fn request(&self, control: Control) -> Result<(), LaneEnded> {
        // A full queue makes the caller wait; a lane that has ended has dropped its end.
        self.line.requests.send(control).map_err(|_| LaneEnded)?;
        // The counter cannot overflow before the lane reads it; if it could, it would be awake.
        let _ = rustix::io::write(&self.line.wake, &1_u64.to_ne_bytes());
        Ok(())
    }

    /// As [`Self::request`], for those that cannot wait for ever.
    fn request_until(&self, mut control: Control, until: Instant) -> Result<(), ReconfigureError> {
        loop {
            control = match self.line.requests.try_send(control) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return Err(LaneEnded.into()),
                Err(TrySendError::Full(_)) if Instant::now() >= until => return Err(ReconfigureError::Late),
                Err(TrySendError::Full(control)) => control,
            };
            std::thread::sleep(FULL_PAUSE);
        }
        let _ = rustix::io::write(&self.line.wake, &1_u64.to_ne_bytes());
        Ok(())
    }

    /// What comes of it says when it is done.
    fn reconfigure(&self, config: Config, until: Instant) -> Result<Receiver<()>, ReconfigureError> {
        let (sender, done) = sync_channel(1);
        self.request_until(Control::Reconfigure(Box::new(config), sender), until)?;
        Ok(done)
    }

    fn snapshot(&self) -> Result<LaneSnapshot, LaneEnded> {
        let (sender, receiver) = sync_channel(1);
        let until = Instant::now() + SNAPSHOT_WAIT;
        self.request_until(Control::Snapshot(sender), until).map_err(|_| LaneEnded)?;
        receiver.recv_timeout(until.saturating_duration_since(Instant::now())).map_err(|error| match error {
            RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected => LaneEnded,
        })
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
/// Between two looks at a queue that is full: the lane empties all of it in one turn.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// How long a snapshot may take: the lane answers between two batches, which take well under 1 ms each.
pub const SNAPSHOT_WAIT: Duration = Duration::from_secs(1);
