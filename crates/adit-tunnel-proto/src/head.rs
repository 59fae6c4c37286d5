//! The heads that cross a tunnel, in `http` types: what a stream asks for and what came back.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// What a request stream carries after its head (tunnel-protocol.md §3.3, `ConnectionType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionType {
    /// One HTTP request and its response.
    Http,
    /// An HTTP request that asks to become a WebSocket; raw bytes both ways after 101.
    Websocket,
    /// A raw TCP flow to a literal `ip:port`.
    Tcp,
}

/// The head of a request on its way from edge to connector (tunnel-protocol.md §4.2).
#[derive(Clone, Debug, PartialEq)]
pub struct RequestHead<H = HeaderMap> {
    /// What follows the head.
    pub kind: ConnectionType,
    /// Absolute URL for HTTP and WebSocket, literal `ip:port` for TCP.
    pub dest: String,
    /// Request method; ignored for TCP.
    pub method: Method,
    /// The `Host` the visitor asked for; drives the ingress rules.
    pub host: String,
    /// Request headers, `Host` excluded.
    pub headers: H,
    /// Opaque text that names the flow in logs.
    pub flow_id: Option<String>,
}

impl RequestHead {
    /// A head with no headers, for HTTP to `dest` and `host`.
    pub fn new(method: Method, dest: impl Into<String>, host: impl Into<String>) -> Self {
        Self {
            kind: ConnectionType::Http,
            dest: dest.into(),
            method,
            host: host.into(),
            headers: HeaderMap::new(),
            flow_id: None,
        }
    }
}

impl<H> RequestHead<H> {
    /// A head with these headers, for HTTP to `dest` and `host`.
    pub fn with_headers(method: Method, dest: String, host: String, headers: H) -> Self {
        Self { kind: ConnectionType::Http, dest, method, host, headers, flow_id: None }
    }

    /// The same head with its headers in another form.
    pub fn map_headers<T>(self, form: impl FnOnce(H) -> T) -> RequestHead<T> {
        let Self { kind, dest, method, host, headers, flow_id } = self;
        RequestHead { kind, dest, method, host, headers: form(headers), flow_id }
    }
}

/// The head of a response on its way from connector to edge (tunnel-protocol.md §4.4).
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseHead<H = HeaderMap> {
    /// The origin's status.
    pub status: StatusCode,
    /// The origin's headers.
    pub headers: H,
}

/// Headers that can be written into a head.
pub trait HeaderPairs {
    /// Name in any letter case, and value, of each header in order.
    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])>;

    /// The same as a map.
    fn into_map(self) -> HeaderMap;
}

/// Headers of which some are not where the others are: those of others, and one's own behind them, under other names.
#[derive(Clone, Copy, Debug)]
pub struct Extended<'a, H>(pub &'a H, pub &'a [(&'static str, &'a [u8])]);

impl<H: HeaderPairs> HeaderPairs for Extended<'_, H> {
    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.pairs().chain(self.1.iter().map(|(name, value)| (name.as_bytes(), *value)))
    }

    fn into_map(self) -> HeaderMap {
        let pairs = self.pairs().filter_map(|(name, value)| {
            Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
        });
        pairs.collect()
    }
}

impl HeaderPairs for HeaderMap {
    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
    }

    fn into_map(self) -> HeaderMap {
        self
    }
}

/// Headers as they lie in the message that brought them: names are tokens in any letter case, values free of what cannot
/// stand in one.
#[derive(Clone, Debug, Default)]
pub struct HeaderLines {
    message: Bytes,
    lines: Vec<(Place, Place)>,
}

/// Headers of a request, in the form in which its transport brings them.
#[derive(Clone, Debug)]
pub enum Headers {
    /// As they lie in the stream's head (QUIC).
    Lines(HeaderLines),
    /// HTTP/2's.
    Map(HeaderMap),
}

/// Where a text begins in its message, and its length; messages are far shorter than 4 GiB.
type Place = (u32, u32);

impl HeaderPairs for HeaderLines {
    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.places().map(|(name, value)| (&self.message[name], &self.message[value]))
    }

    fn into_map(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.lines.len());
        for (name, value) in self.places() {
            let name = HeaderName::from_bytes(&self.message[name]);
            let value = HeaderValue::from_maybe_shared(self.message.slice(value));
            debug_assert!(name.is_ok() && value.is_ok(), "only legal ones are taken");
            if let (Ok(name), Ok(value)) = (name, value) {
                map.append(name, value);
            }
        }
        map
    }
}

impl PartialEq for HeaderLines {
    fn eq(&self, other: &Self) -> bool {
        self.pairs().eq(other.pairs())
    }
}

impl HeaderLines {
    /// None yet, all to be slices of `message`.
    pub(crate) fn of(message: &Bytes) -> Self {
        Self { message: message.clone(), lines: Vec::with_capacity(LINES_USUAL) }
    }

    /// Adds a header; false if it is not legal.
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) -> bool {
        // All bytes are looked at, legal or not: without a way out the compiler takes many at once.
        let is_token = name.iter().fold(true, |legal, byte| legal & TOKEN[usize::from(*byte)]);
        let is_value = value.iter().fold(true, |legal, byte| legal & may_stand_in_value(*byte));
        let legal = !name.is_empty() && name.len() <= NAME_BYTES_MAX && is_token && is_value;
        if legal {
            let place = |part: &[u8]| {
                let at = part.as_ptr().addr().wrapping_sub(self.message.as_ptr().addr());
                debug_assert!(
                    part.is_empty() || at + part.len() <= self.message.len(),
                    "it is a slice of it"
                );
                (at as u32, part.len() as u32)
            };
            let value = if value.is_empty() { (0, 0) } else { place(value) };
            self.lines.push((place(name), value));
        }
        legal
    }

    /// The message that they lie in.
    pub fn message(&self) -> &Bytes {
        &self.message
    }

    /// Where name and value of each header lie in the message.
    pub fn places(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let range = |(at, length): Place| at as usize..at as usize + length as usize;
        self.lines.iter().map(move |(name, value)| (range(*name), range(*value)))
    }
}

/// What a connector answered to a request head (tunnel-protocol.md §4.4).
#[derive(Clone, Debug, PartialEq)]
pub enum ConnectResponse<H = HeaderMap> {
    /// The origin answered; the body follows.
    Head(ResponseHead<H>),
    /// A TCP flow was opened; raw bytes follow.
    Accepted,
    /// The connector could not get an answer; nothing follows.
    Failed {
        /// The connector's own words.
        text: String,
        /// The connector refused because of its flow limit.
        rate_limited: bool,
    },
}

fn may_stand_in_value(byte: u8) -> bool {
    ((byte >= b' ') & (byte != 0x7f)) | (byte == b'\t')
}

/// Most heads have fewer headers: one allocation for those.
const LINES_USUAL: usize = 16;

/// Of a name in a [`HeaderMap`].
const NAME_BYTES_MAX: usize = 65_535;

/// RFC 9110 §5.6.2.
const TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let mark = matches!(
            byte as u8,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
        token[byte] = mark || (byte < 128 && (byte as u8).is_ascii_alphanumeric());
        byte += 1;
    }
    token
};
