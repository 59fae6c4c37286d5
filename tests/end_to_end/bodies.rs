//! Bodies: large, slow, many, in both directions.

use std::process::Command;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::adit::{Adit, BINARY};
use crate::support::curl::curl;
use crate::support::nginx::Nginx;
use crate::support::{TempFolder, project_root, require, require_python_with};
use crate::{start_connector, start_edge};

/// Resident memory of a process in KiB, at its peak.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

fn sha256(path: &std::path::Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("coreutils are there");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn slow_one_gibibyte_down_and_up_arrives_whole_at_constant_memory() {
    if !require("curl") || !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location / { dav_methods PUT; client_max_body_size 0; }");
    let folder = TempFolder::new("gibibyte");
    let source = folder.path().join("source");
    let file = std::fs::File::create(&source).expect("a file is made");
    let made = Command::new("head").args(["-c", "1G", "/dev/urandom"]).stdout(file).status();
    assert!(made.is_ok_and(|status| status.success()), "1 GiB of random bytes");
    let edge = start_edge("127.0.0.1:0");
    let mut connector = start_connector(&edge, &nginx.url());
    let web = edge.entry_point("web");
    let sent = curl(web, "http://a.home.test/file", &["--upload-file", &source.display().to_string()]);
    assert_eq!(sent.status, 201, "{}", sent.headers);
    let back = folder.path().join("back");
    let seen = curl(web, "http://a.home.test/file", &["--output", &back.display().to_string()]);
    assert_eq!(seen.status, 200, "{}", seen.headers);
    assert_eq!(sha256(&source), sha256(&back));
    let peak = peak_kib(connector.process().id());
    assert!(peak < 200 * 1024, "the connector's memory peaked at {peak} KiB");
}

#[test]
fn where_the_system_does_not_splice_large_content_arrives_whole_all_the_same() {
    let Some(python) = require_python_with("ctypes") else { return };
    if !require("curl") || !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location / { dav_methods PUT; }");
    let origin = nginx.address();
    let folder = TempFolder::new("content");
    let content: Vec<u8> = (0..12_000_000u32).map(|i| (i % 251) as u8).collect();
    let source = folder.write("source", &content).display().to_string();
    let configuration = format!(
        "entryPoints:\n  web: {{ address: \"127.0.0.1:0\" }}\n  raw: {{ address: \"127.0.0.1:0\" }}\n\
         admin: {{ address: \"127.0.0.1:0\" }}\nhttp:\n  \
         routers: {{ r: {{ rule: \"PathPrefix(`/`)\", service: s, entryPoints: [ web ] }} }}\n  \
         services: {{ s: {{ loadBalancer: {{ servers: [ {{ url: \"http://{origin}\" }} ] }} }} }}\ntcp:\n  \
         routers: {{ r: {{ rule: \"HostSNI(`*`)\", service: s, entryPoints: [ raw ] }} }}\n  \
         services: {{ s: {{ loadBalancer: {{ servers: [ {{ address: \"{origin}\" }} ] }} }} }}\n"
    );
    // EPERM, EINVAL, ENOSYS.
    for error in ["1", "22", "38"] {
        let mut command = Command::new(&python);
        command.arg(project_root().join("tests/peer/refuse_splice.py")).args([error, BINARY]);
        let mut adit = Adit::start_by(command, TempFolder::new("refused"), "refused", &configuration);
        for entry_point in ["web", "raw"] {
            let address = adit.entry_point(entry_point);
            let url = format!("http://a.test/{entry_point}{error}");
            let sent = curl(address, &url, &["--http1.1", "--upload-file", &source]);
            assert_eq!(sent.status, 201, "{entry_point} {error}: {}", sent.headers);
            let back = curl(address, &url, &["--http1.1"]);
            assert!(back.status == 200 && back.body == content, "{entry_point} {error}: {}", back.headers);
        }
        assert!(adit.metric("adit_proxy_spliced_bytes_total ") <= 0.0, "nothing was spliced");
        assert!(adit.metric("adit_proxy_splice_denied_total ") >= 1.0, "it is counted");
        assert!(adit.metric("adit_proxy_splice_pipes ") <= 0.0, "no pipe is kept");
        let said = adit.process().output().matches("splice_refused").count();
        assert_eq!(said, 1, "and said once:\n{}", adit.process().output());
    }
}

#[test]
fn two_hundred_requests_at_once_are_all_answered() {
    if !require("curl") || !require("nginx") {
        return;
    }
    let nginx = Nginx::start("");
    nginx.serve_file("small", vec![b's'; 1024]);
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, &nginx.url());
    let arguments = ["--parallel", "--parallel-immediate", "--parallel-max", "200", "--output", "/dev/null"];
    let seen = curl(edge.entry_point("web"), "http://a.home.test/small?[1-200]", &arguments);
    assert_eq!(seen.exit, Some(0), "{seen:?}");
    let answered = seen.headers.matches("HTTP/1.1 200").count();
    assert_eq!(answered, 200, "{}", seen.headers);
}

#[test]
fn an_unsized_upload_and_its_answer_stream_at_the_same_time() {
    if !require("curl") {
        return;
    }
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    let body = "x".repeat(300_000);
    let folder = TempFolder::new("upload");
    let path = folder.write("body", &body);
    let data = format!("@{}", path.display());
    let arguments =
        ["-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue", "--data-binary", &data];
    let seen = curl(edge.entry_point("web"), "http://a.home.test/echo", &arguments);
    assert_eq!((seen.status, seen.text() == body), (200, true), "{}", seen.headers);
}

#[test]
fn server_sent_events_come_one_by_one() {
    use std::io::{BufRead, BufReader, Write};
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    let mut stream = std::net::TcpStream::connect(edge.entry_point("web")).expect("the edge listens");
    write!(stream, "GET /sse?count=1000&every_ms=50 HTTP/1.1\r\nHost: a.home.test\r\n\r\n").expect("written");
    let lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
    // The first events are here long before the last is made; the visitor then leaves.
    let events = lines.map_while(Result::ok).filter(|line| line.starts_with("data: tick")).take(3).count();
    assert_eq!(events, 3);
}

#[test]
fn a_websocket_carries_messages_of_one_mebibyte() {
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    let address = edge.entry_point("web");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("the edge listens");
        let (mut socket, response) =
            tokio_tungstenite::client_async("ws://a.home.test/ws", stream).await.expect("a handshake");
        assert_eq!(response.status(), 101);
        for size in [1, 16 * 1024 + 1, 1024 * 1024] {
            let sent: Vec<u8> = (0..size).map(|i| i as u8).collect();
            socket.send(Message::binary(sent.clone())).await.expect("sent");
            let back = socket.next().await.expect("a message").expect("a message");
            assert_eq!(back.into_data(), sent);
        }
        socket.close(None).await.expect("closed");
    });
}
