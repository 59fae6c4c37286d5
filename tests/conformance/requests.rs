//! C16 to C20, C24, C44, C45: requests over QUIC streams.

use serde_json::{Value, json};

use crate::support::connector::{Connector, Options};
use crate::support::edge::Edge;
use crate::support::origin::Origin;
use crate::support::require_python;

/// One edge, one connector, one origin, one registered connection.
struct Tunnel {
    edge: Edge,
    origin: Origin,
    registered: Value,
    _connector: Connector,
}

impl Tunnel {
    fn start(after_run: &[&str]) -> Option<Self> {
        let python = require_python()?;
        let mut edge = Edge::start(&python, 2);
        let origin = Origin::start();
        let after_run = after_run.iter().map(|argument| (*argument).to_owned()).collect();
        let options = Options { after_run, ..Options::default() };
        let connector = Connector::start(&edge, &origin.url(), options);
        let registered = edge.wait_for_registration();
        Some(Self { edge, origin, registered, _connector: connector })
    }
}

fn get(id: &str, path: &str) -> Value {
    json!({"do": "request", "id": id, "host": "test.example", "dest": format!("https://test.example{path}")})
}

fn post(id: &str, path: &str, size: usize, headers: &Value) -> Value {
    let mut request = get(id, path);
    request["method"] = json!("POST");
    request["headers"] = headers.clone();
    request["body"] = json!({"size": size});
    request
}

#[test]
fn c16_a_preamble_may_arrive_in_pieces() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    // Inside the signature, between it and the version, inside the version, inside the message.
    for (id, split) in [("signature", [3, 3, 2]), ("version", [7, 1, 4]), ("message", [8, 20, 30])] {
        let mut request = get(id, "/echo");
        request["split"] = json!(split);
        let exchange = tunnel.edge.exchange(&request);
        assert_eq!(exchange.status(), Some(200), "{id}");
    }
}

#[test]
fn a_stream_that_the_edge_has_ended_is_not_stopped_as_well() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let together = get("together", "/echo");
    let mut behind = get("behind", "/echo");
    behind["split"] = json!([8, 20, 30]);
    for request in [&together, &behind] {
        let exchange = tunnel.edge.exchange(request);
        assert_eq!((exchange.status(), exchange.end["stopped"].as_u64()), (Some(200), None), "{request}");
    }
}

#[test]
fn c17_an_unknown_signature_ends_its_stream_and_no_other() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    tunnel.edge.tell(&json!({"do": "raw", "id": "unknown", "hex": "0011223344556677"}));
    let ended = tunnel.edge.wait_for("response", |event| event["id"] == "unknown");
    assert_eq!(ended["end"], "reset");
    assert_eq!(ended["code"], 0);
    tunnel.edge.wait_for("stopped", |event| event["id"] == "unknown" && event["code"] == 0);
    // A stream that stalls in mid-signature, and a message with a wrong length, are the connector's problem alone.
    tunnel.edge.tell(&json!({"do": "raw", "id": "stalled", "hex": "0a36cd"}));
    tunnel.edge.tell(&json!({"do": "raw", "id": "huge", "hex": "0a36cd12a13e303100000000ffffff7f"}));
    tunnel
        .edge
        .tell(&json!({"do": "raw", "id": "cut", "hex": "0a36cd12a13e3031000000000600000000", "fin": true}));
    for id in ["huge", "cut"] {
        tunnel.edge.wait_for("response", |event| event["id"] == id);
    }
    let exchange = tunnel.edge.exchange(&get("after", "/echo"));
    assert_eq!(exchange.status(), Some(200));
    assert!(tunnel.edge.seen("closed").is_empty(), "the connection survives");
}

#[test]
fn c17_an_unknown_request_type_is_refused_and_the_process_lives() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let mut request = get("unknown", "/echo");
    request["kind"] = json!(7);
    tunnel.edge.tell(&request);
    tunnel.edge.wait_for("response", |event| event["id"] == "unknown");
    let exchange = tunnel.edge.exchange(&get("after", "/echo"));
    assert_eq!(exchange.status(), Some(200));
}

