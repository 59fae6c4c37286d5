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
    networks: Networks<Arc<MeshIdentity>>,
    peers: HashSet<Box<str>>,
    groups: HashSet<Box<str>>,
}

/// Addresses that one peer has and another is to have: whoever speaks from there meanwhile may be either.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MovingAddresses {
    /// Every network of before and after, and whether what is in no longer one of them moves.
    networks: Networks<bool>,
}

/// Values by network; the longest that holds an address counts.
#[derive(Debug, PartialEq, Eq)]
struct Networks<T> {
    /// By prefix length, the longest first.
    lengths: Vec<(u8, HashMap<IpNet, T>)>,
}

impl MeshPeers {
    /// The peers of a checked configuration.
    pub fn new(mesh: &Mesh) -> Self {
        let of_peer = |peer: &MeshPeer| {
            let identity = Arc::new(MeshIdentity::of(peer));
            peer.allowed_ips.iter().map(move |net| (*net, Arc::clone(&identity))).collect::<Vec<_>>()
        };
        let networks = Networks::new(mesh.peers.iter().flat_map(of_peer));
        let peers = mesh.peers.iter().map(|peer| peer.name.as_str().into()).collect();
        let groups =
            mesh.peers.iter().flat_map(|peer| &peer.groups).map(|group| group.as_str().into()).collect();
        Self { networks, peers, groups }
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
        self.networks.find(address)
    }

    /// The addresses that have another owner, by key, in `after`; `None` if there are none.
    pub fn moving(&self, after: &Self) -> Option<MovingAddresses> {
        let moves = |net: &IpNet| match (self.networks.holder(net), after.networks.holder(net)) {
            (Some(before), Some(after)) => before.key != after.key,
            _ => false,
        };
        let all = self.networks.keys().chain(after.networks.keys());
        let networks = Networks::new(all.map(|net| (*net, moves(net))));
        let is_any = networks.values().any(|moves| *moves);
        is_any.then_some(MovingAddresses { networks })
    }
}

impl MovingAddresses {
    /// Whether an address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.find(address).is_some_and(|moves| *moves)
    }
}

impl<T> Networks<T> {
    fn new(all: impl Iterator<Item = (IpNet, T)>) -> Self {
        let mut lengths: HashMap<u8, HashMap<IpNet, T>> = HashMap::new();
        for (net, value) in all {
            lengths.entry(net.prefix_len()).or_default().insert(net.trunc(), value);
        }
        let mut lengths: Vec<_> = lengths.into_iter().collect();
        lengths.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        Self { lengths }
    }

    fn find(&self, address: IpAddr) -> Option<&T> {
        self.find_within(address.to_canonical(), u8::MAX)
    }

    /// What a network as a whole belongs to: longer networks inside it have their own.
    fn holder(&self, net: &IpNet) -> Option<&T> {
        self.find_within(net.network(), net.prefix_len())
    }

    fn find_within(&self, address: IpAddr, length_max: u8) -> Option<&T> {
        let mut lengths = self.lengths.iter().filter(|(length, _)| *length <= length_max);
        lengths.find_map(|(length, nets)| nets.get(&IpNet::new(address, *length).ok()?.trunc()))
    }

    fn keys(&self) -> impl Iterator<Item = &IpNet> {
        self.lengths.iter().flat_map(|(_, nets)| nets.keys())
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        self.lengths.iter().flat_map(|(_, nets)| nets.values())
    }
}

impl<T> Default for Networks<T> {
    fn default() -> Self {
        Self { lengths: Vec::new() }
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

    #[test]
    fn only_what_goes_from_one_key_to_another_is_moving() {
        let before = MeshPeers::new(&mesh(&[
            ("alice", "10.9.0.2/32, 10.9.0.5/32"),
            ("bob", "10.9.0.3/32"),
            ("site", "192.168.0.0/16"),
            ("gone", "10.9.0.9/32"),
        ]));
        let after = MeshPeers::new(&mesh(&[
            ("alice", "10.9.0.2/32, 192.168.7.0/24"),
            ("bob", "10.9.0.3/32, 10.9.0.5/32"),
            ("site", "192.168.0.0/16, 10.9.0.4/32"),
        ]));
        let moving = before.moving(&after).unwrap();
        for (address, moves) in [
            ("10.9.0.2", false),
            ("10.9.0.3", false),
            ("10.9.0.5", true),
            ("::ffff:10.9.0.5", true),
            ("192.168.7.1", true),
            ("192.168.8.1", false),
            ("10.9.0.4", false),
            ("10.9.0.9", false),
        ] {
            assert_eq!(moving.contains(address.parse().unwrap()), moves, "{address}");
        }
        assert_eq!(before.moving(&before), None);
        // Back again the same addresses move.
        let back = after.moving(&before).unwrap();
        assert!(
            back.contains("192.168.7.1".parse().unwrap()) && !back.contains("192.168.8.1".parse().unwrap())
        );
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
