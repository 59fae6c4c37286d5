//! The servers that the case file names.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// All of them, each on its own port.
pub(crate) struct Servers {
    addresses: BTreeMap<&'static str, SocketAddr>,
    state: Arc<State>,
}

/// What the servers saw since the case began.
#[derive(Default)]
pub(crate) struct State {
    seen: Mutex<BTreeMap<&'static str, Seen>>,
    flaky: Mutex<u32>,
}

/// A request as a server got it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    /// Counts up over all servers.
    order: usize,
}

impl Seen {
    /// All lines of a field, joined as the case file joins them.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let lines: Vec<&str> = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
            .collect();
        (!lines.is_empty()).then(|| lines.join(" || "))
    }
}

impl Servers {
    pub(crate) fn start() -> Self {
        let state = Arc::new(State::default());
        let mut addresses = BTreeMap::new();
        for name in NAMES {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            addresses.insert(name, listener.local_addr().expect("bound"));
            if name == "refused.test" {
                // Bound once to get a port that nobody else has; closed again.
                continue;
            }
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || serve(name, stream, &state));
                }
            });
        }
        Self { addresses, state }
    }

    /// Puts real addresses in place of the names.
    pub(crate) fn fill_in(&self, text: &str) -> String {
        self.addresses
            .iter()
            .fold(text.to_owned(), |text, (name, address)| text.replace(name, &address.to_string()))
    }

    pub(crate) fn forget(&self) {
        self.state.seen.lock().expect("no one panics").clear();
        *self.state.flaky.lock().expect("no one panics") = 0;
    }

    /// The last request that any of the auth servers (`auth-`), or of the others, got.
    pub(crate) fn seen(&self, prefix: &str) -> Option<Seen> {
        let seen = self.state.seen.lock().expect("no one panics");
        let matching = seen.iter().filter(|(name, _)| name.starts_with("auth-") == (prefix == "auth-"));
        matching.max_by_key(|(_, seen)| seen.order).map(|(_, seen)| seen.clone())
    }
}

fn serve(name: &'static str, stream: TcpStream, state: &State) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Some((seen, body_bytes)) = read_request(&mut reader) {
        let echo = |header: &str| seen.header(header);
        if let Some(delay) = echo("X-Echo-Delay-Ms").and_then(|ms| ms.parse().ok()) {
            crate::support::pause(Duration::from_millis(delay));
        }
        let flaky = {
            let order = ORDER.fetch_add(1, Ordering::Relaxed);
            state.seen.lock().expect("no one panics").insert(name, Seen { order, ..seen.clone() });
            let mut flaky = state.flaky.lock().expect("no one panics");
            if name == "flaky.test" {
                *flaky += 1;
            }
            *flaky % 2 == 1
        };
        let answer = answer(name, &seen, body_bytes, flaky);
        let answered = writer.write_all(&answer).and_then(|()| writer.flush());
        if answered.is_err() || seen.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
            return;
        }
    }
}

fn answer(name: &str, seen: &Seen, body_bytes: usize, flaky: bool) -> Vec<u8> {
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
    let (status, body) = match name {
        "auth-ok.test" => {
            add("Remote-User", "alice");
            add("Remote-Groups", "admins");
            add("X-Secret", "s3cret");
            add("Set-Cookie", "sess=1");
            (200, String::new())
        }
        "auth-204.test" => (204, String::new()),
        "auth-401.test" => {
            add("WWW-Authenticate", "Bearer");
            (401, "denied".to_owned())
        }
        "auth-302.test" => {
            add("Location", "https://login.test/start");
            (302, String::new())
        }
        "auth-302rel.test" => {
            add("Location", "/login");
            (302, String::new())
        }
        "errpage.test" => {
            add("X-Backend", "errpage");
            (200, "custom error page".to_owned())
        }
        "flaky.test" => {
            add("X-Backend", "flaky");
            if flaky { (503, String::new()) } else { (200, "ok".to_owned()) }
        }
        name => {
            let name = name.trim_end_matches(".test");
            add("X-Backend", name);
            let number = |header: &str| seen.header(header).and_then(|value| value.parse::<usize>().ok());
            if seen.header("X-Echo-No-Type").is_none() {
                add(
                    "Content-Type",
                    &seen.header("X-Echo-Type").unwrap_or("text/plain; charset=utf-8".to_owned()),
                );
            }
            for pair in seen.header("X-Echo-Set").unwrap_or_default().split('|') {
                if let Some((name, value)) = pair.split_once(':') {
                    add(name.trim(), value.trim());
                }
            }
            let status = number("X-Echo-Status").and_then(|s| u16::try_from(s).ok()).unwrap_or(200);
            let body =
                number("X-Echo-Bytes").map_or(format!("echo {name} {body_bytes}"), |count| "a".repeat(count));
            (status, body)
        }
    };
    let mut out = format!("HTTP/1.1 {status} x\r\n");
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    let bodiless = seen.method == "HEAD" || status == 204 || status == 304;
    if status != 204 && status != 304 {
        out.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    out.push_str("\r\n");
    if !bodiless {
        out.push_str(&body);
    }
    out.into_bytes()
}

/// A request with its content read and counted.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(Seen, usize)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let mut seen = Seen {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        headers: Vec::new(),
        order: 0,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        seen.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if let Some(length) = seen.header("content-length").and_then(|length| length.parse().ok()) {
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        return Some((seen, length));
    }
    if seen.header("transfer-encoding").is_none() {
        return Some((seen, 0));
    }
    let mut total = 0;
    loop {
        let mut size = String::new();
        reader.read_line(&mut size).ok()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        total += size;
        if size == 0 {
            return Some((seen, total));
        }
    }
}

static ORDER: AtomicUsize = AtomicUsize::new(1);
const NAMES: [&str; 10] = [
    "echo-a.test",
    "echo-b.test",
    "flaky.test",
    "errpage.test",
    "auth-ok.test",
    "auth-204.test",
    "auth-401.test",
    "auth-302rel.test",
    "auth-302.test",
    "refused.test",
];
