//! Which edge address each connection uses (tunnel-protocol.md §1.2).
//!
//! Two regions; one address serves one connection at a time; a new address comes from the region
//! with more free ones, so that connections spread over both.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng};

/// A place to dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EdgeEndpoint {
    /// `host:port` as configured; looked up at each dial.
    Name(Arc<str>),
    /// Found by discovery.
    Address(SocketAddr),
}

impl EdgeEndpoint {
    fn is_ipv6(&self) -> bool {
        matches!(self, Self::Address(SocketAddr::V6(_)))
    }
}

/// The addresses and who uses them.
#[derive(Debug, Default)]
pub struct AddressPool {
    regions: [Region; 2],
}

#[derive(Debug, Default)]
struct Region {
    entries: Vec<Entry>,
    /// While set and in the future, IPv4 entries go first although IPv6 is primary.
    ipv6_demoted_until: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    endpoint: EdgeEndpoint,
    used_by: Option<u8>,
}

impl AddressPool {
    /// A pool of configured entries, alternating between the regions.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut pool = Self::default();
        for (index, name) in names.into_iter().take(2 * REGION_ADDRESSES_MAX).enumerate() {
            let endpoint = EdgeEndpoint::Name(name.into());
            pool.regions[index % 2].entries.push(Entry { endpoint, used_by: None });
        }
        pool
    }

    /// Replaces the addresses by what discovery found; connections keep an address that is still there.
    pub fn replace(&mut self, found: [Vec<SocketAddr>; 2]) {
        for (region, addresses) in self.regions.iter_mut().zip(found) {
            let mut old = std::mem::take(&mut region.entries);
            region.entries = addresses
                .into_iter()
                .take(REGION_ADDRESSES_MAX)
                .map(|address| {
                    let endpoint = EdgeEndpoint::Address(address);
                    let kept = old.iter().position(|entry| entry.endpoint == endpoint);
                    let used_by = kept.and_then(|at| old.swap_remove(at).used_by);
                    Entry { endpoint, used_by }
                })
                .collect();
        }
    }

    /// Addresses in all, which bounds the connections (C10).
    pub fn len(&self) -> usize {
        self.regions.iter().map(|region| region.entries.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of `slot`, taking a free one if it has none.
    pub fn assign(&mut self, slot: u8, now: Instant, rng: &mut StdRng) -> Option<EdgeEndpoint> {
        self.assigned(slot).cloned().or_else(|| self.take(slot, None, now, rng))
    }

    /// Gives `slot` another address than it has; the same one only if no other is free.
    ///
    /// `unreachable` says that the old one could not be connected to.
    pub fn rotate(&mut self, slot: u8, unreachable: bool, now: Instant, rng: &mut StdRng) {
        let Some((region, at)) = self.position(slot) else { return };
        let entry = &mut self.regions[region].entries[at];
        entry.used_by = None;
        let ipv6 = entry.endpoint.is_ipv6();
        if unreachable {
            self.regions[region].note_unreachable(ipv6, now);
        }
        if self.take(slot, Some((region, at)), now, rng).is_none() {
            self.regions[region].entries[at].used_by = Some(slot);
        }
    }

    /// Frees the address of `slot`.
    pub fn release(&mut self, slot: u8) {
        if let Some((region, at)) = self.position(slot) {
            self.regions[region].entries[at].used_by = None;
        }
    }

    fn assigned(&self, slot: u8) -> Option<&EdgeEndpoint> {
        let (region, at) = self.position(slot)?;
        Some(&self.regions[region].entries[at].endpoint)
    }

    fn position(&self, slot: u8) -> Option<(usize, usize)> {
        self.regions.iter().enumerate().find_map(|(region, entries)| {
            let at = entries.entries.iter().position(|entry| entry.used_by == Some(slot))?;
            Some((region, at))
        })
    }

    fn take(
        &mut self,
        slot: u8,
        except: Option<(usize, usize)>,
        now: Instant,
        rng: &mut StdRng,
    ) -> Option<EdgeEndpoint> {
        let free = [0, 1].map(|region| {
            let except = except.filter(|(of, _)| *of == region).map(|(_, at)| at);
            self.regions[region].candidates(except, now)
        });
        let region = match free[0].len().cmp(&free[1].len()) {
            std::cmp::Ordering::Greater => 0,
            std::cmp::Ordering::Less => 1,
            std::cmp::Ordering::Equal => rng.random_range(0..2),
        };
        let candidates = &free[region];
        if candidates.is_empty() {
            return None;
        }
        let entry = &mut self.regions[region].entries[candidates[rng.random_range(0..candidates.len())]];
        entry.used_by = Some(slot);
        Some(entry.endpoint.clone())
    }
}

impl Region {
    /// Free entries of the family that goes first, or of the other if that has none.
    fn candidates(&self, except: Option<usize>, now: Instant) -> Vec<usize> {
        let ipv6_first = self.entries.first().is_some_and(|entry| entry.endpoint.is_ipv6())
            && self.ipv6_demoted_until.is_none_or(|until| until <= now);
        let free = |ipv6: bool| -> Vec<usize> {
            let entries = self.entries.iter().enumerate();
            let free = entries.filter(|(at, entry)| {
                entry.used_by.is_none() && Some(*at) != except && entry.endpoint.is_ipv6() == ipv6
            });
            free.map(|(at, _)| at).collect()
        };
        let first = free(ipv6_first);
        if first.is_empty() { free(!ipv6_first) } else { first }
    }

    fn note_unreachable(&mut self, ipv6: bool, now: Instant) {
        if !ipv6 {
            self.ipv6_demoted_until = None;
        } else if self.entries.iter().any(|entry| !entry.endpoint.is_ipv6()) {
            self.ipv6_demoted_until = Some(now + IPV6_DEMOTION);
        }
    }
}

/// How long IPv4 goes first after an IPv6 address could not be reached (§1.2).
const IPV6_DEMOTION: Duration = Duration::from_secs(600);

/// Most addresses of one region; discovery gives about 20. Bounds what a DNS answer can cost.
const REGION_ADDRESSES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::testing::start;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_same_name_twice_counts_twice_and_serves_two() {
        let (mut rng, now) = (StdRng::seed_from_u64(1), start());
        let mut pool = AddressPool::from_names(["e:1", "e:1"]);
        assert_eq!(pool.len(), 2);
        assert!(pool.assign(0, now, &mut rng).is_some());
        assert!(pool.assign(1, now, &mut rng).is_some());
        assert!(pool.assign(2, now, &mut rng).is_none());
        pool.release(0);
        assert!(pool.assign(2, now, &mut rng).is_some());
    }

    #[test]
    fn connections_spread_over_both_regions_and_keep_their_address() {
        let now = start();
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut pool = AddressPool::from_names(["a0:1", "b0:1", "a1:1", "b1:1"]);
            let taken: Vec<_> = (0..2).filter_map(|slot| pool.assign(slot, now, &mut rng)).collect();
            let regions: Vec<bool> = taken
                .iter()
                .map(|endpoint| matches!(endpoint, EdgeEndpoint::Name(name) if name.starts_with('a')))
                .collect();
            assert_ne!(regions[0], regions[1]);
            assert_eq!(pool.assign(0, now, &mut rng).as_ref(), Some(&taken[0]));
        }
    }

    #[test]
    fn rotation_gives_another_address_unless_there_is_none() {
        let (mut rng, now) = (StdRng::seed_from_u64(3), start());
        let mut pool = AddressPool::from_names(["a:1", "b:1"]);
        let first = pool.assign(0, now, &mut rng);
        pool.rotate(0, false, now, &mut rng);
        assert_ne!(pool.assign(0, now, &mut rng), first);
        let mut single = AddressPool::from_names(["a:1"]);
        let first = single.assign(0, now, &mut rng);
        single.rotate(0, true, now, &mut rng);
        assert_eq!(single.assign(0, now, &mut rng), first);
    }

    #[test]
    fn an_unreachable_ipv6_address_puts_ipv4_first_for_ten_minutes() {
        let (mut rng, now) = (StdRng::seed_from_u64(4), start());
        let mut pool = AddressPool::default();
        let v6 = [address("[2001:db8::1]:7844"), address("[2001:db8::2]:7844")];
        pool.replace([vec![v6[0], v6[1], address("192.0.2.1:7844")], vec![]]);
        assert!(pool.assign(0, now, &mut rng).unwrap().is_ipv6());
        pool.rotate(0, true, now, &mut rng);
        assert!(!pool.assign(0, now, &mut rng).unwrap().is_ipv6());
        let later = now + IPV6_DEMOTION;
        pool.rotate(0, false, later, &mut rng);
        assert!(pool.assign(0, later, &mut rng).unwrap().is_ipv6());
    }

    #[test]
    fn rediscovery_keeps_addresses_that_are_still_there() {
        let (mut rng, now) = (StdRng::seed_from_u64(5), start());
        let mut pool = AddressPool::default();
        pool.replace([vec![address("192.0.2.1:1")], vec![]]);
        let kept = pool.assign(0, now, &mut rng);
        pool.replace([vec![address("192.0.2.2:1"), address("192.0.2.1:1")], vec![]]);
        assert_eq!(pool.assign(0, now, &mut rng), kept);
    }
}
