//! What the command line asks for, checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::hmac;
use clap::ArgMatches;
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Uri};

use crate::command::TIME_DEFAULT;
use crate::cpu;
use crate::error::BenchError;
use crate::plan::{Amount, Plan, Transport};
use crate::server::{DEFAULT_PORT, Limits, ServerOptions};
use crate::units::time_text;

/// What a client is to do.
#[derive(Debug)]
pub(crate) struct ClientOptions {
    pub(crate) target: Target,
    pub(crate) direction: Direction,
    pub(crate) parallel: u16,
    pub(crate) amount: Amount,
    /// HTTP requests that end the run.
    pub(crate) requests: Option<u64>,
    pub(crate) omit: Duration,
    /// `None` for the transport's default, `Some(0)` for no bound.
    pub(crate) rate: Option<u64>,
    pub(crate) length: Option<u64>,
    pub(crate) window: Option<u32>,
    pub(crate) congestion: Option<String>,
    pub(crate) no_delay: bool,
    pub(crate) connections: u16,
    pub(crate) family: Option<Family>,
    pub(crate) bind: Option<IpAddr>,
    pub(crate) secret: Option<hmac::Key>,
    pub(crate) watched: Vec<u32>,
    pub(crate) http: HttpOptions,
    pub(crate) interval: Option<Duration>,
    pub(crate) json: bool,
    pub(crate) title: Option<String>,
    pub(crate) thresholds: Thresholds,
}

/// Where the load goes.
#[derive(Debug)]
pub(crate) enum Target {
    Server { transport: Transport, host: String, port: u16 },
    Url(Uri),
}

/// Which ends send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
    Both,
}

/// Kind of address wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What only HTTP has.
#[derive(Debug)]
pub(crate) struct HttpOptions {
    pub(crate) is_http2: bool,
    pub(crate) connect_to: Option<(String, u16)>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) insecure: bool,
    pub(crate) threads: usize,
}

/// What a run must reach.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Thresholds {
    pub(crate) rate_min: Option<u64>,
    pub(crate) requests_min: Option<f64>,
    pub(crate) p99_max: Option<Duration>,
    pub(crate) failed_max: FailedMax,
    pub(crate) loss_percent_max: Option<f64>,
    pub(crate) cpu_per_gib_max: Option<f64>,
    pub(crate) cpu_per_requests_max: Option<f64>,
}

/// Requests that may fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FailedMax {
    Count(u64),
    /// Of those that end.
    Percent(f64),
}

impl Default for FailedMax {
    fn default() -> Self {
        Self::Count(0)
    }
}

impl ClientOptions {
    pub(crate) fn parse(matches: &ArgMatches) -> Result<Self, BenchError> {
        let target = target(matches)?;
        let is_http = matches!(target, Target::Url(_));
        let amount = match (one::<u64>(matches, "bytes"), one::<Duration>(matches, "time")) {
            (Some(bytes), _) => Amount::Bytes(bytes),
            (None, time) => Amount::Time(time.unwrap_or(TIME_DEFAULT)),
        };
        let direction = if matches.get_flag("bidir") {
            Direction::Both
        } else if matches.get_flag("reverse") || (is_http && !matches.get_flag("upload")) {
            Direction::Down
        } else {
            Direction::Up
        };
        let options = Self {
            direction,
            parallel: one(matches, "parallel").unwrap_or(1),
            amount,
            requests: one(matches, "requests"),
            omit: one(matches, "omit").unwrap_or_default(),
            rate: one(matches, "bitrate"),
            length: one(matches, "len"),
            window: one(matches, "window"),
            congestion: one(matches, "congestion"),
            no_delay: matches.get_flag("no-delay"),
            connections: one(matches, "connections").unwrap_or(1),
            family: match (matches.get_flag("ipv4"), matches.get_flag("ipv6")) {
                (true, _) => Some(Family::V4),
                (_, true) => Some(Family::V6),
                _ => None,
            },
            bind: one(matches, "bind"),
            secret: secret(matches)?,
            watched: watched(matches)?,
            http: http_options(matches)?,
            interval: one::<Duration>(matches, "interval").filter(|interval| !interval.is_zero()),
            json: matches.get_flag("json"),
            title: one(matches, "title"),
            thresholds: thresholds(matches),
            target,
        };
        options.check(matches)?;
        Ok(options)
    }

