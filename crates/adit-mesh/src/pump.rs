//! The loop of a lane: timers, requests, UDP, device, each in batches, then wait.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_mesh_proto::segment::{OffloadKind, Splitter};
use adit_mesh_proto::{Event, Incoming, Mesh, Outgoing, PeerId, PublicKey};
use rustix::event::{PollFd, PollFlags, poll};

use crate::coalescing::{Change, Coalescing};
use crate::device::Device;
use crate::fleet::Fleet;
use crate::health::Health;
use crate::lane::{Control, Controls, EventSink, Gear, LaneSnapshot};
use crate::statistics::IoStatistics;
use crate::transmit::{send, timespec};
use crate::tun::READ_LEN;
use crate::udp::{Receiver, Socket};

/// Everything that a lane's thread owns.
pub(crate) struct Pump<D> {
    mesh: Mesh,
    device: D,
    socket: Socket,
    controls: Controls,
    fleet: Fleet,
    events: EventSink,
    health: Health,
    coalescing: Coalescing,
    receiver: Receiver,
    /// What the device is read into; longer than a packet, so that the engine can pad in place.
    buffer: Vec<u8>,
    roll: Roll,
    /// Datagrams handled since the engine's packets were last drained.
    undelivered: usize,
    statistics: IoStatistics,
    /// After a failed receive: when to look at the socket again, lest an error that stays makes the
    /// loop spin.
    socket_rests_until: Option<Instant>,
}

/// The peers by key and by place.
#[derive(Default)]
struct Roll {
    ids: HashMap<PublicKey, PeerId>,
    names: HashMap<PeerId, Arc<str>>,
}

/// Why the loop ends.
enum Ended {
    Asked,
    DeviceGone(io::Error),
}

impl<D: Device> Pump<D> {
    pub(crate) fn new(gear: Gear<D>, controls: Controls, fleet: Fleet, events: EventSink) -> Self {
        let Gear { mesh, device, socket } = gear;
        let health = Health::new(socket.takes_trains());
        let roll = Roll::of(&mesh);
        Self {
            mesh,
            device,
            socket,
            controls,
            fleet,
            events,
            health,
            coalescing: Coalescing::new(Instant::now()),
            receiver: Receiver::default(),
            buffer: vec![0; READ_LEN + PADDING_MAX],
            roll,
            undelivered: 0,
            statistics: IoStatistics::default(),
            socket_rests_until: None,
        }
    }

