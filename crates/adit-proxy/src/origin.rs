//! One origin: connections, their reuse, and the exchange over them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use adit_config::{OriginSettings, Service as OriginService};
use http::Method;
use http::header::HeaderValue;

use thiserror::Error;

use crate::body::{Batch, Body, BodyError, Length};
use crate::connect::{ConnectError, Connector, Target};
use crate::h1::client::{ExchangeError, ExchangeLimits, OriginConnection, Outgoing};
use crate::h2::client::{H2Error, H2Origin};
use crate::headers;
use crate::message::{Request, Response};
use crate::pool::Pool;
use crate::tls::{self, TrustError};

/// An origin with its connections. Shared by all requests that are routed to it.
#[derive(Debug)]
pub struct Origin {
    connector: Connector,
    pool: Arc<Pool>,
    h2: Option<H2Origin>,
    limits: ExchangeLimits,
    /// Replaces `Host`.
    host_header: Option<String>,
    server_name: Option<String>,
    match_sni_to_host: bool,
    disable_chunked_encoding: bool,
}

/// Why a request could not be answered by its origin.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// No connection.
    #[error("cannot reach the origin")]
    Connect(#[from] ConnectError),
    /// A connection, but no usable answer.
    #[error("the origin gave no usable answer")]
    Exchange(#[from] ExchangeError),
    /// The same over HTTP/2.
    #[error("the origin gave no usable answer")]
    H2(#[from] H2Error),
    /// The content could not be collected to announce its length.
    #[error("the request's content could not be buffered")]
    Buffer(#[from] BodyError),
}

impl ForwardError {
    /// The name of this error in logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect(error) => error.reason(),
            Self::Exchange(ExchangeError::Closed(_)) => "origin_closed",
            Self::Exchange(ExchangeError::Head(_)) => "origin_head_invalid",
            Self::Exchange(ExchangeError::Timeout) => "origin_timeout",
            Self::Exchange(ExchangeError::RequestBody(error)) | Self::Buffer(error) => error.reason(),
            Self::H2(_) => "origin_h2",
        }
    }
}

/// Why an origin cannot be set up as configured.
#[derive(Debug, Error)]
pub enum OriginError {
    /// The extra roots cannot be used.
    #[error("the origin's caPool cannot be used")]
    Trust(#[from] TrustError),
    /// A service that has no origin.
    #[error("{0} is answered without an origin")]
    NotAnOrigin(String),
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
        let h2 = (uses_tls && settings.http2_origin).then(H2Origin::default);
        Ok(Self {
            connector: Connector {
                target,
                tls,
                connect_timeout: settings.connect_timeout,
                tls_timeout: settings.tls_timeout,
                tcp_keep_alive: settings.tcp_keep_alive,
                no_happy_eyeballs: settings.no_happy_eyeballs,
            },
            pool: Pool::new(settings.keep_alive_connections as usize, settings.keep_alive_timeout),
            h2,
            limits: ExchangeLimits {
                head_bytes_max: RESPONSE_HEAD_BYTES_MAX,
                head_timeout: None,
                body_idle_timeout: None,
                write_idle_timeout: WRITE_IDLE_TIMEOUT,
            },
            host_header: settings.http_host_header.clone(),
            server_name: settings.origin_server_name.clone(),
            match_sni_to_host: settings.match_sni_to_host,
            disable_chunked_encoding: settings.disable_chunked_encoding,
        })
    }

    /// Sends a request and returns the response once its head is there; hop-by-hop fields are taken off both.
    ///
    /// A request without content and with an idempotent method is tried once more if the idle connection it went out
    /// on turns out to have been closed by the origin (RFC 9112 §9.3.1).
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn send(&self, mut request: Request) -> Result<Response, ForwardError> {
        headers::remove_hop_by_hop(&mut request.headers);
        if let Some(host) = &self.host_header {
            // The application still needs to know what the visitor asked for.
            if let Ok(original) = HeaderValue::from_str(&request.host) {
                request.headers.insert("x-forwarded-host", original);
            }
            request.host.clone_from(host);
        }
        if self.disable_chunked_encoding && request.body.length() == Length::Unknown {
            request.body = Body::full(collect(request.body, BUFFERED_BODY_BYTES_MAX).await?);
        }
        let name = self.verified_name(&request.host);
        let mut response = self.exchange(request, name.as_deref()).await?;
        if response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            headers::remove_hop_by_hop(&mut response.headers);
        }
        Ok(response)
    }

    /// Closes connections idle for too long.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    /// Idle connections now.
    pub fn idle_connections(&self) -> usize {
        self.pool.idle_connections()
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

    async fn exchange(&self, mut request: Request, name: Option<&str>) -> Result<Response, ForwardError> {
        if let Some(h2) = &self.h2
            && request.upgrade.is_none()
            && let Some(sender) = h2.ready().await
        {
            let again = request.body.is_empty().then(|| copy_of(&request));
            match (h2.send(sender, request, self.connector.tls.is_some()).await, again) {
                (Err(error), Some(copy)) if error.is_unprocessed() || is_idempotent(&copy.method) => {
                    request = copy
                }
                (result, _) => return Ok(result?),
            }
        }
        if let Some(connection) = self.pool.take(name) {
            let replayable = request.body.is_empty() && is_idempotent(&request.method);
            let body = std::mem::replace(&mut request.body, Body::empty());
            match self.over_h1(connection, outgoing(&request), body, name).await {
                Err(ExchangeError::Closed(_)) if replayable => {}
                result => return Ok(result?),
            }
        }
        let io = self.connector.connect(name).await?;
        if let Some(h2) = &self.h2
            && io.alpn() == Some(b"h2")
        {
            let sender = h2.start(io).await?;
            return Ok(h2.send(sender, request, true).await?);
        }
        let body = std::mem::replace(&mut request.body, Body::empty());
        Ok(self.over_h1(OriginConnection::new(io), outgoing(&request), body, name).await?)
    }

    async fn over_h1(
        &self,
        connection: OriginConnection,
        outgoing: Outgoing<'_>,
        body: Body,
        name: Option<&str>,
    ) -> Result<Response, ExchangeError> {
        let home = self.pool.home(name.map(Arc::from));
        connection.send(&outgoing, body, &self.limits, home).await
    }
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

/// A request without content once more, for a second attempt.
fn copy_of(request: &Request) -> Request {
    Request {
        method: request.method.clone(),
        uri: request.uri.clone(),
        version: request.version,
        host: request.host.clone(),
        headers: request.headers.clone(),
        body: Body::empty(),
        upgrade: None,
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
/// An origin that takes no byte of an upload for this long is given up.
const WRITE_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Content collected for `disableChunkedEncoding`, per request; larger uploads are refused with 413.
const BUFFERED_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
