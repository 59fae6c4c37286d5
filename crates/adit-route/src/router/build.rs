//! From routers as configured to a table; a router that is at fault is left out alone.

use std::collections::BTreeMap;

use super::{Index, Matcher, Router, RouterTable, matcher::HttpLeaf, suspicion::suspicions};
use crate::rule::{Expression, HTTP_MATCHERS};

/// One router as configured, with names already resolved.
#[derive(Debug, Clone)]
pub struct RouterSpec<R> {
    /// Unique name.
    pub name: String,
    /// Rule as written.
    pub rule: String,
    /// 0 = the rule's length.
    pub priority: i64,
    /// Where its provider stands among the providers: lower goes first at equal priority.
    pub provider: u32,
    /// Whether it is one of ours, which may have priorities above [`PRIORITY_MAX`].
    pub is_internal: bool,
    /// Entry points it is on, defaults already filled in.
    pub entry_points: Vec<String>,
    /// Whether it wants TLS.
    pub tls: bool,
    /// Whether it answers with and without TLS, whatever `tls` says: behind a tunnel the visitor's hop is not ours.
    pub any_scheme: bool,
    /// What answers.
    pub target: R,
}

/// A router that is not served, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disabled {
    /// Its name.
    pub name: String,
    /// One line.
    pub reason: String,
}

/// Highest priority that an operator may give; the rest is for our own routers (`ingress-features.md §1.3`).
pub const PRIORITY_MAX: i64 = i64::MAX - 1000;

impl<R> RouterTable<R> {
    /// Builds the table. At equal priority and provider the name decides, so that a restart moves no traffic.
    pub fn build(specs: impl IntoIterator<Item = RouterSpec<R>>) -> (Self, Vec<Disabled>) {
        let mut disabled = Vec::new();
        let mut compiled: Vec<(u32, Router<R>)> = Vec::new();
        for spec in specs {
            let (name, provider) = (spec.name.clone(), spec.provider);
            match compile(spec) {
                Ok(router) => compiled.push((provider, router)),
                Err(reason) => disabled.push(Disabled { name, reason }),
            }
        }
        compiled.sort_by(|(left_provider, left), (right_provider, right)| {
            let by_priority = right.priority.cmp(&left.priority);
            by_priority.then(left_provider.cmp(right_provider)).then_with(|| left.name.cmp(&right.name))
        });
        let routers: Vec<Router<R>> = compiled.into_iter().map(|(_, router)| router).collect();
        let mut entry_points: BTreeMap<String, [Index; 2]> = BTreeMap::new();
        for (position, router) in routers.iter().enumerate() {
            // More than four thousand million routers do not fit into any configuration that is read.
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            for entry_point in &router.entry_points {
                let indices = entry_points.entry(entry_point.clone()).or_default();
                for (index, _) in indices.iter_mut().zip([false, true]).filter(|(_, tls)| router.takes(*tls))
                {
                    index.insert(position, &router.matcher);
                }
            }
        }
        (Self { routers, entry_points }, disabled)
    }
}

fn compile<R>(spec: RouterSpec<R>) -> Result<Router<R>, String> {
    if spec.priority > PRIORITY_MAX && !spec.is_internal {
        return Err(format!("priorities above {PRIORITY_MAX} are reserved"));
    }
    let expression = Expression::parse(&spec.rule, &HTTP_MATCHERS)
        .map_err(|error| format!("rule `{}`: {error}", spec.rule))?;
    let matcher = Matcher::new(&expression, &HttpLeaf::new)
        .map_err(|error| format!("rule `{}`: {error}", spec.rule))?;
    let priority = match spec.priority {
        0 => i64::try_from(spec.rule.len()).unwrap_or(PRIORITY_MAX),
        given => given,
    };
    let mut hosts = expression.positive_arguments("Host");
    hosts.sort();
    hosts.dedup();
    let mut entry_points = spec.entry_points;
    entry_points.sort();
    entry_points.dedup();
    Ok(Router {
        name: spec.name,
        rule: spec.rule,
        priority,
        entry_points,
        tls: spec.tls,
        any_scheme: spec.any_scheme,
        target: spec.target,
        hosts,
        names_host: expression.uses("Host"),
        suspicions: suspicions(&expression),
        matcher,
    })
}
