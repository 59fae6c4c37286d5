//! Paths and queries on their way from a request's target to rules and servers (`ingress-features.md §1.2`).
//!
//! What is matched and what is sent are made from one normal form, so that no spelling of a path is protected by one
//! router and served by another: unreserved characters are never escaped, all others that need it always are, escapes are
//! upper case, and `.`, `..` and empty segments are gone (unless an entry point wants them). Escapes of reserved
//! characters stay escaped in both, `%2F` and `%5C` among them; a path parameter such as `/..;/` is a name like any other.

use std::borrow::Cow;

use adit_config::dynamic::EncodedCharacters;

/// A path in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalized<'a> {
    /// What the server gets, before middlewares change it.
    pub upstream_path: Cow<'a, str>,
    /// What rules are compared with: escapes of characters that are not reserved are decoded.
    pub routing_path: Cow<'a, str>,
}

/// A query in its two forms, without `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalizedQuery<'a> {
    /// What the server gets.
    pub upstream: Cow<'a, str>,
    /// What rules are compared with.
    pub routing: Cow<'a, str>,
}

/// Why a path is answered with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Targets have no fragments (RFC 9112 §3.2).
    #[error("the path has a fragment")]
    Fragment,
    /// `%` without two hexadecimal digits.
    #[error("the path has a broken percent escape")]
    BadEscape,
    /// Control characters (RFC 3986 §2).
    #[error("the path has a control character")]
    ControlCharacter,
    /// Neither `/…` nor `*`.
    #[error("the path does not start with a slash")]
    NotAbsolute,
    /// An escaped character that the entry point, or a middleware, does not allow.
    #[error("the path has an escaped character that is not allowed")]
    EncodedCharacter,
}

impl Refusal {
    /// Its name in logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Fragment => "path_fragment",
            Self::BadEscape => "path_bad_escape",
            Self::ControlCharacter => "path_control_character",
            Self::NotAbsolute => "path_not_absolute",
            Self::EncodedCharacter => "path_encoded_character",
        }
    }
}

/// Brings the path of a request target (without query) into normal form; an empty one is `/`.
///
/// Allocates nothing for a path that is in normal form and has no escapes.
pub fn normalize(raw_path: &str, sanitize: bool) -> Result<Normalized<'_>, Refusal> {
    let raw_path = if raw_path.is_empty() { "/" } else { raw_path };
    if raw_path == "*" {
        return Ok(Normalized { upstream_path: raw_path.into(), routing_path: raw_path.into() });
    }
    let escaped = escape(raw_path)?;
    if !escaped.starts_with('/') {
        return Err(Refusal::NotAbsolute);
    }
    let upstream_path = match sanitize && is_unclean(&escaped) {
        true => Cow::Owned(clean(&escaped)),
        false => escaped,
    };
    let routing_path = match (memchr_percent(upstream_path.as_bytes()).is_some(), &upstream_path) {
        (true, _) => Cow::Owned(routing_path(&upstream_path).into_owned()),
        (false, Cow::Borrowed(path)) => Cow::Borrowed(*path),
        (false, Cow::Owned(path)) => Cow::Owned(path.clone()),
    };
    Ok(Normalized { upstream_path, routing_path })
}

/// The routing form of a path in normal form.
pub fn routing_path(upstream_path: &str) -> Cow<'_, str> {
    if !upstream_path.contains('%') {
        return Cow::Borrowed(upstream_path);
    }
    let mut bytes = Vec::with_capacity(upstream_path.len());
    let mut rest = upstream_path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, escaped_byte(tail)) {
            (b'%', Some(byte)) if !is_reserved(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => bytes.push(*first),
        }
    }
    Cow::Owned(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// Semicolons in a query are either escaped or separate like `&`: for rules, for authentication servers and for the
/// server alike, or one of them would see parameters that another does not.
pub fn normalize_query(raw: &str, encode_semicolons: bool) -> NormalizedQuery<'_> {
    if !raw.contains(';') {
        return NormalizedQuery { upstream: raw.into(), routing: raw.into() };
    }
    let normal = raw.replace(';', if encode_semicolons { "%3B" } else { "&" });
    NormalizedQuery { upstream: normal.clone().into(), routing: normal.into() }
}

