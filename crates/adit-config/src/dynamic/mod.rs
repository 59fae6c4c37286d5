//! Traefik's dynamic configuration: routers, services, middlewares, transports and TLS, as one checked value.
//!
//! A text with an unknown key, a value of the wrong type or an empty block is refused as a whole, with every problem in
//! it. What is well-formed and still makes no sense (a bad rule, an unknown name, two kinds in one service) stays in the
//! value, for whoever compiles an object to find: then that object alone is disabled.
//!
//! Names and defaults are Traefik v3's (`ingress-features.md §2–5`), in snake case.

mod forms;
mod model;
mod model_middlewares;
mod model_services;
mod model_tcp;
mod model_tls;
mod parse;
mod read_auth;
mod read_headers;
mod read_http;
mod read_middlewares;
mod read_tcp;
mod read_tls;

pub(crate) use forms::Block;
pub use forms::network;
pub use model::{Domain, Dynamic, HttpDynamic, Observability, Router, RouterTls};
pub use model_middlewares::{
    AddPrefix, BasicAuth, Buffering, Chain, CircuitBreaker, ClientTls, Compress, ContentType, DigestAuth,
    EncodedCharacters, Errors, ForwardAuth, GrpcWeb, Headers, InFlightReq, IpAllowList, IpStrategy,
    Middleware, PassTlsClientCert, RateLimit, RedirectRegex, RedirectScheme, ReplacePath, ReplacePathRegex,
    Retry, SourceCriterion, StripPrefix, StripPrefixRegex, TlsClientCertFields, TlsClientCertNames,
};
pub use model_services::{
    BalancerStrategy, Cookie, Failover, FailoverErrors, ForwardingTimeouts, HealthCheck, HealthCheckMode,
    HighestRandomWeight, LoadBalancer, Mirror, Mirroring, PassiveHealthCheck, SameSite, Server,
    ServersTransport, Service, ServiceKind, WeightedService, WeightedServices,
};
pub use model_tcp::{
    TcpDynamic, TcpHealthCheck, TcpLoadBalancer, TcpMiddleware, TcpRouter, TcpRouterTls, TcpServer,
    TcpServersTransport, TcpService, TcpTlsClient, UdpDynamic, UdpRouter, UdpService,
};
pub use model_tls::{
    CertificatePair, ClientAuth, ClientAuthType, DefaultGeneratedCert, PeerSan, PemSource,
    ProxyProtocolVersion, TlsCertificate, TlsDynamic, TlsOptions, TlsStore, TlsVersion,
};
pub use parse::Format;
pub(crate) use parse::{SECTIONS, read_inline};
pub(crate) use read_http::{read_router_tls, read_tracing};
pub(crate) use read_middlewares::read_encoded_characters;
