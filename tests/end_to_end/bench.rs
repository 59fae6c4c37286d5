//! `adit bench`: both ends as processes, what they print as JSON, and how they end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::adit::Adit;
use crate::support::process::Process;
use crate::support::{TempFolder, free_tcp_port, free_udp_port, pause, require};
use crate::{start_connector, start_edge};

/// A bench server on a port of its own.
struct Server {
    process: Process,
    address: SocketAddr,
}

impl Server {
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        command.args(["bench", "server", "--listen", "127.0.0.1:0"]).args(arguments).stdin(Stdio::null());
        let mut process = Process::start("bench server", &mut command);
        let line = process.wait_for_line("Bench server listening on ");
        let address = line.split_whitespace().nth(4).and_then(|text| text.parse().ok());
        Self { process, address: address.expect("the line names an address") }
    }

    fn client(&self, arguments: &[&str]) -> Output {
        client(&self.address.to_string(), arguments)
    }

    fn http(&self, arguments: &[&str]) -> Output {
        client(&format!("http://{}/", self.address), arguments)
    }

    /// A run whose JSON is wanted.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Value {
        json(&self.client(&[arguments, &["--json"]].concat()))
    }
}

fn client(target: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(["bench", "client", target]).args(arguments);
    command.output().expect("the binary starts")
}

#[track_caller]
fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{text}\n{errors}", output.status);
    serde_json::from_str(&text).expect("JSON")
}

fn number(value: &Value, path: &str) -> u64 {
    let found = value.pointer(path);
    assert!(found.is_some_and(Value::is_u64), "{path} in {value:#}");
    found.and_then(Value::as_u64).unwrap_or_default()
}

/// Bytes of all intervals that count.
fn interval_bytes(run: &Value, sum: &str) -> u64 {
    let intervals = run["intervals"].as_array().expect("a list");
    let counted = intervals.iter().filter(|interval| interval[sum]["omitted"] == false);
    counted.map(|interval| number(interval, &format!("/{sum}/bytes"))).sum()
}

/// What holds for every run that moved bytes without loss.
#[track_caller]
fn check(run: &Value, name: &str, protocol: &str) {
    assert_eq!(run["start"]["test_start"]["protocol"], protocol);
    let sent = number(run, &format!("/end/sum_sent{name}/bytes"));
    assert!(sent > 0, "{run:#}");
    assert_eq!(sent, number(run, &format!("/end/sum_received{name}/bytes")), "{run:#}");
    assert_eq!(sent, interval_bytes(run, &format!("sum{name}")), "{run:#}");
    assert!(run["end"]["cpu_seconds"]["server"]["per_gib"].is_number(), "{run:#}");
    assert!(run["end"]["limited_by"].as_str().is_some_and(|why| !why.is_empty()), "{run:#}");
    assert_eq!(run["end"]["failures"], Value::Array(Vec::new()), "{run:#}");
}

#[test]
fn a_run_over_tcp_counts_the_same_on_both_ends_in_every_direction() {
    let server = Server::start(&[]);
    let up = server.run(&["-t", "0.5", "-i", "0.1", "-P", "3"]);
    check(&up, "", "TCP");
    assert_eq!(up["start"]["connected"].as_array().map(Vec::len), Some(3));
    assert!(up["intervals"].as_array().is_some_and(|intervals| intervals.len() >= 3), "{up:#}");
    assert!(number(&up, "/end/latency_ms/loaded/count") > 0);
    check(&server.run(&["-t", "0.3", "-R"]), "", "TCP");
    let both = server.run(&["-n", "8M", "--bidir", "-P", "2"]);
    check(&both, "", "TCP");
    check(&both, "_bidir_reverse", "TCP");
    assert_eq!(number(&both, "/end/sum_sent/bytes"), 8 << 20);
    assert_eq!(number(&both, "/end/sum_received_bidir_reverse/bytes"), 8 << 20);
}

