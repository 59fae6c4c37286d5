//! `entryPoints`: public listeners in Traefik's words.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::{
    EntryPoint, EntryPointNetwork, EntryPointTransport, Http3, Impersonation, ProxyProtocolTrust,
    Redirection, UnderscoreHeaders,
    dynamic::{EncodedCharacters, network, read_encoded_characters, read_router_tls, read_tracing},
    model_ingress::PLACEHOLDER_ADDRESS,
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
    let address = section.require("address").and_then(|field| read_address(&field));
    let (listen, transport) = address.unwrap_or((PLACEHOLDER_ADDRESS, EntryPointTransport::Tcp));
    let mut entry_point = EntryPoint { grace_period, transport, ..EntryPoint::new(listen) };
    section.set("asDefault", &mut entry_point.as_default, Field::boolean);
    if let Some(field) = section.take("http") {
        read_http(&field, &mut entry_point);
    }
    if let Some(field) = section.take("forwardedHeaders") {
        read_forwarded_headers(&field, &mut entry_point);
    }
    if let Some(mut transport) = section.take("transport").and_then(|field| field.section()) {
        read_transport(&mut transport, &mut entry_point);
        transport.finish();
    }
    entry_point.http2_streams_max = section.optional("http2", read_http2);
    entry_point.http3 = section.optional("http3", read_http3);
    entry_point.proxy_protocol = section.optional("proxyProtocol", read_proxy_protocol);
    section.set("udp", &mut entry_point.udp_timeout, read_udp);
    section.set("reusePort", &mut entry_point.reuse_port, Field::boolean);
    section.set("allowACMEByPass", &mut entry_point.acme_bypass, Field::boolean);
    if let Some(field) = section.take("observability") {
        read_observability(&field, &mut entry_point);
    }
    section.set("on", &mut entry_point.on, read_network);
    section.set("impersonate", &mut entry_point.impersonate, read_impersonation);
    section.finish();
    address.map(|_| entry_point)
}

fn read_network(field: &Field<'_>) -> Option<EntryPointNetwork> {
    field.parse("`host` or `mesh`", |text| match text {
        "host" => Some(EntryPointNetwork::Host),
        "mesh" => Some(EntryPointNetwork::Mesh),
        _ => None,
    })
}

fn read_impersonation(field: &Field<'_>) -> Option<Impersonation> {
    field.parse("`true` (or `peer`), `false` (or `nobody`) or `visitor`", |text| match text {
        "true" | "peer" => Some(Impersonation::Peer),
        "false" | "nobody" => Some(Impersonation::Nobody),
        "visitor" => Some(Impersonation::Visitor),
        _ => None,
    })
}

/// `host:port`, perhaps with Traefik's suffix `/tcp` or `/udp`.
fn read_address(field: &Field<'_>) -> Option<(SocketAddr, EntryPointTransport)> {
    field.parse("an address such as `127.0.0.1:8000`, `[::1]:8000`, `:8000` or `:53/udp`", |text| {
        let (address, transport) = match text.split_once('/') {
            None => (text, EntryPointTransport::Tcp),
            Some((address, suffix)) if suffix.eq_ignore_ascii_case("tcp") => {
                (address, EntryPointTransport::Tcp)
            }
            Some((address, suffix)) if suffix.eq_ignore_ascii_case("udp") => {
                (address, EntryPointTransport::Udp)
            }
            Some(_) => return None,
        };
        Some((crate::parse_listen_address(address)?, transport))
    })
}

fn read_http(field: &Field<'_>, entry_point: &mut EntryPoint) {
    let Some(mut section) = field.section() else { return };
    entry_point.router_tls = section.optional("tls", read_router_tls);
    entry_point.tls = entry_point.router_tls.is_some();
    section.set("middlewares", &mut entry_point.middlewares, Field::strings);
    entry_point.redirection = section.optional("redirections", read_redirections);
    section.set("sanitizePath", &mut entry_point.sanitize_path, Field::boolean);
    section.set("encodeQuerySemicolons", &mut entry_point.encode_query_semicolons, Field::boolean);
    section.set("encodedCharacters", &mut entry_point.encoded_characters, |field| {
        read_encoded_characters(field, EncodedCharacters::ALL)
    });
    entry_point.header_bytes_max =
        section.optional("maxHeaderBytes", |field| field.integer(HEADER_BYTES_MIN..=HEADER_BYTES_MAX));
    section.set("underscoreHeadersStrategy", &mut entry_point.underscore_headers, |field| {
        field.parse("`keep`, `delete` or `reject`", |text| match text {
            "keep" => Some(UnderscoreHeaders::Keep),
            "delete" => Some(UnderscoreHeaders::Delete),
            "reject" => Some(UnderscoreHeaders::Reject),
            _ => None,
        })
    });
    section.finish();
}

