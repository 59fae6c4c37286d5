//! A run over HTTP: against a bench origin behind anything, or any URL.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Uri};
use tokio::task::JoinSet;

use super::exchange_h2;
use super::load::{Ask, Load, Tally, Worker, lock};
use super::origin::PATTERN_BYTES;
use super::peer::{Alive, Counted, Peer};
use super::tls::ClientTls;
use crate::cpu::{self, CpuMark, CpuUse};
use crate::error::{BenchError, HURRY};
use crate::flow::{Flow, Look, Switch, Under};
use crate::histogram::Histogram;
use crate::options::{ClientOptions, Direction};
use crate::outcome::{FlowOutcome, Head, Outcome, Requests, Side, StreamHead, Waiting};
use crate::plan::Amount;
use crate::recorder::Recorder;
use crate::report::Reporter;
use crate::resolve::resolve;
use crate::schedule::{Due, Ticks};
use crate::signals;
use crate::tcp::{note_thread, pattern};

/// One run.
pub(crate) async fn run(
    options: &ClientOptions,
    url: &Uri,
    reporter: &mut Reporter,
) -> Result<Outcome, BenchError> {
    let mut load = prepare(options, url).await?;
    let fields = fields(options, url);
    let is_bench = matches!(url.path(), "/" | "") || url.path().ends_with("/adit-bench");
    let peer = if is_bench {
        Some(Box::pin(Peer::begin(&load, url, &fields, options.secret.as_ref())).await?)
    } else if options.secret.is_some() {
        return Err(BenchError::Usage(
            "--secret-file is for a bench server: a URL without a path".to_owned(),
        ));
    } else {
        None
    };
    aim(&mut load, options, url, &fields, peer.as_ref())?;
    let head = head(options, url, &load);
    reporter.begin(&head);
    let run = Run::new(options, Arc::new(load), peer, &head);
    Box::pin(run.measure(head, reporter)).await
}

/// Everything but what is asked.
async fn prepare(options: &ClientOptions, url: &Uri) -> Result<Load, BenchError> {
    let is_tls = url.scheme_str() == Some("https");
    let host = url.host().unwrap_or_default();
    let (to, port) = match &options.http.connect_to {
        Some((to, port)) => (to.as_str(), *port),
        None => (host, url.port_u16().unwrap_or(if is_tls { 443 } else { 80 })),
    };
    let addresses = resolve(to, port, options.family, options.bind).await?;
    let tls = |is_http2| is_tls.then(|| ClientTls::new(&options.http, host, is_http2)).transpose();
    let address = reachable(&addresses).await?;
    let nothing = || Ask { request: Request::new(()), head: Bytes::new(), body: 0, left: None };
    Ok(Load {
        address,
        bind: options.bind,
        tls: tls(options.http.is_http2)?,
        tls_h1: tls(false)?,
        window: options.window,
        up: nothing(),
        down: nothing(),
        rate: options.rate.filter(|rate| *rate > 0),
        pattern: Bytes::from(pattern(PATTERN_BYTES)),
        switch: Switch::new(),
    })
}

/// The first address that takes a connection.
async fn reachable(addresses: &[SocketAddr]) -> Result<SocketAddr, BenchError> {
    let mut last = None;
    for address in addresses {
        let connected =
            tokio::time::timeout(crate::tcp::CONNECT_TIMEOUT, tokio::net::TcpStream::connect(address));
        match connected.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(_) => return Ok(*address),
            Err(source) => last = Some(BenchError::Connect { target: address.to_string(), source }),
        }
    }
    Err(last.unwrap_or(BenchError::Http("no address".to_owned())))
}

/// Fields of each request of HTTP/1.1; an own Host takes the place of the URL's.
fn fields(options: &ClientOptions, url: &Uri) -> String {
    let mut text = String::new();
    if !options.http.headers.iter().any(|(name, _)| name == http::header::HOST) {
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        text = format!("host: {host}\r\n");
    }
    text.push_str(concat!("user-agent: adit-bench/", env!("CARGO_PKG_VERSION"), "\r\n"));
    for (name, value) in &options.http.headers {
        text.push_str(&format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes())));
    }
    text
}

