//! The access log's lines, with Traefik's field names (`ingress-features.md §7.2`).
//!
//! A line is put together where it waits to be written: with the log on, this is a good part of what a small request costs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;

use adit_config::{AccessLog as Settings, AccessLogFields, AccessLogFormat, FieldMode};
use http::HeaderName;

use super::json_lines::JsonLines;
use super::line_time::Clock;
use crate::access_log::Entry;

/// Turns entries into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    format: AccessLogFormat,
    keep_query: bool,
    clock: Clock,
    json: JsonLines,
    columns: Columns,
}

/// Which columns of the fixed formats are kept.
#[derive(Debug)]
struct Columns {
    client: bool,
    user: bool,
    start: bool,
    method: bool,
    host: bool,
    path: bool,
    protocol: bool,
    origin_status: bool,
    origin_size: bool,
    status: bool,
    size: bool,
    referer: FieldMode,
    user_agent: FieldMode,
    count: bool,
    router: bool,
    server: bool,
    duration: bool,
    request_id: bool,
    reason: bool,
    mesh: bool,
}

impl Lines {
    pub(crate) fn new(settings: &Settings) -> Self {
        let AccessLogFields { default_mode, names, headers_default_mode, headers, query_parameters } =
            &settings.fields;
        let keep = |mode: FieldMode| mode != FieldMode::Drop;
        let names: HashMap<_, _> =
            names.iter().map(|(name, mode)| (name.to_ascii_lowercase(), keep(*mode))).collect();
        let headers: HashMap<_, _> =
            headers.iter().map(|(name, mode)| (name.to_ascii_lowercase(), *mode)).collect();
        let keep_by_default = keep(*default_mode);
        let keeps = |name: &str| names.get(&name.to_ascii_lowercase()).copied().unwrap_or(keep_by_default);
        let header = |name: &str| headers.get(name).copied().unwrap_or(*headers_default_mode);
        Self {
            format: settings.format,
            columns: Columns::new(&keeps, &header),
            keep_query: keep(*query_parameters),
            clock: Clock::default(),
            json: JsonLines::new(&keeps, headers, *headers_default_mode),
        }
    }

    /// Appends one line with its end.
    pub(crate) fn write(&mut self, line: &mut Vec<u8>, entry: &Entry) {
        match self.format {
            AccessLogFormat::Json => {
                let path = self.path(entry);
                self.json.write(line, entry, path, &mut self.clock);
            }
            AccessLogFormat::Common => self.common(line, entry),
            AccessLogFormat::GenericClf => self.generic(line, entry),
            AccessLogFormat::Text => self.text(line, entry),
        }
        line.push(b'\n');
    }

    fn path<'a>(&self, entry: &'a Entry) -> &'a str {
        let whole = entry.path.as_str();
        if self.keep_query { whole } else { whole.split_once('?').map_or(whole, |(path, _)| path) }
    }

    /// The origin's status and size; where no server was asked, what we answered ourselves.
    fn generic(&mut self, line: &mut Vec<u8>, entry: &Entry) {
        let (status, size) = match entry.origin_status {
            Some(status) => (status, entry.origin_bytes),
            None => (entry.status, entry.bytes),
        };
        address(line, self.columns.client, entry);
        line.extend_from_slice(b" - ");
        let user = entry.user.as_deref().unwrap_or_default();
        match user.contains(' ') {
            true => column(line, self.columns.user, &user.replace(' ', "\\x20")),
            false => column(line, self.columns.user, user),
        }
        line.extend_from_slice(b" [");
        match self.columns.start {
            true => self.clock.common(line, entry.started),
            false => line.push(b'-'),
        }
        line.extend_from_slice(b"] \"");
        column(line, self.columns.method, entry.method.as_str());
        line.push(b' ');
        column(line, self.columns.path, self.path(entry));
        line.push(b' ');
        column(line, self.columns.protocol, protocol(entry.version));
        line.extend_from_slice(b"\" ");
        number(line, self.columns.origin_status, status.into());
        line.push(b' ');
        number(line, self.columns.origin_size, size);
        line.extend_from_slice(b" \"");
        header(line, self.columns.referer, entry, &http::header::REFERER);
        line.extend_from_slice(b"\" \"");
        header(line, self.columns.user_agent, entry, &http::header::USER_AGENT);
        line.push(b'"');
    }

    fn common(&mut self, line: &mut Vec<u8>, entry: &Entry) {
        self.generic(line, entry);
        line.push(b' ');
        number(line, self.columns.count, entry.count);
        line.extend_from_slice(b" \"");
        column(line, self.columns.router, entry.route.as_deref().unwrap_or_default());
        line.extend_from_slice(b"\" \"");
        column(line, self.columns.server, entry.service_url.as_deref().unwrap_or_default());
        line.extend_from_slice(b"\" ");
        let milliseconds = u64::try_from(entry.duration.as_millis()).unwrap_or(u64::MAX);
        number(line, true, if self.columns.duration { milliseconds } else { 0 });
        line.extend_from_slice(b"ms");
    }

    fn text(&mut self, line: &mut Vec<u8>, entry: &Entry) {
        let columns = &self.columns;
        match columns.start {
            true => line.extend_from_slice(adit_proxy::date::format(entry.started).as_bytes()),
            false => line.push(b'-'),
        }
        line.push(b' ');
        address(line, columns.client, entry);
        line.extend_from_slice(b" \"");
        column(line, columns.method, entry.method.as_str());
        line.push(b' ');
        column(line, columns.host, &entry.host);
        column(line, columns.path, self.path(entry));
        line.push(b' ');
        column(line, columns.protocol, protocol(entry.version));
        line.extend_from_slice(b"\" ");
        number(line, columns.status, entry.status.into());
        line.push(b' ');
        number(line, columns.size, entry.bytes);
        line.push(b' ');
        match columns.duration {
            true => put(line, format_args!("{:.3}ms", entry.duration.as_secs_f64() * 1000.0)),
            false => line.push(b'-'),
        }
        for (keep, text) in [
            (columns.router, entry.route.as_deref().unwrap_or_default()),
            (columns.request_id, entry.request_id.as_str()),
            (columns.reason, entry.reason),
        ] {
            line.push(b' ');
            column(line, keep, text);
        }
        if let Some(peer) = &entry.mesh {
            line.push(b' ');
            column(line, columns.mesh, &peer.name);
        }
    }
}

