//! Network namespaces joined by a cable, and WireGuard implementations in them.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::process::Process;
use super::{TempFolder, find_program, note, wait_for};

/// Two network namespaces and a veth pair between them; gone when dropped.
///
/// ```text
/// left ── 192.0.2.1, 2001:db8::1 ═══ veth ═══ 192.0.2.2, 2001:db8::2 ── right
/// ```
pub(crate) struct Cable {
    pub(crate) left: Namespace,
    pub(crate) right: Namespace,
}

/// Whether this process may make network namespaces.
pub(crate) fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// One network namespace.
pub(crate) struct Namespace {
    name: String,
}

/// Whose WireGuard.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    /// `adit run`, this build.
    Adit,
    /// A program that takes `-f INTERFACE` and is set up by `wg`: name for tables, path, further arguments.
    Stock(&'static str, PathBuf, &'static [&'static str]),
}

/// One end of a tunnel between the two sides of a cable.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    private: String,
    public: String,
    preshared: Option<String>,
    /// Last byte of every address of this side.
    number: u8,
    /// Longest packet in the tunnel.
    pub(crate) mtu: u32,
    /// Whether it knows where the other side is.
    pub(crate) dials: bool,
    /// Over which outer address it dials.
    pub(crate) over_v6: bool,
    /// Seconds between keepalives.
    pub(crate) keepalive: Option<u32>,
}

/// A running end.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) interface: String,
    folder: TempFolder,
}

impl Cable {
    /// A cable of this MTU; nothing, with a printed reason, without root or `ip`.
    pub(crate) fn lay(mtu: u32) -> Option<Self> {
        if !is_root() {
            // An ordinary user's run of the suite is whole without them.
            note("skipped: network namespaces need root");
            return None;
        }
        let (left, right) = (Namespace::new("l"), Namespace::new("r"));
        let mtu = mtu.to_string();
        let pair = ["link", "add", "cable", "netns", &left.name, "mtu", &mtu, "type", "veth", "peer", "name"];
        ip(&[&pair[..], &["cable", "netns", &right.name, "mtu", &mtu]].concat());
        for (side, number) in [(&left, 1), (&right, 2)] {
            side.ip(&["addr", "add", &format!("192.0.2.{number}/24"), "dev", "cable"]);
            // A link of less than 1280 has no IPv6.
            side.try_ip(&["addr", "add", &format!("2001:db8::{number}/64"), "dev", "cable", "nodad"]);
            side.ip(&["link", "set", "cable", "up"]);
        }
        Some(Self { left, right })
    }
}

impl Namespace {
    fn new(side: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("adit-{}-{number}{side}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    /// A command that runs in the namespace.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().expect("`ip netns exec` starts")
    }

    /// Changes links, addresses or routes of the namespace.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    fn try_ip(&self, arguments: &[&str]) {
        let _ = Command::new("ip").args(["-n", &self.name]).args(arguments).stderr(Stdio::null()).status();
    }

    /// Adds rules to the hook `input` or `output`.
    #[track_caller]
    pub(crate) fn filter(&self, hook: &str, rules: &[&str]) {
        let mut script =
            format!("add table inet t\nadd chain inet t {hook} {{ type filter hook {hook} priority 0; }}\n");
        for rule in rules {
            let _ = writeln!(script, "add rule inet t {hook} {rule}");
        }
        let output = self.command("nft").arg(&script).output().expect("nft starts");
        assert!(output.status.success(), "nft: {output:?}");
    }

    /// Removes what [`Namespace::filter`] added.
    pub(crate) fn unfilter(&self) {
        let _ = self.run("nft", &["delete table inet t"]);
    }

