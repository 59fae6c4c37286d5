//! `cargo bench -p adit --bench ingress`: requests through adit's ingress beside nginx, haproxy and caddy in the same run.
//!
//! Peers are those on PATH; load comes from `wrk` (HTTP/1.1) and `h2load` (HTTP/2 over TLS). Rounds of all proxies are
//! interleaved and medians printed, because machines are shared. Everything is on loopback, and the load, the proxies and the
//! origin share its cores: CPU-seconds per 100,000 requests compare better than requests a second.
#![allow(clippy::print_stdout, reason = "its table is what a bench is for")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

mod measure;
#[path = "../tests/support/mod.rs"]
mod support;

use measure::{cpu, milliseconds};
use support::adit::Adit;
use support::certificates::Certificates;
use support::nginx::Nginx;
use support::process::Process;
use support::{TempFolder, find_program, free_tcp_port, note, wait_for};

fn main() {
    if ["nginx", "wrk", "h2load"].iter().any(|program| find_program(program).is_none()) {
        note("skipped: this bench needs nginx, wrk and h2load on PATH");
        return;
    }
    let origin = Nginx::start("keepalive_requests 1000000000;");
    origin.serve_file("1k", vec![b'x'; 1024]);
    origin.serve_file("1m", vec![b'x'; 1024 * 1024]);
    let certificates = Certificates::for_names(&["bench.test"]);
    let proxies = proxies(&origin, &certificates);
    let mut results: BTreeMap<(usize, usize), Vec<Sample>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for (w, workload) in WORKLOADS.iter().enumerate() {
            for (p, proxy) in proxies.iter().enumerate() {
                note(&format!("round {} of {ROUNDS}: {} through {}", round + 1, workload.name, proxy.name));
                if let Some(sample) = proxy.run(workload) {
                    results.entry((w, p)).or_default().push(sample);
                }
            }
        }
    }
    println!(
        "{:<18} {:<9} {:>10} {:>10} {:>16} {:>14} {:>7}",
        "workload", "proxy", "requests/s", "p99 ms", "CPU-s/100k", "CPU vs nginx", "failed"
    );
    for (w, workload) in WORKLOADS.iter().enumerate() {
        let cpu = |p: usize| results.get(&(w, p)).map(|samples| median(samples, |s| s.cpu_per_100k));
        let nginx = proxies.iter().position(|proxy| proxy.name == "nginx").and_then(cpu);
        for (p, proxy) in proxies.iter().enumerate() {
            let Some(samples) = results.get(&(w, p)) else { continue };
            let p99 = match workload.body {
                Load::Wrk(..) => format!("{:.2}", median(samples, |s| s.p99_ms)),
                Load::H2load(..) => "-".to_owned(),
            };
            println!(
                "{:<18} {:<9} {:>10.0} {:>10} {:>16.2} {:>14} {:>7}",
                workload.name,
                proxy.name,
                median(samples, |s| s.rate),
                p99,
                median(samples, |s| s.cpu_per_100k),
                nginx.map_or(String::new(), |n| format!("{:.2}x", median(samples, |s| s.cpu_per_100k) / n)),
                samples.iter().map(|s| s.failed).sum::<u64>(),
            );
        }
    }
}

/// One way to load a proxy.
struct Workload {
    name: &'static str,
    path: &'static str,
    body: Load,
}

enum Load {
    /// Connections; HTTP/1.1.
    Wrk(u32),
    /// Requests, connections, streams on each; HTTP/2 over TLS.
    H2load(u32, u32, u32),
}

const WORKLOADS: &[Workload] = &[
    Workload { name: "http/1.1 1 KiB", path: "/1k", body: Load::Wrk(64) },
    Workload { name: "http/1.1 1 MiB", path: "/1m", body: Load::Wrk(16) },
    Workload { name: "h2+tls 1 KiB", path: "/1k", body: Load::H2load(60_000, 8, 32) },
    Workload { name: "h2+tls 1 MiB", path: "/1m", body: Load::H2load(1_500, 4, 4) },
];
const ROUNDS: usize = 3;

struct Sample {
    rate: f64,
    p99_ms: f64,
    cpu_per_100k: f64,
    failed: u64,
}

struct Proxy {
    name: &'static str,
    process: u32,
    clear: SocketAddr,
    tls: SocketAddr,
    /// Ends with the bench.
    _running: Box<dyn std::any::Any>,
}

