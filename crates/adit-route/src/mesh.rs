//! Who is behind an address of the mesh: the peer whose allowed IPs hold it, as WireGuard's own lookup finds it.
//!
//! The engine lets a packet in only if its source is among the sender's allowed IPs, so that on a socket bound to the
//! mesh's interface the source address names the key that the packet came under.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use adit_config::{Mesh, MeshPeer, PeerKey};
use ipnet::IpNet;

/// A peer of the mesh as rules, origins and logs know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshIdentity {
    /// Its name in the configuration.
    pub name: Box<str>,
    /// Its public key.
    pub key: PeerKey,
    /// Groups it is in.
    pub groups: Vec<Box<str>>,
}

/// All peers by the addresses they may use.
///
/// A lookup asks one hash table for each prefix length that occurs, longest first: at most 162, in practice three.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MeshPeers {
    /// By prefix length, the longest first.
    lengths: Vec<(u8, HashMap<IpNet, Arc<MeshIdentity>>)>,
    peers: HashSet<Box<str>>,
    groups: HashSet<Box<str>>,
}

impl MeshPeers {
    /// The peers of a checked configuration.
    pub fn new(mesh: &Mesh) -> Self {
        let mut lengths: HashMap<u8, HashMap<IpNet, Arc<MeshIdentity>>> = HashMap::new();
        for peer in &mesh.peers {
            let identity = Arc::new(MeshIdentity::of(peer));
            for net in &peer.allowed_ips {
                lengths.entry(net.prefix_len()).or_default().insert(net.trunc(), Arc::clone(&identity));
            }
        }
        let mut lengths: Vec<_> = lengths.into_iter().collect();
        lengths.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        let peers = mesh.peers.iter().map(|peer| peer.name.as_str().into()).collect();
        let groups =
            mesh.peers.iter().flat_map(|peer| &peer.groups).map(|group| group.as_str().into()).collect();
        Self { lengths, peers, groups }
    }

    /// Whether there is a peer of this name.
    pub fn has_peer(&self, name: &str) -> bool {
        self.peers.contains(name)
    }

    /// Whether anybody is in this group.
    pub fn has_group(&self, name: &str) -> bool {
        self.groups.contains(name)
    }

    /// The peer that an address belongs to.
    pub fn identify(&self, address: IpAddr) -> Option<&Arc<MeshIdentity>> {
        let address = address.to_canonical();
        self.lengths.iter().find_map(|(length, nets)| nets.get(&IpNet::new(address, *length).ok()?.trunc()))
    }
}

impl MeshIdentity {
    /// Whether the peer is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| &**own == group)
    }

    fn of(peer: &MeshPeer) -> Self {
        Self {
            name: peer.name.as_str().into(),
            key: peer.public_key,
            groups: peer.groups.iter().map(|group| group.as_str().into()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use adit_config::Config;
    use proptest::prelude::*;

    use super::*;

    fn mesh(peers: &[(&str, &str)]) -> Mesh {
        let peer = |(index, (name, nets)): (usize, &(&str, &str))| {
            let key = PeerKey([u8::try_from(index + 1).unwrap(); 32]);
            format!("    {name}: {{ public-key: {key}, allowed-ips: [{nets}], groups: [all, of-{name}] }}\n")
        };
        let peers: String = peers.iter().enumerate().map(peer).collect();
        let key = PeerKey([99; 32]);
        let text = format!("mesh:\n  private-key: {key}\n  address: 10.9.0.1/24\n  peers:\n{peers}");
        Config::parse(&text, "t.yaml", &|_: &std::path::Path| Err(String::new())).unwrap().mesh.unwrap()
    }

    fn name(peers: &MeshPeers, address: &str) -> Option<String> {
        peers.identify(address.parse().unwrap()).map(|identity| identity.name.to_string())
    }

    #[test]
    fn the_longest_network_says_who_it_is() {
        let mesh = mesh(&[
            ("site", "192.168.0.0/16, \"fd00:7::/48\""),
            ("host", "192.168.7.7/32, 10.9.0.2"),
            ("rest", "0.0.0.0/0"),
        ]);
        let peers = MeshPeers::new(&mesh);
        assert_eq!(name(&peers, "192.168.7.7").as_deref(), Some("host"));
        assert_eq!(name(&peers, "192.168.7.8").as_deref(), Some("site"));
        assert_eq!(name(&peers, "::ffff:10.9.0.2").as_deref(), Some("host"));
        assert_eq!(name(&peers, "fd00:7::1").as_deref(), Some("site"));
        assert_eq!(name(&peers, "203.0.113.1").as_deref(), Some("rest"));
        assert_eq!(name(&peers, "fd00:8::1"), None);
        let host = peers.identify("10.9.0.2".parse().unwrap()).unwrap();
        assert!(host.is_in("of-host") && host.is_in("all") && !host.is_in("of-site"));
    }

    proptest! {
        #[test]
        fn a_lookup_finds_what_looking_at_every_network_finds(
            nets in proptest::collection::btree_set((any::<[u8; 2]>(), 8u8..=32), 1..8), last in any::<[u8; 2]>(),
        ) {
            let nets: std::collections::BTreeSet<IpNet> = nets
                .into_iter()
                .map(|([a, b], length)| IpNet::new([10, a & 1, b & 3, 1].into(), length).unwrap().trunc())
                .collect();
            let named: Vec<(String, String)> =
                nets.iter().enumerate().map(|(i, net)| (format!("p{i}"), net.to_string())).collect();
            let named: Vec<(&str, &str)> = named.iter().map(|(n, net)| (n.as_str(), net.as_str())).collect();
            let mesh = mesh(&named);
            let address: IpAddr = [10, last[0] & 1, last[1] & 3, 1].into();
            let naive = mesh
                .peers
                .iter()
                .flat_map(|peer| peer.allowed_ips.iter().map(move |net| (net, peer)))
                .filter(|(net, _)| net.contains(&address))
                .max_by_key(|(net, _)| net.prefix_len())
                .map(|(_, peer)| peer.name.clone());
            prop_assert_eq!(name(&MeshPeers::new(&mesh), &address.to_string()), naive);
        }
    }
}
