//! What a lane counts, read off it when someone asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use adit_mesh_proto::PeerSnapshot;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::lane::{LaneHandle, LaneSnapshot, WeakLane};

/// The mesh's metrics in a registry; shows the lane that it was told last.
#[derive(Debug, Clone)]
pub struct MeshMetrics {
    lane: Arc<Mutex<Option<WeakLane>>>,
}

impl MeshMetrics {
    /// Registers the metrics, which stay empty until [`MeshMetrics::watch`].
    ///
    /// # Errors
    /// If the registry has them already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let lane = Arc::new(Mutex::new(None));
        registry.register(Box::new(Reading::new(Arc::clone(&lane))?))?;
        Ok(Self { lane })
    }

    /// Shows this lane from now on, without keeping it alive.
    pub fn watch(&self, lane: &LaneHandle) {
        *self.lane.lock().unwrap_or_else(PoisonError::into_inner) = Some(lane.downgrade());
    }
}

struct Reading {
    lane: Arc<Mutex<Option<WeakLane>>>,
    drops: IntCounterVec,
    counters: IntCounterVec,
    state: IntGaugeVec,
    peer_bytes: IntCounterVec,
    peer_datagrams: IntCounterVec,
    peer_handshakes: IntCounterVec,
    peer_drops: IntCounterVec,
    peer_up: IntGaugeVec,
    peer_seconds: [GaugeVec; 2],
    peer_loss: [GaugeVec; 2],
    peer_mtu: IntGaugeVec,
    peer_lanes: IntGaugeVec,
    lane_datagrams: IntCounterVec,
    lane_sessions: IntGaugeVec,
}

