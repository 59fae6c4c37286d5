//! More than one lane between two adit nodes.
//!
//! The first lane is plain WireGuard, for everybody. A further one is a WireGuard session of its own between the same two
//! nodes, run by an engine of its own, with a key and a port that the nodes tell each other on the first lane, where they
//! know each other. The first lane's engine says which lane each packet takes; one whose lane is not connected stays there.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::PeerConfig;
use crate::control::Announcement;
use crate::ip::IpHeader;
use crate::keys::PublicKey;
use crate::mesh::{Mesh, outlet};
use crate::packet::{Event, LaneAddress, LanePeer, Path, PeerId};
use crate::session::Session;

/// Which lane of a node an engine runs.
#[derive(Debug, Clone)]
pub enum Lane {
    /// The first, and where its further ones are reached.
    First(Vec<LaneAddress>),
    /// A further one, whose private key stands in its configuration in place of the node's.
    Further,
}

/// What an engine knows that runs a further lane: peers are there only once they have told their keys.
#[derive(Debug, Default)]
pub(crate) struct Further {
    configs: HashMap<PublicKey, PeerConfig>,
    keys: HashMap<PublicKey, PublicKey>,
}

impl Further {
    /// Takes a new configuration; gives those peers of it that are there.
    pub(crate) fn adopt(&mut self, peers: Vec<PeerConfig>) -> Vec<PeerConfig> {
        self.configs = peers.into_iter().map(|peer| (peer.public_key, on_further_lane(peer))).collect();
        self.keys.retain(|identity, _| self.configs.contains_key(identity));
        self.keys.keys().filter_map(|identity| self.configs.get(identity).cloned()).collect()
    }

    /// What a peer is called on this lane.
    pub(crate) fn key_of(&self, identity: PublicKey) -> Option<PublicKey> {
        self.keys.get(&identity).copied()
    }
}

/// Its endpoint is that of the first lane.
fn on_further_lane(peer: PeerConfig) -> PeerConfig {
    PeerConfig { endpoint: None, ..peer }
}

impl Mesh {
    /// Which lane a packet from the device takes: 0, or a further one that is up. The same for all packets of a flow while
    /// the same lanes are up.
    #[inline]
    pub fn lane_of(&mut self, packet: &[u8]) -> usize {
        let Some(header) = IpHeader::parse(packet) else { return 0 };
        let Some(id) = self.routes.find(header.destination) else { return 0 };
        self.peers.find(id).map_or(0, |peer| peer.lanes.choose(&header, packet))
    }

    /// Notes that lane `lane` to the peer with this identity carries data, or does no more. Only for the first lane.
    pub fn note_lane(&mut self, identity: PublicKey, lane: usize, up: bool, now: Instant) {
        let Some(id) = self.peers.id_of_key(identity) else { return };
        let Some(peer) = self.peers.find(id) else { return };
        if peer.lanes.set(lane, up) && !up && peer.session.is_connected() {
            // What took that lane comes here now. If the peer has begun anew, this session is as dead.
            self.start_handshake(id, now);
        }
    }

    /// Lets a peer that has told its key use this further lane; says which place it has. Does nothing for strangers to the
    /// configuration and for keys that another peer has.
    pub fn join(&mut self, lane: LanePeer, now: Instant) -> Option<PeerId> {
        let config = self.further.as_ref()?.configs.get(&lane.identity)?;
        let id = match self.peers.id_of_key(lane.key) {
            Some(id) => id,
            None => {
                let config = config.clone();
                self.leave(lane.identity);
                self.note_key(lane.identity, lane.key);
                let id = self.configure_peer(config.clone(), false, now);
                self.routes.add(id, &config);
                id
            }
        };
        let peer = self.peers.find(id).filter(|peer| peer.config.public_key == lane.identity)?;
        if lane.begin && !peer.session.is_connected() && !peer.session.is_initiating() {
            peer.move_to(Path { remote: lane.remote, local: None }, now);
            self.start_handshake(id, now);
        }
        Some(id)
    }

