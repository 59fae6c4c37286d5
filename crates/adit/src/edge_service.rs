//! Visitors at the edge: find the tunnel that serves the host, send the request into it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;

use adit_config::{EntryPoint, TunnelId};
use adit_proxy::body::{Body, Length};
use adit_proxy::fields::{Fields, Ours, Side};
use adit_proxy::h1::encode;
use adit_proxy::headers;
use adit_proxy::message::{Request, Response, Service};
use adit_proxy::rescue::{Failure, Hop};
use adit_route::{Decision, Head, Table};
use adit_tunnel::{EdgeHandle, EncodedHead, OpenError, Opened, RecvHalf, ResponseError};
use adit_tunnel_proto::{ConnectionType, Extended, HeaderLines, HeaderPairs, RequestHead, ResponseHead};
use arc_swap::ArcSwap;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};

use crate::access_log::AccessLog;
use crate::answer::{Exchange, RequestMetrics};
use crate::request_id::RequestIds;
use crate::wire::{TunnelFields, TunnelSource, TunnelUpload, announce_length, take_length};

/// A tunnel as the table of hosts names it.
#[derive(Clone, Debug)]
pub(crate) struct TunnelRoute {
    /// Which.
    pub id: TunnelId,
    /// Its name in logs.
    pub name: Arc<str>,
}

/// Answers the visitors of all public entry points.
#[derive(Debug)]
pub(crate) struct EdgeService {
    /// Host to tunnel; swapped whole when a connector pushes its rules or the configuration is reloaded.
    pub hosts: Arc<ArcSwap<Table<TunnelRoute>>>,
    /// The connections.
    pub edge: EdgeHandle,
    /// What each entry point believes of its visitors; swapped whole on reload.
    pub entry_points: Arc<ArcSwap<Trust>>,
    /// Our own place, as told to visitors and connectors.
    pub location: String,
    /// For pages and logs.
    pub ids: RequestIds,
    /// Counters.
    pub metrics: RequestMetrics,
    /// Lines.
    pub access_log: Option<AccessLog>,
}

/// Which visitors may speak for others.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    /// Entry points by name.
    pub entry_points: std::collections::BTreeMap<String, EntryPoint>,
}

/// A failed hop: what the visitor is told, and the name under which it is counted.
struct Failed {
    status: StatusCode,
    hop: Hop,
    reason: &'static str,
    sentence: &'static str,
}

impl Service for EdgeService {
    async fn call(&self, request: Request) -> Response {
        let request_id = self.ids.make_id();
        let request_id = request_id.as_str();
        let mut exchange = Exchange::begin(&request, request_id, &self.metrics, self.access_log.as_ref());
        // Only what a page of ours would need is kept; the head itself goes into the tunnel.
        let accept =
            request.headers.first(&header::ACCEPT).and_then(|accept| HeaderValue::from_bytes(accept).ok());
        let ray = HeaderValue::try_from([request_id, "-", &self.location].concat()).ok();
        let response = match self.forward(request, (request_id, ray.as_ref()), &mut exchange).await {
            Ok(response) => response,
            Err(failed) => {
                exchange.failed(failed.reason);
                tracing::info!(request = request_id, reason = failed.reason, "request failed");
                let mut asked = HeaderMap::new();
                asked.extend(accept.map(|accept| (header::ACCEPT, accept)));
                let Failed { status, hop, reason, sentence } = failed;
                Failure { status, hop, reason, sentence, request_id: request_id.to_owned() }
                    .into_response(&asked)
            }
        };
        let mut response = exchange.finish_with(response);
        if let Some(ray) = ray {
            response.headers.put(&OUR_RAY, ray);
        }
        response
    }
}

