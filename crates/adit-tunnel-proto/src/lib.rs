//! cloudflared's tunnel protocol, both ends, as state machines: registration, connections and their
//! retries, stream preambles, drain.
//!
//! This crate decides; it never opens a socket, looks at a clock, spawns a task, touches a file, or
//! knows what a stream carries. `adit-tunnel` is its shell. Section numbers (§) and statement numbers
//! (C…, E…) are those of the protocol reference, `tunnel-protocol.md`.
//!
//! # Contract
//! Input: `handle_*(…, now)`. Output: `poll_transmit`, `poll_event`, `poll_timeout`. After any input,
//! drain outputs until empty before the next input or wait. `now` never goes backwards. Nothing
//! blocks, allocates per packet, logs above TRACE per packet, or panics on what a peer sends. Each
//! input's work is bounded; each buffer has a constant cap and a drop reason. Randomness comes from a
//! generator given at construction.
//!
//! # Where to begin
//! `preamble.rs` for what crosses the tunnel with each request; `supervisor.rs` for a connector's
//! life; `registry.rs` for an edge's book; `rpc_stream.rs` for what the two say to each other.
//!
//! UDP sessions and datagrams (§5) are not served: calls for them are answered so.

mod address;
mod backoff;
pub mod features;
mod flat;
mod framing;
mod generated;
mod head;
pub mod http2;
mod preamble;
mod registration;
mod registry;
pub mod rpc;
mod rpc_stream;
mod supervisor;
mod wire;

pub use address::{AddressPool, EdgeEndpoint};
pub use backoff::Backoff;
pub use framing::{FrameDecoder, FrameLimits, FramingError, HEAD_LIMITS, RPC_LIMITS, SEGMENTS_MAX};
pub use head::{
    ConnectResponse, ConnectionType, Extended, HeaderLines, HeaderPairs, Headers, RequestHead, ResponseHead,
};
pub use preamble::{
    DATA_SIGNATURE, METADATA_BYTES_MAX, METADATA_ENTRIES_MAX, Preamble, PreambleDecoder, PreambleError,
    RPC_SIGNATURE, ResponseDecoder, encode_pairs, encode_request, encode_response,
};
pub use registration::{Client, DUPLICATE_CAUSE, ParameterError, Registered, Registration, Rejection};
pub use registry::{
    Admission, Candidate, ConnectionKey, Grant, LearnError, Learnt, PickError, Refusal, Registry, pick,
};
pub use rpc_stream::{ClientEvent, RpcClient, RpcServer, RpcStreamError, ServerEvent, Service};
pub use supervisor::{Command, Failure, Next, Outcome, Protocol, Supervisor, SupervisorOptions};

#[cfg(test)]
mod testing {
    use std::time::Instant;

    /// A moment for a test's clock to jump from; std makes one in no other way.
    #[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
    pub(crate) fn start() -> Instant {
        Instant::now()
    }
}
