//! Datagrams from peers and from strangers.

use std::time::{Duration, Instant};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519;

use crate::clamp::clamp_mss;
use crate::control::{Message, is_control};
use crate::drops::DropReason;
use crate::ip::{ECN_CE, IpHeader, mark_congestion};
use crate::mesh::{Mesh, outlet};
use crate::packet::{Damage, Event, Path, PeerId};
use crate::session::{DATA_HEADER, DATA_OVERHEAD, Reply, Session};
use crate::state::limiter::Verdict;
use crate::state::policy::Origin;

impl Mesh {
    /// Takes datagrams received from one source at once: each `stride` bytes long, the last perhaps shorter.
    pub fn handle_datagram(&mut self, path: Path, datagrams: &[u8], stride: usize, now: Instant) {
        self.handle_marked_datagram(path, datagrams, stride, 0, now);
    }

    /// As [`Self::handle_datagram`], with the congestion bits of the outer headers (RFC 3168), which all datagrams share.
    /// Says how many were damaged, so that the shell notices a receive offload that joins what it should not.
    pub fn handle_marked_datagram(
        &mut self,
        path: Path,
        datagrams: &[u8],
        stride: usize,
        ecn: u8,
        now: Instant,
    ) -> Damage {
        let congested = ecn & ECN_CE == ECN_CE;
        let before = self.damage();
        for datagram in datagrams.chunks(stride.max(1)) {
            match Kind::of(datagram) {
                Some(Kind::Data) => self.handle_data(path, datagram, congested, now),
                Some(Kind::Initiation) => self.handle_initiation(path, datagram, now),
                Some(Kind::Response) => self.handle_response(path, datagram, now),
                Some(Kind::Cookie) => self.handle_cookie(path, datagram, now),
                None => self.drop_unowned(DropReason::MalformedDatagram),
            }
        }
        let after = self.damage();
        let nonsense = after.nonsense - before.nonsense;
        let is_peers =
            nonsense > 0 && datagrams.chunks(stride.max(1)).any(|datagram| self.is_known(datagram));
        Damage { forged: after.forged - before.forged, nonsense: if is_peers { nonsense } else { 0 } }
    }

    /// Whether a datagram names one of our sessions, which only their peers and those on the path know.
    fn is_known(&self, datagram: &[u8]) -> bool {
        let is_data = matches!(Kind::of(datagram), Some(Kind::Data));
        is_data && self.peers.id_of_index(field(datagram, 4)).is_some()
    }

    /// Since the beginning.
    fn damage(&self) -> Damage {
        let nonsense = [DropReason::MalformedDatagram, DropReason::UnknownIndex];
        Damage {
            forged: self.drops.of(DropReason::InvalidData),
            nonsense: nonsense.iter().map(|reason| self.drops.of(*reason)).sum(),
        }
    }

    #[inline]
    fn handle_data(&mut self, path: Path, datagram: &[u8], congested: bool, now: Instant) {
        let index = field(datagram, 4);
        let Some(id) = self.peers.id_of_index(index) else {
            return self.drop_unowned(DropReason::UnknownIndex);
        };
        let Some(peer) = self.peers.find(id) else { return };
        let Some(room) = self.arrivals.slot(datagram.len() - DATA_HEADER) else {
            return peer.drop(&mut self.drops, DropReason::ReceiveFull, 1);
        };
        let len = match peer.session.decrypt(datagram, room, now) {
            Ok(len) => len,
            Err(reason) => {
                self.arrivals.abort();
                return peer.drop(&mut self.drops, reason, 1);
            }
        };
        let packet = &mut room[..len];
        let header = IpHeader::parse(packet);
        let confirmed = peer.session.confirms(index, now);
        let moved = peer.note_data(datagram, confirmed) && peer.move_to(path, now);
        let mut control = None;
        let verdict = match header {
            _ if len == 0 => Err(None),
            None => Err(Some(DropReason::MalformedPacket)),
            Some(header) if is_control(&header) => {
                control = Message::parse(packet);
                Err(None)
            }
            Some(header) if self.routes.find(header.source) != Some(id) => {
                Err(Some(DropReason::SourceNotAllowed))
            }
            Some(header) => {
                let key = peer.config.public_key;
                let allowed = match &mut self.filter {
                    Some(filter) => filter.judge(Origin::Peer(key), &header, packet, now),
                    None => Ok(()),
                };
                clamp_mss(&header, packet, peer.mtu(self.mtu, now), false);
                let carried = !congested || mark_congestion(packet);
                allowed.and(if carried { Ok(header.len) } else { Err(DropReason::Congestion) }).map_err(Some)
            }
        };
        match verdict {
            Ok(len) => {
                peer.health.note_use(now);
                self.arrivals.commit(len, id.0);
            }
            Err(reason) => {
                self.arrivals.abort();
                if let Some(reason) = reason {
                    peer.drop(&mut self.drops, reason, 1);
                }
            }
        }
        if !peer.reachable {
            self.judge_reachability(id, now);
        }
        if moved {
            self.push_event(Event::Roamed { peer: id, path });
        }
        if confirmed {
            self.begin_session(id, false, now);
        }
        match control {
            None => {}
            Some(Message::Control(control)) => self.handle_control(id, control, now),
            Some(Message::Announcement(lanes)) => self.handle_announcement(id, lanes, now),
        }
    }

