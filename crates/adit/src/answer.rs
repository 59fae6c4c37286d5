//! An answer that reports how it ended: to the access log, the metrics, and whoever counts requests in flight.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use adit_proxy::body::{Batch, Body, BodyError, BodySource};
use adit_proxy::clock;
use adit_proxy::lanes::{LaneArc, LaneShared};
use adit_proxy::message::{Request, Response};
use adit_proxy::middleware::{Attempt, Ctx};
use adit_proxy::tcp::splice::Pipe;
use adit_route::mesh::MeshIdentity;
use http::HeaderMap;
use tokio::time::Instant;

use self::metrics::Counters;
pub(crate) use self::metrics::RequestMetrics;
use crate::access_log::{AccessLog, Entry, LaneLog};
use crate::gateway::Observed;
use crate::observe::probe::{Passed, Seen};
use crate::observe::traefik::{Answered, Asked, Part, TraefikMetrics};

mod metrics;

/// A request that is being answered; dropping it counts it as done.
#[derive(Debug)]
pub(crate) struct Exchange {
    entry: Option<Box<Entry>>,
    began: Instant,
    log: Option<LaneLog>,
    metrics: LaneArc<Counters>,
    measured: Option<Measured>,
    /// Content read from the visitor.
    received: Passed,
    /// The origin's answer; none if nobody wants to know.
    seen: Option<Seen>,
    /// The same, while middlewares stand before the origin.
    seen_behind: Option<Arc<Mutex<Seen>>>,
    /// 0 until there is an answer.
    status: u16,
    sent: u64,
}

/// What Traefik's metrics are told when the answer is over.
#[derive(Debug)]
struct Measured {
    metrics: LaneArc<TraefikMetrics>,
    asked: Asked,
    entry_point: Arc<str>,
    router: Option<Arc<str>>,
    service: Option<Arc<str>>,
    origin_status: Option<u16>,
    retries: u32,
    replaced: Vec<Attempt>,
}

impl Exchange {
    /// Starts the clock.
    pub(crate) fn begin(
        request: &Request,
        request_id: &str,
        metrics: &RequestMetrics,
        log: Option<&AccessLog>,
    ) -> Self {
        let metrics = metrics.own().clone();
        metrics.begun();
        let log = log.map(AccessLog::own);
        let entry = log.as_ref().map(|log| entry(log, request, request_id));
        Self {
            entry,
            began: clock::now(),
            log,
            metrics,
            measured: None,
            received: Passed::default(),
            seen: None,
            seen_behind: None,
            status: 0,
            sent: 0,
        }
    }

    /// Measures the request's content, and everything under Traefik's names where they are wanted.
    pub(crate) fn measure(&mut self, request: &mut Request, metrics: Option<&LaneShared<TraefikMetrics>>) {
        if metrics.is_none() && self.entry.is_none() {
            return;
        }
        self.measured = metrics.map(|metrics| Measured {
            metrics: metrics.own().clone(),
            asked: Asked::of(request),
            entry_point: Arc::clone(&request.visitor.entry_point),
            router: None,
            service: None,
            origin_status: None,
            retries: 0,
            replaced: Vec::new(),
        });
        let wants_headers = self.entry.is_some() && self.log.as_ref().is_some_and(LaneLog::wants_headers);
        self.seen = Some(Seen::new(wants_headers));
        request.body = self.received.count(std::mem::replace(&mut request.body, Body::empty()));
    }

    /// Notes what the origin has answered, if anyone wants to know.
    pub(crate) fn see(&mut self, response: &mut Response, ctx: &mut Ctx) {
        if let Some(seen) = &mut self.seen {
            seen.see(response, ctx);
        }
    }

    /// Has [`crate::observe::probe::Probed`] note what the origin answers, if anyone wants to know.
    pub(crate) fn see_behind(&mut self) -> Option<Arc<Mutex<Seen>>> {
        self.seen_behind = self.seen.take().map(|seen| Arc::new(Mutex::new(seen)));
        self.seen_behind.clone()
    }

    /// Leaves the request out of the log or Traefik's metrics.
    pub(crate) fn observe_only(&mut self, wanted: Observed) {
        if !wanted.in_log {
            self.entry = None;
        }
        if !wanted.in_metrics {
            self.measured = None;
        }
    }

    /// An answer of our own, which counts as Traefik's internal services do.
    pub(crate) fn is_internal(&mut self) {
        let in_log = self.log.as_ref().is_some_and(LaneLog::adds_internals);
        let in_metrics = self.measured.as_ref().is_some_and(|measured| measured.metrics.add_internals);
        self.observe_only(Observed { in_log, in_metrics });
    }

    /// Says whose request it is, where a trusted hop told.
    pub(crate) fn asked_by(&mut self, client: std::net::IpAddr) {
        if let Some(entry) = &mut self.entry {
            entry.client = client;
        }
    }

    /// Says which peer of the mesh asks.
    pub(crate) fn asked_by_peer(&mut self, peer: &Arc<MeshIdentity>) {
        if let Some(entry) = &mut self.entry {
            entry.mesh = Some(Arc::clone(peer));
        }
    }

    /// Says who answered.
    pub(crate) fn answered_by(&mut self, route: &Arc<str>) {
        if let Some(entry) = &mut self.entry {
            entry.route = Some(Arc::clone(route));
        }
    }

