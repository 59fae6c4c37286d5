//! What every test that runs real processes needs: programs found or skipped with a reason, temporary folders and processes
//! that end with the test, waiting for conditions instead of for time.
#![allow(dead_code, reason = "each test target uses its own part of the support")]
#![allow(clippy::panic, reason = "this is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) mod adit;
pub(crate) mod certificates;
pub(crate) mod connector;
pub(crate) mod curl;
pub(crate) mod edge;
pub(crate) mod haproxy;
pub(crate) mod knot;
pub(crate) mod load;
pub(crate) mod netns;
pub(crate) mod nginx;
pub(crate) mod origin;
pub(crate) mod pebble;
pub(crate) mod process;
pub(crate) mod visitor;

/// How long a condition may take before the test fails; generous, because two cores are shared with everything else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The folder that holds Cargo.toml of the workspace.
pub(crate) fn project_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("the binary's crate lies two folders below the root").to_owned()
}

/// Whether `program` is there. If it is not: a failure where all peers are required, a printed skip elsewhere.
pub(crate) fn require(program: &str) -> bool {
    let found = find_program(program).is_some();
    if !found {
        skip(&format!("`{program}` is not installed"));
    }
    found
}

/// Says why a test does not run, or fails where `ADIT_REQUIRE_PEERS` is set.
pub(crate) fn skip(reason: &str) {
    let required = std::env::var_os("ADIT_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(!required, "ADIT_REQUIRE_PEERS is set and {reason}");
    note(&format!("skipped: {reason}"));
}

/// Straight to the terminal: the harness would swallow what a test that passes prints.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Path of a program on PATH, or in the folders for daemons that an ordinary user's PATH lacks.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(daemons).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A Python that has what most tests need of tests/peer/requirements.txt.
pub(crate) fn require_python() -> Option<PathBuf> {
    require_python_with("aioquic, capnp, cryptography, websockets")
}

/// `ADIT_PYTHON`, or the first `python3`, if it has those of the packages of tests/peer/requirements.txt.
pub(crate) fn require_python_with(packages: &str) -> Option<PathBuf> {
    let python = std::env::var_os("ADIT_PYTHON").map(PathBuf::from).or_else(|| find_program("python3"));
    let usable = python.filter(|python| {
        let imports = format!("import {packages}");
        let status = Command::new(python).args(["-c", &imports]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    });
    if usable.is_none() {
        skip("no Python with tests/peer/requirements.txt installed (name one in ADIT_PYTHON)");
    }
    usable
}

/// A folder of its own, removed with everything in it when dropped.
pub(crate) struct TempFolder(PathBuf);

impl TempFolder {
    pub(crate) fn new(purpose: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("adit-{purpose}-{}-{number}", std::process::id()));
        let mut folders = folders();
        fs::create_dir_all(&path).expect("the folder for temporary files can be written");
        folders.insert(path.clone());
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a temporary folder takes a file");
        path
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        folders().remove(&self.0);
    }
}

/// Ends all processes and removes all folders that would be dropped if the program ended in order, and keeps whoever wants
/// others waiting: the program ends next.
pub(crate) fn end_all() {
    let folders = folders();
    process::end_all();
    for folder in folders.iter() {
        let _ = fs::remove_dir_all(folder);
    }
    std::mem::forget(folders);
}

/// Returns at once, or never if [`end_all`] is under way.
pub(crate) fn go_on() {
    drop(folders());
}

/// Folders that are not dropped yet.
fn folders() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static FOLDERS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until `look` finds something; fails with `what` when patience ends.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago. Prefer port 0 wherever the program can say what it got.
pub(crate) fn free_tcp_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// A UDP port of 127.0.0.1 that was free a moment ago.
pub(crate) fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    socket.local_addr().expect("a bound socket has an address").port()
}

/// What a plain HTTP/1.1 GET brought back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// One GET on a connection of its own; `None` where nobody answers.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Lets time pass where a case is about time passing.
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
