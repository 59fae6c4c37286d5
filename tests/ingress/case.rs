//! One case: what is sent and what must come back.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::servers::{Seen, Servers};

/// A case of the file.
pub(crate) struct Case(Value);

/// What curl saw.
#[derive(Debug, Default)]
struct Answer {
    status: u64,
    headers: Vec<(String, String)>,
    body: String,
}

impl Case {
    pub(crate) fn new(value: &Value) -> Self {
        Self(value.clone())
    }

    /// Runs it; the difference if there is one.
    pub(crate) fn run(&self, servers: &Servers) -> Result<(), String> {
        servers.forget();
        let dynamic = servers.fill_in(&self.0["config"].to_string());
        let daemon = Daemon::start(&dynamic, &self.0["entrypoint"]);
        let steps = self.0["steps"].as_array().cloned().unwrap_or_else(|| vec![self.0.clone()]);
        for step in &steps {
            step_of(&daemon, servers, &step["request"], &step["expected"])?;
        }
        check_routers(&daemon, &self.0["expected"])
    }
}

fn step_of(daemon: &Daemon, servers: &Servers, request: &Value, expected: &Value) -> Result<(), String> {
    if let Some(wait) = request["wait_ms_before"].as_u64() {
        crate::support::pause(Duration::from_millis(wait));
    }
    let repeat = request["repeat"].as_u64().unwrap_or(1);
    let answers: Vec<Answer> = if request["parallel"] == true {
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..repeat).map(|_| scope.spawn(|| ask(daemon, servers, request))).collect();
            asked.into_iter().map(|asked| asked.join().expect("curl does not panic")).collect()
        })
    } else {
        (0..repeat).map(|_| ask(daemon, servers, request)).collect()
    };
    check_counts(&answers, expected)?;
    let Some(last) = answers.last() else { return Err("nothing was asked".to_owned()) };
    check_answer(last, expected)?;
    check_seen(servers, "upstream", &expected["upstream"])?;
    check_seen(servers, "auth_request", &expected["auth_request"])
}

