//! Challenges that wait for the CA's look: tokens of http-01, certificates of tls-alpn-01.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::error::AcmeError;
use crate::metrics::Metrics;
use crate::shared::{Answers, Files, Written};

/// The answers to all challenges of this process; shared by every generation of the configuration.
#[derive(Debug)]
pub struct Challenges {
    pending: Mutex<Pending>,
    /// Those of processes that share a storage with this one, as they were seen last.
    others: Mutex<Vec<Arc<Answers>>>,
    /// Storages that are shared.
    storages: Mutex<Vec<PathBuf>>,
    /// Held by the one look at a time that is under way.
    files: Arc<tokio::sync::Mutex<Files>>,
    metrics: Metrics,
}

#[derive(Default)]
struct Pending {
    answers: Answers,
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
        Self {
            pending: Mutex::default(),
            others: Mutex::default(),
            storages: Mutex::default(),
            files: Arc::default(),
            metrics,
        }
    }

    /// The content for `/.well-known/acme-challenge/<token>` if that token is pending (RFC 8555 §8.3), here or in a process
    /// that shares a storage with this one.
    pub async fn http_answer(self: &Arc<Self>, path: &str) -> Option<String> {
        let answer = self.find_http(path).await?;
        self.metrics.answered("http-01");
        Some(answer)
    }

    /// Whether that path belongs to a token that is pending.
    pub async fn has_http_answer(self: &Arc<Self>, path: &str) -> bool {
        self.find_http(path).await.is_some()
    }

    async fn find_http(self: &Arc<Self>, path: &str) -> Option<String> {
        let token = path.strip_prefix(HTTP_PATH)?;
        let ours = self.lock().answers.http.get(token).cloned();
        if ours.is_some() {
            return ours;
        }
        self.look().await;
        self.of_others().iter().find_map(|answers| answers.http.get(token).cloned())
    }

    /// Looks at what other processes have pending, where they say so. A storage that hangs, as network file systems do,
    /// holds up one thread for blocking work, and whoever asks no longer than two seconds.
    pub async fn look(self: &Arc<Self>) {
        let storages = self.storages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if storages.is_empty() {
            return;
        }
        let looking = async {
            let mut files = Arc::clone(&self.files).lock_owned().await;
            let challenges = Arc::clone(self);
            let look = move || {
                files.set(storages);
                let answers = files.answers();
                *challenges.others.lock().unwrap_or_else(PoisonError::into_inner) = answers;
            };
            let _ = tokio::task::spawn_blocking(look).await;
        };
        if tokio::time::timeout(LOOK_TIMEOUT, looking).await.is_err() {
            tracing::warn!(reason = "storage_slow", "other processes' challenges are not seen");
        }
    }

    /// The TLS settings for an `acme-tls/1` handshake with that name, if its challenge is pending (RFC 8737) or was at the
    /// last [`Self::look`].
    pub fn tls_answer(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
        let name = server_name.trim_end_matches('.').to_ascii_lowercase();
        let ours = self.lock().tls.get(&name).cloned();
        let answer = ours.or_else(|| {
            let digest = self.of_others().iter().find_map(|answers| answers.tls.get(&name).cloned())?;
            challenge_config(&name, &digest).ok()
        })?;
        self.metrics.answered("tls-alpn-01");
        Some(answer)
    }

    /// Looks at what the processes with these storages are asked for, too.
    pub(crate) fn share_with(&self, storages: impl IntoIterator<Item = PathBuf>) {
        *self.storages.lock().unwrap_or_else(PoisonError::into_inner) = storages.into_iter().collect();
    }

    fn of_others(&self) -> Vec<Arc<Answers>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the other processes answer these as well, as long as the result is held.
    pub(crate) fn write(&self, presented: &[Presented], storage: &Path) -> Option<Written> {
        let mut answers = Answers::default();
        let pending = self.lock();
        for presented in presented {
            match &presented.key {
                Key::Http(token) => {
                    let known = pending.answers.http.get_key_value(token);
                    answers.http.extend(known.map(|(token, answer)| (token.clone(), answer.clone())));
                }
                Key::Tls(name) => {
                    let known = pending.answers.tls.get_key_value(name);
                    answers.tls.extend(known.map(|(name, digest)| (name.clone(), digest.clone())));
                }
            }
        }
        drop(pending);
        if answers == Answers::default() {
            return None;
        }
        let written = answers.write(storage);
        written.inspect_err(|error| tracing::warn!(%error, "only this process can answer challenges")).ok()
    }

    pub(crate) fn present_http(
        self: &Arc<Self>,
        token: &str,
        authorization: &str,
    ) -> Result<Presented, AcmeError> {
        let mut pending = self.lock();
        self.make_room(&pending)?;
        pending.answers.http.insert(token.to_owned(), authorization.to_owned());
        self.count(&pending);
        Ok(Presented { challenges: Arc::clone(self), key: Key::Http(token.to_owned()) })
    }

    pub(crate) fn present_tls(self: &Arc<Self>, name: &str, digest: &[u8]) -> Result<Presented, AcmeError> {
        let config = challenge_config(name, digest).map_err(AcmeError::Key)?;
        let mut pending = self.lock();
        self.make_room(&pending)?;
        pending.tls.insert(name.to_owned(), config);
        pending.answers.tls.insert(name.to_owned(), digest.to_vec());
        self.count(&pending);
        Ok(Presented { challenges: Arc::clone(self), key: Key::Tls(name.to_owned()) })
    }

    fn make_room(&self, pending: &Pending) -> Result<(), AcmeError> {
        match pending.answers.http.len() + pending.tls.len() < PENDING_MAX {
            true => Ok(()),
            false => Err(AcmeError::TooManyChallenges),
        }
    }

    fn count(&self, pending: &Pending) {
        self.metrics.pending(pending.answers.http.len() + pending.tls.len());
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presented {
    fn drop(&mut self) {
        let mut pending = self.challenges.lock();
        match &self.key {
            Key::Http(token) => drop(pending.answers.http.remove(token)),
            Key::Tls(name) => {
                pending.tls.remove(name);
                pending.answers.tls.remove(name);
            }
        }
        self.challenges.count(&pending);
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("http", &self.answers.http.len())
            .field("tls", &self.tls.len())
            .finish()
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
/// For the look at other processes' files. A CA that is told "no such token" asks again later.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn challenges() -> Arc<Challenges> {
        Arc::new(Challenges::new(Metrics::new(&prometheus::Registry::new()).unwrap()))
    }

    #[tokio::test]
    async fn an_answer_is_there_as_long_as_its_order_holds_it() {
        let challenges = challenges();
        let path = "/.well-known/acme-challenge/tok";
        let presented = challenges.present_http("tok", "tok.thumb").unwrap();
        assert_eq!(challenges.http_answer(path).await.as_deref(), Some("tok.thumb"));
        assert!(
            !challenges.has_http_answer("/.well-known/acme-challenge/other").await
                && challenges.http_answer("/tok").await.is_none()
        );
        drop(presented);
        assert!(!challenges.has_http_answer(path).await);
        let presented = challenges.present_tls("a.test", &[7; 32]).unwrap();
        let config = challenges.tls_answer("A.test").unwrap();
        assert_eq!(config.alpn_protocols, [ACME_TLS_1]);
        assert!(challenges.tls_answer("b.test").is_none());
        drop(presented);
        assert!(challenges.tls_answer("a.test").is_none());
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_storage_that_hangs_holds_up_neither_the_runtime_nor_who_asks() {
        let (ours, theirs) = (challenges(), challenges());
        let folder = std::env::temp_dir().join(format!("adit-hang-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let storage = folder.join("acme.json");
        ours.share_with([storage.clone()]);
        let presented = theirs.present_http("tok", "tok.thumb").unwrap();
        let written = theirs.write(&[presented], &storage).unwrap();
        let path = "/.well-known/acme-challenge/tok";
        assert_eq!(ours.http_answer(path).await.as_deref(), Some("tok.thumb"));
        // As if a look were stuck in a system call: others find what was seen last, after a bounded wait.
        let stuck = Arc::clone(&ours.files).lock_owned().await;
        let begun = tokio::time::Instant::now();
        assert_eq!(ours.http_answer(path).await.as_deref(), Some("tok.thumb"));
        assert_eq!(begun.elapsed(), LOOK_TIMEOUT);
        drop((stuck, written));
        assert!(!ours.has_http_answer(path).await);
        std::fs::remove_dir_all(&folder).unwrap();
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
