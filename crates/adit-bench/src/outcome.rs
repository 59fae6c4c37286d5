//! What a run has shown: figures only; `verdict.rs` judges and `report/` tells.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::cpu::CpuUse;
use crate::flow::Look;
use crate::histogram::Histogram;

/// What is known before the first byte.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// `TCP`, `UDP`, `QUIC`, `HTTP/1.1`, `HTTP/2`.
    pub(crate) protocol: &'static str,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) streams: Vec<StreamHead>,
    pub(crate) up: u16,
    pub(crate) down: u16,
    pub(crate) length: u64,
    pub(crate) omit: f64,
    /// Seconds, if time ends the run.
    pub(crate) time: Option<f64>,
    pub(crate) bytes: Option<u64>,
    pub(crate) rate: Option<u64>,
    pub(crate) window: Option<u32>,
    /// How a URL is asked, such as `GET http://…`.
    pub(crate) request: Option<String>,
    pub(crate) began: SystemTime,
    pub(crate) sockets: Sockets,
}

/// What is told of a run over the bench's own protocol alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sockets {
    /// The run's name in hexadecimal; it lets nobody in any more when it is told.
    pub(crate) cookie: Option<String>,
    /// Of TCP's segments on the path.
    pub(crate) segment_bytes: Option<u64>,
    /// Bytes that the kernel grants the first stream's socket to send and to receive.
    pub(crate) buffers: Option<(usize, usize)>,
}

/// One stream of the run.
#[derive(Clone, Debug)]
pub(crate) struct StreamHead {
    pub(crate) index: u16,
    pub(crate) is_up: bool,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// What happened between two looks, for each stream of the head.
#[derive(Clone, Debug)]
pub(crate) struct Interval {
    pub(crate) start: f64,
    pub(crate) end: f64,
    /// Part of the warm-up.
    pub(crate) omitted: bool,
    pub(crate) flows: Vec<Look>,
}

/// What one end counted of one stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) seconds: f64,
    pub(crate) look: Look,
}

/// Both ends of one stream; the other end of a URL's stream may be unknown.
#[derive(Clone, Debug)]
pub(crate) struct FlowOutcome {
    pub(crate) index: u16,
    pub(crate) is_up: bool,
    pub(crate) sender: Option<Side>,
    pub(crate) receiver: Option<Side>,
    pub(crate) round_trips: RoundTrips,
}

/// Round-trip times that the sender's transport saw, if it was ours.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoundTrips {
    pub(crate) min_us: u64,
    pub(crate) max_us: u64,
    pub(crate) mean_us: u64,
    pub(crate) window_max: u64,
}

/// HTTP requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    pub(crate) done: u64,
    /// By reason; reasons are few.
    pub(crate) failed: Vec<(&'static str, u64)>,
}

/// Requests that were under way when the run ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) count: u64,
    /// How long the first of them had waited.
    pub(crate) longest: Duration,
    /// How long none of all streams had been answered while one waited.
    pub(crate) silence: Duration,
}

impl Requests {
    pub(crate) fn failures(&self) -> u64 {
        self.failed.iter().map(|(_, count)| count).sum()
    }

    /// Of those that ended.
    pub(crate) fn failed_percent(&self) -> f64 {
        lost_percent(self.failures(), self.done)
    }
}

/// A run that is over.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) head: Head,
    pub(crate) intervals: Vec<Interval>,
    pub(crate) flows: Vec<FlowOutcome>,
    /// From the end of the warm-up to the end.
    pub(crate) seconds: f64,
    /// Latency before the load.
    pub(crate) idle: Option<Histogram>,
    /// Latency beside the load: of questions, or of the requests themselves.
    pub(crate) loaded: Option<Histogram>,
    /// Whether that is the requests' own.
    pub(crate) latency_of_requests: bool,
    pub(crate) requests: Option<Requests>,
    /// Over HTTP, of those requests that the latencies are of.
    pub(crate) waiting: Option<Waiting>,
    /// What the server counted of all streams together, where it does not count each: received (up) and sent (down).
    pub(crate) far_sums: Option<(Side, Side)>,
    pub(crate) near: CpuUse,
    /// The server's; unknown for URLs of others.
    pub(crate) far: Option<CpuUse>,
    pub(crate) congestion: (Option<String>, Option<String>),
    pub(crate) failures: Vec<String>,
    /// The exit status of what broke the run off; its words are the first of the failures.
    pub(crate) broken_by: Option<u8>,
    pub(crate) interrupted: bool,
}

