//! Writing heads and content in HTTP/1.1's form.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};

use crate::body::{Batch, Length};
use crate::fields::Fields;

/// Appends a request head.
///
/// `host` is written first, then the fields; framing is for the caller to add. Names of fields that were in a map are
/// written in canonical case (`Content-Type`): some old devices compare them with case.
pub fn request_head(out: &mut BytesMut, method: &Method, uri: &Uri, host: &str, headers: &Fields) {
    let (method, target) = (method.as_str(), target(uri));
    out.reserve(method.len() + target.len() + host.len() + headers.bytes() + LINES_BYTES);
    out.put_slice(method.as_bytes());
    out.put_u8(b' ');
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\nHost: ");
    out.put_slice(host.as_bytes());
    out.put_slice(b"\r\n");
    headers.write(out);
}

/// The origin form of a request target (RFC 9112 §3.2.1): an absolute form without a path asks for `/`.
pub fn target(uri: &Uri) -> Cow<'_, str> {
    match uri.path_and_query().map_or("", |p| p.as_str()) {
        "" => Cow::Borrowed("/"),
        target if target.starts_with('?') => Cow::Owned(format!("/{target}")),
        target => Cow::Borrowed(target),
    }
}

/// Appends a status line and fields.
pub fn response_head(out: &mut BytesMut, status: StatusCode, headers: &Fields) {
    out.reserve(headers.bytes() + LINES_BYTES);
    if status == StatusCode::OK {
        // Most answers, in one piece: each costs as much as its bytes.
        out.put_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
        out.put_slice(b"\r\n");
    }
    headers.write(out);
}

/// Appends one field of ours.
pub fn field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Appends `Content-Length`.
pub fn content_length(out: &mut BytesMut, bytes: u64) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(bytes).as_bytes();
    let mut line = *b"Content-Length: 18446744073709551615\r\n";
    let end = LENGTH_START + digits.len();
    line[LENGTH_START..end].copy_from_slice(digits);
    line[end..end + 2].copy_from_slice(b"\r\n");
    out.put_slice(&line[..end + 2]);
}

/// Appends the field that frames content of this length; nothing for [`Length::Raw`].
pub fn framing(out: &mut BytesMut, length: Length) {
    match length {
        Length::Known(bytes) => content_length(out, bytes),
        Length::Unknown => out.put_slice(b"Transfer-Encoding: chunked\r\n"),
        Length::Raw => {}
    }
}

/// Puts the chunked coding around a batch: one chunk for the whole batch, its content untouched.
pub fn chunk(batch: &mut Batch) {
    let bytes: usize = batch.iter().map(Bytes::len).sum();
    if bytes == 0 {
        return;
    }
    let mut size = BytesMut::with_capacity(18);
    let digits = format_hex(bytes);
    size.put_slice(&digits.0[digits.1..]);
    size.put_slice(b"\r\n");
    batch.push_front(size.freeze());
    batch.push_back(Bytes::from_static(b"\r\n"));
}

/// The last chunk with its trailer section.
pub fn last_chunk(trailers: Option<&HeaderMap>) -> Bytes {
    match trailers {
        None => Bytes::from_static(b"0\r\n\r\n"),
        Some(trailers) => {
            let mut out = BytesMut::with_capacity(256);
            out.put_slice(b"0\r\n");
            trailers.iter().for_each(|(name, value)| line(&mut out, name, value));
            out.put_slice(b"\r\n");
            out.freeze()
        }
    }
}

/// Appends one field, its name in canonical case.
pub(crate) fn line(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    put_name(out, name.as_str());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}

fn put_name(out: &mut BytesMut, name: &str) {
    let start = out.len();
    out.put_slice(name.as_bytes());
    let written = &mut out[start..];
    let mut before = b'-';
    for letter in &mut *written {
        if before == b'-' {
            letter.make_ascii_uppercase();
        }
        before = *letter;
    }
    if written.starts_with(WEBSOCKET) {
        // RFC 6455's own spelling: there are servers that compare it with case.
        written[WEBSOCKET_S] = b'S';
    }
}

fn format_hex(value: usize) -> ([u8; 16], usize) {
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            return (digits, at);
        }
    }
}

/// The start of the names of a WebSocket's handshake, and where it has a capital within a word.
const WEBSOCKET: &[u8] = b"Sec-Websocket-";
const WEBSOCKET_S: usize = 7;
/// First line, `Host`, `Date`, framing, `Connection` and the empty line, as far as it is not known how long they are.
const LINES_BYTES: usize = 192;
/// Where the digits of a content length begin.
const LENGTH_START: usize = b"Content-Length: ".len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_canonical_case() {
        let mut headers = HeaderMap::new();
        headers.insert("sec-websocket-key", "k".parse().unwrap());
        headers.append("x-a", "1".parse().unwrap());
        headers.append("x-a", "2".parse().unwrap());
        let mut out = BytesMut::new();
        request_head(&mut out, &Method::GET, &"/p?q".parse().unwrap(), "h", &headers.into());
        assert_eq!(&out[..], b"GET /p?q HTTP/1.1\r\nHost: h\r\nSec-WebSocket-Key: k\r\nX-A: 1\r\nX-A: 2\r\n");
    }

    #[test]
    fn lines_that_are_written_in_one_piece_say_the_same() {
        let mut out = BytesMut::new();
        response_head(&mut out, StatusCode::OK, &Fields::new());
        response_head(&mut out, StatusCode::NO_CONTENT, &Fields::new());
        [0, 10, u64::MAX].into_iter().for_each(|bytes| content_length(&mut out, bytes));
        let wanted = "HTTP/1.1 200 OK\r\nHTTP/1.1 204 No Content\r\nContent-Length: 0\r\nContent-Length: 10\r\n\
            Content-Length: 18446744073709551615\r\n";
        assert_eq!(out, wanted);
    }

    #[test]
    fn an_absolute_form_without_a_path_asks_for_the_root() {
        for (uri, want) in [("http://a", "/"), ("http://a?q", "/?q"), ("http://a/p?q", "/p?q"), ("*", "*")] {
            assert_eq!(target(&uri.parse().unwrap()), want, "{uri}");
        }
    }

    #[test]
    fn a_batch_becomes_one_chunk() {
        let mut batch: Batch = [Bytes::from_static(b"hello "), Bytes::from_static(b"world, hello")].into();
        chunk(&mut batch);
        assert_eq!(batch.iter().flatten().copied().collect::<Vec<u8>>(), b"12\r\nhello world, hello\r\n");
    }
}
