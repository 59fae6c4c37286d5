//! One origin: connections, their reuse, and the exchange over them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use adit_config::{OriginSettings, Service as OriginService};
use http::Method;
use http::header::HeaderValue;
use rustls::ClientConfig;

use crate::body::{Batch, Body, BodyError, Length};
use crate::connect::{ConnectError, Connector, Target};
use crate::fields::Kinds;
use crate::h1::client::{Exchange, ExchangeError, ExchangeLimits, OriginConnection, Outgoing};
use crate::h2::client::{H2Error, H2Options, H2Origin, Lease};
use crate::headers;
use crate::io::Io;
use crate::message::{Request, Response};
use crate::pool::Pool;
use crate::tls;

mod error;

pub use error::{ForwardError, OriginError};

/// An origin with its connections. Shared by all requests that are routed to it.
#[derive(Debug)]
pub struct Origin {
    connector: Connector,
    /// For exchanges that only HTTP/1.1 can carry, where the connector's own settings may lead to HTTP/2.
    tls_http1: Option<Arc<ClientConfig>>,
    pool: Arc<Pool>,
    protocol: Protocol,
    h2: H2Origin,
    /// True once a connection settled on HTTP/2: then a burst waits for one connection in place of opening many.
    speaks_h2: AtomicBool,
    dialling: tokio::sync::Mutex<()>,
    /// The last failure to connect, for those who waited for that attempt.
    failure: Mutex<Option<(Instant, ConnectError)>>,
    limits: ExchangeLimits,
    /// Replaces `Host`.
    host_header: Option<String>,
    server_name: Option<String>,
    match_sni_to_host: bool,
    disable_chunked_encoding: bool,
}

/// The HTTP version that an origin is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 or HTTP/1.1, as ALPN settles (RFC 7301); the TLS settings must offer both.
    Negotiated,
    /// HTTP/2 by prior knowledge (RFC 9113 §3.3).
    Http2,
}

/// An origin's settings, for [`Origin::with`].
#[derive(Clone, Debug)]
pub struct OriginOptions {
    /// Where it is and how long it may take to connect.
    pub connector: Connector,
    /// HTTP version.
    pub protocol: Protocol,
    /// The name to verify; none for the target's own.
    pub server_name: Option<String>,
    /// Idle HTTP/1.1 connections kept.
    pub idle_max: usize,
    /// How connections are kept, HTTP/1.1 ones included.
    pub h2: H2Options,
}

impl Origin {
    /// Sets up an origin for `http(s)://`, `unix:` and `unix+tls:` services; opens nothing yet.
    ///
    /// # Errors
    /// [`OriginError`] if its certificate authorities cannot be read.
    pub fn new(service: &OriginService, settings: &OriginSettings) -> Result<Self, OriginError> {
        let (target, uses_tls) = match service {
            OriginService::Http { tls, authority } => (split_authority(authority, *tls), *tls),
            OriginService::Unix { path, tls } => (Target::Unix(path.clone()), *tls),
            other => return Err(OriginError::NotAnOrigin(format!("{other:?}"))),
        };
        let tls = if uses_tls {
            let ca = settings.ca_pool.as_deref().map(Path::new);
            Some(tls::client_config(ca, settings.no_tls_verify, settings.http2_origin)?)
        } else {
            None
        };
        let negotiated = uses_tls && settings.http2_origin;
        let options = OriginOptions {
            connector: Connector {
                target,
                tls,
                connect_timeout: settings.connect_timeout,
                tls_timeout: settings.tls_timeout,
                tcp_keep_alive: settings.tcp_keep_alive,
                no_happy_eyeballs: settings.no_happy_eyeballs,
            },
            protocol: if negotiated { Protocol::Negotiated } else { Protocol::Http1 },
            server_name: settings.origin_server_name.clone(),
            idle_max: settings.keep_alive_connections as usize,
            h2: H2Options { idle_timeout: settings.keep_alive_timeout, ..H2Options::default() },
        };
        Ok(Self {
            host_header: settings.http_host_header.clone(),
            match_sni_to_host: settings.match_sni_to_host,
            disable_chunked_encoding: settings.disable_chunked_encoding,
            ..Self::with(options)
        })
    }

