//! Which lanes two nodes have in common, and which of them a flow takes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::ip::{IpHeader, TCP};
use crate::packet::LaneAddress;

/// What the first lane knows of a peer's further lanes.
#[derive(Debug, Default)]
pub(crate) struct PeerLanes {
    /// Names the peer's lanes: another epoch has others.
    epoch: u32,
    /// As many as both have.
    theirs: Vec<LaneAddress>,
    /// One bit for each lane that is connected; bit 0 is the first lane's and never set.
    up: u8,
    /// When ours were announced to it.
    pub(crate) announced: Option<Instant>,
    /// When its were last looked at.
    learnt: Option<Instant>,
}

impl PeerLanes {
    /// Whether an announcement of the peer is looked at now; the next one after this is after a while.
    pub(crate) fn may_learn(&mut self, now: Instant) -> bool {
        let may = self.learnt.is_none_or(|at| now.duration_since(at) >= ANNOUNCEMENT_INTERVAL / 2);
        if may {
            self.learnt = Some(now);
        }
        may
    }

    /// Takes what the peer announces, as far as we have counterparts; says whether that is news.
    pub(crate) fn learn(&mut self, epoch: u32, mut lanes: Vec<LaneAddress>, ours: usize) -> bool {
        lanes.truncate(ours);
        let news = self.epoch != epoch || self.theirs != lanes;
        if news {
            (self.epoch, self.theirs, self.up) = (epoch, lanes, 0);
        }
        news
    }

    /// The peer speaks under this epoch: says whether it has begun anew since it announced lanes, which are then forgotten.
    pub(crate) fn is_outdated_by(&mut self, epoch: u32) -> bool {
        let outdated = !self.theirs.is_empty() && self.epoch != epoch;
        if outdated {
            *self = Self { announced: self.announced, learnt: self.learnt, ..Self::default() };
        }
        outdated
    }

    /// Whether an announcement may be answered by one of ours: not one by one, or two nodes would go on for ever.
    pub(crate) fn owes_announcement(&self, now: Instant) -> bool {
        self.announced.is_none_or(|at| now.duration_since(at) >= ANNOUNCEMENT_INTERVAL)
    }

    pub(crate) fn theirs(&self) -> &[LaneAddress] {
        &self.theirs
    }

    /// Notes that a lane carries data, or does not; says whether that is news.
    pub(crate) fn set(&mut self, lane: usize, up: bool) -> bool {
        if lane == 0 || lane > self.theirs.len() {
            return false;
        }
        let before = self.up;
        if up {
            self.up |= 1 << lane;
        } else {
            self.up &= !(1 << lane);
        }
        before != self.up
    }

    /// Lanes that both have, the first included.
    pub(crate) fn agreed(&self) -> usize {
        1 + self.theirs.len()
    }

    /// Of these, how many are usable.
    pub(crate) fn up(&self) -> usize {
        1 + self.up.count_ones() as usize
    }

    /// The lane of a packet: the same for all packets of its flow in both directions, while the same lanes are up.
    #[inline]
    pub(crate) fn choose(&self, header: &IpHeader, packet: &[u8]) -> usize {
        if self.up == 0 {
            return 0;
        }
        let lane = usize::from(flow_hash(header, packet)) % self.agreed();
        if self.up & (1 << lane) == 0 { 0 } else { lane }
    }
}

/// Spreads flows: TCP by addresses and ports, everything else by addresses, because later fragments have no ports and must
/// not overtake the first. The same for both directions.
#[inline]
fn flow_hash(header: &IpHeader, packet: &[u8]) -> u16 {
    let (source, destination) = match header.protocol {
        TCP => header.ports(packet).unwrap_or_default(),
        _ => (0, 0),
    };
    let end = |address: IpAddr, port: u16| {
        let bits = match address {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                (bits >> 64) as u64 ^ bits as u64
            }
        };
        (bits ^ u64::from(port) << 32).wrapping_mul(SPREAD)
    };
    let both = end(header.source, source).wrapping_add(end(header.destination, destination));
    (both.wrapping_mul(SPREAD) >> 48) as u16
}

