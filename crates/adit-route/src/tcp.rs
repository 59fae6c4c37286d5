//! TCP routers: which service a connection goes to (`ingress-features.md §1.4`).
//!
//! One table holds the routers of one kind on one entry point: those without TLS, or those with.

use std::net::IpAddr;

use adit_config::dynamic::network;
use ipnet::IpNet;
use regex::Regex;

use crate::{
    compile_go_regex,
    condition::{Condition, Leaf},
    host_rule::{HostExpression, canonical_host},
    index::{Anchor, Index},
    mesh::MeshIdentity,
    router::{Disabled, PRIORITY_MAX},
    rule::{Call, Expression, TCP_MATCHERS},
};

/// What a connection is routed by.
#[derive(Debug, Clone, Copy)]
pub struct TcpHead<'a> {
    /// Server name of the ClientHello; empty for none, and for plain TCP.
    pub server_name: &'a str,
    /// ALPN protocols of the ClientHello.
    pub alpn: &'a [&'a [u8]],
    /// Direct peer, or the client that a trusted PROXY protocol header names.
    pub peer: IpAddr,
    /// The mesh's peer that connects; absent on entry points that are not on the mesh.
    pub mesh: Option<&'a MeshIdentity>,
}

/// One router as configured.
#[derive(Debug, Clone)]
pub struct TcpRouterSpec<R> {
    /// Unique name.
    pub name: String,
    /// Rule as written.
    pub rule: String,
    /// 0 = the rule's length, and −1 for `HostSNI(*)` alone.
    pub priority: i64,
    /// Where its provider stands among the providers: lower goes first at equal priority.
    pub provider: u32,
    /// Whether it has `tls`: without, only `HostSNI(*)` is possible.
    pub tls: bool,
    /// What answers.
    pub target: R,
}

/// One router that may take connections.
#[derive(Debug)]
pub struct TcpRouter<R> {
    /// Name.
    pub name: String,
    /// Rule as written.
    pub rule: String,
    /// Priority that counts.
    pub priority: i64,
    /// Whether the rule is exactly `HostSNI(*)`: HTTPS goes first then.
    pub is_catch_all: bool,
    /// What answers.
    pub target: R,
    hosts: Vec<String>,
    condition: Condition<TcpLeaf>,
}

/// TCP routers in the order in which they are asked.
#[derive(Debug)]
pub struct TcpTable<R> {
    routers: Vec<TcpRouter<R>>,
    index: Index,
}

impl<R> TcpTable<R> {
    /// Builds the table; a router that is at fault is left out alone.
    pub fn build(specs: impl IntoIterator<Item = TcpRouterSpec<R>>) -> (Self, Vec<Disabled>) {
        let mut disabled = Vec::new();
        let mut compiled = Vec::new();
        for spec in specs {
            let (name, provider) = (spec.name.clone(), spec.provider);
            match compile(spec) {
                Ok(router) => compiled.push((provider, router)),
                Err(reason) => disabled.push(Disabled { name, reason }),
            }
        }
        compiled.sort_by(|(left_provider, left): &(u32, TcpRouter<R>), (right_provider, right)| {
            let by_priority = right.priority.cmp(&left.priority);
            by_priority.then(left_provider.cmp(right_provider)).then_with(|| left.name.cmp(&right.name))
        });
        let routers: Vec<TcpRouter<R>> = compiled.into_iter().map(|(_, router)| router).collect();
        let mut index = Index::default();
        for (position, router) in routers.iter().enumerate() {
            index.insert(u32::try_from(position).unwrap_or(u32::MAX), &router.condition);
        }
        (Self { routers, index }, disabled)
    }

    /// The router that takes a connection.
    pub fn decide(&self, head: &TcpHead<'_>) -> Option<&TcpRouter<R>> {
        let server_name = canonical_host(head.server_name);
        let subject = Subject { head, server_name: &server_name };
        let is_match = |position: u32| self.routers[position as usize].condition.matches(&subject);
        let position = self.index.first(&server_name, "", is_match)?;
        Some(&self.routers[position as usize])
    }

    /// All routers, in the order in which they are asked.
    pub fn routers(&self) -> &[TcpRouter<R>] {
        &self.routers
    }

    /// Whether there is no router.
    pub fn is_empty(&self) -> bool {
        self.routers.is_empty()
    }
}

impl<R> Default for TcpTable<R> {
    fn default() -> Self {
        Self { routers: Vec::new(), index: Index::default() }
    }
}

impl<R> TcpRouter<R> {
    /// Server names that its rule names and does not negate, in lower case, `*` included.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }
}

/// The names that a connection is compared by.
struct Subject<'a> {
    head: &'a TcpHead<'a>,
    server_name: &'a str,
}

#[derive(Debug)]
enum TcpLeaf {
    HostSni(HostExpression),
    HostSniRegexp(Regex),
    Alpn(Box<[u8]>),
    ClientIp(IpNet),
    MeshPeer(Box<str>),
    MeshGroup(Box<str>),
}

