//! Challenges that wait for the CA's look: tokens of http-01, certificates of tls-alpn-01.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::error::AcmeError;
use crate::metrics::Metrics;

/// The answers to all challenges of this process; shared by every generation of the configuration.
#[derive(Debug)]
pub struct Challenges {
    pending: Mutex<Pending>,
    metrics: Metrics,
}

#[derive(Default)]
struct Pending {
    /// Token → key authorization.
    http: HashMap<String, String>,
    /// Server name → a configuration that does nothing but show the challenge's certificate.
    tls: HashMap<String, Arc<ServerConfig>>,
}

/// Takes an answer away when the order is done with it, however it ends.
#[derive(Debug)]
pub(crate) struct Presented {
    challenges: Arc<Challenges>,
    key: Key,
}

#[derive(Debug)]
enum Key {
    Http(String),
    Tls(String),
}

impl Challenges {
    /// None pending.
    pub fn new(metrics: Metrics) -> Self {
        Self { pending: Mutex::default(), metrics }
    }

    /// The content for `/.well-known/acme-challenge/<token>` if that token is pending (RFC 8555 §8.3).
    pub fn http_answer(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(HTTP_PATH)?;
        let answer = self.lock().http.get(token).cloned()?;
        self.metrics.answered("http-01");
        Some(answer)
    }

    /// Whether that path belongs to a token that is pending.
    pub fn has_http_answer(&self, path: &str) -> bool {
        path.strip_prefix(HTTP_PATH).is_some_and(|token| self.lock().http.contains_key(token))
    }

    /// The TLS settings for an `acme-tls/1` handshake with that name, if its challenge is pending (RFC 8737).
    pub fn tls_answer(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
        let name = server_name.trim_end_matches('.').to_ascii_lowercase();
        let answer = self.lock().tls.get(&name).cloned()?;
        self.metrics.answered("tls-alpn-01");
        Some(answer)
    }

    pub(crate) fn present_http(
        self: &Arc<Self>,
        token: &str,
        authorization: &str,
    ) -> Result<Presented, AcmeError> {
        let mut pending = self.lock();
        self.make_room(&pending)?;
        pending.http.insert(token.to_owned(), authorization.to_owned());
        self.count(&pending);
        Ok(Presented { challenges: Arc::clone(self), key: Key::Http(token.to_owned()) })
    }

    pub(crate) fn present_tls(self: &Arc<Self>, name: &str, digest: &[u8]) -> Result<Presented, AcmeError> {
        let config = challenge_config(name, digest).map_err(AcmeError::Key)?;
        let mut pending = self.lock();
        self.make_room(&pending)?;
        pending.tls.insert(name.to_owned(), config);
        self.count(&pending);
        Ok(Presented { challenges: Arc::clone(self), key: Key::Tls(name.to_owned()) })
    }

    fn make_room(&self, pending: &Pending) -> Result<(), AcmeError> {
        match pending.http.len() + pending.tls.len() < PENDING_MAX {
            true => Ok(()),
            false => Err(AcmeError::TooManyChallenges),
        }
    }

    fn count(&self, pending: &Pending) {
        self.metrics.pending(pending.http.len() + pending.tls.len());
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presented {
    fn drop(&mut self) {
        let mut pending = self.challenges.lock();
        match &self.key {
            Key::Http(token) => drop(pending.http.remove(token)),
            Key::Tls(name) => drop(pending.tls.remove(name)),
        }
        self.challenges.count(&pending);
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("http", &self.http.len()).field("tls", &self.tls.len()).finish()
    }
}

/// RFC 8737 §3: self-signed, the name as its only SAN, the digest in a critical extension, and no other protocol.
fn challenge_config(name: &str, digest: &[u8]) -> Result<Arc<ServerConfig>, String> {
    if digest.len() != DIGEST_BYTES {
        return Err("the challenge's digest is not SHA-256".to_owned());
    }
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| error.to_string())?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Not `with_single_cert`: that reads the certificate, whose critical extension means nothing to it.
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    let shown = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![ACME_TLS_1.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

const HTTP_PATH: &str = "/.well-known/acme-challenge/";
/// RFC 8737 §4.
const ACME_TLS_1: &[u8] = b"acme-tls/1";
const DIGEST_BYTES: usize = 32;
/// Ten certificates of 100 names at once; about 4 KiB each where a certificate is held, so 4 MiB.
const PENDING_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn challenges() -> Arc<Challenges> {
        Arc::new(Challenges::new(Metrics::new(&prometheus::Registry::new()).unwrap()))
    }

    #[test]
    fn an_answer_is_there_as_long_as_its_order_holds_it() {
        let challenges = challenges();
        let path = "/.well-known/acme-challenge/tok";
        let presented = challenges.present_http("tok", "tok.thumb").unwrap();
        assert_eq!(challenges.http_answer(path).as_deref(), Some("tok.thumb"));
        assert!(
            !challenges.has_http_answer("/.well-known/acme-challenge/other")
                && challenges.http_answer("/tok").is_none()
        );
        drop(presented);
        assert!(!challenges.has_http_answer(path));
        let presented = challenges.present_tls("a.test", &[7; 32]).unwrap();
        let config = challenges.tls_answer("A.test").unwrap();
        assert_eq!(config.alpn_protocols, [ACME_TLS_1]);
        assert!(challenges.tls_answer("b.test").is_none());
        drop(presented);
        assert!(challenges.tls_answer("a.test").is_none());
    }

    #[test]
    fn too_many_at_once_are_refused() {
        let challenges = challenges();
        let held: Vec<_> =
            (0..PENDING_MAX).map(|n| challenges.present_http(&n.to_string(), "x").unwrap()).collect();
        assert_eq!(challenges.present_http("more", "x").unwrap_err().reason(), "too_many_challenges");
        drop(held);
        assert!(challenges.present_http("more", "x").is_ok());
    }
}
