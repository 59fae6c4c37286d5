//! Stream preambles: signatures, version, request head and response head (tunnel-protocol.md §4.1, §4.2).
//!
//! Decoding is incremental over any split of the bytes (C16); encoding is one contiguous buffer (E7).

use bytes::Bytes;
use capnp::{message::ReaderOptions, serialize::read_message_from_flat_slice_no_alloc, struct_list};
use http::{HeaderMap, Method, StatusCode};
use thiserror::Error;

use crate::{
    flat::Flat,
    framing::{ChunkBuffer, FramingError, HEAD_LIMITS, frame_length},
    generated::quic_metadata_protocol_capnp as schema,
    head::{ConnectResponse, ConnectionType, HeaderLines, HeaderPairs, RequestHead, ResponseHead},
    wire::{Entries, HEADER_PREFIX, Root, encode},
};

/// Why a stream's beginning is not a head of this protocol, or cannot become one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PreambleError {
    /// The first six bytes are none of the known signatures.
    #[error("unknown stream signature")]
    UnknownSignature,
    /// The message frame is broken or too large.
    #[error("head is badly framed")]
    Framing(#[from] FramingError),
    /// The message is not valid Cap'n Proto.
    #[error("head is malformed: {0}")]
    Malformed(&'static str),
    /// More metadata entries than allowed.
    #[error("head has more than {METADATA_ENTRIES_MAX} metadata entries")]
    TooManyEntries,
    /// More metadata bytes than allowed.
    #[error("head is larger than {METADATA_BYTES_MAX} bytes")]
    TooLarge,
    /// A header's key, name or value is not legal.
    #[error("head has an illegal header")]
    BadHeader,
    /// The request method is not legal.
    #[error("head has an illegal method")]
    BadMethod,
    /// The response status is not legal.
    #[error("head has an illegal status")]
    BadStatus,
}

impl PreambleError {
    /// The name under which logs and metrics count this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownSignature => "unknown_signature",
            Self::Framing(error) => error.reason(),
            Self::Malformed(_) => "malformed_head",
            Self::TooManyEntries => "too_many_headers",
            Self::TooLarge => "head_too_large",
            Self::BadHeader => "bad_header",
            Self::BadMethod => "bad_method",
            Self::BadStatus => "bad_status",
        }
    }
}

/// What a stream opened by the peer turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Preamble<H = HeaderMap> {
    /// A request; body bytes follow.
    Request(Box<RequestHead<H>>),
    /// An RPC stream; messages follow at once, with no version.
    Rpc,
}

/// Decodes the beginning of a stream that the peer opened.
#[derive(Debug, Default)]
pub struct PreambleDecoder {
    buffer: ChunkBuffer,
}

impl PreambleDecoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next received bytes.
    pub fn handle_chunk(&mut self, chunk: Bytes) {
        self.buffer.push(chunk);
    }

    /// The preamble once it is whole; `None` until more bytes arrive.
    ///
    /// # Errors
    /// Any [`PreambleError`]; the stream is then of no use.
    pub fn poll_preamble(&mut self) -> Result<Option<Preamble>, PreambleError> {
        let preamble = self.poll_lines()?;
        Ok(preamble.map(|preamble| match preamble {
            Preamble::Request(head) => Preamble::Request(Box::new(head.map_headers(HeaderLines::into_map))),
            Preamble::Rpc => Preamble::Rpc,
        }))
    }

    /// [`Self::poll_preamble`] with the headers as they lie in the message.
    ///
    /// # Errors
    /// The same.
    pub fn poll_lines(&mut self) -> Result<Option<Preamble<HeaderLines>>, PreambleError> {
        let bytes = self.buffer.as_slice();
        if bytes.starts_with(&RPC_SIGNATURE) {
            self.buffer.advance(RPC_SIGNATURE.len());
            return Ok(Some(Preamble::Rpc));
        }
        if !agrees(bytes, &RPC_SIGNATURE) && !agrees(bytes, &DATA_SIGNATURE) {
            return Err(PreambleError::UnknownSignature);
        }
        let Some(message) = take_message(&mut self.buffer)? else { return Ok(None) };
        decode_request(&message).map(|head| Some(Preamble::Request(Box::new(head))))
    }

    /// The bytes behind the preamble that had already arrived.
    pub fn into_rest(mut self) -> Bytes {
        self.buffer.take_rest()
    }
}

/// Decodes the beginning of the answer on a request stream.
#[derive(Debug, Default)]
pub struct ResponseDecoder {
    buffer: ChunkBuffer,
}

