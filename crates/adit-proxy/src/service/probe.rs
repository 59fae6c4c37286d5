//! One probe of one server: an HTTP request, or gRPC's health protocol.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use adit_config::dynamic::{HealthCheck, HealthCheckMode};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version};

use super::transport::Transport;
use super::url::{Scheme, ServerUrl};
use crate::body::{Batch, Body};
use crate::message::{Request, Response, Visitor};
use crate::origin::{Origin, OriginOptions, Protocol};

/// How a server is asked whether it is well.
pub(super) struct Probe {
    transport: Arc<Transport>,
    url: ServerUrl,
    /// Of its own: a probe must not wait for visitors' connections.
    origin: Origin,
    method: Method,
    target: Uri,
    host: Option<String>,
    headers: HeaderMap,
    status: Option<StatusCode>,
    follow_redirects: bool,
    mode: HealthCheckMode,
}

impl Probe {
    /// Prepares the probe of one server.
    ///
    /// # Errors
    /// What cannot be sent.
    pub(super) fn new(
        settings: &HealthCheck,
        server: &ServerUrl,
        transport: Arc<Transport>,
    ) -> Result<Self, String> {
        let wrong = |key: &str, why: String| format!("healthCheck.{key}: {why}");
        let scheme = match settings.scheme.as_deref().filter(|s| !s.is_empty()) {
            Some(scheme) => Some(Scheme::parse(scheme).map_err(|why| wrong("scheme", why))?),
            None => None,
        };
        let url = server.with(scheme, settings.port.filter(|port| *port > 0));
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let mut host = settings.hostname.clone().filter(|name| !name.is_empty());
        for (name, value) in &settings.headers {
            if name.eq_ignore_ascii_case("host") {
                host.get_or_insert_with(|| value.clone());
                continue;
            }
            let name =
                HeaderName::from_bytes(name.as_bytes()).map_err(|e| wrong("headers", e.to_string()))?;
            let value = HeaderValue::from_str(value).map_err(|e| wrong("headers", e.to_string()))?;
            headers.insert(name, value);
        }
        let status = settings.status.filter(|status| *status > 0).map(StatusCode::from_u16).transpose();
        let is_grpc = settings.mode == HealthCheckMode::Grpc;
        let target = if is_grpc { GRPC_METHOD.to_owned() } else { resolve(&url.path, &settings.path)? };
        let method = if settings.method.is_empty() { "GET" } else { &settings.method };
        Ok(Self {
            origin: Origin::with(options(&transport, &url, is_grpc)?),
            method: Method::from_bytes(method.as_bytes()).map_err(|e| wrong("method", e.to_string()))?,
            target: target.parse().map_err(|_| wrong("path", format!("{target:?} cannot be sent")))?,
            host,
            headers,
            status: status.map_err(|error| wrong("status", error.to_string()))?,
            follow_redirects: settings.follow_redirects,
            mode: settings.mode,
            transport,
            url,
        })
    }

    /// Asks once.
    ///
    /// # Errors
    /// Why the server is not well.
    pub(super) async fn run(&self) -> Result<(), String> {
        match self.mode {
            HealthCheckMode::Http => self.run_http().await,
            HealthCheckMode::Grpc => self.run_grpc().await,
        }
    }

    async fn run_http(&self) -> Result<(), String> {
        let host = self.host.as_deref().unwrap_or(&self.url.authority);
        let request = probe_request(self.method.clone(), self.target.clone(), host, self.headers.clone());
        let mut response = self.origin.send(request).await.map_err(|error| chain(&error))?;
        let mut at = (self.url.clone(), self.target.clone());
        let mut redirects = 0;
        while let Some(next) = self.redirect(&at, &response)? {
            redirects += 1;
            if redirects > REDIRECTS_MAX {
                return Err(format!("more than {REDIRECTS_MAX} redirects"));
            }
            let is_same = next.0.authority == self.url.authority && next.0.scheme == self.url.scheme;
            let host = if is_same { host } else { &next.0.authority };
            // RFC 9110 §15.4: what was not GET or HEAD becomes GET, except for 307 and 308.
            let keeps = matches!(response.status.as_u16(), 307 | 308) || self.method == Method::HEAD;
            let method = if keeps { self.method.clone() } else { Method::GET };
            let request = probe_request(method, next.1.clone(), host, self.headers.clone());
            response = if is_same {
                self.origin.send(request).await
            } else {
                Origin::with(self.transport.options(&next.0)?).send(request).await
            }
            .map_err(|error| chain(&error))?;
            at = next;
        }
        let ok = match self.status {
            Some(wanted) => response.status == wanted,
            None => (200..400).contains(&response.status.as_u16()),
        };
        if ok { Ok(()) } else { Err(format!("status {}", response.status.as_u16())) }
    }

