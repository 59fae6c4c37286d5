//! What the lanes of one node say to each other. Nobody waits for anybody: what finds a full queue is said again within
//! seconds, when the peer announces its lanes anew.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use adit_mesh_proto::{Event, LaneAddress, LanePeer, Mesh, PeerId, PublicKey};

use crate::branch::{NotTaken, Outbox};
use crate::device::Packet;
use crate::lane::Control;
use crate::statistics::IoStatistics;

/// A lane's place among the lanes of its node.
pub(crate) enum Fleet {
    /// The first, with those after it.
    First(Vec<Sibling>),
    /// A further one: its number, from 1, and the first.
    Further(usize, Line),
}

/// A further lane as the first sees it.
pub(crate) struct Sibling {
    pub(crate) line: Line,
    pub(crate) outbox: Outbox,
}

/// Asks another lane.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) requests: SyncSender<Control>,
    pub(crate) wake: Arc<OwnedFd>,
}

impl Line {
    fn ask(&self, control: Control) {
        if self.requests.try_send(control).is_ok() {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }
}

impl Fleet {
    /// Hands the packet in `buffer` to the lane that it belongs to; `false` if that is this one, also because the other has
    /// ended. One that finds the other's queue full is dropped.
    pub(crate) fn hand_over(
        &mut self,
        mesh: &mut Mesh,
        buffer: &mut Vec<u8>,
        packet: Packet,
        statistics: &mut IoStatistics,
    ) -> bool {
        let Self::First(siblings) = self else { return false };
        if siblings.is_empty() {
            return false;
        }
        let lane = mesh.lane_of(buffer.get(packet.1.clone()).unwrap_or_default());
        let Some(sibling) = lane.checked_sub(1).and_then(|further| siblings.get_mut(further)) else {
            return false;
        };
        match sibling.outbox.hand_over(buffer, packet) {
            Ok(()) => statistics.handed_over += 1,
            Err(NotTaken::Full) => statistics.lane_full += 1,
            Err(NotTaken::Gone) => return false,
        }
        true
    }

    /// Wakes those that packets were handed to.
    pub(crate) fn flush(&mut self) {
        if let Self::First(siblings) = self {
            siblings.iter_mut().for_each(|sibling| sibling.outbox.flush());
        }
    }

    /// Passes on what concerns the others.
    pub(crate) fn note(&self, mesh: &Mesh, event: &Event) {
        match (self, event) {
            (Self::First(siblings), Event::Lanes { peer, lanes, begin }) => {
                announce(siblings, mesh, *peer, lanes, *begin);
            }
            (
                Self::Further(..),
                Event::SessionEstablished { peer, .. }
                | Event::SessionExpired { peer }
                | Event::Reachability { peer, .. },
            ) => {
                if let Some(identity) = mesh.identity_of(*peer) {
                    self.report(identity, mesh.carries(*peer));
                }
            }
            _ => {}
        }
    }

    /// Tells the first lane whether packets to a peer may take this one.
    pub(crate) fn report(&self, identity: PublicKey, up: bool) {
        if let Self::Further(number, first) = self {
            first.ask(Control::NoteLane { identity, lane: *number, up });
        }
    }
}

fn announce(siblings: &[Sibling], mesh: &Mesh, peer: PeerId, lanes: &[LaneAddress], begin: bool) {
    let (Some(identity), Some(path)) = (mesh.identity_of(peer), mesh.path(peer)) else { return };
    for (number, sibling) in siblings.iter().enumerate() {
        sibling.line.ask(match lanes.get(number) {
            Some(lane) => {
                let mut remote = path.remote;
                remote.set_port(lane.port);
                Control::Join(LanePeer { identity, key: lane.key, remote, begin })
            }
            None => Control::Leave(identity),
        });
    }
}
