//! C37, C38 and the clean part of C39: how the connector goes.

use serde_json::json;

use crate::support::connector::{Connector, Options};
use crate::support::edge::Edge;
use crate::support::origin::Origin;
use crate::support::{require_python, wait_for};

#[test]
fn c37_a_signal_unregisters_every_connection_and_requests_go_on_until_the_edge_closes() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let origin = Origin::start();
    let options = Options { connections: 2, grace_period: "60s", ..Options::default() };
    let mut connector = Connector::start(&edge, &origin.url(), options);
    for _ in 0..2 {
        edge.wait_for_registration();
    }
    wait_for("both connections to count", || {
        connector.ready().filter(|(status, body)| *status == 200 && body["readyConnections"] == 2)
    });
    edge.tell(&json!({"do": "request", "id": "held", "connection": 1, "dest": "https://test.example/hold"}));
    wait_for("the origin to have the request", || (!origin.seen().is_empty()).then_some(()));

    connector.signal("TERM");
    for _ in 0..2 {
        edge.wait_for("unregistered", |_| true);
    }
    for _ in 0..2 {
        edge.wait_for("control-ended", |_| true);
    }
    edge.wait_for("rpc", |event| event["message"] == "abort" && event["reason"] == "rpc: shutdown");
    wait_for("/ready to say so", || connector.ready().filter(|(status, _)| *status == 503));
    // Old and new requests are served until the edge closes or the grace period ends.
    let late = edge.exchange(&json!({"do": "request", "id": "late", "connection": 2}));
    assert_eq!(late.status(), Some(200));
    origin.release();
    let held = edge.wait_for("response", |event| event["id"] == "held");
    assert_eq!((&held["text"], &held["end"]), (&json!("held"), &json!("fin")));

    for connection in [1, 2] {
        edge.tell(&json!({"do": "close", "connection": connection}));
    }
    // Long before the minute of grace is over.
    assert_eq!(connector.process().wait().code(), Some(0));
}

#[test]
fn slow_c37_the_grace_period_ends_what_the_edge_does_not() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let origin = Origin::start();
    let options = Options { grace_period: "1s", ..Options::default() };
    let mut connector = Connector::start(&edge, &origin.url(), options);
    edge.wait_for_registration();
    edge.tell(&json!({"do": "request", "id": "held", "dest": "https://test.example/hold"}));
    wait_for("the origin to have the request", || (!origin.seen().is_empty()).then_some(()));
    connector.signal("INT");
    edge.wait_for("unregistered", |_| true);
    let closed = edge.wait_for("closed", |_| true);
    assert_eq!((&closed["by"], &closed["code"]), (&json!("peer"), &json!(0)));
    assert_eq!(connector.process().wait().code(), Some(0));
}

#[test]
fn c38_a_second_signal_ends_at_once() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let origin = Origin::start();
    // Longer than a test waits: without the second signal this could not pass.
    let options = Options { grace_period: "170s", ..Options::default() };
    let mut connector = Connector::start(&edge, &origin.url(), options);
    edge.wait_for_registration();
    edge.tell(&json!({"do": "request", "id": "held", "dest": "https://test.example/hold"}));
    wait_for("the origin to have the request", || (!origin.seen().is_empty()).then_some(()));
    connector.signal("TERM");
    edge.wait_for("unregistered", |_| true);
    connector.signal("TERM");
    let status = connector.process().wait();
    assert!(!status.success(), "{status:?}");
}

#[test]
fn slow_an_edge_that_falls_silent_is_left_and_found_again() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let origin = Origin::start();
    let _connector = Connector::start(&edge, &origin.url(), Options::default());
    let first = edge.wait_for_registration();
    edge.tell(&json!({"do": "silence"}));
    let second = edge.wait_for_registration();
    assert_ne!(first["connection"], second["connection"]);
    assert_eq!(edge.exchange(&json!({"do": "request", "id": "again"})).status(), Some(200));
}

#[test]
fn slow_a_new_edge_at_the_old_address_is_found() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let origin = Origin::start();
    let _connector = Connector::start(&edge, &origin.url(), Options { connections: 2, ..Options::default() });
    edge.wait_for_registration();
    edge.wait_for_registration();
    let (addresses, certificates) = edge.kill();
    let mut edge = Edge::start_at(&python, &addresses, certificates);
    edge.wait_for_registration();
    edge.wait_for_registration();
    assert_eq!(edge.exchange(&json!({"do": "request", "id": "again"})).status(), Some(200));
}
