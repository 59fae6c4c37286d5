//! Rules as JSON: what a connector pushes to its edge, what the edge learns from it, and the `/config` page.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value, json};

use super::{AccessRequirement, Ingress, IngressRule, IpRule, OriginSettings};
use crate::{HostPattern, WarpRouting, format_duration};

/// Why a connector's pushed rules are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Longer than a rule set can be.
    #[error("pushed configuration is longer than 1 MiB")]
    TooLong,
    /// Not a JSON object with a list `ingress`.
    #[error("pushed configuration is not JSON with a list of ingress rules")]
    NotRules,
    /// A host that is none.
    #[error("pushed configuration has a bad hostname in rule {0}")]
    Hostname(usize),
    /// More hosts than one tunnel may have.
    #[error("pushed configuration has more than {0} hostnames")]
    TooMany(usize),
}

/// The hosts named by the rules that a connector pushed, without the catch-all; bounded by `hostnames_max`.
pub fn hostnames_in_push(json: &[u8], hostnames_max: usize) -> Result<Vec<HostPattern>, PushError> {
    if json.len() > PUSH_BYTES_MAX {
        return Err(PushError::TooLong);
    }
    let pushed: Value = serde_json::from_slice(json).map_err(|_| PushError::NotRules)?;
    let fields = pushed.as_object().ok_or(PushError::NotRules)?;
    let rules = match fields.get("ingress") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(rules) => rules.as_array().ok_or(PushError::NotRules)?,
    };
    let mut hostnames = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let text = match rule.get("hostname") {
            None | Some(Value::Null) => continue,
            Some(text) => text.as_str().ok_or(PushError::Hostname(index))?,
        };
        let pattern: HostPattern = text.parse().map_err(|_| PushError::Hostname(index))?;
        if pattern == HostPattern::Any || hostnames.contains(&pattern) {
            continue;
        }
        if hostnames.len() >= hostnames_max {
            return Err(PushError::TooMany(hostnames_max));
        }
        hostnames.push(pattern);
    }
    Ok(hostnames)
}

pub(super) fn local_push(
    ingress: &Ingress,
    flags: &BTreeMap<String, String>,
    warp_routing: &WarpRouting,
) -> Value {
    let mut push = Map::new();
    if !flags.is_empty() {
        push.insert("__configuration_flags".into(), json!(flags));
    }
    push.insert("ingress".into(), ingress.rules.iter().map(pushed_rule).collect());
    push.insert("warp-routing".into(), changed_warp_routing(warp_routing));
    Value::Object(push)
}

pub(super) fn config_page(ingress: &Ingress, warp_routing: &WarpRouting) -> Value {
    let rule = |rule: &IngressRule| {
        json!({
            "hostname": rule.hostname_text,
            "path": rule.path,
            "service": rule.service.to_string(),
            "Handlers": null,
            "originRequest": all_settings(&rule.origin, seconds),
        })
    };
    json!({
        "ingress": ingress.rules.iter().map(rule).collect::<Vec<_>>(),
        "warp-routing": changed_warp_routing(warp_routing),
        "originRequest": all_settings(&ingress.defaults, seconds),
    })
}

/// The rules as `adit.yaml` spells them, every setting written out.
pub(super) fn effective(ingress: &Ingress) -> Value {
    let rule = |rule: &IngressRule| {
        let mut fields = Map::new();
        if !rule.hostname_text.is_empty() {
            fields.insert("hostname".into(), json!(rule.hostname_text));
        }
        if let Some(path) = &rule.path {
            fields.insert("path".into(), json!(path));
        }
        fields.insert("service".into(), json!(rule.service_text));
        let settings = all_settings(&rule.origin, |duration| json!(format_duration(duration)));
        fields.insert("originRequest".into(), settings);
        Value::Object(fields)
    };
    ingress.rules.iter().map(rule).collect()
}

fn pushed_rule(rule: &IngressRule) -> Value {
    let mut fields = Map::new();
    if !rule.hostname_text.is_empty() {
        fields.insert("hostname".into(), json!(rule.hostname_text));
    }
    if let Some(path) = &rule.path {
        fields.insert("path".into(), json!(path));
    }
    fields.insert("service".into(), json!(rule.service_text));
    fields.insert("originRequest".into(), changed_settings(&rule.origin));
    Value::Object(fields)
}

fn changed_warp_routing(settings: &WarpRouting) -> Value {
    let default = WarpRouting::default();
    let mut fields = Map::new();
    if settings.connect_timeout != default.connect_timeout {
        fields.insert("connectTimeout".into(), seconds(settings.connect_timeout));
    }
    if settings.active_flows_max != default.active_flows_max {
        fields.insert("maxActiveFlows".into(), json!(settings.active_flows_max));
    }
    if settings.tcp_keep_alive != default.tcp_keep_alive {
        fields.insert("tcpKeepAlive".into(), seconds(settings.tcp_keep_alive));
    }
    Value::Object(fields)
}

