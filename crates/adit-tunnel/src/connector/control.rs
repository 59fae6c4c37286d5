//! The control channel of one connection: register, push local rules, unregister
//! (tunnel-protocol.md §3.1, §3.4, §3.6; C5–C8).

use std::{sync::Arc, time::Instant};

use adit_tunnel_proto::{ClientEvent, Failure, Protocol, Registered, Registration, RpcClient};
use bytes::Bytes;
use tokio::time::timeout;

use super::shared::Shared;
use crate::{
    channel::{Channel, ChannelError},
    request::{ConnectionLabel, RequestHandler},
};

/// A registered connection's control channel.
pub(super) struct Control {
    /// Gone once the edge ended it or after unregistering.
    channel: Option<Channel<RpcClient>>,
    /// Unregistered: what is still to be said is the proper end.
    closing: bool,
    slot: u8,
    /// When the call that waits for its answer was made.
    asked: Instant,
    pub(super) registered: Registered,
}

impl Control {
    /// Registers the connection.
    pub(super) async fn register<H: RequestHandler>(
        shared: &Shared<H>,
        mut channel: Channel<RpcClient>,
        registration: &Registration,
    ) -> Result<Self, Failure> {
        let asked = Instant::now();
        let failed = |reason: &str| {
            tracing::warn!(connIndex = registration.index, reason, "registration got no answer");
            shared.metrics.called("registration", "register_connection", asked.elapsed(), true);
            shared.metrics.unanswered();
            Failure::Unanswered
        };
        channel.end.register(registration).map_err(|error| failed(error.reason()))?;
        let event = match timeout(shared.options.rpc_timeout, channel.next()).await {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => return Err(failed(error.reason())),
            Err(_) => return Err(failed("timeout")),
        };
        match event {
            ClientEvent::Registered(registered) => {
                shared.metrics.called("registration", "register_connection", asked.elapsed(), false);
                shared.metrics.registered();
                Ok(Self {
                    channel: Some(channel),
                    closing: false,
                    slot: registration.index,
                    asked,
                    registered,
                })
            }
            ClientEvent::Rejected(rejection) => {
                shared.metrics.called("registration", "register_connection", asked.elapsed(), false);
                shared.metrics.refused(rejection.is_duplicate());
                Err(Failure::Rejected(rejection))
            }
            ClientEvent::Failed { reason, .. } | ClientEvent::Ended { reason } => Err(failed(&reason)),
            _ => Err(failed("wrong_answer")),
        }
    }

    /// Tells the log, the metrics and the status that the connection is registered.
    pub(super) fn announce<H: RequestHandler>(&self, shared: &Shared<H>, label: &ConnectionLabel) {
        shared.status.registered(self.slot, &self.registered, Arc::clone(&label.location));
        shared.metrics.ha_connections.inc();
        let index = self.slot.to_string();
        shared.metrics.server_locations.with_label_values(&[&index, &*label.location]).set(1);
        tracing::info!(
            connIndex = self.slot,
            connection = %self.registered.connection_id,
            ip = %label.peer.ip(),
            location = &*label.location,
            protocol = label.protocol.as_str(),
            event = 0,
            "Registered tunnel connection"
        );
    }

    /// Undoes [`Control::announce`] when the connection is over.
    pub(super) fn retract<H: RequestHandler>(&self, shared: &Shared<H>, label: &ConnectionLabel) {
        shared.metrics.ha_connections.dec();
        let index = self.slot.to_string();
        shared.metrics.server_locations.with_label_values(&[&index, &*label.location]).set(0);
    }

    /// Whether this connection tells the edge the local rules (C8).
    pub(super) fn pushes(&self) -> bool {
        self.slot == 0 && !self.registered.remotely_managed && self.channel.is_some()
    }

    /// Tells the edge the local rules.
    pub(super) fn push<H: RequestHandler>(&mut self, shared: &Shared<H>, json: &Bytes) {
        let Some(channel) = &mut self.channel else { return };
        self.asked = Instant::now();
        shared.metrics.local_config_pushes.inc();
        if let Err(error) = channel.end.update_local_configuration(json) {
            shared.metrics.local_config_push_errors.inc();
            tracing::warn!(reason = error.reason(), "local configuration cannot be told to the edge");
        }
    }

    /// Tells the edge that the connection goes.
    pub(super) fn unregister(&mut self) {
        self.asked = Instant::now();
        if let Some(channel) = &mut self.channel
            && let Err(error) = channel.end.unregister()
        {
            tracing::warn!(connIndex = self.slot, reason = error.reason(), "cannot unregister");
        }
    }

    /// Drives the channel, for ever. May be dropped and called again.
    pub(super) async fn drive<H: RequestHandler>(&mut self, shared: &Shared<H>) {
        loop {
            let Some(channel) = &mut self.channel else { return std::future::pending().await };
            if self.closing {
                // What the edge no longer hears it need not hear.
                let _ = channel.flush().await;
                channel.finish();
                self.channel = None;
            } else {
                let event = channel.next().await;
                self.handle(shared, event);
            }
        }
    }

    fn handle<H: RequestHandler>(&mut self, shared: &Shared<H>, event: Result<ClientEvent, ChannelError>) {
        let called = |method, failed| {
            shared.metrics.called("registration", method, self.asked.elapsed(), failed);
        };
        match event {
            Ok(ClientEvent::LocalConfigurationTaken) => called("update_local_configuration", false),
            Ok(ClientEvent::Unregistered) => {
                called("unregister_connection", false);
                tracing::info!(connIndex = self.slot, event = 0, "Unregistered tunnel connection");
                if let Some(channel) = &mut self.channel {
                    channel.end.shutdown();
                    self.closing = true;
                }
            }
            Ok(ClientEvent::Failed { method, reason }) => {
                called(method, true);
                if method == "update_local_configuration" {
                    shared.metrics.local_config_push_errors.inc();
                }
                tracing::warn!(connIndex = self.slot, method, reason, "call to the edge failed");
            }
            Ok(ClientEvent::Ended { reason }) => self.lose(&reason),
            Err(error) => self.lose(error.reason()),
            // Answers to calls that are not made on this channel any more.
            Ok(
                ClientEvent::Registered(_)
                | ClientEvent::Rejected(_)
                | ClientEvent::ConfigurationAnswered { .. },
            ) => {}
        }
    }

    /// The edge ended the channel. The connection goes on, as it does in the stock connector (§3.6).
    fn lose(&mut self, reason: &str) {
        tracing::warn!(connIndex = self.slot, reason, "control stream was lost");
        self.channel = None;
    }
}

/// What requests of a connection are labelled with.
pub(super) fn label(
    slot: u8,
    registered: &Registered,
    peer: std::net::SocketAddr,
    protocol: Protocol,
) -> ConnectionLabel {
    ConnectionLabel { index: slot, location: registered.location.as_str().into(), peer, protocol }
}
