//! The section as a whole.

use std::collections::{BTreeMap, HashMap, HashSet};

use ipnet::IpNet;

use super::{
    LANES_MAX, PEERS_MAX,
    draft::{Draft, INLINE, PeerDraft},
    model::{INTERFACE_DEFAULT, MTU_DEFAULT, Mesh, MeshEndpoint, MeshMode, MeshPeer},
    policy::{Names, is_reserved, read_groups, read_named_networks, read_policy},
    values, wg_quick,
};
use crate::{
    document::{Loader, read_name},
    read::{Field, Section},
    yaml::Value,
};

/// Reads the section and the wg-quick file that it names.
pub(crate) fn read_mesh(field: &Field<'_>, loader: &Loader<'_>) -> Option<Mesh> {
    let mut section = field.section()?;
    let mode = section.optional("mode", read_mode).unwrap_or_default();
    let import = section.take("import");
    let mut draft = import.as_ref().map(|import| read_import(import, loader)).unwrap_or_default();
    draft.read(&mut section, &INLINE, loader);
    if let Some(peers) = section.take("peers") {
        read_peers(&peers, &mut draft, loader);
    }
    let interface = section
        .optional("interface", values::read_interface)
        .or_else(|| import.as_ref().and_then(interface_of_file))
        .unwrap_or_else(|| INTERFACE_DEFAULT.to_owned());
    let advertise = section.optional("advertise", values::read_networks).unwrap_or_default();
    let endpoint = section.optional("endpoint", values::read_endpoint);
    let dns = section.optional("dns", read_dns).unwrap_or_default();
    let networks = section.optional("networks", |field| Some(read_named_networks(field))).unwrap_or_default();
    let peers: Vec<MeshPeer> = std::mem::take(&mut draft.peers).into_iter().map(PeerDraft::finish).collect();
    check_peers(&peers, draft.mtu.unwrap_or(MTU_DEFAULT), &section);
    let policy = section.optional("policy", |field| read_policy(field, &Names::new(&peers, &networks)));
    let lanes = section.optional("lanes", |field| read_lanes(field, mode)).unwrap_or(1);
    let parts = Parts { mode, interface, lanes, advertise, endpoint, dns };
    let mesh = finish(draft, parts, &section)?;
    section.finish();
    Some(Mesh { peers, networks, policy, ..mesh })
}

/// What of a mesh has no counterpart in a wg-quick file.
struct Parts {
    mode: MeshMode,
    interface: String,
    lanes: u16,
    advertise: Vec<IpNet>,
    endpoint: Option<MeshEndpoint>,
    dns: Vec<String>,
}

/// The node without its peers; what it cannot be without is named.
fn finish(draft: Draft, parts: Parts, section: &Section<'_>) -> Option<Mesh> {
    let itself = section.itself();
    let is_written = |key: &str| itself.sink.has(&format!("{}.{key}", itself.path));
    // An import that could not be read has its own problems.
    let is_imported = is_written("import");
    if draft.private_key.is_none()
        && !is_imported
        && !["private-key", "PrivateKey", "private-key-file"].into_iter().any(is_written)
    {
        itself.reject_hidden("`private-key-file`, `private-key` or `import` is missing");
    }
    if draft.addresses.is_empty()
        && !is_imported
        && !["address", "addresses", "Address"].into_iter().any(is_written)
    {
        itself.reject_hidden("`address` is missing: a node without addresses is reached by nobody");
    }
    Some(Mesh {
        mode: parts.mode,
        interface: parts.interface,
        private_key: draft.private_key?,
        addresses: draft.addresses,
        listen_port: draft.listen_port.unwrap_or(0),
        mtu: draft.mtu.unwrap_or(MTU_DEFAULT),
        lanes: parts.lanes,
        fwmark: draft.fwmark,
        table: draft.table.unwrap_or_default(),
        advertise: parts.advertise,
        endpoint: parts.endpoint,
        dns: parts.dns,
        peers: Vec::new(),
        networks: BTreeMap::new(),
        policy: None,
    })
}

fn read_mode(field: &Field<'_>) -> Option<MeshMode> {
    field.parse("`tun` or `netstack`", |text| match text {
        "tun" => Some(MeshMode::Tun),
        "netstack" => Some(MeshMode::Netstack),
        _ => None,
    })
}

fn read_lanes(field: &Field<'_>, mode: MeshMode) -> Option<u16> {
    let lanes = field.integer(1..=LANES_MAX)?;
    if lanes > 1 && mode == MeshMode::Netstack {
        field.reject_hidden("a netstack is one thread: more than one lane needs `mode: tun`");
        return None;
    }
    Some(lanes)
}

