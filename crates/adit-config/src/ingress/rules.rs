//! Reading rules and `originRequest`, with every validation of `tunnel-protocol.md §7.5`.

use ipnet::IpNet;
use regex::{Regex, RegexBuilder};

use super::{AccessRequirement, Ingress, IngressRule, IpRule, OriginSettings, Service, StreamService};
use crate::{HostPattern, Problem, WarpRouting, read::Field};

/// Reads the list of rules; `None` if it is empty. Rules that cannot be read are reported and left out.
pub(crate) fn read_rules(field: &Field<'_>, defaults: &OriginSettings) -> Option<Ingress> {
    let items = field.items();
    let count = items.len();
    if count > RULES_MAX {
        field.reject(format!("expected at most {RULES_MAX} ingress rules"));
        return None;
    }
    let rules: Vec<IngressRule> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| read_rule(item, index, count, defaults))
        .collect();
    (!rules.is_empty()).then(|| Ingress { rules, defaults: defaults.clone() })
}

/// Reads an `originRequest` over the settings that apply without it.
pub(crate) fn read_origin_request(field: &Field<'_>, base: &OriginSettings) -> Option<OriginSettings> {
    let mut section = field.section()?;
    let mut settings = base.clone();
    let s = &mut settings;
    section.set("connectTimeout", &mut s.connect_timeout, Field::duration);
    section.set("tlsTimeout", &mut s.tls_timeout, Field::duration);
    section.set("tcpKeepAlive", &mut s.tcp_keep_alive, Field::duration);
    section.set("noHappyEyeballs", &mut s.no_happy_eyeballs, Field::boolean);
    section.set("keepAliveConnections", &mut s.keep_alive_connections, |field| field.integer(0..=100_000));
    section.set("keepAliveTimeout", &mut s.keep_alive_timeout, Field::duration);
    section.set("httpHostHeader", &mut s.http_host_header, |field| read_header_value(field).map(non_empty));
    section.set("originServerName", &mut s.origin_server_name, read_server_name);
    section.set("matchSNItoHost", &mut s.match_sni_to_host, Field::boolean);
    section.set("caPool", &mut s.ca_pool, |field| match field.text()? {
        "" => Some(None),
        _ => field.path().map(Some),
    });
    section.set("noTLSVerify", &mut s.no_tls_verify, Field::boolean);
    section.set("disableChunkedEncoding", &mut s.disable_chunked_encoding, Field::boolean);
    section.set("http2Origin", &mut s.http2_origin, Field::boolean);
    section.set("access", &mut s.access, read_access);
    section.set("bastionMode", &mut s.bastion_mode, Field::boolean);
    section.set("ipRules", &mut s.ip_rules, |field| {
        Some(field.items().iter().filter_map(read_ip_rule).collect())
    });
    section.set("proxyAddress", &mut s.proxy_address, |field| field.text().map(str::to_owned));
    section.set("proxyPort", &mut s.proxy_port, |field| field.integer(0..=65535));
    section.set("proxyType", &mut s.proxy_type, |field| {
        field.parse("`socks` or an empty text", |text| matches!(text, "" | "socks").then(|| text.to_owned()))
    });
    section.finish();
    Some(settings)
}

/// Reads `warp-routing` (`tunnel-protocol.md §7.3`); the old `enabled` key has no effect.
pub(crate) fn read_warp_routing(field: &Field<'_>) -> Option<WarpRouting> {
    let mut section = field.section()?;
    let mut settings = WarpRouting::default();
    section.set("connectTimeout", &mut settings.connect_timeout, Field::duration);
    section.set("maxActiveFlows", &mut settings.active_flows_max, |field| field.integer(0..=u64::MAX));
    section.set("tcpKeepAlive", &mut settings.tcp_keep_alive, Field::duration);
    section.take("enabled");
    section.finish();
    Some(settings)
}

/// Compiles the `path` of a rule, bounded in memory; unanchored, as cloudflared matches it.
///
/// Go's RE2 takes `\d`, `\s`, `\w` and `\b` for ASCII only, here they know Unicode: a decoded path with such letters
/// may match where cloudflared's would not.
pub fn path_regex(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX).build()
}

/// The refusal of a rule whose service is parsed but not served.
pub(crate) fn unserved_problem(file: &str, index: usize, rule: &IngressRule) -> Problem {
    Problem {
        key: format!("ingress[{index}].service"),
        value: rule.service_text.clone(),
        ..Problem::of_file(file, "TCP over WebSocket is not served yet")
    }
}

