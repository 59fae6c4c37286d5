//! Randomised exponential waiting between attempts (tunnel-protocol.md §1.3, C12).

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};

/// The retry state of one connection.
#[derive(Clone, Debug)]
pub struct Backoff {
    attempts: u8,
    attempts_max: u8,
}

impl Backoff {
    /// A fresh state whose exponent stops growing after `attempts_max` attempts.
    pub fn new(attempts_max: u8) -> Self {
        Self { attempts: 0, attempts_max: attempts_max.min(EXPONENT_MAX) }
    }

    /// Retries consumed so far; what the next registration reports (C7).
    pub fn attempts(&self) -> u8 {
        self.attempts
    }

    /// Consumes one retry: a wait uniform in [0, 2^k s), k the retries consumed.
    pub fn next_wait(&mut self, rng: &mut StdRng) -> Duration {
        self.attempts = self.attempts.saturating_add(1).min(self.attempts_max);
        let below_ms = 1000u64 << self.attempts;
        Duration::from_millis(rng.random_range(0..below_ms))
    }

    /// Starts over, after a successful registration.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// 2^10 s is 17 minutes; a larger `--retries` is taken as this.
const EXPONENT_MAX: u8 = 10;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn each_wait_is_below_two_to_the_attempt_and_the_cap_holds() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..200 {
            let mut backoff = Backoff::new(5);
            for attempt in 1..=12u32 {
                let k = attempt.min(5);
                assert!(backoff.next_wait(&mut rng) < Duration::from_secs(1 << k));
                assert_eq!(u32::from(backoff.attempts()), k);
            }
            backoff.reset();
            assert_eq!(backoff.attempts(), 0);
        }
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut rng = StdRng::seed_from_u64(2);
        let waits: Vec<_> = (0..500).map(|_| Backoff::new(5).next_wait(&mut rng).as_millis()).collect();
        assert!(waits.iter().any(|wait| *wait < 200) && waits.iter().any(|wait| *wait > 1800));
    }
}
