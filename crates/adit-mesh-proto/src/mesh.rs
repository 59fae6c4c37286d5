//! The engine of one lane: takes inputs, hands them to the state they concern, gives out what came of it.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::config::{Config, PEERS_MAX, PeerConfig};
use crate::drops::{DropCounts, DropReason};
use crate::keys::PrivateKey;
use crate::lanes::{Further, Lane};
use crate::packet::{Event, Incoming, LaneAddress, MeshStatistics, Path, PeerId, PeerSnapshot, Transmit};
use crate::segment::Coalescer;
use crate::session::{JITTER_MAX, NoiseSession, Session, Tick};
use crate::state::flows::FlowTable;
use crate::state::health::Health;
use crate::state::limiter::{Bucket, Limiter};
use crate::state::peer::{Outlet, PATH_MTU_LIFETIME, Peer};
use crate::state::peers::Peers;
use crate::state::policy::Filter;
use crate::state::routes::Routes;
use crate::state::timers::Timers;
use crate::state::trains::Trains;

/// One lane's engine.
pub struct Mesh {
    pub(crate) private_key: PrivateKey,
    pub(crate) mtu: usize,
    pub(crate) rng: StdRng,
    pub(crate) peers: Peers,
    pub(crate) routes: Routes,
    pub(crate) filter: Option<Filter>,
    flows: FlowTable,
    /// Our lanes after this one, if this is the first.
    pub(crate) lanes: Vec<LaneAddress>,
    /// If this is not the first.
    pub(crate) further: Option<Further>,
    pub(crate) limiter: Limiter,
    /// Errors about packets that are too big, a second.
    pub(crate) errors: Bucket,
    pub(crate) began: Instant,
    pub(crate) trains: Trains,
    pub(crate) arrivals: Coalescer,
    pub(crate) timers: Timers,
    pub(crate) events: VecDeque<Event>,
    pub(crate) drops: DropCounts,
    pub(crate) handshakes_computed: u64,
    pub(crate) cookies: u64,
    pub(crate) scratch: Box<[u8]>,
}

