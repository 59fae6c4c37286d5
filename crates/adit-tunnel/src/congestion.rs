//! Congestion control for long lines: CUBIC (RFC 9438) that begins carefully and forgives a stray loss.
//!
//! Whoever doubles his window until packets are lost has a whole window of every other packet lost in the end. Over a line
//! of 1 Gbit/s and 20 ms these are thousands, and a quinn that receives them gives the connection up: it keeps at most 1,024
//! pieces of a stream (`MAX_CHUNKS` of its assembler). So a start slows down once it has something to lose, as limited slow
//! start does (RFC 3742); windows of a long line are still filled within seconds.
//!
//! A window of 100 MB takes CUBIC half a minute to regain after one lost packet. Where nothing queues, a loss says little
//! about the line; then the window falls to what the line was seen to deliver in its shortest round trip (TCP Westwood's
//! idea), if that is more than CUBIC's share, and grows by a small part in each round trip until something queues or is lost again.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// How connections begin.
#[derive(Debug)]
pub(crate) struct CubicConfig {
    /// Bytes in flight before anything is known.
    pub(crate) initial_window: u64,
}

impl ControllerFactory for CubicConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Cubic::new(self.initial_window, now, current_mtu))
    }
}

/// One connection's window; sizes in bytes.
#[derive(Clone, Debug)]
struct Cubic {
    initial_window: u64,
    mtu: f64,
    window: f64,
    slow_start_threshold: f64,
    /// What was sent until then is of the window before the last loss.
    recovery: Option<Instant>,
    /// Since the first acknowledgement after it.
    epoch: Option<Epoch>,
    /// The window when packets were last lost, or somewhat less where it had not come back to the one before (§4.7).
    window_max: f64,
    delivery: Delivery,
    /// The last acknowledgement.
    seen: Instant,
}

/// Congestion avoidance since a loss (§4.1).
#[derive(Clone, Copy, Debug)]
struct Epoch {
    /// Later by as long as the window was not made use of (§5.8).
    start: Instant,
    /// Seconds until the window is `window_max` again.
    k: f64,
    /// What Reno would have now.
    reno: f64,
}

/// What the line delivers, by rounds of a round trip each.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    since: Instant,
    bytes: f64,
    /// Bytes a second, in the last full round and in the one before.
    rates: [f64; 2],
    /// The shortest round trip of this round and of the last full one.
    shortest: [Duration; 2],
    /// Of the path.
    round_trip_min: Duration,
}

impl Delivery {
    fn new(now: Instant) -> Self {
        let shortest = [Duration::MAX, Duration::ZERO];
        Self { since: now, bytes: 0.0, rates: [0.0; 2], shortest, round_trip_min: Duration::ZERO }
    }

    fn handle_ack(&mut self, now: Instant, sent: Instant, bytes: f64, rtt: &RttEstimator) {
        self.bytes += bytes;
        self.round_trip_min = rtt.min();
        self.shortest[0] = self.shortest[0].min(now.saturating_duration_since(sent));
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= rtt.get() && !elapsed.is_zero() {
            self.rates = [self.bytes / elapsed.as_secs_f64(), self.rates[0]];
            self.shortest = [Duration::MAX, self.shortest[0]];
            (self.since, self.bytes) = (now, 0.0);
        }
    }

    /// The window that holds what is delivered if nothing queues.
    fn product(&self) -> f64 {
        self.rates[0].max(self.rates[1]) * self.round_trip_min.as_secs_f64()
    }

    /// Whether every packet of a round waited somewhere, as RFC 9406 section 4.2 finds it, but sooner: what is decided by it is
    /// not for ever.
    fn queues(&self) -> bool {
        let signs = (self.round_trip_min / 32).clamp(QUEUE_MIN, QUEUE_MAX);
        let [this, last] = self.shortest;
        last > self.round_trip_min + signs && this > self.round_trip_min + signs
    }
}

impl Cubic {
    fn new(initial_window: u64, now: Instant, mtu: u16) -> Self {
        Self {
            initial_window,
            mtu: f64::from(mtu),
            window: initial_window as f64,
            slow_start_threshold: f64::INFINITY,
            recovery: None,
            epoch: None,
            window_max: 0.0,
            delivery: Delivery::new(now),
            seen: now,
        }
    }

