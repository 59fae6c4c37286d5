//! Heads in the form that HTTP/2 and HTTP/3 share: pseudo-header fields in, status and fields out.

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode, Uri};

use super::websocket;
use crate::body::{Body, Length};
use crate::date;
use crate::h1::{framing, head};
use crate::headers;
use crate::message::Response;

/// A request head that has passed the checks that HTTP/1.1's parser does for its side.
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) host: String,
    pub(crate) headers: HeaderMap,
    /// An extended CONNECT that opens a WebSocket.
    pub(crate) is_websocket: bool,
    /// `Content-Length`, if there was one.
    pub(crate) length: Option<u64>,
    /// The visitor waits for `100 Continue` before it sends content.
    pub(crate) expects_continue: bool,
}

/// A request that is answered without asking anybody.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
}

impl Refused {
    fn bad(reason: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason }
    }
}

/// Checks a request head; `protocol` is the `:protocol` of an extended CONNECT.
pub(crate) fn read(parts: Parts, protocol: Option<&str>, fields_max: usize) -> Result<Head, Refused> {
    let Parts { method, uri, mut headers, .. } = parts;
    let is_websocket = method == Method::CONNECT && protocol == Some(websocket::PROTOCOL);
    if headers.len() > fields_max {
        return Err(Refused::bad("head_too_many_fields"));
    }
    // RFC 9113 §8.2.2, RFC 9114 §4.2: fields of one HTTP/1.1 connection have no place here.
    if headers.contains_key(header::CONNECTION) || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Refused::bad("h2_connection_field"));
    }
    if method == Method::CONNECT && !is_websocket {
        return Err(Refused { status: StatusCode::NOT_IMPLEMENTED, reason: "head_connect" });
    }
    let path = uri.path();
    if !(path.starts_with('/') || path.is_empty() || (path == "*" && method == Method::OPTIONS)) {
        return Err(Refused::bad("head_target"));
    }
    let host = take_host(&uri, &mut headers)?;
    join_cookies(&mut headers);
    let length = match headers.remove(header::CONTENT_LENGTH) {
        Some(value) => Some(framing::parse_length(&value).ok_or(Refused::bad("framing_length"))?),
        None => None,
    };
    let expects_continue = head::expects_continue(&headers)
        .map_err(|error| Refused { status: error.status(), reason: error.reason() })?;
    let method = if is_websocket { Method::GET } else { method };
    Ok(Head { method, uri, host, headers, is_websocket, length, expects_continue })
}

/// The head of an answer, and its content; `is_head` if the request was HEAD.
pub(crate) fn write(response: Response, is_head: bool) -> (http::Response<()>, Body) {
    let Response { status, mut headers, body } = response;
    let described = headers.remove(header::CONTENT_LENGTH);
    // RFC 9113 §8.2.2: one of them, as a middleware may set it, would have the whole answer refused.
    headers::remove_hop_by_hop_but_trailer(&mut headers, body.length());
    let bodiless = is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let length = match body.length() {
        Length::Known(bytes) if !bodiless || bytes > 0 => Some(HeaderValue::from(bytes)),
        Length::Known(_) if bodiless => described,
        _ => None,
    };
    if let Some(length) = length.filter(|_| status != StatusCode::NO_CONTENT) {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    if !headers.contains_key(header::DATE)
        && let Ok(now) = date::with_now(HeaderValue::from_bytes)
    {
        headers.insert(header::DATE, now);
    }
    let mut head = http::Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = headers.into_map();
    (head, if bodiless { Body::empty() } else { body })
}

fn take_host(uri: &Uri, headers: &mut HeaderMap) -> Result<String, Refused> {
    let bad = || Refused::bad("head_host");
    if headers.get_all(header::HOST).iter().count() > 1 {
        return Err(bad());
    }
    let host = match (uri.authority(), headers.remove(header::HOST)) {
        (Some(authority), None) => authority.as_str().to_owned(),
        // RFC 9113 §8.3.1: a Host that contradicts :authority makes the request malformed.
        (Some(authority), Some(host))
            if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            authority.as_str().to_owned()
        }
        (None, Some(host)) => host.to_str().map_err(|_| bad())?.to_owned(),
        _ => return Err(bad()),
    };
    if head::is_host(&host) { Ok(host) } else { Err(bad()) }
}

/// RFC 9113 §8.2.3, RFC 9114 §4.2.1: cookie crumbs are one field to anything else.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, cookie);
    }
}