impl Columns {
    fn new(keeps: &dyn Fn(&str) -> bool, header: &dyn Fn(&str) -> FieldMode) -> Self {
        Self {
            client: keeps("ClientHost"),
            user: keeps("ClientUsername"),
            start: keeps("StartUTC") || keeps("StartLocal"),
            method: keeps("RequestMethod"),
            host: keeps("RequestHost"),
            path: keeps("RequestPath"),
            protocol: keeps("RequestProtocol"),
            origin_status: keeps("OriginStatus"),
            origin_size: keeps("OriginContentSize"),
            status: keeps("DownstreamStatus"),
            size: keeps("DownstreamContentSize"),
            referer: header("referer"),
            user_agent: header("user-agent"),
            count: keeps("RequestCount"),
            router: keeps("RouterName"),
            server: keeps("ServiceURL"),
            duration: keeps("Duration"),
            request_id: keeps("RequestId"),
            reason: keeps("reason"),
            mesh: keeps("MeshPeer"),
        }
    }
}

pub(super) fn put(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A vector takes every write.
    let _ = line.write_fmt(text);
}

/// A field's text: `-` if it is dropped or empty, and nothing that could break out of the line.
fn column(line: &mut Vec<u8>, keep: bool, text: &str) {
    if !keep || text.is_empty() {
        line.push(b'-');
    } else if text.bytes().fold(false, |odd, b| odd | matches!(b, b'"' | b'\\' | ..0x20 | 0x7f)) {
        put(line, format_args!("{}", text.escape_default()));
    } else {
        line.extend_from_slice(text.as_bytes());
    }
}

pub(super) fn number(line: &mut Vec<u8>, keep: bool, number: u64) {
    match keep {
        true => line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
        false => line.push(b'-'),
    }
}

fn address(line: &mut Vec<u8>, keep: bool, entry: &Entry) {
    match keep {
        true => match entry.client {
            std::net::IpAddr::V4(address) => {
                for (place, octet) in address.octets().into_iter().enumerate() {
                    if place > 0 {
                        line.push(b'.');
                    }
                    number(line, true, octet.into());
                }
            }
            address @ std::net::IpAddr::V6(_) => put(line, format_args!("{address}")),
        },
        false => line.push(b'-'),
    }
}

fn header(line: &mut Vec<u8>, mode: FieldMode, entry: &Entry, name: &HeaderName) {
    match mode {
        FieldMode::Drop => line.push(b'-'),
        FieldMode::Redact => line.extend_from_slice(REDACTED.as_bytes()),
        FieldMode::Keep => {
            let value = entry.headers[0].get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
            column(line, true, &value.unwrap_or(Cow::Borrowed("")));
        }
    }
}

/// As request lines have it.
pub(super) fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2.0",
        http::Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

pub(super) const REDACTED: &str = "REDACTED";

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use http::HeaderMap;
    use serde_json::{Value, json};

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
            route: Some("r@file".into()),
            service: Some("s@file".into()),
            service_url: Some("http://10.0.0.1:80/".into()),
            origin_status: Some(201),
            origin_duration: Some(Duration::from_millis(10)),
            retries: 1,
            user: None,
            mesh: None,
            entry_point: Some("web".into()),
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
        Lines::new(settings).write(&mut out, &entry());
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
    fn a_refusal_has_a_ratio_of_nothing() {
        let refused = Entry {
            status: 403,
            bytes: 10,
            origin_bytes: 0,
            origin_status: None,
            reason: "denied",
            ..entry()
        };
        let mut out = Vec::new();
        Lines::new(&settings(AccessLogFormat::Json)).write(&mut out, &refused);
        let line: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&line["GzipRatio"], &line["OriginStatus"]), (&json!(0.0), &json!(0)));
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
