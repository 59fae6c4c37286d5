//! What only shows when several parts of `adit.yaml` are seen together.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use crate::{
    Config, CredentialsSource, Edge, EdgeTunnel, EntryPoint, EntryPointNetwork, EntryPointTransport,
    Impersonation, MeshMode, Tunnel, acme, dynamic::Dynamic, read::Sink,
};

/// Reports every contradiction between the parts of `config`.
pub(crate) fn check(config: &Config, sink: &Sink<'_>) {
    // A section that was written but could not be read has its own problems already.
    if !["entryPoints", "tunnel", "edge", "mesh"].into_iter().any(|section| sink.has(section)) {
        sink.reject_at(
            "",
            "",
            "there is nothing to run: no `edge`, no `tunnel`, no `mesh`, no `entryPoints`",
        );
    }
    check_listeners(config, sink);
    check_entry_points(config, sink);
    acme::check_resolvers(config, sink);
    check_mesh(config, sink);
    if let Some(edge) = &config.edge {
        check_edge(config, edge, sink);
    }
    if let Some(tunnel) = &config.tunnel {
        check_tunnel(config, tunnel, sink);
    }
}

/// Whether an entry point was written, well or not.
pub(crate) fn has_entry_point(config: &Config, sink: &Sink<'_>, name: &str) -> bool {
    config.entry_points.contains_key(name) || sink.has(&format!("entryPoints.{name}"))
}

/// Names of entry points that other parts of the static configuration give.
fn check_entry_points(config: &Config, sink: &Sink<'_>) {
    let is_known =
        |name: &str| config.entry_points.contains_key(name) || sink.has(&format!("entryPoints.{name}"));
    for (name, entry_point) in &config.entry_points {
        let Some(redirection) = &entry_point.redirection else { continue };
        let is_port = redirection.to.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        let key = format!("entryPoints.{name}.http.redirections.entryPoint.to");
        if !is_port && !is_known(&redirection.to) {
            sink.reject_at(&key, &redirection.to, "there is no entry point of this name");
        } else if redirection.to == *name {
            sink.reject_at(&key, &redirection.to, "an entry point cannot redirect to itself");
        }
    }
    let has_routers = config.providers.file.is_some() || config.dynamic != Dynamic::default();
    for (name, entry_point) in &config.entry_points {
        if entry_point.reuse_port && entry_point.transport == EntryPointTransport::Udp {
            let key = format!("entryPoints.{name}.reusePort");
            sink.reject_at(
                &key,
                "",
                "expected an entry point over TCP: sessions over UDP must stay with one process",
            );
        }
        if entry_point.http3.is_none() {
            continue;
        }
        let key = format!("entryPoints.{name}.http3");
        if entry_point.transport == EntryPointTransport::Udp {
            sink.reject_at(&key, "", "expected an entry point over TCP: HTTP/3 takes the UDP port beside it");
        } else if !has_routers {
            sink.reject_at(&key, "", "HTTP/3 reaches routers only (`http`, `providers`), and there are none");
        }
    }
}

/// No two listeners may want the same address; the admin endpoint never shares one.
fn check_listeners(config: &Config, sink: &Sink<'_>) {
    let mut listeners: Vec<Listener> =
        config.entry_points.iter().flat_map(|named| Listener::of_entry_point(named, config)).collect();
    listeners.extend(config.mesh.as_ref().map(|mesh| Listener {
        key: "mesh.listen-port".to_owned(),
        address: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), mesh.listen_port),
        tcp: false,
        udp: true,
    }));
    listeners.extend(config.edge.as_ref().map(|edge| Listener {
        key: "edge.listen".to_owned(),
        address: edge.listen,
        tcp: true,
        udp: true,
    }));
    let address = config.admin.address;
    listeners.push(Listener { key: "admin.address".to_owned(), address, tcp: true, udp: false });
    for (index, listener) in listeners.iter().enumerate() {
        if let Some(other) = listeners[..index].iter().find(|other| listener.collides(other)) {
            let reason = format!("`{}` listens there already", other.key);
            sink.reject_at(&listener.key, &listener.address.to_string(), reason);
        }
    }
}

/// A socket that the configuration asks for.
struct Listener {
    key: String,
    address: SocketAddr,
    tcp: bool,
    udp: bool,
}

impl Listener {
    fn of_entry_point((name, entry_point): (&String, &EntryPoint), config: &Config) -> Vec<Self> {
        let tcp = entry_point.transport == EntryPointTransport::Tcp;
        let on_mesh = config.mesh.as_ref().filter(|_| entry_point.on == EntryPointNetwork::Mesh);
        let addresses =
            on_mesh.map_or_else(|| vec![entry_point.address], |mesh| entry_point.mesh_addresses(mesh));
        let listener = |address| Self {
            key: format!("entryPoints.{name}.address"),
            address,
            tcp,
            udp: !tcp || entry_point.http3.is_some(),
        };
        addresses.into_iter().map(listener).collect()
    }

    /// Port 0 is a free port each time; an unspecified address takes every address.
    fn collides(&self, other: &Self) -> bool {
        let is_any = |address: IpAddr| address.is_unspecified();
        let (left, right) = (self.address, other.address);
        ((self.tcp && other.tcp) || (self.udp && other.udp))
            && left.port() != 0
            && left.port() == right.port()
            && (left.ip() == right.ip() || is_any(left.ip()) || is_any(right.ip()))
    }
}

/// Entry points on the mesh need one, and an address of it.
fn check_mesh(config: &Config, sink: &Sink<'_>) {
    let netstack = config.mesh.as_ref().filter(|mesh| mesh.mode == MeshMode::Netstack);
    if netstack.is_some_and(|mesh| !mesh.advertise.is_empty()) {
        sink.reject_at("mesh.advertise", "", "routing for others needs `mode: tun`");
    }
    for (name, entry_point) in &config.entry_points {
        if entry_point.impersonate != Impersonation::Nobody && entry_point.on == EntryPointNetwork::Host {
            let key = format!("entryPoints.{name}.impersonate");
            sink.reject_at(&key, "", "only peers of the mesh can be impersonated: `on: mesh` is missing");
        }
    }
    let on_mesh =
        config.entry_points.iter().filter(|(_, entry_point)| entry_point.on == EntryPointNetwork::Mesh);
    for (name, entry_point) in on_mesh {
        if entry_point.proxy_protocol.is_some() {
            let key = format!("entryPoints.{name}.proxyProtocol");
            sink.reject_at(
                &key,
                "",
                "peers of the mesh are known by their own addresses, never by what they claim",
            );
        }
        if netstack.is_some() && entry_point.http3.is_some() {
            sink.reject_at(&format!("entryPoints.{name}.http3"), "", "HTTP/3 on the mesh needs `mode: tun`");
        }
        match &config.mesh {
            Some(mesh) if entry_point.mesh_addresses(mesh).is_empty() => {
                let key = format!("entryPoints.{name}.address");
                let value = entry_point.address.to_string();
                sink.reject_at(
                    &key,
                    &value,
                    "expected an address of the mesh, or only a port such as `:8443`",
                );
            }
            // A section that was written but could not be read has its own problems already.
            None if !sink.has("mesh") => {
                sink.reject_at(&format!("entryPoints.{name}.on"), "mesh", "there is no `mesh`");
            }
            _ => {}
        }
    }
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
