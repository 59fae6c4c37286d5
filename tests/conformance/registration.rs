//! C6 to C12: registration, its answers, and how many connections there are.

use serde_json::{Value, json};

use crate::support::connector::{Connector, Options, TUNNEL};
use crate::support::edge::{Edge, strings};
use crate::support::require_python;

const NO_ORIGIN: &str = "http://127.0.0.1:9";

#[test]
fn c6_answers_may_come_in_any_order() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    edge.tell(&json!({"do": "policy", "default": {"accept": true, "bootstrap_last": true}}));
    let mut connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    edge.wait_for_registration();
    connector.process().wait_for_line("Registered tunnel connection");
    // The imported capability works although it arrived after the first result.
    edge.wait_for("local-configuration", |_| true);
}

#[test]
fn c7_registration_carries_identity_and_features() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let registered = edge.wait_for_registration();
    assert_eq!(registered["account"], "account");
    assert_eq!(registered["secret"], "78".repeat(32));
    assert_eq!(registered["tunnel"], TUNNEL);
    assert_eq!(registered["client"].as_str().map(str::len), Some(32), "16 bytes");
    let features = strings(&registered["features"]);
    for feature in ["allow_remote_config", "serialized_headers", "support_datagram_v2", "support_quic_eof"] {
        assert!(features.contains(&feature.to_owned()), "{feature} missing in {features:?}");
    }
    assert!(!features.contains(&"postquantum".to_owned()));
    assert!(registered["version"].as_str().is_some_and(|version| !version.is_empty()));
    assert!(
        registered["arch"].as_str().is_some_and(|arch| arch.starts_with("linux_")),
        "{}",
        registered["arch"]
    );
    assert_eq!(registered["index"], 0);
    assert_eq!(registered["replace_existing"], false);
    assert_eq!(registered["compression"], 0);
    assert_eq!(registered["previous_attempts"], 0);
}

#[test]
fn slow_c7_c12_attempts_are_counted_until_a_registration_succeeds() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let refusal = json!({"cause": "later", "should_retry": true});
    edge.tell(&json!({"do": "policy", "answers": [refusal, refusal], "default": {"accept": true}}));
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let attempts = |event: &Value| event["previous_attempts"].as_u64();
    assert_eq!(attempts(&edge.wait_for("refused", |_| true)), Some(0));
    assert_eq!(attempts(&edge.wait_for("refused", |_| true)), Some(1));
    assert_eq!(attempts(&edge.wait_for_registration()), Some(2));
    edge.tell(&json!({"do": "silence"}));
    let again = edge.wait_for_registration();
    assert!(attempts(&again).is_some_and(|attempts| attempts <= 1), "starts again from nothing: {again}");
}

#[test]
fn slow_c8_the_first_connection_pushes_the_local_configuration() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let _connector = Connector::start(&edge, NO_ORIGIN, Options { connections: 2, ..Options::default() });
    let first = edge.wait_for_registration();
    let pushed = edge.wait_for("local-configuration", |_| true);
    assert_eq!(pushed["connection"], first["connection"]);
    assert_eq!(pushed["config"]["ingress"][0]["service"], NO_ORIGIN);
    assert!(pushed["config"]["warp-routing"].is_object());
    assert_eq!(pushed["config"]["__configuration_flags"]["no-autoupdate"], "true");
    let second = edge.wait_for_registration();
    assert_eq!(second["index"], 1);
    edge.wait_for("ping", |event| event["connection"] == second["connection"]);
    assert!(edge.seen("local-configuration").is_empty(), "only index 0 pushes");
}

#[test]
fn c8_a_remotely_managed_tunnel_pushes_nothing() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    edge.tell(&json!({"do": "policy", "default": {"accept": true, "remote": true}}));
    let mut connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    edge.wait_for_registration();
    // The edge knows before the connector does; a signal in between finds nothing to unregister.
    connector.process().wait_for_line("Registered tunnel connection");
    connector.signal("TERM");
    edge.wait_for("unregistered", |_| true);
    assert!(edge.seen("local-configuration").is_empty());
}

#[test]
fn slow_c9_c10_more_connections_follow_the_first_and_never_outnumber_the_addresses() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 3);
    let _connector = Connector::start(&edge, NO_ORIGIN, Options { connections: 4, ..Options::default() });
    let registered: Vec<Value> = (0..3).map(|_| edge.wait_for_registration()).collect();
    let mut indexes: Vec<u64> = registered.iter().filter_map(|event| event["index"].as_u64()).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, [0, 1, 2]);
    let mut addresses: Vec<u64> = registered.iter().filter_map(|event| event["edge"].as_u64()).collect();
    addresses.sort_unstable();
    assert_eq!(addresses, [0, 1, 2], "each connection has an address of its own");
    let first = registered.iter().find(|event| event["index"] == 0).expect("found above");
    for hello in edge.seen("hello") {
        let started_later = hello["n"].as_u64() > first["n"].as_u64();
        assert!(started_later || hello["connection"] == first["connection"], "{hello} before {first}");
    }
    let last = &registered[2]["connection"];
    for _ in 0..2 {
        edge.wait_for("ping", |event| event["connection"] == *last);
    }
    assert_eq!(edge.seen("hello").len(), 3, "four were wanted, three addresses are there");
}

#[test]
fn slow_c11_a_duplicate_goes_to_another_address() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let duplicate = json!({"cause": "EDUPCONN", "should_retry": true});
    edge.tell(&json!({"do": "policy", "answers": [duplicate], "default": {"accept": true}}));
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let refused = edge.wait_for("refused", |_| true);
    let registered = edge.wait_for_registration();
    assert_ne!(refused["edge"], registered["edge"]);
}

#[test]
fn slow_c11_a_wait_that_the_edge_asks_for_is_kept() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    // Longer than the two seconds within which the first attempt comes by itself.
    let later = json!({"cause": "busy", "should_retry": true, "retry_after_ns": 4_000_000_000_u64});
    edge.tell(&json!({"do": "policy", "answers": [later], "default": {"accept": true}}));
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let refused = edge.wait_for("refused", |_| true);
    let registered = edge.wait_for_registration();
    let at = |event: &Value| event["at"].as_f64().unwrap_or_default();
    let waited = at(&registered) - at(&refused);
    assert!(waited >= 4.0, "came back after {waited} s");
}

#[test]
fn slow_c11_a_permanent_refusal_ends_the_process_with_its_reason() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let never = json!({"cause": "this tunnel was deleted", "should_retry": false});
    edge.tell(&json!({"do": "policy", "default": never}));
    let mut connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    edge.wait_for("refused", |_| true);
    let status = connector.process().wait();
    assert_eq!(status.code(), Some(1));
    let output = connector.process().output();
    assert!(output.contains("this tunnel was deleted"), "{output}");
}
