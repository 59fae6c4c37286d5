//! Account and certificates on disk, in Traefik's `acme.json` with keys of our own beside it.
//!
//! ```json
//! { "<resolver>": {
//!     "Certificates": [ { "domain": { "main": "a.example", "sans": [ "b.example" ] },
//!                         "certificate": "<base64 of PEM>", "key": "<base64 of PEM>", "Store": "default",
//!                         "directory": "<the CA's URL>" } ],
//!     "adit": { "account": { "directory": "…", "email": "…", "credentials": { … } } } } }
//! ```
//! Whatever else stands in it (Traefik's `Account`, other resolvers) is kept. A change is written to a file beside it,
//! synced and renamed, under a lock on `<file>.lock`, so that readers see the old or the new one and never a half.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use instant_acme::CertificateIdentifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value, json};
use x509_parser::extensions::GeneralName;
use zeroize::Zeroizing;

use crate::error::AcmeError;

/// A certificate that a CA has issued, with its key.
#[derive(Clone)]
pub struct Issued {
    /// Its names (SANs), lower case.
    pub names: Vec<String>,
    /// From the end-entity certificate upwards.
    pub chain: Vec<CertificateDer<'static>>,
    /// Begin of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// How the CA's renewal information names it (RFC 9773 §4.1).
    pub(crate) renewal_id: Option<String>,
    /// Whose it is; absent in what Traefik has written.
    pub(crate) directory: Option<String>,
    chain_pem: String,
    key_pem: Arc<Zeroizing<String>>,
}

/// What one resolver has in the storage.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) account: Option<StoredAccount>,
    pub(crate) certificates: Vec<Issued>,
}

/// An account at a CA; the credentials are instant-acme's.
#[derive(Clone)]
pub(crate) struct StoredAccount {
    pub(crate) directory: String,
    pub(crate) email: Option<String>,
    pub(crate) credentials: Value,
}

/// The storage of one or more resolvers.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    path: PathBuf,
}

