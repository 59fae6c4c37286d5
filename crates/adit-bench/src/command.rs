//! The command line of `adit bench`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, Command, value_parser};

use crate::options::FailedMax;
use crate::plan::{self, CONNECTIONS_MAX, STREAMS_MAX, WINDOWS};
use crate::units;

/// The command line of `bench`.
#[must_use]
pub fn command() -> Command {
    Command::new("bench")
        .about("Measure a path: TCP, UDP, QUIC and HTTP, directly or through tunnel, ingress and mesh")
        .subcommand_required(true)
        .subcommand(server())
        .subcommand(client())
}

fn server() -> Command {
    Command::new("server")
        .about("The other end of runs, and an HTTP origin to put behind anything; until a signal")
        .arg(value("listen", "ADDRESS", "Address, port or both to listen on").default_value("127.0.0.1:5210"))
        .arg(
            value("udp-port", "PORT", "Port of UDP load; without it the one after that of TCP")
                .value_parser(value_parser!(u16)),
        )
        .arg(secret_file())
        .arg(
            flag("no-secret", "Serve strangers on an address that is not the loopback's")
                .conflicts_with("secret-file"),
        )
        .arg(flag("one-off", "End after one run").short('1'))
        .arg(
            value("max-tests", "N", "Runs at once")
                .default_value("4")
                .value_parser(value_parser!(u16).range(1..=64)),
        )
        .arg(
            value("max-tests-per-address", "N", "Runs at once of one client's address")
                .default_value("2")
                .value_parser(value_parser!(u16).range(1..=64)),
        )
        .arg(
            value("max-streams", "N", "Streams of one run, both directions together")
                .default_value("128")
                .value_parser(value_parser!(u16).range(1..=256)),
        )
        .arg(
            value("max-duration", "TIME", "How long a run may be")
                .default_value("10m")
                .value_parser(parser(some_time)),
        )
        .arg(
            value("cert", "FILE", "Certificate for HTTPS; without it one is made")
                .value_parser(value_parser!(PathBuf))
                .requires("key"),
        )
        .arg(value("key", "FILE", "Its private key").value_parser(value_parser!(PathBuf)).requires("cert"))
        .arg(cpu_of("Processes on this host whose CPU time is told to clients, such as a connector"))
}

fn client() -> Command {
    let command = Command::new("client")
        .about("Load a path and tell what it carries")
        .arg(
            Arg::new("target")
                .required(true)
                .value_name("TARGET")
                .help("HOST[:PORT] of a bench server, or http(s)://… of one behind anything, or any URL"),
        )
        .arg(flag("udp", "Load over UDP: loss, order and jitter").short('u').conflicts_with("quic"))
        .arg(flag("quic", "Load over QUIC, as the tunnel uses it").short('q'));
    let command = amount(command);
    let command = network(command);
    let command = http(command);
    output(command)
}

fn amount(command: Command) -> Command {
    command
        .arg(
            value("parallel", "N", "Streams of each direction; HTTP requests at once")
                .short('P')
                .default_value("1")
                .value_parser(value_parser!(u16).range(1..=i64::from(STREAMS_MAX))),
        )
        .arg(
            flag("reverse", "Download: the server sends (what HTTP does anyway)")
                .short('R')
                .visible_alias("download"),
        )
        .arg(
            flag("upload", "Upload: the client sends (what all but HTTP do anyway)")
                .conflicts_with("reverse"),
        )
        .arg(
            flag("bidir", "Both directions at once, with as many streams each")
                .conflicts_with_all(["reverse", "upload"]),
        )
        .arg(
            value("time", "TIME", "How long, without the warm-up; 10 s if nothing else ends the run")
                .short('t')
                .value_parser(parser(some_time)),
        )
        .arg(
            value("bytes", "SIZE", "End after so many bytes of each direction")
                .short('n')
                .value_parser(parser(some_bytes))
                .conflicts_with("time"),
        )
        .arg(
            value("requests", "N", "End after so many HTTP requests")
                .value_parser(value_parser!(u64).range(1..))
                .conflicts_with_all(["time", "bytes"]),
        )
        .arg(
            value("omit", "TIME", "Warm-up that is not counted")
                .short('O')
                .default_value("0")
                .value_parser(parser(units::duration)),
        )
        .arg(
            value("bitrate", "RATE", "Bits a second of each stream; 0 for no bound (UDP begins at 1M)")
                .short('b')
                .value_parser(parser(units::rate)),
        )
        .arg(
            value("len", "SIZE", "Bytes of a write, a datagram, or an HTTP body")
                .short('l')
                .visible_alias("length")
                .value_parser(parser(units::size)),
        )
}

