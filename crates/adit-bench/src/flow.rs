//! One end of one stream of load: what it counts, and how it is told to stop.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::tcp_state::TcpState;

/// One end of a stream. One task writes its counters, any may read them.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) index: u16,
    /// From the client to the server.
    pub(crate) is_up: bool,
    /// Whether this end sends.
    pub(crate) sends: bool,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) counters: Counters,
    under: Under,
    failure: Mutex<Option<String>>,
}

/// What a flow counts. Aligned, so that flows on two CPUs do not share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) bytes: AtomicU64,
    /// Datagrams, or HTTP requests done.
    pub(crate) packets: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) out_of_order: AtomicU64,
    /// Datagrams that came again; they are in no other counter.
    pub(crate) duplicates: AtomicU64,
    /// How far the numbers of the datagrams went, warm-up included: one above the largest sent or received.
    pub(crate) numbered: AtomicU64,
    pub(crate) jitter_ns: AtomicU64,
    /// Share of one CPU, in thousandths, that the thread of the flow took; set at its end.
    pub(crate) thread_permille: AtomicU64,
}

/// What carries a flow and can be asked how it fares.
#[derive(Debug)]
pub(crate) enum Under {
    Tcp(TcpStream),
    Quic(quinn::Connection),
    Nothing,
}

/// Counters and transport at one time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) lost: u64,
    pub(crate) out_of_order: u64,
    pub(crate) duplicates: u64,
    /// Of the whole flow, never a difference.
    pub(crate) numbered: u64,
    pub(crate) jitter_ns: u64,
    pub(crate) tcp: Option<TcpState>,
    pub(crate) quic: Option<QuicState>,
}

/// What quinn knows of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QuicState {
    pub(crate) lost_packets: u64,
    pub(crate) sent_packets: u64,
    pub(crate) congestion_events: u64,
    pub(crate) rtt_us: u64,
    pub(crate) congestion_window: u64,
    pub(crate) mtu: u64,
    /// Times that the peer's windows held us.
    pub(crate) blocked: u64,
}

impl Flow {
    pub(crate) fn new(
        index: u16,
        is_up: bool,
        sends: bool,
        ends: (SocketAddr, SocketAddr),
        under: Under,
    ) -> Self {
        let (local, remote) = ends;
        Self {
            index,
            is_up,
            sends,
            local,
            remote,
            counters: Counters::default(),
            under,
            failure: Mutex::default(),
        }
    }

    /// Counters and transport now.
    pub(crate) fn look(&self) -> Look {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (tcp, quic) = match &self.under {
            Under::Tcp(socket) => (TcpState::of(socket), None),
            Under::Quic(connection) => (None, Some(QuicState::of(connection))),
            Under::Nothing => (None, None),
        };
        Look {
            bytes: count(&self.counters.bytes),
            packets: count(&self.counters.packets),
            lost: count(&self.counters.lost),
            out_of_order: count(&self.counters.out_of_order),
            duplicates: count(&self.counters.duplicates),
            numbered: count(&self.counters.numbered),
            jitter_ns: count(&self.counters.jitter_ns),
            tcp,
            quic,
        }
    }

    /// Sums that grow with signs of the peer: what only its process can have said, and what its kernel may have acknowledged.
    pub(crate) fn signs(&self) -> (u64, u64) {
        match &self.under {
            // Acknowledgements of QUIC are the process's own.
            Under::Quic(connection) => (connection.stats().udp_rx.datagrams, 0),
            Under::Tcp(socket) if self.sends => {
                (0, TcpState::of(socket).map_or(0, |state| state.acknowledged))
            }
            Under::Tcp(_) | Under::Nothing if self.sends => (0, 0),
            Under::Tcp(_) | Under::Nothing => (self.counters.bytes.load(Ordering::Relaxed), 0),
        }
    }

    /// Counts what one task alone writes.
    pub(crate) fn count(counter: &AtomicU64, more: u64) {
        counter.store(counter.load(Ordering::Relaxed).saturating_add(more), Ordering::Relaxed);
    }

    /// Notes why the flow ended early; the first reason stays.
    pub(crate) fn fail(&self, why: impl Into<String>) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why.into());
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends what its task may be waiting for.
    pub(crate) fn cut(&self) {
        match &self.under {
            Under::Tcp(socket) => drop(socket.shutdown(Shutdown::Both)),
            Under::Quic(connection) => connection.close(0u32.into(), b"cut"),
            Under::Nothing => {}
        }
    }
}

