//! What people keep on a mesh, each behind an entry point of it: Kubernetes' API, a hypervisor's console, gRPC beside a page,
//! and a shell.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair,
};

use super::support::netns::{ADMIN, Cable, Namespace, Node, Side};
use super::support::process::Process;
use super::support::{TempFolder, find_program, note, project_root, require, require_python_with, wait_for};
use super::{cable, stock};

/// A hub on the left with the application beside it, a stock client of the group `admins` on the right.
struct Hub {
    cable: Cable,
    _hub: Node,
    _client: Node,
}

impl Hub {
    /// `sections` are what the configuration has besides the mesh.
    fn start(cable: Cable, sections: &str) -> Option<Self> {
        let stock = stock()?;
        let sides = Side::pair();
        let key = sides[1].public_key();
        let hub = Node::adit(&cable.left, [&sides[0], &sides[1]], |interface| {
            format!(
                "{sections}admin: {{ address: \"{ADMIN}\" }}\nmesh:\n  interface: {interface}\n  import: wg.conf\n  \
                 peers: {{ laptop: {{ public-key: \"{key}\", groups: [admins] }} }}\n"
            )
        });
        let client = stock.start(&cable.right, &sides[1], &sides[0]);
        cable.right.wait_for_ping("10.9.0.1");
        Some(Self { cable, _hub: hub, _client: client })
    }

    /// What the client's curl gets, with the status behind it.
    fn curl(&self, arguments: &[&str]) -> String {
        let arguments = [&["-s", "-m", "20", "-w", " %{http_code}"], arguments].concat();
        output(&self.cable.right, "curl", &arguments)
    }

