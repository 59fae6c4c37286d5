//! The table: routes in order of precedence, indexed by host.

use std::collections::HashMap;

use adit_config::{AccessRequirement, HostPattern, Ingress, IngressRule, Service, path_regex};
use http::StatusCode;
use regex::Regex;

/// Routes over endpoints of type `E`, in order of precedence.
#[derive(Debug, Clone)]
pub struct Table<E> {
    pub(crate) routes: Vec<Route<E>>,
    /// Positions in `routes`, ascending.
    pub(crate) exact: HashMap<Box<str>, Vec<usize>>,
    /// By suffix without `*.`; positions in `routes`, ascending.
    pub(crate) wildcards: HashMap<Box<str>, Vec<usize>>,
    /// Routes for every host; positions in `routes`, ascending.
    pub(crate) any: Vec<usize>,
    pub(crate) refuses_management: bool,
}

/// One route.
#[derive(Debug, Clone)]
pub struct Route<E> {
    /// Position among the rules as written, from 0.
    pub index: usize,
    /// Hosts that it is for.
    pub host: HostPattern,
    /// Decoded paths that it is for; absent = all.
    pub path: Option<Regex>,
    /// Visitors must satisfy this before anything else happens (C43).
    pub access: Option<AccessRequirement>,
    /// Who answers.
    pub target: Target<E>,
}

/// Who answers the requests of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target<E> {
    /// An endpoint of the caller's.
    Forward(E),
    /// An empty answer of this status.
    Respond(StatusCode),
}

impl<E> Table<E> {
    /// The connector's table: the first matching rule wins (`tunnel-protocol.md §7.4`). `endpoint` makes the endpoint of
    /// each rule that is not a fixed status.
    pub fn from_ingress(ingress: &Ingress, mut endpoint: impl FnMut(usize, &IngressRule) -> E) -> Self {
        let routes = ingress.rules.iter().enumerate().map(|(index, rule)| Route {
            index,
            host: rule.hostname.clone(),
            // Reading the rules compiled the expression already; one that fails here matches nothing.
            path: rule.path.as_deref().map(|path| path_regex(path).unwrap_or_else(|_| matches_nothing())),
            access: rule.origin.access.clone(),
            target: match status_of(&rule.service) {
                Some(status) => Target::Respond(status),
                None => Target::Forward(endpoint(index, rule)),
            },
        });
        Self::new(routes.collect(), false)
    }

    /// The edge's table: an exact host wins over a wildcard, a longer wildcard over a shorter one, the first over later
    /// equals. A host that nobody claims is [`crate::Refusal::UnknownHost`].
    pub fn from_hosts(hosts: impl IntoIterator<Item = (HostPattern, E)>) -> Self {
        let mut routes: Vec<Route<E>> = hosts
            .into_iter()
            .enumerate()
            .map(|(index, (host, endpoint))| Route {
                index,
                host,
                path: None,
                access: None,
                target: Target::Forward(endpoint),
            })
            .collect();
        routes.sort_by_key(|route| match &route.host {
            HostPattern::Exact(_) => (0, 0),
            HostPattern::Wildcard(suffix) => (1, usize::MAX - suffix.as_str().len()),
            HostPattern::Any => (2, 0),
        });
        Self::new(routes, true)
    }

    /// Routes in order of precedence.
    pub fn routes(&self) -> &[Route<E>] {
        &self.routes
    }

    fn new(routes: Vec<Route<E>>, refuses_management: bool) -> Self {
        let mut table = Self {
            routes: Vec::new(),
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            any: Vec::new(),
            refuses_management,
        };
        for (position, route) in routes.iter().enumerate() {
            let positions = match &route.host {
                HostPattern::Exact(name) => table.exact.entry(name.as_str().into()).or_default(),
                HostPattern::Wildcard(suffix) => table.wildcards.entry(suffix.as_str().into()).or_default(),
                HostPattern::Any => &mut table.any,
            };
            positions.push(position);
        }
        table.routes = routes;
        table
    }
}

fn status_of(service: &Service) -> Option<StatusCode> {
    match service {
        Service::Status(code) => StatusCode::from_u16(*code).ok(),
        Service::Http { .. } | Service::Unix { .. } | Service::HelloWorld | Service::Stream(_) => None,
    }
}

fn matches_nothing() -> Regex {
    Regex::new(r"[^\s\S]").expect("a fixed expression compiles")
}