impl Look {
    /// What happened since `from`; states of the transport stay as they are now, their counters are differences.
    pub(crate) fn since(&self, from: &Self) -> Self {
        let tcp = self.tcp.map(|tcp| {
            let from = from.tcp.unwrap_or_default();
            TcpState {
                retransmits: tcp.retransmits.saturating_sub(from.retransmits),
                segments: tcp.segments.saturating_sub(from.segments),
                busy_us: tcp.busy_us.saturating_sub(from.busy_us),
                receive_window_us: tcp.receive_window_us.saturating_sub(from.receive_window_us),
                send_buffer_us: tcp.send_buffer_us.saturating_sub(from.send_buffer_us),
                ..tcp
            }
        });
        let quic = self.quic.map(|quic| {
            let from = from.quic.unwrap_or_default();
            QuicState {
                lost_packets: quic.lost_packets.saturating_sub(from.lost_packets),
                sent_packets: quic.sent_packets.saturating_sub(from.sent_packets),
                congestion_events: quic.congestion_events.saturating_sub(from.congestion_events),
                blocked: quic.blocked.saturating_sub(from.blocked),
                ..quic
            }
        });
        Self {
            bytes: self.bytes.saturating_sub(from.bytes),
            packets: self.packets.saturating_sub(from.packets),
            // A packet that comes late takes a loss back.
            lost: self.lost.saturating_sub(from.lost),
            out_of_order: self.out_of_order.saturating_sub(from.out_of_order),
            duplicates: self.duplicates.saturating_sub(from.duplicates),
            numbered: self.numbered,
            jitter_ns: self.jitter_ns,
            tcp,
            quic,
        }
    }
}

impl QuicState {
    fn of(connection: &quinn::Connection) -> Self {
        let stats = connection.stats();
        Self {
            lost_packets: stats.path.lost_packets,
            sent_packets: stats.path.sent_packets,
            congestion_events: stats.path.congestion_events,
            rtt_us: u64::try_from(stats.path.rtt.as_micros()).unwrap_or(u64::MAX),
            congestion_window: stats.path.cwnd,
            mtu: u64::from(stats.path.current_mtu),
            blocked: stats.frame_tx.data_blocked + stats.frame_tx.stream_data_blocked,
        }
    }
}

/// Tells all flows of a run to stop.
#[derive(Debug)]
pub(crate) struct Switch {
    stopped: AtomicBool,
    changed: watch::Sender<bool>,
}

impl Switch {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { stopped: AtomicBool::new(false), changed: watch::Sender::new(false) })
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.changed.send_replace(true);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Resolves when [`stop`](Self::stop) was called.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as `self`, so that waiting cannot fail.
        let _ = self.changed.subscribe().wait_for(|stopped| *stopped).await;
    }
}

/// Keeps a flow at its rate, on average since it began.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: f64,
    began: Instant,
    sent: f64,
}

impl Pace {
    /// At `rate` bits a second; `None` without one.
    pub(crate) fn new(rate: Option<u64>) -> Option<Self> {
        let bytes_per_second = rate? as f64 / 8.0;
        Some(Self { bytes_per_second, began: Instant::now(), sent: 0.0 })
    }

    /// How long to wait after having sent `bytes` more.
    pub(crate) fn wait(&mut self, bytes: usize) -> Duration {
        self.sent += bytes as f64;
        let due = self.sent / self.bytes_per_second;
        let elapsed = self.began.elapsed().as_secs_f64();
        if elapsed > due + BEHIND_SECONDS_MAX {
            // Whoever was held up does not catch up with a burst that fills every queue on the way.
            self.began = Instant::now();
            self.sent = 0.0;
        }
        Duration::from_secs_f64((due - elapsed).clamp(0.0, WAIT_SECONDS_MAX))
    }

    /// The same for a thread: sleeps, unless stopped.
    pub(crate) fn sleep(&mut self, bytes: usize, switch: &Switch) {
        let mut left = self.wait(bytes);
        while !left.is_zero() && !switch.is_stopped() {
            let step = left.min(SLEEP_STEP);
            std::thread::sleep(step);
            left -= step;
        }
    }
}

const BEHIND_SECONDS_MAX: f64 = 0.1;
/// An hour between two blocks is a rate of nothing.
const WAIT_SECONDS_MAX: f64 = 3600.0;
/// How soon a sleeping sender notices that it is to stop.
const SLEEP_STEP: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_on_average() {
        let mut pace = Pace::new(Some(8_000_000)).unwrap();
        let wait = pace.wait(500_000);
        assert!((0.4..=0.5).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(Pace::new(None).is_none());
    }

    #[test]
    fn a_late_packet_does_not_make_the_losses_of_an_interval_negative() {
        let before = Look { lost: 3, bytes: 10, ..Look::default() };
        let after = Look { lost: 2, bytes: 30, ..Look::default() };
        assert_eq!((after.since(&before).lost, after.since(&before).bytes), (0, 20));
    }

    #[tokio::test]
    async fn a_switch_stops_those_that_wait_and_those_that_come_later() {
        let switch = Switch::new();
        let waiting = tokio::spawn({
            let switch = Arc::clone(&switch);
            async move { switch.stopped().await }
        });
        tokio::task::yield_now().await;
        switch.stop();
        waiting.await.unwrap();
        switch.stopped().await;
        assert!(switch.is_stopped());
    }
}
