//! What idle visitors cost: WebSockets that say nothing, through adit, nginx and haproxy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use super::load::progress;
use super::measure::resident;
use super::origin;
use super::support::adit::Adit;
use super::support::process::Process;
use super::support::{TempFolder, find_program, free_tcp_port, wait_for};
use super::table::{ADIT, Against, Bound, Figure, Section};

/// Measures memory with many idle WebSockets open.
pub(crate) fn measure() -> Section {
    let mut section = Section::new(
        "Memory",
        "client → proxy → origin on loopback, WebSockets that are open and say nothing. Memory is what the proxy holds (RSS).",
    );
    // Each socket is two descriptors of this process, the client's and the origin's, and two of the proxy's, which inherits
    // the limit.
    let limit = rlimit::increase_nofile_limit(u64::from(SOCKETS_MAX) * 2 + SPARE).unwrap_or(0);
    let thousands = u32::try_from(limit.saturating_sub(SPARE) / 2000).unwrap_or(0).min(SOCKETS_MAX / 1000);
    let (count, many) = (thousands * 1000, &*format!("{thousands},000 idle WebSockets").leak());
    if count == 0 {
        section.absent(ADIT, "the limit on descriptors is too low");
        return section;
    }
    let origin = origin::start();
    let adit = adit(origin);
    let mut proxies = vec![(ADIT, adit.1, adit.0)];
    proxies.push(("nginx", nginx(origin), None));
    if let Some(haproxy) = find_program("haproxy") {
        proxies.push(("haproxy", self::haproxy(&haproxy, origin, count), None));
    } else {
        section.absent("haproxy", "not on PATH");
    }
    for (name, (process, address, _running), _adit) in &proxies {
        progress(&format!("memory: {name}"));
        section.add(IDLE, name, Some(vec![(Figure::Mebibytes, resident(*process))]));
        let sockets: Option<Vec<TcpStream>> = (0..count).map(|_| open(*address)).collect();
        let held = sockets.as_ref().map(|_| vec![(Figure::Mebibytes, resident(*process))]);
        section.add(many, name, held);
        drop(sockets);
        origin::release();
    }
    section.ask(many, Figure::Mebibytes, Against::Value, Bound::AtMost(15.0 * f64::from(thousands)));
    section
}

/// Process, where it listens, and what ends with it.
type Running = (u32, SocketAddr, Option<(Process, TempFolder)>);

/// A WebSocket that has been accepted.
fn open(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = "GET / HTTP/1.1\r\nHost: bench.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).ok()?;
    (&answer == b"HTTP/1.1 101").then_some(stream)
}

fn adit(origin: SocketAddr) -> (Option<Adit>, Running) {
    let mut adit = Adit::start(
        "adit",
        &format!(
            "entryPoints: {{ web: {{ address: \"127.0.0.1:0\", asDefault: true }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
             limits: {{ connections: {} }}\nhttp:\n  routers: {{ r: {{ rule: \"PathPrefix(`/`)\", service: s }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [ {{ url: \"http://{origin}\" }} ] }} }} }}\n",
            SOCKETS_MAX + 100
        ),
    );
    let running = (adit.process().id(), adit.entry_point("web"), None);
    (Some(adit), running)
}

fn nginx(origin: SocketAddr) -> Running {
    let folder = TempFolder::new("nginx");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()));
    let place = folder.path().display();
    let path = folder.write(
        "nginx.conf",
        format!(
            "daemon off; worker_processes auto; worker_rlimit_nofile 65536; pid {place}/pid; error_log {place}/error.log;\n\
             events {{ worker_connections 32768; }}\nhttp {{ access_log off; client_body_temp_path {place}/b; \
             proxy_temp_path {place}/p; fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n\
             server {{ listen {address}; location / {{ proxy_pass http://{origin}; proxy_http_version 1.1; \
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }} }} }}\n"
        ),
    );
    let mut command = Command::new(find_program("nginx").expect("main looked"));
    command.args(["-e", &format!("{place}/error.log"), "-p", &format!("{place}"), "-c"]).arg(path);
    listening("nginx", Process::start("nginx", command.stdin(Stdio::null())), folder, address)
}

fn haproxy(program: &std::path::Path, origin: SocketAddr, sockets: u32) -> Running {
    let folder = TempFolder::new("haproxy");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()));
    let path = folder.write(
        "haproxy.cfg",
        format!(
            "global\n maxconn {0}\ndefaults\n mode http\n maxconn {0}\n timeout connect 5s\n timeout client 600s\n \
             timeout server 600s\n timeout tunnel 600s\nfrontend f\n bind {address}\n default_backend b\n\
             backend b\n server s {origin}\n",
            sockets + 400
        ),
    );
    let mut command = Command::new(program);
    let process = Process::start("haproxy", command.arg("-db").arg("-f").arg(path).stdin(Stdio::null()));
    listening("haproxy", process, folder, address)
}

fn listening(name: &str, process: Process, folder: TempFolder, address: SocketAddr) -> Running {
    wait_for(&format!("{name} to listen"), || TcpStream::connect(address).ok());
    (process.id(), address, Some((process, folder)))
}

/// Fewer where the limit on descriptors is lower.
const SOCKETS_MAX: u32 = 10_000;
/// Descriptors for everything else.
const SPARE: u64 = 1000;
const IDLE: &str = "no visitor";
