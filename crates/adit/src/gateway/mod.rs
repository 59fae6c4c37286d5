//! The ingress: entry point → router → middlewares → service, in Traefik's words.

pub(crate) mod files;
mod generation;
pub(crate) mod internal;
pub(crate) mod merge;
pub(crate) mod mesh_names;
mod redirect;
mod tls_splits;
pub(crate) mod view;
mod view_middlewares;
pub(crate) mod view_streams;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use adit_proxy::forwarded::ForwardedPolicy;
use adit_proxy::headers;
use adit_proxy::lanes::{LaneArc, LaneShared, PerLane};
use adit_proxy::mesh::MeshGate;
use adit_proxy::message::{Request, Response, Service, Visitor};
use adit_proxy::middleware::{self, BoxFuture, Ctx, Target as _};
use adit_route::mesh::MeshIdentity;
use arc_swap::ArcSwap;
use http::header::{self, HeaderName, HeaderValue};
use http::{StatusCode, Uri};

use self::generation::{Cleaned, Entry, UnknownPeer};
pub(crate) use self::generation::{Generation, Inputs, Observed, Served};
use crate::access_log::AccessLog;
use crate::acme::AcmeViews;
use crate::answer::{Exchange, RequestMetrics};
use crate::observe::probe::Probed;
use crate::observe::traefik::{Names, TraefikMetrics};
use crate::request_id::RequestIds;

/// Answers the visitors of the ingress.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Routers, middlewares and services in force; swapped whole.
    current: ArcSwap<Generation>,
    /// The same as each lane hands it on; none where it has not been asked for yet.
    own: PerLane<Mutex<Option<LaneArc<Generation>>>>,
    ids: RequestIds,
    metrics: RequestMetrics,
    access_log: Option<AccessLog>,
    traefik: Option<LaneShared<TraefikMetrics>>,
    acme: AcmeViews,
    /// Who of the mesh may speak at this moment.
    gate: Arc<MeshGate>,
}

impl Gateway {
    pub(crate) fn new(
        first: Generation,
        metrics: RequestMetrics,
        access_log: Option<AccessLog>,
        traefik: Option<Arc<TraefikMetrics>>,
        acme: AcmeViews,
    ) -> Self {
        let current = ArcSwap::from_pointee(first);
        let traefik = traefik.map(LaneShared::new);
        let (own, ids, gate) = (PerLane::new(Mutex::default), RequestIds::new(), Arc::default());
        Self { current, own, ids, metrics, access_log, traefik, acme, gate }
    }

    /// The gate of all entry points on the mesh.
    pub(crate) fn gate(&self) -> &Arc<MeshGate> {
        &self.gate
    }

    /// Certificates by ACME and their challenges.
    pub(crate) fn acme(&self) -> &AcmeViews {
        &self.acme
    }

    /// Traefik's metrics, where they are wanted.
    pub(crate) fn traefik(&self) -> Option<&Arc<TraefikMetrics>> {
        self.traefik.as_deref()
    }

    pub(crate) fn access_log(&self) -> Option<&AccessLog> {
        self.access_log.as_ref()
    }

