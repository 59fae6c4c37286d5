//! A stock `cloudflared` (2026.8) against our edge; runs where the environment's `CLOUDFLARED` names
//! the binary, else says that it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::VecDeque,
    future::poll_fn,
    path::Path,
    process::{Child, Command, Stdio},
};

use adit_tunnel::ResponseError;
use adit_tunnel_proto::{ConnectionType, HeaderPairs, RequestHead};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use support::{Identity, PATIENCE, RunningEdge, TUNNEL, eventually, options, read_all, write};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

/// A stock connector, killed when dropped.
struct Stock(Child);

impl Stock {
    fn start(identity: &Identity, edge: &RunningEdge, connections: u8, origin: &str) -> Option<Self> {
        let Some(binary) = std::env::var_os("CLOUDFLARED") else {
            println!("skipped: CLOUDFLARED does not name a stock binary");
            return None;
        };
        let token = options(identity, edge.address, 1).credentials.to_token();
        let mut command = Command::new(binary);
        command.args([
            "tunnel",
            "--no-autoupdate",
            "--no-prechecks",
            "--protocol",
            "quic",
            "--metrics",
            "127.0.0.1:0",
        ]);
        for _ in 0..connections {
            command.args(["--edge", &edge.address.to_string()]);
        }
        command.args(["--ha-connections", &connections.to_string(), "--grace-period", "5s", "--cacert"]);
        command.arg::<&Path>(&identity.ca);
        command.args(["run", "--token", &token, "--url", origin]);
        Some(Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An origin that upgrades and echoes what asks for it, and else answers with what it received.
async fn origin() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap_or(0));
                }
                let text = String::from_utf8_lossy(&head).to_lowercase();
                if text.contains("upgrade: websocket") {
                    let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    let (mut read, mut send) = stream.split();
                    drop(tokio::io::copy(&mut read, &mut send).await);
                    return;
                }
                let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
                let mut body = vec![0; length.and_then(|length| length.parse().ok()).unwrap_or(0)];
                stream.read_exact(&mut body).await.unwrap();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nX-Seen: yes\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.write_all(&body).await.unwrap();
            });
        }
    });
    format!("http://{address}")
}

fn request(method: Method) -> RequestHead {
    RequestHead::new(method, "http://a.home.example/x", "a.home.example")
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_a_stock_connector_registers_serves_and_drains() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let Some(mut stock) = Stock::start(&identity, &edge, 2, &origin().await) else { return };
    edge.wait_connections(2).await;

    let mut head = request(Method::POST);
    let body = Bytes::from(vec![b'x'; 3 << 20]);
    head.headers.insert("content-length", HeaderValue::from(body.len()));
    let mut opened = edge.handle.open(TUNNEL, &head).await.unwrap();
    let sender = {
        let body = body.clone();
        tokio::spawn(async move {
            write(&mut opened.send, body).await.unwrap();
            opened.send.finish();
        })
    };
    let (answer, mut back) = timeout(PATIENCE, opened.response.recv()).await.unwrap().unwrap();
    assert_eq!(
        (answer.status, &answer.headers.into_map()["x-seen"]),
        (StatusCode::OK, &HeaderValue::from_static("yes"))
    );
    assert_eq!(read_all(&mut back).await.unwrap(), body);
    sender.await.unwrap();

    let mut head = request(Method::GET);
    head.kind = ConnectionType::Websocket;
    let mut opened = edge.handle.open(TUNNEL, &head).await.unwrap();
    let (answer, mut back) = timeout(PATIENCE, opened.response.recv()).await.unwrap().unwrap();
    assert_eq!(answer.status, StatusCode::SWITCHING_PROTOCOLS);
    write(&mut opened.send, Bytes::from_static(b"frames")).await.unwrap();
    let mut chunks = VecDeque::new();
    assert!(poll_fn(|cx| back.poll_chunks(cx, &mut chunks)).await.unwrap());
    assert_eq!(chunks.concat_bytes(), b"frames");
    drop((opened.send, back));

    // SIGTERM: both unregister, the edge closes, the process ends at once with success (§3.6).
    let terminated = Command::new("kill").args(["-TERM", &stock.0.id().to_string()]).status().unwrap();
    assert!(terminated.success());
    edge.wait_connections(0).await;
    let mut status = None;
    eventually("end of the stock connector", || {
        status = stock.0.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_a_stock_connectors_dead_origin_is_told_in_words() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let Some(_stock) = Stock::start(&identity, &edge, 1, "http://127.0.0.1:1") else { return };
    edge.wait_connections(1).await;
    let mut opened = edge.handle.open(TUNNEL, &request(Method::GET)).await.unwrap();
    opened.send.finish();
    let error = timeout(PATIENCE, opened.response.recv()).await.unwrap().unwrap_err();
    assert!(matches!(&error, ResponseError::Origin(text) if text.contains("origin")), "{error:?}");
}

trait ConcatBytes {
    fn concat_bytes(&self) -> Vec<u8>;
}

impl ConcatBytes for VecDeque<Bytes> {
    fn concat_bytes(&self) -> Vec<u8> {
        self.iter().flatten().copied().collect()
    }
}