    /// Where an answer sends us, if it does and we follow.
    fn redirect(
        &self,
        at: &(ServerUrl, Uri),
        response: &Response,
    ) -> Result<Option<(ServerUrl, Uri)>, String> {
        let follows = matches!(response.status.as_u16(), 301 | 302 | 303 | 307 | 308);
        let location = response.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let (true, true, Some(location)) = (self.follow_redirects, follows, location) else {
            return Ok(None);
        };
        let (url, target) = match location.split_once("://") {
            Some((_, rest)) => {
                let target = rest.find(['/', '?']).map_or("/", |at| &rest[at..]);
                (ServerUrl::parse(location)?, target)
            }
            None => (at.0.clone(), location),
        };
        let target = resolve(at.1.path(), target)?;
        let target =
            target.parse().map_err(|_| format!("redirected to {location:?}, which cannot be asked for"))?;
        Ok(Some((url, target)))
    }

    async fn run_grpc(&self) -> Result<(), String> {
        let mut headers = self.headers.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let host = self.host.as_deref().unwrap_or(&self.url.authority);
        let mut request = probe_request(Method::POST, self.target.clone(), host, headers);
        // An empty message: not compressed, no bytes. An empty service name asks for the server as a whole.
        request.body = Body::full(&[0u8; 5][..]);
        let response = self.origin.send(request).await.map_err(|error| chain(&error))?;
        if response.status != StatusCode::OK {
            return Err(format!("status {}", response.status.as_u16()));
        }
        let mut headers = response.headers;
        let (message, trailers) = read(response.body).await?;
        headers.extend(trailers.unwrap_or_default());
        match headers.get("grpc-status").map(HeaderValue::as_bytes) {
            Some(b"0") => {}
            Some(b"12") => return Err("the server does not implement gRPC's health protocol".to_owned()),
            Some(code) => return Err(format!("gRPC status {}", String::from_utf8_lossy(code))),
            None => return Err("no gRPC status".to_owned()),
        }
        if message.get(5..) == Some(SERVING) { Ok(()) } else { Err("gRPC health is not SERVING".to_owned()) }
    }
}

fn options(transport: &Transport, url: &ServerUrl, is_grpc: bool) -> Result<OriginOptions, String> {
    let mut options = transport.options(url)?;
    // One probe at a time and server.
    options.idle_max = options.idle_max.min(1);
    options.h2.head_timeout = None;
    if is_grpc && url.scheme != Scheme::Https {
        options.protocol = Protocol::Http2;
    }
    Ok(options)
}

fn probe_request(method: Method, uri: Uri, host: &str, headers: HeaderMap) -> Request {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let visitor = Visitor {
        remote: nobody,
        local: nobody,
        secure: false,
        entry_point: "health-check".into(),
        peer: None,
        tls: None,
        address: crate::message::AddressText::default(),
    };
    Request {
        method,
        uri,
        version: Version::HTTP_11,
        host: host.to_owned(),
        headers: headers.into(),
        body: Body::empty(),
        upgrade: None,
        visitor: Arc::new(visitor),
    }
}

/// A path and query relative to a base path (RFC 3986 §5.2, without dot segments, which no probe needs).
fn resolve(base: &str, path: &str) -> Result<String, String> {
    let path = path.split('#').next().unwrap_or(path);
    if path.contains("://") || path.starts_with("//") {
        return Err(format!("healthCheck.path: {path:?} must be a path, not a URL"));
    }
    let base = if base.is_empty() { "/" } else { base };
    let target = match path {
        "" => base.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path if path.starts_with('?') => format!("{base}{path}"),
        path => format!("{}/{path}", base.rsplit_once('/').map_or("", |(folder, _)| folder)),
    };
    match PathAndQuery::try_from(target.as_str()) {
        Ok(_) => Ok(target),
        Err(error) => Err(format!("healthCheck.path: {target:?}: {error}")),
    }
}

/// A short answer and its trailers.
async fn read(mut body: Body) -> Result<(Vec<u8>, Option<HeaderMap>), String> {
    let mut content = Vec::new();
    loop {
        let mut batch = Batch::new();
        let more = poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await.map_err(|error| error.to_string())?;
        content.extend(batch.into_iter().flatten());
        if content.len() > ANSWER_BYTES_MAX {
            return Err("the answer is too long for gRPC's health protocol".to_owned());
        }
        if !more {
            return Ok((content, body.take_trailers()));
        }
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

const USER_AGENT: &str = concat!("adit/", env!("CARGO_PKG_VERSION"), " (health check)");
/// Redirects followed, as Go's client does.
const REDIRECTS_MAX: usize = 10;
const GRPC_METHOD: &str = "/grpc.health.v1.Health/Check";
/// `HealthCheckResponse { status: SERVING }`: field 1, varint 1.
const SERVING: &[u8] = &[0x08, 0x01];
/// A health answer has 7 bytes.
const ANSWER_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_paths_are_resolved_against_the_servers() {
        for (base, path, want) in [
            ("", "/healthz", "/healthz"),
            ("/base/", "/healthz?x=1", "/healthz?x=1"),
            ("/base/", "healthz", "/base/healthz"),
            ("/base", "healthz", "/healthz"),
            ("/base", "", "/base"),
            ("", "?a", "/?a"),
        ] {
            assert_eq!(resolve(base, path).unwrap(), want, "{base} {path}");
        }
        assert!(resolve("", "http://elsewhere/").is_err());
        assert!(resolve("", "//elsewhere/").is_err());
    }
}
