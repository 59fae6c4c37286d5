//! A stock cloudflared as the connector of our edge: named by `CLOUDFLARED`, or found on PATH, else skipped. It cannot be
//! installed from a package registry, so CI does not require it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::adit::Adit;
use crate::support::curl::curl;
use crate::support::load::{Load, Outcome};
use crate::support::nginx::Nginx;
use crate::support::process::Process;
use crate::support::{TempFolder, find_program, note, require, wait_for};
use crate::{TOKEN, start_edge};

fn stock() -> Option<PathBuf> {
    let found = std::env::var_os("CLOUDFLARED").map(PathBuf::from).or_else(|| find_program("cloudflared"));
    if found.is_none() {
        note("skipped: no cloudflared on PATH or in CLOUDFLARED");
    }
    found
}

#[track_caller]
fn start_stock(program: &PathBuf, edge: &Adit, origin: &str) -> Process {
    let address = edge.edge().to_string();
    let ca = edge.folder().path().join("state/edge-ca.pem").display().to_string();
    let mut command = Command::new(program);
    command
        .args(["tunnel", "--edge", &address, "--edge", &address, "--cacert", &ca, "--protocol", "quic"])
        .args(["--no-autoupdate", "--no-prechecks", "--grace-period", "5s", "--metrics", "127.0.0.1:0"])
        .args(["run", "--token", TOKEN, "--url", origin])
        .stdin(Stdio::null());
    let process = Process::start("cloudflared", &mut command);
    edge.wait_for_connections(2);
    process
}

#[test]
fn slow_stock_requests_bodies_and_websockets_cross_our_edge() {
    let Some(program) = stock() else { return };
    if !require("curl") || !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location /up { dav_methods PUT; }\nlocation /gone { return 204; }");
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_stock(&program, &edge, &nginx.url());
    let web = edge.entry_point("web");
    let folder = TempFolder::new("stock");
    let content: Vec<u8> = (0..20_000_000_u32).map(|i| (i % 251) as u8).collect();
    let source = folder.write("source", &content);
    let upload = ["--upload-file", &source.display().to_string()];
    assert_eq!(curl(web, "http://a.home.test/up", &upload).status, 201);
    assert!(curl(web, "http://a.home.test/up", &[]).body == content, "what went up comes down");
    let chunked = [&upload[..], &["-H", "Transfer-Encoding: chunked"]].concat();
    assert_eq!(curl(web, "http://a.home.test/up", &chunked).status, 204, "replaced");
    assert_eq!(curl(web, "http://a.home.test/gone", &[]).status, 204);
    assert_eq!(curl(web, "http://a.home.test/none", &[]).status, 404);
    nginx.serve_file("small", vec![b's'; 1024]);
    let arguments = ["--parallel", "--parallel-immediate", "--parallel-max", "200", "--output", "/dev/null"];
    let seen = curl(web, "http://a.home.test/small?[1-200]", &arguments);
    assert_eq!(seen.headers.matches("HTTP/1.1 200").count(), 200, "{}", seen.headers);
}

#[test]
fn stock_carries_websocket_messages_of_one_mebibyte() {
    let Some(program) = stock() else { return };
    // Our own sample origin answers on a listener of its own, behind the stock connector.
    let behind = start_edge("127.0.0.1:0");
    let _hello = crate::start_connector(&behind, "hello_world");
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_stock(&program, &edge, &format!("http://{}", behind.entry_point("web")));
    let address = edge.entry_point("web");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("the edge listens");
        let handshake = tokio_tungstenite::client_async("ws://a.home.test/ws", stream);
        let (mut socket, _) = handshake.await.expect("a handshake");
        for size in [1, 16 * 1024 + 1, 1024 * 1024] {
            let sent: Vec<u8> = (0..size).map(|i| i as u8).collect();
            socket.send(Message::binary(sent.clone())).await.expect("sent");
            assert_eq!(socket.next().await.expect("a message").expect("a message").into_data(), sent);
        }
        socket.close(None).await.expect("closed");
    });
}

#[test]
fn slow_stock_leaves_without_a_failed_request_and_a_killed_one_is_replaced() {
    let Some(program) = stock() else { return };
    if !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 ok; }");
    let edge = start_edge("127.0.0.1:0");
    let mut first = start_stock(&program, &edge, &nginx.url());
    let load = Load::start(edge.entry_point("web"), "a.home.test", "/", 4);
    let answered = || edge.metric("adit_requests_total{class=\"2xx\"}");
    wait_for("some load", || (answered() > 50.0).then_some(()));
    let address = edge.edge().to_string();
    let ca = edge.folder().path().join("state/edge-ca.pem").display().to_string();
    let mut command = Command::new(&program);
    command
        .args(["tunnel", "--edge", &address, "--edge", &address, "--cacert", &ca, "--protocol", "quic"])
        .args(["--no-autoupdate", "--no-prechecks", "--metrics", "127.0.0.1:0", "run", "--token", TOKEN])
        .args(["--url", &nginx.url()])
        .stdin(Stdio::null());
    let mut second = Process::start("cloudflared", &mut command);
    edge.wait_for_connections(4);
    first.signal("TERM");
    first.wait();
    edge.wait_for_connections(2);
    let count = answered();
    wait_for("requests through the second", || (answered() > count + 50.0).then_some(()));
    let outcomes = load.finish();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Answered(200)), "{outcomes:?}");
    second.signal("KILL");
    second.wait();
    wait_for("the edge to notice", || {
        edge.status()["edge"]["tunnels"][0]["connections"].as_array()?.is_empty().then_some(())
    });
    let _third = start_stock(&program, &edge, &nginx.url());
    let count = answered();
    let load = Load::start(edge.entry_point("web"), "a.home.test", "/", 1);
    wait_for("requests through the third", || (answered() > count + 5.0).then_some(()));
    load.finish();
}
