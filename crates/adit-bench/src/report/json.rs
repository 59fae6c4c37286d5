//! A run as one JSON document: iperf3's keys where iperf3 has them, more beside.

use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};

use crate::cpu::CpuUse;
use crate::flow::Look;
use crate::histogram::Histogram;
use crate::outcome::{FlowOutcome, Head, Interval, Outcome, Side, Sum};
use crate::verdict;

/// The whole document.
pub(super) fn document(outcome: &Outcome, missed: &[String], title: Option<&str>) -> Value {
    let mut document = json!({
        "start": start(&outcome.head),
        "intervals": outcome.intervals.iter().map(|part| interval(&outcome.head, part)).collect::<Vec<_>>(),
        "end": end(outcome, missed),
    });
    if let Some(title) = title {
        document["title"] = json!(title);
    }
    if outcome.interrupted {
        document["error"] = json!("interrupt - the client has terminated");
    } else if let Some(failure) = outcome.failures.first() {
        document["error"] = json!(failure);
    }
    document
}

/// A run that came to nothing; `head` is known from the moment that its streams were connected.
pub(super) fn failure(head: Option<&Head>, error: &str, title: Option<&str>) -> Value {
    let start = head.map_or_else(|| json!({}), start);
    let mut document = json!({ "start": start, "intervals": [], "end": {}, "error": error });
    if let Some(title) = title {
        document["title"] = json!(title);
    }
    document
}

fn start(head: &Head) -> Value {
    let connected = head.streams.iter().map(|stream| {
        json!({
            "socket": stream.index + 1, "local_host": stream.local.ip().to_string(), "local_port": stream.local.port(),
            "remote_host": stream.remote.ip().to_string(), "remote_port": stream.remote.port(),
        })
    });
    let began = head.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut start = json!({
        "connected": connected.collect::<Vec<_>>(),
        "version": format!("adit {}", env!("CARGO_PKG_VERSION")),
        "system_info": system(),
        "timestamp": { "time": date_text(began), "timesecs": began },
        "connecting_to": { "host": head.host, "port": head.port },
        "target_bitrate": head.rate.unwrap_or(0),
        "sock_bufsize": head.window.unwrap_or(0),
        "test_start": {
            "protocol": head.protocol, "num_streams": head.up.max(head.down), "blksize": head.length,
            "omit": head.omit, "duration": head.time.unwrap_or(0.0), "bytes": head.bytes.unwrap_or(0), "blocks": 0,
            "reverse": u8::from(head.up == 0), "bidirectional": u8::from(head.up > 0 && head.down > 0), "tos": 0,
            "target_bitrate": head.rate.unwrap_or(0), "request": head.request,
        },
    });
    let sockets = &head.sockets;
    for (name, value) in [
        ("cookie", sockets.cookie.as_ref().map(|cookie| json!(cookie))),
        ("tcp_mss_default", sockets.segment_bytes.map(|bytes| json!(bytes))),
        ("sndbuf_actual", sockets.buffers.map(|(send, _)| json!(send))),
        ("rcvbuf_actual", sockets.buffers.map(|(_, receive)| json!(receive))),
    ] {
        value.into_iter().for_each(|value| start[name] = value);
    }
    start
}

/// Seconds since 1970 as HTTP writes dates (RFC 9110 §5.6.7), which is what iperf3 has here.
fn date_text(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // 1 January 1970 was a Thursday.
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month];
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{weekday}, {:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT", day + 1)
}

fn interval(head: &Head, interval: &Interval) -> Value {
    let seconds = interval.end - interval.start;
    let times = |value: &mut Map<String, Value>| {
        value.insert("start".to_owned(), json!(interval.start));
        value.insert("end".to_owned(), json!(interval.end));
        value.insert("omitted".to_owned(), json!(interval.omitted));
    };
    let streams = head.streams.iter().zip(&interval.flows).map(|(stream, look)| {
        let mut value = counted(head, &Sum::of_looks(std::iter::once(look), seconds), None);
        value.insert("socket".to_owned(), json!(stream.index + 1));
        value.insert("sender".to_owned(), json!(stream.is_up));
        if stream.is_up {
            state(&mut value, look);
        } else {
            ["retransmits", "lost_packets"]
                .iter()
                .filter(|_| head.protocol != "UDP")
                .for_each(|name| drop(value.remove(*name)));
        }
        times(&mut value);
        Value::Object(value)
    });
    let mut document = json!({ "streams": streams.collect::<Vec<_>>() });
    for (is_up, name) in directions(head) {
        let of = head.streams.iter().zip(&interval.flows).filter(|(stream, _)| stream.is_up == is_up);
        let mut sum = counted(head, &Sum::of_looks(of.map(|(_, look)| look), seconds), None);
        sum.insert("sender".to_owned(), json!(is_up));
        times(&mut sum);
        document[format!("sum{name}")] = Value::Object(sum);
    }
    document
}