/// Sets what is asked, and how often.
fn aim(
    load: &mut Load,
    options: &ClientOptions,
    url: &Uri,
    fields: &str,
    peer: Option<&Peer>,
) -> Result<(), BenchError> {
    let length = options.length.unwrap_or(LENGTH);
    let own = url.path_and_query().map_or("/", |path| path.as_str());
    let down = peer.map_or_else(|| own.to_owned(), |peer| peer.path(&format!("bytes/{length}")));
    let up = peer.map_or_else(|| own.to_owned(), |peer| peer.path("sink"));
    let count = match (options.requests, options.amount) {
        (Some(requests), _) => Some(requests),
        (None, Amount::Bytes(bytes)) => Some(bytes.div_ceil(length.max(1))),
        (None, Amount::Time(_)) => None,
    };
    if peer.is_none() && matches!(options.amount, Amount::Bytes(_)) && options.requests.is_none() {
        return Err(BenchError::Usage(
            "--bytes wants a bench server: use --requests for any other URL".to_owned(),
        ));
    }
    load.down = ask(options, url, fields, (&Method::GET, &down), 0, count)?;
    load.up = ask(options, url, fields, (&Method::POST, &up), length, count)?;
    Ok(())
}

fn ask(
    options: &ClientOptions,
    url: &Uri,
    fields: &str,
    (method, path): (&Method, &str),
    body: u64,
    count: Option<u64>,
) -> Result<Ask, BenchError> {
    let length = if *method == Method::POST { format!("content-length: {body}\r\n") } else { String::new() };
    let text = format!("{method} {path} HTTP/1.1\r\n{fields}{length}\r\n");
    let wrong = |_| BenchError::Usage("a request that HTTP/2 cannot carry".to_owned());
    let host = options.http.headers.iter().find(|(name, _)| name == http::header::HOST);
    let authority = match host {
        Some((_, host)) => host.to_str().unwrap_or_default().to_owned(),
        None => url.authority().map(ToString::to_string).unwrap_or_default(),
    };
    let uri =
        Uri::builder().scheme(url.scheme_str().unwrap_or("http")).authority(authority).path_and_query(path);
    let mut request =
        Request::builder().method(method).uri(uri.build().map_err(wrong)?).version(http::Version::HTTP_2);
    request = request.header("user-agent", concat!("adit-bench/", env!("CARGO_PKG_VERSION")));
    if *method == Method::POST {
        request = request.header("content-length", body);
    }
    for (name, value) in options.http.headers.iter().filter(|(name, _)| name != http::header::HOST) {
        request = request.header(name, value);
    }
    Ok(Ask {
        request: request.body(()).map_err(wrong)?,
        head: Bytes::from(text),
        body,
        left: count.map(AtomicU64::new),
    })
}

fn head(options: &ClientOptions, url: &Uri, load: &Load) -> Head {
    let (up, down) = match options.direction {
        Direction::Up => (options.parallel, 0),
        Direction::Down => (0, options.parallel),
        Direction::Both => (options.parallel, options.parallel),
    };
    let mut local = crate::udp::any_address(load.address, options.bind);
    let used = crate::udp::source_towards(load.address, options.bind);
    used.into_iter().for_each(|ip| local.set_ip(ip));
    let streams =
        (0..up + down).map(|index| StreamHead { index, is_up: index < up, local, remote: load.address });
    let verb = match options.direction {
        Direction::Up => "POST",
        Direction::Down => "GET",
        Direction::Both => "POST and GET",
    };
    let (time, bytes) = match (options.amount, options.requests) {
        (Amount::Time(time), None) => (Some(time.as_secs_f64()), None),
        (Amount::Bytes(bytes), None) => (None, Some(bytes)),
        (_, Some(_)) => (None, None),
    };
    Head {
        protocol: if options.http.is_http2 { "HTTP/2" } else { "HTTP/1.1" },
        host: url.host().unwrap_or_default().to_owned(),
        port: load.address.port(),
        streams: streams.collect(),
        up,
        down,
        length: options.length.unwrap_or(LENGTH),
        omit: options.omit.as_secs_f64(),
        time,
        bytes,
        rate: load.rate,
        window: options.window,
        request: Some(format!("{verb} {url}")),
        began: std::time::SystemTime::now(),
        sockets: Default::default(),
    }
}

struct Run<'a> {
    options: &'a ClientOptions,
    load: Arc<Load>,
    peer: Option<Arc<Peer>>,
    flows: Vec<Arc<Flow>>,
    tallies: Vec<Arc<Mutex<Tally>>>,
    /// Small requests beside large bodies.
    ping: Option<(Arc<Load>, Arc<Mutex<Tally>>)>,
    idle: Option<Histogram>,
}

