//! Which certificates routers, entry points and stores want (ingress-features.md §5).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use adit_acme::Wanted;
use adit_config::dynamic::Domain;
use adit_config::{AcmeChallenge, CertificateResolver, Config, HostPattern};
use adit_proxy::tcp::route::TcpRoute;
use adit_route::tcp::TcpRouter;

use crate::gateway::Generation;

/// What is wanted, and what cannot be had.
#[derive(Debug, Default)]
pub(crate) struct WantedCertificates {
    pub(crate) list: Vec<Wanted>,
    /// Whoever wants it is served all the same, with the certificate that fits or the default one.
    pub(crate) warnings: Vec<Unwanted>,
}

/// Why somebody gets no certificate.
#[derive(Debug)]
pub(crate) struct Unwanted {
    pub(crate) who: Who,
    pub(crate) why: String,
}

/// Who asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Who {
    /// Key of its kind in the configuration, such as `http.routers`.
    pub(crate) kind: &'static str,
    pub(crate) name: String,
}

/// A router below HTTP with the names of its rule.
#[derive(Debug)]
pub(crate) struct TcpHosts {
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
}

/// Everything that is wanted on all entry points. Names for which there is a certificate already (`is_configured`) are left
/// out, as in Traefik.
pub(crate) fn wanted(
    config: &Config,
    generation: &Generation,
    tcp: &[TcpHosts],
    is_configured: &dyn Fn(&str) -> bool,
) -> WantedCertificates {
    let mut collector = Collector {
        resolvers: &config.tls.resolvers,
        is_configured,
        counts: BTreeMap::new(),
        found: WantedCertificates::default(),
    };
    let wishes = wishes(config, generation, tcp);
    // Written domains first: a wildcard among them makes the names of rules unnecessary.
    for wish in wishes.iter().filter(|wish| wish.is_written) {
        collector.take(wish);
    }
    for wish in wishes.iter().filter(|wish| !wish.is_written) {
        collector.take(wish);
    }
    collector.found
}

/// One certificate that somebody asks for.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wish {
    who: Who,
    resolver: String,
    names: Vec<String>,
    /// By `domains`, not by a rule.
    is_written: bool,
}

struct Collector<'a> {
    resolvers: &'a BTreeMap<String, CertificateResolver>,
    is_configured: &'a dyn Fn(&str) -> bool,
    counts: BTreeMap<String, usize>,
    found: WantedCertificates,
}

impl TcpHosts {
    pub(crate) fn of(router: &TcpRouter<Arc<TcpRoute>>) -> Self {
        Self { name: router.target.name.to_string(), hosts: router.hosts().to_vec() }
    }
}

impl Collector<'_> {
    fn take(&mut self, wish: &Wish) {
        let Wish { who, resolver: name, names, .. } = wish;
        let Some(resolver) = self.resolvers.get(name) else {
            let why = format!(
                "there is no certificate resolver {name}: the certificate that fits is shown, or the default one"
            );
            return self.warn(who, why);
        };
        if names.is_empty() {
            return self
                .warn(who, "no name to get a certificate for: write `Host(…)` or `tls.domains`".to_owned());
        }
        let is_there = |name: &&String| {
            (self.is_configured)(name) || self.found.list.iter().any(|wanted| wanted.covers(name))
        };
        let missing: Vec<String> = names.iter().filter(|name| !is_there(name)).cloned().collect();
        if missing.is_empty() {
            return;
        }
        let count = self.counts.entry(name.clone()).or_default();
        if *count >= CERTIFICATES_MAX {
            return self.warn(who, format!("resolver {name} has {CERTIFICATES_MAX} certificates already"));
        }
        match Wanted::new((name, resolver), missing) {
            Ok(wanted) => {
                *count += 1;
                self.found.list.push(wanted);
            }
            Err(why) => self.warn(who, why),
        }
    }

    fn warn(&mut self, who: &Who, why: String) {
        self.found.warnings.push(Unwanted { who: who.clone(), why });
    }
}

impl std::fmt::Display for Unwanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.who.kind, self.who.name, self.why)
    }
}

fn wishes(config: &Config, generation: &Generation, tcp: &[TcpHosts]) -> BTreeSet<Wish> {
    let mut all = BTreeSet::new();
    of_http(generation, &mut all);
    for router in tcp {
        let written = generation.inputs.dynamic.tcp.routers.get(&router.name).and_then(|r| r.tls.as_ref());
        // Where TLS is not ours to end, neither is the certificate.
        let Some(tls) = written.filter(|tls| !tls.passthrough) else { continue };
        let who = who("tcp.routers", &router.name);
        add(&mut all, (who, tls.cert_resolver.as_ref()), &tls.domains, || router.hosts.clone());
    }
    of_entry_points(config, &mut all);
    for (name, store) in &generation.inputs.dynamic.tls.stores {
        let Some(generated) = &store.default_generated_cert else { continue };
        let domains = std::slice::from_ref(&generated.domain);
        add(&mut all, (who("tls.stores", name), Some(&generated.resolver)), domains, Vec::new);
    }
    all
}

fn of_http(generation: &Generation, all: &mut BTreeSet<Wish>) {
    let inputs = &generation.inputs;
    for router in generation.table.routers().iter().filter(|router| router.tls) {
        let written = inputs.dynamic.http.routers.get(&router.name).and_then(|router| router.tls.as_ref());
        let entry_point = router.entry_points.first().and_then(|name| inputs.entry_points.get(name));
        let tls = written.or_else(|| entry_point.and_then(|settings| settings.router_tls.as_ref()));
        let Some(tls) = tls else { continue };
        let who = who("http.routers", &router.name);
        add(all, (who, tls.cert_resolver.as_ref()), &tls.domains, || router.hosts().to_vec());
    }
}