#[test]
fn a_run_over_quic_counts_the_same_on_both_ends_in_every_direction() {
    let server = Server::start(&[]);
    check(&server.run(&["--quic", "-t", "0.5", "-P", "3", "--connections", "2"]), "", "QUIC");
    let down = server.run(&["--quic", "-n", "4M", "-R", "-P", "2"]);
    check(&down, "", "QUIC");
    assert_eq!(number(&down, "/end/sum_sent/bytes"), 4 << 20);
    check(&server.run(&["--quic", "-n", "2M", "--bidir"]), "_bidir_reverse", "QUIC");
}

#[test]
fn datagrams_are_numbered_and_paced_both_ways() {
    let server = Server::start(&[]);
    for direction in ["--upload", "--reverse"] {
        let run = server.run(&["-u", "-b", "8M", "-l", "1000", "-n", "200000", "-P", "2", direction]);
        assert_eq!(number(&run, "/end/sum_sent/packets"), 200, "{run:#}");
        // Those that are lost are among them.
        assert_eq!(number(&run, "/end/sum_received/packets"), 200, "{run:#}");
        assert_eq!(number(&run, "/end/sum/bytes"), 200_000, "{run:#}");
        assert!(run["end"]["sum"]["jitter_ms"].is_number() && run["end"]["streams"][0]["udp"].is_object());
    }
    let timed = server.run(&["-u", "-b", "4M", "-t", "0.5", "--bidir"]);
    assert!(number(&timed, "/end/sum_received/packets") > 0, "{timed:#}");
    assert!(number(&timed, "/end/sum_received_bidir_reverse/packets") > 0, "{timed:#}");
}

#[test]
fn a_run_over_http_counts_requests_and_bodies_in_both_versions_with_and_without_tls() {
    let server = Server::start(&[]);
    let port = server.address.port();
    for target in [format!("http://127.0.0.1:{port}/"), format!("https://localhost:{port}/")] {
        for version in [&["-4"][..], &["-4", "--http2", "--connections", "2"]] {
            let trust: &[&str] = if target.starts_with("https") { &["--insecure"] } else { &[] };
            let run = |arguments: &[&str]| {
                json(&client(&target, &[arguments, version, trust, &["--json"]].concat()))
            };
            let protocol = if version.len() > 1 { "HTTP/2" } else { "HTTP/1.1" };
            let small = run(&["--requests", "300", "-P", "8", "-l", "700"]);
            check(&small, "", protocol);
            assert_eq!(number(&small, "/end/requests/done"), 300, "{small:#}");
            assert_eq!(number(&small, "/end/latency_ms/loaded/count"), 300);
            assert_eq!(number(&small, "/end/sum_received/bytes"), 300 * 700);
            let large = run(&["-n", "6M", "-l", "1M", "-P", "3", "--upload"]);
            check(&large, "", protocol);
            assert_eq!(number(&large, "/end/sum_received/bytes"), 6 << 20);
            let both = run(&["-n", "2M", "-l", "256K", "-P", "2", "--bidir"]);
            check(&both, "_bidir_reverse", protocol);
        }
    }
    let timed = json(&server.http(&["-t", "0.3", "-O", "0.2", "--json"]));
    assert_eq!(number(&timed, "/end/sum_received/bytes"), interval_bytes(&timed, "sum"));
}

#[test]
fn a_bench_server_behind_a_tunnel_is_measured_through_it() {
    let server = Server::start(&[]);
    let edge = start_edge("127.0.0.1:0");
    let mut connector = start_connector(&edge, &format!("http://{}", server.address));
    let (web, connector) = (edge.entry_point("web").to_string(), connector.process().id().to_string());
    let run = |arguments: &[&str]| {
        let fixed = ["--connect-to", &web, "--cpu-of", &connector, "--json"];
        json(&client("http://bench.home.test/", &[arguments, &fixed].concat()))
    };
    check(&run(&["-n", "8M", "-l", "2M", "-P", "4"]), "", "HTTP/1.1");
    check(&run(&["-n", "8M", "-l", "2M", "-P", "4", "--upload"]), "", "HTTP/1.1");
    let small = run(&["--requests", "200", "-P", "8"]);
    assert_eq!(number(&small, "/end/requests/done"), 200);
    let watched = &small["end"]["cpu_seconds"]["client"]["others"][0];
    assert_eq!(watched["pid"].to_string(), connector);
}

