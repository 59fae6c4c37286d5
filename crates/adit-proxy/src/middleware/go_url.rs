//! Paths as Go's `net/url` reads and writes them: operators' prefixes and patterns were written against it.

use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};

use crate::message::Request;

/// The decoded path: each `%XX` is a byte.
///
/// # Errors
/// The first escape that is none, as Go words it.
pub(super) fn unescape(path: &str) -> Result<Vec<u8>, String> {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte != b'%' {
            out.push(byte);
            at += 1;
            continue;
        }
        let digits = bytes.get(at + 1).zip(bytes.get(at + 2));
        match digits.and_then(|(high, low)| Some(hex(*high)? << 4 | hex(*low)?)) {
            Some(decoded) => out.push(decoded),
            None => {
                let end = bytes.len().min(at + 3);
                return Err(format!("invalid URL escape {:?}", String::from_utf8_lossy(&bytes[at..end])));
            }
        }
        at += 3;
    }
    Ok(out)
}

/// The path as it is to go out: as written if that is a legal encoding, else encoded afresh.
///
/// # Errors
/// An escape that is none.
pub(super) fn escaped(path: &str) -> Result<String, String> {
    let decoded = unescape(path)?;
    if path.bytes().all(|byte| is_legal(byte) || !must_escape(byte)) {
        return Ok(path.to_owned());
    }
    Ok(escape(&decoded))
}

/// Encodes every byte that Go does not leave as it is in a path.
pub(super) fn escape(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for &byte in path {
        if must_escape(byte) {
            push_escape(&mut out, byte);
        } else {
            out.push(char::from(byte));
        }
    }
    out
}

/// Go's `url.QueryEscape`: a space becomes `+`, only unreserved characters stay.
pub(super) fn query_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            _ if is_unreserved(byte) => out.push(char::from(byte)),
            _ => push_escape(&mut out, byte),
        }
    }
    out
}

/// True if the path has no empty, `.` or `..` segment: what an upstream would take it to be is what it says.
pub(super) fn is_clean(path: &str) -> bool {
    let rest = path.strip_prefix('/').unwrap_or(path);
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        if matches!(segment, "." | "..") || (segment.is_empty() && !is_last) {
            return false;
        }
    }
    true
}

/// A path with a slash in front, unless it is empty.
pub(super) fn with_leading_slash(path: String) -> String {
    if path.is_empty() || path.starts_with('/') { path } else { format!("/{path}") }
}

/// Puts an encoded path into the request; its query stays. An empty path is sent as `/` (RFC 9112 §3.2.1).
///
/// # Errors
/// If no request line can carry it.
pub(super) fn set_path(request: &mut Request, path: &str) -> Result<(), String> {
    let path = match path {
        "" => "/".to_owned(),
        path => with_leading_slash(path.to_owned()),
    };
    let target = match request.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    set_target(request, &target)
}

/// Puts path and query into the request.
///
/// # Errors
/// If no request line can carry them.
pub(super) fn set_target(request: &mut Request, target: &str) -> Result<(), String> {
    let target = PathAndQuery::try_from(target).map_err(|error| error.to_string())?;
    let mut parts = std::mem::take(&mut request.uri).into_parts();
    parts.path_and_query = Some(target);
    request.uri = Uri::from_parts(parts).map_err(|error| error.to_string())?;
    Ok(())
}

/// Path and query as they stand in the request line.
pub(super) fn target(uri: &Uri) -> &str {
    match uri.path_and_query().map(PathAndQuery::as_str) {
        Some("") | None => "/",
        Some(target) => target,
    }
}

/// The first line of a field, if it is text.
pub(super) fn field<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn push_escape(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~')
}

/// What Go's path encoding escapes.
fn must_escape(byte: u8) -> bool {
    !(is_unreserved(byte) || matches!(byte, b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@'))
}

/// What Go's path encoding escapes itself but lets stand where it is written unescaped.
fn is_legal(byte: u8) -> bool {
    matches!(byte, b'!' | b'\'' | b'(' | b')' | b'*' | b'[' | b']' | b'%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legal_encoding_stays_as_written_and_anything_else_is_encoded_afresh() {
        assert_eq!(escaped("/a%2Fb(c)").unwrap(), "/a%2Fb(c)");
        assert_eq!(escaped("/a b").unwrap(), "/a%20b");
        assert_eq!(escaped("/a b%2Fc").unwrap(), "/a%20b/c");
        assert!(escaped("/%zz").is_err());
    }

    #[test]
    fn only_paths_without_odd_segments_are_clean() {
        for clean in ["/", "/a", "/a/", "/a/b", "/a/..b", "/%2e%2e/"] {
            assert!(is_clean(clean), "{clean}");
        }
        for odd in ["//a", "/a//b", "/./a", "/a/..", "/a/../b", "/a/.", "//"] {
            assert!(!is_clean(odd), "{odd}");
        }
    }

    #[test]
    fn query_escape_is_that_of_forms() {
        assert_eq!(query_escape("http://a b/?x=1&y"), "http%3A%2F%2Fa+b%2F%3Fx%3D1%26y");
    }
}