/// Entry points whose `domains` nobody else may name, and those of the edge, whose hosts are its tunnels'.
fn of_entry_points(config: &Config, all: &mut BTreeSet<Wish>) {
    for (name, entry_point) in &config.entry_points {
        let Some(tls) = &entry_point.router_tls else { continue };
        let resolver = tls.cert_resolver.as_ref();
        if !tls.domains.is_empty() {
            add(all, (who("entryPoints", name), resolver), &tls.domains, Vec::new);
            continue;
        }
        let Some(edge) = config.edge.as_ref().filter(|edge| edge.public.contains(name)) else { continue };
        let challenge = resolver.and_then(|name| config.tls.resolvers.get(name)).map(|r| &r.challenge);
        let has_wildcards = matches!(challenge, Some(AcmeChallenge::Dns(_)));
        for tunnel in &edge.tunnels {
            for host in &tunnel.hostnames {
                // Hosts below a wildcard cannot be known before they are asked for.
                if matches!(host, HostPattern::Any)
                    || (matches!(host, HostPattern::Wildcard(_)) && !has_wildcards)
                {
                    continue;
                }
                let who = who("edge.tunnels", &tunnel.name);
                add(all, (who, resolver), &[], || vec![host.to_string()]);
            }
        }
    }
}

fn who(kind: &'static str, name: &str) -> Who {
    Who { kind, name: name.to_owned() }
}

/// One certificate for each of the domains, or one for the names of the rule.
fn add(
    all: &mut BTreeSet<Wish>,
    (who, resolver): (Who, Option<&String>),
    domains: &[Domain],
    of_rule: impl FnOnce() -> Vec<String>,
) {
    let Some(resolver) = resolver.filter(|name| !name.is_empty()) else { return };
    let wish = |names: Vec<String>, is_written| Wish {
        who: who.clone(),
        resolver: resolver.clone(),
        names: names
            .into_iter()
            .map(|name| name.trim_end_matches('.').to_ascii_lowercase())
            .filter(|name| !name.is_empty() && name != "*")
            .collect(),
        is_written,
    };
    if domains.is_empty() {
        all.insert(wish(of_rule(), false));
        return;
    }
    for domain in domains {
        let names = std::iter::once(&domain.main).chain(&domain.sans).cloned().collect();
        all.insert(wish(names, true));
    }
}

/// Certificates of one resolver: the storage is read and written whole, and each has a task of its own to be looked at.
const CERTIFICATES_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::ingress::inputs;
    use crate::gateway::files::Files;

    fn of(text: &str, configured: &[&str]) -> (Vec<String>, Vec<String>) {
        let head = "entryPoints:\n  web: { address: ':80' }\n  safe: { address: ':443' }\n\
             certificatesResolvers:\n  le: { acme: { tlsChallenge: {} } }\n  dns: { acme: { dnsChallenge: { \
             provider: rfc2136, rfc2136: { nameserver: ns.test } } } }\n";
        let config = Config::parse(&format!("{head}{text}"), "adit.yaml", &no_files).unwrap();
        let (inputs, _) = inputs(&config, &mut Files::default());
        let generation = Generation::compile(inputs, None);
        let found = wanted(&config, &generation, &[], &|name| configured.contains(&name));
        let list = found.list.iter().map(|wanted| format!("{}:{}", wanted.resolver, wanted.names.join("+")));
        (list.collect(), found.warnings.iter().map(ToString::to_string).collect())
    }

    fn no_files(_: &std::path::Path) -> Result<Vec<u8>, String> {
        Err("no file".to_owned())
    }

    fn routers(lines: &str) -> String {
        format!(
            "http:\n  services: {{ s: {{ loadBalancer: {{ servers: [ {{ url: 'http://127.0.0.1:1' }} ] }} }} }}\n  \
             routers:\n{lines}"
        )
    }

    #[tokio::test]
    async fn names_come_from_domains_or_from_the_rule() {
        let text = routers(
            "    a: { rule: \"Host(`A.test`) || Host(`b.test`)\", service: s, tls: { certResolver: le } }\n    \
             b: { rule: \"Host(`c.test`)\", service: s, tls: { certResolver: le, domains: [ { main: d.test, sans: [ \
             e.test ] } ] } }\n    c: { rule: \"Host(`f.test`)\", service: s, tls: {} }\n    \
             d: { rule: \"Host(`x.w.test`)\", service: s, tls: { certResolver: le } }\n    \
             e: { rule: \"Host(`w.test`)\", service: s, tls: { certResolver: dns, domains: [ { main: '*.w.test' } ] } }\n",
        );
        let (list, warnings) = of(&text, &[]);
        assert_eq!(list, ["le:d.test+e.test", "dns:*.w.test", "le:a.test+b.test"]);
        assert!(warnings.is_empty(), "{warnings:?}");
        let (list, _) = of(&text, &["a.test", "e.test", "d.test"]);
        assert_eq!(list, ["dns:*.w.test", "le:b.test"]);
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_said_and_asked_for_by_nobody() {
        let text = routers(
            "    a: { rule: \"Host(`a.test`)\", service: s, tls: { certResolver: nope } }\n    \
             b: { rule: \"PathPrefix(`/`)\", service: s, tls: { certResolver: le } }\n    \
             c: { rule: \"Host(`c.test`)\", service: s, tls: { certResolver: le, domains: [ { main: '*.c.test' } ] } }\n",
        );
        let (list, warnings) = of(&text, &[]);
        assert!(list.is_empty(), "{list:?}");
        let all = warnings.join("\n");
        assert!(all.contains("no certificate resolver nope") && all.contains("write `Host(…)`"), "{all}");
        assert!(all.contains("need `dnsChallenge`"), "{all}");
    }
}
