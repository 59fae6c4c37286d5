//! Host names and the patterns that select them.
//!
//! Host names are case-insensitive (RFC 9110 §4.2.3), so both sides are lower-cased once: a pattern here, a request's
//! host in `adit-route`. Stock cloudflared compares case-sensitively (`tunnel-protocol.md §7.4`); a visitor cannot tell
//! the difference except by being served where cloudflared would fall through.

use std::{borrow::Cow, fmt, str::FromStr};

/// A checked host name: lower-case ASCII, Unicode turned into punycode, no trailing dot, at most 253 bytes.
///
/// Underscores are allowed because names in use have them; IPv4 literals pass as names of digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hostname(String);

/// Which hosts something answers for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// Every host: written `*` or left empty.
    Any,
    /// Exactly this host.
    Exact(Hostname),
    /// Every host below this suffix at any depth, but not the suffix itself: written `*.suffix`.
    Wildcard(Hostname),
}

/// Why a text is no host name or pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// A port was given.
    #[error("hostname cannot contain a port")]
    Port,
    /// `*` stands elsewhere than as the whole first label.
    #[error("hostname can have at most one wildcard (`*`), only for subdomains, as in `*.example.com`")]
    Wildcard,
    /// Empty, or over 253 bytes.
    #[error("hostname must have 1 to 253 characters")]
    Length,
    /// A label is empty, over 63 bytes, or has characters outside letters, digits, `-` and `_`.
    #[error("hostname labels must be 1 to 63 letters, digits, `-` or `_`")]
    Label,
}

impl Hostname {
    /// The name, lower-case ASCII.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HostPattern {
    /// Whether `host` (lower-case ASCII, without port) is selected.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => name.0 == host,
            Self::Wildcard(suffix) => is_below(host, &suffix.0),
        }
    }

    /// Whether every host that `other` selects is selected by `self` too.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (Self::Exact(mine), Self::Exact(theirs)) => mine == theirs,
            (Self::Exact(_), Self::Wildcard(_)) => false,
            (Self::Wildcard(mine), Self::Exact(theirs)) => is_below(&theirs.0, &mine.0),
            (Self::Wildcard(mine), Self::Wildcard(theirs)) => mine == theirs || is_below(&theirs.0, &mine.0),
        }
    }
}

impl FromStr for Hostname {
    type Err = HostnameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(HostnameError::Length);
        }
        if has_port(text) {
            return Err(HostnameError::Port);
        }
        if text.contains('*') {
            return Err(HostnameError::Wildcard);
        }
        let ascii = to_ascii(text)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(HostnameError::Length);
        }
        match name.split('.').all(is_label) {
            true => Ok(Self(name.to_owned())),
            false => Err(HostnameError::Label),
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostnameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if matches!(text, "" | "*") {
            return Ok(Self::Any);
        }
        if has_port(text) {
            return Err(HostnameError::Port);
        }
        match text.strip_prefix("*.") {
            Some(suffix) => suffix.parse().map(Self::Wildcard),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

fn is_below(host: &str, suffix: &str) -> bool {
    host.len() > suffix.len() + 1
        && host.ends_with(suffix)
        && host.as_bytes().get(host.len() - suffix.len() - 1) == Some(&b'.')
}

/// `name:anything` and `[v6]:anything` are host and port; a bare IPv6 literal (two colons and more) is not.
fn has_port(text: &str) -> bool {
    match text.strip_prefix('[') {
        Some(rest) => rest.contains("]:"),
        None => text.bytes().filter(|byte| *byte == b':').count() == 1,
    }
}

fn to_ascii(text: &str) -> Result<Cow<'_, str>, HostnameError> {
    if text.is_ascii() {
        return Ok(Cow::Owned(text.to_ascii_lowercase()));
    }
    idna::domain_to_ascii(text).map(Cow::Owned).map_err(|_| HostnameError::Label)
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// RFC 1035 §2.3.4 in text form, without the trailing dot.
const NAME_BYTES_MAX: usize = 253;
/// RFC 1035 §2.3.4.
const LABEL_BYTES_MAX: usize = 63;
/// Before punycode a name may be longer in UTF-8, but never by more than four bytes a character.
const TEXT_BYTES_MAX: usize = 4 * (NAME_BYTES_MAX + 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_wildcard_matches_any_depth_but_not_the_apex() {
        let wildcard = pattern("*.Example.com");
        assert!(wildcard.matches("a.example.com"));
        assert!(wildcard.matches("a.b.example.com"));
        assert!(!wildcard.matches("example.com"));
        assert!(!wildcard.matches(".example.com"));
        assert!(!wildcard.matches("badexample.com"));
    }

    #[test]
    fn unicode_becomes_punycode() {
        assert_eq!(pattern("bücher.example").to_string(), "xn--bcher-kva.example");
        assert_eq!(pattern("*.bücher.example").to_string(), "*.xn--bcher-kva.example");
    }

    #[test]
    fn each_mistake_has_its_name() {
        let error = |text: &str| text.parse::<HostPattern>().unwrap_err();
        assert_eq!(error("a.example:80"), HostnameError::Port);
        assert_eq!(error("*.example:80"), HostnameError::Port);
        assert_eq!(error("[::1]:80"), HostnameError::Port);
        assert_eq!(error("a.*.example"), HostnameError::Wildcard);
        assert_eq!(error("*.*.example"), HostnameError::Wildcard);
        assert_eq!(error("*example"), HostnameError::Wildcard);
        assert_eq!(error("a..example"), HostnameError::Label);
        assert_eq!(error("a b"), HostnameError::Label);
        assert_eq!(error(&"abc.".repeat(64)), HostnameError::Length);
        assert_eq!(error("*."), HostnameError::Length);
    }

    #[test]
    fn covering_is_never_wider_than_matching() {
        assert!(pattern("*").covers(&pattern("*.a.b")));
        assert!(pattern("*.b").covers(&pattern("*.a.b")));
        assert!(pattern("*.b").covers(&pattern("*.b")));
        assert!(pattern("*.b").covers(&pattern("a.b")));
        assert!(!pattern("*.b").covers(&pattern("b")));
        assert!(!pattern("*.a.b").covers(&pattern("*.b")));
        assert!(!pattern("a.b").covers(&pattern("*.a.b")));
        assert!(!pattern("*.b").covers(&pattern("*")));
    }

    proptest! {
        #[test]
        fn a_covered_pattern_matches_only_what_its_cover_matches(
            wide in "(\\*|(\\*\\.)?([ab]\\.){0,2}[ab])", narrow in "(\\*|(\\*\\.)?([ab]\\.){0,2}[ab])",
            host in "([ab]\\.){0,3}[ab]",
        ) {
            let (wide, narrow) = (pattern(&wide), pattern(&narrow));
            if wide.covers(&narrow) && narrow.matches(&host) {
                prop_assert!(wide.matches(&host));
            }
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(text in "\\PC{0,300}") {
            if let Ok(pattern) = text.parse::<HostPattern>() {
                prop_assert_eq!(pattern.to_string().parse::<HostPattern>().unwrap(), pattern);
            }
        }
    }
}
