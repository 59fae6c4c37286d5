//! `adit.yaml` as a whole: one function from text to [`Config`], every problem at once.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::{
    Admin, CertificateFiles, Config, InternalServices, Limits, Log, LogFormat, LogLevel, Problems, Shutdown,
    Tls, acme, check,
    dynamic::{self, CertificatePair, Dynamic, PemSource, TlsCertificate},
    edge, entry_points, mesh, observing, providers,
    read::{Dialect, Field, Findings, Section, Sink},
    tunnel,
    units::{DURATION_MAX, parse_listen_address},
    yaml::{Node, Value},
};

/// Where contents of files named in a configuration come from.
///
/// Implemented for closures, so that tests hand in what they like.
pub trait FileSource {
    /// The content, or the reason why there is none (such as `No such file or directory`).
    fn read(&self, path: &Path) -> Result<Vec<u8>, String>;
}

impl<F: Fn(&Path) -> Result<Vec<u8>, String>> FileSource for F {
    fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        self(path)
    }
}

/// Reads the files that a configuration names and remembers which.
pub(crate) struct Loader<'a> {
    files: &'a dyn FileSource,
    sources: RefCell<Vec<PathBuf>>,
}

impl Config {
    /// Reads `adit.yaml`; `file` is its name, to whose directory paths in it are relative.
    ///
    /// Files that hold a part of the configuration (`config`, `token-file`, `credentials-file`, `secret-file`) are read
    /// through `files`; certificates are only named.
    pub fn parse(text: &str, file: &str, files: &dyn FileSource) -> Result<Self, Problems> {
        let (node, duplicates) =
            Node::from_large_yaml(text, file).map_err(|problem| Problems(vec![*problem]))?;
        let node = match node.value {
            // An empty file is a mapping without keys: what is missing is then named.
            Value::Null => Node { value: Value::Mapping(Vec::new()), ..node },
            _ => node,
        };
        let sink = Sink::new(file, Dialect::Adit);
        duplicates.into_iter().for_each(|problem| sink.report(problem));
        let loader = Loader { files, sources: RefCell::new(vec![PathBuf::from(file)]) };
        let (dynamic, findings) = dynamic::read_inline(&node, file);
        let inline = Inline { dynamic, findings };
        let config = sink.root(&node).section().map(|section| read_config(section, &loader, inline));
        if let Some(config) = &config {
            check::check(config, &sink);
        }
        let findings = sink.finish();
        match config {
            Some(mut config) if findings.problems.is_empty() => {
                config.dynamic.warnings = findings.warnings;
                Ok(Self { sources: loader.sources.into_inner(), origins: findings.origins, ..config })
            }
            _ => Err(Problems(findings.problems)),
        }
    }
}

impl<'a> Loader<'a> {
    /// The text of the file that a field names; the path is as [`Field::path`] makes it.
    pub(crate) fn text(&self, field: &Field<'_>) -> Option<(PathBuf, Zeroizing<String>)> {
        let path = field.path()?;
        let text = self.text_at(&path, |reason| field.reject(reason))?;
        Some((path, text))
    }

    /// As [`Self::text`] for files that may hold every peer of a large mesh.
    pub(crate) fn large_text(&self, field: &Field<'_>) -> Option<(PathBuf, Zeroizing<String>)> {
        let path = field.path()?;
        let text = self.bounded_text(&path, LARGE_FILE_BYTES_MAX, |reason| field.reject(reason))?;
        Some((path, text))
    }

    /// The text of a file; `reject` is told why there is none.
    pub(crate) fn text_at(&self, path: &Path, reject: impl FnOnce(String)) -> Option<Zeroizing<String>> {
        self.bounded_text(path, FILE_BYTES_MAX, reject)
    }

    fn bounded_text(
        &self,
        path: &Path,
        bytes_max: usize,
        reject: impl FnOnce(String),
    ) -> Option<Zeroizing<String>> {
        self.sources.borrow_mut().push(path.to_owned());
        let outcome = match self.files.read(path) {
            Ok(bytes) if bytes.len() > bytes_max => Err(format!("it is longer than {} MiB", bytes_max >> 20)),
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()),
            Err(reason) => Err(reason),
        };
        match outcome {
            Ok(text) => Some(Zeroizing::new(text)),
            Err(reason) => {
                reject(format!("cannot read {}: {reason}", path.display()));
                None
            }
        }
    }
}

pub(crate) fn read_certificate(
    field: &Field<'_>,
    cert_key: &'static str,
    key_key: &'static str,
) -> Option<CertificateFiles> {
    let mut section = field.section()?;
    let cert = section.require(cert_key).and_then(|field| field.path());
    let key = section.require(key_key).and_then(|field| field.path());
    section.finish();
    Some(CertificateFiles { cert: cert?, key: key? })
}

/// A name that may stand in metric labels and logs.
pub(crate) fn read_name(field: &Field<'_>) -> Option<String> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    field.parse("a name of 1 to 64 letters, digits, `-`, `_` or `.`", |text| {
        ((1..=64).contains(&text.len()) && text.bytes().all(is_good)).then(|| text.to_owned())
    })
}

/// What the other reader has found in the dynamic sections of the same file.
struct Inline {
    dynamic: Dynamic,
    findings: Findings,
}

