//! What travels beside a request through its chain: who asks, over what, and what the access log is to say afterwards.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use crate::tls::options::Stamp;

/// One request's surroundings; handed on by `&mut`, so that nothing in it needs a lock.
#[derive(Clone, Debug)]
pub struct Ctx {
    /// Name of the entry point that accepted the request.
    pub entry_point: Arc<str>,
    /// The other end of the socket.
    pub peer: IpAddr,
    /// Who asks: `peer`, or what the PROXY protocol or a tunnel said in its place. Never taken from `X-Forwarded-For`
    /// (`ingress-features.md §3.0`); middlewares that look there say so by their `ipStrategy`.
    pub client: IpAddr,
    /// Who asks according to hops that are trusted, if they say so: the nearest address of `X-Forwarded-For` that is not one
    /// of theirs.
    pub forwarded_client: Option<IpAddr>,
    /// True if the visitor's hop is encrypted; a tunnel tells what its edge saw.
    pub secure: bool,
    /// What the TLS handshake settled; none without TLS, and none through a tunnel.
    pub tls: Option<Arc<TlsInfo>>,
    /// Name of the router that won.
    pub router: Arc<str>,
    /// Whether the target is to append `client` to `X-Forwarded-For` when it forwards; middlewares still see the list
    /// as it came in, which is what `ipStrategy.depth` counts on.
    pub append_forwarded_for: bool,
    /// True if a middleware has left nothing of the path: the request has `/` because it must have something, and the
    /// next one that rewrites it begins with nothing. Whoever sends a request more than once puts it back.
    pub path_is_empty: bool,
    /// How far the last attempt came; the target sets it, `retry` reads it.
    pub outcome: Outcome,
    /// Fields of the access log that only the chain and the target know.
    pub log: LogFields,
}

/// The visitor's TLS session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// As access logs write it, such as `1.3`.
    pub version: &'static str,
    /// IANA name of the cipher suite.
    pub cipher: &'static str,
    /// The name the visitor asked for (RFC 6066 §3).
    pub server_name: Option<Box<str>>,
    /// The chain the visitor presented, leaf first; empty without client authentication.
    pub client_certificates: Vec<CertificateDer<'static>>,
    /// The TLS options under which the handshake was made.
    pub options: Stamp,
}

/// How far an attempt to have a request answered came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// No server was asked: a middleware or the balancer itself answered.
    #[default]
    Unasked,
    /// A server was chosen, but not one byte of the request went out: another attempt is safe whatever the method.
    Unsent,
    /// The request went out, at least in part, and no usable answer came.
    Failed,
    /// A server answered.
    Answered,
}

/// What the access log says about the way behind the router (`ingress-features.md §7.2`).
#[derive(Clone, Debug, Default)]
pub struct LogFields {
    /// `ServiceName`.
    pub service: Option<Arc<str>>,
    /// `ServiceURL`: the server that was asked last.
    pub service_url: Option<Arc<str>>,
    /// `OriginStatus`.
    pub origin_status: Option<StatusCode>,
    /// `OriginDuration`: from sending the request to the last attempt's response head.
    pub origin_duration: Option<Duration>,
    /// `RetryAttempts`.
    pub retries: u32,
    /// Answers of services that a later attempt replaced; as many as `retries` at most.
    pub replaced: Vec<Attempt>,
    /// `ClientUsername`: as claimed, also where the claim was refused.
    pub user: Option<Box<str>>,
    /// Name of the refusal, if a middleware or the balancer answered in place of a server: a log field and a metric
    /// label, from our own code only.
    pub refusal: Option<&'static str>,
}

/// What a service answered to one attempt.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// `ServiceName`.
    pub service: Arc<str>,
    /// Status of the answer.
    pub status: StatusCode,
    /// From the attempt's begin to its response head.
    pub duration: Duration,
}

impl Ctx {
    /// Notes that `response` is given up for another attempt; `began` is when its own attempt did.
    pub fn replaced(&mut self, status: StatusCode, began: Instant) {
        self.log.retries += 1;
        if let Some(service) = self.log.service.clone() {
            self.log.replaced.push(Attempt { service, status, duration: began.elapsed() });
        }
    }

    /// The surroundings of a request that nothing has happened to yet.
    pub fn new(entry_point: Arc<str>, client: IpAddr, secure: bool, router: Arc<str>) -> Self {
        Self {
            entry_point,
            peer: client,
            client,
            forwarded_client: None,
            secure,
            tls: None,
            router,
            append_forwarded_for: true,
            path_is_empty: false,
            outcome: Outcome::default(),
            log: LogFields::default(),
        }
    }

    /// Names the refusal for log and metrics.
    pub fn refused(&mut self, reason: &'static str) {
        self.log.refusal = Some(reason);
    }
}
