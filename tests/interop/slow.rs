//! Visitors who take their time, by slowhttptest and by the thousand: given up by name, and nobody else waits for them.

use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::ingress::Ingress;
use crate::support::adit::Adit;
use crate::support::nginx::Nginx;
use crate::support::process::Process;
use crate::support::visitor::Visitor;
use crate::support::{TempFolder, require, wait_for};
use crate::watch::{Bystander, peak_kib};

/// An nginx with something large to read, and adit with short patience before it.
fn start() -> Option<(Nginx, Adit)> {
    if !require("nginx") || !require("slowhttptest") {
        return None;
    }
    let nginx = Nginx::start(
        "location / { return 200 ok; } location /large { } location /upload { proxy_pass http://127.0.0.1:1; }",
    );
    nginx.serve_file("large", vec![b'x'; 32 << 20]);
    let mut ingress =
        Ingress::to(&nginx.url()).with("transport: { respondingTimeouts: { readHeaderTimeout: 1s } }");
    ingress.more.push_str("limits: { body-idle-timeout: 1s }\n");
    Some((nginx, ingress.start()))
}

/// Runs slowhttptest beside a bystander and returns how much memory it cost in KiB.
fn attack(adit: &mut Adit, arguments: &[&str], path: &str) -> u64 {
    let web = adit.entry_point("web");
    let process = adit.process().id();
    let before = peak_kib(process);
    let bystander = Bystander::start(web);
    let mut command = Command::new("slowhttptest");
    command.args(arguments).args(["-l", "5", "-v", "0", "-p", "5", "-u"]).arg(format!("http://{web}{path}"));
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).status();
    assert!(status.is_ok(), "{status:?}");
    bystander.finish(arguments[0]);
    wait_for("all of it to be over", || (adit.metric("adit_requests_in_flight ") == 0.0).then_some(()));
    peak_kib(process) - before
}

#[test]
fn slow_heads_are_given_up_by_name() {
    let Some((_nginx, mut adit)) = start() else { return };
    let growth = attack(&mut adit, &["-H", "-c", "400", "-r", "400", "-i", "2"], "/");
    let refused = adit.metric("adit_proxy_refused_total{reason=\"head_slow\"}");
    assert!(refused >= 300.0, "{refused} heads were given up");
    assert!(growth < allowance(400), "{growth} KiB more");
}

#[test]
fn slow_bodies_are_given_up_by_name() {
    let Some((_nginx, mut adit)) = start() else { return };
    let growth = attack(&mut adit, &["-B", "-c", "200", "-r", "400", "-i", "3", "-s", "8192"], "/upload");
    let failed = adit.metric("adit_requests_failed_total{reason=\"body_idle\"}");
    assert!(failed >= 100.0, "{failed} bodies were given up");
    assert!(growth < allowance(200), "{growth} KiB more");
}

#[test]
fn slow_readers_are_given_up_by_name() {
    let Some((_nginx, mut adit)) = start() else { return };
    let arguments = ["-X", "-c", "100", "-r", "400", "-w", "512", "-y", "1024", "-n", "4", "-z", "32"];
    let growth = attack(&mut adit, &arguments, "/large");
    let refused = adit.metric("adit_proxy_refused_total{reason=\"write_stalled\"}");
    assert!(refused >= 50.0, "{refused} answers were given up");
    // The system's own buffers are not the process' memory; ours is a batch for each.
    assert!(growth < 100 * 1024, "{growth} KiB more");
}

#[test]
fn slow_range_attacks_cost_nothing() {
    let Some((_nginx, mut adit)) = start() else { return };
    let growth =
        attack(&mut adit, &["-R", "-c", "100", "-r", "400", "-a", "1", "-b", "3000", "-t", "HEAD"], "/large");
    assert!(growth < allowance(100), "{growth} KiB more");
}