fn read_rule(
    field: &Field<'_>,
    index: usize,
    count: usize,
    defaults: &OriginSettings,
) -> Option<IngressRule> {
    let mut section = field.section()?;
    let hostname_field = section.take("hostname");
    let hostname_text = hostname_field.as_ref().and_then(Field::text).map(str::to_owned).unwrap_or_default();
    let hostname = match &hostname_field {
        Some(field) => field.try_parse(|text| text.parse::<HostPattern>()),
        None => Some(HostPattern::Any),
    };
    let path_field = section.take("path");
    let path = path_field.as_ref().and_then(|field| read_path(field, index));
    let origin = section
        .optional("originRequest", |field| read_origin_request(field, defaults))
        .unwrap_or_else(|| defaults.clone());
    let service_field = section.require("service");
    let service = service_field.as_ref().and_then(|field| field.try_parse(str::parse::<Service>));
    section.finish();

    let catches_all = hostname == Some(HostPattern::Any) && path_field.is_none_or(|field| is_empty(&field));
    check_order(field, index + 1 == count, catches_all, &hostname_text, index);
    let service_text = service_field.and_then(|field| field.text()).unwrap_or_default().to_owned();
    let service = effective_service(service?, &origin);
    Some(IngressRule { hostname: hostname?, hostname_text, path, service, service_text, origin })
}

fn read_path(field: &Field<'_>, index: usize) -> Option<String> {
    let text = field.text().filter(|text| !text.is_empty())?;
    match path_regex(text) {
        Ok(_) => Some(text.to_owned()),
        Err(error) => {
            let reason = error.to_string();
            let last = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            field.reject(format!("rule #{} has an invalid regex: {last}", index + 1));
            None
        }
    }
}

/// The last rule and only the last rule matches everything.
fn check_order(field: &Field<'_>, is_last: bool, catches_all: bool, hostname: &str, index: usize) {
    if is_last && !catches_all {
        field.reject_hidden(
            "the last ingress rule must match all URLs (it may have neither hostname nor path)",
        );
    }
    if !is_last && catches_all {
        let number = index + 1;
        field.reject_hidden(format!(
            "rule #{number} matches every hostname '{hostname}', so the rules after it will never be triggered"
        ));
    }
}

/// `bastionMode` turns every address into a bastion; `ipRules` belong to a SOCKS proxy only.
fn effective_service(service: Service, origin: &OriginSettings) -> Service {
    match service {
        Service::Stream(StreamService::Socks(_)) => {
            Service::Stream(StreamService::Socks(origin.ip_rules.clone()))
        }
        Service::Http { .. } | Service::Stream(_) if origin.bastion_mode => {
            Service::Stream(StreamService::Bastion)
        }
        other => other,
    }
}

fn read_access(field: &Field<'_>) -> Option<Option<AccessRequirement>> {
    let mut section = field.section()?;
    let (mut required, mut team_name, mut environment) = (false, String::new(), String::new());
    section.set("required", &mut required, Field::boolean);
    section.set("teamName", &mut team_name, |field| {
        field.parse("a team name of letters, digits, `-` and `.`", |text| {
            let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
            (text.len() <= 253 && text.bytes().all(is_good)).then(|| text.to_owned())
        })
    });
    let aud_tags: Vec<String> = section.optional("audTag", read_texts).unwrap_or_default();
    section.set("environment", &mut environment, |field| field.text().map(str::to_owned));
    if required && team_name.is_empty() && !aud_tags.is_empty() {
        section.itself().reject_hidden("access.teamName cannot be blank when access.audTag are present");
    }
    section.finish();
    Some(required.then_some(AccessRequirement { team_name, aud_tags, environment }))
}

fn read_ip_rule(field: &Field<'_>) -> Option<IpRule> {
    let mut section = field.section()?;
    let prefix = section.require("prefix").and_then(|field| {
        field.parse("a network such as `10.0.0.0/8` (unable to create ip rule for socks-proxy)", |text| {
            text.parse::<IpNet>().ok()
        })
    });
    let mut ports: Vec<u16> = section
        .optional("ports", |field| {
            Some(field.items().iter().filter_map(|item| item.integer(1..=65535)).collect())
        })
        .unwrap_or_default();
    ports.sort_unstable();
    let allow = section.optional("allow", Field::boolean).unwrap_or(false);
    section.finish();
    Some(IpRule { prefix: prefix?, ports, allow })
}

fn read_server_name(field: &Field<'_>) -> Option<Option<String>> {
    match field.text()? {
        "" => Some(None),
        _ => field.try_parse(|text| text.parse::<crate::Hostname>()).map(|name| Some(name.to_string())),
    }
}

fn read_header_value(field: &Field<'_>) -> Option<String> {
    field.parse("a value that can stand in a header", |text| {
        text.parse::<http::HeaderValue>().ok().map(|_| text.to_owned())
    })
}

fn read_texts(field: &Field<'_>) -> Option<Vec<String>> {
    Some(field.items().iter().filter_map(Field::text).map(str::to_owned).collect())
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn is_empty(field: &Field<'_>) -> bool {
    field.is_null() || matches!(&field.node.value, crate::yaml::Value::Scalar { text, .. } if text.is_empty())
}

/// Compiled size; expressions in use stay below 100 KiB. With the lazily built automaton twice this per rule.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Each rule may hold a compiled expression; a thousand hosts behind one connector is far beyond what is in use.
const RULES_MAX: usize = 1_000;
