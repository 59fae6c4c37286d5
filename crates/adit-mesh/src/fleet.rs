//! What the lanes of one node say to each other. Nobody waits for anybody: what a further lane has to report is said again
//! until it is heard, and what the first tells the others is repeated when the peer announces its lanes anew.

use std::collections::HashMap;
use std::net::IpAddr;
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
    /// A further one.
    Further(Further),
}

/// A further lane's view of the first.
pub(crate) struct Further {
    number: usize,
    first: Line,
    /// Peers whose state the first lane has not heard yet, with that state; no more than there are peers.
    unheard: HashMap<PublicKey, bool>,
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
    /// Whether it will be heard.
    fn ask(&self, control: Control) -> bool {
        let heard = self.requests.try_send(control).is_ok();
        if heard {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
        heard
    }
}

impl Further {
    fn say(&mut self) {
        let (number, first) = (self.number, &self.first);
        let mut heard = true;
        self.unheard.retain(|identity, up| {
            heard = heard && first.ask(Control::NoteLane { identity: *identity, lane: number, up: *up });
            !heard
        });
    }
}

impl Fleet {
    /// The lane of this number, from 1.
    pub(crate) fn further(number: usize, first: Line) -> Self {
        Self::Further(Further { number, first, unheard: HashMap::new() })
    }

    /// Its number; the first has 0.
    pub(crate) fn number(&self) -> usize {
        match self {
            Self::First(_) => 0,
            Self::Further(further) => further.number,
        }
    }

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
    pub(crate) fn note(&mut self, mesh: &Mesh, event: &Event) {
        match event {
            Event::Lanes { peer, lanes, begin } => {
                if let Self::First(siblings) = self {
                    announce(siblings, mesh, *peer, lanes, *begin);
                }
            }
            Event::SessionEstablished { peer, .. }
            | Event::SessionExpired { peer }
            | Event::Reachability { peer, .. } => {
                if let Some(identity) = mesh.identity_of(*peer) {
                    self.report(identity, mesh.carries(*peer));
                }
            }
            Event::Roamed { peer, path } => {
                let (Some(identity), address) = (mesh.identity_of(*peer), path.remote.ip()) else { return };
                match self {
                    Self::First(_) => self.relocate(identity, address),
                    Self::Further(further) => _ = further.first.ask(Control::AskAt(identity, address)),
                }
            }
            Event::Probed { .. } | Event::PathMtu { .. } => {}
        }
    }

    /// Tells further lanes where a peer is now, which may not have sent anything there since.
    pub(crate) fn relocate(&self, identity: PublicKey, address: IpAddr) {
        if let Self::First(siblings) = self {
            for sibling in siblings {
                sibling.line.ask(Control::Relocate(identity, address));
            }
        }
    }

    /// Tells the first lane whether packets to a peer may take this one.
    pub(crate) fn report(&mut self, identity: PublicKey, up: bool) {
        if let Self::Further(further) = self {
            further.unheard.insert(identity, up);
            further.say();
        }
    }

    /// Says again what was not heard.
    pub(crate) fn repeat(&mut self) {
        if let Self::Further(further) = self
            && !further.unheard.is_empty()
        {
            further.say();
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
