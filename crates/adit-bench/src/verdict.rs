//! What limited a run, in one sentence, and which thresholds it misses.

use std::net::SocketAddr;
use std::time::Duration;

use crate::cpu::CpuUse;
use crate::flow::{Look, QuicState};
use crate::options::{FailedMax, Thresholds};
use crate::outcome::{Outcome, Requests, Sum};
use crate::tcp_state::TcpState;
use crate::units::{rate_text, time_text};

/// What held the larger direction back, with the figure that shows it.
pub(crate) fn limit(outcome: &Outcome) -> String {
    let is_up = carried_bytes(outcome, true) >= carried_bytes(outcome, false);
    let senders = sender_looks(outcome, is_up);
    let found = capped(outcome, is_up)
        .or_else(|| busy_thread(outcome, is_up))
        .or_else(|| busy_machine(outcome).filter(|_| own_share(outcome) >= OWN_SHARE))
        .or_else(|| tcp_limit(&senders, outcome.seconds))
        .or_else(|| quic_limit(&quic_senders(outcome, is_up), outcome.seconds))
        .or_else(|| busy_machine(outcome))
        .or_else(|| http_limit(outcome))
        .or_else(|| lossy(outcome, is_up).map(|lost| format!("loss: {lost}")));
    found.unwrap_or_else(|| {
        "unknown: no rate cap, no busy CPU, and what carries the load says nothing else".to_owned()
    })
}

/// Each threshold that is missed, in words.
pub(crate) fn missed(outcome: &Outcome, thresholds: &Thresholds) -> Vec<String> {
    let mut missed = Vec::new();
    for (is_up, name) in [(true, "upload"), (false, "download")] {
        let Some(sum) = outcome.carried(is_up) else { continue };
        if let Some(min) = thresholds.rate_min.filter(|min| sum.bits_per_second() < *min as f64) {
            missed.push(format!(
                "{name}: {} is below {}",
                rate_text(sum.bits_per_second()),
                rate_text(min as f64)
            ));
        }
        missed.extend(thresholds.loss_percent_max.and_then(|max| match outcome.received(is_up) {
            Some(sum) if sum.lost_percent() <= max => None,
            Some(sum) => {
                Some(format!("{name}: {:.3} % of datagrams lost is above {max} %", sum.lost_percent()))
            }
            None => Some(format!("{name}: how many datagrams were lost is unknown")),
        }));
    }
    if let Some(min) = thresholds.requests_min {
        let rate = outcome.requests_per_second().unwrap_or(0.0);
        if rate < min {
            missed.push(format!("{rate:.0} requests/s are below {min:.0}"));
        }
    }
    missed.extend(
        outcome.requests.as_ref().and_then(|requests| failed_missed(requests, thresholds.failed_max)),
    );
    missed.extend(thresholds.p99_max.and_then(|max| p99_missed(outcome, max)));
    let cpu = outcome.cpu_seconds();
    let per_gib = cpu.map(|cpu| outcome.per_gib(cpu));
    missed.extend(cpu_missed(per_gib, thresholds.cpu_per_gib_max, "GiB"));
    let per_requests = cpu.map(|cpu| outcome.per_requests(cpu));
    missed.extend(cpu_missed(per_requests, thresholds.cpu_per_requests_max, "100,000 requests"));
    missed
}

fn failed_missed(requests: &Requests, max: FailedMax) -> Option<String> {
    let (failed, percent) = (requests.failures(), requests.failed_percent());
    match max {
        FailedMax::Count(max) => {
            (failed > max).then(|| format!("{failed} failed requests are above {max} (--fail-above-failed)"))
        }
        FailedMax::Percent(max) => (percent > max).then(|| {
            format!("{percent:.3} % of the requests failed, which is above {max} % (--fail-above-failed)")
        }),
    }
}

