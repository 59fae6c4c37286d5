//! C1 to C5, C15: what the connector says before and while it registers.

use crate::support::certificates::Certificates;
use crate::support::connector::{Connector, Options};
use crate::support::edge::{Edge, strings};
use crate::support::require_python;

/// A port where nothing listens: these tests send no request.
const NO_ORIGIN: &str = "http://127.0.0.1:9";

#[test]
fn c1_c2_hello_offers_the_tunnel_protocol_and_hybrid_key_exchange_first() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let hello = edge.wait_for("hello", |_| true);
    assert_eq!(hello["sni"], "quic.cftunnel.com");
    assert_eq!(strings(&hello["alpn"]), ["argotunnel"]);
    let groups = strings(&hello["groups"]);
    assert_eq!(groups[0], "0x11ec", "X25519MLKEM768 first: {groups:?}");
    assert!(groups.contains(&"0x0017".to_owned()), "P-256 for edges without it: {groups:?}");
    assert_eq!(strings(&hello["key_shares"])[0], "0x11ec");
    assert_eq!(strings(&hello["versions"]), ["0x0304"], "TLS 1.3 only");
    assert_eq!(hello["resumption"], false);
}

#[test]
fn c2_post_quantum_mode_offers_nothing_a_quantum_computer_breaks() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let before_run = vec!["--post-quantum".to_owned()];
    let _connector = Connector::start(&edge, NO_ORIGIN, Options { before_run, ..Options::default() });
    let hello = edge.wait_for("hello", |_| true);
    assert_eq!(strings(&hello["groups"]), ["0x11ec"]);
    let registered = edge.wait_for_registration();
    assert!(strings(&registered["features"]).contains(&"postquantum".to_owned()));
}

#[test]
fn c3_a_given_authority_replaces_all_others() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let stranger = Certificates::for_edge();
    let options = Options { authority: Some(stranger.authority()), ..Options::default() };
    let _connector = Connector::start(&edge, NO_ORIGIN, options);
    // RFC 9001 §4.8: a TLS alert travels as 0x100 plus its number.
    let closed = edge.wait_for("closed", |event| event["by"] == "peer");
    assert_eq!(closed["application"], false, "{closed}");
    assert!(closed["code"].as_u64().is_some_and(|code| (0x100..0x200).contains(&code)), "{closed}");
    assert!(edge.seen("registered").is_empty());
}

#[test]
fn c3_a_certificate_for_another_name_is_refused() {
    let Some(python) = require_python() else { return };
    let stranger = Certificates::for_names(&["other.example"]);
    let mut edge = Edge::start_at(&python, &["127.0.0.1:0".to_owned(), "127.0.0.1:0".to_owned()], stranger);
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let closed = edge.wait_for("closed", |event| event["by"] == "peer");
    assert_eq!(closed["application"], false, "{closed}");
    assert!(edge.seen("registered").is_empty());
}

#[test]
fn slow_c4_transport_parameters_allow_many_streams_and_silence_is_filled_with_pings() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let connected = edge.wait_for("connected", |_| true);
    let parameters = &connected["parameters"];
    assert_eq!(parameters["max_idle_timeout"], 5000, "milliseconds");
    // The original announces 2^60; what counts is that no edge runs out of them.
    assert!(
        parameters["initial_max_streams_bidi"].as_u64().is_some_and(|streams| streams >= 1000),
        "{parameters}"
    );
    assert!(parameters["max_datagram_frame_size"].as_u64().is_some_and(|bytes| bytes > 0), "{parameters}");
    assert_eq!(connected["source_id_bytes"], 0, "a connector's connection id is empty");
    edge.wait_for_registration();
    // Probes for a larger packet size are padded; a keep-alive is not.
    for _ in 0..3 {
        edge.wait_for("ping", |event| event["packet_bytes"].as_u64().is_some_and(|bytes| bytes < 100));
    }
    assert!(edge.seen("closed").is_empty());
}

#[test]
fn c5_c6_the_first_stream_is_rpc_and_the_registration_waits_for_nothing() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let opened = edge.wait_for("opened", |_| true);
    assert_eq!(opened["stream"], 0);
    let first = opened["first"].as_str().unwrap_or_default();
    assert!(first.starts_with("00000000"), "one segment, no signature: {first}");
    let bootstrap = edge.wait_for("rpc", |_| true);
    assert_eq!(bootstrap["message"], "bootstrap");
    let call = edge.wait_for("rpc", |_| true);
    assert_eq!(call["message"], "call", "{call}");
    assert_eq!(call["interface"], "0xf71695ec7fe85497");
    assert_eq!(call["method"], 0);
    assert_eq!(call["target"], "promisedAnswer", "pipelined on the bootstrap");
    assert_eq!(call["target_id"], bootstrap["question"]);
    assert_eq!(call["transform"], 0);
    edge.wait_for_registration();
    // Both questions are finished, so that the edge may forget them.
    for question in [&bootstrap["question"], &call["question"]] {
        edge.wait_for("rpc", |event| event["message"] == "finish" && event["question"] == *question);
    }
}

#[test]
fn slow_c15_a_reconnect_comes_from_the_same_local_port() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let _connector = Connector::start(&edge, NO_ORIGIN, Options::default());
    let first = edge.wait_for_registration();
    edge.tell(&serde_json::json!({"do": "close", "code": 0}));
    let second = edge.wait_for_registration();
    assert_eq!(first["remote"], second["remote"]);
    assert_ne!(first["connection"], second["connection"]);
    assert_eq!(first["client"], second["client"], "the connector's id lasts as long as the process");
}
