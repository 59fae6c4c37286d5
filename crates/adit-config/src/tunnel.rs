//! `tunnel`: the connector, inline or by way of cloudflared's `config.yml`.
//!
//! The same settings have two spellings: keys of our section and cloudflared's flag names. [`Keys`] holds the spelling,
//! [`read_settings`] the meaning.

use std::time::Duration;

use crate::{
    CredentialsSource, EdgeIpVersion, Ingress, OriginSettings, Protocol, TUNNEL_GRACE_PERIOD_MAX, Tag,
    Tunnel, TunnelCredentials, TunnelId,
    cloudflared::CloudflaredFile,
    document::{Loader, read_name},
    ingress::{read_origin_request, read_rules},
    is_host_and_port,
    read::{Dialect, Field, Section},
};

/// Spelling of the settings that have one name in `adit.yaml` and another among cloudflared's flags.
pub(crate) struct Keys {
    ca: &'static str,
    connections: &'static str,
    tags: &'static str,
    edge_address_retries: &'static str,
    disable_pmtu_discovery: &'static str,
}

/// Keys of the section `tunnel`.
pub(crate) const SECTION_KEYS: Keys = Keys {
    ca: "ca",
    connections: "connections",
    tags: "tags",
    edge_address_retries: "edge-address-retries",
    disable_pmtu_discovery: "disable-pmtu-discovery",
};

/// Names of cloudflared's flags.
pub(crate) const FLAG_KEYS: Keys = Keys {
    ca: "cacert",
    connections: "ha-connections",
    tags: "tag",
    edge_address_retries: "max-edge-addr-retries",
    disable_pmtu_discovery: "quic-disable-pmtu-discovery",
};

/// Reads the section; `grace_period` is the process's.
pub(crate) fn read_tunnel(field: &Field<'_>, loader: &Loader<'_>, grace_period: Duration) -> Option<Tunnel> {
    let mut section = field.section()?;
    let file = section.take("config").and_then(|field| read_file(&field, loader));
    let mut tunnel = Tunnel::new(CredentialsSource::InProcess(String::new()), Ingress::unavailable());
    tunnel.grace_period = grace_period.min(TUNNEL_GRACE_PERIOD_MAX);
    let file_credentials = file.as_ref().and_then(|file| file_tunnel(file, &mut tunnel, field, loader));
    tunnel.name = section.optional("name", read_name).or(tunnel.name);
    section.refuse(&LATER_KEYS);
    section.set("entry-points", &mut tunnel.entry_points, |field| {
        Some(field.texts().into_iter().map(|(text, _)| text.to_owned()).collect())
    });
    read_settings(&mut section, &SECTION_KEYS, &mut tunnel);
    read_ingress(&mut section, file.map(|file| file.origin_request), &mut tunnel.ingress);
    let inline = read_credentials(&mut section, loader);
    let is_wrong = matches!(inline, Some(None));
    tunnel.credentials = match (inline.flatten().or(file_credentials), &tunnel.name) {
        (Some(credentials), _) => CredentialsSource::Given(credentials),
        (None, Some(name)) => CredentialsSource::InProcess(name.clone()),
        (None, None) => {
            if !is_wrong {
                section.itself().reject_hidden(NO_CREDENTIALS);
            }
            section.finish();
            return None;
        }
    };
    section.finish();
    tunnel.settle_region().err().into_iter().for_each(|reason| field.reject_hidden(reason));
    Some(tunnel).filter(|_| !is_wrong)
}

/// Reads the settings that are there over those of `tunnel`.
pub(crate) fn read_settings(section: &mut Section<'_>, keys: &Keys, tunnel: &mut Tunnel) {
    let t = tunnel;
    section.set("edge", &mut t.edge, read_edge_addresses);
    section.set(keys.ca, &mut t.ca, |field| field.path().map(Some));
    section.set(keys.connections, &mut t.connections, |field| field.integer(1..=64));
    section.set("protocol", &mut t.protocol, read_protocol);
    section.set("grace-period", &mut t.grace_period, |field| {
        field.duration_in(Duration::ZERO..=TUNNEL_GRACE_PERIOD_MAX)
    });
    section.set("retries", &mut t.retries, read_retries);
    section.set(keys.edge_address_retries, &mut t.edge_address_retries, read_retries);
    section.set("rpc-timeout", &mut t.rpc_timeout, |field| {
        field.duration_in(Duration::from_millis(100)..=Duration::from_secs(60))
    });
    section.set("features", &mut t.features, read_features);
    section.set("post-quantum", &mut t.post_quantum, Field::boolean);
    section.set("edge-bind-address", &mut t.edge_bind_address, |field| {
        field.parse("an IP address of this machine", |text| text.parse().ok()).map(Some)
    });
    section.set("edge-ip-version", &mut t.edge_ip_version, read_ip_version);
    section.set("region", &mut t.region, |field| match field.text()? {
        "" => Some(None),
        _ => field.parse("a region such as `us`", |text| is_region(text).then(|| Some(text.to_owned()))),
    });
    section.set(keys.tags, &mut t.tags, |field| {
        Some(field.texts().iter().filter_map(|(_, field)| read_tag(field)).collect())
    });
    section.set("label", &mut t.label, |field| field.text().map(|text| Some(text.to_owned())));
    section.set("write-stream-timeout", &mut t.write_stream_timeout, Field::duration);
    section.set(keys.disable_pmtu_discovery, &mut t.disable_pmtu_discovery, Field::boolean);
}

