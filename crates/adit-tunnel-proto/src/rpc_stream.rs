//! The typed calls over one RPC channel, caller's and callee's end (tunnel-protocol.md §3.2–§3.7).
//!
//! [`RpcClient`] and [`RpcServer`] take received bytes and give bytes to send; which channel that is
//! (control stream, RPC stream, HTTP/2 bodies) is the shell's affair.

use bytes::Bytes;
use thiserror::Error;

use crate::{
    framing::{FrameDecoder, FramingError, RPC_LIMITS},
    generated::tunnelrpc_capnp as schema,
    registration::{
        ParameterError, REGISTER_CONNECTION, REGISTER_UDP_SESSION, Registered, Registration, Rejection,
        UNREGISTER_CONNECTION, UNREGISTER_UDP_SESSION, UPDATE_CONFIGURATION, UPDATE_LOCAL_CONFIGURATION,
        read_outcome, read_registration, write_outcome, write_registration,
    },
    rpc::{AnswerId, IncomingCall, Peer, QuestionId, Results, RpcError, RpcEvent},
};

/// Why an RPC channel cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RpcStreamError {
    /// The bytes are not messages.
    #[error("RPC channel is badly framed")]
    Framing(#[from] FramingError),
    /// The messages are not a conversation.
    #[error("RPC peer broke the protocol")]
    Rpc(#[from] RpcError),
}

impl RpcStreamError {
    /// The name under which logs and metrics count this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Framing(error) => error.reason(),
            Self::Rpc(error) => error.reason(),
        }
    }
}

/// What came of a call that the client made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// `registerConnection` succeeded.
    Registered(Registered),
    /// `registerConnection` was refused.
    Rejected(Rejection),
    /// `unregisterConnection` came back.
    Unregistered,
    /// `updateLocalConfiguration` came back.
    LocalConfigurationTaken,
    /// `updateConfiguration` came back.
    ConfigurationAnswered {
        /// The version in force at the connector.
        version: i32,
        /// Why the pushed one is not in force.
        error: Option<String>,
    },
    /// A call failed as such.
    Failed {
        /// The method's metric label (§8.3).
        method: &'static str,
        /// The peer's words or ours.
        reason: String,
    },
    /// The peer ended the conversation.
    Ended {
        /// Its words.
        reason: String,
    },
}

/// The calling end of an RPC channel.
#[derive(Debug)]
pub struct RpcClient {
    channel: Channel,
    /// At most `QUESTIONS_MAX` long, as the peer's table is.
    pending: Vec<(QuestionId, Pending)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Register,
    Unregister,
    LocalConfiguration,
    Configuration,
}

impl Pending {
    fn label(self) -> &'static str {
        match self {
            Self::Register => "register_connection",
            Self::Unregister => "unregister_connection",
            Self::LocalConfiguration => "update_local_configuration",
            Self::Configuration => "update_configuration",
        }
    }
}

impl RpcClient {
    /// The calling end of a fresh channel.
    pub fn new() -> Self {
        Self { channel: Channel::new(), pending: Vec::new() }
    }

    /// Calls `registerConnection`.
    ///
    /// # Errors
    /// When the conversation is over or too many calls wait.
    pub fn register(&mut self, registration: &Registration) -> Result<(), RpcError> {
        let question = self.channel.peer.call(REGISTER_CONNECTION, REGISTRATION_SIZE_HINT, |params| {
            write_registration(params, registration)
        })?;
        self.pending.push((question, Pending::Register));
        Ok(())
    }

    /// Calls `unregisterConnection`.
    ///
    /// # Errors
    /// When the conversation is over or too many calls wait.
    pub fn unregister(&mut self) -> Result<(), RpcError> {
        let question = self.channel.peer.call(UNREGISTER_CONNECTION, 0, |params| {
            params.init_as::<schema::empty::Builder<'_>>();
            Ok(())
        })?;
        self.pending.push((question, Pending::Unregister));
        Ok(())
    }

    /// Calls `updateLocalConfiguration` with the JSON of §3.7.
    ///
    /// # Errors
    /// When the conversation is over or too many calls wait.
    pub fn update_local_configuration(&mut self, json: &[u8]) -> Result<(), RpcError> {
        let question = self.channel.peer.call(UPDATE_LOCAL_CONFIGURATION, json.len(), |params| {
            params.init_as::<schema::update_local_configuration_params::Builder<'_>>().set_config(json);
            Ok(())
        })?;
        self.pending.push((question, Pending::LocalConfiguration));
        Ok(())
    }

    /// Calls `updateConfiguration` with the JSON of §3.7.
    ///
    /// # Errors
    /// When the conversation is over or too many calls wait.
    pub fn update_configuration(&mut self, version: i32, json: &[u8]) -> Result<(), RpcError> {
        let question = self.channel.peer.call(UPDATE_CONFIGURATION, json.len(), |params| {
            let mut params = params.init_as::<schema::update_configuration_params::Builder<'_>>();
            params.set_version(version);
            params.set_config(json);
            Ok(())
        })?;
        self.pending.push((question, Pending::Configuration));
        Ok(())
    }

