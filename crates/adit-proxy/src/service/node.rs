//! One service as a target of requests.

use std::fmt;
use std::sync::Arc;

use super::balancer::{Balancer, Choice, Member};
use super::failover::Failover;
use super::failure;
use super::health::HealthTask;
use super::mirror::Mirroring;
use super::schedule::Schedule;
use super::server::{Addressed, Rules, Server};
use super::state::ServerState;
use crate::message::{Request, Response};
use crate::middleware::{self, BoxFuture, Chain, Ctx, Outcome, Target};
use crate::origin::ForwardError;

/// One service, ready to answer.
#[derive(Debug)]
pub struct Node {
    name: Arc<str>,
    /// The service's own middlewares; none for none, so that they cost nothing.
    chain: Option<Chain>,
    inner: Inner,
}

/// One service as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// `name@provider`.
    pub name: Arc<str>,
    /// Traefik's word for its kind, such as `loadbalancer`.
    pub kind: &'static str,
    /// Whether it can answer at the moment, as far as its health is known.
    pub up: bool,
    /// Servers, if it has some of its own.
    pub servers: Vec<ServerStatus>,
}

/// One server as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// As written.
    pub url: Arc<str>,
    /// Whether visitors are sent to it.
    pub up: bool,
}

impl Node {
    pub(super) fn new(name: Arc<str>, chain: Option<Chain>, inner: Inner) -> Self {
        Self { name, chain, inner }
    }

    /// `name@provider`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// False if all servers behind it are known to be down.
    pub fn is_up(&self) -> bool {
        match &self.inner {
            Inner::Servers(group) => group.balancer.is_up(),
            Inner::Services(group) => group.balancer.is_up(),
            Inner::Mirroring(mirroring) => mirroring.is_up(),
            Inner::Failover(failover) => failover.is_up(),
            Inner::Internal(_) => true,
        }
    }

    /// Whether services above may rely on [`Self::is_up`]: only where `healthCheck` was asked for.
    pub(super) fn reports_health(&self) -> bool {
        match &self.inner {
            Inner::Servers(group) => group.rules.is_probed,
            Inner::Services(group) => group.health_check,
            Inner::Mirroring(mirroring) => mirroring.reports_health(),
            Inner::Failover(failover) => failover.reports_health(),
            Inner::Internal(_) => false,
        }
    }

    /// For the API and the metrics.
    pub fn status(&self) -> ServiceStatus {
        let servers = match &self.inner {
            Inner::Servers(group) => group
                .all
                .iter()
                .map(|(url, state)| ServerStatus { url: Arc::clone(url), up: state.is_up() })
                .collect(),
            _ => Vec::new(),
        };
        ServiceStatus { name: Arc::clone(&self.name), kind: self.kind(), up: self.is_up(), servers }
    }

    fn kind(&self) -> &'static str {
        match &self.inner {
            Inner::Servers(_) => "loadbalancer",
            Inner::Services(group) => group.kind,
            Inner::Mirroring(_) => "mirroring",
            Inner::Failover(_) => "failover",
            Inner::Internal(_) => "internal",
        }
    }

    /// The state of the server with this URL, for the next generation.
    pub(super) fn server_state(&self, url: &str) -> Option<&Arc<ServerState>> {
        let Inner::Servers(group) = &self.inner else { return None };
        group.all.iter().find(|(text, _)| **text == *url).map(|(_, state)| state)
    }

    /// The probes, for the next generation.
    pub(super) fn health_task(&self) -> Option<&Arc<HealthTask>> {
        let Inner::Servers(group) = &self.inner else { return None };
        group.health.as_ref()
    }

    /// Places in line, for the next generation.
    pub(super) fn schedule(&self) -> Option<Schedule> {
        match &self.inner {
            Inner::Servers(group) => Some(group.balancer.schedule()),
            Inner::Services(group) => Some(group.balancer.schedule()),
            _ => None,
        }
    }
}

impl Target for Node {
    fn call<'a>(&'a self, request: Request, ctx: &'a mut Ctx) -> BoxFuture<'a, Response> {
        match &self.chain {
            Some(chain) => middleware::run(chain, &self.inner, request, ctx),
            None => self.inner.call(request, ctx),
        }
    }
}

/// What a service does.
#[derive(Debug)]
pub(super) enum Inner {
    Servers(ServerGroup),
    Services(ServiceGroup),
    Mirroring(Mirroring),
    Failover(Failover),
    Internal(Internal),
}

/// What answers itself.
pub(super) struct Internal(pub(super) Arc<dyn Target>);

impl fmt::Debug for Internal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Internal")
    }
}

