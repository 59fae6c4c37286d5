//! cloudflared's `config.yml` and flags (`tunnel-protocol.md §7.2`, §7.4, §7.7).
//!
//! In that file every key that is not `tunnel`, `ingress`, `originRequest` or `warp-routing` is the name of a flag, and
//! a flag may also come from the environment or the command line. [`Settings`] keeps these layers apart, so that a
//! problem names the place where the wrong value was written.

use std::fmt;

use crate::{
    CredentialsSource, Ingress, OriginSettings, Problem, Problems, Tunnel, WarpRouting,
    ingress::{read_origin_request, read_rules, read_warp_routing},
    origin_flags,
    read::{Dialect, Section, Sink},
    tunnel::{FLAG_KEYS, read_settings},
    yaml::{Entry, Node, Value},
};

/// A `config.yml` that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudflaredFile {
    /// `tunnel`: UUID or name of the tunnel to run.
    pub tunnel: Option<String>,
    /// The rules; absent if there are none.
    pub ingress: Option<Ingress>,
    /// Common settings of all rules.
    pub origin_request: OriginSettings,
    /// Settings of flows routed by address.
    pub warp_routing: WarpRouting,
    /// Keys that nobody knows inside the sections above; cloudflared only warns of them.
    pub warnings: Vec<Problem>,
    settings: Settings,
}

/// Flag values in layers; a later layer wins over an earlier one. `Debug` shows names only: a value may be a token.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    layers: Vec<Layer>,
}

#[derive(Clone, PartialEq, Eq)]
struct Layer {
    source: String,
    /// Always a mapping.
    node: Node,
}

impl CloudflaredFile {
    /// Reads the file; `file` is its name in problems. Paths in it stay relative to the working directory.
    pub fn parse(text: &str, file: &str) -> Result<Self, Problems> {
        let (node, duplicates) = Node::from_yaml(text, file).map_err(|problem| Problems(vec![*problem]))?;
        let sink = Sink::new(file, Dialect::Cloudflared);
        duplicates.into_iter().for_each(|problem| sink.report(problem));
        let read = match node.value {
            Value::Null => Some(Self::empty(file)),
            _ => sink.root(&node).section().map(|section| Self::read(section, file)),
        };
        let findings = sink.finish();
        match read {
            Some(read) if findings.problems.is_empty() => Ok(Self { warnings: findings.warnings, ..read }),
            _ => Err(Problems(findings.problems)),
        }
    }

    /// The flags that the file sets.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn read(mut section: Section<'_>, file: &str) -> Self {
        let tunnel = section.optional("tunnel", |field| field.text().map(str::to_owned));
        let origin_request = section
            .optional("originRequest", |field| read_origin_request(field, &OriginSettings::default()))
            .unwrap_or_default();
        let ingress = section.optional("ingress", |field| read_rules(field, &origin_request));
        let warp_routing = section.optional("warp-routing", read_warp_routing).unwrap_or_default();
        let flags: Vec<_> = section
            .rest()
            .into_iter()
            .map(|(key, field)| Entry {
                key: key.to_owned(),
                position: field.node.position,
                value: field.node.clone(),
            })
            .collect();
        // Read once for their problems, so that those of flags and rules show together.
        let mut scratch = Tunnel::new(CredentialsSource::InProcess(String::new()), Ingress::unavailable());
        read_settings(&mut section, &FLAG_KEYS, &mut scratch);
        let settings = Settings { layers: vec![Layer::new(file, flags)] };
        Self { tunnel, ingress, origin_request, warp_routing, warnings: Vec::new(), settings }
    }

    fn empty(file: &str) -> Self {
        Self {
            tunnel: None,
            ingress: None,
            origin_request: OriginSettings::default(),
            warp_routing: WarpRouting::default(),
            warnings: Vec::new(),
            settings: Settings { layers: vec![Layer::new(file, Vec::new())] },
        }
    }
}

impl Settings {
    /// Adds a layer that wins over those before; `source` names it in problems, such as `environment`.
    pub fn push_layer(&mut self, source: &str, values: impl IntoIterator<Item = (String, Vec<String>)>) {
        let entries = values.into_iter().map(|(key, values)| {
            let mut nodes: Vec<Node> = values.into_iter().map(scalar).collect();
            let value = match nodes.len() {
                1 => nodes.remove(0),
                _ => Node { position: None, value: Value::Sequence(nodes) },
            };
            Entry { key, position: None, value }
        });
        self.layers.push(Layer::new(source, entries.collect()));
    }

