//! Content that is held for all requests together: alone in its process, because it fills what all share.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::task::{Context, Poll};

use adit_proxy::body::{Batch, Body, BodyError, BodySource, Length};
use adit_proxy::service::replay::{ALL_KEPT_BYTES_MAX, KeepError, keep_whole, kept_bytes};
use bytes::Bytes;

/// As many pieces of 1 MiB as it says.
struct Pieces(usize);

impl BodySource for Pieces {
    fn poll_chunks(&mut self, _cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        out.push_back(Bytes::from_static(&[7; 1 << 20]));
        self.0 -= 1;
        Poll::Ready(Ok(self.0 > 0))
    }
}

fn content() -> Body {
    Body::stream(Pieces(16), Length::Unknown)
}

#[tokio::test]
async fn content_kept_whole_counts_until_it_is_dropped_and_there_is_room_for_so_much_only() {
    let kept = keep_whole(content(), 16 << 20).await.unwrap();
    assert_eq!(kept.len(), 16 << 20);
    assert!(kept_bytes() >= 16 << 20);
    let too_large = keep_whole(content(), (16 << 20) - 1).await;
    assert_eq!(too_large, Err(KeepError::Body(BodyError::TooLarge)));
    let mut all = vec![kept.slice(1..), kept];
    let refused = loop {
        match keep_whole(content(), u64::MAX).await {
            Ok(kept) => all.push(kept),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, KeepError::NoRoom);
    assert!(kept_bytes() <= ALL_KEPT_BYTES_MAX);
    drop(all);
    assert_eq!(kept_bytes(), 0);
}
