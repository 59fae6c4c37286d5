//! Notices paths on which trains do not work, and steps down to single datagrams.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_mesh_proto::Path;

use crate::udp::Socket;

/// What is known about the paths of one lane.
#[derive(Debug)]
pub(crate) struct Health {
    kernel_takes_trains: bool,
    /// Paths to which no trains go, until when, and for how long next time.
    refusals: HashMap<SocketAddr, Refusal>,
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
        Self { kernel_takes_trains, refusals: HashMap::new(), steps_down: 0, path_mtus: Vec::new() }
    }

    /// Whether to send trains to `remote` now.
    pub(crate) fn takes_trains(&mut self, remote: SocketAddr, now: Instant) -> bool {
        if !self.kernel_takes_trains {
            return false;
        }
        self.refusals.is_empty() || self.refusals.get(&remote).is_none_or(|refusal| refusal.until <= now)
    }

    /// The kernel refused a train of datagrams of `size` bytes.
    pub(crate) fn refused(&mut self, path: Path, size: usize, error: &io::Error, now: Instant) {
        let hold = self.refusals.get(&path.remote).map_or(HOLD_MIN, |refusal| (refusal.hold * 2).min(HOLD_MAX));
        if self.refusals.len() >= PATHS_MAX {
            self.refusals.retain(|_, refusal| refusal.until > now);
        }
        if self.refusals.len() < PATHS_MAX {
            self.refusals.insert(path.remote, Refusal { until: now + hold, hold });
        }
        self.steps_down += 1;
        tracing::warn!(
            remote = %path.remote, size, %error, seconds = hold.as_secs(),
            "the kernel refuses trains on this path: sending single datagrams"
        );
        self.too_long(path);
    }

    /// Datagrams may be longer than the first link carries: ask how long they may be.
    pub(crate) fn too_long(&mut self, path: Path) {
        let Some(mtu) = Socket::mtu_towards(path.remote) else { return };
        let around = if path.remote.is_ipv4() { 20 + 8 + 32 } else { 40 + 8 + 32 };
        if let Ok(mtu) = usize::try_from(mtu)
            && self.path_mtus.len() < PATHS_MAX
        {
            self.path_mtus.push((path, mtu.saturating_sub(around) & !15));
        }
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

/// First pause of trains on a path; doubles each time up to [`HOLD_MAX`], because routes and drivers change.
const HOLD_MIN: Duration = Duration::from_secs(60);
const HOLD_MAX: Duration = Duration::from_secs(3600);
/// Paths remembered: one per peer and a few that they came from; 64 bytes each, 1 MiB.
const PATHS_MAX: usize = 16_384;
