//! Every case of `tests/data/ingress-cases.yaml` against the real binary: a Traefik dynamic file in, answers out.
//!
//! The servers behind it are the ones that the file describes (its head says what each answers); nothing real has their
//! behaviour, so they are made here.

#[path = "ingress/case.rs"]
mod case;
#[path = "ingress/daemon.rs"]
mod daemon;
#[path = "ingress/peers.rs"]
mod peers;
#[path = "ingress/servers.rs"]
mod servers;
mod support;
#[path = "ingress/transport.rs"]
mod transport;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use case::Case;
use servers::Servers;

/// Runs all cases of one list, four at a time, and reports every one that differs.
fn run(list: &str) {
    run_by(list, |case, servers| Case::new(case).run(servers));
}

fn run_by(list: &str, run: impl Fn(&Value, &Servers) -> Result<(), String> + Sync) {
    let all: BTreeMap<String, Vec<Value>> = load();
    let wanted = std::env::var("ADIT_CASE").ok();
    let cases: Vec<&Value> = all[list]
        .iter()
        .filter(|case| wanted.as_deref().is_none_or(|id| case["id"].as_str().is_some_and(|c| c.contains(id))))
        .collect();
    let next = AtomicUsize::new(0);
    let failures = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let servers = Servers::start();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = run(case, &servers) {
                        failures.lock().expect("no one panics").push(format!("{}: {why}", case["id"]));
                    }
                }
            });
        }
    });
    let mut failures = failures.lock().expect("no one panics").clone();
    failures.sort();
    assert!(
        failures.is_empty(),
        "{} of {} cases differ:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

fn load() -> BTreeMap<String, Vec<Value>> {
    let path = support::project_root().join("tests/data/ingress-cases.yaml");
    let text = std::fs::read_to_string(path).expect("the cases are there");
    // YAML 1.2: `n` is a name, not a refusal.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(&text, options).expect("the cases are YAML")
}

#[test]
fn slow_rule_cases() {
    run("rule_cases");
}

#[test]
fn slow_middleware_cases() {
    run("middleware_cases");
}

#[test]
fn slow_routing_and_service_cases() {
    run("routing_and_service_cases");
}

#[test]
fn slow_transport_tls_and_reload_cases() {
    // Those about Kubernetes have objects in place of a file; they belong to the crate that reads objects.
    run_by("transport_tls_reload_cases", |case, servers| transport::run(case, servers).unwrap_or(Ok(())));
}