impl TcpLeaf {
    fn new(call: &Call) -> Result<Self, String> {
        let [argument] = call.arguments.as_slice() else {
            return Err(format!("{} takes 1 argument, not {}", call.matcher, call.arguments.len()));
        };
        Ok(match call.matcher {
            "HostSNI" if argument == "*" || is_host_or_address(argument) => {
                Self::HostSni(HostExpression::new(argument))
            }
            "HostSNI" => return Err(format!("HostSNI: `{argument}` is no host name")),
            "HostSNIRegexp" if !argument.is_ascii() => {
                return Err(format!(
                    "HostSNIRegexp: `{argument}` is not ASCII: write it as punycode (`xn--…`)"
                ));
            }
            "HostSNIRegexp" => Self::HostSniRegexp(
                compile_go_regex(argument).map_err(|error| format!("HostSNIRegexp: {error}"))?,
            ),
            "ALPN" if argument == ACME_PROTOCOL => {
                return Err(format!("ALPN: `{ACME_PROTOCOL}` is for certificate challenges"));
            }
            "ALPN" => Self::Alpn(argument.as_bytes().into()),
            "ClientIP" => Self::ClientIp(
                network(argument)
                    .ok_or_else(|| format!("ClientIP: `{argument}` is no address and no network"))?,
            ),
            "MeshPeer" => Self::MeshPeer(argument.as_str().into()),
            "MeshGroup" => Self::MeshGroup(argument.as_str().into()),
            other => return Err(format!("there is no matcher `{other}` for TCP")),
        })
    }
}

impl Leaf for TcpLeaf {
    type Subject<'a> = Subject<'a>;

    fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::HostSni(host) => host.matches(subject.server_name),
            Self::HostSniRegexp(regex) => regex.is_match(subject.server_name),
            Self::Alpn(protocol) => subject.head.alpn.contains(&&**protocol),
            Self::ClientIp(network) => network.contains(&subject.head.peer.to_canonical()),
            Self::MeshPeer(name) => subject.head.mesh.is_some_and(|peer| peer.name == *name),
            Self::MeshGroup(group) => subject.head.mesh.is_some_and(|peer| peer.is_in(group)),
        }
    }

    fn anchor(&self) -> Anchor {
        match self {
            Self::HostSni(host) => Anchor::of_host(host),
            _ => Anchor::ANY,
        }
    }
}

fn compile<R>(spec: TcpRouterSpec<R>) -> Result<TcpRouter<R>, String> {
    if spec.priority > PRIORITY_MAX {
        return Err(format!("priorities above {PRIORITY_MAX} are reserved"));
    }
    let in_rule = |error: &dyn std::fmt::Display| format!("rule `{}`: {error}", spec.rule);
    let expression = Expression::parse(&spec.rule, &TCP_MATCHERS).map_err(|error| in_rule(&error))?;
    let condition = Condition::new(&expression, &TcpLeaf::new).map_err(|error| in_rule(&error))?;
    let hosts = expression.positive_arguments("HostSNI");
    if let Some(host) = hosts.iter().find(|host| !spec.tls && *host != "*") {
        return Err(in_rule(&format!("HostSNI(`{host}`) needs `tls`: plain TCP has no server name")));
    }
    if !spec.tls && names_a_negated_host(&expression, false) {
        return Err(in_rule(&"a negated HostSNI needs `tls`: it would take every plain connection"));
    }
    let is_catch_all = matches!(
        &expression,
        Expression::Call(call) if call.matcher == "HostSNI" && call.arguments == ["*"]
    );
    let priority = match spec.priority {
        0 if is_catch_all => -1,
        0 => i64::try_from(spec.rule.len()).unwrap_or(PRIORITY_MAX),
        given => given,
    };
    Ok(TcpRouter {
        name: spec.name,
        rule: spec.rule,
        priority,
        is_catch_all,
        target: spec.target,
        hosts,
        condition,
    })
}

/// Whether a rule excludes a server name, which is true of all plain TCP.
fn names_a_negated_host(expression: &Expression, negated: bool) -> bool {
    match expression {
        Expression::Call(call) => negated && call.matcher == "HostSNI",
        Expression::Not(inner) => names_a_negated_host(inner, !negated),
        Expression::And(parts) | Expression::Or(parts) => {
            parts.iter().any(|part| names_a_negated_host(part, negated))
        }
    }
}

/// What `HostSNI` takes: letters, digits, `_`, `.`, `-`, `:`, with `*.` before them or not.
fn is_host_or_address(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b':');
    !name.is_empty() && name.bytes().all(is_good)
}

