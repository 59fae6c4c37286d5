//! Each end against a hand-driven peer: what a well-behaved one never sends.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use adit_config::{Protocol as ProtocolChoice, Secret, TunnelId};
use adit_tunnel::{ConnectionPhase, OpenError, ResponseError};
use adit_tunnel_proto::{
    Client, ClientEvent, ConnectResponse, ConnectionType, Registered, Registration, Rejection,
    ResponseDecoder, ResponseHead, RpcClient, RpcServer, ServerEvent, Service, encode_request,
    encode_response,
};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use quinn::{
    Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, ServerConfig, TransportConfig,
    VarInt,
    crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig},
};
use support::{
    Identity, PATIENCE, RunningConnector, RunningEdge, TUNNEL, counter, eventually, fetch, grant, options,
    request,
};
use tokio::{net::TcpListener, time::timeout};
use uuid::Uuid;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A listening QUIC endpoint with the edge's name.
fn raw_edge(identity: &Identity) -> (Endpoint, SocketAddr) {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.clone()], identity.key())
        .unwrap();
    tls.alpn_protocols = vec![b"argotunnel".to_vec()];
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

/// A QUIC connection to an edge, as a connector makes it.
async fn raw_connector(identity: &Identity, edge: SocketAddr, name: &str) -> (Endpoint, Connection) {
    raw_connector_with(identity, edge, name, TransportConfig::default()).await
}

async fn raw_connector_with(
    identity: &Identity,
    edge: SocketAddr,
    name: &str,
    transport: TransportConfig,
) -> (Endpoint, Connection) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.cert.clone()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"argotunnel".to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(config, edge, name).unwrap().await.unwrap();
    (endpoint, connection)
}

fn registration(client: u128, index: u8) -> Registration {
    Registration {
        account_tag: "account".into(),
        secret: Secret::new(vec![7; 32]),
        tunnel: TUNNEL,
        index,
        client: Client {
            id: Uuid::from_u128(client),
            features: vec![],
            version: "1".into(),
            arch: "x".into(),
        },
        origin_local_ip: None,
        replace_existing: false,
        previous_attempts: 0,
    }
}

fn registered() -> Registered {
    Registered { connection_id: Uuid::from_u128(1), location: "raw".into(), remotely_managed: true }
}

async fn flush(send: &mut SendStream, mut next: impl FnMut() -> Option<Bytes>) {
    while let Some(bytes) = next() {
        send.write_chunk(bytes).await.unwrap();
    }
}

/// The edge's part of a registration: its outcome is given, what arrived comes back.
async fn answer(
    send: &mut SendStream,
    recv: &mut RecvStream,
    outcome: Result<Registered, Rejection>,
) -> Registration {
    let mut server = RpcServer::new(Service::Registration);
    loop {
        server.handle_chunk(recv.read_chunk(usize::MAX, true).await.unwrap().unwrap().bytes).unwrap();
        let event = server.poll_event();
        if let Some(ServerEvent::Register { call, registration }) = event {
            server.answer_registration(call, &outcome);
            flush(send, || server.poll_transmit()).await;
            return *registration;
        }
        flush(send, || server.poll_transmit()).await;
    }
}

/// The connector's part of a registration.
async fn register(
    connection: &Connection,
    registration: &Registration,
) -> (ClientEvent, SendStream, RecvStream) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut client = RpcClient::new();
    client.register(registration).unwrap();
    flush(&mut send, || client.poll_transmit()).await;
    loop {
        let chunk = timeout(PATIENCE, recv.read_chunk(usize::MAX, true)).await.unwrap().unwrap().unwrap();
        client.handle_chunk(chunk.bytes).unwrap();
        flush(&mut send, || client.poll_transmit()).await;
        if let Some(event) = client.poll_event() {
            return (event, send, recv);
        }
    }
}

