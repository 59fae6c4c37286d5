//! Why an origin gave no answer, or cannot be set up.

use thiserror::Error;

use crate::body::BodyError;
use crate::connect::ConnectError;
use crate::h1::client::ExchangeError;
use crate::h2::client::H2Error;
use crate::tls::TrustError;

/// Why a request could not be answered by its origin.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// No connection.
    #[error("cannot reach the origin")]
    Connect(#[from] ConnectError),
    /// A connection, but no usable answer.
    #[error("the origin gave no usable answer")]
    Exchange(#[from] ExchangeError),
    /// The same over HTTP/2.
    #[error("the origin gave no usable answer")]
    H2(#[from] H2Error),
    /// A 101 that does not answer the key it was asked with (RFC 6455 §4.1).
    #[error("the origin's Sec-WebSocket-Accept does not fit the key")]
    WebSocketAccept,
    /// The content could not be collected to announce its length.
    #[error("the request's content could not be buffered")]
    Buffer(#[from] BodyError),
}

impl ForwardError {
    /// The name of this error in logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect(error) => error.reason(),
            Self::Exchange(ExchangeError::Closed(_)) => "origin_closed",
            Self::Exchange(ExchangeError::Head(_)) => "origin_head_invalid",
            Self::Exchange(ExchangeError::Timeout) => "origin_timeout",
            Self::Exchange(ExchangeError::RequestBody(error)) | Self::Buffer(error) => error.reason(),
            Self::WebSocketAccept => "websocket_accept",
            Self::H2(H2Error::Timeout) => "origin_timeout",
            Self::H2(_) => "origin_h2",
        }
    }

    /// True if nothing of the request has reached the origin, so that sending it again is safe whatever its method.
    pub fn is_unsent(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::H2(H2Error::Unprocessed(_) | H2Error::Handshake))
    }
}

/// Why an origin cannot be set up as configured.
#[derive(Debug, Error)]
pub enum OriginError {
    /// The extra roots cannot be used.
    #[error("the origin's caPool cannot be used")]
    Trust(#[from] TrustError),
    /// A service that has no origin.
    #[error("{0} is answered without an origin")]
    NotAnOrigin(String),
}
