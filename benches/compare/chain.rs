//! The whole chain from visitor to pod: adit alone against cloudflared with a reverse proxy behind it.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::load::{progress, requests};
use super::machine::peer;
use super::support::adit::Adit;
use super::support::connector::TOKEN;
use super::support::nginx::Nginx;
use super::support::process::Process;
use super::support::{TempFolder, free_tcp_port, wait_for};
use super::table::{ADIT, Against, Bound, Figure, Section};
use super::tunnel::{EDGE, HOST, dial};
use super::{ROUNDS, in_turn};

/// Measures requests of 1 KiB through the chains.
pub(crate) fn measure() -> Section {
    let mut section = Section::new(
        "Whole chain",
        "visitor → adit edge → connector → routing → pod (nginx) on loopback, 64 connections, 1 KiB. CPU is that of all that \
         stands behind the edge: adit routes in the connector; cloudflared hands to a reverse proxy, which routes.",
    );
    let pod = Nginx::start("keepalive_requests 1000000000;");
    pod.serve_file("1k", vec![b'x'; 1024]);
    let mut chains = vec![adit(pod.address())];
    if let Some(cloudflared) = peer("CLOUDFLARED", "cloudflared") {
        chains.push(with_nginx(&cloudflared, &pod));
        match peer("TRAEFIK", "traefik") {
            Some(traefik) => chains.push(with_traefik(&cloudflared, traefik, pod.address())),
            None => section.absent("cloudflared, traefik", "traefik neither on PATH nor in TRAEFIK"),
        }
    } else {
        section.absent("cloudflared", "neither on PATH nor in CLOUDFLARED");
    }
    for round in 0..ROUNDS {
        for (_, chain) in in_turn(&chains, round) {
            progress(&format!("chain, round {} of {ROUNDS}: {}", round + 1, chain.name));
            let url = format!("http://{}/1k", chain.edge.entry_point("web"));
            section.add(SMALL, chain.name, requests(&url, HOST, 64, &chain.processes));
        }
    }
    section.ask(SMALL, Figure::CpuSecondsPer100k, Against::Best(PEERS), Bound::AtMost(0.25));
    section.ask(SMALL, Figure::P99Milliseconds, Against::Best(PEERS), Bound::AtMost(0.5));
    section
}

/// An edge and all that stands behind it.
struct Chain {
    name: &'static str,
    edge: Adit,
    processes: Vec<u32>,
    _running: (Vec<Process>, Option<Nginx>, Option<Adit>, Option<TempFolder>),
}

fn edge() -> Adit {
    Adit::start_in(TempFolder::new("edge"), "edge", EDGE)
}

fn adit(pod: SocketAddr) -> Chain {
    let edge = edge();
    let address = edge.edge();
    let mut adit = Adit::start(
        "connector",
        &format!(
            "tunnel:\n  token: \"{TOKEN}\"\n  edge: [ \"{address}\" ]\n  ca: {}\n  connections: 1\n\
             http:\n  routers:\n    r: {{ rule: \"Host(`{HOST}`)\", service: s }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"http://{pod}\" }} ] }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n",
            edge.folder().path().join("state/edge-ca.pem").display()
        ),
    );
    edge.wait_for_connections(1);
    let processes = vec![adit.process().id()];
    Chain { name: ADIT, edge, processes, _running: (Vec::new(), None, Some(adit), None) }
}

fn with_nginx(cloudflared: &std::path::Path, pod: &Nginx) -> Chain {
    let edge = edge();
    // Leaves the server's block to add the pool of connections beside it.
    let nginx = Nginx::start(&format!(
        "server_name {HOST}; keepalive_requests 1000000000; location / {{ proxy_pass http://pod; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }} }}\nupstream pod {{ server {}; keepalive 128; keepalive_requests 1000000000;",
        pod.address()
    ));
    let connector = dial(cloudflared, &edge, &["--url", &nginx.url()]);
    let processes = vec![connector.id(), nginx.process().id()];
    Chain { name: PEERS[0], edge, processes, _running: (vec![connector], Some(nginx), None, None) }
}

fn with_traefik(cloudflared: &std::path::Path, traefik: PathBuf, pod: SocketAddr) -> Chain {
    let edge = edge();
    let folder = TempFolder::new("traefik");
    let dynamic = folder.write(
        "dynamic.yml",
        format!(
            "http:\n  routers:\n    r: {{ rule: \"Host(`{HOST}`)\", service: s }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"http://{pod}\" }} ] }} }}\n"
        ),
    );
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()));
    let mut command = Command::new(traefik);
    command.arg(format!("--entryPoints.web.address={address}"));
    command.arg(format!("--providers.file.filename={}", dynamic.display()));
    command.args(["--global.checkNewVersion=false", "--global.sendAnonymousUsage=false"]);
    let proxy = Process::start("traefik", command.stdin(Stdio::null()));
    wait_for("traefik to listen", || TcpStream::connect(address).ok());
    let connector = dial(cloudflared, &edge, &["--url", &format!("http://{address}")]);
    let processes = vec![connector.id(), proxy.id()];
    Chain { name: PEERS[1], edge, processes, _running: (vec![connector, proxy], None, None, Some(folder)) }
}

const SMALL: &str = "1 KiB, 64 in flight";
const PEERS: &[&str] = &["cloudflared, nginx", "cloudflared, traefik"];
