//! Counters of connector and edge; the connector's carry the stock names (tunnel-protocol.md §8.3).

use std::time::Duration;

use prometheus::{
    Error, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

use crate::{
    credit::{CreditMetrics, EXTRA_BYTES_MAX},
    udp::UdpMetrics,
};

/// What a connector counts.
#[derive(Clone, Debug)]
pub(crate) struct ConnectorMetrics {
    pub(crate) ha_connections: IntGauge,
    pub(crate) server_locations: IntGaugeVec,
    register_success: IntCounterVec,
    register_fail: IntCounterVec,
    rpc_fail: IntCounterVec,
    pub(crate) local_config_pushes: IntCounter,
    pub(crate) local_config_push_errors: IntCounter,
    pub(crate) config_version: IntGauge,
    rpc_client: RpcMetrics,
    rpc_server: RpcMetrics,
    pub(crate) failures: IntCounterVec,
    pub(crate) streams_refused: IntCounterVec,
    pub(crate) credit: CreditMetrics,
    pub(crate) udp: UdpMetrics,
    pub(crate) quic: QuicMetrics,
}

/// What a connector counts per QUIC connection.
#[derive(Clone, Debug)]
pub(crate) struct QuicMetrics {
    pub(crate) total_connections: IntCounter,
    pub(crate) closed_connections: IntCounter,
    rtt: [GaugeVec; 2],
    mtu: IntGaugeVec,
    congestion_window: IntGaugeVec,
    sent_bytes: IntCounterVec,
    receive_bytes: IntCounterVec,
    lost_packets: IntCounterVec,
    frames: [IntCounterVec; 2],
}

/// Counts already given to the counters, since quinn's only grow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    sent_bytes: u64,
    receive_bytes: u64,
    lost_packets: u64,
    frames: [[u64; FRAMES.len()]; 2],
}

#[derive(Clone, Debug)]
struct RpcMetrics {
    operations: IntCounterVec,
    failures: IntCounterVec,
    latency: HistogramVec,
}

/// What an edge counts.
#[derive(Clone, Debug)]
pub(crate) struct EdgeMetrics {
    pub(crate) connections: IntGauge,
    pub(crate) registered: IntGauge,
    pub(crate) connections_max: IntGauge,
    pub(crate) registrations: IntCounter,
    pub(crate) refusals: IntCounterVec,
    pub(crate) closed: IntCounterVec,
    pub(crate) streams: IntCounter,
    pub(crate) stream_failures: IntCounterVec,
    pub(crate) hostnames: IntGauge,
    pub(crate) hostnames_refused: IntCounterVec,
    pub(crate) rpc_streams: IntCounterVec,
    pub(crate) credit: CreditMetrics,
    pub(crate) udp: UdpMetrics,
}

impl ConnectorMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, Error> {
        let add = Adder(registry);
        let rpc_labels = &["handler", "method"];
        let rpc = |side: &str| -> Result<RpcMetrics, Error> {
            let name = |what: &str| format!("cloudflared_rpc_{side}_{what}");
            let latency = HistogramOpts::new(name("latency_secs"), "Time from call to answer, in seconds.")
                .buckets(vec![0.05, 0.15, 0.45, 1.35, 4.05]);
            Ok(RpcMetrics {
                operations: add.counters(&name("operations"), "RPC calls.", rpc_labels)?,
                failures: add.counters(&name("failures"), "RPC calls that failed.", rpc_labels)?,
                latency: add.add(HistogramVec::new(latency, rpc_labels)?)?,
            })
        };
        Ok(Self {
            ha_connections: add
                .gauge("cloudflared_tunnel_ha_connections", "Connections registered with the edge.")?,
            server_locations: add.gauges(
                "cloudflared_tunnel_server_locations",
                "Where each connection is served: 1 now, 0 before.",
                &["connection_id", "edge_location"],
            )?,
            register_success: add.counters(
                "cloudflared_tunnel_tunnel_register_success",
                "Registrations that succeeded.",
                &["rpcName"],
            )?,
            register_fail: add.counters(
                "cloudflared_tunnel_tunnel_register_fail",
                "Registrations that the edge refused.",
                &["error", "rpcName"],
            )?,
            rpc_fail: add.counters(
                "cloudflared_tunnel_tunnel_rpc_fail",
                "Registrations that got no answer.",
                &["error", "rpcName"],
            )?,
            local_config_pushes: add.counter(
                "cloudflared_config_local_config_pushes",
                "Local configurations told to the edge.",
            )?,
            local_config_push_errors: add.counter(
                "cloudflared_config_local_config_pushes_errors",
                "Local configurations that the edge did not take.",
            )?,
            config_version: add.gauge(
                "cloudflared_orchestration_config_version",
                "Version of the configuration in force; -1 before any was pushed.",
            )?,
            rpc_client: rpc("client")?,
            rpc_server: rpc("server")?,
            failures: add.counters(
                "adit_connector_connection_failures_total",
                "Connections and attempts at one that ended, by reason.",
                &["reason"],
            )?,
            streams_refused: add.counters(
                "adit_connector_streams_refused_total",
                "Streams opened by the edge that were not served, by reason.",
                &["reason"],
            )?,
            credit: add.credit("connector")?,
            udp: add.udp("connector")?,
            quic: QuicMetrics::register(&add)?,
        })
    }

    pub(crate) fn registered(&self) {
        self.register_success.with_label_values(&[REGISTER]).inc();
    }

    pub(crate) fn refused(&self, duplicate: bool) {
        let error = if duplicate { "dup_edge_conn" } else { "server_error" };
        self.register_fail.with_label_values(&[error, REGISTER]).inc();
    }

    pub(crate) fn unanswered(&self) {
        self.rpc_fail.with_label_values(&["server_error", REGISTER]).inc();
    }

    /// A call of ours came back, or did not.
    pub(crate) fn called(&self, handler: &str, method: &str, took: Duration, failed: bool) {
        self.rpc_client.observe(handler, method, Some(took), failed);
    }

    /// A call of the edge was answered.
    pub(crate) fn served(&self, handler: &str, method: &str, failed: bool) {
        self.rpc_server.observe(handler, method, None, failed);
    }
}

