//! Notices paths on which trains do not work, and steps down to single datagrams.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_mesh_proto::{Mesh, Path, PeerId};

use crate::retransmits::Retransmits;
use crate::trial::{Trial, Verdict};
use crate::udp::Socket;

/// What is known about the paths of one lane.
#[derive(Debug)]
pub(crate) struct Health {
    kernel_takes_trains: bool,
    /// Paths to which no trains go, until when, and for how long next time.
    refusals: HashMap<SocketAddr, Refusal>,
    /// Peers whose TCP data was looked at, and paths on which single datagrams are being tried.
    trials: HashMap<PeerId, Trial>,
    tried: HashSet<SocketAddr>,
    retransmits: Retransmits,
    steps_down: u64,
    path_mtus: Vec<(Path, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Refusal {
    until: Instant,
    hold: Duration,
}

impl Health {
    pub(crate) fn new(kernel_takes_trains: bool) -> Self {
        Self {
            kernel_takes_trains,
            refusals: HashMap::new(),
            trials: HashMap::new(),
            tried: HashSet::new(),
            retransmits: Retransmits::default(),
            steps_down: 0,
            path_mtus: Vec::new(),
        }
    }

    /// Whether to send trains to `remote` now.
    pub(crate) fn takes_trains(&mut self, remote: SocketAddr, now: Instant) -> bool {
        if !self.kernel_takes_trains {
            return false;
        }
        (self.refusals.is_empty() || self.refusals.get(&remote).is_none_or(|refusal| refusal.until <= now))
            && (self.tried.is_empty() || !self.tried.contains(&remote))
    }

    /// Looks at a packet that is about to go to a peer.
    pub(crate) fn observe(&mut self, mesh: &Mesh, packet: &[u8], now: Instant) {
        let Some(seen) = self.retransmits.observe(packet).filter(|_| self.kernel_takes_trains) else {
            return;
        };
        let Some(peer) = mesh.peer_by_address(seen.destination) else { return };
        if self.trials.len() >= PATHS_MAX && !self.trials.contains_key(&peer) {
            return;
        }
        let trial = self.trials.entry(peer).or_insert_with(|| Trial::new(now));
        let verdict = trial.observe(seen.sent, seen.repeated, now);
        if verdict != Verdict::Undecided
            && let Some(path) = mesh.path(peer)
        {
            self.execute(verdict, path.remote, now);
        }
    }

    /// Forgets everybody, because the peers have changed.
    pub(crate) fn forget_peers(&mut self) {
        self.trials.clear();
        self.tried.clear();
    }

    fn execute(&mut self, verdict: Verdict, remote: SocketAddr, now: Instant) {
        match verdict {
            Verdict::Undecided => {}
            Verdict::TrySingles if self.tried.len() < PATHS_MAX => {
                tracing::debug!(%remote, "much is sent again: trying single datagrams");
                self.tried.insert(remote);
                self.retransmits.forgive_old(true);
            }
            Verdict::TrySingles | Verdict::BackToTrains => {
                self.tried.remove(&remote);
                self.retransmits.forgive_old(false);
            }
            Verdict::Guilty => {
                self.tried.remove(&remote);
                self.retransmits.forgive_old(false);
                self.steps_down += 1;
                let seconds = self.hold(remote, now).as_secs();
                tracing::warn!(%remote, seconds, "trains get lost on this path: sending single datagrams");
            }
        }
    }

    /// The kernel refused a train of datagrams of `size` bytes.
    pub(crate) fn refused(&mut self, path: Path, size: usize, error: &io::Error, now: Instant) {
        // Too long for the link is no fault of trains: the datagrams go out as fragments this once, and
        // the engine learns how long they may be.
        if self.too_long(path, size) {
            return;
        }
        self.steps_down += 1;
        let seconds = self.hold(path.remote, now).as_secs();
        tracing::warn!(
            remote = %path.remote, size, %error, seconds,
            "the kernel refuses trains on this path: sending single datagrams"
        );
    }

    /// Whether datagrams of `size` bytes are longer than the first link of the path carries, which the
    /// engine then learns.
    pub(crate) fn too_long(&mut self, path: Path, size: usize) -> bool {
        let headers = if path.remote.is_ipv4() { 20 + 8 } else { 40 + 8 };
        let mtu = Socket::mtu_towards(path.remote).and_then(|mtu| usize::try_from(mtu).ok());
        let Some(mtu) = mtu.filter(|mtu| size + headers > *mtu) else { return false };
        if self.path_mtus.len() < PATHS_MAX {
            self.path_mtus.push((path, mtu.saturating_sub(headers + WIREGUARD_LEN) & !15));
        }
        true
    }

    /// No trains to `remote` for a while, which is returned; longer each time.
    fn hold(&mut self, remote: SocketAddr, now: Instant) -> Duration {
        let hold = self.refusals.get(&remote).map_or(HOLD_MIN, |refusal| (refusal.hold * 2).min(HOLD_MAX));
        if self.refusals.len() >= PATHS_MAX {
            self.refusals.retain(|_, refusal| refusal.until > now);
        }
        if self.refusals.len() < PATHS_MAX {
            self.refusals.insert(remote, Refusal { until: now + hold, hold });
        }
        hold
    }

    /// Inner MTUs learnt since the last call.
    pub(crate) fn drain_path_mtus(&mut self) -> impl Iterator<Item = (Path, usize)> + '_ {
        self.path_mtus.drain(..)
    }

    /// How often trains were given up, and for how many paths they are now.
    pub(crate) fn counts(&self, now: Instant) -> (u64, u64) {
        let now_without = self.refusals.values().filter(|refusal| refusal.until > now).count();
        (self.steps_down, now_without as u64)
    }
}

/// Header and tag that WireGuard puts around a packet.
const WIREGUARD_LEN: usize = 32;
/// First pause of trains on a path; doubles each time up to [`HOLD_MAX`], because routes and drivers change.
const HOLD_MIN: Duration = Duration::from_secs(60);
const HOLD_MAX: Duration = Duration::from_secs(3600);
/// Paths remembered: one per peer and a few that they came from; at most 128 bytes each, 2 MiB.
const PATHS_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn path(port: u16) -> Path {
        Path { remote: ([127, 0, 0, 1], port).into(), local: None }
    }

