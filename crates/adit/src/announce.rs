//! What `adit run` tells a person once it serves.

use std::fmt::Write as _;
use std::net::SocketAddr;

use adit_config::{Config, HostPattern, Service};

use crate::listeners::Listening;

/// The text: what listens where, what serves what, and what to try next.
pub(crate) fn text(
    config: &Config,
    listeners: &[Listening],
    edge: Option<SocketAddr>,
    admin: SocketAddr,
) -> String {
    let mut out = format!("adit {} is running\n\n", env!("CARGO_PKG_VERSION"));
    for Listening { entry_point, address, scheme } in listeners {
        let _ = writeln!(out, "  visitors    {scheme}://{address}  (entry point {entry_point})");
    }
    if let (Some(edge), Some(address)) = (&config.edge, edge) {
        let _ = writeln!(out, "  connectors  {address}  (QUIC)");
        for tunnel in &edge.tunnels {
            let hosts: Vec<String> = tunnel.hostnames.iter().map(ToString::to_string).collect();
            let _ = writeln!(out, "              tunnel {} serves {}", tunnel.name, hosts.join(", "));
        }
    }
    if let Some(tunnel) = &config.tunnel {
        let _ = writeln!(out, "  connector   {} connections", tunnel.connections);
        for rule in &tunnel.ingress.rules {
            let host = if rule.hostname_text.is_empty() { "*" } else { &rule.hostname_text };
            let path = rule.path.as_deref().map(|p| format!(" path {p}")).unwrap_or_default();
            let _ = writeln!(out, "              {host}{path} → {}", rule.service_text);
        }
    }
    let _ = writeln!(out, "  status      http://{admin}/  (also /ready, /metrics, /config)");
    if let Some(tries) = suggestions(config, listeners) {
        let _ = write!(out, "\nTry:\n{tries}");
    }
    let _ = writeln!(out, "\nCtrl-C drains and stops.");
    out
}

/// Commands that work as they stand, if the sample origin is reachable from here.
fn suggestions(config: &Config, listeners: &[Listening]) -> Option<String> {
    let edge = config.edge.as_ref()?;
    let tunnel = config.tunnel.as_ref()?;
    let serves_hello = tunnel.ingress.rules.iter().any(|rule| rule.service == Service::HelloWorld);
    let clear = |at: &&Listening| edge.public.contains(&at.entry_point) && at.scheme == "http";
    let address = listeners.iter().find(clear)?.address;
    let local = edge
        .tunnels
        .iter()
        .flat_map(|t| &t.hostnames)
        .any(|h| matches!(h, HostPattern::Wildcard(suffix) if suffix.as_str() == "localhost"));
    if !serves_hello || !local {
        return None;
    }
    let port = address.port();
    Some(format!(
        "  curl http://hello.localhost:{port}/                              the way of a request\n  \
         curl -d hello http://hello.localhost:{port}/echo                 an upload, echoed as it arrives\n  \
         curl -o /dev/null 'http://hello.localhost:{port}/bytes?count=1073741824'   1 GiB\n  \
         curl -N 'http://hello.localhost:{port}/sse?count=5'              server-sent events\n  \
         adit status                                                  what is connected\n"
    ))
}