    fn window_min(&self) -> f64 {
        2.0 * self.mtu
    }

    /// What the window may grow by in a round trip: doubling at first, then so much that what is too much is a few hundred
    /// packets, and less if packets already wait.
    fn growth_max(&self) -> f64 {
        let careful = CAREFUL_PACKETS * self.mtu;
        self.window.min(if self.delivery.queues() { careful / 2.0 } else { careful })
    }

    fn avoid_congestion(&mut self, now: Instant, bytes: f64, round_trip: f64) {
        let (window, max) = (self.window, self.window_max.max(self.window));
        let epoch = self.epoch.get_or_insert_with(|| {
            let k = ((max - window) / self.mtu / C).cbrt();
            Epoch { start: now, k, reno: window }
        });
        let elapsed = now.saturating_duration_since(epoch.start).as_secs_f64() + round_trip;
        let cubic = C * (elapsed - epoch.k).powi(3) * self.mtu + max;
        epoch.reno += RENO_GAIN * bytes / window * self.mtu;
        // A stray loss would hold a long line at what it had for minutes.
        let calm = now.saturating_duration_since(epoch.start).as_secs_f64() > CALM.max(4.0 * round_trip);
        let probe = if calm && !self.delivery.queues() { window * (1.0 + PROBE) } else { window };
        let wanted = cubic.max(epoch.reno).max(probe).clamp(window, window + self.growth_max());
        self.window += (wanted - window) * (bytes / window).min(1.0);
    }
}

impl Controller for Cubic {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        let (bytes, round_trip) = (bytes as f64, rtt.get());
        self.delivery.handle_ack(now, sent, bytes, rtt);
        let pause = now.saturating_duration_since(std::mem::replace(&mut self.seen, now));
        if let Some(epoch) = &mut self.epoch
            && (app_limited || pause > round_trip)
        {
            epoch.start += pause;
        }
        if app_limited || self.recovery.is_some_and(|recovery| sent <= recovery) {
            return;
        }
        if self.window < self.slow_start_threshold {
            self.window += self.growth_max() * (bytes / self.window).min(1.0);
        } else {
            self.avoid_congestion(now, bytes, round_trip.as_secs_f64());
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, _lost_bytes: u64) {
        if self.recovery.is_some_and(|recovery| sent <= recovery) {
            return;
        }
        self.recovery = Some(now);
        self.epoch = None;
        let window = self.window;
        // Fast convergence (§4.7).
        self.window_max = if window < self.window_max { window * (1.0 + BETA) / 2.0 } else { window };
        let kept = self.delivery.product().clamp(window * BETA, window * KEPT);
        self.slow_start_threshold = kept.max(self.window_min());
        self.window = self.slow_start_threshold;
        if persistent {
            // RFC 9002 section 7.6.2.
            self.recovery = None;
            self.slow_start_threshold = (window * BETA).max(self.window_min());
            self.window = self.window_min();
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = f64::from(mtu);
        self.window = self.window.max(self.window_min());
    }

    fn window(&self) -> u64 {
        self.window as u64
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window();
        metrics.ssthresh = Some(self.slow_start_threshold as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial_window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Of RFC 9438 section 5: segments a second cubed.
const C: f64 = 0.4;
/// What remains of a window after a loss (section 4.6).
const BETA: f64 = 0.7;
/// What remains at most, if the line delivered as much.
const KEPT: f64 = 0.95;
/// Reno's pace with [`BETA`] (section 4.3), in segments a round trip.
const RENO_GAIN: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// What is added in a round trip once no loss was seen for [`CALM`] seconds and four round trips, while nothing queues.
const PROBE: f64 = 1.0 / 32.0;
const CALM: f64 = 0.5;
/// What counts as a queue at least and at most.
const QUEUE_MIN: Duration = Duration::from_millis(2);
const QUEUE_MAX: Duration = Duration::from_millis(8);
/// What a round trip may add. Until the first loss is known, another round trip and what the buffer of the line delays it by
/// go on; all of that may be lost packet by packet, and must stay below what a quinn that receives takes.
const CAREFUL_PACKETS: f64 = 540.0;
