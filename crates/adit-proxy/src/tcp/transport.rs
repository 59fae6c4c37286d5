//! How TCP servers are connected to: time limits, keep-alive, PROXY protocol, TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit_config::dynamic::{ProxyProtocolVersion, ServersTransport, TcpLoadBalancer, TcpServersTransport};
use rustls::ClientConfig;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::connect::{ConnectError, Connector, Target};
use crate::inlet::Inlet;
use crate::io::Io;
use crate::proxy_protocol::{self, Addresses};
use crate::service::tls::{Material, client_config};

/// A compiled `tcp.serversTransports` entry, with what its load balancer says in older places.
#[derive(Clone, Debug)]
pub struct Transport {
    connect_timeout: Duration,
    keep_alive: Duration,
    proxy_protocol: Option<ProxyProtocolVersion>,
    termination_delay: Option<Duration>,
    tls: Arc<ClientConfig>,
    server_name: Option<String>,
}

/// Why a server could not be used.
#[derive(Debug, Error)]
pub enum DialError {
    /// Not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Reached, and gone before the PROXY protocol header was out.
    #[error("the server closed the connection at once")]
    Closed(#[source] std::io::Error),
    /// `address` is not `host:port`.
    #[error("{0:?} is not an address with a port")]
    Address(String),
}

impl DialError {
    /// The name of this error in logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect(error) => error.reason(),
            Self::Closed(_) => "origin_closed",
            Self::Address(_) => "origin_address",
        }
    }
}

impl Transport {
    /// Compiles a transport.
    ///
    /// # Errors
    /// What cannot be used, in words for the operator.
    pub fn compile(balancer: &TcpLoadBalancer, settings: &TcpServersTransport) -> Result<Self, String> {
        if let Some(fault) = &settings.fault {
            return Err(fault.clone());
        }
        let tls = settings.tls.clone().unwrap_or_default();
        let as_http = ServersTransport {
            insecure_skip_verify: tls.insecure_skip_verify,
            root_cas: tls.root_cas,
            certificates: tls.certificates,
            peer_cert_uri: tls.peer_cert_uri,
            peer_cert_sans: tls.peer_cert_sans,
            ..ServersTransport::default()
        };
        let client = client_config(&as_http, &Material::read(&as_http)?)?;
        Ok(Self {
            connect_timeout: settings.dial_timeout.unwrap_or(DIAL_TIMEOUT_MAX),
            keep_alive: settings.dial_keep_alive.unwrap_or_default(),
            proxy_protocol: settings.proxy_protocol.or(balancer.proxy_protocol),
            termination_delay: balancer.termination_delay.or(settings.termination_delay),
            tls: Arc::new(client),
            server_name: tls.server_name,
        })
    }

    /// How long one direction may go on after the other has ended; `None` = however long it takes.
    pub fn termination_delay(&self) -> Option<Duration> {
        self.termination_delay
    }

    /// Connects and says who the visitor is, if the server wants to know.
    ///
    /// # Errors
    /// [`DialError`]; no byte of the visitor's has been sent then.
    pub async fn dial(&self, address: &ServerAddress, visitor: &Addresses) -> Result<Io, DialError> {
        let connector = self.connector(address);
        let mut io = connector.connect(None).await?;
        if let Some(version) = self.proxy_protocol {
            let header = match version {
                ProxyProtocolVersion::V1 => proxy_protocol::encode_v1(visitor),
                ProxyProtocolVersion::V2 => proxy_protocol::encode_v2(visitor),
            };
            io.write_all(&header).await.map_err(DialError::Closed)?;
        }
        if !address.tls {
            return Ok(io);
        }
        let stream = match io {
            Io::Tcp(stream) => Inlet::Tcp(stream),
            Io::Other(stream) => Inlet::Other(stream),
            // The connector was given no TLS, and no path of a unix socket.
            _ => return Err(DialError::Address(address.to_string())),
        };
        let name = self.server_name.as_deref().unwrap_or(&address.host);
        let name = rustls::pki_types::ServerName::try_from(name.to_owned())
            .map_err(|_| ConnectError::ServerName(name.to_owned()))?;
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        let target = address.to_string();
        match timeout(TLS_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Io::TlsClient(Box::new(stream))),
            Ok(Err(error)) => Err(ConnectError::Tls { target, source: Arc::new(error) }.into()),
            Err(_) => Err(ConnectError::TlsTimeout(target).into()),
        }
    }

    fn connector(&self, address: &ServerAddress) -> Connector {
        Connector {
            target: Target::Tcp { host: address.host.clone(), port: address.port },
            tls: None,
            connect_timeout: self.connect_timeout,
            tls_timeout: TLS_TIMEOUT,
            tcp_keep_alive: self.keep_alive,
            no_happy_eyeballs: false,
        }
    }
}

/// `host:port` of a server, and whether it speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
    tls: bool,
}

impl ServerAddress {
    /// Reads `host:port`, `[v6]:port`.
    ///
    /// # Errors
    /// [`DialError::Address`].
    pub fn parse(text: &str, tls: bool) -> Result<Self, DialError> {
        let bad = || DialError::Address(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port(), tls });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || host.contains([':', '[', ']', '/']) {
            return Err(bad());
        }
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(|_| bad())?, tls })
    }

    /// The same server on another port, in the clear: where its probes go.
    #[must_use]
    pub fn for_probe(&self, port: Option<u16>) -> Self {
        Self { port: port.unwrap_or(self.port), ..self.clone() }
    }
}

impl std::fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Target::Tcp { host: self.host.clone(), port: self.port }.fmt(f)
    }
}

/// For a server's TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// "No limit": the system gives up earlier.
const DIAL_TIMEOUT_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_others_refused() {
        for (text, want) in
            [("127.0.0.1:80", "127.0.0.1:80"), ("[::1]:80", "[::1]:80"), ("db.test:5432", "db.test:5432")]
        {
            assert_eq!(ServerAddress::parse(text, false).unwrap().to_string(), want);
        }
        for text in ["db.test", ":80", "::1:80", "tcp://a:1", "a:65536", ""] {
            assert!(ServerAddress::parse(text, false).is_err(), "{text}");
        }
    }
}
