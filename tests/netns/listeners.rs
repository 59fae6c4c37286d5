//! Entry points on the mesh: who reaches them, who is told what, and that nothing of them answers elsewhere.

use super::support::netns::{ADMIN, Cable, Namespace, Node, Side};
use super::support::process::Process;
use super::support::{require, wait_for};
use super::{cable, stock};

/// A hub on the left with entry points on the mesh, a stock client on the right, servers beside the hub.
struct Hub {
    cable: Cable,
    sides: [Side; 2],
    hub: Node,
    client: Node,
    _servers: [Process; 2],
}

impl Hub {
    /// Nothing, with a printed reason, where something is missing. `peer` are further keys of the client at the hub,
    /// `mesh` further keys of the mesh.
    fn start(peer: &str, mesh: &str) -> Option<Self> {
        if !require("curl") || !require("python3") {
            return None;
        }
        let (cable, stock) = (cable(1500)?, stock()?);
        let sides = Side::pair();
        let servers = [server(&cable.left, HTTP_SERVER), server(&cable.left, TCP_SERVER)];
        let hub = Node::adit(&cable.left, [&sides[0], &sides[1]], |interface| {
            configuration(interface, &sides[1], peer, mesh)
        });
        let client = stock.start(&cable.right, &sides[1], &sides[0]);
        let started = Self { cable, sides, hub, client, _servers: servers };
        Some(started)
    }

    fn reconfigure(&self, peer: &str, mesh: &str) {
        self.hub.reconfigure(&configuration(&self.hub.interface, &self.sides[1], peer, mesh));
    }

    /// What the client gets from an address; empty if nothing answers.
    fn ask(&self, url: &str) -> String {
        let arguments = [
            "-s",
            "-m",
            "3",
            "-H",
            "X-Adit-Mesh-Peer: root",
            "-H",
            "x_adit_mesh_groups: admins",
            "-H",
            "Impersonate-User: system:admin",
            url,
        ];
        String::from_utf8_lossy(&self.cable.right.run("curl", &arguments).stdout).into_owned()
    }

    /// The same until something answers: the first packet waits for the handshake.
    #[track_caller]
    fn wait_for(&self, url: &str, wanted: &str) -> String {
        wait_for(&format!("{url} to answer {wanted:?}"), || {
            Some(self.ask(url)).filter(|answer| answer.contains(wanted))
        })
    }

