//! What the fuzzer runs and what `tests/corpus.rs` replays: one function for each place where bytes of a stranger are read.
//!
//! None of them may panic, whatever the bytes. Beyond that each checks what must hold for any input: how a stream is cut into
//! pieces does not matter, and what was understood can be written and is understood the same way again.
#![allow(clippy::panic, reason = "this is how a target fails")]
#![allow(unreachable_pub, reason = "a crate of its own for the fuzzer, a module for the replaying test")]

use std::path::Path;

use adit_config::{
    CloudflaredFile, Config, HostPattern, OriginCertificate, RemoteConfig, TunnelCredentials, WarpRouting,
    hostnames_in_push, parse_duration, parse_listen_address, parse_size,
};
use adit_proxy::body::BodyError;
use adit_proxy::h1::encode;
use adit_proxy::h1::framing::{Chunk, ChunkedDecoder};
use adit_proxy::h1::head::{HeadError, HeadScanner, RequestHead, parse_request, parse_response};
use adit_route::{Decision, Head, Outcome, Table};
use adit_tunnel_proto::rpc::Peer;
use adit_tunnel_proto::{
    ConnectionType, FrameDecoder, Preamble, PreambleDecoder, PreambleError, RPC_LIMITS, ResponseDecoder,
    RpcClient, RpcServer, Service, encode_request, encode_response,
};
use bytes::{Bytes, BytesMut};
use http::Method;

mod mesh;

pub use mesh::mesh;

/// A target: the name of its corpus folder and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 12] = [
    ("preamble", preamble),
    ("connect_request", connect_request),
    ("connect_response", connect_response),
    ("rpc", rpc),
    ("token", token),
    ("config", config),
    ("ingress", ingress),
    ("values", values),
    ("decide", decide),
    ("http1_head", http1_head),
    ("http1_chunks", http1_chunks),
    ("mesh", mesh),
];

/// The first bytes of a stream that the peer opened, whole and in pieces.
pub fn preamble(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    let whole = read_preamble(data, data.len().max(1));
    let pieces = read_preamble(data, usize::from(*size).max(1));
    assert_eq!(whole, pieces, "how a stream is cut changes nothing");
}

/// A request head, behind a valid signature and version.
pub fn connect_request(data: &[u8]) {
    let Ok(Some(Preamble::Request(head))) = read_preamble(&prefixed(data), usize::MAX).0 else { return };
    let Ok(encoded) = encode_request(&head) else { return };
    let again = read_preamble(&encoded, usize::MAX).0;
    // A TCP flow has no method and no host on the wire.
    if head.kind != ConnectionType::Tcp {
        assert_eq!(again, Ok(Some(Preamble::Request(head))));
    }
}

/// The head of an answer, behind a valid signature and version.
pub fn connect_response(data: &[u8]) {
    let bytes = prefixed(data);
    let read = |bytes: &[u8]| {
        let mut decoder = ResponseDecoder::new();
        decoder.handle_chunk(Bytes::copy_from_slice(bytes));
        decoder.poll_response()
    };
    let Ok(Some(response)) = read(&bytes) else { return };
    let Ok(encoded) = encode_response(&response) else { return };
    assert_eq!(read(&encoded), Ok(Some(response)));
}

/// RPC messages on a channel, towards every end that the product has.
pub fn rpc(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let mut frames = FrameDecoder::new(RPC_LIMITS);
    frames.handle_chunk(bytes.clone());
    let mut peer = Peer::new();
    while let Ok(Some(message)) = frames.poll_message() {
        let over = peer.handle_message(&message).is_err();
        while peer.poll_event().is_some() {}
        while peer.poll_transmit().is_some() {}
        if over {
            break;
        }
    }
    for service in [Service::Registration, Service::Sessions, Service::Connector] {
        let mut server = RpcServer::new(service);
        let _ = server.handle_chunk(bytes.clone());
        while server.poll_event().is_some() {}
        while server.poll_transmit().is_some() {}
    }
    let mut client = RpcClient::new();
    // With two calls open, answers have something to be answers to.
    let asked = client.unregister().and_then(|()| client.update_configuration(1, b"{}"));
    assert!(asked.is_ok(), "a fresh channel takes two calls");
    let _ = client.handle_chunk(bytes);
    while client.poll_event().is_some() {}
    while client.poll_transmit().is_some() {}
}

