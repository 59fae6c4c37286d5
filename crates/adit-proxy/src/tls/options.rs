//! Sets of TLS options (`tls.options`), each compiled to one rustls configuration.
//!
//! rustls speaks TLS 1.2 and 1.3 with forward secrecy and authenticated encryption only. What Go would also do is refused
//! here by name: a set that asks for nothing else is at fault, one that also asks for it gets a warning.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adit_config::dynamic::{ClientAuthType, TlsOptions, TlsVersion};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion, version};

use super::client_auth::UncheckedClientCertificate;
use super::pem;
use super::store::{CertificateStore, Resolver};

/// All sets by name; one named `default` is always there.
#[derive(Debug)]
pub struct TlsOptionSets {
    sets: BTreeMap<String, OptionSet>,
    store: Arc<CertificateStore>,
}

/// One set, compiled.
#[derive(Debug)]
struct OptionSet {
    options: TlsOptions,
    roots: Vec<CertificateDer<'static>>,
    outcome: Result<Compiled, String>,
    stamp: Stamp,
}

/// What a handshake asked of a visitor: two handshakes with one stamp asked for the same client certificates.
///
/// A set has another one than every other set, and another one after its client authentication has changed, so that
/// connections opened before do not pass for connections that were asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamp(u64);

impl Stamp {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a good set became.
#[derive(Clone, Debug)]
struct Compiled {
    server: Arc<ServerConfig>,
    warnings: Vec<String>,
}

impl TlsOptionSets {
    /// Compiles every set. One that has not changed since `previous` keeps its session tickets.
    pub fn compile(
        options: &BTreeMap<String, TlsOptions>,
        store: &Arc<CertificateStore>,
        previous: Option<&Self>,
    ) -> Self {
        let default = (DEFAULT_OPTIONS.to_owned(), TlsOptions::default());
        let has_default = options.contains_key(DEFAULT_OPTIONS);
        let all = options.clone().into_iter().chain((!has_default).then_some(default));
        let sets = all
            .map(|(name, options)| {
                let set = OptionSet::compile(options, store, previous.and_then(|p| p.sets.get(&name)));
                (name, set)
            })
            .collect();
        Self { sets, store: Arc::clone(store) }
    }

    /// The configuration of a set.
    ///
    /// # Errors
    /// Why there is none: no set of this name, or the set's fault. Routers that name it must not be served.
    pub fn find(&self, name: &str) -> Result<&Arc<ServerConfig>, String> {
        match self.sets.get(name).map(|set| &set.outcome) {
            Some(Ok(compiled)) => Ok(&compiled.server),
            Some(Err(reason)) => Err(format!("TLS options {name}: {reason}")),
            None => Err(format!("no TLS options named {name}")),
        }
    }

    /// The stamp of a set that can be used.
    pub fn stamp(&self, name: &str) -> Option<Stamp> {
        self.sets.get(name).filter(|set| set.outcome.is_ok()).map(|set| set.stamp)
    }

    /// All sets, with the stamp or the fault of each.
    pub fn stamps(&self) -> BTreeMap<String, Result<Stamp, String>> {
        let of = |set: &OptionSet| set.outcome.as_ref().map(|_| set.stamp).map_err(Clone::clone);
        self.sets.iter().map(|(name, set)| (name.clone(), of(set))).collect()
    }

    /// `config` for a visitor that names nobody: it sees the certificate of the address it connected to, if there is one.
    pub(crate) fn for_address(&self, config: &Arc<ServerConfig>, local: IpAddr) -> Arc<ServerConfig> {
        if !self.store.has_address(local) {
            return Arc::clone(config);
        }
        let mut config = ServerConfig::clone(config);
        let store = Arc::clone(&self.store);
        config.cert_resolver = Arc::new(Resolver { store, strict: true, local: Some(local) });
        Arc::new(config)
    }

    /// Names and reasons of sets at fault.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sets.iter().filter_map(|(name, set)| Some((name.as_str(), set.outcome.as_ref().err()?.as_str())))
    }