impl ResponseDecoder {
    /// A decoder at the start of an answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next received bytes.
    pub fn handle_chunk(&mut self, chunk: Bytes) {
        self.buffer.push(chunk);
    }

    /// The response once its head is whole; `None` until more bytes arrive.
    ///
    /// # Errors
    /// Any [`PreambleError`]; the stream is then of no use.
    pub fn poll_response(&mut self) -> Result<Option<ConnectResponse>, PreambleError> {
        let response = self.poll_lines()?;
        Ok(response.map(|response| match response {
            ConnectResponse::Head(ResponseHead { status, headers }) => {
                ConnectResponse::Head(ResponseHead { status, headers: headers.into_map() })
            }
            ConnectResponse::Accepted => ConnectResponse::Accepted,
            ConnectResponse::Failed { text, rate_limited } => ConnectResponse::Failed { text, rate_limited },
        }))
    }

    /// [`Self::poll_response`] with the headers as they lie in the message.
    ///
    /// # Errors
    /// The same.
    pub fn poll_lines(&mut self) -> Result<Option<ConnectResponse<HeaderLines>>, PreambleError> {
        if !agrees(self.buffer.as_slice(), &DATA_SIGNATURE) {
            return Err(PreambleError::UnknownSignature);
        }
        let Some(message) = take_message(&mut self.buffer)? else { return Ok(None) };
        decode_response(&message).map(Some)
    }

    /// The body bytes behind the head that had already arrived.
    pub fn into_rest(mut self) -> Bytes {
        self.buffer.take_rest()
    }
}

/// Signature, version and `ConnectRequest` of `head` as one buffer (E7).
///
/// # Errors
/// When the head exceeds what any decoder of this protocol takes.
pub fn encode_request<H: HeaderPairs>(head: &RequestHead<H>) -> Result<Bytes, PreambleError> {
    let http = head.kind != ConnectionType::Tcp;
    let plain = [
        (KEY_METHOD, Some(head.method.as_str().as_bytes()).filter(|_| http)),
        (KEY_HOST, Some(head.host.as_bytes()).filter(|_| http)),
        (KEY_FLOW_ID, head.flow_id.as_deref().map(str::as_bytes)),
    ];
    let data = Some(u64::from(u16::from(to_wire(head.kind))));
    encode_checked(Root { data, text: &head.dest }, &Entries::new(&plain, head.headers.pairs()))
}

/// Signature, version and `ConnectResponse` as one buffer.
///
/// # Errors
/// When the head exceeds what any decoder of this protocol takes.
pub fn encode_response(response: &ConnectResponse) -> Result<Bytes, PreambleError> {
    encode_pairs(response)
}

/// [`encode_response`] with headers that are not a map.
///
/// # Errors
/// The same.
pub fn encode_pairs<H: HeaderPairs>(response: &ConnectResponse<H>) -> Result<Bytes, PreambleError> {
    let (status, headers, text, rate_limited) = match response {
        ConnectResponse::Head(head) => (Some(&head.status), Some(&head.headers), "", false),
        ConnectResponse::Accepted => (None, None, "", false),
        // An empty error would read as success.
        ConnectResponse::Failed { text, .. } if text.is_empty() => (None, None, "unspecified failure", false),
        ConnectResponse::Failed { text, rate_limited } => (None, None, text.as_str(), *rate_limited),
    };
    let plain = [
        (KEY_STATUS, status.map(|status| status.as_str().as_bytes())),
        (KEY_RATE_LIMITED, Some(&b"true"[..]).filter(|_| rate_limited)),
    ];
    let headers = headers.into_iter().flat_map(HeaderPairs::pairs);
    encode_checked(Root { data: None, text }, &Entries::new(&plain, headers))
}

/// Refuses to write what the peer would refuse to read.
fn encode_checked(root: Root<'_>, entries: &Entries<'_>) -> Result<Bytes, PreambleError> {
    if entries.len() > METADATA_ENTRIES_MAX {
        return Err(PreambleError::TooManyEntries);
    }
    if root.text.len() + entries.bytes > METADATA_BYTES_MAX {
        return Err(PreambleError::TooLarge);
    }
    Ok(encode(&DATA_PREFIX, root, entries))
}

/// Whether what arrived so far can still become `signature`.
fn agrees(bytes: &[u8], signature: &[u8]) -> bool {
    let length = bytes.len().min(signature.len());
    bytes[..length] == signature[..length]
}

