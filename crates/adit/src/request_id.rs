//! Ids under which a visitor's page and the log speak of the same request.

use std::sync::atomic::{AtomicU64, Ordering};

/// Makes ids that are unique in this process and not guessable from one another at a glance.
#[derive(Debug)]
pub(crate) struct RequestIds {
    seed: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// Starts at a random point.
    pub(crate) fn new() -> Self {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        Self { seed: high | 1, next: AtomicU64::new(low) }
    }

    /// A new id: 16 hexadecimal digits.
    pub(crate) fn make(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        // An odd multiplier permutes the 64-bit numbers: no two counts give the same id.
        let number = count.wrapping_mul(self.seed).rotate_left(29) ^ self.seed;
        let digit = |place: usize| DIGITS[(number >> (60 - 4 * place) & 15) as usize];
        let digits: [u8; 16] = std::array::from_fn(digit);
        str::from_utf8(&digits).unwrap_or_default().to_owned()
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_do_not_repeat() {
        let ids = RequestIds::new();
        let made: std::collections::HashSet<String> = (0..10_000).map(|_| ids.make()).collect();
        assert_eq!(made.len(), 10_000);
        assert!(made.iter().all(|id| id.len() == 16));
    }
}
