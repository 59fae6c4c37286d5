//! The rule cases of `tests/data/ingress-cases.yaml`, decided without a socket.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use adit_config::dynamic::{Dynamic, Format};
use adit_route::{
    path::{normalize, normalize_query},
    router::{HttpHead, RouterSpec, RouterTable},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;

/// Routers of a dynamic file on one entry point; their target is their service.
fn table(dynamic: &Dynamic) -> (RouterTable<String>, BTreeSet<String>) {
    let mut disabled: BTreeSet<String> = BTreeSet::new();
    let mut specs = Vec::new();
    for (name, router) in &dynamic.http.routers {
        let is_known = |middleware: &String| dynamic.http.middlewares.contains_key(middleware);
        let is_whole = dynamic.http.services.contains_key(&router.service)
            && router.middlewares.iter().all(is_known)
            && router.fault.is_none();
        if !is_whole {
            disabled.insert(name.clone());
            continue;
        }
        specs.push(RouterSpec {
            name: name.clone(),
            rule: router.rule.clone(),
            priority: router.priority,
            provider: 0,
            is_internal: false,
            entry_points: vec!["web".to_owned()],
            tls: router.tls.is_some(),
            any_scheme: false,
            target: router.service.clone(),
        });
    }
    let (table, faults) = RouterTable::build(specs);
    disabled.extend(faults.into_iter().map(|fault| fault.name));
    (table, disabled)
}

/// Status and service of the answer.
fn answer(case: &Value, table: &RouterTable<String>) -> (u64, String) {
    let request = &case["request"];
    let text = |key: &str, default: &'static str| request[key].as_str().unwrap_or(default).to_owned();
    let target = text("target", "/");
    let (raw_path, raw_query) = target.split_once('?').unwrap_or((&target, ""));
    let entry_point = &case["entrypoint"];
    let query = normalize_query(raw_query, entry_point["encodeQuerySemicolons"] == true);
    let Ok(path) = normalize(raw_path, entry_point["sanitizePath"] != false) else {
        return (400, String::new());
    };
    let mut headers = HeaderMap::new();
    for line in request["headers"].as_array().into_iter().flatten() {
        let name = HeaderName::from_bytes(line[0].as_str().unwrap().as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(line[1].as_str().unwrap()).unwrap());
    }
    let head = HttpHead {
        entry_point: "web",
        tls: request["tls"] == true,
        host: &text("host", "example.com"),
        path: &path.routing_path,
        query: &query.routing,
        method: &Method::from_bytes(text("method", "GET").as_bytes()).unwrap(),
        headers: &headers,
        content_length: None,
        peer: text("peer", "127.0.0.1").parse().unwrap(),
        mesh: None,
    };
    match table.decide(&head) {
        Some(router) => (200, router.target.clone()),
        None => (404, String::new()),
    }
}

/// The backend that a service's first server is.
fn backend(config: &Value, service: &str) -> String {
    let url = &config["http"]["services"][service]["loadBalancer"]["servers"][0]["url"];
    url.as_str().unwrap_or_default().trim_start_matches("http://").trim_end_matches(".test").to_owned()
}

fn run(case: &Value) -> Result<(), String> {
    let expected = &case["expected"];
    let dynamic = Dynamic::parse(&case["config"].to_string(), "case.yml", Format::Yaml);
    if expected["file_rejected"] == true {
        return dynamic.map_or(Ok(()), |_| Err("the file was accepted".to_owned()));
    }
    let dynamic = dynamic.map_err(|problems| problems.to_string())?;
    let (table, disabled) = table(&dynamic);
    let names = expected["disabled_routers"].as_array().into_iter().flatten();
    let expected_disabled: BTreeSet<String> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
    if disabled != expected_disabled {
        return Err(format!("disabled: {disabled:?}, expected {expected_disabled:?}"));
    }
    let (status, service) = answer(case, &table);
    let found = backend(&case["config"], &service);
    let is_status = expected["status"].as_u64().is_none_or(|expected| expected == status);
    let is_backend = expected["backend"].as_str().is_none_or(|expected| expected == found);
    match is_status && is_backend {
        true => Ok(()),
        false => Err(format!("{status} from `{found}`, expected {expected}")),
    }
}

#[test]
fn every_rule_case_is_decided_as_expected() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/ingress-cases.yaml");
    let lists: BTreeMap<String, Vec<Value>> =
        serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = &lists["rule_cases"];
    assert!(cases.len() >= 90);
    let failures: Vec<String> =
        cases.iter().filter_map(|case| Some(format!("{}: {}", case["id"], run(case).err()?))).collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// The other lists hold files of every kind: each is read, or refused where the case says so.
#[test]
fn every_dynamic_file_of_the_cases_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/ingress-cases.yaml");
    let lists: BTreeMap<String, Vec<Value>> =
        serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut failures = Vec::new();
    for case in lists.values().flatten().filter(|case| is_dynamic(&case["config"])) {
        let read = Dynamic::parse(&case["config"].to_string(), "case.yml", Format::Yaml);
        match (read, case["expected"]["file_rejected"] == true) {
            (Ok(_), false) | (Err(_), true) => {}
            (Ok(_), true) => failures.push(format!("{}: accepted", case["id"])),
            (Err(problems), false) => failures.push(format!("{}: {problems}", case["id"])),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn is_dynamic(config: &Value) -> bool {
    config.as_object().is_some_and(|config| !config.contains_key("kubernetes"))
}