/// Requests over HTTP are made one after the other, so that a silence is one sample of each stream however long it is: one that
/// is at least a hundredth of the run is as much as a hundredth of the requests of somebody who does not wait for answers.
fn p99_missed(outcome: &Outcome, max: Duration) -> Option<String> {
    let silence = outcome.waiting.map(|waiting| waiting.silence).filter(|silence| *silence > max);
    if let Some(silence) = silence.filter(|silence| silence.as_secs_f64() * 100.0 >= outcome.seconds) {
        return Some(format!(
            "no request was answered in the last {}, which is above a p99 latency of {}",
            time_text(silence),
            time_text(max)
        ));
    }
    match outcome.loaded.as_ref().and_then(|latency| latency.quantile(0.99)) {
        Some(p99) if p99 <= max => None,
        Some(p99) => Some(format!("p99 latency of {} is above {}", time_text(p99), time_text(max))),
        None => Some("no latency was measured".to_owned()),
    }
}

/// A figure that could not be had does not pass.
fn cpu_missed(spent: Result<Option<f64>, &'static str>, max: Option<f64>, unit: &str) -> Option<String> {
    let max = max?;
    match spent {
        Ok(Some(spent)) if spent <= max => None,
        Ok(Some(spent)) => Some(format!("{spent:.3} CPU-seconds for each {unit} are above {max}")),
        Ok(None) => Some(format!("no CPU-seconds for each {unit} were measured: nothing was carried")),
        Err(why) => Some(format!("no CPU-seconds of both ends for each {unit}: {why}")),
    }
}

fn carried_bytes(outcome: &Outcome, is_up: bool) -> u64 {
    outcome.carried(is_up).map_or(0, |sum| sum.bytes)
}

fn sender_looks(outcome: &Outcome, is_up: bool) -> Vec<Look> {
    let senders = outcome.flows.iter().filter(|flow| flow.is_up == is_up).filter_map(|flow| flow.sender);
    senders.map(|side| side.look).collect()
}

/// `--bitrate`, nearly reached.
fn capped(outcome: &Outcome, is_up: bool) -> Option<String> {
    let rate = outcome.head.rate?;
    let streams = if is_up { outcome.head.up } else { outcome.head.down };
    let cap = rate as f64 * f64::from(streams);
    let sum = outcome.sent(is_up).or_else(|| outcome.received(is_up))?;
    let share = sum.bits_per_second() / cap;
    let lost = lossy(outcome, is_up).map_or_else(String::new, |lost| format!("; {lost}"));
    (share >= CAP_SHARE)
        .then(|| format!("the rate cap of {} a stream ({}{lost})", rate_text(rate as f64), cap_text(share)))
}

/// How much of a cap was used; the last write or datagram may end behind the time that it is counted in.
fn cap_text(share: f64) -> String {
    if share > 1.005 {
        "all of it was sent".to_owned()
    } else {
        format!("{:.0} % of it was sent", share * 100.0)
    }
}

/// A stream is one thread: when that is busy all the time, more CPUs do not help.
fn busy_thread(outcome: &Outcome, is_up: bool) -> Option<String> {
    let ends = [(Some(&outcome.near), is_up, "the client"), (outcome.far.as_ref(), !is_up, "the server")];
    let (cpu, sends, end) = ends
        .into_iter()
        .filter_map(|(cpu, sends, end)| Some((cpu?, sends, end)))
        .filter(|(cpu, ..)| cpu.busiest_thread >= THREAD_SHARE)
        .max_by(|a, b| a.0.busiest_thread.total_cmp(&b.0.busiest_thread))?;
    let role = if sends { "sending" } else { "receiving" };
    Some(format!(
        "CPU: the {role} thread of {end} was busy {:.0} % of the time{}",
        cpu.busiest_thread.min(1.0) * 100.0,
        match (cpu.cores, &outcome.head.request) {
            (1, _) => "",
            (_, None) => "; more streams (-P) use more CPUs",
            (_, Some(_)) => "; more threads (--threads) use more CPUs",
        }
    ))
}