fn end(outcome: &Outcome, missed: &[String]) -> Value {
    let head = &outcome.head;
    let mut end = Map::new();
    let flows: Vec<Value> = outcome.flows.iter().map(|flow| stream(head, flow)).collect();
    end.insert("streams".to_owned(), Value::Array(flows));
    for (is_up, name) in directions(head) {
        for (sum, role) in [(outcome.sent(is_up), "sent"), (outcome.received(is_up), "received")] {
            if let Some(sum) = sum {
                let mut value = counted(head, &sum, Some(role));
                value.insert("start".to_owned(), json!(0));
                value.insert("end".to_owned(), json!(sum.seconds));
                value.insert("sender".to_owned(), json!(is_up));
                end.insert(format!("sum_{role}{name}"), Value::Object(value.clone()));
            }
        }
        if head.protocol == "UDP" {
            let both =
                udp_of_both(end.get(&format!("sum_sent{name}")), end.get(&format!("sum_received{name}")));
            both.into_iter().for_each(|sum| drop(end.insert(format!("sum{name}"), sum)));
        }
    }
    end.insert("cpu_utilization_percent".to_owned(), utilization(outcome));
    end.insert("cpu_seconds".to_owned(), cpu_seconds(outcome));
    let latency = json!({
        "kind": if outcome.latency_of_requests { "request" } else { "ping" },
        "idle": outcome.idle.as_ref().map(latency), "loaded": outcome.loaded.as_ref().map(latency),
        "waiting": outcome.waiting.map(|waiting| json!({
            "count": waiting.count, "longest": waiting.longest.as_secs_f64() * 1000.0,
            "silence": waiting.silence.as_secs_f64() * 1000.0,
        })),
    });
    end.insert("latency_ms".to_owned(), latency);
    if let (Some(requests), Some(rate)) = (&outcome.requests, outcome.requests_per_second()) {
        let failed: Map<String, Value> =
            requests.failed.iter().map(|(reason, count)| ((*reason).to_owned(), json!(count))).collect();
        end.insert(
            "requests".to_owned(),
            json!({
                "done": requests.done, "per_second": rate, "failed": failed, "failed_count": requests.failures(),
                "failed_percent": requests.failed_percent(),
            }),
        );
    }
    if let Some(name) = &outcome.congestion.0 {
        end.insert("sender_tcp_congestion".to_owned(), json!(name));
    }
    if let Some(name) = &outcome.congestion.1 {
        end.insert("receiver_tcp_congestion".to_owned(), json!(name));
    }
    end.insert("limited_by".to_owned(), json!(verdict::limit(outcome)));
    end.insert("failures".to_owned(), json!(outcome.failures));
    end.insert("thresholds_missed".to_owned(), json!(missed));
    Value::Object(end)
}

fn stream(head: &Head, flow: &FlowOutcome) -> Value {
    let side = |side: &Side, role: &str| {
        let mut value = counted(head, &Sum::of(std::iter::once(side)), Some(role));
        value.insert("socket".to_owned(), json!(flow.index + 1));
        value.insert("start".to_owned(), json!(0));
        value.insert("end".to_owned(), json!(side.seconds));
        value.insert("sender".to_owned(), json!(flow.is_up));
        value
    };
    let mut document = Map::new();
    if let Some(sender) = &flow.sender {
        let mut value = side(sender, "sent");
        let trips = flow.round_trips;
        if trips.max_us > 0 {
            value.insert("max_snd_cwnd".to_owned(), json!(trips.window_max));
            value.insert("max_rtt".to_owned(), json!(trips.max_us));
            value.insert("min_rtt".to_owned(), json!(trips.min_us));
            value.insert("mean_rtt".to_owned(), json!(trips.mean_us));
        }
        document.insert("sender".to_owned(), Value::Object(value));
    }
    if let Some(receiver) = &flow.receiver {
        document.insert("receiver".to_owned(), Value::Object(side(receiver, "received")));
    }
    if head.protocol == "UDP" {
        let both = udp_of_both(document.get("sender"), document.get("receiver"));
        both.into_iter().for_each(|udp| drop(document.insert("udp".to_owned(), udp)));
    }
    Value::Object(document)
}

/// What iperf3 tells of datagrams as one: bytes and rate of the sender, all else of the receiver.
fn udp_of_both(sent: Option<&Value>, received: Option<&Value>) -> Option<Value> {
    let (Some(sent), Some(received)) = (sent, received) else { return sent.or(received).cloned() };
    let mut both = received.clone();
    for name in ["bytes", "bits_per_second", "seconds", "end"] {
        both[name] = sent[name].clone();
    }
    Some(both)
}

