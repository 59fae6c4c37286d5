//! The built-in sample origin (`hello_world`): shows how a request travelled, streams, echoes.

mod generate;
mod page;
mod websocket;

use std::time::{Duration, Instant, SystemTime};

use adit_proxy::body::{Body, Length};
use adit_proxy::message::{Request, Response};
use adit_tunnel::ConnectionLabel;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};

use self::generate::{EventSource, Pattern};

/// The sample origin.
#[derive(Debug)]
pub(crate) struct Hello {
    started: Instant,
    tunnel: String,
}

/// How a request came to us.
#[derive(Debug)]
pub(crate) struct Trip {
    /// The connection it travelled on.
    pub connection: ConnectionLabel,
    /// When the connector had its head.
    pub began: Instant,
}

impl Hello {
    /// A sample origin behind the named tunnel.
    pub(crate) fn new(tunnel: String) -> Self {
        Self { started: Instant::now(), tunnel }
    }

    /// Answers a request; unknown paths get the page that lists the known ones.
    pub(crate) fn answer(&self, request: Request, trip: &Trip) -> Response {
        let path = request.uri.path().to_owned();
        let parameter = |name: &str| query_parameter(request.uri.query(), name);
        match (path.as_str(), &request.method) {
            ("/_health", _) => Response::text(StatusCode::OK, TEXT, "ok\n"),
            ("/uptime", _) => {
                let seconds = self.started.elapsed().as_secs();
                Response::text(StatusCode::OK, JSON, format!("{{\"uptime_seconds\":{seconds}}}\n"))
            }
            ("/ws", _) => websocket::echo(request),
            ("/sse", _) => {
                let count = parameter("count").unwrap_or(u64::MAX);
                let every = Duration::from_millis(parameter("every_ms").unwrap_or(1000).max(1));
                stream(EventSource::new(count, every), Length::Unknown, "text/event-stream")
            }
            ("/echo", &Method::POST | &Method::PUT) => echo(request),
            ("/bytes", &Method::GET | &Method::HEAD) => {
                let count = parameter("count").unwrap_or(1024 * 1024);
                if parameter("chunked") == Some(1) {
                    stream(Pattern::new(count), Length::Unknown, BYTES)
                } else {
                    stream(Pattern::new(count), Length::Known(count), BYTES)
                }
            }
            ("/status", _) => {
                let code = parameter("code").and_then(|c| u16::try_from(c).ok()).unwrap_or(200);
                Response::status(StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST))
            }
            (path, _) => {
                let known = path == "/" || path == "/json";
                self.report(&request, trip, if known { StatusCode::OK } else { StatusCode::NOT_FOUND })
            }
        }
    }

    fn report(&self, request: &Request, trip: &Trip, status: StatusCode) -> Response {
        let report = page::Report {
            tunnel: &self.tunnel,
            trip,
            request,
            edge_to_connector: since_edge(request),
            uptime: self.started.elapsed(),
        };
        let accepts = |what: &str| {
            request
                .headers
                .get(header::ACCEPT)
                .and_then(|v| v.to_str().ok())
                .is_some_and(|v| v.contains(what))
        };
        if request.uri.path() == "/json" || accepts("application/json") {
            Response::text(status, JSON, report.json())
        } else if accepts("text/html") {
            Response::text(status, "text/html; charset=utf-8", report.html())
        } else {
            Response::text(status, TEXT, report.text())
        }
    }
}

/// Sends the content back as it comes.
fn echo(request: Request) -> Response {
    let mut response = Response::status(StatusCode::OK);
    let kind = request.headers.get(header::CONTENT_TYPE).cloned();
    response.headers.insert(header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static(BYTES)));
    response.body = request.body;
    response
}

fn stream(
    source: impl adit_proxy::body::BodySource + 'static,
    length: Length,
    kind: &'static str,
) -> Response {
    let mut response = Response::status(StatusCode::OK);
    response.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.body = Body::stream(source, length);
    response
}

/// How long ago the edge had the request, by the edge's clock.
fn since_edge(request: &Request) -> Option<Duration> {
    let value = request.headers.get("x-request-start")?.to_str().ok()?;
    let micros: u64 = value.strip_prefix("t=")?.parse().ok()?;
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_micros(micros)).ok()
}

fn query_parameter(query: Option<&str>, name: &str) -> Option<u64> {
    query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
