//! Watches the hop to the origin for log and metrics: bytes of both directions, fields of the origin's answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use adit_proxy::body::{Batch, Body, BodyError, BodySource, Length};
use adit_proxy::message::{Request, Response};
use adit_proxy::middleware::{BoxFuture, Ctx, Outcome, Target};
use adit_proxy::tcp::splice::Pipe;
use http::HeaderMap;

/// What the bodies and the origin's answer leave behind.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// Content read from the visitor.
    received: AtomicU64,
    /// Content read from the origin.
    origin: AtomicU64,
    /// Fields of the first answer from the origin, where the log wants them.
    origin_headers: OnceLock<HeaderMap>,
    wants_headers: bool,
}

/// A target seen through a probe.
pub(crate) struct Probed<'a> {
    pub(crate) target: &'a dyn Target,
    pub(crate) probe: &'a Arc<Probe>,
}

impl Probe {
    /// Counts what is read of the request's content from now on.
    pub(crate) fn new(request: &mut Request, wants_headers: bool) -> Arc<Self> {
        let probe = Arc::new(Self { wants_headers, ..Self::default() });
        request.body = tally(std::mem::replace(&mut request.body, Body::empty()), &probe, Hop::Visitor);
        probe
    }

    fn count(&self, hop: Hop) -> &AtomicU64 {
        match hop {
            Hop::Visitor => &self.received,
            Hop::Origin => &self.origin,
        }
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
            if ctx.outcome == Outcome::Answered && self.probe.wants_headers {
                let _ = self.probe.origin_headers.set(HeaderMap::clone(&response.headers));
            }
            if ctx.outcome != Outcome::Unasked {
                // In Traefik's log, our own answer in place of a server that was asked counts as that server's.
                ctx.log.origin_status.get_or_insert(response.status);
                self.probe.origin.store(0, Ordering::Relaxed);
                response.body = tally(response.body, self.probe, Hop::Origin);
            }
            response
        })
    }
}

/// Whose content it is.
#[derive(Clone, Copy)]
enum Hop {
    Visitor,
    Origin,
}

struct Tally {
    body: Body,
    probe: Arc<Probe>,
    hop: Hop,
}

/// Counts what is read of a body; one that can be sent again stays as it is.
fn tally(body: Body, probe: &Arc<Probe>, hop: Hop) -> Body {
    let length = body.length();
    if body.is_replayable() {
        if let Length::Known(known) = length {
            probe.count(hop).store(known, Ordering::Relaxed);
        }
        return body;
    }
    Body::stream(Tally { body, probe: Arc::clone(probe), hop }, length)
}

impl BodySource for Tally {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let before = out.len();
        let result = self.body.poll_chunks(cx, out);
        let read = out.iter().skip(before).map(|chunk| chunk.len() as u64).sum::<u64>();
        self.probe.count(self.hop).fetch_add(read, Ordering::Relaxed);
        result
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<Option<bool>, BodyError>> {
        let moved = ready!(self.body.poll_pipe(cx, pipe))?;
        self.probe.count(self.hop).fetch_add(moved.map_or(0, |_| pipe.filled() as u64), Ordering::Relaxed);
        Poll::Ready(Ok(moved))
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::{StatusCode, Uri};

    use super::*;

    /// Answers for itself, as far as it came.
    struct Failing(Outcome);

    impl Target for Failing {
        fn call<'a>(&'a self, _request: Request, ctx: &'a mut Ctx) -> BoxFuture<'a, Response> {
            Box::pin(async move {
                ctx.outcome = self.0;
                Response::text(StatusCode::BAD_GATEWAY, "text/plain", "Bad Gateway")
            })
        }
    }

    async fn logged(outcome: Outcome) -> (Option<StatusCode>, u64) {
        let visitor = adit_proxy::message::Visitor {
            remote: SocketAddr::from(([127, 0, 0, 1], 1)),
            local: SocketAddr::from(([127, 0, 0, 1], 2)),
            secure: false,
            entry_point: "web".into(),
            peer: None,
            tls: None,
            address: adit_proxy::message::AddressText::default(),
        };
        let mut request = Request {
            method: http::Method::GET,
            uri: Uri::from_static("/"),
            version: http::Version::HTTP_11,
            host: "a".to_owned(),
            headers: HeaderMap::new().into(),
            body: Body::empty(),
            upgrade: None,
            visitor: Arc::new(visitor),
        };
        let probe = Probe::new(&mut request, false);
        let mut ctx = Ctx::new("web".into(), [127, 0, 0, 1].into(), false, "r".into());
        Probed { target: &Failing(outcome), probe: &probe }.call(request, &mut ctx).await;
        (ctx.log.origin_status, probe.origin())
    }

    #[tokio::test]
    async fn our_answer_in_place_of_a_server_that_was_asked_is_logged_as_its() {
        assert_eq!(logged(Outcome::Unsent).await, (Some(StatusCode::BAD_GATEWAY), 11));
        assert_eq!(logged(Outcome::Failed).await, (Some(StatusCode::BAD_GATEWAY), 11));
        assert_eq!(logged(Outcome::Unasked).await, (None, 0));
    }
}
