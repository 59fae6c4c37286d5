//! grpcWeb: gRPC for browsers, which can neither send nor read trailers (gRPC-Web protocol, `PROTOCOL-WEB.md`).
//!
//! A browser's call becomes an ordinary gRPC call; in the answer the trailers come as a last frame of the content. In
//! the text form both directions are base64 as well.

use std::task::{Context, Poll, ready};

use adit_config::dynamic;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

use super::headers::vary;
use super::{Around, BoxFuture, Ctx, Next, go_url};
use crate::body::{Batch, Body, BodyError, BodySource, Length};
use crate::message::{Request, Response};

/// `grpcWeb`.
pub(super) struct GrpcWeb {
    origins: Vec<String>,
}

impl GrpcWeb {
    pub(super) fn new(config: &dynamic::GrpcWeb) -> Self {
        Self { origins: config.allow_origins.clone() }
    }

    fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed == "*" || allowed == origin)
    }

    /// Tells the browser that scripts of this origin may read the answer.
    fn mark(&self, headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
        vary(headers, "Origin");
        let allowed = origin.filter(|origin| origin.to_str().is_ok_and(|origin| self.allows(origin)));
        if let Some(origin) = allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    fn preflight(&self, request: &Request) -> Response {
        let mut response = Response::status(StatusCode::OK);
        let headers = &mut response.headers;
        self.mark(headers, request.headers.get(header::ORIGIN));
        vary(headers, "Access-Control-Request-Method");
        vary(headers, "Access-Control-Request-Headers");
        if headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
            if let Some(asked) = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
            }
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        }
        response
    }

    fn answer(&self, mut response: Response, form: &Form, origin: Option<&HeaderValue>) -> Response {
        let told = response.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if let Some(rest) = told.and_then(|told| told.strip_prefix(GRPC)) {
            let told = HeaderValue::try_from(format!("{}{rest}", form.prefix()));
            if let Ok(told) = told {
                response.headers.insert(header::CONTENT_TYPE, told);
            }
            let body = std::mem::replace(&mut response.body, Body::empty());
            let source = Framed { body, text: form.is_text, done: false };
            response.body = Body::stream(source, Length::Unknown);
        }
        self.mark(&mut response.headers, origin);
        if !response.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            return response;
        }
        let names = response.headers.keys().map(HeaderName::as_str);
        let exposed: Vec<&str> = names.chain(["grpc-status", "grpc-message"]).collect();
        if let Ok(exposed) = HeaderValue::try_from(exposed.join(", ")) {
            response.headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        response
    }
}

impl Around for GrpcWeb {
    fn handle<'a>(
        &'a self,
        mut request: Request,
        ctx: &'a mut Ctx,
        next: Next<'a>,
    ) -> BoxFuture<'a, Response> {
        if is_preflight(&request) {
            return Box::pin(std::future::ready(self.preflight(&request)));
        }
        let Some(form) = Form::of(&request) else { return next.run(request, ctx) };
        let origin = request.headers.get(header::ORIGIN).cloned();
        if let Ok(told) = HeaderValue::try_from(format!("{GRPC}{}", form.rest)) {
            request.headers.insert(header::CONTENT_TYPE, told);
        }
        // gRPC servers take this as the sign that the caller can read trailers (gRPC over HTTP/2, Requests).
        request.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if form.is_text {
            let body = std::mem::replace(&mut request.body, Body::empty());
            request.body = Body::stream(Decoded { body, left: Vec::new() }, Length::Unknown);
        }
        Box::pin(async move {
            let response = next.run(request, ctx).await;
            self.answer(response, &form, origin.as_ref())
        })
    }
}

/// How a call is written.
struct Form {
    is_text: bool,
    /// What follows the type, such as `+proto`.
    rest: String,
}

impl Form {
    fn of(request: &Request) -> Option<Self> {
        let told = go_url::field(&request.headers, "content-type")?;
        if request.method != Method::POST {
            return None;
        }
        if let Some(rest) = told.strip_prefix(GRPC_WEB_TEXT) {
            return Some(Self { is_text: true, rest: rest.to_owned() });
        }
        told.strip_prefix(GRPC_WEB).map(|rest| Self { is_text: false, rest: rest.to_owned() })
    }

    fn prefix(&self) -> &'static str {
        if self.is_text { GRPC_WEB_TEXT } else { GRPC_WEB }
    }
}

