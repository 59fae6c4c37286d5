//! Answers that middlewares give themselves, byte for byte as visitors of Traefik know them.

use http::StatusCode;
use http::header::{self, HeaderValue};

use crate::body::Body;
use crate::message::Response;

/// The status with its text as content and no content type: how most middlewares refuse.
pub(super) fn status_text(status: StatusCode) -> Response {
    let mut response = Response::status(status);
    response.body = Body::full(text(status));
    response
}

/// A line of text that browsers must not take for anything else: how errors of our own are told.
pub(super) fn error(status: StatusCode, line: &str) -> Response {
    let mut response = Response::text(status, "text/plain; charset=utf-8", format!("{line}\n"));
    response.headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A redirection to `location`, whose text must be a legal field value.
pub(super) fn redirect(status: StatusCode, location: &str) -> Response {
    match HeaderValue::from_str(location) {
        Ok(location) => {
            let mut response = status_text(status);
            response.headers.insert(header::LOCATION, location);
            response
        }
        Err(_) => status_text(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// The status's name as Go has it; four differ from newer RFCs, and visitors compare bodies.
pub(super) fn text(status: StatusCode) -> &'static str {
    match status.as_u16() {
        203 => "Non-Authoritative Information",
        413 => "Request Entity Too Large",
        414 => "Request URI Too Long",
        416 => "Requested Range Not Satisfiable",
        _ => status.canonical_reason().unwrap_or(""),
    }
}

/// Parses a status that the operator wrote.
pub(super) fn status(code: u16) -> Result<StatusCode, String> {
    StatusCode::from_u16(code)
        .ok()
        .filter(|status| status.canonical_reason().is_some())
        .ok_or_else(|| format!("{code} is not an HTTP status"))
}
