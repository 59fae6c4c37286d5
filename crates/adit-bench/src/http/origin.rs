//! The bench server as an HTTP origin: bodies of any size, a sink, and what the server's side of a run counted.
//!
//! ```text
//! GET    /adit-bench                         version, and a nonce to prove the secret over
//! POST   /adit-bench/runs?nonce=…&proof=…    begins a run: { run, proof }
//! GET    /adit-bench/runs/RUN                what it counted, and the CPU time since it began
//! POST   /adit-bench/runs/RUN/mark           counting begins here (the end of the warm-up)
//! DELETE /adit-bench/runs/RUN                ends it
//! GET    /adit-bench/runs/RUN/bytes/N        N bytes
//! GET    /adit-bench/runs/RUN/ping            one byte that is not counted
//! POST   /adit-bench/runs/RUN/sink           takes a body, answers how long it was
//! GET    /bytes/N, POST /sink                the same without a run, where no secret is set: for curl, wrk, h2load
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::{serve_h1, serve_h2};
use crate::cpu::CpuMark;
use crate::server::Limits;
use crate::server::census::{Census, Counted};
use crate::tcp::pattern;
use crate::wire::{self, Nonce, Side};

/// The origin.
#[derive(Debug)]
pub(crate) struct Origin {
    secret: Option<hmac::Key>,
    runs: Mutex<HashMap<String, Arc<Run>>>,
    limits: Limits,
    census: Arc<Census>,
    nonces: Mutex<Vec<Nonce>>,
    watched: Vec<u32>,
    ended: Notify,
    /// What bodies are made of.
    pub(super) pattern: Bytes,
}

/// What the server's side of a run counts.
#[derive(Debug)]
pub(crate) struct Run {
    /// Who began it: the client, or what stands between.
    address: IpAddr,
    counted: Counted,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    requests: AtomicU64,
    marked: Mutex<Marked>,
    begun: Instant,
    /// Seconds after `begun` of the last request.
    touched: AtomicU64,
}

#[derive(Debug)]
struct Marked {
    cpu: CpuMark,
    sent: u64,
    received: u64,
    requests: u64,
}

/// What a request gets.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A document, small.
    Text(StatusCode, String),
    /// So many bytes.
    Bytes(u64, Option<Arc<Run>>),
    /// The body is read, then counted.
    Sink(Option<Arc<Run>>),
}

impl Origin {
    pub(crate) fn new(
        secret: Option<hmac::Key>,
        limits: Limits,
        watched: Vec<u32>,
        census: Arc<Census>,
    ) -> Arc<Self> {
        Arc::new(Self {
            secret,
            runs: Mutex::default(),
            limits,
            census,
            nonces: Mutex::default(),
            watched,
            ended: Notify::new(),
            pattern: Bytes::from(pattern(PATTERN_BYTES)),
        })
    }

    /// The longest that one request may take.
    pub(super) fn request_max(&self) -> Duration {
        self.limits.duration
    }

    /// A connection without TLS: HTTP/1.1, or HTTP/2 by prior knowledge.
    pub(crate) async fn serve_clear(self: &Arc<Self>, stream: TcpStream, from: IpAddr) {
        let _ = stream.set_nodelay(true);
        let mut start = [0; 3];
        // Only `PRI` of HTTP/2's preface (RFC 9113 §3.4) begins so; a first segment of less than three bytes is none.
        let is_h2 = matches!(stream.peek(&mut start).await, Ok(3) if start == *b"PRI");
        if is_h2 {
            serve_h2::serve(Arc::clone(self), stream, from).await;
        } else {
            serve_h1::serve(self, stream, from).await;
        }
    }

