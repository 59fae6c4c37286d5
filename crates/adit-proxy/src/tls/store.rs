//! The certificates shown to visitors, chosen by server name (ingress-features.md §5).
//!
//! Names are hashed: an exact name first, then the same name with its first label replaced by `*`. Everything is swapped
//! whole, so that a renewed certificate needs neither a restart nor a new connection from anybody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use adit_config::Secret;
use adit_config::dynamic::{CertificatePair, PemSource, TlsDynamic};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::pem;

/// Why a certificate or key cannot be used.
#[derive(Debug, Error)]
#[error("certificate {subject}: {reason}")]
pub struct CertificateError {
    /// Which one, by its file.
    pub subject: String,
    /// Why not; never the content of a key.
    pub reason: String,
}

/// The certificates of all TLS entry points.
#[derive(Debug, Default)]
pub struct CertificateStore {
    current: ArcSwap<Certificates>,
    /// What `current` is made of.
    parts: Mutex<Parts>,
}

/// Changed by two hands: a reload and whoever obtains certificates.
#[derive(Debug, Default)]
struct Parts {
    configured: Certificates,
    obtained: Vec<Arc<LoadedCertificate>>,
}

/// One generation of certificates.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    loaded: Vec<Arc<LoadedCertificate>>,
    exact: HashMap<String, Arc<LoadedCertificate>>,
    /// By the part behind `*.`.
    wildcard: HashMap<String, Arc<LoadedCertificate>>,
    /// For visitors that name nobody and connected to one of these addresses.
    address: HashMap<IpAddr, Arc<LoadedCertificate>>,
    /// Where no name matches.
    default: Option<Arc<LoadedCertificate>>,
    /// A name of the certificate to obtain as the default, where none is configured.
    generated: Option<String>,
    /// What is shown where not even a default is configured.
    made: Option<Arc<LoadedCertificate>>,
}

/// A certificate in use.
#[derive(Debug)]
pub struct LoadedCertificate {
    source: CertificatePair,
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    not_after: i64,
}

impl LoadedCertificate {
    /// DNS names (SANs), lower case.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// End of validity in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// One that was obtained elsewhere (ACME).
    ///
    /// # Errors
    /// If chain and key do not fit.
    pub fn obtained(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, String> {
        let key =
            CertifiedKey::from_der(chain, key, &super::provider()).map_err(|error| error.to_string())?;
        Self::from_key(no_source(), key)
    }

    /// Where it was read.
    pub fn source(&self) -> String {
        pem::name(&self.source.cert)
    }

    /// Chain and signing key.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    fn load(source: &CertificatePair) -> Result<Self, String> {
        Self::from_key(source.clone(), pem::pair(source)?)
    }

    fn from_key(source: CertificatePair, key: CertifiedKey) -> Result<Self, String> {
        let leaf = key.end_entity_cert().map_err(|error| error.to_string())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|error| format!("{}: {error}", pem::name(&source.cert)))?;
        let mut names = Vec::new();
        let mut addresses = Vec::new();
        if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
            for name in &alternatives.value.general_names {
                match name {
                    x509_parser::extensions::GeneralName::DNSName(name) => {
                        names.push(name.to_ascii_lowercase())
                    }
                    x509_parser::extensions::GeneralName::IPAddress(bytes) => addresses.extend(ip_of(bytes)),
                    _ => {}
                }
            }
        }
        let not_after = parsed.validity().not_after.timestamp();
        Ok(Self { source, names, addresses, not_after, key: Arc::new(key) })
    }
}