fn network(command: Command) -> Command {
    command
        .arg(value("window", "SIZE", "Socket buffers, or QUIC's or HTTP/2's window of a stream").short('w').value_parser(parser(window)))
        .arg(value("congestion", "NAME", "Congestion control of TCP senders, such as cubic").short('C').value_parser(parser(congestion)))
        .arg(flag("no-delay", "TCP_NODELAY on senders").short('N'))
        .arg(
            value("connections", "N", "Connections that QUIC or HTTP/2 streams are spread over")
                .default_value("1")
                .value_parser(value_parser!(u16).range(1..=i64::from(CONNECTIONS_MAX))),
        )
        .arg(flag("ipv4", "Only IPv4").short('4').conflicts_with("ipv6"))
        .arg(flag("ipv6", "Only IPv6").short('6'))
        .arg(value("bind", "IP", "Local address").short('B').value_parser(value_parser!(IpAddr)))
        .arg(secret_file())
        .arg(cpu_of("Processes on this host whose CPU time is counted as well, such as a connector or a proxy between the ends"))
}

fn http(command: Command) -> Command {
    command
        .arg(flag("http2", "HTTP/2: with TLS for https://, with prior knowledge for http://"))
        .arg(value("connect-to", "HOST:PORT", "Where to connect for a URL, whatever its host"))
        .arg(
            value("header", "HEADER", "Field of each HTTP request, as `Name: value`; may be given again")
                .short('H')
                .action(ArgAction::Append),
        )
        .arg(
            value("ca", "FILE", "Authority of the server's certificate; without it the system's")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(flag("insecure", "Take any certificate").short('k').conflicts_with("ca"))
        .arg(
            value("threads", "N", "Threads of an HTTP client; without it half of the CPUs")
                .value_parser(value_parser!(u16).range(1..=64)),
        )
}

fn output(command: Command) -> Command {
    command
        .arg(
            value("interval", "TIME", "Between two lines; 0 for none")
                .short('i')
                .default_value("1")
                .value_parser(parser(units::duration)),
        )
        .arg(flag("json", "One JSON document, in iperf3's form with more").short('J'))
        .arg(value("title", "TEXT", "Stands in the JSON document").short('T'))
        .arg(
            value("fail-below", "RATE", "Exit status 3 if a direction receives less")
                .value_parser(parser(units::rate)),
        )
        .arg(
            value("fail-below-requests", "N", "Exit status 3 below so many HTTP requests a second")
                .value_parser(parser(number)),
        )
        .arg(
            value("fail-above-p99", "TIME", "Exit status 3 if one in a hundred takes longer")
                .value_parser(parser(units::duration)),
        )
        .arg(
            value(
                "fail-above-failed",
                "SHARE|COUNT",
                "Exit status 3 if more HTTP requests fail, such as 5 or 0.1%; without it if any does",
            )
            .value_parser(parser(failed)),
        )
        .arg(
            value("fail-above-loss", "PERCENT", "Exit status 3 if more UDP datagrams are lost")
                .value_parser(parser(percent)),
        )
        .arg(
            value(
                "fail-above-cpu",
                "SECONDS",
                "Exit status 3 if both ends and --cpu-of use more CPU-seconds a GiB",
            )
            .value_parser(parser(number)),
        )
        .arg(
            value("fail-above-cpu-requests", "SECONDS", "The same for CPU-seconds of 100,000 HTTP requests")
                .value_parser(parser(number)),
        )
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn value(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn secret_file() -> Arg {
    value("secret-file", "FILE", "Secret that both ends know; whitespace at its ends does not count")
        .value_parser(value_parser!(PathBuf))
}

fn cpu_of(help: &'static str) -> Arg {
    value("cpu-of", "PID", help)
        .value_delimiter(',')
        .action(ArgAction::Append)
        .value_parser(value_parser!(u32))
}

fn parser<T: Clone + Send + Sync + 'static>(parse: fn(&str) -> Result<T, String>) -> ValueParser {
    ValueParser::from(parse)
}

fn some_time(text: &str) -> Result<Duration, String> {
    let time = units::duration(text)?;
    if time.is_zero() {
        Err(format!("`{text}` is no time to run; write such as 10, 1.5s or 20ms"))
    } else {
        Ok(time)
    }
}

fn some_bytes(text: &str) -> Result<u64, String> {
    match units::size(text)? {
        0 => Err(format!("`{text}` is less than a byte; write such as 128K, 1M or 10G")),
        bytes => Ok(bytes),
    }
}

fn window(text: &str) -> Result<u32, String> {
    let window = u32::try_from(units::size(text)?).ok().filter(|window| WINDOWS.contains(window));
    window.ok_or_else(|| format!("`{text}` is no window; write 2K to 1G"))
}

fn congestion(text: &str) -> Result<String, String> {
    let name = plan::is_name(text).then(|| text.to_owned());
    name.ok_or_else(|| {
        format!("`{text}` is no name; write up to 15 letters, digits and underscores, such as cubic or bbr")
    })
}

fn failed(text: &str) -> Result<FailedMax, String> {
    match text.strip_suffix('%') {
        Some(_) => percent(text).map(FailedMax::Percent),
        None => text.parse().map(FailedMax::Count).map_err(|_| {
            format!("`{text}` is neither a number of requests such as 5 nor a share such as 0.1%")
        }),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let percent =
        text.trim_end_matches('%').parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| format!("`{text}` is no share; write 0 to 100 percent"))
}

fn number(text: &str) -> Result<f64, String> {
    let number =
        text.trim_end_matches('%').parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("`{text}` is no number"))
}

/// Without `--time`, `--bytes` and `--requests`, as iperf3 has it.
pub(crate) const TIME_DEFAULT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_refused_is_named_with_its_option_and_what_was_expected() {
        for (arguments, option, value, expected) in [
            (&["hub", "-t", "0"][..], "--time", "`0`", "10, 1.5s"),
            (&["hub", "-n", "0"], "--bytes", "`0`", "128K"),
            (&["hub", "-n", "0.4"], "--bytes", "`0.4`", "128K"),
            (&["hub", "-w", "100"], "--window", "`100`", "2K to 1G"),
            (&["hub", "-w", "5G"], "--window", "`5G`", "2K to 1G"),
            (&["hub", "-C", "a b"], "--congestion", "`a b`", "cubic"),
            (&["hub", "-u", "--fail-above-loss", "101"], "--fail-above-loss", "`101`", "0 to 100"),
            (&["http://x/", "--fail-above-failed", "x"], "--fail-above-failed", "`x`", "0.1%"),
            (&["http://x/", "--fail-above-failed", "200%"], "--fail-above-failed", "`200%`", "0 to 100"),
        ] {
            let line = ["bench", "client"].iter().chain(arguments);
            let error = command().try_get_matches_from(line).unwrap_err().to_string();
            assert!([option, value, expected].iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn the_command_line_holds_together() {
        command().debug_assert();
    }
}
