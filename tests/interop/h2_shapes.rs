//! Malformed HTTP/2 heads and content in front of origins that speak HTTP/1.1.

use serde_json::Value;

use crate::ingress::{Ingress, ask, serve};
use crate::relay::Relay;
use crate::support::{http_get, require_python_with};

#[test]
fn slow_malformed_http2_never_becomes_a_second_request() {
    let Some(python) = require_python_with("hpack, hyperframe") else { return };
    let (_server, address) = serve(&python, "uri_server.py", &[]);
    let relay = Relay::to(address);
    let adit = Ingress::to(&relay.url()).start();
    let web = adit.entry_point("web");
    let report = ask(&python, "h2_shapes.py", &[&web.to_string()]);
    let (requests, _) = relay.take();
    let sent = String::from_utf8_lossy(&requests);
    assert!(!sent.contains("smuggled") && !sent.contains("evil.test"), "{sent}");
    assert!(!sent.to_lowercase().contains("content-length: 44"), "{sent}");
    assert!(sent.contains("X-Sum: 1\r\n"), "an honest trailer arrives: {sent}");
    let shapes = report.as_object().expect("names and outcomes");
    let unexpected: Vec<String> = shapes
        .iter()
        .filter(|(name, outcome)| !is_expected(name, outcome))
        .map(|(name, outcome)| format!("{name}: {outcome}"))
        .collect();
    assert!(shapes.len() > 40 && unexpected.is_empty(), "{}", unexpected.join("\n"));
    assert_eq!(http_get(web, "/next").expect("the next visitor is answered").status, 200);
}

fn is_expected(name: &str, outcome: &Value) -> bool {
    let outcome = outcome.as_str().unwrap_or_default();
    match name {
        // `Content-Length: 0` and content behind it: the content is never read, whichever comes first.
        "content-length too small" => matches!(outcome, "200" | "reset 1"),
        // What is wrong with these does not travel.
        "fragment in the path" | "pseudo-header in trailers" | "framing in trailers" => outcome == "200",
        "connect" => outcome == "501",
        // PROTOCOL_ERROR for the stream or the connection (RFC 9113 §8.1.1), or a refusal in words.
        _ => matches!(outcome, "400" | "reset 1" | "goaway 1"),
    }
}