/// Whether a path has only escapes that are allowed, and nothing that becomes one that is not: a raw back slash is escaped
/// on its way to the server.
pub fn check_encoded(upstream_path: &str, allowed: &EncodedCharacters) -> Result<(), Refusal> {
    if *allowed == EncodedCharacters::ALL {
        return Ok(());
    }
    if !allowed.allow_back_slash && upstream_path.contains('\\') {
        return Err(Refusal::EncodedCharacter);
    }
    let mut rest = upstream_path.as_bytes();
    while let Some(percent) = memchr_percent(rest) {
        rest = &rest[percent + 1..];
        let is_allowed = match escaped_byte(rest) {
            Some(b'/') => allowed.allow_slash,
            Some(b'\\') => allowed.allow_back_slash,
            Some(0) => allowed.allow_null,
            Some(b';') => allowed.allow_semicolon,
            Some(b'%') => allowed.allow_percent,
            Some(b'?') => allowed.allow_question_mark,
            Some(b'#') => allowed.allow_hash,
            _ => true,
        };
        if !is_allowed {
            return Err(Refusal::EncodedCharacter);
        }
    }
    Ok(())
}

fn memchr_percent(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'%')
}

/// Unescapes what is unreserved, escapes what may not stand in a path, writes escapes in upper case.
fn escape(raw_path: &str) -> Result<Cow<'_, str>, Refusal> {
    if raw_path.bytes().all(may_stand) {
        return Ok(Cow::Borrowed(raw_path));
    }
    let mut path = String::with_capacity(raw_path.len() + 16);
    let mut rest = raw_path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match *first {
            b'#' => return Err(Refusal::Fragment),
            b'%' => {
                let byte = escaped_byte(tail).ok_or(Refusal::BadEscape)?;
                match is_unreserved(byte) {
                    true => path.push(char::from(byte)),
                    false => push_escaped(byte, &mut path),
                }
                rest = &tail[2..];
            }
            byte if byte.is_ascii_control() => return Err(Refusal::ControlCharacter),
            byte if may_stand(byte) => path.push(char::from(byte)),
            byte => push_escaped(byte, &mut path),
        }
    }
    Ok(Cow::Owned(path))
}

fn push_escaped(byte: u8, path: &mut String) {
    let digit = |value: u8| char::from(b"0123456789ABCDEF"[usize::from(value)]);
    path.extend(['%', digit(byte >> 4), digit(byte & 15)]);
}

