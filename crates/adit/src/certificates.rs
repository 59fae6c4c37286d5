//! Keys and certificates made at start, for an edge that was given none.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use adit_config::{CertificateFiles, Config};
use adit_tunnel::EdgeCertificate;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

/// What the edge shows to connectors.
#[derive(Debug)]
pub(crate) struct EdgeIdentity {
    /// Chain and key.
    pub certificate: EdgeCertificate,
    /// PEM of the authority that connectors must trust; absent if the operator gave the certificate.
    pub ca_pem: Option<String>,
    /// Where that PEM was written.
    pub ca_path: Option<PathBuf>,
}

/// Why there is no identity.
#[derive(Debug, Error)]
pub(crate) enum IdentityError {
    /// A file that cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file without what it should hold.
    #[error("{path} does not hold {expected}: {why}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Making keys or certificates failed.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// Reads the configured certificate, or makes one under an authority that `state-dir` keeps.
///
/// # Errors
/// [`IdentityError`].
pub(crate) fn edge_identity(
    config: &Config,
    given: Option<&CertificateFiles>,
) -> Result<EdgeIdentity, IdentityError> {
    match given {
        Some(files) => Ok(EdgeIdentity { certificate: read(files)?, ca_pem: None, ca_path: None }),
        None => make(config.state_dir.as_deref()),
    }
}

fn read(files: &CertificateFiles) -> Result<EdgeCertificate, IdentityError> {
    let content =
        |path: &Path, expected, why: String| IdentityError::Content { path: path.to_owned(), expected, why };
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.cert).and_then(Iterator::collect).map_err(
        |e: rustls::pki_types::pem::Error| content(&files.cert, "a certificate chain in PEM", e.to_string()),
    )?;
    if chain.is_empty() {
        return Err(content(&files.cert, "a certificate chain in PEM", "no certificate inside".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|e| content(&files.key, "a private key in PEM", e.to_string()))?;
    Ok(EdgeCertificate { chain, key })
}

fn make(state_dir: Option<&Path>) -> Result<EdgeIdentity, IdentityError> {
    let (ca_key, ca_pem, ca_path) = authority(state_dir)?;
    let issuer = Issuer::new(authority_params()?, &ca_key);
    let names = TUNNEL_NAMES.map(str::to_owned);
    let mut leaf = CertificateParams::new(names)?;
    leaf.distinguished_name.push(DnType::CommonName, "adit edge");
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let signed = leaf.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| IdentityError::Content {
        path: PathBuf::new(),
        expected: "a private key",
        why: why.to_owned(),
    })?;
    let certificate = EdgeCertificate { chain: vec![signed.der().clone()], key };
    Ok(EdgeIdentity { certificate, ca_pem: Some(ca_pem), ca_path })
}

/// The authority: kept in `state-dir` so that connectors' `ca` files outlive a restart, else made anew.
fn authority(state_dir: Option<&Path>) -> Result<(KeyPair, String, Option<PathBuf>), IdentityError> {
    let Some(dir) = state_dir else {
        let key = KeyPair::generate()?;
        let pem = authority_params()?.self_signed(&key)?.pem();
        return Ok((key, pem, None));
    };
    let file_error = |path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::File { path, source }
    };
    let (cert_path, key_path) = (dir.join("edge-ca.pem"), dir.join("edge-ca.key"));
    if cert_path.exists() && key_path.exists() {
        let pem = fs::read_to_string(&cert_path).map_err(file_error(&cert_path))?;
        let text = fs::read_to_string(&key_path).map_err(file_error(&key_path))?;
        let key = KeyPair::from_pem(&text).map_err(|e| IdentityError::Content {
            path: key_path,
            expected: "a private key in PEM",
            why: e.to_string(),
        })?;
        return Ok((key, pem, Some(cert_path)));
    }
    fs::create_dir_all(dir).map_err(file_error(dir))?;
    let key = KeyPair::generate()?;
    let pem = authority_params()?.self_signed(&key)?.pem();
    write_private(&key_path, key.serialize_pem().as_bytes()).map_err(file_error(&key_path))?;
    fs::write(&cert_path, &pem).map_err(file_error(&cert_path))?;
    Ok((key, pem, Some(cert_path)))
}

fn authority_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "adit edge authority");
    Ok(params)
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// The system's; an existing file is replaced.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    use io::Write;
    if path.exists() {
        fs::remove_file(path)?;
    }
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

/// The names that connectors verify (tunnel-protocol.md §2.1, §9).
const TUNNEL_NAMES: [&str; 3] = ["quic.cftunnel.com", "h2.cftunnel.com", "probe.cftunnel.com"];
