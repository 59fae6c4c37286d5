//! `entryPoints`: public listeners in Traefik's words.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::{
    EntryPoint,
    read::{Field, Section},
    units::{DURATION_MAX, parse_duration},
    yaml::Value,
};

/// Reads all entry points; `grace_period` is what one has that says nothing of its own.
pub(crate) fn read_entry_points(field: &Field<'_>, grace_period: Duration) -> BTreeMap<String, EntryPoint> {
    let mut entry_points = BTreeMap::new();
    for (name, field) in field.named() {
        if !is_name(name) {
            field.reject_hidden("entry points need a name of 1 to 64 letters, digits, `-` or `_`");
        }
        if let Some(entry_point) = read_entry_point(&field, grace_period) {
            entry_points.insert(name.to_owned(), entry_point);
        }
    }
    if entry_points.len() > ENTRY_POINTS_MAX {
        field.reject_hidden("expected at most 64 entry points");
    }
    // Traefik: without any `asDefault`, all are.
    if entry_points.values().all(|entry_point| !entry_point.as_default) {
        entry_points.values_mut().for_each(|entry_point| entry_point.as_default = true);
    }
    entry_points
}

fn read_entry_point(field: &Field<'_>, grace_period: Duration) -> Option<EntryPoint> {
    let mut section = field.section()?;
    let address = section.require("address").and_then(|field| read_tcp_address(&field));
    let mut entry_point = EntryPoint { grace_period, ..EntryPoint::new(address.unwrap_or(PLACEHOLDER)) };
    section.set("asDefault", &mut entry_point.as_default, Field::boolean);
    section.set("http", &mut entry_point.tls, read_http);
    if let Some(field) = section.take("forwardedHeaders") {
        read_forwarded_headers(&field, &mut entry_point);
    }
    if let Some(mut transport) = section.take("transport").and_then(|field| field.section()) {
        read_transport(&mut transport, &mut entry_point);
        transport.finish();
    }
    section.refuse(&["on", "http2", "http3", "proxyProtocol", "udp", "reusePort", "observability"]);
    section.finish();
    address.map(|_| entry_point)
}

impl EntryPoint {
    /// An entry point at an address with every other setting at its default.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            as_default: false,
            tls: false,
            forwarded_trusted: Vec::new(),
            forwarded_insecure: false,
            read_header_timeout: Duration::from_secs(10),
            read_timeout: None,
            write_timeout: None,
            // Traefik's default.
            idle_timeout: Duration::from_secs(180),
            grace_period: crate::GRACE_PERIOD_DEFAULT,
        }
    }
}

/// `host:port`, perhaps with Traefik's suffix `/tcp`.
fn read_tcp_address(field: &Field<'_>) -> Option<SocketAddr> {
    if field.text()?.ends_with("/udp") {
        field.reject("UDP entry points are not implemented in this version");
        return None;
    }
    field.parse("an address such as `127.0.0.1:8000`, `[::1]:8000` or `:8000`", |text| {
        crate::parse_listen_address(text.strip_suffix("/tcp").unwrap_or(text))
    })
}

/// Whether `http.tls` is there: a mapping or `true`.
fn read_http(field: &Field<'_>) -> Option<bool> {
    let mut section = field.section()?;
    let tls = section.optional("tls", |field| match &field.node.value {
        Value::Mapping(_) => {
            let mut section = field.section()?;
            section.refuse(&["certResolver", "domains", "options"]);
            section.finish();
            Some(true)
        }
        _ => field.boolean(),
    });
    section.refuse(&[
        "redirections",
        "middlewares",
        "encodeQuerySemicolons",
        "sanitizePath",
        "maxHeaderBytes",
        "encodedCharacters",
    ]);
    section.finish();
    Some(tls.unwrap_or(false))
}

fn read_forwarded_headers(field: &Field<'_>, entry_point: &mut EntryPoint) {
    let Some(mut section) = field.section() else { return };
    section.set("trustedIPs", &mut entry_point.forwarded_trusted, |field| {
        let read_network =
            |item: &Field<'_>| item.parse("an address or network such as `10.0.0.0/8`", network);
        Some(field.items().iter().filter_map(read_network).collect())
    });
    section.set("insecure", &mut entry_point.forwarded_insecure, Field::boolean);
    section.refuse(&["connection", "notAppendXForwardedFor"]);
    section.finish();
}

fn read_transport(section: &mut Section<'_>, entry_point: &mut EntryPoint) {
    if let Some(mut timeouts) = section.take("respondingTimeouts").and_then(|field| field.section()) {
        timeouts.set("readHeaderTimeout", &mut entry_point.read_header_timeout, |field| {
            let timeout = duration(field)?;
            if timeout.is_zero() {
                field.reject("expected a duration above 0s");
            }
            Some(timeout)
        });
        timeouts.set("readTimeout", &mut entry_point.read_timeout, |field| duration(field).map(non_zero));
        timeouts.set("writeTimeout", &mut entry_point.write_timeout, |field| duration(field).map(non_zero));
        timeouts.set("idleTimeout", &mut entry_point.idle_timeout, duration);
        timeouts.finish();
    }
    if let Some(mut life_cycle) = section.take("lifeCycle").and_then(|field| field.section()) {
        life_cycle.set("graceTimeOut", &mut entry_point.grace_period, duration);
        life_cycle.refuse(&["requestAcceptGraceTimeout"]);
        life_cycle.finish();
    }
    section.refuse(&["keepAliveMaxRequests", "keepAliveMaxTime"]);
}

/// In Traefik's sections a number alone means seconds.
fn duration(field: &Field<'_>) -> Option<Duration> {
    field.parse("a duration such as `30s`", |text| {
        let seconds =
            || text.parse().ok().map(Duration::from_secs).filter(|duration| *duration <= DURATION_MAX);
        parse_duration(text).or_else(seconds)
    })
}

fn non_zero(duration: Duration) -> Option<Duration> {
    Some(duration).filter(|duration| !duration.is_zero())
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address)))
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Stands in while the rest of an entry point without a good address is read for more problems.
const PLACEHOLDER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Each is a socket and an accept task.
const ENTRY_POINTS_MAX: usize = 64;