    /// Sets up an origin; opens nothing yet.
    pub fn with(options: OriginOptions) -> Self {
        let OriginOptions { connector, protocol, server_name, idle_max, h2 } = options;
        let tls_http1 = connector.tls.as_ref().map(|tls| match protocol {
            Protocol::Http1 => Arc::clone(tls),
            Protocol::Negotiated | Protocol::Http2 => {
                let mut http1 = ClientConfig::clone(tls);
                http1.alpn_protocols = vec![b"http/1.1".to_vec()];
                Arc::new(http1)
            }
        });
        Self {
            connector,
            tls_http1,
            pool: Pool::new(idle_max, h2.idle_timeout),
            protocol,
            h2: H2Origin::new(h2),
            speaks_h2: AtomicBool::new(protocol == Protocol::Http2),
            dialling: tokio::sync::Mutex::new(()),
            failure: Mutex::new(None),
            limits: ExchangeLimits {
                head_bytes_max: RESPONSE_HEAD_BYTES_MAX,
                head_timeout: h2.head_timeout,
                body_idle_timeout: None,
                write_idle_timeout: WRITE_IDLE_TIMEOUT,
            },
            host_header: None,
            server_name,
            match_sni_to_host: false,
            disable_chunked_encoding: false,
        }
    }

    /// Sends a request and returns the response once its head is there; hop-by-hop fields are taken off both, but
    /// `Trailer` where trailers may follow.
    ///
    /// A request without content and with an idempotent method is tried once more if the idle connection it went out
    /// on turns out to have been closed by the origin (RFC 9112 §9.3.1).
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn send(&self, mut request: Request) -> Result<Response, ForwardError> {
        self.send_once(&mut request).await
    }

