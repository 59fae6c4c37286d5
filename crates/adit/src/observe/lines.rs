//! The access log's lines, with Traefik's field names (`ingress-features.md §7.2`).

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use adit_config::{AccessLog as Settings, AccessLogFields, AccessLogFormat, FieldMode};
use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value, json};
use x509_parser::prelude::FromDer as _;

use crate::access_log::Entry;

/// Turns entries into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    format: AccessLogFormat,
    keep_by_default: bool,
    /// By lower-case name.
    names: HashMap<String, bool>,
    headers_default: FieldMode,
    /// By lower-case name.
    headers: HashMap<String, FieldMode>,
    keep_query: bool,
}

impl Lines {
    pub(crate) fn new(settings: &Settings) -> Self {
        let AccessLogFields { default_mode, names, headers_default_mode, headers, query_parameters } =
            &settings.fields;
        let keeps = |mode: FieldMode| mode != FieldMode::Drop;
        Self {
            format: settings.format,
            keep_by_default: keeps(*default_mode),
            names: names.iter().map(|(name, mode)| (name.to_ascii_lowercase(), keeps(*mode))).collect(),
            headers_default: *headers_default_mode,
            headers: headers.iter().map(|(name, mode)| (name.to_ascii_lowercase(), *mode)).collect(),
            keep_query: keeps(*query_parameters),
        }
    }

