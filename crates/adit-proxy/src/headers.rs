//! Fields that end at a hop, and fields that tell the next hop about the visitor.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Removes the fields that concern one connection only (RFC 9110 §7.6.1), and those that `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in named {
            // A visitor must not be able to take off what a hop relies on.
            if !PROTECTED.contains(&name) {
                headers.remove(name);
            }
        }
        headers.remove(header::CONNECTION);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if headers.contains_key(header::TE) {
        keep_te_trailers(headers);
    }
}

/// `Te` is hop-by-hop, but gRPC needs `te: trailers` end to end; everything else of it is dropped.
pub fn keep_te_trailers(headers: &mut HeaderMap) {
    let trailers = headers.get_all(header::TE).iter().any(|v| {
        v.as_bytes().split(|b| *b == b',').any(|o| o.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes off what a visitor may have forged about itself: everything that an origin could take for the word of a hop.
///
/// Names are compared with `_` as `-`, because CGI and its heirs cannot tell them apart.
pub fn remove_forged(headers: &mut HeaderMap) {
    let forged: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name.as_str())).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

fn is_claim(name: &str) -> bool {
    // Most names begin with other letters: one look at the first decides.
    if !matches!(name.as_bytes().first(), Some(b'x' | b'c' | b'f' | b't')) {
        return false;
    }
    let name = if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) };
    let is_own_credential = CREDENTIALS.contains(&&*name);
    HOP_CLAIMS.contains(&&*name) || (CLAIM_PREFIXES.iter().any(|p| name.starts_with(p)) && !is_own_credential)
}

/// Removes fields of the tunnel's own vocabulary from a response (conformance statement E11).
pub fn remove_internal(headers: &mut HeaderMap) {
    if headers.keys().any(|name| is_internal(name.as_str())) {
        let internal: Vec<HeaderName> = headers.keys().filter(|n| is_internal(n.as_str())).cloned().collect();
        for name in internal {
            headers.remove(name);
        }
    }
}

/// Adds one address to `X-Forwarded-For`, after those that trusted hops put there, on one line.
pub fn append_forwarded_for(headers: &mut HeaderMap, address: IpAddr) {
    let value = match forwarded_for(headers) {
        Some(before) => format!("{before}, {address}"),
        None => address.to_string(),
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// All lines of `X-Forwarded-For` as one list (RFC 9110 §5.3): a hop may have added a line of its own.
pub fn forwarded_for(headers: &HeaderMap) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// The host without its port, brackets of a literal address taken off.
pub fn without_port(host: &str) -> &str {
    if let Some(literal) = host.strip_prefix('[') {
        return literal.split(']').next().unwrap_or(literal);
    }
    host.split(':').next().unwrap_or(host)
}

fn is_internal(name: &str) -> bool {
    INTERNAL_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// `X-Forwarded-For`.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

const HOP_BY_HOP: [HeaderName; 7] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Fields that `Connection: <name>` cannot remove.
const PROTECTED: [HeaderName; 9] = [
    header::HOST,
    header::AUTHORIZATION,
    header::COOKIE,
    header::CONTENT_LENGTH,
    header::FORWARDED,
    X_FORWARDED_FOR,
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("cf-connecting-ip"),
];
/// Fields by which hops speak of the visitor, beside those with a prefix of [`CLAIM_PREFIXES`].
const HOP_CLAIMS: [&str; 10] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cdn-loop",
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-request-start",
];
const CLAIM_PREFIXES: [&str; 3] = ["x-adit-mesh-", "x-forwarded-", "cf-"];
/// Fields with such a prefix that a visitor itself sends, and that are verified.
const CREDENTIALS: [&str; 4] =
    ["cf-access-jwt-assertion", "cf-access-token", "cf-access-client-id", "cf-access-client-secret"];
const INTERNAL_PREFIXES: [&str; 4] = ["cf-int-", "cf-cloudflared-", "cf-proxy-", "cf-warp-tag-"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_takes_the_fields_it_names_but_not_protected_ones() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop, X-Forwarded-For"),
            ("x-hop", "1"),
            ("x-forwarded-for", "1.2.3.4"),
            ("keep-alive", "5"),
            ("te", "trailers"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-forwarded-for", "te"]);
    }

    #[test]
    fn forged_claims_go_and_the_rest_stays() {
        let mut headers = HeaderMap::new();
        let forged = [
            "cf-connecting-ip",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded-prefix",
            "cf-access-authenticated-user-email",
            "cf-int-x",
            "cf-warp-tag-id",
            "x-original-url",
        ];
        let kept = ["cf-access-jwt-assertion", "cookie", "x-mine"];
        for name in forged.iter().chain(&kept) {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        remove_forged(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, kept);
    }

    #[test]
    fn every_line_of_x_forwarded_for_counts() {
        let mut headers = HeaderMap::new();
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("6.6.6.6"));
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("9.9.9.9"));
        append_forwarded_for(&mut headers, "127.0.0.1".parse().unwrap());
        assert_eq!(
            headers.get_all(X_FORWARDED_FOR).iter().collect::<Vec<_>>(),
            ["6.6.6.6, 9.9.9.9, 127.0.0.1"]
        );
    }

    #[test]
    fn ports_are_taken_off_names_and_literals() {
        for (host, want) in [("a:1", "a"), ("a", "a"), ("[::1]:80", "::1"), ("[::1]", "::1")] {
            assert_eq!(without_port(host), want);
        }
    }
}
