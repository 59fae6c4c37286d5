//! Reverse proxies in front of one origin: adit, nginx, haproxy, caddy and traefik, all with as many threads as the machine
//! has cores, routing by host, and writing an access log in batches where they can.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use super::load::{Scheme, Transfer, bulk, progress, requests, requests_h2};
use super::machine::peer;
use super::support::adit::Adit;
use super::support::certificates::Certificates;
use super::support::nginx::Nginx;
use super::support::process::Process;
use super::support::{TempFolder, find_program, free_tcp_port, wait_for};
use super::table::{ADIT, Against, Bound, Figure, Section};
use super::{RELAY, ROUNDS, in_turn, origin};

/// Measures requests and bytes through reverse proxies.
pub(crate) fn measure() -> Section {
    let mut section = Section::new(
        "Reverse proxy",
        "client → proxy → origin on loopback. CPU is the proxy's. All route by host, keep connections to the origin open, use \
         two threads or processes (nginx also with one) and write an access log; adit also counts every request by router, \
         service and entry point. `relay` copies bytes between two sockets by read and write, 256 KiB at a time. For bulk, nginx has \
         buffers of 256 KiB as adit has (`proxy_buffers` and its like, in that server alone), and haproxy is a second process with \
         a `tune.bufsize` of as much, which no single backend can have; both are the cheaper for it, where `option splice-auto` \
         gained haproxy nothing. caddy and traefik are as they come.",
    );
    let small = Nginx::start("keepalive_requests 1000000000;");
    small.serve_file("1k", vec![b'x'; 1024]);
    let origins = Origins { small: small.address(), large: origin::start() };
    let certificates = Certificates::for_names(&[SMALL_HOST, LARGE_HOST]);
    let proxies = proxies(&mut section, &origins, &certificates);
    for round in 0..ROUNDS {
        for (_, proxy) in in_turn(&proxies, round) {
            progress(&format!("ingress, round {} of {ROUNDS}: {}", round + 1, proxy.name));
            if let Some(tls) = proxy.small.tls {
                let processes = [proxy.small.process];
                let url = format!("http://{}/1k", proxy.small.clear);
                section.add(H1, proxy.name, requests(&url, SMALL_HOST, 64, &processes));
                let url = format!("https://{tls}/1k");
                section.add(H2, proxy.name, requests_h2(&url, SMALL_HOST, 100_000, (8, 8), &processes));
            }
            let processes = [proxy.large.process];
            if let Some(tls) = proxy.large.tls {
                for (workload, upload) in [(TLS_DOWN, false), (TLS_UP, true)] {
                    let sample = bulk(Scheme::Https(tls), LARGE_HOST, transfer(upload, 2), &processes);
                    section.add(workload, proxy.name, sample);
                }
            }
            let clear = proxy.large.clear;
            for (workload, upload) in [(DOWN, false), (UP, true)] {
                let sample = bulk(Scheme::Http(clear), LARGE_HOST, transfer(upload, 4), &processes);
                section.add(workload, proxy.name, sample);
            }
            if let Some(raw) = proxy.raw {
                let sample = bulk(Scheme::Http(raw), LARGE_HOST, transfer(false, 4), &processes);
                section.add(RAW, proxy.name, sample);
            }
        }
    }
    ask(&mut section);
    section
}

fn transfer(upload: bool, gib: u64) -> Transfer {
    Transfer { upload, streams: 1, gib }
}

fn ask(section: &mut Section) {
    section.ask(H1, Figure::CpuSecondsPer100k, Against::Best(NGINX), Bound::AtMost(1.05));
    section.ask(H1, Figure::CpuSecondsPer100k, Against::Best(&["haproxy"]), Bound::AtMost(1.0));
    section.ask(H2, Figure::CpuSecondsPer100k, Against::Best(&["haproxy"]), Bound::AtMost(1.05));
    section.ask(H2, Figure::CpuSecondsPer100k, Against::Best(NGINX), Bound::AtMost(1.0));
    for workload in [DOWN, UP, RAW] {
        section.ask(workload, Figure::CpuSecondsPerGib, Against::Best(&["relay"]), Bound::AtMost(1.0));
    }
    for workload in [TLS_DOWN, TLS_UP] {
        section.ask(
            workload,
            Figure::CpuSecondsPerGib,
            Against::Best(&["nginx", "nginx, 1 worker", "haproxy"]),
            Bound::AtMost(1.0),
        );
    }
}

