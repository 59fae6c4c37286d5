//! When a certificate is renewed and when a failed order is tried again: pure arithmetic.

use std::time::{Duration, SystemTime};

use crate::error::Retry;

/// When to renew a certificate that is valid from `begin` to `end`, if certificates are planned to live for `planned`.
///
/// The time before the end is Traefik's table, but never more than a third of the life that the certificate really has: a
/// CA that gives shorter ones than planned must not be asked again at once.
pub(crate) fn renew_at(begin: SystemTime, end: SystemTime, planned: Duration) -> SystemTime {
    let life = end.duration_since(begin).unwrap_or_default();
    let before = BEFORE_END.iter().find(|(at_least, _)| planned >= *at_least).map_or(SHORTEST, |(_, b)| *b);
    end - before.min(life / 3)
}

/// The wait before the next try after `failures` (at least 1) in a row; `chance` is between 0 and 1.
pub(crate) fn wait(retry: Retry, failures: u32, chance: f64) -> Duration {
    let first = match retry {
        Retry::Soon => FIRST_WAIT_SOON,
        Retry::Later => FIRST_WAIT_LATER,
        Retry::MuchLater => FIRST_WAIT_LIMITED,
    };
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
    // Only upwards, so that several processes drift apart and none is faster than the schedule.
    doubled.min(WAIT_MAX).mul_f64(1.0 + chance.clamp(0.0, 1.0) / 4.0)
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3600)
}

/// Planned life at least so long → renewed so long before the end.
const BEFORE_END: [(Duration, Duration); 5] = [
    (days(365), days(120)),
    (days(90), days(30)),
    (days(30), days(10)),
    (days(7), days(1)),
    (days(1), Duration::from_secs(6 * 3600)),
];
const SHORTEST: Duration = Duration::from_secs(20 * 60);
/// Where the CA has not counted anything against us.
const FIRST_WAIT_SOON: Duration = Duration::from_secs(10);
/// Let's Encrypt allows five failed validations of a name an hour: 0, 2, 6, 14, 30 minutes, then more than an hour.
const FIRST_WAIT_LATER: Duration = Duration::from_secs(120);
/// Where the CA names no time itself.
const FIRST_WAIT_LIMITED: Duration = Duration::from_secs(3600);
/// A name that is mended gets its certificate within a working day.
const WAIT_MAX: Duration = Duration::from_secs(6 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_follows_the_table_and_a_third_of_the_real_life() {
        let begin = SystemTime::UNIX_EPOCH + days(10_000);
        let at = |life: Duration, planned: Duration| {
            (begin + life).duration_since(renew_at(begin, begin + life, planned)).unwrap()
        };
        assert_eq!(at(days(90), days(90)), days(30));
        assert_eq!(at(days(365), days(365)), days(120));
        assert_eq!(at(days(30), days(30)), days(10));
        assert_eq!(at(days(7), days(7)), days(1));
        assert_eq!(at(days(6), days(90)), days(2), "shorter than planned");
        assert_eq!(at(Duration::from_secs(30), days(90)), Duration::from_secs(10));
        assert_eq!(at(Duration::from_secs(7200), Duration::from_secs(3600)), SHORTEST);
        let backwards = renew_at(begin, begin - days(1), days(90));
        assert_eq!(backwards, begin - days(1), "a nonsense certificate does not underflow");
    }

    #[test]
    fn waits_grow_to_a_cap_and_never_shrink_below_the_schedule() {
        assert_eq!(wait(Retry::Soon, 1, 0.0), Duration::from_secs(10));
        assert_eq!(wait(Retry::Later, 3, 0.0), Duration::from_secs(480));
        assert_eq!(wait(Retry::MuchLater, 1, 1.0), Duration::from_secs(4500));
        assert_eq!(wait(Retry::Later, u32::MAX, 0.0), WAIT_MAX);
        let first_hour: u64 = (1..=5).map(|n| wait(Retry::Later, n, 0.0).as_secs()).sum();
        assert!(first_hour > 3600, "five tries an hour");
    }
}
