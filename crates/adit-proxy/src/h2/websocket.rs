//! WebSocket over HTTP/2 (RFC 8441) in the words of HTTP/1.1, which is what services and origins speak.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode, Version};
use sha1::{Digest as _, Sha1};

use crate::body::Length;
use crate::message::{Request, Response};

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

/// The key of a handshake that we made up: an HTTP/2 visitor has none and cannot verify what answers it (RFC 8441 §5).
pub(crate) fn key_to_verify(request: &Request) -> Option<HeaderValue> {
    let is_ours = request.version == Version::HTTP_2 && request.upgrade.as_deref() == Some(PROTOCOL);
    if is_ours { request.headers.get(header::SEC_WEBSOCKET_KEY).cloned() } else { None }
}

/// False for a 101 whose `Sec-WebSocket-Accept` does not prove that the key was understood (RFC 6455 §4.1).
pub(crate) fn is_accepted(response: &Response, key: &HeaderValue) -> bool {
    if response.status != StatusCode::SWITCHING_PROTOCOLS {
        return true;
    }
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize();
    let wanted = STANDARD.encode(digest);
    response
        .headers
        .get(header::SEC_WEBSOCKET_ACCEPT)
        .is_some_and(|accept| accept.as_bytes() == wanted.as_bytes())
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

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const HANDSHAKE: [HeaderName; 3] = [header::SEC_WEBSOCKET_ACCEPT, header::CONNECTION, header::UPGRADE];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_accept_value_of_the_key_opens_a_websocket() {
        // RFC 6455 §1.3's own example.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let mut response = Response::status(StatusCode::SWITCHING_PROTOCOLS);
        assert!(!is_accepted(&response, &key));
        response
            .headers
            .insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(is_accepted(&response, &key));
        response.headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("x"));
        assert!(!is_accepted(&response, &key));
        assert!(is_accepted(&Response::status(StatusCode::FORBIDDEN), &key), "a refusal needs no proof");
    }
}