impl Proxy {
    fn run(&self, workload: &Workload) -> Option<Sample> {
        let before = cpu(self.process);
        let (rate, requests, p99_ms, failed) = match workload.body {
            Load::Wrk(connections) => {
                let output = Command::new("wrk")
                    .args(["-t1", "-d3s", "--latency", "-H", "Host: bench.test", "-c"])
                    .arg(connections.to_string())
                    .arg(format!("http://{}{}", self.clear, workload.path))
                    .output()
                    .ok()?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let word = |line: &str, n: usize| line.split_whitespace().nth(n).map(str::to_owned);
                let line = |start: &str| text.lines().find(|line| line.trim_start().starts_with(start));
                let requests = text.lines().find(|line| line.contains(" requests in "))?;
                let non_2xx = line("Non-2xx").and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0);
                (
                    word(line("Requests/sec:")?, 1)?.parse().ok()?,
                    word(requests, 0)?.parse::<f64>().ok()?,
                    milliseconds(&word(line("99%")?, 1)?)?,
                    non_2xx,
                )
            }
            Load::H2load(requests, connections, streams) => {
                let output = Command::new("h2load")
                    .args(["-n", &requests.to_string(), "-c", &connections.to_string()])
                    .args(["-m", &streams.to_string(), "--header", ":authority: bench.test"])
                    .arg(format!("https://{}{}", self.tls, workload.path))
                    .output()
                    .ok()?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let rate = text.lines().find(|line| line.starts_with("finished in"))?;
                let rate = rate.split(", ").nth(1)?.split_whitespace().next()?.parse().ok()?;
                let codes = text.lines().find(|line| line.starts_with("status codes:"))?;
                let good: u64 = codes.split_whitespace().nth(2)?.parse().ok()?;
                (rate, f64::from(requests), 0.0, u64::from(requests).saturating_sub(good))
            }
        };
        Some(Sample { rate, p99_ms, cpu_per_100k: (cpu(self.process) - before) / requests * 1e5, failed })
    }
}

fn proxies(origin: &Nginx, certificates: &Certificates) -> Vec<Proxy> {
    let (cert, key) = (certificates.certificate(), certificates.key());
    let (cert, key) = (cert.display(), key.display());
    let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut adit = Adit::start(
        "adit",
        &format!(
            "entryPoints:\n  web: {{ address: \"127.0.0.1:0\", asDefault: true }}\n  \
             tls: {{ address: \"127.0.0.1:0\", asDefault: true, http: {{ tls: {{}} }} }}\n\
             admin: {{ address: \"127.0.0.1:0\" }}\nhttp:\n  routers:\n    \
             r: {{ rule: \"PathPrefix(`/`)\", service: s }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"{}\" }} ] }} }}\n\
             tls: {{ certificates: [ {{ certFile: {cert}, keyFile: {key} }} ] }}\n",
            origin.url()
        ),
    );
    let (clear, tls) = (adit.entry_point("web"), adit.entry_point("tls"));
    let process = adit.process().id();
    let mut all = vec![Proxy { name: "adit", process, clear, tls, _running: Box::new(adit) }];

    let tls = free_tcp_port();
    // Leaves the server's block to add the pool of connections beside it.
    let nginx = Nginx::start(&format!(
        "listen 127.0.0.1:{tls} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key};\n\
         keepalive_requests 1000000000; location / {{ proxy_pass http://origin; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; proxy_buffering on; }} }}\n\
         upstream origin {{ server {}; keepalive 128; keepalive_requests 1000000000;",
        origin.address()
    ));
    let (process, clear) = (nginx.process().id(), nginx.address());
    all.push(Proxy { name: "nginx", process, clear, tls: local(tls), _running: Box::new(nginx) });

    if let Some(haproxy) = find_program("haproxy") {
        let (clear, tls) = (local(free_tcp_port()), local(free_tcp_port()));
        let folder = TempFolder::new("haproxy");
        let pem =
            [certificates.certificate(), certificates.key()].map(|file| std::fs::read(file).expect("PEM"));
        let pem = folder.write("pem", pem.concat());
        let path = folder.write(
            "haproxy.cfg",
            format!(
                "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
                 http-reuse always\nfrontend f\n bind {clear}\n bind {tls} ssl crt {} alpn h2,http/1.1\n\
                 default_backend b\nbackend b\n server s {} pool-max-conn 128\n",
                pem.display(),
                origin.address()
            ),
        );
        let mut command = Command::new(haproxy);
        let process = Process::start("haproxy", command.arg("-db").arg("-f").arg(path).stdin(Stdio::null()));
        wait_for("haproxy to listen", || TcpStream::connect(clear).ok());
        let id = process.id();
        all.push(Proxy { name: "haproxy", process: id, clear, tls, _running: Box::new((process, folder)) });
    }
    if let Some(caddy) = find_program("caddy") {
        let (clear, tls) = (local(free_tcp_port()), local(free_tcp_port()));
        let folder = TempFolder::new("caddy");
        let path = folder.write("Caddyfile", caddyfile([clear, tls], (&cert, &key), origin.address()));
        let mut command = Command::new(caddy);
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(path).stdin(Stdio::null());
        let process = Process::start("caddy", &mut command);
        wait_for("caddy to listen", || TcpStream::connect(clear).ok());
        let id = process.id();
        all.push(Proxy { name: "caddy", process: id, clear, tls, _running: Box::new((process, folder)) });
    }
    all
}

/// Sites without a name: one with a name answers other names with an empty page.
fn caddyfile(
    [clear, tls]: [SocketAddr; 2],
    (cert, key): (&dyn std::fmt::Display, &dyn std::fmt::Display),
    origin: SocketAddr,
) -> String {
    let (clear, tls) = (clear.port(), tls.port());
    format!(
        "{{\n admin off\n auto_https off\n}}\nhttp://:{clear} {{\n bind 127.0.0.1\n reverse_proxy {origin}\n}}\n\
         https://:{tls} {{\n bind 127.0.0.1\n tls {cert} {key}\n reverse_proxy {origin}\n}}\n"
    )
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    measure::median(samples.iter().map(of))
}
