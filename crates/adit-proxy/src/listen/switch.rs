//! Who takes a connection: HTTP, HTTPS under which TLS options, or a TCP router (ingress-features.md §1.4).

use std::sync::Arc;

use adit_route::tcp::{TcpHead, TcpTable};
use rustls::ServerConfig;

use crate::mesh::MeshVisitors;
use crate::middleware::BoxFuture;
use crate::tcp::route::TcpRoute;
use crate::tls::hosts::TlsHosts;
use crate::tls::options::{DEFAULT_OPTIONS, Stamp, TlsOptionSets};

/// The routes of one entry point below HTTP; built whole and swapped whole on every reload.
#[derive(Debug)]
pub struct Switch {
    /// TCP routers without TLS.
    pub plain: TcpTable<Arc<TcpRoute>>,
    /// TCP routers with TLS.
    pub secure: TcpTable<Arc<TcpRoute>>,
    /// Hosts of the HTTPS routers and their TLS options.
    pub hosts: TlsHosts,
    /// TLS options by name.
    pub options: Arc<TlsOptionSets>,
    /// Answers `acme-tls/1` handshakes (RFC 8737), if this process gets certificates itself.
    pub challenges: Option<Arc<dyn TlsChallenges>>,
    /// Peers that may come here, on an entry point of the mesh; whoever is none of them is turned away.
    pub mesh: Option<MeshVisitors>,
}

/// Challenges of tls-alpn-01 that wait for the CA's look.
pub trait TlsChallenges: Send + Sync + std::fmt::Debug {
    /// Brings [`Self::answer`] up to date where others can tell of challenges too; waits for no more than seconds.
    fn look(&self) -> BoxFuture<'_, ()>;

    /// The settings that show the challenge's certificate, if one is pending for this name.
    fn answer(&self, server_name: &str) -> Option<Arc<ServerConfig>>;
}

