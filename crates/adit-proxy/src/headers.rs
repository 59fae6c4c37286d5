//! Fields that end at a hop, and fields that tell the next hop about the visitor.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::body::{BodyError, Length};
use crate::fields::{Fields, Kinds};

/// Removes the fields that concern one connection only (RFC 9110 §7.6.1), and those that `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // One look at each name instead of a lookup for each that may be there: most messages have one of them or none.
    let mut present = [false; HOP_BY_HOP.len()];
    let (mut connection, mut te, mut any) = (false, false, false);
    for name in headers.keys() {
        match name.as_str() {
            "connection" => connection = true,
            "te" => te = true,
            name => match HOP_BY_HOP.iter().position(|hop| hop.len() == name.len() && *hop == name) {
                Some(at) => present[at] = true,
                None => continue,
            },
        }
        any = true;
    }
    if !any {
        return;
    }
    if connection {
        let named: Vec<HeaderName> = list(headers, &header::CONNECTION)
            .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive") && !name.eq_ignore_ascii_case(b"close"))
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .collect();
        for name in named {
            // A visitor must not be able to take off what a hop relies on.
            if !PROTECTED.contains(&name) {
                headers.remove(name);
            }
        }
        headers.remove(header::CONNECTION);
    }
    for (name, _) in HOP_BY_HOP.iter().zip(present).filter(|(_, present)| *present) {
        headers.remove(*name);
    }
    if te {
        keep_te_trailers(headers);
    }
}

/// The members of a field that is a list, all its lines (RFC 9110 §5.6.1).
pub(crate) fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).into_iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// [`remove_hop_by_hop`] for a message whose trailers are passed on: then what announces them is too.
pub(crate) fn remove_hop_by_hop_but_trailer(headers: &mut Fields, length: Length) {
    if headers.lack(Kinds::HOP) {
        return headers.drop_lines(Kinds::PERSISTENCE);
    }
    let announced: Vec<HeaderValue> = match length {
        Length::Unknown => headers.get_all(header::TRAILER).iter().cloned().collect(),
        Length::Known(_) | Length::Raw => Vec::new(),
    };
    remove_hop_by_hop(headers);
    for line in announced {
        headers.append(header::TRAILER, line);
    }
}

/// Removes what frames and routes a message: whoever writes it out writes these himself, and a second word about them,
/// as a middleware may have put there, would let its content be read as another message (RFC 9112 §11.2).
pub fn remove_framing(headers: &mut Fields) {
    if headers.lack(Kinds::FRAMING) {
        return;
    }
    for name in &FRAMING {
        headers.remove(name);
    }
}

/// Whether a field frames or routes a message, or concerns one connection only: not for others to set.
pub(crate) fn is_of_the_hop(name: &HeaderName) -> bool {
    FRAMING.contains(name)
        || matches!(*name, header::CONNECTION | header::TE)
        || HOP_BY_HOP.iter().any(|hop| name == hop)
}

/// `Te` is hop-by-hop, but gRPC needs `te: trailers` end to end; everything else of it is dropped.
pub fn keep_te_trailers(headers: &mut HeaderMap) {
    if !headers.contains_key(header::TE) {
        return;
    }
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
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| is_claim(name.as_str().as_bytes())).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

/// Whether [`remove_forged`] takes off a field of this name, in any letter case.
pub fn is_claim(name: &[u8]) -> bool {
    // Most names begin with other letters: one look at the first decides.
    if !matches!(name.first().map(u8::to_ascii_lowercase), Some(b'x' | b'c' | b'f' | b't')) {
        return false;
    }
    let is_alike = |(byte, wanted): (&u8, &u8)| {
        byte.to_ascii_lowercase() == *wanted || (*wanted == b'-' && *byte == b'_')
    };
    let starts = |with: &&str| name.len() >= with.len() && name.iter().zip(with.as_bytes()).all(is_alike);
    let is = |other: &&str| name.len() == other.len() && starts(other);
    HOP_CLAIMS.iter().any(is) || (CLAIM_PREFIXES.iter().any(starts) && !CREDENTIALS.iter().any(is))
}

/// Whether a field may travel in a trailer section: it must not frame, route, authenticate or speak for a hop there
/// (RFC 9110 §6.5.1), because there are servers that treat trailers as headers.
pub fn may_trail(name: &HeaderName) -> bool {
    !NO_TRAILERS.contains(name) && !HOP_BY_HOP.contains(&name.as_str()) && !is_claim(name.as_str().as_bytes())
}

/// Takes off a trailer section of HTTP/2 or 3 what must not travel there.
///
/// # Errors
/// [`BodyError::Trailers`] for a name that would have a head refused.
pub fn tidy_trailers(mut trailers: HeaderMap) -> Result<HeaderMap, BodyError> {
    if trailers.keys().any(is_odd) {
        return Err(BodyError::Trailers);
    }
    let unfit: Vec<HeaderName> = trailers.keys().filter(|name| !may_trail(name)).cloned().collect();
    for name in unfit {
        trailers.remove(name);
    }
    Ok(trailers)
}

/// Whether a name has a quotation mark, with which it is no token (RFC 9110 §5.6.2): `http` lets it pass in HTTP/2 and 3.
pub(crate) fn is_odd(name: &HeaderName) -> bool {
    memchr::memchr(b'"', name.as_str().as_bytes()).is_some()
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
    if let Ok(address) = HeaderValue::try_from(address.to_string()) {
        append_forwarded_text(headers, &address);
    }
}

/// [`append_forwarded_for`] with the address as text.
pub fn append_forwarded_text(headers: &mut HeaderMap, address: &HeaderValue) {
    let value = forwarded_for(headers).and_then(|before| {
        let address = address.to_str().ok()?;
        HeaderValue::try_from(format!("{before}, {address}")).ok()
    });
    headers.insert(X_FORWARDED_FOR, value.unwrap_or_else(|| address.clone()));
}

/// All lines of `X-Forwarded-For` as one list (RFC 9110 §5.3): a hop may have added a line of its own.
pub fn forwarded_for(headers: &HeaderMap) -> Option<String> {
    headers.get(&X_FORWARDED_FOR)?;
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

const FRAMING: [HeaderName; 3] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::HOST];
pub(crate) const HOP_BY_HOP: [&str; 7] = [
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Fields that change how the message or its content is read, beside those of one hop.
const NO_TRAILERS: [HeaderName; 13] = [
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::HOST,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::EXPECT,
    header::MAX_FORWARDS,
    header::RANGE,
    header::TE,
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
    fn trailers_keep_what_ends_a_call_and_lose_what_would_steer_it() {
        let mut trailers = HeaderMap::new();
        for name in
            ["grpc-status", "content-length", "host", "transfer-encoding", "x-forwarded-for", "expect"]
        {
            trailers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        let left = tidy_trailers(trailers).unwrap();
        assert_eq!(left.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
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

    #[test]
    fn a_claim_is_one_in_any_letter_case_and_with_lines_for_dashes() {
        for claim in ["CF-Ray", "Cdn-Loop", "x_ADIT-mesh_peer", "FORWARDED", "True_Client-IP", "cf-"] {
            assert!(is_claim(claim.as_bytes()), "{claim}");
        }
        for other in ["", "x", "cf", "Cf_Access-Token", "CF-ACCESS-JWT-ASSERTION", "cookie", "forwarded-x"] {
            assert!(!is_claim(other.as_bytes()), "{other}");
        }
    }
}