impl EdgeService {
    async fn forward(
        &self,
        mut request: Request,
        (request_id, ray): (&str, Option<&HeaderValue>),
        exchange: &mut Exchange,
    ) -> Result<Response, Failed> {
        let route = {
            let hosts = self.hosts.load();
            let asked = Head { host: &request.host, path: request.uri.path(), method: &request.method };
            match hosts.decide(&asked) {
                Decision::Forward { endpoint, .. } => endpoint.clone(),
                Decision::Respond { .. } => return Err(UNKNOWN_HOST),
                Decision::Refuse(refusal) => return Err(Failed { reason: refusal.reason(), ..UNKNOWN_HOST }),
            }
        };
        exchange.answered_by(&route.name);
        let (head, raw, client) = match self.plain_head(&mut request, ray) {
            Some(head) => (head, false, request.visitor.remote.ip().to_canonical()),
            None => self.tunnel_head(&mut request, ray),
        };
        exchange.asked_by(client);
        let is_whole = request.body.is_empty() && !raw;
        let opened = self.edge.open_encoded(route.id, head, is_whole).await.map_err(open_failed)?;
        let is_head = request.method == Method::HEAD;
        let Opened { send, response, connection } = opened;
        let mut upload = Some(TunnelUpload::new(request.body, send, raw));
        let mut pending = std::pin::pin!(response.recv());
        let received = poll_fn(|cx| {
            // Bytes behind an upgrade wait until the other side has agreed to it: see `h1/client.rs`.
            if !raw
                && let Some(running) = &mut upload
                && running.poll(cx).is_ready()
            {
                upload = None;
            }
            pending.as_mut().poll(cx)
        })
        .await;
        let (head, recv) = received.map_err(|error| {
            tracing::info!(
                request = %request_id, tunnel = %route.name, conn_index = connection.index,
                reason = error.reason(), error = %error, "no answer through the tunnel"
            );
            response_failed(&error)
        })?;
        into_response(head, recv, upload, is_head, raw)
    }

    /// The head of most requests: what is left of the visitor's fields crosses the tunnel as it came. None where a field has
    /// to be looked at or taken off by its name.
    fn plain_head(&self, request: &mut Request, ray: Option<&HeaderValue>) -> Option<EncodedHead> {
        let is_plain = request.upgrade.is_none()
            && !self.is_trusted(request)
            && !request.headers.pairs().any(|(name, _)| headers::is_claim(name));
        if !is_plain || !request.headers.take_plain_hop() {
            return None;
        }
        let Request { method, uri, host, headers, body, visitor, .. } = request;
        let (scheme, cf_visitor) = scheme(visitor.secure);
        let address = visitor.address_text()?.as_bytes();
        let mut began = itoa::Buffer::new();
        let began = ["t=", began.format(unix_micros())].concat();
        let mut length = itoa::Buffer::new();
        let framing = match body.length() {
            Length::Known(0) | Length::Raw => None,
            Length::Known(bytes) => Some(("content-length", length.format(bytes).as_bytes())),
            Length::Unknown => Some(("transfer-encoding", &b"chunked"[..])),
        };
        let own = [
            ("x-forwarded-proto", scheme.as_bytes()),
            ("x-forwarded-host", host.as_bytes()),
            ("x-forwarded-for", address),
            ("cf-connecting-ip", address),
            ("cf-visitor", cf_visitor.as_bytes()),
            ("cdn-loop", b"adit"),
            ("x-request-start", began.as_bytes()),
        ];
        let ray = ray.map(|ray| ("cf-ray", ray.as_bytes()));
        let mut all = [("", &b""[..]); OWN_FIELDS];
        let own = own.into_iter().chain(ray).chain(framing);
        let count = all.iter_mut().zip(own).map(|(place, field)| *place = field).count();
        let dest = dest(scheme, host, uri);
        let fields = TunnelFields(std::mem::take(headers));
        let told = Extended(&fields, &all[..count]);
        Some(EncodedHead::new(&RequestHead::with_headers(method.clone(), dest, host.clone(), told)))
    }

    /// Whether what the visitor says of others is believed.
    fn is_trusted(&self, request: &Request) -> bool {
        let remote = request.visitor.remote.ip().to_canonical();
        let trust = self.entry_points.load();
        let entry_point = trust.entry_points.get(&*request.visitor.entry_point);
        entry_point.is_some_and(|entry_point| trusts(entry_point, remote))
    }