impl Mesh {
    /// An engine for `config`, whose random choices follow from `seed`. Peers beyond [`PEERS_MAX`] are left out.
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        Self::on_lane(config, Lane::First(Vec::new()), FlowTable::new(now), seed, now)
    }

    /// As [`Self::new`], for one of a node's lanes, which share the table of flows.
    pub fn on_lane(config: Config, lane: Lane, flows: FlowTable, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let limiter = Limiter::new(config.private_key.public(), rng.random(), now);
        let mut mesh = Self {
            private_key: config.private_key.clone(),
            mtu: usize::from(config.mtu),
            rng,
            peers: Peers::default(),
            routes: Routes::default(),
            filter: None,
            flows,
            further: matches!(lane, Lane::Further).then(Further::default),
            lanes: match lane {
                Lane::First(lanes) => lanes,
                Lane::Further => Vec::new(),
            },
            limiter,
            errors: Bucket::FULL,
            began: now,
            trains: Trains::default(),
            arrivals: Coalescer::new(ARRIVALS_MAX),
            timers: Timers::default(),
            events: VecDeque::new(),
            drops: DropCounts::default(),
            handshakes_computed: 0,
            cookies: 0,
            scratch: vec![0; SCRATCH_LEN].into(),
        };
        mesh.reconfigure(config, now);
        mesh
    }

    /// Becomes what `config` says. A peer with the same keys keeps its session, its path unless its configured endpoint
    /// changed, and its counters; a changed private key ends all sessions.
    pub fn reconfigure(&mut self, mut config: Config, now: Instant) {
        // A further lane keeps the key that its peers were told.
        let is_new = self.further.is_none() && config.private_key.public() != self.private_key.public();
        if is_new {
            self.private_key = config.private_key.clone();
            self.limiter = Limiter::new(config.private_key.public(), self.rng.random(), now);
        }
        self.mtu = usize::from(config.mtu);
        self.filter = match (config.policy.clone(), self.filter.take()) {
            (None, _) => None,
            (Some(policy), None) => Some(Filter::new(policy, &config, self.flows.clone())),
            (Some(policy), Some(mut filter)) => {
                filter.update(policy, &config);
                Some(filter)
            }
        };
        config.peers.truncate(PEERS_MAX);
        let peers = match &mut self.further {
            None => config.peers,
            Some(further) => further.adopt(config.peers),
        };
        let wanted: HashSet<_> = peers.iter().map(|peer| peer.public_key).collect();
        let order: Vec<_> = peers.into_iter().map(|peer| self.configure_peer(peer, is_new, now)).collect();
        // After those that come: nobody takes the place, and with it the id, of somebody who goes in the same moment.
        self.remove_peers(|peer| !wanted.contains(&peer.config.public_key));
        let peers = &self.peers;
        self.routes = Routes::build(order.into_iter().filter_map(|id| Some((id, &peers.look(id)?.config))));
    }

    /// Does what has become due. Works on a bounded number of peers, so that [`Self::poll_timeout`] may be in the past
    /// still: drain and call again.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..TIMEOUTS_AT_ONCE {
            let Some(id) = self.timers.due(now) else { break };
            self.tick(id, now);
        }
    }

    /// Sends to `remote` from now on, because the name in the configuration resolves to it.
    pub fn set_endpoint(&mut self, id: PeerId, remote: SocketAddr, now: Instant) {
        let Some(peer) = self.peers.find(id) else { return };
        peer.send_home(remote, now);
        self.rearm(id, now);
    }

    /// Notes that the path to a peer carries inner packets of at most `mtu` bytes (at least 576 are assumed). Larger ones
    /// are tried again after ten minutes.
    pub fn handle_path_mtu(&mut self, path: Path, mtu: usize, now: Instant) {
        for peer in self.peers.iter_mut().filter(|peer| peer.path.is_some_and(|p| p.remote == path.remote)) {
            peer.path_mtu = Some((mtu.max(PATH_MTU_MIN), now + PATH_MTU_LIFETIME));
        }
    }

    /// Starts a handshake with a peer that has no session and none on its way.
    pub fn initiate(&mut self, id: PeerId, now: Instant) {
        if self.peers.find(id).is_some_and(|peer| !peer.session.is_connected()) {
            self.start_handshake(id, now);
        }
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        self.trains.poll()
    }

    /// The next packet for the TUN device or netstack.
    pub fn poll_packet(&mut self) -> Option<Incoming<'_>> {
        let merged = self.arrivals.poll()?;
        Some(Incoming { peer: PeerId(merged.key), offload: merged.offload, contents: merged.contents })
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whether nothing waits to be sent or written, so that the next input may wait.
    pub fn is_drained(&self) -> bool {
        self.trains.is_empty() && self.arrivals.is_empty()
    }

    /// All peers as they are now.
    pub fn peers(&self) -> impl Iterator<Item = PeerSnapshot> + '_ {
        self.peers.iter().map(Peer::snapshot)
    }

    /// Whose this mesh address is.
    pub fn peer_by_address(&self, address: IpAddr) -> Option<PeerId> {
        self.routes.search(address)
    }

    /// Where datagrams to a peer go now.
    pub fn path(&self, id: PeerId) -> Option<Path> {
        self.peers.look(id)?.path
    }

    /// Counters of the lane.
    pub fn statistics(&self) -> MeshStatistics {
        MeshStatistics {
            drops: self.drops.clone(),
            handshakes_computed: self.handshakes_computed,
            cookies: self.cookies,
            peers: self.peers.len(),
            sessions: self.peers.iter().filter(|peer| peer.session.is_connected()).count(),
            staged: self.peers.iter().map(Peer::staged).sum(),
            flows: self.filter.as_ref().map_or(0, Filter::flows),
        }
    }

    /// Queues an event. The shell drains after each input, and no input has more events than peers.
    pub(crate) fn push_event(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }

    /// Sends an initiation unless one waits for its response.
    pub(crate) fn start_handshake(&mut self, id: PeerId, now: Instant) {
        let jitter = self.draw_jitter();
        let Some(peer) = self.peers.find(id) else { return };
        let Some(path) = peer.path else { return };
        if let Some(len) = peer.session.initiate(&mut self.scratch, jitter, now) {
            peer.statistics.initiations += 1;
            let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
            peer.send_handshake(&mut outlet, path, len);
            self.rearm(id, now);
        }
    }

    /// Sets the peer's deadline to what its state demands.
    pub(crate) fn rearm(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.find(id) else { return };
        let keepalive = if peer.session.is_initiating() { None } else { peer.keepalive_due(now) };
        let session = peer.session.poll_timeout(now);
        let at = [keepalive, session].into_iter().flatten().min();
        // Never twice in the same moment, whatever the reason: this is what keeps `handle_timeout` from spinning.
        let at = at.map(|at| at.max(now + TIMEOUT_STEP));
        self.timers.set(id, &mut peer.deadline, at);
    }

    fn tick(&mut self, id: PeerId, now: Instant) {
        let jitter = self.draw_jitter();
        let Some(peer) = self.peers.find(id) else { return };
        let tick = peer.session.handle_timeout(&mut self.scratch, jitter, now);
        let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
        match (tick, peer.path) {
            (Tick::Initiation(len), Some(path)) => {
                peer.statistics.initiations += 1;
                peer.send_handshake(&mut outlet, path, len);
            }
            (Tick::Keepalive(len), _) => peer.send_sealed(&mut outlet, len),
            _ => {}
        }
        let mut begin = tick != Tick::Expired && peer.wants_handshake(now);
        if peer.keepalive_due(now).is_some_and(|due| due <= now) {
            if peer.session.is_connected() {
                peer.send_keepalive(&mut outlet, now);
            }
            begin |= !peer.session.is_connected() || peer.session.is_due_for_renewal(now);
        }
        if tick == Tick::Expired {
            peer.discard_staged(&mut self.drops);
            if !peer.reachable {
                peer.try_elsewhere(now);
            }
            self.push_event(Event::SessionExpired { peer: id });
        }
        self.judge_reachability(id, now);
        self.probe_if_due(id, now);
        if begin {
            self.start_handshake(id, now);
        }
        self.rearm(id, now);
    }

    /// Tells when a peer stops or starts to answer.
    pub(crate) fn judge_reachability(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.find(id) else { return };
        let reachable = peer.answers(now);
        if reachable != peer.reachable {
            // Giving up on a handshake is no answer: only a message is.
            if reachable
                && peer.session.last_received().is_none_or(|at| now.duration_since(at) > REACHED_WITHIN)
            {
                return;
            }
            peer.reachable = reachable;
            self.push_event(Event::Reachability { peer: id, reachable });
        }
    }

    /// With other secrets (`is_new`: of ours) a peer begins anew, in its old place: by that it is known elsewhere.
    pub(crate) fn configure_peer(&mut self, config: PeerConfig, is_new: bool, now: Instant) -> PeerId {
        let further = self.further.as_ref();
        let key = further.and_then(|further| further.key_of(config.public_key)).unwrap_or(config.public_key);
        if let Some(id) = self.peers.id_of_key(key) {
            let preshared_key = |peer: &mut Peer| peer.config.preshared_key == config.preshared_key;
            if !is_new && self.peers.find(id).is_some_and(preshared_key) {
                self.update_peer(id, config, now);
                return id;
            }
            self.remove_peer(id);
            debug_assert_eq!(self.peers.next_id(), id, "the place that became free last is taken next");
        }
        let id = self.peers.next_id();
        let rng = &mut self.rng;
        let index = self.peers.draw_index(|| rng.random());
        let session = NoiseSession::new(
            &self.private_key,
            key,
            config.preshared_key.as_ref(),
            index,
            self.limiter.shared(),
            now,
        );
        let keeps_alive = config.keepalive.is_some() && config.endpoint.is_some();
        let health = Health::new(self.rng.random());
        self.peers.insert(Peer::new(id, config, key, index, session, health));
        if keeps_alive {
            // Not all peers in the same moment: a handshake costs some 0.25 ms.
            let spread = HANDSHAKE_SPREAD * u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
            let at = now + spread.mul_f64(self.rng.random());
            if let Some(peer) = self.peers.find(id) {
                self.timers.set(id, &mut peer.deadline, Some(at));
            }
        }
        id
    }

    fn update_peer(&mut self, id: PeerId, config: PeerConfig, now: Instant) {
        let Some(peer) = self.peers.find(id) else { return };
        let endpoint = config.endpoint.filter(|_| peer.config.endpoint != config.endpoint);
        peer.config = config;
        if let Some(remote) = endpoint {
            peer.send_home(remote, now);
        }
        self.rearm(id, now);
    }

    fn remove_peers(&mut self, gone: impl Fn(&Peer) -> bool) {
        let ids: Vec<PeerId> = self.peers.iter().filter(|peer| gone(peer)).map(|peer| peer.id).collect();
        ids.into_iter().for_each(|id| self.remove_peer(id));
    }

    pub(crate) fn remove_peer(&mut self, id: PeerId) {
        if let Some(mut peer) = self.peers.remove(id) {
            self.timers.set(id, &mut peer.deadline, None);
            peer.discard_staged(&mut self.drops);
        }
    }

    pub(crate) fn draw_jitter(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(1..=u64::try_from(JITTER_MAX.as_millis()).unwrap_or(1)))
    }

    pub(crate) fn drop_unowned(&mut self, reason: DropReason) {
        self.drops.count(reason);
    }
}