impl Reading {
    fn new(lane: Arc<Mutex<Option<WeakLane>>>) -> prometheus::Result<Self> {
        let counter = |name: &str, about: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(format!("adit_mesh_{name}"), about), labels)
        };
        let gauge =
            |name: &str, about: &str| GaugeVec::new(Opts::new(format!("adit_mesh_{name}"), about), &["peer"]);
        let state = Opts::new("adit_mesh_state", "Peers, sessions, waiting packets and the like, by kind");
        let up = Opts::new("adit_mesh_peer_reachable", "Whether a peer answers (1) or not (0)");
        let age = "Age of a peer's latest handshake";
        let latency = "Round trip to a peer: of probes between adit nodes, of handshakes else";
        let loss = "Share of a peer's latest datagrams that never came";
        let sent_loss = "Share of our latest datagrams that did not reach a peer, which only adit nodes tell";
        let mtu =
            Opts::new("adit_mesh_peer_path_mtu_bytes", "Longest packet that the path to a peer carries");
        let lanes = Opts::new("adit_mesh_peer_lanes", "Lanes to a peer that carry data, the first included");
        let sessions = Opts::new("adit_mesh_lane_sessions", "Peers with a session on a lane");
        Ok(Self {
            lane,
            drops: counter("drops_total", "Packets and datagrams dropped, by reason", &["reason"])?,
            counters: counter(
                "io_total",
                "Calls, packets and datagrams of device and socket, by kind",
                &["kind"],
            )?,
            state: IntGaugeVec::new(state, &["kind"])?,
            peer_bytes: counter("peer_bytes_total", "Bytes of datagrams", &["peer", "direction"])?,
            peer_datagrams: counter("peer_datagrams_total", "Datagrams", &["peer", "direction"])?,
            peer_handshakes: counter("peer_handshakes_total", "Handshakes, by step", &["peer", "step"])?,
            peer_drops: counter("peer_drops_total", "Drops of a peer's packets and datagrams", &["peer"])?,
            peer_up: IntGaugeVec::new(up, &["peer"])?,
            peer_seconds: [
                gauge("peer_handshake_age_seconds", age)?,
                gauge("peer_latency_seconds", latency)?,
            ],
            peer_loss: [gauge("peer_loss_ratio", loss)?, gauge("peer_sent_loss_ratio", sent_loss)?],
            peer_mtu: IntGaugeVec::new(mtu, &["peer"])?,
            peer_lanes: IntGaugeVec::new(lanes, &["peer"])?,
            lane_datagrams: counter("lane_datagrams_total", "Datagrams of a lane", &["lane", "direction"])?,
            lane_sessions: IntGaugeVec::new(sessions, &["lane"])?,
        })
    }

    fn parts(&self) -> [&dyn Collector; 16] {
        [
            &self.drops,
            &self.counters,
            &self.state,
            &self.peer_bytes,
            &self.peer_datagrams,
            &self.peer_handshakes,
            &self.peer_drops,
            &self.peer_up,
            &self.peer_seconds[0],
            &self.peer_seconds[1],
            &self.peer_loss[0],
            &self.peer_loss[1],
            &self.peer_mtu,
            &self.peer_lanes,
            &self.lane_datagrams,
            &self.lane_sessions,
        ]
    }

    /// The lane's counters only grow, so that each reading replaces the last.
    fn reset(&self) {
        let counters = [&self.drops, &self.counters, &self.peer_bytes, &self.peer_datagrams];
        counters.into_iter().chain([&self.peer_handshakes, &self.peer_drops]).for_each(IntCounterVec::reset);
        self.state.reset();
        self.peer_up.reset();
        self.peer_mtu.reset();
        self.peer_lanes.reset();
        self.lane_datagrams.reset();
        self.lane_sessions.reset();
        self.peer_seconds.iter().chain(&self.peer_loss).for_each(GaugeVec::reset);
    }

    fn read(&self, lane: &LaneSnapshot, now: Instant) {
        for (reason, count) in lane.mesh.drops.iter() {
            self.drops.with_label_values(&[reason.name()]).inc_by(count);
        }
        for (reason, count) in lane.io.drops() {
            self.drops.with_label_values(&[reason]).inc_by(count);
        }
        for (kind, count) in lane.io.counts() {
            self.counters.with_label_values(&[kind]).inc_by(count);
        }
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let states = [
            ("peers", whole(lane.mesh.peers)),
            ("sessions", whole(lane.mesh.sessions)),
            ("staged_packets", whole(lane.mesh.staged)),
            ("policy_flows", whole(lane.mesh.flows)),
            ("receives_singly", i64::try_from(lane.io.receives_singly).unwrap_or(i64::MAX)),
            ("paths_without_trains", i64::try_from(lane.io.paths_without_trains).unwrap_or(i64::MAX)),
        ];
        for (kind, number) in states {
            self.state.with_label_values(&[kind]).set(number);
        }
        for (number, load) in lane.lanes.iter().enumerate() {
            let number = number.to_string();
            self.lane_datagrams.with_label_values(&[&*number, "sent"]).inc_by(load.sent_datagrams);
            self.lane_datagrams.with_label_values(&[&*number, "received"]).inc_by(load.received_datagrams);
            self.lane_sessions.with_label_values(&[&*number]).set(whole(load.sessions));
        }
        lane.peers.iter().for_each(|peer| self.read_peer(peer, now));
    }

    fn read_peer(&self, peer: &PeerSnapshot, now: Instant) {
        let name = peer.name.as_ref();
        let seen = &peer.statistics;
        self.peer_bytes.with_label_values(&[name, "sent"]).inc_by(seen.sent_bytes);
        self.peer_bytes.with_label_values(&[name, "received"]).inc_by(seen.received_bytes);
        self.peer_datagrams.with_label_values(&[name, "sent"]).inc_by(seen.sent_datagrams);
        self.peer_datagrams.with_label_values(&[name, "received"]).inc_by(seen.received_datagrams);
        self.peer_handshakes.with_label_values(&[name, "begun"]).inc_by(seen.initiations);
        self.peer_handshakes.with_label_values(&[name, "completed"]).inc_by(seen.handshakes);
        let drops = seen.drops.iter().map(|(_, count)| count).sum();
        self.peer_drops.with_label_values(&[name]).inc_by(drops);
        self.peer_up.with_label_values(&[name]).set(i64::from(peer.reachable && peer.connected));
        if let Some(at) = peer.last_handshake {
            let age = now.saturating_duration_since(at).as_secs_f64();
            self.peer_seconds[0].with_label_values(&[name]).set(age);
        }
        if let Some(latency) = peer.latency {
            self.peer_seconds[1].with_label_values(&[name]).set(latency.as_secs_f64());
        }
        self.peer_loss[0].with_label_values(&[name]).set(f64::from(peer.loss));
        if let Some(loss) = peer.sent_loss {
            self.peer_loss[1].with_label_values(&[name]).set(f64::from(loss));
        }
        self.peer_lanes.with_label_values(&[name]).set(i64::try_from(peer.lanes_up).unwrap_or(i64::MAX));
        if let Some(mtu) = peer.path_mtu {
            self.peer_mtu.with_label_values(&[name]).set(i64::try_from(mtu).unwrap_or(i64::MAX));
        }
    }
}

impl Collector for Reading {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.reset();
        let lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(lane) = lane.and_then(|lane| lane.upgrade())
            && let Ok(snapshot) = lane.snapshot()
        {
            self.read(&snapshot, Instant::now());
        }
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}