impl Certificates {
    /// Reads what the dynamic configuration names. A pair that cannot be used is left out alone; if `previous` had a
    /// good one from the same place (a half-written renewal), that one stays. A store without a default shows a
    /// certificate made here.
    pub fn compile(tls: &TlsDynamic, previous: Option<&Self>) -> (Self, Vec<CertificateError>) {
        let mut certificates = Self::default();
        let mut errors = Vec::new();
        for certificate in &tls.certificates {
            // Traefik reads `stores`, and uses none but `default`.
            if !certificate.stores.is_empty()
                && !certificate.stores.iter().any(|store| store == DEFAULT_STORE)
            {
                continue;
            }
            if let Some(loaded) = load_or_keep(&certificate.pair, previous, &mut errors) {
                certificates.add(&loaded);
            }
        }
        let default = tls.stores.get(DEFAULT_STORE).and_then(|store| store.default_certificate.as_ref());
        certificates.default = default.and_then(|pair| load_or_keep(pair, previous, &mut errors));
        let generated = tls.stores.get(DEFAULT_STORE).and_then(|store| store.default_generated_cert.as_ref());
        certificates.generated = generated.map(|generated| generated.domain.main.to_ascii_lowercase());
        certificates.made = previous.and_then(|previous| previous.made.clone()).or_else(|| {
            let made = make_default();
            if let Err(reason) = &made {
                errors.push(CertificateError { subject: "made at start".to_owned(), reason: reason.clone() });
            }
            made.ok()
        });
        (certificates, errors)
    }

    /// Reads pairs of files in order; the first pair is the default, the first that names a host wins it.
    ///
    /// # Errors
    /// All files that cannot be used.
    pub fn read<'a>(
        pairs: impl IntoIterator<Item = (&'a Path, &'a Path)>,
    ) -> Result<Self, Vec<CertificateError>> {
        let mut certificates = Self::default();
        let mut errors = Vec::new();
        for (cert, key) in pairs {
            let file = |path: &Path| PemSource::File(path.to_owned());
            let pair = CertificatePair { cert: file(cert), key: file(key) };
            if let Some(loaded) = load_or_keep(&pair, None, &mut errors) {
                certificates.default.get_or_insert_with(|| Arc::clone(&loaded));
                certificates.add(&loaded);
            }
        }
        if errors.is_empty() { Ok(certificates) } else { Err(errors) }
    }

    /// All in use, for expiry metrics and the API.
    pub fn loaded(&self) -> impl Iterator<Item = &LoadedCertificate> {
        self.loaded.iter().chain(&self.default).map(AsRef::as_ref)
    }

    /// Whether a visitor that asks for `name` sees a certificate for it.
    pub fn covers(&self, name: &str) -> bool {
        self.by_name(name).is_some()
    }

    fn add(&mut self, loaded: &Arc<LoadedCertificate>) {
        self.loaded.push(Arc::clone(loaded));
        for name in &loaded.names {
            let (map, key) = match name.strip_prefix("*.") {
                Some(suffix) => (&mut self.wildcard, suffix),
                None => (&mut self.exact, name.as_str()),
            };
            map.entry(key.to_owned()).or_insert_with(|| Arc::clone(loaded));
        }
        for address in &loaded.addresses {
            self.address.entry(*address).or_insert_with(|| Arc::clone(loaded));
        }
    }

    fn by_name(&self, name: &str) -> Option<&Arc<LoadedCertificate>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.exact.get(&name).or_else(|| self.wildcard.get(name.split_once('.')?.1))
    }

    /// By name, by local address, or the default unless `strict`.
    fn choose(&self, name: Option<&str>, local: Option<IpAddr>, strict: bool) -> Option<Arc<CertifiedKey>> {
        let matching = match name {
            Some(name) => self.by_name(name),
            None => local.and_then(|local| self.address.get(&local.to_canonical())),
        };
        let default = || self.default.as_ref().or(self.made.as_ref()).filter(|_| !strict);
        matching.or_else(default).map(|loaded| Arc::clone(&loaded.key))
    }
}

impl CertificateStore {
    /// Replaces all configured certificates; handshakes under way keep theirs.
    pub fn swap(&self, certificates: Certificates) {
        self.change(|parts| parts.configured = certificates);
    }

