//! How much of a line one connection fills: its bandwidth-delay product, seen from outside.

use std::time::{Duration, Instant};

/// One direction of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bdp {
    bytes: u64,
    at: Instant,
    /// Bytes a round trip, as of the last looks.
    product: u64,
}

impl Bdp {
    /// Nothing has moved yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { bytes: 0, at: now, product: 0 }
    }

    /// Takes the bytes moved since the connection began; the window that lets it move three times as fast.
    ///
    /// Where a packet is lost, what was sent in a round trip waits for it while the next is under way, and renewing a window takes
    /// an eighth of it: less than two and a quarter would stand still. A window that is the limit grows so with each look until
    /// something else is; one that is no longer filled halves, so that a pause of a second does not cost a slow start.
    pub(crate) fn observe(&mut self, bytes: u64, now: Instant, rtt: Duration) -> u64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        if elapsed > 0.0 {
            let moved = bytes.saturating_sub(self.bytes) as f64;
            let product = (moved * rtt.as_secs_f64() / elapsed) as u64;
            *self = Self { bytes, at: now, product: product.max(self.product / 2) };
        }
        self.product.saturating_mul(3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_window_is_thrice_what_moves_in_a_round_trip_and_halves_in_silence() {
        let start = Instant::now();
        let mut bdp = Bdp::new(start);
        let (look, rtt) = (Duration::from_millis(500), Duration::from_millis(100));
        // 50 MiB in half a second are 10 MiB a round trip.
        assert_eq!(bdp.observe(50 * MIB, start + look, rtt), 30 * MIB);
        assert_eq!(bdp.observe(50 * MIB, start + 2 * look, rtt), 15 * MIB);
        assert_eq!(bdp.observe(350 * MIB, start + 3 * look, rtt), 180 * MIB);
    }

    #[test]
    fn two_looks_at_once_are_one() {
        let start = Instant::now();
        let mut bdp = Bdp::new(start);
        assert_eq!(bdp.observe(50 * MIB, start, Duration::from_secs(1)), 0);
    }
}
