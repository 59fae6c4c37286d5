//! Certificates for visitors, trust for origins.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use thiserror::Error;

mod client_auth;
pub mod hosts;
pub mod options;
pub mod pem;
pub mod store;

pub use store::{CertificateError, CertificateStore, Certificates, LoadedCertificate};

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

/// TLS towards a server that is trusted by `authorities`, or by the system's where there are none; `with_system` takes
/// both. HTTP/1.1 only.
///
/// # Errors
/// If the authorities cannot be read.
pub fn client_config_for(
    authorities: &[adit_config::dynamic::PemSource],
    with_system: bool,
) -> Result<Arc<ClientConfig>, String> {
    let mut trusted = match authorities.is_empty() || with_system {
        true => roots(None).map_err(|error| error.to_string())?,
        false => RootCertStore::empty(),
    };
    for source in authorities {
        for certificate in pem::certificates(source)? {
            trusted.add(certificate).map_err(|error| format!("{}: {error}", pem::name(source)))?;
        }
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
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
