//! Keys of certificates and the requests made with them.

use adit_config::AcmeKeyType;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use crate::error::AcmeError;

/// A new key and the request for a certificate of `names` signed with it.
pub(crate) struct Request {
    pub(crate) key_pem: Zeroizing<String>,
    /// DER of the request.
    pub(crate) csr: Vec<u8>,
}

/// Makes both on a thread of its own: an RSA key takes seconds.
pub(crate) async fn request(names: &[String], kind: Option<AcmeKeyType>) -> Result<Request, AcmeError> {
    let names = names.to_vec();
    let made = tokio::task::spawn_blocking(move || make(names, kind)).await;
    made.map_err(|error| AcmeError::Key(error.to_string()))?.map_err(AcmeError::Key)
}

fn make(names: Vec<String>, kind: Option<AcmeKeyType>) -> Result<Request, String> {
    let key = generate(kind.unwrap_or(AcmeKeyType::Ec256))?;
    let mut params = CertificateParams::new(names).map_err(|error| error.to_string())?;
    // CAs take the names from the SANs; a common name would have to fit into 64 bytes.
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).map_err(|error| error.to_string())?;
    Ok(Request { key_pem: Zeroizing::new(key.serialize_pem()), csr: csr.der().to_vec() })
}

fn generate(kind: AcmeKeyType) -> Result<KeyPair, String> {
    let made = match kind {
        AcmeKeyType::Ec256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        AcmeKeyType::Ec384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        AcmeKeyType::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        AcmeKeyType::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        AcmeKeyType::Rsa8192 => return generate_rsa_8192(),
    };
    made.map_err(|error| error.to_string())
}

/// rcgen's sizes end at 4096 bits.
fn generate_rsa_8192() -> Result<KeyPair, String> {
    use aws_lc_rs::encoding::AsDer;
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa8192)
        .map_err(|_| "no RSA key of 8192 bits".to_owned())?;
    let der = pair.as_der().map_err(|_| "the RSA key cannot be written".to_owned())?;
    let der = PrivatePkcs8KeyDer::from(der.as_ref());
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_RSA_SHA256).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_key_signs_a_request() {
        for kind in [None, Some(AcmeKeyType::Ec384), Some(AcmeKeyType::Rsa2048)] {
            let request = make(vec!["a.test".to_owned()], kind).unwrap();
            assert!(request.key_pem.contains("PRIVATE KEY") && request.csr.len() > 100, "{kind:?}");
        }
    }
}
