//! What an edge refuses, what it says then, and what happens to those who leave.

use std::process::Stdio;

use crate::support::connector;
use crate::support::origin::Origin;
use crate::support::process::Process;
use crate::support::visitor::Visitor;
use crate::support::wait_for;
use crate::{start_connector, start_edge};

const HOST: &str = "a.home.test";
/// The account and tunnel of the tests' token with another secret: 32 times `y`.
const WRONG_SECRET: &str = "eyJhIjoiYWNjb3VudCIsInMiOiJlWGw1ZVhsNWVYbDVlWGw1ZVhsNWVYbDVlWGw1ZVhsNWVYbDVlWGw1ZVhrPSIsInQiOiIxMTExMTExMS0yMjIyLTMzMzMtNDQ0NC01NTU1NTU1NTU1NTUifQ==";
/// The tests' secret for a tunnel that the edge does not know.
const UNKNOWN_TUNNEL: &str = "eyJhIjoiYWNjb3VudCIsInMiOiJlSGg0ZUhoNGVIaDRlSGg0ZUhoNGVIaDRlSGg0ZUhoNGVIaDRlSGg0ZUhnPSIsInQiOiI5OTk5OTk5OS0yMjIyLTMzMzMtNDQ0NC01NTU1NTU1NTU1NTUifQ==";

#[test]
fn e4_a_wrong_secret_and_an_unknown_tunnel_are_refused_alike() {
    let mut edge = start_edge("127.0.0.1:0");
    let address = edge.edge().to_string();
    let authority = edge.folder().path().join("state/edge-ca.pem");
    let answers = [WRONG_SECRET, UNKNOWN_TUNNEL].map(|token| {
        let mut command = connector::command();
        command.args([
            "tunnel",
            "--no-autoupdate",
            "--protocol",
            "quic",
            "--edge",
            &address,
            "--edge",
            &address,
        ]);
        command.args(["--metrics", "127.0.0.1:0", "--cacert"]).arg(&authority);
        command.args(["run", "--token", token, "--url", "http://127.0.0.1:9"]).stdin(Stdio::null());
        let mut connector = Process::start("connector", &mut command);
        let line = connector.wait_for_line("refused");
        line.split("refused").nth(1).unwrap_or_default().to_owned()
    });
    assert_eq!(answers[0], answers[1], "which of the two it was is nobody's business");
    let log = edge.process().output();
    // The wrong secret as base64 inside the token and as it came over the wire.
    assert!(!log.contains(WRONG_SECRET) && !log.contains("yyyyyyyy"), "no secret in the log:\n{log}");
}

#[test]
fn e22_the_management_host_is_not_routed_by_name() {
    let origin = Origin::start();
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, &origin.url());
    let mut visitor = Visitor::connect(edge.entry_point("web")).expect("the edge accepts");
    for host in ["management.argotunnel.com", "home.test", "a.home.test.evil.example"] {
        let seen = visitor.get(host, "/").expect("the edge answers");
        assert_eq!(seen.status, 404, "{host}: {}", seen.head);
    }
    assert!(origin.seen().is_empty());
}

#[test]
fn the_page_of_a_failure_shows_the_id_that_the_log_has() {
    let mut edge = start_edge("127.0.0.1:0");
    let mut visitor = Visitor::connect(edge.entry_point("web")).expect("the edge accepts");
    let seen = visitor.get(HOST, "/").expect("the edge answers");
    assert_eq!(seen.status, 530, "{}", seen.head);
    // A ray is the id and the location.
    let id =
        seen.header("cf-ray").and_then(|ray| ray.split('-').next()).expect("the answer has a ray").to_owned();
    assert!(seen.text.contains(&id), "the page shows {id}:\n{}", seen.text);
    edge.process().wait_for_line(&id);
}

#[test]
fn a_head_that_is_too_large_is_refused_by_name_and_the_edge_lives() {
    let origin = Origin::start();
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, &origin.url());
    let mut visitor = Visitor::connect(edge.entry_point("web")).expect("the edge accepts");
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Large: {}\r\n\r\n", "a".repeat(1 << 20));
    // The edge stops reading before all of it is written, and may have closed by the time the answer is read.
    let _ = visitor.write(head.as_bytes());
    if let Ok(seen) = visitor.receive() {
        assert_eq!(seen.status, 431, "{}", seen.head);
    }
    assert!(origin.seen().is_empty());
    let mut visitor = Visitor::connect(edge.entry_point("web")).expect("the edge accepts");
    assert_eq!(visitor.get(HOST, "/").expect("the origin answers").status, 200);
}

#[test]
fn a_visitor_who_leaves_frees_the_origin() {
    let origin = Origin::start();
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, &origin.url());
    let mut visitor = Visitor::connect(edge.entry_point("web")).expect("the edge accepts");
    visitor
        .write(format!("GET /endless HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())
        .expect("the edge reads");
    wait_for("the origin to write", || (origin.endless_bytes() > 0).then_some(()));
    drop(visitor);
    wait_for("the origin to be told", || origin.endless_ended().then_some(()));
}

#[test]
fn a_stopping_edge_closes_its_listener_and_answers_what_it_holds() {
    let origin = Origin::start();
    let mut edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, &origin.url());
    let web = edge.entry_point("web");
    let mut visitor = Visitor::connect(web).expect("the edge accepts");
    std::thread::scope(|scope| {
        let held = scope.spawn(move || visitor.get(HOST, "/hold"));
        wait_for("the origin to have the request", || (!origin.seen().is_empty()).then_some(()));
        edge.process().signal("TERM");
        wait_for("the listener to close", || Visitor::connect(web).is_err().then_some(()));
        origin.release();
        let held =
            held.join().expect("the visitor does not panic").expect("the request in flight is answered");
        assert_eq!((held.status, held.text.as_str()), (200, "held"));
    });
    assert_eq!(edge.process().wait().code(), Some(0));
}

#[test]
fn a_token_given_on_the_command_line_does_not_stay_there() {
    let edge = start_edge("127.0.0.1:0");
    let address = edge.edge().to_string();
    let mut command = connector::command();
    command.args([
        "tunnel",
        "--protocol",
        "quic",
        "--edge",
        &address,
        "--metrics",
        "127.0.0.1:0",
        "--cacert",
    ]);
    command.arg(edge.folder().path().join("state/edge-ca.pem"));
    command.args(["run", "--token", crate::TOKEN, "--url", "http://127.0.0.1:9"]).stdin(Stdio::null());
    let mut process = Process::start("connector", &mut command);
    process.wait_for_line("Registered tunnel connection");
    let line = std::fs::read(format!("/proc/{}/cmdline", process.id())).expect("the process runs");
    let line = String::from_utf8_lossy(&line);
    assert!(line.contains("--url") && !line.contains(crate::TOKEN), "{line}");
}