#[test]
fn slow_thousands_of_idle_connections_hurt_nobody_else() {
    if !require("nginx") || !require("prlimit") {
        return;
    }
    // A descriptor each on this side; what the process may have was set by whoever started it.
    let own = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &own, "--nofile=16384:"]).status();
    assert!(raised.is_ok_and(|status| status.success()), "the system allows a test 16,384 descriptors");
    let nginx = Nginx::start("location / { return 200 ok; }");
    let mut adit = Ingress::to(&nginx.url()).start();
    let (web, process) = (adit.entry_point("web"), adit.process().id());
    let before = peak_kib(process);
    let bystander = Bystander::start(web);
    // Half of them have asked before and could ask again, half have not said a word.
    let asked: Vec<Visitor> = (0..IDLE / 2)
        .map(|_| {
            let mut visitor = Visitor::connect(web).expect("within the limit");
            assert_eq!(visitor.get("a.test", "/").expect("an answer").status, 200);
            visitor
        })
        .collect();
    let silent: Vec<TcpStream> =
        (0..IDLE / 2).map(|_| TcpStream::connect(web).expect("within the limit")).collect();
    wait_for("all of them to be accepted", || {
        (adit.metric("adit_proxy_connections ") >= IDLE as f64 * 0.95).then_some(())
    });
    bystander.finish("idle connections");
    let growth = peak_kib(process) - before;
    assert!(growth < allowance(IDLE as u64), "{growth} KiB for {IDLE} connections");
    assert_eq!((asked.len(), silent.len()), (IDLE / 2, IDLE / 2));
}

#[test]
fn a_full_entry_point_says_so_and_goes_on_when_someone_leaves() {
    let mut ingress = Ingress::to("http://127.0.0.1:1");
    ingress.more.push_str("limits: { connections: 2 }\n");
    let adit = ingress.start();
    let web = adit.entry_point("web");
    let full = || adit.metric("adit_proxy_refused_total{reason=\"connections_full\"}");
    let mut early: Vec<Visitor> = (0..2).map(|_| Visitor::connect(web).expect("within the limit")).collect();
    assert_eq!(early[1].get("a.test", "/").expect("an answer").status, 502);
    wait_for("the limit to be counted", || (full() == 1.0).then_some(()));
    let mut late = Visitor::connect(web).expect("the system takes it");
    early.pop();
    assert_eq!(late.get("a.test", "/").expect("an answer").status, 502);
    wait_for("the limit to bite again", || (full() == 2.0).then_some(()));
}

#[test]
fn the_soft_limit_on_descriptors_is_raised() {
    let folder = TempFolder::new("descriptors");
    let configuration = "entryPoints: { web: { address: \"127.0.0.1:0\" } }\nadmin: { address: \"127.0.0.1:0\" }\n\
        http: { routers: { r: { rule: \"PathPrefix(`/`)\", service: s } }, services: { s: { loadBalancer: { servers: [ { url: \"http://127.0.0.1:1\" } ] } } } }\n";
    let path = folder.write("adit.yaml", configuration);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 256 && exec \"$0\" run --config \"$1\"", env!("CARGO_BIN_EXE_adit")])
        .arg(path);
    let mut process = Process::start("descriptors", command.stdin(Stdio::null()));
    process.wait_for_line("Starting metrics server on ");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).expect("Linux tells");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let soft: u64 = line.split_whitespace().nth(3).and_then(|word| word.parse().ok()).expect("a number");
    assert!(soft > 256, "{line}");
}

/// Connections held at once: half of what one entry point takes, as each takes a port from the other tests too.
const IDLE: usize = 5000;
/// What so many connections may add to the process in KiB, beside what any first visitors add.
fn allowance(connections: u64) -> u64 {
    16 * 1024 + connections * PER_CONNECTION_KIB
}

/// What a connection may cost: its buffer of 4 KiB, its task, and what its request holds.
const PER_CONNECTION_KIB: u64 = 16;
