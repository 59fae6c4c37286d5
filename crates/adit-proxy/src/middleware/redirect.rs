//! redirectScheme and redirectRegex.

use std::ops::ControlFlow;

use adit_config::dynamic;
use adit_route::compile_go_regex;
use http::{Method, StatusCode};
use regex::Regex;

use super::template::Template;
use super::{Ctx, Edit, go_url, reply};
use crate::message::{Request, Response};

/// `redirectScheme`.
pub(super) struct RedirectScheme {
    scheme: String,
    /// With its colon; empty where the scheme's own is meant.
    port: String,
    permanent: bool,
}

impl RedirectScheme {
    pub(super) fn new(config: &dynamic::RedirectScheme) -> Result<Self, String> {
        if config.scheme.is_empty() {
            return Err("you must provide a target scheme".to_owned());
        }
        let port = match config.port.as_deref() {
            None | Some("") => String::new(),
            Some(port) if is_default_port(&config.scheme, port) => String::new(),
            Some(port) => format!(":{port}"),
        };
        Ok(Self { scheme: config.scheme.clone(), port, permanent: config.permanent })
    }
}

impl Edit for RedirectScheme {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let scheme = match go_url::field(&request.headers, "x-forwarded-proto") {
            // A hop in front may call an upgrade's scheme ws or wss; the request itself is HTTP all the same.
            Some(told) if told.eq_ignore_ascii_case("http") || told.eq_ignore_ascii_case("ws") => "http",
            Some(told) if told.eq_ignore_ascii_case("https") || told.eq_ignore_ascii_case("wss") => "https",
            _ => scheme(ctx),
        };
        let (host, port) = split_port(&request.host);
        let is_default = port.is_none_or(|port| port.is_empty() || is_default_port(scheme, port));
        let asked_port = if is_default { String::new() } else { format!(":{}", port.unwrap_or_default()) };
        if scheme == self.scheme && asked_port == self.port {
            return ControlFlow::Continue(());
        }
        let location = format!("{}://{host}{}{}", self.scheme, self.port, go_url::target(&request.uri));
        answer(request, ctx, &location, self.permanent)
    }
}

/// `redirectRegex`.
pub(super) struct RedirectRegex {
    expression: Regex,
    replacement: Template,
    permanent: bool,
}

impl RedirectRegex {
    pub(super) fn new(config: &dynamic::RedirectRegex) -> Result<Self, String> {
        Ok(Self {
            expression: compile_go_regex(&config.regex)?,
            replacement: Template::parse(&config.replacement),
            permanent: config.permanent,
        })
    }
}

impl Edit for RedirectRegex {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let asked = format!("{}://{}{}", scheme(ctx), request.host, go_url::target(&request.uri));
        if !self.expression.is_match(&asked) {
            return ControlFlow::Continue(());
        }
        let location = self.replacement.replace_all(&self.expression, &asked);
        // A redirection to what was asked would only come back here.
        if location == asked {
            return ControlFlow::Continue(());
        }
        answer(request, ctx, &location, self.permanent)
    }
}

fn answer(request: &Request, ctx: &mut Ctx, location: &str, permanent: bool) -> ControlFlow<Response> {
    let Some(location) = legal(location) else {
        ctx.refused("redirect_invalid");
        return ControlFlow::Break(reply::status_text(StatusCode::BAD_GATEWAY));
    };
    // Only GET may be repeated as another method's GET; everything else keeps method and content (RFC 9110 §15.4).
    let status = match (permanent, request.method == Method::GET) {
        (true, true) => StatusCode::MOVED_PERMANENTLY,
        (true, false) => StatusCode::PERMANENT_REDIRECT,
        (false, true) => StatusCode::FOUND,
        (false, false) => StatusCode::TEMPORARY_REDIRECT,
    };
    ControlFlow::Break(reply::redirect(status, &location))
}

/// A location whose path is encoded; none if it can be no URL.
fn legal(location: &str) -> Option<String> {
    if location.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return None;
    }
    let (before_fragment, fragment) = match location.split_once('#') {
        Some((before, fragment)) => (before, Some(fragment)),
        None => (location, None),
    };
    let (before_query, query) = match before_fragment.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (before_fragment, None),
    };
    let authority_end = before_query.find("://").map_or(0, |at| {
        let authority = &before_query[at + 3..];
        at + 3 + authority.find('/').unwrap_or(authority.len())
    });
    let (base, path) = before_query.split_at(authority_end);
    if base.contains(' ') {
        return None;
    }
    let mut out = format!("{}{}", legal_base(base)?, go_url::escaped(path).ok()?);
    if let Some(query) = query {
        out.push('?');
        out.push_str(&query.replace(' ', "%20"));
    }
    if let Some(fragment) = fragment {
        out.push('#');
        out.push_str(&fragment.replace(' ', "%20"));
    }
    Some(out)
}

