//! One TCP router at work: middlewares, then a server, then the relay.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};

use super::layer::{Admission, TcpLayer};
use super::postgres;
use super::relay::{Relaying, relay};
use super::service::TcpNode;
use super::splice::Plain;
use crate::metrics::Metrics;
use crate::proxy_protocol::Addresses;

/// A router's connections: what is asked of them, who ends TLS, where they go.
#[derive(Debug)]
pub struct TcpRoute {
    /// The router's name.
    pub name: Arc<str>,
    /// Who ends TLS.
    pub tls: RouteTls,
    /// Middlewares in order.
    pub chain: Arc<[Arc<TcpLayer>]>,
    /// Where connections go.
    pub service: Arc<TcpNode>,
}

/// Who ends a route's TLS.
#[derive(Clone, Debug)]
pub enum RouteTls {
    /// There is none.
    Plain,
    /// The server: the visitor's bytes are passed on as they are.
    Passthrough,
    /// We do, with these options.
    Terminate(Arc<ServerConfig>),
}

/// What the visitor said before the bytes that are relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// Nothing.
    None,
    /// PostgreSQL's SSLRequest, which we granted: the server must grant it too.
    Postgres,
}

impl TcpRoute {
    /// Serves one connection to its end; `ahead` was read from it before.
    pub async fn serve<V>(
        &self,
        visitor: &mut V,
        ahead: BytesMut,
        source: SocketAddr,
        destination: SocketAddr,
        metrics: &Metrics,
    ) where
        V: AsyncRead + AsyncWrite + Plain + Unpin,
    {
        self.serve_after(Opening::None, visitor, ahead, (source, destination), metrics).await;
    }

    /// [`Self::serve`] for a connection whose opening the server has to see as well; `ends` are its source and
    /// destination.
    pub(crate) async fn serve_after<V>(
        &self,
        opening: Opening,
        visitor: &mut V,
        ahead: BytesMut,
        ends: (SocketAddr, SocketAddr),
        metrics: &Metrics,
    ) where
        V: AsyncRead + AsyncWrite + Plain + Unpin,
    {
        let (source, destination) = ends;
        let admitted = self.admit(source.ip());
        let _admissions = match admitted {
            Ok(admissions) => admissions,
            Err(reason) => {
                tracing::debug!(router = %self.name, reason, "TCP connection refused");
                return metrics.refused(reason);
            }
        };
        let dialled = self.service.dial(&Addresses { source, destination }).await;
        let mut dialled = match dialled {
            Ok(dialled) => dialled,
            Err(error) => {
                tracing::warn!(router = %self.name, %error, reason = error.reason(), "TCP connection closed");
                return metrics.refused(error.reason());
            }
        };
        if opening == Opening::Postgres && !postgres::open(&mut dialled.io).await {
            tracing::warn!(router = %self.name, server = %dialled.server, reason = "postgres_no_tls", "TCP connection closed");
            return metrics.refused("postgres_no_tls");
        }
        let relaying =
            Relaying { ahead, termination_delay: dialled.termination_delay, pipes: metrics.pipes() };
        match relay(visitor, &mut dialled.io, relaying).await {
            Ok(carried) => tracing::debug!(
                router = %self.name, server = %dialled.server, up = carried.up, down = carried.down, "TCP connection ended"
            ),
            Err(error) => {
                tracing::debug!(router = %self.name, server = %dialled.server, %error, "TCP connection broke off");
                metrics.aborted();
            }
        }
    }

    fn admit(&self, address: IpAddr) -> Result<Vec<Admission>, &'static str> {
        let mut admissions = Vec::new();
        for layer in &*self.chain {
            admissions.extend(layer.admit(address).map_err(|refusal| refusal.reason())?);
        }
        Ok(admissions)
    }
}