/// `role` is `None` in intervals, where our end's counters are all there is.
fn counted(head: &Head, sum: &Sum, role: Option<&str>) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("seconds".to_owned(), json!(sum.seconds));
    value.insert("bytes".to_owned(), json!(sum.bytes));
    value.insert("bits_per_second".to_owned(), json!(sum.bits_per_second()));
    match head.protocol {
        "TCP" | "QUIC" if role != Some("received") => {
            let name = if head.protocol == "TCP" { "retransmits" } else { "lost_packets" };
            value.insert(name.to_owned(), json!(sum.retransmits.unwrap_or(0)));
        }
        "UDP" => {
            // All that are known of, as iperf3 has it: a receiver's with those that it lacks.
            value.insert("packets".to_owned(), json!(sum.packets.saturating_add(sum.lost)));
            value.insert("jitter_ms".to_owned(), json!(sum.jitter_ms));
            value.insert("lost_packets".to_owned(), json!(sum.lost));
            value.insert("lost_percent".to_owned(), json!(sum.lost_percent()));
            value.insert("out_of_order".to_owned(), json!(sum.out_of_order));
            value.insert("duplicates".to_owned(), json!(sum.duplicates));
        }
        "HTTP/1.1" | "HTTP/2" => {
            value.insert("requests".to_owned(), json!(sum.packets));
        }
        _ => {}
    }
    value
}

fn state(value: &mut Map<String, Value>, look: &Look) {
    let tcp = look.tcp.map(|tcp| (tcp.congestion_window, tcp.rtt_us, tcp.rtt_variance_us, tcp.path_mtu));
    let quic = look.quic.map(|quic| (quic.congestion_window, quic.rtt_us, 0, quic.mtu));
    if let Some((window, rtt, variance, mtu)) = tcp.or(quic) {
        value.insert("snd_cwnd".to_owned(), json!(window));
        value.insert("rtt".to_owned(), json!(rtt));
        value.insert("rttvar".to_owned(), json!(variance));
        value.insert("pmtu".to_owned(), json!(mtu));
    }
}

/// The directions of a run and what iperf3 appends to the names of the second one's sums.
fn directions(head: &Head) -> Vec<(bool, &'static str)> {
    match (head.up > 0, head.down > 0) {
        (true, true) => vec![(true, ""), (false, "_bidir_reverse")],
        (is_up, _) => vec![(is_up, "")],
    }
}

/// Of one CPU, as iperf3 has it.
fn utilization(outcome: &Outcome) -> Value {
    let percent = |seconds: f64, cpu: &CpuUse| seconds / cpu.seconds.max(1e-9) * 100.0;
    let near = &outcome.near;
    let mut value = json!({
        "host_total": percent(near.total(), near), "host_user": percent(near.user, near),
        "host_system": percent(near.system, near),
    });
    if let Some(far) = &outcome.far {
        value["remote_total"] = json!(percent(far.total(), far));
        value["remote_user"] = json!(percent(far.user, far));
        value["remote_system"] = json!(percent(far.system, far));
    }
    value
}

fn cpu_seconds(outcome: &Outcome) -> Value {
    let cost = |seconds: f64| json!({ "seconds": seconds, "per_gib": outcome.per_gib(seconds), "per_100k_requests": outcome.per_requests(seconds) });
    let end = |cpu: &CpuUse| {
        let mut value = cost(cpu.total());
        value["user"] = json!(cpu.user);
        value["system"] = json!(cpu.system);
        value["cores"] = json!(cpu.cores);
        value["machine_busy_percent"] = json!(cpu.host_busy.map(|busy| busy * 100.0));
        value["includes_other_runs"] = json!(cpu.shared);
        let others = cpu.others.iter().map(|(pid, name, seconds)| {
            let mut value = cost(*seconds);
            value["pid"] = json!(pid);
            value["name"] = json!(name);
            value
        });
        value["others"] = Value::Array(others.collect());
        value
    };
    json!({ "client": end(&outcome.near), "server": outcome.far.as_ref().map(end), "all": outcome.cpu_seconds().ok().map(cost) })
}

fn latency(latency: &Histogram) -> Value {
    let milliseconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
    json!({
        "count": latency.count(), "min": milliseconds(latency.min()), "mean": milliseconds(latency.mean()),
        "p50": milliseconds(latency.quantile(0.5)), "p90": milliseconds(latency.quantile(0.9)),
        "p99": milliseconds(latency.quantile(0.99)), "p99.9": milliseconds(latency.quantile(0.999)),
        "max": milliseconds(latency.max()),
    })
}

fn system() -> String {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    format!("{} {} {}", read("ostype").trim(), read("hostname").trim(), read("osrelease").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_http_has_them() {
        assert_eq!(date_text(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date_text(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date_text(1_709_210_096), "Thu, 29 Feb 2024 12:34:56 GMT");
        assert_eq!(date_text(1_735_689_599), "Tue, 31 Dec 2024 23:59:59 GMT");
    }

    #[test]
    fn datagrams_as_one_are_bytes_sent_and_all_else_as_received() {
        let sent = json!({ "bytes": 100, "bits_per_second": 8.0, "seconds": 100.0, "end": 100.0, "lost_packets": 0 });
        let received =
            json!({ "bytes": 90, "bits_per_second": 7.0, "seconds": 101.0, "end": 101.0, "lost_packets": 1 });
        let both = udp_of_both(Some(&sent), Some(&received)).unwrap();
        assert_eq!(
            (&both["bytes"], &both["lost_packets"], &both["end"]),
            (&json!(100), &json!(1), &json!(100.0))
        );
        assert_eq!(udp_of_both(Some(&sent), None), Some(sent));
    }
}