#[test]
fn the_json_document_has_the_keys_of_iperf3() {
    if !require("iperf3") {
        return;
    }
    let server = Server::start(&[]);
    for (ours, theirs) in [
        (&["-t", "1", "-i", "0.5"][..], &["-t", "1", "-i", "0.5"][..]),
        (&["-t", "1", "-i", "0.5", "--bidir"], &["-t", "1", "-i", "0.5", "--bidir"]),
        (&["-t", "1", "-u"], &["-t", "1", "-u"]),
    ] {
        let port = free_tcp_port().to_string();
        let mut iperf3 =
            Process::start("iperf3", Command::new("iperf3").args(["-s", "-1", "-p", &port, "--forceflush"]));
        iperf3.wait_for_line("Server listening");
        let output =
            Command::new("iperf3").args(["-c", "127.0.0.1", "-p", &port, "--json"]).args(theirs).output();
        let wanted = json(&output.expect("iperf3 starts"));
        let mut missing = Vec::new();
        compare(&wanted, &server.run(ours), "", &mut missing);
        assert!(missing.is_empty(), "{theirs:?}: {missing:?}");
    }
}

/// Notes the paths that `wanted` has and `found` has not; of lists, the first entries are compared.
fn compare(wanted: &Value, found: &Value, path: &str, missing: &mut Vec<String>) {
    // What iperf3 tells of itself and of its sockets, or of another run than ours.
    const OWN: [&str; 1] = ["snd_wnd"];
    match (wanted, found) {
        (Value::Object(wanted), _) => {
            for (key, value) in wanted {
                let path = format!("{path}/{key}");
                if OWN.iter().any(|own| path.ends_with(own)) || path.contains("max_snd_wnd") {
                    continue;
                }
                match found.get(key) {
                    Some(found) => compare(value, found, &path, missing),
                    None => missing.push(path),
                }
            }
        }
        (Value::Array(wanted), Value::Array(found)) => {
            if let (Some(wanted), Some(found)) = (wanted.first(), found.first()) {
                compare(wanted, found, &format!("{path}/0"), missing);
            }
        }
        _ => {}
    }
}

#[test]
fn a_threshold_that_is_missed_is_the_exit_status() {
    let server = Server::start(&[]);
    let code = |arguments: &[&str]| server.http(&[&["--requests", "50"], arguments].concat()).status.code();
    assert_eq!(
        code(&["--fail-below", "1K", "--fail-above-p99", "60s", "--fail-above-cpu", "1000000"]),
        Some(0)
    );
    assert_eq!(code(&["--fail-below", "900T"]), Some(3));
    assert_eq!(code(&["--fail-above-p99", "1us"]), Some(3));
    assert_eq!(code(&["--fail-below-requests", "1000000000"]), Some(3));
    let missed = json_of_failure(&server.client(&["-n", "1M", "--fail-above-cpu", "0", "--json"]), 3);
    assert!(
        missed["end"]["thresholds_missed"][0].as_str().is_some_and(|text| text.contains("CPU")),
        "{missed:#}"
    );
}