#[tokio::test]
async fn the_connector_resets_an_unknown_stream_and_parses_a_split_preamble_on_the_next() {
    let identity = Identity::new();
    let (endpoint, address) = raw_edge(&identity);
    let _connector = RunningConnector::start(options(&identity, address, 1));
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let shown = connection.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
    assert_eq!(shown.protocol.as_deref(), Some(&b"argotunnel"[..]), "C1");
    assert_eq!(shown.server_name.as_deref(), Some("quic.cftunnel.com"), "C1");
    let (mut control, mut calls) = connection.accept_bi().await.unwrap();
    assert_eq!(u64::from(control.id()), 0, "C5");
    let arrived = answer(&mut control, &mut calls, Ok(registered())).await;
    assert_eq!((arrived.tunnel, arrived.index, arrived.previous_attempts), (TUNNEL, 0, 0));
    assert!(arrived.client.features.iter().any(|feature| feature == "support_quic_eof"), "C7");
    assert!(!arrived.replace_existing);

    // C17.
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let reset = timeout(PATIENCE, recv.read_chunk(1, true)).await.unwrap();
    assert!(matches!(reset, Err(ReadError::Reset(code)) if code == VarInt::from_u32(0)), "{reset:?}");
    assert_eq!(timeout(PATIENCE, send.stopped()).await.unwrap().unwrap(), Some(VarInt::from_u32(0)));

    // C16; C18.
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    for byte in encode_request(&request("x")).unwrap() {
        send.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    send.finish().unwrap();
    let mut decoder = ResponseDecoder::new();
    decoder.handle_chunk(recv.read_to_end(1 << 16).await.unwrap().into());
    let Some(ConnectResponse::Head(head)) = decoder.poll_response().unwrap() else { panic!("a head") };
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(&decoder.into_rest()[..], b"GET a.home.example http://a.home.example/x");
}

#[tokio::test]
async fn slow_the_connector_comes_back_after_a_refusal_with_one_more_attempt_and_from_the_same_port() {
    let identity = Identity::new();
    let (endpoint, address) = raw_edge(&identity);
    let _connector = RunningConnector::start(options(&identity, address, 1));
    let mut ports = Vec::new();
    for attempt in 0..2 {
        let connection = timeout(PATIENCE, endpoint.accept()).await.unwrap().unwrap().await.unwrap();
        ports.push(connection.remote_address().port());
        let (mut control, mut calls) = connection.accept_bi().await.unwrap();
        let rejection = Rejection::temporary("busy", Duration::ZERO);
        let arrived = answer(&mut control, &mut calls, Err(rejection)).await;
        assert_eq!(arrived.previous_attempts, attempt);
        assert!(matches!(connection.closed().await, ConnectionError::ApplicationClosed(_)));
    }
    assert_eq!(ports[0], ports[1], "C15");
}

#[tokio::test]
async fn an_interim_status_is_a_malformed_head_and_so_is_101_to_who_did_not_ask_for_it() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let (_endpoint, connection) = raw_connector(&identity, edge.address, "quic.cftunnel.com").await;
    let (_, _send, _recv) = register(&connection, &registration(5, 0)).await;
    edge.wait_connections(1).await;
    let interim = Err(ResponseError::Malformed("interim_status"));
    for (kind, status, expected) in [
        (ConnectionType::Http, 100, interim.clone()),
        (ConnectionType::Http, 101, interim.clone()),
        (ConnectionType::Websocket, 103, interim.clone()),
        (ConnectionType::Websocket, 101, Ok(StatusCode::SWITCHING_PROTOCOLS)),
        (ConnectionType::Http, 200, Ok(StatusCode::OK)),
    ] {
        let mut head = request("x");
        head.kind = kind;
        let opened = edge.handle.open(TUNNEL, &head).await.unwrap();
        let (mut send, _recv) = connection.accept_bi().await.unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        let answer = ConnectResponse::Head(ResponseHead { status, headers: HeaderMap::new() });
        send.write_chunk(encode_response(&answer).unwrap()).await.unwrap();
        let received = timeout(PATIENCE, opened.response.recv()).await.unwrap();
        assert_eq!(received.map(|(head, _)| head.status), expected, "{kind:?} {status}");
    }
}

