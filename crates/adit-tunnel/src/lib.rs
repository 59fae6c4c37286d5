//! Runs adit-tunnel-proto over QUIC and HTTP/2.

mod connector;
mod edge;
mod http2;
mod in_flight;
mod request;
mod streams;

pub use connector::{
    ConnectionPhase, ConnectionStatus, Connector, ConnectorError, ConnectorHandle, ConnectorOptions,
};
pub use edge::{
    Edge, EdgeCertificate, EdgeConnectionStatus, EdgeError, EdgeHandle, EdgeOptions, Grant, OpenError, Opened,
    PendingResponse, ResponseError, TunnelStatus,
};
pub use request::{ConnectionLabel, Protocol, Reply, RequestHandler, TunnelRequest};
pub use streams::{CHUNKS_MAX, Loss, RecvHalf, SendHalf, StreamError};