    /// Names of sets and what of them is not done.
    pub fn warnings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sets.iter().flat_map(|(name, set)| {
            let warnings = set.outcome.as_ref().map(|c| c.warnings.as_slice()).unwrap_or_default();
            warnings.iter().map(move |warning| (name.as_str(), warning.as_str()))
        })
    }
}

impl OptionSet {
    fn compile(options: TlsOptions, store: &Arc<CertificateStore>, previous: Option<&Self>) -> Self {
        let roots = match client_roots(&options) {
            Ok(roots) => roots,
            Err(reason) => {
                return Self { options, roots: Vec::new(), outcome: Err(reason), stamp: Stamp::next() };
            }
        };
        let same_question = previous.filter(|previous| {
            previous.outcome.is_ok()
                && previous.roots == roots
                && previous.options.client_auth == options.client_auth
        });
        let stamp = same_question.map_or_else(Stamp::next, |previous| previous.stamp);
        if let Some(previous) = previous
            && previous.outcome.is_ok()
            && previous.options == options
            && previous.roots == roots
        {
            return Self { outcome: previous.outcome.clone(), options, roots, stamp };
        }
        let outcome = compile(&options, &roots, store);
        Self { options, roots, outcome, stamp }
    }
}

/// A configuration with a store's certificates and every other setting at its default.
///
/// # Errors
/// None with the compiled-in provider; kept for the provider's own checks.
pub fn server_config(store: &Arc<CertificateStore>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let resolver = Resolver { store: Arc::clone(store), strict: false, local: None };
    let mut config = ServerConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn compile(
    options: &TlsOptions,
    roots: &[CertificateDer<'static>],
    store: &Arc<CertificateStore>,
) -> Result<Compiled, String> {
    if let Some(fault) = &options.fault {
        return Err(fault.clone());
    }
    let mut warnings = Vec::new();
    let versions = versions(options, &mut warnings)?;
    let provider = Arc::new(provider(options, &mut warnings)?);
    let verifier = verifier(options, roots, &provider)?;
    let resolver = Resolver { store: Arc::clone(store), strict: options.sni_strict, local: None };
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| format!("minVersion, maxVersion and cipherSuites leave nothing to speak: {error}"))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(resolver));
    server.alpn_protocols = options.alpn_protocols.iter().map(|name| name.clone().into_bytes()).collect();
    if options.disable_session_tickets {
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    } else {
        server.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| format!("session tickets: {error}"))?;
    }
    Ok(Compiled { server: Arc::new(server), warnings })
}

pub(crate) fn versions(
    options: &TlsOptions,
    warnings: &mut Vec<String>,
) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
    let min = options.version_min.unwrap_or(TlsVersion::V1_2);
    let max = options.version_max.unwrap_or(TlsVersion::V1_3);
    if max < TlsVersion::V1_2 {
        return Err(
            "TLS 1.0 and 1.1 are not spoken; maxVersion must be VersionTLS12 or VersionTLS13".to_owned()
        );
    }
    if min > max {
        return Err("minVersion is above maxVersion".to_owned());
    }
    if min < TlsVersion::V1_2 {
        warnings.push("TLS 1.0 and 1.1 are not spoken: minVersion counts as VersionTLS12".to_owned());
    }
    let all = [(TlsVersion::V1_3, &version::TLS13), (TlsVersion::V1_2, &version::TLS12)];
    Ok(all.into_iter().filter(|(v, _)| (min..=max).contains(v)).map(|(_, v)| v).collect())
}