/// Joins the parts of the engine that sealing needs; a function so that the borrow stays with those fields.
pub(crate) fn outlet<'a>(
    trains: &'a mut Trains,
    scratch: &'a mut [u8],
    drops: &'a mut DropCounts,
    mtu: usize,
) -> Outlet<'a> {
    Outlet { trains, scratch, drops, mtu, ecn: 0 }
}

/// Decrypted packets and groups between two drains: a batch of receive offload has at most 64 datagrams. 128 × 64 KiB, taken
/// when first used; the stack of free ones keeps to a few.
const ARRIVALS_MAX: usize = 128;
/// Longest packet and its padding.
const SCRATCH_LEN: usize = 65_536 + 16;
/// Peers woken by one call: 64 handshakes are 16 ms of work at worst.
const TIMEOUTS_AT_ONCE: usize = 64;
/// Shortest time between two timeouts of one peer.
const TIMEOUT_STEP: Duration = Duration::from_millis(1);
/// Time given to each peer's first handshake.
const HANDSHAKE_SPREAD: Duration = Duration::from_micros(500);
/// How recent a message must be to count as an answer.
const REACHED_WITHIN: Duration = Duration::from_secs(2);
/// Every peer's session may end in one moment; 2 events of 64 bytes each = 2 MiB at worst.
const EVENTS_MAX: usize = 2 * PEERS_MAX;
/// Smallest inner packet that IPv4 promises to carry.
const PATH_MTU_MIN: usize = 576;
