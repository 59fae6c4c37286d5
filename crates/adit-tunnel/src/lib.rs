//! Runs `adit-tunnel-proto` over sockets: the connector that dials an edge, and the edge that accepts
//! connectors.
//!
//! A connector hands each request to the [`RequestHandler`] it is given; an edge opens a stream for
//! each request it is asked to carry ([`EdgeHandle::open`]). Bodies are `Bytes` handed on, never
//! copied and never held whole; back-pressure is the transport's flow control.
//!
//! This crate never knows routes, origins, visitors or configuration files, and never decides what
//! `adit-tunnel-proto` can decide. Section numbers (§) and statement numbers (C…, E…) are those of the
//! protocol reference, `tunnel-protocol.md`.
//!
//! # Contract
//! Must be used within a tokio runtime. Dropping a future gives up what it was doing: a dropped
//! [`SendHalf`] resets its stream, a dropped [`RecvHalf`] stops it, a dropped [`Reply`] answers with a
//! failure, a dropped [`Connector::run`] or [`Edge::run`] closes every connection.
//!
//! # Where to begin
//! `edge/open.rs` for a request on its way in; `connector/stream.rs` for where it comes out;
//! `connector.rs` and `edge/session.rs` for the life of a connection; `udp/turn.rs` for how what QUIC has
//! to send leaves.

mod bdp;
mod channel;
mod congestion;
mod connector;
mod credit;
mod edge;
mod http2;
mod in_flight;
mod liveness;
mod metrics;
pub mod quic;
mod reader;
mod request;
mod streams;
mod tls;
mod transport;
mod udp;

pub use adit_tunnel_proto::{Grant, Protocol};
pub use connector::{
    ConnectionPhase, ConnectionStatus, Connector, ConnectorError, ConnectorHandle, ConnectorOptions,
};
pub use edge::{
    CheckedCertificate, Edge, EdgeCertificate, EdgeConnectionStatus, EdgeError, EdgeHandle, EdgeLane,
    EdgeOptions, EncodedHead, LearntHostnames, OpenError, Opened, PendingResponse, PushAnswer, ResponseError,
    TunnelStatus,
};
pub use request::{ConnectionLabel, Reply, RequestHandler, TunnelRequest};
pub use streams::{CHUNKS_MAX, Loss, RecvHalf, SendHalf, StreamError};
pub use tls::TlsError;

/// Whether `host`, with or without port, belongs to the management service (§8.6).
fn is_management(host: &str) -> bool {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name);
    MANAGEMENT_HOSTS.iter().any(|management| name.eq_ignore_ascii_case(management))
}

const MANAGEMENT_HOSTS: [&str; 2] = ["management.argotunnel.com", "management.fed.argotunnel.com"];
