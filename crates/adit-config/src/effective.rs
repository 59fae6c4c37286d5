//! The effective configuration as the operator would write it, secrets masked, each value with its origin.

mod ingress;
mod mesh;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::{Map, Value, json};

use crate::{
    CertificateFiles, Config, CredentialsSource, Edge, EdgeIpVersion, EdgeTunnel, Limits, LogFormat,
    LogLevel, Origin, Protocol, Tunnel, WarpRouting, format_duration, format_size,
};

impl Config {
    /// The whole configuration with the keys of `adit.yaml` and every default spelt out; secrets are `***`.
    pub fn to_effective(&self) -> Value {
        let mut fields = Map::new();
        let entry_points: Map<_, _> = self
            .entry_points
            .iter()
            .map(|(name, value)| (name.clone(), ingress::entry_point(value)))
            .collect();
        fields.insert("entryPoints".into(), entry_points.into());
        let certificates =
            self.tls.certificates.iter().map(|files| certificate(files, "certFile", "keyFile"));
        fields.insert("tls".into(), json!({ "certificates": certificates.collect::<Vec<_>>() }));
        insert(&mut fields, "tunnel", self.tunnel.as_ref().map(tunnel));
        insert(&mut fields, "edge", self.edge.as_ref().map(edge));
        insert(&mut fields, "mesh", self.mesh.as_ref().map(mesh::mesh));
        fields.insert("admin".into(), json!({ "address": address(self.admin.address) }));
        fields.insert(
            "log".into(),
            json!({ "level": level(self.log.level), "format": format(self.log.format) }),
        );
        insert(&mut fields, "accessLog", self.access_log.as_ref().map(ingress::access_log));
        insert(&mut fields, "metrics", ingress::metrics(&self.metrics));
        fields.insert("providers".into(), ingress::providers(&self.providers));
        if !self.tls.resolvers.is_empty() {
            let resolvers = self.tls.resolvers.iter();
            let resolvers: Map<_, _> =
                resolvers.map(|(name, resolver)| (name.clone(), ingress::resolver(resolver))).collect();
            fields.insert("certificatesResolvers".into(), resolvers.into());
        }
        fields.insert("limits".into(), limits(&self.limits));
        fields.insert("shutdown".into(), json!({ "grace-period": duration(self.shutdown.grace_period) }));
        insert(
            &mut fields,
            "state-dir",
            self.state_dir.as_ref().map(|path| json!(path.display().to_string())),
        );
        fields.into()
    }

    /// As [`Self::to_effective`], as YAML with the place of each value in a comment; values without one are defaults.
    pub fn to_effective_yaml(&self) -> String {
        let mut yaml = String::new();
        write_mapping(&mut yaml, &self.to_effective(), &Place { path: "", indent: 0 }, &self.origins);
        yaml
    }
}

fn tunnel(tunnel: &Tunnel) -> Value {
    let mut fields = Map::new();
    let path = |path: &std::path::PathBuf| json!(path.display().to_string());
    insert(&mut fields, "name", tunnel.name.as_ref().map(|name| json!(name)));
    if let CredentialsSource::Given(credentials) = &tunnel.credentials {
        // Not keys of the file: they show what the token or credentials file said.
        fields.insert("id".into(), json!(credentials.tunnel_id.to_string()));
        fields.insert("account-tag".into(), json!(credentials.account_tag));
        fields.insert("secret".into(), json!(credentials.secret.to_string()));
    }
    insert(&mut fields, "ca", tunnel.ca.as_ref().map(path));
    insert(&mut fields, "edge-bind-address", tunnel.edge_bind_address.map(|ip| json!(ip.to_string())));
    insert(&mut fields, "region", tunnel.region.as_ref().map(|region| json!(region)));
    insert(&mut fields, "label", tunnel.label.as_ref().map(|label| json!(label)));
    let tags = tunnel.tags.iter().map(|tag| format!("{}={}", tag.name, tag.value)).collect::<Vec<_>>();
    let rest = json!({
        "edge": tunnel.edge,
        "connections": tunnel.connections,
        "protocol": match tunnel.protocol {
            Protocol::Auto => "auto",
            Protocol::Quic => "quic",
            Protocol::Http2 => "http2",
        },
        "grace-period": duration(tunnel.grace_period),
        "retries": tunnel.retries,
        "edge-address-retries": tunnel.edge_address_retries,
        "rpc-timeout": duration(tunnel.rpc_timeout),
        "features": tunnel.features,
        "post-quantum": tunnel.post_quantum,
        "edge-ip-version": match tunnel.edge_ip_version {
            EdgeIpVersion::Auto => "auto",
            EdgeIpVersion::V4 => "4",
            EdgeIpVersion::V6 => "6",
        },
        "tags": tags,
        "write-stream-timeout": duration(tunnel.write_stream_timeout),
        "disable-pmtu-discovery": tunnel.disable_pmtu_discovery,
        "warp-routing": warp_routing(&tunnel.warp_routing),
        "ingress": tunnel.ingress.to_effective(),
        "entry-points": tunnel.entry_points,
    });
    if let Value::Object(rest) = rest {
        fields.extend(rest);
    }
    fields.into()
}

