//! One peer: its session, where it is, what waits for it and what has been counted.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::PeerConfig;
use crate::control::{ANNOUNCEMENT_LEN_MAX, Announcement, CONTROL_LEN, Control};
use crate::drops::{DropCounts, DropReason};
use crate::ip::ecn;
use crate::keys::PublicKey;
use crate::packet::{LaneAddress, Path, PeerId, PeerSnapshot, PeerStatistics};
use crate::segment::{Offload, Splitter};
use crate::session::{ANSWER_TIMEOUT, DATA_OVERHEAD, NoiseSession, Session};
use crate::state::health::{Health, PROBE_MAX};
use crate::state::lanes::PeerLanes;
use crate::state::timers::Deadline;
use crate::state::trains::{OpenTrain, Trains};

/// State of one peer.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) config: PeerConfig,
    /// Whom handshakes are made with: the configured key, or that of one of the peer's further lanes.
    pub(crate) key: PublicKey,
    /// The 24 bits of our session indices that name this peer.
    pub(crate) index: u32,
    pub(crate) session: NoiseSession,
    pub(crate) path: Option<Path>,
    /// Where it was configured to be, while it has gone elsewhere, or the other way round.
    fallback: Option<Path>,
    pub(crate) deadline: Deadline,
    pub(crate) statistics: PeerStatistics,
    /// When the last initiation of the peer was accepted.
    pub(crate) initiation_accepted: Option<Instant>,
    pub(crate) reachable: bool,
    pub(crate) health: Health,
    pub(crate) lanes: PeerLanes,
    /// Whether the latest handshake was ours.
    pub(crate) begun_here: bool,
    /// Largest inner packet that the path is known to carry, and until when that is believed.
    pub(crate) path_mtu: Option<(usize, Instant)>,
    staged: VecDeque<Staged>,
    staged_bytes: usize,
    train: Option<OpenTrain>,
    /// Newest authenticated data message: index of its session and counter.
    newest: (u32, u64),
}

/// What sealing packets needs besides the peer.
pub(crate) struct Outlet<'a> {
    pub(crate) trains: &'a mut Trains,
    /// As long as the longest packet, rounded up to padding.
    pub(crate) scratch: &'a mut [u8],
    pub(crate) drops: &'a mut DropCounts,
    /// The mesh's MTU, beyond which no packet is padded.
    pub(crate) mtu: usize,
    /// Congestion bits of the packets at hand, which the datagrams carry as well (RFC 6040 section 4.1).
    pub(crate) ecn: u8,
}

/// A packet that waits for a session.
struct Staged {
    contents: Vec<u8>,
    offload: Offload,
}

impl Peer {
    pub(crate) fn new(
        id: PeerId,
        config: PeerConfig,
        key: PublicKey,
        index: u32,
        session: NoiseSession,
        health: Health,
    ) -> Self {
        let path = config.endpoint.map(|remote| Path { remote, local: None });
        Self {
            id,
            config,
            key,
            index,
            session,
            path,
            fallback: None,
            deadline: Deadline::default(),
            statistics: PeerStatistics::default(),
            initiation_accepted: None,
            reachable: true,
            health,
            lanes: PeerLanes::default(),
            begun_here: false,
            path_mtu: None,
            staged: VecDeque::new(),
            staged_bytes: 0,
            train: None,
            newest: (0, 0),
        }
    }

    /// Counts a drop here and in the whole.
    pub(crate) fn drop(&mut self, drops: &mut DropCounts, reason: DropReason, count: u64) {
        self.statistics.drops.add(reason, count);
        drops.add(reason, count);
    }

    /// Segments, seals and queues a packet; the session is connected.
    pub(crate) fn send(
        &mut self,
        outlet: &mut Outlet<'_>,
        packet: &mut [u8],
        offload: Offload,
        now: Instant,
    ) {
        self.health.note_use(now);
        outlet.ecn = ecn(packet);
        let Some(path) = self.path else { return self.drop(outlet.drops, DropReason::NoEndpoint, 1) };
        let Ok(mut segments) = Splitter::new(packet, offload) else {
            return self.drop(outlet.drops, DropReason::InvalidOffload, 1);
        };
        while let Some(segment) = segments.next() {
            if let Err(reason) = self.seal(outlet, path, segment, now) {
                self.drop(outlet.drops, reason, 1);
            }
        }
    }

    /// Queues a probe or an answer of `len` bytes; the session is connected.
    pub(crate) fn send_control(
        &mut self,
        outlet: &mut Outlet<'_>,
        control: Control,
        len: usize,
        now: Instant,
    ) {
        let mut packet = [0; PROBE_MAX];
        let Some(packet) = packet.get_mut(..len.max(CONTROL_LEN)) else { return };
        if control.write(packet).is_some() {
            self.send_inner(outlet, packet, now);
        }
    }