    /// Writes one line.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn write(&self, out: &mut impl Write, entry: &Entry) -> io::Result<()> {
        match self.format {
            AccessLogFormat::Json => writeln!(out, "{}", Value::from(self.json(entry))),
            AccessLogFormat::Common => self.write_clf(out, entry, true),
            AccessLogFormat::GenericClf => self.write_clf(out, entry, false),
            AccessLogFormat::Text => self.write_text(out, entry),
        }
    }

    fn keeps(&self, name: &str) -> bool {
        self.names.get(&name.to_ascii_lowercase()).copied().unwrap_or(self.keep_by_default)
    }

    fn path<'a>(&self, entry: &'a Entry) -> &'a str {
        let whole = entry.path.as_str();
        if self.keep_query { whole } else { whole.split_once('?').map_or(whole, |(path, _)| path) }
    }

    /// A field's text for a column: `-` if it is dropped or empty, and nothing that could break out of the line.
    fn column<'a>(&self, name: &str, text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
        let text = text.into();
        if self.keeps(name) { contained(text) } else { Cow::Borrowed("-") }
    }

    fn header<'a>(&self, entry: &'a Entry, name: &'static str) -> Cow<'a, str> {
        let text = match self.header_mode(name) {
            FieldMode::Drop => return Cow::Borrowed("-"),
            FieldMode::Redact => return Cow::Borrowed(REDACTED),
            FieldMode::Keep => {
                entry.headers[0].get(name).map(|value| String::from_utf8_lossy(value.as_bytes()))
            }
        };
        contained(text.unwrap_or_default())
    }

    fn header_mode(&self, name: &str) -> FieldMode {
        self.headers.get(name).copied().unwrap_or(self.headers_default)
    }

    /// The origin's status and size; where no server was asked, what we answered ourselves.
    fn write_clf(&self, out: &mut impl Write, entry: &Entry, is_whole: bool) -> io::Result<()> {
        let (status, size) = match entry.origin_status {
            Some(status) => (status, entry.origin_bytes),
            None => (entry.status, entry.bytes),
        };
        write!(
            out,
            "{} - {} [{}] \"{} {} {}\" {} {} \"{}\" \"{}\"",
            self.column("ClientHost", entry.client.to_string()),
            self.column("ClientUsername", entry.user.as_str()).replace(' ', "\\x20"),
            if self.keeps("StartUTC") || self.keeps("StartLocal") {
                clf_time(entry.started)
            } else {
                "-".into()
            },
            self.column("RequestMethod", entry.method.as_str()),
            self.column("RequestPath", self.path(entry)),
            self.column("RequestProtocol", format!("{:?}", entry.version)),
            self.column("OriginStatus", status.to_string()),
            self.column("OriginContentSize", size.to_string()),
            self.header(entry, "referer"),
            self.header(entry, "user-agent"),
        )?;
        if is_whole {
            write!(
                out,
                " {} \"{}\" \"{}\" {}ms",
                self.column("RequestCount", entry.count.to_string()),
                self.column("RouterName", entry.route.as_str()),
                self.column("ServiceURL", entry.service_url.as_str()),
                if self.keeps("Duration") { entry.duration.as_millis() } else { 0 },
            )?;
        }
        writeln!(out)
    }

    fn write_text(&self, out: &mut impl Write, entry: &Entry) -> io::Result<()> {
        let [peer, _] = &entry.mesh;
        let peer = match peer.is_empty() {
            true => String::new(),
            false => format!(" {}", self.column("MeshPeer", peer.as_str())),
        };
        let duration = format!("{:.3}ms", entry.duration.as_secs_f64() * 1000.0);
        writeln!(
            out,
            "{} {} \"{} {}{} {}\" {} {} {} {} {} {}{}",
            self.column("StartUTC", adit_proxy::date::format(entry.started)),
            self.column("ClientHost", entry.client.to_string()),
            self.column("RequestMethod", entry.method.as_str()),
            self.column("RequestHost", entry.host.as_str()),
            self.column("RequestPath", self.path(entry)),
            self.column("RequestProtocol", format!("{:?}", entry.version)),
            self.column("DownstreamStatus", entry.status.to_string()),
            self.column("DownstreamContentSize", entry.bytes.to_string()),
            self.column("Duration", duration),
            self.column("RouterName", entry.route.as_str()),
            self.column("RequestId", entry.request_id.as_str()),
            self.column("reason", entry.reason),
            peer,
        )
    }

    fn json(&self, entry: &Entry) -> Map<String, Value> {
        let mut line = self.core(entry);
        self.add_ends(entry, &mut line);
        line.retain(|name, _| self.keeps(name));
        for (prefix, headers) in ["request_", "origin_", "downstream_"].iter().zip(&entry.headers) {
            self.add_headers(prefix, headers, &mut line);
        }
        line.insert("level".into(), "info".into());
        line.insert("msg".into(), "".into());
        line.insert("time".into(), rfc3339(SystemTime::now(), false).into());
        line
    }

    fn core(&self, entry: &Entry) -> Map<String, Value> {
        let (host, port) = split_port(&entry.host);
        let origin = entry.origin_duration.unwrap_or_default();
        let overhead = entry.duration.saturating_sub(origin);
        let fields = json!({
            "StartUTC": rfc3339(entry.started, true), "StartLocal": rfc3339(entry.started, true),
            "Duration": nanos(entry.duration), "Overhead": nanos(overhead), "OriginDuration": nanos(origin),
            "OriginStatus": entry.origin_status.unwrap_or(0), "OriginContentSize": entry.origin_bytes,
            "DownstreamStatus": entry.status, "DownstreamContentSize": entry.bytes,
            "RequestAddr": entry.host, "RequestHost": host, "RequestPort": port,
            "RequestMethod": entry.method.as_str(), "RequestPath": self.path(entry),
            "RequestProtocol": format!("{:?}", entry.version),
            "RequestScheme": if entry.secure { "https" } else { "http" },
            "RequestContentSize": entry.received, "RequestCount": entry.count,
            "RetryAttempts": entry.retries, "ClientHost": entry.client.to_string(),
            "ClientAddr": entry.peer.to_string(), "ClientPort": entry.peer.port().to_string(),
            "ClientUsername": if entry.user.is_empty() { "-" } else { &entry.user },
            "entryPointName": entry.entry_point, "RequestId": entry.request_id,
        });
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// Fields that not every request has.
    fn add_ends(&self, entry: &Entry, line: &mut Map<String, Value>) {
        let address = entry.service_url.split_once("://").map_or("", |(_, rest)| rest);
        let address = address.split(['/', '?']).next().unwrap_or_default();
        let mut texts = vec![
            ("RouterName", entry.route.as_str()),
            ("ServiceName", &entry.service),
            ("ServiceURL", &entry.service_url),
            ("ServiceAddr", address),
            ("reason", entry.reason),
            ("MeshPeer", &entry.mesh[0]),
            ("MeshGroups", &entry.mesh[1]),
        ];
        let subject = entry.tls.as_ref().and_then(|tls| subject(tls.client_certificates.first()?));
        if let Some(tls) = &entry.tls {
            texts.extend([("TLSVersion", tls.version), ("TLSCipher", tls.cipher)]);
            texts.push(("TLSClientSubject", subject.as_deref().unwrap_or_default()));
        }
        for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            line.insert(name.into(), text.into());
        }
        if entry.origin_status.is_some() && entry.bytes != 0 && entry.bytes != entry.origin_bytes {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let ratio = entry.origin_bytes as f64 / entry.bytes as f64;
            line.insert("GzipRatio".into(), ratio.into());
        }
    }

    fn add_headers(&self, prefix: &str, headers: &HeaderMap, line: &mut Map<String, Value>) {
        for name in headers.keys() {
            let text = match self.header_mode(name.as_str()) {
                FieldMode::Drop => continue,
                FieldMode::Redact => REDACTED.to_owned(),
                FieldMode::Keep => {
                    let values: Vec<_> =
                        headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
                    values.join(",")
                }
            };
            line.insert(format!("{prefix}{}", canonical(name)), text.into());
        }
    }
}

