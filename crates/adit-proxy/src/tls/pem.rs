//! Certificates and keys as the configuration names them: a file, or PEM text in the configuration itself.

use std::path::Path;

use adit_config::dynamic::{CertificatePair, PemSource};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// All certificates of a source, in order; at least one.
///
/// # Errors
/// Why it cannot be used, in words that name the file and never its content.
pub fn certificates(source: &PemSource) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |why: String| format!("{}: {why}", name(source));
    let bytes = read(source)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| fail(format!("not PEM: {error}")))?;
    if chain.is_empty() { Err(fail("no certificate inside".to_owned())) } else { Ok(chain) }
}

/// The first private key of a source (PKCS #8, PKCS #1 or SEC 1).
///
/// # Errors
/// As [`certificates`].
pub fn private_key(source: &PemSource) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = read(source)?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| format!("{}: no private key: {error}", name(source)))
}

/// A chain and its key, checked to fit each other.
///
/// # Errors
/// As [`certificates`].
pub fn pair(pair: &CertificatePair) -> Result<CertifiedKey, String> {
    let chain = certificates(&pair.cert)?;
    let key = private_key(&pair.key)?;
    CertifiedKey::from_der(chain, key, &super::provider())
        .map_err(|error| format!("{} and {} do not fit: {error}", name(&pair.cert), name(&pair.key)))
}

/// What to call a source in messages.
pub fn name(source: &PemSource) -> String {
    match source {
        PemSource::File(path) => path.display().to_string(),
        PemSource::Inline(_) => "inline PEM".to_owned(),
    }
}

pub(crate) fn read(source: &PemSource) -> Result<Vec<u8>, String> {
    match source {
        PemSource::File(path) => read_file(path).map_err(|error| format!("{}: {error}", path.display())),
        PemSource::Inline(text) => Ok(text.expose().to_vec()),
    }
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let size = std::fs::metadata(path)?.len();
    if size > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("{size} bytes are too many for certificates or keys")));
    }
    std::fs::read(path)
}

/// The system's whole bundle of authorities has 250 KiB; anything far larger was named by mistake.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
