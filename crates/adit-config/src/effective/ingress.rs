//! Entry points, providers and what is seen from outside, spelt out.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value, json};

use super::{address, duration, insert};
use crate::{
    AccessLog, AccessLogFormat, AcmeChallenge, AcmeKeyType, CertificateResolver, DnsChallenge, DynamicFiles,
    EntryPoint, EntryPointNetwork, EntryPointTransport, FieldMode, Impersonation, Metrics, Prometheus,
    Providers, Redirection, UnderscoreHeaders,
    dynamic::{EncodedCharacters, RouterTls},
};

pub(super) fn entry_point(entry_point: &EntryPoint) -> Value {
    let unlimited = |timeout: Option<Duration>| duration(timeout.unwrap_or_default());
    let suffix = match entry_point.transport {
        EntryPointTransport::Tcp => "",
        EntryPointTransport::Udp => "/udp",
    };
    let on = match entry_point.on {
        EntryPointNetwork::Host => "host",
        EntryPointNetwork::Mesh => "mesh",
    };
    let mut fields = json!({
        "address": format!("{}{suffix}", address(entry_point.address)),
        "on": on,
        "impersonate": match entry_point.impersonate {
            Impersonation::Nobody => "nobody",
            Impersonation::Peer => "peer",
            Impersonation::Visitor => "visitor",
        },
        "asDefault": entry_point.as_default,
        "http": http(entry_point),
        "forwardedHeaders": {
            "trustedIPs": strings(&entry_point.forwarded_trusted),
            "insecure": entry_point.forwarded_insecure,
            "connection": entry_point.forwarded_connection,
            "notAppendXForwardedFor": entry_point.forwarded_not_append,
            "addXForwardedSchemeHeaders": entry_point.forwarded_scheme_headers,
            "websocketScheme": entry_point.forwarded_websocket_scheme,
        },
        "transport": {
            "respondingTimeouts": {
                "readHeaderTimeout": duration(entry_point.read_header_timeout),
                "readTimeout": unlimited(entry_point.read_timeout),
                "writeTimeout": unlimited(entry_point.write_timeout),
                "idleTimeout": duration(entry_point.idle_timeout),
            },
            "lifeCycle": {
                "requestAcceptGraceTimeout": duration(entry_point.request_accept_grace),
                "graceTimeOut": duration(entry_point.grace_period),
            },
        },
        "udp": { "timeout": duration(entry_point.udp_timeout) },
        "reusePort": entry_point.reuse_port,
        "allowACMEByPass": entry_point.acme_bypass,
        "observability": { "accessLogs": entry_point.access_logs, "metrics": entry_point.metrics },
    });
    if let Some(fields) = fields.as_object_mut() {
        insert(
            fields,
            "http2",
            entry_point.http2_streams_max.map(|max| json!({ "maxConcurrentStreams": max })),
        );
        let port =
            |port: Option<u16>| port.map_or_else(|| json!({}), |port| json!({ "advertisedPort": port }));
        insert(fields, "http3", entry_point.http3.map(|http3| port(http3.advertised_port)));
        let trust = entry_point.proxy_protocol.as_ref();
        insert(
            fields,
            "proxyProtocol",
            trust.map(|trust| json!({ "trustedIPs": strings(&trust.trusted), "insecure": trust.insecure })),
        );
    }
    fields
}

fn http(entry_point: &EntryPoint) -> Map<String, Value> {
    let mut http = Map::new();
    insert(&mut http, "tls", entry_point.router_tls.as_ref().map(router_tls));
    insert(&mut http, "redirections", entry_point.redirection.as_ref().map(redirection));
    insert(&mut http, "maxHeaderBytes", entry_point.header_bytes_max.map(|max| json!(max)));
    http.insert("middlewares".into(), json!(entry_point.middlewares));
    http.insert("sanitizePath".into(), json!(entry_point.sanitize_path));
    http.insert("encodeQuerySemicolons".into(), json!(entry_point.encode_query_semicolons));
    http.insert("encodedCharacters".into(), encoded_characters(entry_point.encoded_characters));
    let strategy = match entry_point.underscore_headers {
        UnderscoreHeaders::Keep => "keep",
        UnderscoreHeaders::Delete => "delete",
        UnderscoreHeaders::Reject => "reject",
    };
    http.insert("underscoreHeadersStrategy".into(), json!(strategy));
    http
}