    /// Gives flags their proper names; those for which there is none are dropped.
    pub fn rename(&mut self, proper_name: impl Fn(&str) -> Option<&'static str>) {
        for layer in &mut self.layers {
            let Value::Mapping(entries) = &mut layer.node.value else { continue };
            entries.retain_mut(|entry| match proper_name(&entry.key) {
                Some(name) => {
                    entry.key = name.to_owned();
                    true
                }
                None => false,
            });
        }
    }

    /// The winning value of a flag, if it is one text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match &self.entry(name)?.value.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The winning values of a repeatable flag; a single text is a list of one.
    pub fn texts(&self, name: &str) -> Vec<&str> {
        let Some(entry) = self.entry(name) else { return Vec::new() };
        match &entry.value.value {
            Value::Scalar { text, .. } => vec![text.as_str()],
            Value::Sequence(items) => items
                .iter()
                .filter_map(|item| match &item.value {
                    Value::Scalar { text, .. } => Some(text.as_str()),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Whether a flag is set in any layer.
    pub fn is_set(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// Whether a switch is set and on.
    pub fn is_on(&self, name: &str) -> bool {
        matches!(self.text(name), Some("true" | "1" | "t" | "T" | "TRUE" | "True"))
    }

    /// Names of all flags that are set, with the place of each for warnings.
    pub fn names(&self) -> Vec<(&str, Problem)> {
        let entries = self.layers.iter().flat_map(|layer| {
            layer.entries().iter().map(|entry| {
                let problem = Problem {
                    position: entry.position,
                    key: entry.key.clone(),
                    ..Problem::of_file(&layer.source, "unknown flag")
                };
                (entry.key.as_str(), problem)
            })
        });
        entries.collect()
    }

    /// Sets everything in `tunnel` that flags say, and which flags are told to the edge.
    pub fn apply(&self, tunnel: &mut Tunnel) -> Result<(), Problems> {
        self.each_layer(|section| {
            read_settings(section, &FLAG_KEYS, tunnel);
            section.set("max-active-flows", &mut tunnel.warp_routing.active_flows_max, |field| {
                field.integer(0..=u64::MAX)
            });
        })?;
        for name in PUSHED_FLAGS {
            if let Some(text) = self.text(name) {
                tunnel.pushed_flags.insert(name.to_owned(), text.to_owned());
            }
        }
        Ok(())
    }

    /// The one rule that `--url`, `--unix-socket`, `--hello-world` or `--bastion` make, with `base` as the settings that
    /// flags override; `None` if no such flag is set.
    pub fn single_origin(&self, base: &OriginSettings) -> Result<Option<Ingress>, Problems> {
        let mut origin = base.clone();
        let mut service = origin_flags::SingleOrigin::default();
        self.each_layer(|section| {
            origin_flags::read_origin_flags(section, &mut origin);
            service.read(section);
        })?;
        Ok(service.into_service().map(|service| Ingress::single(service, origin)))
    }

    fn each_layer(&self, mut read: impl FnMut(&mut Section<'_>)) -> Result<(), Problems> {
        let mut problems = Vec::new();
        for layer in &self.layers {
            let sink = Sink::new(&layer.source, Dialect::Cloudflared);
            if let Some(mut section) = sink.root(&layer.node).section() {
                read(&mut section);
            }
            problems.extend(sink.finish().problems);
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.layers.iter().rev().find_map(|layer| layer.entries().iter().find(|entry| entry.key == name))
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.layers.iter().flat_map(|layer| {
            layer.entries().iter().map(move |entry| (layer.source.as_str(), entry.key.as_str()))
        });
        f.debug_list().entries(names).finish()
    }
}

impl Layer {
    fn new(source: &str, entries: Vec<Entry>) -> Self {
        Self { source: source.to_owned(), node: Node { position: None, value: Value::Mapping(entries) } }
    }

    fn entries(&self) -> &[Entry] {
        match &self.node.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }
}

fn scalar(text: String) -> Node {
    Node { position: None, value: Value::Scalar { text, plain: true } }
}

/// Flags that a connector tells its edge if they were set (`tunnel-protocol.md §3.7`).
const PUSHED_FLAGS: [&str; 12] = [
    "autoupdate-freq",
    "no-autoupdate",
    "retries",
    "protocol",
    "loglevel",
    "transport-loglevel",
    "origincert",
    "metrics",
    "metrics-update-freq",
    "edge-ip-version",
    "edge-bind-address",
    "max-active-flows",
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Protocol, Service};

    fn file(text: &str) -> CloudflaredFile {
        CloudflaredFile::parse(text, "config.yml").unwrap()
    }

    fn error(text: &str) -> String {
        CloudflaredFile::parse(text, "config.yml").unwrap_err().to_string()
    }

    fn tunnel() -> Tunnel {
        Tunnel::new(CredentialsSource::InProcess("t".into()), Ingress::unavailable())
    }

    fn one(name: &str, value: &str) -> (String, Vec<String>) {
        (name.to_owned(), vec![value.to_owned()])
    }

    #[test]
    fn keys_outside_the_sections_are_flags() {
        let file = file(
            "tunnel: home\ncredentials-file: /c.json\nedge: [\"127.0.0.1:7844\", \"127.0.0.1:7844\"]\n\
             protocol: h2mux\ngrace-period: 2s\nha-connections: 2\nno-autoupdate: true\nwarp-routing:\n  enabled: yes\n",
        );
        assert_eq!(file.tunnel.as_deref(), Some("home"));
        assert_eq!(file.settings().text("credentials-file"), Some("/c.json"));
        let mut tunnel = tunnel();
        file.settings().apply(&mut tunnel).unwrap();
        assert_eq!(tunnel.edge.len(), 2);
        assert_eq!(tunnel.protocol, Protocol::Http2);
        assert_eq!(tunnel.grace_period, Duration::from_secs(2));
        assert_eq!(tunnel.connections, 2);
        let pushed: Vec<_> = tunnel.pushed_flags.into_iter().collect();
        assert_eq!(
            pushed,
            [("no-autoupdate".into(), "true".into()), ("protocol".into(), String::from("h2mux"))]
        );
    }

    #[test]
    fn later_layers_win() {
        let mut settings = file("retries: 3\nprotocol: http2\n").settings().clone();
        settings.push_layer("environment", [one("retries", "4"), one("region", "us")]);
        settings.push_layer("command line", [one("retries", "6")]);
        let mut tunnel = tunnel();
        settings.apply(&mut tunnel).unwrap();
        assert_eq!((tunnel.retries, tunnel.protocol), (6, Protocol::Http2));
        assert_eq!(tunnel.region.as_deref(), Some("us"));
        assert_eq!(settings.text("retries"), Some("6"));
    }

    #[test]
    fn a_bad_flag_names_the_layer_it_came_from() {
        assert!(error("grace-period: 4m\n").contains("config.yml:1:15: grace-period: expected a duration"));
        let mut settings = Settings::default();
        settings.push_layer("environment", [one("grace-period", "4m")]);
        settings.push_layer("command line", [one("edge-ip-version", "5"), one("tag", "x")]);
        let error = settings.apply(&mut tunnel()).unwrap_err().to_string();
        assert!(error.contains("environment: grace-period: expected a duration from 0s to 3m"), "{error}");
        assert!(error.contains("command line: edge-ip-version: expected `4`, `6` or `auto`, found `5`"));
        assert!(error.contains("command line: tag: expected a tag"));
    }

    #[test]
    fn values_of_flags_do_not_show_in_debug() {
        let file = file("token: abcdef\n");
        assert!(!format!("{file:?}").contains("abcdef"));
        assert!(format!("{file:?}").contains("token"));
    }

    #[test]
    fn flags_are_renamed_or_dropped() {
        let mut settings = file("pq: true\nbogus: 1\n").settings().clone();
        settings.rename(|name| (name == "pq").then_some("post-quantum"));
        assert!(settings.is_on("post-quantum") && !settings.is_set("bogus") && !settings.is_set("pq"));
    }

    #[test]
    fn origin_requests_merge_rule_over_common_over_default() {
        let file = file(
            "originRequest:\n  connectTimeout: 5s\n  noTLSVerify: true\n  access: {required: true, teamName: t, audTag: [a]}\n\
             ingress:\n  - hostname: a.example\n    service: https://o\n    originRequest: {connectTimeout: 1s, access: {required: false}}\n\
             \x20 - service: http_status:404\n",
        );
        let rules = file.ingress.unwrap().rules;
        assert_eq!(rules[0].origin.connect_timeout, Duration::from_secs(1));
        assert!(rules[0].origin.no_tls_verify && rules[0].origin.access.is_none());
        assert_eq!(rules[1].origin.connect_timeout, Duration::from_secs(5));
        assert_eq!(rules[1].origin.access.as_ref().unwrap().team_name, "t");
    }

    #[test]
    fn every_validation_error_has_its_phrase() {
        let rules = |rules: &str| error(&format!("ingress:\n{rules}"));
        let last = "  - service: http_status:404\n";
        for (text, phrase) in [
            (
                "  - hostname: a.b\n    service: http://o\n".to_owned(),
                "last ingress rule must match all URLs",
            ),
            (format!("{last}{last}"), "rule #1 matches every hostname ''"),
            (
                format!("  - hostname: '*'\n    service: http://o\n{last}"),
                "rule #1 matches every hostname '*'",
            ),
            (format!("  - hostname: a.b:80\n    service: http://o\n{last}"), "cannot contain a port"),
            (format!("  - hostname: a.*.b\n    service: http://o\n{last}"), "at most one wildcard"),
            ("  - service: localhost:80\n".to_owned(), "needs a scheme and a hostname"),
            ("  - service: http://o/p\n".to_owned(), "different path"),
            (format!("  - path: '('\n    service: http://o\n{last}"), "rule #1 has an invalid regex"),
            ("  - service: http_status:1\n".to_owned(), "invalid HTTP status code"),
            (
                "  - service: socks-proxy\n    originRequest: {ipRules: [{prefix: x, ports: [0]}]}\n"
                    .to_owned(),
                "unable to create ip rule for socks-proxy",
            ),
            (
                "  - service: http://o\n    originRequest: {access: {required: true, audTag: [x]}}\n"
                    .to_owned(),
                "teamName cannot be blank",
            ),
            ("  - hostname: a.b\n".to_owned(), "`service` is missing"),
        ] {
            let error = rules(&text);
            assert!(error.contains(phrase), "{phrase}: {error}");
        }
    }

    #[test]
    fn unknown_keys_only_warn() {
        let file = file("ingress:\n  - service: http_status:404\n    hostnme: x\nwarp-routing: {foo: 1}\n");
        let warnings: Vec<_> = file.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), 2);
        assert_eq!(warnings[0], "config.yml:3:5: ingress[0].hostnme: unknown key; did you mean `hostname`?");
    }

    #[test]
    fn an_empty_file_is_an_empty_configuration() {
        for text in ["", "# nothing\n", "ingress: []\n", "ingress:\n"] {
            assert_eq!(file(text).ingress, None);
        }
        assert!(error("just text").contains("expected a mapping"));
    }

    #[test]
    fn flags_make_a_single_rule() {
        let single = |values: Vec<(String, Vec<String>)>| {
            let mut settings = Settings::default();
            settings.push_layer("command line", values);
            settings.single_origin(&OriginSettings::default())
        };
        assert_eq!(single(vec![one("retries", "1")]), Ok(None));
        let ingress =
            single(vec![one("url", "localhost:8080/x"), one("no-tls-verify", "true")]).unwrap().unwrap();
        assert_eq!(ingress.rules[0].service.to_string(), "http://localhost:8080");
        assert!(ingress.rules[0].origin.no_tls_verify);
        let hello = single(vec![one("hello-world", "true"), one("url", "ftp://x")]);
        assert!(hello.unwrap_err().to_string().contains("`ftp` is not supported"));
        let hello = single(vec![one("hello-world", "true")]).unwrap().unwrap();
        assert_eq!(hello.rules[0].service, Service::HelloWorld);
        let both = single(vec![one("unix-socket", "/s"), one("url", "http://x")]);
        assert!(both.unwrap_err().to_string().contains("not both"));
    }
}
