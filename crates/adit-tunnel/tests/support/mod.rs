//! An edge and connectors in one process, over loopback.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use adit_config::{
    EdgeIpVersion, HostPattern, Protocol as ProtocolChoice, Secret, TunnelCredentials, TunnelId,
};
use adit_tunnel::{
    Connector, ConnectorError, ConnectorHandle, ConnectorOptions, Edge, EdgeCertificate, EdgeError,
    EdgeHandle, EdgeLane, EdgeOptions, Grant, RecvHalf, RequestHandler, SendHalf, StreamError, TunnelRequest,
};
use adit_tunnel_proto::{ConnectionType, HeaderPairs, RequestHead, ResponseHead};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use uuid::Uuid;

pub(crate) const TUNNEL: TunnelId = TunnelId(Uuid::from_u128(0x3f2b));
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A self-signed certificate for the edge's names, also as a PEM file.
pub(crate) struct Identity {
    pub(crate) cert: CertificateDer<'static>,
    key: Vec<u8>,
    pub(crate) ca: PathBuf,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let names = ["quic.cftunnel.com", "h2.cftunnel.com", "probe.cftunnel.com"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let ca = std::env::temp_dir().join(format!("adit-tunnel-test-{}-{next}.pem", std::process::id()));
        std::fs::File::create(&ca).unwrap().write_all(made.cert.pem().as_bytes()).unwrap();
        Self { cert: made.cert.der().clone(), key: made.signing_key.serialize_der(), ca }
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    pub(crate) fn certificate(&self) -> EdgeCertificate {
        EdgeCertificate { chain: vec![self.cert.clone()], key: self.key() }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.ca));
    }
}

pub(crate) fn grant(secret: u8) -> Grant {
    Grant {
        id: TUNNEL,
        name: "home".into(),
        secret: Secret::new(vec![secret; 32]),
        account_tag: None,
        hostnames: vec!["*.home.example".parse::<HostPattern>().unwrap()],
        connections_max: 8,
    }
}

pub(crate) struct RunningEdge {
    pub(crate) handle: EdgeHandle,
    pub(crate) address: SocketAddr,
    pub(crate) registry: prometheus::Registry,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl RunningEdge {
    pub(crate) fn start(identity: &Identity, listen: &str) -> Self {
        Self::bind(identity, listen.parse().unwrap(), &[]).unwrap()
    }

    pub(crate) fn start_on(identity: &Identity, lanes: &[EdgeLane]) -> Self {
        Self::bind(identity, "127.0.0.1:0".parse().unwrap(), lanes).unwrap()
    }

    /// Starts on the address of an edge that just ended, once its socket is free.
    pub(crate) async fn restart(identity: &Identity, address: SocketAddr) -> Self {
        let mut edge = None;
        eventually("free address", || {
            edge = Self::bind(identity, address, &[]).ok();
            edge.is_some()
        })
        .await;
        edge.unwrap()
    }

    fn bind(identity: &Identity, listen: SocketAddr, lanes: &[EdgeLane]) -> Result<Self, EdgeError> {
        let options = EdgeOptions {
            lanes: lanes.to_vec(),
            listen,
            certificate: identity.certificate(),
            location: "here".into(),
            registration_timeout: Duration::from_secs(2),
            grace_period: Duration::from_secs(5),
            connections_max: 64,
            streams_per_connection_max: 1000,
            hostnames_per_tunnel_max: 16,
        };
        let registry = prometheus::Registry::new();
        let edge = Edge::bind(options, vec![grant(7)], &registry)?;
        let (stop, stopped) = watch::channel(false);
        let (handle, address) = (edge.handle(), edge.local_addr().unwrap());
        Ok(Self { handle, address, registry, stop, task: tokio::spawn(edge.run(stopped)) })
    }

    /// Ends it as SIGTERM would.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }

    /// Ends it without a word.
    pub(crate) async fn kill(self) {
        self.task.abort();
        drop(self.task.await);
    }

    pub(crate) fn connections(&self) -> usize {
        self.handle.tunnels().iter().map(|tunnel| tunnel.connections.len()).sum()
    }

    pub(crate) async fn wait_connections(&self, count: usize) {
        eventually("connections at the edge", || self.connections() == count).await;
    }
}

pub(crate) struct RunningConnector {
    pub(crate) handle: ConnectorHandle,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) task: JoinHandle<Result<(), ConnectorError>>,
    pub(crate) registry: prometheus::Registry,
    pub(crate) handler: Arc<Origin>,
}

pub(crate) fn options(identity: &Identity, edge: SocketAddr, connections: u8) -> ConnectorOptions {
    ConnectorOptions {
        credentials: TunnelCredentials {
            account_tag: "account".into(),
            secret: Secret::new(vec![7; 32]),
            tunnel_id: TUNNEL,
            endpoint: None,
        },
        edge: vec![edge.to_string(); usize::from(connections)],
        region: None,
        ip_version: EdgeIpVersion::Auto,
        bind_address: None,
        ca: Some(identity.ca.clone()),
        ca_pem: None,
        connections,
        protocol: ProtocolChoice::Quic,
        retries: 5,
        edge_address_retries: 8,
        features: Vec::new(),
        post_quantum: false,
        disable_pmtu_discovery: false,
        version: "2026.8.2".into(),
        local_configuration: Some(Bytes::from_static(
            br#"{"ingress":[{"hostname":"a.home.example","service":"http://x"},{"service":"http_status:404"}]}"#,
        )),
        rpc_timeout: Duration::from_secs(5),
        grace_period: Duration::from_secs(5),
        lanes: Vec::new(),
    }
}