/// An origin that answers its requests by number: with a status, or not at all.
fn origin(answer: impl Fn(u64) -> Option<u16> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let (answer, count) = (Arc::new(answer), Arc::new(AtomicU64::new(0)));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
            thread::spawn(move || {
                let mut stream = stream;
                let mut request = [0; 4096];
                // A request of the bench is one segment.
                while stream.read(&mut request).is_ok_and(|length| length > 0) {
                    let Some(status) = answer(count.fetch_add(1, Ordering::Relaxed)) else { continue };
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    address
}

#[test]
fn any_failed_request_fails_a_run_unless_some_are_allowed() {
    let flaky = origin(|number| Some(if number % 10 == 9 { 503 } else { 200 }));
    let run = |arguments: &[&str]| {
        client(&format!("http://{flaky}/x"), &[&["--requests", "100", "--json"], arguments].concat())
    };
    let failed = json_of_failure(&run(&[]), 3);
    assert_eq!(number(&failed, "/end/requests/failed_count"), 10, "{failed:#}");
    assert_eq!(number(&failed, "/end/latency_ms/loaded/count"), 100, "{failed:#}");
    assert!(failed["end"]["thresholds_missed"][0].as_str().is_some_and(|text| text.contains("failed")));
    json_of_failure(&run(&["--fail-above-failed", "9"]), 3);
    json_of_failure(&run(&["--fail-above-failed", "9.9%"]), 3);
    json(&run(&["--fail-above-failed", "10"]));
    json(&run(&["--fail-above-failed", "10%"]));
}

#[test]
fn a_server_that_stops_answering_fails_a_p99() {
    for (arguments, answers) in [(&["-P", "2"][..], 300), (&["-P", "4"], 10)] {
        let silent = origin(move |number| (number < answers).then_some(200));
        let fixed = ["-t", "1.5", "--fail-above-p99", "100ms", "--json"];
        let run = json_of_failure(&client(&format!("http://{silent}/x"), &[&fixed, arguments].concat()), 3);
        assert!(number(&run, "/end/latency_ms/loaded/count") > answers, "{run:#}");
        assert!(
            run["end"]["latency_ms"]["waiting"]["silence"].as_f64().is_some_and(|ms| ms > 100.0),
            "{run:#}"
        );
        assert!(run["end"]["latency_ms"]["loaded"]["max"].as_f64().is_some_and(|ms| ms > 100.0), "{run:#}");
    }
}

/// Relays to `to`; what marks the end of a warm-up waits for a second.
fn slow_marks(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for visitor in listener.incoming().flatten() {
            thread::spawn(move || relay(visitor, to));
        }
    });
    address
}

fn relay(mut visitor: TcpStream, to: SocketAddr) -> Option<()> {
    let mut first = [0; 4096];
    let length = visitor.read(&mut first).ok()?;
    if String::from_utf8_lossy(&first[..length]).contains("/mark HTTP") {
        pause(Duration::from_secs(1));
    }
    let mut origin = TcpStream::connect(to).ok()?;
    origin.write_all(&first[..length]).ok()?;
    let (mut back, mut visitors) = (origin.try_clone().ok()?, visitor.try_clone().ok()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut visitors);
        let _ = visitors.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut visitor, &mut origin);
    origin.shutdown(Shutdown::Write).ok()
}

#[test]
fn what_comes_while_the_end_of_the_warm_up_is_told_is_warm_up() {
    let server = Server::start(&[]);
    let target = format!("http://{}/", slow_marks(server.address));
    // 100 requests a second of each stream.
    let arguments = ["-t", "0.5", "-O", "0.3", "-P", "2", "-b", "819200", "-l", "1K", "-i", "0", "--json"];
    let run = json(&client(&target, &arguments));
    let done = number(&run, "/end/requests/done");
    let waiting = number(&run, "/end/latency_ms/waiting/count");
    // One request of each stream may end between two looks.
    assert!(done.abs_diff(number(&run, "/end/latency_ms/loaded/count") - waiting) <= 4, "{run:#}");
    assert!((1..150).contains(&done), "{run:#}");
    let omitted: Vec<&Value> = run["intervals"].as_array().expect("a list").iter().collect();
    assert!(omitted[0]["sum"]["seconds"].as_f64().is_some_and(|seconds| seconds >= 1.3), "{run:#}");
    assert_eq!(number(&run, "/end/sum_received/bytes"), interval_bytes(&run, "sum"));
}

