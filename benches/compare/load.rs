//! Clients that load a path: wrk and h2load for requests, curl for bytes.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use super::measure::{cpu, milliseconds};
use super::support::{TempFolder, go_on};
use super::table::{Figure, Sample};

/// What a client saw.
struct Seen {
    rate: f64,
    requests: f64,
    p99_ms: Option<f64>,
    failed: f64,
}

/// Where to, and whether over TLS.
#[derive(Clone, Copy)]
pub(crate) enum Scheme {
    Http(SocketAddr),
    Https(SocketAddr),
}

/// What is carried.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) upload: bool,
    pub(crate) streams: u32,
    /// In all.
    pub(crate) gib: u64,
}

/// wrk on `connections` for some seconds: requests a second, p99, CPU of `processes` for 100,000 requests.
pub(crate) fn requests(url: &str, host: &str, connections: u32, processes: &[u32]) -> Option<Sample> {
    per_request(processes, || wrk(url, host, connections))
}

/// h2load over TLS: the same without p99, which it does not say.
pub(crate) fn requests_h2(
    url: &str,
    host: &str,
    count: u32,
    (connections, streams): (u32, u32),
    processes: &[u32],
) -> Option<Sample> {
    per_request(processes, || h2load(url, host, count, connections, streams))
}

fn per_request(processes: &[u32], load: impl FnOnce() -> Option<Seen>) -> Option<Sample> {
    let before = cpu_of(processes);
    let seen = load()?;
    let used = cpu_of(processes) - before;
    let mut sample = vec![
        (Figure::RequestsPerSecond, seen.rate),
        (Figure::CpuSecondsPer100k, used / seen.requests * 1e5),
        (Figure::Failed, seen.failed),
    ];
    sample.extend(seen.p99_ms.map(|p99| (Figure::P99Milliseconds, p99)));
    Some(sample)
}

/// `streams` of curl at once, `gib` in all, down or up: Gbit/s and CPU of `processes` for a GiB.
pub(crate) fn bulk(to: Scheme, host: &str, transfer: Transfer, processes: &[u32]) -> Option<Sample> {
    let Transfer { upload, streams, gib } = transfer;
    let each = (gib << 30) / u64::from(streams);
    let before = cpu_of(processes);
    let begin = Instant::now();
    let clients: Vec<_> = (0..streams).map(|_| curl(to, host, upload, each)).collect::<Option<_>>()?;
    let mut whole = true;
    for mut client in clients {
        whole &= client.wait().ok()?.success();
    }
    let seconds = begin.elapsed().as_secs_f64();
    let used = cpu_of(processes) - before;
    let bytes = (each * u64::from(streams)) as f64;
    whole.then(|| {
        vec![
            (Figure::GbitPerSecond, bytes * 8.0 / seconds / 1e9),
            (Figure::CpuSecondsPerGib, used / bytes * GIB),
        ]
    })
}

/// User and system time of all of them.
pub(crate) fn cpu_of(processes: &[u32]) -> f64 {
    processes.iter().map(|process| cpu(*process)).sum()
}

fn curl(to: Scheme, host: &str, upload: bool, bytes: u64) -> Option<std::process::Child> {
    go_on();
    let mut command = Command::new("curl");
    // HTTP/2 of one curl is slower than what is measured.
    command.args(["-sfk", "--http1.1", "-m", "40", "-o", "/dev/null"]);
    let (scheme, address) = match to {
        Scheme::Http(address) => ("http", address),
        Scheme::Https(address) => ("https", address),
    };
    // By name, so that TLS asks for it too.
    let base = format!("{scheme}://{host}:{}", address.port());
    command.arg("--resolve").arg(format!("{host}:{}:{}", address.port(), address.ip()));
    command.args(["-H", &format!("Host: {host}")]);
    if !upload {
        return command.arg(format!("{base}/{bytes}")).stdin(Stdio::null()).spawn().ok();
    }
    // From a sparse file, whose length curl then knows.
    let file = UPLOADS.get_or_init(|| TempFolder::new("compare")).path().join(bytes.to_string());
    if !file.exists() {
        // Once: another curl may be reading it.
        std::fs::File::create(&file).and_then(|file| file.set_len(bytes)).ok()?;
    }
    command.args(["-H", "Expect:", "-T"]).arg(&file).arg(format!("{base}/0"));
    command.stdin(Stdio::null()).spawn().ok()
}

fn wrk(url: &str, host: &str, connections: u32) -> Option<Seen> {
    let output = Command::new("wrk")
        .args([
            "-t1",
            "-d",
            SECONDS,
            "--latency",
            "-H",
            &format!("Host: {host}"),
            "-c",
            &connections.to_string(),
        ])
        .arg(url)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |start: &str| text.lines().map(str::trim_start).find(|line| line.starts_with(start));
    let count = text.lines().find(|line| line.contains(" requests in "))?;
    let failed = line("Non-2xx").and_then(|line| line.rsplit(' ').next()?.parse().ok());
    let socket = line("Socket errors:")
        .map(|line| line.split([' ', ',']).filter_map(|word| word.parse::<f64>().ok()).sum::<f64>());
    Some(Seen {
        rate: line("Requests/sec:")?.split_whitespace().nth(1)?.parse().ok()?,
        requests: count.split_whitespace().next()?.parse().ok()?,
        p99_ms: Some(milliseconds(line("99%")?.split_whitespace().nth(1)?)?),
        failed: failed.unwrap_or(0.0) + socket.unwrap_or(0.0),
    })
}

fn h2load(url: &str, host: &str, count: u32, connections: u32, streams: u32) -> Option<Seen> {
    let output = Command::new("h2load")
        .args(["-n", &count.to_string(), "-c", &connections.to_string(), "-m", &streams.to_string()])
        .args(["--header", &format!(":authority: {host}"), url])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text.lines().find(|line| line.starts_with("finished in"))?;
    let codes = text.lines().find(|line| line.starts_with("status codes:"))?;
    let good: f64 = codes.split_whitespace().nth(2)?.parse().ok()?;
    let requests = f64::from(count);
    let rate = rate.split(", ").nth(1)?.split_whitespace().next()?.parse().ok()?;
    Some(Seen { rate, requests, p99_ms: None, failed: requests - good })
}

/// Says on the terminal what runs now.
pub(crate) fn progress(text: &str) {
    go_on();
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// What is uploaded; the end of the bench removes it.
static UPLOADS: OnceLock<TempFolder> = OnceLock::new();
const GIB: f64 = (1_u64 << 30) as f64;
const SECONDS: &str = "4";
