//! What a peer may send of a stream before anything of it was read.
//!
//! quinn knows one window for all streams and all their lives, and one that fills a long line is more than a visitor who reads
//! nothing should hold. So a smaller one is announced in the handshake (RFC 9000 section 18.2): quinn gives the whole once an eighth
//! of it was read.

use std::sync::Arc;

use bytes::Buf;
use quinn::{
    ConnectError, ConnectionId, Side, VarInt,
    crypto::{
        ClientConfig, Keys, ServerConfig, Session, UnsupportedVersion,
        rustls::{QuicClientConfig, QuicServerConfig},
    },
};
use quinn_proto::{coding::Codec, transport_parameters::TransportParameters};

use super::STREAM_WINDOW_FIRST_BYTES;

/// A dialling end's cryptography.
pub(super) struct Dialling(pub(super) Arc<QuicClientConfig>);

impl ClientConfig for Dialling {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let params = narrowed(params, Side::Server);
        ClientConfig::start_session(Arc::clone(&self.0), version, server_name, &params)
    }
}

/// A listening end's cryptography.
pub(super) struct Listening(pub(super) Arc<QuicServerConfig>);

impl ServerConfig for Listening {
    fn initial_keys(&self, version: u32, destination: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.0.initial_keys(version, destination)
    }

    fn retry_tag(&self, version: u32, original: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.0.retry_tag(version, original, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        ServerConfig::start_session(Arc::clone(&self.0), version, &narrowed(params, Side::Client))
    }
}

/// The same parameters, as `reader` will read them, with the first window of streams.
fn narrowed(params: &TransportParameters, reader: Side) -> TransportParameters {
    let mut written = Vec::new();
    params.write(&mut written);
    let narrow = narrow(&written).and_then(|bytes| TransportParameters::read(reader, &mut &bytes[..]).ok());
    debug_assert!(narrow.is_some(), "what was written can be read");
    narrow.unwrap_or(*params)
}

fn narrow(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut first = Vec::new();
    VarInt::from_u32(STREAM_WINDOW_FIRST_BYTES).encode(&mut first);
    let mut out = Vec::new();
    while rest.has_remaining() {
        let (id, length) = (VarInt::decode(&mut rest).ok()?, VarInt::decode(&mut rest).ok()?);
        let value = rest.get(..usize::try_from(length.into_inner()).ok()?)?;
        rest.advance(value.len());
        let value = if [BIDI_LOCAL, BIDI_REMOTE].contains(&id) { &first } else { value };
        id.encode(&mut out);
        VarInt::try_from(value.len()).ok()?.encode(&mut out);
        out.extend_from_slice(value);
    }
    Some(out)
}

/// `initial_max_stream_data_bidi_local` and `…_remote` (RFC 9000 section 18.2).
const BIDI_LOCAL: VarInt = VarInt::from_u32(0x05);
const BIDI_REMOTE: VarInt = VarInt::from_u32(0x06);