fn narrow(window_bytes: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(window_bytes));
    transport
}

/// A window that no request's head fits in.
const LESS_THAN_A_HEAD: u32 = 32;
/// A window that the answer to the bootstrap fits in, and the one to the registration behind it does not.
const LESS_THAN_A_WELCOME: u32 = 128;

#[tokio::test]
async fn slow_a_head_that_a_connection_does_not_take_in_time_goes_through_another() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let name = "quic.cftunnel.com";
    let (_endpoint, stalled) =
        raw_connector_with(&identity, edge.address, name, narrow(LESS_THAN_A_HEAD)).await;
    let (_, _send, _recv) = register(&stalled, &registration(5, 0)).await;
    edge.wait_connections(1).await;
    assert_eq!(edge.handle.open(TUNNEL, &request("x")).await.unwrap_err(), OpenError::Stalled);
    let connector = RunningConnector::start(options(&identity, edge.address, 1));
    connector.wait_ready(1).await;
    edge.wait_connections(2).await;
    for _ in 0..4 {
        assert_eq!(fetch(&edge.handle, "x").await.0.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_secret_revoked_while_the_answer_to_the_registration_is_on_its_way_lets_nobody_in() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let name = "quic.cftunnel.com";
    let (_endpoint, connection) =
        raw_connector_with(&identity, edge.address, name, narrow(LESS_THAN_A_WELCOME)).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut client = RpcClient::new();
    client.register(&registration(5, 0)).unwrap();
    flush(&mut send, || client.poll_transmit()).await;
    eventually("admission", || counter(&edge.registry, "adit_edge_registrations_total") == 1.0).await;
    assert_eq!(edge.connections(), 0, "the answer is not read yet");
    edge.handle.set_grants(vec![grant(9)]);
    let read = async { while let Ok(Some(_)) = recv.read_chunk(usize::MAX, true).await {} };
    timeout(PATIENCE, read).await.unwrap();
    let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(matches!(closed, ConnectionError::ApplicationClosed(_)), "{closed:?}");
    assert_eq!(edge.connections(), 0);
    assert_eq!(counter(&edge.registry, "adit_edge_registrations_refused_total"), 1.0);
}

#[tokio::test]
async fn a_connection_superseded_while_it_is_welcomed_lets_nobody_in() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let name = "quic.cftunnel.com";
    let (_endpoint, older) =
        raw_connector_with(&identity, edge.address, name, narrow(LESS_THAN_A_WELCOME)).await;
    let (mut send, mut recv) = older.open_bi().await.unwrap();
    let mut client = RpcClient::new();
    client.register(&registration(5, 0)).unwrap();
    flush(&mut send, || client.poll_transmit()).await;
    eventually("admission", || counter(&edge.registry, "adit_edge_registrations_total") == 1.0).await;
    let (_endpoint, newer) = raw_connector(&identity, edge.address, name).await;
    let mut again = registration(5, 0);
    again.replace_existing = true;
    let (event, _send, _recv) = register(&newer, &again).await;
    assert!(matches!(event, ClientEvent::Registered(_)), "{event:?}");
    let read = async { while let Ok(Some(_)) = recv.read_chunk(usize::MAX, true).await {} };
    timeout(PATIENCE, read).await.unwrap();
    let closed = timeout(PATIENCE, older.closed()).await.unwrap();
    assert!(matches!(closed, ConnectionError::ApplicationClosed(_)), "{closed:?}");
    edge.wait_connections(1).await;
    // Not by its silence, which would end it too.
    assert_eq!(counter(&edge.registry, "adit_edge_registrations_refused_total"), 1.0);
}

