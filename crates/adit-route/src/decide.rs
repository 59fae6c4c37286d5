//! From a request head to a decision.

use std::{borrow::Cow, cell::OnceCell};

use http::{Method, StatusCode};

use crate::{
    host::{self, MANAGEMENT_HOST},
    table::{Route, Table, Target},
};

/// What a decision is made from. Tunnel rules do not match the method, nor any header.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `Host` or `:authority`, with or without port.
    pub host: &'a str,
    /// Path as received: percent-encoded, without query.
    pub path: &'a str,
    /// Method.
    pub method: &'a Method,
}

/// What to do with a request. `route.access` has to be satisfied first.
#[derive(Debug)]
pub enum Decision<'t, E> {
    /// Hand it to an endpoint.
    Forward {
        /// The route that matched.
        route: &'t Route<E>,
        /// Its endpoint.
        endpoint: &'t E,
    },
    /// Answer with a status and no body.
    Respond {
        /// The route that matched.
        route: &'t Route<E>,
        /// Its status.
        status: StatusCode,
    },
    /// Nobody answers it.
    Refuse(Refusal),
}

/// Why nobody answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// No route is for this host.
    #[error("no route is for this host")]
    UnknownHost,
    /// The management host of tunnels needs a verified token, which a host-routed visitor does not have (E22).
    #[error("the management host is not routed by name")]
    ManagementHost,
    /// The path has a broken percent escape, so it cannot be compared with the rules.
    #[error("the path has a broken percent escape")]
    BadPath,
}

/// What one route says about a request, for `ingress rule URL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Position among the rules as written, from 0.
    pub index: usize,
    /// Whether it matches, or what differs.
    pub outcome: Outcome,
}

/// Whether a route matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answers.
    Matched,
    /// It is for other hosts.
    OtherHost,
    /// It is for other paths of this host.
    OtherPath,
}

impl Refusal {
    /// Its name in logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::UnknownHost => "unknown_host",
            Self::ManagementHost => "management_host",
            Self::BadPath => "bad_path",
        }
    }
}

impl<E> Table<E> {
    /// Decides on one request.
    pub fn decide(&self, head: &Head<'_>) -> Decision<'_, E> {
        let key = host::key(head.host);
        if self.refuses_management && key.as_deref() == Some(MANAGEMENT_HOST) {
            return Decision::Refuse(Refusal::ManagementHost);
        }
        match self.first_match(key.as_deref(), &DecodedPath::new(head.path)) {
            Err(refusal) => Decision::Refuse(refusal),
            Ok(None) => Decision::Refuse(Refusal::UnknownHost),
            Ok(Some(position)) => {
                let route = &self.routes[position];
                match &route.target {
                    Target::Forward(endpoint) => Decision::Forward { route, endpoint },
                    Target::Respond(status) => Decision::Respond { route, status: *status },
                }
            }
        }
    }

    /// What each route says about a request, in order, up to and including the one that answers it.
    pub fn explain(&self, head: &Head<'_>) -> Vec<Verdict> {
        let key = host::key(head.host);
        let path = DecodedPath::new(head.path);
        let mut verdicts = Vec::new();
        for route in &self.routes {
            let is_host = match (&route.host, &key) {
                (adit_config::HostPattern::Any, _) => true,
                (pattern, Some(key)) => pattern.matches(key),
                (_, None) => false,
            };
            let outcome = match (is_host, route.matches_path(&path)) {
                (false, _) => Outcome::OtherHost,
                (true, Ok(true)) => Outcome::Matched,
                (true, _) => Outcome::OtherPath,
            };
            verdicts.push(Verdict { index: route.index, outcome });
            if outcome == Outcome::Matched {
                break;
            }
        }
        verdicts
    }

    /// The lowest position whose host and path match. Each list of candidates is ascending, so the first match of each
    /// is its best, and a list may be left as soon as it has passed the best so far.
    fn first_match(&self, key: Option<&str>, path: &DecodedPath<'_>) -> Result<Option<usize>, Refusal> {
        let mut best = None;
        if let Some(key) = key {
            if let Some(candidates) = self.exact.get(key) {
                self.improve(&mut best, candidates, path)?;
            }
            if !self.wildcards.is_empty() {
                for (dot, _) in key.match_indices('.').filter(|(dot, _)| *dot > 0) {
                    if let Some(candidates) = self.wildcards.get(&key[dot + 1..]) {
                        self.improve(&mut best, candidates, path)?;
                    }
                }
            }
        }
        self.improve(&mut best, &self.any, path)?;
        Ok(best)
    }

    fn improve(
        &self,
        best: &mut Option<usize>,
        candidates: &[usize],
        path: &DecodedPath<'_>,
    ) -> Result<(), Refusal> {
        let limit = best.unwrap_or(usize::MAX);
        for position in candidates.iter().copied().take_while(|position| *position < limit) {
            if self.routes[position].matches_path(path)? {
                *best = Some(position);
                break;
            }
        }
        Ok(())
    }
}

impl<E> Route<E> {
    fn matches_path(&self, path: &DecodedPath<'_>) -> Result<bool, Refusal> {
        match &self.path {
            None => Ok(true),
            Some(regex) => path.text().map(|text| regex.is_match(text)),
        }
    }
}

/// A path that is decoded when the first rule asks for it.
struct DecodedPath<'a> {
    raw: &'a str,
    decoded: OnceCell<Result<Cow<'a, str>, Refusal>>,
}

impl<'a> DecodedPath<'a> {
    fn new(raw: &'a str) -> Self {
        Self { raw, decoded: OnceCell::new() }
    }

