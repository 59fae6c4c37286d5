//! What all connections of one connector have in common.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use adit_config::EdgeIpVersion;
use adit_tunnel_proto::{Client, EdgeEndpoint, Failure, Registration, features};
use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use uuid::Uuid;

use super::{ConnectorOptions, configuration::Configuration, status::Board};
use crate::{
    credit::Budget,
    metrics::ConnectorMetrics,
    tls::{TlsError, TlsTransport, client_config, edge_roots, roots_in_pem},
    transport,
};

/// What a connection's task is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// Serve.
    #[default]
    Serve,
    /// Unregister, and serve on.
    Drain,
    /// Close at once.
    Close,
}

/// One attempt at a connection.
pub(super) struct Dial {
    pub(super) slot: u8,
    pub(super) endpoint: EdgeEndpoint,
    pub(super) previous_attempts: u8,
    pub(super) port: Arc<Port>,
    pub(super) order: watch::Receiver<Order>,
    pub(super) registered: mpsc::Sender<u8>,
}

impl Dial {
    /// Returns when the connection is to be closed at once; a drain before it is registered is one.
    pub(super) async fn order_closed(&mut self) {
        // The runner's end means the same.
        drop(self.order.wait_for(|order| *order != Order::Serve).await);
    }

    /// The next order; the runner's end is an order to close.
    pub(super) async fn next_order(&mut self) -> Order {
        match self.order.changed().await {
            Ok(()) => *self.order.borrow_and_update(),
            Err(_) => Order::Close,
        }
    }
}

/// The local UDP port that a connection had last.
#[derive(Debug, Default)]
pub(super) struct Port(AtomicU16);

impl Port {
    pub(super) fn last(&self) -> Option<u16> {
        Some(self.0.load(Ordering::Relaxed)).filter(|port| *port != 0)
    }

    pub(super) fn remember(&self, port: u16) {
        self.0.store(port, Ordering::Relaxed);
    }
}

pub(super) struct Shared<H> {
    pub(super) options: ConnectorOptions,
    pub(super) handler: Arc<H>,
    pub(super) metrics: ConnectorMetrics,
    /// For origins that read uploads slowly.
    pub(super) budget: Arc<Budget>,
    pub(super) client: Client,
    pub(super) quic: transport::Dialler,
    pub(super) tcp: Arc<rustls::ClientConfig>,
    pub(super) status: Board,
    pub(super) configuration: Configuration,
    pub(super) local_configuration: Arc<watch::Sender<Option<Bytes>>>,
}

impl<H> Shared<H> {
    pub(super) fn new(
        options: ConnectorOptions,
        handler: Arc<H>,
        metrics: ConnectorMetrics,
    ) -> Result<Self, TlsError> {
        let roots = match &options.ca_pem {
            Some(pem) => roots_in_pem(pem.as_bytes()).map_err(TlsError::CaPem)?,
            None => edge_roots(options.ca.as_deref())?,
        };
        let pq = options.post_quantum;
        let quic = client_config(roots.clone(), TlsTransport::Quic, pq)?;
        let tcp = client_config(roots, TlsTransport::Tcp, pq)?;
        // The suites offered include the one that QUIC's first packets need.
        let quic = transport::Dialler::new(quic, !options.disable_pmtu_discovery)
            .map_err(|error| TlsError::Settings(rustls::Error::General(error.to_string())))?;
        let client = Client {
            id: Uuid::new_v4(),
            features: features::advertised(&options.features, pq),
            version: options.version.clone(),
            arch: format!("{}_{}", os(), arch()),
        };
        let local_configuration = Arc::new(watch::Sender::new(options.local_configuration.clone()));
        let configuration = Configuration::new(&metrics);
        let status = Board::default();
        Ok(Self {
            budget: Budget::new(metrics.credit.clone()),
            options,
            handler,
            metrics,
            client,
            quic,
            tcp: Arc::new(tcp),
            status,
            configuration,
            local_configuration,
        })
    }

    pub(super) fn registration(
        &self,
        slot: u8,
        previous_attempts: u8,
        local_ip: Option<IpAddr>,
    ) -> Registration {
        let credentials = &self.options.credentials;
        Registration {
            account_tag: credentials.account_tag.clone(),
            secret: credentials.secret.clone(),
            tunnel: credentials.tunnel_id,
            index: slot,
            client: self.client.clone(),
            origin_local_ip: local_ip,
            replace_existing: false,
            previous_attempts,
        }
    }

    /// The address to dial now: IPv4 first, as the stock connector chooses, and the next one of the
    /// name's addresses with each attempt.
    pub(super) async fn resolve(&self, endpoint: &EdgeEndpoint, attempt: u8) -> Result<SocketAddr, Failure> {
        let name = match endpoint {
            EdgeEndpoint::Address(address) => return Ok(*address),
            EdgeEndpoint::Name(name) => name,
        };
        let found = match timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(&**name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(edge = &**name, %error, "edge address cannot be looked up");
                return Err(Failure::Dial);
            }
            Err(_) => {
                tracing::warn!(edge = &**name, "edge address lookup timed out");
                return Err(Failure::Dial);
            }
        };
        let family = match (self.options.bind_address, self.options.ip_version) {
            (Some(IpAddr::V4(_)), _) | (None, EdgeIpVersion::V4) => Some(false),
            (Some(IpAddr::V6(_)), _) | (None, EdgeIpVersion::V6) => Some(true),
            (None, EdgeIpVersion::Auto) => None,
        };
        let found = found.filter(|address| family.is_none_or(|ipv6| address.is_ipv6() == ipv6));
        let mut found: Vec<SocketAddr> = found.take(NAME_ADDRESSES_MAX).collect();
        found.sort_by_key(SocketAddr::is_ipv6);
        let at = usize::from(attempt).checked_rem(found.len()).ok_or(Failure::Dial)?;
        Ok(found[at])
    }
}

/// The names that Go gives to systems and architectures (§3.4).
fn os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        os => os,
    }
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64",
        arch => arch,
    }
}

/// Most addresses of one name that are tried.
const NAME_ADDRESSES_MAX: usize = 16;
/// Longest wait for a name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
