//! Our own HTTP/1.1 client on the way to a CA.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use adit_acme::{Exchange, Transport};
use adit_config::CertificateResolver;
use adit_proxy::body::{Batch, Body};
use adit_proxy::connect::{Connector, Target};
use adit_proxy::h2::client::H2Options;
use adit_proxy::message::{AddressText, Request, Visitor};
use adit_proxy::origin::{Origin, OriginOptions, Protocol};
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};
use rustls::ClientConfig;

/// Connects anew for each request: an order has a dozen, weeks apart from the next.
#[derive(Debug)]
pub(super) struct CaTransport {
    tls: Arc<ClientConfig>,
    server_name: Option<String>,
}

impl CaTransport {
    /// # Errors
    /// If the authorities that vouch for the CA's server cannot be read.
    pub(super) fn new(resolver: &CertificateResolver) -> Result<Self, String> {
        let tls = adit_proxy::tls::client_config_for(&resolver.ca_certificates, resolver.ca_system_roots)?;
        Ok(Self { tls, server_name: resolver.ca_server_name.clone() })
    }

    fn origin(&self, uri: &Uri) -> Result<Origin, String> {
        if uri.scheme_str() != Some("https") {
            return Err(format!("the CA names {uri}, which is not an https address"));
        }
        let host = uri.host().ok_or("the CA names an address without a host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Origin::with(OriginOptions {
            connector: Connector {
                target: Target::Tcp { host, port: uri.port_u16().unwrap_or(443) },
                tls: Some(Arc::clone(&self.tls)),
                connect_timeout: CONNECT_TIMEOUT,
                tls_timeout: CONNECT_TIMEOUT,
                tcp_keep_alive: Duration::ZERO,
                no_happy_eyeballs: false,
            },
            protocol: Protocol::Http1,
            server_name: self.server_name.clone(),
            idle_max: 0,
            h2: H2Options::default(),
        }))
    }
}

impl Transport for CaTransport {
    fn send(&self, request: http::Request<Bytes>, bytes_max: usize) -> Exchange {
        let origin = self.origin(request.uri());
        Box::pin(async move { exchange(&origin?, request, bytes_max).await })
    }
}

async fn exchange(
    origin: &Origin,
    request: http::Request<Bytes>,
    bytes_max: usize,
) -> Result<http::Response<Bytes>, String> {
    let mut response = origin
        .send(message(request).ok_or("the CA names an address without a path")?)
        .await
        .map_err(|error| crate::ingress::chain(&error))?;
    let mut content = Vec::new();
    loop {
        let mut batch = Batch::new();
        let more =
            poll_fn(|cx| response.body.poll_chunks(cx, &mut batch)).await.map_err(|e| e.to_string())?;
        batch.iter().for_each(|chunk| content.extend_from_slice(chunk));
        if content.len() > bytes_max {
            return Err(format!("an answer of more than {bytes_max} bytes"));
        }
        if !more {
            break;
        }
    }
    let mut answer = http::Response::new(Bytes::from(content));
    (*answer.status_mut(), *answer.headers_mut()) = (response.status, response.headers.into_map());
    Ok(answer)
}

fn message(request: http::Request<Bytes>) -> Option<Request> {
    let (parts, content) = request.into_parts();
    let host = parts.uri.authority()?.as_str().to_owned();
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let unspecified = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    let mut headers = parts.headers;
    // RFC 8555 §6.1: the client says who it is, library and all.
    let library = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let agent = format!("adit/{} {library}", env!("CARGO_PKG_VERSION"));
    headers.insert(header::USER_AGENT, HeaderValue::from_str(agent.trim_end()).ok()?);
    Some(Request {
        body: if parts.method == Method::POST { Body::full(content) } else { Body::empty() },
        method: parts.method,
        uri: Uri::from(path),
        version: Version::HTTP_11,
        host,
        headers: headers.into(),
        upgrade: None,
        visitor: Arc::new(Visitor {
            remote: unspecified,
            local: unspecified,
            secure: true,
            tls: None,
            entry_point: "acme".into(),
            peer: None,
            address: AddressText::default(),
        }),
    })
}

/// For each of resolving with connecting, and the handshake; the whole exchange has `clientTimeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