    /// Runs a command of adit beside the hub; what it prints.
    fn adit(&self, arguments: &[&str]) -> String {
        let output = self.cable.left.run(env!("CARGO_BIN_EXE_adit"), arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text + &String::from_utf8_lossy(&output.stderr)
    }

    fn metrics(&self) -> String {
        let url = format!("http://{ADMIN}/metrics");
        String::from_utf8_lossy(&self.cable.left.run("curl", &["-s", &url]).stdout).into_owned()
    }

    /// Seconds since 1970 of the client's last handshake.
    fn handshake(&self) -> String {
        let output = self.cable.right.run("wg", &["show", &self.client.interface, "latest-handshakes"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn configuration(interface: &str, client: &Side, peer: &str, mesh: &str) -> String {
    let key = client.public_key();
    format!(
        r#"entryPoints:
  public: {{ address: ":8080" }}
  admin: {{ address: ":8443", on: mesh, impersonate: true }}
  ssh: {{ address: ":2222", on: mesh }}
http:
  routers:
    shown: {{ rule: "PathPrefix(`/`)", entryPoints: [public, admin], service: shown }}
    admins: {{ rule: "Path(`/who`) && MeshGroup(`admins`)", entryPoints: [admin], service: shown, priority: 1000 }}
    secret: {{ rule: "Path(`/secret`) && !MeshPeer(`laptop`)", entryPoints: [admin], service: shown, priority: 1001 }}
  services:
    shown: {{ loadBalancer: {{ servers: [ {{ url: "http://127.0.0.1:9001" }} ] }} }}
tcp:
  routers:
    shell: {{ rule: "HostSNI(`*`) && MeshGroup(`admins`)", entryPoints: [ssh], service: shell }}
  services:
    shell: {{ loadBalancer: {{ servers: [ {{ address: "127.0.0.1:9002" }} ] }} }}
accessLog: {{ filePath: access.log, format: json }}
admin: {{ address: "{ADMIN}" }}
mesh:
  interface: {interface}
  import: wg.conf
  peers:
    laptop: {{ public-key: "{key}"{peer} }}
{mesh}"#
    )
}

fn server(namespace: &Namespace, script: &str) -> Process {
    let mut server = Process::start("server", namespace.command("python3").args(["-u", "-c", script]));
    server.wait_for_line("listening");
    server
}

#[test]
fn servers_learn_who_of_the_mesh_asks_and_nobody_else_can_claim_it() {
    let Some(hub) = Hub::start(", groups: [admins, ops]", "") else { return };
    let answer = hub.wait_for("http://10.9.0.1:8443/who", "GET /who");
    let told = |name: &str| {
        let line = answer.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
        line.and_then(|line| line.split_once(": ")).map(|(_, value)| value.to_owned())
    };
    assert_eq!(told("x-adit-mesh-peer").as_deref(), Some("laptop"), "{answer}");
    assert_eq!(told("x-adit-mesh-groups").as_deref(), Some("admins,ops"));
    assert_eq!(told("x-adit-mesh-address").as_deref(), Some("10.9.0.2"));
    assert_eq!(told("x-adit-mesh-key").as_deref(), Some(hub.sides[1].public_key()));
    assert_eq!(told("impersonate-user").as_deref(), Some("laptop"));
    assert_eq!(told("impersonate-group").as_deref(), Some("admins"));
    assert!(!answer.contains("root") && !answer.contains("x_adit"), "{answer}");
    // Over IPv6 it is the same peer.
    assert!(hub.wait_for("http://[fd00:9::1]:8443/who", "GET /who").contains("fd00:9::2"));
    // The public entry point takes the claim off and knows nobody.
    let public = hub.wait_for("http://192.0.2.1:8080/who", "GET /who");
    assert!(!public.to_ascii_lowercase().contains("adit-mesh"), "{public}");
    wait_for("the access log to name the peer", || {
        let log = std::fs::read_to_string(hub.hub.folder().join("access.log")).ok()?;
        let named = [r#""MeshPeer":"laptop""#, r#""MeshGroups":"admins,ops""#];
        named.iter().all(|field| log.contains(field)).then_some(())
    });
}

#[test]
fn tcp_routers_ask_for_groups_and_a_reload_changes_them_without_a_handshake() {
    let Some(hub) = Hub::start("", "") else { return };
    hub.wait_for("http://10.9.0.1:8443/", "GET /");
    let handshake = hub.handshake();
    let shell = |hub: &Hub| {
        let script = "import socket; s = socket.create_connection(('10.9.0.1', 2222), 3); s.sendall(b'hello\\n'); \
                      print(s.recv(99).decode())";
        String::from_utf8_lossy(&hub.cable.right.run("python3", &["-c", script]).stdout).into_owned()
    };
    assert!(!shell(&hub).contains("shell says"), "a peer in no group is served");
    hub.reconfigure(", groups: [admins]", "");
    wait_for("the group to be known", || shell(&hub).contains("shell says hello").then_some(()));
    assert_eq!(hub.handshake(), handshake, "an untouched peer has lost its session");
    assert!(
        hub.ask("http://10.9.0.1:8443/secret").contains("x-adit-mesh-peer: laptop") || {
            let answer = hub.ask("http://10.9.0.1:8443/secret").to_ascii_lowercase();
            answer.contains("x-adit-mesh-peer: laptop")
        }
    );
}

#[test]
fn slow_nothing_of_the_mesh_answers_on_any_other_address() {
    let Some(hub) = Hub::start("", "") else { return };
    hub.wait_for("http://10.9.0.1:8443/", "GET /");
    // An attacker on the cable who knows the mesh's addresses and routes them to the hub past the tunnel.
    hub.cable.right.ip(&["route", "add", "10.10.0.0/16", "via", "192.0.2.1"]);
    hub.cable.left.ip(&["addr", "add", "10.10.0.1/32", "dev", "cable"]);
    let scan = |namespace: &Namespace, address: &str, source: &str, ports: &str| -> Vec<u16> {
        let output = namespace.run("python3", &["-c", SCAN, address, source, ports]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().filter_map(|port| port.parse().ok()).collect()
    };
    let right = &hub.cable.right;
    let all = |address: &str| scan(right, address, "", "1-65535");
    assert_eq!(all("192.0.2.1"), [8080], "the cable sees the public entry point alone");
    assert_eq!(all("10.10.0.1"), [8080]);
    assert_eq!(all("2001:db8::1"), [8080]);
    assert_eq!(all("10.9.0.1"), [2222, 8080, 8443], "the tunnel sees the mesh's too");
    // Past the tunnel, straight over the cable, with the mesh's own addresses.
    right.ip(&["link", "set", &hub.client.interface, "down"]);
    right.ip(&["route", "add", "10.9.0.1/32", "via", "192.0.2.1"]);
    assert_eq!(all("10.9.0.1"), [8080]);
    // With a peer's address, which gets no answer at all: it goes into the tunnel.
    right.ip(&["addr", "add", "10.9.0.2/32", "dev", "cable"]);
    hub.cable.left.run("sysctl", &["-q", "-w", "net.ipv4.conf.all.rp_filter=0"]);
    assert_eq!(scan(right, "10.9.0.1", "10.9.0.2", "8080-8450"), Vec::<u16>::new());
    // The hub's own programs reach the socket, are no peers, and get nothing.
    let own = hub.cable.left.run("curl", &["-s", "-m", "3", "http://10.9.0.1:8443/"]);
    assert!(!own.status.success() && own.stdout.is_empty(), "{own:?}");
    let refused = hub.metrics();
    assert!(refused.contains("mesh_peer_unknown"), "{refused}");
}

#[test]
fn the_policy_admits_what_its_rules_say_and_counts_the_rest() {
    let policy = "  policy: { allow: [ { from: admins, to: self, ports: 8443, protocol: tcp } ] }\n";
    let Some(hub) = Hub::start(", groups: [admins]", policy) else { return };
    hub.wait_for("http://10.9.0.1:8443/", "GET /");
    assert!(!hub.cable.right.pings("10.9.0.1"));
    assert_eq!(hub.ask("http://10.9.0.1:8080/"), "", "another port is open");
    let dropped = r#"adit_mesh_drops_total{reason="policy"}"#;
    let metrics = hub.metrics();
    let line = metrics.lines().find(|line| line.starts_with(dropped)).unwrap_or_default();
    assert!(line.rsplit(' ').next().is_some_and(|count| count != "0"), "{line}");
    hub.reconfigure(", groups: [admins]", "  policy: { allow: [ { from: any, to: any } ] }\n");
    hub.cable.right.wait_for_ping("10.9.0.1");
}

#[test]
fn the_mesh_is_seen_by_adit_and_by_wg() {
    let Some(hub) = Hub::start(", groups: [admins]", "") else { return };
    hub.wait_for("http://10.9.0.1:8443/", "GET /");
    let key = hub.sides[1].public_key();
    let shown = hub.adit(&["mesh", "show"]);
    for part in
        [&format!("peer: {key} (laptop)"), "groups: admins", "latest handshake:", "endpoint: 192.0.2.2:"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let wg = hub.cable.left.run("wg", &["show", &hub.hub.interface]);
    let wg = String::from_utf8_lossy(&wg.stdout).into_owned();
    for part in
        [&format!("public key: {}", hub.sides[0].public_key()), &format!("peer: {key}"), "latest handshake:"]
    {
        assert!(wg.contains(part), "{part}: {wg}");
    }
    assert!(!hub.cable.left.run("wg", &["set", &hub.hub.interface, "listen-port", "1"]).status.success());
    let pinged = hub.adit(&["mesh", "ping", "laptop", "-c", "1"]);
    assert!(pinged.contains("1 sent, 0 lost"), "{pinged}");
    assert!(hub.adit(&["mesh", "ping", "nobody"]).contains("there is no peer `nobody`"));
    assert!(hub.adit(&["status"]).contains("1 peers, 1 with a session"));
    assert!(hub.metrics().contains(r#"adit_mesh_peer_reachable{peer="laptop"} 1"#));
}

#[test]
fn a_mesh_comes_and_goes_with_a_reload_and_takes_its_entry_points_along() {
    let Some(hub) = Hub::start("", "") else { return };
    hub.wait_for("http://10.9.0.1:8443/", "GET /");
    let whole = configuration(&hub.hub.interface, &hub.sides[1], "", "");
    let without: String = whole
        .split("mesh:\n")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| {
            !line.contains("on: mesh") && !line.contains("admin]") && !line.contains("entryPoints: [ssh]")
        })
        .map(|line| format!("{}\n", line.replace("[public, admin]", "[public]")))
        .collect();
    hub.hub.reconfigure(&without);
    wait_for("the interface to go", || {
        let gone = !hub.cable.left.run("ip", &["link", "show", &hub.hub.interface]).status.success();
        gone.then_some(())
    });
    assert_eq!(hub.adit(&["mesh", "show"]).trim(), format!("the process behind {ADMIN} has no mesh"));
    assert!(!hub.ask("http://192.0.2.1:8080/").is_empty());
    hub.hub.reconfigure(&whole);
    hub.wait_for("http://10.9.0.1:8443/", "GET /");
    // What needs a restart is refused by name and changes nothing.
    hub.hub.reconfigure(&whole.replace(&format!("interface: {}", hub.hub.interface), "interface: other0"));
    wait_for("the refusal", || {
        hub.adit(&["status"]).contains("`mesh.interface` changes only with a restart").then_some(())
    });
    assert!(!hub.ask("http://10.9.0.1:8443/").is_empty());
}

/// Answers each request with its head.
const HTTP_SERVER: &str = "
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = (self.requestline + '\\n' + str(self.headers)).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = ThreadingHTTPServer(('127.0.0.1', 9001), Handler)
print('listening')
server.serve_forever()
";

/// Answers each connection's first bytes.
const TCP_SERVER: &str = "
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b'shell says ' + self.request.recv(99))
socketserver.ThreadingTCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer(('127.0.0.1', 9002), Handler)
print('listening')
server.serve_forever()
";

/// Prints the TCP ports of an address that accept connections; a port that is silent is asked three times.
const SCAN: &str = "
import selectors, socket, sys
address, source, ports = sys.argv[1:]
family = socket.AF_INET6 if ':' in address else socket.AF_INET
def scan(ports):
    opened, silent, selector = [], [], selectors.DefaultSelector()
    for port in ports:
        s = socket.socket(family, socket.SOCK_STREAM)
        s.setblocking(False)
        if source:
            s.bind((source, 0))
        s.connect_ex((address, port))
        selector.register(s, selectors.EVENT_WRITE, port)
    while selector.get_map():
        ready = selector.select(1)
        for key in [key for key, _ in ready] or list(selector.get_map().values()):
            if not ready:
                silent.append(key.data)
            elif key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                opened.append(key.data)
            selector.unregister(key.fileobj)
            key.fileobj.close()
    return opened, silent
start, end = map(int, ports.split('-'))
opened = []
for first in range(start, end + 1, 512):
    ports = range(first, min(first + 512, end + 1))
    for _ in range(3):
        more, ports = scan(ports)
        opened += more
print(*sorted(opened))
";