/// Only what differs from the defaults, so that a push stays short.
fn changed_settings(settings: &OriginSettings) -> Value {
    let (Value::Object(all), Value::Object(default)) =
        (all_settings(settings, seconds), all_settings(&OriginSettings::default(), seconds))
    else {
        return json!({});
    };
    all.into_iter().filter(|(key, value)| default.get(key) != Some(value)).collect::<Map<_, _>>().into()
}

fn all_settings(settings: &OriginSettings, duration: impl Fn(Duration) -> Value) -> Value {
    json!({
        "connectTimeout": duration(settings.connect_timeout),
        "tlsTimeout": duration(settings.tls_timeout),
        "tcpKeepAlive": duration(settings.tcp_keep_alive),
        "noHappyEyeballs": settings.no_happy_eyeballs,
        "keepAliveConnections": settings.keep_alive_connections,
        "keepAliveTimeout": duration(settings.keep_alive_timeout),
        "httpHostHeader": settings.http_host_header.as_deref().unwrap_or_default(),
        "originServerName": settings.origin_server_name.as_deref().unwrap_or_default(),
        "matchSNItoHost": settings.match_sni_to_host,
        "caPool": settings.ca_pool.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
        "noTLSVerify": settings.no_tls_verify,
        "disableChunkedEncoding": settings.disable_chunked_encoding,
        "bastionMode": settings.bastion_mode,
        "proxyAddress": settings.proxy_address,
        "proxyPort": settings.proxy_port,
        "proxyType": settings.proxy_type,
        "ipRules": settings.ip_rules.iter().map(ip_rule).collect::<Vec<_>>(),
        "http2Origin": settings.http2_origin,
        "access": access(settings.access.as_ref()),
    })
}

fn ip_rule(rule: &IpRule) -> Value {
    json!({ "prefix": rule.prefix.to_string(), "ports": rule.ports, "allow": rule.allow })
}

fn access(requirement: Option<&AccessRequirement>) -> Value {
    match requirement {
        None => json!({ "required": false, "teamName": "", "audTag": [] }),
        Some(access) => json!({
            "required": true,
            "teamName": access.team_name,
            "audTag": access.aud_tags,
            "environment": access.environment,
        }),
    }
}

/// Whole seconds as an integer, anything else as a fraction, as cloudflared writes them.
fn seconds(duration: Duration) -> Value {
    match duration.subsec_nanos() {
        0 => json!(duration.as_secs()),
        _ => json!(duration.as_secs_f64()),
    }
}

/// As many bytes as a configuration file may have.
const PUSH_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RemoteConfig, Service};

    #[test]
    fn a_push_holds_only_what_differs() {
        let settings = OriginSettings {
            connect_timeout: Duration::from_millis(1500),
            no_tls_verify: true,
            ..OriginSettings::default()
        };
        let ingress = Ingress::single(Service::Status(404), settings);
        let flags = BTreeMap::from([("protocol".to_owned(), "quic".to_owned())]);
        let push: Value =
            serde_json::from_str(&ingress.to_local_push(&flags, &WarpRouting::default())).unwrap();
        assert_eq!(
            push,
            json!({
                "__configuration_flags": {"protocol": "quic"},
                "ingress": [{
                    "service": "http_status:404",
                    "originRequest": {"connectTimeout": 1.5, "noTLSVerify": true},
                }],
                "warp-routing": {},
            })
        );
    }

    #[test]
    fn a_push_of_whole_seconds_can_be_pushed_back() {
        let text = r#"{"ingress": [{"hostname": "*.a.example", "path": "^/x", "service": "https://o:1",
            "originRequest": {"connectTimeout": 3, "access": {"required": true, "teamName": "t", "audTag": ["x"]}}},
            {"service": "http_status:404"}]}"#;
        let config = RemoteConfig::from_json(text).unwrap();
        let push = config.ingress.to_local_push(&BTreeMap::new(), &config.warp_routing);
        assert_eq!(RemoteConfig::from_json(&push).unwrap().ingress, config.ingress);
    }

    #[test]
    fn the_edge_learns_the_hosts_of_a_push() {
        let json = br#"{"ingress": [{"hostname": "A.example"}, {"hostname": "*.b.example"}, {"hostname": "a.example"},
            {"hostname": "*"}, {"service": "x"}]}"#;
        let hostnames = hostnames_in_push(json, 2).unwrap();
        assert_eq!(
            hostnames.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["a.example", "*.b.example"]
        );
        assert_eq!(hostnames_in_push(json, 1), Err(PushError::TooMany(1)));
        assert_eq!(hostnames_in_push(b"{}", 1), Ok(Vec::new()));
        assert_eq!(hostnames_in_push(b"[]", 1), Err(PushError::NotRules));
        assert_eq!(
            hostnames_in_push(br#"{"ingress": [{"hostname": "a:1"}]}"#, 1),
            Err(PushError::Hostname(0))
        );
    }

    #[test]
    fn the_config_page_spells_everything_out() {
        let page = Ingress::unavailable().to_config_page(&WarpRouting::default());
        assert_eq!(page["ingress"][0]["service"], "http_status:503");
        assert_eq!(page["ingress"][0]["originRequest"]["connectTimeout"], 30);
        assert_eq!(page["originRequest"]["proxyAddress"], "127.0.0.1");
    }
}
