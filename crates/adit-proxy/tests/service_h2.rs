//! Services against servers that speak HTTP/2 and TLS: sharing of connections, gRPC's ways, trust.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adit_config::Secret;
use adit_config::dynamic::{
    CertificatePair, ForwardingTimeouts, HealthCheck, HealthCheckMode, LoadBalancer, PeerSan, PemSource,
    ServersTransport, ServiceKind, TlsVersion,
};
use adit_proxy::body::{Batch, Body, BodyError, BodySource, Length};
use adit_proxy::middleware::{Outcome, Target};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use support::*;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// How an HTTP/2 server behaves.
#[derive(Clone, Copy, Default)]
struct Manner {
    streams_max: Option<u32>,
    /// Closes each connection gracefully after this many requests.
    requests_max: Option<usize>,
    /// Answers nothing to pings or anything else once connected.
    mute: bool,
}

#[derive(Clone)]
struct H2Server {
    address: std::net::SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Paths that wait until this is notified.
    release: Arc<tokio::sync::Notify>,
    asked: Arc<Mutex<Vec<http::Request<()>>>>,
    healthy: Arc<AtomicUsize>,
}

impl H2Server {
    async fn start(manner: Manner, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            release: Arc::default(),
            asked: Arc::default(),
            healthy: Arc::new(AtomicUsize::new(1)),
        };
        let accepting = server.clone();
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let (server, tls) = (accepting.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => server.serve(stream, manner).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                                server.serve(stream, manner).await;
                            } else {
                                serve_upgrade(stream).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    async fn serve(self, mut io: impl AsyncRead + AsyncWrite + Unpin, manner: Manner) {
        if manner.mute {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut io, &[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            return std::future::pending().await;
        }
        let mut builder = h2::server::Builder::new();
        if let Some(max) = manner.streams_max {
            builder.max_concurrent_streams(max);
        }
        let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
        let mut requests = 0;
        while let Some(accepted) = connection.accept().await {
            let Ok((request, respond)) = accepted else { return };
            requests += 1;
            if manner.requests_max == Some(requests) {
                connection.graceful_shutdown();
            }
            tokio::spawn(self.clone().answer(request, respond));
        }
    }

    async fn answer(
        self,
        request: http::Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
    ) {
        let (head, mut content) = request.into_parts();
        let path = head.uri.path().to_owned();
        self.asked.lock().unwrap().push(http::Request::from_parts(head, ()));
        if path == "/wait" {
            self.release.notified().await;
        }
        let ok = http::Response::new(());
        if path.ends_with("/Check") {
            let serving = self.healthy.load(Ordering::SeqCst) as u8;
            let mut stream = respond.send_response(ok, false).unwrap();
            stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]), false).unwrap();
            stream.send_trailers(status("0")).unwrap();
            return;
        }
        let mut stream = respond.send_response(ok, false).unwrap();
        // Echoes every message as it comes: both directions run at once.
        while let Some(Ok(data)) = content.data().await {
            let _ = content.flow_control().release_capacity(data.len());
            stream.send_data(data, false).unwrap();
        }
        let mut trailers = status("0");
        if let Ok(Some(sent)) = content.trailers().await {
            trailers.extend(sent);
        }
        stream.send_trailers(trailers).unwrap();
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve_upgrade(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    io.write_all(b"HTTP/1.1 101 OK\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nover http/1.1")
        .await
        .unwrap();
    io.shutdown().await.unwrap();
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(code))])
}

