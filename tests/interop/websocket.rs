//! WebSocket over HTTP/1.1: what comes back through adit is what comes back without it.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use crate::ingress::{Ingress, ask, assert_all_ok, serve};
use crate::support::{TempFolder, note, require_python_with};

#[test]
fn slow_websocket_frames_come_back_as_they_do_directly() {
    let Some(python) = require_python_with("websockets") else { return };
    let (_server, address) = serve(&python, "websocket_echo.py", &[]);
    let adit = Ingress::to(&format!("http://{address}")).start();
    let web = adit.entry_point("web").to_string();
    assert_all_ok(&ask(&python, "websocket_client.py", &[&address.to_string(), &web]));
}

/// The Autobahn suite needs Python 2.7, which Debian no longer has: it runs where `ADIT_WSTEST` names its `wstest`.
/// `ADIT_WSTEST_CASES` chooses cases, `*` for all of them (20 minutes); without it the ones on limits and compression are
/// left out.
#[test]
fn slow_autobahn_cases_are_no_worse_through_adit() {
    let Some(wstest) = std::env::var_os("ADIT_WSTEST") else {
        return note("skipped: ADIT_WSTEST does not name the wstest program of the Autobahn suite");
    };
    let Some(python) = require_python_with("websockets") else { return };
    let (_server, address) = serve(&python, "websocket_echo.py", &[]);
    let adit = Ingress::to(&format!("http://{address}")).start();
    let web = adit.entry_point("web").to_string();
    let run = |server: &str| {
        let folder = TempFolder::new("autobahn");
        let cases =
            std::env::var("ADIT_WSTEST_CASES").unwrap_or("1.* 2.* 3.* 4.* 5.* 6.* 7.* 10.*".to_owned());
        let cases: Vec<&str> = cases.split(' ').collect();
        let specification = json!({
            "outdir": folder.path(), "cases": cases, "exclude-cases": [], "exclude-agent-cases": {},
            "servers": [{ "agent": "agent", "url": format!("ws://{server}") }],
        });
        let specification = folder.write("fuzzingclient.json", specification.to_string());
        let mut command = Command::new(&wstest);
        command.args(["-m", "fuzzingclient", "-s"]).arg(specification).current_dir(folder.path());
        let output = command.output().expect("wstest starts");
        let report = std::fs::read_to_string(folder.path().join("index.json"));
        let report = report.unwrap_or_else(|_| String::from_utf8_lossy(&output.stderr).into_owned());
        let report: Value = serde_json::from_str(&report).expect("a report in JSON");
        let results: BTreeMap<String, Value> =
            serde_json::from_value(report["agent"].clone()).expect("a result for each case");
        results
    };
    let (direct, through) = (run(&address.to_string()), run(&web));
    assert_eq!(direct.len(), through.len());
    let worse: Vec<String> = through
        .iter()
        .filter(|(case, result)| badness(result) > badness(&direct[*case]))
        .map(|(case, result)| format!("{case}: {result}, directly {}", direct[case]))
        .collect();
    assert!(worse.is_empty(), "{} of {} cases are worse:\n{}", worse.len(), through.len(), worse.join("\n"));
}

fn badness(result: &Value) -> u8 {
    let of = |name: &str| match result[name].as_str() {
        Some("OK" | "INFORMATIONAL" | "UNIMPLEMENTED") => 0,
        Some("NON-STRICT") => 1,
        _ => 2,
    };
    of("behavior").max(of("behaviorClose"))
}
