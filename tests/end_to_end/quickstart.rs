//! The first thing a newcomer does.

use std::process::Command;

use crate::support::adit::Adit;
use crate::support::curl::curl;
use crate::support::{TempFolder, project_root, require, wait_for};

/// The shipped file with ports of the system's choice.
fn configuration() -> String {
    let path = project_root().join("config/quickstart.yaml");
    let text = std::fs::read_to_string(path).expect("the quickstart configuration is there");
    [":8080\"", ":7844\"", ":20241\""].iter().fold(text, |text, port| text.replace(port, ":0\""))
}

fn start() -> Adit {
    let adit = Adit::start("quickstart", &configuration());
    adit.wait_for_connections(2);
    adit
}

#[test]
fn a_request_crosses_the_whole_way_in_one_process() {
    if !require("curl") {
        return;
    }
    let adit = start();
    let web = adit.entry_point("web");
    let seen = curl(web, "http://hello.localhost:8080/?a=b", &["-H", "X-Mine: 1"]);
    assert_eq!((seen.status, seen.version.as_str()), (200, "1.1"), "{seen:?}");
    let text = seen.text();
    for part in [
        "Hello from behind the tunnel",
        "tunnel     quickstart",
        "GET /?a=b",
        "Host: hello.localhost",
        "x-mine: 1",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let seen = curl(web, "http://other.localhost:8080/", &[]);
    assert_eq!(seen.status, 404, "the connector's catch-all rule");
    assert_eq!(adit.stop(), Some(0));
}

#[test]
fn standard_output_says_what_listens_and_what_to_try() {
    let mut adit = start();
    let output = adit.process().output();
    for part in [
        "visitors    http://127.0.0.1:",
        "connectors  127.0.0.1:",
        "status      http://127.0.0.1:",
        "curl http://hello.localhost:",
    ] {
        assert!(output.contains(part), "{part:?} in {output}");
    }
    let lower = output.to_lowercase();
    assert!(!lower.contains("secret"), "no secret is printed: {output}");
}

#[test]
fn the_status_page_and_adit_status_tell_of_the_connections() {
    let adit = start();
    let page = adit.get("/");
    assert!(page.status == 200 && page.body.contains("Tunnel quickstart at this edge"), "{page:?}");
    let ready = wait_for("readiness", || Some(adit.get("/ready")).filter(|answer| answer.status == 200));
    assert!(ready.body.contains("\"readyConnections\":2"), "{ready:?}");
    let address = adit.status()["admin"].as_str().expect("the admin address").to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    let output = command.args(["status", "--admin", &address]).output().expect("adit runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("edge, tunnel quickstart: 2 connections"), "{text}");
}

#[test]
fn check_prints_the_effective_configuration_and_all_problems() {
    let check = |text: &str| {
        let folder = TempFolder::new("check");
        let path = folder.write("adit.yaml", text);
        let output = Command::new(env!("CARGO_BIN_EXE_adit"))
            .arg("check")
            .arg("-c")
            .arg(path)
            .output()
            .expect("adit runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, text) = check(&configuration());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("quickstart"), "{text}");
    let (code, text) = check("entryPoint:\n  web: { address: \"127.0.0.1:0\" }\nedge:\n  listen: nowhere\n");
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("adit.yaml:1:1") && text.contains("entryPoints"), "nearest key: {text}");
    assert!(
        text.contains("adit.yaml:4:11") && text.contains("nowhere"),
        "the second problem as well: {text}"
    );
}