fn router_tls(tls: &RouterTls) -> Value {
    let mut fields = Map::new();
    insert(&mut fields, "options", tls.options.as_ref().map(|name| json!(name)));
    insert(&mut fields, "certResolver", tls.cert_resolver.as_ref().map(|name| json!(name)));
    if !tls.domains.is_empty() {
        let domains = tls.domains.iter().map(|domain| json!({ "main": domain.main, "sans": domain.sans }));
        fields.insert("domains".into(), domains.collect());
    }
    fields.into()
}

fn redirection(redirection: &Redirection) -> Value {
    json!({ "entryPoint": {
        "to": redirection.to,
        "scheme": redirection.scheme,
        "permanent": redirection.permanent,
        "priority": redirection.priority,
    }})
}

fn encoded_characters(allowed: EncodedCharacters) -> Value {
    json!({
        "allowEncodedSlash": allowed.allow_slash,
        "allowEncodedBackSlash": allowed.allow_back_slash,
        "allowEncodedNullCharacter": allowed.allow_null,
        "allowEncodedSemicolon": allowed.allow_semicolon,
        "allowEncodedPercent": allowed.allow_percent,
        "allowEncodedQuestionMark": allowed.allow_question_mark,
        "allowEncodedHash": allowed.allow_hash,
    })
}

pub(super) fn access_log(log: &AccessLog) -> Value {
    let ranges = log.filters.status_codes.iter().map(|(from, to)| format!("{from}-{to}"));
    let mut fields = Map::new();
    insert(&mut fields, "filePath", log.file_path.as_ref().map(|path| json!(path.display().to_string())));
    fields.insert("format".into(), json!(access_log_format(log.format)));
    fields.insert("bufferingSize".into(), json!(log.buffered_lines_max));
    fields.insert("addInternals".into(), json!(log.add_internals));
    fields.insert(
        "filters".into(),
        json!({
            "statusCodes": ranges.collect::<Vec<_>>(),
            "retryAttempts": log.filters.retry_attempts,
            "minDuration": duration(log.filters.duration_min),
        }),
    );
    fields.insert(
        "fields".into(),
        json!({
            "defaultMode": mode(log.fields.default_mode),
            "names": modes(&log.fields.names),
            "headers": {
                "defaultMode": mode(log.fields.headers_default_mode),
                "names": modes(&log.fields.headers),
            },
            "queryParameters": { "defaultMode": mode(log.fields.query_parameters) },
        }),
    );
    fields.into()
}

fn access_log_format(format: AccessLogFormat) -> &'static str {
    match format {
        AccessLogFormat::Common => "common",
        AccessLogFormat::GenericClf => "genericCLF",
        AccessLogFormat::Json => "json",
        AccessLogFormat::Text => "text",
    }
}

fn modes(modes: &BTreeMap<String, FieldMode>) -> BTreeMap<&str, &'static str> {
    modes.iter().map(|(name, value)| (name.as_str(), mode(*value))).collect()
}

fn mode(mode: FieldMode) -> &'static str {
    match mode {
        FieldMode::Keep => "keep",
        FieldMode::Drop => "drop",
        FieldMode::Redact => "redact",
    }
}

/// Absent where nothing but the admin endpoint shows metrics.
pub(super) fn metrics(metrics: &Metrics) -> Option<Value> {
    let prometheus = metrics.prometheus.as_ref()?;
    Some(json!({ "prometheus": self::prometheus(prometheus), "addInternals": metrics.add_internals }))
}

fn prometheus(prometheus: &Prometheus) -> Value {
    let mut fields = Map::new();
    fields.insert("addEntryPointsLabels".into(), json!(prometheus.entry_points_labels));
    fields.insert("addRoutersLabels".into(), json!(prometheus.routers_labels));
    fields.insert("addServicesLabels".into(), json!(prometheus.services_labels));
    let buckets = prometheus.buckets.iter().map(Duration::as_secs_f64);
    fields.insert("buckets".into(), json!(buckets.collect::<Vec<_>>()));
    fields.into()
}