fn ask(daemon: &Daemon, servers: &Servers, request: &Value) -> Answer {
    let text = |name: &str, default: &str| request[name].as_str().unwrap_or(default).to_owned();
    let host = text("host", "example.com");
    let scheme = if request["tls"] == true { "https" } else { "http" };
    let mut command = Command::new("curl");
    // The target goes out as it stands; the host header and the server name are the case's, whatever they look like.
    command
        .args([
            "--silent",
            "--http1.1",
            "--insecure",
            "--path-as-is",
            "--max-time",
            "20",
            "--include",
            "--noproxy",
            "*",
        ])
        .args(["--request-target", &text("target", "/")])
        .args([
            "-H",
            &format!("Host: {host}").replace("Host: ", if host.is_empty() { "Host;" } else { "Host: " }),
        ])
        .args(["-H", "User-Agent:", "-H", "Accept:"]);
    let method = text("method", "GET");
    if method == "HEAD" {
        command.arg("--head");
    } else {
        command.args(["--request", &method]);
    }
    if let Some(ip) = request["client_ip"].as_str() {
        command.args(["--interface", ip]);
    }
    for header in request["headers"].as_array().into_iter().flatten() {
        let (name, value) = (header[0].as_str().unwrap_or_default(), header[1].as_str().unwrap_or_default());
        let value = servers.fill_in(value);
        command.args(["-H", &if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") }]);
    }
    let body = request["body"].as_str().map(str::to_owned);
    let body = body.or_else(|| {
        request["body_bytes"].as_u64().map(|count| "b".repeat(usize::try_from(count).unwrap_or(0)))
    });
    if let Some(body) = body {
        command.args(["--data-binary", &body, "-H", "Content-Type:"]);
    }
    let address = daemon.address();
    let url = if scheme == "https" {
        command.args(["--connect-to", &format!("::{address}")]);
        format!("https://{}/", host.split(':').next().unwrap_or_default())
    } else {
        format!("http://{address}/")
    };
    let output = command.arg(url).output().expect("curl is required by .ci/run");
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    if head.starts_with("HTTP/1.1 100") {
        return parse(body);
    }
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Answer { status, headers, body: body.to_owned() }
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
        let lines: Vec<&str> = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
            .collect();
        (!lines.is_empty()).then(|| lines.join(" || "))
    }

    fn backend(&self) -> String {
        self.header("X-Backend").unwrap_or_default()
    }
}

fn check_counts(answers: &[Answer], expected: &Value) -> Result<(), String> {
    let mut statuses: BTreeMap<String, u64> = BTreeMap::new();
    let mut backends: BTreeMap<String, u64> = BTreeMap::new();
    for answer in answers {
        *statuses.entry(answer.status.to_string()).or_default() += 1;
        *backends.entry(answer.backend()).or_default() += 1;
    }
    for (name, got) in [("statuses", statuses), ("backends", backends)] {
        if let Some(wanted) = expected[name].as_object() {
            let wanted: BTreeMap<String, u64> =
                wanted.iter().map(|(k, v)| (k.clone(), v.as_u64().unwrap_or(0))).collect();
            if got != wanted {
                return Err(format!("{name} {got:?}, expected {wanted:?}"));
            }
        }
    }
    Ok(())
}

fn check_answer(answer: &Answer, expected: &Value) -> Result<(), String> {
    let differ = |what: &str, got: &dyn std::fmt::Debug, wanted: &Value| {
        Err(format!("{what} {got:?}, expected {wanted}; answer {answer:?}"))
    };
    if let Some(status) = expected["status"].as_u64()
        && answer.status != status
    {
        return differ("status", &answer.status, &expected["status"]);
    }
    if let Some(backend) = expected["backend"].as_str()
        && answer.backend() != backend
    {
        return differ("backend", &answer.backend(), &expected["backend"]);
    }
    if let Some(body) = expected["body"].as_str()
        && answer.body != body
    {
        return differ("body", &answer.body, &expected["body"]);
    }
    for (name, wanted) in expected["response_headers"].as_object().into_iter().flatten() {
        let got = answer.header(name);
        let fits = match wanted.as_str() {
            Some("*") => got.is_some(),
            _ => got.as_deref() == Some(&plain(wanted)),
        };
        if !fits {
            return differ(&format!("response header {name}"), &got, wanted);
        }
    }
    for name in expected["response_headers_absent"].as_array().into_iter().flatten().filter_map(Value::as_str)
    {
        if answer.header(name).is_some() {
            return differ(&format!("response header {name}"), &answer.header(name), &Value::Null);
        }
    }
    Ok(())
}

/// Reads one part of what a server saw.
type Part = fn(&Seen) -> Option<String>;

fn check_seen(servers: &Servers, what: &str, expected: &Value) -> Result<(), String> {
    if expected.is_null() {
        return Ok(());
    }
    let seen = servers.seen(if what == "upstream" { "" } else { "auth-" });
    let Some(seen) = seen else { return Err(format!("{what} saw nothing")) };
    let differ = |field: &str, got: &Option<String>, wanted: &str| {
        Err(format!("{what} {field} {got:?}, expected {wanted:?}; saw {seen:?}"))
    };
    let fields: [(&str, Part); 3] = [
        ("method", |seen| Some(seen.method.clone())),
        ("target", |seen| Some(seen.target.clone())),
        ("host", |seen| seen.header("host")),
    ];
    for (field, read) in fields {
        if let Some(wanted) = expected[field].as_str() {
            let wanted = servers.fill_in(wanted);
            let got = read(&seen);
            if got.as_deref() != Some(&wanted) {
                return differ(field, &got, &wanted);
            }
        }
    }
    for (name, wanted) in expected["headers"].as_object().into_iter().flatten() {
        let wanted = servers.fill_in(&plain(wanted));
        let got = seen.header(name);
        if got.as_deref() != Some(&wanted) && !(wanted == "*" && got.is_some()) {
            return differ(name, &got, &wanted);
        }
    }
    for name in expected["headers_absent"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if seen.header(name).is_some() {
            return differ(name, &seen.header(name), "nothing");
        }
    }
    Ok(())
}

fn check_routers(daemon: &Daemon, expected: &Value) -> Result<(), String> {
    let routers = daemon.routers();
    if expected["file_rejected"] == true && !routers.is_empty() {
        return Err(format!("the file was taken: {routers:?}"));
    }
    for wanted in expected["disabled_routers"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !routers.iter().any(|(name, status)| name == wanted && status == "disabled") {
            return Err(format!("router {wanted} is not disabled: {routers:?}"));
        }
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
