//! buffering: limits on bodies, applied while they stream; a request is kept only where a retry may need it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use adit_config::dynamic;
use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;

use super::expression::{Expression, Kind, Term, Value};
use super::peek::peek;
use super::retry::copy;
use super::{Around, BoxFuture, Ctx, Next, reply};
use crate::body::{Batch, Body, BodyError, BodySource, Length};
use crate::message::{Request, Response};
use crate::service::replay::{Overflow, Replay};

/// `buffering`.
pub(super) struct Buffering {
    request_bytes_max: Option<u64>,
    request_memory_bytes_max: u64,
    response_bytes_max: Option<u64>,
    response_memory_bytes_max: u64,
    retry: Option<Expression<Question>>,
}

impl Buffering {
    pub(super) fn new(config: &dynamic::Buffering) -> Result<Self, String> {
        let expression = config.retry_expression.as_deref().filter(|text| !text.trim().is_empty());
        Ok(Self {
            request_bytes_max: limit(config.request_body_bytes_max),
            request_memory_bytes_max: config.request_memory_bytes_max,
            response_bytes_max: limit(config.response_body_bytes_max),
            response_memory_bytes_max: config.response_memory_bytes_max,
            retry: expression.map(Expression::parse).transpose()?,
        })
    }

    async fn pass(&self, mut request: Request, ctx: &mut Ctx, next: Next<'_>) -> Response {
        let excess = Arc::new(AtomicBool::new(false));
        if let Some(bytes_max) = self.request_bytes_max {
            let length = request.body.length();
            if matches!(length, Length::Known(bytes) if bytes > bytes_max) {
                return too_large(ctx);
            }
            if length == Length::Unknown {
                request.body = limited(request.body, bytes_max, Some(Arc::clone(&excess)));
            }
        }
        let response = match &self.retry {
            None => next.run(request, ctx).await,
            Some(condition) => self.repeat(condition, request, ctx, next).await,
        };
        // The target saw a body that broke off and says so in its own words.
        if excess.load(Ordering::Relaxed) {
            return too_large(ctx);
        }
        self.limit_response(response, ctx).await
    }

    async fn repeat(
        &self,
        condition: &Expression<Question>,
        mut request: Request,
        ctx: &mut Ctx,
        next: Next<'_>,
    ) -> Response {
        let body = std::mem::replace(&mut request.body, Body::empty());
        let replay = Replay::new(body, Some(self.request_memory_bytes_max), Overflow::Forget);
        let Some(mut body) = replay.attempt() else { return next.run(request, ctx).await };
        let mut attempt = 1;
        let path_is_empty = ctx.path_is_empty;
        loop {
            let began = Instant::now();
            ctx.path_is_empty = path_is_empty;
            let response = next.run(copy(&request, body), ctx).await;
            let is_wanted =
                condition.holds(&mut |question| question.answer(&request.method, attempt, response.status));
            if !is_wanted || attempt > RETRIES_MAX {
                return response;
            }
            let Some(again) = replay.attempt() else { return response };
            let status = response.status;
            drop(response);
            body = again;
            attempt += 1;
            ctx.replaced(status, began);
        }
    }

    async fn limit_response(&self, mut response: Response, ctx: &mut Ctx) -> Response {
        let Some(bytes_max) = self.response_bytes_max else { return response };
        let is_too_large = match response.body.length() {
            Length::Raw => return response,
            Length::Known(bytes) => bytes > bytes_max,
            Length::Unknown => {
                let peeked = peek(response.body, bytes_max.min(self.response_memory_bytes_max) + 1).await;
                response.body = limited(peeked.body, bytes_max, None);
                peeked.bytes > bytes_max
            }
        };
        if is_too_large {
            ctx.refused("response_body_too_large");
            return reply::status_text(StatusCode::INTERNAL_SERVER_ERROR);
        }
        response
    }
}

impl Around for Buffering {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        // What an upgraded connection carries is no body.
        if request.upgrade.is_some() {
            return next.run(request, ctx);
        }
        Box::pin(self.pass(request, ctx, next))
    }
}

/// What `retryExpression` can ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Attempts,
    IsNetworkError,
    RequestMethod,
    ResponseCode,
}

impl Question {
    fn answer(self, method: &Method, attempt: u32, status: StatusCode) -> Value {
        match self {
            Self::Attempts => Value::Number(f64::from(attempt)),
            Self::IsNetworkError => {
                Value::Bool(matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT))
            }
            Self::RequestMethod => Value::Text(method.as_str().to_owned()),
            Self::ResponseCode => Value::Number(f64::from(status.as_u16())),
        }
    }
}

impl Term for Question {
    fn bind(name: &str, arguments: &[Value]) -> Result<Self, String> {
        let question = match name {
            "Attempts" => Self::Attempts,
            "IsNetworkError" => Self::IsNetworkError,
            "RequestMethod" => Self::RequestMethod,
            "ResponseCode" => Self::ResponseCode,
            _ => return Err(format!("unsupported function: {name}")),
        };
        if arguments.is_empty() { Ok(question) } else { Err(format!("{name} takes no arguments")) }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Attempts | Self::ResponseCode => Kind::Number,
            Self::IsNetworkError => Kind::Bool,
            Self::RequestMethod => Kind::Text,
        }
    }
}

