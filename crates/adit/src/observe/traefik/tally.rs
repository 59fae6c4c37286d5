//! Requests of one lane that are counted alike, until somebody asks for the sums.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use prometheus::local::LocalHistogram;

use super::Series;

/// What is the same for all requests of a [`Tally`]. Empty names stand for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alike<'a> {
    pub(super) entry_point: &'a str,
    pub(super) router: &'a str,
    pub(super) service: &'a str,
    /// As Traefik counts it: see [`super::code`].
    pub(super) status: u16,
    /// The service's own.
    pub(super) service_status: u16,
    pub(super) method: usize,
    pub(super) protocol: usize,
    /// Version and cipher.
    pub(super) tls: Option<(&'static str, &'static str)>,
}

/// All that one lane has counted.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    by_hash: HashMap<u64, Vec<Tally>, BuildHasherDefault<Hashed>>,
    count: usize,
}

/// Sums of requests that are [`Alike`].
#[derive(Debug)]
pub(super) struct Tally {
    names: [Box<str>; 3],
    rest: Alike<'static>,
    requests: u64,
    received: u64,
    sent: u64,
    to: Vec<Target>,
}

/// A label set that the sums go to.
#[derive(Debug)]
pub(super) struct Target {
    series: Arc<Series>,
    tls: Option<IntCounter>,
    duration: LocalHistogram,
}

impl Alike<'_> {
    /// Names come from the configuration and methods from a list: nobody can choose them so that they collide.
    fn hash(&self) -> u64 {
        let names = [self.entry_point, self.router, self.service];
        let mut hash = u64::from(self.status) << 32 ^ u64::from(self.service_status) << 16;
        hash ^= (self.method << 4 ^ self.protocol) as u64;
        for name in names {
            for chunk in name.as_bytes().chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(MULTIPLIER).rotate_left(29);
            }
            hash = hash.wrapping_add(1).wrapping_mul(MULTIPLIER);
        }
        hash
    }
}

impl Tallies {
    /// The sums of requests like these; `targets` says where they go, if there are none yet.
    pub(super) fn find(&mut self, alike: &Alike<'_>, targets: impl FnOnce() -> Vec<Target>) -> &mut Tally {
        let hash = alike.hash();
        if self.count >= TALLIES_MAX && !self.by_hash.contains_key(&hash) {
            self.clear();
        }
        let tallies = self.by_hash.entry(hash).or_default();
        let at = tallies.iter().position(|tally| tally.is_of(alike)).unwrap_or_else(|| {
            self.count += 1;
            tallies.push(Tally::new(alike, targets()));
            tallies.len() - 1
        });
        &mut tallies[at]
    }

    /// Adds everything to where it goes.
    pub(super) fn flush(&mut self) {
        self.by_hash.values_mut().flatten().for_each(Tally::flush);
    }

    /// As [`Self::flush`]; where sums go is asked anew for each.
    pub(super) fn clear(&mut self) {
        self.flush();
        self.by_hash.clear();
        self.count = 0;
    }
}

impl Tally {
    fn new(alike: &Alike<'_>, to: Vec<Target>) -> Self {
        Self {
            names: [alike.entry_point, alike.router, alike.service].map(Box::from),
            rest: Alike { entry_point: "", router: "", service: "", ..*alike },
            requests: 0,
            received: 0,
            sent: 0,
            to,
        }
    }

    fn is_of(&self, alike: &Alike<'_>) -> bool {
        let [entry_point, router, service] = &self.names;
        Alike { entry_point, router, service, ..self.rest } == *alike
    }

    pub(super) fn add(&mut self, duration: Duration, received: u64, sent: u64) {
        self.requests += 1;
        self.received += received;
        self.sent += sent;
        let seconds = duration.as_secs_f64();
        self.to.iter().for_each(|target| target.duration.observe(seconds));
    }

    fn flush(&mut self) {
        let [requests, received, sent] =
            [&mut self.requests, &mut self.received, &mut self.sent].map(std::mem::take);
        for Target { series, tls, duration } in &self.to {
            series.requests.inc_by(requests);
            series.received.inc_by(received);
            series.sent.inc_by(sent);
            duration.flush();
            if let Some(tls) = tls {
                tls.inc_by(requests);
            }
        }
    }
}

impl Target {
    pub(super) fn new(series: Arc<Series>, tls: Option<IntCounter>) -> Self {
        Self { duration: series.duration.local(), series, tls }
    }
}

/// Keys are hashes already.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        debug_assert!(false, "only whole numbers are keys: {bytes:?}");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Of one lane, about 600 bytes each; with more, all are added up at once and begun anew.
const TALLIES_MAX: usize = 1024;
/// Odd, and with bits all over (the golden ratio's).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
