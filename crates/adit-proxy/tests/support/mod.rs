//! Servers that stand behind a service, and ways to ask it.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adit_config::dynamic::{LoadBalancer, Server, ServersTransport, Service, ServiceKind};
use adit_proxy::body::{Batch, Body};
use adit_proxy::message::{Request, Response, Visitor};
use adit_proxy::middleware::{Ctx, Target};
use adit_proxy::service::{Blueprint, Services};
use http::{HeaderMap, Method, StatusCode, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An HTTP/1.1 server that answers with its name and remembers what it was asked.
#[derive(Clone)]
pub struct Origin {
    pub address: SocketAddr,
    pub asked: Arc<Mutex<Vec<String>>>,
    /// Answered to everything but `/healthz`.
    pub status: Arc<AtomicU16>,
    /// Answered to `/healthz`.
    pub health: Arc<AtomicU16>,
    pub probes: Arc<AtomicUsize>,
    pub probe_heads: Arc<Mutex<Vec<String>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Origin {
    pub async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            status: Arc::new(AtomicU16::new(200)),
            health: Arc::new(AtomicU16::new(200)),
            probes: Arc::default(),
            probe_heads: Arc::default(),
            connections: Arc::default(),
        };
        let server = origin.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                server.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(server.clone().serve(name, stream));
            }
        });
        origin
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    async fn serve(self, name: &'static str, mut stream: TcpStream) {
        while let Some((head, mut rest)) = read_head(&mut stream).await {
            if head.contains("Upgrade: websocket") {
                self.asked.lock().unwrap().push(head);
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n").await.unwrap();
                let (mut read, mut write) = stream.split();
                write.write_all(&rest).await.unwrap();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                return;
            }
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            if path == "/hang" {
                std::future::pending::<()>().await;
            }
            let body = read_body(&mut stream, &head, &mut rest).await;
            let status = if path.starts_with("/healthz") {
                self.probes.fetch_add(1, Ordering::SeqCst);
                self.probe_heads.lock().unwrap().push(head.clone());
                self.health.load(Ordering::SeqCst)
            } else {
                self.asked.lock().unwrap().push(format!("{head}{body}"));
                self.status.load(Ordering::SeqCst)
            };
            let location = if status == 302 { "Location: /healthz/again?x\r\n" } else { "" };
            let answer =
                format!("HTTP/1.1 {status} X\r\n{location}Content-Length: {}\r\n\r\n{name}", name.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return Some((String::from_utf8(bytes).unwrap(), rest));
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

async fn read_body(stream: &mut TcpStream, head: &str, rest: &mut Vec<u8>) -> String {
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map(|length| length.parse::<usize>().unwrap());
    let chunked = head.contains("Transfer-Encoding: chunked");
    while length.is_some_and(|l| rest.len() < l)
        || (chunked && !(rest.ends_with(b"\r\n\r\n") && rest.windows(5).any(|w| w == b"\r\n0\r\n")))
    {
        assert_ne!(stream.read_buf(rest).await.unwrap(), 0);
    }
    String::from_utf8(std::mem::take(rest)).unwrap()
}

/// An address on which nothing listens.
pub fn refused() -> String {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", closed.local_addr().unwrap())
}

pub fn server(url: &str) -> Server {
    Server { url: url.to_owned(), weight: 1, preserve_path: false, fenced: false }
}

pub fn balancer(urls: &[&str]) -> LoadBalancer {
    LoadBalancer { servers: urls.iter().map(|url| server(url)).collect(), ..LoadBalancer::default() }
}

pub fn service(kind: ServiceKind) -> Service {
    Service { middlewares: Vec::new(), kind }
}

/// A configuration under construction.
#[derive(Default)]
pub struct Plan {
    pub services: BTreeMap<String, Service>,
    pub transports: BTreeMap<String, ServersTransport>,
}

impl Plan {
    pub fn with(mut self, name: &str, kind: ServiceKind) -> Self {
        self.services.insert(format!("{name}@file"), service(kind));
        self
    }

    pub fn servers(self, name: &str, urls: &[&str]) -> Self {
        self.with(name, ServiceKind::LoadBalancer(balancer(urls)))
    }

    pub fn transport(mut self, name: &str, transport: ServersTransport) -> Self {
        self.transports.insert(format!("{name}@file"), transport);
        self
    }

    pub fn compile(&self, previous: Option<&Services>) -> Services {
        let blueprint = Blueprint {
            services: &self.services,
            transports: &self.transports,
            internal: &BTreeMap::new(),
            chains: &|_, names, _| Err(format!("no middlewares here: {names:?}")),
        };
        Services::compile(blueprint, previous)
    }
}

pub fn request(path: &str) -> Request {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let visitor = Visitor {
        remote: nobody,
        local: nobody,
        secure: false,
        entry_point: "web".into(),
        peer: None,
        tls: None,
        address: adit_proxy::message::AddressText::default(),
    };
    Request {
        method: Method::GET,
        uri: path.parse().unwrap(),
        version: Version::HTTP_11,
        host: "pub.test".to_owned(),
        headers: HeaderMap::new().into(),
        body: Body::empty(),
        upgrade: None,
        visitor: Arc::new(visitor),
    }
}

pub fn ctx() -> Ctx {
    Ctx::new("web".into(), IpAddr::from([192, 0, 2, 7]), false, "r@file".into())
}

/// What came back, content read.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
    pub ctx: Ctx,
}

pub async fn ask(services: &Services, name: &str, request: Request) -> Answer {
    let node = services.node(&format!("{name}@file")).unwrap();
    let mut ctx = ctx();
    let Response { status, headers, body } = node.call(request, &mut ctx).await;
    let (body, trailers) = read(body).await;
    Answer { status, headers: headers.into_map(), body, trailers, ctx }
}

pub async fn get(services: &Services, name: &str) -> Answer {
    ask(services, name, request("/")).await
}

pub async fn read(mut body: Body) -> (String, Option<HeaderMap>) {
    let mut all = Vec::new();
    loop {
        let mut batch = Batch::new();
        let more = poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await.unwrap();
        all.extend(batch.into_iter().flatten());
        if !more {
            return (String::from_utf8(all).unwrap(), body.take_trailers());
        }
    }
}

/// Waits for something that other tasks bring about.
pub async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the condition comes true");
}
