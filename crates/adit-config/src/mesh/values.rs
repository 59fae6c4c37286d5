//! Single values in the forms that `wg`, wg-quick and `adit.yaml` write them.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    NETWORKS_MAX,
    keys::{PeerKey, PrivateKey},
    model::{MeshEndpoint, MeshTable},
};
use crate::{
    dynamic::network,
    read::Field,
    units::{is_host_and_port, parse_duration},
    yaml::Value,
};

/// The elements of a list; one text stands for a list of one.
pub(super) fn one_or_more<'a>(field: &Field<'a>) -> Vec<Field<'a>> {
    match &field.node.value {
        Value::Scalar { .. } => vec![field.clone()],
        _ => field.items(),
    }
}

/// Networks; host bits are ignored as WireGuard ignores them. Texts may hold several, with commas.
pub(super) fn read_networks(field: &Field<'_>) -> Option<Vec<IpNet>> {
    read_nets(field, "an address or network such as `10.0.0.2/32`", network)
}

/// Addresses with the network they are in; an address alone is its own network.
pub(super) fn read_addresses(field: &Field<'_>) -> Option<Vec<IpNet>> {
    let addresses = read_nets(field, "an address with its network such as `10.0.0.1/24`", |text| {
        text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse()).ok().filter(is_usable)
    })?;
    if addresses.len() > ADDRESSES_MAX {
        field.reject_hidden(format!("expected at most {ADDRESSES_MAX} addresses"));
        return None;
    }
    Some(addresses)
}

fn read_nets(
    field: &Field<'_>,
    expected: &str,
    convert: impl Fn(&str) -> Option<IpNet>,
) -> Option<Vec<IpNet>> {
    let mut nets: Vec<IpNet> = Vec::new();
    for item in one_or_more(field) {
        let parsed = item.parse(expected, |text| {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(&convert).collect::<Option<Vec<_>>>()
        });
        for net in parsed.into_iter().flatten() {
            if !nets.contains(&net) {
                nets.push(net);
            }
        }
        if nets.len() > NETWORKS_MAX {
            field.reject_hidden(format!("expected at most {NETWORKS_MAX} networks"));
            return None;
        }
    }
    Some(nets)
}

/// An address that one host can have.
fn is_usable(net: &IpNet) -> bool {
    let address = net.addr();
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

pub(super) fn read_public_key(field: &Field<'_>) -> Option<PeerKey> {
    let key = field.scalar().and_then(PeerKey::from_base64);
    if key.is_none() {
        field
            .reject_hidden("expected a public key: 44 characters of base64, as `adit mesh pubkey` prints it");
    }
    key
}

pub(super) fn private_key(field: &Field<'_>, text: &str) -> Option<PrivateKey> {
    let key = PrivateKey::from_base64(text);
    if key.is_none() {
        field.reject_hidden("expected a key: 44 characters of base64, as `adit mesh genkey` prints it");
    }
    key
}

/// `host:port`, IPv6 addresses in brackets.
pub(super) fn read_endpoint(field: &Field<'_>) -> Option<MeshEndpoint> {
    field.parse("`host:port` such as `vpn.example.com:51820` or `[2001:db8::1]:51820`", |text| {
        let (host, port) = text.rsplit_once(':').filter(|_| is_host_and_port(text))?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(literal) => literal.parse::<Ipv6Addr>().ok()?.to_string(),
            None => host.to_owned(),
        };
        Some(MeshEndpoint { host, port: port.parse().ok()? })
    })
}

/// `off`, whole seconds, or a duration of whole seconds; the inner `None` is off.
pub(super) fn read_keepalive(field: &Field<'_>) -> Option<Option<Duration>> {
    field.parse("`off` or 1 to 65535 seconds", |text| {
        if text.eq_ignore_ascii_case("off") {
            return Some(None);
        }
        let duration = text.parse().map(Duration::from_secs).ok().or_else(|| parse_duration(text))?;
        let is_whole = duration.subsec_nanos() == 0 && duration.as_secs() <= u64::from(u16::MAX);
        is_whole.then(|| Some(duration).filter(|duration| !duration.is_zero()))
    })
}

/// `off` or a number, in decimal or hexadecimal; the inner `None` is off.
pub(super) fn read_mark(field: &Field<'_>) -> Option<Option<u32>> {
    field.parse("`off` or a number from 0 to 4294967295 such as `51820` or `0xca6c`", |text| {
        if text.eq_ignore_ascii_case("off") {
            return Some(None);
        }
        number(text).map(|mark| Some(mark).filter(|mark| *mark != 0))
    })
}

/// `auto`, `off` or the number of a table.
pub(super) fn read_table(field: &Field<'_>) -> Option<MeshTable> {
    field.parse("`auto`, `off` or the number of a routing table", |text| match text {
        _ if text.eq_ignore_ascii_case("auto") => Some(MeshTable::Auto),
        _ if text.eq_ignore_ascii_case("off") => Some(MeshTable::Off),
        "main" => Some(MeshTable::Auto),
        _ => number(text).filter(|table| *table != 0).map(MeshTable::Number),
    })
}

/// The largest packet inside the tunnel, rounded down to a multiple of 16.
pub(super) fn read_mtu(field: &Field<'_>) -> Option<u16> {
    let mtu: u16 = field.integer(u64::from(MTU_MIN)..=u64::from(MTU_MAX))?;
    let rounded = mtu & !15;
    if rounded != mtu {
        field.warn(format!("rounded down to {rounded}: packets of a multiple of 16 bytes tell least"));
    }
    Some(rounded)
}

/// A name that Linux gives an interface: 1 to 15 characters, no space, no `/`.
pub(super) fn read_interface(field: &Field<'_>) -> Option<String> {
    field.parse("an interface name of 1 to 15 letters, digits, `-`, `_` or `.`", |text| {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        ((1..=15).contains(&text.len())
            && text.bytes().all(is_good)
            && !text.bytes().all(|byte| byte == b'.'))
        .then(|| text.to_owned())
    })
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Of this node: each is a socket of every entry point on the mesh.
const ADDRESSES_MAX: usize = 64;
/// The least that IPv6 works with (RFC 8200 §5).
const MTU_MIN: u16 = 1280;
/// The largest multiple of 16 whose datagram with WireGuard's 32 bytes still fits IPv4.
const MTU_MAX: u16 = 65_456;