/// An odd number without pattern: the golden ratio's digits, as Knuth multiplies.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Shortest time between two announcements of ours to one peer.
const ANNOUNCEMENT_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::tests::packet;
    use crate::ip::{ICMP, UDP};
    use crate::keys::PublicKey;

    fn lanes(count: usize) -> PeerLanes {
        let theirs = (0..count).map(|number| LaneAddress { key: PublicKey([number as u8; 32]), port: 1 });
        let mut lanes = PeerLanes::default();
        assert!(lanes.learn(1, theirs.collect(), count));
        assert!((1..=count).all(|lane| lanes.set(lane, true) && !lanes.set(lane, true)));
        lanes
    }

    fn choose(lanes: &PeerLanes, packet: &[u8]) -> usize {
        lanes.choose(&IpHeader::parse(packet).unwrap(), packet)
    }

    fn transport(ports: (u16, u16), rest: &[u8]) -> Vec<u8> {
        [&ports.0.to_be_bytes(), &ports.1.to_be_bytes(), rest].concat()
    }

    proptest! {
        #[test]
        fn all_packets_of_a_flow_take_one_lane_whatever_they_hold_and_wherever_they_go(
            hosts in (1_u8.., 1_u8..), ports in any::<(u16, u16)>(), count in 0_usize..8, protocol in 0_usize..3,
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 16..100), 1..10),
        ) {
            let lanes = lanes(count);
            let (here, there) = (format!("10.0.0.{}", hosts.0), format!("10.1.0.{}", hosts.1));
            let protocol = [TCP, UDP, ICMP][protocol];
            let mut chosen = std::collections::HashSet::new();
            for payload in payloads {
                let out = packet(&here, &there, protocol, &transport(ports, &payload));
                chosen.insert(choose(&lanes, &out));
                let back = packet(&there, &here, protocol, &transport((ports.1, ports.0), &payload));
                chosen.insert(choose(&lanes, &back));
                if protocol != TCP {
                    let mut fragment = out;
                    fragment[6] = 0x20;
                    chosen.insert(choose(&lanes, &fragment));
                }
            }
            prop_assert_eq!(chosen.len(), 1);
            prop_assert!(chosen.iter().all(|lane| *lane <= count));
        }
    }

    #[test]
    fn flows_spread_over_the_lanes_and_fall_back_to_the_first() {
        let mut lanes = lanes(3);
        let mut counts = [0; 4];
        let flow = |port: u16| packet("10.0.0.1", "10.0.0.2", TCP, &transport((port, 443), &[0; 16]));
        for port in 40_000..41_000 {
            counts[choose(&lanes, &flow(port))] += 1;
        }
        assert!(counts.iter().all(|count| (150..350).contains(count)), "{counts:?}");
        lanes.set(2, false);
        assert_eq!((lanes.agreed(), lanes.up()), (4, 3));
        let again: Vec<usize> = (40_000..41_000).map(|port| choose(&lanes, &flow(port))).collect();
        assert!(!again.contains(&2));
        assert_eq!(again.iter().filter(|lane| **lane == 3).count(), counts[3], "others stay where they are");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
    fn announcements_are_looked_at_twice_a_second_at_most() {
        let now = Instant::now();
        let mut lanes = PeerLanes::default();
        let looked = (0..100).filter(|step| lanes.may_learn(now + Duration::from_millis(10) * *step)).count();
        assert_eq!(looked, 2);
    }

    #[test]
    fn a_peer_that_begins_anew_has_no_lanes_until_it_says_so() {
        let mut lanes = lanes(2);
        assert!(!lanes.is_outdated_by(1));
        assert!(lanes.is_outdated_by(2));
        assert_eq!((lanes.agreed(), lanes.up()), (1, 1));
        assert!(!lanes.is_outdated_by(3));
        lanes.set(1, true);
        assert_eq!(lanes.up(), 1, "a lane that nobody knows");
    }
}
