//! The host of a request in the form that tables are keyed by.

use std::borrow::Cow;

use adit_config::Hostname;

/// Host name by which cloudflared's management service is reached; never routed into a tunnel by host (E22).
pub const MANAGEMENT_HOST: &str = "management.argotunnel.com";

/// The host without port and trailing dot, otherwise as it is; IPv6 literals without brackets.
pub fn host_without_port(authority: &str) -> &str {
    let host = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((literal, tail)) if tail.is_empty() || tail.starts_with(':') => literal,
            _ => authority,
        },
        None => match authority.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => authority,
        },
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// The key of a host: lower-case ASCII, Unicode as punycode; `None` if no table can have it, because it is empty or too
/// long (which also bounds the work of a lookup).
pub(crate) fn key(authority: &str) -> Option<Cow<'_, str>> {
    let host = host_without_port(authority);
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return None;
    }
    if !host.is_ascii() {
        return host.parse::<Hostname>().ok().map(|name| Cow::Owned(name.as_str().to_owned()));
    }
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Some(Cow::Owned(host.to_ascii_lowercase())),
        false => Some(Cow::Borrowed(host)),
    }
}

/// RFC 1035 §2.3.4: no configured name is longer.
const HOST_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_and_a_trailing_dot_are_taken_off() {
        for (authority, host) in [
            ("a.example", "a.example"),
            ("a.example:80", "a.example"),
            ("a.example.:80", "a.example"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("[::1", "[::1"),
            (":80", ""),
        ] {
            assert_eq!(host_without_port(authority), host);
        }
    }

    #[test]
    fn a_lower_case_host_is_not_copied() {
        assert!(matches!(key("a.example:80"), Some(Cow::Borrowed("a.example"))));
        assert!(matches!(key("A.example"), Some(Cow::Owned(_))));
        assert_eq!(key("bücher.example").as_deref(), Some("xn--bcher-kva.example"));
        assert_eq!(key(""), None);
        assert_eq!(key(&"a.".repeat(200)), None);
    }
}
