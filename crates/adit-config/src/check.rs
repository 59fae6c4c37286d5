//! What only shows when several parts of `adit.yaml` are seen together.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use crate::{Config, CredentialsSource, Edge, EdgeTunnel, Tunnel, read::Sink};

/// Reports every contradiction between the parts of `config`.
pub(crate) fn check(config: &Config, sink: &Sink<'_>) {
    // A section that was written but could not be read has its own problems already.
    if !["entryPoints", "tunnel", "edge"].into_iter().any(|section| sink.has(section)) {
        sink.reject_at("", "", "there is nothing to run: no `edge`, no `tunnel`, no `entryPoints`");
    }
    check_listeners(config, sink);
    for (name, _) in config.entry_points.iter().filter(|(_, entry_point)| entry_point.tls) {
        if config.tls.certificates.is_empty() {
            let key = format!("entryPoints.{name}.http.tls");
            sink.reject_at(&key, "", "TLS needs at least one certificate in `tls.certificates`");
        }
    }
    if let Some(edge) = &config.edge {
        check_edge(config, edge, sink);
    }
    if let Some(tunnel) = &config.tunnel {
        check_tunnel(config, tunnel, sink);
    }
}

/// No two listeners may want the same address; the admin endpoint never shares one.
fn check_listeners(config: &Config, sink: &Sink<'_>) {
    let mut listeners: Vec<(String, SocketAddr)> = config
        .entry_points
        .iter()
        .map(|(name, entry_point)| (format!("entryPoints.{name}.address"), entry_point.address))
        .collect();
    listeners.extend(config.edge.as_ref().map(|edge| ("edge.listen".to_owned(), edge.listen)));
    listeners.push(("admin.address".to_owned(), config.admin.address));
    for (index, (key, address)) in listeners.iter().enumerate() {
        if let Some((other, _)) = listeners[..index].iter().find(|(_, other)| collides(*address, *other)) {
            sink.reject_at(key, &address.to_string(), format!("`{other}` listens there already"));
        }
    }
}

/// Port 0 is a free port each time; an unspecified address takes every address.
fn collides(left: SocketAddr, right: SocketAddr) -> bool {
    let is_any = |address: IpAddr| address.is_unspecified();
    left.port() != 0
        && left.port() == right.port()
        && (left.ip() == right.ip() || is_any(left.ip()) || is_any(right.ip()))
}

fn check_edge(config: &Config, edge: &Edge, sink: &Sink<'_>) {
    for (index, name) in edge.public.iter().enumerate() {
        if !config.entry_points.contains_key(name) && !sink.has(&format!("entryPoints.{name}")) {
            sink.reject_at(&format!("edge.public[{index}]"), name, "there is no entry point of this name");
        }
    }
    let (mut names, mut ids, mut hosts) = (HashSet::new(), HashSet::new(), HashMap::new());
    for (index, tunnel) in edge.tunnels.iter().enumerate() {
        let key = format!("edge.tunnels[{index}]");
        if !names.insert(tunnel.name.as_str()) {
            sink.reject_at(&format!("{key}.name"), &tunnel.name, "another tunnel has this name");
        }
        if let Some(id) = tunnel.id.filter(|id| !ids.insert(*id)) {
            sink.reject_at(&format!("{key}.id"), &id.to_string(), "another tunnel has this id");
        }
        for (host_index, host) in tunnel.hostnames.iter().enumerate() {
            if let Some(other) =
                hosts.insert(host, tunnel.name.as_str()).filter(|other| *other != tunnel.name)
            {
                let reason = format!("tunnel `{other}` has this hostname already");
                sink.reject_at(&format!("{key}.hostnames[{host_index}]"), &host.to_string(), reason);
            }
        }
        check_credentials(config, tunnel, &key, sink);
    }
}

/// Id and secret may be made at start only where this very process uses them.
fn check_credentials(config: &Config, tunnel: &EdgeTunnel, key: &str, sink: &Sink<'_>) {
    let is_ours = config
        .tunnel
        .as_ref()
        .is_some_and(|ours| ours.credentials == CredentialsSource::InProcess(tunnel.name.clone()));
    if is_ours {
        return;
    }
    let advice = "or let this file's `tunnel` run it by `name`";
    let written = |name: &str| sink.has(&format!("{key}.{name}"));
    if tunnel.id.is_none() && !written("id") {
        sink.reject_at(key, "", format!("`id` is missing: give a UUID, {advice}"));
    }
    if tunnel.secret.is_none() && !written("secret") && !written("secret-file") {
        sink.reject_at(key, "", format!("`secret-file` is missing: give a secret, {advice}"));
    }
}

fn check_tunnel(config: &Config, tunnel: &Tunnel, sink: &Sink<'_>) {
    for index in tunnel.ingress.unserved() {
        let text = &tunnel.ingress.rules[index].service_text;
        let key = format!("tunnel.ingress[{index}].service");
        sink.reject_at(&key, text, "TCP over WebSocket is not served yet");
    }
    let CredentialsSource::InProcess(name) = &tunnel.credentials else { return };
    let declared = config.edge.iter().flat_map(|edge| &edge.tunnels).any(|ours| ours.name == *name);
    let is_edge_unread = config.edge.is_none() && sink.has("edge");
    if !declared && !is_edge_unread {
        sink.reject_at(
            "tunnel.name",
            name,
            "without a token or credentials file this must name a tunnel of this file's `edge`",
        );
    }
    for (key, given) in [("edge", !tunnel.edge.is_empty()), ("ca", tunnel.ca.is_some())] {
        if given {
            let reason = "a tunnel of this process's own edge takes address and certificate from there";
            sink.reject_at(&format!("tunnel.{key}"), "", reason);
        }
    }
}