#[tokio::test]
async fn a_probe_that_closes_without_a_stream_leaves_no_trace() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let (endpoint, connection) = raw_connector(&identity, edge.address, "probe.cftunnel.com").await;
    connection.close(VarInt::from_u32(0), b"precheck complete");
    endpoint.wait_idle().await;
    assert_eq!(edge.connections(), 0);
}

#[tokio::test]
async fn slow_a_connection_that_never_registers_is_closed() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let (_endpoint, silent) = raw_connector(&identity, edge.address, "quic.cftunnel.com").await;
    let (_endpoint, stalled) = raw_connector(&identity, edge.address, "quic.cftunnel.com").await;
    let (mut send, _recv) = stalled.open_bi().await.unwrap();
    send.write_all(&[0, 0, 0, 0, 9]).await.unwrap();
    for connection in [silent, stalled] {
        let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
        assert!(matches!(closed, ConnectionError::ApplicationClosed(_)), "{closed:?}");
    }
}

#[tokio::test]
async fn an_oversized_or_broken_control_message_closes_that_connection_only() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let good = RunningConnector::start(options(&identity, edge.address, 1));
    edge.wait_connections(1).await;
    let oversized = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f];
    let broken = [0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    for bytes in [&oversized[..], &broken] {
        let (_endpoint, connection) = raw_connector(&identity, edge.address, "quic.cftunnel.com").await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
        assert!(matches!(closed, ConnectionError::ApplicationClosed(_)), "{closed:?}");
    }
    assert_eq!(edge.connections(), 1);
    good.wait_ready(1).await;
}

#[tokio::test]
async fn duplicates_wrong_ids_and_unknown_tunnels_are_refused_by_the_protocols_words() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let connect = || raw_connector(&identity, edge.address, "quic.cftunnel.com");
    let (_e1, first) = connect().await;
    let (event, _send, _recv) = register(&first, &registration(5, 0)).await;
    assert!(matches!(event, ClientEvent::Registered(_)), "{event:?}");
    let (_e2, second) = connect().await;
    let (event, ..) = register(&second, &registration(5, 0)).await;
    assert_eq!(event, ClientEvent::Rejected(Rejection::duplicate()), "E6");
    let (_e3, third) = connect().await;
    let (event, ..) = register(&third, &registration(5, 1)).await;
    assert!(matches!(event, ClientEvent::Registered(_)), "{event:?}");
    let mut unknown = registration(6, 0);
    unknown.tunnel = TunnelId(Uuid::from_u128(99));
    let (_e4, fourth) = connect().await;
    let (event, ..) = register(&fourth, &unknown).await;
    assert!(matches!(event, ClientEvent::Rejected(rejection) if !rejection.should_retry));
}

#[tokio::test]
async fn the_edge_serves_rpc_streams_and_refuses_requests_from_connectors() {
    let identity = Identity::new();
    let edge = RunningEdge::start(&identity, "127.0.0.1:0");
    let (_endpoint, connection) = raw_connector(&identity, edge.address, "quic.cftunnel.com").await;
    let (_, _send, _recv) = register(&connection, &registration(5, 0)).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_chunk(encode_request(&request("x")).unwrap()).await.unwrap();
    let reset = timeout(PATIENCE, recv.read_chunk(1, true)).await.unwrap();
    assert!(matches!(reset, Err(ReadError::Reset(_))), "{reset:?}");
    // An RPC stream whose method is not served is answered, and the connection lives (E15).
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&adit_tunnel_proto::RPC_SIGNATURE).await.unwrap();
    let mut client = RpcClient::new();
    client.unregister().unwrap();
    flush(&mut send, || client.poll_transmit()).await;
    let event = loop {
        let chunk = timeout(PATIENCE, recv.read_chunk(usize::MAX, true)).await.unwrap().unwrap().unwrap();
        client.handle_chunk(chunk.bytes).unwrap();
        if let Some(event) = client.poll_event() {
            break event;
        }
    };
    assert!(matches!(event, ClientEvent::Failed { .. }), "{event:?}");
    assert_eq!(edge.connections(), 1);
}