    /// Ends the conversation properly (§3.1).
    pub fn shutdown(&mut self) {
        self.channel.peer.shutdown();
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// When the channel cannot go on; what is to be transmitted should still be.
    pub fn handle_chunk(&mut self, chunk: Bytes) -> Result<(), RpcStreamError> {
        self.channel.handle_chunk(chunk)
    }

    /// Takes the end of the channel.
    ///
    /// # Errors
    /// When it fell inside a message.
    pub fn handle_end(&self) -> Result<(), RpcStreamError> {
        Ok(self.channel.decoder.handle_end()?)
    }

    /// The next bytes to send.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.channel.peer.poll_transmit()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        loop {
            match self.channel.peer.poll_event()? {
                RpcEvent::Aborted { reason } => return Some(ClientEvent::Ended { reason }),
                RpcEvent::Call(call) => {
                    // Nothing is served on a channel that only calls.
                    self.channel.peer.refuse(call.id, "method is not served here", true);
                }
                RpcEvent::Returned { question, outcome } => {
                    let Some(at) = self.pending.iter().position(|(id, _)| *id == question) else { continue };
                    let (_, pending) = self.pending.swap_remove(at);
                    let event = match outcome {
                        Ok(results) => client_event(pending, &results),
                        Err(exception) => Err(exception.reason),
                    };
                    let failed = |reason| ClientEvent::Failed { method: pending.label(), reason };
                    return Some(event.unwrap_or_else(failed));
                }
            }
        }
    }
}

impl Default for RpcClient {
    fn default() -> Self {
        Self::new()
    }
}

fn client_event(pending: Pending, results: &Results) -> Result<ClientEvent, String> {
    let words = |error: ParameterError| error.to_string();
    match pending {
        Pending::Register => Ok(match read_outcome(results).map_err(words)? {
            Ok(registered) => ClientEvent::Registered(registered),
            Err(rejection) => ClientEvent::Rejected(rejection),
        }),
        Pending::Unregister => Ok(ClientEvent::Unregistered),
        Pending::LocalConfiguration => Ok(ClientEvent::LocalConfigurationTaken),
        Pending::Configuration => results
            .read::<schema::update_configuration_results::Owned, _>(|results| {
                let result = results.get_result()?;
                let error = String::from_utf8_lossy(result.get_err()?.as_bytes()).into_owned();
                let error = Some(error).filter(|error| !error.is_empty());
                Ok(ClientEvent::ConfigurationAnswered { version: result.get_latest_applied_version(), error })
            })
            .map_err(|error| error.to_string()),
    }
}

/// Which methods a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The edge's control channel: `RegistrationServer`.
    Registration,
    /// The edge's side of streams that a connector opens: `SessionManager` (E15).
    Sessions,
    /// The connector's side of streams that the edge opens: `CloudflaredServer`.
    Connector,
}

/// A call that needs an answer from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// `registerConnection`; answer with [`RpcServer::answer_registration`].
    Register {
        /// What to answer.
        call: AnswerId,
        /// What is asked.
        registration: Box<Registration>,
    },
    /// `unregisterConnection`; acknowledge with [`RpcServer::acknowledge`].
    Unregister {
        /// What to answer.
        call: AnswerId,
    },
    /// `updateLocalConfiguration`; acknowledge with [`RpcServer::acknowledge`].
    LocalConfiguration {
        /// What to answer.
        call: AnswerId,
        /// JSON of §3.7.
        json: Vec<u8>,
    },
    /// `updateConfiguration`; answer with [`RpcServer::answer_configuration`].
    Configuration {
        /// What to answer.
        call: AnswerId,
        /// The pushed version (C35).
        version: i32,
        /// JSON of §3.7.
        json: Vec<u8>,
    },
    /// A UDP session was asked for or ended; already answered.
    UdpSession {
        /// The method's metric label (§8.3).
        method: &'static str,
    },
    /// A call was refused; already answered.
    Refused {
        /// Why.
        reason: &'static str,
    },
    /// The peer ended the conversation.
    Ended {
        /// Its words; see [`crate::rpc::SHUTDOWN_REASON`].
        reason: String,
    },
}

/// The serving end of an RPC channel.
#[derive(Debug)]
pub struct RpcServer {
    channel: Channel,
    service: Service,
}

impl RpcServer {
    /// The serving end of a fresh channel.
    pub fn new(service: Service) -> Self {
        Self { channel: Channel::new(), service }
    }

    /// Answers `registerConnection`.
    pub fn answer_registration(&mut self, call: AnswerId, outcome: &Result<Registered, Rejection>) {
        // Setters of plain fields do not fail.
        drop(self.channel.peer.respond(call, |results| write_outcome(results, outcome)));
    }

