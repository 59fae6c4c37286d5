//! HTTP routers as one table: which router answers a request (`ingress-features.md §1`).
//!
//! A table is built once per reload from all routers and swapped whole. Routers are kept in the order in which they
//! are asked (priority, provider, name); an index of the hosts and paths that rules name says which of them can match at
//! all, so that a request is compared with few, however many there are.

mod build;
mod explain;
mod matcher;
mod query;
mod shadow;
mod suspicion;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, cell::OnceCell, collections::BTreeMap, net::IpAddr};

use http::{HeaderMap, Method};

pub use build::{Disabled, PRIORITY_MAX, RouterSpec};
pub use explain::{RouterOutcome, RouterVerdict};
pub use shadow::Shadow;

use self::matcher::Matcher;
pub use crate::host_rule::canonical_host;
use crate::{index::Index, mesh::MeshIdentity};

/// What a router is chosen by.
#[derive(Debug, Clone, Copy)]
pub struct HttpHead<'a> {
    /// Name of the entry point.
    pub entry_point: &'a str,
    /// Whether the visitor uses TLS on it: routers with `tls` and routers without never mix.
    pub tls: bool,
    /// `Host` or `:authority` as received.
    pub host: &'a str,
    /// Routing path (`path::Normalized::routing_path`).
    pub path: &'a str,
    /// Query for routing, without `?` (`path::routing_query`).
    pub query: &'a str,
    /// Method.
    pub method: &'a Method,
    /// Headers, after the entry point has set its own.
    pub headers: &'a dyn RequestFields,
    /// Bytes of content, where the visitor said how many there are: stands for `Content-Length`, which is not among the
    /// headers. None for an empty content.
    pub content_length: Option<u64>,
    /// Direct peer: `ClientIP` never looks at `X-Forwarded-For`.
    pub peer: IpAddr,
    /// The mesh's peer that asks; absent on entry points that are not on the mesh.
    pub mesh: Option<&'a MeshIdentity>,
}

/// The headers of a request, which may not be a map before a rule asks for one.
pub trait RequestFields: std::fmt::Debug {
    /// All of them.
    fn map(&self) -> &HeaderMap;
}

impl RequestFields for HeaderMap {
    fn map(&self) -> &HeaderMap {
        self
    }
}

/// One router that may answer requests.
#[derive(Debug)]
pub struct Router<R> {
    /// Name, with provider where there is more than one.
    pub name: String,
    /// Rule as written.
    pub rule: String,
    /// Priority that counts: the one given, or the rule's length in bytes.
    pub priority: i64,
    /// Names of its entry points.
    pub entry_points: Vec<String>,
    /// Whether it wants TLS.
    pub tls: bool,
    any_scheme: bool,
    /// What answers.
    pub target: R,
    hosts: Vec<String>,
    names_host: bool,
    suspicions: Vec<String>,
    matcher: Matcher,
}

/// All HTTP routers of a process.
#[derive(Debug)]
pub struct RouterTable<R> {
    /// In the order in which they are asked.
    routers: Vec<Router<R>>,
    /// By entry point: without TLS, with TLS.
    entry_points: BTreeMap<String, [Index; 2]>,
}

impl<R> RouterTable<R> {
    /// The router that answers a request; `None` = 404.
    ///
    /// Takes no lock and allocates nothing for a lower-case host, unless a rule asks for the query.
    pub fn decide(&self, head: &HttpHead<'_>) -> Option<&Router<R>> {
        let request = Request::new(head);
        let index = &self.entry_points.get(head.entry_point)?[usize::from(head.tls)];
        let position = index.first(&request.host, head.path, |position| {
            self.routers[position as usize].matcher.matches(&request)
        })?;
        Some(&self.routers[position as usize])
    }

    /// Whether an entry point has any.
    pub fn has_routers(&self, entry_point: &str) -> bool {
        self.entry_points.contains_key(entry_point)
    }

    /// All routers, in the order in which they are asked.
    pub fn routers(&self) -> &[Router<R>] {
        &self.routers
    }
}

impl<R> Default for RouterTable<R> {
    fn default() -> Self {
        Self { routers: Vec::new(), entry_points: BTreeMap::new() }
    }
}

impl<R> Router<R> {
    /// Hosts that its rule names and does not negate, in lower case: its TLS options hold for handshakes with these names.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Whether its rule names a host anywhere, be it to exclude it: then its TLS options hold for all that it answers.
    pub fn names_host(&self) -> bool {
        self.names_host
    }

    /// Whether it is asked for requests over TLS, or for those without.
    pub fn takes(&self, tls: bool) -> bool {
        self.any_scheme || self.tls == tls
    }

    /// What in its rule is right and very likely not meant, a line each.
    pub fn suspicions(&self) -> &[String] {
        &self.suspicions
    }

    /// Whether its rule matches, whatever other routers there are.
    pub fn matches(&self, head: &HttpHead<'_>) -> bool {
        self.matcher.matches(&Request::new(head))
    }
}

/// What a `Content-Length` field says, for [`HttpHead::content_length`] of a request that was only described.
pub fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A head, and what matchers need of it at most once.
struct Request<'a> {
    head: &'a HttpHead<'a>,
    host: Cow<'a, str>,
    query: OnceCell<Vec<query::Pair<'a>>>,
}

impl<'a> Request<'a> {
    fn new(head: &'a HttpHead<'a>) -> Self {
        Self { head, host: canonical_host(head.host), query: OnceCell::new() }
    }

    fn query(&self) -> &[query::Pair<'a>] {
        self.query.get_or_init(|| query::parse(self.head.query))
    }
}
