//! HTTP services and transports to servers.

use std::{collections::BTreeMap, time::Duration};

use super::{CertificatePair, PeerSan, PemSource, TlsVersion};

/// One HTTP service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Middlewares that every request to it passes, in order.
    pub middlewares: Vec<String>,
    /// What it does.
    pub kind: ServiceKind,
}

/// The kinds of HTTP services.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly every service is the largest kind")]
pub enum ServiceKind {
    /// Requests spread over servers.
    LoadBalancer(LoadBalancer),
    /// Requests spread over services by weight.
    Weighted(WeightedServices),
    /// Requests to one service, copies to others.
    Mirroring(Mirroring),
    /// One service until it fails, then another.
    Failover(Failover),
    /// The service that scores highest for the visitor (rendezvous hashing).
    HighestRandomWeight(HighestRandomWeight),
    /// Not a service, and why: routers that use it are disabled with this reason.
    Invalid(String),
}

/// Servers that answer for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancer {
    /// Sends a visitor to the server of their cookie.
    pub sticky: Option<Cookie>,
    /// Servers, in order.
    pub servers: Vec<Server>,
    /// How a server is chosen.
    pub strategy: BalancerStrategy,
    /// Probes of ours.
    pub health_check: Option<HealthCheck>,
    /// Judging by visitors' requests.
    pub passive_health_check: Option<PassiveHealthCheck>,
    /// Whether servers see the visitor's `Host`; else their own `host:port`.
    pub pass_host_header: bool,
    /// Longest wait of response bytes in our buffers; we never let them wait, so it only documents intent.
    pub flush_interval: Duration,
    /// Name of the transport; absent = the one named `default`, if there is one.
    pub servers_transport: Option<String>,
}

/// How a load balancer chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BalancerStrategy {
    /// Weighted round robin.
    #[default]
    Wrr,
    /// The less loaded of two chosen at random.
    P2c,
    /// Rendezvous hashing of the visitor's address.
    Hrw,
    /// The server that answers soonest.
    LeastTime,
}

/// One server of a load balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `http`, `https` or `h2c` URL as written.
    pub url: String,
    /// Share of requests; 0 = none.
    pub weight: u32,
    /// Whether the URL's path is put before the request's.
    pub preserve_path: bool,
    /// Draining: used by visitors whose cookie names it, and by others only as a last resort.
    pub fenced: bool,
}

/// A sticky session's cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Name; absent = made from the service's name (`ingress-features.md §4`).
    pub name: Option<String>,
    /// `Secure`.
    pub secure: bool,
    /// `HttpOnly`.
    pub http_only: bool,
    /// `SameSite`.
    pub same_site: Option<SameSite>,
    /// `Max-Age` in seconds; 0 = a session cookie, negative = `Max-Age=0`.
    pub max_age_s: i64,
    /// `Expires`, so many seconds after the cookie is set; 0 = none.
    pub expires_s: i64,
    /// `Path`; `/` by default, absent if written empty.
    pub path: Option<String>,
    /// `Domain`.
    pub domain: Option<String>,
}

/// `SameSite` of a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    /// `None`.
    None,
    /// `Lax`.
    Lax,
    /// `Strict`.
    Strict,
}

/// Probes that decide whether a server gets requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Scheme of the probe; absent = the server's.
    pub scheme: Option<String>,
    /// HTTP or gRPC.
    pub mode: HealthCheckMode,
    /// Path, perhaps with a query. HTTP needs one; gRPC takes it as the service's name.
    pub path: String,
    /// Method; `GET` by default.
    pub method: String,
    /// Status that means healthy; absent = 200 to 399.
    pub status: Option<u16>,
    /// Port of the probe; absent = the server's.
    pub port: Option<u16>,
    /// From one probe to the next while the server is up.
    pub interval: Duration,
    /// From one probe to the next while the server is down.
    pub unhealthy_interval: Duration,
    /// Longest wait for the answer.
    pub timeout: Duration,
    /// `Host` of the probe; absent = the server's.
    pub hostname: Option<String>,
    /// Whether redirects are followed.
    pub follow_redirects: bool,
    /// Headers of the probe.
    pub headers: BTreeMap<String, String>,
}

/// What a probe speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HealthCheckMode {
    /// An HTTP request.
    #[default]
    Http,
    /// `grpc.health.v1.Health/Check`.
    Grpc,
}

/// Takes a server out of service by the failures of visitors' requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassiveHealthCheck {
    /// Failures count for this long; the server is out for this long too.
    pub failure_window: Duration,
    /// Failures in the window that take it out.
    pub failed_attempts_max: u32,
}

/// Services by weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedServices {
    /// Services, in order.
    pub services: Vec<WeightedService>,
    /// Sends a visitor to the service of their cookie.
    pub sticky: Option<Cookie>,
    /// Whether a service counts as down when all below it are down (`healthCheck: {}`).
    pub health_check: bool,
}

