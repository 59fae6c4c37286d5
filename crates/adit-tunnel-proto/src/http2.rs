//! The HTTP/2 transport's dialect: what a request is, and how a response head is carried
//! (tunnel-protocol.md §6).

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header::CONTENT_LENGTH, request::Parts,
};

use crate::head::{ConnectionType, RequestHead, ResponseHead};

/// What a request from the edge is for; the first matching rule of §6.1 decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2Request {
    /// A pushed configuration, JSON in the body.
    UpdateConfiguration,
    /// The control channel: RPC over both bodies.
    ControlStream,
    /// A visitor's request.
    Visitor(ConnectionType),
}

impl Http2Request {
    /// Classifies by the headers of §6.1.
    pub fn classify(headers: &HeaderMap) -> Self {
        let upgrade = headers.get(UPGRADE_HEADER).map(HeaderValue::as_bytes);
        match upgrade {
            Some(b"update-configuration") => return Self::UpdateConfiguration,
            Some(b"websocket") => return Self::Visitor(ConnectionType::Websocket),
            _ => {}
        }
        if headers.get(TCP_SOURCE_HEADER).is_some_and(|value| !value.is_empty()) {
            return Self::Visitor(ConnectionType::Tcp);
        }
        match upgrade {
            Some(b"control-stream") => Self::ControlStream,
            _ => Self::Visitor(ConnectionType::Http),
        }
    }
}

/// The request head that a visitor's HTTP/2 request stands for.
pub fn request_head(parts: Parts, kind: ConnectionType) -> RequestHead {
    let Parts { method, uri, mut headers, .. } = parts;
    let host = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    headers.remove(UPGRADE_HEADER);
    headers.remove(TCP_SOURCE_HEADER);
    RequestHead { kind, dest: dest_of(&uri, &host, kind), method, host, headers, flow_id: None }
}

/// Whether a body of `method` and `headers` must be announced as chunked towards the origin: an
/// HTTP/2 body needs no header, the origin's HTTP/1.1 does (§6.1).
pub fn lacks_body_framing(method: &Method, headers: &HeaderMap, end_of_stream: bool) -> bool {
    !end_of_stream && *method != Method::CONNECT && !headers.contains_key(CONTENT_LENGTH)
}

/// Status and headers of the HTTP/2 response that carries `head` (§6.2).
///
/// 101 becomes 200; the origin's headers travel serialised in one header.
///
/// # Panics
/// Never: the serialised header is base64, `:` and `;` only.
pub fn response_parts(head: &ResponseHead) -> (StatusCode, HeaderMap) {
    let status = match head.status {
        StatusCode::SWITCHING_PROTOCOLS => StatusCode::OK,
        status => status,
    };
    let mut headers = HeaderMap::with_capacity(3);
    if let Some(length) = head.headers.get(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, length.clone());
    }
    if let Some(spans) = head.headers.get(TRACING_HEADER) {
        headers.insert(HeaderName::from_static(TRACING_HEADER), spans.clone());
    }
    headers.insert(HeaderName::from_static(RESPONSE_HEADERS), serialise(&head.headers));
    headers.insert(HeaderName::from_static(RESPONSE_META), HeaderValue::from_static(META_ORIGIN));
    (status, headers)
}

/// Headers of the 502 that says no answer could be had (§6.2).
pub fn failure_headers(rate_limited: bool) -> HeaderMap {
    let meta = if rate_limited { META_RATE_LIMITED } else { META_CONNECTOR };
    HeaderMap::from_iter([(HeaderName::from_static(RESPONSE_META), HeaderValue::from_static(meta))])
}

/// Version and rules of a pushed configuration's body (§3.7); `None` if it is not one.
pub fn configuration_push(body: &[u8]) -> Option<(i32, Vec<u8>)> {
    let push: serde_json::Value = serde_json::from_slice(body).ok()?;
    let version = i32::try_from(push.get("version")?.as_i64()?).ok()?;
    Some((version, push.get("config")?.to_string().into_bytes()))
}

/// Body of the answer to a pushed configuration (§3.7), with the error in words where the stock
/// connector has `{}` (C36).
pub fn configuration_answer(version: i32, error: Option<&str>) -> Vec<u8> {
    serde_json::json!({ "lastAppliedVersion": version, "err": error }).to_string().into_bytes()
}

fn dest_of(uri: &Uri, host: &str, kind: ConnectionType) -> String {
    match kind {
        ConnectionType::Tcp => host.to_owned(),
        ConnectionType::Http | ConnectionType::Websocket => {
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            format!("http://{host}{path}")
        }
    }
}