/// How the counted part ended.
struct Ended {
    at: Instant,
    near: CpuUse,
    interrupted: bool,
    /// What broke the run off.
    broken: Option<BenchError>,
}

impl<'a> Run<'a> {
    fn new(options: &'a ClientOptions, load: Arc<Load>, peer: Option<Peer>, head: &Head) -> Self {
        let flow = |stream: &StreamHead| {
            let ends = (stream.local, stream.remote);
            Arc::new(Flow::new(stream.index, stream.is_up, stream.is_up, ends, Under::Nothing))
        };
        let flows: Vec<Arc<Flow>> = head.streams.iter().map(flow).collect();
        let tallies = flows.iter().map(|_| Arc::default()).collect();
        Self { options, load, peer: peer.map(Arc::new), flows, tallies, ping: None, idle: None }
    }

    async fn measure(mut self, head: Head, reporter: &mut Reporter) -> Result<Outcome, BenchError> {
        self.prepare_ping(&head).await?;
        if let Some(peer) = &self.peer {
            peer.mark(&self.load).await?;
        }
        let _alive = self.peer.as_ref().map(|peer| Alive::keep(Arc::clone(peer), Arc::clone(&self.load)));
        let mut recorder = Recorder::new(self.flows.clone());
        let mut workers = self.start();
        let stop = signals::stop();
        tokio::pin!(stop);
        let mut ended = Box::pin(self.drive(&mut recorder, reporter, &mut workers, stop.as_mut())).await?;
        reporter.interval(recorder.cut(recorder.elapsed(), false));
        self.load.switch.stop();
        self.ping.iter().for_each(|(load, _)| load.switch.stop());
        let counted = self.wind_up(&mut ended, &mut workers, stop).await;
        self.outcome(head, recorder, ended, counted)
    }

    /// Lets the workers end and fetches what the server counted, if it is one of ours.
    async fn wind_up(
        &self,
        ended: &mut Ended,
        workers: &mut JoinSet<()>,
        stop: Pin<&mut impl Future<Output = Result<(), BenchError>>>,
    ) -> Option<Result<Counted, BenchError>> {
        let both = async {
            let _ = tokio::time::timeout(GRACE, async { while workers.join_next().await.is_some() {} }).await;
            // Bytes that are under way are counted when they have come, or when their connection is seen to have ended.
            match &self.peer {
                Some(peer) => Some(Box::pin(peer.end(&self.load)).await),
                None => None,
            }
        };
        tokio::pin!(both);
        if !ended.interrupted {
            tokio::select! {
                counted = &mut both => return counted,
                signal = stop => match signal {
                    Ok(()) => ended.interrupted = true,
                    Err(error) => return Some(Err(error)),
                }
            }
        }
        let late = || BenchError::Timeout { what: "what the server counted", seconds: HURRY.as_secs() };
        let counted = tokio::time::timeout(HURRY, both).await;
        counted.unwrap_or_else(|_| self.peer.is_some().then(|| Err(late())))
    }

    /// Where bodies are large, the time of a request says little: small ones beside them tell how long they wait.
    async fn prepare_ping(&mut self, head: &Head) -> Result<(), BenchError> {
        let Some(peer) = self.peer.as_ref().filter(|_| head.length > PING_FROM_BYTES) else { return Ok(()) };
        let url = self.url();
        let mut load = prepare(self.options, &url).await?;
        let fields = fields(self.options, &url);
        let path = peer.path("ping");
        load.down = ask(self.options, &url, &fields, (&Method::GET, &path), 0, Some(PING_IDLE_COUNT))?;
        // A byte each: at most one each 10 ms.
        load.rate = Some(8 * 100);
        let load = Arc::new(load);
        let tally = Arc::new(Mutex::new(Tally::default()));
        let idle = tally_of_ping(&load, &tally).await;
        self.idle = Some(idle);
        let mut load =
            Arc::into_inner(load).ok_or_else(|| BenchError::Http("pings do not end".to_owned()))?;
        load.down.left = None;
        self.ping = Some((Arc::new(load), Arc::default()));
        Ok(())
    }

    fn url(&self) -> Uri {
        match &self.options.target {
            crate::options::Target::Url(url) => url.clone(),
            crate::options::Target::Server { .. } => Uri::default(),
        }
    }

