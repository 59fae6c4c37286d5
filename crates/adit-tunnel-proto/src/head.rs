//! The heads that cross a tunnel, in `http` types: what a stream asks for and what came back.

use http::{HeaderMap, Method, StatusCode};

/// What a request stream carries after its head (tunnel-protocol.md §3.3, `ConnectionType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionType {
    /// One HTTP request and its response.
    Http,
    /// An HTTP request that asks to become a WebSocket; raw bytes both ways after 101.
    Websocket,
    /// A raw TCP flow to a literal `ip:port`.
    Tcp,
}

/// The head of a request on its way from edge to connector (tunnel-protocol.md §4.2).
#[derive(Clone, Debug, PartialEq)]
pub struct RequestHead {
    /// What follows the head.
    pub kind: ConnectionType,
    /// Absolute URL for HTTP and WebSocket, literal `ip:port` for TCP.
    pub dest: String,
    /// Request method; ignored for TCP.
    pub method: Method,
    /// The `Host` the visitor asked for; drives the ingress rules.
    pub host: String,
    /// Request headers, `Host` excluded.
    pub headers: HeaderMap,
    /// Opaque text that names the flow in logs.
    pub flow_id: Option<String>,
}

impl RequestHead {
    /// A head with no headers, for HTTP to `dest` and `host`.
    pub fn new(method: Method, dest: impl Into<String>, host: impl Into<String>) -> Self {
        Self {
            kind: ConnectionType::Http,
            dest: dest.into(),
            method,
            host: host.into(),
            headers: HeaderMap::new(),
            flow_id: None,
        }
    }
}

/// The head of a response on its way from connector to edge (tunnel-protocol.md §4.4).
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseHead {
    /// The origin's status.
    pub status: StatusCode,
    /// The origin's headers.
    pub headers: HeaderMap,
}

/// What a connector answered to a request head (tunnel-protocol.md §4.4).
#[derive(Clone, Debug, PartialEq)]
pub enum ConnectResponse {
    /// The origin answered; the body follows.
    Head(ResponseHead),
    /// A TCP flow was opened; raw bytes follow.
    Accepted,
    /// The connector could not get an answer; nothing follows.
    Failed {
        /// The connector's own words.
        text: String,
        /// The connector refused because of its flow limit.
        rate_limited: bool,
    },
}
