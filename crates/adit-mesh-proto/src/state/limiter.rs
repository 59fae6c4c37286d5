//! Who may make us compute a handshake.
//!
//! A public-key operation costs 54 µs and more, a wrong MAC 0.3 µs. So: a message without a right first MAC ends at once;
//! one from a source that has not proven its address is computed only within a small budget, of that source and of all
//! together, and answered by a cookie beyond it; a proven source has a budget of its own; and all of them together never
//! take more than a quarter of a core. boringtun's own limiter is one global counter (defect 7) that somebody must reset
//! (defect 9); it serves here only to check and make MACs.

use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;

use crate::drops::DropReason;
use crate::keys::PublicKey;

/// Gate before all handshake work.
pub(crate) struct Limiter {
    /// Checks the first MAC only: its limit is never reached.
    mac1: Arc<RateLimiter>,
    /// Demands the second MAC of everybody: its limit is always reached.
    mac2: RateLimiter,
    secret: u64,
    began: Instant,
    unproven: Box<[Bucket]>,
    proven: Box<[Bucket]>,
    unproven_all: Bucket,
    /// Second MACs to check, and cookies to make: apart, so that messages without one do not use up what those with one need.
    checks: Bucket,
    cookies: Bucket,
    all: Bucket,
}

/// What to do with a handshake message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Compute it.
    Pass,
    /// Send the cookie of this length that was written out, and forget the message.
    Cookie(usize),
    /// Forget it.
    Drop(DropReason),
}

impl Limiter {
    pub(crate) fn new(public: PublicKey, secret: u64, now: Instant) -> Self {
        let key = public.x25519();
        Self {
            mac1: Arc::new(RateLimiter::new(&key, u64::MAX)),
            mac2: RateLimiter::new(&key, 0),
            secret,
            began: now,
            unproven: vec![Bucket::FULL; SOURCES].into(),
            proven: vec![Bucket::FULL; SOURCES].into(),
            unproven_all: Bucket::FULL,
            checks: Bucket::FULL,
            cookies: Bucket::FULL,
            all: Bucket::FULL,
        }
    }

    /// For sessions, which check the first MAC again.
    pub(crate) fn shared(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.mac1)
    }

    /// Judges a handshake message of right length. `expected` says that it answers an initiation of ours, which an outsider
    /// cannot know; then no cookie is asked for. `out` has room for a cookie.
    pub(crate) fn judge(
        &mut self,
        source: IpAddr,
        message: &[u8],
        expected: bool,
        out: &mut [u8],
        now: Instant,
    ) -> Verdict {
        let at = millis_since(self.began, now);
        if self.mac1.verify_packet(Some(source), message, out).is_err() {
            return Verdict::Drop(DropReason::InvalidMac);
        }
        let slot = self.slot(source);
        if !expected && !self.take_unproven(slot, at) {
            let claims_proof = message.iter().rev().take(MAC_LEN).any(|byte| *byte != 0);
            let granted =
                if claims_proof { self.checks.take(at, CHECKS) } else { self.cookies.take(at, COOKIES) };
            if !granted {
                return Verdict::Drop(DropReason::HandshakeRate);
            }
            match self.mac2.verify_packet(Some(source), message, out) {
                Ok(_) if self.proven[slot].take(at, PROVEN) => {}
                Ok(_) => return Verdict::Drop(DropReason::SourceRate),
                Err(TunnResult::WriteToNetwork(cookie)) => return Verdict::Cookie(cookie.len()),
                Err(_) => return Verdict::Drop(DropReason::InvalidMac),
            }
        }
        if self.all.take(at, ALL) { Verdict::Pass } else { Verdict::Drop(DropReason::HandshakeRate) }
    }

    fn take_unproven(&mut self, slot: usize, at: u32) -> bool {
        // The source first: one that asks too often must not use up what all have together.
        self.unproven[slot].take(at, UNPROVEN) && self.unproven_all.take(at, UNPROVEN_ALL)
    }

    /// Place of the source's network (/32 or /64). Several may share one; a secret keeps others from choosing which.
    fn slot(&self, source: IpAddr) -> usize {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.secret);
        match source.to_canonical() {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()[..8]),
        }
        usize::try_from(hasher.finish() % SOURCES as u64).unwrap_or_default()
    }
}