    /// A thread for each share of the workers, so that a request stays on one.
    fn start(&self) -> JoinSet<()> {
        let mut threads = JoinSet::new();
        let is_http2 = self.options.http.is_http2;
        let connections = usize::from(self.options.connections).min(self.flows.len()).max(1);
        let most = if is_http2 { connections } else { self.flows.len() };
        let count = self.options.http.threads.min(most).max(1);
        for thread in 0..count {
            let mut workers = Vec::new();
            // Workers of one connection share a thread with it.
            let own: Vec<Arc<exchange_h2::Connection>> = (0..connections).map(|_| Arc::default()).collect();
            for (at, (flow, tally)) in self.flows.iter().zip(&self.tallies).enumerate() {
                let connection = at % connections;
                if (if is_http2 { connection } else { at }) % count == thread {
                    let shared = is_http2.then(|| Arc::clone(&own[connection]));
                    workers.push((Worker::new(&self.load, flow, tally), shared));
                }
            }
            let ping = (thread == 0).then(|| self.ping.clone()).flatten();
            threads.spawn_blocking(move || serve(workers, ping));
        }
        threads
    }

    /// Until time, requests or a signal end it.
    async fn drive(
        &mut self,
        recorder: &mut Recorder,
        reporter: &mut Reporter,
        workers: &mut JoinSet<()>,
        mut stop: Pin<&mut impl Future<Output = Result<(), BenchError>>>,
    ) -> Result<Ended, BenchError> {
        let mut mark = CpuMark::now(&self.options.watched);
        let mut warm_up = (!self.options.omit.is_zero()).then_some(self.options.omit.as_secs_f64());
        let time = match (self.options.amount, self.options.requests) {
            (Amount::Time(time), None) => Some(time.as_secs_f64()),
            _ => None,
        };
        let mut ticks = self.options.interval.map(Ticks::new);
        let (interrupted, broken) = loop {
            let due = Due::next(warm_up.or(time), ticks.as_ref());
            tokio::select! {
                () = due.wait(recorder) => {}
                signal = &mut stop => { signal?; break (true, None); }
                () = async { while workers.join_next().await.is_some() {} } => break (false, None),
            }
            if matches!(due, Due::Line(_)) {
                reporter.interval(recorder.cut(recorder.elapsed(), warm_up.is_some()));
                ticks.iter_mut().for_each(Ticks::advance);
            } else if warm_up.take().is_some() {
                // The way of the mark and of its answer is part of the warm-up: counters, clock and CPU time begin behind it.
                if let Some(peer) = &self.peer {
                    tokio::select! {
                        marked = peer.mark(&self.load) => if let Err(error) = marked { break (false, Some(error)); },
                        signal = &mut stop => { signal?; break (true, None); }
                    }
                }
                reporter.interval(recorder.cut(recorder.elapsed(), true));
                self.tallies.iter().for_each(|tally| lock(tally).end_warm_up());
                self.ping.iter().for_each(|(_, tally)| lock(tally).end_warm_up());
                recorder.end_warm_up();
                mark = CpuMark::now(&self.options.watched);
                ticks = self.options.interval.map(Ticks::new);
            } else {
                break (false, None);
            }
        };
        Ok(Ended { at: Instant::now(), near: mark.elapsed(), interrupted, broken })
    }

    /// What was counted until `end`: latencies of the requests or of small ones beside them, and who waited; reasons of failure.
    fn tallied(&self, end: Instant) -> (Histogram, Waiting, BTreeMap<&'static str, u64>) {
        let mut failed = BTreeMap::<&'static str, u64>::new();
        for tally in &self.tallies {
            let tally = lock(tally);
            tally.failed.iter().for_each(|(reason, count)| *failed.entry(reason).or_default() += count);
        }
        let timed = match &self.ping {
            Some((_, tally)) => std::slice::from_ref(tally),
            None => &self.tallies,
        };
        let (mut latency, mut waiting, mut answered) = (Histogram::default(), Waiting::default(), None);
        for tally in timed {
            let tally = lock(tally);
            latency.merge(&tally.latency);
            answered = answered.max(tally.answered);
            if let Some(waited) = tally.waited(end) {
                latency.record(waited);
                waiting.count += 1;
                waiting.longest = waiting.longest.max(waited);
            }
        }
        let since = answered.map(|answered| end.saturating_duration_since(answered));
        waiting.silence = since.unwrap_or(waiting.longest).min(waiting.longest);
        (latency, waiting, failed)
    }