    fn handle_initiation(&mut self, path: Path, message: &[u8], now: Instant) {
        if !self.admit(path, message, false, now) {
            return;
        }
        let Some(id) = self.initiator(message) else { return self.drop_unowned(DropReason::UnknownPeer) };
        let Some(peer) = self.peers.find(id) else { return };
        // WireGuard section 5.4.2 and the peers' own implementations: a peer repeats itself after 5 s at the earliest.
        if peer.initiation_accepted.is_some_and(|at| now.duration_since(at) < INITIATION_INTERVAL) {
            return peer.drop(&mut self.drops, DropReason::HandshakeTooSoon, 1);
        }
        match peer.session.handle_handshake(message, &mut self.scratch, now) {
            Ok(Reply::Response(len)) => {
                peer.initiation_accepted = Some(now);
                let moved = peer.move_to(path, now);
                let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
                peer.send_handshake(&mut outlet, path, len);
                if moved {
                    self.push_event(Event::Roamed { peer: id, path });
                }
                self.judge_reachability(id, now);
                self.rearm(id, now);
            }
            Ok(_) => {}
            Err(reason) => peer.drop(&mut self.drops, reason, 1),
        }
    }

    fn handle_response(&mut self, path: Path, message: &[u8], now: Instant) {
        let index = field(message, 8);
        let Some(id) = self.peers.id_of_index(index) else {
            return self.drop_unowned(DropReason::UnknownIndex);
        };
        if !self.peers.find(id).is_some_and(|peer| peer.session.awaits_response(now)) {
            return self.drop_unowned(DropReason::InvalidHandshake);
        }
        if !self.admit(path, message, true, now) {
            return;
        }
        let Some(peer) = self.peers.find(id) else { return };
        match peer.session.handle_handshake(message, &mut self.scratch, now) {
            Ok(Reply::Established(len)) => {
                peer.expect_index(index);
                let moved = peer.move_to(path, now);
                let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
                peer.send_sealed(&mut outlet, len);
                if moved {
                    self.push_event(Event::Roamed { peer: id, path });
                }
                self.judge_reachability(id, now);
                self.begin_session(id, true, now);
            }
            Ok(_) => {}
            Err(reason) => peer.drop(&mut self.drops, reason, 1),
        }
    }

    /// A cookie costs no public-key operation and is authenticated by the MAC of the message it answers. It never moves
    /// a peer.
    fn handle_cookie(&mut self, path: Path, message: &[u8], now: Instant) {
        let Some(id) = self.peers.id_of_index(field(message, 4)) else {
            return self.drop_unowned(DropReason::UnknownIndex);
        };
        let Some(peer) = self.peers.find(id) else { return };
        if peer.path.map(|peer| peer.remote) != Some(path.remote) || !peer.session.is_initiating() {
            return peer.drop(&mut self.drops, DropReason::InvalidHandshake, 1);
        }
        if let Err(reason) = peer.session.handle_handshake(message, &mut self.scratch, now) {
            peer.drop(&mut self.drops, reason, 1);
        }
    }

    /// Whether a handshake message may cost a public-key operation.
    fn admit(&mut self, path: Path, message: &[u8], expected: bool, now: Instant) -> bool {
        match self.limiter.judge(path.remote.ip(), message, expected, &mut self.scratch, now) {
            Verdict::Pass => {
                self.handshakes_computed += 1;
                return true;
            }
            Verdict::Cookie(len) if self.trains.push_handshake(path, &self.scratch[..len]) => {
                self.cookies += 1;
                self.drop_unowned(DropReason::CookieRequired);
            }
            Verdict::Cookie(_) => self.drop_unowned(DropReason::TransmitFull),
            Verdict::Drop(reason) => self.drop_unowned(reason),
        }
        false
    }

    /// Who sent an initiation, by the static key inside: one public-key operation.
    fn initiator(&self, message: &[u8]) -> Option<PeerId> {
        let Ok(Packet::HandshakeInit(init)) = Tunn::parse_incoming_packet(message) else { return None };
        let secret = self.private_key.secret();
        let public = x25519::PublicKey::from(self.private_key.public().0);
        let half = parse_handshake_anon(secret, &public, &init).ok()?;
        self.peers.id_of_key(crate::keys::PublicKey(half.peer_static_public))
    }

    /// A handshake is complete: what waited can go.
    fn begin_session(&mut self, id: PeerId, initiator: bool, now: Instant) {
        let Some(peer) = self.peers.find(id) else { return };
        peer.statistics.handshakes += 1;
        peer.begun_here = initiator;
        peer.health.begin(now);
        if peer.session.is_connected() {
            let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
            peer.flush(&mut outlet, now);
        }
        self.push_event(Event::SessionEstablished { peer: id, initiator });
        self.rearm(id, now);
    }
}

/// Kinds of WireGuard messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Initiation,
    Response,
    Cookie,
    Data,
}

impl Kind {
    /// By type, reserved bytes and length (WireGuard section 5.4).
    #[inline]
    fn of(datagram: &[u8]) -> Option<Self> {
        let kind = datagram.first_chunk::<4>().map(|kind| u32::from_le_bytes(*kind))?;
        match (kind, datagram.len()) {
            (4, DATA_OVERHEAD..) => Some(Self::Data),
            (1, 148) => Some(Self::Initiation),
            (2, 92) => Some(Self::Response),
            (3, 64) => Some(Self::Cookie),
            _ => None,
        }
    }
}

/// The 32-bit number at `at` of a message whose length [`Kind::of`] has checked.
#[inline]
fn field(message: &[u8], at: usize) -> u32 {
    message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Shortest time between two accepted initiations of one peer.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