struct Origins {
    small: SocketAddr,
    large: SocketAddr,
}

struct Proxy {
    name: &'static str,
    small: Place,
    /// Usually the same.
    large: Place,
    /// A relay of TCP that looks at nothing, to the origin of bulk.
    raw: Option<SocketAddr>,
    /// Ends with the bench.
    _running: Box<dyn std::any::Any>,
}

/// Where visitors of one kind go.
#[derive(Clone, Copy)]
struct Place {
    process: u32,
    clear: SocketAddr,
    /// HTTP/2 and HTTP/1.1 over TLS.
    tls: Option<SocketAddr>,
}

fn proxies(section: &mut Section, origins: &Origins, certificates: &Certificates) -> Vec<Proxy> {
    let mut all = vec![adit(origins, certificates)];
    all.push(nginx("nginx", "auto", origins, certificates));
    all.push(nginx("nginx, 1 worker", "1", origins, certificates));
    match find_program("haproxy") {
        Some(program) => all.push(haproxy(&program, origins, certificates)),
        None => section.absent("haproxy", "not on PATH"),
    }
    match find_program("caddy") {
        Some(program) => all.push(caddy(&program, origins, certificates)),
        None => section.absent("caddy", "not on PATH"),
    }
    match peer("TRAEFIK", "traefik") {
        Some(program) => all.push(traefik(&program, origins, certificates)),
        None => section.absent("traefik", "neither on PATH nor in TRAEFIK"),
    }
    all.push(relay_process(origins));
    all
}

