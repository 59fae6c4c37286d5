//! `adit run` with a configuration of the test's own, on ports that the system chose.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use super::TempFolder;
use super::certificates::Certificates;
use super::process::Process;

/// A running daemon. Its standard output says where it listens.
pub(crate) struct Daemon {
    process: Process,
    folder: TempFolder,
}

impl Daemon {
    /// Starts the daemon with `yaml` as its adit.yaml and waits until it serves.
    #[track_caller]
    pub(crate) fn start(yaml: &str) -> Self {
        let folder = TempFolder::new("daemon");
        let file = folder.write("adit.yaml", yaml);
        let mut process = run(&file);
        process.wait_for_line("status ");
        Self { process, folder }
    }

    /// Address behind the word that the announcement starts a line with, such as `connectors` or `status`.
    #[track_caller]
    pub(crate) fn address(&mut self, word: &str, also: &str) -> SocketAddr {
        let output = self.process.output();
        let mut lines = output.lines().map(str::trim_start);
        let line = lines.find(|line| line.starts_with(word) && line.contains(also));
        let text = line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default();
        let address = text.trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/');
        let parsed = address.parse();
        assert!(parsed.is_ok(), "no {word} {also} in:\n{output}");
        parsed.expect("asserted just now")
    }

    /// Replaces adit.yaml under the running daemon.
    pub(crate) fn rewrite(&self, yaml: &str) {
        self.folder.write("adit.yaml", yaml);
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// An edge with the tunnel of the tests' token: two entry points, clear and TLS.
pub(crate) fn edge_yaml(certificates: &Certificates, listen: &str, hostnames: &str) -> String {
    let (certificate, key) = (certificates.certificate(), certificates.key());
    let (certificate, key) = (certificate.display(), key.display());
    format!(
        "entryPoints:\n  web: {{ address: \"127.0.0.1:0\" }}\n  secure: {{ address: \"127.0.0.1:0\", http: {{ tls: {{}} }} }}\n\
         tls:\n  certificates: [ {{ certFile: {certificate}, keyFile: {key} }} ]\n\
         edge:\n  listen: \"{listen}\"\n  certificate: {{ cert: {certificate}, key: {key} }}\n\
         \x20 public: [ web, secure ]\n  location: tst01\n  tunnels:\n\
         \x20   - {{ name: home, id: 11111111-2222-3333-4444-555555555555, hostnames: [ {hostnames} ],\n\
         \x20       secret: \"eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg=\" }}\n\
         admin: {{ address: \"127.0.0.1:0\" }}\n"
    )
}

fn run(file: &Path) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(["run", "--config"]).arg(file).stdin(Stdio::null());
    command.env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
    Process::start("daemon", &mut command)
}