/// Sums over the streams of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) packets: u64,
    pub(crate) lost: u64,
    pub(crate) out_of_order: u64,
    pub(crate) duplicates: u64,
    pub(crate) jitter_ms: f64,
    /// TCP segments or QUIC packets sent again, if known.
    pub(crate) retransmits: Option<u64>,
    /// TCP segments or QUIC packets sent.
    pub(crate) segments: u64,
}

impl Sum {
    pub(crate) fn of<'a>(sides: impl Iterator<Item = &'a Side>) -> Self {
        let mut sum = Self::default();
        let mut count = 0.0;
        for side in sides {
            count += 1.0;
            sum.add(&side.look);
            sum.seconds = sum.seconds.max(side.seconds);
        }
        sum.jitter_ms /= f64::max(count, 1.0);
        sum
    }

    /// The same of looks at one interval; jitter is their mean.
    pub(crate) fn of_looks<'a>(looks: impl Iterator<Item = &'a Look>, seconds: f64) -> Self {
        let mut sum = Self { seconds, ..Self::default() };
        let mut count = 0.0;
        for look in looks {
            count += 1.0;
            sum.add(look);
        }
        sum.jitter_ms /= f64::max(count, 1.0);
        sum
    }

    pub(crate) fn bits_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 * 8.0 / self.seconds } else { 0.0 }
    }

    /// Of all datagrams that were sent.
    pub(crate) fn lost_percent(&self) -> f64 {
        lost_percent(self.lost, self.packets)
    }

    fn add(&mut self, look: &Look) {
        // What the peer counted may be any number.
        self.bytes = self.bytes.saturating_add(look.bytes);
        self.packets = self.packets.saturating_add(look.packets);
        self.lost = self.lost.saturating_add(look.lost);
        self.out_of_order = self.out_of_order.saturating_add(look.out_of_order);
        self.duplicates = self.duplicates.saturating_add(look.duplicates);
        self.jitter_ms += look.jitter_ns as f64 / 1e6;
        let again = look.tcp.map(|tcp| (tcp.retransmits, tcp.segments));
        let again = again.or(look.quic.map(|quic| (quic.lost_packets, quic.sent_packets)));
        if let Some((retransmits, segments)) = again {
            self.retransmits = Some(self.retransmits.unwrap_or(0).saturating_add(retransmits));
            self.segments = self.segments.saturating_add(segments);
        }
    }
}

/// Share of datagrams that did not come; `received` did.
pub(crate) fn lost_percent(lost: u64, received: u64) -> f64 {
    let sent = lost.saturating_add(received);
    if sent == 0 { 0.0 } else { lost as f64 * 100.0 / sent as f64 }
}

impl Outcome {
    /// What the senders of a direction counted; of QUIC, the streams of one connection share its packets.
    pub(crate) fn sent(&self, is_up: bool) -> Option<Sum> {
        let far = self.far_sums.filter(|_| !is_up && self.head.down > 0).map(|(_, sent)| sent);
        self.sum(is_up, |flow| flow.sender.as_ref()).or(far.map(|side| Sum::of(std::iter::once(&side))))
    }

    /// What the receivers of a direction counted.
    pub(crate) fn received(&self, is_up: bool) -> Option<Sum> {
        let far = self.far_sums.filter(|_| is_up && self.head.up > 0).map(|(received, _)| received);
        self.sum(is_up, |flow| flow.receiver.as_ref()).or(far.map(|side| Sum::of(std::iter::once(&side))))
    }

    /// What arrived, or what was sent where nobody tells what arrived.
    pub(crate) fn carried(&self, is_up: bool) -> Option<Sum> {
        self.received(is_up).or_else(|| self.sent(is_up))
    }

