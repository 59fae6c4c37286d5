//! cloudflared's tunnel protocol, both ends, as state machines.

mod framing;
mod generated;
mod head;
pub mod http2;
mod preamble;
mod registration;
pub mod rpc;
mod rpc_stream;
mod wire;

pub use framing::{FrameDecoder, FrameLimits, FramingError, HEAD_LIMITS, RPC_LIMITS, SEGMENTS_MAX};
pub use head::{ConnectResponse, ConnectionType, RequestHead, ResponseHead};
pub use preamble::{
    DATA_SIGNATURE, METADATA_BYTES_MAX, METADATA_ENTRIES_MAX, Preamble, PreambleDecoder, PreambleError,
    RPC_SIGNATURE, ResponseDecoder, encode_request, encode_response,
};
pub use registration::{Client, DUPLICATE_CAUSE, ParameterError, Registered, Registration, Rejection};
pub use rpc_stream::{ClientEvent, RpcClient, RpcServer, RpcStreamError, ServerEvent, Service};
