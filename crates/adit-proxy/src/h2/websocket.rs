//! WebSocket over HTTP/2 (RFC 8441) in the words of HTTP/1.1, which is what services and origins speak.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};

use crate::body::Length;
use crate::message::Response;

/// `:protocol` of an extended CONNECT, and the value of `Upgrade`.
pub(crate) const PROTOCOL: &str = "websocket";

/// Adds the fields of an HTTP/1.1 handshake that HTTP/2 has no need for (RFC 8441 §5).
pub(crate) fn prepare(headers: &mut HeaderMap) {
    let key: [u8; 16] = rand::random();
    if let Ok(key) = HeaderValue::try_from(STANDARD.encode(key)) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
}

/// The answer to such a handshake: 101 becomes 200, and what only looks like success becomes a failure.
pub(crate) fn answer(mut response: Response) -> Response {
    if response.status == StatusCode::SWITCHING_PROTOCOLS && response.body.length() == Length::Raw {
        response.status = StatusCode::OK;
        for name in HANDSHAKE {
            response.headers.remove(name);
        }
        return response;
    }
    // RFC 8441 §4: any 2xx would tell the visitor that its WebSocket is open.
    if response.status.is_success() || response.status.is_informational() {
        return Response::text(StatusCode::BAD_GATEWAY, "text/plain; charset=utf-8", "Bad Gateway");
    }
    response
}

const HANDSHAKE: [HeaderName; 3] = [header::SEC_WEBSOCKET_ACCEPT, header::CONNECTION, header::UPGRADE];
