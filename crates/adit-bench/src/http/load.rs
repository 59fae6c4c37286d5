//! The workers of an HTTP client: each makes requests one after the other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use tokio::net::TcpStream;

use super::tls::ClientTls;
use super::{exchange_h1, exchange_h2};
use crate::flow::{Flow, Pace, Switch};
use crate::histogram::Histogram;
use crate::tcp;

/// What all workers of a run share.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) address: SocketAddr,
    pub(super) bind: Option<IpAddr>,
    pub(super) tls: Option<ClientTls>,
    /// For questions beside the load, which are HTTP/1.1's.
    pub(super) tls_h1: Option<ClientTls>,
    pub(super) window: Option<u32>,
    /// What is asked in each direction.
    pub(super) up: Ask,
    pub(super) down: Ask,
    pub(super) rate: Option<u64>,
    pub(super) pattern: Bytes,
    pub(super) switch: Arc<Switch>,
}

/// One kind of request.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) request: Request<()>,
    /// The same as HTTP/1.1 writes it.
    pub(super) head: Bytes,
    /// Bytes that follow the head.
    pub(super) body: u64,
    /// Requests that are left to begin; `None` for no end.
    pub(super) left: Option<AtomicU64>,
}

/// One request at once.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) load: Arc<Load>,
    pub(super) flow: Arc<Flow>,
    pub(super) tally: Arc<Mutex<Tally>>,
    pub(super) pace: Option<Pace>,
    /// How long the rate has it wait before the next bytes.
    owed: Duration,
    failures_in_a_row: u32,
    /// When the first of them was noticed.
    failing_since: Option<Instant>,
}

/// What a worker has seen.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Of requests that failed, too.
    pub(super) latency: Histogram,
    pub(super) failed: BTreeMap<&'static str, u64>,
    /// When the request under way began, or the connection for it.
    under_way: Option<Instant>,
    pub(super) answered: Option<Instant>,
}

impl Tally {
    /// The warm-up is over: what came until now does not count; what is under way will.
    pub(super) fn end_warm_up(&mut self) {
        *self = Self { under_way: self.under_way, answered: self.answered, ..Self::default() };
    }

    /// How long the request that was under way at `end` had waited.
    pub(super) fn waited(&self, end: Instant) -> Option<Duration> {
        self.under_way.and_then(|began| end.checked_duration_since(began))
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Connect,
    Tls,
    Closed,
    Malformed,
    /// An answer of 400 or more; the connection goes on if it may.
    Status(u16),
    /// An answer before the request's body was sent.
    Early,
    Silent,
}

impl Failure {
    /// Few names, for counting.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connect => "cannot connect",
            Self::Tls => "TLS failed",
            Self::Closed => "closed early",
            Self::Malformed => "malformed",
            Self::Status(400..500) => "status 4xx",
            Self::Status(_) => "status 5xx",
            Self::Early => "answered before the body",
            Self::Silent => "no answer in time",
        }
    }
}

impl Worker {
    pub(super) fn new(load: &Arc<Load>, flow: &Arc<Flow>, tally: &Arc<Mutex<Tally>>) -> Self {
        Self {
            load: Arc::clone(load),
            flow: Arc::clone(flow),
            tally: Arc::clone(tally),
            pace: Pace::new(load.rate),
            owed: Duration::ZERO,
            failures_in_a_row: 0,
            failing_since: None,
        }
    }

    pub(super) fn ask(&self) -> &Ask {
        if self.flow.is_up { &self.load.up } else { &self.load.down }
    }

    /// Makes requests until there are none left, the run is stopped, or nothing works.
    pub(super) async fn run(mut self, shared: Option<Arc<exchange_h2::Connection>>) {
        let switch = Arc::clone(&self.load.switch);
        tokio::select! {
            () = switch.stopped() => {}
            () = self.work(shared) => {}
        }
    }

