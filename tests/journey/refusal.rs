//! What does not cross, and how the visitor learns why.

use std::process::Stdio;

use crate::support::connector::{self, TOKEN};
use crate::support::daemon::{Daemon, edge_yaml};
use crate::support::edge::Edge;
use crate::support::origin::Origin;
use crate::support::process::Process;
use crate::support::visitor::{Visitor, visit};
use crate::support::{require_python, wait_for};
use crate::way::{HOST, HOSTNAMES, Kind, Way, binary, certificates, connect};

/// The account and tunnel of the tests' token with another secret: 32 times `y`.
const WRONG_SECRET: &str = "eyJhIjoiYWNjb3VudCIsInMiOiJlWGw1ZVhsNWVYbDVlWGw1ZVhsNWVYbDVlWGw1ZVhsNWVYbDVlWGw1ZVhrPSIsInQiOiIxMTExMTExMS0yMjIyLTMzMzMtNDQ0NC01NTU1NTU1NTU1NTUifQ==";

/// The tests' secret for a tunnel that the edge does not know.
const UNKNOWN_TUNNEL: &str = "eyJhIjoiYWNjb3VudCIsInMiOiJlSGg0ZUhoNGVIaDRlSGg0ZUhoNGVIaDRlSGg0ZUhoNGVIaDRlSGg0ZUhnPSIsInQiOiI5OTk5OTk5OS0yMjIyLTMzMzMtNDQ0NC01NTU1NTU1NTU1NTUifQ==";

#[test]
fn a_host_that_nobody_serves_is_not_found() {
    let origin = Origin::start();
    let Some(way) = Way::start(Kind::Adit, &origin.url()) else { return };
    let before = origin.seen().len();
    for host in
        ["other.example", "home.example", "app.home.example.evil.example", "management.argotunnel.com"]
    {
        let seen = visit(way.web, host, "/").expect("the edge answers");
        assert_eq!(seen.status, 404, "{host}: {}", seen.head);
    }
    assert_eq!(origin.seen().len(), before, "none of them reached the origin");
}

#[test]
fn a_tunnel_that_is_down_says_which_hop_failed() {
    let certificates = certificates();
    let mut edge = Daemon::start(&edge_yaml(&certificates, "127.0.0.1:0", HOSTNAMES));
    let web = edge.address("visitors", "entry point web");
    let seen = visit(web, HOST, "/").expect("the edge answers");
    assert_eq!(seen.status, 530, "{}", seen.head);
    assert!(seen.text.to_lowercase().contains("tunnel"), "{}", seen.text);
    // The page's request id is the one in the log.
    let id = ["cf-ray", "x-request-id"].iter().find_map(|name| seen.header(name).into_iter().next());
    let id = id.expect("the answer carries a request id");
    // A ray is the id and the location.
    let id = id.split('-').next().unwrap_or_default().to_owned();
    assert!(seen.text.contains(&id), "the page shows {id}:\n{}", seen.text);
    edge.process().wait_for_line(&id);
}

#[test]
fn an_origin_that_is_down_is_a_bad_gateway() {
    let certificates = certificates();
    let mut edge = Daemon::start(&edge_yaml(&certificates, "127.0.0.1:0", HOSTNAMES));
    let adit = binary(Kind::Adit).expect("adit is built");
    let _connector =
        connect(&adit, &certificates, edge.address("connectors", ""), "http://127.0.0.1:9", "1s");
    let web = edge.address("visitors", "entry point web");
    let seen =
        wait_for("the tunnel to be up", || visit(web, HOST, "/").ok().filter(|seen| seen.status != 530));
    assert_eq!(seen.status, 502, "{}", seen.head);
    assert!(seen.text.to_lowercase().contains("origin"), "the page names the hop:\n{}", seen.text);
}

#[test]
fn e4_a_wrong_secret_and_an_unknown_tunnel_are_refused_alike() {
    let certificates = certificates();
    let mut edge = Daemon::start(&edge_yaml(&certificates, "127.0.0.1:0", HOSTNAMES));
    let address = edge.address("connectors", "").to_string();
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
        command.args(["--metrics", "127.0.0.1:0", "--cacert"]).arg(certificates.authority());
        command.args(["run", "--token", token, "--url", "http://127.0.0.1:9"]).stdin(Stdio::null());
        let mut connector = Process::start("connector", &mut command);
        let line = connector.wait_for_line("refused");
        line.split("refused").nth(1).unwrap_or_default().to_owned()
    });
    assert_eq!(answers[0], answers[1], "which of the two it was is nobody's business");
    let seen = visit(edge.address("visitors", "entry point web"), HOST, "/").expect("the edge answers");
    assert_eq!(seen.status, 530, "still down");
    assert!(!edge.process().output().contains("eXl5"), "no secret in the log");
    assert!(!edge.process().output().contains(TOKEN), "no token in the log");
}

#[test]
fn smuggling_shapes_are_refused_before_they_go_anywhere() {
    let origin = Origin::start();
    let Some(way) = Way::start(Kind::Adit, &origin.url()) else { return };
    let before = origin.seen().len();
    let host = format!("Host: {HOST}\r\n");
    for (name, request) in [
        (
            "both framings",
            format!(
                "POST / HTTP/1.1\r\n{host}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "two lengths",
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        ),
        ("signed length", format!("POST / HTTP/1.1\r\n{host}Content-Length: +3\r\n\r\nabc")),
        ("unknown coding", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
        ("bare LF", format!("GET / HTTP/1.1\nHost: {HOST}\n\n")),
        ("folded line", format!("GET / HTTP/1.1\r\n{host}X-A: 1\r\n  2\r\n\r\n")),
        ("space before colon", format!("GET / HTTP/1.1\r\n{host}X-A : 1\r\n\r\n")),
        ("two hosts", format!("GET / HTTP/1.1\r\n{host}Host: other.example\r\n\r\n")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
    ] {
        let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
        visitor.write(request.as_bytes()).expect("the edge reads");
        let seen = visitor.receive();
        assert!(seen.as_ref().is_ok_and(|seen| seen.status == 400 || seen.status == 501), "{name}: {seen:?}");
    }
    assert_eq!(origin.seen().len(), before, "none of them reached the origin");
    way.wait_until_through();
}

#[test]
fn a_head_that_is_too_large_is_refused_by_name() {
    let origin = Origin::start();
    let Some(way) = Way::start(Kind::Adit, &origin.url()) else { return };
    let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
    let large = format!("X-Large: {}\r\n", "a".repeat(1 << 20));
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{large}\r\n");
    // The edge may stop reading before all of it is written.
    let _ = visitor.write(head.as_bytes());
    if let Ok(seen) = visitor.receive() {
        assert_eq!(seen.status, 431, "{}", seen.head);
    }
    way.wait_until_through();
}

#[test]
fn an_edge_for_another_name_is_not_trusted() {
    let Some(python) = require_python() else { return };
    // The connector's own check of the name: an edge with a certificate of the right authority for a wrong name.
    let stranger = crate::support::certificates::Certificates::for_names(&["other.example"]);
    let mut edge = Edge::start_at(&python, &["127.0.0.1:0".to_owned()], stranger);
    let options = connector::Options::default();
    let _connector = connector::Connector::start(&edge, "http://127.0.0.1:9", options);
    edge.wait_for("closed", |event| event["by"] == "peer" && event["application"] == false);
    assert!(edge.seen("registered").is_empty());
}