/// Tells whether the file is another one than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// The right to order and to write; given back when dropped, by the system if the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Issued {
    /// Reads a chain and its key.
    pub(crate) fn from_pem(chain_pem: String, key_pem: Zeroizing<String>) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("not PEM: {error}"))?;
        let leaf = chain.first().ok_or("no certificate inside")?;
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| "no private key inside".to_owned())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
        let mut names = Vec::new();
        if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
            names.extend(alternatives.value.general_names.iter().filter_map(name_of));
        }
        if names.is_empty() {
            return Err("the certificate has no names".to_owned());
        }
        let at = |timestamp: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0));
        let validity = parsed.validity();
        Ok(Self {
            names,
            not_before: at(validity.not_before.timestamp()),
            not_after: at(validity.not_after.timestamp()),
            renewal_id: CertificateIdentifier::try_from(leaf).ok().map(|id| id.to_string()),
            directory: None,
            key_pem: Arc::new(key_pem),
            chain_pem,
            chain,
        })
    }

    /// The private key.
    pub fn key(&self) -> Option<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).ok()
    }

    fn to_json(&self, wanted: &[String]) -> Value {
        let (main, sans) = wanted.split_first().map_or(("", &[][..]), |(main, sans)| (main.as_str(), sans));
        json!({
            "domain": { "main": main, "sans": sans },
            "certificate": STANDARD.encode(&self.chain_pem),
            "key": STANDARD.encode(self.key_pem.as_bytes()),
            "Store": "default",
            "directory": self.directory,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| {
            let bytes = STANDARD.decode(value[key].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let mut issued = Self::from_pem(text("certificate")?, Zeroizing::new(text("key")?)).ok()?;
        issued.directory = value["directory"].as_str().map(str::to_owned);
        Some(issued)
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("names", &self.names).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for StoredAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredAccount").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Store {
    pub(crate) fn new(path: &Path) -> Self {
        // A link stays a link: the file it leads to is the one replaced.
        Self { path: fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()) }
    }

    /// `None` if there is no file.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        fingerprint(&self.path)
    }

    /// What a resolver has; nothing if there is no file yet.
    pub(crate) fn load(&self, resolver: &str) -> Result<Section, AcmeError> {
        let all = self.read()?;
        let section = &all[resolver];
        let account = &section["adit"]["account"];
        // Newest first: new ones are added at the end.
        let certificates = section["Certificates"].as_array().into_iter().flatten().rev();
        let mut certificates: Vec<Issued> =
            certificates.filter_map(Issued::from_json).take(CERTIFICATES_MAX).collect();
        certificates.reverse();
        Ok(Section {
            account: account["directory"].as_str().map(|directory| StoredAccount {
                directory: directory.to_owned(),
                email: account["email"].as_str().map(str::to_owned),
                credentials: account["credentials"].clone(),
            }),
            certificates,
        })
    }

    /// The lock, unless another process or resolver has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, AcmeError> {
        let path = self.beside(".lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = opened.map_err(|error| failed(&path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(&path, error)),
        }
    }

    pub(crate) fn save_account(
        &self,
        _lock: &Lock,
        resolver: &str,
        account: &StoredAccount,
    ) -> Result<(), AcmeError> {
        self.change(resolver, |section| {
            section["adit"]["account"] = json!({
                "directory": account.directory, "email": account.email, "credentials": account.credentials,
            });
        })
    }

    /// Adds a certificate in the place of those for the same names; what expired long ago goes.
    pub(crate) fn save_certificate(
        &self,
        _lock: &Lock,
        resolver: &str,
        (wanted, issued): (&[String], &Issued),
    ) -> Result<(), AcmeError> {
        let forgotten = SystemTime::now().checked_sub(EXPIRED_KEPT).unwrap_or(UNIX_EPOCH);
        self.change(resolver, |section| {
            let old = section["Certificates"].as_array_mut().map(std::mem::take).unwrap_or_default();
            let mut kept: Vec<Value> = old
                .into_iter()
                .filter(|entry| match Issued::from_json(entry) {
                    Some(known) => known.not_after > forgotten && !is_same_set(&known.names, &issued.names),
                    // What we cannot read may be somebody else's.
                    None => true,
                })
                .collect();
            kept.push(issued.to_json(wanted));
            section["Certificates"] = Value::Array(kept);
        })
    }

    fn change(&self, resolver: &str, change: impl FnOnce(&mut Value)) -> Result<(), AcmeError> {
        let mut all = self.read()?;
        let section = &mut all[resolver];
        if !section.is_object() {
            *section = Value::Object(Map::new());
        }
        change(section);
        let text = serde_json::to_vec_pretty(&all).map(Zeroizing::new);
        let text = text.map_err(|error| failed(&self.path, io::Error::other(error)))?;
        self.write(&text).map_err(|error| failed(&self.path, error))
    }

    /// The whole file; an object, empty if there is none.
    fn read(&self) -> Result<Value, AcmeError> {
        let wrong = |why: &str| AcmeError::StoreContent { path: self.path.clone(), why: why.to_owned() };
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Value::Object(Map::new())),
            Err(error) => return Err(failed(&self.path, error)),
        };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(wrong(&format!("others may read its keys (mode {mode:o}): `chmod 600` it")));
        }
        if metadata.len() > STORE_BYTES_MAX {
            return Err(wrong("it is too large for a storage of certificates"));
        }
        let bytes = Zeroizing::new(fs::read(&self.path).map_err(|error| failed(&self.path, error))?);
        // Traefik takes an empty file that somebody has made beforehand.
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Object(Map::new()));
        }
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| wrong("it is not JSON"))?;
        if value.is_object() { Ok(value) } else { Err(wrong("it is not a JSON object")) }
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let temporary = self.beside(&format!(".{}.tmp", std::process::id()));
        let written = write_synced(&temporary, text).and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
            return written;
        }
        // The rename itself is on disk only after its folder is.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    }
}