impl Target for Inner {
    fn call<'a>(&'a self, request: Request, ctx: &'a mut Ctx) -> BoxFuture<'a, Response> {
        match self {
            Self::Servers(group) => Box::pin(group.call(request, ctx)),
            Self::Services(group) => Box::pin(group.call(request, ctx)),
            Self::Internal(internal) => internal.0.call(request, ctx),
            Self::Mirroring(mirroring) => Box::pin(mirroring.call(request, ctx)),
            Self::Failover(failover) => Box::pin(failover.call(request, ctx)),
        }
    }
}

/// Servers behind a balancer.
#[derive(Debug)]
pub(super) struct ServerGroup {
    pub(super) balancer: Balancer<Server>,
    pub(super) rules: Arc<Rules>,
    /// All servers, those without a share included.
    pub(super) all: Vec<(Arc<str>, Arc<ServerState>)>,
    pub(super) health: Option<Arc<HealthTask>>,
}

impl ServerGroup {
    #[expect(clippy::manual_async_fn, reason = "an async fn would keep the request twice")]
    fn call<'a>(
        &'a self,
        mut request: Request,
        ctx: &'a mut Ctx,
    ) -> impl Future<Output = Response> + Send + 'a {
        async move {
            ctx.log.service = Some(Arc::clone(self.rules.service.own()));
            ctx.outcome = Outcome::Unasked;
            let Some(choice) = self.balancer.choose(&request.headers, ctx.client, None) else {
                return failure::unavailable(ctx);
            };
            let visitor = Addressed::new(&mut request, ctx, self.balancer.members().len() > 1);
            let response = match self.send(choice, &mut request, &visitor, ctx).await {
                Ok(response) => response,
                Err(error) => {
                    return Box::pin(self.failed(error, choice, (&mut request, &visitor), ctx)).await;
                }
            };
            self.tell(response, choice)
        }
    }

    /// A server that cannot even be reached: another one may be, and nothing was sent yet. Once, so that a service
    /// whose servers are all gone says so soon.
    async fn failed(
        &self,
        error: ForwardError,
        mut choice: Choice,
        (request, visitor): (&mut Request, &Addressed),
        ctx: &mut Ctx,
    ) -> Response {
        let mut result = Err(error);
        if let Err(ForwardError::Connect(error)) = &result
            && let Some(other) = self.balancer.choose(&request.headers, ctx.client, Some(choice.index))
        {
            tracing::debug!(service = %self.rules.service, reason = error.reason(), "trying another server");
            choice = Choice { tell: self.balancer.sticky().is_some(), ..other };
            result = self.send(choice, request, visitor, ctx).await;
        }
        let response = result.unwrap_or_else(|error| self.describe(&error, choice, ctx));
        self.tell(response, choice)
    }

    /// Tells the visitor by cookie which server it was, where that is wanted.
    fn tell(&self, mut response: Response, choice: Choice) -> Response {
        if choice.tell
            && let Some(sticky) = self.balancer.sticky()
        {
            sticky.write(&mut response.headers, choice.index);
        }
        response
    }

    fn send<'a>(
        &'a self,
        choice: Choice,
        request: &'a mut Request,
        visitor: &Addressed,
        ctx: &'a mut Ctx,
    ) -> impl Future<Output = Result<Response, ForwardError>> + 'a {
        let server = &self.balancer.members()[choice.index];
        server.address(request, visitor);
        server.send(request, ctx)
    }

    fn describe(&self, error: &ForwardError, choice: Choice, ctx: &mut Ctx) -> Response {
        ctx.refused(error.reason());
        let url = self.balancer.members()[choice.index].name();
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        tracing::debug!(
            service = %self.rules.service, url, reason = error.reason(), %error, cause, "no answer from the server"
        );
        failure::response(error)
    }
}

/// Services by weight or by rendezvous hashing.
#[derive(Debug)]
pub(super) struct ServiceGroup {
    pub(super) balancer: Balancer<Child>,
    pub(super) kind: &'static str,
    pub(super) health_check: bool,
}

impl ServiceGroup {
    async fn call(&self, request: Request, ctx: &mut Ctx) -> Response {
        ctx.outcome = Outcome::Unasked;
        let Some(choice) = self.balancer.choose(&request.headers, ctx.client, None) else {
            return failure::unavailable(ctx);
        };
        let mut response = self.balancer.members()[choice.index].node.call(request, ctx).await;
        if choice.tell
            && let Some(sticky) = self.balancer.sticky()
        {
            sticky.write(&mut response.headers, choice.index);
        }
        response
    }
}

/// One service of a group.
pub(super) struct Child {
    /// As written in the configuration: what its cookie is made of.
    pub(super) name: Box<str>,
    pub(super) weight: u32,
    pub(super) node: Arc<Node>,
    /// Whether the group asked for health.
    pub(super) watched: bool,
}

impl Member for Child {
    fn name(&self) -> &str {
        &self.name
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn is_up(&self) -> bool {
        !self.watched || self.node.is_up()
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Child").field(&self.name).finish()
    }
}
