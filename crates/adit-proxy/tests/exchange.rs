//! Visitor → our server → our client → our server as the origin: both codecs against raw sockets.
//! Interop with other people's clients and origins is tested with the real binary (`tests/` at the root).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use adit_config::{OriginSettings, Service as OriginService};
use adit_proxy::body::{Batch, Body, BodyError, BodySource, Length};
use adit_proxy::drain::{self, DrainSignal};
use adit_proxy::h1::server::Options;
use adit_proxy::listen::{Listener, ListenerOptions};
use adit_proxy::message::{Request, Response, Service};
use adit_proxy::metrics::Metrics;
use adit_proxy::origin::Origin;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Answers by path; stands in for an application.
struct Application;

impl Service for Application {
    async fn call(&self, mut request: Request) -> Response {
        match request.uri.path() {
            "/echo" => {
                let length = request.body.length();
                let mut response = Response::status(StatusCode::OK);
                let framing = match length {
                    Length::Known(bytes) => format!("length {bytes}"),
                    other => format!("{other:?}").to_lowercase(),
                };
                response.headers.insert("x-framing", HeaderValue::from_str(&framing).unwrap());
                response.body = request.body;
                response
            }
            "/count" => {
                let mut count = 0;
                loop {
                    let mut batch = Batch::new();
                    let more = poll_fn(|cx| request.body.poll_chunks(cx, &mut batch)).await.unwrap();
                    count += batch.iter().map(Bytes::len).sum::<usize>();
                    if !more {
                        return Response::text(StatusCode::OK, "text/plain", count.to_string());
                    }
                }
            }
            "/misled" => {
                let mut response = Response::text(StatusCode::OK, "text/plain", "hello");
                for (name, value) in
                    [("transfer-encoding", "chunked"), ("connection", "upgrade"), ("upgrade", "x")]
                {
                    response.headers.insert(name, HeaderValue::from_static(value));
                }
                response
            }
            "/announced" => {
                let mut response = Response::status(StatusCode::OK);
                response.headers.insert("trailer", HeaderValue::from_static("X-Trailer"));
                response.body = request.body;
                response
            }
            "/flood" => {
                let mut response = Response::status(StatusCode::OK);
                response.body = Body::stream(Flood { upload: request.body }, Length::Unknown);
                response
            }
            "/early" => Response::text(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "no"),
            "/hang" => std::future::pending().await,
            "/none" => Response::status(StatusCode::NO_CONTENT),
            "/fields" => {
                let mut text = format!("{} {} host={}\n", request.method, request.uri, request.host);
                for (name, value) in &request.headers {
                    text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
                }
                Response::text(StatusCode::OK, "text/plain", text)
            }
            "/raw" => {
                let mut response = Response::status(StatusCode::SWITCHING_PROTOCOLS);
                response.headers.insert("connection", HeaderValue::from_static("upgrade"));
                response.headers.insert("upgrade", HeaderValue::from_static("raw"));
                response.body = request.body;
                response
            }
            "/late" => {
                let mut response = Response::status(StatusCode::SWITCHING_PROTOCOLS);
                response.headers.insert("upgrade", HeaderValue::from_static("raw"));
                response.body = Body::stream(Late(request.body), Length::Raw);
                response
            }
            _ => Response::text(StatusCode::OK, "text/plain", "hello"),
        }
    }
}

/// Speaks only after the other side has ended its direction.
struct Late(Body);

impl BodySource for Late {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let mut ignored = Batch::new();
        while ready!(self.0.poll_chunks(cx, &mut ignored))? {}
        out.push_back("late".into());
        Poll::Ready(Ok(false))
    }
}

/// An answer without an end, beside an upload that is read as it comes.
struct Flood {
    upload: Body,
}

impl BodySource for Flood {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        self.poll_background(cx);
        out.push_back(Bytes::from_static(&[b'x'; 256 * 1024]));
        if !self.upload.is_empty() {
            FLOOD_MADE.fetch_add(256 * 1024, Ordering::Relaxed);
        }
        Poll::Ready(Ok(true))
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        let mut batch = Batch::new();
        while let Poll::Ready(Ok(true)) = self.upload.poll_chunks(cx, &mut batch) {}
        FLOOD_READ.fetch_add(batch.iter().map(Bytes::len).sum(), Ordering::Relaxed);
    }
}

static FLOOD_MADE: AtomicUsize = AtomicUsize::new(0);
static FLOOD_READ: AtomicUsize = AtomicUsize::new(0);