fn provider(options: &TlsOptions, warnings: &mut Vec<String>) -> Result<CryptoProvider, String> {
    let mut provider = aws_lc_rs::default_provider();
    if !options.cipher_suites.is_empty() {
        provider.cipher_suites = cipher_suites(&options.cipher_suites, warnings)?;
    }
    if !options.curve_preferences.is_empty() {
        let groups: Result<Vec<_>, _> = options.curve_preferences.iter().map(|name| group(name)).collect();
        provider.kx_groups = groups?.into_iter().flatten().collect();
        if options.curve_preferences.iter().any(|name| matches!(group(name), Ok(None))) {
            warnings.push("CurveP521 is not offered".to_owned());
        }
        if provider.kx_groups.is_empty() {
            return Err("none of curvePreferences is offered".to_owned());
        }
    }
    Ok(provider)
}

/// The suites of TLS 1.2 that are named, in order, and all of TLS 1.3: as in Go, those cannot be chosen.
pub(crate) fn cipher_suites(
    names: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<SupportedCipherSuite>, String> {
    let is_tls13 = |suite: &SupportedCipherSuite| suite.tls13().is_some();
    let all = aws_lc_rs::ALL_CIPHER_SUITES;
    let mut suites: Vec<_> = all.iter().copied().filter(is_tls13).collect();
    for name in names {
        // Go has two names for these.
        let iana = match name.as_str() {
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            name => name,
        };
        let known = all.iter().copied().find(|suite| suite_name(suite.suite()) == iana);
        match known {
            Some(suite) if is_tls13(&suite) || suites.contains(&suite) => {}
            Some(suite) => suites.push(suite),
            None if WEAK_SUITES.contains(&iana) => {
                warnings.push(format!("cipher suite {name} is not offered: no forward secrecy or no AEAD"));
            }
            None => return Err(format!("unknown cipher suite {name}")),
        }
    }
    Ok(suites)
}

/// `Ok(None)`: known, and not offered.
fn group(name: &str) -> Result<Option<&'static dyn SupportedKxGroup>, String> {
    Ok(Some(match name {
        "X25519" | "x25519" => kx_group::X25519,
        "CurveP256" | "secp256r1" | "P-256" => kx_group::SECP256R1,
        "CurveP384" | "secp384r1" | "P-384" => kx_group::SECP384R1,
        "CurveP521" | "secp521r1" | "P-521" => return Ok(None),
        "X25519MLKEM768" => kx_group::X25519MLKEM768,
        "SecP256r1MLKEM768" => kx_group::SECP256R1MLKEM768,
        _ => return Err(format!("unknown curve {name}")),
    }))
}

fn client_roots(options: &TlsOptions) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut roots = Vec::new();
    for source in &options.client_auth.ca_files {
        roots.extend(pem::certificates(source)?);
    }
    Ok(roots)
}

fn verifier(
    options: &TlsOptions,
    roots: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let kind = options.client_auth.kind;
    let unchecked = |mandatory| {
        Arc::new(UncheckedClientCertificate { provider: Arc::clone(provider), mandatory })
            as Arc<dyn ClientCertVerifier>
    };
    match kind {
        ClientAuthType::None => return Ok(Arc::new(NoClientAuth)),
        ClientAuthType::Request => return Ok(unchecked(false)),
        ClientAuthType::RequireAny => return Ok(unchecked(true)),
        ClientAuthType::VerifyIfGiven | ClientAuthType::RequireAndVerify => {}
    }
    if roots.is_empty() {
        return Err("clientAuth checks certificates, but caFiles is empty".to_owned());
    }
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|error| format!("clientAuth.caFiles: {error}"))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    let builder =
        if kind == ClientAuthType::VerifyIfGiven { builder.allow_unauthenticated() } else { builder };
    builder.build().map(|verifier| verifier as Arc<dyn ClientCertVerifier>).map_err(|error| error.to_string())
}

/// The IANA name of a suite; empty for one that rustls does not know.
pub(crate) fn suite_name(suite: rustls::CipherSuite) -> &'static str {
    use rustls::CipherSuite as Suite;
    match suite {
        Suite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        Suite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        Suite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        suite => suite.as_str().unwrap_or_default(),
    }
}