    /// As [`Self::send`]; after [`ForwardError::Connect`] the request is still whole and can be given to another origin.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn send_once(&self, request: &mut Request) -> Result<Response, ForwardError> {
        headers::remove_hop_by_hop_but_trailer(&mut request.headers, request.body.length());
        if !request.headers.lack(Kinds::HOP) {
            headers::keep_te_trailers(&mut request.headers);
        }
        headers::remove_framing(&mut request.headers);
        if let Some(host) = &self.host_header {
            // The application still needs to know what the visitor asked for.
            if let Ok(original) = HeaderValue::from_str(&request.host) {
                request.headers.insert("x-forwarded-host", original);
            }
            request.host.clone_from(host);
        }
        if self.disable_chunked_encoding && request.body.length() == Length::Unknown {
            let body = std::mem::replace(&mut request.body, Body::empty());
            request.body = Body::full(Box::pin(collect(body, BUFFERED_BODY_BYTES_MAX)).await?);
        }
        let name = self.verified_name(&request.host);
        let name = name.as_deref();
        // An upgrade is HTTP/1.1's (RFC 9113 §8.6).
        let is_http1 = self.protocol == Protocol::Http1 || request.upgrade.is_some();
        let replayable = request.body.is_empty() && is_idempotent(&request.method);
        let answered = match &mut self.over_idle(request, name, is_http1) {
            Some(exchange) => Some(exchange.await),
            None => None,
        };
        // What is rare is behind a pointer: it would be copied for each request, several times.
        let mut response = match answered {
            Some(Err(ExchangeError::Closed(_))) if replayable => {
                Box::pin(self.by_new_connection(request, name)).await?
            }
            Some(answered) => answered?,
            None if is_http1 => Box::pin(self.by_new_connection(request, name)).await?,
            None => Box::pin(self.by_h2(request, name)).await?,
        };
        if response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            headers::remove_hop_by_hop_but_trailer(&mut response.headers, response.body.length());
        }
        Ok(response)
    }

    /// Closes connections idle for too long.
    pub fn sweep(&self) {
        self.pool.sweep();
        self.h2.sweep();
    }

    /// Idle connections now.
    pub fn idle_connections(&self) -> usize {
        self.pool.idle_connections()
    }

    /// Open HTTP/2 connections now.
    pub fn h2_connections(&self) -> usize {
        self.h2.connections()
    }

    /// Where this origin is.
    pub fn target(&self) -> &Target {
        &self.connector.target
    }

    fn verified_name(&self, host: &str) -> Option<Arc<str>> {
        self.connector.tls.as_ref()?;
        if self.match_sni_to_host {
            return Some(headers::without_port(host).into());
        }
        match (&self.server_name, &self.connector.target) {
            (Some(name), _) => Some(name.as_str().into()),
            // A socket's path says nothing about its certificate: the name asked for does.
            (None, Target::Unix(_)) => Some(headers::without_port(host).into()),
            (None, Target::Tcp { .. }) => None,
        }
    }

    /// The exchange over an idle connection, if there is one that the request can go over.
    fn over_idle<'a>(
        &'a self,
        request: &'a mut Request,
        name: Option<&str>,
        is_http1: bool,
    ) -> Option<Exchange<'a>> {
        // An upgraded connection does not come back, and one that turned out closed would cost the upgrade.
        if !is_http1 || request.upgrade.is_some() {
            return None;
        }
        // One that the origin is about to close costs such a request its answer.
        let once = !request.body.is_empty() || !is_idempotent(&request.method);
        let connection = self.pool.take(name, once)?;
        Some(self.over_h1(connection, request, name))
    }

    async fn by_new_connection(
        &self,
        request: &mut Request,
        name: Option<&str>,
    ) -> Result<Response, ForwardError> {
        let io = self.connector.connect_over(self.tls_http1.as_ref(), name).await?;
        Ok(self.over_h1(OriginConnection::new(io), request, name).await?)
    }

    async fn by_http1(&self, request: &mut Request, name: Option<&str>) -> Result<Response, ForwardError> {
        let replayable = request.body.is_empty() && is_idempotent(&request.method);
        let answered = match &mut self.over_idle(request, name, true) {
            Some(exchange) => Some(exchange.await),
            None => None,
        };
        match answered {
            Some(Err(ExchangeError::Closed(_))) if replayable => {}
            Some(answered) => return Ok(answered?),
            None => {}
        }
        self.by_new_connection(request, name).await
    }

    /// Over HTTP/2, as long as the origin speaks it.
    async fn by_h2(&self, request: &mut Request, name: Option<&str>) -> Result<Response, ForwardError> {
        for _ in 0..UNPROCESSED_MAX {
            let copy = self.copy_for_replay(request);
            match (self.by_shared_h2(request, name).await, copy) {
                // The origin was about to close this connection; it has not looked at the request.
                (Err(ForwardError::H2(H2Error::Unprocessed(_))), Some(copy)) => *request = copy,
                (result, _) => return result,
            }
        }
        self.alone(request, name).await
    }

    async fn by_shared_h2(
        &self,
        request: &mut Request,
        name: Option<&str>,
    ) -> Result<Response, ForwardError> {
        for _ in 0..STALE_CONNECTIONS_MAX {
            let opened = match self.h2.take() {
                Some(lease) => Opened::H2(lease),
                None => self.open(name).await?,
            };
            let lease = match opened {
                Opened::H2(lease) => lease,
                http1 @ Opened::Http1(_) => return self.over(http1, request, name).await,
            };
            match lease.ready().await {
                Ok(lease) => return self.over(Opened::H2(lease), request, name).await,
                Err((lease, error)) => {
                    tracing::debug!(%error, "a shared connection went away before the request was sent");
                    self.h2.forget(&lease);
                }
            }
        }
        self.alone(request, name).await
    }

    /// Over a connection that nobody else can use up.
    async fn alone(&self, request: &mut Request, name: Option<&str>) -> Result<Response, ForwardError> {
        let opened = match self.connector.connect(name).await? {
            io if self.is_h2(&io) => Opened::H2(self.h2.start_alone(io).await?),
            io => Opened::Http1(Some(io)),
        };
        self.over(opened, request, name).await
    }

    /// A connection for a request that may go over HTTP/2.
    async fn open(&self, name: Option<&str>) -> Result<Opened, ForwardError> {
        if self.protocol == Protocol::Negotiated && !self.speaks_h2.load(Ordering::Relaxed) {
            // As far as known the origin speaks HTTP/1.1: one of its idle connections is as good as a new one.
            if self.pool.idle_connections() > 0 {
                return Ok(Opened::Http1(None));
            }
            return self.dial(name).await;
        }
        let asked = Instant::now();
        let _one_at_a_time = self.dialling.lock().await;
        if let Some(lease) = self.h2.take() {
            return Ok(Opened::H2(lease));
        }
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((when, error)) = failure
            && when >= asked
        {
            return Err(error.into());
        }
        let result = self.dial(name).await;
        if let Err(ForwardError::Connect(error)) = &result {
            let failure = Some((Instant::now(), error.clone()));
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        }
        result
    }

    async fn dial(&self, name: Option<&str>) -> Result<Opened, ForwardError> {
        let io = self.connector.connect(name).await?;
        let is_h2 = self.is_h2(&io);
        self.speaks_h2.store(is_h2, Ordering::Relaxed);
        if is_h2 { Ok(Opened::H2(self.h2.start(io).await?)) } else { Ok(Opened::Http1(Some(io))) }
    }

    /// The same request once more, if its content is empty: what streams cannot be sent twice. Only where shared
    /// connections are in use, which an origin may close at any request.
    fn copy_for_replay(&self, request: &Request) -> Option<Request> {
        if !request.body.is_empty() || !self.speaks_h2.load(Ordering::Relaxed) {
            return None;
        }
        Some(Request {
            method: request.method.clone(),
            uri: request.uri.clone(),
            version: request.version,
            host: request.host.clone(),
            headers: request.headers.clone(),
            body: Body::empty(),
            upgrade: None,
            visitor: Arc::clone(&request.visitor),
        })
    }

    fn is_h2(&self, io: &Io) -> bool {
        self.protocol == Protocol::Http2 || io.alpn() == Some(b"h2")
    }

    async fn over(
        &self,
        opened: Opened,
        request: &mut Request,
        name: Option<&str>,
    ) -> Result<Response, ForwardError> {
        match opened {
            Opened::H2(lease) => Ok(self.h2.send(lease, take(request), self.connector.tls.is_some()).await?),
            Opened::Http1(None) => self.by_http1(request, name).await,
            Opened::Http1(Some(io)) => Ok(self.over_h1(OriginConnection::new(io), request, name).await?),
        }
    }

    fn over_h1<'a>(
        &'a self,
        connection: OriginConnection,
        request: &'a mut Request,
        name: Option<&str>,
    ) -> Exchange<'a> {
        let home = self.pool.home(name.map(Arc::from));
        let body = std::mem::replace(&mut request.body, Body::empty());
        connection.send(&outgoing(request), body, &self.limits, home)
    }
}

