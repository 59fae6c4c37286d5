//! Notices a kernel or driver that joins received datagrams wrongly, and steps down to receiving them one by one.
//!
//! A batch that was joined wrongly is cut in wrong places, so that nothing in it authenticates, or all but its first
//! datagram. Damage on the way, or somebody on the path who forges, hits datagrams that come alone as well.

use std::time::{Duration, Instant};

use adit_mesh_proto::Damage;

/// What came joined and what came alone, of late.
#[derive(Debug)]
pub(crate) struct Coalescing {
    joined: Tally,
    alone: Tally,
    since: Instant,
    /// Until when datagrams are received one by one.
    off_until: Option<Instant>,
    /// How long the next pause lasts.
    hold: Duration,
    /// When the last pause ended.
    resumed: Instant,
    steps_down: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    datagrams: u64,
    damaged: u64,
}

/// What the socket should do from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Receive datagrams one by one.
    Off,
    /// Let the kernel join them again: drivers and routes change.
    On,
}

impl Coalescing {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            joined: Tally::default(),
            alone: Tally::default(),
            since: now,
            off_until: None,
            hold: HOLD_MIN,
            resumed: now,
            steps_down: 0,
        }
    }

    /// A batch of so many datagrams came, of which so many were damaged.
    pub(crate) fn observe(&mut self, datagrams: usize, damage: Damage, now: Instant) -> Option<Change> {
        if self.off_until.is_some_and(|until| until <= now) {
            self.off_until = None;
            self.resumed = now;
            self.restart(now);
            return Some(Change::On);
        }
        let datagrams = datagrams as u64;
        let tally = if datagrams > 1 { &mut self.joined } else { &mut self.alone };
        tally.datagrams += datagrams;
        tally.damaged += damage.forged + damage.nonsense;
        if self.off_until.is_none()
            && self.joined.is_bad()
            && self.joined.share() > self.alone.share() * WORSE
        {
            if now.duration_since(self.resumed) > HOLD_MAX {
                self.hold = HOLD_MIN;
            }
            let until = now + self.hold;
            self.off_until = Some(until);
            self.hold = (self.hold * 2).min(HOLD_MAX);
            self.steps_down += 1;
            self.restart(now);
            return Some(Change::Off);
        }
        if now.duration_since(self.since) > WINDOW {
            self.restart(now);
        }
        None
    }

    /// How often joining was given up, and whether it is now.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.steps_down, u64::from(self.off_until.is_some()))
    }

    fn restart(&mut self, now: Instant) {
        (self.joined, self.alone, self.since) = (Tally::default(), Tally::default(), now);
    }
}

impl Tally {
    fn is_bad(&self) -> bool {
        let many = self.damaged >= DAMAGED_MIN && self.share() > SUSPICIOUS;
        // A flow that loses whatever comes joined sends hardly more than one segment per time-out.
        many || (self.damaged >= DAMAGED_FEW && self.share() > MOST)
    }

    #[expect(clippy::cast_precision_loss, reason = "windows are far shorter than 2^53 datagrams")]
    fn share(&self) -> f64 {
        self.damaged as f64 / self.datagrams.max(1) as f64
    }
}

