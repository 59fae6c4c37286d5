//! Heads in the form that HTTP/2 and HTTP/3 share: pseudo-header fields in, status and fields out.

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode, Uri};

use super::websocket;
use crate::body::{Body, Length};
use crate::date;
use crate::fields::{Fields, Kinds, Side};
use crate::h1::{encode, framing, head};
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
    let present = Present::of(&headers);
    if present.odd {
        return Err(Refused::bad("head_malformed"));
    }
    // RFC 9113 §8.2.2, RFC 9114 §4.2: fields of one HTTP/1.1 connection have no place here.
    if present.connection {
        return Err(Refused::bad("h2_connection_field"));
    }
    if method == Method::CONNECT && !is_websocket {
        return Err(Refused { status: StatusCode::NOT_IMPLEMENTED, reason: "head_connect" });
    }
    let path = uri.path();
    if !(path.starts_with('/') || path.is_empty() || (path == "*" && method == Method::OPTIONS)) {
        return Err(Refused::bad("head_target"));
    }
    let host = take_host(&uri, &mut headers, &present)?;
    if present.cookie {
        join_cookies(&mut headers);
    }
    let length = match present.length.then(|| headers.remove(header::CONTENT_LENGTH)).flatten() {
        Some(value) => Some(framing::parse_length(&value).ok_or(Refused::bad("framing_length"))?),
        None => None,
    };
    let expects_continue = present.expect
        && head::expects_continue(&headers)
            .map_err(|error| Refused { status: error.status(), reason: error.reason() })?;
    let method = if is_websocket { Method::GET } else { method };
    Ok(Head { method, uri, host, headers, is_websocket, length, expects_continue })
}

/// The fields of a request as lines, as they are written to most servers; most are passed on with nothing but a few added.
pub(crate) fn lines(headers: &HeaderMap) -> Fields {
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + LINE_BYTES).sum();
    let mut head = BytesMut::with_capacity(bytes);
    for (name, value) in headers {
        encode::line(&mut head, name, value);
    }
    let mut fields = Fields::begin_with(head.freeze(), Side::Visitor);
    let mut start = 0;
    for (name, value) in headers {
        let named = start..start + name.as_str().len();
        let valued = named.end + 2..named.end + 2 + value.len();
        start = valued.end + 2;
        fields.push_line(named, valued, true);
    }
    fields
}

/// The head of an answer, and its content; `is_head` if the request was HEAD.
pub(crate) fn write(response: Response, is_head: bool) -> (http::Response<()>, Body) {
    let Response { status, mut headers, body } = response;
    let bodiless = is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let length = match body.length() {
        Length::Known(bytes) if !bodiless || bytes > 0 => {
            HeaderValue::from_bytes(itoa::Buffer::new().format(bytes).as_bytes()).ok()
        }
        Length::Known(_) if bodiless => described(&headers),
        _ => None,
    };
    // RFC 9113 §8.2.2: one of them, as a middleware may set it, would have the whole answer refused.
    headers::remove_hop_by_hop_but_trailer(&mut headers, body.length());
    // Lines are taken off before there is a map of them, which is made once.
    if headers.lack(Kinds::HOP) {
        headers.drop_lines(Kinds::LENGTH.and(Kinds::CODING));
    } else {
        headers.remove(header::CONTENT_LENGTH);
    }
    let has_date = headers.has_date();
    let mut fields = headers.into_map();
    if let Some(length) = length.filter(|_| status != StatusCode::NO_CONTENT) {
        fields.append(header::CONTENT_LENGTH, length);
    }
    if !has_date && let Ok(now) = date::with_now(HeaderValue::from_bytes) {
        fields.append(header::DATE, now);
    }
    let mut head = http::Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = fields;
    (head, if bodiless { Body::empty() } else { body })
}

/// What a response without content says of the content that it would have.
fn described(headers: &Fields) -> Option<HeaderValue> {
    match headers.lack(Kinds::LENGTH) {
        true => None,
        false => headers.get(header::CONTENT_LENGTH).cloned(),
    }
}

/// Which of the fields that are read here stand in a head. One look at each name costs less than a lookup for each of
/// these, most of which are in no head.
#[derive(Default)]
struct Present {
    /// `Connection`, `Transfer-Encoding`.
    connection: bool,
    host: bool,
    length: bool,
    cookie: bool,
    expect: bool,
    /// See [`headers::is_odd`].
    odd: bool,
}

impl Present {
    fn of(headers: &HeaderMap) -> Self {
        let mut present = Self::default();
        for name in headers.keys() {
            match *name {
                header::CONNECTION | header::TRANSFER_ENCODING => present.connection = true,
                header::HOST => present.host = true,
                header::CONTENT_LENGTH => present.length = true,
                header::COOKIE => present.cookie = true,
                header::EXPECT => present.expect = true,
                _ => present.odd |= headers::is_odd(name),
            }
        }
        present
    }
}

fn take_host(uri: &Uri, headers: &mut HeaderMap, present: &Present) -> Result<String, Refused> {
    let bad = || Refused::bad("head_host");
    if present.host && headers.get_all(header::HOST).iter().count() > 1 {
        return Err(bad());
    }
    let host = match (uri.authority(), present.host.then(|| headers.remove(header::HOST)).flatten()) {
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

/// Of a line, beside its name and value: `: ` and its end.
const LINE_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn lines_of_a_request_are_its_fields() {
        let headers = map(&[("accept", "a"), ("x-a", ""), ("accept", "b"), ("te", "trailers")]);
        let fields = lines(&headers);
        let mut written = BytesMut::new();
        fields.write(&mut written);
        assert_eq!(written, "Accept: a\r\nAccept: b\r\nX-A: \r\nTe: trailers\r\n");
        assert!(fields.lack(Kinds::CLAIM) && !fields.lack(Kinds::HOP));
        assert_eq!(fields.into_map(), headers);
    }

    #[test]
    fn a_name_that_is_no_token_is_refused() {
        // As `h2` makes them of what was received.
        let name = HeaderName::from_lowercase(b"x\"y").unwrap();
        let request = http::Request::builder().uri("https://a.test/").header(name, "v").body(()).unwrap();
        let refused = read(request.into_parts().0, None, 64).err().unwrap();
        assert_eq!((refused.status, refused.reason), (StatusCode::BAD_REQUEST, "head_malformed"));
    }

    #[test]
    fn an_answer_has_one_length_one_date_and_nothing_of_its_hop() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\nDate: then\r\nEtag: e\r\n\r\n";
        for is_line in [true, false] {
            let parsed = head::parse_response(&bytes::Bytes::from_static(head), &Method::GET).unwrap();
            let mut headers = parsed.headers;
            if !is_line {
                headers.insert("x", HeaderValue::from_static("y"));
            }
            let answer = Response { status: StatusCode::OK, headers, body: Body::full("four") };
            let (head, body) = write(answer, false);
            let lengths: Vec<_> = head.headers().get_all(header::CONTENT_LENGTH).iter().collect();
            assert_eq!((lengths, body.is_empty()), (vec![&HeaderValue::from_static("4")], false));
            assert_eq!(head.headers()[header::DATE], "then");
            assert!(!head.headers().contains_key(header::CONNECTION));
        }
    }
}
