//! Ingress rules: which origin answers which host and path (`tunnel-protocol.md §7.4`).
//!
//! An [`Ingress`] is checked when it is built: at least one rule, the last one and only the last one matches everything.

mod json;
mod origin;
mod rules;
mod service;

use std::collections::BTreeMap;

pub use json::{PushError, hostnames_in_push};
pub use origin::{AccessRequirement, IpRule, OriginSettings};
pub use rules::path_regex;
pub(crate) use rules::{read_origin_request, read_rules, read_warp_routing};
pub use service::{Service, ServiceError, StreamService};

use crate::{
    HostPattern, Problems, WarpRouting,
    read::{Dialect, Sink},
    yaml::Node,
};

/// Checked ingress rules in order; the last matches everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// Rules, first match wins.
    pub rules: Vec<IngressRule>,
    /// Settings of rules that say nothing else.
    pub defaults: OriginSettings,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressRule {
    /// Hosts that it is for.
    pub hostname: HostPattern,
    /// Host as written; empty for every host.
    pub hostname_text: String,
    /// Regular expression, unanchored, over the decoded path without query; known to compile with `regex`.
    pub path: Option<String>,
    /// Who answers.
    pub service: Service,
    /// Service as written.
    pub service_text: String,
    /// How the origin is spoken to: the rule's own settings over the common ones over the defaults.
    pub origin: OriginSettings,
}

/// A configuration pushed by the edge (`tunnel-protocol.md §3.7`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteConfig {
    /// The rules; without any, one that answers 503.
    pub ingress: Ingress,
    /// Settings of flows routed by address.
    pub warp_routing: WarpRouting,
}

impl Ingress {
    /// Reads rules in the JSON form of a push, served or not; `None` if there are none.
    pub fn from_json(text: &str) -> Result<Option<Self>, Problems> {
        read_pushed(text).map(|(ingress, _)| ingress)
    }

    /// One rule for everything, with the given settings.
    pub fn single(service: Service, origin: OriginSettings) -> Self {
        let rule = IngressRule {
            hostname: HostPattern::Any,
            hostname_text: String::new(),
            path: None,
            service_text: service.to_string(),
            service,
            origin: origin.clone(),
        };
        Self { rules: vec![rule], defaults: origin }
    }

    /// What cloudflared does without any rule: every request gets 503.
    pub fn unavailable() -> Self {
        Self::single(Service::Status(503), OriginSettings::default())
    }

    /// The rules (by index from 0) whose service is TCP over WebSocket, which is parsed but not served yet.
    pub fn unserved(&self) -> Vec<usize> {
        let is_stream = |rule: &IngressRule| matches!(rule.service, Service::Stream(_));
        self.rules.iter().enumerate().filter(|(_, rule)| is_stream(rule)).map(|(index, _)| index).collect()
    }

    /// The JSON that a locally configured connector tells its edge: values that differ from the defaults, durations as
    /// seconds, `flags` as `__configuration_flags` (`tunnel-protocol.md §3.7`).
    pub fn to_local_push(&self, flags: &BTreeMap<String, String>, warp_routing: &WarpRouting) -> String {
        json::local_push(self, flags, warp_routing).to_string()
    }

    pub(crate) fn to_effective(&self) -> serde_json::Value {
        json::effective(self)
    }

    /// The `config` object of cloudflared's `/config` page with every setting spelt out (`tunnel-protocol.md §8.2`).
    pub fn to_config_page(&self, warp_routing: &WarpRouting) -> serde_json::Value {
        json::config_page(self, warp_routing)
    }
}

impl RemoteConfig {
    /// Reads pushed JSON: unknown keys are ignored, durations are whole seconds, no rules means 503 for all; a service
    /// that is not served yet is a problem.
    pub fn from_json(text: &str) -> Result<Self, Problems> {
        let (ingress, warp_routing) = read_pushed(text)?;
        let ingress = ingress.unwrap_or_else(Ingress::unavailable);
        let problems: Vec<_> = ingress
            .unserved()
            .into_iter()
            .map(|index| rules::unserved_problem(PUSHED, index, &ingress.rules[index]))
            .collect();
        if problems.is_empty() { Ok(Self { ingress, warp_routing }) } else { Err(Problems(problems)) }
    }
}

/// Reads pushed JSON whatever its services are; `None` if it has no rules.
fn read_pushed(text: &str) -> Result<(Option<Ingress>, WarpRouting), Problems> {
    let node = Node::from_json(text, PUSHED).map_err(|problem| Problems(vec![*problem]))?;
    let sink = Sink::new(PUSHED, Dialect::Pushed);
    let mut warp_routing = WarpRouting::default();
    let mut ingress = None;
    if let Some(mut section) = sink.root(&node).section() {
        let defaults = section
            .optional("originRequest", |field| read_origin_request(field, &OriginSettings::default()))
            .unwrap_or_default();
        ingress = section.optional("ingress", |field| read_rules(field, &defaults));
        section.set("warp-routing", &mut warp_routing, read_warp_routing);
        section.finish();
    }
    match sink.finish().problems {
        problems if problems.is_empty() => Ok((ingress, warp_routing)),
        problems => Err(Problems(problems)),
    }
}

/// Stands for the file name in problems of a pushed configuration.
const PUSHED: &str = "pushed configuration";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn error(text: &str) -> String {
        RemoteConfig::from_json(text).unwrap_err().to_string()
    }

    #[test]
    fn a_push_without_rules_answers_503() {
        for text in ["{}", r#"{"ingress": []}"#, r#"{"ingress": null, "unknown": 1}"#] {
            assert_eq!(RemoteConfig::from_json(text).unwrap().ingress.rules[0].service, Service::Status(503));
        }
    }

    #[test]
    fn durations_in_a_push_are_whole_seconds() {
        let config = RemoteConfig::from_json(
            r#"{"originRequest": {"connectTimeout": 5, "noTLSVerify": true},
                "ingress": [{"service": "http://localhost:80", "originRequest": {"tlsTimeout": 7}}],
                "warp-routing": {"connectTimeout": 2}}"#,
        )
        .unwrap();
        let origin = &config.ingress.rules[0].origin;
        assert_eq!(origin.connect_timeout, Duration::from_secs(5));
        assert_eq!(origin.tls_timeout, Duration::from_secs(7));
        assert!(origin.no_tls_verify);
        assert_eq!(config.warp_routing.connect_timeout, Duration::from_secs(2));
        assert!(error(r#"{"originRequest": {"connectTimeout": 1.5}}"#).contains("whole number of seconds"));
        assert!(error(r#"{"originRequest": {"connectTimeout": "5s"}}"#).contains("whole number of seconds"));
    }

    #[test]
    fn a_bad_push_names_each_rule() {
        let text = r#"{"ingress": [{"hostname": "a.example:80", "service": "nowhere"},
            {"hostname": "b.example", "service": "http_status:404"}]}"#;
        let error = error(text);
        assert!(error.contains("ingress[0].hostname: hostname cannot contain a port"), "{error}");
        assert!(error.contains("ingress[0].service: not a valid address"), "{error}");
        assert!(error.contains("last ingress rule must match all URLs"), "{error}");
    }

    #[test]
    fn a_pushed_stream_service_is_refused_by_name() {
        let error = error(r#"{"ingress": [{"service": "ssh://localhost"}]}"#);
        assert!(error.contains("TCP over WebSocket is not served yet"), "{error}");
    }

    #[test]
    fn what_is_not_json_is_a_problem() {
        assert!(error("{").contains("not JSON"));
        assert!(error("[]").contains("expected a mapping"));
    }
}
