//! Middlewares: what happens between a router and its service (`ingress-features.md §3`).
//!
//! A [`Layer`] is one configured middleware. A [`Chain`] is a list of them; [`run`] passes a request through it to a
//! [`Target`] and the answer back. Layers that only look at the request or change it run in a loop without an
//! allocation; the others are futures that call [`Next::run`], once or (retry) several times. [`Layers`] makes them
//! from the configuration.
//!
//! Contract: a layer holds no body unless its configuration asks for it, and then only up to a limit; whatever refuses a
//! request names the reason in [`Ctx::log`]; dropping the future of a chain aborts everything behind it.

mod basic_auth;
mod buffering;
mod circuit_breaker;
mod client_cert;
mod compile;
mod compress;
mod content_type;
mod cors;
mod ctx;
mod digest_auth;
mod encoded_characters;
mod errors;
mod expression;
mod forward_auth;
mod go_duration;
mod go_url;
mod grpc_web;
mod headers;
mod held;
mod in_flight;
mod ip_allow_list;
mod path;
mod peek;
mod rate_limit;
mod redirect;
mod reply;
mod retry;
mod security;
mod source;
mod status_ranges;
mod template;
#[cfg(test)]
mod tests;
mod turns;
mod users;

use std::fmt;
use std::future::{Future, ready};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;

pub use compile::Layers;
pub use ctx::{Attempt, Ctx, LogFields, Outcome, TlsInfo};

use crate::message::{Request, Response};

/// A future behind a pointer: chains are put together at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where a chain leads: a service, with its errors turned into responses already.
pub trait Target: Send + Sync {
    /// Answers one request; sets `ctx.outcome` and the log fields about the server.
    ///
    /// Hop-by-hop fields are the target's to remove, and `ctx.client` is its to append to `X-Forwarded-For` unless
    /// `ctx.append_forwarded_for` is false.
    fn call<'a>(&'a self, request: Request, ctx: &'a mut Ctx) -> BoxFuture<'a, Response>;
}

/// The layers of one router, outermost first.
pub type Chain = Arc<[Layer]>;

/// A middleware that sees only the request: passes it on, changed or not, or answers in place of everything behind it.
pub trait Edit: Send + Sync {
    /// `Break` is the answer.
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response>;
}

/// A middleware around everything behind it: it may wait, repeat the request, and change the answer.
pub trait Around: Send + Sync {
    /// Answers the request, as a rule by `next.run(request, ctx)`.
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response>;
}

/// One configured middleware; cheap to clone, shares its state (buckets, counters, connections) with its clones.
#[derive(Clone)]
pub struct Layer {
    name: Arc<str>,
    kind: Kind,
}

/// The rest of a chain, as a layer sees it.
#[derive(Clone, Copy)]
pub struct Next<'a> {
    rest: &'a [Layer],
    target: &'a dyn Target,
}

/// Passes a request through a chain to `target`.
pub fn run<'a>(
    chain: &'a [Layer],
    target: &'a dyn Target,
    request: Request,
    ctx: &'a mut Ctx,
) -> BoxFuture<'a, Response> {
    Next { rest: chain, target }.run(request, ctx)
}

impl Layer {
    /// A layer that sees only the request.
    pub fn edit(name: &str, edit: impl Edit + 'static) -> Self {
        Self { name: name.into(), kind: Kind::Edit(Arc::new(edit)) }
    }

    /// A layer around everything behind it.
    pub fn around(name: &str, around: impl Around + 'static) -> Self {
        Self { name: name.into(), kind: Kind::Around(Arc::new(around)) }
    }

    /// The middleware's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Layer").field(&self.name).finish()
    }
}

impl Next<'_> {
    /// Passes the request to the rest of the chain. Can be called again for another attempt.
    pub fn run<'b>(self, mut request: Request, ctx: &'b mut Ctx) -> BoxFuture<'b, Response>
    where
        Self: 'b,
    {
        let mut rest = self.rest;
        while let [layer, behind @ ..] = rest {
            rest = behind;
            match &layer.kind {
                Kind::Edit(edit) => {
                    if let ControlFlow::Break(response) = edit.edit(&mut request, ctx) {
                        return Box::pin(ready(response));
                    }
                }
                Kind::Around(around) => {
                    return around.handle(request, ctx, Next { rest, target: self.target });
                }
            }
        }
        self.target.call(request, ctx)
    }
}

#[derive(Clone)]
enum Kind {
    Edit(Arc<dyn Edit>),
    Around(Arc<dyn Around>),
}
