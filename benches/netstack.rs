//! `cargo bench -p adit --bench netstack`: entry points on the mesh in netstack mode beside the same ones behind adit's TUN
//! device and behind wireguard-go's, with iperf3 and wrk as visitors.
//!
//! Needs root. The visitor's end of the tunnel is adit in TUN mode each time, so that only the hub differs; both ends, the
//! visitors and iperf3's server share the machine's cores. CPU time is that of the hub. Rounds are interleaved and medians
//! printed, because machines are shared.
#![allow(clippy::print_stdout, reason = "its table is what a bench is for")]

mod measure;
#[path = "../tests/support/mod.rs"]
mod support;

use measure::{cpu, median};
use support::netns::{ADMIN, Cable, Engine, Iperf, Node, Side};
use support::process::Process;
use support::{TempFolder, find_program, note, wait_for};

fn main() {
    let programs = ["iperf3", "wrk", "curl", "wg", "ip", "ping"];
    if programs.iter().any(|program| find_program(program).is_none()) {
        note("skipped: this bench needs iperf3, wrk, curl, wg, ip and ping on PATH");
        return;
    }
    let stock = Engine::wireguard_go().map(Kind::Stock);
    let kinds: Vec<Kind> = [Some(Kind::Netstack), Some(Kind::Tun), stock].into_iter().flatten().collect();
    let mut figures = vec![[const { Vec::new() }; WORKLOADS.len()]; kinds.len()];
    for round in 0..ROUNDS {
        for (kind, figures) in kinds.iter().zip(&mut figures) {
            note(&format!("round {} of {ROUNDS}: {}", round + 1, kind.name()));
            let Some(hub) = Hub::open(kind) else { return };
            for (workload, figures) in WORKLOADS.iter().zip(figures) {
                figures.extend(hub.measure(workload));
            }
        }
    }
    println!("{:<24} {:<14} {:>12} {:>22}", "hub", "visitors", "rate", "hub's CPU");
    for (w, workload) in WORKLOADS.iter().enumerate() {
        for (kind, figures) in kinds.iter().zip(&figures) {
            let [rate, cost] = [0, 1].map(|n| median(figures[w].iter().map(|figure| figure[n])));
            let (rate, cost) = match workload {
                Workload::Iperf(..) => (format!("{rate:.2} Gbit/s"), format!("{cost:.2} s/GiB")),
                Workload::Wrk(..) => (format!("{rate:.0} /s"), format!("{cost:.2} s/100k requests")),
            };
            println!("{:<24} {:<14} {rate:>12} {cost:>22}", kind.name(), workload.name());
        }
    }
}

/// What stands at the hub.
enum Kind {
    /// adit alone.
    Netstack,
    /// adit and the kernel's TCP.
    Tun,
    /// Another WireGuard, the kernel's TCP, and adit behind it.
    Stock(Engine),
}

/// What visitors do.
enum Workload {
    /// iperf3 through a TCP router: name and arguments.
    Iperf(&'static str, &'static [&'static str]),
    /// Requests that adit answers itself: name and connections.
    Wrk(&'static str, &'static str),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::Netstack => "adit, netstack",
            Self::Tun => "adit, TUN",
            Self::Stock(_) => "wireguard-go and adit",
        }
    }
}

impl Workload {
    fn name(&self) -> &'static str {
        match self {
            Self::Iperf(name, _) | Self::Wrk(name, _) => name,
        }
    }
}

/// A hub on the left, a visitor's end on the right.
struct Hub {
    cable: Cable,
    /// Both processes of it, if there are two.
    hub: Vec<u32>,
    _running: (Vec<Node>, Option<Process>, TempFolder),
}

