//! Reload and shutdown while visitors are there.

use crate::support::load::{Load, Outcome};
use crate::support::wait_for;
use crate::{edge_configuration, start_connector, start_edge};

#[test]
fn a_bad_reload_keeps_the_old_state_and_says_so() {
    let mut edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    edge.configure("edge: { listen: nonsense }\n");
    edge.process().signal("HUP");
    wait_for("the refusal to be counted", || {
        (edge.metric("adit_config_reloads_total{result=\"refused\"}") >= 1.0).then_some(())
    });
    assert!(edge.get("/").body.contains("The last reload was refused"));
    let answer = crate::support::curl::curl(edge.entry_point("web"), "http://a.home.test/", &[]);
    assert_eq!(answer.status, 200, "{answer:?}");
    edge.configure(&edge_configuration("127.0.0.1:0").replace("*.home.test", "*.moved.test"));
    wait_for("the new hosts, by file watching alone", || {
        let answer = crate::support::curl::curl(edge.entry_point("web"), "http://a.moved.test/", &[]);
        (answer.status == 200).then_some(())
    });
    assert_eq!(edge.status()["reload_problem"], serde_json::Value::Null);
}

#[test]
fn slow_reloads_and_a_leaving_connector_cost_no_request() {
    let edge = start_edge("127.0.0.1:0");
    let first = start_connector(&edge, "hello_world");
    let load = Load::start(edge.entry_point("web"), "a.home.test", "/", 8);
    let answered = || edge.metric("adit_requests_total{class=\"2xx\"}");
    for round in 0..3 {
        let count = answered();
        edge.configure(&format!("{}# {round}\n", edge_configuration("127.0.0.1:0")));
        wait_for("requests after the reload", || (answered() > count + 100.0).then_some(()));
    }
    let ca = edge.folder().path().join("state/edge-ca.pem").display().to_string();
    let configuration = crate::connector_configuration(&edge, &ca, "hello_world");
    let second = crate::Adit::start("connector", &configuration);
    edge.wait_for_connections(4);
    assert_eq!(first.stop(), Some(0), "the first connector unregisters and leaves");
    edge.wait_for_connections(2);
    let count = answered();
    wait_for("requests through the second", || (answered() > count + 100.0).then_some(()));
    let outcomes = load.finish();
    let failed: Vec<_> = outcomes.iter().filter(|outcome| **outcome != Outcome::Answered(200)).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), outcomes.len());
    drop(second);
}

#[test]
fn a_stopping_edge_finishes_what_it_has_accepted() {
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    let load = Load::start(edge.entry_point("web"), "a.home.test", "/", 8);
    wait_for("some load", || (edge.metric("adit_requests_total{class=\"2xx\"}") > 50.0).then_some(()));
    assert_eq!(edge.stop(), Some(0));
    let outcomes = load.finish();
    let broken = outcomes.iter().filter(|o| !matches!(o, Outcome::Answered(200) | Outcome::Refused)).count();
    // Connections in the kernel's backlog when the listener closes are reset by it: at most one a worker.
    assert!(broken <= 8, "{broken} of {} broke", outcomes.len());
}

#[test]
fn changed_settings_of_an_entry_point_keep_its_socket_and_its_visitors() {
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    let web = edge.entry_point("web");
    let load = Load::start(web, "a.home.test", "/", 4);
    let reloads = || edge.metric("adit_config_reloads_total{result=\"ok\"}");
    for seconds in [20, 30, 40] {
        let before = reloads();
        let settings = format!(
            "limits: {{ connections: {seconds}00 }}\nentryPoints:\n  web: {{ transport: {{ respondingTimeouts: {{ idleTimeout: {seconds}s }} }}, "
        );
        edge.configure(&edge_configuration("127.0.0.1:0").replace("entryPoints:\n  web: { ", &settings));
        wait_for("the reload", || (reloads() > before).then_some(()));
    }
    assert_eq!(edge.entry_point("web"), web, "the socket stays");
    assert_eq!(edge.metric("adit_config_reloads_total{result=\"refused\"}"), 0.0);
    let outcomes = load.finish();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Answered(200)), "{outcomes:?}");
}

#[test]
fn a_connector_that_cannot_be_replaced_goes_on() {
    let edge = start_edge("127.0.0.1:0");
    let mut connector = start_connector(&edge, "hello_world");
    connector.configure(&crate::connector_configuration(&edge, "/does/not/exist.pem", "hello_world"));
    connector.process().signal("HUP");
    wait_for("the refusal", || {
        (connector.metric("adit_config_reloads_total{result=\"refused\"}") >= 1.0).then_some(())
    });
    let answer = crate::support::curl::curl(edge.entry_point("web"), "http://a.home.test/", &[]);
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn a_rotated_secret_reaches_the_connector_in_the_same_process() {
    let configuration = |secret: &str| {
        format!(
            "entryPoints:\n  web: {{ address: \"127.0.0.1:0\" }}\nedge:\n  listen: \"127.0.0.1:0\"\n  public: [ web ]\n  \
             tunnels:\n    - {{ name: home, id: {}, secret: \"{secret}\", hostnames: [ \"*.home.test\" ] }}\n\
             tunnel:\n  name: home\n  connections: 1\n  ingress: [ {{ service: hello_world }} ]\n\
             admin: {{ address: \"127.0.0.1:0\" }}\n",
            crate::TUNNEL_ID
        )
    };
    let adit = crate::Adit::start("both", &configuration(crate::SECRET));
    let ask = || crate::support::curl::curl(adit.entry_point("web"), "http://a.home.test/", &[]).status;
    wait_for("the tunnel", || (ask() == 200).then_some(()));
    adit.configure(&configuration("eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXk="));
    wait_for("the reload", || (adit.metric("adit_config_reloads_total{result=\"ok\"}") >= 1.0).then_some(()));
    wait_for("the tunnel with its new secret", || (ask() == 200).then_some(()));
    assert!(adit.status()["tunnel"]["stopped"].is_null());
}

#[test]
fn slow_what_a_process_of_a_test_has_started_ends_with_it() {
    use std::process::{Command, Stdio};

    let script = "for n in 1 2; do sh -c 'echo worker=$$; exec sleep 600' & done; wait";
    // A master that ends its workers, and one that does not and refuses to go.
    for trap in ["trap 'kill 0; exit' TERM", "trap '' TERM"] {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", &format!("{trap}; {script}")]).stdin(Stdio::null());
        let master = crate::support::process::Process::start("master", &mut command);
        let workers: Vec<String> = wait_for("two workers", || {
            let output = master.output();
            let workers = output.lines().filter_map(|line| line.strip_prefix("worker="));
            let workers: Vec<String> = workers.map(str::to_owned).collect();
            (workers.len() == 2).then_some(workers)
        });
        let there = |worker: &&String| {
            let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
            stat.contains("(sleep) S") || stat.contains("(sh) S")
        };
        wait_for("both to sleep", || (workers.iter().filter(there).count() == 2).then_some(()));
        drop(master);
        wait_for("both to end", || workers.iter().all(|worker| !there(&worker)).then_some(()));
    }
}