impl Tunnel {
    /// Takes the region from the credentials' endpoint; both given is a contradiction (`tunnel-protocol.md §1.1`).
    pub fn settle_region(&mut self) -> Result<(), &'static str> {
        let CredentialsSource::Given(TunnelCredentials { endpoint: Some(endpoint), .. }) = &self.credentials
        else {
            return Ok(());
        };
        if self.region.as_ref().is_some_and(|region| region != endpoint) {
            return Err("`region` cannot be given, because the credentials name an endpoint");
        }
        self.region = Some(endpoint.clone());
        Ok(())
    }
}

/// Rules written here replace those of the file; common settings written here are for rules written here.
fn read_ingress(section: &mut Section<'_>, file_defaults: Option<OriginSettings>, ingress: &mut Ingress) {
    let common = section.take("originRequest");
    let rules = section.take("ingress");
    if let (Some(common), None, Some(_)) = (&common, &rules, &file_defaults) {
        common.reject_hidden("has no effect on the rules of `config`: write it there");
    }
    let base = file_defaults.unwrap_or_default();
    let defaults = common.and_then(|field| read_origin_request(&field, &base)).unwrap_or(base);
    if let Some(field) = rules {
        *ingress = read_rules(&field, &defaults).unwrap_or_else(Ingress::unavailable);
    }
}

fn read_file(field: &Field<'_>, loader: &Loader<'_>) -> Option<CloudflaredFile> {
    let (path, text) = loader.text(field)?;
    match CloudflaredFile::parse(&text, &path.display().to_string()) {
        Ok(file) => Some(file),
        Err(problems) => {
            problems.0.into_iter().for_each(|problem| field.sink.report(problem));
            None
        }
    }
}

/// Applies cloudflared's file to the tunnel and finds its credentials.
fn file_tunnel(
    file: &CloudflaredFile,
    tunnel: &mut Tunnel,
    field: &Field<'_>,
    loader: &Loader<'_>,
) -> Option<TunnelCredentials> {
    let reject = |reason: String| field.reject_hidden(reason);
    tunnel.warp_routing = file.warp_routing.clone();
    match file.settings().apply(tunnel) {
        Ok(()) => {}
        Err(problems) => problems.0.into_iter().for_each(|problem| field.sink.report(problem)),
    }
    if let Some(ingress) = &file.ingress {
        tunnel.ingress = ingress.clone();
    } else {
        match file.settings().single_origin(&file.origin_request) {
            Ok(ingress) => tunnel.ingress = ingress.unwrap_or_else(Ingress::unavailable),
            Err(problems) => problems.0.into_iter().for_each(|problem| field.sink.report(problem)),
        }
    }
    let path = file.settings().text("credentials-file").or(file.settings().text("cred-file"))?;
    let text = loader.text_at(path.as_ref(), reject)?;
    match TunnelCredentials::from_credentials_json(&text) {
        Ok(mut credentials) => {
            // The file is found by the tunnel that is to run: that id wins over the one inside.
            if let Some(id) = file.tunnel.as_deref().and_then(|text| text.parse::<TunnelId>().ok()) {
                credentials.tunnel_id = id;
            }
            Some(credentials)
        }
        Err(error) => {
            field.reject_hidden(format!("{path}: {error}"));
            None
        }
    }
}

