//! Notices a peer that has gone silent sooner than QUIC's idle timer does.
//!
//! The idle timer starts anew when we send, so 5 s of it become 6 s and more of silence; counting
//! what arrives does not. Both ends of a tunnel hear something every second, because the connector
//! sends PINGs (C4) and the edge acknowledges them.

use std::time::{Duration, Instant};

/// What was last heard of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Liveness {
    datagrams: u64,
    heard: Instant,
}

impl Liveness {
    pub(crate) fn new(now: Instant) -> Self {
        Self { datagrams: 0, heard: now }
    }

    /// Takes the count of datagrams received so far; how long the peer has been silent.
    pub(crate) fn observe(&mut self, datagrams: u64, now: Instant) -> Duration {
        if datagrams != self.datagrams {
            self.datagrams = datagrams;
            self.heard = now;
        }
        now.saturating_duration_since(self.heard)
    }
}

/// Between looks.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Silence after which an edge gives new requests to other connections: two PINGs are missing.
pub(crate) const QUIET: Duration = Duration::from_millis(2_500);
/// Silence after which a connection is given up; with [`LOOK_INTERVAL`] it is noticed within 5 s.
pub(crate) const DEAD: Duration = Duration::from_millis(4_500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_peer_is_noticed_within_five_seconds_and_three_missing_pings_are_not_enough() {
        assert!(DEAD + LOOK_INTERVAL <= Duration::from_secs(5));
        assert!(QUIET < DEAD && DEAD > Duration::from_secs(4));
    }

    #[test]
    fn silence_grows_until_something_arrives() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.observe(3, start + QUIET), Duration::ZERO);
        assert_eq!(liveness.observe(3, start + QUIET + DEAD), DEAD);
        assert_eq!(liveness.observe(4, start + QUIET + DEAD), Duration::ZERO);
    }
}
