//! TLS towards servers, as a `serversTransport` asks for it.

use std::sync::{Arc, OnceLock};

use adit_config::dynamic::{PeerSan, ServersTransport, TlsOptions};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use crate::tls::{self, options, pem};

/// The files of a transport as they were read: two transports with the same settings and material are the same.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Material {
    roots: Vec<Vec<u8>>,
    /// Chain and key.
    certificates: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Material {
    /// Reads what the settings name.
    ///
    /// # Errors
    /// The file that cannot be read.
    pub(crate) fn read(settings: &ServersTransport) -> Result<Self, String> {
        let roots = settings.root_cas.iter().map(pem::read).collect::<Result<_, _>>()?;
        let certificates = settings
            .certificates
            .iter()
            .map(|pair| Ok((pem::read(&pair.cert)?, pem::read(&pair.key)?)))
            .collect::<Result<_, String>>()?;
        Ok(Self { roots, certificates })
    }
}

/// TLS settings; ALPN is the caller's to set.
///
/// # Errors
/// What cannot be used, in words for the operator.
pub(crate) fn client_config(
    settings: &ServersTransport,
    material: &Material,
) -> Result<ClientConfig, String> {
    let mut warnings = Vec::new();
    let mut provider = CryptoProvider::clone(&tls::provider());
    if !settings.cipher_suites.is_empty() {
        provider.cipher_suites = options::cipher_suites(&settings.cipher_suites, &mut warnings)?;
    }
    let provider = Arc::new(provider);
    let range = TlsOptions {
        version_min: settings.version_min,
        version_max: settings.version_max,
        ..TlsOptions::default()
    };
    let versions = options::versions(&range, &mut warnings)?;
    for warning in warnings {
        tracing::warn!(%warning, "TLS towards servers");
    }
    let verifier = OriginVerifier::new(settings, material, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    if material.certificates.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let pairs = material
        .certificates
        .iter()
        .map(|(cert, key)| client_certificate(cert, key).map_err(|why| format!("certificates: {why}")))
        .collect::<Result<_, _>>()?;
    Ok(builder.with_client_cert_resolver(Arc::new(ClientCertificates(pairs))))
}

fn client_certificate(cert: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("no private key: {error}"))?;
    CertifiedKey::from_der(certificates(cert)?, key, &tls::provider())
        .map(Arc::new)
        .map_err(|error| format!("chain and key do not fit: {error}"))
}

/// Client certificates; the first that can sign what the server accepts is shown.
#[derive(Debug)]
struct ClientCertificates(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientCertificates {
    fn resolve(&self, _authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|pair| pair.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// What is asked of a certificate's chain.
#[derive(Debug)]
enum Check {
    /// That it leads to a root.
    Chain(Arc<WebPkiServerVerifier>),
    /// That it leads to a root, and there is none, as on a machine without authorities.
    Impossible,
    /// Nothing.
    Skip,
}

/// Checks a server's certificate: against the roots unless told not to, and against the wanted SANs.
#[derive(Debug)]
struct OriginVerifier {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    /// Roots that were given: a server may show one of them itself, as self-signed certificates do.
    pinned: Vec<CertificateDer<'static>>,
    check: Check,
    sans: Vec<PeerSan>,
}

impl OriginVerifier {
    fn new(
        settings: &ServersTransport,
        material: &Material,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut pinned = Vec::new();
        for pem in &material.roots {
            pinned.extend(certificates(pem).map_err(|why| format!("rootCAs: {why}"))?);
        }
        let roots = if material.roots.is_empty() {
            system_roots()
        } else {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(pinned.iter().cloned());
            Arc::new(roots)
        };
        let check = if settings.insecure_skip_verify {
            Check::Skip
        } else if roots.is_empty() && material.roots.is_empty() {
            Check::Impossible
        } else {
            let builder =
                WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
            Check::Chain(builder.build().map_err(|error| format!("rootCAs: {error}"))?)
        };
        let mut sans = settings.peer_cert_sans.clone();
        sans.extend(settings.peer_cert_uri.clone().map(PeerSan::Uri));
        Ok(Self { provider: Arc::clone(provider), roots, pinned, check, sans })
    }

    /// A certificate that is one of the given roots needs no chain: its name and dates were checked already.
    fn accept_pinned(&self, leaf: &CertificateDer<'_>, name: &ServerName<'_>, error: &Error) -> bool {
        let is_authority = matches!(
            error,
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))
                if matches!(inner.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        );
        is_authority
            && self.pinned.iter().any(|root| root.as_ref() == leaf.as_ref())
            && webpki::EndEntityCert::try_from(leaf)
                .is_ok_and(|cert| cert.verify_is_valid_for_subject_name(name).is_ok())
    }

    fn check_sans(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.sans.is_empty() {
            return Ok(());
        }
        let cert = webpki::EndEntityCert::try_from(leaf)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let matches = |san: &PeerSan| match san {
            PeerSan::Uri(wanted) => cert.valid_uri_names().any(|uri| uri.eq_ignore_ascii_case(wanted)),
            PeerSan::Dns(wanted) => ServerName::try_from(wanted.as_str())
                .is_ok_and(|name| cert.verify_is_valid_for_subject_name(&name).is_ok()),
        };
        if self.sans.iter().any(matches) {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }
}

impl ServerCertVerifier for OriginVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.check {
            Check::Chain(webpki) => {
                match webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                    Err(error) if !self.accept_pinned(end_entity, server_name, &error) => return Err(error),
                    _ => {}
                }
            }
            Check::Impossible => return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
            // Wanted SANs mean nothing on a certificate that anybody could have made.
            Check::Skip if !self.sans.is_empty() => verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                &self.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?,
            Check::Skip => {}
        }
        self.check_sans(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("not PEM: {error}"))?;
    if chain.is_empty() { Err("no certificate inside".to_owned()) } else { Ok(chain) }
}

/// The machine's authorities, read once: reading some hundred files again for each transport and reload would be felt.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    Arc::clone(ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "system certificate authority skipped");
        }
        roots.add_parsable_certificates(native.certs);
        Arc::new(roots)
    }))
}