    pub(crate) async fn serve_tls(
        self: &Arc<Self>,
        stream: tokio_rustls::server::TlsStream<TcpStream>,
        from: IpAddr,
    ) {
        let _ = stream.get_ref().0.set_nodelay(true);
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            serve_h2::serve(Arc::clone(self), stream, from).await;
        } else {
            serve_h1::serve(self, stream, from).await;
        }
    }

    /// Resolves each time a run has been ended by its client.
    pub(crate) async fn run_ended(&self) -> bool {
        self.ended.notified().await;
        true
    }

    /// Decides on a request by its method and target; `from` is who begins a run.
    pub(super) fn route(&self, method: &Method, target: &str, from: IpAddr) -> Answer {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut parts = path.trim_start_matches('/').split('/');
        match (method, parts.next().unwrap_or_default(), parts.next(), parts.next()) {
            (_, "adit-bench", None, None) => self.hello(),
            (&Method::POST, "adit-bench", Some("runs"), None) => self.begin(query, from.to_canonical()),
            (_, "adit-bench", Some("runs"), Some(name)) => {
                let run = self.runs().get(name).cloned();
                match run {
                    Some(run) => self.run(method, name, &run, (parts.next(), parts.next())),
                    None => Answer::Text(StatusCode::NOT_FOUND, refusal("there is no such run")),
                }
            }
            (_, "", None, None) => Answer::Text(StatusCode::OK, HELP.to_owned()),
            (_, "bytes" | "sink", ..) if self.secret.is_some() => {
                Answer::Text(StatusCode::FORBIDDEN, refusal("this server wants a secret"))
            }
            (&Method::GET | &Method::HEAD, "bytes", Some(count), None) => {
                self.census.pass();
                bytes(count, None)
            }
            (&Method::POST | &Method::PUT, "sink", None, None) => {
                self.census.pass();
                Answer::Sink(None)
            }
            _ => Answer::Text(StatusCode::NOT_FOUND, refusal("nothing is here")),
        }
    }

    fn hello(&self) -> Answer {
        let Ok(nonce) = wire::random() else {
            return Answer::Text(StatusCode::INTERNAL_SERVER_ERROR, refusal("no random numbers"));
        };
        if self.secret.is_some() {
            let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
            if nonces.len() >= NONCES_MAX {
                nonces.remove(0);
            }
            nonces.push(nonce);
        }
        let hello = json!({
            "adit-bench": wire::VERSION, "adit": env!("CARGO_PKG_VERSION"), "nonce": wire::hex(&nonce),
            "secret": self.secret.is_some(),
        });
        Answer::Text(StatusCode::OK, hello.to_string())
    }

    fn begin(&self, query: &str, from: IpAddr) -> Answer {
        let field = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let Some(client_nonce) = wire::unhex16(field("nonce")) else {
            return Answer::Text(StatusCode::BAD_REQUEST, refusal("no nonce"));
        };
        let Ok(name) = wire::random().map(|bytes| wire::hex(&bytes)) else {
            return Answer::Text(StatusCode::INTERNAL_SERVER_ERROR, refusal("no random numbers"));
        };
        let mut proof = None;
        if let Some(secret) = &self.secret {
            let Some(nonce) = self.proven_nonce(secret, &client_nonce, field("proof").unwrap_or_default())
            else {
                return Answer::Text(StatusCode::FORBIDDEN, refusal("the secret is missing or wrong"));
            };
            proof = Some(wire::prove(secret, Side::Server, (&client_nonce, &nonce), &name));
        }
        let mut runs = self.runs();
        runs.retain(|_, run| !run.is_forgotten());
        let of_address = runs.values().filter(|run| run.address == from).count();
        if runs.len() >= self.limits.tests || of_address >= self.limits.tests_per_address {
            return Answer::Text(
                StatusCode::SERVICE_UNAVAILABLE,
                refusal("as many runs as this server allows are under way"),
            );
        }
        runs.insert(name.clone(), Arc::new(Run::new(&self.watched, from, self.census.enter())));
        Answer::Text(StatusCode::CREATED, json!({ "run": name, "proof": proof }).to_string())
    }

    /// The nonce of ours that `proof` was made over; it cannot be used again.
    fn proven_nonce(&self, secret: &hmac::Key, theirs: &Nonce, proof: &str) -> Option<Nonce> {
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        let at = nonces
            .iter()
            .position(|nonce| wire::is_proven(secret, Side::Client, (nonce, theirs), HTTP_TEXT, proof))?;
        Some(nonces.remove(at))
    }

    fn run(&self, method: &Method, name: &str, run: &Arc<Run>, rest: (Option<&str>, Option<&str>)) -> Answer {
        run.touch();
        if matches!(rest.0, Some("bytes" | "sink")) {
            run.requests.fetch_add(1, Ordering::Relaxed);
        }
        match (method, rest) {
            (&Method::GET | &Method::HEAD, (Some("bytes"), Some(count))) => bytes(count, Some(run)),
            (&Method::POST | &Method::PUT, (Some("sink"), None)) => Answer::Sink(Some(Arc::clone(run))),
            (&Method::GET, (Some("ping"), None)) => Answer::Bytes(1, None),
            (&Method::POST, (Some("mark"), None)) => {
                run.mark(&self.watched);
                Answer::Text(StatusCode::OK, "{}".to_owned())
            }
            (&Method::GET, (None, None)) => Answer::Text(StatusCode::OK, self.counted(run).to_string()),
            (&Method::DELETE, (None, None)) => {
                let counted = self.counted(run).to_string();
                self.runs().remove(name);
                self.ended.notify_one();
                Answer::Text(StatusCode::OK, counted)
            }
            _ => Answer::Text(StatusCode::NOT_FOUND, refusal("nothing is here")),
        }
    }

    fn counted(&self, run: &Run) -> Value {
        let marked = run.marked();
        let mut cpu = marked.cpu.elapsed();
        cpu.shared = !run.counted.was_alone();
        let count = |counter: &AtomicU64, from: u64| counter.load(Ordering::Relaxed).saturating_sub(from);
        json!({
            "sent": count(&run.sent, marked.sent), "received": count(&run.received, marked.received),
            "requests": count(&run.requests, marked.requests), "cpu": cpu.to_json(),
        })
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Arc<Run>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    fn new(watched: &[u32], address: IpAddr, counted: Counted) -> Self {
        let marked = Marked { cpu: CpuMark::now(watched), sent: 0, received: 0, requests: 0 };
        Self {
            address,
            counted,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            marked: Mutex::new(marked),
            begun: Instant::now(),
            touched: AtomicU64::new(0),
        }
    }

    fn mark(&self, watched: &[u32]) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        *self.marked() = Marked {
            cpu: CpuMark::now(watched),
            sent: count(&self.sent),
            received: count(&self.received),
            requests: count(&self.requests),
        };
    }

    fn marked(&self) -> MutexGuard<'_, Marked> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its client is there: it asks, sends or takes.
    pub(super) fn touch(&self) {
        self.touched.store(self.begun.elapsed().as_secs(), Ordering::Relaxed);
    }

    fn is_forgotten(&self) -> bool {
        self.begun.elapsed().as_secs() > self.touched.load(Ordering::Relaxed) + FORGOTTEN.as_secs()
    }
}