/// Tunnel tokens, credentials files and origin certificates.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(credentials) = TunnelCredentials::from_token(text) {
        assert_eq!(TunnelCredentials::from_token(&credentials.to_token()), Ok(credentials));
    }
    if let Ok(credentials) = TunnelCredentials::from_credentials_json(text) {
        assert_eq!(
            TunnelCredentials::from_credentials_json(&credentials.to_credentials_json()),
            Ok(credentials)
        );
    }
    let _ = OriginCertificate::from_pem(text);
}

/// `adit.yaml`, and the same bytes as a wg-quick file; what is accepted must have an effective form.
pub fn config(data: &[u8]) {
    let imported = |_: &Path| -> Result<Vec<u8>, String> { Ok(data.to_vec()) };
    if let Ok(config) = Config::parse("mesh: { import: wg0.conf }", "fuzz.yaml", &imported) {
        drop(config.to_effective_yaml());
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let no_files = |_: &Path| -> Result<Vec<u8>, String> { Err("no files here".to_owned()) };
    match Config::parse(text, "fuzz.yaml", &no_files) {
        Ok(config) => drop(config.to_effective_yaml()),
        Err(problems) => assert!(!problems.0.is_empty(), "a refusal has a reason"),
    }
}

/// cloudflared's `config.yml` and the JSON that is pushed either way.
pub fn ingress(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = CloudflaredFile::parse(text, "fuzz.yml");
    let _ = hostnames_in_push(data, 16);
    if let Ok(remote) = RemoteConfig::from_json(text) {
        let pushed =
            remote.ingress.to_local_push(&std::collections::BTreeMap::new(), &WarpRouting::default());
        let named = hostnames_in_push(pushed.as_bytes(), usize::MAX);
        assert!(named.is_ok(), "what the connector pushes the edge reads: {pushed}");
    }
}

/// Hosts, durations, sizes and addresses as they stand in configurations.
pub fn values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(pattern) = text.parse::<HostPattern>() {
        assert_eq!(pattern.to_string().parse(), Ok(pattern.clone()));
        assert!(pattern.covers(&pattern));
    }
    let _ = (parse_duration(text), parse_size(text), parse_listen_address(text));
}

/// A host and a path (on two lines) against a table that has every kind of rule.
pub fn decide(data: &[u8]) {
    let Some((host, path)) = std::str::from_utf8(data).ok().and_then(|text| text.split_once('\n')) else {
        return;
    };
    let rules =
        RemoteConfig::from_json(RULES).map(|config| Table::from_ingress(&config.ingress, |index, _| index));
    let Ok(table) = rules else { unreachable!("the rules below are valid") };
    let head = Head { host, path, method: &Method::GET };
    let decided = match table.decide(&head) {
        Decision::Forward { route, .. } | Decision::Respond { route, .. } => Some(route.index),
        Decision::Refuse(_) => None,
    };
    // `decide` looks names up, `explain` goes through all rules: two ways to one answer.
    let explained = table.explain(&head).into_iter().find(|verdict| verdict.outcome == Outcome::Matched);
    if let Some(index) = decided {
        assert_eq!(explained.map(|verdict| verdict.index), Some(index), "{host:?} {path:?}");
    }
}