    fn text(&self) -> Result<&str, Refusal> {
        self.decoded.get_or_init(|| decode(self.raw)).as_deref().map_err(|refusal| *refusal)
    }
}

/// Percent-decoding (RFC 3986 §2.1); bytes that are no UTF-8 become U+FFFD, as Go's regular expressions see them.
fn decode(raw: &str) -> Result<Cow<'_, str>, Refusal> {
    if !raw.contains('%') {
        return Ok(Cow::Borrowed(raw));
    }
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let [high, low, after @ ..] = tail else { return Err(Refusal::BadPath) };
        bytes.push(hex(*high)? << 4 | hex(*low)?);
        rest = after;
    }
    Ok(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

fn hex(digit: u8) -> Result<u8, Refusal> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Refusal::BadPath),
    }
}

#[cfg(test)]
mod tests {
    use adit_config::{CloudflaredFile, HostPattern};

    use super::*;

    fn connector(rules: &str) -> Table<usize> {
        let file = CloudflaredFile::parse(&format!("ingress:\n{rules}"), "t.yml").unwrap();
        Table::from_ingress(&file.ingress.unwrap(), |index, _| index)
    }

    fn index<E>(table: &Table<E>, host: &str, path: &str) -> Result<usize, Refusal> {
        let head = Head { host, path, method: &Method::GET };
        match table.decide(&head) {
            Decision::Forward { route, .. } | Decision::Respond { route, .. } => Ok(route.index),
            Decision::Refuse(refusal) => Err(refusal),
        }
    }

    const RULES: &str = r#"
  - {hostname: a.example, path: "^/api", service: "http://api"}
  - {hostname: "*.example", path: \.(jpg|png)$, service: "http://pictures"}
  - {hostname: A.example, service: "http://a"}
  - {hostname: "*.b.example", service: "http://b"}
  - {path: /health, service: "http_status:204"}
  - {hostname: bücher.example, service: "http://books"}
  - {service: "http_status:404"}
"#;

    #[test]
    fn the_first_matching_rule_wins_whatever_its_kind() {
        let table = connector(RULES);
        for (host, path, expected) in [
            ("a.example", "/api/x.png", 0),
            ("a.example", "/x.png", 1),
            ("A.EXAMPLE:8080", "/x", 2),
            ("a.example.", "/x", 2),
            ("deep.sub.b.example", "/", 3),
            ("deep.sub.b.example", "/x.jpg", 1),
            ("b.example", "/", 6),
            ("example", "/x.png", 6),
            ("other.test", "/x/health", 4),
            ("other.test", "/", 6),
            ("xn--bcher-kva.example", "/", 5),
            ("bücher.example:80", "/", 5),
            ("", "/", 6),
            ("[::1]:80", "/", 6),
        ] {
            assert_eq!(index(&table, host, path), Ok(expected), "{host}{path}");
        }
    }

    #[test]
    fn the_path_is_matched_decoded_and_unanchored() {
        let table = connector("  - {path: /a b, service: \"http://o\"}\n  - service: http_status:404\n");
        assert_eq!(index(&table, "h", "/x/a%20b/c"), Ok(0));
        assert_eq!(index(&table, "h", "/a+b"), Ok(1));
        assert_eq!(index(&table, "h", "/a%2"), Err(Refusal::BadPath));
        assert_eq!(index(&table, "h", "/a%zz"), Err(Refusal::BadPath));
        assert_eq!(index(&table, "h", "/%ff"), Ok(1));
    }

    #[test]
    fn a_path_is_not_decoded_where_no_rule_asks() {
        let table = connector("  - service: http_status:404\n");
        assert_eq!(index(&table, "h", "/a%2"), Ok(0));
    }

    #[test]
    fn access_comes_with_the_decision() {
        let rules = "  - {service: \"http://o\", originRequest: {access: {required: true, teamName: t, audTag: [a]}}}\n";
        let table = connector(rules);
        let head = Head { host: "h", path: "/", method: &Method::GET };
        let Decision::Forward { route, endpoint: 0 } = table.decide(&head) else { panic!() };
        assert_eq!(route.access.as_ref().unwrap().team_name, "t");
    }

    fn edge(hosts: &[&str]) -> Table<String> {
        Table::from_hosts(hosts.iter().map(|host| (host.parse::<HostPattern>().unwrap(), (*host).to_owned())))
    }

    #[test]
    fn at_the_edge_the_most_specific_host_wins() {
        let table = edge(&["*", "*.example", "*.a.example", "x.a.example"]);
        for (host, expected) in
            [("x.a.example", 3), ("y.a.example", 2), ("z.y.a.example", 2), ("a.example", 1), ("other", 0)]
        {
            assert_eq!(index(&table, host, "/"), Ok(expected), "{host}");
        }
    }

    #[test]
    fn at_the_edge_nobody_serves_unknown_and_management_hosts() {
        let table = edge(&["*.example"]);
        assert_eq!(index(&table, "example", "/"), Err(Refusal::UnknownHost));
        assert_eq!(index(&table, "", "/"), Err(Refusal::UnknownHost));
        assert_eq!(index(&edge(&["*"]), "Management.argotunnel.com:443", "/"), Err(Refusal::ManagementHost));
    }

    #[test]
    fn an_explanation_names_what_differs() {
        let head = Head { host: "a.example", path: "/x", method: &Method::GET };
        let outcomes: Vec<_> =
            connector(RULES).explain(&head).iter().map(|verdict| verdict.outcome).collect();
        assert_eq!(outcomes, [Outcome::OtherPath, Outcome::OtherPath, Outcome::Matched]);
    }
}
