//! TCP and UDP objects.

use std::{collections::BTreeMap, time::Duration};

use super::{CertificatePair, Domain, PeerSan, PemSource, ProxyProtocolVersion, WeightedService};

/// TCP objects by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpDynamic {
    /// Which connection goes to which service.
    pub routers: BTreeMap<String, TcpRouter>,
    /// Where connections go.
    pub services: BTreeMap<String, TcpService>,
    /// What is asked of connections first.
    pub middlewares: BTreeMap<String, TcpMiddleware>,
    /// How servers are connected to.
    pub servers_transports: BTreeMap<String, TcpServersTransport>,
}

/// One TCP router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpRouter {
    /// Entry points it is on; empty = every default entry point.
    pub entry_points: Vec<String>,
    /// Middlewares in order.
    pub middlewares: Vec<String>,
    /// Service name as written; empty = the router is at fault.
    pub service: String,
    /// Rule text as written.
    pub rule: String,
    /// Larger goes first; 0 = length of the rule, `HostSNI(*)` alone −1.
    pub priority: i64,
    /// TLS; absent = plain TCP.
    pub tls: Option<TcpRouterTls>,
    /// Why it must not be served, for what is known to be unsupported while reading.
    pub fault: Option<String>,
}

/// TLS of a TCP router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpRouterTls {
    /// Whether the server ends TLS, not we.
    pub passthrough: bool,
    /// Name of the TLS options; absent = the set named `default`.
    pub options: Option<String>,
    /// Name of the certificate resolver.
    pub cert_resolver: Option<String>,
    /// Names to get certificates for.
    pub domains: Vec<Domain>,
}

/// One TCP service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcpService {
    /// Connections spread over servers.
    LoadBalancer(TcpLoadBalancer),
    /// Connections spread over services by weight.
    Weighted {
        /// Services, in order.
        services: Vec<WeightedService>,
        /// Whether a service counts as down when all below it are down.
        health_check: bool,
    },
    /// Not a service, and why.
    Invalid(String),
}

/// Servers of a TCP service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpLoadBalancer {
    /// Servers, in order.
    pub servers: Vec<TcpServer>,
    /// Name of the transport.
    pub servers_transport: Option<String>,
    /// PROXY protocol header sent first (older place; the transport's wins).
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// Older place of [`TcpServersTransport::termination_delay`]; negative = none was given.
    pub termination_delay: Option<Duration>,
    /// Probes.
    pub health_check: Option<TcpHealthCheck>,
}

/// One TCP server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpServer {
    /// `host:port`.
    pub address: String,
    /// Whether it is spoken to over TLS.
    pub tls: bool,
}

/// Probes of TCP servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpHealthCheck {
    /// Port of the probe; absent = the server's.
    pub port: Option<u16>,
    /// Sent after connecting, if not empty.
    pub send: String,
    /// Expected as the first bytes of the answer, if not empty.
    pub expect: String,
    /// From one probe to the next while the server is up.
    pub interval: Duration,
    /// From one probe to the next while the server is down.
    pub unhealthy_interval: Duration,
    /// Longest wait for connection and answer.
    pub timeout: Duration,
}

/// How TCP servers are connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpServersTransport {
    /// TCP keep-alive interval; absent = off (15 s by default).
    pub dial_keep_alive: Option<Duration>,
    /// Connecting; absent = no limit (30 s by default).
    pub dial_timeout: Option<Duration>,
    /// PROXY protocol header sent first.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// How long the other direction may go on after one has ended; absent = without limit (100 ms by default).
    pub termination_delay: Option<Duration>,
    /// TLS towards servers that want it.
    pub tls: Option<TcpTlsClient>,
    /// Why it must not be used, for what is known to be unsupported while reading.
    pub fault: Option<String>,
}

/// TLS towards TCP servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpTlsClient {
    /// Server name sent and checked; absent = the address's host.
    pub server_name: Option<String>,
    /// Whether certificates are not checked.
    pub insecure_skip_verify: bool,
    /// Roots in place of the system's.
    pub root_cas: Vec<PemSource>,
    /// Client certificates.
    pub certificates: Vec<CertificatePair>,
    /// URI that the server's certificate must have as a SAN.
    pub peer_cert_uri: Option<String>,
    /// SANs one of which the server's certificate must have.
    pub peer_cert_sans: Vec<PeerSan>,
}

/// One TCP middleware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcpMiddleware {
    /// Closes connections beyond this many per client address.
    InFlightConn {
        /// Connections at once.
        amount: i64,
    },
    /// Closes connections from elsewhere (`ipWhiteList` is its old name).
    IpAllowList {
        /// Addresses and networks as written.
        source_range: Vec<String>,
    },
    /// Not a middleware, and why.
    Invalid(String),
}

/// UDP objects by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpDynamic {
    /// Which entry point goes to which service.
    pub routers: BTreeMap<String, UdpRouter>,
    /// Where datagrams go.
    pub services: BTreeMap<String, UdpService>,
}

/// One UDP router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpRouter {
    /// Entry points it is on; empty = every UDP entry point that is a default one.
    pub entry_points: Vec<String>,
    /// Service name as written; empty = the router is at fault.
    pub service: String,
    /// Who it is for, in the rule language; empty = everybody.
    pub rule: String,
    /// 0 = the rule's length; larger goes first.
    pub priority: i64,
    /// Why it is not to be used, found before its parts are looked at.
    pub fault: Option<String>,
}

/// One UDP service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UdpService {
    /// Sessions spread over servers, each `host:port`.
    LoadBalancer {
        /// Servers, in order.
        servers: Vec<String>,
    },
    /// Sessions spread over services by weight.
    Weighted {
        /// Services, in order.
        services: Vec<WeightedService>,
    },
    /// Not a service, and why.
    Invalid(String),
}

impl Default for TcpHealthCheck {
    fn default() -> Self {
        Self {
            port: None,
            send: String::new(),
            expect: String::new(),
            interval: Duration::from_secs(30),
            unhealthy_interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
        }
    }
}

impl Default for TcpServersTransport {
    fn default() -> Self {
        Self {
            dial_keep_alive: Some(Duration::from_secs(15)),
            dial_timeout: Some(Duration::from_secs(30)),
            proxy_protocol: None,
            termination_delay: Some(Duration::from_millis(100)),
            tls: None,
            fault: None,
        }
    }
}
