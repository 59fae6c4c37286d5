//! A run as lines for people, in iperf3's columns.

use std::fmt::Write;
use std::time::Duration;

use crate::cpu::CpuUse;
use crate::flow::Look;
use crate::histogram::Histogram;
use crate::outcome::{Head, Interval, Outcome, Side, StreamHead, Sum, Waiting, lost_percent};
use crate::units::{bytes_text, rate_text, time_text};
use crate::verdict;

/// Who is connected with whom, and the columns of the lines that follow.
pub(super) fn head(head: &Head, lines: bool) -> String {
    let mut text = match &head.request {
        Some(request) => format!("{}, {}: {request}\n", head.protocol, streams_text(head)),
        None => format!(
            "Connected to {} port {}, {}, {}\n",
            head.host,
            head.port,
            head.protocol,
            streams_text(head)
        ),
    };
    if head.request.is_none() {
        for stream in &head.streams {
            let _ = writeln!(
                text,
                "{} local {} connected to {}",
                label(head, Some(stream)),
                stream.local,
                stream.remote
            );
        }
    }
    if lines {
        text.push_str(&columns(head));
    }
    text
}

/// A line for each stream, and one for each direction's sum where there are several.
pub(super) fn interval(head: &Head, interval: &Interval) -> String {
    let mut text = String::new();
    let note = if interval.omitted { "  (omitted)" } else { "" };
    let seconds = interval.end - interval.start;
    let single = head.request.is_none() && head.streams.len() <= LINES_STREAMS_MAX;
    if single {
        for (stream, look) in head.streams.iter().zip(&interval.flows) {
            let sum = Sum::of_looks(std::iter::once(look), seconds);
            let details = details(head, &sum, stream.is_up, Some(look));
            line(
                &mut text,
                &label(head, Some(stream)),
                (interval.start, interval.end),
                &sum,
                &format!("{details}{note}"),
            );
        }
    }
    for is_up in [true, false] {
        let of = || head.streams.iter().zip(&interval.flows).filter(|(stream, _)| stream.is_up == is_up);
        let count = of().count();
        if count == 0 || (count == 1 && single) {
            continue;
        }
        let sum = Sum::of_looks(of().map(|(_, look)| look), seconds);
        let name = sum_label(head, is_up);
        line(
            &mut text,
            &name,
            (interval.start, interval.end),
            &sum,
            &format!("{}{note}", details(head, &sum, is_up, None)),
        );
    }
    text
}

/// What the whole run has shown.
pub(super) fn summary(outcome: &Outcome, missed: &[String]) -> String {
    let head = &outcome.head;
    let mut text = "- - - - - - - - - - - - - - - - - - - - - - - - -\n".to_owned();
    text.push_str(&columns(head));
    if head.request.is_none() && outcome.flows.len() > 1 && outcome.flows.len() <= LINES_STREAMS_MAX {
        for (flow, stream) in outcome.flows.iter().zip(&head.streams) {
            for (side, role) in [(&flow.sender, "sender"), (&flow.receiver, "receiver")] {
                if let Some(side) = side {
                    side_line(&mut text, head, &label(head, Some(stream)), side, role);
                }
            }
        }
    }
    for is_up in [true, false] {
        let name =
            if outcome.flows.len() > 1 { sum_label(head, is_up) } else { label(head, head.streams.first()) };
        for (sum, role) in [(outcome.sent(is_up), "sender"), (outcome.received(is_up), "receiver")] {
            if let Some(sum) = sum {
                let details = summary_details(head, &sum, role);
                line(&mut text, &name, (0.0, sum.seconds), &sum, &format!("{details}  {role}"));
            }
        }
    }
    requests(&mut text, outcome);
    latency(&mut text, outcome);
    cpu(&mut text, outcome);
    let _ = writeln!(text, "Limited by {}", verdict::limit(outcome));
    for failure in outcome.failures.iter().take(FAILURES_MAX) {
        let _ = writeln!(text, "Failed: {failure}");
    }
    for missed in missed {
        let _ = writeln!(text, "Threshold missed: {missed}");
    }
    if outcome.interrupted {
        text.push_str("Interrupted\n");
    }
    text
}

fn streams_text(head: &Head) -> String {
    match (head.up, head.down) {
        (1, 0) => "1 stream up".to_owned(),
        (up, 0) => format!("{up} streams up"),
        (0, 1) => "1 stream down".to_owned(),
        (0, down) => format!("{down} streams down"),
        (up, down) => format!("{up} up and {down} down"),
    }
}

fn columns(head: &Head) -> String {
    let details = match head.protocol {
        "TCP" => "  Retr       Cwnd        RTT",
        "QUIC" => "  Lost       Cwnd        RTT",
        "UDP" => "   Jitter  Lost/Total datagrams",
        _ => "  Requests/s",
    };
    let name = if head.up > 0 && head.down > 0 { "[ ID][Role]" } else { "[ ID]" };
    format!("{name}  Interval               Transfer        Bitrate{details}\n")
}

fn label(head: &Head, stream: Option<&StreamHead>) -> String {
    let Some(stream) = stream else { return "[  1]".to_owned() };
    format!("[{:3}]{}", stream.index + 1, role(head, stream.is_up))
}

fn sum_label(head: &Head, is_up: bool) -> String {
    format!("[SUM]{}", role(head, is_up))
}

fn role(head: &Head, is_up: bool) -> &'static str {
    match (head.up > 0 && head.down > 0, is_up) {
        (false, _) => "",
        (true, true) => "[  up]",
        (true, false) => "[down]",
    }
}

