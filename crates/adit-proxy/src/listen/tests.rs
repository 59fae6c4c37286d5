//! One port, everything on it: the listener over real sockets.

use std::sync::Arc;
use std::time::Duration;

use adit_config::Secret;
use adit_config::dynamic::{
    CertificatePair, ClientAuthType, PemSource, TcpDynamic, TcpLoadBalancer, TcpRouter, TcpRouterTls,
    TcpServer, TcpService, TlsCertificate, TlsDynamic, TlsOptions,
};
use arc_swap::ArcSwap;
use http::StatusCode;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::drain::{self, DrainSignal};
use crate::mesh;
use crate::message::{Request, Response};
use crate::metrics::Metrics;
use crate::tcp::layer::TcpLayers;
use crate::tcp::service::TcpServices;
use crate::tcp::table::{TcpParts, TcpRouters};
use crate::tls::hosts::{TlsHostRule, TlsHosts};
use crate::tls::options::TlsOptionSets;
use crate::tls::{CertificateStore, Certificates};

/// Answers with what it knows of the visitor.
pub(crate) struct Describe;

impl Service for Describe {
    async fn call(&self, request: Request) -> Response {
        let visitor = &request.visitor;
        let tls = visitor.tls.as_ref().map_or("plain".to_owned(), |tls| {
            let name = tls.server_name.as_deref().unwrap_or("-");
            format!("{} {name} {}", tls.version, tls.client_certificates.len())
        });
        let text = format!("{:?} {} {} {tls}", request.version, visitor.remote, visitor.secure);
        Response::text(StatusCode::OK, "text/plain", text)
    }
}

/// A self-signed certificate for a name.
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Identity {
    pub(crate) fn new(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        Self { cert: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    fn pair(&self) -> CertificatePair {
        let inline = |text: &str| PemSource::Inline(Secret::new(text.as_bytes().to_vec()));
        CertificatePair { cert: inline(&self.cert), key: inline(&self.key) }
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()
    }
}

/// The switch of an entry point with one certificate, one host with mutual TLS, and the given TCP routers.
pub(crate) fn switch(identity: &Identity, tcp: &TcpDynamic) -> Switch {
    let certificate = TlsCertificate { pair: identity.pair(), stores: Vec::new() };
    let dynamic = TlsDynamic { certificates: vec![certificate], ..TlsDynamic::default() };
    let store = Arc::new(CertificateStore::default());
    store.swap(Certificates::compile(&dynamic, None).0);
    let mut mutual = TlsOptions::default();
    mutual.client_auth.kind = ClientAuthType::RequireAny;
    let options = Arc::new(TlsOptionSets::compile(&[("mutual".to_owned(), mutual)].into(), &store, None));
    let hosts = ["mutual.test".to_owned()];
    let rule = TlsHostRule { router: "m", hosts: &hosts, options: Some("mutual"), is_refused: false };
    let (layers, services) = (TcpLayers::default(), TcpServices::compile(tcp, None));
    let parts = TcpParts { layers: &layers, services: &services, options: &options };
    let routers = TcpRouters::compile(tcp, "web", true, parts);
    assert!(routers.disabled.is_empty(), "{:?}", routers.disabled);
    Switch {
        plain: routers.plain,
        secure: routers.secure,
        hosts: TlsHosts::compile([rule]),
        ..Switch::http(Arc::clone(&options))
    }
}

pub(crate) fn options() -> Options {
    let minute = Duration::from_secs(60);
    Options {
        header_timeout: minute,
        keep_alive_timeout: minute,
        body_idle_timeout: minute,
        write_idle_timeout: minute,
        read_timeout: None,
        write_timeout: None,
        head_bytes_max: 65_536,
        head_fields_max: 100,
        streams_max: 100,
        metrics: Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap()),
    }
}

fn start(switch: Switch, proxy_protocol: Option<ProxyProtocolPolicy>) -> (SocketAddr, DrainSignal) {
    run(listener_options(switch, proxy_protocol))
}

fn listener_options(switch: Switch, proxy_protocol: Option<ProxyProtocolPolicy>) -> ListenerOptions {
    ListenerOptions {
        name: "web".to_owned(),
        tls: None,
        switch: Some(Arc::new(ArcSwap::from_pointee(switch))),
        proxy_protocol,
        connections_max: 16,
        reuse_port: false,
        device: None,
        unsent_bytes_max: None,
        lanes: None,
        connection: options(),
    }
}

fn run(options: ListenerOptions) -> (SocketAddr, DrainSignal) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let address = listener.local_addr().unwrap();
    let (signal, drain) = drain::channel();
    tokio::spawn(listener.run(Arc::new(Describe), drain));
    (address, signal)
}

