//! Where an authentication server sends a visitor, seen from the server's own URL (RFC 3986 §5).

use super::super::go_url;

/// An absolute URL for `reference`, which the server at `scheme://authority` gave in an answer to `path`. None if it is
/// no URL.
pub(super) fn resolve(scheme: &str, authority: &str, path: &str, reference: &str) -> Option<String> {
    if reference.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return None;
    }
    legal(&absolute(scheme, authority, path, reference))
}

/// What may not stand in a URL encoded, as Go writes it; none for an escape that is none.
fn legal(url: &str) -> Option<String> {
    let (url, fragment) = url.split_once('#').map_or((url, None), |(url, fragment)| (url, Some(fragment)));
    let (url, query) = url.split_once('?').map_or((url, None), |(url, query)| (url, Some(query)));
    let Some((scheme, rest)) = url.split_once("://") else {
        // Such as `mailto:`, which has neither host nor path.
        return url.is_ascii().then(|| [Some(url), query, fragment].into_iter().flatten().collect());
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let mut legal = format!("{scheme}://{}{}", encoded(authority), go_url::escaped(path).ok()?);
    for (mark, part) in [('?', query), ('#', fragment)] {
        if let Some(part) = part {
            legal.push(mark);
            legal.push_str(&encoded(part));
        }
    }
    Some(legal)
}

fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b' ' | b'"' | b'<' | b'>' | 0x80.. => format!("%{byte:02X}"),
        _ => char::from(byte).to_string(),
    };
    text.bytes().map(encode).collect()
}

fn absolute(scheme: &str, authority: &str, path: &str, reference: &str) -> String {
    let has_scheme = reference.find(':').is_some_and(|colon| {
        let scheme = &reference.as_bytes()[..colon];
        scheme.first().is_some_and(u8::is_ascii_alphabetic)
            && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
    });
    if has_scheme {
        return reference.to_owned();
    }
    if reference.starts_with("//") {
        return format!("{scheme}:{reference}");
    }
    let base = path.split(['?', '#']).next().unwrap_or_default();
    let end = reference.find(['?', '#']).unwrap_or(reference.len());
    let (relative, rest) = reference.split_at(end);
    let merged = match relative {
        "" => base.to_owned(),
        absolute if absolute.starts_with('/') => absolute.to_owned(),
        relative => format!("{}/{relative}", base.rsplit_once('/').map_or("", |(directory, _)| directory)),
    };
    format!("{scheme}://{authority}{}{rest}", without_dots(&merged))
}

/// RFC 3986 §5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_directory = false;
    for segment in path.split('/').skip(1) {
        ends_in_directory = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let slash = if ends_in_directory && !kept.is_empty() { "/" } else { "" };
    format!("/{}{slash}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_as_the_rfc_says() {
        let resolved = |reference: &str| resolve("http", "a", "/b/c/d?q", reference).unwrap();
        for (reference, url) in [
            ("https://login.test/x?y", "https://login.test/x?y"),
            ("/login?rd=http://b", "http://a/login?rd=http://b"),
            ("//g", "http://g"),
            ("g", "http://a/b/c/g"),
            ("../g", "http://a/b/g"),
            ("./", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../../../g", "http://a/g"),
            ("?y", "http://a/b/c/d?y"),
            ("#s", "http://a/b/c/d#s"),
        ] {
            assert_eq!(resolved(reference), url, "{reference}");
        }
    }

    #[test]
    fn what_may_not_stand_in_a_url_is_encoded() {
        let resolved = |reference: &str| resolve("http", "a", "/b", reference);
        for (reference, url) in [
            ("/a b", "http://a/a%20b"),
            ("https://x.t/é", "https://x.t/%C3%A9"),
            ("/a\"b", "http://a/a%22b"),
            ("/a%2Fb?c=d e", "http://a/a%2Fb?c=d%20e"),
            ("https://é.t/x", "https://%C3%A9.t/x"),
        ] {
            assert_eq!(resolved(reference).as_deref(), Some(url), "{reference}");
        }
        assert_eq!((resolved("/a%zz"), resolved("/a\rb")), (None, None));
    }
}
