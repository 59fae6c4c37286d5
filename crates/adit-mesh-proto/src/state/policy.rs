//! Who may reach what: default deny, by group and destination, with answers to what was allowed.
//!
//! Judged are packets from peers, and packets to peers that this node only forwards. What this node itself begins may
//! always go. A packet that cannot be judged for certain (a fragment, extension headers) does not pass.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;

use crate::config::{Config, PeerConfig, Policy, Protocol, Rule, Source};
use crate::drops::DropReason;
use crate::icmp::quoted;
use crate::ip::{ICMP, ICMPV6, IpHeader, Shape, TCP, UDP};
use crate::keys::PublicKey;
use crate::state::flows::{FlowKey, FlowTable, Passage, Tuple};

/// The policy of one lane and the flows it has allowed.
pub(crate) struct Filter {
    policy: Policy,
    own: Vec<IpAddr>,
    /// For each peer the rules that its name and groups select, so that a packet is compared with no others.
    of_peer: HashMap<PublicKey, Vec<Selected>>,
    /// Rules that name networks or everybody: for packets from behind this node.
    of_networks: Vec<Selected>,
    flows: FlowTable,
    /// The last flow found and in which second: packets come in runs.
    last: Option<(FlowKey, u32)>,
    /// Who has which addresses: flows are known by addresses alone, and must not outlive a change of hands.
    networks: Vec<(PublicKey, Vec<IpNet>)>,
}

/// Where a packet comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin {
    /// A peer.
    Peer(PublicKey),
    /// This node or what is behind it.
    Here,
}

/// A rule that may be for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Selected {
    rule: usize,
    /// The sender's identity selects it already, whatever the source address.
    by_identity: bool,
}

impl Filter {
    pub(crate) fn new(policy: Policy, config: &Config, flows: FlowTable) -> Self {
        // What passed while there was no policy has to be allowed like anything else.
        flows.lock().clear();
        let mut filter = Self {
            policy,
            own: Vec::new(),
            of_peer: HashMap::new(),
            of_networks: Vec::new(),
            flows,
            last: None,
            networks: networks(config),
        };
        filter.compile(config);
        filter
    }

    /// Becomes the new policy; what the old one had allowed has to be allowed anew if anything changed.
    pub(crate) fn update(&mut self, policy: Policy, config: &Config) {
        let before = std::mem::take(&mut self.of_peer);
        let changed = self.policy != policy;
        self.policy = policy;
        self.compile(config);
        let same = |(key, rules): (&PublicKey, &Vec<Selected>)| self.of_peer.get(key) == Some(rules);
        let networks = networks(config);
        if changed || self.networks != networks || !before.iter().all(same) {
            self.flows.lock().clear();
            self.last = None;
        }
        self.networks = networks;
    }

    pub(crate) fn flows(&self) -> usize {
        self.flows.lock().len()
    }

    /// Whether the packet passes, and why not.
    #[inline]
    pub(crate) fn judge(
        &mut self,
        origin: Origin,
        header: &IpHeader,
        packet: &[u8],
        now: Instant,
    ) -> Result<(), DropReason> {
        match header.shape {
            Shape::Plain => {}
            Shape::Fragment => return Err(DropReason::Fragment),
            Shape::Extended => return Err(DropReason::ExtensionHeader),
        }
        let began = self.flows.began;
        let second = u32::try_from(now.saturating_duration_since(began).as_secs()).unwrap_or(u32::MAX / 2);
        let Some(tuple) = Tuple::of(header, packet) else {
            let known = quoted(header, packet).is_some_and(|quoted| self.flows.lock().knows(&quoted, second));
            return if known { Ok(()) } else { Err(DropReason::Policy) };
        };
        let place = (tuple.key(), second);
        if self.last == Some(place) && tuple.flags == 0 {
            return Ok(());
        }
        let passage = self.flows.lock().pass(&tuple, second);
        self.last = (passage == Passage::Settled).then_some(place);
        if passage != Passage::Unknown {
            return Ok(());
        }
        if !self.allows(origin, header, &tuple, packet) {
            return Err(DropReason::Policy);
        }
        let (beginner, own) = match origin {
            Origin::Peer(key) => (Some(key), false),
            Origin::Here => (None, self.own.contains(&header.source)),
        };
        // What this node begins may always go, even if its answers then may not come.
        if self.flows.lock().add(&tuple, beginner, second) || own {
            Ok(())
        } else {
            Err(DropReason::FlowTableFull)
        }
    }