#[track_caller]
fn json_of_failure(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_server_with_a_secret_serves_those_who_know_it() {
    let folder = TempFolder::new("secret");
    let secret = folder.write("secret", "correct horse\n").display().to_string();
    let wrong = folder.write("wrong", "battery staple").display().to_string();
    let server = Server::start(&["--secret-file", &secret]);
    for (arguments, code) in [
        (&["-n", "1M", "--secret-file", &secret][..], 0),
        (&["-n", "1M", "--secret-file", &wrong], 4),
        (&["-n", "1M"], 4),
    ] {
        assert_eq!(server.client(arguments).status.code(), Some(code), "{arguments:?}");
        let http = server.http(&[arguments, &["-l", "64K"]].concat());
        assert_eq!(http.status.code(), Some(code), "{arguments:?}: {http:?}");
    }
    // A client with a secret does not trust a server without one.
    let open = Server::start(&[]);
    assert_eq!(open.client(&["-n", "1M", "--secret-file", &secret]).status.code(), Some(4));
    assert_eq!(open.http(&["-n", "1M", "--secret-file", &secret]).status.code(), Some(4));
}

#[test]
fn a_server_holds_its_bounds_and_says_which() {
    let server = Server::start(&["--max-streams", "4", "--max-duration", "2s", "--max-tests", "1"]);
    let refused = |output: Output, word: &str| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{errors}");
        assert!(errors.contains(word), "{errors}");
    };
    refused(server.client(&["-t", "0.1", "-P", "5"]), "limit");
    refused(server.client(&["-t", "1h"]), "limit");
    let mut long = Command::new(env!("CARGO_BIN_EXE_adit"));
    long.args(["bench", "client", &server.address.to_string(), "-t", "2", "-i", "0.1", "-b", "1M"]);
    let mut long = Process::start("long", &mut long);
    long.wait_for_line("0.00-0.");
    refused(server.client(&["-t", "0.1"]), "busy");
    assert!(long.wait().success(), "{}", long.output());
}

#[test]
fn nobody_there_a_stranger_and_a_bad_line_are_told_apart() {
    let nobody = format!("127.0.0.1:{}", free_tcp_port());
    let output = client(&nobody, &["-t", "0.1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot connect"), "{output:?}");
    assert_eq!(client(&format!("http://{nobody}/"), &["-t", "0.1"]).status.code(), Some(1));
    let document = json_of_failure(&client(&nobody, &["-t", "0.1", "--json"]), 1);
    assert!(document["error"].as_str().is_some_and(|error| error.contains("cannot connect")));
    assert_eq!(client(&nobody, &["--http2"]).status.code(), Some(64));
    // An HTTP origin that is not ours: loaded by a URL with a path, refused as a server.
    let edge = start_edge("127.0.0.1:0");
    let _connector = start_connector(&edge, "hello_world");
    let web = edge.entry_point("web").to_string();
    let to = |url: &str, arguments: &[&str]| client(url, &[&["--connect-to", &web], arguments].concat());
    assert_eq!(to("http://a.home.test/", &["-t", "0.1"]).status.code(), Some(1));
    let run = json(&to("http://a.home.test/bytes?count=100", &["--requests", "20", "--json"]));
    assert_eq!(number(&run, "/end/sum_received/bytes"), 2000);
    assert!(run["end"]["cpu_seconds"]["server"].is_null() && run["end"]["cpu_seconds"]["all"].is_null());
    // The client's share alone is not what a threshold of both ends is about.
    let arguments = ["--requests", "5", "--json", "--fail-above-cpu", "1000000"];
    let missed = json_of_failure(&to("http://a.home.test/bytes?count=100", &arguments), 3);
    let why = missed["end"]["thresholds_missed"][0].as_str();
    assert!(why.is_some_and(|why| why.contains("the server's CPU time is unknown")), "{missed:#}");
}