fn read_config(mut root: Section<'_>, loader: &Loader<'_>, inline: Inline) -> Config {
    let internals = InternalServices {
        ping: root.optional("ping", observing::check_ping).is_some(),
        api: root.optional("api", observing::check_api).is_some(),
    };
    root.itself().sink.absorb(inline.findings);
    root.leave(&dynamic::SECTIONS);
    let shutdown = root.optional("shutdown", read_shutdown).unwrap_or_default();
    let grace_period = shutdown.grace_period;
    let config = Config {
        entry_points: root
            .optional("entryPoints", |field| Some(entry_points::read_entry_points(field, grace_period)))
            .unwrap_or_default(),
        tls: Tls {
            certificates: files_of(&inline.dynamic),
            resolvers: root
                .optional("certificatesResolvers", |field| Some(acme::read_resolvers(field)))
                .unwrap_or_default(),
        },
        edge: root.optional("edge", |field| edge::read_edge(field, loader, grace_period)),
        tunnel: root.optional("tunnel", |field| tunnel::read_tunnel(field, loader, grace_period)),
        mesh: root.optional("mesh", |field| mesh::read_mesh(field, loader)),
        admin: root.optional("admin", read_admin).unwrap_or_default(),
        log: root.optional("log", read_log).unwrap_or_default(),
        access_log: root.optional("accessLog", observing::read_access_log),
        metrics: root.optional("metrics", observing::read_metrics).unwrap_or_default(),
        internals,
        providers: root.optional("providers", providers::read_providers).unwrap_or_default(),
        dynamic: inline.dynamic,
        limits: root.optional("limits", read_limits).unwrap_or_default(),
        state_dir: root.optional("state-dir", Field::path),
        shutdown,
        sources: Vec::new(),
        origins: std::collections::BTreeMap::new(),
    };
    root.refuse(&LATER_SECTIONS);
    root.finish();
    config
}

fn files_of(dynamic: &Dynamic) -> Vec<CertificateFiles> {
    let files = |certificate: &TlsCertificate| match &certificate.pair {
        CertificatePair { cert: PemSource::File(cert), key: PemSource::File(key) } => {
            Some(CertificateFiles { cert: cert.clone(), key: key.clone() })
        }
        _ => None,
    };
    dynamic.tls.certificates.iter().filter_map(files).collect()
}

fn read_admin(field: &Field<'_>) -> Option<Admin> {
    let mut section = field.section()?;
    let mut admin = Admin::default();
    section.set("address", &mut admin.address, read_listen_address);
    section.finish();
    Some(admin)
}

pub(crate) fn read_listen_address(field: &Field<'_>) -> Option<std::net::SocketAddr> {
    field.parse("an address such as `127.0.0.1:8000`, `[::1]:8000` or `:8000`", parse_listen_address)
}

fn read_log(field: &Field<'_>) -> Option<Log> {
    let mut section = field.section()?;
    let mut log = Log::default();
    section.set("level", &mut log.level, read_log_level);
    section.set("format", &mut log.format, read_log_format);
    section.refuse(&["filePath", "maxSize", "maxAge", "maxBackups", "compress", "noColor", "otlp"]);
    section.finish();
    Some(log)
}

fn read_log_level(field: &Field<'_>) -> Option<LogLevel> {
    field.parse("`trace`, `debug`, `info`, `warn` or `error`", |text| {
        Some(match text.to_ascii_lowercase().as_str() {
            "trace" => LogLevel::Trace,
            "debug" => LogLevel::Debug,
            "info" => LogLevel::Info,
            "warn" => LogLevel::Warn,
            "error" => LogLevel::Error,
            _ => return None,
        })
    })
}

fn read_log_format(field: &Field<'_>) -> Option<LogFormat> {
    field.parse("`text` or `json`", |text| match text {
        // Traefik's word for text.
        "text" | "common" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    })
}

fn read_limits(field: &Field<'_>) -> Option<Limits> {
    let mut section = field.section()?;
    let mut limits = Limits::default();
    let l = &mut limits;
    section.set("header-bytes", &mut l.header_bytes_max, |field| field.size(4 << 10..=1 << 20));
    section.set("headers", &mut l.headers_max, |field| field.integer(16..=128));
    section.set("connections", &mut l.connections_max, |field| field.integer(1..=1_000_000));
    section
        .set("streams-per-connection", &mut l.streams_per_connection_max, |field| field.integer(1..=10_000));
    section.set("streams-per-tunnel-connection", &mut l.streams_per_tunnel_connection_max, |field| {
        field.integer(1..=100_000)
    });
    section.set("tunnel-connections", &mut l.tunnel_connections_max, |field| field.integer(1..=100_000));
    section.set("hostnames-per-tunnel", &mut l.hostnames_per_tunnel_max, |field| field.integer(1..=10_000));
    section.set("body-idle-timeout", &mut l.body_idle_timeout, Field::duration);
    section.finish();
    Some(limits)
}

fn read_shutdown(field: &Field<'_>) -> Option<Shutdown> {
    let mut section = field.section()?;
    let mut shutdown = Shutdown::default();
    section.set("grace-period", &mut shutdown.grace_period, |field| {
        field.duration_in(std::time::Duration::ZERO..=DURATION_MAX)
    });
    section.finish();
    Some(shutdown)
}

/// Sections of the design, and of Traefik's static file, that this version does not serve.
const LATER_SECTIONS: [&str; 10] = [
    "access",
    "core",
    "experimental",
    "global",
    "kubernetes",
    "serversTransport",
    "spiffe",
    "ocsp",
    "tcpServersTransport",
    "tracing",
];
/// As much as the main file may have.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Ten thousand peers with a dozen networks each.
const LARGE_FILE_BYTES_MAX: usize = 8 << 20;