/// The set of routers that name none.
pub const DEFAULT_OPTIONS: &str = "default";
/// Suites that Go knows and rustls, on purpose, does not.
const WEAK_SUITES: [&str; 15] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn set(options: TlsOptions) -> Result<(Arc<ServerConfig>, Vec<String>), String> {
        let store = Arc::new(CertificateStore::default());
        let sets = TlsOptionSets::compile(&[("x".to_owned(), options)].into(), &store, None);
        let warnings = sets.warnings().map(|(_, warning)| warning.to_owned()).collect();
        sets.find("x").map(|config| (Arc::clone(config), warnings))
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_default_set_is_always_there_and_unknown_names_are_refused() {
        let store = Arc::new(CertificateStore::default());
        let sets = TlsOptionSets::compile(&BTreeMap::new(), &store, None);
        assert_eq!(sets.find("default").unwrap().alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(sets.find("nope").unwrap_err().contains("nope"));
    }

    #[test]
    fn old_versions_are_refused_or_warned_about_by_name() {
        let at_most = |version| TlsOptions { version_max: Some(version), ..TlsOptions::default() };
        assert!(set(at_most(TlsVersion::V1_1)).unwrap_err().contains("TLS 1.0"));
        assert!(set(at_most(TlsVersion::V1_2)).unwrap().1.is_empty());
        let from = TlsOptions { version_min: Some(TlsVersion::V1_0), ..TlsOptions::default() };
        assert_eq!(set(from).unwrap().1.len(), 1);
        let none = TlsOptions { version_min: Some(TlsVersion::V1_3), ..at_most(TlsVersion::V1_2) };
        assert!(set(none).unwrap_err().contains("above"));
    }

    #[test]
    fn suites_of_tls12_are_chosen_by_gos_names() {
        let options = |suites: &[&str]| TlsOptions { cipher_suites: names(suites), ..TlsOptions::default() };
        let (config, warnings) =
            set(options(&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_RSA_WITH_AES_128_CBC_SHA"])).unwrap();
        let tls12: Vec<_> = config
            .crypto_provider()
            .cipher_suites
            .iter()
            .filter(|suite| suite.tls13().is_none())
            .map(|suite| suite_name(suite.suite()))
            .collect();
        assert_eq!(tls12, ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]);
        assert_eq!(warnings.len(), 1);
        assert!(set(options(&["TLS_NULL"])).unwrap_err().contains("TLS_NULL"));
        let only_weak =
            TlsOptions { version_max: Some(TlsVersion::V1_2), ..options(&["TLS_RSA_WITH_AES_128_CBC_SHA"]) };
        assert!(set(only_weak).is_err());
    }

    #[test]
    fn curves_keep_their_order_and_unknown_ones_are_refused() {
        let options =
            |curves: &[&str]| TlsOptions { curve_preferences: names(curves), ..TlsOptions::default() };
        let (config, _) = set(options(&["CurveP384", "X25519MLKEM768"])).unwrap();
        let groups: Vec<_> = config.crypto_provider().kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups, [rustls::NamedGroup::secp384r1, rustls::NamedGroup::X25519MLKEM768]);
        assert!(set(options(&["CurveP521"])).is_err());
        assert!(set(options(&["Curve25520"])).is_err());
    }

    #[test]
    fn checked_client_certificates_need_authorities() {
        let mut options = TlsOptions::default();
        options.client_auth.kind = ClientAuthType::RequireAndVerify;
        assert!(set(options.clone()).unwrap_err().contains("caFiles"));
        options.client_auth.kind = ClientAuthType::RequireAny;
        assert!(set(options).is_ok());
    }

    #[test]
    fn an_unchanged_set_keeps_its_configuration_over_a_reload() {
        let store = Arc::new(CertificateStore::default());
        let first = TlsOptionSets::compile(&BTreeMap::new(), &store, None);
        let second = TlsOptionSets::compile(&BTreeMap::new(), &store, Some(&first));
        assert!(Arc::ptr_eq(first.find("default").unwrap(), second.find("default").unwrap()));
    }
}
