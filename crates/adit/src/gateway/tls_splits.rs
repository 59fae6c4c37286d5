//! Hosts whose requests are split between routers of different TLS options: the handshake can be made under one set only.

use std::collections::BTreeMap;

use adit_proxy::tls::hosts::TlsHosts;
use adit_route::router::{Router, RouterTable};
use adit_route::rule::{Expression, HTTP_MATCHERS};

use super::generation::Served;

/// Routers by a host that their rules name.
type ByHost<'t> = BTreeMap<&'t str, Vec<&'t Router<Served>>>;

/// A line for every router of a wildcard that answers 421 for a host below it: the host is named by another router with
/// other options, whose rule leaves requests for it to the wildcard's.
pub(super) fn warnings(table: &RouterTable<Served>, hosts: &TlsHosts, entry_point: &str) -> Vec<String> {
    let is_here =
        |router: &&Router<Served>| router.tls && router.entry_points.iter().any(|on| on == entry_point);
    let (mut exact, mut wide): (ByHost<'_>, ByHost<'_>) = (BTreeMap::new(), BTreeMap::new());
    for router in table.routers().iter().filter(is_here) {
        for host in router.hosts() {
            match host.strip_prefix("*.") {
                Some(parent) => wide.entry(parent).or_default().push(router),
                None => exact.entry(host).or_default().push(router),
            }
        }
    }
    let mut found = Vec::new();
    for (host, named_by) in exact {
        let Some(above) = host.split_once('.').and_then(|(_, parent)| wide.get(parent)) else { continue };
        let chosen = hosts.options_of(host).unwrap_or_default();
        let mut others = above.iter().filter(|above| above.target.options() != chosen).peekable();
        if others.peek().is_none() || named_by.iter().any(|router| takes_all(&router.rule)) {
            continue;
        }
        let below: Vec<&str> = named_by.iter().map(|router| router.name.as_str()).collect();
        for above in others {
            found.push(format!(
                "router {} (TLS options {}) answers 421 for {host}: because of router {} that name's handshake is made \
                 under the TLS options {chosen}",
                above.name,
                above.target.options(),
                below.join(", "),
            ));
        }
    }
    found
}

/// Whether a rule takes every request for its hosts.
fn takes_all(rule: &str) -> bool {
    let is_host = |part: &Expression| matches!(part, Expression::Call(call) if call.matcher == "Host");
    match Expression::parse(rule, &HTTP_MATCHERS) {
        Ok(Expression::Or(parts)) => parts.iter().all(is_host),
        Ok(whole) => is_host(&whole),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use adit_config::Config;

    use crate::gateway::{Generation, Inputs};

    fn warnings(exact: &str, options: &str) -> Vec<String> {
        let text = format!(
            "entryPoints: {{ web: {{ address: ':443' }} }}\nhttp:\n  routers:\n    wide: {{ rule: 'Host(`*.w.test`)', \
             service: s, tls: {{ options: mtls }} }}\n    low: {{ rule: '{exact}', service: s, tls: {{ {options} }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [ {{ url: 'http://127.0.0.1:1' }} ] }} }} }}\n\
             tls: {{ options: {{ mtls: {{ minVersion: VersionTLS13 }} }} }}\n"
        );
        let config = Config::parse(&text, "t.yaml", &|_: &Path| Err(String::new())).unwrap();
        let inputs =
            Inputs { dynamic: config.dynamic, entry_points: config.entry_points, ..Inputs::default() };
        let generation = Generation::compile(inputs, None);
        generation.tls_warnings().into_iter().cloned().collect()
    }

    #[tokio::test]
    async fn a_wildcard_with_other_options_above_a_host_in_part_is_told_with_both_routers() {
        assert_eq!(
            warnings("Host(`a.w.test`) && Path(`/pub`)", ""),
            [
                "router wide (TLS options mtls) answers 421 for a.w.test: because of router low that name's handshake is made \
              under the TLS options default"
            ]
        );
        assert!(warnings("Host(`a.w.test`)", "").is_empty(), "nothing is left to the wildcard's router");
        assert!(warnings("Host(`a.w.test`) && Path(`/pub`)", "options: mtls").is_empty());
        assert!(warnings("Host(`a.b.w.test`) && Path(`/pub`)", "").is_empty(), "not one label below");
    }
}
