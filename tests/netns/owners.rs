//! Who an address of the mesh belongs to: over UDP and HTTP/3 as over TCP, and while it changes hands.

use super::support::certificates::Certificates;
use super::support::netns::{ADMIN, Cable, Namespace, Node, Side};
use super::support::process::Process;
use super::support::{TempFolder, project_root, require, require_python_with, wait_for};
use super::{cable, stock};

/// A hub on the left, a stock client on the right, servers beside the hub.
struct Hub {
    cable: Cable,
    sides: [Side; 2],
    hub: Node,
    client: Node,
    /// Says when a connection opens and closes.
    shell: Process,
    _datagrams: Process,
}

/// What differs between the configurations of one test.
#[derive(Clone, Copy, Default)]
struct Change<'a> {
    /// Keys of `mesh`.
    mesh: &'a str,
    /// Keys of the client at the hub.
    client: &'a str,
    /// Other peers.
    peers: &'a str,
    /// Whole sections.
    sections: &'a str,
}

impl Hub {
    /// Nothing, with a printed reason, where something is missing.
    fn start(change: Change<'_>) -> Option<Self> {
        if !require("curl") || !require("python3") {
            return None;
        }
        let (cable, stock) = (cable(1500)?, stock()?);
        let sides = Side::pair();
        let shell = server(&cable.left, SHELL);
        let datagrams = server(&cable.left, DATAGRAMS);
        let hub = Node::adit(&cable.left, [&sides[0], &sides[1]], |interface| {
            configuration(interface, &sides[1], change)
        });
        let client = stock.start(&cable.right, &sides[1], &sides[0]);
        let started = Self { cable, sides, hub, client, shell, _datagrams: datagrams };
        wait_for("the first packet to pass", || (!started.shell().is_empty()).then_some(()));
        Some(started)
    }

    fn reconfigure(&self, change: Change<'_>) {
        self.hub.reconfigure(&configuration(&self.hub.interface, &self.sides[1], change));
    }

    /// What the right side's Python prints.
    fn python(&self, script: &str) -> String {
        python(&self.cable.right, script)
    }

    /// What the shell's entry point answers; empty if it does not.
    fn shell(&self) -> String {
        self.python(
            "import socket\ntry:\n s = socket.create_connection(('10.9.0.1', 2222), 3); s.sendall(b'hello')\n \
             s.settimeout(3); print(s.recv(99).decode())\nexcept OSError: pass",
        )
    }

    /// What comes back for a datagram within a second; empty if nothing does.
    fn datagram(&self, from: &Namespace, to: &str, port: u16) -> String {
        python(
            from,
            &format!(
                "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)\n\
                 try:\n s.sendto(b'hello', ('{to}', {port})); print(s.recv(99).decode())\nexcept OSError: pass"
            ),
        )
    }

    /// Waits for an answer to a datagram: one may be lost.
    #[track_caller]
    fn wait_for_datagram(&self, from: &Namespace, to: &str, port: u16) {
        wait_for("the datagram to be answered", || {
            (self.datagram(from, to, port) == "server says hello").then_some(())
        });
    }

    /// A connection of the right side that stays.
    fn visitor(&mut self) -> Process {
        let script = "import socket\ns = socket.create_connection(('10.9.0.1', 2222), 3)\ns.sendall(b'stay')\n\
                      print(s.recv(99).decode(), flush=True)\ns.settimeout(60)\ns.recv(99)";
        let mut command = self.cable.right.command("python3");
        let mut visitor = Process::start("visitor", command.args(["-u", "-c", script]));
        visitor.wait_for_line("server says stay");
        self.shell.wait_for_line("opened stay");
        visitor
    }

    /// The status of the page for administrators, asked for by the right side.
    fn page(&self) -> String {
        let arguments = ["-sk", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}"];
        let arguments = [&arguments[..], &["https://10.9.0.1:8443/ping"]].concat();
        String::from_utf8_lossy(&self.cable.right.run("curl", &arguments).stdout).into_owned()
    }

