//! Requests at the connector: find the ingress rule, ask its origin, send the answer back through the tunnel.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use adit_proxy::body::{Body, BodyError, Length};
use adit_proxy::fields::{Configured, Fields, Side};
use adit_proxy::forwarded;
use adit_proxy::message::{Request, Response, Service, Visitor};
use adit_proxy::origin::ForwardError;
use adit_tunnel::{RecvHalf, Reply, RequestHandler, TunnelRequest};
use adit_tunnel_proto::{ConnectionType, HeaderPairs, Headers, RequestHead, ResponseHead};
use http::header::{self, HeaderName, HeaderValue};
use http::{StatusCode, Uri};

use crate::cloudflared_metrics::ProxyMetrics;
use crate::gateway::Gateway;
use crate::hello::{Hello, Trip};
use crate::ingress::{Answerer, IngressState, chain};
use crate::wire::{TunnelFields, TunnelSource, TunnelUpload, announce_answer, take_length};

/// Serves what arrives through a tunnel.
#[derive(Debug)]
pub(crate) struct ConnectorService {
    /// Rules and origins; swapped whole on reload and on the edge's push.
    pub ingress: Arc<IngressState>,
    /// Answers in place of the rules where the tunnel has none of its own.
    pub(crate) gateway: Option<Arc<Gateway>>,
    /// The built-in sample origin.
    pub hello: Hello,
    /// Told to origins as `Cf-Warp-Tag-Id` and with the configured tags.
    pub tags: OnceLock<Vec<Arc<Configured>>>,
    /// cloudflared's counters.
    pub metrics: ProxyMetrics,
    /// Stands for the visitor towards the data path; the true one is in the request's fields.
    pub visitor: Arc<Visitor>,
}

impl RequestHandler for ConnectorService {
    async fn handle(&self, request: TunnelRequest) {
        let _running = self.metrics.begin();
        let TunnelRequest { head, body, reply, connection } = request;
        if head.kind == ConnectionType::Tcp {
            self.metrics.failed();
            return reply.fail("TCP flows are not served by this connector").await;
        }
        let trip = Trip { connection, began: std::time::Instant::now() };
        let (request, is_head, _unread) = match self.request(head, body) {
            Ok(request) => request,
            Err(reason) => {
                self.metrics.failed();
                tracing::info!(reason, "request refused");
                return reply.fail(&format!("malformed request: {reason}")).await;
            }
        };
        // The edge gives a request up by stopping our half of the stream; the answer's future is dropped then, and
        // with it the exchange with the origin.
        let mut reply = reply;
        let answered = {
            let mut answer = std::pin::pin!(self.answer(request, &trip));
            poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => reply.poll_stopped(cx).map(|_| None),
            })
            .await
        };
        match answered {
            None => self.metrics.failed(),
            Some(Ok(response)) => self.send(response, reply, is_head).await,
            Some(Err(why)) => {
                self.metrics.failed();
                reply.fail(&why).await;
            }
        }
    }

    fn apply_configuration(&self, version: i32, json: &[u8]) -> Result<(), String> {
        self.ingress.apply_remote(version, json)
    }
}

