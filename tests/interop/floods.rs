//! Floods over HTTP/2: ended by name or at no cost, while other visitors are served and memory stays bounded.

use serde_json::Value;

use crate::ingress::{Ingress, ask};
use crate::support::certificates::Certificates;
use crate::support::nginx::Nginx;
use crate::support::{require, require_python_with, wait_for};
use crate::watch::{Bystander, peak_kib};

/// What all floods together may add: each connection's windows, heads and buffers, not what was sent.
const GROWTH_KIB_MAX: u64 = 64 * 1024;

/// The same over HTTP/3: four connections with 4 MiB of windows in each direction, and with a batch of 256 KiB for each of
/// 100 answers that nobody takes.
const H3_GROWTH_KIB_MAX: u64 = 4 * (8 + 25) * 1024 + 16 * 1024;

#[test]
fn slow_http2_floods_are_bounded_and_hurt_nobody_else() {
    let Some(python) = require_python_with("hpack, hyperframe") else { return };
    if !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 ok; } location /large { }");
    nginx.serve_file("large", vec![0; 8 << 20]);
    let mut ingress = Ingress::to(&nginx.url());
    ingress.more.push_str("limits: { body-idle-timeout: 1s }\n");
    let mut adit = ingress.start();
    let web = adit.entry_point("web");
    let process = adit.process().id();
    let bystander = Bystander::start(web);
    let before = peak_kib(process);
    let report = ask(&python, "h2_floods.py", &[&web.to_string(), "2"]);
    let growth = peak_kib(process) - before;
    bystander.finish("HTTP/2 floods");
    let unexpected: Vec<String> = report
        .as_object()
        .expect("names and outcomes")
        .iter()
        .filter(|(name, outcomes)| !is_expected(name, outcomes))
        .map(|(name, outcomes)| format!("{name}: {outcomes}"))
        .collect();
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    assert!(growth < GROWTH_KIB_MAX, "{growth} KiB more");
    let count = |reason: &str| adit.metric(&format!("adit_proxy_refused_total{{reason=\"{reason}\"}}"));
    assert!(count("h2_protocol") >= 20.0, "{}", count("h2_protocol"));
    assert!(count("write_stalled") >= 1.0, "answers without window are given up by name");
    let log = adit.process().output();
    assert!(!log.contains("WRN"), "an attacker writes no lines into the log:\n{log}");
    wait_for("all of it to be over", || (adit.metric("adit_requests_in_flight ") == 0.0).then_some(()));
}

/// Floods that make work or hold memory end the connection; of those that do neither, each frame costs what it took to send.
fn is_expected(name: &str, outcomes: &Value) -> bool {
    let allowed: &[&str] = match name {
        "settings" | "ping" | "window_update" | "priority" | "unknown_frames" => {
            &["still open", "goaway 11", "closed"]
        }
        // Each head is refused without being kept, and enough of them end the connection.
        "hpack_bomb" => &["still open", "goaway 11", "closed"],
        "window_stall" | "slow_head" | "streams_held" => &["all sent", "closed"],
        _ => &["goaway 1", "goaway 11", "closed"],
    };
    let outcomes = outcomes.as_array().map(Vec::as_slice).unwrap_or_default();
    outcomes.len() == 4
        && outcomes
            .iter()
            .all(|outcome| outcome["ended"].as_str().is_some_and(|ended| allowed.contains(&ended)))
}

#[test]
fn slow_http3_floods_are_bounded_and_hurt_nobody_else() {
    let Some(python) = require_python_with("aioquic") else { return };
    if !require("nginx") {
        return;
    }
    let certificates = Certificates::for_names(&["h3.test"]);
    let nginx = Nginx::start("location / { return 200 ok; } location /large { }");
    nginx.serve_file("large", vec![0; 8 << 20]);
    let mut ingress = Ingress::to(&nginx.url())
        .with_tls(&certificates)
        .with("http3: {}, transport: { respondingTimeouts: { readHeaderTimeout: 1s } }");
    ingress.plain = true;
    ingress.more.push_str("limits: { body-idle-timeout: 1s }\n");
    let mut adit = ingress.start();
    let web = adit.entry_point("web");
    let process = adit.process().id();
    let bystander = Bystander::start(adit.entry_point("plain"));
    let before = peak_kib(process);
    let report = ask(&python, "h3_floods.py", &[&web.to_string(), "h3.test", "1.5"]);
    let growth = peak_kib(process) - before;
    bystander.finish("HTTP/3 floods");
    let unexpected: Vec<String> = report
        .as_object()
        .expect("names and outcomes")
        .iter()
        .filter(|(name, outcomes)| !is_expected_of_h3(name, outcomes))
        .map(|(name, outcomes)| format!("{name}: {outcomes}"))
        .collect();
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    assert!(growth < H3_GROWTH_KIB_MAX, "{growth} KiB more");
    let log = adit.process().output();
    assert!(!log.contains("WRN"), "an attacker writes no lines into the log:\n{log}");
    wait_for("all of it to be over", || (adit.metric("adit_requests_in_flight ") == 0.0).then_some(()));
    let count = |reason: &str| adit.metric(&format!("adit_proxy_refused_total{{reason=\"{reason}\"}}"));
    for reason in ["h3_head", "head_slow", "write_stalled"] {
        assert!(count(reason) >= 1.0, "nothing was refused as {reason}:\n{}", adit.get("/metrics").body);
    }
}

/// As over HTTP/2. The codes are H3_* of RFC 9114 §8.1 and QPACK_* of RFC 9204 §6, and QUIC's own below 0x100.
fn is_expected_of_h3(name: &str, outcomes: &Value) -> bool {
    // The `h3` crate announces no dynamic table and leaves QPACK's own streams unread: what is sent there stops at the
    // stream's window.
    let must_close = ["settings_again", "frame_never_ending"].contains(&name);
    let outcomes = outcomes.as_array().map(Vec::as_slice).unwrap_or_default();
    let fits = |ended: &str| ended.starts_with("closed 0x") || (ended == "open" && !must_close);
    outcomes.len() == 4 && outcomes.iter().all(|ended| ended.as_str().is_some_and(fits))
}
