//! The loop of a lane: timers, requests, UDP, device, each in batches, then wait.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use adit_mesh_proto::segment::{OffloadKind, Splitter};
use adit_mesh_proto::{Incoming, Mesh, Outgoing, PeerId, PublicKey, Transmit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::device::Device;
use crate::health::Health;
use crate::lane::{Control, Controls, EventSink, LaneSnapshot};
use crate::tun::READ_LEN;
use crate::udp::{Receiver, Socket};

/// Counters of a lane's device and socket.
#[derive(Debug, Clone, Default)]
pub struct IoStatistics {
    /// Calls that sent datagrams.
    pub sends: u64,
    /// Of these, trains of more than one datagram.
    pub trains: u64,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Batches received: coalesced datagrams count as one.
    pub batches: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
    /// Packets and super-packets read from the device.
    pub device_reads: u64,
    /// Packets and super-packets written to it.
    pub device_writes: u64,
    /// Datagrams dropped because the send buffer stayed full.
    pub send_buffer_full: u64,
    /// Datagrams that the kernel refused to send: no route, firewall, …
    pub send_refused: u64,
    /// Packets that the device refused.
    pub device_refused: u64,
    /// Packets from the device whose offload made no sense.
    pub device_malformed: u64,
    /// Receive calls that failed.
    pub receive_failed: u64,
    /// How often trains to a path were given up because the kernel refused them or because they got lost.
    pub train_steps_down: u64,
    /// Paths to which single datagrams are sent now.
    pub paths_without_trains: u64,
    /// How often the device refused a super-packet, which was then written packet by packet.
    pub device_steps_down: u64,
}

impl IoStatistics {
    /// Drops by reason.
    #[must_use]
    pub fn drops(&self) -> [(&'static str, u64); 4] {
        [
            ("send_buffer_full", self.send_buffer_full),
            ("send_refused", self.send_refused),
            ("device_refused", self.device_refused),
            ("device_malformed", self.device_malformed),
        ]
    }

    /// Everything else that only grows, by name.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, u64); 10] {
        [
            ("sends", self.sends),
            ("trains", self.trains),
            ("sent_datagrams", self.sent_datagrams),
            ("batches", self.batches),
            ("received_datagrams", self.received_datagrams),
            ("device_reads", self.device_reads),
            ("device_writes", self.device_writes),
            ("receive_failed", self.receive_failed),
            ("train_steps_down", self.train_steps_down),
            ("device_steps_down", self.device_steps_down),
        ]
    }
}

/// Everything that a lane's thread owns.
pub(crate) struct Pump<D> {
    mesh: Mesh,
    device: D,
    socket: Socket,
    controls: Controls,
    events: EventSink,
    health: Health,
    receiver: Receiver,
    /// What the device is read into; longer than a packet, so that the engine can pad in place.
    buffer: Vec<u8>,
    ids: HashMap<PublicKey, PeerId>,
    /// Datagrams handled since the engine's packets were last drained.
    undelivered: usize,
    statistics: IoStatistics,
    /// After a failed receive: when to look at the socket again, lest an error that stays makes the
    /// loop spin.
    socket_rests_until: Option<Instant>,
}

/// Why the loop ends.
enum Ended {
    Asked,
    DeviceGone(io::Error),
}

impl<D: Device> Pump<D> {
    pub(crate) fn new(mesh: Mesh, device: D, socket: Socket, controls: Controls, events: EventSink) -> Self {
        let health = Health::new(socket.takes_trains());
        let ids = ids(&mesh);
        Self {
            mesh,
            device,
            socket,
            controls,
            events,
            health,
            receiver: Receiver::default(),
            buffer: vec![0; READ_LEN + PADDING_MAX],
            ids,
            undelivered: 0,
            statistics: IoStatistics::default(),
            socket_rests_until: None,
        }
    }

    /// Runs until asked to stop or until the device is gone.
    pub(crate) fn run(mut self) {
        match self.turns() {
            Ended::Asked => tracing::debug!("lane stopped"),
            Ended::DeviceGone(error) => tracing::error!(%error, "the mesh's device is gone"),
        }
    }

    fn turns(&mut self) -> Ended {
        loop {
            let now = Instant::now();
            if self.obey(now) {
                return Ended::Asked;
            }
            if self.mesh.poll_timeout().is_some_and(|at| at <= now) {
                self.mesh.handle_timeout(now);
                self.drain(now);
            }
            let received = self.receive(now);
            let read = match self.read_device(now) {
                Ok(read) => read,
                Err(error) => return Ended::DeviceGone(error),
            };
            if !received && !read {
                self.wait(now);
            }
        }
    }

    /// Does what the handles ask; says whether to stop.
    fn obey(&mut self, now: Instant) -> bool {
        while let Ok(request) = self.controls.requests.try_recv() {
            match request {
                Control::Stop => return true,
                Control::Reconfigure(config) => {
                    self.mesh.reconfigure(*config, now);
                    self.ids = ids(&self.mesh);
                }
                Control::SetEndpoint(key, remote) => {
                    if let Some(&id) = self.ids.get(&key) {
                        self.mesh.set_endpoint(id, remote, now);
                    }
                }
                Control::Initiate(key) => {
                    if let Some(&id) = self.ids.get(&key) {
                        self.mesh.initiate(id, now);
                    }
                }
                Control::Snapshot(answer) => {
                    // An asker that has gone away is no reason to stop.
                    let _ = answer.try_send(self.snapshot(now));
                }
            }
            self.drain(now);
        }
        false
    }

    fn snapshot(&mut self, now: Instant) -> LaneSnapshot {
        let mut io = self.statistics.clone();
        (io.train_steps_down, io.paths_without_trains) = self.health.counts(now);
        LaneSnapshot { peers: self.mesh.peers().collect(), mesh: self.mesh.statistics(), io }
    }

    /// Takes one batch of system calls' worth of datagrams; says whether there was any.
    fn receive(&mut self, now: Instant) -> bool {
        if self.socket_rests_until.is_some_and(|until| until > now) {
            return false;
        }
        self.socket_rests_until = None;
        let batches = match self.receiver.receive(&self.socket) {
            Ok(batches) => batches,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                tracing::debug!(%error, "receiving failed");
                self.statistics.receive_failed += 1;
                self.socket_rests_until = Some(now + ERROR_REST);
                return false;
            }
        };
        for index in 0..batches {
            let datagrams = self.receiver.datagrams(index);
            self.statistics.batches += 1;
            self.statistics.received_datagrams += datagrams as u64;
            if self.undelivered + datagrams > UNDELIVERED_MAX {
                self.undelivered = 0;
                deliver(&mut self.mesh, &mut self.device, &mut self.statistics, now);
            }
            self.undelivered += datagrams;
            let (path, bytes, stride) = self.receiver.batch(index);
            self.mesh.handle_datagram(path, bytes, stride, now);
        }
        self.drain(now);
        true
    }

    /// Takes packets from the device until it has none or there is a train's worth; says whether there
    /// was any.
    fn read_device(&mut self, now: Instant) -> io::Result<bool> {
        let mut bytes = 0;
        let mut reads = 0;
        while reads < READS_MAX && bytes < READ_BYTES_MAX {
            match self.device.read(&mut self.buffer, now) {
                Ok((offload, range)) => {
                    reads += 1;
                    bytes += range.len();
                    let contents = &mut self.buffer[range];
                    self.mesh.handle_packet(Outgoing { contents, offload }, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.statistics.device_malformed += 1;
                    reads += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if reads > 0 {
            self.statistics.device_reads += reads;
            self.drain(now);
        }
        Ok(reads > 0)
    }

    /// Hands on everything that the engine has made.
    fn drain(&mut self, now: Instant) {
        while let Some(transmit) = self.mesh.poll_transmit() {
            send(&self.socket, &mut self.health, &mut self.statistics, &transmit, now);
        }
        self.undelivered = 0;
        deliver(&mut self.mesh, &mut self.device, &mut self.statistics, now);
        while let Some(event) = self.mesh.poll_event() {
            (self.events)(event);
        }
        for (path, mtu) in self.health.drain_path_mtus() {
            self.mesh.handle_path_mtu(path, mtu, now);
        }
    }

    fn wait(&self, now: Instant) {
        let deadlines = [self.mesh.poll_timeout(), self.device.poll_timeout(), self.socket_rests_until];
        let until = deadlines.into_iter().flatten().min();
        let timeout = until.map(|at| timespec(at.saturating_duration_since(now)));
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut descriptors = smallvec::SmallVec::<[PollFd<'_>; 3]>::new();
        descriptors.push(watch(self.controls.wake.as_fd()));
        if self.socket_rests_until.is_none() {
            descriptors.push(watch(self.socket.as_fd()));
        }
        descriptors.extend(self.device.readiness().map(watch));
        // An error here (a signal) only means one more turn.
        let _ = poll(&mut descriptors, timeout.as_ref());
        if !descriptors[0].revents().is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.controls.wake, &mut count);
        }
    }
}

fn ids(mesh: &Mesh) -> HashMap<PublicKey, PeerId> {
    mesh.peers().map(|peer| (peer.public_key, peer.id)).collect()
}

/// Sends a train as the path takes it: in one call, or datagram by datagram.
fn send(
    socket: &Socket,
    health: &mut Health,
    statistics: &mut IoStatistics,
    transmit: &Transmit<'_>,
    now: Instant,
) {
    let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
    let datagrams = transmit.contents.len().div_ceil(size) as u64;
    if datagrams <= 1 || health.takes_trains(transmit.path.remote, now) {
        match send_once(socket, statistics, transmit, datagrams) {
            Ok(()) => {
                if datagrams > 1 {
                    statistics.trains += 1;
                }
                return;
            }
            Err(error) if datagrams > 1 && is_refusal_of_trains(&error) => {
                health.refused(transmit.path, size, &error, now);
            }
            Err(error) => return count_refusal(health, statistics, transmit, datagrams, &error),
        }
    }
    for datagram in transmit.contents.chunks(size) {
        let single = Transmit { path: transmit.path, segment_size: None, contents: datagram };
        if let Err(error) = send_once(socket, statistics, &single, 1) {
            count_refusal(health, statistics, &single, 1, &error);
        }
    }
}

fn count_refusal(
    health: &mut Health,
    statistics: &mut IoStatistics,
    transmit: &Transmit<'_>,
    datagrams: u64,
    error: &io::Error,
) {
    if error.kind() == io::ErrorKind::WouldBlock {
        statistics.send_buffer_full += datagrams;
        return;
    }
    if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) {
        health.too_long(transmit.path, transmit.contents.len());
    }
    statistics.send_refused += datagrams;
    tracing::trace!(remote = %transmit.path.remote, %error, "not sent");
}

/// One call; waits a little for room in the send buffer, because TCP inside the tunnel would take the
/// drop for congestion of the path.
fn send_once(
    socket: &Socket,
    statistics: &mut IoStatistics,
    transmit: &Transmit<'_>,
    datagrams: u64,
) -> io::Result<()> {
    let mut outcome = socket.send(transmit);
    if outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
        let mut descriptors = [PollFd::new(socket, PollFlags::OUT)];
        let _ = poll(&mut descriptors, Some(&timespec(SEND_WAIT)));
        outcome = socket.send(transmit);
    }
    if outcome.is_ok() {
        statistics.sends += 1;
        statistics.sent_datagrams += datagrams;
    }
    outcome
}

/// What drivers and kernels answer to a train that they cannot send (EIO: no checksum offload; EINVAL
/// and EMSGSIZE: a segment longer than the link's MTU, which may go out alone as fragments).
fn is_refusal_of_trains(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::IO, Errno::INVAL, Errno::MSGSIZE, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Writes to the device what the engine has decrypted.
fn deliver<D: Device>(mesh: &mut Mesh, device: &mut D, statistics: &mut IoStatistics, now: Instant) {
    while let Some(mut packet) = mesh.poll_packet() {
        statistics.device_writes += 1;
        match device.write(&packet, now) {
            Ok(()) => {}
            Err(error)
                if error.kind() == io::ErrorKind::InvalidInput
                    && packet.offload.kind != OffloadKind::None =>
            {
                statistics.device_steps_down += 1;
                deliver_singly(&mut packet, device, statistics, now);
            }
            Err(error) => {
                statistics.device_refused += 1;
                tracing::trace!(%error, "the device refused a packet");
            }
        }
    }
}

/// A kernel that takes no super-packet of this kind still takes its packets.
fn deliver_singly<D: Device>(
    packet: &mut Incoming<'_>,
    device: &mut D,
    statistics: &mut IoStatistics,
    now: Instant,
) {
    let peer = packet.peer;
    let Ok(mut splitter) = Splitter::new(packet.contents, packet.offload) else {
        statistics.device_refused += 1;
        return;
    };
    while let Some(contents) = splitter.next() {
        let offload = adit_mesh_proto::segment::Offload::NONE;
        if device.write(&Incoming { peer, offload, contents }, now).is_err() {
            statistics.device_refused += 1;
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}

/// The engine pads packets to 16 bytes and seals them with 16 more.
const PADDING_MAX: usize = 64;
/// Packets read before trains go out: enough to fill one with small packets, few enough to keep
/// received datagrams from waiting.
const READS_MAX: u64 = 64;
/// Bytes after which trains go out at once: one super-packet, whose train is still in the cache.
const READ_BYTES_MAX: usize = 48 * 1024;
/// Datagrams between two drains; the engine has room for twice as many packets.
const UNDELIVERED_MAX: usize = 64;
/// How long to wait for room in the send buffer before a drop: it holds 8 ms at 8 Gbit/s.
const SEND_WAIT: Duration = Duration::from_millis(5);
/// Pause after a failed receive.
const ERROR_REST: Duration = Duration::from_millis(100);