fn read_redirections(field: &Field<'_>) -> Option<Redirection> {
    let mut section = field.section()?;
    let redirection = section.require("entryPoint").and_then(|field| {
        let mut section = field.section()?;
        let mut redirection = Redirection::default();
        let to = section.require("to").and_then(|field| field.filled());
        section.set("scheme", &mut redirection.scheme, Field::filled);
        section.set("permanent", &mut redirection.permanent, Field::boolean);
        section.set("priority", &mut redirection.priority, Field::whole);
        section.finish();
        Some(Redirection { to: to?, ..redirection })
    });
    section.finish();
    redirection
}

fn read_forwarded_headers(field: &Field<'_>, entry_point: &mut EntryPoint) {
    let Some(mut section) = field.section() else { return };
    section.set("trustedIPs", &mut entry_point.forwarded_trusted, read_networks);
    section.set("insecure", &mut entry_point.forwarded_insecure, Field::boolean);
    section.set("connection", &mut entry_point.forwarded_connection, Field::strings);
    section.set("notAppendXForwardedFor", &mut entry_point.forwarded_not_append, Field::boolean);
    section.set("addXForwardedSchemeHeaders", &mut entry_point.forwarded_scheme_headers, Field::boolean);
    section.set("websocketScheme", &mut entry_point.forwarded_websocket_scheme, Field::boolean);
    section.finish();
}

fn read_networks(field: &Field<'_>) -> Option<Vec<IpNet>> {
    let read = |item: &Field<'_>| item.parse("an address or network such as `10.0.0.0/8`", network);
    Some(field.items().iter().filter_map(read).collect())
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
        life_cycle.set("requestAcceptGraceTimeout", &mut entry_point.request_accept_grace, duration);
        life_cycle.finish();
    }
    section.refuse(&["keepAliveMaxRequests", "keepAliveMaxTime"]);
}

fn read_http2(field: &Field<'_>) -> Option<u32> {
    let mut section = field.section()?;
    let streams_max = section.optional("maxConcurrentStreams", |field| field.integer(1..=10_000));
    section.refuse(&["maxDecoderHeaderTableSize", "maxEncoderHeaderTableSize"]);
    section.finish();
    streams_max
}

fn read_http3(field: &Field<'_>) -> Option<Http3> {
    let mut section = match &field.node.value {
        Value::Mapping(_) => field.section()?,
        _ => return field.boolean()?.then(Http3::default),
    };
    let advertised_port = section.optional("advertisedPort", |field| field.integer(1..=65535));
    section.finish();
    Some(Http3 { advertised_port })
}

fn read_proxy_protocol(field: &Field<'_>) -> Option<ProxyProtocolTrust> {
    let mut section = match &field.node.value {
        Value::Mapping(_) => field.section()?,
        _ => return field.boolean()?.then(ProxyProtocolTrust::default),
    };
    let mut trust = ProxyProtocolTrust::default();
    section.set("trustedIPs", &mut trust.trusted, read_networks);
    section.set("insecure", &mut trust.insecure, Field::boolean);
    section.finish();
    Some(trust)
}

fn read_udp(field: &Field<'_>) -> Option<Duration> {
    let mut section = field.section()?;
    let timeout = section.optional("timeout", |field| {
        let timeout = duration(field)?;
        if timeout.is_zero() {
            field.reject("expected a duration above 0s");
        }
        Some(timeout)
    });
    section.finish();
    timeout
}

fn read_observability(field: &Field<'_>, entry_point: &mut EntryPoint) {
    let Some(mut section) = field.section() else { return };
    section.set("accessLogs", &mut entry_point.access_logs, Field::boolean);
    section.set("metrics", &mut entry_point.metrics, Field::boolean);
    read_tracing(&mut section);
    section.finish();
}

/// In Traefik's sections a number alone means seconds.
pub(crate) fn duration(field: &Field<'_>) -> Option<Duration> {
    field.parse("a duration such as `30s`", |text| {
        let seconds =
            || text.parse().ok().map(Duration::from_secs).filter(|duration| *duration <= DURATION_MAX);
        parse_duration(text).or_else(seconds)
    })
}

fn non_zero(duration: Duration) -> Option<Duration> {
    Some(duration).filter(|duration| !duration.is_zero())
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Each is a socket and an accept task.
const ENTRY_POINTS_MAX: usize = 64;
/// Below this no browser gets through.
const HEADER_BYTES_MIN: u64 = 4 << 10;
/// Traefik's default, and the most that one connection may hold for its head.
const HEADER_BYTES_MAX: u64 = 1 << 20;