fn busy_machine(outcome: &Outcome) -> Option<String> {
    let ends = [(Some(&outcome.near), "client"), (outcome.far.as_ref(), "server")];
    let busy = |cpu: &CpuUse| cpu.host_busy.unwrap_or(0.0);
    let (cpu, end) = ends
        .into_iter()
        .filter_map(|(cpu, end)| Some((cpu?, end)))
        // Of both ends on one machine, the client, which knows the processes that are watched.
        .find(|(cpu, _)| busy(cpu) >= MACHINE_SHARE)?;
    let percent = |seconds: f64| (seconds / cpu.seconds.max(1e-9) / cpu.cores as f64).min(1.0) * 100.0;
    let watched: f64 = cpu.others.iter().map(|(_, _, seconds)| seconds).sum();
    let watched = if watched > 0.0 {
        format!(", {:.0} % by the processes watched", percent(watched))
    } else {
        String::new()
    };
    Some(format!(
        "CPU: the {} CPUs of the {end}'s machine were busy {:.0} % of the time, {:.0} % by the bench's {end}{watched}",
        cpu.cores,
        busy(cpu) * 100.0,
        percent(cpu.total()),
    ))
}

/// Share of the client's machine that the ends and the watched processes take; those of another machine count as if here.
fn own_share(outcome: &Outcome) -> f64 {
    outcome.known_cpu_seconds() / outcome.near.seconds.max(1e-9) / outcome.near.cores.max(1) as f64
}

/// What the kernel's clocks of a sender say (TCP_INFO).
fn tcp_limit(senders: &[Look], seconds: f64) -> Option<String> {
    let states: Vec<TcpState> = senders.iter().filter_map(|look| look.tcp).collect();
    if states.is_empty() {
        return None;
    }
    let sum = |field: fn(&TcpState) -> u64| states.iter().map(field).sum::<u64>() as f64;
    let busy = sum(|tcp| tcp.busy_us);
    let share = |field: fn(&TcpState) -> u64| if busy > 0.0 { sum(field) / busy } else { 0.0 };
    let (window, buffer) = (share(|tcp| tcp.receive_window_us), share(|tcp| tcp.send_buffer_us));
    let lost = if sum(|tcp| tcp.segments) > 0.0 {
        sum(|tcp| tcp.retransmits) / sum(|tcp| tcp.segments)
    } else {
        0.0
    };
    let of_time = busy / 1e6 / states.len() as f64 / seconds.max(1e-9);
    Some(if of_time < IDLE_SHARE {
        format!("the sender itself: data was under way only {:.0} % of the time", of_time * 100.0)
    } else if window >= WINDOW_SHARE && window >= buffer {
        format!(
            "the receive window of the peer ({:.0} % of the time): its reader or its buffer (-w) is too slow or small",
            window * 100.0
        )
    } else if buffer >= WINDOW_SHARE {
        format!("the socket's send buffer ({:.0} % of the time): a larger -w would help", buffer * 100.0)
    } else if lost >= LOSS_SHARE {
        format!("congestion: {:.2} % of the segments were sent again", lost * 100.0)
    } else {
        "the path: its congestion window or the sender's pacing, without loss to speak of".to_owned()
    })
}

/// What quinn says of the connections of a direction's senders, and how many of the streams each carries.
fn quic_senders(outcome: &Outcome, is_up: bool) -> Vec<(QuicState, u32)> {
    let mut found: Vec<((SocketAddr, SocketAddr), QuicState, u32)> = Vec::new();
    for flow in outcome.flows.iter().filter(|flow| flow.is_up == is_up) {
        let stream = outcome.head.streams.iter().find(|stream| stream.index == flow.index);
        let (Some(stream), Some(quic)) = (stream, flow.sender.and_then(|sender| sender.look.quic)) else {
            continue;
        };
        let ends = (stream.local, stream.remote);
        // All streams of a connection show the same.
        match found.iter_mut().find(|(other, ..)| *other == ends) {
            Some((_, _, streams)) => *streams += 1,
            None => found.push((ends, quic, 1)),
        }
    }
    found.into_iter().map(|(_, quic, streams)| (quic, streams)).collect()
}