    /// Runs until asked to stop or until the device is gone.
    pub(crate) fn run(mut self) {
        let number = self.fleet.number();
        let _span = (number > 0).then(|| tracing::info_span!("lane", number).entered());
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
        self.fleet.repeat();
        while let Ok(request) = self.controls.requests.try_recv() {
            match request {
                Control::Stop => return true,
                Control::Reconfigure(config, done) => {
                    self.mesh.reconfigure(*config, now);
                    self.roll = Roll::of(&self.mesh);
                    self.health.forget_peers();
                    self.device.forget_others(&|address| self.mesh.peer_by_address(address));
                    let _ = done.try_send(());
                }
                Control::SetEndpoint(key, remote) => {
                    if let Some(&id) = self.roll.ids.get(&key) {
                        self.mesh.set_endpoint(id, remote, now);
                        self.fleet.relocate(key, remote.ip());
                    }
                }
                Control::Initiate(key) => {
                    if let Some(&id) = self.roll.ids.get(&key) {
                        self.mesh.initiate(id, now);
                    }
                }
                Control::NoteLane { identity, lane, up } => self.mesh.note_lane(identity, lane, up, now),
                Control::Join(lane) => {
                    let joined = self.mesh.join(lane, now);
                    if let Some(id) = joined {
                        self.roll.add(&self.mesh, id);
                    }
                    self.fleet.report(lane.identity, joined.is_some_and(|id| self.mesh.carries(id)));
                }
                Control::AskAt(identity, address) => self.mesh.ask_at(identity, address, now),
                Control::Relocate(identity, address) => self.mesh.relocate(identity, address, now),
                Control::Leave(identity) => self.mesh.leave(identity),
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
        io.receive_buffer_full = self.socket.overflows();
        (io.receive_steps_down, io.receives_singly) = self.coalescing.counts();
        let (peers, mesh) = (self.mesh.peers().collect(), self.mesh.statistics());
        LaneSnapshot { peers, mesh, io, lanes: Vec::new() }
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
            let ecn = self.receiver.ecn(index);
            let (path, bytes, stride) = self.receiver.batch(index);
            let damage = self.mesh.handle_marked_datagram(path, bytes, stride, ecn, now);
            if let Some(change) = self.coalescing.observe(datagrams, damage, now) {
                self.change_coalescing(change);
            }
        }
        self.drain(now);
        true
    }

    fn change_coalescing(&self, change: Change) {
        let changed = self.socket.set_coalescing(change == Change::On);
        let error = changed.err().map(tracing::field::display);
        match change {
            Change::Off => {
                tracing::warn!(error, "datagrams are joined wrongly on receipt: taking them one by one");
            }
            Change::On => tracing::info!(error, "datagrams may be joined on receipt again"),
        }
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
                    let packet = (offload, range.clone());
                    if self.fleet.hand_over(&mut self.mesh, &mut self.buffer, packet, &mut self.statistics) {
                        continue;
                    }
                    bytes += range.len();
                    let contents = &mut self.buffer[range];
                    self.health.observe(&self.mesh, contents, now);
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
        self.fleet.flush();
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
            self.roll.note(&event);
            self.fleet.note(&self.mesh, &event);
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

impl Roll {
    fn of(mesh: &Mesh) -> Self {
        let mut roll = Self::default();
        for peer in mesh.peers() {
            roll.ids.insert(peer.public_key, peer.id);
            roll.names.insert(peer.id, peer.name);
        }
        roll
    }

    fn add(&mut self, mesh: &Mesh, id: PeerId) {
        if let (Some(key), Some(name)) = (mesh.identity_of(id), mesh.name_of(id)) {
            self.ids.insert(key, id);
            self.names.insert(id, name);
        }
    }

    /// Says what an operator may want to know without asking.
    fn note(&self, event: &Event) {
        let name = |id: &PeerId| self.names.get(id).cloned().unwrap_or_default();
        match event {
            Event::SessionEstablished { peer, initiator } => {
                tracing::debug!(peer = %name(peer), initiator, "session established");
            }
            Event::SessionExpired { peer } => tracing::debug!(peer = %name(peer), "session ended"),
            Event::Roamed { peer, path } => {
                tracing::info!(peer = %name(peer), endpoint = %path.remote, "the peer has moved");
            }
            Event::Reachability { peer, reachable: true } => {
                tracing::info!(peer = %name(peer), "the peer answers");
            }
            Event::Reachability { peer, reachable: false } => {
                tracing::warn!(peer = %name(peer), "the peer does not answer");
            }
            Event::PathMtu { peer, mtu: Some(mtu) } => {
                tracing::info!(peer = %name(peer), mtu, "the path carries no longer packets than this");
            }
            Event::PathMtu { peer, mtu: None } => {
                tracing::info!(peer = %name(peer), "the path carries packets of the mesh's length again");
            }
            Event::Lanes { peer, lanes, .. } => {
                tracing::debug!(peer = %name(peer), further = lanes.len(), "the peer's lanes");
            }
            Event::Probed { .. } => {}
        }
    }
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
                if statistics.device_steps_down == 0 {
                    tracing::warn!(%error, kind = ?packet.offload.kind, "the device refuses super-packets");
                }
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

/// The engine pads packets to 16 bytes and seals them with 16 more.
const PADDING_MAX: usize = 64;
/// Packets read before trains go out: enough to fill one with small packets, few enough to keep
/// received datagrams from waiting.
const READS_MAX: u64 = 64;
/// Bytes after which trains go out at once: one super-packet, whose train is still in the cache.
const READ_BYTES_MAX: usize = 48 * 1024;
/// Datagrams between two drains; the engine has room for twice as many packets.
const UNDELIVERED_MAX: usize = 64;
/// Pause after a failed receive.
const ERROR_REST: Duration = Duration::from_millis(100);
