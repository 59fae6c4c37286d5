//! What has been read of a mesh so far, whichever file it stood in.

use std::time::Duration;

use ipnet::IpNet;

use super::{
    keys::{PeerKey, PrivateKey},
    model::{MeshEndpoint, MeshPeer, MeshTable},
    values,
};
use crate::{
    document::Loader,
    read::{Field, Section},
};

/// This node; absent = not written yet.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) private_key: Option<PrivateKey>,
    pub(super) addresses: Vec<IpNet>,
    pub(super) listen_port: Option<u16>,
    pub(super) mtu: Option<u16>,
    pub(super) fwmark: Option<u32>,
    pub(super) table: Option<MeshTable>,
    pub(super) peers: Vec<PeerDraft>,
}

/// One peer.
pub(super) struct PeerDraft {
    pub(super) name: Option<String>,
    pub(super) public_key: PeerKey,
    pub(super) preshared_key: Option<PrivateKey>,
    pub(super) allowed_ips: Vec<IpNet>,
    pub(super) accept: Vec<IpNet>,
    pub(super) endpoint: Option<MeshEndpoint>,
    pub(super) persistent_keepalive: Option<Duration>,
    pub(super) mtu: Option<u16>,
    pub(super) groups: Vec<String>,
}

/// How the same thing is called in the two kinds of files: the names that are taken, the usual one first.
pub(super) struct Keys {
    private_key: &'static [&'static str],
    address: &'static [&'static str],
    listen_port: &'static [&'static str],
    mtu: &'static [&'static str],
    fwmark: &'static [&'static str],
    table: &'static [&'static str],
    public_key: &'static [&'static str],
    preshared_key: &'static [&'static str],
    allowed_ips: &'static [&'static str],
    endpoint: &'static [&'static str],
    keepalive: &'static [&'static str],
    /// Whether keys may stand in files of their own (`…-file`).
    files: bool,
}

/// The keys of a wg-quick file.
pub(super) const WG_QUICK: Keys = Keys {
    private_key: &["PrivateKey"],
    address: &["Address"],
    listen_port: &["ListenPort"],
    mtu: &["MTU"],
    fwmark: &["FwMark"],
    table: &["Table"],
    public_key: &["PublicKey"],
    preshared_key: &["PresharedKey"],
    allowed_ips: &["AllowedIPs"],
    endpoint: &["Endpoint"],
    keepalive: &["PersistentKeepalive"],
    files: false,
};

/// Our keys; WireGuard's spelling is taken too, for those who paste.
pub(super) const INLINE: Keys = Keys {
    private_key: &["private-key", "PrivateKey"],
    address: &["address", "addresses", "Address"],
    listen_port: &["listen-port", "ListenPort"],
    mtu: &["mtu", "MTU"],
    fwmark: &["fwmark", "FwMark"],
    table: &["table", "Table"],
    public_key: &["public-key", "PublicKey"],
    preshared_key: &["preshared-key", "PresharedKey"],
    allowed_ips: &["allowed-ips", "AllowedIPs"],
    endpoint: &["endpoint", "Endpoint"],
    keepalive: &["persistent-keepalive", "PersistentKeepalive"],
    files: true,
};

impl Draft {
    /// Reads this node's keys over what is there.
    pub(super) fn read(&mut self, section: &mut Section<'_>, keys: &Keys, loader: &Loader<'_>) {
        if let Some(key) = read_key(section, keys, keys.private_key, "private-key-file", loader) {
            self.private_key = Some(key);
        }
        if let Some(addresses) = take(section, keys.address).and_then(|field| values::read_addresses(&field))
        {
            self.addresses = addresses;
        }
        set(&mut self.listen_port, section, keys.listen_port, |field| field.integer(0..=65535));
        set(&mut self.mtu, section, keys.mtu, values::read_mtu);
        set(&mut self.table, section, keys.table, values::read_table);
        if let Some(mark) = take(section, keys.fwmark).and_then(|field| values::read_mark(&field)) {
            self.fwmark = mark;
        }
    }
}