/// The whole framed message behind signature and version; the version's content is ignored (§4.1).
fn take_message(buffer: &mut ChunkBuffer) -> Result<Option<Bytes>, PreambleError> {
    let bytes = buffer.as_slice();
    let Some(framed) = bytes.get(DATA_PREFIX.len()..) else { return Ok(None) };
    match frame_length(framed, HEAD_LIMITS)? {
        Some(length) if length <= framed.len() => {
            buffer.advance(DATA_PREFIX.len());
            Ok(Some(buffer.take(length)))
        }
        _ => Ok(None),
    }
}

fn decode_request(message: &Bytes) -> Result<RequestHead<HeaderLines>, PreambleError> {
    match Flat::read(message) {
        Some(flat) => {
            let dest = std::str::from_utf8(flat.text).map_err(|_| PreambleError::Malformed("dest"))?;
            let kind = from_wire(flat.data.try_into())?;
            read_request(message, (kind, dest), flat.entries.len(), flat.entries.into_iter().map(Ok))
        }
        None => decode_general_request(message),
    }
}

fn decode_general_request(message: &Bytes) -> Result<RequestHead<HeaderLines>, PreambleError> {
    let mut slice: &[u8] = message;
    let reader =
        read_message_from_flat_slice_no_alloc(&mut slice, reader_options(message)).map_err(broken)?;
    let root: schema::connect_request::Reader<'_> = reader.get_root().map_err(broken)?;
    let dest = root.get_dest().map_err(broken)?.to_str().map_err(|_| PreambleError::Malformed("dest"))?;
    let kind = from_wire(root.get_type())?;
    let metadata = root.get_metadata().map_err(broken)?;
    read_request(message, (kind, dest), metadata.len() as usize, pairs(metadata))
}

fn read_request<'a>(
    message: &Bytes,
    (kind, dest): (ConnectionType, &str),
    count: usize,
    pairs: impl Iterator<Item = Pair<'a>>,
) -> Result<RequestHead<HeaderLines>, PreambleError> {
    let mut head = RequestHead::new(Method::GET, dest, "").map_headers(|_| HeaderLines::of(message));
    head.kind = kind;
    let RequestHead { headers, method, host, flow_id, .. } = &mut head;
    read_metadata((count, pairs), headers, |key, value| {
        match key {
            KEY_METHOD => *method = Method::from_bytes(value).map_err(|_| PreambleError::BadMethod)?,
            KEY_HOST => *host = text(value)?,
            KEY_FLOW_ID => *flow_id = Some(text(value)?),
            _ => {}
        }
        Ok(())
    })?;
    if head.host.is_empty() && head.kind != ConnectionType::Tcp {
        head.host = authority_of(&head.dest).to_owned();
    }
    Ok(head)
}

fn decode_response(message: &Bytes) -> Result<ConnectResponse<HeaderLines>, PreambleError> {
    match Flat::read(message) {
        Some(flat) => read_response(message, flat.text, flat.entries.len(), flat.entries.into_iter().map(Ok)),
        None => decode_general_response(message),
    }
}

fn decode_general_response(message: &Bytes) -> Result<ConnectResponse<HeaderLines>, PreambleError> {
    let mut slice: &[u8] = message;
    let reader =
        read_message_from_flat_slice_no_alloc(&mut slice, reader_options(message)).map_err(broken)?;
    let root: schema::connect_response::Reader<'_> = reader.get_root().map_err(broken)?;
    let error = root.get_error().map_err(broken)?.as_bytes();
    let metadata = root.get_metadata().map_err(broken)?;
    read_response(message, error, metadata.len() as usize, pairs(metadata))
}

fn read_response<'a>(
    message: &Bytes,
    error: &[u8],
    count: usize,
    pairs: impl Iterator<Item = Pair<'a>>,
) -> Result<ConnectResponse<HeaderLines>, PreambleError> {
    let (mut headers, mut status, mut rate_limited) = (HeaderLines::of(message), None, false);
    read_metadata((count, pairs), &mut headers, |key, value| {
        match key {
            KEY_STATUS => {
                status = Some(StatusCode::from_bytes(value).map_err(|_| PreambleError::BadStatus)?);
            }
            KEY_RATE_LIMITED => rate_limited = value == b"true",
            _ => {}
        }
        Ok(())
    })?;
    if !error.is_empty() {
        let text = String::from_utf8_lossy(error).into_owned();
        return Ok(ConnectResponse::Failed { text, rate_limited });
    }
    Ok(match status {
        Some(status) => ConnectResponse::Head(ResponseHead { status, headers }),
        None => ConnectResponse::Accepted,
    })
}

/// Key and value of one metadata entry, in bytes of the message.
type Pair<'a> = Result<(&'a [u8], &'a [u8]), PreambleError>;