    /// What is in force.
    pub(crate) fn load(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Takes a new generation for requests that begin from now on.
    pub(crate) fn store(&self, generation: Generation) {
        if let Some(traefik) = &self.traefik {
            traefik.configure(names(&generation.inputs));
        }
        self.current.store(Arc::new(generation));
        // A lane without visitors is not to keep the old one alive.
        for own in self.own.iter() {
            own.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// What is in force, with references that only this lane counts.
    fn own(&self) -> LaneArc<Generation> {
        let mut own = self.own.own().lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: what is kept here now is what is taken away after the next change.
        let current = self.current.load();
        match &*own {
            Some(kept) if kept.is(&current) => kept.clone(),
            _ => own.insert(LaneArc::new(Arc::clone(&current))).clone(),
        }
    }

    /// True if one of our routers wants this request; others may be the edge's.
    pub(crate) fn wants(&self, request: &Request) -> bool {
        self.current.load().finds(request)
    }

    /// True if the path is that of a challenge which is ours to answer.
    pub(crate) async fn has_challenge(&self, path: &str) -> bool {
        path.starts_with(CHALLENGE_PATH) && self.acme.challenges.has_http_answer(path).await
    }

    /// A challenge of ours is answered before anything else looks at the request; others are the routers', unless the
    /// entry point keeps them away.
    async fn answer_challenge(
        &self,
        generation: &Generation,
        (path, entry_point): (&str, &Arc<str>),
        exchange: &mut Exchange,
    ) -> Option<Response> {
        let answer = self.acme.challenges.http_answer(path).await;
        if answer.is_none() && generation.inputs.entry_points.get(&**entry_point)?.acme_bypass {
            return None;
        }
        exchange.answered_by(&Arc::from("acme-http@internal"));
        exchange.observe_only(generation.entry(entry_point)?.observed());
        exchange.is_internal();
        Some(answer.map_or_else(not_found, |text| Response::text(StatusCode::OK, "text/plain", text)))
    }

    /// Finds who is to answer a request; the error is our own answer.
    fn route<'a>(
        &self,
        generation: &'a Generation,
        request: &mut Request,
        exchange: &mut Exchange,
    ) -> Result<(&'a Served, Ctx), Response> {
        let Some(entry) = generation.entry(&request.visitor.entry_point) else { return Err(not_found()) };
        let Admitted { trusted, forwarded_client, cleaned, peer } =
            match self.admit(generation, entry, request, exchange) {
                Ok(admitted) => admitted,
                Err((reason, status)) => {
                    exchange.failed(reason);
                    exchange.observe_only(entry.observed());
                    return Err(plain(status));
                }
            };
        let found = generation.decide(request, &cleaned, peer);
        if let Some(redirect) = &entry.redirect
            && !redirect.spares(cleaned.path(request))
            && !redirect.is_done(request)
            && found.is_none_or(|found| found.priority < redirect.priority)
        {
            exchange.answered_by(&Arc::from("redirect@internal"));
            exchange.observe_only(entry.observed());
            exchange.is_internal();
            return Err(redirect.answer(request));
        }
        let Some(found) = found else {
            exchange.failed("no_router");
            exchange.observe_only(entry.observed());
            return Err(not_found());
        };
        let visitor = &request.visitor;
        if let Some(tls) = &visitor.tls
            && entry.misdirects(found, tls, &request.host)
        {
            exchange.failed("misdirected");
            exchange.observe_only(entry.observed());
            return Err(plain(StatusCode::MISDIRECTED_REQUEST));
        }
        let served: &Served = &found.target;
        exchange.answered_by(served.name.own());
        exchange.observe_only(served.observed);
        let client: IpAddr = visitor.remote.ip().to_canonical();
        let (entry_point, router) = (Arc::clone(&visitor.entry_point), Arc::clone(served.name.own()));
        let mut ctx = Ctx::new(entry_point, client, visitor.secure, router);
        ctx.tls.clone_from(&visitor.tls);
        ctx.append_forwarded_for = entry.policy.appends(trusted);
        ctx.forwarded_client = forwarded_client;
        Ok((served, ctx))
    }

    /// Brings a request into the form that rules and servers see. The error is the refusal's name and status.
    fn admit<'a>(
        &self,
        generation: &'a Generation,
        entry: &Entry,
        request: &mut Request,
        exchange: &mut Exchange,
    ) -> Result<Admitted<'a>, (&'static str, StatusCode)> {
        if !entry.tidy_fields(request) {
            return Err(("underscore_header", StatusCode::BAD_REQUEST));
        }
        let trusted = entry.policy.apply(request);
        let address = request.visitor.remote.ip();
        if request.visitor.peer.is_some() != entry.is_on_mesh() {
            // The connection is older than its entry point's place.
            return Err(("entry_point_moved", StatusCode::FORBIDDEN));
        }
        let peer = entry.identify(generation, address).and_then(|peer| match (peer, &request.visitor.peer) {
            // The one who sent it, and not who has its address by now.
            (Some(now), Some(then)) if now != then || self.gate.holds(address) => Err(UnknownPeer),
            (peer, _) => Ok(peer),
        });
        let peer = peer.map_err(|UnknownPeer| ("mesh_peer_unknown", StatusCode::FORBIDDEN))?;
        if let Some(peer) = peer {
            entry.tell_peer(&mut request.headers, peer, address);
            exchange.asked_by_peer(peer);
        }
        let forwarded_client = if trusted { forwarded_client(&entry.policy, request) } else { None };
        if let Some(client) = forwarded_client {
            exchange.asked_by(client);
        }
        let cleaned = entry.clean(request).map_err(|reason| (reason, StatusCode::BAD_REQUEST))?;
        Ok(Admitted { trusted, forwarded_client, cleaned, peer: peer.map(|peer| &**peer) })
    }
}