/// RFC 8737.
const ACME_PROTOCOL: &str = "acme-tls/1";

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rules: &[(&str, i64, bool)]) -> (TcpTable<usize>, Vec<Disabled>) {
        let spec = |(index, (rule, priority, tls)): (usize, &(&str, i64, bool))| TcpRouterSpec {
            name: format!("r{index}"),
            rule: (*rule).to_owned(),
            priority: *priority,
            provider: 0,
            tls: *tls,
            target: index,
        };
        TcpTable::build(rules.iter().enumerate().map(spec))
    }

    fn decide(table: &TcpTable<usize>, server_name: &str, alpn: &[&[u8]], peer: &str) -> Option<usize> {
        let head = TcpHead { server_name, alpn, peer: peer.parse().unwrap(), mesh: None };
        table.decide(&head).map(|router| router.target)
    }

    #[test]
    fn names_wildcards_and_the_catch_all_are_asked_by_length() {
        let (table, disabled) = table(&[
            ("HostSNI(`*`)", 0, true),
            ("HostSNI(`db.test`)", 0, true),
            ("HostSNI(`*.db.test`)", 0, true),
            ("HostSNIRegexp(`^x[0-9]+\\.db\\.test$`)", 0, true),
            ("HostSNI(`db.test`) && ClientIP(`10.0.0.0/8`)", 0, true),
            ("HostSNI(`alpn.test`) && ALPN(`h2`)", 0, true),
        ]);
        assert!(disabled.is_empty(), "{disabled:?}");
        assert_eq!(decide(&table, "DB.test", &[], "127.0.0.1"), Some(1));
        assert_eq!(decide(&table, "db.test", &[], "::ffff:10.1.2.3"), Some(4));
        assert_eq!(decide(&table, "a.db.test", &[], "127.0.0.1"), Some(2));
        assert_eq!(decide(&table, "x1.db.test", &[], "127.0.0.1"), Some(3));
        assert_eq!(decide(&table, "a.b.db.test", &[], "127.0.0.1"), Some(0));
        assert_eq!(decide(&table, "", &[], "127.0.0.1"), Some(0));
        assert_eq!(decide(&table, "alpn.test", &[b"h2"], "127.0.0.1"), Some(5));
        assert_eq!(decide(&table, "alpn.test", &[b"http/1.1"], "127.0.0.1"), Some(0));
        assert_eq!(table.routers().iter().filter(|router| router.is_catch_all).count(), 1);
        assert_eq!(table.routers().last().unwrap().priority, -1);
    }

    #[test]
    fn a_router_at_fault_is_left_out_alone() {
        let (table, disabled) = table(&[
            ("HostSNI(`*`)", 0, false),
            ("HostSNI(`a.test`)", 0, false),
            ("HostSNI(`a b`)", 0, true),
            ("ALPN(`acme-tls/1`)", 0, true),
            ("HostSNI(`a`, `b`)", 0, true),
            ("Host(`a`)", 0, true),
            ("ClientIP(`10.0.0.0/99`)", 0, true),
            ("HostSNI(`a.test`)", i64::MAX, true),
            ("", 0, true),
        ]);
        assert_eq!(table.routers().len(), 1);
        let names: Vec<&str> = disabled.iter().map(|disabled| disabled.name.as_str()).collect();
        assert_eq!(names, ["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8"]);
        assert!(disabled[0].reason.contains("needs `tls`"), "{}", disabled[0].reason);
    }

    #[test]
    fn rules_know_the_peer_of_the_mesh() {
        let laptop = MeshIdentity {
            name: "laptop".into(),
            key: adit_config::PeerKey([1; 32]),
            groups: vec!["admins".into()],
        };
        let (table, disabled) = table(&[
            ("HostSNI(`*`) && MeshGroup(`admins`)", 0, false),
            ("HostSNI(`*`) && MeshPeer(`phone`)", 0, false),
        ]);
        assert!(disabled.is_empty(), "{disabled:?}");
        let phone = MeshIdentity { name: "phone".into(), groups: Vec::new(), ..laptop };
        let ask = |mesh| {
            let head = TcpHead { server_name: "", alpn: &[], peer: [10, 9, 0, 2].into(), mesh };
            table.decide(&head).map(|router| router.target)
        };
        assert_eq!(ask(Some(&laptop)), Some(0));
        assert_eq!(ask(Some(&phone)), Some(1));
        assert_eq!(ask(None), None);
    }

    #[test]
    fn a_negated_server_name_without_tls_does_not_take_every_connection() {
        let (_, disabled) = table(&[
            ("!HostSNI(`y.test`)", 0, false),
            ("!(HostSNI(`y.test`) || ClientIP(`10.0.0.0/8`))", 0, false),
            ("!HostSNI(`y.test`) && HostSNI(`*`)", 0, false),
            ("!HostSNI(`y.test`)", 0, true),
            ("HostSNI(`*`) && !ClientIP(`10.0.0.0/8`)", 0, false),
        ]);
        let names: Vec<&str> = disabled.iter().map(|disabled| disabled.name.as_str()).collect();
        assert_eq!(names, ["r0", "r1", "r2"]);
        assert!(disabled[0].reason.contains("needs `tls`"), "{}", disabled[0].reason);
    }

    #[test]
    fn an_empty_table_takes_nothing() {
        let table = TcpTable::<()>::default();
        assert!(table.is_empty());
        assert!(
            table
                .decide(&TcpHead { server_name: "a", alpn: &[], peer: [127, 0, 0, 1].into(), mesh: None })
                .is_none()
        );
    }
}