/// Forwards everything to one origin.
struct Gateway(Origin);

impl Service for Gateway {
    async fn call(&self, request: Request) -> Response {
        match self.0.send(request).await {
            Ok(response) => response,
            Err(error) => Response::text(StatusCode::BAD_GATEWAY, "text/plain", error.reason()),
        }
    }
}

struct Chain {
    address: SocketAddr,
    origin_drain: DrainSignal,
    drain: DrainSignal,
    metrics: prometheus::Registry,
}

fn options(metrics: &prometheus::Registry) -> Options {
    Options {
        header_timeout: Duration::from_millis(300),
        keep_alive_timeout: Duration::from_secs(30),
        body_idle_timeout: Duration::from_secs(30),
        write_idle_timeout: Duration::from_secs(30),
        read_timeout: None,
        write_timeout: None,
        head_bytes_max: 8 * 1024,
        head_fields_max: 100,
        streams_max: 100,
        metrics: Arc::new(Metrics::new(metrics).unwrap()),
    }
}

fn listen<S: Service>(service: S, metrics: &prometheus::Registry) -> (SocketAddr, DrainSignal) {
    listen_with(service, options(metrics))
}

fn listen_with<S: Service>(service: S, connection: Options) -> (SocketAddr, DrainSignal) {
    let options = ListenerOptions {
        name: "test".to_owned(),
        tls: None,
        switch: None,
        proxy_protocol: None,
        connections_max: 100,
        reuse_port: false,
        device: None,
        unsent_bytes_max: None,
        lanes: None,
        connection,
    };
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let address = listener.local_addr().unwrap();
    let (signal, drained) = drain::channel();
    tokio::spawn(listener.run(Arc::new(service), drained));
    (address, signal)
}

fn chain() -> Chain {
    let (origin, origin_drain) = listen(Application, &prometheus::Registry::new());
    let service = OriginService::Http { tls: false, authority: origin.to_string() };
    let metrics = prometheus::Registry::new();
    let gateway = Gateway(Origin::new(&service, &OriginSettings::default()).unwrap());
    let (address, drain) = listen(gateway, &metrics);
    Chain { address, origin_drain, drain, metrics }
}

impl Chain {
    /// Sends bytes, reads until the server closes.
    async fn converse(&self, text: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn refused(&self, reason: &str) -> u64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|f| f.name() == "adit_proxy_refused_total");
        family.map_or(0, |f| {
            f.get_metric()
                .iter()
                .filter(|m| m.get_label().iter().any(|l| l.value() == reason))
                .map(|m| m.get_counter().get_value() as u64)
                .sum()
        })
    }
}