impl Service for Gateway {
    #[expect(clippy::manual_async_fn, reason = "an async fn would keep the request twice")]
    fn call(&self, mut request: Request) -> impl Future<Output = Response> + Send {
        async move {
            let request_id = self.ids.make_id();
            let log = self.access_log.as_ref();
            let mut exchange = Exchange::begin(&request, request_id.as_str(), &self.metrics, log);
            exchange.measure(&mut request, self.traefik.as_ref());
            let generation = self.own();
            let visitor = Arc::clone(&request.visitor);
            if request.uri.path().starts_with(CHALLENGE_PATH) {
                let path = request.uri.path().to_owned();
                let asked = (path.as_str(), &visitor.entry_point);
                let answered = Box::pin(self.answer_challenge(&generation, asked, &mut exchange)).await;
                if let Some(response) = answered {
                    return exchange.finish_with(tell_http3(&generation, &visitor, response));
                }
            }
            let response = match self.route(&generation, &mut request, &mut exchange) {
                Ok((served, mut ctx)) => {
                    let mut response = pass(served, &mut exchange, request, &mut ctx).await;
                    exchange.see(&mut response, &mut ctx);
                    exchange.passed(&ctx);
                    response
                }
                Err(response) => response,
            };
            exchange.finish_with(tell_http3(&generation, &visitor, response))
        }
    }
}

/// Passes a request through its router's middlewares to its service.
fn pass<'a>(
    served: &'a Served,
    exchange: &mut Exchange,
    request: Request,
    ctx: &'a mut Ctx,
) -> BoxFuture<'a, Response> {
    if served.chain.is_empty() {
        // What the service answers is what is seen here.
        return served.target.call(request, ctx);
    }
    let Some(seen) = exchange.see_behind() else {
        return middleware::run(&served.chain, &*served.target, request, ctx);
    };
    Box::pin(async move {
        let probed = Probed { target: &*served.target, seen: &seen };
        middleware::run(&served.chain, &probed, request, ctx).await
    })
}

/// Tells visitors over TLS of HTTP/3, where there is any.
fn tell_http3(generation: &Generation, visitor: &Visitor, mut response: Response) -> Response {
    if visitor.tls.is_some()
        && let Some(value) = generation.entry(&visitor.entry_point).and_then(|e| e.alt_svc.as_ref())
    {
        response.headers.insert(header::ALT_SVC, value.value(visitor.local.port()));
    }
    response
}

/// A request in the form that rules and servers see.
struct Admitted<'a> {
    /// Whether what its peer says about the visitor is believed.
    trusted: bool,
    /// Who asks, where a peer that is believed says so.
    forwarded_client: Option<IpAddr>,
    cleaned: Cleaned,
    /// Who asks, on an entry point of the mesh.
    peer: Option<&'a MeshIdentity>,
}

/// The rightmost address of `X-Forwarded-For` that is not itself a trusted hop.
fn forwarded_client(policy: &ForwardedPolicy, request: &Request) -> Option<IpAddr> {
    let mut client = None;
    for part in headers::forwarded_for(&request.headers)?.rsplit(',') {
        let address: IpAddr = part.trim().parse().ok()?;
        client = Some(address);
        if !policy.insecure && !policy.trusted.iter().any(|net| net.contains(&address)) {
            break;
        }
    }
    client
}

/// Everything that metrics may be labelled with.
fn names(inputs: &Inputs) -> Names {
    let http = &inputs.dynamic.http;
    Names {
        entry_points: inputs.entry_points.keys().cloned().collect(),
        routers: http.routers.iter().map(|(name, router)| (name.clone(), router.service.clone())).collect(),
        services: http.services.keys().cloned().collect(),
    }
}

/// Go's words for a path that nobody serves, which health checks and scripts compare.
fn not_found() -> Response {
    let mut response =
        Response::text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n");
    response.headers.insert(NOSNIFF.0, NOSNIFF.1);
    response
}

/// A refusal with its status' own words.
fn plain(status: StatusCode) -> Response {
    let text = format!("{}\n", status.canonical_reason().unwrap_or_default());
    Response::text(status, "text/plain; charset=utf-8", text)
}

/// Replaces the target of a request, path and query.
fn set_target(request: &mut Request, target: &str) -> bool {
    let mut parts = std::mem::take(&mut request.uri).into_parts();
    let Ok(path_and_query) = target.parse() else { return false };
    parts.path_and_query = Some(path_and_query);
    // Authority and scheme of an absolute form have done their work: the host is in `request.host`.
    (parts.scheme, parts.authority) = (None, None);
    match Uri::from_parts(parts) {
        Ok(uri) => {
            request.uri = uri;
            true
        }
        Err(_) => false,
    }
}

/// RFC 8555 §8.3.
const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";
const NOSNIFF: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
