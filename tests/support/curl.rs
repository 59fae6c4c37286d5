//! curl as the visitor: an HTTP client that nobody here wrote.

use std::net::SocketAddr;
use std::process::{Command, Output};

/// What curl saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) exit: Option<i32>,
    pub(crate) status: u16,
    pub(crate) version: String,
    pub(crate) body: Vec<u8>,
    pub(crate) headers: String,
}

impl Seen {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// `curl arguments… URL` with the URL's host connected to `address`.
#[track_caller]
pub(crate) fn curl(address: SocketAddr, url: &str, arguments: &[&str]) -> Seen {
    let Output { status, stdout, stderr } = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "120", "--noproxy", "*"])
        .args(["--connect-to", &format!("::{address}")])
        .args(["--dump-header", "/dev/stderr", "--write-out", "\n%{http_code} %{http_version}"])
        .args(arguments)
        .arg(url)
        .output()
        .expect("the caller required curl");
    let end = stdout.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let trailer = String::from_utf8_lossy(&stdout[end..]).trim().to_owned();
    let mut words = trailer.split(' ');
    Seen {
        exit: status.code(),
        status: words.next().and_then(|code| code.parse().ok()).unwrap_or(0),
        version: words.next().unwrap_or_default().to_owned(),
        body: stdout[..end].to_vec(),
        headers: String::from_utf8_lossy(&stderr).into_owned(),
    }
}