impl Hub {
    fn open(kind: &Kind) -> Option<Self> {
        let cable = Cable::lay(1500)?;
        let sides = Side::pair();
        let [left, right] = &sides;
        let folder = TempFolder::new("bench");
        let mut nodes = Vec::new();
        let mut beside = None;
        match kind {
            Kind::Netstack | Kind::Tun => {
                let mode = if matches!(kind, Kind::Netstack) { "netstack" } else { "tun" };
                nodes.push(Node::adit(&cable.left, [left, right], |interface| {
                    let mesh = format!("mesh: {{ mode: {mode}, interface: {interface}, import: wg.conf }}\n");
                    configuration(", on: mesh", "") + &mesh
                }));
            }
            Kind::Stock(engine) => {
                nodes.push(engine.start(&cable.left, left, right));
                let path = folder.write("adit.yaml", configuration("", "10.9.0.1"));
                let mut command = cable.left.command(env!("CARGO_BIN_EXE_adit"));
                let mut adit = Process::start("adit", command.arg("run").arg("--config").arg(path));
                adit.wait_for_line("Starting metrics server");
                beside = Some(adit);
            }
        }
        let hub =
            nodes.iter().map(|node| node.process.id()).chain(beside.as_ref().map(Process::id)).collect();
        nodes.push(Engine::Adit.start(&cable.right, right, left));
        let hub = Self { cable, hub, _running: (nodes, beside, folder) };
        wait_for("the hub to answer", || {
            let answer = hub.cable.right.run("curl", &["-s", "-m", "2", "-o", "/dev/null", WEB]);
            answer.status.success().then_some(())
        });
        Some(hub)
    }

    /// Gbit/s or requests a second, and CPU seconds of the hub per GiB or 100,000 requests.
    fn measure(&self, workload: &Workload) -> Option<[f64; 2]> {
        let before = self.cpu();
        match workload {
            Workload::Iperf(_, arguments) => {
                let server = Iperf::serve(&self.cable.left);
                let address = "10.9.0.1".parse().ok()?;
                let report = server.run(
                    &self.cable.right,
                    address,
                    &[&["-p", "5301", "-t", SECONDS], *arguments].concat(),
                );
                let received = &report["end"]["sum_received"];
                let gibibytes = received["bytes"].as_f64()? / f64::from(1 << 30);
                Some([received["bits_per_second"].as_f64()? / 1e9, (self.cpu() - before) / gibibytes])
            }
            Workload::Wrk(_, connections) => {
                let arguments = ["-t", "1", "-c", connections, "-d", SECONDS, WEB];
                let output = self.cable.right.run("wrk", &arguments);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"))?;
                let requests = text.lines().find_map(|line| line.trim().split_once(" requests in "))?.0;
                let requests = requests.parse::<f64>().ok()?;
                Some([rate.trim().parse().ok()?, (self.cpu() - before) / requests * 1e5])
            }
        }
    }

    fn cpu(&self) -> f64 {
        self.hub.iter().map(|process| cpu(*process)).sum()
    }
}

/// Entry points with `further` keys on an address: one for iperf3, one whose requests adit answers itself.
fn configuration(further: &str, address: &str) -> String {
    format!(
        r#"entryPoints:
  speed: {{ address: "{address}:5301"{further} }}
  web: {{ address: "{address}:8443"{further} }}
http:
  routers:
    web: {{ rule: "PathPrefix(`/`)", entryPoints: [web], middlewares: [away], service: none }}
  middlewares:
    away: {{ redirectRegex: {{ regex: ".*", replacement: "https://example.test/" }} }}
  services:
    none: {{ loadBalancer: {{ servers: [ {{ url: "http://127.0.0.1:1" }} ] }} }}
tcp:
  routers:
    speed: {{ rule: "HostSNI(`*`)", entryPoints: [speed], service: speed }}
  services:
    speed: {{ loadBalancer: {{ servers: [ {{ address: "127.0.0.1:5201" }} ] }} }}
admin: {{ address: "{ADMIN}" }}
"#
    )
}

const WORKLOADS: [Workload; 4] = [
    Workload::Iperf("upload", &[]),
    Workload::Iperf("download", &["-R"]),
    Workload::Wrk("16 connections", "16"),
    Workload::Wrk("1 connection", "1"),
];
const WEB: &str = "http://10.9.0.1:8443/";
const ROUNDS: usize = 3;
const SECONDS: &str = "4";
