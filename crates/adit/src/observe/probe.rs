//! Watches the hop to the origin for log and metrics: bytes of both directions, fields of the origin's answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use adit_proxy::body::{Batch, Body, BodyError, BodySource, Length};
use adit_proxy::message::{Request, Response};
use adit_proxy::middleware::{BoxFuture, Ctx, Outcome, Target};
use http::HeaderMap;

/// What the bodies and the origin's answer leave behind.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// Content read from the visitor.
    received: Arc<AtomicU64>,
    /// Content read from the origin.
    origin: Arc<AtomicU64>,
    /// Fields of the first answer from the origin, where the log wants them.
    origin_headers: OnceLock<HeaderMap>,
    wants_headers: bool,
}

/// A target seen through a probe.
pub(crate) struct Probed<'a> {
    pub(crate) target: &'a dyn Target,
    pub(crate) probe: &'a Probe,
}

impl Probe {
    /// Counts what is read of the request's content from now on.
    pub(crate) fn new(request: &mut Request, wants_headers: bool) -> Self {
        let probe = Self { wants_headers, ..Self::default() };
        request.body = tally(std::mem::replace(&mut request.body, Body::empty()), &probe.received);
        probe
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn origin(&self) -> u64 {
        self.origin.load(Ordering::Relaxed)
    }

    pub(crate) fn origin_headers(&self) -> HeaderMap {
        self.origin_headers.get().cloned().unwrap_or_default()
    }
}

impl Target for Probed<'_> {
    fn call<'a>(&'a self, request: Request, ctx: &'a mut Ctx) -> BoxFuture<'a, Response> {
        Box::pin(async move {
            let mut response = self.target.call(request, ctx).await;
            if ctx.outcome == Outcome::Answered {
                if self.probe.wants_headers {
                    let _ = self.probe.origin_headers.set(response.headers.clone());
                }
                self.probe.origin.store(0, Ordering::Relaxed);
                response.body = tally(response.body, &self.probe.origin);
            }
            response
        })
    }
}

struct Tally {
    body: Body,
    bytes: Arc<AtomicU64>,
}

/// Counts what is read of a body; one that can be sent again stays as it is.
fn tally(body: Body, bytes: &Arc<AtomicU64>) -> Body {
    let length = body.length();
    if body.is_replayable() {
        if let Length::Known(known) = length {
            bytes.store(known, Ordering::Relaxed);
        }
        return body;
    }
    Body::stream(Tally { body, bytes: Arc::clone(bytes) }, length)
}

impl BodySource for Tally {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let before = out.len();
        let result = self.body.poll_chunks(cx, out);
        let read = out.iter().skip(before).map(|chunk| chunk.len() as u64).sum::<u64>();
        self.bytes.fetch_add(read, Ordering::Relaxed);
        result
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}
