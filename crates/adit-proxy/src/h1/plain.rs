//! Heads that are written as nearly all are, split in one pass.
//!
//! This is a subset of what [`super::head`] takes, with nothing that could be read in two ways: HTTP/1.1, a target in origin
//! form, one line a field, no white space where none belongs. Whatever else comes is no error here: it is left to the parser
//! that knows what to say about it.

use std::ops::Range;

use bytes::Bytes;
use http::{Method, StatusCode, Uri};

use super::head::FIELDS_MAX;
use crate::fields::{Fields, Side};

/// Splits a whole request head; `None` if there is anything out of the ordinary about it.
pub(super) fn request(head: &Bytes) -> Option<(Method, Uri, Fields)> {
    let method = head.iter().position(|byte| !TOKEN[usize::from(*byte)])?;
    let target = method + 1;
    let version = target + head.get(target..)?.iter().position(|byte| !TARGET[usize::from(*byte)])?;
    if head[method] != b' ' || head.get(target) != Some(&b'/') {
        return None;
    }
    let first = version + VERSION.len();
    if head.get(version..first) != Some(VERSION) {
        return None;
    }
    let method = Method::from_bytes(&head[..method]).ok().filter(|method| *method != Method::CONNECT)?;
    let uri = Uri::from_maybe_shared(head.slice(target..version)).ok()?;
    Some((method, uri, fields(head, first, Side::Visitor)?))
}

/// Splits a whole response head; `None` if there is anything out of the ordinary about it.
pub(super) fn response(head: &Bytes) -> Option<(StatusCode, Fields)> {
    let status = STATUS.len()..STATUS.len() + 3;
    if !head.starts_with(STATUS) || head.get(status.end) != Some(&b' ') {
        return None;
    }
    let end = line_end(head, status.end + 1)?;
    let status = StatusCode::from_bytes(&head[status]).ok()?;
    Some((status, fields(head, end + 2, Side::Origin)?))
}

/// The fields from `at` to the empty line that ends the head.
fn fields(head: &Bytes, mut at: usize, side: Side) -> Option<Fields> {
    let bytes: &[u8] = head;
    if !has_only_text(bytes) {
        return None;
    }
    let mut fields = Fields::begin(head, side);
    let mut left = FIELDS_MAX;
    while *bytes.get(at)? != b'\r' {
        let name = at..at + bytes[at..].iter().position(|byte| !TOKEN[usize::from(*byte)])?;
        if name.is_empty() || bytes[name.end] != b':' || left == 0 {
            return None;
        }
        let end = line_end(bytes, name.end + 1)?;
        let value = trimmed(bytes, name.end + 1..end);
        let is_tidy = value.start == name.end + 2 && bytes[name.end + 1] == b' ' && value.end == end;
        fields.push_line(name, value, is_tidy);
        (at, left) = (end + 2, left - 1);
    }
    (bytes.get(at..) == Some(b"\r\n")).then_some(fields)
}

/// Whether there is nothing that may not stand in a line but whole ends of lines. Pairs of bytes without a branch, so that
/// many are compared at once.
fn has_only_text(head: &[u8]) -> bool {
    let (Some(before), Some(after)) = (head.get(..head.len().saturating_sub(1)), head.get(1..)) else {
        return false;
    };
    let odd = before.iter().zip(after).fold(0, |odd, (before, byte)| {
        let is_control = u8::from(*byte < b' ') & u8::from(*byte != b'\t') & u8::from(*byte != b'\n');
        let is_lone = u8::from(*before == b'\r') ^ u8::from(*byte == b'\n');
        odd | (is_control & u8::from(*byte != b'\r')) | is_lone | u8::from(*byte == 0x7f)
    });
    odd == 0 && head.first().is_some_and(u8::is_ascii_graphic) && head.ends_with(b"\n")
}

/// Where the line ends that `from` is in; the head [`has_only_text`].
fn line_end(head: &[u8], from: usize) -> Option<usize> {
    Some(from + memchr::memchr(b'\r', head.get(from..)?)?)
}

/// Without white space at either end.
fn trimmed(head: &[u8], mut value: Range<usize>) -> Range<usize> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    while !value.is_empty() && is_space(&head[value.start]) {
        value.start += 1;
    }
    while !value.is_empty() && is_space(&head[value.end - 1]) {
        value.end -= 1;
    }
    value
}

const VERSION: &[u8] = b" HTTP/1.1\r\n";
const STATUS: &[u8] = b"HTTP/1.1 ";
/// RFC 9110 §5.6.2.
const TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~");
/// What stands in a path and a query without anybody having an opinion on it (RFC 3986 §3.3, §3.4).
const TARGET: [bool; 256] = table(b"-._~!$&'()*+,;=:@/?%");

/// Letters, digits and `marks`.
const fn table(marks: &[u8]) -> [bool; 256] {
    let (mut table, mut byte) = ([false; 256], 0);
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut mark = 0;
    while mark < marks.len() {
        table[marks[mark] as usize] = true;
        mark += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_stand_in_a_value_is_what_a_map_takes() {
        for byte in 0..=255u8 {
            let taken = http::HeaderValue::from_bytes(&[byte]).is_ok();
            let line = [b"a: b", &[byte][..], b"c\r\n\r\n"].concat();
            assert_eq!(has_only_text(&line), taken, "{byte}");
            let taken = http::HeaderName::from_bytes(&[byte]).is_ok();
            assert_eq!(TOKEN[usize::from(byte)], taken, "{byte}");
        }
    }

    #[test]
    fn an_ordinary_request_is_split() {
        let head = Bytes::from("GET /a?b=%20 HTTP/1.1\r\nHost: h\r\nX-A:\t1 \r\nEmpty:\r\n\r\n");
        let (method, uri, fields) = request(&head).unwrap();
        assert_eq!((method, uri.to_string().as_str()), (Method::GET, "/a?b=%20"));
        assert_eq!((&fields["host"], &fields["x-a"]), (&"h".parse().unwrap(), &"1".parse().unwrap()));
        assert!(fields["empty"].is_empty());
    }

    #[test]
    fn an_ordinary_response_is_split() {
        let head = Bytes::from("HTTP/1.1 404 Not here\r\nA: 1\r\n\r\n");
        let (status, fields) = response(&head).unwrap();
        assert_eq!((status, fields.len()), (StatusCode::NOT_FOUND, 1));
        assert_eq!(response(&Bytes::from("HTTP/1.1 200 \r\n\r\n")).unwrap().0, StatusCode::OK);
    }

    #[test]
    fn whatever_is_out_of_the_ordinary_is_left_to_others() {
        for head in [
            "GET / HTTP/1.0\r\nHost: h\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /\"> HTTP/1.1\r\nHost: h\r\n\r\n",
            "CONNECT /a HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
            "GET / HTTP/1.1\r\n: h\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0\r\n\r\n",
            "GET / HTTP/1.1\r\nA\r\n\r\n",
            "GET / HTTP/1.1\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\nX",
            "GET /",
            "GET",
            "",
        ] {
            assert!(request(&Bytes::from(head)).is_none(), "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: 1\r\n".repeat(FIELDS_MAX + 1));
        assert!(request(&Bytes::from(many)).is_none());
        for head in
            ["HTTP/1.1 200\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 20x OK\r\n\r\n", "HTTP/1.1 200 OK"]
        {
            assert!(response(&Bytes::from(head)).is_none(), "{head:?}");
        }
    }
}
