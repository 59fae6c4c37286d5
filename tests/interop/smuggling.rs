//! Requests that two parsers could read in two ways, against origins with parsers of their own.
//!
//! What must hold for every shape: no origin ever answers `/smuggled`, a refusal has a status and a name and closes the
//! connection, and the next visitor gets its own answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::ingress::{Ingress, serve};
use crate::relay::Relay;
use crate::shapes::{CASES, Case, Expect};
use crate::support::adit::Adit;
use crate::support::haproxy::Haproxy;
use crate::support::nginx::Nginx;
use crate::support::process::Process;
use crate::support::{
    PATIENCE, TempFolder, find_program, http_get, note, project_root, require, require_python_with,
};

#[test]
fn slow_smuggling_shapes_before_nginx() {
    if !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location / { add_header X-Uri $request_uri; return 200 \"\"; }");
    try_all("nginx", nginx.address());
}

#[test]
fn slow_smuggling_shapes_before_haproxy() {
    if !require("haproxy") {
        return;
    }
    let haproxy = Haproxy::start("http-request return status 200 hdr X-Uri %[url]");
    try_all("haproxy", haproxy.address());
}

#[test]
fn slow_smuggling_shapes_before_python() {
    let Some(python) = require_python_with("http.server") else { return };
    let (_server, address) = serve(&python, "uri_server.py", &[]);
    try_all("python", address);
}

#[test]
fn slow_smuggling_shapes_before_node_and_go() {
    let folder = TempFolder::new("origins");
    for program in ["node", "go"] {
        // Large packages, so that CI does without; the three above cover the same ground.
        let Some(found) = find_program(program) else {
            note(&format!("skipped: `{program}` is not installed"));
            continue;
        };
        let mut process = Process::start(program, &mut origin(program, &found, &folder));
        let line = process.wait_for_line("listening on ");
        let port = line.rsplit(' ').next().and_then(|port| port.trim().parse().ok()).expect("a port");
        try_all(program, SocketAddr::from(([127, 0, 0, 1], port)));
    }
}

/// What starts the server that is written in `program`'s language.
fn origin(program: &str, found: &Path, folder: &TempFolder) -> Command {
    let source = |name: &str| project_root().join("tests/peer").join(name);
    if program == "node" {
        let mut command = Command::new(found);
        command.arg(source("uri_server.js"));
        return command;
    }
    let binary = folder.path().join("uri_server");
    let mut build = Command::new(found);
    let built = build.arg("build").arg("-o").arg(&binary).arg(source("uri_server.go")).status();
    assert!(built.is_ok_and(|status| status.success()), "go builds its server");
    Command::new(binary)
}

fn try_all(name: &str, origin: SocketAddr) {
    let relay = Relay::to(origin);
    let adit = Ingress::to(&relay.url()).start();
    let web = adit.entry_point("web");
    let failures: Vec<String> = CASES
        .iter()
        .filter_map(|case| attempt(&adit, web, &relay, case).err().map(|why| format!("{}: {why}", case.name)))
        .collect();
    assert!(failures.is_empty(), "{} shapes differ before {name}:\n{}", failures.len(), failures.join("\n"));
}

fn attempt(adit: &Adit, web: SocketAddr, relay: &Relay, case: &Case) -> Result<(), String> {
    // Heads are refused by the connection, content by the request that it belongs to.
    let count = |reason| {
        let metrics = ["adit_proxy_refused_total", "adit_requests_failed_total"];
        metrics.map(|metric| adit.metric(&format!("{metric}{{reason=\"{reason}\"}}"))).iter().sum::<f64>()
    };
    let before = match case.expect {
        Expect::Refused(_, reason) | Expect::Broken(reason) => count(reason),
        Expect::Answered(_) | Expect::AnsweredThen(..) => 0.0,
    };
    let answer = exchange(web, case.bytes).map_err(|error| format!("not closed: {error}"))?;
    let (requests, responses) = relay.take();
    let statuses = statuses(&answer);
    let seen = || {
        let [answer, requests] = [&answer, &requests].map(|b| String::from_utf8_lossy(b).into_owned());
        format!("answered {statuses:?}: {answer:?}; the origin was sent {requests:?}")
    };
    if uris(&responses).iter().any(|uri| uri.contains("smuggled")) {
        return Err(format!("the origin answered the smuggled request; {}", seen()));
    }
    let as_expected = match case.expect {
        Expect::Refused(status, _) => statuses == [status] && requests.is_empty(),
        Expect::Broken(_) => statuses == [400] && uris(&responses).len() <= 1,
        Expect::Answered(uris_wanted) => {
            uris(&responses) == uris_wanted && statuses == vec![200; uris_wanted.len()]
        }
        Expect::AnsweredThen(uris_wanted, status) => {
            let wanted = [vec![200; uris_wanted.len()], vec![status]].concat();
            uris(&responses) == uris_wanted && statuses == wanted
        }
    };
    if !as_expected {
        return Err(seen());
    }
    if let Expect::Refused(_, reason) | Expect::Broken(reason) = case.expect
        && count(reason) < before + 1.0
    {
        return Err(format!("not counted as {reason}; {}", seen()));
    }
    // The next visitor, on whatever connection to the origin is left.
    let next = http_get(web, "/next").ok_or("the next visitor got no answer")?;
    let (_, responses) = relay.take();
    if next.status != 200 || !next.head.contains("/next") || uris(&responses) != ["/next"] {
        return Err(format!("the next visitor got {next:?}"));
    }
    Ok(())
}

/// Sends bytes and reads until adit closes.
fn exchange(web: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(web)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Closed while more of ours was on its way: what was answered had arrived before.
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
        _ => Ok(answer),
    }
}

fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let codes = text.split("HTTP/1.1 ").skip(1);
    codes.filter_map(|rest| rest.get(..3)?.parse().ok()).filter(|code| *code != 100).collect()
}

/// Targets that the origin answered.
fn uris(responses: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(responses).into_owned();
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(name, _)| name.eq_ignore_ascii_case("x-uri")).map(|(_, uri)| uri.to_owned()).collect()
}