    /// Waits for its time, then says whether there is another request to make.
    pub(super) async fn begin(&mut self) -> bool {
        self.pause().await;
        let Some(left) = &self.ask().left else { return true };
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// A request, or the connection for it, begins now.
    pub(super) fn waits(&self) -> Instant {
        let now = Instant::now();
        lock(&self.tally).under_way = Some(now);
        now
    }

    /// There is a connection, and no request on it yet.
    pub(super) fn connected(&self) {
        lock(&self.tally).under_way = None;
    }

    pub(super) fn succeeded(&mut self, began: Instant) {
        (self.failures_in_a_row, self.failing_since) = (0, None);
        Flow::count(&self.flow.counters.packets, 1);
        let now = Instant::now();
        let mut tally = lock(&self.tally);
        (tally.under_way, tally.answered) = (None, Some(now));
        tally.latency.record(now.saturating_duration_since(began));
    }

    /// A request has failed; how long it took belongs to the latencies.
    pub(super) fn failed(&mut self, failure: Failure) {
        self.failures_in_a_row += 1;
        let now = Instant::now();
        self.failing_since.get_or_insert(now);
        let mut tally = lock(&self.tally);
        *tally.failed.entry(failure.name()).or_default() += 1;
        if let Some(began) = tally.under_way.take() {
            tally.latency.record(now.saturating_duration_since(began));
        }
        if matches!(failure, Failure::Status(_)) {
            tally.answered = Some(now);
        }
    }

    /// Counts bytes of bodies.
    pub(super) fn carried(&mut self, bytes: usize) {
        Flow::count(&self.flow.counters.bytes, bytes as u64);
        if let Some(pace) = &mut self.pace {
            self.owed = pace.wait(bytes);
        }
    }

    /// Waits as the rate says: before bytes, so that the end of a request does not wait.
    pub(super) async fn pause(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        if !owed.is_zero() {
            tokio::time::sleep(owed).await;
        }
    }

    async fn work(&mut self, shared: Option<Arc<exchange_h2::Connection>>) {
        while !self.has_given_up() {
            let is_done = match &shared {
                Some(connection) => exchange_h2::work(self, connection).await,
                None => exchange_h1::work(self).await,
            };
            match is_done {
                Ok(()) => return,
                Err(failure) => {
                    self.failed(failure);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        self.flow.fail(format!("gave up after {} failures in a row", self.failures_in_a_row));
    }

    /// Nothing works, or each attempt takes so long that fifty of them would take half an hour.
    fn has_given_up(&self) -> bool {
        self.failures_in_a_row >= FAILURES_MAX
            || self.failing_since.is_some_and(|since| since.elapsed() >= FAILING_MAX)
    }
}

/// A connection, made without a thread's help: many are made at once.
pub(super) async fn connect(load: &Load) -> Result<TcpStream, Failure> {
    let socket = if load.address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()
    } else {
        tokio::net::TcpSocket::new_v6()
    };
    let socket = socket.map_err(|_| Failure::Connect)?;
    if let Some(bind) = load.bind {
        socket.bind(SocketAddr::new(bind, 0)).map_err(|_| Failure::Connect)?;
    }
    if let Some(window) = load.window {
        let set = socket.set_recv_buffer_size(window).and_then(|()| socket.set_send_buffer_size(window));
        set.map_err(|_| Failure::Connect)?;
    }
    let connected = tokio::time::timeout(tcp::CONNECT_TIMEOUT, socket.connect(load.address)).await;
    let stream = connected.map_err(|_| Failure::Connect)?.map_err(|_| Failure::Connect)?;
    stream.set_nodelay(true).map_err(|_| Failure::Connect)?;
    Ok(stream)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No answer, or no part of a body, for so long is a failure.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(50);
/// A worker that nothing works for ends.
const FAILURES_MAX: u32 = 50;
/// So does one that nothing works for in this time: a server that is gone is noticed by silence, again and again.
const FAILING_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Under;

    fn worker() -> Worker {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let ask = || Ask { request: Request::new(()), head: Bytes::new(), body: 0, left: None };
        let load = Load {
            address,
            bind: None,
            tls: None,
            tls_h1: None,
            window: None,
            up: ask(),
            down: ask(),
            rate: None,
            pattern: Bytes::new(),
            switch: Switch::new(),
        };
        let flow = Flow::new(0, false, false, (address, address), Under::Nothing);
        Worker::new(&Arc::new(load), &Arc::new(flow), &Arc::default())
    }

    #[test]
    fn a_request_that_fails_is_in_the_latencies_and_one_under_way_is_known() {
        let mut worker = worker();
        let began = worker.waits();
        worker.succeeded(began);
        worker.waits();
        worker.failed(Failure::Silent);
        let began = worker.waits();
        let end = began + Duration::from_millis(1800);
        let mut tally = lock(&worker.tally);
        assert_eq!(tally.latency.count(), 2);
        assert_eq!(tally.waited(end), Some(Duration::from_millis(1800)));
        assert_eq!(tally.waited(began - Duration::from_millis(1)), None);
        tally.end_warm_up();
        assert_eq!((tally.latency.count(), tally.failed.len()), (0, 0));
        assert_eq!(tally.waited(end), Some(Duration::from_millis(1800)));
    }

    #[test]
    fn a_worker_gives_up_after_many_failures_or_a_long_time_of_them() {
        let mut worker = worker();
        (0..FAILURES_MAX - 1).for_each(|_| worker.failed(Failure::Connect));
        assert!(!worker.has_given_up());
        worker.failed(Failure::Connect);
        assert!(worker.has_given_up());
        let began = worker.waits();
        worker.succeeded(began);
        assert!(!worker.has_given_up());
        worker.failed(Failure::Silent);
        assert!(!worker.has_given_up());
        worker.failing_since = worker.failing_since.and_then(|since| since.checked_sub(FAILING_MAX));
        assert!(worker.has_given_up());
    }

    #[test]
    fn a_connection_that_waits_for_its_time_is_no_request_under_way() {
        let worker = worker();
        let began = worker.waits();
        worker.connected();
        assert_eq!(lock(&worker.tally).waited(began + Duration::from_secs(1)), None);
    }
}