    /// The head as it crosses the tunnel, whether the bytes behind it are raw, and who asks.
    fn tunnel_head(&self, request: &mut Request, ray: Option<&HeaderValue>) -> (EncodedHead, bool, IpAddr) {
        let raw = request.upgrade.as_deref() == Some("websocket");
        if request.upgrade.is_some() && !raw {
            // RFC 9110 §7.8: an offer to upgrade may be ignored, and the wire carries WebSocket only.
            request.body = Body::empty();
        }
        let (client, mut head_fields) = self.about_visitor(request);
        let secure = forwarded_secure(&head_fields).unwrap_or(request.visitor.secure);
        let (scheme, cf_visitor) = scheme(secure);
        let dest = dest(scheme, &request.host, &request.uri);
        headers::remove_hop_by_hop(&mut head_fields);
        head_fields.remove(header::EXPECT);
        head_fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
        if !head_fields.contains_key(&X_FORWARDED_HOST) {
            set(&mut head_fields, X_FORWARDED_HOST, &request.host);
        }
        let address = request.visitor.address_text();
        if let Some(address) = address {
            headers::append_forwarded_text(&mut head_fields, address);
        }
        match address {
            Some(address) if client == request.visitor.remote.ip().to_canonical() => {
                head_fields.insert(CF_CONNECTING_IP, address.clone());
            }
            _ => set(&mut head_fields, CF_CONNECTING_IP, &client.to_string()),
        }
        if let Some(ray) = ray {
            head_fields.insert(CF_RAY, ray.clone());
        }
        head_fields.insert(CF_VISITOR, HeaderValue::from_static(cf_visitor));
        head_fields.insert(CDN_LOOP, HeaderValue::from_static("adit"));
        set(&mut head_fields, X_REQUEST_START, &["t=", itoa::Buffer::new().format(unix_micros())].concat());
        if raw {
            head_fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            head_fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        } else {
            announce_length(&mut head_fields, request.body.length(), true);
        }
        // Over HTTP/2 a WebSocket begins with CONNECT and needs no key (RFC 8441 §5); the tunnel carries the older form.
        let method = if raw { Method::GET } else { request.method.clone() };
        if raw && !head_fields.contains_key(header::SEC_WEBSOCKET_KEY) {
            set(&mut head_fields, header::SEC_WEBSOCKET_KEY, &websocket_key());
        }
        let mut head = RequestHead::new(method, dest, request.host.clone());
        head.kind = if raw { ConnectionType::Websocket } else { ConnectionType::Http };
        head.headers = head_fields;
        (EncodedHead::new(&head), raw, client)
    }

    /// The visitor's true address and the fields without what it may have forged.
    fn about_visitor(&self, request: &mut Request) -> (IpAddr, HeaderMap) {
        let remote = request.visitor.remote.ip().to_canonical();
        let mut fields = std::mem::take(&mut *request.headers);
        fields.reserve(OWN_FIELDS);
        let trust = self.entry_points.load();
        let entry_point = trust.entry_points.get(&*request.visitor.entry_point);
        let trusted = |ip: IpAddr| entry_point.is_some_and(|entry_point| trusts(entry_point, ip));
        if !trusted(remote) {
            headers::remove_forged(&mut fields);
            return (remote, fields);
        }
        let client = forwarded_client(&fields, trusted).unwrap_or(remote);
        let kept: Vec<(HeaderName, HeaderValue)> =
            [headers::X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST]
                .into_iter()
                .filter_map(|name| Some((name.clone(), fields.get(name)?.clone())))
                .collect();
        headers::remove_forged(&mut fields);
        fields.extend(kept);
        (client, fields)
    }
}

fn trusts(entry_point: &EntryPoint, ip: IpAddr) -> bool {
    entry_point.forwarded_insecure || entry_point.forwarded_trusted.iter().any(|net| net.contains(&ip))
}

/// The visitor's scheme, alone and as `Cf-Visitor` has it.
fn scheme(secure: bool) -> (&'static str, &'static str) {
    if secure { ("https", r#"{"scheme":"https"}"#) } else { ("http", r#"{"scheme":"http"}"#) }
}

/// The URL that is asked for.
fn dest(scheme: &str, host: &str, uri: &Uri) -> String {
    // `*` has no place in a URL; it asks about the server as a whole.
    let target = match encode::target(uri) {
        whole if whole == "*" => "/".into(),
        target => target,
    };
    [scheme, "://", host, &*target].concat()
}

/// The rightmost address of `X-Forwarded-For` that is not itself a trusted hop.
fn forwarded_client(fields: &HeaderMap, trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let list = headers::forwarded_for(fields)?;
    let mut client = None;
    for part in list.rsplit(',') {
        let address: IpAddr = part.trim().parse().ok()?;
        client = Some(address);
        if !trusted(address) {
            break;
        }
    }
    client
}

fn forwarded_secure(fields: &HeaderMap) -> Option<bool> {
    match fields.get(X_FORWARDED_PROTO)?.as_bytes() {
        b"https" | b"wss" => Some(true),
        b"http" | b"ws" => Some(false),
        _ => None,
    }
}

fn into_response(
    head: ResponseHead<HeaderLines>,
    recv: RecvHalf,
    upload: Option<TunnelUpload>,
    is_head: bool,
    raw: bool,
) -> Result<Response, Failed> {
    let ResponseHead { status, headers: lines } = head;
    // An interim status as the final one would leave the visitor waiting for another head: whatever follows as content
    // would be read as that head.
    if status.is_informational() && !(status == StatusCode::SWITCHING_PROTOCOLS && raw) {
        return Err(BAD_ANSWER);
    }
    let bodiless = is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let is_internal =
        |(name, _): (&[u8], _)| name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"cf-"));
    if !status.is_informational() && !bodiless && !lines.pairs().any(is_internal) {
        // Most answers: what is left of the lines goes to the visitor as it came.
        let mut fields = Fields::of_message(lines.message(), lines.places(), Side::Origin);
        if let Some(announced) = fields.take_plain_length() {
            return Ok(streamed(
                status,
                fields,
                announced.map_or(Length::Unknown, Length::Known),
                recv,
                upload,
            ));
        }
    }
    let mut headers = lines.into_map();
    headers::remove_internal(&mut headers);
    if status == StatusCode::SWITCHING_PROTOCOLS {
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        set(&mut headers, header::CONNECTION, "Upgrade");
        if !headers.contains_key(header::UPGRADE) {
            set(&mut headers, header::UPGRADE, "websocket");
        }
        let source = TunnelSource::new(recv, Length::Raw, upload);
        return Ok(Response { status, headers: headers.into(), body: Body::stream(source, Length::Raw) });
    }
    headers::remove_hop_by_hop(&mut headers);
    if bodiless {
        headers.remove(header::TRANSFER_ENCODING);
        return Ok(Response { status, headers: headers.into(), body: Body::empty() });
    }
    let length = take_length(&mut headers, true).map_err(|_| BAD_ANSWER)?;
    Ok(streamed(status, headers.into(), length, recv, upload))
}

