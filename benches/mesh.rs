//! `cargo bench -p adit --bench mesh`: iperf3 through tunnels between two network namespaces, adit beside other userspace
//! WireGuards.
//!
//! Needs root. Peers are found on PATH (wireguard-go, boringtun-cli, gotatun) or named by `BORINGTUN`, `GOTATUN` and
//! `WIREGUARD_GO` (a newer one than PATH's). Both ends of a tunnel are the same program and share the machine's cores with
//! iperf3; CPU time is that of both ends. Rounds are interleaved and medians printed, because machines are shared. TCP is
//! Linux's usual cubic whatever the machine is set to: BBR keeps the in-flight data at twice the shortest round trip, which
//! is some microseconds here, and so measures itself.
//!
//! `-- flood`: one stream between two adits while one of them is flooded with handshakes, beside one while the same messages
//! go to a closed port next to it: whoever sends them and the kernel take their share of the two cores either way.
#![allow(clippy::print_stdout, reason = "its table is what a bench is for")]

mod measure;
#[path = "../tests/support/mod.rs"]
mod support;

use measure::{cpu, median};
use support::netns::{Cable, Engine, Flood, Iperf, Node, PORT, Side};
use support::{find_program, note};

fn main() {
    if ["iperf3", "wg", "ip"].iter().any(|program| find_program(program).is_none()) {
        note("skipped: this bench needs iperf3, wg and ip on PATH");
        return;
    }
    if std::env::args().any(|argument| argument == "flood") {
        return flood();
    }
    let peers = [Engine::wireguard_go(), Engine::boringtun(), Engine::gotatun(), Engine::new_wireguard_go()];
    let engines: Vec<Engine> = [Some(Engine::Adit)].into_iter().chain(peers).flatten().collect();
    let mut figures = vec![[const { Vec::new() }; STREAMS.len()]; engines.len()];
    for round in 0..ROUNDS {
        for (engine, figures) in engines.iter().zip(&mut figures) {
            note(&format!("round {} of {ROUNDS}: {}", round + 1, engine.name()));
            let Some(tunnel) = Tunnel::open(engine) else { return };
            for (streams, figures) in STREAMS.iter().zip(figures) {
                figures.extend(tunnel.measure(streams));
            }
        }
    }
    println!("{:<20} {:>8} {:>10} {:>10}", "engine", "streams", "Gbit/s", "CPU-s/GiB");
    for (engine, figures) in engines.iter().zip(&figures) {
        for (streams, figures) in STREAMS.iter().zip(figures) {
            let [rate, cost] = medians(figures);
            println!("{:<20} {streams:>8} {rate:>10.2} {cost:>10.2}", engine.name());
        }
    }
    for (n, streams) in STREAMS.iter().enumerate() {
        compare(streams, &engines, &figures.iter().map(|figures| medians(&figures[n])).collect::<Vec<_>>());
    }
}

/// Prints what a session between two adits carries under floods of handshakes.
fn flood() {
    let mut figures = [const { Vec::new() }; FLOODS.len()];
    for round in 0..ROUNDS {
        note(&format!("round {} of {ROUNDS}", round + 1));
        let Some(tunnel) = Tunnel::open(&Engine::Adit) else { return };
        tunnel.cable.right.ip(&["route", "add", "default", "via", "192.0.2.1"]);
        let victim = tunnel.sides[1].public_key();
        for ((name, kind, port), figures) in FLOODS.iter().zip(&mut figures) {
            let flood = kind.map(|kind| Flood::start(&tunnel.cable.left, kind, *port, victim, FLOOD_RATE));
            note(name);
            figures.extend(tunnel.measure("1"));
            drop(flood);
        }
    }
    println!("{:<52} {:>8} {:>10} {:>8}", "handshakes a second", "Gbit/s", "CPU-s/GiB", "of rate");
    let [_, beside, ..] = figures.each_ref().map(|figures| medians(figures)[0]);
    for ((name, ..), figures) in FLOODS.iter().zip(&figures) {
        let [rate, cost] = medians(figures);
        println!("{name:<52} {rate:>8.2} {cost:>10.2} {:>7.0}%", 100.0 * rate / beside);
    }
}

/// Prints how adit stands to the peer with the best rate and to the one with the least CPU.
fn compare(streams: &str, engines: &[Engine], figures: &[[f64; 2]]) {
    let [(_, adit), peers @ ..] = &*engines.iter().zip(figures).collect::<Vec<_>>() else { return };
    let fastest = peers.iter().max_by(|(_, one), (_, other)| one[0].total_cmp(&other[0]));
    let leanest = peers.iter().min_by(|(_, one), (_, other)| one[1].total_cmp(&other[1]));
    if let (Some((fastest, rate)), Some((leanest, cost))) = (fastest, leanest) {
        println!(
            "{streams} streams: {:.1}x the rate of {}, {:.2}x the CPU of {}",
            adit[0] / rate[0],
            fastest.name(),
            adit[1] / cost[1],
            leanest.name(),
        );
    }
}

/// Two ends of one engine on a cable of their own.
struct Tunnel {
    cable: Cable,
    sides: [Side; 2],
    nodes: [Node; 2],
}

impl Tunnel {
    fn open(engine: &Engine) -> Option<Self> {
        let cable = Cable::lay(1500)?;
        let sides = Side::pair();
        let [left, right] = &sides;
        let nodes = [engine.start(&cable.left, left, right), engine.start(&cable.right, right, left)];
        cable.left.wait_for_ping(&right.inner(false));
        Some(Self { cable, sides, nodes })
    }

    /// Gbit/s and CPU seconds per GiB.
    fn measure(&self, streams: &str) -> Option<[f64; 2]> {
        let server = Iperf::serve(&self.cable.right);
        let address = self.sides[1].inner(false).parse().ok()?;
        let before = self.cpu();
        let report = server.run(&self.cable.left, address, &["-t", SECONDS, "-P", streams, "-C", "cubic"]);
        let used = self.cpu() - before;
        let received = &report["end"]["sum_received"];
        let gibibytes = received["bytes"].as_f64()? / f64::from(1 << 30);
        Some([received["bits_per_second"].as_f64()? / 1e9, used / gibibytes])
    }

    fn cpu(&self) -> f64 {
        self.nodes.iter().map(|node| cpu(node.process.id())).sum()
    }
}

fn medians(figures: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|n| median(figures.iter().map(|figure| figure[n])))
}

const STREAMS: [&str; 2] = ["1", "4"];
const ROUNDS: usize = 5;
/// Name, kind and port of what a session is measured beside; the second is what the others are compared with.
const FLOODS: [(&str, Option<&str>, u16); 5] = [
    ("none", None, 0),
    ("50,000 to a closed port", Some("spoofed"), PORT + 1),
    ("50,000 with a forged first MAC", Some("forged"), PORT),
    ("50,000 with a right first MAC from spoofed sources", Some("spoofed"), PORT),
    ("50,000 with a right first MAC from one source", Some("single"), PORT),
];
/// Messages a second: 59 Mbit/s, sixty times what a lane computes.
const FLOOD_RATE: u32 = 50_000;
const SECONDS: &str = "5";