    #[test]
    fn a_path_on_which_the_kernel_refuses_trains_gets_none_for_a_while_and_longer_each_time() {
        let mut health = Health::new(true);
        let mut now = Instant::now();
        let broken = io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
        let (this, other) = (path(1), path(2));
        for hold in [HOLD_MIN, HOLD_MIN * 2, HOLD_MIN * 4] {
            assert!(health.takes_trains(this.remote, now));
            health.refused(this, 1452, &broken, now);
            assert!(!health.takes_trains(this.remote, now + hold - Duration::from_millis(1)));
            assert!(health.takes_trains(other.remote, now));
            assert_eq!(health.counts(now).1, 1);
            now += hold;
        }
        assert_eq!(health.counts(now), (3, 0));
        assert_eq!(health.drain_path_mtus().count(), 0);
    }

    #[test]
    fn datagrams_longer_than_the_link_teach_the_engine_and_are_no_fault_of_trains() {
        let mut health = Health::new(true);
        let now = Instant::now();
        let too_long = io::Error::from_raw_os_error(rustix::io::Errno::MSGSIZE.raw_os_error());
        // The loopback carries 65,536 bytes.
        health.refused(path(1), 65_530, &too_long, now);
        assert!(health.takes_trains(path(1).remote, now));
        let learnt: Vec<_> = health.drain_path_mtus().collect();
        assert_eq!(learnt, [(path(1), (65_536 - 28 - 32) & !15)]);
        assert!(!Health::new(false).takes_trains(path(1).remote, now), "the kernel takes none at all");
    }
}
