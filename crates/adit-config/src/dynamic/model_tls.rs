//! Certificates, TLS options and stores.

use std::{collections::BTreeMap, path::PathBuf};

use crate::Secret;

/// Everything about TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsDynamic {
    /// Certificates chosen by server name.
    pub certificates: Vec<TlsCertificate>,
    /// Sets of options by name; `default` is used where none is named.
    pub options: BTreeMap<String, TlsOptions>,
    /// Stores by name; only `default` is used.
    pub stores: BTreeMap<String, TlsStore>,
}

/// PEM text, in a file or in the configuration itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PemSource {
    /// Path, relative to the working directory only if the configuration's own directory is unknown.
    File(PathBuf),
    /// The text.
    Inline(Secret),
}

/// A certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificatePair {
    /// Chain, leaf first.
    pub cert: PemSource,
    /// Private key.
    pub key: PemSource,
}

/// One certificate for visitors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsCertificate {
    /// Chain and key.
    pub pair: CertificatePair,
    /// Stores it is in; empty = `default`. Others than `default` are not used.
    pub stores: Vec<String>,
}

/// A set of TLS options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Lowest version; TLS 1.2 if absent.
    pub version_min: Option<TlsVersion>,
    /// Highest version.
    pub version_max: Option<TlsVersion>,
    /// Cipher suites of TLS 1.2 by Go's or IANA's names; empty = all that are safe.
    pub cipher_suites: Vec<String>,
    /// Key exchange groups in order, by Go's names (`X25519`, `CurveP256`, `X25519MLKEM768`, …); empty = our default.
    pub curve_preferences: Vec<String>,
    /// Client certificates.
    pub client_auth: ClientAuth,
    /// Whether a handshake without a matching certificate is refused.
    pub sni_strict: bool,
    /// ALPN protocols in order.
    pub alpn_protocols: Vec<String>,
    /// Whether no session tickets are given.
    pub disable_session_tickets: bool,
    /// Why it must not be used: routers that name it are disabled with this reason.
    pub fault: Option<String>,
}

/// Versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.0: known so that a file with it is read; never spoken.
    V1_0,
    /// TLS 1.1: known so that a file with it is read; never spoken.
    V1_1,
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Client certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientAuth {
    /// Roots of client certificates.
    pub ca_files: Vec<PemSource>,
    /// What is asked of clients. CA files alone mean [`ClientAuthType::RequireAndVerify`].
    pub kind: ClientAuthType,
}

/// What is asked of clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientAuthType {
    /// Nothing (`NoClientCert`).
    #[default]
    None,
    /// A certificate if they have one, not checked (`RequestClientCert`).
    Request,
    /// Any certificate, not checked (`RequireAnyClientCert`).
    RequireAny,
    /// A certificate if they have one, checked (`VerifyClientCertIfGiven`).
    VerifyIfGiven,
    /// A good certificate (`RequireAndVerifyClientCert`).
    RequireAndVerify,
}

/// A certificate store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsStore {
    /// Shown where no certificate matches; absent = made at start.
    pub default_certificate: Option<CertificatePair>,
    /// Default certificate got by a resolver.
    pub default_generated_cert: Option<DefaultGeneratedCert>,
}

/// A default certificate that a resolver gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefaultGeneratedCert {
    /// Name of the resolver.
    pub resolver: String,
    /// Names of the certificate.
    pub domain: super::Domain,
}

/// A name that a server's certificate must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerSan {
    /// DNS name.
    Dns(String),
    /// URI.
    Uri(String),
}

/// Version of PROXY protocol that we send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    /// One line of text.
    V1,
    /// Binary.
    #[default]
    V2,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            version_min: None,
            version_max: None,
            cipher_suites: Vec::new(),
            curve_preferences: Vec::new(),
            client_auth: ClientAuth::default(),
            sni_strict: false,
            alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
            disable_session_tickets: false,
            fault: None,
        }
    }
}