impl ConnectorService {
    /// The request, whether it asks for a head only, and what to keep until it has been answered.
    fn request(
        &self,
        head: RequestHead<Headers>,
        recv: RecvHalf,
    ) -> Result<(Request, bool, Option<RecvHalf>), &'static str> {
        let RequestHead { kind, dest, method, host, headers, .. } = head;
        let uri: Uri = dest.parse().map_err(|_| "head_target")?;
        let host = if host.is_empty() { uri.authority().map_or("", |a| a.as_str()).to_owned() } else { host };
        if !adit_proxy::h1::head::is_host(&host) {
            return Err("head_host");
        }
        let raw = kind == ConnectionType::Websocket;
        let (mut headers, length) = tidy(headers, raw)?;
        let mut unread = None;
        let body = match length {
            _ if raw => Body::stream(TunnelSource::new(recv, Length::Raw, None), Length::Raw),
            // C19: without a field that announces content there is none, whatever the stream carries.
            Length::Known(0) => {
                unread = recv.into_unread();
                Body::empty()
            }
            length => Body::stream(TunnelSource::new(recv, length, None), length),
        };
        if raw {
            // RFC 6455 §4.1 demands it; edges send only the key (tunnel-protocol.md §4.5).
            headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        }
        self.tags.get().into_iter().flatten().for_each(|tag| headers.put_configured(tag));
        let is_head = method == http::Method::HEAD;
        let request = Request {
            method,
            uri,
            version: http::Version::HTTP_11,
            host,
            headers,
            body,
            upgrade: raw.then(|| "websocket".into()),
            visitor: Arc::clone(&self.visitor),
        };
        Ok((request, is_head, unread))
    }

    /// The answer, or why there is none, in words for the edge.
    async fn answer(&self, request: Request, trip: &Trip) -> Result<Response, String> {
        if let Some(gateway) = &self.gateway {
            return Ok(gateway.call(from_visitor(request)).await);
        }
        let ingress = self.ingress.load();
        let routed = match ingress.decide(&request) {
            Ok(routed) => routed,
            Err(refusal) => {
                tracing::debug!(reason = refusal.reason(), "request refused");
                return Ok(Response::status(StatusCode::BAD_REQUEST));
            }
        };
        if let Some(access) = routed.access
            && let Err(refusal) = access.check(&request.headers).await
        {
            tracing::info!(reason = refusal.reason(), error = %refusal, "access refused");
            return match refusal.status() {
                Some(status) => Ok(Response::status(status)),
                None => Err(refusal.to_string()),
            };
        }
        match routed.answer {
            Err(status) => Ok(Response::status(status)),
            Ok(Answerer::Hello) => Ok(self.hello.answer(request, trip)),
            Ok(Answerer::Origin(origin)) => {
                let result = origin.send(request).await;
                self.metrics.connected(trip.began.elapsed());
                if matches!(&result, Err(ForwardError::Buffer(BodyError::TooLarge))) {
                    return Ok(Response::status(StatusCode::PAYLOAD_TOO_LARGE));
                }
                result.map_err(|error| self.describe(&error, &origin.target().to_string()))
            }
        }
    }

    fn describe(&self, error: &ForwardError, target: &str) -> String {
        let text = chain(error);
        tracing::warn!(reason = error.reason(), origin = target, error = %text, "no answer from the origin");
        text
    }

    async fn send(&self, response: Response, reply: Reply, is_head: bool) {
        let Response { status, mut headers, mut body } = response;
        self.metrics.answered(status);
        let raw = status == StatusCode::SWITCHING_PROTOCOLS;
        if !raw {
            announce_answer(&mut headers, body.length());
        }
        if is_head {
            body = Body::empty();
        }
        if !raw && body.is_empty() && !is_head && may_have_content(status) {
            match headers.lack_framing() {
                true => headers.add_length(0),
                false => drop(headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"))),
            }
        }
        let send = match reply.head(ResponseHead { status, headers: TunnelFields(headers) }).await {
            Ok(send) => send,
            Err(error) => {
                self.metrics.failed();
                tracing::debug!(reason = error.reason(), "the answer's head could not be sent");
                return;
            }
        };
        let mut upload = TunnelUpload::new(body, send, false);
        if let Err(error) = poll_fn(|cx| upload.poll(cx)).await {
            self.metrics.failed();
            tracing::debug!(reason = error.reason(), "the answer broke off");
        }
    }
}

/// The request as if the visitor had come to us itself: the edge says who it is and how it came (ingress-features.md §3.0).
fn from_visitor(mut request: Request) -> Request {
    let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let client = text("cf-connecting-ip").and_then(|ip| ip.parse::<IpAddr>().ok());
    let secure = match text("x-forwarded-proto") {
        Some(scheme) => scheme == "https" || scheme == "wss",
        None => request.uri.scheme_str() == Some("https"),
    };
    let remote = SocketAddr::new(client.unwrap_or(request.visitor.remote.ip()), 0);
    request.visitor = Arc::new(Visitor { remote, secure, ..Visitor::clone(&request.visitor) });
    request
}