    /// Takes over what chain and service noted.
    pub(crate) fn passed(&mut self, ctx: &Ctx) {
        if let Some(reason) = ctx.log.refusal {
            self.failed(reason);
        }
        if let Some(measured) = &mut self.measured {
            measured.router = Some(Arc::clone(&ctx.router));
            measured.service.clone_from(&ctx.log.service);
            measured.origin_status = ctx.log.origin_status.map(|status| status.as_u16());
            measured.retries = ctx.log.retries;
            measured.replaced.clone_from(&ctx.log.replaced);
        }
        if let Some(entry) = &mut self.entry {
            let log = &ctx.log;
            // Traefik names the service where it chooses a server.
            entry.service = log.service.clone().filter(|_| log.service_url.is_some());
            entry.service_url.clone_from(&log.service_url);
            entry.origin_status = log.origin_status.map(|status| status.as_u16());
            entry.origin_duration = log.origin_duration;
            entry.retries = log.retries;
            entry.user.clone_from(&log.user);
        }
    }

    /// Says that we answered because a hop failed.
    pub(crate) fn failed(&mut self, reason: &'static str) {
        self.metrics.failed(reason);
        if let Some(entry) = &mut self.entry {
            entry.reason = reason;
        }
    }

    /// Wraps the answer so that its end is seen.
    pub(crate) fn finish_with(mut self, response: Response) -> Response {
        self.status = response.status.as_u16();
        self.metrics.answered(self.status);
        if let (Some(entry), Some(log)) = (&mut self.entry, &self.log)
            && log.wants_headers()
        {
            entry.headers[2].clone_from(&response.headers);
        }
        let Response { status, headers, body } = response;
        let length = body.length();
        let body = if body.is_replayable() {
            if let adit_proxy::body::Length::Known(bytes) = length {
                self.sent = bytes;
            }
            body
        } else {
            Body::stream(Counted { body, exchange: self }, length)
        };
        Response { status, headers, body }
    }
}

/// What is known of a request before it is answered.
fn entry(log: &LaneLog, request: &Request, request_id: &str) -> Box<Entry> {
    let mut entry = log.blank();
    let visitor = &request.visitor;
    entry.started = SystemTime::now();
    entry.request_id.push_str(request_id);
    entry.peer = visitor.remote;
    entry.client = visitor.remote.ip();
    entry.method.clone_from(&request.method);
    entry.host.push_str(&request.host);
    entry.path.push_str(request.uri.path_and_query().map_or("/", |p| p.as_str()));
    entry.version = request.version;
    entry.entry_point = Some(Arc::clone(&visitor.entry_point));
    entry.tls.clone_from(&visitor.tls);
    entry.secure = visitor.secure;
    if log.wants_headers() {
        entry.headers[0].clone_from(&request.headers);
    }
    entry
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let duration = clock::now() - self.began;
        self.metrics.ended(duration);
        // The visitor left before there was an answer.
        let status = if self.status == 0 { CLIENT_CLOSED_REQUEST } else { self.status };
        let received = self.received.bytes();
        if let Some(measured) = &self.measured {
            measured.report(Answered { status, duration, received, sent: self.sent });
        }
        if let (Some(log), Some(mut entry)) = (&self.log, self.entry.take()) {
            (entry.duration, entry.status, entry.bytes) = (duration, status, self.sent);
            entry.received = received;
            let behind = self.seen_behind.as_deref();
            let mut behind = behind.map(|seen| seen.lock().unwrap_or_else(PoisonError::into_inner));
            if let Some(seen) = behind.as_deref_mut().or(self.seen.as_mut()) {
                entry.origin_bytes = seen.bytes();
                entry.headers[1] = seen.take_headers();
            }
            log.write(entry);
        }
    }
}

impl Measured {
    fn report(&self, answered: Answered) {
        // Each attempt is a request to its service; what of the visitor's content each got is not told apart.
        for Attempt { service, status, duration } in &self.replaced {
            let answered = Answered { status: status.as_u16(), duration: *duration, received: 0, sent: 0 };
            self.metrics.replaced(service, &self.asked, answered);
        }
        let part = Part {
            entry_point: &self.entry_point,
            router: self.router.as_deref().unwrap_or_default(),
            service: self.service.as_deref().unwrap_or_default(),
            service_status: self.origin_status.unwrap_or(answered.status),
            retries: self.retries,
        };
        self.metrics.count(&part, &self.asked, answered);
    }
}

struct Counted {
    body: Body,
    exchange: Exchange,
}

impl BodySource for Counted {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let before = out.len();
        let result = ready!(self.body.poll_chunks(cx, out));
        self.exchange.sent += out.iter().skip(before).map(|chunk| chunk.len() as u64).sum::<u64>();
        if let Err(error) = &result {
            self.exchange.failed(error.reason());
        }
        Poll::Ready(result)
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<Option<bool>, BodyError>> {
        let result = ready!(self.body.poll_pipe(cx, pipe));
        match &result {
            Ok(moved) => self.exchange.sent += moved.map_or(0, |_| pipe.filled() as u64),
            Err(error) => self.exchange.failed(error.reason()),
        }
        Poll::Ready(result)
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}

/// What Traefik (after nginx) notes where the visitor left before there was an answer.
const CLIENT_CLOSED_REQUEST: u16 = 499;
