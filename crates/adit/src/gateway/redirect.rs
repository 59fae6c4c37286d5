//! An entry point's redirect to another: `http.redirections.entryPoint`.

use adit_config::Redirection;
use adit_proxy::forwarded::X_FORWARDED_PROTO;
use adit_proxy::h1::encode;
use adit_proxy::headers;
use adit_proxy::message::{Request, Response};
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};

/// Sends every visitor of one entry point to another scheme and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redirect {
    scheme: String,
    /// Port of the target; absent where it is the scheme's own.
    port: Option<u16>,
    permanent: bool,
    /// Routers above it answer themselves.
    pub(crate) priority: i64,
}

impl Redirect {
    /// `port` is that of the entry point named, or the number given in its place.
    pub(crate) fn new(settings: &Redirection, port: u16) -> Self {
        let default = if settings.scheme == "https" { 443 } else { 80 };
        Self {
            scheme: settings.scheme.clone(),
            port: (port != default).then_some(port),
            permanent: settings.permanent,
            priority: settings.priority,
        }
    }

    /// ACME's http-01 challenges are answered where they are asked, or no certificate could ever be had.
    pub(crate) fn spares(&self, path: &str) -> bool {
        path.starts_with(super::CHALLENGE_PATH)
    }

    /// Whether this request is where it would be sent already, as a trusted hop before us says, or names no host to be
    /// sent to.
    pub(crate) fn is_done(&self, request: &Request) -> bool {
        let host = headers::without_port(&request.host);
        let scheme = match request.headers.get(X_FORWARDED_PROTO).and_then(|proto| proto.to_str().ok()) {
            Some("https" | "wss") => "https",
            _ => "http",
        };
        let port = request.host.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
        let port = port.and_then(|(_, port)| port.parse().ok());
        let default = if scheme == "https" { 443 } else { 80 };
        host.is_empty() || (scheme == self.scheme && port.filter(|port| *port != default) == self.port)
    }

    pub(crate) fn answer(&self, request: &Request) -> Response {
        let host = headers::without_port(&request.host);
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let location = format!("{}://{host}{port}{}", self.scheme, encode::target(&request.uri));
        let status = match (request.method == Method::GET, self.permanent) {
            (true, true) => StatusCode::MOVED_PERMANENTLY,
            (true, false) => StatusCode::FOUND,
            (false, true) => StatusCode::PERMANENT_REDIRECT,
            (false, false) => StatusCode::TEMPORARY_REDIRECT,
        };
        let text = status.canonical_reason().unwrap_or_default();
        let mut response = Response::text(status, "text/plain; charset=utf-8", text);
        match HeaderValue::from_str(&location) {
            Ok(location) => {
                response.headers.insert(header::LOCATION, location);
                response
            }
            Err(_) => Response::status(StatusCode::BAD_REQUEST),
        }
    }
}