/// The fields of a request without those that are the edge's or frame it, and the length that they announce.
///
/// # Errors
/// The name of the refusal.
fn tidy(headers: Headers, raw: bool) -> Result<(Fields, Length), &'static str> {
    let mut headers = match headers {
        Headers::Lines(lines) => {
            if !raw && !lines.pairs().any(|(name, _)| is_for_us(name)) {
                // Most requests: what is left of the lines goes to the origin as it came.
                let mut fields = Fields::of_message(lines.message(), lines.places(), Side::Visitor);
                if let Some(announced) = fields.take_plain_length() {
                    return Ok((fields, Length::Known(announced.unwrap_or(0))));
                }
            }
            lines.into_map()
        }
        Headers::Map(map) => map,
    };
    headers.remove(header::HOST);
    headers.remove(UPGRADE_MARK);
    headers.remove(TRACE);
    // Nobody beyond the tunnel is a peer of this process's mesh.
    forwarded::remove_mesh_claims(&mut headers);
    let length = take_length(&mut headers, false)?;
    Ok((headers.into(), length))
}

/// Whether a field is no business of an origin.
fn is_for_us(name: &[u8]) -> bool {
    let is = |other: &HeaderName| name.eq_ignore_ascii_case(other.as_str().as_bytes());
    is(&UPGRADE_MARK) || is(&TRACE) || forwarded::claims_mesh(name)
}

fn may_have_content(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// The edge's mark of an upgraded request (tunnel-protocol.md §4.2); no business of an origin.
const UPGRADE_MARK: HeaderName = HeaderName::from_static("cf-cloudflared-proxy-connection-upgrade");
/// The edge's tracing field (tunnel-protocol.md §4.2).
const TRACE: HeaderName = HeaderName::from_static("cf-trace-id");

#[cfg(test)]
mod tests {
    use adit_tunnel_proto::{Preamble, PreambleDecoder, encode_request};
    use http::Method;

    use super::*;

    /// Name and value.
    type Pair = (String, String);

    /// What is left of these fields and the length they announce, whether they come as lines or as a map.
    fn tidied(fields: &[(&'static str, &'static str)]) -> Result<(Vec<Pair>, Length), &'static str> {
        let mut head = RequestHead::new(Method::POST, "http://a.example/", "a.example");
        for (name, value) in fields {
            head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut decoder = PreambleDecoder::new();
        decoder.handle_chunk(encode_request(&head).unwrap());
        let Ok(Some(Preamble::Request(lines))) = decoder.poll_lines() else { panic!("it is whole") };
        let [as_lines, as_map] = [Headers::Lines(lines.headers), Headers::Map(head.headers)].map(|headers| {
            let (fields, length) = tidy(headers, false)?;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_ascii_lowercase()).unwrap();
            let mut left: Vec<_> = fields.pairs().map(|(name, value)| (text(name), text(value))).collect();
            left.sort();
            assert_eq!(left.len(), fields.len());
            Ok((left, length))
        });
        assert_eq!(as_lines, as_map, "{fields:?}");
        as_lines
    }

    #[test]
    fn what_is_the_edges_does_not_reach_an_origin() {
        let own = [
            ("host", "b.example"),
            ("cf-cloudflared-proxy-connection-upgrade", "websocket"),
            ("cf-trace-id", "1"),
            ("x-adit-mesh-peer", "admin"),
            ("x_adit-mesh_peer", "admin"),
        ];
        for field in own {
            let (left, length) = tidied(&[("a", "1"), field]).unwrap();
            assert_eq!((left.len(), length), (1, Length::Known(0)), "{field:?}");
        }
    }

    #[test]
    fn content_has_the_length_that_its_fields_announce() {
        let length = |fields| tidied(fields).map(|(left, length)| (left.len(), length));
        assert_eq!(length(&[("content-length", "5"), ("a", "1")]), Ok((1, Length::Known(5))));
        assert_eq!(length(&[("transfer-encoding", "chunked"), ("a", "1")]), Ok((1, Length::Unknown)));
        assert_eq!(length(&[("content-length", "5"), ("content-length", "5")]), Err("framing_length"));
        assert_eq!(length(&[("content-length", "-5")]), Err("framing_length"));
        assert_eq!(tidied(&[("x-empty", ""), ("a", "1"), ("a", "2")]).unwrap().0.len(), 3);
    }
}