    fn allows(&self, origin: Origin, header: &IpHeader, tuple: &Tuple, packet: &[u8]) -> bool {
        let own = self.own.contains(&header.source);
        let rules: &[Selected] = match origin {
            Origin::Here if own => return true,
            Origin::Here => &self.of_networks,
            Origin::Peer(key) => self.of_peer.get(&key).map_or(&[], Vec::as_slice),
        };
        // Only a request begins something; an answer that nobody waits for does not.
        let begins = match header.protocol {
            ICMP => packet.get(header.transport) == Some(&8),
            ICMPV6 => packet.get(header.transport) == Some(&128),
            _ => true,
        };
        begins
            && rules.iter().any(|selected| {
                self.policy.rules.get(selected.rule).is_some_and(|rule| {
                    rule.matches_target(tuple) && (selected.by_identity || rule.matches_source(header.source))
                })
            })
    }

    fn compile(&mut self, config: &Config) {
        self.own = config.addresses.iter().map(IpNet::addr).collect();
        let select = |choose: &dyn Fn(&Rule) -> Option<bool>| -> Vec<Selected> {
            let chosen = self.policy.rules.iter().enumerate();
            chosen.filter_map(|(rule, what)| Some(Selected { rule, by_identity: choose(what)? })).collect()
        };
        self.of_networks = select(&|rule| rule.names_networks().then_some(false));
        let of_peer =
            config.peers.iter().map(|peer| (peer.public_key, select(&|rule| rule.concerns(peer)))).collect();
        self.of_peer = of_peer;
    }
}

/// The peers' networks and our own, in an order that does not depend on how they are written.
fn networks(config: &Config) -> Vec<(PublicKey, Vec<IpNet>)> {
    let own = (PublicKey([0; 32]), config.addresses.clone());
    let mut all: Vec<_> =
        config.peers.iter().map(|peer| (peer.public_key, peer.allowed_ips.clone())).chain([own]).collect();
    all.iter_mut().for_each(|(_, networks)| networks.sort_unstable());
    all.sort_unstable_by_key(|(key, _)| key.0);
    all
}

impl Rule {
    /// Whether it may be for packets of `peer`, and if so whether for all of them.
    fn concerns(&self, peer: &PeerConfig) -> Option<bool> {
        let identity = self.from.iter().any(|source| match source {
            Source::Any => true,
            Source::Group(group) => peer.groups.contains(group),
            Source::Peer(name) => peer.name == *name,
            Source::Myself | Source::Networks(_) => false,
        });
        let networks = self.from.iter().any(|source| match source {
            Source::Networks(networks) => {
                networks.iter().any(|network| peer.allowed_ips.iter().any(|own| overlap(network, own)))
            }
            _ => false,
        });
        (identity || networks).then_some(identity)
    }

    fn names_networks(&self) -> bool {
        self.from.iter().any(|source| matches!(source, Source::Any | Source::Networks(_)))
    }

    fn matches_source(&self, source: IpAddr) -> bool {
        self.from.iter().any(|from| match from {
            Source::Any => true,
            Source::Networks(networks) => networks.iter().any(|network| network.contains(&source)),
            _ => false,
        })
    }