    /// Replaces all certificates that were obtained elsewhere (ACME): each serves its names unless a configured one does.
    pub fn swap_obtained(&self, obtained: Vec<LoadedCertificate>) {
        self.change(|parts| parts.obtained = obtained.into_iter().map(Arc::new).collect());
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut parts);
        let mut all = parts.configured.clone();
        parts.obtained.iter().for_each(|loaded| all.add(loaded));
        if all.default.is_none()
            && let Some(name) = &all.generated
        {
            let is_it = |loaded: &&Arc<LoadedCertificate>| loaded.names.contains(name);
            all.default = parts.obtained.iter().find(is_it).map(Arc::clone);
        }
        // Under the lock, or an older state could overtake a newer one.
        self.current.store(Arc::new(all));
    }

    /// The TLS settings of an entry point that uses this store and no other option.
    ///
    /// # Errors
    /// None with the compiled-in provider; kept for the provider's own checks.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        super::options::server_config(self)
    }

    /// Whether a configured certificate stands for `name`, so that none has to be obtained.
    pub fn is_configured(&self, name: &str) -> bool {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).configured.covers(name)
    }

    /// The generation in force.
    pub fn load(&self) -> Arc<Certificates> {
        self.current.load_full()
    }

    /// True if a certificate names this address, so that visitors who name nobody can get it.
    pub(crate) fn has_address(&self, local: IpAddr) -> bool {
        self.current.load().address.contains_key(&local.to_canonical())
    }
}

/// Chooses for the sessions of one set of TLS options.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) store: Arc<CertificateStore>,
    /// Refuse visitors for whose name there is no certificate (`sniStrict`).
    pub(crate) strict: bool,
    /// The address that the visitor connected to, where the choice depends on it.
    pub(crate) local: Option<IpAddr>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.store.current.load().choose(hello.server_name(), self.local, self.strict)
    }
}

fn load_or_keep(
    pair: &CertificatePair,
    previous: Option<&Certificates>,
    errors: &mut Vec<CertificateError>,
) -> Option<Arc<LoadedCertificate>> {
    match LoadedCertificate::load(pair) {
        Ok(loaded) => Some(Arc::new(loaded)),
        Err(reason) => {
            errors.push(CertificateError { subject: pem::name(&pair.cert), reason });
            let previous = previous?;
            previous.loaded.iter().chain(&previous.default).find(|loaded| loaded.source == *pair).cloned()
        }
    }
}

/// A self-signed certificate under a name that nobody can own: visitors see at once that it is none of theirs.
fn make_default() -> Result<Arc<LoadedCertificate>, String> {
    let mut params =
        rcgen::CertificateParams::new(vec![DEFAULT_NAME.to_owned()]).map_err(|e| e.to_string())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "ADIT DEFAULT CERT");
    let key = rcgen::KeyPair::generate().map_err(|e| e.to_string())?;
    let cert = params.self_signed(&key).map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(str::to_owned)?;
    let key = CertifiedKey::from_der(vec![cert.der().clone()], key, &super::provider())
        .map_err(|e| e.to_string())?;
    LoadedCertificate::from_key(no_source(), key).map(Arc::new)
}