fn pairs<'a>(entries: struct_list::Reader<'a, schema::metadata::Owned>) -> impl Iterator<Item = Pair<'a>> {
    entries.into_iter().map(|entry| {
        let key = entry.get_key().map_err(broken)?.as_bytes();
        Ok((key, entry.get_val().map_err(broken)?.as_bytes()))
    })
}

/// Sorts metadata into headers, and everything else, which is `plain`.
fn read_metadata<'a>(
    (count, pairs): (usize, impl Iterator<Item = Pair<'a>>),
    headers: &mut HeaderLines,
    mut plain: impl FnMut(&str, &[u8]) -> Result<(), PreambleError>,
) -> Result<(), PreambleError> {
    if count > METADATA_ENTRIES_MAX {
        return Err(PreambleError::TooManyEntries);
    }
    let mut bytes = 0;
    for pair in pairs {
        let (key, value) = pair?;
        bytes += key.len() + value.len();
        if bytes > METADATA_BYTES_MAX {
            return Err(PreambleError::TooLarge);
        }
        if let Some(name) = key.strip_prefix(HEADER_PREFIX.as_bytes()) {
            if !headers.push(name, value) {
                return Err(PreambleError::BadHeader);
            }
            continue;
        }
        let key = std::str::from_utf8(key).map_err(|_| PreambleError::BadHeader)?;
        if key.contains(HEADER_WORD) {
            // Neither one key with a colon nor a plain key: refused, as the reference does (§4.2).
            return Err(PreambleError::BadHeader);
        }
        plain(key, value)?;
    }
    Ok(())
}

fn text(value: &[u8]) -> Result<String, PreambleError> {
    String::from_utf8(value.to_vec()).map_err(|_| PreambleError::Malformed("text is not UTF-8"))
}

/// `host[:port]` of an absolute URL, empty for any other form.
fn authority_of(dest: &str) -> &str {
    let Some((_, rest)) = dest.split_once("://") else { return "" };
    rest.split(['/', '?', '#']).next().unwrap_or("")
}

/// Each pointer is followed once, so twice the message's size is generous; it stops a message
/// whose pointers all lead to the same bytes.
fn reader_options(message: &Bytes) -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(message.len() / 4 + 64)).nesting_limit(8);
    options
}

fn broken(_: capnp::Error) -> PreambleError {
    PreambleError::Malformed("not a valid message")
}

fn from_wire(
    kind: Result<schema::ConnectionType, capnp::NotInSchema>,
) -> Result<ConnectionType, PreambleError> {
    match kind {
        Ok(schema::ConnectionType::Http) => Ok(ConnectionType::Http),
        Ok(schema::ConnectionType::Websocket) => Ok(ConnectionType::Websocket),
        Ok(schema::ConnectionType::Tcp) => Ok(ConnectionType::Tcp),
        Err(_) => Err(PreambleError::Malformed("unknown connection type")),
    }
}

fn to_wire(kind: ConnectionType) -> schema::ConnectionType {
    match kind {
        ConnectionType::Http => schema::ConnectionType::Http,
        ConnectionType::Websocket => schema::ConnectionType::Websocket,
        ConnectionType::Tcp => schema::ConnectionType::Tcp,
    }
}

/// First bytes of a request stream and of its answer (tunnel-protocol.md §4.1).
pub const DATA_SIGNATURE: [u8; 6] = [0x0a, 0x36, 0xcd, 0x12, 0xa1, 0x3e];

/// First bytes of an RPC stream; its answers carry none (tunnel-protocol.md §4.1).
pub const RPC_SIGNATURE: [u8; 6] = [0x52, 0xbb, 0x82, 0x5c, 0xdb, 0x65];

/// Most metadata entries in a head; above what listeners and origins send (128 headers is the
/// usual cap), and small enough that 512 empty ones cost 16 KiB.
pub const METADATA_ENTRIES_MAX: usize = 512;

/// Most metadata bytes in a head, keys and values together; below the frame limit of 256 KiB so
/// that an encoded head always fits a decoder of ours.
pub const METADATA_BYTES_MAX: usize = 192 * 1024;

const DATA_PREFIX: [u8; 8] = [0x0a, 0x36, 0xcd, 0x12, 0xa1, 0x3e, b'0', b'1'];
const HEADER_WORD: &str = "HttpHeader";
const KEY_METHOD: &str = "HttpMethod";
const KEY_HOST: &str = "HttpHost";
const KEY_STATUS: &str = "HttpStatus";
const KEY_FLOW_ID: &str = "FlowID";
const KEY_RATE_LIMITED: &str = "FlowConnectRateLimited";

#[cfg(test)]
mod tests;
