//! C1, C7, C8, C20 to C24, C36, C37 over HTTP/2: the connector dials TCP and is then the HTTP/2 server.

use serde_json::{Value, json};

use crate::support::connector::{Connector, Options, TUNNEL};
use crate::support::edge::{Edge, strings};
use crate::support::origin::Origin;
use crate::support::{require_python, wait_for};

/// One edge, one connector, one origin, one registered connection.
struct Tunnel {
    edge: Edge,
    origin: Origin,
    connector: Connector,
}

impl Tunnel {
    fn start(grace_period: &'static str) -> Option<Self> {
        let python = require_python()?;
        let edge = Edge::start_http2(&python, 2);
        let origin = Origin::start();
        let options = Options { protocol: "http2", grace_period, ..Options::default() };
        let connector = Connector::start(&edge, &origin.url(), options);
        Some(Self { edge, origin, connector })
    }

    fn registered(grace_period: &'static str) -> Option<Self> {
        let mut tunnel = Self::start(grace_period)?;
        tunnel.edge.wait_for_registration();
        Some(tunnel)
    }
}

fn get(id: &str, path: &str) -> Value {
    json!({"do": "request", "id": id, "dest": format!("https://test.example{path}")})
}

#[test]
fn c1_c7_c8_registration_over_http2() {
    let Some(mut tunnel) = Tunnel::start("") else { return };
    let hello = tunnel.edge.wait_for("hello", |_| true);
    assert_eq!(hello["sni"], "h2.cftunnel.com");
    assert!(strings(&hello["alpn"]).is_empty(), "HTTP/2 by prior knowledge");
    let connected = tunnel.edge.wait_for("connected", |_| true);
    // RFC 9113 §6.5.2: 3 is MAX_CONCURRENT_STREAMS, 4 INITIAL_WINDOW_SIZE.
    assert!(connected["settings"]["3"].as_u64().is_none_or(|streams| streams >= 1000), "{connected}");
    assert!(connected["settings"]["4"].as_u64().is_some_and(|bytes| bytes > 65_535), "{connected}");
    let registered = tunnel.edge.wait_for_registration();
    assert_eq!(registered["tunnel"], TUNNEL);
    assert_eq!(registered["origin_ip_bytes"], 16);
    assert_eq!(registered["previous_attempts"], 0);
    let pushed = tunnel.edge.wait_for("local-configuration", |_| true);
    assert_eq!(pushed["config"]["ingress"][0]["service"], tunnel.origin.url());
}

#[test]
fn c19_bodies_over_http2_follow_their_framing() {
    let Some(mut tunnel) = Tunnel::registered("") else { return };
    let mut request = get("length", "/upload");
    request["method"] = json!("POST");
    request["headers"] = json!([["content-length", "700000"]]);
    request["body"] = json!({"size": 700_000});
    assert_eq!(tunnel.edge.exchange(&request).text(), "bytes=700000 framing=length intact=true");
    request["id"] = json!("unknown");
    request["headers"] = json!([]);
    assert_eq!(tunnel.edge.exchange(&request).text(), "bytes=700000 framing=chunked intact=true");
    let exchange = tunnel.edge.exchange(&get("large", "/download/3000000"));
    assert_eq!((&exchange.end["bytes"], &exchange.end["patterned"]), (&json!(3_000_000), &json!(true)));
    assert_eq!(exchange.end["end"], "fin");
}

#[test]
fn c21_failures_before_and_after_the_head() {
    let Some(mut tunnel) = Tunnel::registered("") else { return };
    let exchange = tunnel.edge.exchange(&get("broken", "/truncated"));
    assert_eq!(exchange.status(), Some(200));
    // RFC 9113 §7: 2 is INTERNAL_ERROR.
    assert_eq!((&exchange.end["end"], &exchange.end["code"]), (&json!("reset"), &json!(2)));
    let nowhere = json!({"ingress": [{"service": "http://127.0.0.1:9"}]});
    tunnel.edge.tell(&json!({"do": "configure", "id": "push", "version": 1, "config": nowhere}));
    tunnel.edge.wait_for("configured", |event| event["version"] == 1);
    let exchange = tunnel.edge.exchange(&get("down", "/"));
    assert_eq!(exchange.status(), Some(502));
    assert_eq!(exchange.head["meta"], json!({"src": "cloudflared"}));
    assert_eq!(exchange.head["serialised"], Value::Null);
    assert_eq!((&exchange.end["end"], &exchange.end["bytes"]), (&json!("fin"), &json!(0)));
}

#[test]
fn c22_user_headers_travel_inside_one_header() {
    let Some(mut tunnel) = Tunnel::registered("") else { return };
    let exchange = tunnel.edge.exchange(&get("twice", "/twice"));
    assert_eq!(exchange.head["problem"], Value::Null);
    assert_eq!(exchange.header("x-twice"), ["first", "second"]);
    assert_eq!(exchange.head["meta"], json!({"src": "origin"}));
    let serialised = exchange.head["serialised"].as_str().unwrap_or_default();
    assert!(!serialised.contains('='), "base64 without padding: {serialised}");
    let plain: Vec<String> = exchange.head["plain"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pair| strings(pair)[0].clone())
        .collect();
    assert!(!plain.contains(&"x-twice".to_owned()), "user headers only inside: {plain:?}");

    let exchange = tunnel.edge.exchange(&get("private", "/private"));
    assert_eq!(exchange.header("x-kept"), ["1"]);
    for name in ["cf-int-a", "cf-cloudflared-b", "cf-proxy-c"] {
        assert!(exchange.header(name).is_empty(), "{name} crossed");
    }
}