/// `scheme://authority`, what is no ASCII encoded; none without a scheme or with a port that is no number.
fn legal_base(base: &str) -> Option<String> {
    let Some((scheme, authority)) = base.split_once("://") else { return Some(base.to_owned()) };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let is_port = split_port(host).1.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let encode = |byte: u8| match byte {
        0x80.. => format!("%{byte:02X}"),
        _ => char::from(byte).to_string(),
    };
    (is_scheme && is_port)
        .then(|| format!("{scheme}://{}", authority.bytes().map(encode).collect::<String>()))
}

/// The scheme of the visitor's own hop.
fn scheme(ctx: &Ctx) -> &'static str {
    if ctx.secure { "https" } else { "http" }
}

fn is_default_port(scheme: &str, port: &str) -> bool {
    matches!((scheme, port), ("http", "80") | ("https", "443"))
}

/// Host with its brackets, and port.
fn split_port(host: &str) -> (&str, Option<&str>) {
    let name_end = host.rfind(']').map_or(0, |at| at + 1);
    match host[name_end..].rfind(':') {
        Some(at) => (&host[..name_end + at], Some(&host[name_end + at + 1..])),
        None => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ctx, request, request_with};
    use super::*;

    fn location(edit: &dyn Edit, mut request: Request, secure: bool) -> Option<(u16, String)> {
        let mut ctx = ctx();
        ctx.secure = secure;
        match edit.edit(&mut request, &mut ctx) {
            ControlFlow::Continue(()) => None,
            ControlFlow::Break(response) => {
                let location = response.headers["location"].to_str().unwrap().to_owned();
                Some((response.status.as_u16(), location))
            }
        }
    }

    fn to_https(port: Option<&str>) -> RedirectScheme {
        let config = dynamic::RedirectScheme {
            scheme: "https".to_owned(),
            port: port.map(str::to_owned),
            permanent: false,
        };
        RedirectScheme::new(&config).unwrap()
    }

    #[test]
    fn what_is_no_url_is_not_redirected_to() {
        for (location, url) in [
            ("https://é.t/é", Some("https://%C3%A9.t/%C3%A9")),
            ("https://a.t:8443/x", Some("https://a.t:8443/x")),
            ("https://[::1]/x", Some("https://[::1]/x")),
            ("/x y", Some("/x%20y")),
            ("://host/x", None),
            ("https://a.t:port/", None),
            ("1https://a.t/", None),
        ] {
            assert_eq!(legal(location).as_deref(), url, "{location}");
        }
    }

    #[test]
    fn the_scheme_changes_and_the_port_goes() {
        let mut asked = request("/x?q=1");
        asked.host = "example.com:8080".to_owned();
        let (status, location_) = location(&to_https(None), asked, false).unwrap();
        assert_eq!((status, location_.as_str()), (302, "https://example.com/x?q=1"));
        let (_, location_) = location(&to_https(Some("8443")), request("/x"), false).unwrap();
        assert_eq!(location_, "https://example.com:8443/x");
        let mut asked = request("/x");
        asked.host = "[::1]:8080".to_owned();
        let (_, location_) = location(&to_https(Some("443")), asked, false).unwrap();
        assert_eq!(location_, "https://[::1]/x");
    }

    #[test]
    fn who_is_there_already_passes() {
        assert_eq!(location(&to_https(None), request("/"), true), None);
        let told = request_with("/", &[("x-forwarded-proto", "wss")]);
        assert_eq!(location(&to_https(None), told, false), None);
    }

    #[test]
    fn only_get_may_change_its_method() {
        let mut asked = request("/x");
        asked.method = Method::HEAD;
        assert_eq!(location(&to_https(None), asked, false).unwrap().0, 307);
    }

    #[test]
    fn a_pattern_sees_the_whole_url_by_its_own_hops_scheme() {
        let redirect = |regex: &str, replacement: &str| {
            RedirectRegex::new(&dynamic::RedirectRegex {
                regex: regex.to_owned(),
                replacement: replacement.to_owned(),
                permanent: true,
            })
            .unwrap()
        };
        let www = redirect("^http://example.com/(.*)", "https://www.example.com/${1}");
        let found = location(&www, request("/a?b=c"), false).unwrap();
        assert_eq!(found, (301, "https://www.example.com/a?b=c".to_owned()));
        let told = request_with("/", &[("x-forwarded-proto", "https")]);
        assert_eq!(location(&redirect("^https://", "/secure"), told, false), None);
        assert_eq!(location(&redirect("(.*)", "$1"), request("/same"), false), None);
        let spaced = location(&redirect(".*", "/a b?c d"), request("/"), false).unwrap();
        assert_eq!(spaced.1, "/a%20b?c%20d");
    }
}