fn no_source() -> CertificatePair {
    let none = || PemSource::Inline(Secret::new(Vec::new()));
    CertificatePair { cert: none(), key: none() }
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

const DEFAULT_STORE: &str = "default";
const DEFAULT_NAME: &str = "default-certificate.adit.invalid";

#[cfg(test)]
mod tests {
    use adit_config::dynamic::{TlsCertificate, TlsStore};

    use super::*;

    fn pair(names: &[&str]) -> CertificatePair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let inline = |text: String| PemSource::Inline(Secret::new(text.into_bytes()));
        CertificatePair { cert: inline(made.cert.pem()), key: inline(made.signing_key.serialize_pem()) }
    }

    fn dynamic(pairs: &[CertificatePair]) -> TlsDynamic {
        let certificate = |pair: &CertificatePair| TlsCertificate { pair: pair.clone(), stores: Vec::new() };
        TlsDynamic { certificates: pairs.iter().map(certificate).collect(), ..TlsDynamic::default() }
    }

    fn names_shown(certificates: &Certificates, name: Option<&str>, strict: bool) -> Option<Vec<String>> {
        let local = Some("192.0.2.7".parse().unwrap());
        let key = certificates.choose(name, local, strict)?;
        let all = certificates.loaded().chain(certificates.made.as_deref());
        all.into_iter().find(|loaded| Arc::ptr_eq(&loaded.key, &key)).map(|loaded| loaded.names.clone())
    }

    #[test]
    fn exact_names_go_before_one_label_wildcards_and_then_the_default() {
        let (certificates, errors) = Certificates::compile(
            &dynamic(&[pair(&["*.example.com"]), pair(&["app.example.com", "192.0.2.7"])]),
            None,
        );
        assert!(errors.is_empty());
        let shown = |name| names_shown(&certificates, name, false).unwrap()[0].clone();
        assert_eq!(shown(Some("app.example.com")), "app.example.com");
        assert_eq!(shown(Some("APP.Example.com")), "app.example.com");
        assert_eq!(shown(Some("b.example.com")), "*.example.com");
        assert_eq!(shown(Some("a.b.example.com")), DEFAULT_NAME);
        assert_eq!(shown(Some("example.com")), DEFAULT_NAME);
        assert_eq!(shown(None), "app.example.com", "by local address");
        assert_eq!(names_shown(&certificates, Some("zzz.test"), true), None, "sniStrict");
    }

    #[test]
    fn the_first_pair_that_names_a_host_wins_it() {
        let (first, second) = (pair(&["a.test"]), pair(&["a.test", "b.test"]));
        let (certificates, _) = Certificates::compile(&dynamic(&[first, second]), None);
        assert_eq!(names_shown(&certificates, Some("a.test"), false).unwrap().len(), 1);
        assert_eq!(names_shown(&certificates, Some("b.test"), false).unwrap().len(), 2);
    }

    #[test]
    fn a_bad_pair_is_left_out_alone_and_named() {
        let mut bad = pair(&["a.test"]);
        bad.key = pair(&["x.test"]).key;
        let (certificates, errors) = Certificates::compile(&dynamic(&[bad, pair(&["b.test"])]), None);
        assert_eq!(errors.len(), 1);
        assert!(certificates.covers("b.test") && !certificates.covers("a.test"));
    }

    #[test]
    fn a_half_written_renewal_keeps_the_old_pair() {
        let dir = std::env::temp_dir().join(format!("adit-store-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (cert, key) = (dir.join("a.crt"), dir.join("a.key"));
        let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let tls =
            dynamic(&[CertificatePair { cert: PemSource::File(cert.clone()), key: PemSource::File(key) }]);
        let (old, errors) = Certificates::compile(&tls, None);
        assert!(errors.is_empty());
        std::fs::write(&cert, "half").unwrap();
        let (new, errors) = Certificates::compile(&tls, Some(&old));
        assert_eq!(errors.len(), 1);
        assert!(new.covers("a.test"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn obtained_certificates_outlive_a_reload_and_yield_to_configured_ones() {
        let store = CertificateStore::default();
        let obtained = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            LoadedCertificate::obtained(vec![made.cert.der().clone()], key).unwrap()
        };
        store.swap_obtained(vec![obtained("a.test"), obtained("b.test")]);
        let (configured, _) = Certificates::compile(&dynamic(&[pair(&["b.test", "c.test"])]), None);
        store.swap(configured);
        let names = |name| names_shown(&store.load(), Some(name), true).map(|names| names.len());
        assert_eq!((names("a.test"), names("b.test"), names("c.test")), (Some(1), Some(2), Some(2)));
        assert!(store.is_configured("b.test") && !store.is_configured("a.test"));
        store.swap_obtained(Vec::new());
        assert_eq!((names("a.test"), names("b.test")), (None, Some(2)));
        let domain = adit_config::dynamic::Domain { main: "D.test".to_owned(), sans: Vec::new() };
        let generated = adit_config::dynamic::DefaultGeneratedCert { resolver: "le".to_owned(), domain };
        let default = TlsStore { default_generated_cert: Some(generated), ..TlsStore::default() };
        let tls = TlsDynamic { stores: [("default".to_owned(), default)].into(), ..TlsDynamic::default() };
        store.swap(Certificates::compile(&tls, None).0);
        store.swap_obtained(vec![obtained("d.test")]);
        assert_eq!(names_shown(&store.load(), Some("zzz.test"), false).unwrap(), ["d.test"]);
    }

    #[test]
    fn a_configured_default_takes_the_place_of_the_made_one() {
        let store = TlsStore { default_certificate: Some(pair(&["d.test"])), ..TlsStore::default() };
        let tls = TlsDynamic { stores: [("default".to_owned(), store)].into(), ..TlsDynamic::default() };
        let (certificates, _) = Certificates::compile(&tls, None);
        assert_eq!(names_shown(&certificates, Some("zzz.test"), false).unwrap(), ["d.test"]);
    }
}
