//! The root, and HTTP routers.

use std::collections::BTreeMap;

use super::{Middleware, ServersTransport, Service, TcpDynamic, TlsDynamic, UdpDynamic};
use crate::{Problem, model::Origin};

/// One dynamic configuration: all of one file, or all files of a provider merged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// HTTP (`http`).
    pub http: HttpDynamic,
    /// TCP (`tcp`).
    pub tcp: TcpDynamic,
    /// UDP (`udp`).
    pub udp: UdpDynamic,
    /// Certificates, options and stores (`tls`).
    pub tls: TlsDynamic,
    /// Place of every key that was written, such as `http.routers.app.rule`.
    pub origins: BTreeMap<String, Origin>,
    /// What is accepted and still worth a line in the log, such as an option that has no effect any more.
    pub warnings: Vec<Problem>,
}

/// HTTP objects by name. Names are without provider suffix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpDynamic {
    /// Which request goes to which service.
    pub routers: BTreeMap<String, Router>,
    /// Where requests go.
    pub services: BTreeMap<String, Service>,
    /// What happens to requests and responses on the way.
    pub middlewares: BTreeMap<String, Middleware>,
    /// How servers are spoken to.
    pub servers_transports: BTreeMap<String, ServersTransport>,
}

/// One HTTP router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Router {
    /// Entry points it is on; empty = every default entry point.
    pub entry_points: Vec<String>,
    /// Middlewares in the order in which a request passes them, as written (perhaps `name@provider`).
    pub middlewares: Vec<String>,
    /// Service name as written (perhaps `name@provider`); empty = the router is at fault.
    pub service: String,
    /// Rule text as written; its length in bytes is the default priority.
    pub rule: String,
    /// Larger goes first; 0 = length of the rule (`ingress-features.md §1.3`).
    pub priority: i64,
    /// Whether and how it wants TLS; absent = plain text, unless its entry point says otherwise.
    pub tls: Option<RouterTls>,
    /// What is observed of its requests.
    pub observability: Observability,
    /// Why it must not be served, for what is known to be unsupported while reading (such as `ruleSyntax: v2`).
    pub fault: Option<String>,
}

/// TLS settings of a router or an entry point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouterTls {
    /// Name of the TLS options; absent = the set named `default`.
    pub options: Option<String>,
    /// Name of the certificate resolver that gets its certificates.
    pub cert_resolver: Option<String>,
    /// Names to get certificates for; empty = those of the rule.
    pub domains: Vec<Domain>,
}

/// Names that share one certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domain {
    /// First name.
    pub main: String,
    /// Further names.
    pub sans: Vec<String>,
}

/// What is observed of requests; absent = as the entry point says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observability {
    /// Lines in the access log.
    pub access_logs: Option<bool>,
    /// Counted in metrics.
    pub metrics: Option<bool>,
}
