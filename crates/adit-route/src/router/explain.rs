//! Why a request goes where it goes, for `adit route explain`.

use super::{HttpHead, Matcher, Request, Router, RouterTable, matcher::HttpLeaf};

/// What one router says about a request.
#[derive(Debug)]
pub struct RouterVerdict<'t, R> {
    /// The router.
    pub router: &'t Router<R>,
    /// Whether it answers, and if not, why.
    pub outcome: RouterOutcome,
}

/// Whether a router answers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouterOutcome {
    /// It answers.
    Wins,
    /// It matches too, and is asked later.
    Outranked,
    /// It is not on this entry point.
    OtherEntryPoint,
    /// It wants TLS and the visitor does not use it, or the other way round.
    OtherTls,
    /// Its rule does not match: the matchers that differ, as a rule would write them.
    Differs(String),
}

impl<R> RouterTable<R> {
    /// What every router says, in the order in which they are asked.
    pub fn explain(&self, head: &HttpHead<'_>) -> Vec<RouterVerdict<'_, R>> {
        let request = Request::new(head);
        let mut is_won = false;
        let mut judge = |router: &Router<R>| {
            if !router.entry_points.iter().any(|name| name == head.entry_point) {
                return RouterOutcome::OtherEntryPoint;
            }
            if !router.takes(head.tls) {
                return RouterOutcome::OtherTls;
            }
            if let Some(difference) = difference(&router.matcher, &request) {
                return RouterOutcome::Differs(difference);
            }
            match std::mem::replace(&mut is_won, true) {
                false => RouterOutcome::Wins,
                true => RouterOutcome::Outranked,
            }
        };
        self.routers.iter().map(|router| RouterVerdict { outcome: judge(router), router }).collect()
    }
}

/// What keeps a rule from matching; `None` if it matches.
fn difference(matcher: &Matcher, request: &Request<'_>) -> Option<String> {
    if matcher.matches(request) {
        return None;
    }
    Some(match matcher {
        Matcher::And(parts) => {
            let different: Vec<String> = parts.iter().filter_map(|part| difference(part, request)).collect();
            different.join(" and ")
        }
        Matcher::Or(parts) => {
            let shown: Vec<String> = parts.iter().take(ALTERNATIVES_SHOWN_MAX).map(written).collect();
            let more = if parts.len() > ALTERNATIVES_SHOWN_MAX { " or …" } else { "" };
            format!("none of {}{more}", shown.join(" or "))
        }
        Matcher::Not(_) | Matcher::Leaf(_) => written(matcher),
    })
}

/// A matcher as a rule would write it.
fn written(matcher: &Matcher) -> String {
    let list = |parts: &[Matcher], operator: &str| {
        format!("({})", parts.iter().map(written).collect::<Vec<_>>().join(operator))
    };
    match matcher {
        Matcher::And(parts) => list(parts, " && "),
        Matcher::Or(parts) => list(parts, " || "),
        Matcher::Not(part) => format!("!{}", written(part)),
        Matcher::Leaf(leaf) => leaf_written(leaf),
    }
}

fn leaf_written(leaf: &HttpLeaf) -> String {
    use crate::host_rule::HostExpression as Host;
    let name = |name: &Option<http::HeaderName>| name.as_ref().map_or("?", |name| name.as_str()).to_owned();
    match leaf {
        HttpLeaf::Host(Host::Any) => "Host(`*`)".to_owned(),
        HttpLeaf::Host(Host::Wildcard(suffix)) => format!("Host(`*{suffix}`)"),
        HttpLeaf::Host(Host::Exact(host)) => format!("Host(`{host}`)"),
        HttpLeaf::HostRegexp(regex) => format!("HostRegexp(`{regex}`)"),
        HttpLeaf::Path(path) => format!("Path(`{path}`)"),
        HttpLeaf::PathPrefix(prefix) => format!("PathPrefix(`{prefix}`)"),
        HttpLeaf::PathRegexp(regex) => format!("PathRegexp(`{regex}`)"),
        HttpLeaf::Header(header, value) => {
            format!("Header(`{}`, `{}`)", name(header), String::from_utf8_lossy(value))
        }
        HttpLeaf::HeaderRegexp(header, regex) => format!("HeaderRegexp(`{}`, `{regex}`)", name(header)),
        HttpLeaf::Method(method) => format!("Method(`{method}`)"),
        HttpLeaf::Query(key, value) if value.is_empty() => format!("Query(`{key}`)"),
        HttpLeaf::Query(key, value) => format!("Query(`{key}`, `{value}`)"),
        HttpLeaf::QueryRegexp(key, regex) => format!("QueryRegexp(`{key}`, `{regex}`)"),
        HttpLeaf::ClientIp(network) => format!("ClientIP(`{network}`)"),
        HttpLeaf::MeshPeer(name) => format!("MeshPeer(`{name}`)"),
        HttpLeaf::MeshGroup(group) => format!("MeshGroup(`{group}`)"),
    }
}

/// Enough to see what kind of alternatives they are.
const ALTERNATIVES_SHOWN_MAX: usize = 8;