    /// Answers `updateConfiguration` with the version now in force and, if the pushed one is not, why.
    pub fn answer_configuration(&mut self, call: AnswerId, version: i32, error: Option<&str>) {
        drop(self.channel.peer.respond(call, |results| {
            let results = results.init_as::<schema::update_configuration_results::Builder<'_>>();
            let mut result = results.init_result();
            result.set_latest_applied_version(version);
            result.set_err(error.unwrap_or_default());
            Ok(())
        }));
    }

    /// Answers a method that has no results.
    pub fn acknowledge(&mut self, call: AnswerId) {
        drop(self.channel.peer.respond(call, |results| {
            results.init_as::<schema::empty::Builder<'_>>();
            Ok(())
        }));
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// When the channel cannot go on; what is to be transmitted should still be.
    pub fn handle_chunk(&mut self, chunk: Bytes) -> Result<(), RpcStreamError> {
        self.channel.handle_chunk(chunk)
    }

    /// Takes the end of the channel.
    ///
    /// # Errors
    /// When it fell inside a message.
    pub fn handle_end(&self) -> Result<(), RpcStreamError> {
        Ok(self.channel.decoder.handle_end()?)
    }

    /// The next bytes to send.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.channel.peer.poll_transmit()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        loop {
            match self.channel.peer.poll_event()? {
                RpcEvent::Aborted { reason } => return Some(ServerEvent::Ended { reason }),
                RpcEvent::Returned { .. } => {}
                RpcEvent::Call(call) => return Some(self.serve(&call)),
            }
        }
    }

    fn serve(&mut self, call: &IncomingCall) -> ServerEvent {
        let served = match (self.service, call.method) {
            (Service::Registration, REGISTER_CONNECTION) => read_registration(call).map(|registration| {
                ServerEvent::Register { call: call.id, registration: Box::new(registration) }
            }),
            (Service::Registration, UNREGISTER_CONNECTION) => Ok(ServerEvent::Unregister { call: call.id }),
            (Service::Registration, UPDATE_LOCAL_CONFIGURATION) => local_configuration(call),
            (Service::Connector, UPDATE_CONFIGURATION) => configuration(call),
            (Service::Connector, REGISTER_UDP_SESSION) => {
                self.refuse_udp_session(call.id);
                Ok(ServerEvent::UdpSession { method: "register_udp_session" })
            }
            (Service::Connector | Service::Sessions, UNREGISTER_UDP_SESSION) => {
                self.acknowledge(call.id);
                Ok(ServerEvent::UdpSession { method: "unregister_udp_session" })
            }
            _ => {
                self.channel.peer.refuse(call.id, "method is not served here", true);
                return ServerEvent::Refused { reason: "unknown_method" };
            }
        };
        served.unwrap_or_else(|error| {
            self.channel.peer.refuse(call.id, &error.to_string(), false);
            ServerEvent::Refused { reason: "malformed_parameters" }
        })
    }

    /// Datagrams are not carried yet, so a UDP session would be a hole: the edge is told in the
    /// result, as the stock connector tells it on datagram v3 connections (§5.1).
    fn refuse_udp_session(&mut self, call: AnswerId) {
        drop(self.channel.peer.respond(call, |results| {
            let results = results.init_as::<schema::register_udp_session_results::Builder<'_>>();
            results.init_result().set_err("this connector does not serve UDP sessions");
            Ok(())
        }));
    }
}

fn local_configuration(call: &IncomingCall) -> Result<ServerEvent, ParameterError> {
    let json = call.read::<schema::update_local_configuration_params::Owned, _>(|params| {
        Ok(params.get_config()?.to_vec())
    })?;
    Ok(ServerEvent::LocalConfiguration { call: call.id, json })
}

fn configuration(call: &IncomingCall) -> Result<ServerEvent, ParameterError> {
    let (version, json) = call.read::<schema::update_configuration_params::Owned, _>(|params| {
        Ok((params.get_version(), params.get_config()?.to_vec()))
    })?;
    Ok(ServerEvent::Configuration { call: call.id, version, json })
}

/// Framing and conversation of one channel.
#[derive(Debug)]
struct Channel {
    decoder: FrameDecoder,
    peer: Peer,
}

impl Channel {
    fn new() -> Self {
        Self { decoder: FrameDecoder::new(RPC_LIMITS), peer: Peer::new() }
    }

    fn handle_chunk(&mut self, chunk: Bytes) -> Result<(), RpcStreamError> {
        self.decoder.handle_chunk(chunk);
        while let Some(message) = self.decoder.poll_message()? {
            self.peer.handle_message(&message)?;
        }
        Ok(())
    }
}

/// A registration with the usual features, in bytes.
const REGISTRATION_SIZE_HINT: usize = 1024;

#[cfg(test)]
mod tests;