#[tokio::test]
async fn slow_an_edge_that_goes_silent_without_a_word_is_noticed() {
    let identity = Identity::new();
    let (endpoint, address) = raw_edge(&identity);
    // Between the two stands a relay that can stop relaying without a word.
    let relay = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let relay_address = relay.local_addr().unwrap();
    let relaying = tokio::spawn(async move {
        let (mut client, mut buffer) = (None, vec![0; 65536]);
        loop {
            let (length, from) = relay.recv_from(&mut buffer).await.unwrap();
            let to = if from == address { client } else { Some(address) };
            if from != address {
                client = Some(from);
            }
            if let Some(to) = to {
                relay.send_to(&buffer[..length], to).await.unwrap();
            }
        }
    });
    let connector = RunningConnector::start(options(&identity, relay_address, 1));
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let (mut control, mut calls) = connection.accept_bi().await.unwrap();
    answer(&mut control, &mut calls, Ok(registered())).await;
    connector.wait_ready(1).await;
    relaying.abort();
    // Within 5 s, which the bounds in `liveness.rs` say.
    connector.wait_ready(0).await;
}

/// The edge's part over HTTP/2: TLS server below, HTTP/2 client above (§6).
async fn raw_http2_edge(identity: &Identity, listener: &TcpListener) -> h2::client::SendRequest<Bytes> {
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.clone()], identity.key())
        .unwrap();
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let stream = tokio_rustls::TlsAcceptor::from(Arc::new(tls)).accept(stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), None, "C1");
    assert_eq!(stream.get_ref().1.server_name(), Some("h2.cftunnel.com"), "C1");
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests
}

async fn register_http2(
    requests: &mut h2::client::SendRequest<Bytes>,
) -> (h2::SendStream<Bytes>, h2::RecvStream) {
    register_http2_with(requests, |_| {}).await
}

async fn register_http2_with(
    requests: &mut h2::client::SendRequest<Bytes>,
    before_answer: impl FnOnce(&mut h2::client::SendRequest<Bytes>),
) -> (h2::SendStream<Bytes>, h2::RecvStream) {
    let mut before_answer = Some(before_answer);
    let request = Request::put("https://edge/")
        .header("cf-cloudflared-proxy-connection-upgrade", "control-stream")
        .body(())
        .unwrap();
    let (response, mut send) = requests.send_request(request, false).unwrap();
    let mut recv = response.await.unwrap().into_body();
    let mut server = RpcServer::new(Service::Registration);
    loop {
        let chunk = recv.data().await.unwrap().unwrap();
        recv.flow_control().release_capacity(chunk.len()).unwrap();
        server.handle_chunk(chunk).unwrap();
        let event = server.poll_event();
        let done = matches!(event, Some(ServerEvent::Register { .. }));
        if let Some(ServerEvent::Register { call, .. }) = event {
            server.answer_registration(call, &Ok(registered()));
            before_answer.take().unwrap()(requests);
        }
        while let Some(bytes) = server.poll_transmit() {
            send.send_data(bytes, false).unwrap();
        }
        if done {
            return (send, recv);
        }
    }
}

#[tokio::test]
async fn over_http2_a_request_that_overtakes_the_answer_to_the_registration_is_served() {
    let identity = Identity::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut chosen = options(&identity, listener.local_addr().unwrap(), 1);
    chosen.protocol = ProtocolChoice::Http2;
    let connector = RunningConnector::start(chosen);
    let mut requests = raw_http2_edge(&identity, &listener).await;
    let mut early = None;
    let _control = register_http2_with(&mut requests, |requests| {
        let request = Request::get("https://a.home.example/x").body(()).unwrap();
        early = Some(requests.send_request(request, true).unwrap().0);
    })
    .await;
    let response = timeout(PATIENCE, early.unwrap()).await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(connector.counter("adit_connector_streams_refused_total"), 0.0);
}

