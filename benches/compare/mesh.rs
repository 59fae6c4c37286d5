//! iperf3 through tunnels between two network namespaces: adit beside other userspace WireGuards.

use super::load::{cpu_of, progress};
use super::support::netns::{Cable, Engine, Iperf, Node, Side};
use super::table::{ADIT, Against, Bound, Figure, Sample, Section};

/// Measures bytes through pairs of engines.
pub(crate) fn measure() -> Section {
    let mut section = Section::new(
        "Mesh",
        "iperf3 → WireGuard → cable (veth, MTU 1500) → WireGuard → iperf3, TUN to TUN between two network namespaces. Both ends \
         are the same program; CPU is that of both. TCP is Linux's usual cubic whatever the machine is set to: BBR keeps twice \
         the shortest round trip in flight, some microseconds here, and so measures itself.",
    );
    let peers = [
        ("wireguard-go", "not on PATH", Engine::wireguard_go()),
        ("boringtun-cli", "neither on PATH nor in BORINGTUN", Engine::boringtun()),
        ("gotatun", "neither on PATH nor in GOTATUN", Engine::gotatun()),
        ("wireguard-go (new)", "not in WIREGUARD_GO", Engine::new_wireguard_go()),
    ];
    let mut engines = vec![(ADIT, Engine::Adit)];
    for (name, reason, engine) in peers {
        match engine {
            Some(engine) => engines.push((name, engine)),
            None => section.absent(name, reason),
        }
    }
    for round in 0..ROUNDS {
        for (name, engine) in &engines {
            progress(&format!("mesh, round {} of {ROUNDS}: {name}", round + 1));
            let Some(tunnel) = Tunnel::open(engine) else {
                section.absent(ADIT, "network namespaces need root");
                return section;
            };
            for (workload, streams) in STREAMS {
                section.add(workload, name, tunnel.measure(streams));
            }
        }
    }
    for (workload, _) in STREAMS {
        section.ask(workload, Figure::GbitPerSecond, Against::Best(PEERS), Bound::AtLeast(4.5));
        section.ask(workload, Figure::CpuSecondsPerGib, Against::Best(PEERS), Bound::AtMost(0.25));
        section.ask(workload, Figure::GbitPerSecond, Against::Best(NEW), Bound::AtLeast(1.0));
        section.ask(workload, Figure::CpuSecondsPerGib, Against::Best(NEW), Bound::AtMost(1.0));
    }
    section
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

    fn measure(&self, streams: &str) -> Option<Sample> {
        let server = Iperf::serve(&self.cable.right);
        let address = self.sides[1].inner(false).parse().ok()?;
        let processes: Vec<u32> = self.nodes.iter().map(|node| node.process.id()).collect();
        let before = cpu_of(&processes);
        let report = server.run(&self.cable.left, address, &["-t", SECONDS, "-P", streams, "-C", "cubic"]);
        let used = cpu_of(&processes) - before;
        let received = &report["end"]["sum_received"];
        let gibibytes = received["bytes"].as_f64()? / f64::from(1 << 30);
        let rate = received["bits_per_second"].as_f64()? / 1e9;
        Some(vec![(Figure::GbitPerSecond, rate), (Figure::CpuSecondsPerGib, used / gibibytes)])
    }
}

/// Those that the targets were set by.
const PEERS: &[&str] = &["wireguard-go", "boringtun-cli", "gotatun"];
const NEW: &[&str] = &["wireguard-go (new)"];
const STREAMS: [(&str, &str); 2] = [("1 stream", "1"), ("4 streams", "4")];
const ROUNDS: usize = 5;
const SECONDS: &str = "5";
