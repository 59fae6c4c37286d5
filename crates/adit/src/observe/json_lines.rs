//! The access log's lines in JSON: an object a line.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use adit_config::FieldMode;
use http::{HeaderMap, HeaderName};
use x509_parser::prelude::FromDer as _;

use super::line_time::Clock;
use super::lines::{REDACTED, number, protocol, put};
use crate::access_log::Entry;

/// What of an entry is written.
#[derive(Debug)]
pub(crate) struct JsonLines {
    /// Fields kept, by their place in [`FIELDS`].
    kept: Vec<bool>,
    headers_default: FieldMode,
    /// By lower-case name.
    headers: HashMap<String, FieldMode>,
}

impl JsonLines {
    pub(crate) fn new(
        keeps: &dyn Fn(&str) -> bool,
        headers: HashMap<String, FieldMode>,
        headers_default: FieldMode,
    ) -> Self {
        Self { kept: FIELDS.iter().map(|(name, _)| keeps(name)).collect(), headers_default, headers }
    }

    /// Appends a line without its end.
    pub(crate) fn write(&self, line: &mut Vec<u8>, entry: &Entry, path: &str, clock: &mut Clock) {
        line.push(b'{');
        for ((name, field), _) in FIELDS.iter().zip(&self.kept).filter(|(_, kept)| **kept) {
            let before = line.len();
            json_name(line, "", name);
            if !json_value(line, *field, entry, path, clock) {
                line.truncate(before);
            }
        }
        for (prefix, headers) in ["request_", "origin_", "downstream_"].iter().zip(&entry.headers) {
            self.write_headers(line, prefix, headers);
        }
        line.extend_from_slice(b"\"level\":\"info\",\"msg\":\"\",\"time\":\"");
        clock.rfc3339(line, SystemTime::now(), false);
        line.extend_from_slice(b"\"}");
    }

    fn write_headers(&self, line: &mut Vec<u8>, prefix: &str, headers: &HeaderMap) {
        for name in headers.keys() {
            let mode = self.headers.get(name.as_str()).copied().unwrap_or(self.headers_default);
            if mode == FieldMode::Drop {
                continue;
            }
            json_name(line, prefix, &canonical(name));
            if mode == FieldMode::Redact {
                json_text(line, REDACTED);
            } else {
                let values: Vec<_> =
                    headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
                json_text(line, &values.join(","));
            }
            line.push(b',');
        }
    }
}

/// A field of a JSON line.
#[derive(Clone, Copy, Debug)]
enum Field {
    Started,
    Duration,
    Overhead,
    OriginDuration,
    OriginStatus,
    OriginContentSize,
    DownstreamStatus,
    DownstreamContentSize,
    RequestAddr,
    RequestHost,
    RequestPort,
    RequestMethod,
    RequestPath,
    RequestProtocol,
    RequestScheme,
    RequestContentSize,
    RequestCount,
    RetryAttempts,
    ClientHost,
    ClientAddr,
    ClientPort,
    ClientUsername,
    EntryPoint,
    RequestId,
    RouterName,
    ServiceName,
    ServiceUrl,
    ServiceAddr,
    Reason,
    MeshPeer,
    MeshGroups,
    TlsVersion,
    TlsCipher,
    TlsClientSubject,
    GzipRatio,
}

/// Groups of the mesh's peer, separated by commas; none where there is no peer.
fn groups(entry: &Entry) -> String {
    entry.mesh.as_ref().map(|peer| peer.groups.join(",")).unwrap_or_default()
}

