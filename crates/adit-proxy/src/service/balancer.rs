//! Choosing one of several: servers of a load balancer, or services of a weighted one.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use adit_config::dynamic::BalancerStrategy;
use smallvec::SmallVec;

use super::schedule::Schedule;
use super::sticky::Sticky;
use crate::fields::Fields;

/// Something that can be chosen.
pub(super) trait Member {
    /// What its sticky cookie and its place in line go by.
    fn name(&self) -> &str;
    /// Its share; 0 for none.
    fn weight(&self) -> u32;
    /// Whether it is well.
    fn is_up(&self) -> bool;
    /// Draining: chosen by cookies, and by others only if nobody else is up.
    fn is_fenced(&self) -> bool {
        false
    }
    /// Requests it is busy with.
    fn in_flight(&self) -> usize {
        0
    }
    /// Mean response time in milliseconds.
    fn response_time_ms(&self) -> f64 {
        0.0
    }
}

/// Members and the way to choose among them.
#[derive(Debug)]
pub(super) struct Balancer<M> {
    /// Those with a share.
    members: Vec<M>,
    strategy: BalancerStrategy,
    schedule: Mutex<Schedule>,
    sticky: Option<Sticky>,
}

/// Who was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) index: usize,
    /// Whether the visitor is to be told by cookie.
    pub(super) tell: bool,
}

impl<M: Member> Balancer<M> {
    /// Members without a share are left out. `previous` is the state of the same balancer before a reload.
    pub(super) fn new(
        members: Vec<M>,
        strategy: BalancerStrategy,
        sticky: impl FnOnce(&[M]) -> Option<Sticky>,
        previous: Option<&Schedule>,
    ) -> Self {
        let members: Vec<M> = members.into_iter().filter(|member| member.weight() > 0).collect();
        let schedule = Schedule::new(members.iter().map(|m| (m.name(), m.weight())), previous);
        let sticky = sticky(&members);
        Self { members, strategy, schedule: Mutex::new(schedule), sticky }
    }

    /// All members, in the order of [`Choice::index`].
    pub(super) fn members(&self) -> &[M] {
        &self.members
    }

    /// The cookie, if there is one.
    pub(super) fn sticky(&self) -> Option<&Sticky> {
        self.sticky.as_ref()
    }

    /// True if at least one member is up.
    pub(super) fn is_up(&self) -> bool {
        self.members.iter().any(Member::is_up)
    }

    /// The state for a reload.
    pub(super) fn schedule(&self) -> Schedule {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Chooses for a request; `except` was tried already. `None` if nobody is up.
    pub(super) fn choose(&self, headers: &Fields, client: IpAddr, except: Option<usize>) -> Option<Choice> {
        let usable = |index: usize| except != Some(index) && self.members[index].is_up();
        if let Some(remembered) = self.sticky.as_ref().and_then(|sticky| sticky.find(headers))
            && usable(remembered.index)
        {
            return Some(Choice { index: remembered.index, tell: remembered.rewrite });
        }
        let index = self
            .by_strategy(client, |index| usable(index) && !self.members[index].is_fenced())
            .or_else(|| self.by_strategy(client, usable))?;
        Some(Choice { index, tell: self.sticky.is_some() })
    }

    fn by_strategy(&self, client: IpAddr, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let all = 0..self.members.len();
        match self.strategy {
            BalancerStrategy::Wrr => self.next(eligible),
            BalancerStrategy::P2c => self.less_loaded(&all.filter(|i| eligible(*i)).collect::<Candidates>()),
            BalancerStrategy::Hrw => {
                let key = client.to_canonical().to_string();
                let score = |index: &usize| score(&key, &self.members[*index]);
                all.filter(|i| eligible(*i)).max_by(|a, b| score(a).total_cmp(&score(b)))
            }
            BalancerStrategy::LeastTime => {
                self.soonest(&all.filter(|i| eligible(*i)).collect::<Candidates>())
            }
        }
    }

    fn next(&self, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner).next(eligible)
    }

    /// The less loaded of two chosen at random.
    fn less_loaded(&self, candidates: &[usize]) -> Option<usize> {
        if candidates.len() < 2 {
            return candidates.first().copied();
        }
        let first = rand::random_range(0..candidates.len());
        let second = (first + rand::random_range(1..candidates.len())) % candidates.len();
        let (first, second) = (candidates[first], candidates[second]);
        let is_less = self.members[second].in_flight() < self.members[first].in_flight();
        Some(if is_less { second } else { first })
    }

    /// The one that would answer first if its requests are answered one after the other; ties take turns.
    #[expect(clippy::cast_precision_loss, reason = "a score for comparison")]
    fn soonest(&self, candidates: &[usize]) -> Option<usize> {
        let score = |index: usize| {
            let member = &self.members[index];
            member.response_time_ms() * (1 + member.in_flight()) as f64 / f64::from(member.weight())
        };
        let best = candidates.iter().map(|i| score(*i)).min_by(f64::total_cmp)?;
        self.next(|index| candidates.contains(&index) && score(index) <= best)
    }
}