    fn matches_target(&self, tuple: &Tuple) -> bool {
        let protocol = match self.protocol {
            Protocol::Any => true,
            Protocol::Tcp => tuple.protocol == TCP,
            Protocol::Udp => tuple.protocol == UDP,
            Protocol::Icmp => matches!(tuple.protocol, ICMP | ICMPV6),
            Protocol::Number(number) => tuple.protocol == number,
        };
        let (address, port) = tuple.destination;
        let has_ports = matches!(tuple.protocol, TCP | UDP);
        let ports =
            self.ports.is_empty() || (has_ports && self.ports.iter().any(|ports| ports.contains(&port)));
        let network = self.to.is_empty() || self.to.iter().any(|network| network.contains(&address));
        protocol && ports && network
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::tests::{packet, udp};
    use crate::keys::PrivateKey;

    fn peer(number: u8, groups: &[&str]) -> PeerConfig {
        PeerConfig {
            name: format!("peer-{number}").into(),
            public_key: PublicKey([number; 32]),
            preshared_key: None,
            allowed_ips: vec![
                format!("10.0.0.{number}/32").parse().unwrap(),
                format!("192.168.{number}.0/24").parse().unwrap(),
                format!("fd00::{number}/128").parse().unwrap(),
            ],
            endpoint: None,
            keepalive: None,
            mtu: None,
            groups: groups.iter().map(|group| (*group).into()).collect(),
        }
    }

    fn config(rules: Vec<Rule>) -> Config {
        Config {
            private_key: PrivateKey::new([1; 32]),
            addresses: vec!["10.0.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
            mtu: 1408,
            peers: vec![peer(2, &["family"]), peer(3, &[]), peer(4, &["admin", "family"])],
            policy: Some(Policy { rules }),
        }
    }

    fn rule(from: Source, to: &[&str], protocol: Protocol, ports: &[u16]) -> Rule {
        Rule {
            from: vec![from],
            to: to.iter().map(|network| network.parse().unwrap()).collect(),
            protocol,
            ports: ports.iter().map(|port| *port..=*port).collect(),
        }
    }

    struct Gate {
        filter: Filter,
        now: Instant,
    }

    impl Gate {
        #[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
        fn new(rules: Vec<Rule>) -> Self {
            let config = config(rules);
            let now = Instant::now();
            Self { filter: Filter::new(config.policy.clone().unwrap(), &config, FlowTable::new(now)), now }
        }

        fn judge(&mut self, from: u8, packet: &[u8]) -> Result<(), DropReason> {
            let origin = if from == 1 { Origin::Here } else { Origin::Peer(PublicKey([from; 32])) };
            let header = IpHeader::parse(packet).unwrap();
            self.filter.judge(origin, &header, packet, self.now)
        }
    }

    fn to_port(source: &str, destination: &str, port: u16) -> Vec<u8> {
        packet(source, destination, UDP, &udp(4000, port, b"x"))
    }

    const DENIED: Result<(), DropReason> = Err(DropReason::Policy);

    #[test]
    fn without_a_rule_nothing_passes_but_what_this_node_begins_and_its_answers() {
        let mut gate = Gate::new(Vec::new());
        assert_eq!(gate.judge(2, &to_port("10.0.0.2", "10.0.0.1", 53)), DENIED);
        assert_eq!(gate.judge(1, &to_port("192.168.9.1", "10.0.0.2", 53)), DENIED, "only forwarded");
        assert_eq!(gate.judge(1, &to_port("10.0.0.1", "10.0.0.2", 53)), Ok(()));
        let answer = packet("10.0.0.2", "10.0.0.1", UDP, &udp(53, 4000, b"x"));
        assert_eq!(gate.judge(2, &answer), Ok(()));
        let other = packet("10.0.0.2", "10.0.0.1", UDP, &udp(54, 4000, b"x"));
        assert_eq!(gate.judge(2, &other), DENIED);
    }

    #[test]
    fn rules_select_by_group_name_network_destination_protocol_and_port() {
        let mut gate = Gate::new(vec![
            rule(Source::Group("admin".into()), &[], Protocol::Any, &[]),
            rule(Source::Group("family".into()), &["10.0.0.1/32", "fd00::1/128"], Protocol::Udp, &[443]),
            rule(Source::Peer("peer-3".into()), &["192.168.2.0/24"], Protocol::Any, &[22]),
            rule(Source::Networks(vec!["192.168.3.0/25".parse().unwrap()]), &[], Protocol::Udp, &[53]),
        ]);
        let cases = [
            (4, "10.0.0.4", "10.9.9.9", 1, true),
            (2, "10.0.0.2", "10.0.0.1", 443, true),
            (2, "fd00::2", "fd00::1", 443, true),
            (2, "10.0.0.2", "10.0.0.1", 444, false),
            (2, "10.0.0.2", "10.0.0.3", 443, false),
            (3, "10.0.0.3", "10.0.0.1", 443, false),
            (3, "10.0.0.3", "192.168.2.9", 22, true),
            (3, "192.168.3.7", "10.7.7.7", 53, true),
            (3, "192.168.3.200", "10.7.7.7", 53, false),
            (2, "192.168.2.7", "10.7.7.7", 53, false),
            (1, "192.168.3.7", "10.0.0.2", 53, true),
            (1, "192.168.3.7", "10.0.0.2", 54, false),
        ];
        for (from, source, destination, port, passes) in cases {
            let verdict = gate.judge(from, &to_port(source, destination, port));
            assert_eq!(verdict.is_ok(), passes, "{source} to {destination}:{port} from {from}: {verdict:?}");
        }
    }

    #[test]
    fn what_cannot_be_judged_fails_closed_even_if_everything_is_allowed() {
        let mut gate = Gate::new(vec![rule(Source::Any, &[], Protocol::Any, &[])]);
        let mut fragment = to_port("10.0.0.2", "10.0.0.1", 53);
        fragment[6] |= 0x20;
        assert_eq!(gate.judge(2, &fragment), Err(DropReason::Fragment));
        let fragment = packet("fd00::2", "fd00::1", 44, &[17, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 53]);
        assert_eq!(gate.judge(2, &fragment), Err(DropReason::Fragment));
        let hidden = packet("fd00::2", "fd00::1", 60, &[17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 53]);
        assert_eq!(gate.judge(2, &hidden), Err(DropReason::ExtensionHeader));
        let short = packet("10.0.0.2", "10.0.0.1", UDP, &[0, 1, 0]);
        assert_eq!(gate.judge(2, &short), DENIED);
        assert_eq!(gate.judge(2, &packet("10.0.0.2", "10.0.0.1", 47, b"gre")), Ok(()));
    }

    #[test]
    fn pings_are_flows_and_errors_pass_only_for_known_packets() {
        let echo = |kind: u8| packet("10.0.0.2", "10.0.0.1", ICMP, &[kind, 0, 0, 0, 0, 7, 0, 1]);
        let mut gate = Gate::new(vec![rule(Source::Any, &["10.0.0.1/32"], Protocol::Icmp, &[])]);
        assert_eq!(gate.judge(2, &echo(0)), DENIED, "an answer to nothing");
        assert_eq!(gate.judge(2, &echo(8)), Ok(()));
        let reply = packet("10.0.0.1", "10.0.0.2", ICMP, &[0, 0, 0, 0, 0, 7, 0, 1]);
        assert_eq!(gate.judge(1, &reply), Ok(()));

        let sent = to_port("10.0.0.1", "192.168.2.9", 53);
        let mut unreachable = vec![3, 1, 0, 0, 0, 0, 0, 0];
        unreachable.extend(&sent[..28]);
        let unreachable = packet("10.0.0.2", "10.0.0.1", ICMP, &unreachable);
        assert_eq!(gate.judge(2, &unreachable), DENIED, "nothing of the kind was sent");
        assert_eq!(gate.judge(1, &sent), Ok(()));
        assert_eq!(gate.judge(2, &unreachable), Ok(()));
    }

    #[test]
    fn a_changed_policy_ends_what_the_old_one_allowed() {
        let allow = rule(Source::Group("family".into()), &[], Protocol::Udp, &[53]);
        let mut gate = Gate::new(vec![allow.clone()]);
        let request = to_port("10.0.0.2", "10.0.0.1", 53);
        assert_eq!(gate.judge(2, &request), Ok(()));
        gate.filter.update(Policy { rules: vec![allow] }, &config(Vec::new()));
        assert_eq!(gate.filter.flows(), 1, "nothing changed");
        gate.filter.update(Policy { rules: Vec::new() }, &config(Vec::new()));
        assert_eq!(gate.judge(2, &request), DENIED);
    }

    #[test]
    fn flows_do_not_outlive_the_move_of_an_address_to_another_peer() {
        let rules = || vec![rule(Source::Group("admin".into()), &[], Protocol::Any, &[])];
        let mut gate = Gate::new(rules());
        let mut config = config(rules());
        gate.filter.update(config.policy.clone().unwrap(), &config);
        let (mut from, mut to) = (config.peers[2].clone(), config.peers[1].clone());
        let packet = packet("10.0.0.4", "10.0.0.1", UDP, &udp(4000, 53, b"x"));
        assert_eq!(gate.judge(4, &packet), Ok(()));
        assert_eq!(gate.filter.flows(), 1);
        to.allowed_ips = std::mem::take(&mut from.allowed_ips);
        config.peers = vec![from, to];
        gate.filter.update(config.policy.clone().unwrap(), &config);
        assert_eq!(gate.judge(3, &packet), Err(DropReason::Policy), "peer 3 has no rule");
    }
}