/// Writes a value and a comma; false if this request has none.
fn json_value(line: &mut Vec<u8>, field: Field, entry: &Entry, path: &str, clock: &mut Clock) -> bool {
    let origin = entry.origin_duration.unwrap_or_default();
    let tls = entry.tls.as_deref();
    match field {
        Field::Started => {
            line.push(b'"');
            clock.rfc3339(line, entry.started, true);
            line.push(b'"');
        }
        Field::Duration => number(line, true, nanos(entry.duration)),
        Field::Overhead => number(line, true, nanos(entry.duration.saturating_sub(origin))),
        Field::OriginDuration => number(line, true, nanos(origin)),
        Field::OriginStatus => number(line, true, entry.origin_status.unwrap_or(0).into()),
        Field::OriginContentSize => number(line, true, entry.origin_bytes),
        Field::DownstreamStatus => number(line, true, entry.status.into()),
        Field::DownstreamContentSize => number(line, true, entry.bytes),
        Field::RequestAddr => json_text(line, &entry.host),
        Field::RequestHost => json_text(line, split_port(&entry.host).0),
        Field::RequestPort => json_text(line, split_port(&entry.host).1),
        Field::RequestMethod => json_text(line, entry.method.as_str()),
        Field::RequestPath => json_text(line, path),
        Field::RequestProtocol => json_text(line, protocol(entry.version)),
        Field::RequestScheme => json_text(line, if entry.secure { "https" } else { "http" }),
        Field::RequestContentSize => number(line, true, entry.received),
        Field::RequestCount => number(line, true, entry.count),
        Field::RetryAttempts => number(line, true, entry.retries.into()),
        Field::ClientHost => put(line, format_args!("\"{}\"", entry.client)),
        Field::ClientAddr => put(line, format_args!("\"{}\"", entry.peer)),
        Field::ClientPort => put(line, format_args!("\"{}\"", entry.peer.port())),
        Field::ClientUsername => {
            json_text(line, entry.user.as_deref().filter(|user| !user.is_empty()).unwrap_or("-"))
        }
        Field::EntryPoint => json_text(line, entry.entry_point.as_deref().unwrap_or_default()),
        Field::RequestId => json_text(line, &entry.request_id),
        Field::RouterName => return json_some(line, entry.route.as_deref().unwrap_or_default()),
        Field::ServiceName => return json_some(line, entry.service.as_deref().unwrap_or_default()),
        Field::ServiceUrl => return json_some(line, entry.service_url.as_deref().unwrap_or_default()),
        Field::ServiceAddr => {
            let address = entry
                .service_url
                .as_deref()
                .unwrap_or_default()
                .split_once("://")
                .map_or("", |(_, rest)| rest);
            return json_some(line, address.split(['/', '?']).next().unwrap_or_default());
        }
        Field::Reason => return json_some(line, entry.reason),
        Field::MeshPeer => return json_some(line, entry.mesh.as_ref().map_or("", |peer| &peer.name)),
        Field::MeshGroups => return json_some(line, &groups(entry)),
        Field::TlsVersion => return json_some(line, tls.map_or("", |tls| tls.version)),
        Field::TlsCipher => return json_some(line, tls.map_or("", |tls| tls.cipher)),
        Field::TlsClientSubject => {
            let subject = tls.and_then(|tls| subject(tls.client_certificates.first()?));
            return json_some(line, subject.as_deref().unwrap_or_default());
        }
        Field::GzipRatio => {
            // A refusal has a ratio too, of nothing.
            let is_known = entry.origin_status.is_some() || !entry.reason.is_empty();
            if !is_known || entry.bytes == 0 || entry.bytes == entry.origin_bytes {
                return false;
            }
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let ratio = entry.origin_bytes as f64 / entry.bytes as f64;
            put(line, format_args!("{ratio:?}"));
        }
    }
    line.push(b',');
    true
}

fn json_some(line: &mut Vec<u8>, text: &str) -> bool {
    if !text.is_empty() {
        json_text(line, text);
        line.push(b',');
    }
    !text.is_empty()
}

fn json_name(line: &mut Vec<u8>, prefix: &str, name: &str) {
    line.push(b'"');
    line.extend_from_slice(prefix.as_bytes());
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
}

fn json_text(line: &mut Vec<u8>, text: &str) {
    // A vector takes every write, and a text has no keys that could fail.
    let _ = serde_json::to_writer(line, text);
}

/// As Go writes header names: `User-Agent`.
fn canonical(name: &HeaderName) -> String {
    let parts = name.as_str().split('-').map(|part| {
        let mut part = part.to_owned();
        if let Some(first) = part.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        part
    });
    parts.collect::<Vec<_>>().join("-")
}

/// Host and port as asked; the port is `-` where none was.
fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (name.trim_start_matches('[').trim_end_matches(']'), port)
        }
        _ => (host, "-"),
    }
}

/// Distinguished name of a certificate's owner.
fn subject(der: &[u8]) -> Option<String> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    Some(parsed.subject().to_string())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// In the order of a line; headers follow.
const FIELDS: &[(&str, Field)] = &[
    ("StartUTC", Field::Started),
    ("StartLocal", Field::Started),
    ("Duration", Field::Duration),
    ("Overhead", Field::Overhead),
    ("OriginDuration", Field::OriginDuration),
    ("OriginStatus", Field::OriginStatus),
    ("OriginContentSize", Field::OriginContentSize),
    ("DownstreamStatus", Field::DownstreamStatus),
    ("DownstreamContentSize", Field::DownstreamContentSize),
    ("RequestAddr", Field::RequestAddr),
    ("RequestHost", Field::RequestHost),
    ("RequestPort", Field::RequestPort),
    ("RequestMethod", Field::RequestMethod),
    ("RequestPath", Field::RequestPath),
    ("RequestProtocol", Field::RequestProtocol),
    ("RequestScheme", Field::RequestScheme),
    ("RequestContentSize", Field::RequestContentSize),
    ("RequestCount", Field::RequestCount),
    ("RetryAttempts", Field::RetryAttempts),
    ("ClientHost", Field::ClientHost),
    ("ClientAddr", Field::ClientAddr),
    ("ClientPort", Field::ClientPort),
    ("ClientUsername", Field::ClientUsername),
    ("entryPointName", Field::EntryPoint),
    ("RequestId", Field::RequestId),
    ("RouterName", Field::RouterName),
    ("ServiceName", Field::ServiceName),
    ("ServiceURL", Field::ServiceUrl),
    ("ServiceAddr", Field::ServiceAddr),
    ("reason", Field::Reason),
    ("MeshPeer", Field::MeshPeer),
    ("MeshGroups", Field::MeshGroups),
    ("TLSVersion", Field::TlsVersion),
    ("TLSCipher", Field::TlsCipher),
    ("TLSClientSubject", Field::TlsClientSubject),
    ("GzipRatio", Field::GzipRatio),
];