/// Datagrams that must be damaged before anything is done: one batch of the longest kind.
const DAMAGED_MIN: u64 = 64;
/// Share of damaged ones above which joining is suspected; checksums leave one in millions.
const SUSPICIOUS: f64 = 0.02;
/// How much worse the joined ones must be than those that came alone.
const WORSE: f64 = 4.0;
/// Damaged ones that are enough where most are.
const DAMAGED_FEW: u64 = 16;
const MOST: f64 = 0.5;
const WINDOW: Duration = Duration::from_secs(30);
/// First pause, doubled each time up to the longest; the first again after as long without one.
const HOLD_MIN: Duration = Duration::from_secs(60);
const HOLD_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use adit_mesh_proto::segment::Offload;
    use adit_mesh_proto::{Config, Mesh, Outgoing, Path, PeerConfig, PrivateKey};

    use super::*;

    const NONE: Damage = Damage { forged: 0, nonsense: 0 };
    const FORGED: Damage = Damage { forged: 16, nonsense: 0 };

    #[test]
    fn batches_that_fail_while_single_datagrams_pass_end_joining_for_a_while_and_longer_each_time() {
        let mut now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        for hold in [HOLD_MIN, HOLD_MIN * 2] {
            assert_eq!(coalescing.observe(1, NONE, now), None);
            let fell =
                (1..=8).find(|_| coalescing.observe(16, Damage { forged: 8, nonsense: 0 }, now).is_some());
            assert_eq!(fell, Some(8), "half is not most: it takes many");
            assert_eq!(coalescing.counts().1, 1);
            now += hold - Duration::from_millis(1);
            assert_eq!(coalescing.observe(1, NONE, now), None);
            now += Duration::from_millis(1);
            assert_eq!(coalescing.observe(1, NONE, now), Some(Change::On));
        }
        assert_eq!(coalescing.counts(), (2, 0));
    }

    #[test]
    fn damage_that_hits_single_datagrams_as_well_is_no_fault_of_joining() {
        let now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        for _ in 0..100 {
            assert_eq!(coalescing.observe(1, Damage { forged: 1, nonsense: 0 }, now), None);
            assert_eq!(coalescing.observe(16, FORGED, now), None);
        }
    }

    #[test]
    fn a_little_damage_says_nothing() {
        let now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        for _ in 0..1000 {
            assert_eq!(coalescing.observe(64, Damage { forged: 1, nonsense: 0 }, now), None);
        }
    }

    #[test]
    fn a_flow_that_has_collapsed_is_enough_and_a_good_hour_is_forgiven() {
        let mut now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        for _ in 0..2 {
            let mut fell = None;
            for _ in 0..20 {
                assert_eq!(
                    coalescing.observe(1, NONE, now),
                    None,
                    "a segment sent again comes alone, and passes"
                );
                now += Duration::from_millis(400);
                fell = fell.or(coalescing.observe(2, Damage { forged: 2, nonsense: 0 }, now));
                if fell.is_some() {
                    break;
                }
            }
            assert_eq!(fell, Some(Change::Off));
            now += HOLD_MIN;
            assert_eq!(coalescing.observe(1, NONE, now), Some(Change::On));
            now += HOLD_MAX + Duration::from_secs(1);
            assert_eq!(coalescing.observe(1, NONE, now), None);
        }
    }

    #[test]
    fn a_stranger_who_sends_trains_is_not_heard() {
        let now = Instant::now();
        let mut node = Mesh::new(config(1), [1; 32], now);
        // As long as an initiation, and joined with one by the kernel.
        let mut train: Vec<u8> = (0..64 * 148).map(|n| (n % 251) as u8 | 8).collect();
        train[63 * 148..].fill(0);
        train[63 * 148] = 1;
        let damage = node.handle_marked_datagram(path(0), &train, 148, 0, now);
        assert_eq!((damage.forged, damage.nonsense), (0, 0));
        // Data of no session.
        train.chunks_mut(148).for_each(|datagram| datagram[..8].copy_from_slice(&[4, 0, 0, 0, 7, 7, 7, 7]));
        let damage = node.handle_marked_datagram(path(0), &train, 148, 0, now);
        assert_eq!((damage.forged, damage.nonsense), (0, 0));
    }

    /// Two engines; what the first sends to the second arrives joined with a wrong length of each datagram, as from a
    /// driver that merges what differs in length. The wire is the test's: no kernel at hand does this.
    #[test]
    fn trains_that_a_driver_cut_wrongly_are_told_by_the_engine() {
        let now = Instant::now();
        let mut nodes = [0, 1].map(|number| Mesh::new(config(number), [number + 1; 32], now));
        nodes[0].initiate(adit_mesh_proto::PeerId(0), now);
        for turn in 0..4 {
            for (message, _) in sent(&mut nodes[turn % 2]) {
                nodes[1 - turn % 2].handle_datagram(path(turn), &message, message.len(), now);
            }
        }
        let mut coalescing = Coalescing::new(now);
        let mut change = None;
        for _ in 0..10 {
            for _ in 0..20 {
                let mut contents = packet();
                nodes[0].handle_packet(Outgoing { contents: &mut contents, offload: Offload::NONE }, now);
            }
            for (train, stride) in sent(&mut nodes[0]) {
                let stride = stride.expect("twenty equal packets make a train") + 16;
                let damage = nodes[1].handle_marked_datagram(path(0), &train, stride, 0, now);
                assert!(damage.forged + damage.nonsense > 0);
                change = change.or(coalescing.observe(train.len().div_ceil(stride), damage, now));
            }
        }
        assert_eq!(change, Some(Change::Off));
    }

    fn sent(mesh: &mut Mesh) -> Vec<(Vec<u8>, Option<usize>)> {
        let mut datagrams = Vec::new();
        while let Some(transmit) = mesh.poll_transmit() {
            datagrams.push((transmit.contents.to_vec(), transmit.segment_size));
        }
        datagrams
    }

    fn path(number: usize) -> Path {
        Path { remote: ([192, 0, 2, 1 + (number % 2) as u8], 51820).into(), local: None }
    }

    fn key(number: u8) -> PrivateKey {
        PrivateKey::new([8 * (number + 1); 32])
    }

    fn config(number: u8) -> Config {
        let other = 1 - number;
        let peer = PeerConfig {
            name: "other".into(),
            public_key: key(other).public(),
            preshared_key: None,
            allowed_ips: vec![format!("10.0.0.{}/32", other + 1).parse().unwrap()],
            endpoint: Some(path(usize::from(other)).remote),
            keepalive: None,
            mtu: None,
            groups: Vec::new(),
        };
        let addresses = vec![format!("10.0.0.{}/24", number + 1).parse().unwrap()];
        Config { private_key: key(number), addresses, mtu: 1408, peers: vec![peer], policy: None }
    }

    /// 1,200 bytes of UDP from 10.0.0.1 to 10.0.0.2.
    fn packet() -> Vec<u8> {
        let mut packet = vec![0; 1200];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&1200_u16.to_be_bytes());
        packet[8..10].copy_from_slice(&[64, 17]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[24..26].copy_from_slice(&1180_u16.to_be_bytes());
        packet
    }
}
