//! Which routers can match a host and a path at all.
//!
//! Every rule is reduced to anchors: pairs of a host and a path condition, one of which holds whenever the rule matches.
//! Exact hosts, wildcard suffixes, exact paths and prefixes are hashed; a rule that names neither is asked always.

use std::collections::HashMap;

use crate::{
    condition::{Condition, Leaf},
    host_rule::{HostExpression, TrimEndDot, wildcard_key},
};

/// A condition that is necessary for one way in which a rule can match.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Anchor {
    host: HostAnchor,
    path: PathAnchor,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum HostAnchor {
    Any,
    /// Suffix with its dot.
    Wildcard(Box<str>),
    Exact(Box<str>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum PathAnchor {
    Any,
    Prefix(Box<str>),
    Exact(Box<str>),
}

/// Positions of routers by what their rules name. Every list is ascending.
#[derive(Debug, Default)]
pub(crate) struct Index {
    exact: HashMap<Box<str>, Paths>,
    wildcard: HashMap<Box<str>, Paths>,
    any: Paths,
}

#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<str>, Vec<u32>>,
    prefix: HashMap<Box<str>, Vec<u32>>,
    /// Lengths of the keys of `prefix`, ascending, each once: a lookup hashes the path once per length.
    prefix_lens: Vec<usize>,
    any: Vec<u32>,
}

impl Index {
    /// Adds a router; positions must come in ascending order.
    pub(crate) fn insert<L: Leaf>(&mut self, position: u32, condition: &Condition<L>) {
        for anchor in anchors(condition) {
            let paths = match anchor.host {
                HostAnchor::Any => &mut self.any,
                HostAnchor::Wildcard(suffix) => self.wildcard.entry(suffix).or_default(),
                HostAnchor::Exact(name) => self.exact.entry(name).or_default(),
            };
            paths.insert(position, anchor.path);
        }
    }

    /// The lowest position that is a candidate for host and path and of which `is_match` holds.
    pub(crate) fn first(&self, host: &str, path: &str, mut is_match: impl FnMut(u32) -> bool) -> Option<u32> {
        let name = host.trim_end_dot();
        let wildcard = wildcard_key(name).and_then(|suffix| self.wildcard.get(suffix));
        let mut best = None;
        for paths in [self.exact.get(name), wildcard, Some(&self.any)].into_iter().flatten() {
            paths.first(path, &mut best, &mut is_match);
        }
        best
    }
}

impl Paths {
    fn insert(&mut self, position: u32, anchor: PathAnchor) {
        let list = match anchor {
            PathAnchor::Any => &mut self.any,
            PathAnchor::Exact(path) => self.exact.entry(path).or_default(),
            PathAnchor::Prefix(prefix) => {
                if let Err(place) = self.prefix_lens.binary_search(&prefix.len()) {
                    self.prefix_lens.insert(place, prefix.len());
                }
                self.prefix.entry(prefix).or_default()
            }
        };
        // A rule may reach one list by several anchors.
        if list.last() != Some(&position) {
            list.push(position);
        }
    }

    fn first(&self, path: &str, best: &mut Option<u32>, is_match: &mut impl FnMut(u32) -> bool) {
        if let Some(list) = self.exact.get(path) {
            first_of(list, best, is_match);
        }
        for len in self.prefix_lens.iter().take_while(|len| **len <= path.len()) {
            if let Some(list) = path.get(..*len).and_then(|prefix| self.prefix.get(prefix)) {
                first_of(list, best, is_match);
            }
        }
        first_of(&self.any, best, is_match);
    }
}

/// Improves on `best` with the first match of an ascending list, which may be left once it has passed `best`.
fn first_of(list: &[u32], best: &mut Option<u32>, is_match: &mut impl FnMut(u32) -> bool) {
    for position in list {
        if best.is_some_and(|best| *position >= best) {
            return;
        }
        if is_match(*position) {
            *best = Some(*position);
            return;
        }
    }
}

/// The anchors of a rule, without those that others cover.
fn anchors<L: Leaf>(condition: &Condition<L>) -> Vec<Anchor> {
    match condition {
        Condition::Leaf(leaf) => vec![leaf.anchor()],
        // What is negated names nothing that must hold.
        Condition::Not(_) => vec![Anchor::ANY],
        Condition::Or(parts) => {
            let mut all: Vec<Anchor> = parts.iter().flat_map(anchors).collect();
            if all.contains(&Anchor::ANY) {
                return vec![Anchor::ANY];
            }
            all.sort();
            all.dedup();
            all
        }
        Condition::And(parts) => {
            parts.iter().map(anchors).fold(vec![Anchor::ANY], |left, right| both(&left, &right))
        }
    }
}

/// Anchors of two conditions that must both hold: each pair, by the narrower of its two hosts and paths. Where that
/// would be too many, those of one side are still necessary.
fn both(left: &[Anchor], right: &[Anchor]) -> Vec<Anchor> {
    if left.len().saturating_mul(right.len()) > ANCHORS_MAX {
        let narrower = if right.len() < left.len() { right } else { left };
        return narrower.to_vec();
    }
    let mut pairs: Vec<Anchor> = left
        .iter()
        .flat_map(|left| right.iter().map(move |right| (left, right)))
        .map(|(left, right)| Anchor {
            host: left.host.clone().max(right.host.clone()),
            path: left.path.clone().max(right.path.clone()),
        })
        .collect();
    pairs.sort();
    pairs.dedup();
    pairs
}

impl Anchor {
    /// Nothing is necessary.
    pub(crate) const ANY: Self = Self { host: HostAnchor::Any, path: PathAnchor::Any };

    /// This host is necessary.
    pub(crate) fn of_host(host: &HostExpression) -> Self {
        let host = match host {
            HostExpression::Any => HostAnchor::Any,
            HostExpression::Wildcard(suffix) => HostAnchor::Wildcard(suffix.clone()),
            HostExpression::Exact(name) => HostAnchor::Exact(name.clone()),
        };
        Self { host, ..Self::ANY }
    }

    /// This path is necessary.
    pub(crate) fn of_path(path: &str) -> Self {
        Self { path: PathAnchor::Exact(path.into()), ..Self::ANY }
    }

    /// This start of the path is necessary.
    pub(crate) fn of_prefix(prefix: &str) -> Self {
        Self { path: PathAnchor::Prefix(prefix.into()), ..Self::ANY }
    }
}

/// Anchors of one conjunction: bounds memory at some 16 KiB per rule and part of a rule.
const ANCHORS_MAX: usize = 256;