    /// Asks for a reload that is to be refused, and waits for that; why it was.
    #[track_caller]
    fn refuse(&self, text: &str) -> String {
        let refused = || self.cable.left.metric(r#"adit_config_reloads_total{result="refused"}"#);
        let before = refused();
        self.hub.reconfigure(text);
        wait_for("the refusal", || (refused() > before).then_some(()));
        let status = self.cable.left.run("curl", &["-s", &format!("http://{ADMIN}/api/status")]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["reload_problem"].as_str().unwrap_or_default().to_owned()
    }

    fn adit(&self, arguments: &[&str]) -> String {
        let output = self.cable.left.run(env!("CARGO_BIN_EXE_adit"), arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text + &String::from_utf8_lossy(&output.stderr)
    }

    fn refused(&self, reason: &str) -> u64 {
        self.cable.left.metric(&format!(r#"adit_proxy_refused_total{{reason="{reason}"}}"#))
    }

    /// How many reloads were taken.
    fn reloads(&self) -> u64 {
        self.cable.left.metric(r#"adit_config_reloads_total{result="ok"}"#)
    }

    /// Reloads, and waits until that is done.
    #[track_caller]
    fn take(&self, change: Change<'_>) {
        let before = self.reloads();
        self.reconfigure(change);
        wait_for("the reload", || (self.reloads() > before).then_some(()));
    }
}

fn configuration(interface: &str, client: &Side, change: Change<'_>) -> String {
    let Change { mesh, client: keys, peers, sections } = change;
    let key = client.public_key();
    let http3 = if mesh.contains("netstack") { "" } else { ", http3: {}" };
    format!(
        r#"entryPoints:
  admin: {{ address: ":8443", on: mesh{http3} }}
  ssh: {{ address: ":2222", on: mesh }}
  dns: {{ address: ":5300/udp", on: mesh }}
  open: {{ address: ":5301/udp", on: mesh }}
http:
  routers:
    admins: {{ rule: "PathPrefix(`/`) && MeshGroup(`admins`)", entryPoints: [admin], service: ping@internal, tls: {{}} }}
tcp:
  routers:
    shell: {{ rule: "HostSNI(`*`)", entryPoints: [ssh], service: shell }}
  services:
    shell: {{ loadBalancer: {{ servers: [ {{ address: "127.0.0.1:9002" }} ] }} }}
udp:
  routers:
    dns: {{ rule: "MeshGroup(`admins`)", entryPoints: [dns], service: dns }}
    open: {{ entryPoints: [open], service: dns }}
  services:
    dns: {{ loadBalancer: {{ servers: [ {{ address: "127.0.0.1:9003" }} ] }} }}
accessLog: {{ filePath: access.log, format: json, addInternals: true }}
admin: {{ address: "{ADMIN}" }}
ping: {{ manualRouting: true }}
{sections}mesh:
  interface: {interface}
  import: wg.conf
{mesh}  peers:
    laptop: {{ public-key: "{key}"{keys} }}
{peers}"#
    )
}

fn python(namespace: &Namespace, script: &str) -> String {
    let output = namespace.run("python3", &["-c", script]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn server(namespace: &Namespace, script: &str) -> Process {
    let mut server = Process::start("server", namespace.command("python3").args(["-u", "-c", script]));
    server.wait_for_line("listening");
    server
}

const ADMINS: Change<'static> = Change { mesh: "", client: ", groups: [admins]", peers: "", sections: "" };

#[test]
fn datagrams_go_where_their_peer_may_go_and_nobody_else_is_heard() {
    let Some(hub) = Hub::start(Change::default()) else { return };
    let right = &hub.cable.right;
    // A router without a rule takes peers.
    hub.wait_for_datagram(right, "10.9.0.1", 5301);
    assert_eq!(hub.datagram(right, "10.9.0.1", 5300), "", "a peer in no group is served");
    assert!(hub.refused("udp_no_route") > 0);
    // The hub's own programs reach the socket and are no peers.
    assert_eq!(hub.datagram(&hub.cable.left, "10.9.0.1", 5301), "");
    assert!(hub.refused("mesh_peer_unknown") > 0);
    hub.take(ADMINS);
    hub.wait_for_datagram(right, "10.9.0.1", 5300);
    let routers = hub.cable.left.run("curl", &["-s", &format!("http://{ADMIN}/api/udp/routers")]);
    let routers = String::from_utf8_lossy(&routers.stdout).into_owned();
    assert!(routers.contains("MeshGroup(`admins`)"), "{routers}");
    hub.take(Change::default());
    assert_eq!(hub.datagram(right, "10.9.0.1", 5300), "", "who has left the group is served");
}

#[test]
fn programs_of_this_machine_are_no_peers_even_where_a_peer_may_use_every_address() {
    let exit = Side::pair()[0].public_key().to_owned();
    let exit = format!(
        "    exit: {{ public-key: \"{exit}\", allowed-ips: [0.0.0.0/0, 10.9.0.0/24], groups: [admins] }}\n"
    );
    let Some(hub) = Hub::start(Change { peers: &exit, ..ADMINS }) else { return };
    assert_ne!(hub.shell(), "", "the true peer is heard");
    let unknown = hub.refused("mesh_peer_unknown");
    let own = python(
        &hub.cable.left,
        "import socket\ns = socket.create_connection(('10.9.0.1', 2222), 3); s.sendall(b'hello')\n\
         try: print(s.recv(99).decode())\nexcept OSError: pass",
    );
    assert_eq!(own, "");
    assert_eq!(hub.datagram(&hub.cable.left, "10.9.0.1", 5300), "");
    wait_for("both to be refused", || (hub.refused("mesh_peer_unknown") >= unknown + 2).then_some(()));
}

#[test]
fn http3_knows_the_peer_as_the_other_versions_do() {
    let Some(python) = require_python_with("aioquic") else { return };
    let Some(hub) = Hub::start(Change::default()) else { return };
    let script = project_root().join("tests/peer/h3_client.py").display().to_string();
    let python = python.display().to_string();
    let ask = || -> i64 {
        let arguments = [&script, "10.9.0.1:8443", "admin.test", "GET", "/ping", "0"];
        let output = hub.cable.right.run(&python, &arguments);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["status"].as_i64().unwrap_or_default()
    };
    assert_eq!(ask(), 404, "a peer in no group");
    hub.take(ADMINS);
    assert_eq!(ask(), 200);
    wait_for("the access log to name the peer", || {
        let log = std::fs::read_to_string(hub.hub.folder().join("access.log")).ok()?;
        let is_named = |line: &str| line.contains("HTTP/3") && line.contains(r#""MeshPeer":"laptop""#);
        log.lines().any(is_named).then_some(())
    });
    // The hub itself is no peer and gets no handshake.
    let arguments = [&script, "10.9.0.1:8443", "admin.test", "GET", "/ping", "0"];
    let own = hub.cable.left.run(&python, &arguments);
    assert!(!own.status.success() && own.stdout.is_empty(), "{own:?}");
    assert!(hub.refused("mesh_peer_unknown") > 0);
}

/// A connection that is open while another peer gets its address, who then comes.
fn changes_hands(mesh: &str) {
    let Some(mut hub) = Hub::start(Change { mesh, ..ADMINS }) else { return };
    hub.shell.wait_for_line("closed");
    let _visitor = hub.visitor();
    // Another reload leaves it alone.
    let [_, other] = Side::pair();
    let third = |address: &str| {
        format!("    third: {{ public-key: \"{}\", allowed-ips: {address} }}\n", other.public_key())
    };
    hub.take(Change { mesh, peers: &third("10.9.0.3"), ..ADMINS });
    assert_eq!(hub.refused("mesh_peer_changed"), 0);
    let (client, peers) = (", groups: [admins], allowed-ips: 10.9.0.4", third("10.9.0.2"));
    hub.take(Change { mesh, client, peers: &peers, sections: "" });
    hub.shell.wait_for_line("closed stay");
    if mesh.contains("netstack") {
        // Who is first, the stack or the entry point, is open; a stack that finds nothing left counts nothing.
        wait_for("the stack or the entry point to drop it", || {
            let in_stack = hub.cable.left.metric(r#"adit_mesh_stack_drops_total{reason="peer_changed"}"#);
            (in_stack + hub.refused("mesh_peer_changed") > 0).then_some(())
        });
    } else {
        assert_eq!(hub.refused("mesh_peer_changed"), 1);
    }
    assert_eq!(hub.shell(), "", "the address is another's");
    // That one has it, and what belongs to it only.
    drop(hub.client);
    let stock = stock().expect("it was there");
    hub.client = stock.start(&hub.cable.right, &other, &hub.sides[0]);
    wait_for("the new owner to be heard", || (hub.page() != "000").then_some(()));
    assert_eq!(hub.page(), "404", "the new owner has what the former one had");
    assert!(hub.shell().contains("server says hello"), "the new owner is not served");
    assert_eq!(hub.datagram(&hub.cable.right, "10.9.0.1", 5300), "");
    drop(hub.client);
    hub.client = stock.start(&hub.cable.right, &hub.sides[1], &hub.sides[0]);
    hub.take(Change { mesh, ..ADMINS });
    wait_for("the peer to be itself again", || (hub.page() == "200").then_some(()));
}

#[test]
fn an_address_that_changes_hands_takes_no_connection_along() {
    changes_hands("");
}

#[test]
fn an_address_that_changes_hands_takes_no_connection_along_in_the_stack() {
    changes_hands("  mode: netstack\n");
}

#[test]
fn slow_while_an_address_goes_to_and_fro_nobody_is_taken_for_another() {
    let Some(hub) = Hub::start(ADMINS) else { return };
    let mut asking = Process::start("asking", hub.cable.right.command("python3").args(["-u", "-c", ASKING]));
    asking.wait_for_line("begun");
    let third = "    third: { public-key: \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\", allowed-ips: 10.9.0.2 }\n";
    for _ in 0..4 {
        hub.take(Change { client: ", groups: [admins], allowed-ips: 10.9.0.4", peers: third, ..ADMINS });
        hub.take(ADMINS);
        let answered =
            || std::fs::read_to_string(hub.hub.folder().join("access.log")).map_or(0, |log| log.len());
        let before = answered();
        wait_for("the peer to be served again", || (answered() > before).then_some(()));
    }
    let log = std::fs::read_to_string(hub.hub.folder().join("access.log")).expect("requests were logged");
    let named = |name: &str| log.matches(&format!(r#""MeshPeer":"{name}""#)).count();
    assert!(named("laptop") > 20, "{}", named("laptop"));
    assert_eq!(named("third"), 0, "a peer was taken for the one that had its address next");
}

#[test]
fn a_reload_that_fails_late_leaves_the_mesh_as_it_was() {
    let (certificates, others) = (Certificates::for_edge(), Certificates::for_edge());
    let folder = TempFolder::new("edge");
    let edge = |key: &Certificates| {
        let [cert, key] = [certificates.certificate(), key.key()].map(|path| path.display().to_string());
        format!(
            "state-dir: {}\nedge: {{ listen: \"127.0.0.1:7844\", tunnels: [ {{ name: home }} ],\n  \
             certificate: {{ cert: {cert}, key: {key} }} }}\n",
            folder.path().display(),
        )
    };
    let tunnel = "tunnel: { name: home, ingress: [ { service: \"http_status:404\" } ] }\n";
    let (good, bad) = (edge(&certificates) + tunnel, edge(&others) + tunnel);
    let Some(mut hub) = Hub::start(Change { sections: &good, ..ADMINS }) else { return };
    let shown = hub.adit(&["mesh", "show"]);
    assert!(shown.contains("10.9.0.2/32"), "{shown}");
    let _visitor = hub.visitor();
    let interface = hub.hub.interface.clone();
    let key = hub.sides[1].public_key().to_owned();
    let third = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let wg = std::fs::read_to_string(hub.hub.folder().join("wg.conf")).expect("it was written");
    let address = wg.lines().find(|line| line.starts_with("Address")).expect("a node has an address");
    let late = wg.replace(address, &format!("{address}, 10.9.0.7/32"));
    for (name, text) in [("gone.conf", &wg), ("late.conf", &late)] {
        std::fs::write(hub.hub.folder().join(name), text.replace(&key, third)).expect("the folder is there");
    }
    // The peer is removed, another has its address.
    let with = |sections: &str| {
        configuration(&interface, &hub.sides[1], Change { sections, ..ADMINS })
            .replace(&key, third)
            .replace("import: wg.conf", "import: gone.conf")
    };
    // The edge's new key does not belong to its certificate.
    let problem = hub.refuse(&with(&bad));
    assert!(problem.contains("certificate"), "{problem}");
    // A connector whose origin cannot be set up, in the place of one that runs.
    let origin = "{ service: \"https://127.0.0.1:1\", originRequest: { caPool: /nonexistent.pem } }";
    let tunnel = good.replace("name: home, ingress", "name: home, connections: 2, ingress");
    let problem = hub.refuse(&with(&tunnel.replace("{ service: \"http_status:404\" }", origin)));
    assert!(problem.contains("/nonexistent.pem"), "{problem}");
    // A port that somebody else has, outside and on the mesh.
    let _other = server(&hub.cable.left, OTHER);
    for entry_point in ["taken: { address: \"127.0.0.1:9002\" }", "taken: { address: \":9004\", on: mesh }"] {
        let text = with(&good).replace("entryPoints:\n", &format!("entryPoints:\n  {entry_point}\n"));
        let problem = hub.refuse(&text);
        assert!(problem.contains("entry point taken"), "{problem}");
    }
    // A change that needs a restart.
    let problem = hub.refuse(&with(&good).replace("import: gone.conf", "import: gone.conf\n  fwmark: 7"));
    assert!(problem.contains("fwmark"), "{problem}");
    assert!(hub.adit(&["mesh", "show"]).contains(&key), "the mesh has kept a refused change");
    assert_eq!(hub.refused("mesh_peer_changed"), 0, "a refused reload has cut a connection");
    assert!(!hub.shell.output().contains("closed stay"), "a refused reload has cut a connection");
    assert!(hub.shell().contains("server says hello"), "the session is gone");
    // Only an address that comes with the reload cannot be tried before.
    let text = with(&good)
        .replace("entryPoints:\n", "entryPoints:\n  taken: { address: \"10.9.0.7:9004\", on: mesh }\n");
    let problem = hub.refuse(&text.replace("import: gone.conf", "import: late.conf"));
    assert!(problem.contains("entry point taken"), "{problem}");
    assert!(hub.adit(&["mesh", "show"]).contains(&key), "the mesh has kept a refused change");
    hub.shell.wait_for_line("closed stay");
    wait_for("the peer to be itself again", || (hub.page() == "200").then_some(()));
}

#[test]
fn an_entry_point_that_goes_to_the_mesh_with_its_port_is_refused_with_the_way_to_do_it() {
    let Some(hub) = Hub::start(ADMINS) else { return };
    let on_mesh = configuration(&hub.hub.interface, &hub.sides[1], ADMINS);
    let without =
        |line: &str| on_mesh.replace(line, "").replace(", entryPoints: [ssh]", ", entryPoints: [admin]");
    let take = |text: &str| {
        let before = hub.reloads();
        hub.hub.reconfigure(text);
        wait_for("the reload", || (hub.reloads() > before).then_some(()));
    };
    for (line, outside) in [
        ("  ssh: { address: \":2222\", on: mesh }\n", "  ssh: { address: \":2222\" }\n"),
        ("  open: { address: \":5301/udp\", on: mesh }\n", "  open: { address: \":5301/udp\" }\n"),
    ] {
        let public = on_mesh.replace(line, outside);
        let advice = "take it away in one reload and add the new one in the next";
        let problem = hub.refuse(&public);
        assert!(problem.contains(advice), "{problem}");
        take(&without(line));
        take(&public);
        let problem = hub.refuse(&on_mesh);
        assert!(problem.contains(advice), "{problem}");
        take(&without(line));
        take(&on_mesh);
    }
    assert!(hub.shell().contains("server says hello"));
    hub.wait_for_datagram(&hub.cable.right, "10.9.0.1", 5301);
}

#[test]
fn entry_points_change_their_network_and_sockets_their_names_by_a_reload() {
    let Some(hub) = Hub::start(ADMINS) else { return };
    let right = &hub.cable.right;
    let text = configuration(&hub.hub.interface, &hub.sides[1], ADMINS);
    let take = |text: &str| {
        let before = hub.reloads();
        hub.hub.reconfigure(text);
        wait_for("the reload", || (hub.reloads() > before).then_some(()));
    };
    assert_eq!(hub.datagram(right, "192.0.2.1", 5301), "");
    // The open one becomes public, on the same port.
    let public = text
        .replace("open: { address: \":5301/udp\", on: mesh }", "open: { address: \"192.0.2.1:5301/udp\" }");
    take(&public);
    hub.wait_for_datagram(right, "192.0.2.1", 5301);
    assert_eq!(hub.datagram(right, "10.9.0.1", 5301), "");
    // Its socket gets another name, and its name another socket: the public one does not lead to what is routed by the name.
    let renamed = public
        .replace("  open: { address", "  public: { address")
        .replace("  dns: { address: \":5300/udp\"", "  open: { address: \":5300/udp\"")
        .replace("entryPoints: [dns]", "entryPoints: [open, public]")
        .replace("    open: { entryPoints: [open], service: dns }\n", "");
    take(&renamed);
    hub.wait_for_datagram(right, "10.9.0.1", 5300);
    assert_eq!(hub.datagram(right, "192.0.2.1", 5301), "", "the public is in no group of the mesh");
    // TCP: from the mesh to the public and back.
    let outside = "import socket\ntry:\n s = socket.create_connection(('192.0.2.1', 2222), 3); s.sendall(b'hello')\n \
                   s.settimeout(3); print(s.recv(99).decode())\nexcept OSError: pass";
    assert_eq!(hub.python(outside), "");
    take(&renamed.replace("ssh: { address: \":2222\", on: mesh }", "ssh: { address: \"192.0.2.1:2222\" }"));
    assert_eq!(hub.python(outside), "server says hello");
    assert_eq!(hub.shell(), "");
    take(&renamed);
    assert_eq!(hub.python(outside), "");
    assert_eq!(hub.shell(), "server says hello");
}

#[test]
fn an_edge_on_the_mesh_hears_peers_alone() {
    let (Some(cable), Some(stock)) = (cable(1500), stock()) else { return };
    let (sides, folder) = (Side::pair(), TempFolder::new("edge"));
    let _hub = Node::adit(&cable.left, [&sides[0], &sides[1]], |interface| {
        format!(
            "state-dir: {}\nentryPoints: {{ web: {{ address: \":8080\", on: mesh }} }}\nedge: {{ listen: \
             \"127.0.0.1:7844\", public: [ web ], tunnels: [ {{ name: home, hostnames: [ home.test ] }} ] }}\n\
             tunnel: {{ name: home, ingress: [ {{ service: hello_world }} ] }}\nadmin: {{ address: \"{ADMIN}\" }}\n\
             mesh: {{ interface: {interface}, import: wg.conf }}\n",
            folder.path().display()
        )
    });
    let _client = stock.start(&cable.right, &sides[1], &sides[0]);
    let arguments = ["-s", "-m", "5", "-H", "Host: home.test", "-w", "%{http_code}", "-o", "/dev/null"];
    let ask = |from: &Namespace| {
        let output = from.run("curl", &[&arguments[..], &["http://10.9.0.1:8080/"]].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait_for("the tunnel to answer the peer", || (ask(&cable.right) == "200").then_some(()));
    assert_eq!(ask(&cable.left), "000", "the hub's own programs are no peers");
    assert!(cable.left.metric(r#"adit_proxy_refused_total{reason="mesh_peer_unknown"}"#) > 0);
}

/// Answers the first bytes of each connection, and says when it opens and closes.
const SHELL: &str = "
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        first = self.request.recv(99)
        print('opened', first.decode())
        self.request.sendall(b'server says ' + first)
        try:
            while self.request.recv(99):
                pass
        except OSError:
            pass
        print('closed', first.decode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer(('127.0.0.1', 9002), Handler)
print('listening')
server.serve_forever()
";

/// Answers each datagram.
const DATAGRAMS: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 9003))
print('listening')
while True:
    data, visitor = s.recvfrom(99)
    s.sendto(b'server says ' + data, visitor)
";

/// Has a port on all addresses.
const OTHER: &str = "
import socket, time
s = socket.create_server(('0.0.0.0', 9004))
print('listening')
time.sleep(60)
";

/// Asks all the time, over connections that last and over new ones.
const ASKING: &str = "
import http.client, threading
def ask():
    while True:
        connection = http.client.HTTPConnection('10.9.0.1', 8443, timeout=0.3)
        try:
            for _ in range(20):
                connection.request('GET', '/')
                connection.getresponse().read()
        except Exception:
            pass
        connection.close()
threads = [threading.Thread(target=ask) for _ in range(4)]
[thread.start() for thread in threads]
print('begun')
";