/// A run of many bytes against `server` that has begun.
#[track_caller]
fn begin(server: &Server, arguments: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(["bench", "client", &server.address.to_string(), "-n", "1G", "-b", "10M", "-i", "0.1"]);
    let mut client = Process::start("client", command.args(arguments));
    client.wait_for_line("0.00-0.");
    client
}

#[test]
fn a_server_that_stands_still_ends_a_run_of_bytes() {
    // Its kernel goes on acknowledging.
    for arguments in [&["-R"][..], &["--quic"]] {
        let server = Server::start(&[]);
        let mut client = begin(&server, arguments);
        server.process.signal("STOP");
        assert_eq!(client.wait().code(), Some(1), "{}", client.output());
        // What was measured until then is told.
        for text in ["Failed: the connection to the server ended", "CPU-seconds of the client", "Limited by"]
        {
            assert!(client.output().contains(text), "{}", client.output());
        }
    }
}

#[test]
fn a_signal_ends_a_client_whose_server_stands_still() {
    let server = Server::start(&[]);
    let mut clients = [begin(&server, &[]), begin(&server, &["--bidir"])];
    server.process.signal("STOP");
    for (client, signal) in clients.iter_mut().zip(["INT", "TERM"]) {
        client.signal(signal);
        assert_eq!(client.wait().code(), Some(130), "{}", client.output());
        for text in ["Limited by", "Interrupted", "no figures of the server"] {
            assert!(client.output().contains(text), "{}", client.output());
        }
    }
}