#[tokio::test]
async fn over_http2_the_connector_registers_and_answers_in_the_tunnels_dialect() {
    let identity = Identity::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut chosen = options(&identity, listener.local_addr().unwrap(), 1);
    chosen.protocol = ProtocolChoice::Http2;
    let connector = RunningConnector::start(chosen);
    let mut requests = raw_http2_edge(&identity, &listener).await;
    let _control = register_http2(&mut requests).await;
    connector.wait_ready(1).await;

    let get = |path: &str| Request::get(format!("https://a.home.example/{path}")).body(()).unwrap();
    let (response, _) = requests.send_request(get("x"), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["cf-cloudflared-response-meta"], r#"{"src":"origin"}"#);
    // base64("Set-Cookie"), twice, and nothing of it as a real header (C22).
    let serialised = response.headers()["cf-cloudflared-response-headers"].to_str().unwrap();
    assert_eq!(serialised.matches("U2V0LUNvb2tpZQ:").count(), 2);
    assert!(!response.headers().contains_key("set-cookie"));
    let body = response.into_body().data().await.unwrap().unwrap();
    assert_eq!(&body[..], b"GET a.home.example http://a.home.example/x");

    // C21.
    let (response, _) = requests.send_request(get("fail"), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(response.headers()["cf-cloudflared-response-meta"], r#"{"src":"cloudflared"}"#);
    let (response, _) = requests.send_request(get("truncate"), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let end = loop {
        match body.data().await {
            Some(Ok(_)) => {}
            end => break end,
        }
    };
    assert!(matches!(end, Some(Err(error)) if error.reason() == Some(h2::Reason::INTERNAL_ERROR)));

    // 101 becomes 200, bytes go both ways.
    let mut websocket = get("echo");
    let upgrade = "cf-cloudflared-proxy-connection-upgrade";
    websocket.headers_mut().insert(upgrade, "websocket".parse().unwrap());
    let (response, mut send) = requests.send_request(websocket, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    for message in ["one", "two"] {
        send.send_data(Bytes::from(message), false).unwrap();
        assert_eq!(&body.data().await.unwrap().unwrap()[..], message.as_bytes());
    }

    // C36.
    let push = Request::put("https://edge/").header(upgrade, "update-configuration").body(()).unwrap();
    let (response, mut send) = requests.send_request(push, false).unwrap();
    send.send_data(Bytes::from_static(br#"{"version":1,"config":{}}"#), true).unwrap();
    let answer = response.await.unwrap().into_body().data().await.unwrap().unwrap();
    assert!(answer.windows(22).any(|part| part == br#""lastAppliedVersion":1"#), "{answer:?}");
    assert_eq!(connector.handler.configurations.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn slow_over_http2_a_shutdown_unregisters_and_a_lost_connection_comes_back() {
    let identity = Identity::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut chosen = options(&identity, listener.local_addr().unwrap(), 1);
    chosen.protocol = ProtocolChoice::Http2;
    let connector = RunningConnector::start(chosen);
    for _ in 0..2 {
        let mut requests = raw_http2_edge(&identity, &listener).await;
        let control = register_http2(&mut requests).await;
        connector.wait_ready(1).await;
        drop((requests, control));
        connector.wait_ready(0).await;
    }
    let mut requests = raw_http2_edge(&identity, &listener).await;
    let control = register_http2(&mut requests).await;
    connector.wait_ready(1).await;
    connector.stop.send_replace(true);
    eventually("draining", || {
        connector.handle.connections().iter().all(|one| one.phase == ConnectionPhase::Draining)
    })
    .await;
    // Still serving until the edge closes (§3.6).
    let request = Request::get("https://a.home.example/x").body(()).unwrap();
    let (response, _) = requests.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    drop((requests, control));
    connector.ended().await.unwrap();
}
