//! Names of the mesh in rules: a peer or group that does not exist matches nobody, and its negation everybody.

use adit_config::dynamic::Dynamic;
use adit_route::mesh::MeshPeers;
use adit_route::rule::{Call, Expression, HTTP_MATCHERS, TCP_MATCHERS, UDP_MATCHERS};

use super::generation::Inputs;

/// Disables routers that would let everybody in because a name is wrong or gone: `!MeshGroup(…)` of nobody.
pub(crate) fn disable_open(dynamic: &mut Dynamic, peers: Option<&MeshPeers>) {
    let http = dynamic.http.routers.values_mut().map(|router| (&router.rule, &mut router.fault));
    let http = http.map(|(rule, fault)| (rule, fault, &HTTP_MATCHERS[..]));
    let tcp = dynamic.tcp.routers.values_mut().map(|router| (&router.rule, &mut router.fault));
    let tcp = tcp.map(|(rule, fault)| (rule, fault, &TCP_MATCHERS[..]));
    let udp = dynamic.udp.routers.values_mut().map(|router| (&router.rule, &mut router.fault));
    let udp = udp.map(|(rule, fault)| (rule, fault, &UDP_MATCHERS[..]));
    for (rule, fault, matchers) in http.chain(tcp).chain(udp) {
        let open = unknown(rule, matchers, peers).into_iter().find(|(_, is_positive)| !is_positive);
        if let Some((name, _)) = open.filter(|_| fault.is_none()) {
            *fault = Some(format!("rule `{rule}`: {name}, and what is not in it is everybody"));
        }
    }
}

/// A line for every name that no rule can match.
pub(super) fn warnings(inputs: &Inputs) -> Vec<String> {
    let Dynamic { http, tcp, udp, .. } = &inputs.dynamic;
    let (http, tcp, udp) = (&http.routers, &tcp.routers, &udp.routers);
    let http = http.iter().map(|(name, router)| (name, &router.rule, &HTTP_MATCHERS[..]));
    let tcp = tcp.iter().map(|(name, router)| (name, &router.rule, &TCP_MATCHERS[..]));
    let udp = udp.iter().map(|(name, router)| (name, &router.rule, &UDP_MATCHERS[..]));
    let of_router = |(router, rule, matchers): (&String, &String, &[&'static str])| {
        let found = unknown(rule, matchers, inputs.mesh.as_deref()).into_iter();
        found.map(|(name, _)| format!("router {router}: {name}")).collect::<Vec<_>>()
    };
    http.chain(tcp).chain(udp).flat_map(of_router).collect()
}

/// Names that stand for nobody, with whether they are not negated.
fn unknown(rule: &str, matchers: &[&'static str], peers: Option<&MeshPeers>) -> Vec<(String, bool)> {
    // Most rules have none of these matchers: one look saves reading them twice.
    if !rule.to_ascii_lowercase().contains("mesh") {
        return Vec::new();
    }
    // A rule that cannot be read is told elsewhere.
    let Ok(expression) = Expression::parse(rule, matchers) else { return Vec::new() };
    let is_unknown = |call: &Call| {
        let name = call.arguments.first()?;
        let kind = match call.matcher {
            "MeshPeer" => "peer",
            "MeshGroup" => "group",
            _ => return None,
        };
        let is_known = peers.is_some_and(|peers| match kind {
            "peer" => peers.has_peer(name),
            _ => peers.has_group(name),
        });
        (!is_known).then(|| format!("there is no {kind} `{name}` in the mesh"))
    };
    expression
        .calls()
        .into_iter()
        .filter_map(|(call, is_positive)| Some((is_unknown(call)?, is_positive)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use adit_config::{Config, PeerKey};

    use super::*;

    fn inputs(rules: &[&str]) -> Inputs {
        let routers: String = rules
            .iter()
            .enumerate()
            .map(|(index, rule)| format!("    r{index}: {{ rule: \"{rule}\", service: s }}\n"))
            .collect();
        let key = PeerKey([9; 32]);
        let text = format!(
            "mesh: {{ private-key: {key}, address: 10.9.0.1/24, peers: {{ laptop: {{ public-key: {key}, \
             allowed-ips: 10.9.0.2, groups: [admins] }} }} }}\nhttp:\n  routers:\n{routers}"
        );
        let config = Config::parse(&text, "t.yaml", &|_: &Path| Err(String::new())).unwrap();
        let mesh = config.mesh.as_ref().map(|mesh| Arc::new(MeshPeers::new(mesh)));
        Inputs { dynamic: config.dynamic, mesh, ..Inputs::default() }
    }

    #[test]
    fn a_name_of_nobody_is_told_and_its_negation_is_not_served() {
        let mut inputs = inputs(&[
            "MeshGroup(`admins`) && MeshPeer(`laptop`)",
            "MeshGroup(`adminz`) || Path(`/x`)",
            "!MeshPeer(`lapdog`)",
            "!(Path(`/x`) || !MeshGroup(`guests`))",
            "!MeshGroup(`admins`)",
        ]);
        let warnings = warnings(&inputs);
        assert_eq!(
            warnings,
            [
                "router r1: there is no group `adminz` in the mesh",
                "router r2: there is no peer `lapdog` in the mesh",
                "router r3: there is no group `guests` in the mesh",
            ]
        );
        let peers = inputs.mesh.clone();
        disable_open(&mut inputs.dynamic, peers.as_deref());
        let faults = |inputs: &Inputs| -> Vec<String> {
            let routers = inputs.dynamic.http.routers.iter();
            routers.filter(|(_, router)| router.fault.is_some()).map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(faults(&inputs), ["r2"]);
        // Without a mesh nobody is anything.
        disable_open(&mut inputs.dynamic, None);
        assert_eq!(faults(&inputs), ["r2", "r4"]);
    }
}
