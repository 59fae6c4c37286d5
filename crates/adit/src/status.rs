//! `adit status`: asks the admin endpoint of the running process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use serde_json::Value;

/// Prints what runs; exit code 1 if nothing answers or something is wrong.
pub(crate) fn main(matches: &ArgMatches) -> ExitCode {
    let address = matches.get_one::<String>("admin").map(String::as_str).unwrap_or_default();
    let body = match fetch(address, "/api/status") {
        Ok((_, body)) => body,
        Err(why) => return crate::fail(1, &format!("no answer from the admin endpoint {address}: {why}")),
    };
    if matches.get_flag("json") {
        crate::print(&body);
        return ExitCode::SUCCESS;
    }
    match serde_json::from_str::<Value>(&body) {
        Ok(status) => {
            crate::print(&crate::status_page::plain(&status));
            ExitCode::SUCCESS
        }
        Err(error) => crate::fail(1, &format!("the admin endpoint's answer cannot be read: {error}")),
    }
}

/// Status and content of one GET to an admin endpoint.
///
/// # Errors
/// The system's, or an answer that is not HTTP.
pub(crate) fn fetch(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not an HTTP answer");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}

/// Thousands of tunnels fit.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;