#[test]
fn a_run_that_breaks_off_keeps_its_report() {
    let mut server = Server::start(&[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(["bench", "client", &server.address.to_string(), "-t", "60", "-i", "0.1", "--json"]);
    let client = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
    server.process.wait_for_line("begins tcp");
    // Long enough for some intervals.
    pause(Duration::from_secs(1));
    server.process.signal("TERM");
    let run = json_of_failure(&client.wait_with_output().expect("the client ends"), 4);
    assert!(run["error"].as_str().is_some_and(|error| error.contains("stopping")), "{run:#}");
    assert_eq!(number(&run, "/start/connected/0/remote_port"), u64::from(server.address.port()));
    assert!(interval_bytes(&run, "sum") > 0 && number(&run, "/end/sum_sent/bytes") > 0, "{run:#}");
}

#[test]
fn a_low_rate_is_not_exceeded_by_a_single_write() {
    let server = Server::start(&[]);
    for transport in [&["-4"][..], &["--quic"]] {
        let run = server.run(&[transport, &["-b", "80K", "-t", "0.5"]].concat());
        assert_eq!(number(&run, "/start/test_start/blksize"), 1000, "{run:#}");
        // Five writes fit half a second; one more is at its end.
        assert!(number(&run, "/end/sum_sent/bytes") <= 6000, "{run:#}");
    }
}

#[test]
fn a_port_that_is_taken_and_a_client_that_vanishes_are_told_in_words_that_are_true() {
    let mut server = Server::start(&[]);
    let mut second = Command::new(env!("CARGO_BIN_EXE_adit"));
    second.args(["bench", "server", "--listen", &server.address.to_string()]);
    let output = second.output().expect("the binary starts");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot listen on 127.0.0.1:"), "{output:?}");
    let client = begin(&server, &[]);
    client.signal("KILL");
    server.process.wait_for_line("the client is gone");
}

#[test]
fn a_signal_ends_either_side_in_order() {
    let mut server = Server::start(&[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(["bench", "client", &server.address.to_string(), "-t", "60", "-i", "0.1"]);
    let mut first = Process::start("client", &mut command);
    first.wait_for_line("0.00-0.");
    first.signal("INT");
    assert_eq!(first.wait().code(), Some(130));
    assert!(
        first.output().contains("Limited by") && first.output().contains("Interrupted"),
        "{}",
        first.output()
    );
    let mut second = Process::start("client", &mut command);
    second.wait_for_line("0.00-0.");
    server.process.signal("TERM");
    assert_eq!(second.wait().code(), Some(4));
    assert!(second.output().contains("stopping"), "{}", second.output());
    assert_eq!(server.process.wait().code(), Some(0));
}

#[test]
fn one_run_is_all_that_a_server_with_one_off_serves() {
    let mut server = Server::start(&["--one-off"]);
    check(&server.run(&["-n", "1M"]), "", "TCP");
    assert_eq!(server.process.wait().code(), Some(0));
    let mut server = Server::start(&["-1"]);
    check(&json(&server.http(&["--requests", "3", "--json"])), "", "HTTP/1.1");
    assert_eq!(server.process.wait().code(), Some(0));
}

#[test]
fn a_client_of_another_version_is_refused_by_that_name() {
    let server = Server::start(&[]);
    let mut stream = TcpStream::connect(server.address).expect("the server listens");
    let mut header = [0; 32];
    header[..10].copy_from_slice(b"adit-bench");
    header[11] = 99;
    header[12] = b'C';
    stream.write_all(&header).expect("32 bytes fit");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server closes");
    let answer: Value = serde_json::from_slice(&answer[4..]).expect("a frame of JSON");
    assert_eq!((answer["error"].as_str(), answer["version"].as_u64()), (Some("version"), Some(2)));
}

/// `adit mesh genkey` and the public key of what it prints.
fn mesh_key() -> (String, String) {
    let adit = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    };
    let text = |output: Output| String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let private = text(adit().args(["mesh", "genkey"]).output().expect("the binary starts"));
    let mut public = adit().args(["mesh", "pubkey"]).spawn().expect("the binary starts");
    let written = public.stdin.take().expect("it is piped").write_all(private.as_bytes());
    written.expect("the binary reads its input");
    (private, text(public.wait_with_output().expect("the binary ends")))
}

#[test]
fn a_mesh_without_an_interface_is_measured_through_entry_points() {
    let server = Server::start(&[]);
    let (near, far) = (mesh_key(), mesh_key());
    let far_port = free_udp_port();
    let node = |own: &str, number: u8, peer: String| {
        format!(
            "mesh:\n  mode: netstack\n  private-key: \"{own}\"\n  address: 10.77.0.{number}/24\n{peer}\
             admin: {{ address: \"127.0.0.1:0\" }}\ntcp:\n  routers:\n    bench: {{ rule: \"HostSNI(`*`)\", \
             entryPoints: [ bench ], service: bench }}\n"
        )
    };
    let peer = |key: &str, number: u8, endpoint: &str| {
        format!(
            "  peers:\n    other: {{ public-key: \"{key}\", allowed-ips: [ 10.77.0.{number}/32 ]{endpoint} }}\n"
        )
    };
    let service = |address: &str| {
        format!(
            "  services:\n    bench: {{ loadBalancer: {{ servers: [ {{ address: \"{address}\" }} ] }} }}\n"
        )
    };
    let far_config = format!(
        "{}{}entryPoints:\n  bench: {{ address: \":5210\", on: mesh }}\n",
        node(&far.0, 2, format!("  listen-port: {far_port}\n{}", peer(&near.1, 1, ""))),
        service(&server.address.to_string())
    );
    let near_config = format!(
        "{}{}entryPoints:\n  bench: {{ address: \"127.0.0.1:0\" }}\n",
        node(&near.0, 1, peer(&far.1, 2, &format!(", endpoint: \"127.0.0.1:{far_port}\""))),
        service("10.77.0.2:5210")
    );
    let _far = Adit::start("far", &far_config);
    let near = Adit::start("near", &near_config);
    let target = near.entry_point("bench").to_string();
    let run = |arguments: &[&str]| json(&client(&target, &[arguments, &["--json"]].concat()));
    check(&run(&["-n", "4M", "-P", "2"]), "", "TCP");
    check(&run(&["-n", "4M", "-R"]), "", "TCP");
    check(&json(&client(&format!("http://{target}/"), &["--requests", "50", "--json"])), "", "HTTP/1.1");
}
