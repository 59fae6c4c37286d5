//! Entry points on the mesh in netstack mode beside the same ones behind adit's TUN device and behind wireguard-go's, with
//! iperf3 and wrk as visitors.

use super::load::{cpu_of, progress};
use super::support::netns::{ADMIN, Cable, Engine, Iperf, Node, Side};
use super::support::process::Process;
use super::support::{TempFolder, wait_for};
use super::table::{ADIT, Figure, Sample, Section};
use super::{ROUNDS, in_turn};

/// Measures bytes and requests that arrive at a hub's listeners.
pub(crate) fn measure() -> Section {
    let mut section = Section::new(
        "Listeners on the mesh",
        "visitor (wrk, or iperf3 through a TCP router) → adit in TUN mode → cable → hub. CPU is the hub's: adit alone in netstack \
         mode (no privileges), adit with a TUN device and the kernel's TCP, and wireguard-go with adit behind it. Requests are \
         answered by adit itself.",
    );
    let stock = Engine::wireguard_go().map(Kind::Stock);
    if stock.is_none() {
        section.absent("wireguard-go", "not on PATH");
    }
    let kinds: Vec<Kind> = [Some(Kind::Netstack), Some(Kind::Tun), stock].into_iter().flatten().collect();
    for round in 0..ROUNDS {
        for (_, kind) in in_turn(&kinds, round) {
            progress(&format!("netstack, round {} of {ROUNDS}: {}", round + 1, kind.name()));
            let Some(hub) = Hub::open(kind) else {
                section.absent(ADIT, "network namespaces need root");
                return section;
            };
            for workload in &WORKLOADS {
                section.add(workload.name(), kind.name(), hub.measure(workload));
            }
        }
    }
    section
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

    fn measure(&self, workload: &Workload) -> Option<Sample> {
        let before = cpu_of(&self.hub);
        match workload {
            Workload::Iperf(_, arguments) => {
                let server = Iperf::serve(&self.cable.left);
                let address = "10.9.0.1".parse().ok()?;
                let report = server.run(
                    &self.cable.right,
                    address,
                    &[&["-p", "5301", "-t", SECONDS, "-C", "cubic"], *arguments].concat(),
                );
                let received = &report["end"]["sum_received"];
                let gibibytes = received["bytes"].as_f64()? / f64::from(1 << 30);
                let rate = received["bits_per_second"].as_f64()? / 1e9;
                let used = cpu_of(&self.hub) - before;
                Some(vec![(Figure::GbitPerSecond, rate), (Figure::CpuSecondsPerGib, used / gibibytes)])
            }
            Workload::Wrk(_, connections) => {
                let arguments = ["-t", "1", "-c", connections, "-d", SECONDS, WEB];
                let output = self.cable.right.run("wrk", &arguments);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"))?;
                let requests = text.lines().find_map(|line| line.trim().split_once(" requests in "))?.0;
                let requests = requests.parse::<f64>().ok()?;
                let used = cpu_of(&self.hub) - before;
                Some(vec![
                    (Figure::RequestsPerSecond, rate.trim().parse().ok()?),
                    (Figure::CpuSecondsPer100k, used / requests * 1e5),
                ])
            }
        }
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
const SECONDS: &str = "4";