impl PeerDraft {
    pub(super) fn new(public_key: PeerKey) -> Self {
        Self {
            name: None,
            public_key,
            preshared_key: None,
            allowed_ips: Vec::new(),
            accept: Vec::new(),
            endpoint: None,
            persistent_keepalive: None,
            mtu: None,
            groups: Vec::new(),
        }
    }

    /// The key that says which peer a section is about.
    pub(super) fn read_public_key(section: &mut Section<'_>, keys: &Keys) -> Option<PeerKey> {
        match take(section, keys.public_key) {
            Some(field) => values::read_public_key(&field),
            None => {
                section.itself().reject_hidden(format!("`{}` is missing", keys.public_key[0]));
                None
            }
        }
    }

    /// Reads a peer's keys over what is there, all but its public key.
    pub(super) fn read(&mut self, section: &mut Section<'_>, keys: &Keys, loader: &Loader<'_>) {
        if let Some(key) = read_key(section, keys, keys.preshared_key, "preshared-key-file", loader) {
            // WireGuard: an all-zero preshared key is none.
            self.preshared_key = Some(key).filter(|key| *key.expose() != [0; 32]);
        }
        if let Some(networks) =
            take(section, keys.allowed_ips).and_then(|field| values::read_networks(&field))
        {
            self.allowed_ips = networks;
        }
        set(&mut self.endpoint, section, keys.endpoint, values::read_endpoint);
        if let Some(keepalive) =
            take(section, keys.keepalive).and_then(|field| values::read_keepalive(&field))
        {
            self.persistent_keepalive = keepalive;
        }
    }

    /// The checked peer; accepted networks are allowed ones.
    pub(super) fn finish(mut self) -> MeshPeer {
        for net in &self.accept {
            if !self.allowed_ips.contains(net) {
                self.allowed_ips.push(*net);
            }
        }
        MeshPeer {
            name: self.name.unwrap_or_else(|| format!("peer-{}", self.public_key.short())),
            public_key: self.public_key,
            preshared_key: self.preshared_key,
            allowed_ips: self.allowed_ips,
            accept: self.accept,
            endpoint: self.endpoint,
            persistent_keepalive: self.persistent_keepalive,
            mtu: self.mtu,
            groups: self.groups,
        }
    }
}

/// The value under any of a key's names; more than one of them is a contradiction.
pub(super) fn take<'a>(section: &mut Section<'a>, names: &[&'static str]) -> Option<Field<'a>> {
    let mut found: Option<Field<'a>> = None;
    for name in names {
        let field = section.take(name);
        match (&found, field) {
            (Some(_), Some(field)) => {
                field.reject_hidden(format!("`{}` says this already", names[0]));
            }
            (None, Some(field)) => found = Some(field),
            (_, None) => {}
        }
    }
    found
}

fn set<T>(
    place: &mut Option<T>,
    section: &mut Section<'_>,
    names: &[&'static str],
    read: impl FnOnce(&Field<'_>) -> Option<T>,
) {
    if let Some(value) = take(section, names).and_then(|field| read(&field)) {
        *place = Some(value);
    }
}

/// A key in place or in a file of its own.
fn read_key(
    section: &mut Section<'_>,
    keys: &Keys,
    names: &[&'static str],
    file_name: &'static str,
    loader: &Loader<'_>,
) -> Option<PrivateKey> {
    let inline = take(section, names);
    let file = if keys.files { section.take(file_name) } else { None };
    match (inline, file) {
        (Some(_), Some(file)) => {
            file.reject_hidden(format!("expected either `{}` or `{file_name}`, not both", names[0]));
            None
        }
        (Some(field), None) => values::private_key(&field, field.scalar().unwrap_or_default()),
        (None, Some(file)) => {
            let (_, text) = loader.text(&file)?;
            values::private_key(&file, &text)
        }
        (None, None) => None,
    }
}
