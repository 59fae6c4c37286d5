//! What visitors send and what origins see of it.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::support::adit::Adit;
use crate::support::certificates::Certificates;
use crate::support::curl::curl;
use crate::support::{TempFolder, require, wait_for};
use crate::{start_connector, start_edge};

#[test]
fn forged_claims_are_taken_off_and_true_ones_put_on() {
    if !require("curl") {
        return;
    }
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    let forged = [
        "X-Forwarded-For: 6.6.6.6",
        "CF-Connecting-IP: 6.6.6.6",
        "Cf-Ray: x",
        "X-Real-Ip: 6.6.6.6",
        "Cf-Warp-Tag-Id: x",
        "Forwarded: for=6.6.6.6",
    ];
    let arguments: Vec<&str> = forged.iter().flat_map(|header| ["-H", header]).collect();
    let seen = curl(edge.entry_point("web"), "http://a.home.test/json", &arguments);
    assert_eq!(seen.status, 200, "{seen:?}");
    assert!(!seen.text().contains("6.6.6.6"), "{}", seen.text());
    let report: Value = serde_json::from_slice(&seen.body).expect("JSON");
    let headers = &report["request"]["headers"];
    assert_eq!(headers["cf-connecting-ip"][0], "127.0.0.1");
    assert_eq!(headers["x-forwarded-for"][0], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"][0], "http");
    assert_eq!(headers["x-forwarded-host"][0], "a.home.test");
    assert!(headers["cf-warp-tag-id"][0].as_str().is_some_and(|id| id.len() == 36), "C45: {headers}");
}

#[test]
fn http2_in_the_clear_and_over_tls_is_served() {
    if !require("curl") {
        return;
    }
    let certificates = Certificates::for_names(&["*.home.test"]);
    let configuration = crate::edge_configuration("127.0.0.1:0").replace(
        "entryPoints:\n",
        "entryPoints:\n  websecure: { address: \"127.0.0.1:0\", http: { tls: {} } }\n",
    );
    let configuration = configuration.replace("public: [ web ]", "public: [ web, websecure ]");
    let configuration = format!(
        "{configuration}tls:\n  certificates:\n    - {{ certFile: {}, keyFile: {} }}\n",
        certificates.certificate().display(),
        certificates.key().display()
    );
    let edge = Adit::start("edge", &configuration);
    let _connector = start_connector(&edge, "hello_world");
    let authority = certificates.authority().display().to_string();
    for (entry_point, url, arguments, version) in [
        ("web", "http://a.home.test/json", vec!["--http2-prior-knowledge"], "2"),
        ("websecure", "https://a.home.test/json", vec!["--cacert", &authority], "2"),
        ("websecure", "https://a.home.test/json", vec!["--cacert", &authority, "--http1.1"], "1.1"),
    ] {
        let seen = curl(edge.entry_point(entry_point), url, &arguments);
        assert_eq!((seen.status, seen.version.as_str()), (200, version), "{seen:?}");
        let scheme = if entry_point == "web" { "http" } else { "https" };
        let report: Value = serde_json::from_slice(&seen.body).expect("JSON");
        assert_eq!(report["request"]["headers"]["x-forwarded-proto"][0], scheme);
    }
    // A new certificate under the same path is taken without a restart.
    let renewed = Certificates::for_names(&["*.home.test"]);
    std::fs::copy(renewed.key(), certificates.key()).expect("a file is copied");
    std::fs::copy(renewed.certificate(), certificates.certificate()).expect("a file is copied");
    let authority = renewed.authority().display().to_string();
    wait_for("the renewed certificate", || {
        let seen = curl(edge.entry_point("websecure"), "https://a.home.test/", &["--cacert", &authority]);
        (seen.status == 200).then_some(())
    });
}

#[test]
fn smuggling_shapes_are_refused_at_the_edge() {
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    for shape in [
        "POST / HTTP/1.1\r\nHost: a.home.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        "POST / HTTP/1.1\r\nHost: a.home.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nHost: a.home.test\n\n",
        "GET / HTTP/1.1\r\nHost: a.home.test\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.home.test\r\nHost: b.home.test\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(edge.entry_point("web")).expect("the edge listens");
        stream.write_all(shape.as_bytes()).expect("the edge reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the edge closes");
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 501 "),
            "{shape:?}: {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{shape:?}: {answer}");
    }
    assert_eq!(edge.metric("cloudflared_tunnel_total_requests"), 0.0);
}

#[test]
fn bodiless_answers_have_no_content_and_keep_their_headers() {
    if !require("curl") {
        return;
    }
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    let web = edge.entry_point("web");
    let seen = curl(web, "http://a.home.test/bytes?count=1000", &["--head"]);
    assert!(seen.status == 200 && seen.headers.contains("Content-Length: 1000"), "{seen:?}");
    for code in [204, 304] {
        let seen = curl(web, &format!("http://a.home.test/status?code={code}"), &[]);
        assert_eq!((seen.status, seen.body.len()), (code, 0), "{seen:?}");
        assert!(!seen.headers.to_lowercase().contains("transfer-encoding"), "{seen:?}");
    }
    let seen = curl(web, "http://a.home.test/status?code=500", &[]);
    assert!(seen.status == 500 && seen.headers.contains("Content-Length: 0"), "{seen:?}");
}

#[test]
fn a_host_learnt_from_the_connector_is_only_taken_within_what_is_allowed() {
    let edge = start_edge("127.0.0.1:0");
    let folder = TempFolder::new("connector");
    let ca = edge.folder().path().join("state/edge-ca.pem");
    let rules = "ingress:\n    - { hostname: good.home.test, service: hello_world }\n    \
                 - { hostname: evil.example, service: hello_world }\n    - { service: \"http_status:404\" }";
    let configuration = crate::connector_configuration(&edge, &ca.display().to_string(), "hello_world")
        .replace("ingress:\n    - { service: \"hello_world\" }", rules);
    let _connector = Adit::start_in(folder, "connector", &configuration);
    edge.wait_for_connections(2);
    let ask = |host: &str| curl(edge.entry_point("web"), &format!("http://{host}/"), &[]).status;
    if require("curl") {
        assert_eq!((ask("good.home.test"), ask("evil.example")), (200, 404));
    }
}