    fn refused(&self, reason: &str) -> u64 {
        self.cable.left.metric(&format!(r#"adit_proxy_refused_total{{reason="{reason}"}}"#))
    }
}

/// What a command prints, errors behind the rest.
fn output(namespace: &Namespace, program: &str, arguments: &[&str]) -> String {
    let output = namespace.run(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

/// An authority and what it has signed, as files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempFolder,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "applications");
        let key = KeyPair::generate().expect("the crypto library makes keys");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority signs itself");
        let folder = TempFolder::new("authority");
        folder.write("ca.pem", issuer.pem());
        Self { issuer, folder }
    }

    /// A certificate for names, or for a user in a group; paths of the certificate and of its key.
    fn sign(&self, file: &str, names: &[&str], user: Option<(&str, &str)>) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("test names are valid");
        params.distinguished_name = DistinguishedName::new();
        if let Some((name, group)) = user {
            params.distinguished_name.push(DnType::CommonName, name);
            params.distinguished_name.push(DnType::OrganizationName, group);
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let key = KeyPair::generate().expect("the crypto library makes keys");
        let signed = params.signed_by(&key, &self.issuer).expect("an authority signs");
        let certificate = self.folder.write(&format!("{file}.pem"), signed.pem());
        let key = self.folder.write(&format!("{file}.key"), key.serialize_pem());
        (text(&certificate), text(&key))
    }

    fn path(&self) -> String {
        text(&self.folder.path().join("ca.pem"))
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A program that nobody packages: its absence is no failure.
fn unpackaged(name: &str, variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| find_program(name));
    if found.is_none() {
        note(&format!("skipped: `{name}` is not installed (name one in {variable})"));
    }
    found
}

/// A real API server on a real etcd.
struct Kubernetes {
    authority: Authority,
    _etcd: Process,
    _server: Process,
}

impl Kubernetes {
    fn start(namespace: &Namespace) -> Option<Self> {
        let (etcd, server) = (unpackaged("etcd", "ETCD")?, unpackaged("kube-apiserver", "KUBE_APISERVER")?);
        let authority = Authority::new();
        let folder = authority.folder.path();
        let (store, peer) = ("http://127.0.0.1:22379", "http://127.0.0.1:22380");
        let mut command = namespace.command(etcd);
        command.arg("--data-dir").arg(folder.join("etcd")).arg("--unsafe-no-fsync");
        command.args(["--listen-client-urls", store, "--advertise-client-urls", store]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        let etcd = Process::start("etcd", &mut command);
        let (certificate, key) = authority.sign("api", &["api.test", "127.0.0.1"], None);
        let signer = KeyPair::generate().expect("the crypto library makes keys");
        let private = text(&authority.folder.write("sa.key", signer.serialize_pem()));
        let public = text(&authority.folder.write("sa.pub", signer.public_key_pem()));
        let tokens = text(&authority.folder.write("tokens.csv", "of-adit,adit,adit,\"system:masters\"\n"));
        let mut command = namespace.command(server);
        command.args([
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--secure-port=26443",
            "--insecure-port=0",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
        ]);
        command.args([
            format!("--etcd-servers={store}"),
            format!("--tls-cert-file={certificate}"),
            format!("--tls-private-key-file={key}"),
            format!("--client-ca-file={}", authority.path()),
            format!("--token-auth-file={tokens}"),
            format!("--service-account-signing-key-file={private}"),
            format!("--service-account-key-file={public}"),
        ]);
        let server = Process::start("kube-apiserver", &mut command);
        wait_for("the API server", || {
            let arguments = ["-sk", "-H", "Authorization: Bearer of-adit", "https://127.0.0.1:26443/readyz"];
            (output(namespace, "curl", &arguments) == "ok").then_some(())
        });
        Some(Self { authority, _etcd: etcd, _server: server })
    }

    /// Passed through by name, terminated with adit's own credential, and terminated for the peer that asks.
    fn sections(&self) -> String {
        let authority = self.authority.path();
        format!(
            r#"entryPoints:
  admin: {{ address: ":443", on: mesh }}
  people: {{ address: ":6443", on: mesh, impersonate: peer }}
  trusting: {{ address: ":7443", on: mesh, impersonate: visitor }}
tcp:
  routers:
    through: {{ rule: "HostSNI(`api.test`) && MeshGroup(`admins`)", entryPoints: [admin], service: through, tls: {{ passthrough: true }} }}
  services:
    through: {{ loadBalancer: {{ servers: [ {{ address: "127.0.0.1:26443" }} ] }} }}
http:
  routers:
    api: {{ rule: "Host(`ended.test`)", entryPoints: [admin, people, trusting], service: api, middlewares: [credential], tls: {{}} }}
  middlewares:
    credential: {{ headers: {{ customRequestHeaders: {{ Authorization: "Bearer of-adit" }} }} }}
  services:
    api: {{ loadBalancer: {{ serversTransport: api, servers: [ {{ url: "https://127.0.0.1:26443" }} ] }} }}
  serversTransports:
    api: {{ rootCAs: [ "{authority}" ], serverName: api.test }}
"#
        )
    }
}

#[test]
fn slow_kubernetes_api_passed_through_and_terminated_lets_nobody_act_for_others() {
    let Some(cable) = cable(1500) else { return };
    let Some(kubernetes) = Kubernetes::start(&cable.left) else { return };
    let Some(hub) = Hub::start(cable, &kubernetes.sections()) else { return };
    let authority = kubernetes.authority.path();
    let (certificate, key) = kubernetes.authority.sign("admin", &[], Some(("ada", "system:masters")));
    let with_certificate = |path: &str, more: &[&str]| {
        let url = format!("https://api.test{path}");
        let fixed = ["--resolve", "api.test:443:10.9.0.1", "--cacert", &authority, "--cert", &certificate];
        hub.curl(&[&fixed[..], &["--key", &key, &url], more].concat())
    };
    // Passed through: the API server sees the client's certificate itself.
    let secrets = "/api/v1/secrets";
    assert!(with_certificate(secrets, &[]).ends_with(" 200"), "{}", with_certificate(secrets, &[]));
    let anonymous =
        ["--resolve", "api.test:443:10.9.0.1", "--cacert", &authority, "https://api.test/api/v1/secrets"];
    let anonymous = hub.curl(&anonymous);
    assert!(anonymous.contains("system:anonymous") && anonymous.ends_with(" 403"), "{anonymous}");
    let watched = with_certificate("/api/v1/namespaces?watch=true&timeoutSeconds=2", &[]);
    assert!(watched.contains(r#""type":"ADDED""#) && watched.ends_with(" 200"), "{watched}");

    let ended = |port: u16, path: &str, more: &[&str]| {
        let (resolve, url) =
            (format!("ended.test:{port}:10.9.0.1"), format!("https://ended.test:{port}{path}"));
        hub.curl(&[&["-k", "--resolve", &resolve, &url], more].concat())
    };
    // Terminated: the credential is adit's, and a visitor's wish to be somebody else is not passed on with it.
    let as_eve = ["-H", "Impersonate-User: eve", "-H", "Impersonate-Group: system:masters"];
    assert!(ended(443, secrets, &as_eve[..2]).ends_with(" 200"), "{}", ended(443, secrets, &as_eve[..2]));
    // Where it is allowed, it is.
    let eve = ended(7443, secrets, &as_eve[..2]);
    assert!(eve.contains(r#"User \"eve\" cannot list"#) && eve.ends_with(" 403"), "{eve}");
    assert!(ended(7443, secrets, &as_eve).ends_with(" 200"));
    // Terminated for the peer: it is the peer and nobody else, whatever it claims.
    for more in [&[][..], &as_eve, &["-H", "Connection: Impersonate-User, Impersonate-Group"]] {
        let laptop = ended(6443, secrets, more);
        assert!(laptop.contains(r#"User \"laptop\" cannot list"#) && laptop.ends_with(" 403"), "{laptop}");
    }
    let binding = r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"admins"},
        "roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},
        "subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"Group","name":"admins"}]}"#;
    let post = ["-X", "POST", "-H", "Content-Type: application/json", "-d", binding];
    let bound = with_certificate("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &post);
    assert!(bound.ends_with(" 201"), "{bound}");
    wait_for("the peer's group to count", || ended(6443, secrets, &[]).ends_with(" 200").then_some(()));
    kubectl(&hub, &authority, &certificate, &key);
}

/// The real client through the entry point that passes through.
fn kubectl(hub: &Hub, authority: &str, certificate: &str, key: &str) {
    let Some(kubectl) = unpackaged("kubectl", "KUBECTL") else { return };
    let arguments = [
        "--server=https://10.9.0.1:443",
        "--tls-server-name=api.test",
        "--kubeconfig=/dev/null",
        &format!("--certificate-authority={authority}"),
        &format!("--client-certificate={certificate}"),
        &format!("--client-key={key}"),
        "get",
        "namespaces",
    ];
    let listed = output(&hub.cable.right, &text(&kubectl), &arguments);
    assert!(listed.contains("kube-system"), "{listed}");
}

#[test]
fn a_hypervisor_with_a_certificate_of_its_own_shows_its_page_and_its_console() {
    let (Some(python), true) = (require_python_with("websockets"), require("websockify")) else { return };
    let Some(cable) = cable(1500) else { return };
    let folder = TempFolder::new("hypervisor");
    let own =
        rcgen::generate_simple_self_signed(["pve.test".to_owned()]).expect("a certificate signs itself");
    let certificate = text(&folder.write("own.pem", own.cert.pem()));
    let key = text(&folder.write("own.key", own.signing_key.serialize_pem()));
    folder.write("index.html", "the hypervisor's page");
    let mut console = Process::start("console", cable.left.command("python3").args(["-u", "-c", CONSOLE]));
    console.wait_for_line("listening");
    let mut websockify = cable.left.command("websockify");
    websockify.args(["--ssl-only", "--cert", &certificate, "--key", &key, "--web"]).arg(folder.path());
    let mut hypervisor = Process::start("websockify", websockify.args(["127.0.0.1:8006", "127.0.0.1:5900"]));
    hypervisor.wait_for_line("proxying from");
    let sections = format!(
        r#"entryPoints:
  admin: {{ address: ":443", on: mesh }}
http:
  routers:
    trusting: {{ rule: "Host(`pve.test`) && MeshGroup(`admins`)", entryPoints: [admin], service: trusting, tls: {{}} }}
    knowing: {{ rule: "Host(`known.test`)", entryPoints: [admin], service: knowing, tls: {{}} }}
    strict: {{ rule: "Host(`strict.test`)", entryPoints: [admin], service: strict, tls: {{}} }}
  services:
    trusting: {{ loadBalancer: {{ serversTransport: trusting, servers: [ {{ url: "https://127.0.0.1:8006" }} ] }} }}
    knowing: {{ loadBalancer: {{ serversTransport: knowing, servers: [ {{ url: "https://127.0.0.1:8006" }} ] }} }}
    strict: {{ loadBalancer: {{ servers: [ {{ url: "https://127.0.0.1:8006" }} ] }} }}
  serversTransports:
    trusting: {{ insecureSkipVerify: true }}
    knowing: {{ rootCAs: [ "{certificate}" ], serverName: pve.test }}
"#
    );
    let Some(hub) = Hub::start(cable, &sections) else { return };
    let page = |host: &str| {
        hub.curl(&["-k", "--resolve", &format!("{host}:443:10.9.0.1"), &format!("https://{host}/")])
    };
    assert_eq!(page("pve.test"), "the hypervisor's page 200");
    assert_eq!(page("known.test"), "the hypervisor's page 200");
    assert!(
        page("strict.test").ends_with(" 502") || page("strict.test").ends_with(" 500"),
        "{}",
        page("strict.test")
    );
    for host in ["pve.test", "known.test"] {
        let answer = output(&hub.cable.right, &text(&python), &["-c", VIEWER, host]);
        assert_eq!(answer.trim(), "console of 65536 bytes", "{host}");
    }
}

#[test]
fn grpc_and_a_page_share_a_port_of_the_mesh() {
    let Some(python) = require_python_with("grpc") else { return };
    let Some(cable) = cable(1500) else { return };
    let script = |name: &str| text(&project_root().join("tests/peer").join(name));
    let mut command = cable.left.command(&python);
    let mut server = Process::start("grpc", command.args(["-u", &script("grpc_server.py")]));
    let line = server.wait_for_line("listening on ");
    let port = line.rsplit(' ').next().unwrap_or_default().to_owned();
    let sections = format!(
        r#"entryPoints:
  omni: {{ address: ":8099", on: mesh }}
http:
  routers:
    machines: {{ rule: "Header(`Content-Type`, `application/grpc`) && MeshGroup(`admins`)", entryPoints: [omni], service: machines }}
    page: {{ rule: "Path(`/ping`) && MeshGroup(`admins`)", entryPoints: [omni], service: ping@internal }}
  services:
    machines: {{ loadBalancer: {{ servers: [ {{ url: "h2c://127.0.0.1:{port}" }} ] }} }}
ping: {{ manualRouting: true }}
"#
    );
    let Some(hub) = Hub::start(cable, &sections) else { return };
    assert_eq!(hub.curl(&["http://10.9.0.1:8099/ping"]), "OK 200");
    let client = script("grpc_client.py");
    let checked = hub.cable.right.run(&text(&python), &[&client, "10.9.0.1:8099", "omni.test"]);
    let results: std::collections::BTreeMap<String, String> =
        serde_json::from_slice(&checked.stdout).unwrap_or_default();
    assert!(!results.is_empty(), "{checked:?}");
    let failed: Vec<_> = results.iter().filter(|(_, result)| *result != "ok").collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_shell_is_reached_by_those_it_is_for() {
    if !["ssh", "sshd", "ssh-keygen"].iter().all(|program| require(program)) {
        return;
    }
    let Some(cable) = cable(1500) else { return };
    let folder = TempFolder::new("shell");
    let file = |name: &str| text(&folder.path().join(name));
    for name in ["host", "user"] {
        let made = output(&cable.left, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file(name)]);
        assert_eq!(made, "");
    }
    std::fs::copy(file("user.pub"), file("authorized")).expect("the key was made");
    let host_key = std::fs::read_to_string(file("host.pub")).expect("the key was made");
    folder.write("known", format!("shell.test {host_key}"));
    let configuration = format!(
        "ListenAddress 127.0.0.1:2022\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\n",
        file("host"),
        file("authorized")
    );
    let configuration = text(&folder.write("sshd_config", configuration));
    // Debian's unit makes it, where there is one.
    let _ = std::fs::create_dir("/run/sshd");
    let program = text(&find_program("sshd").expect("it was found"));
    let mut command = cable.left.command(program);
    let mut sshd = Process::start("sshd", command.args(["-D", "-e", "-f", &configuration]));
    sshd.wait_for_line("listening on");
    let sections = r#"entryPoints:
  ssh: { address: ":22", on: mesh }
  guests: { address: ":23", on: mesh }
tcp:
  routers:
    shell: { rule: "HostSNI(`*`) && MeshGroup(`admins`)", entryPoints: [ssh], service: shell }
    guests: { rule: "HostSNI(`*`) && MeshGroup(`guests`)", entryPoints: [guests], service: shell }
  services:
    shell: { loadBalancer: { servers: [ { address: "127.0.0.1:2022" } ] } }
"#;
    let Some(hub) = Hub::start(cable, sections) else { return };
    let ssh = |from: &Namespace, port: &str, command: &str| {
        let (known, user) = (format!("UserKnownHostsFile={}", file("known")), file("user"));
        let options = ["-F", "none", "-o", &known, "-o", "HostKeyAlias=shell.test", "-o", "BatchMode=yes"];
        let options = [&options[..], &["-o", "ConnectTimeout=5", "-i", &user, "-p", port]].concat();
        from.run("ssh", &[&options[..], &["root@10.9.0.1", command]].concat())
    };
    let right = &hub.cable.right;
    let shell = |command: &str| String::from_utf8_lossy(&ssh(right, "22", command).stdout).into_owned();
    assert_eq!(shell("echo in the shell").trim(), "in the shell");
    let bulk = shell("head -c 4000000 /dev/zero");
    assert!(bulk.len() == 4_000_000 && bulk.bytes().all(|byte| byte == 0), "{} bytes", bulk.len());
    // Somebody listens there, who has nothing for this peer.
    assert_eq!(hub.curl(&["-o", "/dev/null", "http://10.9.0.1:23/"]), " 404");
    let guest = ssh(right, "23", "echo in the shell");
    assert!(
        !guest.status.success() && guest.stdout.is_empty(),
        "a peer in no such group is let in: {guest:?}"
    );
    // The hub itself is no peer.
    assert_eq!(hub.refused("mesh_peer_unknown"), 0);
    let own = ssh(&hub.cable.left, "22", "echo in the shell");
    assert!(!own.status.success() && own.stdout.is_empty(), "{own:?}");
    assert!(hub.refused("mesh_peer_unknown") > 0);
}

/// A console: says how much it was told.
const CONSOLE: &str = "
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        total = 0
        while total < 65536:
            total += len(self.request.recv(65536))
        self.request.sendall(f'console of {total} bytes'.encode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer(('127.0.0.1', 5900), Handler)
print('listening')
server.serve_forever()
";

/// The console's viewer in a browser, as far as the wire is concerned.
///
/// On one thread: the library's other client reads and writes one TLS session from two, and hangs once in 250 runs, also
/// before websockify alone.
const VIEWER: &str = "
import asyncio, ssl, sys
from websockets.asyncio.client import connect
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
name = sys.argv[1]
async def view():
    at = dict(host='10.9.0.1', port=443, ssl=context, server_hostname=name)
    async with connect(f'wss://{name}/websockify', subprotocols=['binary'], **at) as viewer:
        await viewer.send(bytes(65536))
        print((await asyncio.wait_for(viewer.recv(), 10)).decode())
asyncio.run(view())
";