    /// The plan of a run over the bench's own protocol; datagrams take `segment_bytes` where no length is given.
    pub(crate) fn plan(&self, transport: Transport, segment_bytes: Option<u64>) -> Result<Plan, BenchError> {
        let (up, down) = match self.direction {
            Direction::Up => (self.parallel, 0),
            Direction::Down => (0, self.parallel),
            Direction::Both => (self.parallel, self.parallel),
        };
        let (length, rate) = match transport {
            Transport::Udp => (segment_bytes.unwrap_or(UDP_LENGTH).min(UDP_LENGTH), Some(UDP_RATE)),
            Transport::Tcp => (block(TCP_LENGTH, self.rate), None),
            Transport::Quic => (block(QUIC_LENGTH, self.rate), None),
        };
        let plan = Plan {
            transport,
            up,
            down,
            amount: self.amount,
            omit: self.omit,
            length: u32::try_from(self.length.unwrap_or(length)).unwrap_or(u32::MAX),
            rate: self.rate.or(rate).filter(|rate| *rate > 0),
            window: self.window,
            congestion: self.congestion.clone(),
            connections: self.connections.min(self.parallel.saturating_mul(2)),
            no_delay: self.no_delay,
        };
        plan.check().map_err(usage)?;
        Ok(plan)
    }

    /// Options that the target cannot honour are refused, not ignored.
    fn check(&self, matches: &ArgMatches) -> Result<(), BenchError> {
        let given = |name: &str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
        let (kind, foreign): (&str, &[&str]) = match &self.target {
            Target::Url(_) => ("HTTP", &["udp", "quic", "congestion", "no-delay", "fail-above-loss"]),
            Target::Server { transport, .. } => match transport {
                Transport::Tcp => ("TCP", &HTTP_ONLY_AND_LOSS),
                Transport::Udp => ("UDP", &HTTP_ONLY_AND_TCP),
                Transport::Quic => ("QUIC", &HTTP_ONLY_AND_SOCKETS),
            },
        };
        if let Some(name) = foreign.iter().find(|name| given(name)) {
            return Err(usage(&format!("--{name} means nothing for {kind}")));
        }
        if matches!(self.target, Target::Server { transport: Transport::Tcp | Transport::Udp, .. })
            && given("connections")
        {
            return Err(usage("--connections is for QUIC and HTTP/2: every other stream has its own"));
        }
        if matches!(self.target, Target::Url(_)) && given("connections") && !self.http.is_http2 {
            return Err(usage(
                "--connections is for QUIC and HTTP/2: HTTP/1.1 has one for each request at once",
            ));
        }
        self.check_length()?;
        if let Target::Url(url) = &self.target
            && url.scheme() == Some(&Scheme::HTTP)
            && let Some(name) = ["ca", "insecure"].iter().find(|name| given(name))
        {
            return Err(usage(&format!("--{name} means nothing for http://, which has no certificate")));
        }
        let length = match self.amount {
            Amount::Time(time) => time + self.omit,
            Amount::Bytes(_) => Duration::ZERO,
        };
        if self.interval.is_some_and(|interval| {
            interval < INTERVAL_MIN || length.as_secs_f64() / interval.as_secs_f64() > LINES_MAX
        }) {
            let interval = self.interval.map(time_text).unwrap_or_default();
            let text =
                format!("--interval {interval}: at least 100 ms, and at most 100,000 of them in a run");
            return Err(usage(&text));
        }
        if !self.omit.is_zero() && !matches!(self.amount, Amount::Time(_)) {
            return Err(usage("--omit is for runs of a given --time"));
        }
        if !self.omit.is_zero() && self.requests.is_some() {
            return Err(usage("--omit is for runs of a given --time"));
        }
        Ok(())
    }
}

impl ClientOptions {
    /// `--len` by what it is the length of; bodies of HTTP have any.
    fn check_length(&self) -> Result<(), BenchError> {
        let (Target::Server { transport, .. }, Some(length)) = (&self.target, self.length) else {
            return Ok(());
        };
        let lengths = transport.lengths();
        if u32::try_from(length).is_ok_and(|length| lengths.contains(&length)) {
            return Ok(());
        }
        let what = if *transport == Transport::Udp { "a datagram" } else { "a write" };
        Err(usage(&format!(
            "--len {length}: {what} over {} has {} to {} bytes",
            transport.name().to_uppercase(),
            lengths.start(),
            lengths.end()
        )))
    }
}