fn read_dns(field: &Field<'_>) -> Option<Vec<String>> {
    let read = |item: &Field<'_>| {
        item.parse("an address or a search domain", |text| {
            let is_good = text.parse::<std::net::IpAddr>().is_ok() || text.parse::<crate::Hostname>().is_ok();
            is_good.then(|| text.to_owned())
        })
    };
    Some(values::one_or_more(field).iter().filter_map(read).collect())
}

fn read_import(field: &Field<'_>, loader: &Loader<'_>) -> Draft {
    let Some((path, text)) = loader.large_text(field) else { return Draft::default() };
    let (draft, findings) = wg_quick::read(&text, &path.display().to_string(), loader);
    if findings.problems.is_empty() {
        if draft.private_key.is_none() {
            field.reject("there is no `PrivateKey` in it");
        } else if draft.addresses.is_empty() {
            field.reject("there is no `Address` in it");
        }
    }
    field.sink.absorb(findings);
    draft
}

/// wg-quick's rule: the file's name without `.conf` is the interface's.
fn interface_of_file(field: &Field<'_>) -> Option<String> {
    let name = std::path::Path::new(field.scalar()?).file_stem()?.to_str()?;
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    ((1..=15).contains(&name.len()) && name.bytes().all(is_good)).then(|| name.to_owned())
}

/// Peers by name, or a list whose items have one.
fn read_peers(field: &Field<'_>, draft: &mut Draft, loader: &Loader<'_>) {
    let named: Vec<(Option<&str>, Field<'_>)> = match &field.node.value {
        Value::Sequence(_) => field.items().into_iter().map(|item| (None, item)).collect(),
        _ => field.named().into_iter().map(|(name, item)| (Some(name), item)).collect(),
    };
    if named.len() > PEERS_MAX {
        field.reject_hidden(format!("expected at most {PEERS_MAX} peers"));
        return;
    }
    // Positions of imported peers by key: ten thousand are still joined at once.
    let mut known: HashMap<_, _> =
        draft.peers.iter().enumerate().map(|(index, peer)| (peer.public_key, index)).collect();
    let mut written = HashSet::new();
    for (name, field) in named {
        let Some(mut section) = field.section() else { continue };
        let name = match name {
            Some(name) => check_name(name, &field),
            None => section.optional("name", read_name).and_then(|name| check_name(&name, &field)),
        };
        let Some(key) = PeerDraft::read_public_key(&mut section, &INLINE) else { continue };
        if !written.insert(key) {
            field.reject_hidden("another peer has this key");
        }
        let index = *known.entry(key).or_insert_with(|| {
            draft.peers.push(PeerDraft::new(key));
            draft.peers.len() - 1
        });
        let peer = &mut draft.peers[index];
        peer.name = name.or(peer.name.take());
        peer.read(&mut section, &INLINE, loader);
        section.set("accept", &mut peer.accept, values::read_networks);
        section.set("groups", &mut peer.groups, read_groups);
        peer.mtu = section.optional("mtu", values::read_mtu);
        section.finish();
    }
}

fn check_name(name: &str, field: &Field<'_>) -> Option<String> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !(1..=64).contains(&name.len()) || !name.bytes().all(is_good) || is_reserved(name) {
        field.reject_hidden(
            "peers need a name of 1 to 64 letters, digits, `-`, `_` or `.`, other than `any` and `self`",
        );
        return None;
    }
    Some(name.to_owned())
}

/// WireGuard gives a network that two peers claim to the last one; here that is a mistake.
fn check_peers(peers: &[MeshPeer], mtu: u16, section: &Section<'_>) {
    let (mut names, mut networks) = (HashSet::new(), HashMap::new());
    let itself = section.itself();
    for peer in peers {
        let key = format!("{}.peers.{}", itself.path, peer.name);
        if !names.insert(peer.name.as_str()) {
            itself.sink.reject_at(&key, &peer.name, "another peer has this name");
        }
        if let Some(own) = peer.mtu.filter(|own| *own > mtu) {
            let reason = format!("expected at most the mesh's own, {mtu}");
            itself.sink.reject_at(&format!("{key}.mtu"), &own.to_string(), reason);
        }
        for network in &peer.allowed_ips {
            if let Some(other) = networks.insert(network, peer.name.as_str()) {
                let reason = format!("peer `{other}` has this network already");
                itself.sink.reject_at(&key, &network.to_string(), reason);
            }
        }
    }
}
