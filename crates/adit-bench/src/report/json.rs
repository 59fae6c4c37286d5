//! A run as one JSON document: iperf3's keys where iperf3 has them, more beside.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::cpu::CpuUse;
use crate::flow::Look;
use crate::histogram::Histogram;
use crate::outcome::{FlowOutcome, Head, Interval, Outcome, Side, Sum};
use crate::verdict;

/// The whole document.
pub(super) fn document(outcome: &Outcome, missed: &[String], title: Option<&str>) -> Value {
    let mut document = json!({
        "start": start(outcome),
        "intervals": outcome.intervals.iter().map(|part| interval(&outcome.head, part)).collect::<Vec<_>>(),
        "end": end(outcome, missed),
    });
    if let Some(title) = title {
        document["title"] = json!(title);
    }
    if let Some(failure) = outcome.failures.first() {
        document["error"] = json!(failure);
    } else if outcome.interrupted {
        document["error"] = json!("interrupt - the client has terminated");
    }
    document
}

fn start(outcome: &Outcome) -> Value {
    let head = &outcome.head;
    let connected = head.streams.iter().map(|stream| {
        json!({
            "socket": stream.index + 1, "local_host": stream.local.ip().to_string(), "local_port": stream.local.port(),
            "remote_host": stream.remote.ip().to_string(), "remote_port": stream.remote.port(),
        })
    });
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let began = ended - outcome.seconds - head.omit;
    json!({
        "connected": connected.collect::<Vec<_>>(),
        "version": format!("adit {}", env!("CARGO_PKG_VERSION")),
        "system_info": system(),
        "timestamp": { "timesecs": began as u64 },
        "connecting_to": { "host": head.host, "port": head.port },
        "target_bitrate": head.rate.unwrap_or(0),
        "sock_bufsize": head.window.unwrap_or(0),
        "test_start": {
            "protocol": head.protocol, "num_streams": head.up.max(head.down), "blksize": head.length,
            "omit": head.omit, "duration": head.time.unwrap_or(0.0), "bytes": head.bytes.unwrap_or(0), "blocks": 0,
            "reverse": u8::from(head.up == 0), "bidirectional": u8::from(head.up > 0 && head.down > 0), "tos": 0,
            "target_bitrate": head.rate.unwrap_or(0), "request": head.request,
        },
    })
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
                // iperf3 gives what the receiver saw as the sum of UDP.
                if head.protocol == "UDP" && role == "received" {
                    end.insert(format!("sum{name}"), Value::Object(value));
                }
            }
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
    if head.protocol == "UDP"
        && let Some(udp) = document.get("receiver").or(document.get("sender")).cloned()
    {
        document.insert("udp".to_owned(), udp);
    }
    Value::Object(document)
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
            value.insert("packets".to_owned(), json!(sum.packets));
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
    json!({ "client": end(&outcome.near), "server": outcome.far.as_ref().map(end), "all": cost(outcome.cpu_seconds()) })
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