/// A visitor's text in a column: quotes and controls cannot break out of it.
fn contained(text: Cow<'_, str>) -> Cow<'_, str> {
    match text.is_empty() {
        true => Cow::Borrowed("-"),
        false if text.bytes().any(|b| b == b'"' || b == b'\\' || b < 0x20 || b == 0x7f) => {
            text.escape_default().to_string().into()
        }
        false => text,
    }
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

/// `2026-01-02T03:04:05Z`, with nanoseconds if wanted.
fn rfc3339(time: SystemTime, with_nanos: bool) -> String {
    let ([year, month, day, hour, minute, second], nanos) = civil(time);
    let fraction = if with_nanos { format!(".{nanos:09}") } else { String::new() };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// `02/Jan/2026:03:04:05 +0000`.
fn clf_time(time: SystemTime) -> String {
    let ([year, month, day, hour, minute, second], _) = civil(time);
    let month = usize::try_from(month - 1).ok().and_then(|index| MONTHS.get(index)).unwrap_or(&"-");
    format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
}

/// Year, month, day, hour, minute, second in UTC, and nanoseconds.
fn civil(time: SystemTime) -> ([u64; 6], u32) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (mut days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let mut year = 1970;
    let is_leap =
        |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let date = [year, month, days + 1, of_day / 3600, of_day / 60 % 60, of_day % 60];
    (date, since.subsec_nanos())
}

const REDACTED: &str = "REDACTED";
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let headers = [("user-agent", "curl/8 \"x\""), ("authorization", "secret"), ("referer", "http://b/")];
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap())).collect();
        Entry {
            started: SystemTime::UNIX_EPOCH + Duration::new(1_709_210_096, 5),
            duration: Duration::from_millis(12),
            request_id: "id".to_owned(),
            count: 7,
            peer: "192.0.2.1:4000".parse().unwrap(),
            client: "198.51.100.2".parse().unwrap(),
            method: http::Method::GET,
            host: "a.example:8443".to_owned(),
            path: "/p?q=1".to_owned(),
            version: http::Version::HTTP_2,
            status: 200,
            bytes: 10,
            received: 3,
            origin_bytes: 20,
            headers: [headers, HeaderMap::new(), HeaderMap::new()],
            route: "r@file".to_owned(),
            service: "s@file".to_owned(),
            service_url: "http://10.0.0.1:80/".to_owned(),
            origin_status: Some(201),
            origin_duration: Some(Duration::from_millis(10)),
            retries: 1,
            user: String::new(),
            mesh: Default::default(),
            entry_point: "web".to_owned(),
            tls: None,
            secure: true,
            reason: "",
        }
    }

    fn settings(format: AccessLogFormat) -> Settings {
        let mut fields = AccessLogFields::default();
        fields.headers.insert("User-Agent".to_owned(), FieldMode::Keep);
        fields.headers.insert("Authorization".to_owned(), FieldMode::Redact);
        Settings {
            file_path: None,
            format,
            buffered_lines_max: 0,
            filters: adit_config::AccessLogFilters::default(),
            fields,
            add_internals: false,
        }
    }

    fn line(settings: &Settings) -> String {
        let mut out = Vec::new();
        Lines::new(settings).write(&mut out, &entry()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn common_lines_have_the_columns_that_parsers_read() {
        let expected = "198.51.100.2 - - [29/Feb/2024:12:34:56 +0000] \"GET /p?q=1 HTTP/2.0\" 201 20 \"-\" \
                        \"curl/8 \\\"x\\\"\" 7 \"r@file\" \"http://10.0.0.1:80/\" 12ms\n";
        assert_eq!(line(&settings(AccessLogFormat::Common)), expected);
        let generic = line(&settings(AccessLogFormat::GenericClf));
        assert!(expected.starts_with(generic.trim_end()), "{generic}");
    }

    #[test]
    fn json_lines_have_the_usual_names_and_only_what_is_kept() {
        let mut settings = settings(AccessLogFormat::Json);
        settings.fields.names.insert("clientPort".to_owned(), FieldMode::Drop);
        settings.fields.query_parameters = FieldMode::Drop;
        let line: Value = serde_json::from_str(&line(&settings)).unwrap();
        for (name, value) in [
            ("StartUTC", json!("2024-02-29T12:34:56.000000005Z")),
            ("Duration", json!(12_000_000)),
            ("Overhead", json!(2_000_000)),
            ("RequestHost", json!("a.example")),
            ("RequestPort", json!("8443")),
            ("RequestPath", json!("/p")),
            ("ServiceAddr", json!("10.0.0.1:80")),
            ("GzipRatio", json!(2.0)),
            ("OriginStatus", json!(201)),
            ("RetryAttempts", json!(1)),
            ("request_User-Agent", json!("curl/8 \"x\"")),
            ("request_Authorization", json!("REDACTED")),
            ("ClientPort", Value::Null),
            ("request_Referer", Value::Null),
        ] {
            assert_eq!(line[name], value, "{name}");
        }
    }

    #[test]
    fn what_is_dropped_is_dropped_from_columns_too() {
        let mut settings = settings(AccessLogFormat::Common);
        settings.fields.default_mode = FieldMode::Drop;
        settings.fields.names.insert("RequestMethod".to_owned(), FieldMode::Keep);
        settings.fields.headers.clear();
        assert_eq!(line(&settings), "- - - [-] \"GET - -\" - - \"-\" \"-\" - \"-\" \"-\" 0ms\n");
    }
}