/// Who takes a TLS connection.
#[derive(Clone, Debug)]
pub(super) enum TlsDecision<'a> {
    /// HTTP behind TLS that we end, with the stamp of the options.
    Http(&'a Arc<ServerConfig>, Stamp),
    /// A TCP router.
    Tcp(&'a Arc<TcpRoute>),
    /// The answer to an ACME challenge: nothing follows the handshake.
    Challenge(Arc<ServerConfig>),
    /// Nobody, because of this.
    Refuse(&'static str),
}

impl Switch {
    /// Nothing but HTTP, in the clear and behind TLS with default options.
    pub fn http(options: Arc<TlsOptionSets>) -> Self {
        Self {
            plain: TcpTable::default(),
            secure: TcpTable::default(),
            hosts: TlsHosts::default(),
            options,
            challenges: None,
            mesh: None,
        }
    }

    /// The router that is asked before anything is read, because its servers may speak first: possible only where no TLS
    /// is served, whose ClientHello would have to be waited for. HTTP in the clear loses against such a router anyway.
    pub(super) fn speaks_first(&self, head: &TcpHead<'_>) -> Option<&Arc<TcpRoute>> {
        if self.plain.is_empty() || !self.secure.is_empty() || !self.hosts.is_empty() {
            return None;
        }
        self.plain.decide(head).map(|router| &router.target)
    }

    /// Who takes a connection that does not begin with a TLS handshake; `None` = HTTP.
    pub(super) fn decide_plain(&self, head: &TcpHead<'_>) -> Option<&Arc<TcpRoute>> {
        self.plain.decide(head).map(|router| &router.target)
    }

    /// Looks for the answer to a handshake that may be a challenge's.
    pub(super) async fn look_for_challenge(&self, alpn: &[&[u8]]) {
        if let Some(challenges) = &self.challenges
            && alpn.contains(&ACME_TLS_1)
        {
            challenges.look().await;
        }
    }

    /// Who takes a TLS connection: exact HTTPS hosts, TCP routers with a name, HTTPS routers for every host, TCP routers
    /// for every name, else HTTPS, which then knows no route.
    pub(super) fn decide_tls(&self, head: &TcpHead<'_>) -> TlsDecision<'_> {
        if let Some(challenges) = &self.challenges
            && head.alpn.contains(&ACME_TLS_1)
            && let Some(config) = challenges.answer(head.server_name)
        {
            return TlsDecision::Challenge(config);
        }
        if let Some(options) = self.hosts.options_of(head.server_name) {
            return self.http_with(options);
        }
        match self.secure.decide(head) {
            Some(router) if !router.is_catch_all || !self.hosts.has_catch_all() => {
                TlsDecision::Tcp(&router.target)
            }
            _ => self.http_with(DEFAULT_OPTIONS),
        }
    }

    fn http_with(&self, options: &str) -> TlsDecision<'_> {
        match self.options.find(options) {
            Ok(config) => TlsDecision::Http(config, self.options.stamp(options).unwrap_or_default()),
            Err(reason) => {
                tracing::debug!(%reason, "handshake refused");
                TlsDecision::Refuse("tls_options")
            }
        }
    }
}

/// RFC 8737 §4.
const ACME_TLS_1: &[u8] = b"acme-tls/1";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use adit_config::dynamic::{TcpDynamic, TcpLoadBalancer, TcpService};
    use adit_route::tcp::TcpRouterSpec;

    use super::*;
    use crate::tcp::layer::TcpLayers;
    use crate::tcp::route::RouteTls;
    use crate::tcp::service::TcpServices;
    use crate::tls::CertificateStore;
    use crate::tls::hosts::TlsHostRule;

    fn names(names: &[&'static str]) -> TcpTable<Arc<TcpRoute>> {
        let mut dynamic = TcpDynamic::default();
        dynamic.services.insert("s".to_owned(), TcpService::LoadBalancer(TcpLoadBalancer::default()));
        let service = TcpServices::compile(&dynamic, None).find("s").unwrap();
        let chain = TcpLayers::default().chain(&[]).unwrap();
        let spec = |name: &&'static str| TcpRouterSpec {
            name: (*name).to_owned(),
            rule: format!("HostSNI(`{name}`)"),
            priority: 0,
            provider: 0,
            tls: true,
            target: Arc::new(TcpRoute {
                name: (*name).into(),
                tls: RouteTls::Passthrough,
                chain: Arc::clone(&chain),
                service: Arc::clone(&service),
            }),
        };
        TcpTable::build(names.iter().map(spec)).0
    }

    fn switch(https: &[&[&str]], secure: &[&'static str]) -> Switch {
        let https: Vec<Vec<String>> =
            https.iter().map(|hosts| hosts.iter().map(|host| (*host).to_owned()).collect()).collect();
        let rules =
            https.iter().map(|hosts| TlsHostRule { router: "h", hosts, options: None, is_refused: false });
        let store = Arc::new(CertificateStore::default());
        let options = Arc::new(TlsOptionSets::compile(&BTreeMap::new(), &store, None));
        Switch { secure: names(secure), hosts: TlsHosts::compile(rules), ..Switch::http(options) }
    }

    fn taker(switch: &Switch, server_name: &str) -> String {
        let head = TcpHead { server_name, alpn: &[], peer: "192.0.2.1".parse().unwrap(), mesh: None };
        match switch.decide_tls(&head) {
            TlsDecision::Http(..) => "http".to_owned(),
            TlsDecision::Tcp(route) => route.name.to_string(),
            TlsDecision::Challenge(_) => "challenge".to_owned(),
            TlsDecision::Refuse(reason) => reason.to_owned(),
        }
    }

    #[test]
    fn https_hosts_go_before_tcp_names_and_catch_alls_come_last() {
        let both = switch(&[&["web.test"], &[]], &["db.test", "web.test", "*"]);
        assert_eq!(taker(&both, "web.test"), "http");
        assert_eq!(taker(&both, "db.test"), "db.test");
        assert_eq!(taker(&both, "zzz.test"), "http", "HTTPS for every host goes before TCP for every name");
        let without = switch(&[&["web.test"]], &["db.test", "*"]);
        assert_eq!(taker(&without, "zzz.test"), "*");
        assert_eq!(taker(&without, ""), "*");
        assert_eq!(taker(&switch(&[], &[]), "zzz.test"), "http", "to be answered 404");
    }

    #[derive(Debug)]
    struct OneChallenge(Arc<ServerConfig>);

    impl TlsChallenges for OneChallenge {
        fn look(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::ready(()))
        }

        fn answer(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
            (server_name == "a.test").then(|| Arc::clone(&self.0))
        }
    }

    #[test]
    fn only_a_pending_challenge_takes_an_acme_handshake() {
        let config = CertificateStore::default();
        let config = Arc::new(config).server_config().unwrap();
        let challenges: Option<Arc<dyn TlsChallenges>> = Some(Arc::new(OneChallenge(config)));
        let switch = Switch { challenges, ..switch(&[], &["*"]) };
        let decide = |server_name, alpn: &[&[u8]]| {
            let head = TcpHead { server_name, alpn, peer: "192.0.2.1".parse().unwrap(), mesh: None };
            matches!(switch.decide_tls(&head), TlsDecision::Challenge(_))
        };
        assert!(decide("a.test", &[b"acme-tls/1"]));
        assert!(!decide("b.test", &[b"acme-tls/1"]), "a server behind a TCP router may answer its own");
        assert!(!decide("a.test", &[b"h2"]));
    }

    #[test]
    fn unknown_options_refuse_the_handshake() {
        let hosts = ["a.test".to_owned()];
        let rule = TlsHostRule { router: "h", hosts: &hosts, options: Some("nope"), is_refused: false };
        let switch = Switch { hosts: TlsHosts::compile([rule]), ..switch(&[], &[]) };
        assert_eq!(taker(&switch, "a.test"), "tls_options");
        assert_eq!(taker(&switch, "b.test"), "http");
    }

    #[test]
    fn a_server_may_speak_first_only_where_no_tls_is_served() {
        let head = TcpHead { server_name: "", alpn: &[], peer: "192.0.2.1".parse().unwrap(), mesh: None };
        let alone = Switch { plain: names(&["*"]), ..switch(&[], &[]) };
        assert!(alone.speaks_first(&head).is_some());
        assert!(Switch { secure: names(&["x"]), ..alone }.speaks_first(&head).is_none());
        let https = Switch { plain: names(&["*"]), ..switch(&[&["a.test"]], &[]) };
        assert!(https.speaks_first(&head).is_none());
    }
}