    /// The peer was heard from another address on the first lane: it is there on this one as well, for all we know. What it
    /// sends here says better.
    pub fn relocate(&mut self, identity: PublicKey, address: IpAddr, now: Instant) {
        let Some(id) = self
            .further
            .as_ref()
            .and_then(|further| further.key_of(identity))
            .and_then(|key| self.peers.id_of_key(key))
        else {
            return;
        };
        let Some(peer) = self.peers.find(id) else { return };
        if let Some(path) = peer.path.filter(|path| path.remote.ip() != address) {
            peer.move_to(Path { remote: (address, path.remote.port()).into(), local: None }, now);
        }
    }

    /// The peer was heard from another address on a further lane. Asks it there, by a handshake: if it answers, this lane has
    /// moved as well. Not moved at once, because an address of one lane need not be that of another behind a large NAT.
    pub fn ask_at(&mut self, identity: PublicKey, address: IpAddr, now: Instant) {
        let jitter = self.draw_jitter();
        let Some(id) = self.peers.id_of_key(identity) else { return };
        let Some(peer) = self.peers.find(id) else { return };
        let Some(path) = peer.path.filter(|path| path.remote.ip() != address) else { return };
        if let Some(len) = peer.session.initiate(&mut self.scratch, jitter, now) {
            peer.statistics.initiations += 1;
            let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
            let there = Path { remote: (address, path.remote.port()).into(), local: None };
            peer.send_handshake(&mut outlet, there, len);
            self.rearm(id, now);
        }
    }

    /// Ends a peer's use of this further lane.
    pub fn leave(&mut self, identity: PublicKey) {
        let Some(key) = self.further.as_mut().and_then(|further| further.keys.remove(&identity)) else {
            return;
        };
        let Some(id) = self.peers.id_of_key(key) else { return };
        if let Some(peer) = self.peers.look(id) {
            self.routes.remove(id, &peer.config);
        }
        self.remove_peer(id);
    }

    /// Whose place this is: the key in the configuration.
    pub fn identity_of(&self, id: PeerId) -> Option<PublicKey> {
        Some(self.peers.look(id)?.config.public_key)
    }

    /// What it is called in logs.
    pub fn name_of(&self, id: PeerId) -> Option<Arc<str>> {
        Some(Arc::clone(&self.peers.look(id)?.config.name))
    }

    /// Whether data to this peer goes out and comes in, as far as is known.
    pub fn carries(&self, id: PeerId) -> bool {
        self.peers.look(id).is_some_and(|peer| peer.session.is_connected() && peer.reachable)
    }

    fn note_key(&mut self, identity: PublicKey, key: PublicKey) {
        if let Some(further) = &mut self.further {
            further.keys.insert(identity, key);
        }
    }

    /// Tells the peer our lanes, if we have any and it is an adit.
    pub(crate) fn announce_lanes(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.find(id) else { return };
        if self.lanes.is_empty() || !peer.session.is_connected() {
            return;
        }
        let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
        peer.announce(&mut outlet, &self.lanes, now);
    }

    pub(crate) fn handle_announcement(&mut self, id: PeerId, announcement: Announcement, now: Instant) {
        let Some(peer) = self.peers.find(id).filter(|_| !self.lanes.is_empty()) else { return };
        // Each costs the other lanes something; a peer that repeats itself says nothing.
        if !peer.lanes.may_learn(now) {
            return;
        }
        let news = peer.lanes.learn(announcement.epoch, announcement.lanes, self.lanes.len());
        let answers = peer.lanes.owes_announcement(now) && peer.health.may_answer(now);
        // Who began on the first lane can reach the other; who did not tries if the other has not made it by the next time.
        let begin = peer.begun_here || !news;
        let lanes = peer.lanes.theirs().to_vec();
        self.push_event(Event::Lanes { peer: id, lanes, begin });
        if answers {
            self.announce_lanes(id, now);
        }
    }

    /// The peer speaks under this epoch; lanes that it announced under another are no more.
    pub(crate) fn check_lanes(&mut self, id: PeerId, epoch: u32) {
        if self.peers.find(id).is_some_and(|peer| peer.lanes.is_outdated_by(epoch)) {
            self.push_event(Event::Lanes { peer: id, lanes: Vec::new(), begin: false });
        }
    }
}
