//! The read-only API in Traefik's words: `/api/http/routers`, `/api/rawdata`, … (`ingress-features.md §7.3`).

use std::time::SystemTime;

use adit_proxy::message::{Request, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use crate::gateway::{Generation, view, view_streams};
use crate::observe::line_time::Clock;

/// What the API shows beside the ingress itself.
pub(crate) struct Surroundings<'a> {
    /// Name and address of each entry point.
    pub(crate) entry_points: Vec<Value>,
    /// When the process started.
    pub(crate) started: SystemTime,
    /// What is in force.
    pub(crate) generation: &'a Generation,
}

impl Surroundings<'_> {
    /// Answers `/api/…`.
    pub(crate) fn answer(&self, request: &Request) -> Response {
        let path = request.uri.path().trim_start_matches("/api/").trim_end_matches('/');
        let (dynamic, verdicts) = (&self.generation.inputs.dynamic, &self.generation.verdicts);
        match path {
            "rawdata" => return json_response(StatusCode::OK, &self.raw_data()),
            "overview" => return json_response(StatusCode::OK, &view::overview(dynamic, verdicts)),
            "version" => {
                let mut started = Vec::new();
                Clock::default().rfc3339(&mut started, self.started, false);
                let version = json!({
                    "Version": env!("CARGO_PKG_VERSION"), "Codename": "adit",
                    "startDate": String::from_utf8_lossy(&started),
                });
                return json_response(StatusCode::OK, &version);
            }
            _ => {}
        }
        let mut parts = path.split('/');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next());
        let (list, kind, name) = match (first, second) {
            ("entrypoints", name) => (Some(self.entry_points.clone()), "entry point", name),
            (protocol, Some(kind)) => (self.list(protocol, kind), singular(kind), parts.next()),
            _ => (None, "", None),
        };
        let Some(list) = list.filter(|_| parts.next().is_none()) else {
            return Response::text(
                StatusCode::NOT_FOUND,
                "text/plain; charset=utf-8",
                "404 page not found\n",
            );
        };
        match name {
            None => page(list, request.uri.query().unwrap_or_default()),
            Some(name) => {
                let name = decoded(name);
                match list.into_iter().find(|object| object["name"] == name) {
                    Some(object) => json_response(StatusCode::OK, &object),
                    None => {
                        let message = format!("{kind} not found: {name}");
                        json_response(StatusCode::NOT_FOUND, &json!({ "message": message }))
                    }
                }
            }
        }
    }

    fn list(&self, protocol: &str, kind: &str) -> Option<Vec<Value>> {
        let (dynamic, verdicts) = (&self.generation.inputs.dynamic, &self.generation.verdicts);
        Some(match (protocol, kind) {
            ("http", "routers") => view::routers(dynamic, verdicts),
            ("http", "services") => view::services(dynamic, verdicts, &self.generation.servers()),
            ("http", "middlewares") => view::middlewares(dynamic, verdicts),
            ("tcp", "routers") => view_streams::tcp_routers(dynamic, verdicts),
            ("tcp", "services") => view_streams::tcp_services(dynamic),
            ("tcp", "middlewares") => view_streams::tcp_middlewares(dynamic),
            ("udp", "routers") => view_streams::udp_routers(dynamic, verdicts),
            ("udp", "services") => view_streams::udp_services(dynamic),
            _ => return None,
        })
    }

    /// Everything at once, by name.
    fn raw_data(&self) -> Value {
        let verdicts = &self.generation.verdicts;
        let mut all = json!({ "problems": verdicts.problems(), "warnings": verdicts.warnings });
        for (key, protocol, kind) in [
            ("routers", "http", "routers"),
            ("services", "http", "services"),
            ("middlewares", "http", "middlewares"),
            ("tcpRouters", "tcp", "routers"),
            ("tcpServices", "tcp", "services"),
            ("tcpMiddlewares", "tcp", "middlewares"),
            ("udpRouters", "udp", "routers"),
            ("udpServices", "udp", "services"),
        ] {
            let list = self.list(protocol, kind).unwrap_or_default();
            let named: Map<String, Value> = list
                .into_iter()
                .map(|object| (object["name"].as_str().unwrap_or_default().to_owned(), object))
                .collect();
            // Traefik leaves out what there is none of, the three of HTTP apart.
            if protocol == "http" || !named.is_empty() {
                all[key] = Value::Object(named);
            }
        }
        all
    }
}

/// One page of a list: `search`, `status`, `page` and `per_page` as Traefik has them.
fn page(list: Vec<Value>, query: &str) -> Response {
    let mut number = 1;
    let mut size = PAGE_SIZE;
    let (mut search, mut status) = (String::new(), String::new());
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = decoded(&value.replace('+', " "));
        match name {
            "search" => search = value.to_lowercase(),
            "status" => status = value.to_lowercase(),
            "page" | "per_page" => match value.parse::<usize>() {
                Ok(given) if given > 0 && name == "page" => number = given,
                Ok(given) if given > 0 => size = given,
                _ => return bad_page(&format!("invalid parameter {name}: {value}")),
            },
            _ => {}
        }
    }
    let is_wanted = |object: &Value| {
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_lowercase();
        (status.is_empty() || text("status") == status)
            && (search.is_empty()
                || ["name", "rule", "service"].iter().any(|key| text(key).contains(&search)))
    };
    let found: Vec<Value> = list.into_iter().filter(is_wanted).collect();
    let start = (number - 1).saturating_mul(size);
    if start > 0 && start >= found.len() {
        return bad_page(&format!("invalid request: page: {number}, per_page: {size}"));
    }
    let next = if found.len() > start.saturating_add(size) { number + 1 } else { 1 };
    let part: Vec<Value> = found.into_iter().skip(start).take(size).collect();
    let mut response = json_response(StatusCode::OK, &Value::Array(part));
    response.headers.insert(NEXT_PAGE, HeaderValue::from(next));
    response
}

fn bad_page(message: &str) -> Response {
    json_response(StatusCode::BAD_REQUEST, &json!({ "message": message }))
}

/// A body of JSON.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    Response::text(status, "application/json", format!("{value}\n"))
}

fn singular(kind: &str) -> &'static str {
    match kind {
        "routers" => "router",
        "services" => "service",
        _ => "middleware",
    }
}

/// Without percent escapes; those that are none stay.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let hex = || u8::from_str_radix(std::str::from_utf8(behind.get(..2)?).ok()?, 16).ok();
        match (first, hex()) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            _ => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Traefik's default.
const PAGE_SIZE: usize = 100;
const NEXT_PAGE: HeaderName = HeaderName::from_static("x-next-page");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_in_pages_that_name_the_next_one() {
        let list: Vec<Value> =
            (0..5).map(|n| json!({ "name": format!("r{n}@file"), "status": "enabled" })).collect();
        let next = |query: &str| page(list.clone(), query).headers[NEXT_PAGE].to_str().unwrap().to_owned();
        assert_eq!(next("per_page=2"), "2");
        assert_eq!(next("per_page=2&page=3"), "1");
        assert_eq!(next("search=R3&per_page=1"), "1");
        assert_eq!(page(list.clone(), "page=9").status, StatusCode::BAD_REQUEST);
        assert_eq!(page(list.clone(), "per_page=x").status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn names_are_taken_out_of_escapes() {
        assert_eq!(decoded("r%40file"), "r@file");
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz"), "%zz");
    }
}
