//! One server of a load balancer: what a request becomes for it, and what is noted of the answer.

use std::sync::Arc;

use adit_config::dynamic::{PassiveHealthCheck, Server as Settings};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};

use super::balancer::Member;
use super::state::ServerState;
use super::url::ServerUrl;
use crate::clock;
use crate::forwarded;
use crate::h2::websocket;
use crate::headers::{self, X_FORWARDED_FOR};
use crate::lanes::LaneName;
use crate::message::{Request, Response};
use crate::middleware::{Ctx, Outcome};
use crate::origin::{ForwardError, Origin};

/// A server with everything that belongs to it.
#[derive(Debug)]
pub(super) struct Server {
    /// As written; also what its cookie is made of.
    pub(super) text: LaneName,
    pub(super) url: ServerUrl,
    pub(super) settings: Settings,
    pub(super) origin: Arc<Origin>,
    pub(super) state: Arc<ServerState>,
    /// Shared by all servers of the service.
    pub(super) rules: Arc<Rules>,
}

/// What a service asks of all its servers.
#[derive(Debug)]
pub(super) struct Rules {
    /// `name@provider`.
    pub(super) service: LaneName,
    pub(super) pass_host_header: bool,
    pub(super) passive: Option<PassiveHealthCheck>,
    pub(super) is_probed: bool,
    /// Whether the strategy looks at load and response times.
    pub(super) counts_load: bool,
}

impl Member for Server {
    fn name(&self) -> &str {
        &self.text
    }

    fn weight(&self) -> u32 {
        self.settings.weight
    }

    fn is_up(&self) -> bool {
        self.state.is_up()
    }

    fn is_fenced(&self) -> bool {
        self.settings.fenced
    }

    fn in_flight(&self) -> usize {
        self.state.in_flight()
    }

    fn response_time_ms(&self) -> f64 {
        self.state.response_time_ms()
    }
}

impl Server {
    /// Makes the request this server's own; [`Self::send`] can follow.
    ///
    /// What was done for a server that could not be reached before is done over, not twice.
    pub(super) fn address(&self, request: &mut Request, visitor: &Addressed) {
        let target = visitor.uri.as_deref().unwrap_or(&request.uri);
        if let Some(uri) = self.url.rewrite(target, self.settings.preserve_path) {
            request.uri = uri;
        } else if let Some(uri) = &visitor.uri {
            request.uri.clone_from(uri);
        }
        let host = if self.rules.pass_host_header && !visitor.host.is_empty() {
            &visitor.host
        } else {
            &self.url.authority
        };
        request.host.clone_from(host);
    }

    /// Sends a request and notes what came of it. After [`ForwardError::Connect`] the request is still whole.
    pub(super) async fn send(&self, request: &mut Request, ctx: &mut Ctx) -> Result<Response, ForwardError> {
        ctx.log.service_url = Some(Arc::clone(self.text.own()));
        ctx.log.origin_status = None;
        // Also what holds if the visitor goes away while this runs.
        ctx.outcome = Outcome::Failed;
        let load = self.rules.counts_load.then(|| self.state.enter());
        let began = clock::now();
        let key = websocket::key_to_verify(request);
        let result = self.origin.send_once(request).await;
        let result = result.and_then(|response| match key {
            Some(key) if !websocket::is_accepted(&response, &key) => Err(ForwardError::WebSocketAccept),
            _ => Ok(response),
        });
        let elapsed = clock::now() - began;
        ctx.log.origin_duration = Some(elapsed);
        let failed = match &result {
            Ok(response) => {
                ctx.outcome = Outcome::Answered;
                ctx.log.origin_status = Some(response.status);
                response.status.is_server_error()
            }
            Err(error) => {
                if error.is_unsent() {
                    ctx.outcome = Outcome::Unsent;
                }
                is_servers_fault(error)
            }
        };
        if let Some(rule) = &self.rules.passive
            && self.state.judge(failed, rule, self.rules.is_probed)
        {
            tracing::warn!(service = %self.rules.service, url = %self.text, "server taken out after failures");
        }
        let Some(load) = load else { return result };
        result.map(|response| {
            self.state.answered_in(elapsed);
            Response { body: load.follow(response.body), ..response }
        })
    }
}

/// What of a request is the visitor's, as long as it may still go to another server.
#[derive(Debug)]
pub(super) struct Addressed {
    host: String,
    /// None if there is only one server to rewrite it for.
    uri: Option<Box<http::Uri>>,
}

impl Addressed {
    /// Does what is the same for every server.
    pub(super) fn new(request: &mut Request, ctx: &Ctx, keep: bool) -> Self {
        if ctx.append_forwarded_for {
            forwarded::append_for(&mut request.headers, &request.visitor, ctx.client);
        } else if let Some(list) = headers::forwarded_for(&request.headers)
            && let Ok(list) = HeaderValue::try_from(list)
        {
            request.headers.insert(X_FORWARDED_FOR, list);
        }
        if request.upgrade.as_deref() == Some("websocket") {
            complete_handshake(&mut request.method, &mut request.headers);
        }
        limit_trailers(request);
        Self { host: std::mem::take(&mut request.host), uri: keep.then(|| Box::new(request.uri.clone())) }
    }
}

/// Lets only announced trailers through (RFC 9110 §6.6.2): there are servers that treat them as headers, and nobody looks
/// at them on the way. gRPC announces nothing.
fn limit_trailers(request: &mut Request) {
    if request.body.is_replayable() {
        return;
    }
    let is_grpc = request
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        return;
    }
    let names = headers::list(&request.headers, &header::TRAILER);
    request.body.limit_trailers(names.filter_map(|name| HeaderName::from_bytes(name).ok()).collect());
}

/// RFC 8441 §5: over HTTP/2 a WebSocket has neither key nor `GET`; towards an HTTP/1.1 server it needs both.
fn complete_handshake(method: &mut Method, headers: &mut HeaderMap) {
    if *method == Method::CONNECT {
        *method = Method::GET;
    }
    if headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        return;
    }
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    if let Ok(key) = HeaderValue::from_str(&key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
}

/// Whether an error says something about the server; a visitor that breaks off says nothing.
fn is_servers_fault(error: &ForwardError) -> bool {
    use crate::h1::client::ExchangeError;
    !matches!(error, ForwardError::Exchange(ExchangeError::RequestBody(_)) | ForwardError::Buffer(_))
}
