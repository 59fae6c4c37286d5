//! The listener with a client of the same crates.

use std::sync::Arc;

use adit_config::dynamic::TcpDynamic;
use arc_swap::ArcSwap;
use bytes::{Buf, Bytes};
use http::{Method, Request, StatusCode};
use quinn::crypto::rustls::QuicClientConfig;

use super::listener::{H3Listener, H3Options};
use crate::body::{Batch, Body, Length};
use crate::drain::{self, DrainSignal};
use crate::listen::tests::{Describe, Identity, options, switch};
use crate::message::{Response, Service};

type Sender = ::h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;

/// Sends content and trailers back.
struct Echo;

impl Service for Echo {
    async fn call(&self, request: crate::message::Request) -> Response {
        let length = request.body.length();
        let mut response = Response::status(StatusCode::OK);
        response.body = match request.uri.path() {
            "/length" => {
                let mut body = request.body;
                let mut batch = Batch::new();
                while std::future::poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await == Ok(true) {}
                Body::full(format!("{length:?} {}", batch.iter().map(Bytes::len).sum::<usize>()))
            }
            _ => request.body,
        };
        response
    }
}

async fn start<S: Service>(service: S) -> (Sender, quinn::Connection, DrainSignal) {
    let identity = Identity::new("a.test");
    let switch = Arc::new(ArcSwap::from_pointee(switch(&identity, &TcpDynamic::default())));
    let options =
        H3Options { name: "web".to_owned(), switch, connections_max: 4, device: None, connection: options() };
    let listener = H3Listener::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let address = listener.local_addr();
    let (signal, drain) = drain::channel();
    tokio::spawn(listener.run(Arc::new(service), drain));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.der()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(config, address, "a.test").unwrap().await.unwrap();
    let http = h3_quinn::Connection::new(connection.clone());
    let (mut driver, sender) = ::h3::client::new(http).await.unwrap();
    tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
    (sender, connection, signal)
}

async fn exchange(sender: &mut Sender, request: Request<()>, body: Option<Bytes>) -> (StatusCode, Vec<u8>) {
    let mut stream = sender.send_request(request).await.unwrap();
    if let Some(body) = body {
        stream.send_data(body).await.unwrap();
    }
    stream.finish().await.unwrap();
    let response = stream.recv_response().await.unwrap();
    let mut all = Vec::new();
    while let Some(mut data) = stream.recv_data().await.unwrap() {
        all.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    (response.status(), all)
}

fn request(method: Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("https://a.test{path}"))
}

#[tokio::test]
async fn requests_reach_the_service_with_what_is_known_of_the_visitor() {
    let (mut sender, _connection, _signal) = start(Describe).await;
    let request = request(Method::GET, "/").body(()).unwrap();
    let (status, body) = exchange(&mut sender, request, None).await;
    let body = String::from_utf8(body).unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(body.starts_with("HTTP/3.0 127.0.0.1:") && body.ends_with("true 1.3 a.test 0"), "{body}");
}

#[tokio::test]
async fn content_streams_both_ways() {
    let (mut sender, _connection, _signal) = start(Echo).await;
    let body = Bytes::from(vec![7; 800_000]);
    let sent = request(Method::POST, "/").body(()).unwrap();
    assert_eq!(exchange(&mut sender, sent, Some(body.clone())).await, (StatusCode::OK, body.to_vec()));
    let sized = request(Method::POST, "/length").header("content-length", 5).body(()).unwrap();
    let (_, answer) = exchange(&mut sender, sized, Some(Bytes::from_static(b"hello"))).await;
    assert_eq!(answer, format!("{:?} 5", Length::Known(5)).into_bytes());
}

#[tokio::test]
async fn content_beyond_its_announced_length_is_not_passed_on() {
    let (mut sender, _connection, _signal) = start(Echo).await;
    let lying = request(Method::POST, "/length").header("content-length", 3).body(()).unwrap();
    let (_, answer) = exchange(&mut sender, lying, Some(Bytes::from_static(b"GET /smuggled"))).await;
    assert_eq!(answer, b"Known(3) 0");
}

#[tokio::test]
async fn connect_and_contradicting_hosts_are_refused() {
    let (mut sender, _connection, _signal) = start(Echo).await;
    let connect = Request::builder().method(Method::CONNECT).uri("a.test:443").body(()).unwrap();
    let mut stream = sender.send_request(connect).await.unwrap();
    assert_eq!(stream.recv_response().await.unwrap().status(), StatusCode::NOT_IMPLEMENTED);
    let field = request(Method::GET, "/").header("connection", "close").body(()).unwrap();
    assert_eq!(exchange(&mut sender, field, None).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_endless_head_ends_the_connection() {
    let (_sender, connection, _signal) = start(Echo).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    // HEADERS, announced with 2^29 bytes.
    send.write_all(&[1, 0xa0, 0, 0, 0]).await.unwrap();
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => assert_eq!(u64::from(close.error_code), 0x107),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_drain_lets_the_last_request_finish() {
    let (mut sender, _connection, signal) = start(Echo).await;
    let mut stream = sender.send_request(request(Method::POST, "/").body(()).unwrap()).await.unwrap();
    stream.send_data(Bytes::from_static(b"first ")).await.unwrap();
    let response = stream.recv_response().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    signal.start();
    stream.send_data(Bytes::from_static(b"last")).await.unwrap();
    stream.finish().await.unwrap();
    let mut all = Vec::new();
    while let Some(mut data) = stream.recv_data().await.unwrap() {
        all.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    assert_eq!(all, b"first last");
}
