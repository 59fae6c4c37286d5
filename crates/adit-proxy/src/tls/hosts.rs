//! Which TLS options a visitor gets, by the name it asks for (ingress-features.md §1.4, §5).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::options::DEFAULT_OPTIONS;

/// The HTTPS hosts of one entry point and the TLS options that their routers name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsHosts {
    exact: HashMap<String, Arc<str>>,
    /// By the part behind `*.`.
    wildcard: HashMap<String, Arc<str>>,
    /// Hosts for which routers name different options, as in `exact` and `wildcard`.
    disputed: BTreeSet<String>,
    /// True if a router is not bound to hosts, so that every name is one of its.
    catch_all: bool,
    warnings: Vec<String>,
}

/// What one HTTPS router says about TLS.
#[derive(Clone, Copy, Debug)]
pub struct TlsHostRule<'a> {
    /// Its name, for warnings.
    pub router: &'a str,
    /// Hosts that its rule names (`Host(…)`), lower case, perhaps `*.name`; empty = it is not bound to hosts.
    pub hosts: &'a [String],
    /// Name of its options; absent = the set named `default`.
    pub options: Option<&'a str>,
    /// True if it is not served because its options cannot be used: its hosts are refused at the handshake, unless a
    /// router that is served names them too.
    pub is_refused: bool,
}

impl TlsHosts {
    /// Compiles the rules of one entry point. Two routers of one host that name different options: both get the default
    /// set, and a warning says so.
    pub fn compile<'a>(rules: impl IntoIterator<Item = TlsHostRule<'a>>) -> Self {
        let mut named: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut refused: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut hosts = Self::default();
        for rule in rules {
            if rule.is_refused {
                for host in rule.hosts.iter().filter(|host| *host != "*") {
                    refused.entry(host.trim_end_matches('.')).or_default().extend(rule.options);
                }
                continue;
            }
            let options = rule.options.unwrap_or(DEFAULT_OPTIONS);
            if rule.hosts.is_empty() || rule.hosts.iter().any(|host| host == "*") {
                hosts.catch_all = true;
                if options != DEFAULT_OPTIONS {
                    hosts.warnings.push(format!(
                        "router {} names TLS options {options} but no Host: they apply to no handshake",
                        rule.router
                    ));
                }
            }
            for host in rule.hosts.iter().filter(|host| *host != "*") {
                named.entry(host.trim_end_matches('.')).or_default().insert(options);
            }
        }
        for (host, options) in refused {
            named.entry(host).or_insert(options);
        }
        for (host, options) in named {
            let chosen = match (options.len(), options.first()) {
                (1, Some(only)) => only,
                _ => {
                    let all: Vec<&str> = options.into_iter().collect();
                    hosts.warnings.push(format!(
                        "host {host} is named with different TLS options ({}): it gets the default ones",
                        all.join(", ")
                    ));
                    hosts.disputed.insert(host.to_ascii_lowercase());
                    DEFAULT_OPTIONS
                }
            };
            let (map, key) = match host.strip_prefix("*.") {
                Some(suffix) => (&mut hosts.wildcard, suffix),
                None => (&mut hosts.exact, host),
            };
            map.insert(key.to_ascii_lowercase(), chosen.into());
        }
        hosts
    }

    /// The options of the host that a visitor asked for by name; `None` if no router names this host.
    pub fn options_of(&self, server_name: &str) -> Option<&str> {
        let name = server_name.trim_end_matches('.').to_ascii_lowercase();
        let options = self.exact.get(&name).or_else(|| self.wildcard.get(name.split_once('.')?.1));
        options.map(AsRef::as_ref)
    }

    /// True if routers name different options for this host, so that it gets the default ones.
    pub fn is_disputed(&self, host: &str) -> bool {
        if self.disputed.is_empty() {
            return false;
        }
        let host = crate::headers::without_port(host).trim_end_matches('.').to_ascii_lowercase();
        let wildcard =
            || host.split_once('.').is_some_and(|(_, rest)| self.disputed.contains(&format!("*.{rest}")));
        self.disputed.contains(&host) || (!self.exact.contains_key(&host) && wildcard())
    }

    /// True if a router takes every host.
    pub fn has_catch_all(&self) -> bool {
        self.catch_all
    }

    /// True if there is no HTTPS router at all.
    pub fn is_empty(&self) -> bool {
        !self.catch_all && self.exact.is_empty() && self.wildcard.is_empty()
    }

    /// Adds what else is not done as written.
    pub fn warn(&mut self, warnings: Vec<String>) {
        self.warnings.extend(warnings);
    }

    /// What is not done as written, for the log and the API.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(rules: &[(&[&str], Option<&str>)]) -> TlsHosts {
        let rules: Vec<(Vec<String>, Option<&str>)> = rules
            .iter()
            .map(|(hosts, options)| (hosts.iter().map(|host| (*host).to_owned()).collect(), *options))
            .collect();
        TlsHosts::compile(rules.iter().map(|(hosts, options)| TlsHostRule {
            router: "r",
            hosts,
            options: *options,
            is_refused: false,
        }))
    }

    #[test]
    fn options_are_found_by_exact_name_then_by_one_label_wildcard() {
        let hosts = hosts(&[(&["a.test"], Some("m")), (&["*.test"], Some("w")), (&["c.org"], None)]);
        assert_eq!(hosts.options_of("A.test"), Some("m"));
        assert_eq!(hosts.options_of("b.test"), Some("w"));
        assert_eq!(hosts.options_of("x.b.test"), None);
        assert_eq!(hosts.options_of("c.org"), Some("default"));
        assert!(!hosts.has_catch_all() && hosts.warnings().is_empty());
    }

    #[test]
    fn different_options_on_one_host_fall_back_to_the_default_with_a_warning() {
        let hosts = hosts(&[(&["a.test"], Some("m")), (&["a.test"], Some("n")), (&[], Some("m"))]);
        assert_eq!(hosts.options_of("a.test"), Some("default"));
        assert_eq!(hosts.warnings().len(), 2);
        assert!(hosts.has_catch_all());
    }

    #[test]
    fn hosts_of_a_refused_router_are_refused_unless_another_serves_them() {
        let (a, b) = (["a.test".to_owned(), "b.test".to_owned()], ["b.test".to_owned()]);
        let refused = TlsHostRule { router: "r", hosts: &a, options: Some("nope"), is_refused: true };
        let served = TlsHostRule { router: "s", hosts: &b, options: Some("m"), is_refused: false };
        let hosts = TlsHosts::compile([refused, served]);
        assert_eq!((hosts.options_of("a.test"), hosts.options_of("b.test")), (Some("nope"), Some("m")));
        assert!(!hosts.is_disputed("b.test"), "a router at fault takes no protection away");
    }

    #[test]
    fn disputed_hosts_are_known_with_and_without_port() {
        let hosts = hosts(&[(&["a.test", "*.w.test"], Some("m")), (&["a.test", "*.w.test"], None)]);
        assert!(
            hosts.is_disputed("A.test:443") && hosts.is_disputed("x.w.test") && !hosts.is_disputed("w.test")
        );
    }
}
