//! Challenges of one process answered by all that share its storage: behind a balancer the CA may ask any of them.
//!
//! Whoever orders holds the storage's lock, so that `<storage>.challenges` has one writer at a time. Others look at the file
//! only when they are asked for a challenge they do not know.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::store::{Fingerprint, fingerprint, write_synced};

/// The pending challenges of one order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Token → key authorization.
    pub(crate) http: HashMap<String, String>,
    /// Server name → key authorization's digest.
    pub(crate) tls: HashMap<String, Vec<u8>>,
}

/// A file with answers that others read; removed when dropped.
#[derive(Debug)]
pub(crate) struct Written(PathBuf);

/// The files of all storages in use, as they were read last.
#[derive(Debug, Default)]
pub(crate) struct Files(HashMap<PathBuf, (Option<Fingerprint>, Arc<Answers>)>);

impl Answers {
    /// Writes them where the other processes look.
    pub(crate) fn write(&self, storage: &Path) -> io::Result<Written> {
        let path = beside(storage);
        let tls: HashMap<&String, String> =
            self.tls.iter().map(|(name, digest)| (name, hex(digest))).collect();
        let text = json!({ "http": self.http, "tls": tls }).to_string();
        let mut temporary = path.clone().into_os_string();
        temporary.push(".tmp");
        write_synced(Path::new(&temporary), text.as_bytes())?;
        fs::rename(&temporary, &path)?;
        Ok(Written(path))
    }

    fn read(path: &Path) -> Self {
        let read = fs::metadata(path).ok().filter(|metadata| metadata.len() <= FILE_BYTES_MAX);
        let value = read.and_then(|_| serde_json::from_slice::<Value>(&fs::read(path).ok()?).ok());
        let entries = |kind: &str| {
            let entries = value.as_ref().and_then(|value| value[kind].as_object()).into_iter().flatten();
            entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        };
        Self {
            http: entries("http").collect(),
            tls: entries("tls").filter_map(|(name, digest)| Some((name, bytes(&digest)?))).collect(),
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Files {
    /// Looks at the files of these storages from now on.
    pub(crate) fn set(&mut self, storages: impl IntoIterator<Item = PathBuf>) {
        let mut before = std::mem::take(&mut self.0);
        let entry = |storage: PathBuf| {
            let path = beside(&storage);
            let seen = before.remove(&path).unwrap_or_default();
            (path, seen)
        };
        self.0 = storages.into_iter().map(entry).collect();
    }

    /// What the files have now; each is read only if it has changed.
    pub(crate) fn answers(&mut self) -> Vec<Arc<Answers>> {
        for (path, (seen, answers)) in &mut self.0 {
            let now = fingerprint(path);
            if now != *seen {
                *answers = if now.is_some() { Arc::new(Answers::read(path)) } else { Arc::default() };
                *seen = now;
            }
        }
        self.0.values().map(|(_, answers)| Arc::clone(answers)).collect()
    }
}

fn beside(storage: &Path) -> PathBuf {
    let storage = fs::canonicalize(storage).unwrap_or_else(|_| storage.to_owned());
    let mut name = storage.into_os_string();
    name.push(".challenges");
    PathBuf::from(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// 100 names with 300 bytes each, and room.
const FILE_BYTES_MAX: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_seen_by_others_until_they_are_dropped() {
        let storage = std::env::temp_dir().join(format!("adit-shared-{}.json", std::process::id()));
        let mut files = Files::default();
        files.set([storage.clone()]);
        assert_eq!(*files.answers()[0], Answers::default());
        let answers = Answers {
            http: [("token".to_owned(), "token.thumb".to_owned())].into(),
            tls: [("a.test".to_owned(), vec![0, 0xab, 255])].into(),
        };
        let written = answers.write(&storage).unwrap();
        assert_eq!(*files.answers()[0], answers);
        drop(written);
        assert_eq!(*files.answers()[0], Answers::default());
    }
}