impl ServerOptions {
    pub(crate) fn parse(matches: &ArgMatches) -> Result<Self, BenchError> {
        let listen = listen(matches.get_one::<String>("listen").map(String::as_str).unwrap_or_default())?;
        let secret = secret(matches)?;
        if !listen.ip().is_loopback() && secret.is_none() && !matches.get_flag("no-secret") {
            return Err(usage(
                "whoever reaches a bench server can have it send: give --secret-file, or --no-secret if strangers may",
            ));
        }
        let number = |name: &str| usize::from(one::<u16>(matches, name).unwrap_or(1));
        Ok(Self {
            listen,
            udp_port: one(matches, "udp-port"),
            secret,
            limits: Limits {
                tests: number("max-tests"),
                tests_per_address: number("max-tests-per-address"),
                streams: one(matches, "max-streams").unwrap_or(1),
                duration: one(matches, "max-duration").unwrap_or(TIME_DEFAULT),
            },
            one_off: matches.get_flag("one-off"),
            watched: watched(matches)?,
            certificate: one::<PathBuf>(matches, "cert").zip(one::<PathBuf>(matches, "key")),
        })
    }
}

fn target(matches: &ArgMatches) -> Result<Target, BenchError> {
    let text = matches.get_one::<String>("target").map(String::as_str).unwrap_or_default();
    if text.contains("://") {
        let url: Uri = text.parse().map_err(|_| usage(&format!("`{text}` is no URL")))?;
        let known = url.scheme().is_some_and(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        if !known || url.host().is_none_or(str::is_empty) {
            return Err(usage(&format!("`{text}`: a URL begins with http:// or https:// and names a host")));
        }
        return Ok(Target::Url(url));
    }
    let transport = match (matches.get_flag("udp"), matches.get_flag("quic")) {
        (true, _) => Transport::Udp,
        (_, true) => Transport::Quic,
        _ => Transport::Tcp,
    };
    let (host, port) = host_and_port(text, DEFAULT_PORT)?;
    Ok(Target::Server { transport, host, port })
}

/// `host`, `host:port`, `[v6]:port` or a bare IPv6 address.
fn host_and_port(text: &str, default: u16) -> Result<(String, u16), BenchError> {
    let wrong = || usage(&format!("`{text}` is no HOST[:PORT]"));
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((ip.to_string(), default));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, port) = rest.split_once(']').ok_or_else(wrong)?;
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| wrong())?,
            None if port.is_empty() => default,
            None => return Err(wrong()),
        };
        return Ok((ip.to_owned(), port));
    }
    match text.split_once(':') {
        _ if text.is_empty() => Err(wrong()),
        Some((host, port)) if !host.is_empty() => Ok((host.to_owned(), port.parse().map_err(|_| wrong())?)),
        Some(_) => Err(wrong()),
        None => Ok((text.to_owned(), default)),
    }
}

/// `:port` listens on all addresses, as for entry points.
fn listen(text: &str) -> Result<SocketAddr, BenchError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, DEFAULT_PORT));
    }
    let port = text.strip_prefix(':').map(|port| (IpAddr::from([0u16; 8]), port));
    let (ip, port) = port.unwrap_or((Ipv4Addr::LOCALHOST.into(), text));
    let port =
        port.parse().map_err(|_| usage(&format!("--listen {text}: write ADDRESS, PORT or ADDRESS:PORT")))?;
    Ok(SocketAddr::new(ip, port))
}

