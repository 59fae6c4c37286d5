//! Runs adit-tunnel-proto over QUIC and HTTP/2.

mod channel;
mod connector;
mod edge;
mod http2;
mod in_flight;
mod liveness;
mod metrics;
mod request;
mod streams;
mod tls;
mod transport;

pub use connector::{
    ConnectionPhase, ConnectionStatus, Connector, ConnectorError, ConnectorHandle, ConnectorOptions,
};
pub use edge::{
    Edge, EdgeCertificate, EdgeConnectionStatus, EdgeError, EdgeHandle, EdgeOptions, OpenError, Opened,
    PendingResponse, ResponseError, TunnelStatus,
};
pub use adit_tunnel_proto::{Grant, Protocol};
pub use request::{ConnectionLabel, Reply, RequestHandler, TunnelRequest};
pub use streams::{CHUNKS_MAX, Loss, RecvHalf, SendHalf, StreamError};
pub use tls::TlsError;