/// A body that breaks off beyond a length.
struct Limited {
    body: Body,
    left: u64,
    excess: Option<Arc<AtomicBool>>,
}

impl BodySource for Limited {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let before = out.len();
        let result = self.body.poll_chunks(cx, out);
        let came: u64 = out.iter().skip(before).map(|chunk| chunk.len() as u64).sum();
        match self.left.checked_sub(came) {
            Some(left) => {
                self.left = left;
                result
            }
            None => {
                out.truncate(before);
                if let Some(excess) = &self.excess {
                    excess.store(true, Ordering::Relaxed);
                }
                Poll::Ready(Err(BodyError::TooLarge))
            }
        }
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}

fn limited(body: Body, bytes_max: u64, excess: Option<Arc<AtomicBool>>) -> Body {
    let length = body.length();
    Body::stream(Limited { body, left: bytes_max, excess }, length)
}

fn too_large(ctx: &mut Ctx) -> Response {
    ctx.refused("request_body_too_large");
    reply::status_text(StatusCode::PAYLOAD_TOO_LARGE)
}

fn limit(bytes: u64) -> Option<u64> {
    (bytes > 0).then_some(bytes)
}

/// As many repetitions as Traefik makes at most, whatever the expression says.
const RETRIES_MAX: u32 = 10;

#[cfg(test)]
mod tests {
    use super::super::tests::{Echo, content, ctx, request, streamed};
    use super::super::{Layer, Outcome, run};
    use super::*;

    async fn asked(config: &dynamic::Buffering, target: &Echo, body: Body) -> (Response, Ctx) {
        let chain = [Layer::around("m", Buffering::new(config).unwrap())];
        let mut request = request("/");
        request.body = body;
        let mut ctx = ctx();
        let response = run(&chain, target, request, &mut ctx).await;
        (response, ctx)
    }

    #[tokio::test]
    async fn a_request_body_may_be_as_long_as_the_limit_and_no_longer() {
        let config = dynamic::Buffering { request_body_bytes_max: 10, ..Default::default() };
        for body in [Body::full("0123456789"), streamed("0123456789")] {
            assert_eq!(asked(&config, &Echo::default(), body).await.0.status.as_u16(), 200);
        }
        for body in [Body::full("0123456789a"), streamed("0123456789a")] {
            let (response, ctx) = asked(&config, &Echo::default(), body).await;
            assert_eq!((response.status.as_u16(), ctx.log.refusal), (413, Some("request_body_too_large")));
            assert_eq!(content(response.body).await, b"Request Entity Too Large");
        }
    }

    #[tokio::test]
    async fn a_response_that_is_too_long_is_an_error() {
        let config = dynamic::Buffering { response_body_bytes_max: 10, ..Default::default() };
        for target in [Echo::text("0123456789"), Echo::streaming("0123456789")] {
            let (response, _) = asked(&config, &target, Body::empty()).await;
            assert_eq!(content(response.body).await, b"0123456789");
        }
        for target in [Echo::text("0123456789a"), Echo::streaming("0123456789a")] {
            assert_eq!(asked(&config, &target, Body::empty()).await.0.status.as_u16(), 500);
        }
    }

    #[tokio::test]
    async fn a_stream_passes_as_it_comes_and_breaks_off_at_the_limit() {
        let config = dynamic::Buffering { response_body_bytes_max: 10, ..Default::default() };
        let (target, sender) = Echo::paused_after("0123");
        let (mut response, _) = asked(&config, &target, Body::empty()).await;
        let mut batch = Batch::new();
        let first = std::future::poll_fn(|cx| response.body.poll_chunks(cx, &mut batch)).await;
        assert_eq!((first, batch.len()), (Ok(true), 1));
        sender.send("456789ab".into()).await.unwrap();
        let end = std::future::poll_fn(|cx| response.body.poll_chunks(cx, &mut batch)).await;
        assert_eq!(end, Err(BodyError::TooLarge));
    }

    #[tokio::test]
    async fn an_expression_asks_again_with_the_same_body() {
        let config = dynamic::Buffering {
            retry_expression: Some(
                "Attempts() < 3 && (ResponseCode() == 503 || IsNetworkError())".to_owned(),
            ),
            ..Default::default()
        };
        let answers = [(503, Outcome::Answered), (502, Outcome::Failed), (503, Outcome::Answered)];
        let target = Echo::failing(&answers);
        let (response, ctx) = asked(&config, &target, streamed("abc")).await;
        assert_eq!((response.status.as_u16(), ctx.log.retries), (503, 2));
        assert_eq!(target.seen_content(), ["abc", "abc", "abc"]);
    }

    #[tokio::test]
    async fn repetitions_are_bounded_whatever_the_expression_says() {
        let config = dynamic::Buffering {
            retry_expression: Some("RequestMethod() == \"GET\"".to_owned()),
            ..Default::default()
        };
        let (_, ctx) = asked(&config, &Echo::default(), Body::empty()).await;
        assert_eq!(ctx.log.retries, RETRIES_MAX);
        let bad = dynamic::Buffering { retry_expression: Some("Attempts()".to_owned()), ..config };
        assert!(Buffering::new(&bad).is_err());
    }
}
