//! What a mesh section means, alone and together with a wg-quick file.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

use std::{fs, path::Path, time::Duration};

use adit_config::{
    Config, EntryPointNetwork, MeshNetwork, MeshParty, MeshProtocol, MeshTable, PeerKey, PrivateKey, Problems,
};
use proptest::prelude::*;

fn hub() -> Config {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good");
    let read = |file: &Path| match file.to_str() {
        Some("home.secret") => Ok(b"FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\n".to_vec()),
        _ => fs::read(directory.join(file)).map_err(|error| error.to_string()),
    };
    Config::parse(&fs::read_to_string(directory.join("mesh.yaml")).unwrap(), "mesh.yaml", &read).unwrap()
}

/// A section in front of one imported file.
fn import(file: &str) -> Result<Config, Problems> {
    Config::parse("mesh: { import: wg0.conf }", "a.yaml", &|_: &Path| Ok(file.as_bytes().to_vec()))
}

#[test]
fn the_sections_own_keys_go_over_the_imported_ones() {
    let mesh = hub().mesh.unwrap();
    assert_eq!((mesh.interface.as_str(), mesh.mtu, mesh.listen_port), ("adit0", 1376, 51820));
    assert_eq!(mesh.lanes, 2);
    assert_eq!((mesh.fwmark, mesh.table), (Some(0xca6c), MeshTable::Auto));
    let addresses: Vec<_> = mesh.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.9.0.1/24", "fd00:9::1/64", "10.10.0.1/24"]);
    let names: Vec<_> = mesh.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["laptop", "peer-gN65BkIK", "office"]);
}

#[test]
fn peers_of_both_files_are_joined_by_key() {
    let mesh = hub().mesh.unwrap();
    let laptop = mesh.peer("laptop").unwrap();
    assert_eq!(laptop.groups, ["admins"]);
    assert_eq!((laptop.mtu, mesh.peer("office").unwrap().mtu), (Some(1280), None));
    assert!(laptop.preshared_key.is_some());
    assert_eq!(laptop.persistent_keepalive, Some(Duration::from_secs(25)));
    let addresses: Vec<_> = laptop.addresses().map(|address| address.to_string()).collect();
    assert_eq!(addresses, ["10.9.0.2", "fd00:9::2"]);
}

#[test]
fn accepted_networks_are_allowed_ones_and_host_bits_are_ignored() {
    let mesh = hub().mesh.unwrap();
    let nets = |name: &str| -> Vec<String> {
        mesh.peer(name).unwrap().allowed_ips.iter().map(ToString::to_string).collect()
    };
    assert_eq!(nets("office"), ["10.9.0.4/32", "192.168.7.0/24", "2001:db8:7::/48"]);
    assert_eq!(nets("peer-gN65BkIK"), ["10.9.0.3/32", "192.168.3.0/24"]);
    assert_eq!(mesh.peer("office").unwrap().endpoint.as_ref().unwrap().to_string(), "[2001:db8::7]:51820");
}

#[test]
fn rules_know_what_their_names_stand_for() {
    let mesh = hub().mesh.unwrap();
    let rules = mesh.policy.unwrap().allow;
    assert_eq!(rules[0].from, [MeshParty::Group("admins".into())]);
    assert_eq!(rules[0].to, [MeshParty::Any]);
    assert_eq!(rules[1].from, [MeshParty::Group("sites".into()), MeshParty::Network("home".into())]);
    assert_eq!(rules[1].to, [MeshParty::Myself, MeshParty::Network("cameras".into())]);
    assert_eq!(
        (rules[1].protocol, rules[1].ports.as_slice()),
        (MeshProtocol::Tcp, &[22..=22, 8000..=8099][..])
    );
    assert_eq!(rules[2].to, [MeshParty::Cidr("10.9.0.4/32".parse().unwrap())]);
    assert_eq!(mesh.networks["guests"], MeshNetwork::Interface("eth0.30".into()));
}

#[test]
fn entry_points_on_the_mesh_listen_on_its_addresses_only() {
    let config = hub();
    let mesh = config.mesh.as_ref().unwrap();
    let admin = &config.entry_points["admin"];
    assert_eq!(admin.on, EntryPointNetwork::Mesh);
    let addresses: Vec<_> = admin.mesh_addresses(mesh).iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.9.0.1:8443", "[fd00:9::1]:8443", "10.10.0.1:8443"]);
    let one: Vec<_> = config.entry_points["ssh"].mesh_addresses(mesh);
    assert_eq!(one, ["10.9.0.1:22".parse().unwrap()]);
    assert_eq!(config.entry_points["web"].on, EntryPointNetwork::Host);
}

#[test]
fn no_key_is_shown_and_what_has_no_effect_is_said() {
    let config = hub();
    let yaml = config.to_effective_yaml();
    for secret in ["yAnz5TF", "FpCyhws9"] {
        assert!(!yaml.contains(secret) && !format!("{config:?}").contains(secret), "{yaml}");
    }
    let warnings: Vec<_> = config.dynamic.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "wg0.conf:7:7: Interface.MTU: rounded down to 1408: packets of a multiple of 16 bytes tell least, found `1420`",
            "wg0.conf:8:7: Interface.DNS: ignored: adit does not change how this machine resolves names",
        ]
    );
}

#[test]
fn a_file_without_a_key_is_no_node() {
    let problems = import("[Interface]\nAddress = 10.9.0.1/24\n").unwrap_err().to_string();
    assert_eq!(problems, "a.yaml:1:17: mesh.import: there is no `PrivateKey` in it, found `wg0.conf`");
}

#[test]
fn an_all_zero_preshared_key_is_none() {
    let key = PrivateKey::new([7; 32]).to_base64();
    let zero = PrivateKey::new([0; 32]).to_base64();
    let text = format!(
        "[Interface]\nPrivateKey={}\nAddress=10.9.0.1\n[Peer]\nPublicKey={}\nPresharedKey={}\n",
        key.as_str(),
        PeerKey([9; 32]),
        zero.as_str()
    );
    let mesh = import(&text).unwrap().mesh.unwrap();
    assert_eq!(mesh.peers[0].preshared_key, None);
    assert_eq!(mesh.interface, "wg0");
}

#[test]
fn ten_thousand_peers_are_read_and_one_more_is_not() {
    let file = |peers: u32| {
        use std::fmt::Write;
        let key = PrivateKey::new([7; 32]).to_base64();
        let mut text = format!("[Interface]\nPrivateKey={}\nAddress=10.0.0.1/8\n", key.as_str());
        for index in 1..=peers {
            let mut bytes = [1; 32];
            bytes[..4].copy_from_slice(&index.to_be_bytes());
            let address = std::net::Ipv4Addr::from(0x0a10_0000 + index);
            writeln!(text, "[Peer]\nPublicKey={}\nAllowedIPs={address}/32", PeerKey(bytes)).unwrap();
        }
        text
    };
    assert_eq!(import(&file(10_000)).unwrap().mesh.unwrap().peers.len(), 10_000);
    assert!(import(&file(10_001)).unwrap_err().to_string().contains("at most 10000 peers"));
}

proptest! {
    #[test]
    fn any_text_is_a_wg_quick_file_or_refused(text in "\\PC{0,200}") {
        prop_assert!(import(&text).is_err());
    }

    #[test]
    fn a_wg_quick_file_with_a_scar_is_read_or_refused(at in 0usize..600, with in "\\PC{0,8}") {
        let mut text = include_str!("good/wg0.conf").to_owned();
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.insert_str(at, &with);
        if let Err(problems) = import(&text) {
            prop_assert!(!problems.0.is_empty());
        }
    }
}
