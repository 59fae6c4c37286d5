//! `adit run` with one router for everything, and the Python peers that talk to it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::adit::Adit;
use crate::support::certificates::Certificates;
use crate::support::process::Process;
use crate::support::{PATIENCE, project_root};

/// One entry point and one service.
pub(crate) struct Ingress {
    /// Inside of `entryPoints.web` beside the address.
    pub(crate) entry_point: String,
    /// Whether there is an entry point `plain` in the clear beside it.
    pub(crate) plain: bool,
    /// URL of the only server.
    pub(crate) server: String,
    /// Sections of the file beside entry points, router and service.
    pub(crate) more: String,
}

impl Ingress {
    /// In the clear, on a port that the system chooses.
    pub(crate) fn to(server: &str) -> Self {
        let entry_point = "address: \"127.0.0.1:0\"".to_owned();
        Self { entry_point, plain: false, server: server.to_owned(), more: String::new() }
    }

    /// With TLS on the entry point.
    pub(crate) fn with_tls(mut self, certificates: &Certificates) -> Self {
        self.entry_point.push_str(", http: { tls: {} }");
        self.more.push_str(&format!(
            "tls:\n  certificates:\n    - {{ certFile: {}, keyFile: {} }}\n",
            certificates.certificate().display(),
            certificates.key().display()
        ));
        self
    }

    /// With more options of the entry point, in YAML's flow form.
    pub(crate) fn with(mut self, options: &str) -> Self {
        self.entry_point.push_str(", ");
        self.entry_point.push_str(options);
        self
    }

    #[track_caller]
    pub(crate) fn start(self) -> Adit {
        let Self { entry_point, plain, server, more } = self;
        let plain = if plain { "  plain: { address: \"127.0.0.1:0\" }\n" } else { "" };
        let configuration = format!(
            "entryPoints:\n  web: {{ {entry_point} }}\n{plain}admin: {{ address: \"127.0.0.1:0\" }}\n{more}\
             http:\n  routers:\n    r: {{ rule: \"PathPrefix(`/`)\", service: s }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"{server}\" }} ], serversTransport: t }} }}\n  \
             serversTransports:\n    t: {{ insecureSkipVerify: true }}\n"
        );
        Adit::start("interop", &configuration)
    }
}

/// Starts a script of tests/peer and waits until it says `listening on`; returns where.
#[track_caller]
pub(crate) fn serve(python: &Path, script: &str, arguments: &[&str]) -> (Process, SocketAddr) {
    let mut command = peer(Command::new(python), script, arguments);
    let mut process = Process::start(script, &mut command);
    let line = process.wait_for_line("listening on ");
    let port = line.rsplit(' ').next().and_then(|port| port.trim().parse().ok()).expect("a port");
    (process, SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Runs a script of tests/peer to its end and reads the JSON that it prints.
#[track_caller]
pub(crate) fn ask(python: &Path, script: &str, arguments: &[&str]) -> Value {
    let mut command = Command::new("timeout");
    command.arg((PATIENCE * 6).as_secs().to_string()).arg(python);
    let output = peer(command, script, arguments).output().expect("python starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = serde_json::from_str(&text);
    assert!(report.is_ok(), "{script} printed {text}\n{}", String::from_utf8_lossy(&output.stderr));
    report.expect("asserted just now")
}

/// Fails with every entry of a peer's report that is not `ok`.
#[track_caller]
pub(crate) fn assert_all_ok(report: &Value) {
    let checks = report.as_object().expect("names and results");
    let failures: Vec<String> = checks
        .iter()
        .filter(|(_, result)| *result != "ok")
        .map(|(name, result)| format!("{name}: {result}"))
        .collect();
    assert!(!checks.is_empty() && failures.is_empty(), "{}", failures.join("\n"));
}

fn peer(mut command: Command, script: &str, arguments: &[&str]) -> Command {
    command.arg(project_root().join("tests/peer").join(script)).args(arguments).stdin(Stdio::null());
    command
}