impl RunningConnector {
    pub(crate) fn start(options: ConnectorOptions) -> Self {
        let registry = prometheus::Registry::new();
        let handler = Arc::new(Origin::default());
        let connector = Connector::new(options, Arc::clone(&handler), &registry).unwrap();
        let (stop, stopped) = watch::channel(false);
        let handle = connector.handle();
        Self { handle, stop, task: tokio::spawn(connector.run(stopped)), registry, handler }
    }

    pub(crate) async fn wait_ready(&self, count: usize) {
        eventually("ready connections", || self.handle.ready_connections() == count).await;
    }

    pub(crate) async fn ended(self) -> Result<(), ConnectorError> {
        timeout(PATIENCE, self.task).await.unwrap().unwrap()
    }

    pub(crate) fn counter(&self, name: &str) -> f64 {
        counter(&self.registry, name)
    }
}

pub(crate) fn counter(registry: &prometheus::Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().filter(|family| family.name() == name);
    family.flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value()).sum()
}

/// Answers by path: `/echo` streams the body back, `/fail` cannot, `/truncate` breaks off, `/hang`
/// reads nothing and says nothing more, `/flood` never ends, anything else says what it saw.
#[derive(Default)]
pub(crate) struct Origin {
    pub(crate) configurations: Mutex<Vec<(i32, Vec<u8>)>>,
    pub(crate) aborted: AtomicUsize,
}

impl RequestHandler for Origin {
    async fn handle(&self, request: TunnelRequest) {
        let TunnelRequest { head, mut body, reply, connection } = request;
        let path = head.dest.splitn(4, '/').nth(3).unwrap_or("").to_owned();
        let status = match head.kind {
            ConnectionType::Websocket => StatusCode::SWITCHING_PROTOCOLS,
            _ => StatusCode::OK,
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-index", u16::from(connection.index).into());
        headers.append("set-cookie", "a=1".parse().unwrap());
        headers.append("set-cookie", "b=2".parse().unwrap());
        match path.as_str() {
            "fail" => return reply.fail("origin is down").await,
            "drop" => return drop(reply),
            _ => {}
        }
        let Ok(mut send) = reply.head(ResponseHead { status, headers }).await else { return };
        match path.as_str() {
            "truncate" => {
                write(&mut send, Bytes::from_static(b"half")).await.unwrap();
                send.reset();
            }
            "hang" => {
                let stopped = poll_fn(|cx| send.poll_stopped(cx)).await;
                assert!(stopped.is_err());
                self.aborted.fetch_add(1, Ordering::SeqCst);
            }
            "flood" => {
                let chunk = Bytes::from(vec![0; 1 << 16]);
                while write(&mut send, chunk.clone()).await.is_ok() {}
            }
            "echo" => {
                let mut chunks = VecDeque::new();
                while let Ok(true) = poll_fn(|cx| body.poll_chunks(cx, &mut chunks)).await {
                    if poll_fn(|cx| send.poll_write(cx, &mut chunks)).await.is_err() {
                        return;
                    }
                }
                send.finish();
            }
            _ => {
                let text = format!("{} {} {}", head.method, head.host, head.dest);
                write(&mut send, text.into()).await.unwrap();
                send.finish();
            }
        }
    }

    fn apply_configuration(&self, version: i32, json: &[u8]) -> Result<(), String> {
        if json == b"bad" {
            return Err("bad rules".into());
        }
        self.configurations.lock().unwrap().push((version, json.to_vec()));
        Ok(())
    }
}

pub(crate) fn request(path: &str) -> RequestHead {
    RequestHead::new(Method::GET, format!("http://a.home.example/{path}"), "a.home.example")
}

pub(crate) async fn write(send: &mut SendHalf, chunk: Bytes) -> Result<(), StreamError> {
    let mut chunks = VecDeque::from([chunk]);
    poll_fn(|cx| send.poll_write(cx, &mut chunks)).await
}

pub(crate) async fn read_all(recv: &mut RecvHalf) -> Result<Vec<u8>, StreamError> {
    let (mut all, mut chunks) = (Vec::new(), VecDeque::new());
    while poll_fn(|cx| recv.poll_chunks(cx, &mut chunks)).await? {
        chunks.drain(..).for_each(|chunk| all.extend_from_slice(&chunk));
    }
    Ok(all)
}

/// One request without a body, its whole answer.
pub(crate) async fn fetch(edge: &EdgeHandle, path: &str) -> (ResponseHead, Vec<u8>) {
    let mut opened = edge.open(TUNNEL, &request(path)).await.unwrap();
    opened.send.finish();
    let (head, mut body) = timeout(PATIENCE, opened.response.recv()).await.unwrap().unwrap();
    let head = ResponseHead { status: head.status, headers: head.headers.into_map() };
    (head, read_all(&mut body).await.unwrap())
}

/// Waits for a condition that some task brings about.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "{what}: did not come about");
}