    /// Bytes of both directions.
    pub(crate) fn bytes(&self) -> u64 {
        [true, false].into_iter().filter_map(|is_up| self.carried(is_up)).map(|sum| sum.bytes).sum()
    }

    /// CPU-seconds of both ends and the processes between, as far as they are known.
    pub(crate) fn known_cpu_seconds(&self) -> f64 {
        let of = |cpu: &CpuUse| cpu.total() + cpu.others.iter().map(|(_, _, seconds)| seconds).sum::<f64>();
        of(&self.near) + self.far.as_ref().map_or(0.0, of)
    }

    /// The same if all are known, or whose are not.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, &'static str> {
        match &self.far {
            None => Err("the server's CPU time is unknown"),
            Some(far) if far.incomplete || self.near.incomplete => {
                Err("a process of --cpu-of ended during the run")
            }
            Some(_) => Ok(self.known_cpu_seconds()),
        }
    }

    /// CPU-seconds for each GiB carried.
    pub(crate) fn per_gib(&self, cpu_seconds: f64) -> Option<f64> {
        let bytes = self.bytes();
        (bytes > 0).then(|| cpu_seconds / (bytes as f64 / GIB))
    }

    /// CPU-seconds for each 100,000 requests.
    pub(crate) fn per_requests(&self, cpu_seconds: f64) -> Option<f64> {
        let done = self.requests.as_ref()?.done;
        (done > 0).then(|| cpu_seconds / done as f64 * 1e5)
    }

    pub(crate) fn requests_per_second(&self) -> Option<f64> {
        Some(self.requests.as_ref()?.done as f64 / self.seconds.max(1e-9))
    }

    fn sum(&self, is_up: bool, side: fn(&FlowOutcome) -> Option<&Side>) -> Option<Sum> {
        let of_direction: Vec<&FlowOutcome> = self.flows.iter().filter(|flow| flow.is_up == is_up).collect();
        let sides: Vec<&Side> = of_direction.iter().filter_map(|flow| side(flow)).collect();
        if sides.is_empty() {
            return None;
        }
        let mut sum = Sum::of(sides.iter().copied());
        if self.head.protocol == "QUIC" {
            self.count_connections_once(&mut sum, &sides);
        }
        Some(sum)
    }

    /// Streams of one QUIC connection all show that connection's packets.
    fn count_connections_once(&self, sum: &mut Sum, sides: &[&Side]) {
        let connections = self.connections().max(1).min(sides.len());
        let shown = sides.iter().filter_map(|side| side.look.quic).take(connections);
        let (lost, sent) = shown.fold((0u64, 0u64), |(lost, sent), quic| {
            (lost.saturating_add(quic.lost_packets), sent.saturating_add(quic.sent_packets))
        });
        if sum.retransmits.is_some() {
            sum.retransmits = Some(lost);
            sum.segments = sent;
        }
    }

    /// Different pairs of addresses among the streams.
    fn connections(&self) -> usize {
        let mut pairs: Vec<_> =
            self.head.streams.iter().map(|stream| (stream.local, stream.remote)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs.len()
    }
}

/// What sizes count in.
pub(crate) const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_shares_of_what_was_sent() {
        assert!((lost_percent(1, 99) - 1.0).abs() < 1e-9);
        assert!(lost_percent(0, 0).abs() < 1e-9);
    }

    #[test]
    fn sums_take_the_longest_time_and_the_mean_jitter() {
        let side =
            |bytes, seconds, jitter_ns| Side { seconds, look: Look { bytes, jitter_ns, ..Look::default() } };
        let sum = Sum::of([side(100, 1.0, 1_000_000), side(300, 2.0, 3_000_000)].iter());
        assert_eq!(sum.bytes, 400);
        assert!((sum.bits_per_second() - 1600.0).abs() < 1e-9);
        assert!((sum.jitter_ms - 2.0).abs() < 1e-9);
        assert_eq!(sum.retransmits, None);
    }
}