/// Rendezvous hashing: every visitor has its own order of members, weighted ones higher up in more of them.
#[expect(clippy::cast_precision_loss, reason = "a score for comparison")]
fn score(key: &str, member: &impl Member) -> f64 {
    let hash = key
        .bytes()
        .chain(member.name().bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let unit = mix(hash) as f64 / 2f64.powi(64);
    f64::from(member.weight()) / -unit.ln()
}

/// Spreads the last bytes over all bits: members' names often differ in nothing but their last digit, which FNV alone
/// leaves in the middle of the hash.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Most services have few servers: no allocation for those.
type Candidates = SmallVec<[usize; 16]>;

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[derive(Debug)]
    struct Fake {
        name: &'static str,
        weight: u32,
        up: Cell<bool>,
        fenced: bool,
        busy: usize,
        time: f64,
    }

    fn fake(name: &'static str) -> Fake {
        Fake { name, weight: 1, up: Cell::new(true), fenced: false, busy: 0, time: 0.0 }
    }

    impl Member for Fake {
        fn name(&self) -> &str {
            self.name
        }
        fn weight(&self) -> u32 {
            self.weight
        }
        fn is_up(&self) -> bool {
            self.up.get()
        }
        fn is_fenced(&self) -> bool {
            self.fenced
        }
        fn in_flight(&self) -> usize {
            self.busy
        }
        fn response_time_ms(&self) -> f64 {
            self.time
        }
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn balancer(members: Vec<Fake>, strategy: BalancerStrategy) -> Balancer<Fake> {
        Balancer::new(members, strategy, |_| None, None)
    }

    fn choose(balancer: &Balancer<Fake>) -> Option<&'static str> {
        let choice = balancer.choose(&Fields::new(), CLIENT, None)?;
        Some(balancer.members()[choice.index].name)
    }

    #[test]
    fn weight_zero_gets_nothing_and_nobody_up_is_nobody() {
        let lone = balancer(vec![fake("a"), Fake { weight: 0, ..fake("b") }], BalancerStrategy::Wrr);
        assert!((0..3).all(|_| choose(&lone) == Some("a")));
        lone.members()[0].up.set(false);
        assert_eq!(choose(&lone), None);
        assert!(!lone.is_up());
    }

    #[test]
    fn draining_members_are_the_last_resort() {
        let group = balancer(vec![fake("a"), Fake { fenced: true, ..fake("b") }], BalancerStrategy::Wrr);
        assert!((0..4).all(|_| choose(&group) == Some("a")));
        group.members()[0].up.set(false);
        assert_eq!(choose(&group), Some("b"));
    }

    #[test]
    fn of_two_the_less_loaded_is_taken() {
        let group = balancer(vec![Fake { busy: 10, ..fake("a") }, fake("b")], BalancerStrategy::P2c);
        assert!((0..20).all(|_| choose(&group) == Some("b")));
    }

    #[test]
    fn one_visitor_stays_with_one_member_and_many_spread() {
        let members = || vec![fake("a"), Fake { weight: 3, ..fake("b") }];
        let group = balancer(members(), BalancerStrategy::Hrw);
        let first = choose(&group);
        assert!((0..10).all(|_| choose(&group) == first));
        let heavy = (0..=255u8)
            .flat_map(|a| (0..4u8).map(move |b| IpAddr::from([10, 0, a, b])))
            .filter(|ip| group.choose(&Fields::new(), *ip, None).is_some_and(|c| c.index == 1))
            .count();
        assert!((650..890).contains(&heavy), "{heavy} of 1024 with a share of 3 in 4");
    }

    #[test]
    fn the_soonest_is_taken_and_ties_take_turns() {
        let group = balancer(
            vec![Fake { time: 50.0, ..fake("a") }, Fake { time: 10.0, busy: 2, ..fake("b") }],
            BalancerStrategy::LeastTime,
        );
        assert_eq!(choose(&group), Some("b"));
        let equal = balancer(vec![fake("a"), fake("b")], BalancerStrategy::LeastTime);
        assert_ne!(choose(&equal), choose(&equal));
    }

    #[test]
    fn a_second_choice_is_another_one() {
        let group = balancer(vec![fake("a"), fake("b")], BalancerStrategy::Wrr);
        for _ in 0..4 {
            let choice = group.choose(&Fields::new(), CLIENT, Some(0)).unwrap();
            assert_eq!(choice.index, 1);
        }
        assert_eq!(
            balancer(vec![fake("a")], BalancerStrategy::Wrr).choose(&Fields::new(), CLIENT, Some(0)),
            None
        );
    }
}
