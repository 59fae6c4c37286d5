//! Who answers a visitor: the ingress if one of its routers wants the request, else the edge where the entry point is its.

use std::sync::Arc;

use adit_proxy::message::{Request, Response, Service};
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
    async fn call(&self, request: Request) -> Response {
        if let Some(edge) = self.edge_of(&request)
            && !self.gateway.has_challenge(request.uri.path()).await
            && !self.gateway.wants(&request)
        {
            // Larger than what follows: it would be moved about for each request of the ingress.
            return Box::pin(edge.call(request)).await;
        }
        match asks_about_server(&request) {
            true => Response::status(StatusCode::OK),
            false => self.gateway.call(request).await,
        }
    }
}

/// `OPTIONS *` is about the server as a whole (RFC 9110 §9.3.7): no router is asked, as in Go.
fn asks_about_server(request: &Request) -> bool {
    request.method == Method::OPTIONS && request.uri.path() == "*"
}