#[test]
fn c18_a_response_is_a_head_with_metadata_then_the_body_then_the_end() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let exchange = tunnel.edge.exchange(&get("head", "/twice?a=%20b"));
    assert_eq!(exchange.head["version"], "01");
    assert_eq!(exchange.status(), Some(200));
    assert_eq!(exchange.error(), "");
    assert_eq!(exchange.header("x-twice"), ["first", "second"]);
    assert!(
        tunnel.origin.seen()[0].head.starts_with("GET /twice?a=%20b HTTP/1.1\r\n"),
        "path and query untouched"
    );
    assert_eq!((exchange.text(), &exchange.end["end"]), ("twice", &json!("fin")));

    let exchange = tunnel.edge.exchange(&get("large", "/download/3000000"));
    assert_eq!(exchange.header("content-length"), ["3000000"]);
    assert_eq!((&exchange.end["bytes"], &exchange.end["patterned"]), (&json!(3_000_000), &json!(true)));
    assert_eq!(exchange.end["end"], "fin");

    let exchange = tunnel.edge.exchange(&get("chunked", "/stream/300000"));
    assert!(exchange.header("content-length").is_empty());
    assert_eq!(
        (&exchange.end["bytes"], &exchange.end["patterned"]),
        (&json!(300_000), &json!(true)),
        "no chunk framing"
    );

    let exchange = tunnel.edge.exchange(&get("empty", "/status/204"));
    assert_eq!((exchange.status(), &exchange.end["bytes"]), (Some(204), &json!(0)));
}

#[test]
fn c19_bodies_follow_their_framing() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let exchange =
        tunnel.edge.exchange(&post("length", "/upload", 700_000, &json!([["Content-Length", "700000"]])));
    assert_eq!(exchange.text(), "bytes=700000 framing=length intact=true");

    let exchange = tunnel.edge.exchange(&post(
        "chunked",
        "/upload",
        700_000,
        &json!([["Transfer-Encoding", "chunked"]]),
    ));
    assert_eq!(exchange.text(), "bytes=700000 framing=chunked intact=true");

    // Neither header: the body is not read, and the edge is told so.
    let exchange = tunnel.edge.exchange(&post("none", "/upload", 10, &json!([])));
    assert!(exchange.text().starts_with("bytes=0 "), "{}", exchange.text());

    // More bytes than announced: the rest must not reach the origin as a request of its own.
    tunnel.edge.tell(&post("more", "/upload", 1000, &json!([["Content-Length", "400"]])));
    tunnel.edge.wait_for("response", |event| event["id"] == "more");
    let exchange = tunnel.edge.exchange(&get("next", "/echo"));
    assert!(exchange.text().starts_with("GET /echo HTTP/1.1"), "{}", exchange.text());

    // A response to an upload that the edge leaves open is complete nevertheless; the rest is no longer wanted.
    let mut request = post("open", "/upload", 400, &json!([["Content-Length", "400"]]));
    request["fin"] = json!(false);
    let exchange = tunnel.edge.exchange(&request);
    assert_eq!(exchange.end["end"], "fin");
    tunnel.edge.wait_for("stopped", |event| event["id"] == "open" && event["code"] == 0);
}

#[test]
fn c19_a_content_length_that_is_no_number_is_an_error() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let exchange = tunnel.edge.exchange(&post("bad", "/upload", 10, &json!([["Content-Length", "ten"]])));
    assert_eq!(exchange.status(), None);
    assert_ne!(exchange.error(), "");
    assert!(tunnel.origin.seen().is_empty());
}

#[test]
fn c20_an_origin_that_is_down_is_an_error_text_and_one_that_breaks_off_a_reset() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let exchange = tunnel.edge.exchange(&get("broken", "/truncated"));
    assert_eq!(exchange.status(), Some(200));
    assert_eq!((&exchange.end["end"], &exchange.end["code"]), (&json!("reset"), &json!(0)));

    // Port 9 is discard; nobody runs it.
    let nowhere = json!({"ingress": [{"service": "http://127.0.0.1:9"}]});
    tunnel.edge.tell(&json!({"do": "configure", "id": "push", "version": 1, "config": nowhere}));
    tunnel.edge.wait_for("configured", |event| event["error"] == "");
    let exchange = tunnel.edge.exchange(&get("down", "/"));
    assert_ne!(exchange.error(), "");
    assert_eq!(exchange.head["metadata"], json!([]));
    assert_eq!((&exchange.end["end"], &exchange.end["bytes"]), (&json!("fin"), &json!(0)));
}

