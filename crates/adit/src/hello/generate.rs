//! Content made on the fly.

use std::task::{Context, Poll};
use std::time::Duration;

use adit_proxy::body::{Batch, BodyError, BodySource};
use bytes::Bytes;
use tokio::time::{Interval, MissedTickBehavior};

/// As many bytes as asked for, from one shared buffer.
pub(super) struct Pattern {
    left: u64,
    block: Bytes,
}

impl Pattern {
    /// `count` bytes.
    pub(super) fn new(count: u64) -> Self {
        Self { left: count, block: Bytes::from_static(&BLOCK) }
    }
}

impl BodySource for Pattern {
    fn poll_chunks(&mut self, _cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let take = self.left.min(self.block.len() as u64);
        self.left -= take;
        out.push_back(self.block.slice(..usize::try_from(take).unwrap_or(0)));
        Poll::Ready(Ok(self.left > 0))
    }
}

/// Server-sent events at a steady pace.
pub(super) struct EventSource {
    sent: u64,
    count: u64,
    pace: Interval,
}

impl EventSource {
    /// `count` events, one `every` so long, the first at once.
    pub(super) fn new(count: u64, every: Duration) -> Self {
        let mut pace = tokio::time::interval(every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { sent: 0, count, pace }
    }
}

impl BodySource for EventSource {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        if self.sent >= self.count {
            return Poll::Ready(Ok(false));
        }
        if self.pace.poll_tick(cx).is_pending() {
            return Poll::Pending;
        }
        self.sent += 1;
        out.push_back(format!("id: {0}\ndata: tick {0}\n\n", self.sent).into());
        Poll::Ready(Ok(self.sent < self.count))
    }
}

static BLOCK: [u8; 64 * 1024] = [b'a'; 64 * 1024];
