//! The binary under test as `adit run` with a configuration of the test's.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::process::Process;
use super::{TempFolder, http_get, wait_for};

/// A running `adit run`.
pub(crate) struct Adit {
    folder: TempFolder,
    process: Process,
    admin: SocketAddr,
}

impl Adit {
    /// Writes `configuration` to a folder of its own and starts; waits until the admin endpoint answers.
    #[track_caller]
    pub(crate) fn start(name: &str, configuration: &str) -> Self {
        Self::start_in(TempFolder::new(name), name, configuration)
    }

    /// The same in a folder that holds files of the test's.
    #[track_caller]
    pub(crate) fn start_in(folder: TempFolder, name: &str, configuration: &str) -> Self {
        Self::start_by(Command::new(BINARY), folder, name, configuration)
    }

    /// The same by a command that runs what its last argument names with the arguments that follow.
    #[track_caller]
    pub(crate) fn start_by(
        mut command: Command,
        folder: TempFolder,
        name: &str,
        configuration: &str,
    ) -> Self {
        let path = folder.write("adit.yaml", configuration);
        command.arg("run").arg("--config").arg(&path).stdin(Stdio::null());
        let mut process = Process::start(name, &mut command);
        let line = process.wait_for_line("Starting metrics server on ");
        let address = line.split("metrics server on ").nth(1).and_then(|rest| rest.split('/').next());
        let admin = address.and_then(|text| text.trim().parse().ok()).expect("the line names an address");
        Self { folder, process, admin }
    }

    /// Writes a new configuration over the old one.
    pub(crate) fn configure(&self, configuration: &str) {
        self.folder.write("adit.yaml", configuration);
    }

    pub(crate) fn folder(&self) -> &TempFolder {
        &self.folder
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// `/api/status`.
    pub(crate) fn status(&self) -> Value {
        let answer = http_get(self.admin, "/api/status").expect("the admin endpoint answers");
        serde_json::from_str(&answer.body).expect("the status is JSON")
    }

    /// One metric's value by the text before it; zero if it is not there.
    pub(crate) fn metric(&self, start: &str) -> f64 {
        let answer = http_get(self.admin, "/metrics").expect("the admin endpoint answers");
        let line = answer.body.lines().find(|line| line.starts_with(start));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }

    /// An admin path.
    pub(crate) fn get(&self, path: &str) -> super::Answer {
        http_get(self.admin, path).expect("the admin endpoint answers")
    }

    /// The bound address of an entry point.
    #[track_caller]
    pub(crate) fn entry_point(&self, name: &str) -> SocketAddr {
        let status = self.status();
        let entry_points = status["entry_points"].as_array().expect("a list");
        let found = entry_points.iter().find(|entry| entry["name"] == name);
        let address = found.and_then(|entry| entry["address"].as_str()).expect("the entry point listens");
        address.parse().expect("an address")
    }

    /// Where connectors dial.
    pub(crate) fn edge(&self) -> SocketAddr {
        let status = self.status();
        status["edge"]["address"].as_str().and_then(|text| text.parse().ok()).expect("an edge listens")
    }

    /// Waits until the edge has `count` connections that take requests.
    #[track_caller]
    pub(crate) fn wait_for_connections(&self, count: usize) {
        wait_for(&format!("{count} connections at the edge"), || {
            let status = self.status();
            let tunnels = status["edge"]["tunnels"].as_array()?;
            let all =
                tunnels.iter().flat_map(|tunnel| tunnel["connections"].as_array().into_iter().flatten());
            (all.filter(|connection| connection["draining"] == false).count() == count).then_some(())
        });
    }

    /// SIGTERM, and the exit code.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.process.signal("TERM");
        self.process.wait().code()
    }
}

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_adit");
