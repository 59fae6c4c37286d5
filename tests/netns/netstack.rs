//! The mesh without a TUN device: adit without any capability, a stock client, and the same entry points.

use std::net::IpAddr;

use super::support::netns::{ADMIN, Cable, Engine, Iperf, Namespace, Node, Side};
use super::support::process::Process;
use super::support::{require, wait_for};
use super::{cable, stock};

/// adit on the left in netstack mode, a stock client on the right, servers beside adit.
struct Hub {
    cable: Cable,
    hub: Node,
    client: Node,
    _servers: Vec<Process>,
}

impl Hub {
    fn start() -> Option<Self> {
        if !["curl", "python3", "setpriv"].iter().all(|program| require(program)) {
            return None;
        }
        let (cable, stock): (Cable, Engine) = (cable(1500)?, stock()?);
        let sides = Side::pair();
        let servers = [HTTP_SERVER, TCP_SERVER, UDP_SERVER].map(|script| server(&cable.left, script));
        let hub = Node::adit_without_privileges(&cable.left, [&sides[0], &sides[1]], |interface| {
            configuration(interface, sides[1].public_key())
        });
        let client = stock.start(&cable.right, &sides[1], &sides[0]);
        let started = Self { cable, hub, client, _servers: servers.into() };
        started.wait_for("http://10.9.0.1:8443/", "GET /");
        Some(started)
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let arguments = [&["-s", "-m", "10"], arguments].concat();
        String::from_utf8_lossy(&self.cable.right.run("curl", &arguments).stdout).into_owned()
    }

