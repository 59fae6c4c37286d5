//! Where in which file an object was written.

use std::collections::BTreeSet;

use adit_config::dynamic::{CertificatePair, Dynamic};
use adit_config::{Config, DynamicFiles, Origin, Problem};

use super::is_source;
use crate::gateway::files::{Files, Look, Place};

/// The parts of a configuration, as they were before they were put together.
pub(super) struct Places<'a> {
    config: &'a Config,
    /// Provider and part, the part of `adit.yaml` first.
    parts: Vec<(&'static str, Dynamic)>,
}

impl<'a> Places<'a> {
    /// Reads all files; what is wrong with those that cannot be taken comes back too.
    pub(super) fn read(config: &'a Config) -> (Self, Vec<String>) {
        let mut parts = vec![("inline", config.dynamic.clone())];
        let mut look = Look::default();
        if let Some(provider) = &config.providers.file {
            look = Files::default().look(&match &provider.files {
                DynamicFiles::File(path) => Place::File(path.clone()),
                DynamicFiles::Directory(path) => Place::Folder(path.clone()),
            });
        }
        parts.extend(look.parts.into_iter().map(|part| (part.provider, part.dynamic)));
        (Self { config, parts }, look.faults)
    }

    /// The problems that one reason tells of an object (`kind` such as `http.routers`), or of a key `below` it.
    ///
    /// Reasons found while reading start with the key they are about, which is taken for the place then.
    pub(super) fn problems(&self, kind: &str, name: &str, below: &str, reason: &str) -> Vec<Problem> {
        let Some((bare, dynamic)) = self.find(kind, name) else {
            let key = format!("{kind}.{name}{below}");
            return vec![Problem { key, ..self.in_configuration("", reason) }];
        };
        let object = format!("{kind}.{bare}");
        let mut problems: Vec<Problem> = Vec::new();
        for piece in reason.split("; ") {
            let keyed = piece.split_once(": ").filter(|(key, _)| {
                key.starts_with(&object) && (dynamic.origins.contains_key(*key) || *key == object)
            });
            match (keyed, problems.last_mut()) {
                (Some((key, reason)), _) => problems.push(at(dynamic, key, reason, self.file())),
                (None, None) => {
                    problems.push(at(dynamic, &format!("{object}{below}"), piece, self.file()));
                }
                (None, Some(last)) => {
                    last.expected.push_str("; ");
                    last.expected.push_str(piece);
                }
            }
        }
        problems
    }

    /// A problem of a key of `adit.yaml`.
    pub(super) fn in_configuration(&self, key: &str, reason: &str) -> Problem {
        let position = nearest(key, |key| self.config.origins.get(key)).and_then(|origin| origin.position);
        Problem { key: key.to_owned(), position, ..Problem::of_file(&self.file(), reason) }
    }

    /// A problem of a certificate, which is known by its file.
    pub(super) fn certificate(&self, subject: &str, reason: &str) -> Problem {
        let is_it = |pair: &CertificatePair| is_source(&pair.cert, subject) || is_source(&pair.key, subject);
        for (_, dynamic) in &self.parts {
            let certificates = dynamic.tls.certificates.iter().enumerate();
            let found =
                certificates.filter(|(_, certificate)| is_it(&certificate.pair)).map(|(i, _)| i).next();
            if let Some(index) = found {
                return at(dynamic, &format!("tls.certificates[{index}].certFile"), reason, self.file());
            }
            for (name, store) in &dynamic.tls.stores {
                if store.default_certificate.as_ref().is_some_and(is_it) {
                    let key = format!("tls.stores.{name}.defaultCertificate.certFile");
                    return at(dynamic, &key, reason, self.file());
                }
            }
        }
        self.in_configuration("tls", &format!("certificate {subject}: {reason}"))
    }

    /// Objects that are skipped, because an earlier part of the same provider has one of that name.
    pub(super) fn duplicates(&self) -> Vec<Problem> {
        let mut seen = BTreeSet::new();
        let mut problems = Vec::new();
        for (provider, dynamic) in &self.parts {
            for key in objects(dynamic) {
                let is_default = key == "tls.options.default" || key == "tls.stores.default";
                if !seen.insert((if is_default { "" } else { provider }, key.clone())) {
                    let reason = "is skipped, because an earlier file has an object of this name";
                    problems.push(at(dynamic, &key, reason, self.file()));
                }
            }
        }
        problems
    }

    /// What reading found worth a line.
    pub(super) fn warnings(&self) -> Vec<Problem> {
        self.parts.iter().flat_map(|(_, dynamic)| dynamic.warnings.iter().cloned()).collect()
    }

    /// The part that has an object, and the object's name in it.
    fn find<'n>(&self, kind: &str, name: &'n str) -> Option<(&'n str, &Dynamic)> {
        let (bare, provider) = match name.rsplit_once('@') {
            Some((bare, provider)) => (bare, Some(provider)),
            None => (name, None),
        };
        let key = format!("{kind}.{bare}");
        let mut parts = self.parts.iter();
        let (_, dynamic) = parts.find(|(from, dynamic)| {
            provider.is_none_or(|provider| provider == *from) && dynamic.origins.contains_key(&key)
        })?;
        Some((bare, dynamic))
    }

    fn file(&self) -> String {
        self.config.sources.first().map(|path| path.display().to_string()).unwrap_or_default()
    }
}

/// Keys of all objects of a part.
fn objects(dynamic: &Dynamic) -> Vec<String> {
    let (http, tcp, udp, tls) = (&dynamic.http, &dynamic.tcp, &dynamic.udp, &dynamic.tls);
    let mut all = Vec::new();
    let mut add = |kind: &str, names: Vec<&String>| {
        all.extend(names.into_iter().map(|name| format!("{kind}.{name}")));
    };
    add("http.routers", http.routers.keys().collect());
    add("http.services", http.services.keys().collect());
    add("http.middlewares", http.middlewares.keys().collect());
    add("http.serversTransports", http.servers_transports.keys().collect());
    add("tcp.routers", tcp.routers.keys().collect());
    add("tcp.services", tcp.services.keys().collect());
    add("tcp.middlewares", tcp.middlewares.keys().collect());
    add("tcp.serversTransports", tcp.servers_transports.keys().collect());
    add("udp.routers", udp.routers.keys().collect());
    add("udp.services", udp.services.keys().collect());
    add("tls.options", tls.options.keys().collect());
    add("tls.stores", tls.stores.keys().collect());
    all
}

/// A problem of a key of a part; `file` is named where nothing says which file it stands in.
fn at(dynamic: &Dynamic, key: &str, reason: &str, file: String) -> Problem {
    let origin = nearest(key, |key| dynamic.origins.get(key));
    Problem {
        position: origin.and_then(|origin| origin.position),
        key: key.to_owned(),
        ..Problem::of_file(&origin.map_or(file, |origin| origin.file.clone()), reason)
    }
}

/// The place of a key, or of the nearest key above it that was written.
fn nearest<'o>(key: &str, find: impl Fn(&str) -> Option<&'o Origin>) -> Option<&'o Origin> {
    let mut key = key;
    loop {
        if let Some(origin) = find(key) {
            return Some(origin);
        }
        key = &key[..key.rfind(['.', '['])?];
    }
}
