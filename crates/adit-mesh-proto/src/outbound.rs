//! Packets on their way to peers.

use std::time::Instant;

use crate::clamp::clamp_mss;
use crate::control::is_control;
use crate::drops::DropReason;
use crate::icmp::{ERROR_LEN_MAX, Problem, write_error};
use crate::ip::IpHeader;
use crate::mesh::{Mesh, outlet};
use crate::packet::{Outgoing, PeerId};
use crate::segment::{Offload, OffloadKind};
use crate::session::Session;
use crate::state::limiter::{Rate, millis_since};
use crate::state::policy::Origin;

impl Mesh {
    /// Takes one IP packet, or one super-packet, from the TUN device or netstack; its buffer is scratch afterwards.
    pub fn handle_packet(&mut self, packet: Outgoing<'_>, now: Instant) {
        let Outgoing { contents, mut offload } = packet;
        let Some(header) = IpHeader::parse(contents) else {
            return self.drop_unowned(DropReason::MalformedPacket);
        };
        if is_control(&header) {
            return self.drop_unowned(DropReason::SourceNotAllowed);
        }
        let contents = &mut contents[..header.len];
        let Some(id) = self.routes.find(header.destination) else {
            self.drop_unowned(DropReason::NoRoute);
            // The first lane knows better: the peer has left this one a moment ago.
            if self.further.is_some() {
                return;
            }
            return self.answer(PeerId::NOBODY, &header, contents, Problem::Unreachable, now);
        };
        let Some(peer) = self.peers.find(id) else { return };
        if let Some(filter) = &mut self.filter
            && let Err(reason) = filter.judge(Origin::Here, &header, contents, now)
        {
            return peer.drop(&mut self.drops, reason, 1);
        }
        let mtu = peer.mtu(self.mtu, now);
        clamp_mss(&header, contents, mtu, offload.partial_checksum.is_some());
        if !fit(&header, contents, &mut offload, mtu) {
            peer.drop(&mut self.drops, DropReason::TooBig, 1);
            return self.answer(id, &header, contents, Problem::TooBig(mtu), now);
        }
        if peer.path.is_none() {
            peer.drop(&mut self.drops, DropReason::NoEndpoint, 1);
            return self.answer(id, &header, contents, Problem::Unreachable, now);
        }
        self.send_to(id, contents, offload, now);
    }

    fn send_to(&mut self, id: PeerId, packet: &mut [u8], offload: Offload, now: Instant) {
        let Some(peer) = self.peers.find(id) else { return };
        if peer.session.is_connected() {
            let mut outlet = outlet(&mut self.trains, &mut self.scratch, &mut self.drops, self.mtu);
            peer.send(&mut outlet, packet, offload, now);
            if peer.deadline.is_none() {
                self.rearm(id, now);
            }
            return;
        }
        peer.stage(&mut self.drops, packet, offload);
        if peer.wants_handshake(now) {
            self.start_handshake(id, now);
        }
    }

    /// Tells the sender of a packet what is wrong with it; the answer comes out like a packet from the peer.
    fn answer(&mut self, id: PeerId, header: &IpHeader, packet: &[u8], problem: Problem, now: Instant) {
        if !self.errors.take(millis_since(self.began, now), ERRORS) {
            return;
        }
        let Some(room) = self.arrivals.slot(ERROR_LEN_MAX) else { return };
        match write_error(header, packet, problem, room) {
            Some(len) => self.arrivals.commit(len, id.0),
            None => self.arrivals.abort(),
        }
    }
}

/// Whether every packet that comes of it has at most `mtu` bytes. Segments of TCP are made smaller to that end.
#[inline]
fn fit(header: &IpHeader, packet: &[u8], offload: &mut Offload, mtu: usize) -> bool {
    let headers = match offload.kind {
        OffloadKind::None => return header.len <= mtu,
        OffloadKind::Udp => header.transport + UDP_LEN,
        OffloadKind::Tcp4 | OffloadKind::Tcp6 => {
            let words = packet.get(header.transport + 12).map_or(0, |offset| offset >> 4);
            header.transport + usize::from(words) * 4
        }
    };
    let Some(fitting) = mtu.checked_sub(headers).and_then(|fitting| u16::try_from(fitting).ok()) else {
        return false;
    };
    if offload.segment_size <= fitting || header.len <= mtu {
        return true;
    }
    if offload.kind == OffloadKind::Udp || fitting == 0 {
        return false;
    }
    offload.segment_size = fitting;
    true
}

const UDP_LEN: usize = 8;
/// Errors that a lane sends: senders need one each, and a flood of them helps nobody.
const ERRORS: Rate = Rate { per_second: 100, burst: 50 };
