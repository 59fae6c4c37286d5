//! Why the edge could not start, open a stream or get a response.

use std::net::SocketAddr;

use thiserror::Error;

use crate::streams::Loss;

/// Why an edge cannot start.
#[derive(Debug, Error)]
pub enum EdgeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The certificate or its key is of no use.
    #[error("certificate for connectors is unusable")]
    Certificate(#[source] rustls::Error),
    /// A metric's name is taken.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
}

/// Why no request stream could be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// No such tunnel is declared.
    #[error("tunnel is not declared")]
    UnknownTunnel,
    /// No connector is connected.
    #[error("tunnel has no connection")]
    NoConnection,
    /// Every connection is draining.
    #[error("every connection of the tunnel is draining")]
    Draining,
    /// Every connection is full.
    #[error("tunnel carries as many requests as it may")]
    StreamLimit,
    /// No connection took the head in time: the peer's windows or the network are full. Nothing was
    /// delivered.
    #[error("tunnel does not take the request in time")]
    Stalled,
    /// The connection was lost while the stream was opened; nothing was delivered.
    #[error("tunnel connection was lost ({})", .0.reason())]
    ConnectionLost(Loss),
    /// The head cannot be put on the wire.
    #[error("request head is too large for the tunnel")]
    HeadTooLarge,
    /// The host belongs to the connector's management service, which the edge does not offer (E22).
    #[error("host is reserved for management")]
    ManagementHost,
}

impl OpenError {
    /// The name under which logs and metrics count this error.
    pub fn reason(self) -> &'static str {
        match self {
            Self::UnknownTunnel => "unknown_tunnel",
            Self::NoConnection => "no_connection",
            Self::Draining => "draining",
            Self::StreamLimit => "stream_limit",
            Self::Stalled => "connection_stalled",
            Self::ConnectionLost(loss) => loss.reason(),
            Self::HeadTooLarge => "head_too_large",
            Self::ManagementHost => "management_host",
        }
    }
}

/// Why no response head came back on an opened stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// The connector could not get an answer from the origin.
    #[error("connector got no answer: {0}")]
    Origin(String),
    /// The connector refused because of its flow limit.
    #[error("connector refused because of its flow limit: {0}")]
    RateLimited(String),
    /// The connector reset the stream or ended it before a whole head.
    #[error("connector broke the stream off")]
    Reset,
    /// The answer is not a response head.
    #[error("connector answered with a bad head ({0})")]
    Malformed(&'static str),
    /// The connection was lost.
    #[error("tunnel connection was lost ({})", .0.reason())]
    ConnectionLost(Loss),
}

impl ResponseError {
    /// The name under which logs and metrics count this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Origin(_) => "origin_failed",
            Self::RateLimited(_) => "rate_limited",
            Self::Reset => "stream_reset",
            Self::Malformed(_) => "malformed_head",
            Self::ConnectionLost(loss) => loss.reason(),
        }
    }
}