    /// Queues what we say about our lanes; the session is connected.
    pub(crate) fn announce(&mut self, outlet: &mut Outlet<'_>, lanes: &[LaneAddress], now: Instant) {
        let announcement = Announcement { epoch: self.health.epoch(), lanes: lanes.to_vec() };
        let mut packet = [0; ANNOUNCEMENT_LEN_MAX];
        let Some(packet) = packet.get_mut(..announcement.len()) else { return };
        if announcement.write(packet).is_some() {
            self.lanes.announced = Some(now);
            self.send_inner(outlet, packet, now);
        }
    }

    fn send_inner(&mut self, outlet: &mut Outlet<'_>, packet: &[u8], now: Instant) {
        let Some(path) = self.path else { return };
        if let Err(reason) = self.seal(outlet, path, packet, now) {
            self.drop(outlet.drops, reason, 1);
        }
    }

    /// Queues an empty data message.
    pub(crate) fn send_keepalive(&mut self, outlet: &mut Outlet<'_>, now: Instant) {
        let Some(path) = self.path else { return };
        if let Err(reason) = self.seal(outlet, path, &[], now) {
            self.drop(outlet.drops, reason, 1);
        }
    }

    /// Queues a data message that the session itself made.
    pub(crate) fn send_sealed(&mut self, outlet: &mut Outlet<'_>, message_len: usize) {
        let Some(path) = self.path else { return };
        match outlet.trains.room(&mut self.train, path, 0, message_len) {
            Some(room) => {
                room[..message_len].copy_from_slice(&outlet.scratch[..message_len]);
                outlet.trains.commit(&self.train, message_len);
                self.count_sent(message_len);
            }
            None => self.drop(outlet.drops, DropReason::TransmitFull, 1),
        }
    }

    /// Queues a handshake message that the session wrote to the scratch; `path` may differ from the peer's.
    pub(crate) fn send_handshake(&mut self, outlet: &mut Outlet<'_>, path: Path, message_len: usize) {
        if outlet.trains.push_handshake(path, &outlet.scratch[..message_len]) {
            self.count_sent(message_len);
        } else {
            self.drop(outlet.drops, DropReason::TransmitFull, 1);
        }
    }

    /// Keeps a packet until there is a session.
    pub(crate) fn stage(&mut self, drops: &mut DropCounts, packet: &[u8], offload: Offload) {
        if self.staged.len() >= STAGED_PACKETS_MAX || self.staged_bytes + packet.len() > STAGED_BYTES_MAX {
            return self.drop(drops, DropReason::StagedFull, 1);
        }
        self.staged_bytes += packet.len();
        self.staged.push_back(Staged { contents: packet.to_vec(), offload });
    }

    /// Sends what waited; the session is connected.
    pub(crate) fn flush(&mut self, outlet: &mut Outlet<'_>, now: Instant) {
        self.staged_bytes = 0;
        for mut staged in std::mem::take(&mut self.staged) {
            self.send(outlet, &mut staged.contents, staged.offload, now);
        }
    }

    /// Gives up what waited.
    pub(crate) fn discard_staged(&mut self, drops: &mut DropCounts) {
        let count = self.staged.len() as u64;
        self.staged = VecDeque::new();
        self.staged_bytes = 0;
        self.drop(drops, DropReason::HandshakeFailed, count);
    }

    /// Whether packets wait and nothing is under way that would let them go.
    pub(crate) fn wants_handshake(&self, now: Instant) -> bool {
        !self.staged.is_empty()
            && !self.session.is_connected()
            && !self.session.is_initiating()
            && !self.session.awaits_confirmation(now)
    }

    pub(crate) fn staged(&self) -> usize {
        self.staged.len()
    }

