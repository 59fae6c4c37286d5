//! Allowed IPs: which peer an address belongs to, by longest prefix (WireGuard section 2).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::config::PeerConfig;
use crate::packet::PeerId;

/// Address to peer. IPv4-mapped IPv6 addresses are IPv6 here, as for the kernel.
#[derive(Default)]
pub(crate) struct Routes {
    v4: PrefixMap<Ipv4Net, PeerId>,
    v6: PrefixMap<Ipv6Net, PeerId>,
    /// The last answer: packets come in runs of one flow.
    last: Option<(IpAddr, PeerId)>,
}

impl Routes {
    /// Routes to peers at their places; of two that claim the same network the last has it.
    pub(crate) fn build<'a>(peers: impl Iterator<Item = (PeerId, &'a PeerConfig)>) -> Self {
        let mut routes = Self::default();
        peers.for_each(|(id, peer)| routes.add(id, peer));
        routes
    }

    /// Adds one more peer's networks.
    pub(crate) fn add(&mut self, id: PeerId, peer: &PeerConfig) {
        for network in &peer.allowed_ips {
            match network.trunc() {
                IpNet::V4(network) => self.v4.insert(network, id),
                IpNet::V6(network) => self.v6.insert(network, id),
            };
        }
        self.last = None;
    }

    /// Takes a peer's networks out again, those that another has claimed since excepted.
    pub(crate) fn remove(&mut self, id: PeerId, peer: &PeerConfig) {
        for network in &peer.allowed_ips {
            match network.trunc() {
                IpNet::V4(network) if self.v4.get(&network) == Some(&id) => _ = self.v4.remove(&network),
                IpNet::V6(network) if self.v6.get(&network) == Some(&id) => _ = self.v6.remove(&network),
                _ => {}
            }
        }
        self.last = None;
    }

    /// Whose `address` is.
    pub(crate) fn find(&mut self, address: IpAddr) -> Option<PeerId> {
        if let Some((last, peer)) = self.last
            && last == address
        {
            return Some(peer);
        }
        let found = self.search(address)?;
        self.last = Some((address, found));
        Some(found)
    }

    /// As [`Self::find`], without remembering.
    pub(crate) fn search(&self, address: IpAddr) -> Option<PeerId> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, peer)| *peer),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, peer)| *peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::keys::PublicKey;

    fn peer(networks: Vec<IpNet>) -> PeerConfig {
        PeerConfig {
            name: "p".into(),
            public_key: PublicKey([0; 32]),
            preshared_key: None,
            allowed_ips: networks,
            endpoint: None,
            keepalive: None,
            mtu: None,
            groups: Vec::new(),
        }
    }

    fn naive(claims: &[(u32, IpNet)], address: IpAddr) -> Option<PeerId> {
        claims
            .iter()
            .filter(|(_, network)| network.contains(&address))
            .max_by_key(|(_, network)| network.prefix_len())
            .map(|(peer, _)| PeerId(*peer))
    }

    // Few distinct bits, so that prefixes nest and collide.
    fn network() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<[bool; 3]>(), 0..=32_u8).prop_map(|(bits, len)| {
            IpNet::new(IpAddr::V4(Ipv4Addr::from(spread(bits, 32) as u32)), len).unwrap()
        });
        let v6 = (any::<[bool; 3]>(), 0..=128_u8)
            .prop_map(|(bits, len)| IpNet::new(IpAddr::V6(Ipv6Addr::from(spread(bits, 128))), len).unwrap());
        prop_oneof![v4, v6]
    }

    fn spread(bits: [bool; 3], width: u32) -> u128 {
        let at = [width - 1, width / 2, 0];
        bits.iter().zip(at).filter(|(bit, _)| **bit).map(|(_, at)| 1_u128 << at).sum()
    }

    proptest! {
        #[test]
        fn routes_find_what_the_naive_list_finds(
            claims in prop::collection::vec((0..5_u32, network()), 0..20),
            asked in prop::collection::vec(network(), 1..20),
        ) {
            // One claim per network: which of two peers wins is a rule of its own.
            let mut unique: Vec<(u32, IpNet)> = Vec::new();
            for (peer, network) in claims {
                unique.retain(|(_, other)| other.trunc() != network.trunc());
                unique.push((peer, network));
            }
            let peers: Vec<(PeerId, PeerConfig)> =
                unique.iter().map(|(id, network)| (PeerId(*id), peer(vec![*network]))).collect();
            let mut routes = Routes::build(peers.iter().map(|(id, peer)| (*id, peer)));
            for network in asked {
                prop_assert_eq!(routes.find(network.addr()), naive(&unique, network.addr()));
            }
        }
    }

    #[test]
    fn a_peer_that_goes_leaves_the_others_their_networks() {
        let networks: [IpNet; 3] = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"].map(|net| net.parse().unwrap());
        let peers = [peer(networks[..2].to_vec()), peer(networks[1..].to_vec())];
        let mut routes = Routes::build([(PeerId(0), &peers[0]), (PeerId(1), &peers[1])].into_iter());
        assert_eq!(routes.find("10.1.0.1".parse().unwrap()), Some(PeerId(1)));
        routes.remove(PeerId(0), &peers[0]);
        assert_eq!(routes.find("10.2.0.1".parse().unwrap()), None);
        assert_eq!(routes.find("10.1.0.1".parse().unwrap()), Some(PeerId(1)), "the last one that claimed it");
        routes.remove(PeerId(1), &peers[1]);
        assert_eq!(routes.find("10.1.0.1".parse().unwrap()), None);
        assert_eq!(routes.find("fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn the_last_peer_that_claims_a_network_has_it() {
        let network: IpNet = "10.0.0.0/8".parse().unwrap();
        let peers = [(PeerId(1), peer(vec![network])), (PeerId(2), peer(vec![network]))];
        let routes = Routes::build(peers.iter().map(|(id, peer)| (*id, peer)));
        assert_eq!(routes.search("10.1.2.3".parse().unwrap()), Some(PeerId(2)));
    }
}
