//! What crosses: protocols, large bodies, many at once, WebSockets, headers.

use std::process::Command;

use crate::support::nginx::Nginx;
use crate::support::origin::Origin;
use crate::support::require;
use crate::support::visitor::{Visitor, visit};
use crate::way::{HOST, Kind, Way};

const GIBIBYTE: u64 = 1 << 30;

/// Makes a test of each journey for each connector.
macro_rules! journeys {
    ($($name:ident => $adit:ident, $stock:ident;)*) => {$(
        #[test]
        fn $adit() { $name(Kind::Adit); }
        #[test]
        fn $stock() { $name(Kind::Cloudflared); }
    )*};
}

journeys! {
    curl_over_every_protocol => curl_and_nginx_with_adit, curl_and_nginx_with_cloudflared;
    a_gibibyte_both_ways => slow_a_gibibyte_both_ways_with_adit, slow_a_gibibyte_both_ways_with_cloudflared;
    two_hundred_at_once => slow_two_hundred_at_once_with_adit, slow_two_hundred_at_once_with_cloudflared;
    a_websocket => slow_a_websocket_with_adit, slow_a_websocket_with_cloudflared;
    headers => headers_with_adit, headers_with_cloudflared;
    responses_without_a_body => bodyless_responses_with_adit, bodyless_responses_with_cloudflared;
}

fn curl_over_every_protocol(kind: Kind) {
    if !require("curl") || !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location = /through { return 200; }");
    nginx.serve_file("page.txt", "from nginx\n");
    let Some(way) = Way::start(kind, &nginx.url()) else { return };
    let authority = way.certificates.authority().display().to_string();
    for (scheme, address, protocol, version) in [
        ("http", way.web, "--http1.1", "1.1"),
        ("http", way.web, "--http2-prior-knowledge", "2"),
        ("https", way.secure, "--http1.1", "1.1"),
        ("https", way.secure, "--http2", "2"),
    ] {
        let port = address.port();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--cacert", &authority, protocol])
            .args([
                "--resolve",
                &format!("{HOST}:{port}:127.0.0.1"),
                "--write-out",
                "%{http_version} %{http_code}",
            ])
            .arg(format!("{scheme}://{HOST}:{port}/page.txt"))
            .output()
            .expect("curl was found just now");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text, format!("from nginx\n{version} 200"), "{scheme} {protocol}: {errors}");
    }
}

fn a_gibibyte_both_ways(kind: Kind) {
    let origin = Origin::start();
    let Some(way) = Way::start(kind, &origin.url()) else { return };
    let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
    let down = visitor.get(HOST, &format!("/download/{GIBIBYTE}"), "").expect("the download arrives");
    assert_eq!((down.status, down.bytes, down.patterned), (200, GIBIBYTE, true));
    let up = visitor.post(HOST, "/upload", GIBIBYTE).expect("the upload is answered");
    assert_eq!(
        (up.status, up.text.as_str()),
        (200, format!("bytes={GIBIBYTE} framing=length intact=true").as_str())
    );
}

fn two_hundred_at_once(kind: Kind) {
    let origin = Origin::start();
    let Some(way) = Way::start(kind, &origin.url()) else { return };
    let outcomes: Vec<String> = std::thread::scope(|scope| {
        let visitors: Vec<_> = (0..200_u64)
            .map(|number| {
                scope.spawn(move || {
                    let size = 50_000 + number;
                    match visit(way.web, HOST, &format!("/stream/{size}")) {
                        Ok(seen) if (seen.status, seen.bytes, seen.patterned) == (200, size, true) => {
                            String::new()
                        }
                        other => format!("{number}: {other:?}"),
                    }
                })
            })
            .collect();
        visitors.into_iter().map(|visitor| visitor.join().unwrap_or_else(|_| "panicked".to_owned())).collect()
    });
    let failures: Vec<&String> = outcomes.iter().filter(|outcome| !outcome.is_empty()).collect();
    assert!(failures.is_empty(), "{} of 200 failed, such as {}", failures.len(), failures[0]);
}

fn a_websocket(kind: Kind) {
    let origin = Origin::start();
    let Some(way) = Way::start(kind, &origin.url()) else { return };
    let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
    let answer = visitor.upgrade(HOST, "/websocket").expect("the upgrade is answered");
    assert_eq!(answer.status, 101, "{}", answer.head);
    assert_eq!(answer.header("upgrade"), ["websocket"]);
    assert_eq!(answer.header("sec-websocket-accept"), ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
    for size in [1, 16_385, 1 << 20, 1 << 20] {
        assert!(visitor.echo(size).expect("bytes come back"), "{size} bytes came back changed");
    }
    // Refused by the origin: an ordinary answer on a connection that lives on.
    let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
    let answer = visitor.upgrade(HOST, "/status/403").expect("the refusal is answered");
    assert_eq!(answer.status, 403, "{}", answer.head);
}

fn headers(kind: Kind) {
    let origin = Origin::start();
    let Some(way) = Way::start(kind, &origin.url()) else { return };
    let forged = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: gopher\r\nCf-Connecting-Ip: 6.6.6.6\r\n\
                  Connection: close, X-Hop\r\nX-Hop: 1\r\nX-Two: a\r\nX-Two: b\r\nCookie: c=1\r\n";
    let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
    visitor.get(HOST, "/echo?q=%20&r", forged).expect("the origin answers");
    let seen = origin.seen().into_iter().find(|seen| seen.head.contains("/echo")).expect("the origin saw it");
    assert!(seen.head.starts_with("GET /echo?q=%20&r HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.header("host"), [HOST]);
    assert_eq!(seen.header("x-forwarded-for"), ["127.0.0.1"], "a forged one is gone");
    assert_eq!(seen.header("cf-connecting-ip"), ["127.0.0.1"]);
    assert_eq!(seen.header("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.header("x-two"), ["a", "b"]);
    assert_eq!(seen.header("cookie"), ["c=1"]);
    assert!(seen.header("x-hop").is_empty(), "named in Connection: for one hop only");

    // E11: what is for the tunnel's ends only does not reach the visitor.
    let answer = visit(way.web, HOST, "/private").expect("the origin answers");
    assert_eq!(answer.header("x-kept"), ["1"]);
    for name in ["cf-int-a", "cf-cloudflared-b", "cf-proxy-c"] {
        assert!(answer.header(name).is_empty(), "{name} crossed");
    }
    let answer = visit(way.web, HOST, "/twice").expect("the origin answers");
    assert_eq!(answer.header("x-twice"), ["first", "second"]);
}

fn responses_without_a_body(kind: Kind) {
    let origin = Origin::start();
    let Some(way) = Way::start(kind, &origin.url()) else { return };
    let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
    for status in [204, 304] {
        let seen = visitor.get(HOST, &format!("/status/{status}"), "").expect("the origin answers");
        assert_eq!((seen.status, seen.bytes), (status, 0));
    }
    // The same connection still works: nothing was left over.
    let seen = visitor.get(HOST, "/download/1000", "").expect("the origin answers");
    assert_eq!((seen.bytes, seen.patterned), (1000, true));
}