/// Tokens in thousandths and when they were counted, in milliseconds since the limiter began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    thousandths: u32,
    at: u32,
}

/// Tokens a second, and most tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

impl Bucket {
    /// Counted down to the burst of its rate when first used.
    pub(crate) const FULL: Self = Self { thousandths: u32::MAX, at: 0 };

    pub(crate) fn take(&mut self, at: u32, rate: Rate) -> bool {
        // `at` wraps after 49 days; a wrapped difference is large and only refills.
        let gained = at.wrapping_sub(self.at).saturating_mul(rate.per_second);
        self.thousandths = self.thousandths.saturating_add(gained).min(rate.burst * 1000);
        self.at = at;
        let granted = self.thousandths >= 1000;
        if granted {
            self.thousandths -= 1000;
        }
        granted
    }
}

/// Buckets of each kind: 2 × 4,096 × 8 bytes = 64 KiB whatever the number of sources.
const SOURCES: usize = 4096;
/// What a source may ask without proof: several peers behind one address that start at once.
const UNPROVEN: Rate = Rate { per_second: 10, burst: 16 };
/// What a proven source may ask: WireGuard's 20 a second, with a burst for networks full of peers.
const PROVEN: Rate = Rate { per_second: 20, burst: 64 };
/// What all may ask without proof before everybody is asked for it.
const UNPROVEN_ALL: Rate = Rate { per_second: 64, burst: 256 };
/// Cookies made and sent, at 4 µs each: a twenty-fifth of a core, so that sessions keep their rate. Not by source: somebody who
/// writes a peer's address on his messages would keep it from ever getting one. Beside 50,000 others a second a peer gets
/// its cookie in every fifth attempt, 5 s apart, and passes with it for two minutes.
const COOKIES: Rate = Rate { per_second: 10_000, burst: 1000 };
/// Second MACs checked, at 2.2 µs each: as much.
const CHECKS: Rate = Rate { per_second: 20_000, burst: 2000 };
const MAC_LEN: usize = 16;
/// What is computed in all: at 0.25 ms for a peer's whole handshake, a quarter of a core.
const ALL: Rate = Rate { per_second: 1000, burst: 1000 };

/// Milliseconds for [`Bucket::take`].
pub(crate) fn millis_since(began: Instant, now: Instant) -> u32 {
    let millis = now.saturating_duration_since(began).min(Duration::from_secs(u64::MAX / 1000)).as_millis();
    // Wraps on purpose, see `Bucket::take`.
    (millis & u128::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_second: 10, burst: 3 };
        let mut bucket = Bucket::FULL;
        let mut granted = |at: u32| (0..100).filter(|_| bucket.take(at, rate)).count();
        assert_eq!(granted(5), 3);
        assert_eq!(granted(5), 0);
        assert_eq!(granted(105), 1);
        assert_eq!(granted(1105), 3, "never more than the burst");
        assert_eq!(granted(1104), 3, "a clock that wraps only refills");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
    fn sources_share_a_bucket_by_their_network() {
        let limiter = Limiter::new(PublicKey([1; 32]), 7, Instant::now());
        let slot = |address: &str| limiter.slot(address.parse().unwrap());
        assert_eq!(slot("2001:db8::1"), slot("2001:db8::ffff:1"));
        assert_ne!(slot("2001:db8::1"), slot("2001:db8:0:1::1"));
        assert_ne!(slot("192.0.2.1"), slot("192.0.2.2"));
        assert_eq!(slot("192.0.2.1"), slot("::ffff:192.0.2.1"));
    }
}
