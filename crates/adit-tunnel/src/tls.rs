//! TLS towards and of the edge (tunnel-protocol.md §2.1; C1–C3).

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ParsedCertificate, VerifierBuilderError},
};
use thiserror::Error;

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The CA file cannot be read or holds no certificate.
    #[error("cannot use CA file {}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The CA given as text is broken or holds no certificate.
    #[error("cannot use the CA given as PEM text")]
    CaPem(#[source] io::Error),
    /// No root could be had from anywhere.
    #[error("no trusted root certificate")]
    Roots(#[from] VerifierBuilderError),
    /// TLS itself refuses the settings.
    #[error("TLS settings are refused")]
    Settings(#[from] rustls::Error),
}

/// Certificates trusted towards the edge.
pub(crate) fn edge_roots(ca: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let Some(path) = ca else {
        let mut roots = rustls_native_certs::load_native_certs().certs;
        // The file is part of the program; a broken entry would show in the test below.
        roots.extend(CertificateDer::pem_slice_iter(CLOUDFLARE_ROOTS).flatten());
        return Ok(roots);
    };
    let failed = |source: io::Error| TlsError::CaFile { path: path.to_owned(), source };
    let text = std::fs::read(path).map_err(failed)?;
    roots_in_pem(&text).map_err(failed)
}

/// Every certificate of a PEM text that is to be trusted: at least one, and none that cannot be.
pub(crate) fn roots_in_pem(text: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    let unusable = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let roots = roots.map_err(|error| unusable(error.to_string()))?;
    if roots.is_empty() {
        return Err(unusable("holds no certificate".to_owned()));
    }
    // What the store would skip later, it is asked for now.
    let mut store = RootCertStore::empty();
    for (at, root) in (1..).zip(&roots) {
        store.add(root.clone()).map_err(|error| unusable(format!("certificate {at}: {error}")))?;
    }
    Ok(roots)
}

/// The connector's side: no client certificate, no resumption, no early data.
pub(crate) fn client_config(
    roots: Vec<CertificateDer<'static>>,
    transport: TlsTransport,
    post_quantum: bool,
) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(provider(post_quantum));
    let versions = match transport {
        TlsTransport::Quic => QUIC_VERSIONS,
        TlsTransport::Tcp => TCP_VERSIONS,
    };
    let verifier = EdgeVerifier::new(roots, &provider)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    if transport == TlsTransport::Quic {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(config)
}

/// What TLS runs over; decides versions and ALPN (§2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsTransport {
    Quic,
    Tcp,
}

/// The edge's side over QUIC.
pub(crate) fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider(false)))
        .with_protocol_versions(QUIC_VERSIONS)?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connectors keep no session (§2.1), so tickets would only cost packets.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// AES-128-GCM first, as it is the cheapest where the CPU has AES; hybrid key exchange first.
fn provider(post_quantum: bool) -> CryptoProvider {
    use aws_lc_rs::{cipher_suite as suite, kx_group as group};
    let mut provider = aws_lc_rs::default_provider();
    let first = suite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|other| other.suite() != first.suite());
    provider.kx_groups = match post_quantum {
        true => vec![group::X25519MLKEM768],
        false => vec![group::X25519MLKEM768, group::SECP256R1],
    };
    provider
}

/// Usual verification, and besides: a leaf that is itself one of the given roots is trusted for the
/// names in it, as stock connectors trust a self-signed certificate given as `--cacert` (§2.1).
#[derive(Debug)]
struct EdgeVerifier {
    usual: Arc<WebPkiServerVerifier>,
    roots: Vec<CertificateDer<'static>>,
}

impl EdgeVerifier {
    fn new(roots: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let usual =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build()?;
        Ok(Self { usual, roots })
    }
}

impl ServerCertVerifier for EdgeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict =
            self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            Err(rustls::Error::InvalidCertificate(reason))
                if is_about_issuer(&reason) && self.roots.iter().any(|root| root == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Whether a certificate failed only for who signed it or for being a CA's own.
fn is_about_issuer(reason: &CertificateError) -> bool {
    matches!(reason, CertificateError::UnknownIssuer | CertificateError::Other(_))
}

/// ALPN of the tunnel over QUIC.
pub(crate) const ALPN: &[u8] = b"argotunnel";
/// Server name of the edge over QUIC.
pub(crate) const QUIC_SERVER_NAME: &str = "quic.cftunnel.com";
/// Server name of the edge over TCP.
pub(crate) const HTTP2_SERVER_NAME: &str = "h2.cftunnel.com";

const QUIC_VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
const TCP_VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// The three roots of Cloudflare's own (§2.1), valid to 2029: public certificates, byte for byte.
const CLOUDFLARE_ROOTS: &[u8] = include_bytes!("../roots/cloudflare.pem");

#[cfg(test)]
mod tests {
    use super::*;

    fn verify(roots: Vec<CertificateDer<'static>>, leaf: &CertificateDer<'_>, name: &str) -> bool {
        let verifier = EdgeVerifier::new(roots, &Arc::new(provider(false))).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(leaf, &[], &name, &[], UnixTime::now()).is_ok()
    }

    fn self_signed(ca: bool) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(vec![QUIC_SERVER_NAME.to_owned()]).unwrap();
        if ca {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().into()
    }

    #[test]
    fn the_built_in_roots_are_three_and_parse() {
        let roots: Vec<_> =
            CertificateDer::pem_slice_iter(CLOUDFLARE_ROOTS).collect::<Result<_, _>>().unwrap();
        let mut store = RootCertStore::empty();
        assert_eq!(store.add_parsable_certificates(roots), (3, 0));
    }

    #[test]
    fn a_self_signed_leaf_given_as_the_ca_is_trusted_for_its_name_only() {
        for ca in [false, true] {
            let leaf = self_signed(ca);
            assert!(verify(vec![leaf.clone()], &leaf, QUIC_SERVER_NAME), "{ca}");
            assert!(!verify(vec![leaf.clone()], &leaf, "other.example"), "{ca}");
            assert!(!verify(vec![self_signed(ca)], &leaf, QUIC_SERVER_NAME), "{ca}");
        }
    }

    #[test]
    fn a_ca_file_replaces_all_roots_and_must_hold_one() {
        let missing = edge_roots(Some(Path::new("does-not-exist.pem")));
        assert!(matches!(missing, Err(TlsError::CaFile { .. })));
    }
}