#[test]
fn c22_c24_a_websocket_is_answered_with_200_and_passes_bytes() {
    let Some(mut tunnel) = Tunnel::registered("") else { return };
    let mut request = get("socket", "/websocket");
    request["kind"] = json!("websocket");
    request["fin"] = json!(false);
    request["headers"] = json!([["sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="]]);
    tunnel.edge.tell(&request);
    let head = tunnel.edge.wait_for("head", |event| event["id"] == "socket");
    assert_eq!(head["status"], 200);
    assert!(head["headers"].to_string().contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    let seen = &tunnel.origin.seen()[0];
    assert_eq!(
        seen.header("upgrade").first().map(|value| value.to_lowercase()),
        Some("websocket".to_owned())
    );
    assert!(seen.header("cf-cloudflared-proxy-connection-upgrade").is_empty());
    for size in [1, 16_385, 1_048_576] {
        tunnel.edge.tell(&json!({"do": "echo", "id": "socket", "size": size}));
        let echoed = tunnel.edge.wait_for("echoed", |_| true);
        assert_eq!((&echoed["bytes"], &echoed["same"]), (&json!(size), &json!(true)));
    }
    tunnel.edge.tell(&json!({"do": "send", "id": "socket", "size": 0, "fin": true}));
    tunnel.edge.wait_for("response", |event| event["id"] == "socket");
}

#[test]
fn c23_trailers_cross_and_events_are_flushed() {
    let Some(mut tunnel) = Tunnel::registered("") else { return };
    let exchange = tunnel.edge.exchange(&get("trailers", "/trailers"));
    assert_eq!((exchange.text(), &exchange.end["trailers"]), ("body", &json!([["x-sum", "7"]])));
    tunnel.edge.tell(&get("events", "/events"));
    let began = tunnel.edge.wait_for("began", |event| event["id"] == "events");
    assert_eq!(began["text"], "data: one\n\n");
    tunnel.origin.release();
    let ended = tunnel.edge.wait_for("response", |event| event["id"] == "events");
    assert_eq!(ended["text"], "data: one\n\ndata: two\n\n");
}

#[test]
fn c36_a_configuration_push_answers_with_version_and_error() {
    let Some(mut tunnel) = Tunnel::registered("") else { return };
    let teapot = json!({"ingress": [{"service": "http_status:418"}]});
    tunnel.edge.tell(&json!({"do": "configure", "id": "good", "version": 3, "config": teapot}));
    let good = tunnel.edge.wait_for("configured", |event| event["id"] == "good");
    assert_eq!((&good["version"], &good["error"]), (&json!(3), &Value::Null));
    assert_eq!(strings(&good["keys"]), ["err", "lastAppliedVersion"]);
    assert_eq!(tunnel.edge.exchange(&get("teapot", "/")).status(), Some(418));
    let nonsense = json!({"ingress": [{"service": "nonsense"}]});
    tunnel.edge.tell(&json!({"do": "configure", "id": "bad", "version": 4, "config": nonsense}));
    let bad = tunnel.edge.wait_for("configured", |event| event["id"] == "bad");
    assert_eq!(bad["version"], 3, "the old one stays");
    assert_ne!(bad["error"], Value::Null);
}

#[test]
fn c37_a_signal_unregisters_over_http2_and_requests_go_on() {
    let Some(mut tunnel) = Tunnel::registered("60s") else { return };
    tunnel.edge.tell(&get("held", "/hold"));
    wait_for("the origin to have the request", || (!tunnel.origin.seen().is_empty()).then_some(()));
    tunnel.connector.signal("TERM");
    tunnel.edge.wait_for("unregistered", |_| true);
    tunnel.edge.wait_for("control-ended", |_| true);
    tunnel.origin.release();
    let held = tunnel.edge.wait_for("response", |event| event["id"] == "held");
    assert_eq!((&held["text"], &held["end"]), (&json!("held"), &json!("fin")));
    tunnel.edge.tell(&json!({"do": "close"}));
    assert_eq!(tunnel.connector.process().wait().code(), Some(0));
}

#[test]
fn c11_a_permanent_refusal_over_http2_ends_the_process_with_its_reason() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start_http2(&python, 2);
    edge.tell(
        &json!({"do": "policy", "default": {"cause": "this tunnel was deleted", "should_retry": false}}),
    );
    let options = Options { protocol: "http2", ..Options::default() };
    let mut connector = Connector::start(&edge, "http://127.0.0.1:9", options);
    edge.wait_for("refused", |_| true);
    assert_eq!(connector.process().wait().code(), Some(1));
    let output = connector.process().output();
    assert!(output.contains("this tunnel was deleted"), "{output}");
}