fn line(text: &mut String, name: &str, (start, end): (f64, f64), sum: &Sum, details: &str) {
    let _ = writeln!(
        text,
        "{name} {start:7.2}-{end:<7.2} sec {:>12} {:>15}{details}",
        bytes_text(sum.bytes),
        rate_text(sum.bits_per_second())
    );
}

fn side_line(text: &mut String, head: &Head, name: &str, side: &Side, role: &str) {
    let sum = Sum::of(std::iter::once(side));
    let details = summary_details(head, &sum, role);
    line(text, name, (0.0, side.seconds), &sum, &format!("{details}  {role}"));
}

fn details(head: &Head, sum: &Sum, sends: bool, look: Option<&Look>) -> String {
    match head.protocol {
        // Of what only receives here, the sender's figures are the server's.
        "TCP" | "QUIC" if sum.retransmits.is_none() || !sends => String::new(),
        "TCP" | "QUIC" => {
            let state = look.and_then(|look| {
                let tcp = look.tcp.map(|tcp| (tcp.congestion_window, tcp.rtt_us));
                tcp.or(look.quic.map(|quic| (quic.congestion_window, quic.rtt_us)))
            });
            let state = state.map(|(window, rtt)| {
                format!(" {:>12} {:>8}", bytes_text(window), time_text(Duration::from_micros(rtt)))
            });
            format!("{:>6}{}", sum.retransmits.unwrap_or(0), state.unwrap_or_default())
        }
        "UDP" if sum.jitter_ms > 0.0 || sum.lost > 0 => datagrams(sum),
        "UDP" => format!("  {:>8} datagrams", sum.packets),
        _ => format!("  {:>10.0}", sum.packets as f64 / sum.seconds.max(1e-9)),
    }
}

fn summary_details(head: &Head, sum: &Sum, role: &str) -> String {
    match (head.protocol, role) {
        ("TCP" | "QUIC", "sender") => format!("{:>6}", sum.retransmits.unwrap_or(0)),
        ("TCP" | "QUIC", _) => " ".repeat(6),
        ("UDP", "receiver") => datagrams(sum),
        ("UDP", _) => format!("  {:>8} datagrams", sum.packets),
        _ => String::new(),
    }
}

fn datagrams(sum: &Sum) -> String {
    let order =
        if sum.out_of_order > 0 { format!(", {} out of order", sum.out_of_order) } else { String::new() };
    let twice = if sum.duplicates > 0 { format!(", {} came twice", sum.duplicates) } else { String::new() };
    let percent = lost_percent(sum.lost, sum.packets);
    let all = sum.lost.saturating_add(sum.packets);
    format!("  {:.3} ms  {}/{all} ({percent:.2} %){order}{twice}", sum.jitter_ms, sum.lost)
}

fn requests(text: &mut String, outcome: &Outcome) {
    let (Some(requests), Some(rate)) = (&outcome.requests, outcome.requests_per_second()) else { return };
    let _ = write!(text, "Requests: {} done, {rate:.0}/s, {} failed", requests.done, requests.failures());
    for (reason, count) in &requests.failed {
        let _ = write!(text, ", {count} {reason}");
    }
    text.push('\n');
}

fn latency(text: &mut String, outcome: &Outcome) {
    let mut one = |name: &str, latency: &Histogram| {
        let quantile = |share| latency.quantile(share).map_or_else(String::new, time_text);
        let _ = writeln!(
            text,
            "Latency {name}: p50 {}, p99 {}, p99.9 {}, max {} ({} samples)",
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            latency.max().map_or_else(String::new, time_text),
            latency.count()
        );
    };
    let has = |latency: &Option<Histogram>| latency.clone().filter(|latency| latency.count() > 0);
    if let Some(idle) = has(&outcome.idle) {
        one("before the load", &idle);
    }
    if let Some(loaded) = has(&outcome.loaded) {
        one(if outcome.latency_of_requests { "of requests" } else { "under load" }, &loaded);
    }
    let silent = outcome.waiting.filter(|waiting| waiting.silence.as_secs_f64() * 100.0 >= outcome.seconds);
    if let Some(Waiting { count, longest, silence }) = silent {
        let _ = writeln!(
            text,
            "No answer in the last {}: {count} under way, the longest for {}",
            time_text(silence),
            time_text(longest)
        );
    }
}

fn cpu(text: &mut String, outcome: &Outcome) {
    let per = |seconds: f64| {
        let gib = outcome.per_gib(seconds).map(|cost| format!("{cost:.3} a GiB"));
        let requests = outcome.per_requests(seconds).map(|cost| format!("{cost:.2} per 100k requests"));
        [gib, requests].into_iter().flatten().collect::<Vec<_>>().join(", ")
    };
    let mut end = |name: &str, cpu: &CpuUse| {
        let share = cpu.total() / cpu.seconds.max(1e-9) * 100.0;
        let shared = if cpu.shared { " (other runs included)" } else { "" };
        let _ = writeln!(
            text,
            "CPU-seconds of the {name}: {:.2} ({share:.0} % of one CPU; {:.0} % user, {:.0} % system), {}{shared}",
            cpu.total(),
            cpu.user / cpu.seconds.max(1e-9) * 100.0,
            cpu.system / cpu.seconds.max(1e-9) * 100.0,
            per(cpu.total())
        );
        for (pid, other, seconds) in &cpu.others {
            let _ = writeln!(text, "CPU-seconds of {other} ({pid}): {seconds:.2}, {}", per(*seconds));
        }
    };
    end("client", &outcome.near);
    if let Some(far) = &outcome.far {
        end("server", far);
    }
}

/// More streams than this are told as sums only.
const LINES_STREAMS_MAX: usize = 16;
const FAILURES_MAX: usize = 8;
