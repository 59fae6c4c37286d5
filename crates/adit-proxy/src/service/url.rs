//! Server URLs, and what a request's target becomes behind them.

use http::Uri;
use http::uri::PathAndQuery;

use crate::connect::Target;

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scheme {
    /// HTTP/1.1 in the clear.
    Http,
    /// TLS; HTTP/2 or HTTP/1.1 by ALPN.
    Https,
    /// HTTP/2 in the clear by prior knowledge (RFC 9113 §3.3).
    H2c,
}

/// A server's URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerUrl {
    pub(super) scheme: Scheme,
    /// `host[:port]` as written: what `Host` is if the visitor's is not passed on.
    pub(super) authority: String,
    /// Without brackets.
    pub(super) host: String,
    /// As written or the scheme's default.
    pub(super) port: u16,
    /// As written, without query; empty if there was none.
    pub(super) path: String,
}

impl Scheme {
    /// Reads a scheme's name in any letter case.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            "h2c" => Ok(Self::H2c),
            other => Err(format!("scheme {other:?} is not one of http, https, h2c")),
        }
    }

    fn default_port(self) -> u16 {
        if self == Self::Https { 443 } else { 80 }
    }
}

impl ServerUrl {
    /// Reads `scheme://host[:port][/path]`; user information, query and fragment are of no use here and left out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("server URL {text:?} {what}");
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        let scheme = Scheme::parse(scheme).map_err(|why| wrong(&why))?;
        let rest = rest.split(['?', '#']).next().unwrap_or(rest);
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = split_port(authority).ok_or_else(|| wrong("has a port that is not a number"))?;
        if host.is_empty() || http::uri::Authority::try_from(authority).is_err() {
            return Err(wrong("has no usable host"));
        }
        if !path.is_empty() && PathAndQuery::try_from(path).is_err() {
            return Err(wrong("has a path that cannot be sent"));
        }
        Ok(Self {
            scheme,
            authority: authority.to_owned(),
            host: host.to_owned(),
            port: port.unwrap_or(scheme.default_port()),
            path: path.to_owned(),
        })
    }

    /// The same server under another scheme or port, as health checks may ask for.
    pub(super) fn with(&self, scheme: Option<Scheme>, port: Option<u16>) -> Self {
        let mut changed = self.clone();
        if let Some(scheme) = scheme {
            changed.scheme = scheme;
            if split_port(&self.authority).is_none_or(|(_, port)| port.is_none()) {
                changed.port = scheme.default_port();
            }
        }
        if let Some(port) = port {
            changed.port = port;
            changed.authority = match changed.host.contains(':') {
                true => format!("[{}]:{port}", changed.host),
                false => format!("{}:{port}", changed.host),
            };
        }
        changed
    }

    /// Where to connect to.
    pub(super) fn target(&self) -> Target {
        Target::Tcp { host: self.host.clone(), port: self.port }
    }

    /// The target of a request to this server, if it differs from `uri`: the server's path first if it is to be preserved.
    pub(super) fn rewrite(&self, uri: &Uri, preserve_path: bool) -> Option<Uri> {
        if !preserve_path || self.path.is_empty() {
            return None;
        }
        let path = join(&self.path, uri.path());
        let target = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
        Uri::from_parts(parts).ok()
    }
}

/// Two paths with exactly one slash between them.
fn join(base: &str, path: &str) -> String {
    match (base.ends_with('/'), path.starts_with('/')) {
        (true, true) => format!("{base}{}", &path[1..]),
        (false, false) => format!("{base}/{path}"),
        _ => format!("{base}{path}"),
    }
}

/// Host without brackets and the port, if one is written; `None` if it is no number.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(literal) => {
            let (host, rest) = literal.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    match port {
        None | Some("") => Some((host, None)),
        Some(port) => Some((host, Some(port.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(server: &str, uri: &str, preserve: bool) -> String {
        let uri: Uri = uri.parse().unwrap();
        ServerUrl::parse(server).unwrap().rewrite(&uri, preserve).unwrap_or(uri).to_string()
    }

    #[test]
    fn urls_are_taken_apart() {
        let url = ServerUrl::parse("https://[::1]/base").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("::1", 443, "/base"));
        assert_eq!(url.authority, "[::1]");
        let url = ServerUrl::parse("HTTP://u:p@a.example:8080").unwrap();
        assert_eq!((url.authority.as_str(), url.port, url.path.as_str()), ("a.example:8080", 8080, ""));
        assert_eq!(ServerUrl::parse("h2c://a").unwrap().port, 80);
    }

    #[test]
    fn what_is_no_server_url_is_refused() {
        for text in ["10.0.0.1:80", "ftp://a", "http://", "http://a:x", "http://a:99999", "http://a b/"] {
            assert!(ServerUrl::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_servers_path_counts_only_if_preserved() {
        assert_eq!(rewrite("http://a/base", "/y", false), "/y");
        assert_eq!(rewrite("http://a/base", "/y", true), "/base/y");
        assert_eq!(rewrite("http://a/base/", "/y?q=1", true), "/base/y?q=1");
        assert_eq!(rewrite("http://a", "/y", true), "/y");
    }

    #[test]
    fn escapes_and_the_query_stay_as_they_are() {
        assert_eq!(rewrite("http://a/b/", "/a%2Fb;c%20d?x=1;y=2", true), "/b/a%2Fb;c%20d?x=1;y=2");
        assert_eq!(rewrite("http://a", "/a%2Fb?b=2&a=1&b=3", false), "/a%2Fb?b=2&a=1&b=3");
    }

    #[test]
    fn probes_may_go_to_another_port_and_scheme() {
        let url = ServerUrl::parse("http://[::1]:80").unwrap().with(Some(Scheme::Https), Some(8443));
        assert_eq!((url.authority.as_str(), url.port, url.scheme), ("[::1]:8443", 8443, Scheme::Https));
        assert_eq!(ServerUrl::parse("http://a").unwrap().with(Some(Scheme::Https), None).port, 443);
        assert_eq!(ServerUrl::parse("http://a:80").unwrap().with(Some(Scheme::Https), None).port, 80);
    }
}