fn connector(trusted: &Identity, client: Option<&Identity>, alpn: &[&str]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.der()).unwrap();
    let builder = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![client.der()], key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn get(io: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> String {
    io.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

fn tcp(routers: &[(&str, &str, Option<bool>)], server: SocketAddr) -> TcpDynamic {
    let mut dynamic = TcpDynamic::default();
    let servers = vec![TcpServer { address: server.to_string(), tls: false }];
    let service = TcpLoadBalancer { servers, ..TcpLoadBalancer::default() };
    dynamic.services.insert("s".to_owned(), TcpService::LoadBalancer(service));
    for (name, rule, passthrough) in routers {
        let tls = passthrough.map(|passthrough| TcpRouterTls { passthrough, ..TcpRouterTls::default() });
        let router =
            TcpRouter { rule: (*rule).to_owned(), service: "s".to_owned(), tls, ..TcpRouter::default() };
        dynamic.routers.insert((*name).to_owned(), router);
    }
    dynamic
}

/// Reads until the visitor ends, then answers with what came.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    address
}

#[tokio::test]
async fn how_fast_a_visitor_reads_shows_however_large_the_socket_buffer_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let visitor = tokio::net::TcpSocket::new_v4().unwrap();
    visitor.set_recv_buffer_size(64 * 1024).unwrap();
    let mut visitor = visitor.connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, remote) = listener.accept().await.unwrap();
    SockRef::from(&accepted).set_send_buffer_size(4 * 1024 * 1024).unwrap();
    let accepted = accepted.into_std().unwrap();
    let served = inlet::Accepted::Kernel(accepted.try_clone().unwrap(), remote);
    let active = Active::new(ListenerOptions {
        name: "web".to_owned(),
        tls: None,
        switch: None,
        proxy_protocol: None,
        connections_max: 1,
        reuse_port: false,
        device: None,
        unsent_bytes_max: Some(128 * 1024),
        lanes: None,
        connection: options(),
    });
    let permit = Arc::clone(&active.permits).try_acquire_owned().unwrap();
    let (mut tasks, (_signal, drain)) = (JoinSet::new(), drain::channel());
    active.serve(&mut tasks, served, permit, (&Arc::new(Describe), &drain));
    let accepted = TcpStream::from_std(accepted).unwrap();
    let taken = || {
        let mut taken = 0;
        while let Ok(bytes) = accepted.try_write(&[0; 16 * 1024]) {
            taken += bytes;
        }
        taken
    };
    accepted.writable().await.unwrap();
    let at_first = taken();
    assert!(at_first < 1024 * 1024, "{at_first} bytes for who reads nothing");
    let (mut read, mut buffer) = (0, [0; 16 * 1024]);
    while read < 512 * 1024 {
        tokio::select! {
            got = visitor.read(&mut buffer) => read += got.unwrap(),
            writable = accepted.writable() => {
                writable.unwrap();
                taken();
            }
        }
    }
}

#[tokio::test]
async fn http_and_https_share_a_port_and_the_visitor_knows_which() {
    let identity = Identity::new("a.test");
    let (address, _signal) = start(switch(&identity, &TcpDynamic::default()), None);
    let mut plain = TcpStream::connect(address).await.unwrap();
    assert!(get(&mut plain).await.ends_with("false plain"));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let mut secure = connector(&identity, None, &["http/1.1"]).connect(name, stream).await.unwrap();
    assert!(get(&mut secure).await.ends_with("true 1.3 a.test 0"));
}

