//! Connectors behind edges: adit and cloudflared each behind an adit edge and behind a stock one, frp and rathole behind
//! their own servers.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use super::load::{Scheme, Transfer, bulk, progress, requests};
use super::machine::peer;
use super::measure::{resident, resident_peak};
use super::support::adit::Adit;
use super::support::connector::TOKEN;
use super::support::nginx::Nginx;
use super::support::process::Process;
use super::support::{TempFolder, free_tcp_port, wait_for};
use super::table::{ADIT, Against, Bound, Figure, Section};
use super::{ROUNDS, in_turn, origin, stock_edge};

/// Measures bytes and requests through tunnels, and the connectors' memory.
pub(crate) fn measure() -> Section {
    let mut section = Section::new(
        "Tunnel",
        "client → edge → connector → origin on loopback, one connection between edge and connector; CPU and memory are \
         the connector's. adit and cloudflared each stand behind an adit edge of their own, frp and rathole behind their own \
         servers with their defaults: over TCP, frp in TLS that checks no certificate, rathole without encryption; it carries \
         bytes as they are, where the others decrypt and encrypt all of them. The stock edge is a small one in Go (benches/stock-edge) on the QUIC \
         library that cloudflared uses.",
    );
    let small = Nginx::start("keepalive_requests 1000000000;");
    small.serve_file("1k", vec![b'x'; 1024]);
    let large = origin::start();
    let kinds = kinds(&mut section);
    let open = |origin: SocketAddr| -> Vec<Tunnel> { kinds.iter().map(|kind| kind.open(origin)).collect() };
    let (to_small, to_large) = (open(small.address()), open(large));
    for (kind, tunnel) in kinds.iter().zip(&to_small) {
        section.add(IDLE, kind.name, Some(vec![(Figure::Mebibytes, resident(tunnel.connector.id()))]));
    }
    for round in 0..ROUNDS {
        for (n, kind) in in_turn(&kinds, round) {
            progress(&format!("tunnel, round {} of {ROUNDS}: {}", round + 1, kind.name));
            for (workload, upload, streams) in BULK {
                let tunnel = &to_large[n];
                let sample = bulk(
                    Scheme::Http(tunnel.visitors),
                    HOST,
                    Transfer { upload, streams, gib: 1 },
                    &[tunnel.connector.id()],
                );
                section.add(workload, kind.name, sample);
            }
            let tunnel = &to_small[n];
            let url = format!("http://{}/1k", tunnel.visitors);
            section.add(SMALL, kind.name, requests(&url, HOST, 64, &[tunnel.connector.id()]));
        }
    }
    for (workload, tunnels) in [(AFTER_SMALL, &to_small), (AFTER_BULK, &to_large)] {
        for (kind, tunnel) in kinds.iter().zip(tunnels) {
            let peak = resident_peak(tunnel.connector.id());
            section.add(workload, kind.name, Some(vec![(Figure::Mebibytes, peak)]));
        }
    }
    ask(&mut section);
    stock_edge::measure(&mut section, small.address(), large);
    section
}

fn ask(section: &mut Section) {
    for (workload, ..) in BULK {
        section.ask(workload, Figure::GbitPerSecond, Against::Best(&[CLOUDFLARED]), Bound::AtLeast(5.0));
        section.ask(workload, Figure::CpuSecondsPerGib, Against::Best(&[CLOUDFLARED]), Bound::AtMost(0.2));
    }
    section.ask(SMALL, Figure::RequestsPerSecond, Against::Best(&[CLOUDFLARED]), Bound::AtLeast(4.0));
    section.ask(SMALL, Figure::CpuSecondsPer100k, Against::Best(&[CLOUDFLARED]), Bound::AtMost(0.2));
    section.ask(SMALL, Figure::CpuSecondsPer100k, Against::Value, Bound::AtMost(3.5));
    section.ask(IDLE, Figure::Mebibytes, Against::Value, Bound::AtMost(30.0));
}

/// A kind of tunnel that is on the machine.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    open: fn(SocketAddr) -> Tunnel,
}

/// A connector with what stands between it and the visitors.
pub(crate) struct Tunnel {
    pub(crate) connector: Process,
    /// Where visitors ask for [`HOST`].
    pub(crate) visitors: SocketAddr,
    _behind: (Option<Adit>, Option<Process>, Option<TempFolder>),
}

impl Kind {
    pub(crate) fn open(&self, origin: SocketAddr) -> Tunnel {
        (self.open)(origin)
    }
}

/// All that are there; the others are noted as absent.
fn kinds(section: &mut Section) -> Vec<Kind> {
    let mut kinds =
        vec![Kind { name: ADIT, open: |origin| stock(env!("CARGO_BIN_EXE_adit").as_ref(), origin) }];
    if peer("CLOUDFLARED", CLOUDFLARED).is_some() {
        let open = |origin| stock(&peer("CLOUDFLARED", CLOUDFLARED).expect("it was there"), origin);
        kinds.push(Kind { name: CLOUDFLARED, open });
    } else {
        section.absent(CLOUDFLARED, "neither on PATH nor in CLOUDFLARED");
    }
    if peer("FRPC", "frpc").is_some() && peer("FRPS", "frps").is_some() {
        kinds.push(Kind { name: "frp", open: frp });
    } else {
        section.absent("frp", "frpc and frps neither on PATH nor in FRPC and FRPS");
    }
    if peer("RATHOLE", "rathole").is_some() {
        kinds.push(Kind { name: "rathole", open: rathole });
    } else {
        section.absent("rathole", "neither on PATH nor in RATHOLE");
    }
    kinds
}