    fn outcome(
        self,
        head: Head,
        recorder: Recorder,
        ended: Ended,
        counted: Option<Result<Counted, BenchError>>,
    ) -> Result<Outcome, BenchError> {
        let seconds = recorder.last_end();
        let totals = recorder.totals();
        let (latency, waiting, failed) = self.tallied(ended.at);
        let requests = Requests {
            done: totals.iter().map(|look| look.packets).sum(),
            failed: failed.into_iter().collect(),
        };
        if requests.done == 0
            && totals.iter().all(|look| look.bytes == 0)
            && !ended.interrupted
            && ended.broken.is_none()
        {
            let why = requests.failed.first().map_or("no answer in time", |(reason, _)| reason);
            return Err(BenchError::Http(format!("not one request was answered: {why}")));
        }
        let flows = recorder.flows().iter().zip(&totals).map(|(flow, look)| {
            let near = Some(Side { seconds, look: *look });
            let (sender, receiver) = if flow.is_up { (near, None) } else { (None, near) };
            FlowOutcome {
                index: flow.index,
                is_up: flow.is_up,
                sender,
                receiver,
                round_trips: Default::default(),
            }
        });
        // What this end counted is worth telling without the other's figures.
        let (counted, unknown) = match counted {
            Some(Ok(counted)) => (Some(counted), None),
            Some(Err(error)) => (None, Some(format!("no figures of the server: {error}"))),
            None => (None, None),
        };
        let broken = ended.broken.iter().map(ToString::to_string);
        let failures = recorder
            .flows()
            .iter()
            .filter_map(|flow| flow.failure().map(|why| format!("stream {}: {why}", flow.index + 1)));
        let far_sums = counted.as_ref().map(|counted| {
            // In its own time: it began to count when the mark came, and has counted until it was asked.
            let seconds = counted.cpu.seconds;
            let side = |bytes| Side { seconds, look: Look { bytes, ..Look::default() } };
            (side(counted.received), side(counted.sent))
        });
        let threads = recorder.flows().iter().map(|flow| &flow.counters.thread_permille);
        let busiest = threads.map(|permille| permille.load(Ordering::Relaxed)).max().unwrap_or_default();
        let near = CpuUse { busiest_thread: busiest as f64 / 1000.0, ..ended.near };
        Ok(Outcome {
            flows: flows.collect(),
            failures: broken.chain(failures).chain(unknown).collect(),
            far_sums,
            seconds,
            idle: self.idle,
            latency_of_requests: self.ping.is_none(),
            waiting: Some(waiting),
            loaded: Some(latency),
            requests: Some(requests),
            near,
            far: counted.map(|counted| counted.cpu),
            congestion: (None, None),
            broken_by: ended.broken.as_ref().map(BenchError::exit_code),
            interrupted: ended.interrupted,
            intervals: recorder.into_intervals(),
            head,
        })
    }
}

/// Pings before the load.
async fn tally_of_ping(load: &Arc<Load>, tally: &Arc<Mutex<Tally>>) -> Histogram {
    let flow = ping_flow(load);
    let _ = tokio::time::timeout(GRACE, Worker::new(load, &flow, tally).run(None)).await;
    lock(tally).latency.clone()
}

fn ping_flow(load: &Load) -> Arc<Flow> {
    Arc::new(Flow::new(0, false, false, (load.address, load.address), Under::Nothing))
}

type Workers = Vec<(Worker, Option<Arc<exchange_h2::Connection>>)>;

/// One thread of the client.
fn serve(workers: Workers, ping: Option<(Arc<Load>, Arc<Mutex<Tally>>)>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let before = (Instant::now(), cpu::thread());
    let flow = workers.first().map(|(worker, _)| Arc::clone(&worker.flow));
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for (worker, shared) in workers {
            tasks.spawn(worker.run(shared));
        }
        let ping = ping.map(|(load, tally)| {
            let flow = ping_flow(&load);
            tokio::spawn(async move { Worker::new(&load, &flow, &tally).run(None).await })
        });
        while tasks.join_next().await.is_some() {}
        ping.iter().for_each(|task| task.abort());
    });
    // For all of the thread's flows.
    flow.iter().for_each(|flow| note_thread(flow, before));
    // Connections of HTTP/2 end with it.
    runtime.shutdown_background();
}

/// Bytes of a body: a small answer, as an API gives.
const LENGTH: u64 = 1024;
/// Larger bodies are timed by small requests beside them.
const PING_FROM_BYTES: u64 = 64 * 1024;
const PING_IDLE_COUNT: u64 = 20;
/// For requests under way at the end.
const GRACE: Duration = Duration::from_secs(5);
