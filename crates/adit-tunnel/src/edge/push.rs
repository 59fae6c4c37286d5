//! Pushes a configuration to a tunnel's connectors, each over a fresh RPC stream (E17).

use std::{sync::Arc, time::Duration};

use adit_config::TunnelId;
use adit_tunnel_proto::ClientEvent;
use bytes::Bytes;
use tokio::time::timeout;

use super::{Shared, book::Connection, error::OpenError};
use crate::{
    channel::Channel,
    request::ConnectionLabel,
    streams::{Loss, RecvHalf, SendHalf, StreamError},
};

/// What one connector answered to a pushed configuration.
#[derive(Clone, Debug)]
pub struct PushAnswer {
    /// The connection that carried it.
    pub connection: ConnectionLabel,
    /// The version now in force there and, if it is not the pushed one, why; or why there is no
    /// answer, in words.
    pub outcome: Result<(i32, Option<String>), String>,
}

pub(super) async fn push(
    shared: &Arc<Shared>,
    tunnel: TunnelId,
    version: i32,
    json: &[u8],
) -> Result<Vec<PushAnswer>, OpenError> {
    let routes = shared.book.routes(tunnel).ok_or(OpenError::UnknownTunnel)?;
    let connections = routes.connections.load_full();
    if connections.is_empty() {
        return Err(OpenError::NoConnection);
    }
    let mut answers = Vec::with_capacity(connections.len());
    for connection in &*connections {
        let outcome = match timeout(CALL_TIMEOUT, call(connection, version, json)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("no answer in time".to_owned()),
        };
        answers.push(PushAnswer { connection: connection.label.clone(), outcome });
    }
    Ok(answers)
}

async fn call(connection: &Connection, version: i32, json: &[u8]) -> Result<(i32, Option<String>), String> {
    let opened = connection.quic.open_bi().await;
    let (send, recv) = opened.map_err(|error| StreamError::ConnectionLost(Loss::from(&error)).to_string())?;
    let recv = RecvHalf::rpc(recv, Bytes::new());
    let mut channel = Channel::calling(SendHalf::quic(send), recv);
    channel.end.update_configuration(version, json).map_err(|error| error.to_string())?;
    let answer = channel.next().await.map_err(|error| error.to_string())?;
    channel.end.shutdown();
    // The answer is there; whether the goodbye arrives does not matter.
    let _ = channel.flush().await;
    channel.finish();
    match answer {
        ClientEvent::ConfigurationAnswered { version, error } => Ok((version, error)),
        ClientEvent::Failed { reason, .. } | ClientEvent::Ended { reason } => Err(reason),
        _ => Err("wrong answer".to_owned()),
    }
}

/// Longest life of an RPC stream (E17).
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