/// The byte that `%` and the two bytes at the start of `rest` stand for.
fn escaped_byte(rest: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match rest {
        [high, low, ..] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §2.2, and `%`, which means something else once it is decoded.
fn is_reserved(byte: u8) -> bool {
    b":/?#[]@!$&'()*+,;=%".contains(&byte)
}

/// What servers take unescaped in a path: RFC 3986 §3.3 and, as Go does, brackets.
fn may_stand(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@/[]".contains(&byte)
}

fn is_unclean(path: &str) -> bool {
    path.as_bytes().windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

/// Removes `.`, `..` and empty segments (RFC 3986 §5.2.4); a slash at the end stays.
fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let mut cleaned = String::with_capacity(path.len());
    for segment in &segments {
        cleaned.push('/');
        cleaned.push_str(segment);
    }
    if segments.is_empty() || path.ends_with('/') {
        cleaned.push('/');
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upstream(path: &str) -> String {
        normalize(path, true).unwrap().upstream_path.into_owned()
    }

    fn routing(path: &str) -> String {
        normalize(path, true).unwrap().routing_path.into_owned()
    }

    #[test]
    fn dots_and_double_slashes_are_removed_however_they_are_written() {
        for (raw, clean) in [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/./b/", "/a/b/"),
            ("/a/..", "/"),
            ("/a/.", "/a"),
            ("/a//b", "/a/b"),
            ("/../../a", "/a"),
            ("/a/../", "/"),
            ("/..;/a", "/..;/a"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a%2F..%2Fb", "/a%2F..%2Fb"),
            ("*", "*"),
        ] {
            assert_eq!(upstream(raw), clean, "{raw}");
        }
        assert_eq!(normalize("/a/..//b", false).unwrap().upstream_path, "/a/..//b");
    }

    #[test]
    fn one_character_has_one_spelling() {
        assert_eq!(upstream("/%61%7e%2d%5f"), "/a~-_");
        assert_eq!(upstream("/%2f%5c%c3%a9"), "/%2F%5C%C3%A9");
        assert_eq!(upstream("/a\"<é>|^`{}"), "/a%22%3C%C3%A9%3E%7C%5E%60%7B%7D");
        assert_eq!(upstream("/a!$&'()*+,;=:@[]"), "/a!$&'()*+,;=:@[]");
    }

    #[test]
    fn rules_see_reserved_characters_escaped_and_all_others_decoded() {
        assert_eq!(routing("/a%20b%22"), "/a b\"");
        assert_eq!(routing("/caf%c3%a9"), "/café");
        assert_eq!(
            routing("/%3a%2f%3f%23%5b%5d%40%21%24%26%27%28%29%2a%2b%2c%3b%3d%25"),
            "/%3A%2F%3F%23%5B%5D%40%21%24%26%27%28%29%2A%2B%2C%3B%3D%25"
        );
        assert_eq!(routing("/%ff"), "/\u{fffd}");
        assert_eq!(routing("/%5c%00"), "/\\\0");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for (raw, refusal) in [
            ("/a#b", Refusal::Fragment),
            ("/%", Refusal::BadEscape),
            ("/%4", Refusal::BadEscape),
            ("/%zz", Refusal::BadEscape),
            ("/a\u{7f}", Refusal::ControlCharacter),
            ("/a\n", Refusal::ControlCharacter),
            ("a", Refusal::NotAbsolute),
            ("%2Fa", Refusal::NotAbsolute),
        ] {
            assert_eq!(normalize(raw, true), Err(refusal), "{raw}");
        }
    }

    #[test]
    fn semicolons_separate_or_are_escaped_for_rules_and_servers_alike() {
        let query = normalize_query("a=1;b=2", false);
        assert_eq!((&*query.upstream, &*query.routing), ("a=1&b=2", "a=1&b=2"));
        let query = normalize_query("a=1;b=2", true);
        assert_eq!((&*query.upstream, &*query.routing), ("a=1%3Bb=2", "a=1%3Bb=2"));
        assert!(matches!(normalize_query("a=1", true).upstream, Cow::Borrowed(_)));
    }

    #[test]
    fn escapes_that_are_not_allowed_are_refused() {
        let none = EncodedCharacters::default();
        for path in ["/%2F", "/%5C", "/a\\b", "/%00", "/%3B", "/%25", "/%3F", "/%23"] {
            assert_eq!(check_encoded(path, &none), Err(Refusal::EncodedCharacter), "{path}");
            assert_eq!(check_encoded(path, &EncodedCharacters::ALL), Ok(()));
        }
        assert_eq!(check_encoded("/%20%C3%A9", &none), Ok(()));
        let slash = EncodedCharacters { allow_slash: true, ..none };
        assert_eq!(check_encoded("/%2F", &slash), Ok(()));
        assert_eq!(check_encoded("/%2F%5C", &slash), Err(Refusal::EncodedCharacter));
    }

    #[test]
    fn a_plain_path_is_not_copied() {
        let normalized = normalize("/api/v1/things", true).unwrap();
        assert!(matches!(normalized.upstream_path, Cow::Borrowed(_)));
        assert!(matches!(normalized.routing_path, Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn normalizing_twice_changes_nothing(path in "/[a-c./%0-9A-Fé\" ;]{0,40}", sanitize in any::<bool>()) {
            if let Ok(once) = normalize(&path, sanitize) {
                let twice = normalize(&once.upstream_path, sanitize).unwrap();
                prop_assert_eq!(&twice, &once);
            }
        }

        #[test]
        fn a_sanitized_path_cannot_climb(path in "/([.]{1,3}|/|%2[eEfF]|a|;){0,20}") {
            let path = upstream(&path);
            prop_assert!(path.starts_with('/'));
            prop_assert!(!path.contains("//"));
            prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{}", path);
        }

        #[test]
        fn any_path_is_normal_or_refused(path in "\\PC{0,60}", sanitize in any::<bool>()) {
            let _ = normalize(&path, sanitize);
        }
    }
}