    fn python(&self, script: &str) -> String {
        let output = self.cable.right.run("python3", &["-c", script]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[track_caller]
    fn wait_for(&self, url: &str, wanted: &str) -> String {
        wait_for(&format!("{url} to answer {wanted:?}"), || {
            Some(self.curl(&["-k", url])).filter(|answer| answer.contains(wanted))
        })
    }

    fn metrics(&self) -> String {
        let url = format!("http://{ADMIN}/metrics");
        String::from_utf8_lossy(&self.cable.left.run("curl", &["-s", &url]).stdout).into_owned()
    }
}

fn configuration(interface: &str, client: &str) -> String {
    format!(
        r#"entryPoints:
  admin: {{ address: ":8443", on: mesh }}
  ssh: {{ address: ":2222", on: mesh }}
  speed: {{ address: ":5201", on: mesh }}
  dns: {{ address: ":5300/udp", on: mesh }}
  outside: {{ address: "127.0.0.1:8081" }}
  raw: {{ address: "127.0.0.1:8082" }}
  far: {{ address: "127.0.0.1:5301/udp" }}
http:
  routers:
    shown: {{ rule: "PathPrefix(`/`)", entryPoints: [admin], service: shown }}
    behind: {{ rule: "PathPrefix(`/`)", entryPoints: [outside], service: behind }}
    secure: {{ rule: "PathPrefix(`/`)", entryPoints: [admin], service: shown, tls: {{}} }}
  services:
    shown: {{ loadBalancer: {{ servers: [ {{ url: "http://127.0.0.1:9001" }} ] }} }}
    behind: {{ loadBalancer: {{ servers: [ {{ url: "http://10.9.0.2:9001" }} ] }} }}
tcp:
  routers:
    raw: {{ rule: "HostSNI(`*`)", entryPoints: [raw], service: raw }}
    shell: {{ rule: "HostSNI(`*`) && MeshGroup(`admins`)", entryPoints: [ssh], service: shell }}
    speed: {{ rule: "HostSNI(`*`)", entryPoints: [speed], service: speed }}
  services:
    shell: {{ loadBalancer: {{ servers: [ {{ address: "127.0.0.1:9002" }} ] }} }}
    speed: {{ loadBalancer: {{ servers: [ {{ address: "127.0.0.1:5201" }} ] }} }}
    raw: {{ loadBalancer: {{ servers: [ {{ address: "[fd00:9::2]:9002" }} ] }} }}
udp:
  routers:
    dns: {{ entryPoints: [dns], service: dns }}
    far: {{ entryPoints: [far], service: far }}
  services:
    dns: {{ loadBalancer: {{ servers: [ {{ address: "127.0.0.1:9003" }} ] }} }}
    far: {{ loadBalancer: {{ servers: [ {{ address: "10.9.0.2:9003" }} ] }} }}
admin: {{ address: "{ADMIN}" }}
mesh:
  mode: netstack
  interface: {interface}
  import: wg.conf
  peers:
    laptop: {{ public-key: "{client}", groups: [admins] }}
"#
    )
}

fn server(namespace: &Namespace, script: &str) -> Process {
    let mut server = Process::start("server", namespace.command("python3").args(["-u", "-c", script]));
    server.wait_for_line("listening");
    server
}

#[test]
fn http_and_https_tcp_and_udp_are_served_without_an_interface() {
    let Some(hub) = Hub::start() else { return };
    let interfaces = hub.cable.left.run("ip", &["-o", "link"]);
    let interfaces = String::from_utf8_lossy(&interfaces.stdout).into_owned();
    assert!(!interfaces.contains(&hub.hub.interface), "there is a TUN device: {interfaces}");
    for address in ["10.9.0.1", "[fd00:9::1]"] {
        let plain = hub.curl(&[&format!("http://{address}:8443/who")]).to_ascii_lowercase();
        assert!(plain.contains("get /who") && plain.contains("x-adit-mesh-peer: laptop"), "{plain}");
        let h2 = hub.curl(&["-k", "-w", " %{http_version}", &format!("https://{address}:8443/tls")]);
        assert!(h2.contains("GET /tls") && h2.ends_with(" 2"), "{h2}");
    }
    // A client that ends first still gets the answer: half-close in both directions.
    let whole = hub.python(
        "import socket; s = socket.create_connection(('10.9.0.1', 2222), 5); s.sendall(b'x' * 300000); \
         s.shutdown(socket.SHUT_WR); data = b''\nwhile True:\n    part = s.recv(65536)\n    if not part: break\n    \
         data += part\nprint(len(data), data[:10])",
    );
    assert_eq!(whole, "300011 b'shell says'");
    let udp = hub.python(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); \
         s.sendto(b'ask', ('10.9.0.1', 5300)); print(s.recv(99))",
    );
    assert_eq!(udp, "b'udp says ask'");
    hub.cable.right.wait_for_ping("10.9.0.1");
    hub.cable.right.wait_for_ping("fd00:9::1");
}

#[test]
fn servers_behind_a_peer_are_reached_through_the_mesh() {
    let Some(hub) = Hub::start() else { return };
    let _servers = [
        server(&hub.cable.right, &HTTP_SERVER.replace("127.0.0.1", "10.9.0.2")),
        server(&hub.cable.right, &UDP_SERVER.replace("127.0.0.1", "10.9.0.2")),
        server(&hub.cable.right, &TCP_SERVER.replace("('127.0.0.1'", "('::'").replace("AF_INET", "AF_INET6")),
    ];
    let answer = hub.cable.left.run("curl", &["-s", "-m", "10", "http://127.0.0.1:8081/behind"]);
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.contains("GET /behind"), "{answer}");
    let script = "import socket; s = socket.create_connection(('127.0.0.1', 8082), 5); s.sendall(b'ask'); \
                  s.shutdown(socket.SHUT_WR); print(s.recv(99).decode())";
    let raw = hub.cable.left.run("python3", &["-c", script]);
    assert_eq!(String::from_utf8_lossy(&raw.stdout).trim(), "shell says ask");
    let script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); \
                  s.sendto(b'ask', ('127.0.0.1', 5301)); print(s.recv(99).decode())";
    let udp = hub.cable.left.run("python3", &["-c", script]);
    assert_eq!(String::from_utf8_lossy(&udp.stdout).trim(), "udp says ask");
    assert!(hub.metrics().contains(r#"adit_mesh_stack_connections_total{side="connected"} 2"#));
}

#[test]
fn what_was_answered_before_the_end_is_delivered() {
    let Some(mut hub) = Hub::start() else { return };
    // The client takes its time: the last bytes are in the stack's buffers when the process has nothing left to do.
    let script = "import socket, time\ns = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)\n\
                  s.connect(('10.9.0.1', 2222)); s.sendall(b'x' * 200000); s.shutdown(socket.SHUT_WR)\n\
                  first = s.recv(100); print('answered', flush=True)\ncount = len(first)\n\
                  while True:\n    time.sleep(0.01)\n    part = s.recv(4096)\n    if not part: break\n    \
                  count += len(part)\nprint('received', count)";
    let mut visitor =
        Process::start("visitor", hub.cable.right.command("python3").args(["-u", "-c", script]));
    visitor.wait_for_line("answered");
    hub.hub.process.signal("TERM");
    assert_eq!(visitor.wait_for_line("received"), "received 200011");
    hub.hub.process.wait();
}

#[test]
fn closed_ports_refuse_at_once_and_are_counted() {
    let Some(hub) = Hub::start() else { return };
    let refused = hub.python(
        "import socket\ntry:\n    socket.create_connection(('10.9.0.1', 81), 10)\nexcept ConnectionRefusedError:\n    print('refused')\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10); s.connect(('10.9.0.1', 82)); s.send(b'x')\n\
         try:\n    s.recv(9)\nexcept ConnectionRefusedError:\n    print('unreachable')",
    );
    assert_eq!(refused, "refused\nunreachable");
    let metrics = hub.metrics();
    for line in [
        r#"adit_mesh_stack_drops_total{reason="port_closed"} 1"#,
        r#"adit_mesh_stack_drops_total{reason="udp_port_closed"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn slow_streams_run_in_each_direction_and_survive_loss() {
    let Some(hub) = Hub::start() else { return };
    let address: IpAddr = "10.9.0.1".parse().unwrap();
    for (arguments, mib, loss) in [
        (&["-n", "64M"][..], 64, false),
        (&["-n", "64M", "-R"][..], 64, false),
        (&["-n", "4M", "-R"][..], 4, true),
    ] {
        if loss {
            hub.cable.left.filter("output", &["udp sport 51820 numgen random mod 1000 < 5 drop"]);
        }
        let server = Iperf::serve(&hub.cable.left);
        let report = server.run(&hub.cable.right, address, arguments);
        let received = Iperf::received_mib(&report);
        assert!(received >= mib / 2, "{arguments:?}: {received} MiB of {mib}");
    }
    assert!(!hub.client.interface.is_empty());
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

/// Answers each connection with all it was sent, once that has ended.
const TCP_SERVER: &str = "
import socket, socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b'shell says ' + self.rfile.read())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer.address_family = socket.AF_INET
server = socketserver.ThreadingTCPServer(('127.0.0.1', 9002), Handler)
print('listening')
server.serve_forever()
";

/// Answers each datagram.
const UDP_SERVER: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 9003))
print('listening')
while True:
    data, address = s.recvfrom(2048)
    s.sendto(b'udp says ' + data, address)
";
