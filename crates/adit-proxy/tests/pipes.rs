//! Pipes that move content between sockets, and visitors and origins who take theirs slowly.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit_config::{OriginSettings, Service as OriginService};
use adit_proxy::drain::{self, DrainSignal};
use adit_proxy::h1::server::Options;
use adit_proxy::listen::{Listener, ListenerOptions};
use adit_proxy::message::{Request, Response, Service};
use adit_proxy::metrics::Metrics;
use adit_proxy::origin::Origin;
use http::StatusCode;
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Forwards everything to one origin.
struct Gateway(Origin);

impl Service for Gateway {
    async fn call(&self, request: Request) -> Response {
        self.0.send(request).await.unwrap_or_else(|_| Response::status(StatusCode::BAD_GATEWAY))
    }
}

/// A listener in front of an origin, and what it counts.
struct Proxy {
    address: SocketAddr,
    metrics: Registry,
    _drain: DrainSignal,
}

impl Proxy {
    fn start(origin: &TcpListener) -> Self {
        let metrics = Registry::new();
        let minute = Duration::from_secs(60);
        let options = ListenerOptions {
            name: "web".to_owned(),
            tls: None,
            switch: None,
            proxy_protocol: None,
            connections_max: 1000,
            reuse_port: false,
            device: None,
            unsent_bytes_max: None,
            lanes: None,
            connection: Options {
                header_timeout: minute,
                keep_alive_timeout: minute,
                body_idle_timeout: minute,
                write_idle_timeout: minute,
                read_timeout: None,
                write_timeout: None,
                head_bytes_max: 65_536,
                head_fields_max: 128,
                streams_max: 10,
                metrics: Arc::new(Metrics::new(&metrics).unwrap()),
            },
        };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, drained) = drain::channel();
        let authority = origin.local_addr().unwrap().to_string();
        let service = OriginService::Http { tls: false, authority };
        let origin = Origin::new(&service, &OriginSettings::default()).unwrap();
        tokio::spawn(listener.run(Arc::new(Gateway(origin)), drained));
        Self { address, metrics, _drain: drain }
    }

    async fn send(&self, head: &str) -> TcpStream {
        let mut visitor = TcpStream::connect(self.address).await.unwrap();
        visitor.write_all(head.as_bytes()).await.unwrap();
        visitor
    }

    /// What a counter or gauge says.
    fn counted(&self, name: &str) -> f64 {
        let families = self.metrics.gather();
        let metric = &families.iter().find(|family| family.name() == name).unwrap().get_metric()[0];
        metric.get_counter().get_value() + metric.get_gauge().get_value()
    }

    async fn until(&self, name: &str, reached: impl Fn(f64) -> bool) {
        let reached = async {
            while !reached(self.counted(name)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
    }
}

fn content() -> Arc<Vec<u8>> {
    Arc::new((0..16_000_000u32).map(|byte| (byte % 253) as u8).collect())
}

/// Answers one request a connection with `content`.
async fn give(origin: TcpListener, content: Arc<Vec<u8>>) {
    while let Ok((mut stream, _)) = origin.accept().await {
        let content = Arc::clone(&content);
        tokio::spawn(async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&content).await;
        });
    }
}

async fn read_all(mut visitor: TcpStream, content: &[u8]) {
    let mut answer = Vec::new();
    visitor.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(content), "{} of {} bytes", answer.len(), content.len());
}

#[tokio::test]
async fn slow_visitors_who_take_nothing_leave_the_pipes_to_others_and_get_their_content_all_the_same() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(&origin);
    let content = content();
    tokio::spawn(give(origin, Arc::clone(&content)));
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut stalled = Vec::new();
    for _ in 0..PIPES {
        stalled.push(proxy.send(request).await);
    }
    proxy.until("adit_proxy_splice_reclaimed_total", |count| count >= PIPES as f64).await;
    assert!(proxy.counted("adit_proxy_splice_pipes") <= 0.0, "nobody has one");
    let before = proxy.counted("adit_proxy_spliced_bytes_total");
    read_all(proxy.send(request).await, &content).await;
    let moved = proxy.counted("adit_proxy_spliced_bytes_total") - before;
    assert!(moved > 8e6, "who reads has a pipe: {moved}");
    assert!(proxy.counted("adit_proxy_splice_denied_total") <= 0.0, "nobody was refused one");
    for visitor in stalled {
        read_all(visitor, &content).await;
    }
    proxy.until("adit_proxy_splice_stranded_buffers", |count| count <= 0.0).await;
}

#[tokio::test]
async fn slow_origins_that_take_nothing_leave_the_pipes_to_others_and_get_their_content_all_the_same() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(&origin);
    let content = content();
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", content.len());
    let mut visitor = proxy.send(&head).await;
    let sent = Arc::clone(&content);
    let sending = tokio::spawn(async move {
        visitor.write_all(&sent).await.unwrap();
        visitor
    });
    let (mut stream, _) = origin.accept().await.unwrap();
    proxy.until("adit_proxy_splice_reclaimed_total", |count| count >= 1.0).await;
    assert!(proxy.counted("adit_proxy_splice_pipes") <= 0.0, "it is back");
    let mut taken = Vec::new();
    while !taken.ends_with(&content[content.len() - 1000..]) || taken.len() < content.len() {
        assert!(stream.read_buf(&mut taken).await.unwrap() > 0);
    }
    assert!(taken.ends_with(&content), "the content has changed on the way");
    stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut visitor = sending.await.unwrap();
    let mut answer = [0; 12];
    visitor.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 204");
}

/// As many as there are.
const PIPES: usize = 64;
