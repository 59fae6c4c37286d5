//! What the API tells of the configuration in force, in Traefik's words.

use std::collections::BTreeMap;

use adit_config::dynamic::{Dynamic, Middleware, Router, ServiceKind, WeightedService};
use serde_json::{Value, json};

/// What became of each object when its configuration was compiled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts {
    /// Routers that are not served, with the reason.
    pub(crate) routers: BTreeMap<String, String>,
    /// Services that cannot be used.
    pub(crate) services: BTreeMap<String, String>,
    /// Middlewares that cannot be used.
    pub(crate) middlewares: BTreeMap<String, String>,
    /// The same for TCP and UDP.
    pub(crate) tcp_routers: BTreeMap<String, String>,
    /// UDP routers that are not served.
    pub(crate) udp_routers: BTreeMap<String, String>,
    /// Routers that are served, but not everywhere, with the reasons.
    pub(crate) partial: BTreeMap<String, Vec<String>>,
    /// Entry points that take routers without any of their own.
    pub(crate) defaults: Vec<String>,
    /// Router → entry points it is on.
    pub(crate) using: BTreeMap<String, Vec<String>>,
    /// Worth a look, but served.
    pub(crate) warnings: Vec<String>,
    /// Files that are in force as they were before, with what is wrong with them.
    pub(crate) faults: Vec<String>,
}

impl Verdicts {
    /// Everything that is wrong, a line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let of = |kind: &str, list: &BTreeMap<String, String>| {
            list.iter().map(|(name, why)| format!("{kind} {name}: {why}")).collect::<Vec<_>>()
        };
        let mut all = self.faults.clone();
        all.extend(of("router", &self.routers));
        all.extend(of("service", &self.services));
        all.extend(of("middleware", &self.middlewares));
        all.extend(of("TCP router", &self.tcp_routers));
        all.extend(of("UDP router", &self.udp_routers));
        all
    }
}

/// `/api/http/routers`.
pub(crate) fn routers(dynamic: &Dynamic, verdicts: &Verdicts) -> Vec<Value> {
    dynamic.http.routers.iter().map(|(name, router)| router_view(name, router, verdicts)).collect()
}

fn router_view(name: &str, router: &Router, verdicts: &Verdicts) -> Value {
    let using = verdicts.using.get(name).cloned().unwrap_or_default();
    let on = match (router.entry_points.is_empty(), using.is_empty()) {
        (false, _) => router.entry_points.clone(),
        (true, false) => using.clone(),
        // A router at fault is nowhere; this is where it would be.
        (true, true) => verdicts.defaults.clone(),
    };
    let priority = if router.priority == 0 {
        i64::try_from(router.rule.len()).unwrap_or(i64::MAX)
    } else {
        router.priority
    };
    let mut view = json!({
        "name": name,
        "provider": provider(name),
        "entryPoints": on,
        "using": using,
        "rule": router.rule,
        "priority": priority,
        "service": as_written(&router.service, name),
        "status": match (verdicts.routers.contains_key(name), verdicts.partial.contains_key(name)) {
            (true, _) => "disabled",
            (false, true) => "warning",
            (false, false) => "enabled",
        },
    });
    if !router.middlewares.is_empty() {
        view["middlewares"] = json!(router.middlewares);
    }
    if let Some(tls) = &router.tls {
        view["tls"] = json!({ "options": as_written(tls.options.as_deref().unwrap_or("default"), name) });
    }
    if let Some(why) = verdicts.routers.get(name) {
        view["error"] = json!([why]);
    } else if let Some(reasons) = verdicts.partial.get(name) {
        view["error"] = json!(reasons);
    }
    view
}

/// `/api/http/services`; `servers` tells which server of a service is up.
pub(crate) fn services(
    dynamic: &Dynamic,
    verdicts: &Verdicts,
    servers: &BTreeMap<String, Vec<(String, bool)>>,
) -> Vec<Value> {
    dynamic
        .http
        .services
        .iter()
        .map(|(name, service)| {
            let kind = match &service.kind {
                ServiceKind::LoadBalancer(_) => "loadbalancer",
                ServiceKind::Weighted(_) => "weighted",
                ServiceKind::Mirroring(_) => "mirroring",
                ServiceKind::Failover(_) => "failover",
                ServiceKind::HighestRandomWeight(_) => "highestrandomweight",
                ServiceKind::Invalid(_) => "invalid",
            };
            let used: Vec<&String> = dynamic
                .http
                .routers
                .iter()
                .filter(|(_, r)| r.service == *name)
                .map(|(name, _)| name)
                .collect();
            let mut view = json!({
                "name": name, "provider": provider(name), "type": kind, "usedBy": used,
                "status": if verdicts.services.contains_key(name) { "disabled" } else { "enabled" },
            });
            if let Some((key, body)) = service_body(&service.kind) {
                view[key] = body;
            }
            if let Some(servers) = servers.get(name) {
                let status: serde_json::Map<String, Value> = servers
                    .iter()
                    .map(|(url, up)| (without_userinfo(url), if *up { "UP" } else { "DOWN" }.into()))
                    .collect();
                view["serverStatus"] = Value::Object(status);
            }
            if let Some(why) = verdicts.services.get(name) {
                view["error"] = json!([why]);
            }
            view
        })
        .collect()
}

