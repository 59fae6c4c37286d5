//! `edge`: which tunnels may register here and who visits them.

use std::time::Duration;

use crate::{
    Edge, EdgeTunnel, HostPattern, Secret,
    document::{Loader, read_certificate, read_listen_address, read_name},
    read::{Field, Section},
};

/// Reads the section; `grace_period` is the process's.
pub(crate) fn read_edge(field: &Field<'_>, loader: &Loader<'_>, grace_period: Duration) -> Option<Edge> {
    let mut section = field.section()?;
    let listen = section.require("listen").and_then(|field| read_listen_address(&field));
    let certificate = section.optional("certificate", |field| read_certificate(field, "cert", "key"));
    let public = section.optional("public", read_names).unwrap_or_default();
    let tunnels = section.optional("tunnels", |field| read_tunnels(field, loader)).unwrap_or_default();
    let mut location = LOCATION_DEFAULT.to_owned();
    section.set("location", &mut location, read_name);
    let mut registration_timeout = Duration::from_secs(10);
    section.set("registration-timeout", &mut registration_timeout, |field| {
        field.duration_in(Duration::from_secs(1)..=Duration::from_secs(60))
    });
    let mut grace_period = grace_period;
    section.set("grace-period", &mut grace_period, Field::duration);
    section.finish();
    Some(Edge { listen: listen?, certificate, public, tunnels, location, registration_timeout, grace_period })
}

fn read_names(field: &Field<'_>) -> Option<Vec<String>> {
    Some(field.items().iter().filter_map(read_name).collect())
}

fn read_tunnels(field: &Field<'_>, loader: &Loader<'_>) -> Option<Vec<EdgeTunnel>> {
    let items = field.items();
    if items.len() > TUNNELS_MAX {
        field.reject_hidden(format!("expected at most {TUNNELS_MAX} tunnels"));
        return None;
    }
    Some(items.iter().filter_map(|item| read_tunnel(item, loader)).collect())
}

fn read_tunnel(field: &Field<'_>, loader: &Loader<'_>) -> Option<EdgeTunnel> {
    let mut section = field.section()?;
    let name = section.require("name").and_then(|field| read_name(&field));
    let id = section.optional("id", |field| field.parse("a UUID", |text| text.parse().ok()));
    let secret = read_secret(&mut section, loader);
    let account_tag = section.optional("account-tag", |field| field.text().map(str::to_owned));
    let hostnames = section.optional("hostnames", read_hostnames).unwrap_or_default();
    let mut connections_max = CONNECTIONS_DEFAULT;
    section.set("connections-max", &mut connections_max, |field| field.integer(1..=10_000));
    section.finish();
    Some(EdgeTunnel { name: name?, id, secret, account_tag, hostnames, connections_max })
}

fn read_secret(section: &mut Section<'_>, loader: &Loader<'_>) -> Option<Secret> {
    let inline = section.take("secret");
    let file = section.take("secret-file");
    if let (Some(_), Some(file)) = (&inline, &file) {
        file.reject_hidden("expected either `secret` or `secret-file`, not both");
        return None;
    }
    let (field, text) = match (inline, file) {
        (Some(field), _) => (field.clone(), zeroize::Zeroizing::new(field.text()?.to_owned())),
        (None, Some(field)) => (field.clone(), loader.text(&field)?.1),
        (None, None) => return None,
    };
    let secret = Secret::from_base64(&text)
        .filter(|secret| (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.expose().len()));
    if secret.is_none() {
        field.reject_hidden("expected base64 of 32 to 1024 secret bytes");
    }
    secret
}

fn read_hostnames(field: &Field<'_>) -> Option<Vec<HostPattern>> {
    let items = field.items();
    if items.len() > HOSTNAMES_MAX {
        field.reject_hidden(format!("expected at most {HOSTNAMES_MAX} hostnames"));
        return None;
    }
    Some(items.iter().filter_map(|item| item.try_parse(str::parse)).collect())
}

/// What an edge without a location of its own calls itself.
const LOCATION_DEFAULT: &str = "local";
/// Two connectors with four connections each, twice over for replacement.
const CONNECTIONS_DEFAULT: u16 = 16;
/// About 1 KiB each with their host names: 10 MiB.
const TUNNELS_MAX: usize = 10_000;
/// Entries of the host table, about 100 bytes each.
const HOSTNAMES_MAX: usize = 10_000;
/// As cloudflared demands of secrets that a user supplies (`tunnel-protocol.md §7.1`).
const SECRET_BYTES_MIN: usize = 32;
/// A secret travels in a registration message; longer ones would only be weight.
const SECRET_BYTES_MAX: usize = 1024;
