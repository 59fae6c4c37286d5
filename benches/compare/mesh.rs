//! iperf3 through tunnels between two network namespaces: adit beside other userspace WireGuards.

use super::in_turn;
use super::load::{cpu_of, progress};
use super::support::netns::{Cable, Engine, Flood, Iperf, Node, PORT, Side};
use super::table::{ADIT, Against, Bound, Figure, Sample, Section, Target};

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
        for (_, (name, engine)) in in_turn(&engines, round) {
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

/// Measures what a session between two adits carries while one of them is flooded with handshakes.
pub(crate) fn flood() -> Section {
    let mut section = Section::new(
        "Mesh under floods of handshakes",
        "iperf3 through two adits as above, one stream, while the receiving one gets 50,000 handshake initiations a second. Whoever \
         sends them and the kernel take their share of the two cores, so the one to compare with is the flood of a closed port.",
    );
    for round in 0..ROUNDS {
        progress(&format!("flood, round {} of {ROUNDS}", round + 1));
        let Some(tunnel) = Tunnel::open(&Engine::Adit) else {
            section.absent(ADIT, "network namespaces need root");
            return section;
        };
        tunnel.cable.right.ip(&["route", "add", "default", "via", "192.0.2.1"]);
        let victim = tunnel.sides[1].public_key();
        for (name, kind, port) in FLOODS {
            let flood = kind.map(|kind| Flood::start(&tunnel.cable.left, kind, port, victim, FLOOD_RATE));
            section.add(UNDER_FLOOD, name, tunnel.measure("1"));
            drop(flood);
        }
    }
    for (subject, ..) in &FLOODS[2..] {
        section.targets.push(Target {
            workload: UNDER_FLOOD,
            subject,
            figure: Figure::GbitPerSecond,
            against: Against::Best(&[BESIDE]),
            bound: Bound::AtLeast(0.9),
        });
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
const UNDER_FLOOD: &str = "1 stream";
const BESIDE: &str = "50,000 to a closed port";
/// Name, kind and port of what a session is measured beside.
const FLOODS: [(&str, Option<&str>, u16); 5] = [
    ("no flood", None, 0),
    (BESIDE, Some("spoofed"), PORT + 1),
    ("50,000 with a forged first MAC", Some("forged"), PORT),
    ("50,000 with a right first MAC from spoofed sources", Some("spoofed"), PORT),
    ("50,000 with a right first MAC from one source", Some("single"), PORT),
];
/// Messages a second: 59 Mbit/s, sixty times what a lane computes.
const FLOOD_RATE: u32 = 50_000;