/// What a service is made of.
fn service_body(kind: &ServiceKind) -> Option<(&'static str, Value)> {
    let weighted = |services: &[WeightedService]| -> Vec<Value> {
        services.iter().map(|s| json!({ "name": s.name, "weight": s.weight })).collect()
    };
    Some(match kind {
        ServiceKind::LoadBalancer(balancer) => {
            let servers: Vec<Value> =
                balancer.servers.iter().map(|s| json!({ "url": without_userinfo(&s.url) })).collect();
            let body = json!({ "servers": servers, "passHostHeader": balancer.pass_host_header });
            ("loadBalancer", body)
        }
        ServiceKind::Weighted(group) => ("weighted", json!({ "services": weighted(&group.services) })),
        ServiceKind::HighestRandomWeight(group) => {
            ("highestRandomWeight", json!({ "services": weighted(&group.services) }))
        }
        ServiceKind::Mirroring(mirroring) => {
            let mirrors: Vec<Value> =
                mirroring.mirrors.iter().map(|m| json!({ "name": m.name, "percent": m.percent })).collect();
            ("mirroring", json!({ "service": mirroring.service, "mirrors": mirrors }))
        }
        ServiceKind::Failover(failover) => {
            ("failover", json!({ "service": failover.service, "fallback": failover.fallback }))
        }
        ServiceKind::Invalid(_) => return None,
    })
}

/// A URL without `user:password@`.
pub(crate) fn without_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

/// A reference as its object has it: without the provider that is the object's own.
pub(super) fn as_written<'a>(reference: &'a str, object: &str) -> &'a str {
    match reference.rsplit_once('@') {
        Some((name, of)) if of == provider(object) => name,
        _ => reference,
    }
}

/// `/api/http/middlewares`.
pub(crate) fn middlewares(dynamic: &Dynamic, verdicts: &Verdicts) -> Vec<Value> {
    dynamic
        .http
        .middlewares
        .iter()
        .map(|(name, middleware)| {
            let used: Vec<&String> = dynamic
                .http
                .routers
                .iter()
                .filter(|(_, router)| router.middlewares.contains(name))
                .map(|(name, _)| name)
                .collect();
            let mut view = json!({
                "name": name, "provider": provider(name), "type": Middleware::kind(middleware).to_lowercase(),
                "usedBy": used,
                "status": if verdicts.middlewares.contains_key(name) { "disabled" } else { "enabled" },
            });
            if let Some(why) = verdicts.middlewares.get(name) {
                view["error"] = json!([why]);
            }
            view
        })
        .collect()
}

/// `/api/overview`: how many of each there are and how many are disabled.
pub(crate) fn overview(dynamic: &Dynamic, verdicts: &Verdicts) -> Value {
    let count = |total: usize, errors: usize| json!({ "total": total, "warnings": 0, "errors": errors });
    let warnings = verdicts.partial.len();
    let http = &dynamic.http;
    json!({
        "http": {
            "routers": { "total": http.routers.len(), "warnings": warnings, "errors": verdicts.routers.len() },
            "services": count(http.services.len(), verdicts.services.len()),
            "middlewares": count(http.middlewares.len(), verdicts.middlewares.len()),
        },
        "tcp": {
            "routers": count(dynamic.tcp.routers.len(), verdicts.tcp_routers.len()),
            "services": count(dynamic.tcp.services.len(), 0),
            "middlewares": count(dynamic.tcp.middlewares.len(), 0),
        },
        "udp": {
            "routers": count(dynamic.udp.routers.len(), verdicts.udp_routers.len()),
            "services": count(dynamic.udp.services.len(), 0),
        },
        "features": { "tracing": "", "metrics": "Prometheus", "accessLog": true },
        "providers": ["inline", "file"],
    })
}

pub(super) fn provider(name: &str) -> &str {
    name.rsplit_once('@').map_or("", |(_, provider)| provider)
}
