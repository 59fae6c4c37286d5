//! Packets on their way to peers.

use std::time::Instant;

use crate::drops::DropReason;
use crate::ip::IpHeader;
use crate::mesh::{Mesh, outlet};
use crate::packet::{Outgoing, PeerId};
use crate::segment::Offload;
use crate::session::Session;

impl Mesh {
    /// Takes one IP packet, or one super-packet, from the TUN device or netstack; its buffer is scratch afterwards.
    pub fn handle_packet(&mut self, packet: Outgoing<'_>, now: Instant) {
        let Outgoing { contents, offload } = packet;
        let Some(header) = IpHeader::parse(contents) else {
            return self.drop_unowned(DropReason::MalformedPacket);
        };
        let Some(id) = self.routes.find(header.destination) else {
            return self.drop_unowned(DropReason::NoRoute);
        };
        self.send_to(id, &mut contents[..header.len], offload, now);
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
        if peer.path.is_none() {
            return peer.drop(&mut self.drops, DropReason::NoEndpoint, 1);
        }
        peer.stage(&mut self.drops, packet, offload);
        if peer.wants_handshake(now) {
            self.start_handshake(id, now);
        }
    }
}
