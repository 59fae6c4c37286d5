//! What a visitor sees when no server answers: the one place where errors of services become statuses.

use std::io;

use http::StatusCode;
use http::header::{self, HeaderValue};
use rustls::Error as TlsError;

use crate::body::{Body, BodyError};
use crate::connect::ConnectError;
use crate::fields::Fields;
use crate::h1::client::ExchangeError;
use crate::h2::client::H2Error;
use crate::message::Response;
use crate::middleware::Ctx;
use crate::origin::ForwardError;

/// The answer in place of a server's: the status, and its text as content (`ingress-features.md §4`).
pub(super) fn response(error: &ForwardError) -> Response {
    let status = status(error);
    let text = match status.as_u16() {
        CLIENT_CLOSED => "Client Closed Request",
        _ => status.canonical_reason().unwrap_or_default(),
    };
    Response { status, headers: Fields::new(), body: Body::full(text) }
}

/// The answer of a balancer in which nobody is up.
pub(super) fn unavailable(ctx: &mut Ctx) -> Response {
    ctx.refused("no_available_server");
    plain(StatusCode::SERVICE_UNAVAILABLE, "no available server\n")
}

/// A refusal in the form of Go's own errors: a line of text that no browser takes for something else.
pub(super) fn plain(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::text(status, "text/plain; charset=utf-8", text);
    response.headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Timeouts are 504, connections that fail or break off 502, what we cannot make sense of or do not trust 500, and what
/// the visitor's own content did wrong is theirs.
fn status(error: &ForwardError) -> StatusCode {
    match error {
        ForwardError::Connect(error) => of_connect(error),
        ForwardError::Exchange(ExchangeError::Timeout)
        | ForwardError::H2(H2Error::Timeout | H2Error::Handshake) => StatusCode::GATEWAY_TIMEOUT,
        ForwardError::Exchange(ExchangeError::Closed(Some(source))) if is_timeout(source) => {
            StatusCode::GATEWAY_TIMEOUT
        }
        ForwardError::Exchange(ExchangeError::Closed(_) | ExchangeError::Head(_)) => StatusCode::BAD_GATEWAY,
        ForwardError::Exchange(ExchangeError::RequestBody(error)) | ForwardError::Buffer(error) => {
            of_content(*error)
        }
        ForwardError::H2(H2Error::Protocol(_) | H2Error::Unprocessed(_)) | ForwardError::WebSocketAccept => {
            StatusCode::BAD_GATEWAY
        }
        ForwardError::H2(H2Error::Target(_)) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn of_connect(error: &ConnectError) -> StatusCode {
    match error {
        ConnectError::ConnectTimeout(_) | ConnectError::TlsTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
        ConnectError::Connect { source, .. } if is_timeout(source) => StatusCode::GATEWAY_TIMEOUT,
        ConnectError::Connect { .. } | ConnectError::Resolve { .. } => StatusCode::BAD_GATEWAY,
        ConnectError::Tls { source, .. } if is_distrust(source) => StatusCode::INTERNAL_SERVER_ERROR,
        ConnectError::Tls { .. } => StatusCode::BAD_GATEWAY,
        ConnectError::ServerName(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn of_content(error: BodyError) -> StatusCode {
    match error {
        BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::Idle | BodyError::Late => StatusCode::REQUEST_TIMEOUT,
        BodyError::Chunked | BodyError::Trailers => StatusCode::BAD_REQUEST,
        // Nobody is there to see it; the log is.
        BodyError::Truncated => StatusCode::from_u16(CLIENT_CLOSED).unwrap_or(StatusCode::BAD_REQUEST),
    }
}

fn is_timeout(source: &io::Error) -> bool {
    source.kind() == io::ErrorKind::TimedOut
}

/// A certificate that was refused, or an answer that is not TLS at all: a fault of the configuration, not of the wire.
fn is_distrust(source: &io::Error) -> bool {
    let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    matches!(inner, Some(TlsError::InvalidCertificate(_) | TlsError::InvalidMessage(_)))
}

/// nginx's code for a visitor that went away; not a status of RFC 9110.
const CLIENT_CLOSED: u16 = 499;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_text_is_the_status_and_nothing_else() {
        let refused = ConnectError::Connect {
            target: "a:1".to_owned(),
            source: Arc::new(io::ErrorKind::ConnectionRefused.into()),
        };
        let response = response(&refused.into());
        assert_eq!(response.status, StatusCode::BAD_GATEWAY);
        assert!(response.headers.is_empty());
        assert_eq!(super::super::replay::in_memory(response.body).unwrap(), "Bad Gateway");
    }

    #[test]
    fn each_failure_has_its_status() {
        let tls = |error: TlsError| ConnectError::Tls {
            target: String::new(),
            source: Arc::new(io::Error::new(io::ErrorKind::InvalidData, error)),
        };
        let cases: [(ForwardError, u16); 8] = [
            (ExchangeError::Head(crate::h1::head::HeadError::Malformed).into(), 502),
            (ConnectError::ConnectTimeout(String::new()).into(), 504),
            (ExchangeError::Timeout.into(), 504),
            (ExchangeError::Closed(None).into(), 502),
            (ExchangeError::RequestBody(BodyError::TooLarge).into(), 413),
            (ExchangeError::RequestBody(BodyError::Truncated).into(), 499),
            (tls(TlsError::InvalidCertificate(rustls::CertificateError::UnknownIssuer)).into(), 500),
            (tls(TlsError::DecryptError).into(), 502),
        ];
        for (error, want) in cases {
            assert_eq!(status(&error).as_u16(), want, "{error:?}");
        }
    }

    #[test]
    fn no_server_is_said_in_gos_words() {
        let client = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        let mut ctx = Ctx::new("web".into(), client, false, "r".into());
        let response = unavailable(&mut ctx);
        assert_eq!(response.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(ctx.log.refusal, Some("no_available_server"));
    }
}