fn adit(origins: &Origins, certificates: &Certificates) -> Proxy {
    let (cert, key) = (certificates.certificate(), certificates.key());
    let log = TempFolder::new("log");
    let mut adit = Adit::start(
        "adit",
        &format!(
            "entryPoints:\n  web: {{ address: \"127.0.0.1:0\", asDefault: true }}\n  \
             tls: {{ address: \"127.0.0.1:0\", asDefault: true, http: {{ tls: {{}} }} }}\n  \
             raw: {{ address: \"127.0.0.1:0\" }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
             accessLog: {{ filePath: {}, format: common }}\n\
             metrics: {{ prometheus: {{ addRoutersLabels: true }} }}\nhttp:\n{}\
             tcp:\n  routers: {{ raw: {{ entryPoints: [ raw ], rule: \"HostSNI(`*`)\", service: raw }} }}\n  \
             services: {{ raw: {{ loadBalancer: {{ servers: [ {{ address: \"{}\" }} ] }} }} }}\n\
             tls: {{ certificates: [ {{ certFile: {}, keyFile: {} }} ] }}\n",
            log.path().join("access.log").display(),
            routers(origins, ""),
            origins.large,
            cert.display(),
            key.display(),
        ),
    );
    let [clear, tls, raw] = ["web", "tls", "raw"].map(|name| adit.entry_point(name));
    let process = adit.process().id();
    let place = Place { process, clear, tls: Some(tls) };
    Proxy { name: ADIT, small: place, large: place, raw: Some(raw), _running: Box::new((adit, log)) }
}

/// `http` in Traefik's words; `further` is added to each router.
fn routers(origins: &Origins, further: &str) -> String {
    let service = |name: &str, address: SocketAddr| {
        format!("    {name}: {{ loadBalancer: {{ servers: [ {{ url: \"http://{address}\" }} ] }} }}\n")
    };
    format!(
        "  routers:\n    small: {{ rule: \"Host(`{SMALL_HOST}`)\", service: small{further} }}\n    \
         large: {{ rule: \"Host(`{LARGE_HOST}`)\", service: large{further} }}\n  services:\n{}{}",
        service("small", origins.small),
        service("large", origins.large)
    )
}

fn nginx(name: &'static str, workers: &str, origins: &Origins, certificates: &Certificates) -> Proxy {
    let folder = TempFolder::new("nginx");
    let [clear, tls] = [local(), local()];
    let place = folder.path().display();
    let server = |host: &str, upstream: &str, further: &str| {
        format!(
            "server {{ listen {clear}; listen {tls} ssl http2; server_name {host}; ssl_certificate {}; \
             ssl_certificate_key {}; location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_request_buffering off; \
             proxy_max_temp_file_size 0; {further} }} }}\n",
            certificates.certificate().display(),
            certificates.key().display(),
        )
    };
    let path = folder.write(
        "nginx.conf",
        format!(
            "daemon off; worker_processes {workers}; pid {place}/pid; error_log {place}/error.log;\n\
             events {{ worker_connections 4096; }}\nhttp {{\n access_log {place}/access.log combined buffer=64k flush=1s;\n\
             keepalive_requests 1000000000; client_max_body_size 0; client_body_temp_path {place}/b; proxy_temp_path \
             {place}/p; fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n\
             upstream small {{ server {}; keepalive 128; keepalive_requests 1000000000; }}\n\
             upstream large {{ server {}; keepalive 16; }}\n{}{} }}\n",
            origins.small,
            origins.large,
            server(SMALL_HOST, "small", ""),
            server(LARGE_HOST, "large", NGINX_BULK),
        ),
    );
    let mut command = Command::new(find_program("nginx").expect("main looked"));
    command.args(["-e", &format!("{place}/error.log"), "-p", &format!("{place}"), "-c"]).arg(path);
    let process = Process::start("nginx", command.stdin(Stdio::null()));
    proxy(name, process, folder, clear, tls)
}

fn haproxy(program: &Path, origins: &Origins, certificates: &Certificates) -> Proxy {
    let small = haproxy_with("", program, origins, certificates);
    let large = haproxy_with(HAPROXY_BULK, program, origins, certificates);
    Proxy { large: large.large, _running: Box::new((small._running, large._running)), ..small }
}

/// haproxy with `further` lines for all of it.
fn haproxy_with(further: &str, program: &Path, origins: &Origins, certificates: &Certificates) -> Proxy {
    let folder = TempFolder::new("haproxy");
    let [clear, tls] = [local(), local()];
    let pem = [certificates.certificate(), certificates.key()].map(|file| std::fs::read(file).expect("PEM"));
    let pem = folder.write("pem", pem.concat());
    let path = folder.write(
        "haproxy.cfg",
        format!(
            "global\n log stdout format raw local0\n{further}defaults\n mode http\n log global\n option httplog\n timeout connect 5s\n \
             timeout client 30s\n timeout server 30s\n http-reuse always\nfrontend f\n bind {clear}\n \
             bind {tls} ssl crt {} alpn h2,http/1.1\n use_backend large if {{ hdr(host) -i {LARGE_HOST} }}\n \
             use_backend small if {{ hdr(host) -i {SMALL_HOST} }}\n\
             backend small\n server s {} pool-max-conn 128\nbackend large\n server s {}\n",
            pem.display(),
            origins.small,
            origins.large
        ),
    );
    let mut command = Command::new(program);
    let process = Process::start("haproxy", command.arg("-db").arg("-f").arg(path).stdin(Stdio::null()));
    proxy("haproxy", process, folder, clear, tls)
}

fn caddy(program: &Path, origins: &Origins, certificates: &Certificates) -> Proxy {
    let folder = TempFolder::new("caddy");
    let [clear, tls] = [local(), local()];
    let log = folder.path().join("access.log");
    // Sites without a name: one with a name answers other names with an empty page.
    let site = |scheme: &str, port: u16, further: &str| {
        format!(
            "{scheme}://:{port} {{\n bind 127.0.0.1\n{further} log {{\n output file {}\n }}\n @large host {LARGE_HOST}\n \
             @small host {SMALL_HOST}\n reverse_proxy @large {}\n reverse_proxy @small {}\n}}\n",
            log.display(),
            origins.large,
            origins.small
        )
    };
    let (cert, key) = (certificates.certificate(), certificates.key());
    let keys = format!(" tls {} {}\n", cert.display(), key.display());
    let sites = [site("http", clear.port(), ""), site("https", tls.port(), &keys)].concat();
    let path = folder.write("Caddyfile", format!("{{\n admin off\n auto_https off\n}}\n{sites}"));
    let mut command = Command::new(program);
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(path).stdin(Stdio::null());
    proxy("caddy", Process::start("caddy", &mut command), folder, clear, tls)
}

fn traefik(program: &Path, origins: &Origins, certificates: &Certificates) -> Proxy {
    let folder = TempFolder::new("traefik");
    let [clear, tls] = [local(), local()];
    let twice = ["", ", tls: {}"].map(|further| routers(origins, further));
    let (routers, services) = twice[0].split_once("  services:").expect("it has both");
    let secure = twice[1].split_once("  services:").expect("it has both").0;
    let secure = secure.trim_start_matches("  routers:\n").replace("    small:", "    small-tls:");
    let secure = secure.replace("    large:", "    large-tls:");
    let dynamic = folder.write(
        "dynamic.yml",
        format!(
            "http:\n{routers}{secure}  services:{services}tls: {{ certificates: [ {{ certFile: {}, keyFile: {} }} ] }}\n",
            certificates.certificate().display(),
            certificates.key().display()
        ),
    );
    let mut command = Command::new(program);
    command.args([format!("--entryPoints.web.address={clear}"), format!("--entryPoints.tls.address={tls}")]);
    command.arg(format!("--providers.file.filename={}", dynamic.display()));
    command.arg(format!("--accessLog.filePath={}", folder.path().join("access.log").display()));
    command.args(["--accessLog.bufferingSize=100", "--global.checkNewVersion=false"]);
    command.args([
        "--global.sendAnonymousUsage=false",
        "--entryPoints.web.transport.respondingTimeouts.readTimeout=0",
    ]);
    command.arg("--entryPoints.tls.transport.respondingTimeouts.readTimeout=0");
    let process = Process::start("traefik", command.stdin(Stdio::null()));
    proxy("traefik", process, folder, clear, tls)
}

fn proxy(
    name: &'static str,
    process: Process,
    folder: TempFolder,
    clear: SocketAddr,
    tls: SocketAddr,
) -> Proxy {
    wait_for(&format!("{name} to listen"), || TcpStream::connect(tls).ok());
    let id = process.id();
    let place = Place { process: id, clear, tls: Some(tls) };
    Proxy { name, small: place, large: place, raw: None, _running: Box::new((process, folder)) }
}

/// This program again, as a relay to the origin of bulk.
fn relay_process(origins: &Origins) -> Proxy {
    let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
    command.args([RELAY, &origins.large.to_string()]).stdin(Stdio::null());
    let mut process = Process::start("relay", &mut command);
    let line = process.wait_for_line("127.0.0.1:");
    let clear: SocketAddr = line.trim().parse().expect("the relay says where it listens");
    let id = process.id();
    let place = Place { process: id, clear, tls: None };
    Proxy { name: "relay", small: place, large: place, raw: Some(clear), _running: Box::new(process) }
}

/// Copies between visitors and `to` until it is killed.
pub(crate) fn relay(to: &str) -> ExitCode {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    println!("{}", listener.local_addr().expect("a bound socket has an address"));
    let _ = std::io::stdout().flush();
    for visitor in listener.incoming().flatten() {
        let Ok(origin) = TcpStream::connect(to) else { return ExitCode::FAILURE };
        let ways = [(visitor.try_clone(), origin.try_clone()), (Ok(origin), Ok(visitor))];
        for (from, to) in ways {
            if let (Ok(from), Ok(to)) = (from, to) {
                thread::spawn(move || copy(from, to));
            }
        }
    }
    ExitCode::SUCCESS
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; RELAY_BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()))
}

/// The cheapest of them is what adit is held against.
const NGINX: &[&str] = &["nginx", "nginx, 1 worker"];
/// As much as a batch of adit's body is; a default of 8 buffers of 4 KiB costs nginx a call of each kind for 4 KiB.
const NGINX_BULK: &str = "proxy_buffer_size 256k; proxy_buffers 4 256k; proxy_busy_buffers_size 512k; \
                          client_body_buffer_size 256k;";
const HAPROXY_BULK: &str = " tune.bufsize 262144\n";
const RELAY_BUFFER: usize = 256 * 1024;
const SMALL_HOST: &str = "bench.test";
const LARGE_HOST: &str = "bulk.test";
const H1: &str = "HTTP/1.1, 1 KiB, 64 connections";
const H2: &str = "HTTP/2 over TLS, 1 KiB, 8 connections of 8";
const DOWN: &str = "HTTP/1.1 download, 4 GiB";
const UP: &str = "HTTP/1.1 upload, 4 GiB";
const TLS_DOWN: &str = "TLS download, 2 GiB";
const TLS_UP: &str = "TLS upload, 2 GiB";
const RAW: &str = "TCP router, 4 GiB";