impl RpcMetrics {
    fn observe(&self, handler: &str, method: &str, took: Option<Duration>, failed: bool) {
        let labels = [handler, method];
        self.operations.with_label_values(&labels).inc();
        if failed {
            self.failures.with_label_values(&labels).inc();
        }
        if let Some(took) = took {
            self.latency.with_label_values(&labels).observe(took.as_secs_f64());
        }
    }
}

impl QuicMetrics {
    fn register(add: &Adder<'_>) -> Result<Self, Error> {
        let index = &["conn_index"];
        let rtt = |what: &str| {
            add.add(GaugeVec::new(
                Opts::new(format!("quic_client_{what}_rtt"), "Round-trip time in milliseconds."),
                index,
            )?)
        };
        let frames = |what: &str| {
            let name = format!("quic_client_{what}_frames");
            add.counters(&name, "QUIC frames, by type.", &["conn_index", "frame_type"])
        };
        Ok(Self {
            total_connections: add.counter("quic_client_total_connections", "QUIC connections begun.")?,
            closed_connections: add.counter("quic_client_closed_connections", "QUIC connections ended.")?,
            rtt: [rtt("smoothed")?, rtt("min")?],
            mtu: add.gauges("quic_client_mtu", "Largest UDP payload in use, in bytes.", index)?,
            congestion_window: add.gauges(
                "quic_client_congestion_window",
                "Bytes that may be in flight.",
                index,
            )?,
            sent_bytes: add.counters("quic_client_sent_bytes", "UDP payload bytes sent.", index)?,
            receive_bytes: add.counters("quic_client_receive_bytes", "UDP payload bytes received.", index)?,
            lost_packets: add.counters(
                "quic_client_lost_packets",
                "Packets taken for lost.",
                &["conn_index", "reason"],
            )?,
            frames: [frames("sent")?, frames("received")?],
        })
    }

    /// Takes a connection's counts over.
    pub(crate) fn observe(
        &self,
        index: &str,
        stats: &quinn::ConnectionStats,
        min_rtt: Duration,
        counted: &mut Counted,
    ) {
        let labels = [index];
        for (gauge, rtt) in self.rtt.iter().zip([stats.path.rtt, min_rtt]) {
            gauge.with_label_values(&labels).set(rtt.as_secs_f64() * 1000.0);
        }
        self.mtu.with_label_values(&labels).set(i64::from(stats.path.current_mtu));
        self.congestion_window.with_label_values(&labels).set(stats.path.cwnd.try_into().unwrap_or(i64::MAX));
        let now = Counted {
            sent_bytes: stats.udp_tx.bytes,
            receive_bytes: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
            frames: [counts_of(&stats.frame_tx), counts_of(&stats.frame_rx)],
        };
        let before = std::mem::replace(counted, now);
        self.sent_bytes.with_label_values(&labels).inc_by(now.sent_bytes.saturating_sub(before.sent_bytes));
        let received = now.receive_bytes.saturating_sub(before.receive_bytes);
        self.receive_bytes.with_label_values(&labels).inc_by(received);
        let lost = now.lost_packets.saturating_sub(before.lost_packets);
        self.lost_packets.with_label_values(&[index, "loss_detection"]).inc_by(lost);
        for (counters, (now, before)) in self.frames.iter().zip(now.frames.iter().zip(before.frames)) {
            for (name, (now, before)) in FRAMES.iter().zip(now.iter().zip(before)) {
                counters.with_label_values(&[index, name]).inc_by(now.saturating_sub(before));
            }
        }
    }
}