/// An HTTP/1.1 request head: where it ends, what it says, and that what is forwarded says the same to the next parser.
pub fn http1_head(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    let whole = scan(data, data.len().max(1));
    assert_eq!(whole, scan(data, usize::from(*size).max(1)), "how a head is cut changes nothing");
    if whole == Err(HeadError::BareLf) {
        assert!(parse_request(&Bytes::copy_from_slice(data)).is_err(), "parsers look for themselves");
    }
    let Ok(Some(length)) = whole else { return };
    let head = Bytes::copy_from_slice(&data[..length]);
    let _ = parse_response(&head, &Method::GET);
    let Ok(request) = parse_request(&head) else { return };
    // A tunnel by CONNECT is not forwarded in this form; a full table has no room for a field of ours.
    if request.method == Method::CONNECT || request.headers.len() > 120 {
        return;
    }
    let forwarded = forwarded(&request);
    let again = parse_request(&forwarded);
    let Ok(again) = again else { panic!("forwarded as {forwarded:?}, refused as {again:?}") };
    assert_eq!(
        (&again.method, &again.host, again.framing.length()),
        (&request.method, &request.host, request.framing.length()),
        "forwarded as {forwarded:?}"
    );
    assert_eq!(*again.headers, *request.headers, "forwarded as {forwarded:?}");
}

/// Chunked coding, whole and in pieces.
pub fn http1_chunks(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    let whole = dechunk(data, data.len().max(1));
    assert_eq!(whole, dechunk(data, usize::from(*size).max(1)), "how a body is cut changes nothing");
}

/// Rules for `decide`: exact and wildcard hosts, with and without paths, between each other.
const RULES: &str = r#"{"ingress": [
    {"hostname": "a.example", "path": "^/api", "service": "http://127.0.0.1:1"},
    {"hostname": "*.example", "path": "\\.png$", "service": "http://127.0.0.1:2"},
    {"hostname": "a.example", "service": "http_status:204"},
    {"path": "/everywhere", "service": "http://127.0.0.1:3"},
    {"hostname": "*.b.example", "service": "http://127.0.0.1:4"},
    {"hostname": "*.example", "service": "http://127.0.0.1:5"},
    {"hostname": "b\u00fccher.test", "service": "http://127.0.0.1:6"},
    {"service": "http_status:404"}
]}"#;

fn scan(data: &[u8], piece: usize) -> Result<Option<usize>, HeadError> {
    let mut scanner = HeadScanner::default();
    let mut buffer = Vec::new();
    for piece in data.chunks(piece) {
        buffer.extend_from_slice(piece);
        if let Some(length) = scanner.scan(&buffer, usize::MAX)? {
            return Ok(Some(length));
        }
    }
    Ok(None)
}

fn forwarded(request: &RequestHead) -> Bytes {
    let mut out = BytesMut::new();
    encode::request_head(&mut out, &request.method, &request.uri, &request.host, &request.headers);
    encode::framing(&mut out, request.framing.length());
    out.extend_from_slice(b"\r\n");
    out.freeze()
}

/// The content found, and whether the body ended or is broken.
fn dechunk(data: &[u8], piece: usize) -> (Vec<u8>, Result<bool, BodyError>) {
    let mut decoder = ChunkedDecoder::default();
    let mut input = BytesMut::new();
    let mut content = Vec::new();
    for piece in data.chunks(piece) {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Chunk::Data(data)) => content.extend_from_slice(&data),
                Ok(Chunk::More) => break,
                Ok(Chunk::Done) => return (content, Ok(true)),
                Err(error) => return (content, Err(error)),
            }
        }
    }
    (content, Ok(false))
}

/// Outcome of a stream's beginning, and how many bytes were left over where it was a request.
fn read_preamble(data: &[u8], piece: usize) -> (Result<Option<Preamble>, PreambleError>, Option<usize>) {
    let mut decoder = PreambleDecoder::new();
    let mut taken = 0;
    loop {
        match decoder.poll_preamble() {
            Ok(None) if taken < data.len() => {
                let end = taken.saturating_add(piece).min(data.len());
                decoder.handle_chunk(Bytes::copy_from_slice(&data[taken..end]));
                taken = end;
            }
            Ok(Some(found)) => {
                let rest = data.len() - taken + decoder.into_rest().len();
                return (Ok(Some(found)), Some(rest));
            }
            other => return (other, None),
        }
    }
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    [&adit_tunnel_proto::DATA_SIGNATURE, b"01".as_slice(), message].concat()
}