/// One service and its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedService {
    /// Service name; with its provider once files are merged.
    pub name: String,
    /// Service name as written, which a visitor's cookie is made of.
    pub written: String,
    /// Share of requests; 0 = none.
    pub weight: u32,
}

/// Services by rendezvous hashing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HighestRandomWeight {
    /// Services, in order.
    pub services: Vec<WeightedService>,
    /// As in [`WeightedServices::health_check`].
    pub health_check: bool,
}

/// One service that answers and others that get copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirroring {
    /// Service that answers, as written.
    pub service: String,
    /// Whether copies have bodies.
    pub mirror_body: bool,
    /// Longest body that is copied, in bytes; absent = no limit of the operator's.
    pub body_bytes_max: Option<u64>,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
    /// As in [`WeightedServices::health_check`].
    pub health_check: bool,
}

/// One receiver of copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Service name as written.
    pub name: String,
    /// Share of requests copied, from 0 to 100 (more or less is the service's fault, found when it is compiled).
    pub percent: i64,
}

/// One service, and another for when it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// Service used while it is healthy, as written.
    pub service: String,
    /// Service used when the first is not, as written.
    pub fallback: String,
    /// As in [`WeightedServices::health_check`].
    pub health_check: bool,
    /// Answers of the first service that send the request on to the fallback.
    pub errors: Option<FailoverErrors>,
}

/// Which answers count as failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverErrors {
    /// Codes and ranges as written, such as `500-599`.
    pub status: Vec<String>,
    /// Longest request body kept for the second try, in bytes; absent = no limit of the operator's.
    pub request_body_bytes_max: Option<u64>,
}

/// How servers are spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServersTransport {
    /// Server name sent and checked; absent = the URL's host.
    pub server_name: Option<String>,
    /// Whether certificates are not checked.
    pub insecure_skip_verify: bool,
    /// Roots in place of the system's.
    pub root_cas: Vec<PemSource>,
    /// Client certificates.
    pub certificates: Vec<CertificatePair>,
    /// Cipher suites by Go's or IANA's names; empty = all that are safe.
    pub cipher_suites: Vec<String>,
    /// Lowest TLS version.
    pub version_min: Option<TlsVersion>,
    /// Highest TLS version.
    pub version_max: Option<TlsVersion>,
    /// Idle connections kept per server; 0 = our default, negative = none.
    pub idle_connections_per_host_max: i64,
    /// Timeouts.
    pub timeouts: ForwardingTimeouts,
    /// Whether HTTP/2 is not offered by ALPN.
    pub disable_http2: bool,
    /// URI that the server's certificate must have as a SAN.
    pub peer_cert_uri: Option<String>,
    /// SANs one of which the server's certificate must have.
    pub peer_cert_sans: Vec<PeerSan>,
    /// Why it must not be used, for what is known to be unsupported while reading (such as `spiffe`).
    pub fault: Option<String>,
}

/// Timeouts towards servers; absent = no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardingTimeouts {
    /// Connecting (30 s).
    pub dial: Option<Duration>,
    /// From the end of the request to the response head.
    pub response_header: Option<Duration>,
    /// How long an idle connection is kept (90 s).
    pub idle_connection: Option<Duration>,
    /// Silence on an HTTP/2 connection after which it is pinged.
    pub read_idle: Option<Duration>,
    /// Wait for the answer to that ping (15 s).
    pub ping: Option<Duration>,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self {
            sticky: None,
            servers: Vec::new(),
            strategy: BalancerStrategy::Wrr,
            health_check: None,
            passive_health_check: None,
            pass_host_header: true,
            flush_interval: Duration::from_millis(100),
            servers_transport: None,
        }
    }
}

impl Default for Cookie {
    fn default() -> Self {
        Self {
            name: None,
            secure: false,
            http_only: false,
            same_site: None,
            max_age_s: 0,
            expires_s: 0,
            path: Some("/".to_owned()),
            domain: None,
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            scheme: None,
            mode: HealthCheckMode::Http,
            path: String::new(),
            method: "GET".to_owned(),
            status: None,
            port: None,
            interval: Duration::from_secs(30),
            unhealthy_interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            hostname: None,
            follow_redirects: true,
            headers: BTreeMap::new(),
        }
    }
}

impl Default for PassiveHealthCheck {
    fn default() -> Self {
        Self { failure_window: Duration::from_secs(10), failed_attempts_max: 1 }
    }
}

impl Default for Mirroring {
    fn default() -> Self {
        Self {
            service: String::new(),
            mirror_body: true,
            body_bytes_max: None,
            mirrors: Vec::new(),
            health_check: false,
        }
    }
}

impl Default for ForwardingTimeouts {
    fn default() -> Self {
        Self {
            dial: Some(Duration::from_secs(30)),
            response_header: None,
            idle_connection: Some(Duration::from_secs(90)),
            read_idle: None,
            ping: Some(Duration::from_secs(15)),
        }
    }
}
