//! What the API tells of TCP and UDP objects.

use std::collections::BTreeMap;

use adit_config::dynamic::{Dynamic, TcpMiddleware, TcpService, UdpService, WeightedService};
use serde_json::{Value, json};

use super::view::{Verdicts, as_written, provider};

/// `/api/tcp/routers`.
pub(crate) fn tcp_routers(dynamic: &Dynamic, verdicts: &Verdicts) -> Vec<Value> {
    let view = |(name, router): (&String, &adit_config::dynamic::TcpRouter)| {
        let mut view = router_view(name, &router.entry_points, &router.service, &verdicts.tcp_routers);
        view["rule"] = json!(router.rule);
        view["priority"] = json!(priority(router.priority, &router.rule));
        if !router.middlewares.is_empty() {
            view["middlewares"] = json!(router.middlewares);
        }
        if let Some(tls) = &router.tls {
            let options = tls.options.as_deref().unwrap_or("default");
            view["tls"] = json!({ "passthrough": tls.passthrough, "options": as_written(options, name) });
        }
        view
    };
    dynamic.tcp.routers.iter().map(view).collect()
}

/// `/api/udp/routers`.
pub(crate) fn udp_routers(dynamic: &Dynamic, verdicts: &Verdicts) -> Vec<Value> {
    let view = |(name, router): (&String, &adit_config::dynamic::UdpRouter)| {
        let mut view = router_view(name, &router.entry_points, &router.service, &verdicts.udp_routers);
        if !router.rule.is_empty() {
            view["rule"] = json!(router.rule);
            view["priority"] = json!(priority(router.priority, &router.rule));
        }
        view
    };
    dynamic.udp.routers.iter().map(view).collect()
}

/// The priority that counts.
fn priority(given: i64, rule: &str) -> i64 {
    match given {
        0 => i64::try_from(rule.len()).unwrap_or(i64::MAX),
        given => given,
    }
}

fn router_view(
    name: &str,
    entry_points: &[String],
    service: &str,
    disabled: &BTreeMap<String, String>,
) -> Value {
    let mut view = json!({
        "name": name, "provider": provider(name), "entryPoints": entry_points, "using": entry_points,
        "service": as_written(service, name),
        "status": if disabled.contains_key(name) { "disabled" } else { "enabled" },
    });
    if let Some(why) = disabled.get(name) {
        view["error"] = json!([why]);
    }
    view
}

/// `/api/tcp/services`.
pub(crate) fn tcp_services(dynamic: &Dynamic) -> Vec<Value> {
    let view = |(name, service): (&String, &TcpService)| {
        let used = users(dynamic.tcp.routers.iter().map(|(router, r)| (router, &r.service)), name);
        let (kind, key, body) = match service {
            TcpService::LoadBalancer(balancer) => {
                let servers: Vec<Value> =
                    balancer.servers.iter().map(|s| json!({ "address": s.address })).collect();
                ("loadbalancer", "loadBalancer", json!({ "servers": servers }))
            }
            TcpService::Weighted { services, .. } => ("weighted", "weighted", weighted(services)),
            TcpService::Invalid(why) => return invalid(name, why, &used),
        };
        service_view(name, kind, (key, body), &used)
    };
    dynamic.tcp.services.iter().map(view).collect()
}

/// `/api/udp/services`.
pub(crate) fn udp_services(dynamic: &Dynamic) -> Vec<Value> {
    let view = |(name, service): (&String, &UdpService)| {
        let used = users(dynamic.udp.routers.iter().map(|(router, r)| (router, &r.service)), name);
        let (kind, key, body) = match service {
            UdpService::LoadBalancer { servers } => {
                let servers: Vec<Value> =
                    servers.iter().map(|address| json!({ "address": address })).collect();
                ("loadbalancer", "loadBalancer", json!({ "servers": servers }))
            }
            UdpService::Weighted { services } => ("weighted", "weighted", weighted(services)),
            UdpService::Invalid(why) => return invalid(name, why, &used),
        };
        service_view(name, kind, (key, body), &used)
    };
    dynamic.udp.services.iter().map(view).collect()
}

/// `/api/tcp/middlewares`.
pub(crate) fn tcp_middlewares(dynamic: &Dynamic) -> Vec<Value> {
    let view = |(name, middleware): (&String, &TcpMiddleware)| {
        let used: Vec<&String> = dynamic
            .tcp
            .routers
            .iter()
            .filter(|(_, router)| router.middlewares.contains(name))
            .map(|(router, _)| router)
            .collect();
        let kind = format!("{middleware:?}");
        let kind = kind.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_lowercase();
        json!({ "name": name, "provider": provider(name), "type": kind, "usedBy": used, "status": "enabled" })
    };
    dynamic.tcp.middlewares.iter().map(view).collect()
}

fn users<'a>(routers: impl Iterator<Item = (&'a String, &'a String)>, service: &str) -> Vec<&'a String> {
    routers.filter(|(_, used)| *used == service).map(|(router, _)| router).collect()
}

fn weighted(services: &[WeightedService]) -> Value {
    let services: Vec<Value> =
        services.iter().map(|s| json!({ "name": s.name, "weight": s.weight })).collect();
    json!({ "services": services })
}

fn service_view(name: &str, kind: &str, body: (&str, Value), used: &[&String]) -> Value {
    let mut view = json!({
        "name": name, "provider": provider(name), "type": kind, "usedBy": used, "status": "enabled",
    });
    view[body.0] = body.1;
    view
}

fn invalid(name: &str, why: &str, used: &[&String]) -> Value {
    json!({
        "name": name, "provider": provider(name), "type": "invalid", "usedBy": used, "status": "disabled",
        "error": [why],
    })
}