fn serialise(headers: &HeaderMap) -> HeaderValue {
    let mut out = String::new();
    for (name, value) in headers {
        if RESERVED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix)) {
            continue;
        }
        if !out.is_empty() {
            out.push(';');
        }
        STANDARD_NO_PAD.encode_string(canonical(name.as_str()), &mut out);
        out.push(':');
        STANDARD_NO_PAD.encode_string(value.as_bytes(), &mut out);
    }
    HeaderValue::try_from(out).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn canonical(name: &str) -> String {
    let mut upper = true;
    name.chars()
        .map(|char| {
            let shown = if upper { char.to_ascii_uppercase() } else { char };
            upper = char == '-';
            shown
        })
        .collect()
}

/// Says what a request is for when it is not plain HTTP (§6.1).
pub const UPGRADE_HEADER: &str = "cf-cloudflared-proxy-connection-upgrade";
/// Present and non-empty on raw TCP requests (§6.1).
pub const TCP_SOURCE_HEADER: &str = "cf-cloudflared-proxy-src";
/// Carries the origin's headers (§6.2).
pub const RESPONSE_HEADERS: &str = "cf-cloudflared-response-headers";
/// Says who made the response (§6.2).
pub const RESPONSE_META: &str = "cf-cloudflared-response-meta";

const TRACING_HEADER: &str = "cf-int-cloudflared-tracing";
const META_ORIGIN: &str = r#"{"src":"origin"}"#;
const META_CONNECTOR: &str = r#"{"src":"cloudflared"}"#;
const META_RATE_LIMITED: &str = r#"{"src":"cloudflared","flow_rate_limited":true}"#;

/// An origin must not forge what the tunnel itself says (§6.2).
const RESERVED_PREFIXES: [&str; 3] = ["cf-int-", "cf-cloudflared-", "cf-proxy-"];

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn requests_are_classified_in_the_order_of_the_reference() {
        let cases = [
            (headers(&[]), Http2Request::Visitor(ConnectionType::Http)),
            (headers(&[(UPGRADE_HEADER, "control-stream")]), Http2Request::ControlStream),
            (headers(&[(UPGRADE_HEADER, "websocket")]), Http2Request::Visitor(ConnectionType::Websocket)),
            (headers(&[(UPGRADE_HEADER, "update-configuration")]), Http2Request::UpdateConfiguration),
            (headers(&[(TCP_SOURCE_HEADER, "1")]), Http2Request::Visitor(ConnectionType::Tcp)),
            (headers(&[(TCP_SOURCE_HEADER, "")]), Http2Request::Visitor(ConnectionType::Http)),
            (
                headers(&[(TCP_SOURCE_HEADER, "1"), (UPGRADE_HEADER, "control-stream")]),
                Http2Request::Visitor(ConnectionType::Tcp),
            ),
        ];
        for (headers, expected) in cases {
            assert_eq!(Http2Request::classify(&headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn switching_protocols_travels_as_ok_with_headers_serialised() {
        let head = ResponseHead {
            status: StatusCode::SWITCHING_PROTOCOLS,
            headers: headers(&[("upgrade", "websocket"), ("cf-int-x", "forged"), ("cf-proxy-y", "forged")]),
        };
        let (status, out) = response_parts(&head);
        assert_eq!(status, StatusCode::OK);
        // base64("Upgrade") and base64("websocket"), unpadded.
        assert_eq!(out[RESPONSE_HEADERS], "VXBncmFkZQ:d2Vic29ja2V0");
        assert_eq!(out[RESPONSE_META], META_ORIGIN);
    }

    #[test]
    fn content_length_is_also_a_real_header() {
        let head = ResponseHead { status: StatusCode::OK, headers: headers(&[("content-length", "5")]) };
        let (_, out) = response_parts(&head);
        assert_eq!(out[CONTENT_LENGTH], "5");
        assert_eq!(out[RESPONSE_HEADERS], "Q29udGVudC1MZW5ndGg:NQ");
    }

    #[test]
    fn a_push_is_read_and_answered() {
        let push = configuration_push(br#"{"version": 3, "config": {"ingress": []}}"#);
        assert_eq!(push, Some((3, br#"{"ingress":[]}"#.to_vec())));
        for bad in [&b"{"[..], b"{}", br#"{"version": 1e99, "config": {}}"#, br#"{"version": 1}"#] {
            assert_eq!(configuration_push(bad), None);
        }
        let answer = String::from_utf8(configuration_answer(2, None)).unwrap();
        assert!(answer.contains(r#""lastAppliedVersion":2"#) && answer.contains(r#""err":null"#), "{answer}");
    }

    #[test]
    fn a_visitors_request_becomes_an_absolute_dest_without_tunnel_headers() {
        let request =
            Request::get("https://a.example/x?y=1").header(UPGRADE_HEADER, "websocket").body(()).unwrap();
        let head = request_head(request.into_parts().0, ConnectionType::Websocket);
        assert_eq!((head.dest.as_str(), head.host.as_str()), ("http://a.example/x?y=1", "a.example"));
        assert!(head.headers.is_empty());
    }
}