fn bytes(count: &str, run: Option<&Arc<Run>>) -> Answer {
    match count.parse::<u64>() {
        Ok(count) => Answer::Bytes(count, run.cloned()),
        Err(_) => Answer::Text(StatusCode::BAD_REQUEST, refusal("no number of bytes")),
    }
}

fn refusal(why: &str) -> String {
    json!({ "error": why }).to_string()
}

/// What a client proves over HTTP.
pub(super) const HTTP_TEXT: &str = "http";
const HELP: &str = "adit bench server\n\nGET /bytes/N, POST /sink, or: adit bench client URL\n";
/// Written at once at most; also what a body's reader takes at once.
pub(super) const PATTERN_BYTES: usize = 256 * 1024;
/// Given out and not used yet: 16 KiB. The oldest is dropped for a new one.
const NONCES_MAX: usize = 1024;
/// A run whose client has not asked, sent or taken anything for so long is over; ours asks every two seconds.
const FORGOTTEN: Duration = Duration::from_secs(11);

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(secret: Option<&[u8]>) -> Arc<Origin> {
        let key = secret.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret));
        let limits = Limits { tests: 3, tests_per_address: 2, streams: 1, duration: Duration::from_secs(10) };
        Origin::new(key, limits, Vec::new(), Arc::default())
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn text(answer: Answer) -> (u16, Value) {
        let Answer::Text(status, text) = answer else { panic!("{answer:?}") };
        (status.as_u16(), serde_json::from_str(&text).unwrap())
    }

    fn begin(origin: &Origin, query: &str) -> (u16, Value) {
        text(origin.route(&Method::POST, &format!("/adit-bench/runs?{query}"), HERE))
    }

    #[test]
    fn runs_are_bounded_and_end() {
        let origin = origin(None);
        let query = format!("nonce={}", "00".repeat(16));
        let (status, run) = begin(&origin, &query);
        assert_eq!(status, 201);
        assert_eq!(begin(&origin, &query).0, 201);
        // The third place is for others.
        assert_eq!(begin(&origin, &query).0, 503);
        let there = |origin: &Origin| {
            text(origin.route(&Method::POST, &format!("/adit-bench/runs?{query}"), THERE)).0
        };
        assert_eq!((there(&origin), there(&origin)), (201, 503));
        let path = format!("/adit-bench/runs/{}", run["run"].as_str().unwrap());
        assert!(matches!(
            origin.route(&Method::GET, &format!("{path}/bytes/7"), HERE),
            Answer::Bytes(7, Some(_))
        ));
        assert_eq!(text(origin.route(&Method::DELETE, &path, HERE)).1["requests"], 1);
        assert_eq!(begin(&origin, &query).0, 201);
    }

    #[test]
    fn a_client_that_says_nothing_any_more_loses_its_place() {
        let origin = origin(None);
        let query = format!("nonce={}", "00".repeat(16));
        let name = begin(&origin, &query).1["run"].as_str().unwrap().to_owned();
        assert_eq!(begin(&origin, &query).0, 201);
        assert_eq!(begin(&origin, &query).0, 503);
        // As if it had begun long before, and never asked.
        let mut run = origin.runs().remove(&name).unwrap();
        Arc::get_mut(&mut run).unwrap().begun = Instant::now().checked_sub(2 * FORGOTTEN).unwrap();
        origin.runs().insert(name.clone(), Arc::clone(&run));
        run.touch();
        assert_eq!(begin(&origin, &query).0, 503);
        run.touched.store(0, Ordering::Relaxed);
        assert_eq!(begin(&origin, &query).0, 201);
        assert!(!origin.runs().contains_key(&name));
    }

    #[test]
    fn cpu_time_of_others_is_said_to_be_in_the_figures() {
        let origin = origin(None);
        let query = format!("nonce={}", "00".repeat(16));
        let path = |run: &Value| format!("/adit-bench/runs/{}", run["run"].as_str().unwrap());
        let shared = |path: &str| text(origin.route(&Method::GET, path, HERE)).1["cpu"]["shared"].clone();
        let first = path(&begin(&origin, &query).1);
        assert_eq!(shared(&first), false);
        let second = path(&begin(&origin, &query).1);
        origin.route(&Method::DELETE, &second, HERE);
        assert_eq!(shared(&first), true);
        origin.route(&Method::DELETE, &first, HERE);
        let third = path(&begin(&origin, &query).1);
        assert_eq!(shared(&third), false);
        origin.route(&Method::GET, "/bytes/7", HERE);
        assert_eq!(shared(&third), true);
    }

    #[test]
    fn a_secret_is_proven_over_a_nonce_that_counts_once() {
        let origin = origin(Some(b"long enough"));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, b"long enough");
        let hello = text(origin.route(&Method::GET, "/adit-bench", HERE)).1;
        let nonce = wire::unhex16(hello["nonce"].as_str()).unwrap();
        let proof = wire::prove(&secret, Side::Client, (&nonce, &[0; 16]), HTTP_TEXT);
        let query = format!("nonce={}&proof={proof}", "00".repeat(16));
        assert_eq!(begin(&origin, &format!("nonce={}", "00".repeat(16))).0, 403);
        assert_eq!(begin(&origin, &query).0, 201);
        assert_eq!(begin(&origin, &query).0, 403);
        assert_eq!(text(origin.route(&Method::GET, "/bytes/7", HERE)).0, 403);
        assert_eq!(text(origin.route(&Method::POST, "/sink", HERE)).0, 403);
    }
}