#[tokio::test]
async fn content_comes_back_with_the_framing_it_was_sent_with() {
    let chain = chain();
    let answer = chain
        .converse("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        .await;
    assert!(
        answer.contains("X-Framing: length 5\r\n") && answer.contains("Content-Length: 5\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    let answer = chain
        .converse(
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
             3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n",
        )
        .await;
    assert!(
        answer.contains("X-Framing: unknown\r\n") && answer.contains("Transfer-Encoding: chunked"),
        "{answer}"
    );
    assert!(answer.ends_with("0\r\nX-Trailer: 1\r\n\r\n"), "trailers cross both hops: {answer}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let chain = chain();
    let answer = chain
        .converse(
            "GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz\
             GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
    let statuses: Vec<&str> = answer.matches("HTTP/1.1 ").collect();
    assert_eq!(statuses.len(), 3, "{answer}");
    assert!(answer.contains("\r\n\r\n3HTTP/1.1 204"), "{answer}");
    let last = answer.rsplit("HTTP/1.1 204").next().unwrap();
    assert!(!last.to_lowercase().contains("content-length"), "204 has no content: {last}");
}

#[tokio::test]
async fn the_hop_by_hop_fields_of_a_visitor_stay_at_the_hop() {
    let chain = chain();
    let answer = chain
        .converse(
            "GET /fields?q=%41 HTTP/1.1\r\nHost: Site.Example:81\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
             Keep-Alive: 5\r\nX-Two: a\r\nX-Two: b\r\nTe: trailers\r\nProxy-Authorization: x\r\n\r\n",
        )
        .await;
    assert!(answer.contains("GET /fields?q=%41 host=Site.Example:81\n"), "{answer}");
    assert!(answer.contains("x-two: a\nx-two: b\n"), "{answer}");
    for gone in ["x-hop", "keep-alive", "proxy-authorization"] {
        assert!(!answer.contains(&format!("\n{gone}:")), "{gone} in {answer}");
    }
}

#[tokio::test]
async fn a_head_answer_tells_the_length_and_has_no_content() {
    let chain = chain();
    let answer = chain.converse("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("Content-Length: 5\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_ambiguous_request_is_refused_and_the_connection_closed() {
    let chain = chain();
    for (text, reason) in [
        ("GET / HTTP/1.1\nHost: a\n\n", "head_bare_lf"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "framing_both",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", "head_obs_fold"),
    ] {
        let answer = chain.converse(format!("{text}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "nothing after it is answered: {answer}");
        assert_eq!(chain.refused(reason), 1, "{reason}");
    }
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused_with_431() {
    let chain = chain();
    let answer =
        chain.converse(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(9000))).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(chain.refused("head_too_large"), 1);
}

#[tokio::test]
async fn slow_heads_are_given_up_with_408() {
    let chain = chain();
    let answer = chain.converse("GET / HTTP/1.1\r\nHost:").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(chain.refused("head_slow"), 1);
}

#[tokio::test]
async fn continue_is_sent_only_when_the_content_is_wanted() {
    let chain = chain();
    let mut stream = TcpStream::connect(chain.address).await.unwrap();
    let head = "POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"data").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n4"), "{answer}");
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let chain = chain();
    let mut stream = TcpStream::connect(chain.address).await.unwrap();
    let head = "GET /raw HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    for round in 0..3 {
        let sent = vec![round; 100_000];
        let (mut read, mut write) = stream.split();
        let mut got = vec![0; sent.len()];
        let (_, _) = tokio::try_join!(write.write_all(&sent), read.read_exact(&mut got)).unwrap();
        assert_eq!(got, sent);
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the end crosses both hops and comes back");
}

#[tokio::test]
async fn a_visitor_that_leaves_ends_the_exchange_with_the_origin() {
    let chain = chain();
    let mut stream = TcpStream::connect(chain.address).await.unwrap();
    stream.write_all(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    drop(stream);
    // The origin's drain ends only when its connection is gone; /hang would keep it for ever.
    aborted(&chain.metrics).await;
    chain.origin_drain.start();
}

/// Waits until an answer has not been finished.
async fn aborted(metrics: &prometheus::Registry) {
    let aborted = async {
        loop {
            let families = metrics.gather();
            let family = families.iter().find(|f| f.name() == "adit_proxy_aborted_total").unwrap();
            if family.get_metric()[0].get_counter().get_value() >= 1.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), aborted).await.expect("an answer is given up");
}

#[tokio::test]
async fn the_time_for_an_answer_ends_also_while_the_visitor_has_no_room_for_it() {
    let limited = |metrics: &prometheus::Registry| Options {
        write_timeout: Some(Duration::from_millis(300)),
        ..options(metrics)
    };
    // Copied, over HTTP/1.1 and HTTP/2.
    let metrics = prometheus::Registry::new();
    let (address, _drain) = listen_with(Application, limited(&metrics));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    aborted(&metrics).await;
    let metrics = prometheus::Registry::new();
    let (address, _drain) = listen_with(Application, limited(&metrics));
    let io = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(io).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = http::Request::get("http://a/flood").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let mut content = response.await.unwrap().into_body();
    let broken = async { while content.data().await.is_some_and(|data| data.is_ok()) {} };
    // No credit is given back: the window is soon used up, and then comes the reset.
    tokio::time::timeout(Duration::from_secs(20), broken).await.expect("the stream is reset");
    driver.abort();
    // Moved by the kernel.
    let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = OriginService::Http { tls: false, authority: origin.local_addr().unwrap().to_string() };
    tokio::spawn(send_content(origin, Arc::new(vec![b'x'; 64 * 1024 * 1024])));
    let metrics = prometheus::Registry::new();
    let gateway = Gateway(Origin::new(&service, &OriginSettings::default()).unwrap());
    let (address, _drain) = listen_with(gateway, limited(&metrics));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    aborted(&metrics).await;
}

#[tokio::test]
async fn an_upload_that_goes_on_adds_nothing_to_an_answer_that_is_stuck() {
    let (address, _drain) = listen(Application, &prometheus::Registry::new());
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST /flood HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    for sent in 0..500 {
        stream.write_all(b"1\r\nx\r\n").await.unwrap();
        let read = async {
            while FLOOD_READ.load(Ordering::Relaxed) <= sent {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("the upload goes on");
    }
    let made = FLOOD_MADE.load(Ordering::Relaxed);
    // What the kernel's buffers take, and one batch.
    assert!(made < 32 * 1024 * 1024, "{made} bytes were made for a visitor that reads nothing");
}

#[tokio::test]
async fn an_early_answer_to_a_large_upload_still_arrives() {
    let chain = chain();
    let mut stream = TcpStream::connect(chain.address).await.unwrap();
    let head = "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![0; 100_000]).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn large_bodies_pass_in_both_directions_at_once() {
    let chain = chain();
    let stream = TcpStream::connect(chain.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let size = 64 * 1024 * 1024_usize;
    let upload = tokio::spawn(async move {
        let head =
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let block = vec![7; 1024 * 1024];
        for _ in 0..size / block.len() {
            write.write_all(&block).await.unwrap();
        }
        write
    });
    let mut total = Vec::new();
    read.read_to_end(&mut total).await.unwrap();
    let _write = upload.await.unwrap();
    let body = total.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(total.len() - body, size);
    assert!(total[body..].iter().all(|b| *b == 7));
}

#[tokio::test]
async fn a_drain_closes_idle_connections_and_finishes_the_others() {
    let chain = chain();
    let mut idle = TcpStream::connect(chain.address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut first = vec![0; 4096];
    let _ = idle.read(&mut first).await.unwrap();
    let mut busy = TcpStream::connect(chain.address).await.unwrap();
    busy.write_all(b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1").await.unwrap();
    let (mut wait, mut never) = (Vec::new(), Vec::new());
    chain.drain.start();
    idle.read_to_end(&mut wait).await.unwrap();
    busy.write_all(b"2").await.unwrap();
    busy.read_to_end(&mut never).await.unwrap();
    let answer = String::from_utf8_lossy(&never);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("Connection: close"), "{answer}");
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served_on_the_same_port() {
    let chain = chain();
    let stream = TcpStream::connect(chain.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder().method(Method::POST).uri("http://a/count").body(()).unwrap();
    let (response, mut stream) = client.send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"12345"), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(body.data().await.unwrap().unwrap(), "5");
    let _ = Body::empty();
}

#[tokio::test]
async fn bytes_behind_a_refused_upgrade_never_reach_the_origin_as_a_request() {
    let chain = chain();
    let answer = chain
        .converse(
            "GET /fields HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
             GET /second HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
    // The origin refused to switch: what follows is the visitor's next request, read and routed by us.
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert!(answer.contains("GET /fields host=a\n") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn an_upgraded_origin_may_speak_after_the_visitor_has_ended_its_direction() {
    let chain = chain();
    let mut stream = TcpStream::connect(chain.address).await.unwrap();
    stream
        .write_all(b"GET /late HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\nbye")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\nlate"), "{answer}");
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_is_a_bad_answer() {
    let chain = chain();
    let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, _drain) = listen(Gateway(origin_at(&origin)), &prometheus::Registry::new());
    tokio::spawn(async move {
        let (mut stream, _) = origin.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await.unwrap();
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nraw").await.unwrap();
        std::future::pending::<()>().await;
    });
    let chain = Chain { address, ..chain };
    let answer = chain.converse("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.ends_with("origin_head_invalid"), "{answer}");
}

/// The origin that listens there.
fn origin_at(listener: &tokio::net::TcpListener) -> Origin {
    let authority = listener.local_addr().unwrap().to_string();
    Origin::new(&OriginService::Http { tls: false, authority }, &OriginSettings::default()).unwrap()
}

/// Answers each request of each connection with `content` after its length, or with half of it and an end.
async fn send_content(origin: tokio::net::TcpListener, content: Arc<Vec<u8>>) {
    while let Ok((mut stream, _)) = origin.accept().await {
        let content = Arc::clone(&content);
        tokio::spawn(async move {
            let mut request = vec![0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut request).await {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
                let _ = stream.write_all(head.as_bytes()).await;
                if request[..length].starts_with(b"GET /half") {
                    let _ = stream.write_all(&content[..content.len() / 2]).await;
                    return;
                }
                let _ = stream.write_all(&content).await;
            }
        });
    }
}

#[tokio::test]
async fn much_content_goes_from_socket_to_socket_and_the_connections_stay() {
    let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics = prometheus::Registry::new();
    let (address, _drain) = listen(Gateway(origin_at(&origin)), &metrics);
    let content: Arc<Vec<u8>> = Arc::new((0..5_000_000u32).map(|byte| (byte % 253) as u8).collect());
    tokio::spawn(send_content(origin, Arc::clone(&content)));
    let mut visitor = tokio::io::BufReader::new(TcpStream::connect(address).await.unwrap());
    for target in ["/", "/", "/half"] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        visitor.get_mut().write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut visitor).await.is_some(), "{target}");
        let mut answer = vec![0; content.len()];
        if target == "/" {
            visitor.read_exact(&mut answer).await.unwrap();
            assert!(answer == *content, "the content has changed on the way");
        } else {
            answer.clear();
            let _ = visitor.read_to_end(&mut answer).await;
            assert!(answer == content[..content.len() / 2], "what had come is passed on, and then the end");
        }
    }
    let moved = spliced(&metrics);
    assert!(moved > 8e6, "most of it was not copied: {moved}");
}

/// Answers with `content`, an urgent byte in its midst: splice(2) stops there as if nothing more came.
async fn send_urgently(origin: tokio::net::TcpListener, content: Arc<Vec<u8>>) {
    let (mut stream, _) = origin.accept().await.unwrap();
    let _ = stream.read(&mut [0; 4096]).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n").await.unwrap();
    let (before, behind) = content.split_at(content.len() - 100_000);
    stream.write_all(before).await.unwrap();
    socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
    stream.write_all(behind).await.unwrap();
}

#[tokio::test]
async fn content_behind_an_urgent_byte_is_not_lost() {
    let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, _drain) = listen(Gateway(origin_at(&origin)), &prometheus::Registry::new());
    let content: Arc<Vec<u8>> = Arc::new((0..2_000_000u32).map(|byte| (byte % 253) as u8).collect());
    tokio::spawn(send_urgently(origin, Arc::clone(&content)));
    let mut visitor = tokio::io::BufReader::new(TcpStream::connect(address).await.unwrap());
    visitor.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_head(&mut visitor).await.unwrap();
    let mut answer = vec![0; content.len()];
    let read = tokio::time::timeout(Duration::from_secs(20), visitor.read_exact(&mut answer)).await;
    assert!(matches!(read, Ok(Ok(_))) && answer == *content, "all of it comes, and nothing else");
}

/// Bytes that went through pipes, all of which are back.
fn spliced(metrics: &prometheus::Registry) -> f64 {
    let piped = metrics.gather().into_iter().filter(|family| family.name().starts_with("adit_proxy_splice"));
    let values: Vec<f64> = piped
        .flat_map(|family| family.get_metric().to_vec())
        .map(|metric| metric.get_gauge().get_value() + metric.get_counter().get_value())
        .collect();
    let [denied, lent, _, stranded, moved] = values[..] else { unreachable!("five metrics: {values:?}") };
    assert_eq!((denied, lent, stranded), (0.0, 0.0, 0.0), "every pipe was there and has come back");
    moved
}

/// Reads a head; none at the end of the stream.
async fn read_head(stream: &mut tokio::io::BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.unwrap() == 0 {
            return None;
        }
    }
    Some(head)
}

/// Answers each request of each connection with how much of its content came, after all of it or before any.
async fn take_content(
    origin: tokio::net::TcpListener,
    content: Arc<Vec<u8>>,
    told: tokio::sync::mpsc::Sender<usize>,
) {
    while let Ok((stream, _)) = origin.accept().await {
        let (content, told) = (Arc::clone(&content), told.clone());
        tokio::spawn(async move {
            let mut stream = tokio::io::BufReader::new(stream);
            while let Some(head) = read_head(&mut stream).await {
                assert!(head.contains(&format!("Content-Length: {}\r\n", content.len())), "{head}");
                if head.starts_with("PUT /early") {
                    let refusal = b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno";
                    return stream.get_mut().write_all(refusal).await.unwrap();
                }
                let mut taken = Vec::new();
                let _ = (&mut stream).take(content.len() as u64).read_to_end(&mut taken).await;
                assert!(*taken == content[..taken.len()], "the content has changed on the way");
                let _ = told.send(taken.len()).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                let _ = stream.get_mut().write_all(answer).await;
            }
        });
    }
}

#[tokio::test]
async fn much_content_of_a_request_goes_from_socket_to_socket_too() {
    let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics = prometheus::Registry::new();
    let (address, _drain) = listen(Gateway(origin_at(&origin)), &metrics);
    let content: Arc<Vec<u8>> = Arc::new((0..5_000_000u32).map(|byte| (byte % 253) as u8).collect());
    let (told, mut taken) = tokio::sync::mpsc::channel(4);
    tokio::spawn(take_content(origin, Arc::clone(&content), told));
    let connect = || async { tokio::io::BufReader::new(TcpStream::connect(address).await.unwrap()) };
    let head = |target: &str, more: &str| {
        format!("PUT {target} HTTP/1.1\r\nHost: a\r\n{more}Content-Length: {}\r\n\r\n", content.len())
    };
    let mut visitor = connect().await;
    for more in ["", "Expect: 100-continue\r\n", ""] {
        visitor.get_mut().write_all(head("/", more).as_bytes()).await.unwrap();
        if !more.is_empty() {
            assert_eq!(read_head(&mut visitor).await.unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
        }
        visitor.get_mut().write_all(&content).await.unwrap();
        assert!(read_head(&mut visitor).await.unwrap().starts_with("HTTP/1.1 200 "));
        visitor.read_exact(&mut [0; 2]).await.unwrap();
        assert_eq!(taken.recv().await, Some(content.len()));
    }
    let mut leaving = connect().await;
    leaving.get_mut().write_all(head("/", "").as_bytes()).await.unwrap();
    leaving.get_mut().write_all(&content[..content.len() / 2]).await.unwrap();
    drop(leaving);
    assert!(taken.recv().await.unwrap() <= content.len() / 2, "the origin sees that it is not all");
    let mut early = connect().await;
    early.get_mut().write_all(head("/early", "").as_bytes()).await.unwrap();
    assert!(read_head(&mut early).await.unwrap().starts_with("HTTP/1.1 413 "));
    let moved = spliced(&metrics);
    assert!(moved > 12e6, "most of it was not copied: {moved}");
}

#[tokio::test]
async fn slow_a_silent_http2_visitor_does_not_keep_its_connection() {
    let metrics = prometheus::Registry::new();
    let mut connection = options(&metrics);
    connection.keep_alive_timeout = Duration::from_millis(100);
    let (address, _signal) = listen_with(Application, connection);
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Preface and SETTINGS, then nothing: GOAWAY is not answered.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut all = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await;
    assert!(closed.is_ok(), "the connection is closed");
}

#[tokio::test]
async fn an_answer_has_one_framing_whatever_a_middleware_put_into_it() {
    let (address, _drain) = listen(Application, &prometheus::Registry::new());
    let chain = Chain { address, ..chain() };
    let answer = chain.converse("GET /misled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("Content-Length: 5\r\n") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(!answer.contains("Transfer-Encoding") && !answer.contains("Upgrade"), "{answer}");
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder().uri("http://a/misled").body(()).unwrap();
    let (head, mut body) = client.send_request(request, true).unwrap().0.await.unwrap().into_parts();
    assert_eq!((head.status, body.data().await.unwrap().unwrap()), (StatusCode::OK, "hello".into()));
}

#[tokio::test]
async fn what_announces_an_answers_trailers_goes_with_them() {
    let chain = chain();
    let announced = chain
        .converse(
            "POST /announced HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
             2\r\nab\r\n0\r\nX-Trailer: 1\r\n\r\n",
        )
        .await;
    assert!(
        announced.contains("Trailer: X-Trailer\r\n") && announced.ends_with("X-Trailer: 1\r\n\r\n"),
        "{announced}"
    );
    let without = chain
        .converse("POST /announced HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab")
        .await;
    assert!(!without.contains("Trailer:"), "{without}");
}

#[tokio::test]
async fn an_http2_visitor_that_waits_to_be_asked_for_content_is_asked() {
    let chain = chain();
    let stream = TcpStream::connect(chain.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder().method(Method::POST).uri("http://a/count");
    let request = request.header("expect", "100-continue").body(()).unwrap();
    let (mut response, mut stream) = client.send_request(request, false).unwrap();
    let informed =
        tokio::time::timeout(Duration::from_secs(10), poll_fn(|cx| response.poll_informational(cx)));
    assert_eq!(informed.await.unwrap().unwrap().unwrap().status(), StatusCode::CONTINUE);
    stream.send_data(Bytes::from_static(b"12345"), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    assert_eq!((head.status, body.data().await.unwrap().unwrap()), (StatusCode::OK, "5".into()));
}