/// Content that a test feeds while it is being sent.
struct Fed(tokio::sync::mpsc::Receiver<&'static str>);

impl BodySource for Fed {
    fn poll_chunks(
        &mut self,
        cx: &mut std::task::Context<'_>,
        out: &mut Batch,
    ) -> std::task::Poll<Result<bool, BodyError>> {
        self.0.poll_recv(cx).map(|chunk| {
            out.extend(chunk.map(Bytes::from));
            Ok(chunk.is_some())
        })
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        Some(HeaderMap::from_iter([("x-sent".parse().unwrap(), HeaderValue::from_static("1"))]))
    }
}

async fn next(body: &mut Body) -> String {
    let mut batch = Batch::new();
    std::future::poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await.unwrap();
    String::from_utf8(batch.into_iter().flatten().collect()).unwrap()
}

#[tokio::test]
async fn a_bidirectional_stream_flows_both_ways_and_ends_with_trailers() {
    let server = H2Server::start(Manner::default(), None).await;
    let services = Plan::default().servers("s", &[&server.url("h2c")]).compile(None);
    let (feed, fed) = tokio::sync::mpsc::channel(1);
    let mut call = request("/pkg.Service/Method");
    call.method = Method::POST;
    call.headers.insert("te", HeaderValue::from_static("trailers"));
    call.headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    call.body = Body::stream(Fed(fed), Length::Unknown);
    let node = services.node("s@file").unwrap();
    let mut answer = node.call(call, &mut ctx()).await;
    for message in ["one", "two"] {
        feed.send(message).await.unwrap();
        assert_eq!(next(&mut answer.body).await, message);
    }
    drop(feed);
    let (rest, trailers) = read(answer.body).await;
    let trailers = trailers.unwrap();
    assert_eq!(
        (rest.as_str(), &trailers["grpc-status"], &trailers["x-sent"]),
        ("", &status("0")["grpc-status"], &HeaderValue::from_static("1"))
    );
    let asked = server.asked.lock().unwrap();
    assert_eq!(asked[0].headers()["te"], "trailers");
    assert_eq!(asked[0].uri().authority().unwrap(), "pub.test");
}

#[tokio::test]
async fn requests_share_a_connection_until_it_is_full() {
    let manner = Manner { streams_max: Some(2), ..Manner::default() };
    let server = H2Server::start(manner, None).await;
    let services = Plan::default().servers("s", &[&server.url("h2c")]).compile(None);
    for _ in 0..3 {
        assert_eq!(get(&services, "s").await.status, 200);
    }
    assert_eq!(server.connections(), 1);
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let node = services.node("s@file").unwrap();
            tokio::spawn(async move { node.call(request("/wait"), &mut ctx()).await.status })
        })
        .collect();
    until(|| server.asked.lock().unwrap().len() == 7).await;
    assert_eq!(server.connections(), 2);
    server.release.notify_waiters();
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn a_server_that_closes_after_each_request_is_not_noticed() {
    let manner = Manner { requests_max: Some(1), ..Manner::default() };
    let server = H2Server::start(manner, None).await;
    let services = Plan::default().servers("s", &[&server.url("h2c")]).compile(None);
    for _ in 0..5 {
        let answer = get(&services, "s").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[tokio::test]
async fn a_silent_connection_is_given_up_after_a_ping() {
    let server = H2Server::start(Manner { mute: true, ..Manner::default() }, None).await;
    let timeouts = ForwardingTimeouts {
        read_idle: Some(Duration::from_millis(30)),
        ping: Some(Duration::from_millis(30)),
        ..ForwardingTimeouts::default()
    };
    let transport = ServersTransport { timeouts, ..ServersTransport::default() };
    let services = with_transport(&server.url("h2c"), transport);
    let answer = get(&services, "s").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.ctx.outcome, Outcome::Failed);
}

#[tokio::test]
async fn grpcs_health_protocol_decides() {
    let server = H2Server::start(Manner::default(), None).await;
    let check = HealthCheck {
        mode: HealthCheckMode::Grpc,
        interval: Duration::from_millis(20),
        unhealthy_interval: Duration::from_millis(20),
        ..HealthCheck::default()
    };
    let settings = LoadBalancer { health_check: Some(check), ..balancer(&[&server.url("http")]) };
    let services = Plan::default().with("s", ServiceKind::LoadBalancer(settings)).compile(None);
    until(|| !server.asked.lock().unwrap().is_empty()).await;
    assert!(services.statuses().all(|s| s.up));
    // NOT_SERVING.
    server.healthy.store(2, Ordering::SeqCst);
    until(|| services.statuses().all(|s| !s.up)).await;
    server.healthy.store(1, Ordering::SeqCst);
    until(|| services.statuses().all(|s| s.up)).await;
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

/// A certificate for the loopback address, with a URI beside it: chain, key, PEM of both.
struct Identity {
    cert: CertificateDer<'static>,
    key: KeyPair,
    pem: String,
}

fn identity(authority: Option<&Authority>) -> Identity {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "origin.test".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("spiffe://test/origin".try_into().unwrap()));
    let key = KeyPair::generate().unwrap();
    let cert = match authority {
        Some(authority) => params.signed_by(&key, &authority.issuer).unwrap(),
        None => {
            // As the usual one-line recipe for self-signed certificates makes them.
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.self_signed(&key).unwrap()
        }
    };
    Identity { cert: cert.der().clone(), pem: cert.pem(), key }
}

fn server_config(identity: &Identity, clients: Option<&Authority>) -> ServerConfig {
    let provider = adit_proxy::tls::provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            use rustls::pki_types::pem::PemObject;
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
    let mut config = builder.with_single_cert(vec![identity.cert.clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn inline(pem: &str) -> PemSource {
    PemSource::Inline(Secret::new(pem.as_bytes().to_vec()))
}

fn with_transport(url: &str, transport: ServersTransport) -> adit_proxy::service::Services {
    let settings = LoadBalancer { servers_transport: Some("t".to_owned()), ..balancer(&[url]) };
    Plan::default().transport("t", transport).with("s", ServiceKind::LoadBalancer(settings)).compile(None)
}

#[tokio::test]
async fn certificates_are_checked_against_the_given_roots() {
    let (ours, theirs) = (authority(), authority());
    let server = H2Server::start(Manner::default(), Some(server_config(&identity(Some(&ours)), None))).await;
    let url = server.url("https");
    let ask = |transport: ServersTransport| {
        let services = with_transport(&url, transport);
        async move { get(&services, "s").await.status.as_u16() }
    };
    let trusting =
        |pem: &str| ServersTransport { root_cas: vec![inline(pem)], ..ServersTransport::default() };
    assert_eq!(ask(trusting(&ours.pem)).await, 200);
    assert_eq!(ask(trusting(&theirs.pem)).await, 500, "as Traefik answers a certificate it does not trust");
    assert_eq!(
        ask(ServersTransport { insecure_skip_verify: true, ..ServersTransport::default() }).await,
        200
    );
    let named = |name: &str| ServersTransport { server_name: Some(name.to_owned()), ..trusting(&ours.pem) };
    assert_eq!(ask(named("origin.test")).await, 200);
    assert_eq!(ask(named("other.test")).await, 500);
    let uri = |uri: &str| ServersTransport { peer_cert_uri: Some(uri.to_owned()), ..trusting(&ours.pem) };
    assert_eq!(ask(uri("spiffe://test/origin")).await, 200);
    assert_eq!(ask(uri("spiffe://test/other")).await, 500);
    let san = ServersTransport {
        insecure_skip_verify: true,
        peer_cert_sans: vec![PeerSan::Dns("origin.test".to_owned())],
        ..trusting(&theirs.pem)
    };
    assert_eq!(ask(san).await, 500, "a wanted name on an untrusted certificate means nothing");
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_if_it_is_given_itself() {
    let own = identity(None);
    let server = H2Server::start(Manner::default(), Some(server_config(&own, None))).await;
    let transport = ServersTransport { root_cas: vec![inline(&own.pem)], ..ServersTransport::default() };
    assert_eq!(get(&with_transport(&server.url("https"), transport.clone()), "s").await.status, 200);
    let other = ServersTransport { server_name: Some("other.test".to_owned()), ..transport };
    assert_eq!(get(&with_transport(&server.url("https"), other), "s").await.status, 500);
}

#[tokio::test]
async fn servers_that_ask_for_a_client_certificate_get_it() {
    let ours = authority();
    let server =
        H2Server::start(Manner::default(), Some(server_config(&identity(Some(&ours)), Some(&ours)))).await;
    let without = ServersTransport { root_cas: vec![inline(&ours.pem)], ..ServersTransport::default() };
    assert_eq!(get(&with_transport(&server.url("https"), without.clone()), "s").await.status, 502);
    let client = identity(Some(&ours));
    let pair = CertificatePair { cert: inline(&client.pem), key: inline(&client.key.serialize_pem()) };
    let with = ServersTransport { certificates: vec![pair], ..without };
    assert_eq!(get(&with_transport(&server.url("https"), with), "s").await.status, 200);
}

#[tokio::test]
async fn tls_servers_share_http2_and_upgrades_go_over_http1() {
    let own = identity(None);
    let server = H2Server::start(Manner::default(), Some(server_config(&own, None))).await;
    let transport = ServersTransport { root_cas: vec![inline(&own.pem)], ..ServersTransport::default() };
    let services = with_transport(&server.url("https"), transport);
    for _ in 0..3 {
        assert_eq!(get(&services, "s").await.status, 200);
    }
    assert_eq!(server.connections(), 1);
    let mut upgrade = request("/ws");
    upgrade.upgrade = Some("websocket".into());
    upgrade.body = Body::stream(Fed(tokio::sync::mpsc::channel(1).1), Length::Raw);
    let answer = ask(&services, "s", upgrade).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::SWITCHING_PROTOCOLS, "over http/1.1"));
}

#[tokio::test]
async fn versions_and_suites_are_those_asked_for() {
    let own = identity(None);
    let server = H2Server::start(Manner::default(), Some(server_config(&own, None))).await;
    let base = ServersTransport { root_cas: vec![inline(&own.pem)], ..ServersTransport::default() };
    let old = ServersTransport {
        version_max: Some(TlsVersion::V1_2),
        cipher_suites: vec!["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305".to_owned()],
        ..base.clone()
    };
    assert_eq!(get(&with_transport(&server.url("https"), old), "s").await.status, 200);
    for wrong in [
        ServersTransport { version_max: Some(TlsVersion::V1_1), ..base.clone() },
        ServersTransport { cipher_suites: vec!["ROT13".to_owned()], ..base.clone() },
        ServersTransport { root_cas: vec![inline("no certificate")], ..base.clone() },
        ServersTransport { root_cas: vec![PemSource::File("/nonexistent/ca.pem".into())], ..base.clone() },
        ServersTransport { fault: Some("spiffe is not supported".to_owned()), ..base },
    ] {
        let services = with_transport(&server.url("https"), wrong);
        assert_eq!(services.transport_faults().count(), 1);
        assert!(services.node("s@file").unwrap_err().contains("serversTransport"));
    }
}

#[tokio::test]
async fn a_length_that_a_middleware_set_does_not_contradict_the_content() {
    let server = H2Server::start(Manner::default(), None).await;
    let services = Plan::default().servers("s", &[&server.url("h2c")]).compile(None);
    for body in ["content", ""] {
        let mut call = request("/");
        call.method = Method::POST;
        call.headers.insert("content-length", HeaderValue::from_static("3"));
        call.headers.insert("host", HeaderValue::from_static("evil"));
        call.body = Body::full(body);
        assert_eq!(ask(&services, "s", call).await.body, body);
    }
    let asked = server.asked.lock().unwrap();
    let lengths: Vec<_> =
        asked.iter().map(|head| head.headers().get("content-length").map(|v| v.to_str().unwrap())).collect();
    assert_eq!(lengths, [Some("7"), None]);
    assert!(asked.iter().all(|head| !head.headers().contains_key("host")), "{asked:?}");
}