pub(super) fn providers(providers: &Providers) -> Value {
    let mut fields = Map::new();
    fields.insert("providersThrottleDuration".into(), json!(duration(providers.throttle)));
    insert(
        &mut fields,
        "file",
        providers.file.as_ref().map(|file| {
            let (key, path) = match &file.files {
                DynamicFiles::File(path) => ("filename", path),
                DynamicFiles::Directory(path) => ("directory", path),
            };
            json!({ key: path.display().to_string(), "watch": file.watch })
        }),
    );
    fields.into()
}

pub(super) fn resolver(resolver: &CertificateResolver) -> Value {
    let (key, challenge) = match &resolver.challenge {
        AcmeChallenge::Http { entry_point, delay } => {
            ("httpChallenge", json!({ "entryPoint": entry_point, "delay": duration(*delay) }))
        }
        AcmeChallenge::Tls { delay } => ("tlsChallenge", json!({ "delay": duration(*delay) })),
        AcmeChallenge::Dns(dns) => ("dnsChallenge", dns_challenge(dns)),
    };
    let mut fields = Map::new();
    insert(&mut fields, "email", resolver.email.as_ref().map(|email| json!(email)));
    insert(&mut fields, "keyType", resolver.key_type.map(|kind| json!(key_type(kind))));
    insert(&mut fields, "preferredChain", resolver.preferred_chain.as_ref().map(|name| json!(name)));
    insert(&mut fields, "profile", resolver.profile.as_ref().map(|name| json!(name)));
    insert(&mut fields, "caServerName", resolver.ca_server_name.as_ref().map(|name| json!(name)));
    let account = resolver.external_account.as_ref();
    insert(
        &mut fields,
        "eab",
        account.map(|account| json!({ "kid": account.key_id, "hmacEncoded": account.key.to_string() })),
    );
    fields.insert("caServer".into(), json!(resolver.directory));
    fields.insert("storage".into(), json!(resolver.storage.display().to_string()));
    fields.insert("certificatesDuration".into(), json!(resolver.certificates_duration.as_secs() / 3600));
    fields.insert("clientTimeout".into(), json!(duration(resolver.client_timeout)));
    fields.insert("certificateTimeout".into(), json!(duration(resolver.certificate_timeout)));
    fields.insert("caSystemCertPool".into(), json!(resolver.ca_system_roots));
    fields.insert(key.into(), challenge);
    json!({ "acme": fields })
}

fn dns_challenge(dns: &DnsChallenge) -> Value {
    let mut update = Map::new();
    update.insert("nameserver".into(), json!(dns.nameserver));
    insert(&mut update, "zone", dns.zone.as_ref().map(|zone| json!(zone)));
    if let Some(key) = &dns.key {
        update.insert("tsigKey".into(), json!(key.name));
        update.insert("tsigAlgorithm".into(), json!(key.algorithm));
        update.insert("tsigSecret".into(), json!(key.secret.to_string()));
    }
    json!({
        "provider": "rfc2136",
        "rfc2136": update,
        "resolvers": dns.resolvers,
        "propagation": {
            "disableChecks": dns.disable_checks,
            "delayBeforeChecks": duration(dns.delay_before_checks),
        },
    })
}

fn key_type(kind: AcmeKeyType) -> &'static str {
    match kind {
        AcmeKeyType::Ec256 => "EC256",
        AcmeKeyType::Ec384 => "EC384",
        AcmeKeyType::Rsa2048 => "RSA2048",
        AcmeKeyType::Rsa4096 => "RSA4096",
        AcmeKeyType::Rsa8192 => "RSA8192",
    }
}

fn strings(values: &[impl ToString]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Secret, TsigKey};

    #[test]
    fn keys_of_resolvers_are_masked() {
        let secret = Secret::new(b"hunter2".to_vec());
        let algorithm = "hmac-sha256".to_owned();
        let dns = DnsChallenge {
            nameserver: "ns.example:53".to_owned(),
            zone: None,
            key: Some(TsigKey { name: "k.".to_owned(), algorithm, secret }),
            resolvers: Vec::new(),
            disable_checks: false,
            delay_before_checks: Duration::ZERO,
        };
        let shown = dns_challenge(&dns).to_string();
        assert!(shown.contains("\"tsigSecret\":\"***\"") && !shown.contains("aHVudGVyMg"), "{shown}");
    }
}
