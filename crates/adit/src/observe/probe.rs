//! Watches the hop to the origin for log and metrics: bytes of both directions, fields of the origin's answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use adit_proxy::body::{Batch, Body, BodyError, BodySource, Length};
use adit_proxy::message::{Request, Response};
use adit_proxy::middleware::{BoxFuture, Ctx, Outcome, Target};
use adit_proxy::tcp::splice::Pipe;
use http::HeaderMap;

/// Bytes of content that have passed.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Of content that was there at once.
    known: u64,
    /// Of content that is still on its way.
    streamed: Option<Arc<AtomicU64>>,
}

/// What the origin's answer leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Content read from the origin.
    content: Passed,
    /// Fields of the first answer, where the log wants them.
    headers: Option<Box<HeaderMap>>,
    wants_headers: bool,
}

/// A target whose answers are seen, for those behind middlewares.
pub(crate) struct Probed<'a> {
    pub(crate) target: &'a dyn Target,
    pub(crate) seen: &'a Mutex<Seen>,
}

impl Passed {
    pub(crate) fn bytes(&self) -> u64 {
        self.streamed.as_ref().map_or(self.known, |bytes| bytes.load(Ordering::Relaxed))
    }

    /// Counts what is read of a body from now on; one that can be sent again stays as it is.
    pub(crate) fn count(&mut self, body: Body) -> Body {
        let length = body.length();
        if body.is_replayable() {
            let known = if let Length::Known(known) = length { known } else { 0 };
            *self = Self { known, streamed: None };
            return body;
        }
        let bytes = Arc::new(AtomicU64::new(0));
        *self = Self { known: 0, streamed: Some(Arc::clone(&bytes)) };
        Body::stream(Tally { body, bytes }, length)
    }
}

impl Seen {
    pub(crate) fn new(wants_headers: bool) -> Self {
        Self { wants_headers, ..Self::default() }
    }

    /// Notes what a target has answered.
    pub(crate) fn see(&mut self, response: &mut Response, ctx: &mut Ctx) {
        if ctx.outcome == Outcome::Answered && self.wants_headers {
            self.headers.get_or_insert_with(|| Box::new(HeaderMap::clone(&response.headers)));
        }
        if ctx.outcome != Outcome::Unasked {
            // In Traefik's log, our own answer in place of a server that was asked counts as that server's.
            ctx.log.origin_status.get_or_insert(response.status);
            let body = std::mem::replace(&mut response.body, Body::empty());
            response.body = self.content.count(body);
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.content.bytes()
    }

    pub(crate) fn take_headers(&mut self) -> HeaderMap {
        self.headers.take().map(|headers| *headers).unwrap_or_default()
    }
}

impl Target for Probed<'_> {
    fn call<'a>(&'a self, request: Request, ctx: &'a mut Ctx) -> BoxFuture<'a, Response> {
        Box::pin(async move {
            let mut response = self.target.call(request, ctx).await;
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).see(&mut response, ctx);
            response
        })
    }
}

/// A body whose bytes are counted as they are read.
struct Tally {
    body: Body,
    bytes: Arc<AtomicU64>,
}

impl BodySource for Tally {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let before = out.len();
        let result = self.body.poll_chunks(cx, out);
        let read = out.iter().skip(before).map(|chunk| chunk.len() as u64).sum::<u64>();
        self.bytes.fetch_add(read, Ordering::Relaxed);
        result
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<Option<bool>, BodyError>> {
        let moved = ready!(self.body.poll_pipe(cx, pipe))?;
        self.bytes.fetch_add(moved.map_or(0, |_| pipe.filled() as u64), Ordering::Relaxed);
        Poll::Ready(Ok(moved))
    }

    fn lend_pipe(&self) -> Option<Pipe> {
        self.body.lend_pipe()
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
        let request = Request {
            method: http::Method::GET,
            uri: Uri::from_static("/"),
            version: http::Version::HTTP_11,
            host: "a".to_owned(),
            headers: HeaderMap::new().into(),
            body: Body::empty(),
            upgrade: None,
            visitor: Arc::new(visitor),
        };
        let seen = Mutex::new(Seen::new(false));
        let mut ctx = Ctx::new("web".into(), [127, 0, 0, 1].into(), false, "r".into());
        Probed { target: &Failing(outcome), seen: &seen }.call(request, &mut ctx).await;
        (ctx.log.origin_status, seen.into_inner().unwrap().bytes())
    }

    #[tokio::test]
    async fn our_answer_in_place_of_a_server_that_was_asked_is_logged_as_its() {
        assert_eq!(logged(Outcome::Unsent).await, (Some(StatusCode::BAD_GATEWAY), 11));
        assert_eq!(logged(Outcome::Failed).await, (Some(StatusCode::BAD_GATEWAY), 11));
        assert_eq!(logged(Outcome::Unasked).await, (None, 0));
    }
}