    /// Notes an authenticated data message; says whether the peer may be thought to be where it came from: only the newest
    /// message tells, a delayed or relayed one does not.
    pub(crate) fn note_data(&mut self, message: &[u8], confirmed: bool) -> bool {
        let field = |at: usize, len: usize| message.get(at..at + len);
        let index = field(4, 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
        let counter = field(8, 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        self.statistics.received_bytes += message.len() as u64;
        self.statistics.received_datagrams += 1;
        let newer = confirmed || (index == self.newest.0 && counter > self.newest.1);
        if newer {
            self.newest = (index, counter);
        }
        newer
    }

    /// Notes that a session of ours begins: its messages are the newest.
    pub(crate) fn expect_index(&mut self, index: u32) {
        self.newest = (index, 0);
    }

    /// Moves the peer; says whether that is news. Learning our own side of a known path is none.
    pub(crate) fn move_to(&mut self, path: Path, now: Instant) -> bool {
        if self.path == Some(path) {
            return false;
        }
        let completes = self.path.is_some_and(|old| old.remote == path.remote && old.local.is_none());
        let left_home = self.path.is_some_and(|old| Some(old.remote) == self.config.endpoint);
        if left_home && !completes {
            self.fallback = self.path;
        }
        self.path = Some(path);
        if !completes {
            self.path_mtu = None;
            self.health.forget_path(now);
        }
        !completes
    }

    /// Sends to its configured endpoint, `remote`, from now on.
    pub(crate) fn send_home(&mut self, remote: SocketAddr, now: Instant) {
        self.config.endpoint = Some(remote);
        self.move_to(Path { remote, local: None }, now);
        self.fallback = None;
    }

    /// Where it was heard last it does not answer: the next attempt goes to the configured endpoint, and the one after that
    /// back again.
    pub(crate) fn try_elsewhere(&mut self, now: Instant) {
        if let Some(other) = self.fallback.take() {
            self.fallback = self.path.replace(other);
            self.path_mtu = None;
            self.health.forget_path(now);
        }
    }

    /// Largest inner packet for this peer if its path were perfect.
    pub(crate) fn largest(&self, mesh_mtu: usize) -> usize {
        self.config.mtu.map_or(mesh_mtu, |mtu| mesh_mtu.min(usize::from(mtu)))
    }

    /// Largest inner packet for this peer.
    pub(crate) fn mtu(&self, mesh_mtu: usize, now: Instant) -> usize {
        let configured = self.largest(mesh_mtu);
        match self.path_mtu {
            Some((mtu, until)) if now < until => configured.min(mtu),
            _ => configured,
        }
    }

    /// When a keepalive is due.
    pub(crate) fn keepalive_due(&self, now: Instant) -> Option<Instant> {
        let interval = self.config.keepalive?;
        self.path?;
        Some(self.session.last_sent().map_or(now, |sent| sent + interval))
    }

    /// Whether the peer answers, as far as is known.
    pub(crate) fn answers(&self, now: Instant) -> bool {
        self.session.unanswered_since().is_none_or(|since| now.duration_since(since) < ANSWER_TIMEOUT)
    }

    pub(crate) fn snapshot(&self) -> PeerSnapshot {
        PeerSnapshot {
            id: self.id,
            name: self.config.name.clone(),
            public_key: self.config.public_key,
            groups: self.config.groups.clone(),
            allowed_ips: self.config.allowed_ips.clone(),
            path: self.path,
            keepalive: self.config.keepalive,
            connected: self.session.is_connected(),
            last_handshake: self.session.completed(),
            last_received: self.session.last_received(),
            latency: self.health.latency().or(self.session.latency()),
            loss: self.session.loss(),
            sent_loss: self.health.loss(),
            probed: self.health.speaks(),
            path_mtu: self.path_mtu.map(|(mtu, _)| mtu),
            reachable: self.reachable,
            lanes: self.lanes.agreed(),
            lanes_up: self.lanes.up(),
            statistics: self.statistics.clone(),
        }
    }

    #[inline]
    fn seal(
        &mut self,
        outlet: &mut Outlet<'_>,
        path: Path,
        packet: &[u8],
        now: Instant,
    ) -> Result<(), DropReason> {
        // Defect 10 of boringtun, which does not pad: to 16 bytes, but never beyond the MTU (WireGuard section 5.4.6).
        let padded = packet.len().next_multiple_of(PADDING).min(packet.len().max(outlet.mtu));
        let room = outlet
            .trains
            .room(&mut self.train, path, outlet.ecn, padded + DATA_OVERHEAD)
            .ok_or(DropReason::TransmitFull)?;
        let sealed = if padded == packet.len() {
            self.session.encrypt(packet, room, now)
        } else {
            let scratch = outlet.scratch.get_mut(..padded).ok_or(DropReason::TooBig)?;
            scratch[..packet.len()].copy_from_slice(packet);
            scratch[packet.len()..].fill(0);
            self.session.encrypt(scratch, room, now)
        };
        let len = sealed.ok_or(DropReason::NoSession)?;
        outlet.trains.commit(&self.train, len);
        self.count_sent(len);
        Ok(())
    }

    fn count_sent(&mut self, len: usize) {
        self.statistics.sent_bytes += len as u64;
        self.statistics.sent_datagrams += 1;
    }
}

/// How long a smaller path MTU is believed before larger packets are tried again (RFC 1191 section 6.3: 10 min).
pub(crate) const PATH_MTU_LIFETIME: Duration = Duration::from_secs(600);
const PADDING: usize = 16;
/// What waits for one handshake: boringtun's own queue has 256 packets of any size, here also the bytes are bounded.
/// A peer costs at most 256 KiB while its handshake runs, which is over after 90 s.
const STAGED_PACKETS_MAX: usize = 128;
const STAGED_BYTES_MAX: usize = 256 * 1024;
