//! An edge, a connector behind it and what a journey needs of both.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::certificates::Certificates;
use crate::support::connector::TOKEN;
use crate::support::daemon::{Daemon, edge_yaml};
use crate::support::process::Process;
use crate::support::visitor::visit;
use crate::support::{find_program, skip, wait_for};

/// The host that every journey asks for.
pub(crate) const HOST: &str = "app.home.example";
/// What the tunnel may serve.
pub(crate) const HOSTNAMES: &str = "\"*.home.example\"";

/// Whose connector.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Adit,
    Cloudflared,
}

/// An edge with two entry points and a connector that is connected to it.
pub(crate) struct Way {
    pub(crate) edge: Daemon,
    pub(crate) connector: Process,
    pub(crate) web: SocketAddr,
    pub(crate) secure: SocketAddr,
    pub(crate) certificates: Certificates,
    kind: Kind,
    origin: String,
}

impl Way {
    /// Starts both ends and waits until a request gets through; `None` where that connector is absent.
    #[track_caller]
    pub(crate) fn start(kind: Kind, origin: &str) -> Option<Self> {
        let binary = binary(kind)?;
        let certificates = certificates();
        let mut edge = Daemon::start(&edge_yaml(&certificates, "127.0.0.1:0", HOSTNAMES));
        let connectors = edge.address("connectors", "");
        let connector = connect(&binary, &certificates, connectors, origin, "30s");
        let web = edge.address("visitors", "entry point web");
        let secure = edge.address("visitors", "entry point secure");
        let way = Self { edge, connector, web, secure, certificates, kind, origin: origin.to_owned() };
        way.wait_until_through();
        Some(way)
    }

    /// Waits until the origin answers a visitor.
    #[track_caller]
    pub(crate) fn wait_until_through(&self) {
        wait_for("a request to get through", || {
            visit(self.web, HOST, "/through").ok().filter(|seen| seen.status == 200)
        });
    }

    /// One more connector of the same kind for the same tunnel.
    pub(crate) fn another_connector(&mut self, grace_period: &str) -> Process {
        let binary = binary(self.kind).expect("there was one at the start");
        let address = self.edge.address("connectors", "");
        connect(&binary, &self.certificates, address, &self.origin, grace_period)
    }
}

/// An authority and a certificate for the names that connectors and visitors check.
pub(crate) fn certificates() -> Certificates {
    Certificates::for_names(&["quic.cftunnel.com", "h2.cftunnel.com", "probe.cftunnel.com", HOST])
}

/// Where the connector's binary is; says why not.
pub(crate) fn binary(kind: Kind) -> Option<PathBuf> {
    if kind == Kind::Adit {
        return Some(PathBuf::from(env!("CARGO_BIN_EXE_adit")));
    }
    let found = std::env::var_os("CLOUDFLARED").map(PathBuf::from).or_else(|| find_program("cloudflared"));
    if found.is_none() {
        // Not in any package archive: even where peers are required this one may be absent.
        crate::support::note("skipped: no cloudflared on PATH and none named in CLOUDFLARED");
    } else if found.as_ref().is_some_and(|path| !path.is_file()) {
        skip("CLOUDFLARED names no file");
        return None;
    }
    found
}

/// Starts a connector with two connections to the edge at `address`.
pub(crate) fn connect(
    binary: &PathBuf,
    certificates: &Certificates,
    address: SocketAddr,
    origin: &str,
    grace_period: &str,
) -> Process {
    let address = address.to_string();
    let mut command = Command::new(binary);
    command.args(["tunnel", "--no-autoupdate", "--protocol", "quic", "--metrics", "127.0.0.1:0"]);
    command.args([
        "--edge",
        &address,
        "--edge",
        &address,
        "--ha-connections",
        "2",
        "--grace-period",
        grace_period,
    ]);
    command.arg("--cacert").arg(certificates.authority());
    command.args(["run", "--token", TOKEN, "--url", origin]);
    command.env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
    Process::start("connector", command.stdin(Stdio::null()))
}
