//! Probes of paths: when they go, who answers, what follows.

use std::time::Instant;

use rand::RngExt;

use crate::control::{CONTROL_LEN, Control, Kind};
use crate::mesh::{Mesh, outlet};
use crate::packet::{Event, PeerId};
use crate::session::Session;
use crate::state::health::Learnt;
use crate::state::peer::PATH_MTU_LIFETIME;

impl Mesh {
    /// Sends a probe now; an adit answers it, which becomes [`Event::Probed`]. `false` without a session.
    pub fn probe(&mut self, id: PeerId, now: Instant) -> bool {
        let connected = self.peers.find(id).is_some_and(|peer| peer.session.is_connected());
        if connected {
            self.send_probe(id, CONTROL_LEN, now);
        }
        connected
    }

    pub(crate) fn probe_if_due(&mut self, id: PeerId, now: Instant) {
        // A probe of either kind may be due.
        for _ in 0..2 {
            let Some(peer) = self.peers.find(id).filter(|peer| peer.session.is_connected()) else { return };
            let limit = peer.largest(self.mtu);
            let Some(len) = peer.health.due(limit, now) else { return };
            self.send_probe(id, len, now);
        }
    }

    pub(crate) fn handle_control(&mut self, id: PeerId, control: Control, now: Instant) {
        self.check_lanes(id, control.epoch);
        let Some(peer) = self.peers.find(id) else { return };
        let received = peer.statistics.received_datagrams;
        match control.kind {
            Kind::Probe if peer.session.is_connected() => {
                let Some(answer) = peer.health.answer(control, received, now) else { return };
                let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
                peer.send_control(&mut outlet, answer, CONTROL_LEN, now);
            }
            Kind::Probe => {}
            Kind::Answer => {
                let limit = peer.largest(self.mtu);
                let is_news = !peer.health.speaks();
                let before = peer.path_mtu.map(|(mtu, _)| mtu);
                let learnt = peer.health.learn(control, limit, now);
                match learnt {
                    Some(Learnt::Limit(mtu)) => peer.path_mtu = Some((mtu, now + PATH_MTU_LIFETIME * 2)),
                    Some(Learnt::Unlimited) => peer.path_mtu = None,
                    _ => {}
                }
                let after = peer.path_mtu.map(|(mtu, _)| mtu);
                if before != after {
                    self.push_event(Event::PathMtu { peer: id, mtu: after });
                }
                if let Some(Learnt::Latency(latency)) = learnt {
                    self.push_event(Event::Probed { peer: id, latency });
                }
                if is_news {
                    self.announce_lanes(id, now);
                }
                self.probe_if_due(id, now);
            }
        }
    }

    fn send_probe(&mut self, id: PeerId, len: usize, now: Instant) {
        let number = self.rng.random();
        let Some(peer) = self.peers.find(id) else { return };
        let (sent, received) = (peer.statistics.sent_datagrams + 1, peer.statistics.received_datagrams);
        let probe = peer.health.probe(number, len, sent, received, now);
        let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
        peer.send_control(&mut outlet, probe, len, now);
        if len == CONTROL_LEN && peer.health.speaks() {
            self.announce_lanes(id, now);
        }
    }
}
