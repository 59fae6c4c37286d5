//! The binary under test as a connector: `adit tunnel … run …` against a test edge.
//!
//! `ADIT_CONNECTOR` names another binary with the same command line, such as a stock cloudflared: that checks the tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::edge::Edge;
use super::http_get;
use super::process::Process;

/// A token for account `account`, tunnel 11111111-2222-3333-4444-555555555555 and a secret of 32 times `x`; only the edge
/// looks at it. Base64 of the JSON in tunnel-protocol.md §7.1.
pub(crate) const TOKEN: &str = "eyJhIjoiYWNjb3VudCIsInMiOiJlSGg0ZUhoNGVIaDRlSGg0ZUhoNGVIaDRlSGg0ZUhoNGVIaDRlSGg0ZUhnPSIsInQiOiIxMTExMTExMS0yMjIyLTMzMzMtNDQ0NC01NTU1NTU1NTU1NTUifQ==";
pub(crate) const TUNNEL: &str = "11111111222233334444555555555555";

/// What a test wants on the command line; the rest is the same for all.
#[derive(Default)]
pub(crate) struct Options {
    /// `--ha-connections`; 0 means 1.
    pub(crate) connections: u8,
    /// `--protocol`; empty means `quic`.
    pub(crate) protocol: &'static str,
    /// `--grace-period`; empty means 2 s.
    pub(crate) grace_period: &'static str,
    /// More flags before `run`.
    pub(crate) before_run: Vec<String>,
    /// Flags after `run`; without any: the token.
    pub(crate) after_run: Vec<String>,
    /// The authority that the edge's certificate must come from; without one: the edge's own.
    pub(crate) authority: Option<PathBuf>,
}

/// A running connector.
pub(crate) struct Connector {
    process: Process,
}

impl Connector {
    /// Starts a connector whose requests all go to `origin`.
    #[track_caller]
    pub(crate) fn start(edge: &Edge, origin: &str, mut options: Options) -> Self {
        options.after_run.extend(["--url".to_owned(), origin.to_owned()]);
        Self::start_with(edge, &options)
    }

    /// Starts a connector whose origins stand in the options.
    #[track_caller]
    pub(crate) fn start_with(edge: &Edge, options: &Options) -> Self {
        let mut command = command();
        command.args([
            "tunnel",
            "--no-autoupdate",
            "--no-prechecks",
            "--protocol",
            "quic",
            "--metrics",
            "127.0.0.1:0",
        ]);
        command.args(["--ha-connections", &options.connections.max(1).to_string()]);
        command.args(["--protocol", if options.protocol.is_empty() { "quic" } else { options.protocol }]);
        let grace_period = if options.grace_period.is_empty() { "2s" } else { options.grace_period };
        command.args(["--grace-period", grace_period, "--cacert"]);
        command.arg(options.authority.clone().unwrap_or_else(|| edge.certificates().authority()));
        for address in edge.addresses() {
            command.args(["--edge", address]);
        }
        command.args(&options.before_run).arg("run");
        if !options
            .after_run
            .iter()
            .any(|argument| argument.starts_with("--cred") || argument.starts_with("--token"))
        {
            command.args(["--token", TOKEN]);
        }
        command.args(&options.after_run);
        Self { process: Process::start("connector", command.stdin(Stdio::null())) }
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Sends a signal by name.
    #[track_caller]
    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Where the admin endpoint listens, as the log says.
    #[track_caller]
    pub(crate) fn admin(&mut self) -> SocketAddr {
        let line = self.process.wait_for_line("Starting metrics server on");
        let address = line.split("server on ").nth(1).and_then(|rest| rest.split('/').next());
        let address = address.and_then(|text| text.trim_matches('"').parse().ok());
        assert!(address.is_some(), "no address in {line:?}");
        address.expect("asserted just now")
    }

    /// `/ready` as (status, JSON); `None` while nobody answers.
    pub(crate) fn ready(&mut self) -> Option<(u16, Value)> {
        let answer = http_get(self.admin(), "/ready")?;
        Some((answer.status, serde_json::from_str(&answer.body).ok()?))
    }
}

/// The binary under test, without arguments and with nothing of the caller's that would change its behaviour.
pub(crate) fn command() -> Command {
    let binary = std::env::var_os("ADIT_CONNECTOR").unwrap_or_else(|| env!("CARGO_BIN_EXE_adit").into());
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TUNNEL_") {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
    command
}
