//! Looks at all flows now and then, and keeps the differences.

use std::sync::Arc;
use std::time::Instant;

use crate::flow::{Flow, Look};
use crate::outcome::{Interval, RoundTrips};

/// Counters of a run over time.
#[derive(Debug)]
pub(crate) struct Recorder {
    flows: Vec<Arc<Flow>>,
    /// Where the numbering of seconds begins: at the start, and again after the warm-up.
    began: Instant,
    /// Counters where the counted part begins.
    base: Vec<Look>,
    last: Vec<Look>,
    last_at: f64,
    intervals: Vec<Interval>,
    round_trips: Vec<(RoundTrips, u64)>,
}

impl Recorder {
    pub(crate) fn new(flows: Vec<Arc<Flow>>) -> Self {
        let looks: Vec<Look> = flows.iter().map(|flow| flow.look()).collect();
        let round_trips = vec![(RoundTrips::default(), 0); flows.len()];
        Self {
            flows,
            began: Instant::now(),
            base: looks.clone(),
            last: looks,
            last_at: 0.0,
            intervals: Vec::new(),
            round_trips,
        }
    }

    /// Time begins here.
    pub(crate) fn start_clock(&mut self) {
        self.began = Instant::now();
    }

    /// Seconds since the start, or since the end of the warm-up.
    pub(crate) fn elapsed(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Ends an interval at `end`.
    pub(crate) fn cut(&mut self, end: f64, omitted: bool) -> &Interval {
        let looks: Vec<Look> = self.flows.iter().map(|flow| flow.look()).collect();
        let flows = looks.iter().zip(&self.last).map(|(now, before)| now.since(before)).collect();
        for (look, (trips, count)) in looks.iter().zip(&mut self.round_trips) {
            note_round_trip(look, trips, count);
        }
        self.last = looks;
        self.intervals.push(Interval { start: self.last_at, end, omitted, flows });
        self.last_at = end;
        self.intervals.last().expect("one was pushed just now")
    }

    /// The warm-up is over: what came until now does not count.
    pub(crate) fn end_warm_up(&mut self) {
        self.base.clone_from(&self.last);
        self.began = Instant::now();
        self.last_at = 0.0;
        self.round_trips.fill((RoundTrips::default(), 0));
    }

    /// What each flow counted after the warm-up until the last cut.
    pub(crate) fn totals(&self) -> Vec<Look> {
        self.last.iter().zip(&self.base).map(|(last, base)| last.since(base)).collect()
    }

    pub(crate) fn round_trips(&self) -> Vec<RoundTrips> {
        self.round_trips.iter().map(|(trips, _)| *trips).collect()
    }

    /// Where the last interval ended.
    pub(crate) fn last_end(&self) -> f64 {
        self.last_at
    }

    pub(crate) fn into_intervals(self) -> Vec<Interval> {
        self.intervals
    }

    pub(crate) fn flows(&self) -> &[Arc<Flow>] {
        &self.flows
    }
}

fn note_round_trip(look: &Look, trips: &mut RoundTrips, count: &mut u64) {
    let seen = look.tcp.map(|tcp| (tcp.rtt_us, tcp.congestion_window));
    let Some((rtt, window)) = seen.or(look.quic.map(|quic| (quic.rtt_us, quic.congestion_window))) else {
        return;
    };
    trips.min_us = if *count == 0 { rtt } else { trips.min_us.min(rtt) };
    trips.max_us = trips.max_us.max(rtt);
    trips.window_max = trips.window_max.max(window);
    trips.mean_us = (trips.mean_us * *count + rtt) / (*count + 1);
    *count += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Under;

    #[test]
    fn intervals_add_up_to_the_total_and_the_warm_up_does_not_count() {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let flow = Arc::new(Flow::new(0, true, true, (address, address), Under::Nothing));
        let mut recorder = Recorder::new(vec![Arc::clone(&flow)]);
        Flow::count(&flow.counters.bytes, 100);
        recorder.cut(0.5, true);
        recorder.end_warm_up();
        for (end, bytes) in [(1.0, 7), (2.0, 8)] {
            Flow::count(&flow.counters.bytes, bytes);
            recorder.cut(end, false);
        }
        assert_eq!(recorder.totals()[0].bytes, 15);
        let intervals = recorder.into_intervals();
        let counted: u64 = intervals.iter().filter(|i| !i.omitted).map(|i| i.flows[0].bytes).sum();
        assert_eq!(counted, 15);
        assert_eq!((intervals[1].start, intervals[2].start), (0.0, 1.0));
    }
}
