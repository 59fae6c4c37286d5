//! Routers that others leave nothing for.
//!
//! For each router requests are made up that its rule matches and that are otherwise as plain as can be: an unusual method
//! and an unusual path below its prefix. If another router answers all of them, it very likely answers everything.

use std::net::{IpAddr, Ipv4Addr};

use adit_config::PeerKey;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{HttpHead, Matcher, Router, RouterTable, length_of, matcher::HttpLeaf};
use crate::{host_rule::HostExpression, mesh::MeshIdentity};

/// A router that is never reached, as far as can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// The router.
    pub router: String,
    /// The one that answers in its place.
    pub by: String,
    /// Entry point on which it is so.
    pub entry_point: String,
    /// A URL without scheme that shows it, such as `app.example.com/api`.
    pub example: String,
}

impl<R> RouterTable<R> {
    /// Every router that is shadowed on one of its entry points.
    pub fn shadows(&self) -> Vec<Shadow> {
        let mut shadows = Vec::new();
        for router in &self.routers {
            let witnesses: Vec<Witness> =
                witnesses(&router.matcher, true).into_iter().take(WITNESSES_MAX).collect();
            for entry_point in &router.entry_points {
                shadows.extend(self.shadow_of(router, entry_point, &witnesses));
            }
        }
        shadows
    }

    fn shadow_of(&self, router: &Router<R>, entry_point: &str, witnesses: &[Witness]) -> Option<Shadow> {
        let mut shadow = None;
        for witness in witnesses {
            let method = Method::from_bytes(witness.method.as_bytes()).ok()?;
            let head = HttpHead {
                entry_point,
                tls: router.tls,
                host: &witness.host,
                path: &witness.path,
                query: &witness.query,
                method: &method,
                headers: &witness.headers,
                content_length: length_of(&witness.headers),
                peer: witness.peer,
                mesh: witness.mesh.as_ref(),
            };
            // A rule with regular expressions or negations may not match what was made up for it: nothing is known then.
            if !router.matches(&head) {
                return None;
            }
            let winner = self.decide(&head)?;
            if winner.name == router.name {
                return None;
            }
            shadow = Some(Shadow {
                router: router.name.clone(),
                by: winner.name.clone(),
                entry_point: entry_point.to_owned(),
                example: format!("{}{}", witness.host, witness.path.trim_end_matches(PLAIN_SEGMENT)),
            });
        }
        shadow
    }
}

/// A made-up request.
#[derive(Debug, Clone)]
struct Witness {
    host: String,
    path: String,
    query: String,
    method: String,
    headers: HeaderMap,
    peer: IpAddr,
    mesh: Option<MeshIdentity>,
}

impl Witness {
    fn plain() -> Self {
        Self {
            host: "host.invalid".to_owned(),
            path: format!("/{PLAIN_SEGMENT}"),
            query: String::new(),
            method: "PLAIN".to_owned(),
            headers: HeaderMap::new(),
            // TEST-NET-1 (RFC 5737): no rule means it.
            peer: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            mesh: None,
        }
    }

    /// Makes the request one that a matcher wants.
    fn satisfy(mut self, leaf: &HttpLeaf) -> Self {
        match leaf {
            HttpLeaf::Host(HostExpression::Exact(name)) => self.host = name.to_string(),
            HttpLeaf::Host(HostExpression::Wildcard(suffix)) => self.host = format!("plain{suffix}"),
            HttpLeaf::Path(path) => self.path = path.to_string(),
            HttpLeaf::PathPrefix(prefix) => self.path = format!("{prefix}{PLAIN_SEGMENT}"),
            HttpLeaf::Method(method) => self.method = method.to_string(),
            HttpLeaf::Header(Some(name), value) => self.add_header(name, value),
            HttpLeaf::Query(name, value) => {
                let between = if self.query.is_empty() { "" } else { "&" };
                self.query = format!("{}{between}{name}={value}", self.query);
            }
            HttpLeaf::ClientIp(network) => self.peer = network.addr(),
            HttpLeaf::MeshPeer(name) => self.peer_of_mesh().name.clone_from(name),
            HttpLeaf::MeshGroup(group) => self.peer_of_mesh().groups.push(group.clone()),
            _ => {}
        }
        self
    }

    fn peer_of_mesh(&mut self) -> &mut MeshIdentity {
        let nobody = || MeshIdentity { name: "".into(), key: PeerKey([1; 32]), groups: Vec::new() };
        self.mesh.get_or_insert_with(nobody)
    }

    fn add_header(&mut self, name: &HeaderName, value: &[u8]) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            self.headers.append(name, value);
        }
    }
}

/// Requests, one for each way in which a rule can match (as many as are looked at).
fn witnesses(matcher: &Matcher, is_positive: bool) -> Vec<Witness> {
    fn extend(from: Vec<Witness>, matcher: &Matcher, is_positive: bool) -> Vec<Witness> {
        match (matcher, is_positive) {
            (Matcher::And(parts), true) | (Matcher::Or(parts), false) => {
                parts.iter().fold(from, |from, part| extend(from, part, is_positive))
            }
            (Matcher::Or(parts), true) | (Matcher::And(parts), false) => parts
                .iter()
                .take(WITNESSES_MAX)
                .flat_map(|part| extend(from.clone(), part, is_positive))
                .take(WITNESSES_MAX)
                .collect(),
            (Matcher::Not(part), _) => extend(from, part, !is_positive),
            (Matcher::Leaf(leaf), true) => from.into_iter().map(|witness| witness.satisfy(leaf)).collect(),
            // A plain request differs from everything that rules name.
            (Matcher::Leaf(_), false) => from,
        }
    }
    extend(vec![Witness::plain()], matcher, is_positive)
}

/// Bounds the work for one router.
const WITNESSES_MAX: usize = 16;
/// A segment that nobody's rule names.
const PLAIN_SEGMENT: &str = "zq7plain";
