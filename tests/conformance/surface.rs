//! C39 to C41: exit codes and the admin endpoint.

use std::process::Stdio;

use serde_json::Value;

use crate::support::connector::{Connector, Options, command};
use crate::support::edge::Edge;
use crate::support::process::Process;
use crate::support::{TempFolder, http_get, require_python, wait_for};

#[test]
fn c39_an_unusable_token_exits_with_255() {
    let mut command = command();
    command.args(["tunnel", "--no-autoupdate", "run", "--token", "not-a-token"]).stdin(Stdio::null());
    let mut process = Process::start("connector", &mut command);
    assert_eq!(process.wait().code(), Some(255), "{}", process.output());
    assert!(!process.output().contains("not-a-token"), "not even a bad token is printed");
}

#[test]
fn c39_invalid_ingress_exits_with_1_and_valid_ingress_with_0() {
    let folder = TempFolder::new("ingress");
    for (name, rules, code) in [
        (
            "good.yml",
            "- { hostname: a.example, service: 'http://127.0.0.1:1' }\n- { service: 'http_status:404' }\n",
            0,
        ),
        ("no-catch-all.yml", "- { hostname: a.example, service: 'http://127.0.0.1:1' }\n", 1),
        (
            "port.yml",
            "- { hostname: 'a.example:80', service: 'http://127.0.0.1:1' }\n- { service: 'http_status:404' }\n",
            1,
        ),
        (
            "regex.yml",
            "- { path: '*bad', service: 'http://127.0.0.1:1' }\n- { service: 'http_status:404' }\n",
            1,
        ),
        ("path.yml", "- { service: 'http://127.0.0.1:1/path' }\n", 1),
        ("status.yml", "- { service: 'http_status:1000' }\n", 1),
    ] {
        let file = folder.write(name, format!("ingress:\n{rules}"));
        let mut command = command();
        command.args(["tunnel", "--config"]).arg(file).args(["ingress", "validate"]).stdin(Stdio::null());
        let mut process = Process::start("validate", &mut command);
        assert_eq!(process.wait().code(), Some(code), "{name}: {}", process.output());
        assert_eq!(process.output().contains("OK"), code == 0, "{name}: {}", process.output());
    }
}

#[test]
fn c40_the_admin_endpoint_answers_as_scripts_expect() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let mut connector = Connector::start(&edge, "http://127.0.0.1:9", Options::default());
    let registered = edge.wait_for_registration();
    let ready = wait_for("/ready", || connector.ready().filter(|(status, _)| *status == 200)).1;
    assert_eq!(ready["status"], 200);
    assert_eq!(ready["readyConnections"], 1);
    let connector_id = ready["connectorId"].as_str().unwrap_or_default().replace('-', "");
    assert_eq!(connector_id, registered["client"]);

    let admin = connector.admin();
    let healthcheck = http_get(admin, "/healthcheck").expect("the admin endpoint answers");
    assert_eq!((healthcheck.status, healthcheck.body.as_str()), (200, "OK\n"));
    let json = |path: &str| -> Value {
        let answer = http_get(admin, path).expect("the admin endpoint answers");
        serde_json::from_str(&answer.body).unwrap_or(Value::Null)
    };
    let config = json("/config");
    assert_eq!(config["version"], -1, "{config}");
    assert_eq!(config["config"]["ingress"][0]["service"], "http://127.0.0.1:9");
    let diagnosis = json("/diag/tunnel");
    assert_eq!(diagnosis["tunnelID"], "11111111-2222-3333-4444-555555555555");
    assert_eq!(diagnosis["connections"][0]["isConnected"], true);
    assert_eq!(diagnosis["connections"][0]["protocol"], 1, "QUIC");

    edge.exchange(&serde_json::json!({"do": "request", "id": "failing"}));
    let metrics = http_get(admin, "/metrics").expect("the admin endpoint answers").body;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    assert_eq!(value("cloudflared_tunnel_ha_connections"), Some(1.0));
    assert_eq!(value("cloudflared_tunnel_total_requests"), Some(1.0));
    assert_eq!(value("cloudflared_tunnel_request_errors"), Some(1.0));
    for name in [
        "build_info{",
        "cloudflared_tunnel_concurrent_requests_per_tunnel",
        "cloudflared_tunnel_server_locations{",
        "cloudflared_tunnel_tunnel_register_success{",
        "cloudflared_orchestration_config_version",
        "cloudflared_config_local_config_pushes",
        "quic_client_total_connections",
    ] {
        assert!(value(name).is_some(), "no metric {name} in\n{metrics}");
    }
}

#[test]
fn c41_the_default_admin_port_is_one_of_five() {
    let Some(python) = require_python() else { return };
    let edge = Edge::start(&python, 2);
    let mut command = command();
    command.args(["tunnel", "--no-autoupdate", "--no-prechecks", "--protocol", "quic", "--cacert"]);
    command.arg(edge.certificates().authority()).args([
        "--edge",
        &edge.addresses()[0],
        "--edge",
        &edge.addresses()[1],
    ]);
    command.args(["run", "--token", crate::support::connector::TOKEN, "--url", "http://127.0.0.1:9"]);
    let mut process = Process::start("connector", command.stdin(Stdio::null()));
    let line = process.wait_for_line("Starting metrics server on");
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()?.parse::<u16>().ok());
    assert!(port.is_some_and(|port| (20_241..=20_245).contains(&port)), "{line}");
}