fn streamed(
    status: StatusCode,
    headers: Fields,
    length: Length,
    recv: RecvHalf,
    upload: Option<TunnelUpload>,
) -> Response {
    let body = match length {
        Length::Known(0) => Body::empty(),
        length => Body::stream(TunnelSource::new(recv, length, upload), length),
    };
    Response { status, headers, body }
}

/// RFC 6455 §4.1: 16 random bytes; the visitor never sees it.
fn websocket_key() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(uuid::Uuid::new_v4().as_bytes())
}

fn unix_micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn open_failed(error: OpenError) -> Failed {
    let reason = error.reason();
    match error {
        OpenError::HeadTooLarge => Failed {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            hop: Hop::Edge,
            reason,
            sentence: "The request's headers are larger than the tunnel carries.",
        },
        OpenError::ManagementHost => Failed { reason, ..UNKNOWN_HOST },
        OpenError::StreamLimit | OpenError::Stalled => Failed {
            status: StatusCode::SERVICE_UNAVAILABLE,
            hop: Hop::Tunnel,
            reason,
            sentence: "The tunnel carries as many requests as it may. Try again in a moment.",
        },
        _ => Failed {
            status: tunnel_down(),
            hop: Hop::Tunnel,
            reason,
            sentence: "The tunnel to this service is down. Its connector is not connected to the edge.",
        },
    }
}

fn response_failed(error: &ResponseError) -> Failed {
    let reason = error.reason();
    match error {
        ResponseError::Origin(_) => Failed {
            status: StatusCode::BAD_GATEWAY,
            hop: Hop::Origin,
            reason,
            sentence: "The tunnel works, but the service behind it gave no answer.",
        },
        ResponseError::RateLimited(_) => Failed {
            status: StatusCode::TOO_MANY_REQUESTS,
            hop: Hop::Origin,
            reason,
            sentence: "The service's connector takes no more flows at the moment.",
        },
        ResponseError::Malformed(_) => Failed { reason, ..BAD_ANSWER },
        _ => Failed {
            status: StatusCode::BAD_GATEWAY,
            hop: Hop::Tunnel,
            reason,
            sentence: "The tunnel broke while the request was on its way.",
        },
    }
}

fn tunnel_down() -> StatusCode {
    StatusCode::from_u16(530).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

const UNKNOWN_HOST: Failed = Failed {
    status: StatusCode::NOT_FOUND,
    hop: Hop::Edge,
    reason: "unknown_host",
    sentence: "No service is known under this name.",
};
const BAD_ANSWER: Failed = Failed {
    status: StatusCode::BAD_GATEWAY,
    hop: Hop::Tunnel,
    reason: "malformed_head",
    sentence: "The tunnel brought an answer that cannot be read.",
};
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const CF_CONNECTING_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");
const CF_RAY: HeaderName = HeaderName::from_static("cf-ray");
static OUR_RAY: Ours = Ours { name: CF_RAY, start: "CF-Ray: " };
const CF_VISITOR: HeaderName = HeaderName::from_static("cf-visitor");
/// When the edge had the request, in microseconds since 1970; what applications' monitors call queue time.
const X_REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");
/// Fields that [`EdgeService::tunnel_head`] or [`EdgeService::plain_head`] adds at most.
const OWN_FIELDS: usize = 12;
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