#[test]
fn c24_a_websocket_passes_bytes_unchanged_both_ways() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let mut request = get("socket", "/websocket");
    request["kind"] = json!("websocket");
    request["fin"] = json!(false);
    request["headers"] = json!([["Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="]]);
    tunnel.edge.tell(&request);
    let head = tunnel.edge.wait_for("head", |event| event["id"] == "socket");
    assert_eq!(head["status"], 101);
    let headers = head["headers"].to_string().to_lowercase();
    assert!(headers.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{headers}");
    let seen = &tunnel.origin.seen()[0];
    assert_eq!(
        seen.header("upgrade").first().map(|value| value.to_lowercase()),
        Some("websocket".to_owned())
    );
    assert_eq!(
        seen.header("connection").first().map(|value| value.to_lowercase()),
        Some("upgrade".to_owned())
    );
    assert_eq!(seen.header("sec-websocket-version"), ["13"]);
    // Far above the 16 KiB at which some connectors cut.
    for size in [1, 16_384, 16_385, 1_048_576] {
        tunnel.edge.tell(&json!({"do": "echo", "id": "socket", "size": size}));
        let echoed = tunnel.edge.wait_for("echoed", |_| true);
        assert_eq!((&echoed["bytes"], &echoed["same"]), (&json!(size), &json!(true)));
    }
    tunnel.edge.tell(&json!({"do": "send", "id": "socket", "size": 0, "fin": true}));
    tunnel.edge.wait_for("response", |event| event["id"] == "socket");
}

#[test]
fn c24_a_websocket_that_the_origin_refuses_is_an_ordinary_response() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let mut request = get("refused", "/status/403");
    request["kind"] = json!("websocket");
    let exchange = tunnel.edge.exchange(&request);
    assert_eq!(exchange.status(), Some(403));
}

#[test]
fn c44_without_chunked_coding_a_body_of_unknown_length_is_still_framed() {
    let Some(mut tunnel) = Tunnel::start(&["--no-chunked-encoding"]) else { return };
    let exchange =
        tunnel.edge.exchange(&post("body", "/upload", 50_000, &json!([["Transfer-Encoding", "chunked"]])));
    assert_eq!(exchange.text(), "bytes=50000 framing=length intact=true");
    let exchange = tunnel.edge.exchange(&get("next", "/echo"));
    assert_eq!(exchange.status(), Some(200));
}

#[test]
fn c45_the_origin_sees_the_connector_id_and_nothing_invented() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    let mut request = get("plain", "/echo");
    request["headers"] = json!([["X-Visitor", "one"], ["X-Visitor", "two"], ["Accept-Encoding", "identity"]]);
    tunnel.edge.exchange(&request);
    let seen = &tunnel.origin.seen()[0];
    let hex = tunnel.registered["client"].as_str().unwrap_or_default().to_owned();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    assert_eq!(seen.header("cf-warp-tag-id"), [parts.join("-")]);
    assert!(seen.header("user-agent").is_empty(), "no invented user agent");
    assert_eq!(seen.header("host"), ["test.example"]);
    assert_eq!(seen.header("x-visitor"), ["one", "two"]);
    assert_eq!(seen.header("accept-encoding"), ["identity"]);
}

#[test]
fn a_visitor_who_leaves_reaches_the_origin_and_leaves_the_rest_alone() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    tunnel.edge.tell(&get("held", "/hold"));
    crate::support::wait_for("the origin to have the request", || {
        (!tunnel.origin.seen().is_empty()).then_some(())
    });
    tunnel.edge.tell(&json!({"do": "stop", "id": "held", "code": 0}));
    tunnel.edge.tell(&json!({"do": "reset", "id": "held", "code": 0}));
    let exchange = tunnel.edge.exchange(&get("other", "/echo"));
    assert_eq!(exchange.status(), Some(200));
    let connections = tunnel.origin.seen();
    assert_ne!(
        connections[0].connection, connections[1].connection,
        "a connection with an unread answer is not used again"
    );
    tunnel.origin.release();
}

#[test]
fn events_reach_the_visitor_as_they_happen() {
    let Some(mut tunnel) = Tunnel::start(&[]) else { return };
    tunnel.edge.tell(&get("events", "/events"));
    let began = tunnel.edge.wait_for("began", |event| event["id"] == "events");
    assert_eq!(began["text"], "data: one\n\n");
    tunnel.origin.release();
    let ended = tunnel.edge.wait_for("response", |event| event["id"] == "events");
    assert_eq!((&ended["text"], &ended["end"]), (&json!("data: one\n\ndata: two\n\n"), &json!("fin")));
}
