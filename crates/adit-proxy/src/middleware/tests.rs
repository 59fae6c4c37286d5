//! What the tests of middlewares share: requests, and a target that remembers them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Version};
use tokio::sync::mpsc;

use super::{BoxFuture, Ctx, Layer, Outcome, Target, run};
use crate::body::{Batch, Body, BodyError, BodySource, Length};
use crate::message::{Request, Response, Visitor};

pub(super) fn ctx() -> Ctx {
    Ctx::new("web".into(), [127, 0, 0, 1].into(), false, "r@file".into())
}

pub(super) fn request(target: &str) -> Request {
    request_with(target, &[])
}

pub(super) fn request_with(target: &str, fields: &[(&str, &str)]) -> Request {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let visitor = Visitor {
        remote: address,
        local: address,
        secure: false,
        entry_point: "web".into(),
        peer: None,
        tls: None,
        address: crate::message::AddressText::default(),
    };
    Request {
        method: Method::GET,
        uri: target.parse().unwrap(),
        version: Version::HTTP_11,
        host: "example.com".to_owned(),
        headers: field_map(fields).into(),
        body: Body::empty(),
        upgrade: None,
        visitor: Arc::new(visitor),
    }
}

pub(super) async fn status_of(chain: &[Layer], request: Request) -> u16 {
    run(chain, &Echo::default(), request, &mut ctx()).await.status.as_u16()
}

pub(super) async fn content(mut body: Body) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut batch = Batch::new();
        let more = std::future::poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await.unwrap();
        all.extend(batch.iter().flatten());
        if !more {
            return all;
        }
    }
}

/// A body without a length, in pieces of five bytes, each there at once.
pub(super) fn streamed(text: &str) -> Body {
    let pieces = text.as_bytes().chunks(5).map(Bytes::copy_from_slice).collect();
    Body::stream(Pieces { pieces, trailers: None }, Length::Unknown)
}

/// Answers every request, and keeps what it saw of it.
#[derive(Clone, Default)]
pub(super) struct Echo {
    headers: HeaderMap,
    text: String,
    streams: bool,
    trailers: Option<HeaderMap>,
    receiver: Arc<Mutex<Option<mpsc::Receiver<String>>>>,
    /// What to answer to the first, second, … request.
    answers: Vec<(u16, Outcome)>,
    seen: Arc<Mutex<Vec<(Request, String)>>>,
}

impl Echo {
    pub(super) fn text(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::default() }
    }

    /// Without a length.
    pub(super) fn streaming(text: &str) -> Self {
        Self { streams: true, ..Self::text(text) }
    }

    /// Sends `text` and then what comes by the channel.
    pub(super) fn paused_after(text: &str) -> (Self, mpsc::Sender<String>) {
        let (sender, receiver) = mpsc::channel(1);
        let echo = Self::streaming(text);
        *echo.receiver.lock().unwrap() = Some(receiver);
        (echo, sender)
    }

    /// With these statuses and outcomes in turn, and `answer 1`, `answer 2`, … as content.
    pub(super) fn failing(answers: &[(u16, Outcome)]) -> Self {
        Self { answers: answers.to_vec(), ..Self::default() }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.extend(field_map(&[(name, value)]));
        self
    }

    pub(super) fn trailing(self, name: &str, value: &str) -> Self {
        Self { trailers: Some(field_map(&[(name, value)])), ..self }
    }

    /// The last request, without its content.
    pub(super) fn seen(&self) -> Request {
        let seen = self.seen.lock().unwrap();
        super::retry::copy(&seen.last().unwrap().0, Body::empty())
    }

    /// The content of each request.
    pub(super) fn seen_content(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(_, content)| content.clone()).collect()
    }

    /// The fields of its answers.
    pub(super) fn seen_headers(&self) -> HeaderMap {
        self.headers.clone()
    }

    fn body(&self, index: usize) -> Body {
        if let Some(receiver) = self.receiver.lock().unwrap().take() {
            return Body::stream(Paused { first: Some(self.text.clone().into()), receiver }, Length::Unknown);
        }
        if !self.answers.is_empty() {
            return Body::full(format!("answer {}", index + 1));
        }
        if !self.streams {
            return Body::full(self.text.clone());
        }
        let pieces = self.text.as_bytes().chunks(1000).map(Bytes::copy_from_slice).collect();
        Body::stream(Pieces { pieces, trailers: self.trailers.clone() }, Length::Unknown)
    }
}

impl Target for Echo {
    fn call<'a>(&'a self, mut request: Request, ctx: &'a mut Ctx) -> BoxFuture<'a, Response> {
        Box::pin(async move {
            let body = std::mem::replace(&mut request.body, Body::empty());
            let index = self.seen.lock().unwrap().len();
            let (status, outcome) = self.answers.get(index).copied().unwrap_or((200, Outcome::Answered));
            // Who sends nothing takes nothing either.
            let sent = match outcome {
                Outcome::Unsent => Ok(Bytes::new()),
                _ => super::peek::collect(body, u64::MAX).await,
            };
            let Ok(sent) = sent else { return Response::status(StatusCode::BAD_GATEWAY) };
            self.seen.lock().unwrap().push((request, String::from_utf8_lossy(&sent).into_owned()));
            ctx.outcome = outcome;
            Response {
                status: StatusCode::from_u16(status).unwrap(),
                headers: self.headers.clone().into(),
                body: self.body(index),
            }
        })
    }
}

struct Pieces {
    pieces: Batch,
    trailers: Option<HeaderMap>,
}

impl BodySource for Pieces {
    fn poll_chunks(&mut self, _cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        out.extend(self.pieces.pop_front());
        Poll::Ready(Ok(!self.pieces.is_empty()))
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}

struct Paused {
    first: Option<Bytes>,
    receiver: mpsc::Receiver<String>,
}

impl BodySource for Paused {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        if let Some(first) = self.first.take() {
            out.push_back(first);
            return Poll::Ready(Ok(true));
        }
        match ready!(self.receiver.poll_recv(cx)) {
            Some(text) => {
                out.push_back(text.into());
                Poll::Ready(Ok(true))
            }
            None => Poll::Ready(Ok(false)),
        }
    }
}

fn field_map(fields: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    fields.iter().map(pair).collect()
}
