//! `cargo bench -p adit --bench tunnel`: adit as a connector beside a stock cloudflared, each behind an adit edge of its own.
//!
//! cloudflared is found on PATH or named by `CLOUDFLARED`; load comes from `curl` and `wrk`. One tunnel connection each, on
//! loopback; CPU time is the connector's alone. Rounds are interleaved and medians printed, because machines are shared.
#![allow(clippy::print_stdout, reason = "its table is what a bench is for")]

use std::process::{Command, Stdio};

mod measure;
#[path = "../tests/support/mod.rs"]
mod support;

use measure::{cpu, milliseconds};
use support::TempFolder;
use support::adit::Adit;
use support::nginx::Nginx;
use support::process::Process;
use support::{find_program, note};

fn main() {
    if ["nginx", "curl", "wrk"].iter().any(|program| find_program(program).is_none()) {
        note("skipped: this bench needs nginx, curl and wrk on PATH");
        return;
    }
    let origin = Nginx::start("keepalive_requests 1000000000;");
    origin.serve_file("1k", vec![b'x'; 1024]);
    let big = std::fs::File::create(origin.folder().join("files/1g")).expect("a file");
    big.set_len(GIB).expect("a sparse file");
    let mut connectors = vec![Connector::start("adit", env!("CARGO_BIN_EXE_adit"), &origin)];
    let stock = std::env::var("CLOUDFLARED").ok();
    let stock = stock.or_else(|| find_program("cloudflared").map(|path| path.display().to_string()));
    match stock {
        Some(program) => connectors.push(Connector::start("cloudflared", &program, &origin)),
        None => note("no cloudflared on PATH or in CLOUDFLARED: figures without a peer"),
    }
    let mut downloads: Vec<Vec<[f64; 2]>> = vec![Vec::new(); connectors.len()];
    let mut requests: Vec<Vec<[f64; 3]>> = vec![Vec::new(); connectors.len()];
    for round in 0..ROUNDS {
        for (n, connector) in connectors.iter().enumerate() {
            note(&format!("round {} of {ROUNDS}: {}", round + 1, connector.name));
            downloads[n].extend(connector.download());
            requests[n].extend(connector.requests());
        }
    }
    println!(
        "{:<12} {:>10} {:>10} {:>12} {:>8} {:>12} {:>12}",
        "connector", "MB/s", "CPU-s/GiB", "requests/s", "p99 ms", "CPU-s/100k", "memory MiB"
    );
    for (n, connector) in connectors.iter().enumerate() {
        println!(
            "{:<12} {:>10.0} {:>10.2} {:>12.0} {:>8.2} {:>12.2} {:>12.0}",
            connector.name,
            median(&downloads[n], 0),
            median(&downloads[n], 1),
            median(&requests[n], 0),
            median(&requests[n], 1),
            median(&requests[n], 2),
            memory_peak(connector.process.id()),
        );
    }
    if let [adit, stock] = downloads.as_slice()
        && let [small, stock_small] = requests.as_slice()
    {
        println!(
            "adit against cloudflared: {:.2}x MB/s, {:.2}x CPU per GiB, {:.2}x requests/s, {:.2}x CPU per request",
            median(adit, 0) / median(stock, 0),
            median(adit, 1) / median(stock, 1),
            median(small, 0) / median(stock_small, 0),
            median(small, 2) / median(stock_small, 2),
        );
    }
}

/// A connector with the edge that visitors reach it by.
struct Connector {
    name: &'static str,
    process: Process,
    edge: Adit,
}

impl Connector {
    fn start(name: &'static str, program: &str, origin: &Nginx) -> Self {
        let edge = Adit::start_in(TempFolder::new("edge"), "edge", EDGE);
        let address = edge.edge().to_string();
        let mut command = Command::new(program);
        command.args([
            "tunnel",
            "--no-autoupdate",
            "--no-prechecks",
            "--protocol",
            "quic",
            "--metrics",
            "127.0.0.1:0",
        ]);
        command.args(["--ha-connections", "1", "--edge", &address, "--edge", &address, "--cacert"]);
        command.arg(edge.folder().path().join("state/edge-ca.pem"));
        command.args(["run", "--token", support::connector::TOKEN, "--url", &origin.url()]);
        let process = Process::start(name, command.stdin(Stdio::null()));
        edge.wait_for_connections(1);
        Self { name, process, edge }
    }

    /// MB/s and the connector's CPU-seconds for one GiB.
    fn download(&self) -> Option<[f64; 2]> {
        let before = cpu(self.process.id());
        let url = format!("http://{}/1g", self.edge.entry_point("web"));
        let output = Command::new("curl")
            .args(["-sf", "-m", "120", "-o", "/dev/null", "-w", "%{speed_download}", "-H"])
            .args(["Host: a.home.test", &url])
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let speed: f64 = String::from_utf8_lossy(&output.stdout).parse().ok()?;
        Some([speed / 1e6, cpu(self.process.id()) - before])
    }

    /// Requests a second, p99 in milliseconds and the connector's CPU-seconds for 100,000 answers of 1 KiB.
    fn requests(&self) -> Option<[f64; 3]> {
        let before = cpu(self.process.id());
        let url = format!("http://{}/1k", self.edge.entry_point("web"));
        let output = Command::new("wrk")
            .args(["-t1", "-c64", "-d5s", "--latency", "-H", "Host: a.home.test", &url])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = |part: &str| text.lines().find(|line| line.contains(part));
        if let Some(failed) = line("Non-2xx") {
            note(&format!("{}: {failed}", self.name));
        }
        let rate = line("Requests/sec:")?.split_whitespace().nth(1)?.parse().ok()?;
        let count: f64 = line(" requests in ")?.split_whitespace().next()?.parse().ok()?;
        let p99 = milliseconds(line("99%")?.split_whitespace().nth(1)?)?;
        Some([rate, p99, (cpu(self.process.id()) - before) / count * 1e5])
    }
}

/// The most memory a process has had, in MiB.
fn memory_peak(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

fn median<const N: usize>(samples: &[[f64; N]], of: usize) -> f64 {
    measure::median(samples.iter().map(|sample| sample[of]))
}

const EDGE: &str = "state-dir: state\nentryPoints: { web: { address: \"127.0.0.1:0\" } }\nedge:\n  \
     listen: \"127.0.0.1:0\"\n  public: [ web ]\n  tunnels:\n    - { name: home, \
     id: 11111111-2222-3333-4444-555555555555, secret: \"eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg=\", \
     hostnames: [ \"*.home.test\" ] }\nadmin: { address: \"127.0.0.1:0\" }\n";
const GIB: u64 = 1 << 30;
const ROUNDS: usize = 3;
