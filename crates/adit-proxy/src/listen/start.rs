//! The first bytes of a connection: PROXY protocol header, TLS ClientHello or neither, read under a limit.

use std::io;

use bytes::BytesMut;
use rustls::server::{Accepted, Acceptor};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::inlet::Inlet;
use crate::proxy_protocol::{self, Addresses, Parsed, ProxyProtocolError};
use crate::tcp::postgres;

/// A connection and what was read from it.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) stream: Inlet,
    pub(super) buffer: BytesMut,
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// A TLS handshake.
    Tls,
    /// PostgreSQL's SSLRequest: TLS follows once it is granted.
    PostgresTls,
    /// Anything else.
    Plain,
}

/// A TLS handshake whose first message has arrived.
pub(super) struct Hello {
    pub(super) accepted: Accepted,
    /// Lower case, without a trailing dot; empty if none was named.
    pub(super) server_name: String,
    pub(super) alpn: Vec<Vec<u8>>,
}

/// Why a connection ends before anybody took it.
#[derive(Debug, Error)]
pub(super) enum StartError {
    /// The visitor closed, or its socket failed.
    #[error("the connection ended")]
    Closed(#[source] Option<io::Error>),
    /// See [`ProxyProtocolError`].
    #[error(transparent)]
    ProxyProtocol(#[from] ProxyProtocolError),
    /// Not a ClientHello that can be answered; the visitor was told by an alert.
    #[error("malformed TLS ClientHello")]
    ClientHello(#[source] rustls::Error),
    /// A PostgreSQL client that sent on before its wish for TLS was granted.
    #[error("bytes before TLS was granted")]
    Eager,
    /// More bytes than [`HELLO_BYTES_MAX`].
    #[error("the TLS ClientHello is larger than allowed")]
    HelloTooLarge,
}

impl StartError {
    /// The name of this error in logs and metric labels; `None` if a visitor merely left.
    pub(super) fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Closed(_) => None,
            Self::ProxyProtocol(error) => Some(error.reason()),
            Self::ClientHello(_) => Some("tls_client_hello"),
            Self::Eager => Some("postgres_eager"),
            Self::HelloTooLarge => Some("tls_client_hello_too_large"),
        }
    }
}

impl Start {
    pub(super) fn new(stream: Inlet) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Reads once; never `Ok` without new bytes.
    async fn fill(&mut self) -> Result<(), StartError> {
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(StartError::Closed(None)),
            Ok(_) => Ok(()),
            Err(error) => Err(StartError::Closed(Some(error))),
        }
    }

    /// Takes a PROXY protocol header off the front, if there is one.
    pub(super) async fn take_proxy_header(&mut self) -> Result<Option<Addresses>, StartError> {
        loop {
            if !self.buffer.is_empty() {
                match proxy_protocol::parse(&self.buffer)? {
                    Parsed::More => {}
                    Parsed::Absent => return Ok(None),
                    Parsed::Header(length, addresses) => {
                        let _ = self.buffer.split_to(length);
                        return Ok(addresses);
                    }
                }
            }
            self.fill().await?;
        }
    }

    /// What the first bytes are; `may_be_postgres` if a PostgreSQL client's wish for TLS is to be told apart.
    pub(super) async fn protocol(&mut self, may_be_postgres: bool) -> Result<Protocol, StartError> {
        loop {
            let known = self.buffer.len().min(postgres::SSL_REQUEST.len());
            match self.buffer.first() {
                None => {}
                Some(&TLS_HANDSHAKE) => return Ok(Protocol::Tls),
                Some(_) if !may_be_postgres || self.buffer[..known] != postgres::SSL_REQUEST[..known] => {
                    return Ok(Protocol::Plain);
                }
                Some(_) if known == postgres::SSL_REQUEST.len() => return Ok(Protocol::PostgresTls),
                Some(_) => {}
            }
            self.fill().await?;
        }
    }

    /// Grants a PostgreSQL client's wish: its ClientHello follows.
    pub(super) async fn grant_postgres_tls(&mut self) -> Result<(), StartError> {
        let _ = self.buffer.split_to(postgres::SSL_REQUEST.len());
        // What was sent before the answer would be taken for part of the secured session.
        if !self.buffer.is_empty() {
            return Err(StartError::Eager);
        }
        let granted = self.stream.write_all(&[postgres::GRANTED]).await;
        granted.map_err(|error| StartError::Closed(Some(error)))
    }

    /// Reads the ClientHello. The bytes stay in `buffer` as they came, for whoever ends TLS elsewhere.
    pub(super) async fn client_hello(&mut self) -> Result<Hello, StartError> {
        let mut acceptor = Acceptor::default();
        let mut fed = 0;
        loop {
            let mut fresh = &self.buffer[fed..];
            while !fresh.is_empty() {
                acceptor.read_tls(&mut fresh).map_err(|error| StartError::Closed(Some(error)))?;
            }
            fed = self.buffer.len();
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(Hello::new(accepted)),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    if alert.write_all(&mut bytes).is_ok() {
                        let _ = self.stream.write_all(&bytes).await;
                    }
                    return Err(StartError::ClientHello(error));
                }
            }
            if fed >= HELLO_BYTES_MAX {
                return Err(StartError::HelloTooLarge);
            }
            self.fill().await?;
        }
    }
}

impl Hello {
    fn new(accepted: Accepted) -> Self {
        let hello = accepted.client_hello();
        let server_name = hello.server_name().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        let alpn = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        Self { accepted, server_name, alpn }
    }
}

/// Most ClientHellos have half a KiB, with post-quantum keys two.
const READ_BYTES: usize = 4 * 1024;
/// A ClientHello with every extension and a fat session ticket; what a visitor can make us hold before it is routed.
const HELLO_BYTES_MAX: usize = 16 * 1024;
/// RFC 8446 §5.1: the first record of a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