#[tokio::test]
async fn alpn_chooses_h2_and_options_are_chosen_by_name() {
    let identity = Identity::new("mutual.test");
    let (address, _signal) = start(switch(&identity, &TcpDynamic::default()), None);
    let name = || ServerName::try_from("mutual.test").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let connect = connector(&identity, None, &["http/1.1"]).connect(name(), stream).await;
    // TLS 1.3 lets the client finish first: the refusal comes with the first read.
    if let Ok(mut io) = connect {
        assert!(io.read_u8().await.is_err(), "no certificate was shown");
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let client = Identity::new("client");
    let mut io = connector(&identity, Some(&client), &["http/1.1"]).connect(name(), stream).await.unwrap();
    assert!(get(&mut io).await.ends_with("1.3 mutual.test 1"));
    let stream = TcpStream::connect(address).await.unwrap();
    let io = connector(&identity, Some(&client), &["h2", "http/1.1"]).connect(name(), stream).await.unwrap();
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn tcp_routers_take_their_names_in_the_clear_and_behind_tls() {
    let identity = Identity::new("db.test");
    let server = echo_server().await;
    let routers = [("t", "HostSNI(`db.test`)", Some(false)), ("p", "HostSNI(`pass.test`)", Some(true))];
    let (address, _signal) = start(switch(&identity, &tcp(&routers, server)), None);
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("db.test").unwrap();
    let mut io = connector(&identity, None, &[]).connect(name, stream).await.unwrap();
    io.write_all(b"through").await.unwrap();
    io.shutdown().await.unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"through");

    // What is passed through arrives byte for byte: the echo is the ClientHello itself.
    let config = connector(&identity, None, &[]);
    let name = ServerName::try_from("pass.test").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::clone(config.config()), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    for piece in hello.chunks(100) {
        stream.write_all(piece).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(echoed, hello);
}

#[tokio::test]
async fn a_postgres_client_asks_for_tls_and_the_server_sees_its_wish() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let identity = Identity::new("db.test");
    let routers = [("p", "HostSNI(`db.test`)", Some(true))];
    let (address, _signal) = start(switch(&identity, &tcp(&routers, server.local_addr().unwrap())), None);
    let wish = crate::tcp::postgres::SSL_REQUEST;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&wish[..3]).await.unwrap();
    client.write_all(&wish[3..]).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'S');
    let config = connector(&identity, None, &[]);
    let name = ServerName::try_from("db.test").unwrap();
    let mut session = rustls::ClientConnection::new(Arc::clone(config.config()), name).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    client.write_all(&hello).await.unwrap();
    let (mut backend, _) = server.accept().await.unwrap();
    let mut seen = [0; 8];
    backend.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, wish);
    backend.write_all(b"S").await.unwrap();
    let mut passed = vec![0; hello.len()];
    backend.read_exact(&mut passed).await.unwrap();
    assert_eq!(passed, hello);
    backend.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer", "the server's own grant is not repeated");
}

#[tokio::test]
async fn plain_tcp_routers_go_before_http() {
    let identity = Identity::new("a.test");
    let server = echo_server().await;
    let routers = [("t", "HostSNI(`*`) && ClientIP(`127.0.0.0/8`)", None)];
    let (address, _signal) = start(switch(&identity, &tcp(&routers, server)), None);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(echoed, b"GET / HTTP/1.1\r\n");
}

#[tokio::test]
async fn trusted_proxy_protocol_headers_name_the_visitor_and_others_are_ignored() {
    let identity = Identity::new("a.test");
    for (trusted, want) in [(true, "192.0.2.7:1234"), (false, "127.0.0.1:")] {
        let policy = ProxyProtocolPolicy { insecure: trusted, trusted: Vec::new() };
        let (address, _signal) = start(switch(&identity, &TcpDynamic::default()), Some(policy));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n").await.unwrap();
        let answer = get(&mut stream).await;
        assert!(answer.contains(want), "{answer}");
        let mut without = TcpStream::connect(address).await.unwrap();
        assert!(get(&mut without).await.contains("127.0.0.1:"));
        let mut malformed = TcpStream::connect(address).await.unwrap();
        malformed.write_all(b"PROXY TCP9 x\r\n").await.unwrap();
        assert!(malformed.read_u8().await.is_err());
    }
}

#[tokio::test]
async fn garbage_that_looks_like_tls_gets_an_alert() {
    let identity = Identity::new("a.test");
    let (address, _signal) = start(switch(&identity, &TcpDynamic::default()), None);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[0x16, 3, 1, 0, 4, 2, 0, 0, 0]).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 0x15);
}

#[tokio::test]
async fn who_waited_in_the_backlog_while_addresses_moved_has_to_come_again() {
    let before = mesh::tests::peers(&[("alice", 1, "127.0.0.1", "")]);
    let after = mesh::tests::peers(&[("bob", 2, "127.0.0.1", "")]);
    let gate = Arc::new(mesh::MeshGate::default());
    gate.open(Arc::clone(&before));
    let on_mesh = |peers: &Arc<_>| Switch {
        mesh: Some(mesh::tests::believing(Arc::clone(peers), Arc::clone(&gate))),
        ..switch(&Identity::new("a.test"), &TcpDynamic::default())
    };
    let options = ListenerOptions {
        connections_max: 1,
        device: Some("lo".to_owned()),
        ..listener_options(on_mesh(&before), None)
    };
    let cell = options.switch.clone().unwrap();
    let (address, _signal) = run(options);
    let mut first = TcpStream::connect(address).await.unwrap();
    let ask = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    first.write_all(ask).await.unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'H', "she is let in, and stays");
    let mut waiting = TcpStream::connect(address).await.unwrap();
    waiting.write_all(ask).await.unwrap();
    gate.hold(&after);
    cell.store(Arc::new(on_mesh(&after)));
    gate.open(after);
    let mut answer = Vec::new();
    // A reset, where something was sent.
    let _ = waiting.read_to_end(&mut answer).await;
    assert_eq!(String::from_utf8_lossy(&answer), "", "alice's request is not bob's");
    let mut bob = TcpStream::connect(address).await.unwrap();
    assert!(get(&mut bob).await.contains("200"));
}