fn http_options(matches: &ArgMatches) -> Result<HttpOptions, BenchError> {
    let connect_to = one::<String>(matches, "connect-to").map(|text| host_and_port(&text, 0)).transpose()?;
    if connect_to.as_ref().is_some_and(|(_, port)| *port == 0) {
        let given = one::<String>(matches, "connect-to").unwrap_or_default();
        return Err(usage(&format!("--connect-to {given}: write HOST:PORT")));
    }
    let headers = matches.get_many::<String>("header").into_iter().flatten().map(|text| {
        let wrong = || usage(&format!("--header `{text}`: write `Name: value`"));
        let (name, value) = text.split_once(':').ok_or_else(wrong)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
        Ok((name, HeaderValue::try_from(value.trim()).map_err(|_| wrong())?))
    });
    let headers: Vec<_> = headers.collect::<Result<_, BenchError>>()?;
    let framing = [http::header::CONTENT_LENGTH, http::header::TRANSFER_ENCODING, http::header::CONNECTION];
    if headers.iter().any(|(name, _)| framing.contains(name)) {
        return Err(usage("--header: the bench itself sets Content-Length, Transfer-Encoding or Connection"));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(HttpOptions {
        is_http2: matches.get_flag("http2"),
        connect_to,
        headers,
        ca: one(matches, "ca"),
        insecure: matches.get_flag("insecure"),
        threads: one::<u16>(matches, "threads").map_or((cores / 2).max(1), usize::from),
    })
}

fn thresholds(matches: &ArgMatches) -> Thresholds {
    Thresholds {
        rate_min: one(matches, "fail-below"),
        requests_min: one(matches, "fail-below-requests"),
        p99_max: one(matches, "fail-above-p99"),
        failed_max: one(matches, "fail-above-failed").unwrap_or_default(),
        loss_percent_max: one(matches, "fail-above-loss"),
        cpu_per_gib_max: one(matches, "fail-above-cpu"),
        cpu_per_requests_max: one(matches, "fail-above-cpu-requests"),
    }
}

/// A file that others may write, or that is empty, is no secret.
fn secret(matches: &ArgMatches) -> Result<Option<hmac::Key>, BenchError> {
    let Some(path) = matches.get_one::<PathBuf>("secret-file") else { return Ok(None) };
    let option = format!("--secret-file {}", path.display());
    let text = std::fs::read(path).map_err(|error| usage(&format!("{option}: {error}")))?;
    let secret = text.trim_ascii();
    if secret.len() < SECRET_BYTES_MIN {
        return Err(usage(&format!("{option}: {} bytes; a secret has at least 8", secret.len())));
    }
    Ok(Some(hmac::Key::new(hmac::HMAC_SHA256, secret)))
}

fn watched(matches: &ArgMatches) -> Result<Vec<u32>, BenchError> {
    let pids: Vec<u32> = matches.get_many::<u32>("cpu-of").into_iter().flatten().copied().collect();
    if pids.len() > cpu::PIDS_MAX {
        return Err(usage(&format!("--cpu-of: {} processes; at most 32", pids.len())));
    }
    match pids.iter().find(|pid| !cpu::is_there(**pid)) {
        Some(pid) => Err(usage(&format!("--cpu-of: there is no process {pid}"))),
        None => Ok(pids),
    }
}

fn one<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Option<T> {
    matches.get_one::<T>(name).cloned()
}

fn usage(why: &str) -> BenchError {
    BenchError::Usage(why.to_owned())
}

/// Bytes of a write: at a low rate no more than a tenth of a second of it, so that one write does not exceed the rate.
fn block(most: u64, rate: Option<u64>) -> u64 {
    rate.filter(|rate| *rate > 0).map_or(most, |rate| (rate / 80).clamp(1, most))
}

/// As iperf3 has it.
const TCP_LENGTH: u64 = 128 * 1024;
/// The tunnel's batches are as large.
const QUIC_LENGTH: u64 = 256 * 1024;
/// Fits every path whose links carry 1,500 bytes, VPNs of common overhead included; smaller where TCP's segments are.
const UDP_LENGTH: u64 = 1400;
/// Where no `--bitrate` is given, as iperf3 has it: UDP does not slow down by itself.
const UDP_RATE: u64 = 1_000_000;
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Intervals of one run that are kept for the JSON document.
const LINES_MAX: f64 = 100_000.0;
/// Shorter ones are tried out by whoever has seen one handshake.
const SECRET_BYTES_MIN: usize = 8;

const HTTP_ONLY_AND_LOSS: [&str; 10] = [
    "http2",
    "connect-to",
    "header",
    "ca",
    "insecure",
    "threads",
    "requests",
    "fail-below-requests",
    "fail-above-failed",
    "fail-above-loss",
];
const HTTP_ONLY_AND_TCP: [&str; 11] = [
    "http2",
    "connect-to",
    "header",
    "ca",
    "insecure",
    "threads",
    "requests",
    "fail-below-requests",
    "fail-above-failed",
    "congestion",
    "no-delay",
];
const HTTP_ONLY_AND_SOCKETS: [&str; 12] = [
    "http2",
    "connect-to",
    "header",
    "ca",
    "insecure",
    "threads",
    "requests",
    "fail-below-requests",
    "fail-above-failed",
    "congestion",
    "no-delay",
    "fail-above-loss",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<ClientOptions, BenchError> {
        let line = ["bench", "client"].iter().chain(arguments);
        let matches = crate::command::command().try_get_matches_from(line).unwrap();
        ClientOptions::parse(matches.subcommand_matches("client").unwrap())
    }

    #[test]
    fn targets_are_servers_or_urls() {
        let server = |text: &str| match parse(&[text]).unwrap().target {
            Target::Server { host, port, .. } => (host, port),
            Target::Url(url) => (url.to_string(), 0),
        };
        assert_eq!(server("hub"), ("hub".to_owned(), DEFAULT_PORT));
        assert_eq!(server("hub:7"), ("hub".to_owned(), 7));
        assert_eq!(server("fd00::1"), ("fd00::1".to_owned(), DEFAULT_PORT));
        assert_eq!(server("[fd00::1]:7"), ("fd00::1".to_owned(), 7));
        assert_eq!(server("http://x/y").1, 0);
        for bad in ["", ":7", "hub:x", "[fd00::1", "ftp://x/"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn http_downloads_and_everything_else_uploads() {
        assert_eq!(parse(&["hub"]).unwrap().direction, Direction::Up);
        assert_eq!(parse(&["hub", "-R"]).unwrap().direction, Direction::Down);
        assert_eq!(parse(&["http://hub/"]).unwrap().direction, Direction::Down);
        assert_eq!(parse(&["http://hub/", "--upload"]).unwrap().direction, Direction::Up);
        assert_eq!(parse(&["http://hub/", "--bidir"]).unwrap().direction, Direction::Both);
    }

    #[test]
    fn a_write_is_a_tenth_of_a_second_of_a_low_rate() {
        let length = |arguments: &[&str], transport| {
            parse(&[&["hub"], arguments].concat()).unwrap().plan(transport, None).unwrap().length
        };
        assert_eq!(length(&["-b", "1"], Transport::Tcp), 1);
        assert_eq!(length(&["-b", "1M"], Transport::Tcp), 12_500);
        assert_eq!(length(&["-q", "-b", "1M"], Transport::Quic), 12_500);
        assert_eq!(length(&["-b", "1M", "-l", "64K"], Transport::Tcp), 65_536);
        assert_eq!(length(&["-b", "0"], Transport::Tcp), 131_072);
        assert_eq!(length(&["-b", "10G"], Transport::Tcp), 131_072);
    }

    #[test]
    fn an_option_that_would_do_nothing_is_refused() {
        for arguments in [
            &["hub", "--http2"][..],
            &["hub", "--connections", "2"],
            &["http://hub/", "-u"],
            &["http://hub/", "-C", "cubic"],
            &["hub", "-q", "-C", "cubic"],
            &["hub", "-n", "1M", "-O", "1"],
            &["hub", "--requests", "7"],
            &["hub", "-i", "1ms"],
            &["hub", "--fail-above-failed", "1"],
            &["http://hub/", "--ca", "ca.pem"],
            &["http://hub/", "-k"],
        ] {
            assert!(matches!(parse(arguments), Err(BenchError::Usage(_))), "{arguments:?}");
        }
    }

    #[test]
    fn a_length_is_refused_by_what_it_is_the_length_of() {
        for (arguments, expected) in [
            (&["hub", "-l", "0"][..], "--len 0: a write over TCP has 1 to 4194304 bytes"),
            (&["hub", "-q", "-l", "5M"], "--len 5242880: a write over QUIC"),
            (&["hub", "-u", "-l", "10"], "--len 10: a datagram over UDP has 24 to 65507 bytes"),
        ] {
            let error = parse(arguments).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse(&["http://hub/", "-l", "0"]).is_ok());
        assert!(parse(&["https://hub/", "-k"]).is_ok());
    }

    #[test]
    fn a_server_for_strangers_has_to_be_asked_for() {
        let parse = |arguments: &[&str]| {
            let line = ["bench", "server"].iter().chain(arguments);
            let matches = crate::command::command().try_get_matches_from(line).unwrap();
            ServerOptions::parse(matches.subcommand_matches("server").unwrap())
        };
        assert!(parse(&[]).unwrap().listen.ip().is_loopback());
        assert!(parse(&["--listen", ":5210"]).is_err());
        assert!(parse(&["--listen", "0.0.0.0", "--no-secret"]).is_ok());
        assert_eq!(parse(&["--listen", "0"]).unwrap().listen, SocketAddr::from(([127, 0, 0, 1], 0)));
    }
}