fn is_preflight(request: &Request) -> bool {
    let asked = go_url::field(&request.headers, "access-control-request-headers").unwrap_or_default();
    let names_grpc = asked.split(',').any(|name| name.trim().eq_ignore_ascii_case("x-grpc-web"));
    request.method == Method::OPTIONS
        && names_grpc
        && request.headers.contains_key(header::ORIGIN)
        && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer's content with its trailers as the last frame.
struct Framed {
    body: Body,
    text: bool,
    done: bool,
}

impl BodySource for Framed {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        if self.done {
            return Poll::Ready(Ok(false));
        }
        let mut batch = Batch::new();
        let more = ready!(self.body.poll_chunks(cx, &mut batch))?;
        if !more {
            self.done = true;
            if let Some(trailers) = self.body.take_trailers() {
                batch.push_back(trailer_frame(&trailers));
            }
        }
        if self.text {
            // Padded pieces may follow each other: readers take base64 a piece at a time.
            out.extend(
                batch
                    .iter()
                    .filter(|chunk| !chunk.is_empty())
                    .map(|chunk| Bytes::from(STANDARD.encode(chunk))),
            );
        } else {
            out.append(&mut batch);
        }
        Poll::Ready(Ok(more))
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}

/// A frame whose highest flag bit says that it holds trailers, written as HTTP/1.1 fields in lower case.
fn trailer_frame(trailers: &HeaderMap) -> Bytes {
    let mut fields = BytesMut::new();
    for (name, value) in trailers {
        fields.put_slice(name.as_str().as_bytes());
        fields.put_slice(b": ");
        fields.put_slice(value.as_bytes());
        fields.put_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(fields.len() + 5);
    frame.put_u8(0x80);
    frame.put_u32(u32::try_from(fields.len()).unwrap_or(u32::MAX));
    frame.put(fields);
    frame.freeze()
}

/// A request's content out of base64.
struct Decoded {
    body: Body,
    /// Digits that do not make up a group of four yet.
    left: Vec<u8>,
}

impl BodySource for Decoded {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let mut batch = Batch::new();
        let more = ready!(self.body.poll_chunks(cx, &mut batch))?;
        for chunk in &batch {
            self.left.extend(chunk.iter().filter(|byte| !byte.is_ascii_whitespace()));
            let whole = self.left.len() / 4 * 4;
            let mut decoded = Vec::with_capacity(whole / 4 * 3);
            // Each message may end with padding, so groups are decoded one by one.
            for group in self.left[..whole].chunks(4) {
                STANDARD.decode_vec(group, &mut decoded).map_err(|_| BodyError::Truncated)?;
            }
            self.left.drain(..whole);
            if !decoded.is_empty() {
                out.push_back(decoded.into());
            }
        }
        if !more && !self.left.is_empty() {
            return Poll::Ready(Err(BodyError::Truncated));
        }
        Poll::Ready(Ok(more))
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}

const GRPC: &str = "application/grpc";
const GRPC_WEB: &str = "application/grpc-web";
const GRPC_WEB_TEXT: &str = "application/grpc-web-text";

#[cfg(test)]
mod tests {
    use super::super::tests::{Echo, content, ctx, request_with};
    use super::super::{Layer, run};
    use super::*;

    fn layer() -> [Layer; 1] {
        let config = dynamic::GrpcWeb { allow_origins: vec!["https://a.test".to_owned()] };
        [Layer::around("m", GrpcWeb::new(&config))]
    }

    async fn call(content_type: &str, sent: &str) -> (Response, Echo) {
        let target = Echo::streaming("answer")
            .with("content-type", "application/grpc+proto")
            .trailing("grpc-status", "0");
        let mut request =
            request_with("/s/m", &[("content-type", content_type), ("origin", "https://a.test")]);
        request.method = Method::POST;
        request.body = Body::full(sent.to_owned());
        let response = run(&layer(), &target, request, &mut ctx()).await;
        (response, target)
    }

    const TRAILERS: &[u8] = b"\x80\0\0\0\x10grpc-status: 0\r\n";

    #[tokio::test]
    async fn trailers_come_as_the_last_frame() {
        let (response, target) = call("application/grpc-web+proto", "question").await;
        assert_eq!(target.seen().headers["content-type"], "application/grpc+proto");
        assert_eq!(target.seen().headers["te"], "trailers");
        assert_eq!(response.headers["content-type"], "application/grpc-web+proto");
        assert_eq!(response.headers["access-control-allow-origin"], "https://a.test");
        assert_eq!(content(response.body).await, [b"answer", TRAILERS].concat());
    }

    #[tokio::test]
    async fn the_text_form_is_base64_both_ways() {
        let (response, target) = call("application/grpc-web-text", "cXVl c3Rpb24=").await;
        assert_eq!(target.seen_content(), ["question"]);
        assert_eq!(response.headers["content-type"], "application/grpc-web-text+proto");
        let text = String::from_utf8(content(response.body).await).unwrap();
        let expected = format!("{}{}", STANDARD.encode("answer"), STANDARD.encode(TRAILERS));
        assert_eq!(text, expected);
    }

    #[tokio::test]
    async fn a_preflight_is_answered_and_other_origins_are_told_nothing() {
        let mut asked = request_with(
            "/",
            &[
                ("origin", "https://a.test"),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "content-type,X-Grpc-Web"),
            ],
        );
        asked.method = Method::OPTIONS;
        let response = run(&layer(), &Echo::default(), asked, &mut ctx()).await;
        assert_eq!(response.status.as_u16(), 200);
        assert_eq!(response.headers["access-control-allow-headers"], "content-type,X-Grpc-Web");
        let mut other = request_with("/", &[("origin", "https://b.test"), ("content-type", GRPC_WEB)]);
        other.method = Method::POST;
        let response = run(&layer(), &Echo::default(), other, &mut ctx()).await;
        assert_eq!(
            response.status.as_u16(),
            200,
            "a browser keeps it from the page, others send no such field in vain"
        );
        assert!(!response.headers.keys().any(|name| name.as_str().starts_with("access-control-")));
    }
}