/// What quinn says of the connections of a sender.
fn quic_limit(connections: &[(QuicState, u32)], seconds: f64) -> Option<String> {
    connections.first()?;
    let sum =
        |field: fn(&QuicState) -> u64| connections.iter().map(|(quic, _)| field(quic) as f64).sum::<f64>();
    let (lost, sent) = (sum(|quic| quic.lost_packets), sum(|quic| quic.sent_packets));
    let lost = if sent > 0.0 { lost / sent } else { 0.0 };
    let blocked =
        connections.iter().map(|(quic, streams)| blocked_share(quic, *streams, seconds)).sum::<f64>()
            / connections.len() as f64;
    Some(if lost >= LOSS_SHARE {
        format!(
            "congestion: {:.2} % of the QUIC packets were lost, {:.0} times a window was cut",
            lost * 100.0,
            sum(|quic| quic.congestion_events)
        )
    } else if blocked >= BLOCKED_SHARE {
        format!(
            "QUIC's receive window of the peer: it held the sender in {:.0} % of the round trips; a larger -w would help",
            blocked * 100.0
        )
    } else {
        "the path: QUIC's congestion window or pacing, or the time that both ends take for packets, without loss to speak of"
            .to_owned()
    })
}

/// Share of a connection's round trips in which a window held its streams. Whoever is held says so once for each limit that
/// the peer grants (RFC 9000 §4.1), and a new limit takes a round trip: on a long line that is a few times a second however
/// much of the time is lost.
fn blocked_share(quic: &QuicState, streams: u32, seconds: f64) -> f64 {
    let round_trips = seconds / (quic.rtt_us.max(1) as f64 / 1e6);
    (quic.blocked as f64 / f64::from(streams.max(1)) / round_trips.max(1e-9)).min(1.0)
}

/// Requests one after the other on each stream: what they wait for is the answer.
fn http_limit(outcome: &Outcome) -> Option<String> {
    let requests = outcome.requests.as_ref()?;
    let latency = outcome.loaded.as_ref().and_then(|latency| latency.mean()).map(time_text);
    let streams = outcome.head.up + outcome.head.down;
    let plural = if streams == 1 { "" } else { "s" };
    Some(match latency {
        Some(latency) if outcome.latency_of_requests && requests.done > 0 => format!(
            "the peer or the path: {streams} request{plural} at once, answered in {latency} on average, while neither \
             machine was busy"
        ),
        Some(latency) if outcome.bytes() > 0 => format!(
            "the peer or the path: neither machine was busy, and small requests beside the bodies took {latency} on average"
        ),
        _ => "the peer or the path: no request was answered in time".to_owned(),
    })
}

fn lossy(outcome: &Outcome, is_up: bool) -> Option<String> {
    let sum: Sum = outcome.received(is_up)?;
    (sum.lost > 0).then(|| format!("{:.2} % of the datagrams did not arrive", sum.lost_percent()))
}