/// `None` = not given; `Some(None)` = given and wrong.
fn read_credentials(section: &mut Section<'_>, loader: &Loader<'_>) -> Option<Option<TunnelCredentials>> {
    let given: Vec<(&str, Field<'_>)> = ["token", "token-file", "credentials-file"]
        .into_iter()
        .filter_map(|key| Some((key, section.take(key)?)))
        .collect();
    if let [_, (_, second), ..] = given.as_slice() {
        second.reject_hidden("expected only one of `token`, `token-file` and `credentials-file`");
        return Some(None);
    }
    let (key, field) = given.into_iter().next()?;
    let text = match key {
        "token" => field.text().map(|text| zeroize::Zeroizing::new(text.to_owned())),
        _ => loader.text(&field).map(|(_, text)| text),
    };
    let Some(text) = text else { return Some(None) };
    let credentials = match key {
        "credentials-file" => TunnelCredentials::from_credentials_json(&text),
        _ => TunnelCredentials::from_token(&text),
    };
    match credentials {
        Ok(credentials) => Some(Some(credentials)),
        Err(error) => {
            field.reject_hidden(error.to_string());
            Some(None)
        }
    }
}

fn read_edge_addresses(field: &Field<'_>) -> Option<Vec<String>> {
    let texts = field.texts();
    if texts.len() > EDGE_ADDRESSES_MAX {
        field.reject_hidden(format!("expected at most {EDGE_ADDRESSES_MAX} addresses"));
    }
    let read = |(_, field): &(&str, Field<'_>)| {
        field.parse("an edge address `host:port`", |text| is_host_and_port(text).then(|| text.to_owned()))
    };
    Some(texts.iter().filter_map(read).collect())
}

fn read_protocol(field: &Field<'_>) -> Option<Protocol> {
    field.parse("`auto`, `quic` or `http2`", |text| match text {
        "auto" => Some(Protocol::Auto),
        "quic" => Some(Protocol::Quic),
        "http2" => Some(Protocol::Http2),
        // Accepted by cloudflared for old files (`tunnel-protocol.md §1.4`).
        "h2mux" if field.sink.dialect == Dialect::Cloudflared => Some(Protocol::Http2),
        _ => None,
    })
}

/// The number is an exponent: above 30 it makes no difference, so cloudflared's files may say more.
fn read_retries(field: &Field<'_>) -> Option<u8> {
    match field.sink.dialect {
        Dialect::Cloudflared => field.integer::<u64>(0..=u64::MAX).map(|count| count.min(RETRIES_MAX) as u8),
        Dialect::Adit | Dialect::Traefik | Dialect::Pushed => field.integer(0..=RETRIES_MAX),
    }
}

fn read_features(field: &Field<'_>) -> Option<Vec<String>> {
    let texts = field.texts();
    if texts.len() > FEATURES_MAX {
        field.reject_hidden(format!("expected at most {FEATURES_MAX} features"));
    }
    let is_feature =
        |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let read = |(_, field): &(&str, Field<'_>)| {
        field.parse("a feature name", |text| is_feature(text).then(|| text.to_owned()))
    };
    Some(texts.iter().filter_map(read).collect())
}

fn read_ip_version(field: &Field<'_>) -> Option<EdgeIpVersion> {
    field.parse("`4`, `6` or `auto`", |text| match text {
        "auto" => Some(EdgeIpVersion::Auto),
        "4" => Some(EdgeIpVersion::V4),
        "6" => Some(EdgeIpVersion::V6),
        _ => None,
    })
}

fn read_tag(field: &Field<'_>) -> Option<Tag> {
    field.parse("a tag `NAME=VALUE` that can stand in a header", |text| {
        let (name, value) = text.split_once('=')?;
        http::HeaderName::try_from(format!("cf-warp-tag-{name}")).ok().filter(|_| !name.is_empty())?;
        http::HeaderValue::from_str(value).ok().filter(|_| !value.is_empty())?;
        Some(Tag { name: name.to_owned(), value: value.to_owned() })
    })
}

fn is_region(text: &str) -> bool {
    text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

const NO_CREDENTIALS: &str = "a tunnel needs `token-file`, `credentials-file`, `token`, or the `name` of a tunnel \
     of this file's `edge`";
/// cloudflared's file may have them, because it is taken as it is.
const LATER_KEYS: [&str; 3] = ["label", "warp-routing", "write-stream-timeout"];
/// 2^30 seconds is 34 years.
const RETRIES_MAX: u64 = 30;
/// One per connection is of use, 64 connections are the most.
const EDGE_ADDRESSES_MAX: usize = 64;
/// They travel in every registration.
const FEATURES_MAX: usize = 32;
