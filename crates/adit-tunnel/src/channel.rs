//! One RPC channel over a pair of stream halves: bytes in, events out.

use std::{collections::VecDeque, future::poll_fn};

use adit_tunnel_proto::{
    ClientEvent, RPC_SIGNATURE, RpcClient, RpcServer, RpcStreamError, ServerEvent, Service,
};
use bytes::Bytes;
use thiserror::Error;

use crate::streams::{RecvHalf, SendHalf, StreamError};

/// Why a channel gives no more events.
#[derive(Clone, Debug, Error)]
pub(crate) enum ChannelError {
    /// The peer ended its half.
    #[error("peer ended the RPC channel")]
    Ended,
    /// The stream failed.
    #[error("RPC channel's stream failed")]
    Stream(#[from] StreamError),
    /// The peer does not speak RPC.
    #[error("RPC channel broke")]
    Rpc(#[from] RpcStreamError),
}

impl ChannelError {
    /// The name under which logs and metrics count this error.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Ended => "channel_ended",
            Self::Stream(error) => error.reason(),
            Self::Rpc(error) => error.reason(),
        }
    }
}

/// Either end of a conversation.
pub(crate) trait End {
    /// What comes out of it.
    type Event;
    fn handle_chunk(&mut self, chunk: Bytes) -> Result<(), RpcStreamError>;
    fn handle_end(&self) -> Result<(), RpcStreamError>;
    fn poll_transmit(&mut self) -> Option<Bytes>;
    fn poll_event(&mut self) -> Option<Self::Event>;
}

/// A conversation over a stream.
#[derive(Debug)]
pub(crate) struct Channel<E> {
    pub(crate) end: E,
    send: SendHalf,
    recv: RecvHalf,
    inbox: VecDeque<Bytes>,
    outbox: VecDeque<Bytes>,
    broken: Option<RpcStreamError>,
}

impl Channel<RpcClient> {
    /// The calling end of a control stream.
    pub(crate) fn control(send: SendHalf, recv: RecvHalf) -> Self {
        Self::new(RpcClient::new(), send, recv)
    }

    /// The calling end of an RPC stream, which begins with a signature (tunnel-protocol.md §4.1).
    pub(crate) fn calling(send: SendHalf, recv: RecvHalf) -> Self {
        let mut channel = Self::control(send, recv);
        channel.outbox.push_back(Bytes::from_static(&RPC_SIGNATURE));
        channel
    }
}

impl Channel<RpcServer> {
    /// The serving end.
    pub(crate) fn serving(service: Service, send: SendHalf, recv: RecvHalf) -> Self {
        Self::new(RpcServer::new(service), send, recv)
    }
}

impl<E: End> Channel<E> {
    fn new(end: E, send: SendHalf, recv: RecvHalf) -> Self {
        Self { end, send, recv, inbox: VecDeque::new(), outbox: VecDeque::new(), broken: None }
    }

    /// Ends our half of the stream.
    pub(crate) fn finish(&mut self) {
        self.send.finish();
    }

    /// Sends what is to be sent. May be dropped and called again.
    pub(crate) async fn flush(&mut self) -> Result<(), StreamError> {
        loop {
            self.outbox.extend(std::iter::from_fn(|| self.end.poll_transmit()));
            if self.outbox.is_empty() {
                return Ok(());
            }
            poll_fn(|cx| self.send.poll_write(cx, &mut self.outbox)).await?;
        }
    }

    /// The next event; sends what is to be sent meanwhile. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Result<E::Event, ChannelError> {
        loop {
            if let Some(chunk) = self.inbox.pop_front() {
                self.broken = self.end.handle_chunk(chunk).err();
            }
            self.flush().await?;
            // Only now, because the answer to a bad message is an abort.
            if let Some(error) = self.broken.take() {
                return Err(error.into());
            }
            if let Some(event) = self.end.poll_event() {
                return Ok(event);
            }
            if !self.inbox.is_empty() {
                continue;
            }
            let more = poll_fn(|cx| self.recv.poll_chunks(cx, &mut self.inbox));
            if !more.await? {
                self.end.handle_end()?;
                return Err(ChannelError::Ended);
            }
        }
    }
}

impl End for RpcClient {
    type Event = ClientEvent;
    fn handle_chunk(&mut self, chunk: Bytes) -> Result<(), RpcStreamError> {
        self.handle_chunk(chunk)
    }
    fn handle_end(&self) -> Result<(), RpcStreamError> {
        self.handle_end()
    }
    fn poll_transmit(&mut self) -> Option<Bytes> {
        self.poll_transmit()
    }
    fn poll_event(&mut self) -> Option<ClientEvent> {
        self.poll_event()
    }
}

impl End for RpcServer {
    type Event = ServerEvent;
    fn handle_chunk(&mut self, chunk: Bytes) -> Result<(), RpcStreamError> {
        self.handle_chunk(chunk)
    }
    fn handle_end(&self) -> Result<(), RpcStreamError> {
        self.handle_end()
    }
    fn poll_transmit(&mut self) -> Option<Bytes> {
        self.poll_transmit()
    }
    fn poll_event(&mut self) -> Option<ServerEvent> {
        self.poll_event()
    }
}
