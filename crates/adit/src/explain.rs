//! `adit route explain`: where a request goes and why not elsewhere, without sending it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use adit_config::dynamic::{Middleware, ServiceKind};
use adit_config::{Config, EntryPointTransport};
use adit_proxy::body::Body;
use adit_proxy::message::{Request, Visitor};

use adit_route::router::{HttpHead, Router, RouterOutcome, RouterVerdict, length_of};
use clap::ArgMatches;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Uri, Version};
use serde_json::{Value, json};

use crate::daemon::ingress::{TUNNEL, inputs, serves_tunnel};
use crate::gateway::files::Files;
use crate::gateway::merge::qualified;
use crate::gateway::{Generation, Served};
use crate::load;

/// Says it; exit code 0 if a router answers on one of the entry points asked about, 1 if none does.
pub(crate) fn main(matches: &ArgMatches) -> ExitCode {
    let asked = match Asked::read(matches) {
        Ok(asked) => asked,
        Err(why) => return crate::fail(crate::EXIT_USAGE, &why),
    };
    let path = match load::find(crate::cli::config_path(matches)) {
        Ok(path) => path,
        Err(why) => return crate::fail(crate::EXIT_CONFIG, &why),
    };
    let config = match load::load_file(&path) {
        Ok(config) => config,
        Err(problems) => return crate::fail(crate::EXIT_CONFIG, &problems.to_string()),
    };
    let wanted = matches.get_one::<String>("entry-point").map(String::as_str);
    let entry_points = match entry_points(&config, wanted) {
        Ok(entry_points) => entry_points,
        Err(why) => return crate::fail(crate::EXIT_USAGE, &why),
    };
    let (inputs, _) = inputs(&config, &mut Files::default());
    let generation = Generation::compile(inputs, None);
    let problems = generation.verdicts.problems().len();
    if problems > 0 {
        crate::report(&format!(
            "{problems} problems keep parts from being served: `adit check` names them\n"
        ));
    }
    let explained: Vec<Value> = entry_points.iter().map(|name| asked.explain(&generation, name)).collect();
    if matches.get_flag("json") {
        crate::print(&format!("{:#}\n", Value::Array(explained.clone())));
    } else {
        explained.iter().for_each(|explained| crate::print(&plain(explained)));
    }
    let is_answered = explained.iter().any(|explained| !explained["router"].is_null());
    if is_answered { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// The request that is asked about.
struct Asked {
    method: Method,
    uri: Uri,
    host: String,
    headers: HeaderMap,
    from: IpAddr,
    secure: bool,
}

impl Asked {
    fn read(matches: &ArgMatches) -> Result<Self, String> {
        let text = |name: &str| matches.get_one::<String>(name).map(String::as_str).unwrap_or_default();
        let method = text("method");
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{method}` is no method"))?;
        let url = text("url");
        let uri: Uri = url.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("`{url}` is no URL that starts with http:// or https://")),
        };
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let mut host = authority.rsplit('@').next().unwrap_or_default().to_owned();
        let mut headers = HeaderMap::new();
        for line in matches.get_many::<String>("header").into_iter().flatten() {
            let (name, value) = field(line)?;
            if name == http::header::HOST {
                host = String::from_utf8_lossy(value.as_bytes()).into_owned();
            } else {
                headers.append(name, value);
            }
        }
        let from = text("from");
        let from = from.parse().map_err(|_| format!("`{from}` is no IP address"))?;
        // As HTTP/1.1 sends it to a server: path and query alone.
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let uri = target.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        Ok(Self { method, uri, host, headers, from, secure })
    }

    fn request(&self, entry_point: &str) -> Request {
        let visitor = Visitor {
            remote: SocketAddr::new(self.from, 0),
            local: SocketAddr::from(([0, 0, 0, 0], 0)),
            secure: self.secure,
            entry_point: Arc::from(entry_point),
            peer: None,
            tls: None,
            address: adit_proxy::message::AddressText::default(),
        };
        Request {
            method: self.method.clone(),
            uri: self.uri.clone(),
            version: Version::HTTP_11,
            host: self.host.clone(),
            headers: self.headers.clone().into(),
            body: Body::empty(),
            upgrade: None,
            visitor: Arc::new(visitor),
        }
    }

    /// What happens on one entry point; `router` is null if nobody answers.
    fn explain(&self, generation: &Generation, entry_point: &str) -> Value {
        let mut explained =
            json!({ "entryPoint": entry_point, "tls": self.secure, "router": null, "others": [] });
        let Some(entry) = generation.entry(entry_point) else { return explained };
        let mut request = self.request(entry_point);
        if !entry.tidy_fields(&mut request) {
            explained["refused"] = json!("underscore_header");
            return explained;
        }
        entry.policy.apply(&mut request);
        let cleaned = match entry.clean(&mut request) {
            Ok(cleaned) => cleaned,
            Err(reason) => {
                explained["refused"] = json!(reason);
                return explained;
            }
        };
        let Ok(mesh) = generation.identify(entry_point, self.from) else {
            explained["refused"] = json!("mesh_peer_unknown");
            return explained;
        };
        if let Some(peer) = mesh {
            entry.tell_peer(&mut request.headers, peer, self.from);
        }
        let head = HttpHead {
            entry_point,
            tls: self.secure,
            host: &request.host,
            path: cleaned.path(&request),
            query: cleaned.query(&request),
            method: &request.method,
            headers: &request.headers,
            content_length: length_of(&request.headers),
            peer: self.from.to_canonical(),
            mesh: mesh.map(|peer| &**peer),
        };
        let verdicts = generation.table.explain(&head);
        let winner = verdicts.iter().find(|verdict| verdict.outcome == RouterOutcome::Wins);
        let winner = winner.map(|verdict| verdict.router);
        let redirect = entry.redirect.as_ref().filter(|redirect| {
            !redirect.spares(cleaned.path(&request))
                && !redirect.is_done(&request)
                && winner.is_none_or(|winner| winner.priority < redirect.priority)
        });
        if let Some(redirect) = redirect {
            explained["router"] = json!({ "name": "redirect@internal", "priority": redirect.priority });
        } else if let Some(winner) = winner {
            explained["router"] = winner_view(generation, entry_point, winner);
        }
        explained["others"] =
            others(generation, entry_point, &verdicts, if redirect.is_some() { None } else { winner });
        explained
    }
}

/// Who does not answer, in the order in which they are asked, and who is not asked at all; `winner` is absent where no
/// router answers.
fn others(
    generation: &Generation,
    entry_point: &str,
    verdicts: &[RouterVerdict<'_, Served>],
    winner: Option<&Router<Served>>,
) -> Value {
    let disabled = &generation.verdicts.routers;
    let using = |name: &str| generation.verdicts.using.get(name).map(Vec::as_slice).unwrap_or_default();
    let mut others: Vec<Value> = Vec::new();
    let mut told: BTreeSet<&str> = BTreeSet::new();
    for verdict in verdicts {
        let router = verdict.router;
        let reason = match (&verdict.outcome, winner) {
            (RouterOutcome::Wins, Some(_)) => continue,
            (RouterOutcome::Wins | RouterOutcome::Outranked, None) => {
                "matches too, but the redirect of the entry point comes first".to_owned()
            }
            (RouterOutcome::Outranked, Some(winner)) => outranked(winner, router),
            // A router of several entry points stands in the table once for each.
            (RouterOutcome::OtherEntryPoint, _) if using(&router.name).iter().any(|on| on == entry_point) => {
                continue;
            }
            // Said below.
            (RouterOutcome::OtherEntryPoint, _) if disabled.contains_key(&router.name) => continue,
            (RouterOutcome::OtherEntryPoint, _) => format!("is on {} only", using(&router.name).join(", ")),
            (RouterOutcome::OtherTls, _) if router.tls => "wants TLS".to_owned(),
            (RouterOutcome::OtherTls, _) => "is for requests without TLS".to_owned(),
            (RouterOutcome::Differs(difference), _) => format!("does not match {difference}"),
        };
        if told.insert(&router.name) {
            others.push(json!({
                "name": router.name, "priority": router.priority, "rule": router.rule, "reason": reason,
            }));
        }
    }
    let is_told = |name: &str| told.contains(name) || winner.is_some_and(|winner| winner.name == name);
    // A router at fault on another entry point only is asked here.
    for (name, why) in disabled.iter().filter(|(name, _)| !is_told(name)) {
        others.push(json!({ "name": name, "reason": format!("is disabled: {why}") }));
    }
    Value::Array(others)
}

/// What decides between two routers that both match.
fn outranked(winner: &Router<Served>, router: &Router<Served>) -> String {
    if winner.priority == router.priority {
        return format!("matches too, and at equal priority {} comes first by its name", winner.name);
    }
    format!(
        "matches too, with a lower priority than {} ({} < {})",
        winner.name, router.priority, winner.priority
    )
}

/// The router that answers, with what the request passes on its way.
fn winner_view(generation: &Generation, entry_point: &str, router: &Router<Served>) -> Value {
    let http = &generation.inputs.dynamic.http;
    let configured = http.routers.get(&router.name);
    let of_entry =
        generation.inputs.entry_points.get(entry_point).map(|settings| settings.middlewares.clone());
    let mut middlewares = Vec::new();
    for name in of_entry.unwrap_or_default() {
        let candidates = ["inline", "file"].map(|provider| qualified(&name, provider));
        let known = candidates.into_iter().find(|name| http.middlewares.contains_key(name));
        unfold(generation, &known.unwrap_or(name), &mut middlewares);
    }
    for name in configured.map(|router| router.middlewares.as_slice()).unwrap_or_default() {
        unfold(generation, name, &mut middlewares);
    }
    let name = configured.map(|router| router.service.clone()).unwrap_or_default();
    let mut service = json!({ "name": name });
    if let Some(found) = http.services.get(&name) {
        let mut of_service = Vec::new();
        found.middlewares.iter().for_each(|name| unfold(generation, name, &mut of_service));
        service["middlewares"] = Value::Array(of_service);
        service["to"] = json!(destinations(&found.kind));
    }
    json!({
        "name": router.name, "rule": router.rule, "priority": router.priority,
        "middlewares": middlewares, "service": service,
    })
}

/// A middleware, or those that a chain stands for.
fn unfold(generation: &Generation, name: &str, into: &mut Vec<Value>) {
    let provider = name.rsplit_once('@').map_or("", |(_, provider)| provider);
    match generation.inputs.dynamic.http.middlewares.get(name) {
        // Chains in a circle are refused when they are compiled, and routers with them.
        Some(Middleware::Chain(chain)) => {
            chain.middlewares.iter().for_each(|inner| unfold(generation, &qualified(inner, provider), into));
        }
        Some(middleware) => into.push(json!({ "name": name, "kind": middleware.kind() })),
        None => into.push(json!({ "name": name, "kind": "unknown" })),
    }
}

/// Servers or services that a service hands requests to.
fn destinations(kind: &ServiceKind) -> Vec<String> {
    match kind {
        ServiceKind::LoadBalancer(balancer) => balancer.servers.iter().map(|s| s.url.to_string()).collect(),
        ServiceKind::Weighted(weighted) => weighted.services.iter().map(|s| s.name.clone()).collect(),
        ServiceKind::HighestRandomWeight(weighted) => {
            weighted.services.iter().map(|s| s.name.clone()).collect()
        }
        ServiceKind::Mirroring(mirroring) => vec![mirroring.service.clone()],
        ServiceKind::Failover(failover) => vec![failover.service.clone(), failover.fallback.clone()],
        ServiceKind::Invalid(_) => Vec::new(),
    }
}

/// The answer as a person reads it.
fn plain(explained: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut lines = vec![format!("entry point {}:", text(&explained["entryPoint"]))];
    let router = &explained["router"];
    match (explained["refused"].as_str(), router.is_null()) {
        (Some(reason), _) => lines.push(format!("  answered 400 before any router is asked: {reason}")),
        (None, true) => lines.push("  no router answers: 404".to_owned()),
        (None, false) => {
            lines.push(format!("  router {} (priority {})", text(&router["name"]), router["priority"]));
            if let Some(rule) = router["rule"].as_str() {
                lines.push(format!("    rule {rule}"));
            }
            let service = &router["service"];
            for middleware in list(&router["middlewares"]).iter().chain(&list(&service["middlewares"])) {
                lines.push(format!(
                    "    middleware {} ({})",
                    text(&middleware["name"]),
                    text(&middleware["kind"])
                ));
            }
            if let Some(name) = service["name"].as_str() {
                let to: Vec<String> = list(&service["to"]).iter().map(text).collect();
                lines.push(format!("    service {name} → {}", to.join(", ")));
            }
        }
    }
    for other in list(&explained["others"]) {
        lines.push(format!("  not {}: {}", text(&other["name"]), text(&other["reason"])));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The entry point named, or all default ones that take HTTP.
fn entry_points(config: &Config, wanted: Option<&str>) -> Result<Vec<String>, String> {
    let names = || config.entry_points.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let Some(wanted) = wanted else {
        let takes_http = config
            .entry_points
            .iter()
            .filter(|(_, settings)| settings.as_default && settings.transport != EntryPointTransport::Udp);
        let mut found: Vec<String> = takes_http.map(|(name, _)| name.clone()).collect();
        if found.is_empty() || serves_tunnel(config) {
            found.push(TUNNEL.to_owned());
        }
        return Ok(found);
    };
    if wanted == TUNNEL || config.entry_points.contains_key(wanted) {
        return Ok(vec![wanted.to_owned()]);
    }
    Err(format!("there is no entry point `{wanted}`; there are: {}", names()))
}

/// `Name: value`.
fn field(line: &str) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = || format!("`{line}` is no header such as `Name: value`");
    let (name, value) = line.split_once(':').ok_or_else(wrong)?;
    let name = name.trim().parse().map_err(|_| wrong())?;
    let value = value.trim().parse().map_err(|_| wrong())?;
    Ok((name, value))
}
