//! Fields that end at a hop, and fields that tell the next hop about the visitor.

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
pub fn remove_forged(headers: &mut HeaderMap) {
    for name in &HOP_CLAIMS {
        headers.remove(name);
    }
    let forged: Vec<HeaderName> = headers
        .keys()
        .filter(|name| INTERNAL_PREFIXES.iter().any(|p| name.as_str().starts_with(p)))
        .cloned()
        .collect();
    for name in forged {
        headers.remove(name);
    }
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

/// Adds one address to `X-Forwarded-For`, after those that trusted hops put there.
pub fn append_forwarded_for(headers: &mut HeaderMap, address: IpAddr) {
    let value = match headers.get(&X_FORWARDED_FOR).and_then(|v| v.to_str().ok()) {
        Some(before) => format!("{before}, {address}"),
        None => address.to_string(),
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(X_FORWARDED_FOR, value);
    }
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
const HOP_CLAIMS: [HeaderName; 14] = [
    header::FORWARDED,
    X_FORWARDED_FOR,
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("cf-connecting-ipv6"),
    HeaderName::from_static("cf-ray"),
    HeaderName::from_static("cf-visitor"),
    HeaderName::from_static("cf-ipcountry"),
    HeaderName::from_static("cdn-loop"),
];
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
        for name in
            ["cf-connecting-ip", "x-forwarded-for", "cf-int-x", "cf-warp-tag-id", "cf-access-jwt-assertion"]
        {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("1"));
        }
        remove_forged(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["cf-access-jwt-assertion"]);
    }

    #[test]
    fn ports_are_taken_off_names_and_literals() {
        for (host, want) in [("a:1", "a"), ("a", "a"), ("[::1]:80", "::1"), ("[::1]", "::1")] {
            assert_eq!(without_port(host), want);
        }
    }
}
