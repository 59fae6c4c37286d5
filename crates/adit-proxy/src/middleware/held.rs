//! Something that is to live as long as a body: a slot taken, a count kept.

use std::task::{Context, Poll};

use http::HeaderMap;

use crate::body::{Batch, Body, BodyError, BodySource};

/// Ties `guard` to `body`: dropped when the body has ended or is dropped. A body that is in memory already is over as
/// far as a server is concerned, so its guard goes at once.
pub(super) fn hold(body: Body, guard: impl Send + 'static) -> Body {
    if body.is_replayable() {
        return body;
    }
    let length = body.length();
    Body::stream(Held { body, guard: Some(guard) }, length)
}

struct Held<G> {
    body: Body,
    guard: Option<G>,
}

impl<G: Send> BodySource for Held<G> {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let result = self.body.poll_chunks(cx, out);
        if !matches!(result, Poll::Pending | Poll::Ready(Ok(true))) {
            self.guard = None;
        }
        result
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}