/// cloudflared's command line, behind an edge of its own.
pub(crate) fn stock(program: &Path, origin: SocketAddr) -> Tunnel {
    let edge = Adit::start_in(TempFolder::new("edge"), "edge", EDGE);
    let connector = dial(program, &edge, &["--url", &format!("http://{origin}")]);
    Tunnel { connector, visitors: edge.entry_point("web"), _behind: (Some(edge), None, None) }
}

/// A connector with one connection to `edge`.
pub(crate) fn dial(program: &Path, edge: &Adit, arguments: &[&str]) -> Process {
    dial_by(edge.edge(), program, edge, arguments)
}

/// The same by another address, from which there is a line to `edge`.
pub(crate) fn dial_by(address: SocketAddr, program: &Path, edge: &Adit, arguments: &[&str]) -> Process {
    let ca = edge.folder().path().join("state/edge-ca.pem");
    let process = connector(program, address, &ca, arguments);
    edge.wait_for_connections(1);
    process
}

/// A connector that opens one connection to an edge whose certificate is of `ca`.
pub(crate) fn connector(program: &Path, edge: SocketAddr, ca: &Path, arguments: &[&str]) -> Process {
    let address = edge.to_string();
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
    command.args(["--ha-connections", "1", "--edge", &address, "--edge", &address, "--cacert"]).arg(ca);
    command.args(["run", "--token", TOKEN]).args(arguments);
    Process::start("connector", command.stdin(Stdio::null()))
}

fn frp(origin: SocketAddr) -> Tunnel {
    let folder = TempFolder::new("frp");
    let [control, visitors] = [free_tcp_port(), free_tcp_port()];
    let server = folder.write(
        "frps.toml",
        format!("bindAddr = \"127.0.0.1\"\nbindPort = {control}\nproxyBindAddr = \"127.0.0.1\"\nvhostHTTPPort = {visitors}\n"),
    );
    let client = folder.write(
        "frpc.toml",
        format!(
            "serverAddr = \"127.0.0.1\"\nserverPort = {control}\n[[proxies]]\nname = \"web\"\ntype = \"http\"\n\
             localIP = \"{}\"\nlocalPort = {}\ncustomDomains = [\"{HOST}\"]\n",
            origin.ip(),
            origin.port()
        ),
    );
    let start = |variable: &str, name: &str, file: &Path| {
        let program = peer(variable, name).expect("it was there");
        Process::start(name, Command::new(program).arg("-c").arg(file).stdin(Stdio::null()))
    };
    let server = start("FRPS", "frps", &server);
    wait_for("frps to listen", || TcpStream::connect(local(control)).ok());
    let mut connector = start("FRPC", "frpc", &client);
    connector.wait_for_line("start proxy success");
    Tunnel { connector, visitors: local(visitors), _behind: (None, Some(server), Some(folder)) }
}

fn rathole(origin: SocketAddr) -> Tunnel {
    let folder = TempFolder::new("rathole");
    let [control, visitors] = [free_tcp_port(), free_tcp_port()];
    let server = folder.write(
        "server.toml",
        format!(
            "[server]\nbind_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n[server.services.web]\n\
             bind_addr = \"127.0.0.1:{visitors}\"\n"
        ),
    );
    let client = folder.write(
        "client.toml",
        format!(
            "[client]\nremote_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n[client.services.web]\n\
             local_addr = \"{origin}\"\n"
        ),
    );
    let start = |file: &Path| {
        let program = peer("RATHOLE", "rathole").expect("it was there");
        Process::start("rathole", Command::new(program).arg(file).stdin(Stdio::null()))
    };
    let server = start(&server);
    wait_for("rathole to listen", || TcpStream::connect(local(control)).ok());
    let connector = start(&client);
    wait_for("rathole to take visitors", || TcpStream::connect(local(visitors)).ok());
    Tunnel { connector, visitors: local(visitors), _behind: (None, Some(server), Some(folder)) }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Name, whether it is an upload, streams.
const BULK: [(&str, bool, u32); 4] = [
    ("download, 1 stream", false, 1),
    ("download, 8 streams", false, 8),
    ("upload, 1 stream", true, 1),
    ("upload, 8 streams", true, 8),
];
const SMALL: &str = "1 KiB, 64 in flight";
const IDLE: &str = "memory, idle";
const AFTER_SMALL: &str = "memory, most with requests";
const AFTER_BULK: &str = "memory, most with bulk";
pub(crate) const CLOUDFLARED: &str = "cloudflared";
/// The host that all tunnels serve.
pub(crate) const HOST: &str = "a.home.test";
/// An edge with one tunnel, that of [`TOKEN`].
pub(crate) const EDGE: &str = "state-dir: state\nentryPoints: { web: { address: \"127.0.0.1:0\" } }\nedge:\n  \
     listen: \"127.0.0.1:0\"\n  public: [ web ]\n  tunnels:\n    - { name: home, \
     id: 11111111-2222-3333-4444-555555555555, secret: \"eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg=\", \
     hostnames: [ \"*.home.test\" ] }\nadmin: { address: \"127.0.0.1:0\" }\n";
