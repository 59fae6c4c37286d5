//! One stream that the edge opened on a QUIC connection: a request or an RPC (tunnel-protocol.md §4).

use std::{sync::Arc, time::Duration};

use adit_tunnel_proto::{
    ConnectionType, HeaderLines, Headers, Preamble, PreambleDecoder, PreambleError, RpcServer, ServerEvent,
    Service,
};
use bytes::Bytes;
use quinn::VarInt;
use tokio::time::timeout;

use super::shared::Shared;
use crate::{
    channel::Channel,
    is_management,
    reader::Readers,
    request::{ConnectionLabel, Reply, RequestHandler, TunnelRequest},
    streams::{RecvHalf, SendHalf, read_error, within},
};

/// Serves one stream to its end.
pub(super) async fn serve<H: RequestHandler>(
    shared: Arc<Shared<H>>,
    label: ConnectionLabel,
    readers: Arc<Readers>,
    (mut send, mut recv): (quinn::SendStream, quinn::RecvStream),
) {
    let reason = match within(PREAMBLE_TIMEOUT, read_preamble(&mut recv)).await {
        Ok(Ok((Preamble::Request(head), early))) => {
            let body = RecvHalf::request(recv, early, &readers);
            let reply = Reply::quic(send, head.kind);
            if is_management(&head.host) && head.kind != ConnectionType::Tcp {
                return reply.fail("this connector has no management service").await;
            }
            let request =
                TunnelRequest { head: head.map_headers(Headers::Lines), body, reply, connection: label };
            return shared.handler.handle(request).await;
        }
        Ok(Ok((Preamble::Rpc, early))) => {
            let recv = RecvHalf::rpc(recv, early);
            return serve_rpc(&shared, SendHalf::quic(send), recv).await;
        }
        Ok(Err(reason)) => reason,
        Err(_) => "stalled_preamble",
    };
    shared.metrics.streams_refused.with_label_values(&[reason]).inc();
    tracing::debug!(connIndex = label.index, reason, "stream is refused");
    // C17; either half may be gone already.
    drop(recv.stop(VarInt::from_u32(0)));
    drop(send.reset(VarInt::from_u32(0)));
}

async fn read_preamble(recv: &mut quinn::RecvStream) -> Result<(Preamble<HeaderLines>, Bytes), &'static str> {
    let mut decoder = PreambleDecoder::new();
    loop {
        // More than the one that a head usually has, so that an end right behind it is seen.
        let mut chunks = [const { Bytes::new() }; PREAMBLE_CHUNKS];
        match recv.read_chunks(&mut chunks).await {
            Ok(Some(count)) => chunks.into_iter().take(count).for_each(|chunk| decoder.handle_chunk(chunk)),
            Ok(None) => return Err("ended_early"),
            Err(error) => return Err(read_error(&error).reason()),
        }
        if let Some(preamble) = decoder.poll_lines().map_err(|error: PreambleError| error.reason())? {
            return Ok((preamble, decoder.into_rest()));
        }
    }
}

/// Serves the calls of one RPC stream within its time (§3.1).
async fn serve_rpc<H: RequestHandler>(shared: &Shared<H>, send: SendHalf, recv: RecvHalf) {
    let mut channel = Channel::serving(Service::Connector, send, recv);
    if timeout(RPC_STREAM_TIMEOUT, serve_calls(shared, &mut channel)).await.is_err() {
        shared.metrics.streams_refused.with_label_values(&["rpc_timeout"]).inc();
        tracing::debug!(reason = "rpc_timeout", "RPC stream took too long");
    } else {
        channel.finish();
    }
}

async fn serve_calls<H: RequestHandler>(shared: &Shared<H>, channel: &mut Channel<RpcServer>) {
    loop {
        match channel.next().await {
            Ok(ServerEvent::Configuration { call, version, json }) => {
                let (current, error) =
                    shared.configuration.apply(&*shared.handler, &shared.metrics, version, &json);
                shared.metrics.served("config", "update_configuration", error.is_some());
                channel.end.answer_configuration(call, current, error.as_deref());
            }
            Ok(ServerEvent::UdpSession { method }) => {
                shared.metrics.served("session", method, method == "register_udp_session");
            }
            Ok(ServerEvent::Refused { reason }) => {
                shared.metrics.streams_refused.with_label_values(&[reason]).inc();
            }
            Ok(ServerEvent::Ended { .. }) | Err(_) => return,
            // Not served on this channel.
            Ok(
                ServerEvent::Register { .. }
                | ServerEvent::Unregister { .. }
                | ServerEvent::LocalConfiguration { .. },
            ) => {}
        }
    }
}

/// Chunks read at once while a head comes in; most have one or two packets.
const PREAMBLE_CHUNKS: usize = 2;

/// Longest wait for a whole head once a stream has begun.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of an RPC stream (§3.1).
const RPC_STREAM_TIMEOUT: Duration = Duration::from_secs(5);