/// What opening a connection led to.
enum Opened {
    H2(Lease),
    /// A fresh connection; none if an idle one is to be used.
    Http1(Option<Io>),
}

/// The parts of a request that an exchange borrows; its content goes separately.
fn outgoing(request: &Request) -> Outgoing<'_> {
    Outgoing {
        method: &request.method,
        uri: &request.uri,
        host: &request.host,
        headers: &request.headers,
        upgrade: request.upgrade.as_deref(),
    }
}

/// Moves a request out of where it is kept for another attempt.
fn take(request: &mut Request) -> Request {
    Request {
        method: std::mem::take(&mut request.method),
        uri: std::mem::take(&mut request.uri),
        version: request.version,
        host: std::mem::take(&mut request.host),
        headers: std::mem::take(&mut request.headers),
        body: std::mem::replace(&mut request.body, Body::empty()),
        upgrade: request.upgrade.take(),
        visitor: Arc::clone(&request.visitor),
    }
}

/// Reads a whole body, for origins that must be told its length.
async fn collect(mut body: Body, bytes_max: usize) -> Result<bytes::Bytes, BodyError> {
    let mut all = bytes::BytesMut::new();
    loop {
        let mut batch = Batch::new();
        let more = std::future::poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await?;
        for chunk in batch {
            if all.len() + chunk.len() > bytes_max {
                return Err(BodyError::TooLarge);
            }
            all.extend_from_slice(&chunk);
        }
        if !more {
            return Ok(all.freeze());
        }
    }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

fn split_authority(authority: &str, tls: bool) -> Target {
    let default = if tls { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default)),
        _ => (authority, default),
    };
    Target::Tcp { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port }
}

/// A response's head; larger than a request's because cookies pile up there.
const RESPONSE_HEAD_BYTES_MAX: usize = 256 * 1024;
/// Shared connections found dead before a request gets one of its own: one that the origin closed, and one that it closed while
/// the next was being opened.
const STALE_CONNECTIONS_MAX: usize = 3;
/// Times that an origin may leave a request unprocessed on a shared connection before it gets one of its own: one that closes its connections
/// after some requests does so to every request that was on its way then.
const UNPROCESSED_MAX: usize = 3;
/// An origin that takes no byte of an upload for this long is given up.
const WRITE_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Content collected for `disableChunkedEncoding`, per request; larger uploads are refused with 413.
const BUFFERED_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
