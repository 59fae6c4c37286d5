//! The host of a request and of a rule, as Traefik compares them (`ingress-features.md §1.2`).

use std::borrow::Cow;

/// The host without port and brackets, in lower case; a trailing dot stays.
pub fn canonical_host(authority: &str) -> Cow<'_, str> {
    let host = without_port(authority).trim();
    if host.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(host);
    }
    match host.chars().any(char::is_uppercase) {
        true => Cow::Owned(host.to_lowercase()),
        false => Cow::Borrowed(host),
    }
}

/// As Go splits `host:port`: what cannot be split stays as it is.
fn without_port(authority: &str) -> &str {
    // So short a text is searched sooner byte by byte.
    let Some(colon) = authority.bytes().rposition(|byte| byte == b':') else { return authority };
    let host = &authority[..colon];
    match host.strip_prefix('[') {
        Some(inner) => match inner.strip_suffix(']') {
            Some(literal) if !literal.contains(['[', ']']) => literal,
            _ => authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(authority),
        },
        None if host.contains([':', '[', ']']) => {
            authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(authority)
        }
        None => host,
    }
}

/// The argument of `Host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostExpression {
    /// `*`: every request, even without a host.
    Any,
    /// `*.suffix`: one label and the suffix, kept with its dot.
    Wildcard(Box<str>),
    /// Equality; without the trailing dot.
    Exact(Box<str>),
}

impl HostExpression {
    pub(crate) fn new(text: &str) -> Self {
        if text == "*" {
            return Self::Any;
        }
        let text = text.to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') => Self::Wildcard(suffix.trim_end_dot().into()),
            // `*x` and `**` are equal to no host: a host's first label is compared as a whole.
            Some(_) | None => Self::Exact(text.trim_end_dot().into()),
        }
    }

    /// Whether a canonical host is meant.
    pub(crate) fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Wildcard(suffix) => wildcard_key(host.trim_end_dot()) == Some(suffix),
            Self::Exact(name) => !host.is_empty() && host.trim_end_dot() == &**name && !name.starts_with('*'),
        }
    }
}

/// What wildcards are found by: everything from the first dot on.
pub(crate) fn wildcard_key(host: &str) -> Option<&str> {
    host.bytes().position(|byte| byte == b'.').map(|dot| &host[dot..])
}

/// Without one trailing dot.
pub(crate) trait TrimEndDot {
    /// The text without one trailing dot.
    fn trim_end_dot(&self) -> &str;
}

impl TrimEndDot for str {
    fn trim_end_dot(&self) -> &str {
        self.strip_suffix('.').unwrap_or(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_brackets_and_case_are_taken_off() {
        for (authority, host) in [
            ("Example.COM:80", "example.com"),
            ("example.com.:80", "example.com."),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            (":80", ""),
            ("", ""),
            ("[::1", "[::1"),
            ("a:b:c", "a:b:c"),
        ] {
            assert_eq!(canonical_host(authority), host, "{authority}");
        }
        assert!(matches!(canonical_host("a.example:80"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_wildcard_is_one_label() {
        let wildcard = HostExpression::new("*.Example.com");
        assert!(wildcard.matches("a.example.com") && wildcard.matches("a.example.com."));
        assert!(
            !wildcard.matches("example.com") && !wildcard.matches("a.b.example.com") && !wildcard.matches("")
        );
        assert!(HostExpression::new("*").matches(""));
        assert!(!HostExpression::new("*example.com").matches("*example.com"));
    }

    #[test]
    fn a_trailing_dot_is_ignored_on_either_side() {
        for (rule, host) in
            [("a.example", "a.example."), ("a.example.", "a.example"), ("a.example.", "a.example.")]
        {
            assert!(HostExpression::new(rule).matches(host), "{rule} {host}");
        }
        assert!(!HostExpression::new("a.example").matches(""));
    }
}
