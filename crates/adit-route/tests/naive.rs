//! The indexed table against a matcher that looks at one rule after another.
#![allow(clippy::unwrap_used)]

use adit_config::{HostPattern, Ingress, IngressRule, OriginSettings, Service};
use adit_route::{Decision, Head, Refusal, Table, host_without_port};
use http::Method;
use proptest::prelude::*;

fn rule(host: &str, path: Option<&str>) -> IngressRule {
    IngressRule {
        hostname: host.parse().unwrap(),
        hostname_text: host.to_owned(),
        path: path.map(str::to_owned),
        service: Service::HelloWorld,
        service_text: "hello_world".to_owned(),
        origin: OriginSettings::default(),
    }
}

/// The definition of the order in plain words: from top to bottom, the first that fits.
fn naive(rules: &[IngressRule], host: &str, path: &str) -> usize {
    let host = host_without_port(host).to_ascii_lowercase();
    rules
        .iter()
        .position(|rule| {
            rule.hostname.matches(&host)
                && rule
                    .path
                    .as_ref()
                    .is_none_or(|regex| adit_config::path_regex(regex).unwrap().is_match(path))
        })
        .unwrap()
}

fn decided<E>(table: &Table<E>, host: &str, path: &str) -> Result<usize, Refusal> {
    match table.decide(&Head { host, path, method: &Method::GET }) {
        Decision::Forward { route, .. } | Decision::Respond { route, .. } => Ok(route.index),
        Decision::Refuse(refusal) => Err(refusal),
    }
}

const PATTERN: &str = "(\\*|(\\*\\.)?([ab]\\.){0,2}[ab])";

proptest! {
    #[test]
    fn the_table_agrees_with_the_naive_matcher(
        hosts in proptest::collection::vec((PATTERN, proptest::option::of("\\^?/[xy]{0,2}\\$?")), 0..12),
        host in "([abAB]\\.){0,3}[abAB](:80)?", path in "/[xy]{0,3}",
    ) {
        let mut rules: Vec<_> = hosts.iter().map(|(host, path)| rule(host, path.as_deref())).collect();
        rules.push(rule("", None));
        let expected = naive(&rules, &host, &path);
        let ingress = Ingress { rules, defaults: OriginSettings::default() };
        let table = Table::from_ingress(&ingress, |index, _| index);
        prop_assert_eq!(decided(&table, &host, &path), Ok(expected));
    }

    #[test]
    fn the_edge_takes_the_longest_of_all_matching_hosts(
        hosts in proptest::collection::vec(PATTERN, 0..12), host in "([ab]\\.){0,3}[ab]",
    ) {
        let patterns: Vec<HostPattern> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let specificity = |pattern: &HostPattern| match pattern {
            HostPattern::Exact(_) => usize::MAX,
            HostPattern::Wildcard(suffix) => 1 + suffix.as_str().len(),
            HostPattern::Any => 0,
        };
        let best = patterns.iter().filter(|pattern| pattern.matches(&host)).map(specificity).max();
        let table = Table::from_hosts(patterns.iter().cloned().map(|pattern| (pattern, ())));
        match decided(&table, &host, "/") {
            Ok(index) => prop_assert_eq!(Some(specificity(&patterns[index])), best),
            Err(refusal) => {
                prop_assert_eq!(refusal, Refusal::UnknownHost);
                prop_assert_eq!(best, None);
            }
        }
    }

    #[test]
    fn any_head_gets_a_decision(host in "\\PC{0,60}", path in "\\PC{0,60}") {
        let rules = vec![rule("*.a", Some("x")), rule("a", None), rule("", None)];
        let ingress = Ingress { rules, defaults: OriginSettings::default() };
        let _ = decided(&Table::from_ingress(&ingress, |index, _| index), &host, &path);
    }
}