    /// A counter of the adit in this namespace by the text before its value; zero if it is not there.
    pub(crate) fn metric(&self, start: &str) -> u64 {
        let output = self.run("curl", &["-s", &format!("http://{ADMIN}/metrics")]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with(start));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    /// Waits until a ping comes back.
    #[track_caller]
    pub(crate) fn wait_for_ping(&self, address: &str) {
        wait_for(&format!("{address} to answer pings"), || self.pings(address).then_some(()));
    }

    /// Whether one ping comes back within a second.
    pub(crate) fn pings(&self, address: &str) -> bool {
        self.run("ping", &["-n", "-c", "1", "-W", "1", address]).status.success()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

impl Side {
    /// Both sides, which know each other.
    pub(crate) fn pair() -> [Self; 2] {
        [1, 2].map(|number| {
            let private = wg(&["genkey"], "");
            let public = wg(&["pubkey"], &private);
            Self {
                private,
                public,
                preshared: None,
                number,
                mtu: 1408,
                dials: true,
                over_v6: false,
                keepalive: None,
            }
        })
    }

    /// Gives both the same preshared key.
    pub(crate) fn share_secret(sides: &mut [Self; 2]) {
        let secret = wg(&["genpsk"], "");
        sides.iter_mut().for_each(|side| side.preshared = Some(secret.clone()));
    }

    /// Its address in the tunnel.
    pub(crate) fn inner(&self, v6: bool) -> String {
        if v6 { format!("fd00:9::{}", self.number) } else { format!("10.9.0.{}", self.number) }
    }

    pub(crate) fn public_key(&self) -> &str {
        &self.public
    }

    /// The side as a wg-quick file, or as what `wg setconf` takes.
    fn configuration(&self, other: &Self, quick: bool) -> String {
        let mut text = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", self.private);
        if quick {
            let [v4, v6] = [false, true].map(|v6| self.inner(v6));
            let _ = write!(text, "Address = {v4}/24, {v6}/64\nMTU = {}\n", self.mtu);
        }
        let [v4, v6] = [false, true].map(|v6| other.inner(v6));
        let _ = write!(text, "[Peer]\nPublicKey = {}\nAllowedIPs = {v4}/32, {v6}/128\n", other.public);
        if let Some(secret) = &self.preshared {
            let _ = writeln!(text, "PresharedKey = {secret}");
        }
        if self.dials {
            let host = if self.over_v6 { "[2001:db8::" } else { "192.0.2." };
            let end = if self.over_v6 { "]" } else { "" };
            let _ = writeln!(text, "Endpoint = {host}{}{end}:{PORT}", other.number);
        }
        if let Some(seconds) = self.keepalive {
            let _ = writeln!(text, "PersistentKeepalive = {seconds}");
        }
        text
    }
}

impl Engine {
    /// wireguard-go from PATH.
    pub(crate) fn wireguard_go() -> Option<Self> {
        Self::found("wireguard-go", "wireguard-go", &[])
    }

    /// boringtun-cli from PATH or `BORINGTUN`; nobody packages it, so that its absence is no failure.
    pub(crate) fn boringtun() -> Option<Self> {
        Self::named("boringtun-cli", "BORINGTUN", &["--disable-drop-privileges"])
    }

    /// gotatun from PATH or `GOTATUN`.
    pub(crate) fn gotatun() -> Option<Self> {
        Self::named("gotatun", "GOTATUN", &["--disable-drop-privileges"])
    }

    /// A wireguard-go newer than Debian's, from `WIREGUARD_GO`.
    pub(crate) fn new_wireguard_go() -> Option<Self> {
        let path = PathBuf::from(std::env::var_os("WIREGUARD_GO")?);
        Some(Self::Stock("wireguard-go (new)", path, &[]))
    }

    fn named(name: &'static str, variable: &str, arguments: &'static [&'static str]) -> Option<Self> {
        match std::env::var_os(variable) {
            Some(path) => Some(Self::Stock(name, PathBuf::from(path), arguments)),
            None => Self::found(name, name, arguments),
        }
    }

    fn found(name: &'static str, program: &str, arguments: &'static [&'static str]) -> Option<Self> {
        Some(Self::Stock(name, find_program(program)?, arguments))
    }

    /// Name for tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Adit => "adit",
            Self::Stock(name, ..) => name,
        }
    }

    /// Starts one side; waits until its interface is up with its addresses.
    #[track_caller]
    pub(crate) fn start(&self, namespace: &Namespace, side: &Side, other: &Side) -> Node {
        let interface = next_interface();
        let folder = TempFolder::new("netns");
        let process = match self {
            Self::Adit => start_adit(namespace, &folder, &interface, side, other),
            Self::Stock(name, program, arguments) => {
                let mut command = namespace.command(program);
                command.arg("-f").args(*arguments).arg(&interface);
                // wireguard-go loses its own socket now and then while it starts ("Failed to listen on uapi socket"), and ends.
                let started = (0..3).find_map(|_| {
                    let mut process = Process::start(name, &mut command);
                    set_up_stock(&mut process, namespace, &folder, &interface, [side, other])
                        .then_some(process)
                });
                started.unwrap_or_else(|| unreachable!("{name} ends whenever it is started"))
            }
        };
        let address = side.inner(true);
        wait_for(&format!("{} to bring its interface up", self.name()), || {
            let output = namespace.run("ip", &["addr", "show", "dev", &interface, "up"]);
            String::from_utf8_lossy(&output.stdout).contains(&address).then_some(())
        });
        Node { process, interface, folder }
    }
}

impl Node {
    /// adit with a configuration of the test's own, which is told the interface and finds the wg-quick file at `wg.conf`.
    #[track_caller]
    pub(crate) fn adit(
        namespace: &Namespace,
        sides: [&Side; 2],
        configure: impl FnOnce(&str) -> String,
    ) -> Self {
        Self::adit_by(namespace.command(env!("CARGO_BIN_EXE_adit")), sides, configure)
    }

    /// The same without any capability: what an ordinary user may do.
    #[track_caller]
    pub(crate) fn adit_without_privileges(
        namespace: &Namespace,
        sides: [&Side; 2],
        configure: impl FnOnce(&str) -> String,
    ) -> Self {
        let mut command = namespace.command("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]);
        command.arg(env!("CARGO_BIN_EXE_adit"));
        Self::adit_by(command, sides, configure)
    }

    #[track_caller]
    fn adit_by(
        mut command: Command,
        [side, other]: [&Side; 2],
        configure: impl FnOnce(&str) -> String,
    ) -> Self {
        let interface = next_interface();
        let folder = TempFolder::new("netns");
        folder.write("wg.conf", side.configuration(other, true));
        let path = folder.write("adit.yaml", configure(&interface));
        let mut process = Process::start("adit", command.arg("run").arg("--config").arg(path));
        process.wait_for_line("Starting metrics server");
        Self { process, interface, folder }
    }

    /// Replaces the configuration of [`Self::adit`], which adit takes by itself.
    pub(crate) fn reconfigure(&self, text: &str) {
        self.folder.write("adit.yaml", text);
    }

    /// The folder of the configuration.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

/// A name that no other test has: all namespaces share the folder of the UAPI sockets.
fn next_interface() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn start_adit(
    namespace: &Namespace,
    folder: &TempFolder,
    interface: &str,
    side: &Side,
    other: &Side,
) -> Process {
    folder.write("wg.conf", side.configuration(other, true));
    let configuration = format!(
        "mesh: {{ interface: {interface}, import: wg.conf }}\nadmin: {{ address: \"{ADMIN}\" }}\nlog: {{ level: DEBUG }}\n"
    );
    let path = folder.write("adit.yaml", configuration);
    let mut command = namespace.command(env!("CARGO_BIN_EXE_adit"));
    let mut process = Process::start("adit", command.arg("run").arg("--config").arg(path));
    // From here on it obeys signals.
    process.wait_for_line("Starting metrics server on ");
    process
}

/// False if the process has ended.
fn set_up_stock(
    process: &mut Process,
    namespace: &Namespace,
    folder: &TempFolder,
    interface: &str,
    [side, other]: [&Side; 2],
) -> bool {
    let path = folder.write("set.conf", side.configuration(other, false));
    let path = path.display().to_string();
    let is_set = wait_for("the UAPI socket", || match process.ended() {
        Some(_) => Some(false),
        None => namespace.run("wg", &["setconf", interface, &path]).status.success().then_some(true),
    });
    if !is_set {
        note(&format!("a stock peer ended as it started:\n{}", process.output()));
        return false;
    }
    namespace.ip(&["addr", "add", &format!("{}/24", side.inner(false)), "dev", interface]);
    namespace.ip(&["addr", "add", &format!("{}/64", side.inner(true)), "dev", interface, "nodad"]);
    namespace.ip(&["link", "set", interface, "mtu", &side.mtu.to_string(), "up"]);
    true
}

/// An iperf3 server in a namespace that serves one client.
pub(crate) struct Iperf(Process);

impl Iperf {
    #[track_caller]
    pub(crate) fn serve(namespace: &Namespace) -> Self {
        let mut command = namespace.command("iperf3");
        let mut server = Process::start("iperf3", command.args(["-s", "-1", "--forceflush"]));
        server.wait_for_line("Server listening");
        Self(server)
    }

    /// MiB that arrived. The server stops counting when the client has handed over its last byte, so that what was on the
    /// way then is missing.
    pub(crate) fn received_mib(report: &serde_json::Value) -> u64 {
        report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_default() >> 20
    }

    /// Runs the client; its report.
    #[track_caller]
    pub(crate) fn run(
        mut self,
        namespace: &Namespace,
        address: IpAddr,
        arguments: &[&str],
    ) -> serde_json::Value {
        let address = address.to_string();
        let output = namespace
            .run("iperf3", &[&["-c", &address, "-J", "--connect-timeout", "5000"], arguments].concat());
        assert!(output.status.success(), "iperf3: {}", String::from_utf8_lossy(&output.stdout));
        self.0.wait();
        serde_json::from_slice(&output.stdout).expect("iperf3 -J prints JSON")
    }
}

/// Handshake initiations at a WireGuard port; ends when dropped, or after ten seconds.
pub(crate) struct Flood(#[expect(dead_code, reason = "held until the flood is over")] Process);

impl Flood {
    /// From `namespace` to the right side of the cable: `forged`, `spoofed` or `single` (see handshake_flood.py).
    #[track_caller]
    pub(crate) fn start(namespace: &Namespace, kind: &str, port: u16, public_key: &str, rate: u32) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/peer/handshake_flood.py");
        let mut command = namespace.command("python3");
        command.args([script, kind, "192.0.2.2", &port.to_string(), public_key, &rate.to_string(), "10"]);
        Self(Process::start("flood", &mut command))
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip starts");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn wg(arguments: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new("wg")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`wg` is installed");
    let mut stdin = child.stdin.take().expect("piped");
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("`wg` ends");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// WireGuard's port in every namespace.
pub(crate) const PORT: u16 = 51_820;
/// The admin endpoint of adit in every namespace.
pub(crate) const ADMIN: &str = "127.0.0.1:20241";
