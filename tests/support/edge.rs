//! Drives tests/peer/edge.py, an edge whose QUIC and Cap'n Proto are someone else's.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Instant;

use serde_json::{Value, json};

use super::certificates::Certificates;
use super::{PATIENCE, project_root};

/// Events that wait for the test at most; an edge that says more blocks until the test looks.
const EVENTS_MAX: usize = 65_536;

/// A running edge. Events are kept in order; what one `wait_for` passes over stays for the next.
pub(crate) struct Edge {
    child: Child,
    commands: ChildStdin,
    incoming: Receiver<Value>,
    kept: VecDeque<Value>,
    certificates: Certificates,
    addresses: Vec<String>,
}

impl Edge {
    /// Starts an edge with `sockets` addresses, each a port of its own.
    #[track_caller]
    pub(crate) fn start(python: &Path, sockets: usize) -> Self {
        Self::start_at(python, &vec!["127.0.0.1:0".to_owned(); sockets], Certificates::for_edge())
    }

    /// The same for HTTP/2: TCP at each port; what arrives by UDP vanishes.
    #[track_caller]
    pub(crate) fn start_http2(python: &Path, sockets: usize) -> Self {
        let addresses = vec!["127.0.0.1:0".to_owned(); sockets];
        Self::start_with(python, &addresses, Certificates::for_edge(), "http2")
    }

    /// Starts an edge at the given addresses with the given certificate, for example in place of one that was killed.
    #[track_caller]
    pub(crate) fn start_at(python: &Path, addresses: &[String], certificates: Certificates) -> Self {
        Self::start_with(python, addresses, certificates, "quic")
    }

    #[track_caller]
    fn start_with(python: &Path, addresses: &[String], certificates: Certificates, transport: &str) -> Self {
        let mut command = Command::new(python);
        command.arg(project_root().join("tests/peer/edge.py"));
        command.arg("--certificate").arg(certificates.certificate()).arg("--key").arg(certificates.key());
        command.args(["--transport", transport]);
        for address in addresses {
            command.args(["--listen", address]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the caller required a Python that works");
        let commands = child.stdin.take().expect("standard input is a pipe");
        let output = child.stdout.take().expect("standard output is a pipe");
        let (sender, incoming) = sync_channel(EVENTS_MAX);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let event =
                    serde_json::from_str(&line).unwrap_or_else(|_| json!({"event": "noise", "line": line}));
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        let addresses = Vec::new();
        let mut edge = Self { child, commands, incoming, kept: VecDeque::new(), certificates, addresses };
        let listening = edge.wait_for("listening", |_| true);
        edge.addresses = strings(&listening["edges"]);
        edge
    }

    /// Where the edge listens, one `host:port` per socket.
    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    pub(crate) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Kills the edge without a word to its connectors, and hands back what a successor at the same addresses needs.
    pub(crate) fn kill(mut self) -> (Vec<String>, Certificates) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let other = Certificates::for_names(&["unused.example"]);
        (std::mem::take(&mut self.addresses), std::mem::replace(&mut self.certificates, other))
    }

    /// Gives the edge a command; the protocol is described at the top of tests/peer/edge.py.
    #[track_caller]
    pub(crate) fn tell(&mut self, command: &Value) {
        let sent = writeln!(self.commands, "{command}").and_then(|()| self.commands.flush());
        assert!(sent.is_ok(), "the edge takes no more commands: {sent:?}");
    }

    /// The first event of this name that `wanted` accepts, whether it has come already or is still to come. It is taken out.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            let found = self.kept.iter().skip(seen).position(|event| event["event"] == name && wanted(event));
            if let Some(position) = found {
                return self.kept.remove(seen + position).expect("the position was found just now");
            }
            seen = self.kept.len();
            let left = deadline.saturating_duration_since(Instant::now());
            match self.incoming.recv_timeout(left) {
                Ok(event) => self.kept.push_back(event),
                Err(error) => {
                    let told = self.kept.iter().filter(|event| event["event"] != "ping");
                    let told: Vec<String> = told.map(Value::to_string).collect();
                    let why =
                        if error == RecvTimeoutError::Timeout { "in time" } else { "before the edge ended" };
                    panic!("no event {name:?} {why}; seen:\n{}", told.join("\n"));
                }
            }
        }
    }

    /// Events of this name that have come and were not taken out.
    pub(crate) fn seen(&mut self, name: &str) -> Vec<Value> {
        self.kept.extend(self.incoming.try_iter());
        self.kept.iter().filter(|event| event["event"] == name).cloned().collect()
    }

    /// Waits for the next registration that the edge accepted and returns its fields.
    #[track_caller]
    pub(crate) fn wait_for_registration(&mut self) -> Value {
        self.wait_for("registered", |_| true)
    }

    /// Sends a request and returns head and end of the response.
    #[track_caller]
    pub(crate) fn exchange(&mut self, request: &Value) -> Exchange {
        self.tell(request);
        let id = request["id"].clone();
        let head = self.wait_for("head", |event| event["id"] == id);
        let end = self.wait_for("response", |event| event["id"] == id);
        Exchange { head, end }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came back for one request.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// Event `head`: `error`, `status`, `headers`.
    pub(crate) head: Value,
    /// Event `response`: `bytes`, `sha256`, `text`, `end`, `code`.
    pub(crate) end: Value,
}

impl Exchange {
    pub(crate) fn status(&self) -> Option<u64> {
        self.head["status"].as_u64()
    }

    pub(crate) fn error(&self) -> &str {
        self.head["error"].as_str().unwrap_or_default()
    }

    pub(crate) fn text(&self) -> &str {
        self.end["text"].as_str().unwrap_or_default()
    }

    /// Values of a response header, in order; names compare without regard to case.
    pub(crate) fn header(&self, name: &str) -> Vec<String> {
        let headers = self.head["headers"].as_array().cloned().unwrap_or_default();
        let pairs = headers.iter().map(strings);
        pairs.filter(|pair| pair[0].eq_ignore_ascii_case(name)).map(|pair| pair[1].clone()).collect()
    }
}

/// The strings of a JSON array of strings.
pub(crate) fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}
