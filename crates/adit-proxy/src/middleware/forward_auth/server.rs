//! The authentication server: its address, and one exchange with it.

use std::sync::Arc;
use std::time::Duration;

use adit_config::dynamic::{CertificatePair, ClientTls, ServersTransport};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri, Version};
use rustls::ClientConfig;
use tokio::time::timeout;

use super::super::peek::collect;
use crate::body::Body;
use crate::connect::{Connector, Target};
use crate::h2::client::H2Options;
use crate::message::{Request, Visitor};
use crate::origin::{Origin, OriginOptions, Protocol};
use crate::service::tls::{Material, client_config};

/// Where the question goes.
pub(super) struct Server {
    origin: Origin,
    pub(super) scheme: &'static str,
    pub(super) authority: String,
    /// Path and query.
    pub(super) target: Uri,
    /// From name and password in the address.
    authorization: Option<HeaderValue>,
}

/// What the server said, its content read.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) content: bytes::Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the authentication server did not answer in time")]
    Timeout,
    #[error("the authentication server gave no usable answer")]
    Forward(#[from] crate::origin::ForwardError),
    #[error("the authentication server's answer broke off")]
    Content(#[source] crate::body::BodyError),
    #[error("the authentication server's answer is too long")]
    TooLong,
}

impl Server {
    pub(super) fn new(address: &str, tls: Option<&ClientTls>) -> Result<Self, String> {
        let (scheme, rest) =
            address.split_once("://").ok_or_else(|| format!("address {address:?} is no URL"))?;
        let scheme = match scheme {
            "http" => "http",
            "https" => "https",
            _ => return Err(format!("address: {scheme:?} is neither http nor https")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, authority),
        };
        let target = target.split('#').next().unwrap_or_default();
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let options = OriginOptions {
            connector: connector(authority, scheme == "https", tls)?,
            protocol: if scheme == "https" { Protocol::Negotiated } else { Protocol::Http1 },
            server_name: None,
            idle_max: IDLE_CONNECTIONS_MAX,
            h2: H2Options {
                idle_timeout: IDLE_TIMEOUT,
                head_timeout: None,
                ping_after: None,
                ping_timeout: TIMEOUT,
            },
        };
        Ok(Self {
            origin: Origin::with(options),
            scheme,
            authority: authority.to_owned(),
            target: target.parse().map_err(|_| format!("address {address:?} is no URL"))?,
            authorization: user.and_then(authorization),
        })
    }

    /// Asks, and reads the whole answer; `visitor` is who the question is about.
    pub(super) async fn ask(
        &self,
        method: Method,
        mut headers: HeaderMap,
        body: Body,
        visitor: &Arc<Visitor>,
        content_bytes_max: u64,
    ) -> Result<Answer, AskError> {
        if let (Some(value), false) = (&self.authorization, headers.contains_key(header::AUTHORIZATION)) {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        let question = Request {
            method,
            uri: self.target.clone(),
            version: Version::HTTP_11,
            host: self.authority.clone(),
            headers: headers.into(),
            body,
            upgrade: None,
            visitor: Arc::clone(visitor),
        };
        let exchange = async {
            let response = self.origin.send(question).await?;
            let content = collect(response.body, content_bytes_max).await.map_err(|error| match error {
                crate::body::BodyError::TooLarge => AskError::TooLong,
                error => AskError::Content(error),
            })?;
            Ok(Answer { status: response.status, headers: response.headers.into_map(), content })
        };
        timeout(TIMEOUT, exchange).await.unwrap_or(Err(AskError::Timeout))
    }
}

fn connector(authority: &str, is_tls: bool, tls: Option<&ClientTls>) -> Result<Connector, String> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse().map_err(|_| format!("address: {port:?} is no port"))?)
        }
        _ => (authority, if is_tls { 443 } else { 80 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err("address has no host".to_owned());
    }
    Ok(Connector {
        target: Target::Tcp { host: host.to_owned(), port },
        tls: if is_tls { Some(tls_config(tls)?) } else { None },
        connect_timeout: TIMEOUT,
        tls_timeout: TIMEOUT,
        tcp_keep_alive: TCP_KEEP_ALIVE,
        no_happy_eyeballs: false,
    })
}

fn tls_config(tls: Option<&ClientTls>) -> Result<Arc<ClientConfig>, String> {
    let mut settings = ServersTransport::default();
    if let Some(tls) = tls {
        settings.insecure_skip_verify = tls.insecure_skip_verify;
        settings.root_cas.extend(tls.ca.clone());
        match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => {
                settings.certificates.push(CertificatePair { cert: cert.clone(), key: key.clone() });
            }
            (None, None) => {}
            _ => return Err("tls: cert and key go together".to_owned()),
        }
    }
    let material = Material::read(&settings)?;
    let mut config = client_config(&settings, &material)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn authorization(user: &str) -> Option<HeaderValue> {
    let decoded = super::super::go_url::unescape(user).ok()?;
    let decoded = if decoded.contains(&b':') { decoded } else { [decoded, b":".to_vec()].concat() };
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(decoded))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The whole question, connecting and the answer's content included; as long as Traefik gives it.
const TIMEOUT: Duration = Duration::from_secs(30);
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(30);
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Every request asks; a descriptor for each connection kept.
const IDLE_CONNECTIONS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let server = Server::new("http://u:p%20w@auth.test:9091/verify?rd=x#f", None).unwrap();
        assert_eq!((server.scheme, server.authority.as_str()), ("http", "auth.test:9091"));
        assert_eq!(server.target, "/verify?rd=x");
        assert_eq!(server.authorization.unwrap(), format!("Basic {}", STANDARD.encode("u:p w")));
        assert_eq!(Server::new("http://[::1]:80", None).unwrap().target, "/");
        assert_eq!(Server::new("http://a?b", None).unwrap().target, "/?b");
    }

    #[test]
    fn what_is_no_address_is_a_fault() {
        for address in ["", "auth.test/verify", "ftp://a", "http://", "http://a:b", "http://:80"] {
            assert!(Server::new(address, None).is_err(), "{address}");
        }
    }
}
