//! Who answers a visitor: the ingress if one of its routers wants the request, else the edge where the entry point is its.

use std::future::ready;
use std::sync::Arc;

use adit_proxy::message::{Request, Response, Service};
use adit_proxy::middleware::BoxFuture;
use arc_swap::ArcSwap;
use http::{Method, StatusCode};

use crate::edge_service::EdgeService;
use crate::gateway::Gateway;

/// All visitors' requests come here.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) edge: Option<Arc<EdgeService>>,
    /// Entry points whose visitors the edge serves; swapped on reload.
    pub(crate) public: Arc<ArcSwap<Vec<PublicEntry>>>,
}

/// An entry point whose visitors the edge serves.
#[derive(Debug)]
pub(crate) struct PublicEntry {
    pub(crate) name: String,
    /// Whether TLS is spoken there.
    pub(crate) tls: bool,
    /// Whether only peers of the mesh reach it.
    pub(crate) on_mesh: bool,
}

impl Front {
    /// The edge, if the visitor came in over one of its entry points, in the way that is spoken there.
    fn edge_of(&self, request: &Request) -> Option<&EdgeService> {
        let visitor = &request.visitor;
        let public = self.public.load();
        let is_public = public.iter().any(|entry| {
            *entry.name == *visitor.entry_point
                && entry.tls == visitor.secure
                && entry.on_mesh == visitor.peer.is_some()
        });
        self.edge.as_deref().filter(|_| is_public)
    }
}

impl Service for Front {
    fn call(&self, request: Request) -> impl Future<Output = Response> + Send {
        // Each behind a pointer: a request is moved as it is by whoever hands it on, and so is all that may become of it.
        let answering: BoxFuture<'_, Response> = match self.edge_of(&request) {
            Some(edge) => Box::pin(self.shared(edge, request)),
            None => self.gateway_call(request),
        };
        answering
    }
}

impl Front {
    /// Answers where the edge and the ingress share an entry point.
    async fn shared(&self, edge: &EdgeService, request: Request) -> Response {
        if self.gateway.has_challenge(request.uri.path()).await || self.gateway.wants(&request) {
            self.gateway_call(request).await
        } else {
            edge.call(request).await
        }
    }

    fn gateway_call(&self, request: Request) -> BoxFuture<'_, Response> {
        match asks_about_server(&request) {
            true => Box::pin(ready(Response::status(StatusCode::OK))),
            false => Box::pin(self.gateway.call(request)),
        }
    }
}

/// `OPTIONS *` is about the server as a whole (RFC 9110 §9.3.7): no router is asked, as in Go.
fn asks_about_server(request: &Request) -> bool {
    request.method == Method::OPTIONS && request.uri.path() == "*"
}