impl EdgeMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, Error> {
        let add = Adder(registry);
        let reason = &["reason"];
        Ok(Self {
            connections: add.gauge("adit_edge_connections", "Connectors' connections, registered or not.")?,
            registered: add
                .gauge("adit_edge_connections_registered", "Connectors' registered connections.")?,
            connections_max: add
                .gauge("adit_edge_connections_max", "Most connections at once, registered or not.")?,
            registrations: add.counter("adit_edge_registrations_total", "Registrations admitted.")?,
            refusals: add.counters(
                "adit_edge_registrations_refused_total",
                "Connections and registrations refused, by reason.",
                reason,
            )?,
            closed: add.counters(
                "adit_edge_connections_closed_total",
                "Registered connections that ended, by reason.",
                reason,
            )?,
            streams: add.counter("adit_edge_request_streams_total", "Request streams opened.")?,
            stream_failures: add.counters(
                "adit_edge_request_stream_failures_total",
                "Request streams that could not be opened or got no response head, by reason.",
                reason,
            )?,
            hostnames: add.gauge("adit_edge_hostnames_learnt", "Hosts learnt from connectors' rules.")?,
            hostnames_refused: add.counters(
                "adit_edge_hostnames_refused_total",
                "Pushed rule sets or hosts not taken, by reason.",
                reason,
            )?,
            rpc_streams: add.counters(
                "adit_edge_rpc_streams_total",
                "RPC streams opened by connectors, by how they ended.",
                reason,
            )?,
            credit: add.credit("edge")?,
            udp: add.udp("edge")?,
        })
    }
}

/// The counts that [`FRAMES`] names.
fn counts_of(frames: &quinn::FrameStats) -> [u64; FRAMES.len()] {
    [
        frames.acks,
        frames.crypto,
        frames.stream,
        frames.ping,
        frames.reset_stream,
        frames.stop_sending,
        frames.max_data,
        frames.max_stream_data,
        frames.datagram,
        frames.connection_close,
    ]
}

/// Makes and registers in one step.
struct Adder<'a>(&'a Registry);

impl Adder<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn credit(&self, area: &str) -> Result<CreditMetrics, Error> {
        let capacity = self.gauge(
            &format!("adit_{area}_slow_reader_credit_bytes_max"),
            "Most bytes that streams which are read slowly may hold beyond their connections' windows.",
        )?;
        capacity.set(EXTRA_BYTES_MAX.try_into().unwrap_or(i64::MAX));
        Ok(CreditMetrics {
            lent_bytes: self.gauge(
                &format!("adit_{area}_slow_reader_credit_bytes"),
                "Bytes that streams which are read slowly may hold beyond their connections' windows.",
            )?,
            evicted: self.counter(
                &format!("adit_{area}_slow_reader_streams_stopped_total"),
                "Streams stopped because they were as good as not read while others needed the room.",
            )?,
        })
    }

    fn udp(&self, area: &str) -> Result<UdpMetrics, Error> {
        let name = |what: &str| format!("adit_{area}_udp_{what}");
        Ok(UdpMetrics {
            sends: self.counter(&name("sends_total"), "System calls that sent QUIC datagrams.")?,
            datagrams: self.counter(&name("datagrams_total"), "QUIC datagrams sent.")?,
            blocked: self.counter(
                &name("sends_blocked_total"),
                "Sends that waited for room in the socket's buffer.",
            )?,
            plain_sockets: self.gauge(
                &name("sockets_without_gso"),
                "Sockets on which UDP segmentation offload does not work.",
            )?,
        })
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.add(IntCounter::new(name, help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.add(IntGauge::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }
}

/// Frame types counted, under the stock connector's names.
const FRAMES: [&str; 10] = [
    "Ack",
    "Crypto",
    "Stream",
    "Ping",
    "ResetStream",
    "StopSending",
    "MaxData",
    "MaxStreamData",
    "Datagram",
    "ConnectionClose",
];

/// The stock label value.
const REGISTER: &str = "registerConnection";