/// `None` if there is no file.
pub(crate) fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let metadata = fs::metadata(path).ok()?;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    Some(Fingerprint { inode: metadata.ino(), bytes: metadata.len(), modified })
}

/// Writes a new file that only we may read, down to the disk.
pub(crate) fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

fn failed(path: &Path, source: io::Error) -> AcmeError {
    AcmeError::Store { path: path.to_owned(), source: Arc::new(source) }
}

fn is_same_set(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().all(|name| b.contains(name))
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// A thousand certificates of 100 names have about 10 MiB.
const STORE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Certificates read of one resolver; as many as can be wanted.
const CERTIFICATES_MAX: usize = 1000;
/// Expired certificates may help to see what happened, for a while.
const EXPIRED_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A certificate of our own for `names`, valid from `begin` to `end` in seconds from now.
    pub(crate) fn issued(names: &[&str], begin: i64, end: i64) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        let now = SystemTime::now();
        let at = |offset: i64| match u64::try_from(offset) {
            Ok(after) => now + Duration::from_secs(after),
            Err(_) => now - Duration::from_secs(offset.unsigned_abs()),
        };
        (params.not_before, params.not_after) = (at(begin).into(), at(end).into());
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Issued::from_pem(certificate.pem(), Zeroizing::new(key.serialize_pem())).unwrap()
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("adit-acme-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_saved_comes_back_and_others_keep_theirs() {
        let folder = folder("store");
        let path = folder.join("acme.json");
        fs::write(&path, r#"{"other":{"Account":{"Email":"x"}},"le":{"Account":{"PrivateKey":"k"}}}"#)
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let store = Store::new(&path);
        let before = store.fingerprint();
        let lock = store.try_lock().unwrap().unwrap();
        assert!(store.try_lock().unwrap().is_none(), "one at a time");
        let names = ["a.test".to_owned(), "b.test".to_owned()];
        store.save_certificate(&lock, "le", (&names, &issued(&["a.test", "b.test"], -10, 100))).unwrap();
        store.save_certificate(&lock, "le", (&names, &issued(&["b.test", "a.test"], -10, 500))).unwrap();
        let old = ["old.test".to_owned()];
        store.save_certificate(&lock, "le", (&old, &issued(&["old.test"], -9_000_000, -8_000_000))).unwrap();
        let account =
            StoredAccount { directory: "https://ca".into(), email: None, credentials: json!({"id": 1}) };
        store.save_account(&lock, "le", &account).unwrap();
        let names = ["c.test".to_owned()];
        store.save_certificate(&lock, "le", (&names, &issued(&["c.test"], -10, 100))).unwrap();
        drop(lock);
        assert!(store.try_lock().unwrap().is_some() && store.fingerprint() != before);
        let section = store.load("le").unwrap();
        let all: Vec<_> = section.certificates.iter().map(|c| c.names.join(",")).collect();
        assert_eq!(all, ["b.test,a.test", "c.test"]);
        assert_eq!(section.account.unwrap().credentials["id"], 1);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"Email\": \"x\"") && text.contains("\"PrivateKey\": \"k\""));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing is left beside it but the lock");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_storage_open_to_others_or_without_sense_is_refused_and_left_alone() {
        let folder = folder("content");
        let path = folder.join("acme.json");
        for (text, mode, why) in [("{}", 0o644, "chmod 600"), ("[]", 0o600, "object"), ("{", 0o600, "JSON")] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Store::new(&path).load("le").unwrap_err();
            assert!(error.reason() == "store_content" && error.to_string().contains(why), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, "\n").unwrap();
        assert!(Store::new(&path).load("le").unwrap().certificates.is_empty());
        let missing = folder.join("no/acme.json");
        assert_eq!(Store::new(&missing).try_lock().unwrap_err().reason(), "store");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn no_key_is_printed() {
        let issued = issued(&["a.test"], 0, 10);
        assert!(!format!("{issued:?}").contains("KEY"));
    }
}
