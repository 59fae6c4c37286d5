//! Certificates for visitors, trust for origins.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use thiserror::Error;

/// Why a certificate or key cannot be used.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// Not readable, or not PEM.
    #[error("cannot read {path}: {why}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key does not fit, or is of a kind we cannot sign with.
    #[error("{cert} and {key} do not work together: {why}")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        why: String,
    },
}

/// Why certificate authorities cannot be used.
#[derive(Debug, Error)]
pub enum TrustError {
    /// Not readable, or no certificate inside.
    #[error("cannot use {path}: {why}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// The certificates of all TLS entry points, chosen by server name and swapped whole on reload.
#[derive(Debug, Default)]
pub struct CertificateStore {
    current: ArcSwap<Certificates>,
}

/// One generation of certificates.
#[derive(Debug, Default)]
pub struct Certificates {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the part behind `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    /// For visitors without a server name, or with an unknown one: the first of the configuration.
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Reads pairs of files in the configuration's order; the first pair that names a host wins it.
    ///
    /// # Errors
    /// All files that cannot be used.
    pub fn read<'a>(
        pairs: impl IntoIterator<Item = (&'a Path, &'a Path)>,
    ) -> Result<Self, Vec<CertificateError>> {
        let mut certificates = Self::default();
        let mut errors = Vec::new();
        for (cert, key) in pairs {
            match read_pair(cert, key) {
                Ok((pair, names)) => certificates.add(&Arc::new(pair), names),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(certificates) } else { Err(errors) }
    }

    fn add(&mut self, pair: &Arc<CertifiedKey>, names: Vec<String>) {
        self.default.get_or_insert_with(|| Arc::clone(pair));
        for name in names {
            match name.strip_prefix("*.") {
                Some(suffix) => self.wildcard.entry(suffix.to_owned()).or_insert_with(|| Arc::clone(pair)),
                None => self.exact.entry(name).or_insert_with(|| Arc::clone(pair)),
            };
        }
    }

    fn choose(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let by_name = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let wildcard = || self.wildcard.get(name.split_once('.')?.1);
            self.exact.get(&name).or_else(wildcard).cloned()
        });
        by_name.or_else(|| self.default.clone())
    }
}

impl CertificateStore {
    /// Replaces all certificates; handshakes under way keep theirs.
    pub fn swap(&self, certificates: Certificates) {
        self.current.store(Arc::new(certificates));
    }

    /// The TLS settings of an entry point that uses this store.
    ///
    /// # Errors
    /// None with the compiled-in provider; kept for the provider's own checks.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load().choose(hello.server_name())
    }
}

/// TLS towards an origin.
///
/// # Errors
/// If the extra authorities cannot be read.
pub fn client_config(
    extra_roots: Option<&Path>,
    no_verify: bool,
    http2: bool,
) -> Result<Arc<ClientConfig>, TrustError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::Read { path: PathBuf::new(), why: error.to_string() })?;
    let mut config = if no_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerification { provider: provider() }))
            .with_no_client_auth()
    } else {
        builder.with_root_certificates(roots(extra_roots)?).with_no_client_auth()
    };
    config.alpn_protocols =
        if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    Ok(Arc::new(config))
}

/// The provider of every TLS session of this process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(extra: Option<&Path>) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "system certificate authority skipped");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = extra {
        let fail = |why: String| TrustError::Read { path: path.to_owned(), why };
        let mut added = 0;
        for cert in CertificateDer::pem_file_iter(path).map_err(|e| fail(e.to_string()))? {
            let cert = cert.map_err(|e| fail(e.to_string()))?;
            roots.add(cert).map_err(|e| fail(e.to_string()))?;
            added += 1;
        }
        if added == 0 {
            return Err(fail("no certificate inside".to_owned()));
        }
    }
    Ok(roots)
}

fn read_pair(cert: &Path, key: &Path) -> Result<(CertifiedKey, Vec<String>), CertificateError> {
    let read = |path: &Path, why: String| CertificateError::Read { path: path.to_owned(), why };
    let text = fs::read(cert).map_err(|e| read(cert, e.to_string()))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|e| read(cert, e.to_string()))?;
    let Some(leaf) = chain.first() else {
        return Err(read(cert, "no certificate inside".to_owned()));
    };
    let names = names_of(leaf).map_err(|why| read(cert, why))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| read(key, e.to_string()))?;
    let pair_error = |why: String| CertificateError::Pair { cert: cert.to_owned(), key: key.to_owned(), why };
    let pair = CertifiedKey::from_der(chain, private, &provider()).map_err(|e| pair_error(e.to_string()))?;
    Ok((pair, names))
}

fn names_of(leaf: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let parsed = webpki::EndEntityCert::try_from(leaf).map_err(|e| e.to_string())?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

/// `noTLSVerify`: encrypts, but to anyone.
#[derive(Debug)]
struct NoVerification {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