fn warp_routing(settings: &WarpRouting) -> Value {
    json!({
        "connectTimeout": duration(settings.connect_timeout),
        "maxActiveFlows": settings.active_flows_max,
        "tcpKeepAlive": duration(settings.tcp_keep_alive),
    })
}

fn edge(edge: &Edge) -> Value {
    let mut fields = Map::new();
    insert(
        &mut fields,
        "certificate",
        edge.certificate.as_ref().map(|files| certificate(files, "cert", "key")),
    );
    fields.insert("listen".into(), json!(address(edge.listen)));
    fields.insert("public".into(), json!(edge.public));
    fields.insert("tunnels".into(), edge.tunnels.iter().map(edge_tunnel).collect());
    fields.insert("location".into(), json!(edge.location));
    fields.insert("registration-timeout".into(), json!(duration(edge.registration_timeout)));
    fields.insert("grace-period".into(), json!(duration(edge.grace_period)));
    fields.into()
}

fn edge_tunnel(tunnel: &EdgeTunnel) -> Value {
    let mut fields = Map::new();
    fields.insert("name".into(), json!(tunnel.name));
    insert(&mut fields, "id", tunnel.id.map(|id| json!(id.to_string())));
    insert(&mut fields, "secret", tunnel.secret.as_ref().map(|secret| json!(secret.to_string())));
    insert(&mut fields, "account-tag", tunnel.account_tag.as_ref().map(|tag| json!(tag)));
    let hostnames = tunnel.hostnames.iter().map(ToString::to_string).collect::<Vec<_>>();
    fields.insert("hostnames".into(), json!(hostnames));
    fields.insert("connections-max".into(), json!(tunnel.connections_max));
    fields.into()
}

fn limits(limits: &Limits) -> Value {
    json!({
        "header-bytes": format_size(limits.header_bytes_max.into()),
        "headers": limits.headers_max,
        "connections": limits.connections_max,
        "streams-per-connection": limits.streams_per_connection_max,
        "streams-per-tunnel-connection": limits.streams_per_tunnel_connection_max,
        "tunnel-connections": limits.tunnel_connections_max,
        "hostnames-per-tunnel": limits.hostnames_per_tunnel_max,
        "body-idle-timeout": duration(limits.body_idle_timeout),
    })
}

fn certificate(files: &CertificateFiles, cert: &str, key: &str) -> Value {
    json!({ cert: files.cert.display().to_string(), key: files.key.display().to_string() })
}

fn address(address: SocketAddr) -> String {
    address.to_string()
}

fn duration(duration: Duration) -> String {
    format_duration(duration)
}

fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}

fn format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}

fn insert(fields: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        fields.insert(key.to_owned(), value);
    }
}

type Origins = BTreeMap<String, Origin>;

/// Where in the output a value stands.
struct Place<'a> {
    path: &'a str,
    indent: usize,
}

fn write_mapping(yaml: &mut String, value: &Value, place: &Place<'_>, origins: &Origins) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = if place.path.is_empty() { key.clone() } else { format!("{}.{key}", place.path) };
        yaml.push_str(&" ".repeat(place.indent));
        yaml.push_str(&scalar(&json!(key)));
        yaml.push(':');
        write_value(yaml, value, &Place { path: &path, indent: place.indent + 2 }, origins);
    }
}

fn write_value(yaml: &mut String, value: &Value, place: &Place<'_>, origins: &Origins) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            yaml.push('\n');
            write_mapping(yaml, value, place, origins);
        }
        Value::Array(items) if !items.is_empty() => {
            yaml.push('\n');
            for (index, item) in items.iter().enumerate() {
                let path = format!("{}[{index}]", place.path);
                yaml.push_str(&" ".repeat(place.indent));
                yaml.push('-');
                write_value(yaml, item, &Place { path: &path, indent: place.indent + 2 }, origins);
            }
        }
        _ => {
            yaml.push(' ');
            yaml.push_str(&scalar(value));
            if let Some(origin) = origins.get(place.path) {
                yaml.push_str("  # ");
                yaml.push_str(&origin.to_string());
            }
            yaml.push('\n');
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        match self.position {
            Some(position) => write!(f, ":{}:{}", position.line, position.column),
            None => Ok(()),
        }
    }
}

/// Plain where no YAML reader could take it for something else; JSON's quoted form is YAML too.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let is_word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    !is_word
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/'))
}