/// A cap that is reached to this share is what held the run.
const CAP_SHARE: f64 = 0.95;
const THREAD_SHARE: f64 = 0.93;
const MACHINE_SHARE: f64 = 0.93;
/// A machine that others keep busy does not explain a run that asks for less than this.
const OWN_SHARE: f64 = 0.05;
/// Less time than this with data under way, and the sender had nothing to send.
const IDLE_SHARE: f64 = 0.6;
const WINDOW_SHARE: f64 = 0.3;
/// One in a thousand halves what a loss-based congestion control can do on a path of some milliseconds.
const LOSS_SHARE: f64 = 0.001;
/// A sender that is held in every other round trip would be faster with a larger window.
const BLOCKED_SHARE: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(state: TcpState) -> Vec<Look> {
        vec![Look { tcp: Some(state), ..Look::default() }]
    }

    #[test]
    fn the_kernels_clocks_name_what_held_a_sender() {
        let busy = TcpState { busy_us: 1_000_000, segments: 10_000, ..TcpState::default() };
        let of = |state| tcp_limit(&tcp(state), 1.0).unwrap();
        assert!(of(TcpState { receive_window_us: 900_000, ..busy }).contains("receive window"));
        assert!(of(TcpState { send_buffer_us: 900_000, ..busy }).contains("send buffer"));
        assert!(of(TcpState { retransmits: 100, ..busy }).contains("congestion"));
        assert!(of(TcpState { busy_us: 100_000, ..busy }).contains("sender itself"));
        assert!(of(busy).contains("path"));
    }

    #[test]
    fn a_quic_window_holds_a_long_line_with_few_blocked_frames_and_a_short_one_with_many() {
        let of = |rtt_us, blocked, lost_packets| {
            let quic =
                QuicState { rtt_us, blocked, lost_packets, sent_packets: 10_000, ..QuicState::default() };
            quic_limit(&[(quic, 1)], 10.0).unwrap()
        };
        assert!(of(200_000, 50, 0).contains("receive window"));
        assert!(of(200_000, 5, 0).contains("path"));
        assert!(of(100, 2_000, 0).contains("path"));
        assert!(of(100, 90_000, 0).contains("receive window"));
        assert!(of(100, 0, 100).contains("congestion"));
    }

    #[test]
    fn all_quic_connections_are_looked_at() {
        let free = QuicState { rtt_us: 100_000, sent_packets: 10_000, ..QuicState::default() };
        let held = QuicState { blocked: 100, ..free };
        assert!(
            quic_limit(&[free, held, held, held].map(|quic| (quic, 1)), 10.0)
                .unwrap()
                .contains("75 % of the round trips")
        );
        assert!(quic_limit(&[(held, 8)], 10.0).unwrap().contains("path"), "each stream of eight was free");
        let lossy = QuicState { lost_packets: 100, ..free };
        assert!(quic_limit(&[(free, 1), (lossy, 1)], 10.0).unwrap().contains("0.50 %"));
        assert_eq!(quic_limit(&[], 10.0), None);
    }

    #[test]
    fn no_more_than_all_of_a_cap_is_told() {
        assert_eq!(cap_text(0.97), "97 % of it was sent");
        assert_eq!(cap_text(1.0), "100 % of it was sent");
        assert_eq!(cap_text(1_034_545.43), "all of it was sent");
    }

    #[test]
    fn failed_requests_are_held_against_a_count_or_a_share() {
        let requests = Requests { done: 99, failed: vec![("status 5xx", 1)] };
        assert!(failed_missed(&requests, FailedMax::default()).is_some());
        assert!(failed_missed(&requests, FailedMax::Count(1)).is_none());
        assert!(failed_missed(&requests, FailedMax::Percent(1.0)).is_none());
        assert!(failed_missed(&requests, FailedMax::Percent(0.9)).is_some());
        assert!(failed_missed(&Requests::default(), FailedMax::default()).is_none());
    }

    #[test]
    fn a_figure_that_is_missing_does_not_pass() {
        assert!(cpu_missed(Ok(None), Some(1.0), "GiB").is_some());
        assert!(cpu_missed(Ok(Some(0.9)), Some(1.0), "GiB").is_none());
        assert!(cpu_missed(Ok(Some(1.1)), Some(1.0), "GiB").is_some());
        assert!(cpu_missed(Ok(None), None, "GiB").is_none());
        let unknown = cpu_missed(Err("nobody knows"), Some(1000.0), "GiB").unwrap();
        assert!(unknown.contains("both ends") && unknown.contains("nobody knows"), "{unknown}");
        assert!(cpu_missed(Err("nobody knows"), None, "GiB").is_none());
    }
}
