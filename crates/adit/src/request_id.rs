//! Ids under which a visitor's page and the log speak of the same request.

use std::sync::atomic::{AtomicU64, Ordering};

use adit_proxy::lanes::PerLane;

/// Makes ids that are unique in this process and not guessable from one another at a glance.
#[derive(Debug)]
pub(crate) struct RequestIds {
    seed: u64,
    /// Far enough apart never to meet.
    next: PerLane<AtomicU64>,
}

/// An id: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestId([u8; 16]);

impl RequestId {
    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl RequestIds {
    /// Starts at a random point.
    pub(crate) fn new() -> Self {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        let lanes = AtomicU64::new(0);
        let first = || low.wrapping_add(lanes.fetch_add(1, Ordering::Relaxed) << LANE_SHIFT);
        Self { seed: high | 1, next: PerLane::new(|| AtomicU64::new(first())) }
    }

    /// A new id.
    pub(crate) fn make_id(&self) -> RequestId {
        let count = self.next.own().fetch_add(1, Ordering::Relaxed);
        // An odd multiplier permutes the 64-bit numbers: no two counts give the same id.
        let number = count.wrapping_mul(self.seed).rotate_left(29) ^ self.seed;
        let digit = |place: usize| DIGITS[(number >> (60 - 4 * place) & 15) as usize];
        RequestId(std::array::from_fn(digit))
    }
}

/// A lane makes fewer ids than this many bits can count.
const LANE_SHIFT: u32 = 56;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_do_not_repeat() {
        let ids = RequestIds::new();
        let mut made: std::collections::HashSet<RequestId> = (0..10_000).map(|_| ids.make_id()).collect();
        let ids = std::sync::Arc::new(ids);
        let lanes = adit_proxy::lanes::Lanes::start(1).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        lanes.handles()[0].spawn(async move {
            let _ = tell.send((0..10_000).map(|_| ids.make_id()).collect::<Vec<_>>());
        });
        made.extend(told.recv().unwrap());
        assert_eq!(made.len(), 20_000);
        assert!(made.iter().all(|id| id.as_str().len() == 16));
    }
}
