//! Heads of requests and responses: strict parsing out of a growing buffer.

use std::mem::MaybeUninit;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};
use memchr::memmem::Finder;
use thiserror::Error;

use super::framing::{self, Framing, FramingError};
use super::plain;
use crate::fields::{Fields, Kinds, Side};

/// A request head that passed every check.
#[derive(Debug)]
pub struct RequestHead {
    /// Method as sent.
    pub method: Method,
    /// Target as sent: origin form, absolute form, or `*`.
    pub uri: Uri,
    /// 1.0 or 1.1.
    pub version: Version,
    /// The authority: of the absolute form, else of `Host`.
    pub host: String,
    /// Fields without `Host` and without those that frame the message.
    pub headers: Fields,
    /// How the content is delimited.
    pub framing: Framing,
    /// The connection stays open after this exchange as far as the visitor is concerned.
    pub keep_alive: bool,
    /// The visitor waits for `100 Continue` (RFC 9110 §10.1.1).
    pub expect_continue: bool,
    /// The protocol to switch to, lower-case.
    pub upgrade: Option<Box<str>>,
}

/// A response head from an origin.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status, 1xx included.
    pub status: StatusCode,
    /// Fields without those that frame the message.
    pub headers: Fields,
    /// How the content is delimited.
    pub framing: Framing,
    /// The origin keeps the connection open after this exchange.
    pub keep_alive: bool,
}

/// Why a head was refused. Every one of these closes the connection: what follows cannot be trusted to be framed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeadError {
    /// A line that ends in LF without CR (RFC 9112 §2.2).
    #[error("a line ends in LF without CR")]
    BareLf,
    /// A field line that starts with white space (RFC 9112 §5.2).
    #[error("a folded header line")]
    ObsFold,
    /// The request or status line, a field name or a field value breaks the grammar.
    #[error("malformed request line or header field")]
    Malformed,
    /// More bytes than the limit of the listener or origin.
    #[error("the head is larger than allowed")]
    TooLarge,
    /// More fields than [`FIELDS_MAX`].
    #[error("more header fields than allowed")]
    TooManyFields,
    /// No, or more than one, or a malformed `Host` (RFC 9112 §3.2).
    #[error("missing, repeated or malformed Host")]
    Host,
    /// A request target that cannot be proxied.
    #[error("unsupported request target")]
    Target,
    /// CONNECT: this is no forward proxy (RFC 9110 §9.3.6).
    #[error("CONNECT is not supported")]
    Connect,
    /// A protocol version other than 1.0 and 1.1.
    #[error("unsupported HTTP version")]
    Version,
    /// A `101` to a request that did not ask for one.
    #[error("a switch of protocols that nobody asked for")]
    UnaskedUpgrade,
    /// An expectation other than `100-continue` (RFC 9110 §10.1.1).
    #[error("unknown expectation")]
    Expectation,
    /// The head does not say in one way where the content ends.
    #[error("{0}")]
    Framing(#[from] FramingError),
}

impl HeadError {
    /// The name of this error in logs and metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BareLf => "head_bare_lf",
            Self::ObsFold => "head_obs_fold",
            Self::Malformed => "head_malformed",
            Self::TooLarge => "head_too_large",
            Self::TooManyFields => "head_too_many_fields",
            Self::Host => "head_host",
            Self::Target => "head_target",
            Self::Connect => "head_connect",
            Self::Version => "head_version",
            Self::UnaskedUpgrade => "head_unasked_upgrade",
            Self::Expectation => "head_expectation",
            Self::Framing(error) => error.reason(),
        }
    }

    /// The status to refuse a request with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooLarge | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Connect | Self::Framing(FramingError::UnknownCoding) => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Finds the end of a head, looking at each byte once while the head arrives.
#[derive(Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
}

impl HeadScanner {
    /// The length of the head with its empty line, once it is there.
    ///
    /// # Errors
    /// [`HeadError::BareLf`] as soon as it is seen, [`HeadError::TooLarge`] above `bytes_max`.
    pub fn scan(&mut self, buffer: &[u8], bytes_max: usize) -> Result<Option<usize>, HeadError> {
        let scanned = self.scanned;
        let end = self.find(buffer, bytes_max)?;
        if end.is_some_and(|end| has_bare_lf(&buffer[..end], scanned)) {
            return Err(HeadError::BareLf);
        }
        Ok(end)
    }

    /// [`Self::scan`] without a look for [`HeadError::BareLf`] at what the end has come with: the parsers look for themselves.
    ///
    /// # Errors
    /// The same.
    pub(super) fn find(&mut self, buffer: &[u8], bytes_max: usize) -> Result<Option<usize>, HeadError> {
        // What was looked at before may be the beginning of the end.
        let from = self.scanned.saturating_sub(END.len() - 1);
        let end = END_FINDER.find(&buffer[from..]).map(|at| from + at + END.len());
        let head = &buffer[..end.unwrap_or(buffer.len())];
        let is_large = head.len() > bytes_max;
        if (end.is_none() || is_large) && has_bare_lf(head, self.scanned) {
            return Err(HeadError::BareLf);
        }
        self.scanned = if end.is_some() { 0 } else { buffer.len() };
        if is_large { Err(HeadError::TooLarge) } else { Ok(end) }
    }
}

/// Whether a line ends in LF without CR, from `from` on. Pairs of bytes without a branch, so that many are compared at once.
fn has_bare_lf(head: &[u8], from: usize) -> bool {
    let fresh = &head[from.saturating_sub(1)..];
    let (Some(before), Some(after)) = (fresh.get(..fresh.len().saturating_sub(1)), fresh.get(1..)) else {
        return false;
    };
    let is_bare = |before: u8, byte: u8| u8::from(byte == b'\n') & u8::from(before != b'\r');
    let bare = before.iter().zip(after).fold(0, |bare, (before, byte)| bare | is_bare(*before, *byte));
    bare != 0 || (from == 0 && fresh.first() == Some(&b'\n'))
}

/// Removes the empty lines that may stand before a request (RFC 9112 §2.2), a few of them.
pub fn skip_empty_lines(buffer: &mut BytesMut) {
    for _ in 0..2 {
        if buffer.starts_with(b"\r\n") {
            let _ = buffer.split_to(2);
        }
    }
}

/// Parses a whole request head (as measured by [`HeadScanner`]).
///
/// # Errors
/// Anything that two parsers could read in two ways is refused; see [`HeadError`].
pub fn parse_request(head: &Bytes) -> Result<RequestHead, HeadError> {
    if let Some((method, uri, fields)) = plain::request(head)
        && fields.lack(ODD_REQUEST)
    {
        return plain_request(method, uri, fields);
    }
    if has_bare_lf(head, 0) {
        return Err(HeadError::BareLf);
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed),
        Err(error) => return Err(request_error(error, head)),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HeadError::Malformed);
    };
    let version = if minor == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed)?;
    let uri = parse_target(head, &method, target)?;
    let fields = Fields::of_head(head, parsed.headers, Side::Visitor)?;
    if version == Version::HTTP_11 && fields.lack(ODD_REQUEST) {
        return plain_request(method, uri, fields);
    }
    let mut headers = fields.into_map();
    let host = take_host(&mut headers, &uri, version)?;
    let framing = framing::of_request(&headers, version)?;
    let options = ConnectionOptions::read(&headers);
    let expect_continue = version == Version::HTTP_11 && expects_continue(&headers)?;
    let upgrade = if options.upgrade && framing == Framing::Empty && version == Version::HTTP_11 {
        upgrade_of(&headers)
    } else {
        None
    };
    let keep_alive = options.keep_alive(version);
    framing::strip(&mut headers);
    let headers = headers.into();
    Ok(RequestHead { method, uri, version, host, headers, framing, keep_alive, expect_continue, upgrade })
}

/// Parses a whole response head that answers `method`.
///
/// # Errors
/// As [`parse_request`].
pub fn parse_response(head: &Bytes, method: &Method) -> Result<ResponseHead, HeadError> {
    if let Some((status, fields)) = plain::response(head)
        && status.as_u16() >= 200
        && fields.lack(ODD)
    {
        return plain_response(fields, status, method);
    }
    if has_bare_lf(head, 0) {
        return Err(HeadError::BareLf);
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let mut parser = httparse::ParserConfig::default();
    // RFC 9112 §5.1, §5.2: a proxy takes off what servers may not send and others do not believe.
    parser.allow_spaces_after_header_name_in_responses(true);
    parser.allow_obsolete_multiline_headers_in_responses(true);
    match parser.parse_response_with_uninit_headers(&mut parsed, head, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
        Err(httparse::Error::Version) => return Err(HeadError::Version),
        Err(_) => return Err(fold_or_malformed(head)),
    }
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(HeadError::Malformed);
    };
    let version = if minor == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let status = StatusCode::from_u16(code).map_err(|_| HeadError::Malformed)?;
    let has_folds = parsed.headers.iter().any(|field| memchr::memchr(b'\n', field.value).is_some());
    if has_folds {
        return odd_response(collect(head, parsed.headers)?, status, method, version);
    }
    let fields = Fields::of_head(head, parsed.headers, Side::Origin)?;
    let is_odd = version != Version::HTTP_11 || status.as_u16() < 200 || !fields.lack(ODD);
    match is_odd {
        true => odd_response(fields.into_map(), status, method, version),
        false => plain_response(fields, status, method),
    }
}

/// A request whose fields can be read in one way only, and that asks for nothing out of the ordinary.
fn plain_request(method: Method, uri: Uri, mut headers: Fields) -> Result<RequestHead, HeadError> {
    let host = match uri.authority() {
        // RFC 9112 §3.2.2: the absolute form wins over Host, which has to be there all the same.
        Some(authority) => headers.line(Kinds::HOST).map(|_| authority.as_str()),
        None => headers.line(Kinds::HOST).and_then(|host| str::from_utf8(host).ok()),
    };
    let host = host.filter(|host| is_host(host)).ok_or(HeadError::Host)?.to_owned();
    let framing = framing::of_length(headers.line(Kinds::LENGTH))?.unwrap_or(Framing::Empty);
    let keep_alive = !headers.ask_to_close();
    headers.drop_lines(Kinds::FRAMING);
    Ok(RequestHead {
        method,
        uri,
        version: Version::HTTP_11,
        host,
        headers,
        framing,
        keep_alive,
        expect_continue: false,
        upgrade: None,
    })
}

/// A response whose fields can be read in one way only.
fn plain_response(
    mut headers: Fields,
    status: StatusCode,
    method: &Method,
) -> Result<ResponseHead, HeadError> {
    let (length, coding) = (headers.line(Kinds::LENGTH), headers.line(Kinds::CODING));
    let declared = match (length, coding) {
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Some(Framing::Chunked),
        (length, None) => framing::of_length(length)?,
        _ => return odd_response(headers.into_map(), status, method, Version::HTTP_11),
    };
    let framing = framing::of_content(declared, status, method);
    let keep_alive = !headers.ask_to_close() && framing != Framing::UntilClose;
    // The length of a HEAD or 304 answer describes a representation, it frames nothing: it is kept.
    headers.drop_lines(if framing == Framing::Empty { Kinds::CODING } else { Kinds::LENGTH | Kinds::CODING });
    Ok(ResponseHead { status, headers, framing, keep_alive })
}

/// A response that takes a closer look.
fn odd_response(
    mut headers: HeaderMap,
    status: StatusCode,
    method: &Method,
    version: Version,
) -> Result<ResponseHead, HeadError> {
    let framing = framing::of_response(&headers, status, method, version)?;
    let is_contradictory =
        headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH);
    let keep_alive = ConnectionOptions::read(&headers).keep_alive(version)
        && framing != Framing::UntilClose
        && !is_contradictory;
    // The length of a HEAD or 304 answer describes a representation, it frames nothing: it is kept.
    if framing == Framing::Empty {
        headers.remove(header::TRANSFER_ENCODING);
    } else {
        framing::strip(&mut headers);
    }
    Ok(ResponseHead { status, headers: headers.into(), framing, keep_alive })
}

/// Whether the sender of a request waits for `100 Continue` before it sends content.
///
/// # Errors
/// [`HeadError::Expectation`]: it waits for something that nobody here knows.
pub fn expects_continue(headers: &HeaderMap) -> Result<bool, HeadError> {
    match headers.get(header::EXPECT) {
        None => Ok(false),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(true),
        // Go's servers, Traefik among them, take an empty one as none.
        Some(value) if value.is_empty() => Ok(false),
        Some(_) => Err(HeadError::Expectation),
    }
}

/// What the `Connection` field says.
#[derive(Clone, Copy, Debug, Default)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl ConnectionOptions {
    fn read(headers: &HeaderMap) -> Self {
        let mut options = Self::default();
        for value in headers.get_all(header::CONNECTION) {
            for option in value.as_bytes().split(|b| *b == b',') {
                let option = option.trim_ascii();
                options.close |= option.eq_ignore_ascii_case(b"close");
                options.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                options.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
            }
        }
        options
    }

    fn keep_alive(self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }
}

fn upgrade_of(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(header::UPGRADE)?.to_str().ok()?;
    let protocol = value.trim();
    // `h2c` asks us to change protocol, not the origin; RFC 9113 §3.1 retired it.
    (!protocol.is_empty() && !protocol.eq_ignore_ascii_case("h2c"))
        .then(|| protocol.to_ascii_lowercase().into_boxed_str())
}

fn parse_target(head: &Bytes, method: &Method, target: &str) -> Result<Uri, HeadError> {
    if *method == Method::CONNECT {
        return Err(HeadError::Connect);
    }
    let bytes = match target.bytes().any(needs_escape) {
        true => Bytes::from(escape_target(target)?),
        false => head.slice_ref(target.as_bytes()),
    };
    let uri = Uri::from_maybe_shared(bytes).map_err(|_| HeadError::Target)?;
    let origin_form = target.starts_with('/');
    let absolute_form = matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some();
    let asterisk = target == "*" && *method == Method::OPTIONS;
    if origin_form || absolute_form || asterisk { Ok(uri) } else { Err(HeadError::Target) }
}

/// Writes what no URI has raw (RFC 3986 §2) as escapes, so that rules and origins see one spelling of it.
///
/// A fragment never travels (RFC 9112 §3.2), and what looks like one in a path is read in two ways: refused. In a query
/// it is only a character.
fn escape_target(target: &str) -> Result<String, HeadError> {
    let authority = target.find("://").filter(|_| !target.starts_with('/')).map_or(0, |scheme| scheme + 3);
    let path = target[authority..].find(['/', '?', '#']).ok_or(HeadError::Target)? + authority;
    let query = target[path..].find('?').map_or(target.len(), |query| query + path);
    if target[path..query].contains('#') {
        return Err(HeadError::Target);
    }
    let mut escaped = String::with_capacity(target.len() + 16);
    escaped.push_str(&target[..path]);
    for (position, character) in target[path..].char_indices() {
        let is_in_query = path + position >= query;
        match u8::try_from(character) {
            // Origins get a query as it was written wherever that can be.
            Ok(byte) if needs_escape(byte) && !(is_in_query && b"^`{|}".contains(&byte)) => {
                escaped.push_str(&format!("%{byte:02X}"));
            }
            _ => escaped.push(character),
        }
    }
    Ok(escaped)
}

fn needs_escape(byte: u8) -> bool {
    matches!(byte, b'"' | b'#' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

fn take_host(headers: &mut HeaderMap, uri: &Uri, version: Version) -> Result<String, HeadError> {
    let mut values = headers.get_all(header::HOST).iter();
    let first = values.next().cloned();
    if values.next().is_some() || (first.is_none() && version == Version::HTTP_11) {
        return Err(HeadError::Host);
    }
    headers.remove(header::HOST);
    let host = match (uri.authority(), &first) {
        // RFC 9112 §3.2.2: the absolute form wins over Host.
        (Some(authority), _) => authority.as_str(),
        (None, Some(value)) => value.to_str().map_err(|_| HeadError::Host)?,
        (None, None) => "",
    };
    if is_host(host) { Ok(host.to_owned()) } else { Err(HeadError::Host) }
}

/// The characters of `uri-host [":" port]` (RFC 3986 §3.2.2); user information is refused, an empty host allowed.
pub fn is_host(host: &str) -> bool {
    // So short a text is searched sooner byte by byte.
    let (name, port) = match host.bytes().rposition(|byte| byte == b':') {
        Some(colon) if !host[colon..].contains(']') => (&host[..colon], &host[colon + 1..]),
        _ => (host, ""),
    };
    let name_ok = match name.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(literal) => {
            literal.is_some_and(|l| l.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')))
        }
        None => name.bytes().all(|b| IN_NAMES[usize::from(b)]),
    };
    name_ok && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit())
}

fn collect(head: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, HeadError> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| HeadError::Malformed)?;
        // The value stays a slice of the head: no copy per field, unless it was folded.
        let value = match memchr::memchr(b'\n', field.value) {
            None => HeaderValue::from_maybe_shared(head.slice_ref(field.value)),
            Some(_) => HeaderValue::from_maybe_shared(Bytes::from(unfolded(field.value))),
        };
        let value = value.map_err(|_| HeadError::Malformed)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// A value in one line: each fold becomes a space (RFC 9112 §5.2). Only responses get this far with one.
fn unfolded(value: &[u8]) -> Vec<u8> {
    let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(&b' ')
}

fn request_error(error: httparse::Error, head: &[u8]) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyFields,
        // What stands in the version's place is one only if it looks like one: the rest is a malformed line.
        httparse::Error::Version if names_version(head) => HeadError::Version,
        _ => fold_or_malformed(head),
    }
}

/// Whether the third word of a request line is `HTTP/` digit `.` digit (RFC 9112 §2.3) and the last.
fn names_version(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\r').find(|line| !line.trim_ascii().is_empty());
    let mut words = line.unwrap_or_default().split(|byte| *byte == b' ');
    matches!(words.nth(2), Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']))
        && words.next().is_none()
}

fn fold_or_malformed(head: &[u8]) -> HeadError {
    let folded =
        memchr::memmem::find_iter(head, b"\r\n").any(|line| matches!(head.get(line + 2), Some(b' ' | b'\t')));
    if folded { HeadError::ObsFold } else { HeadError::Malformed }
}

/// The characters of `reg-name` (RFC 3986 §3.2.2).
const IN_NAMES: [bool; 256] = {
    let (mut table, mut byte, marks) = ([false; 256], 0, b"-._~%!$&'()*+,;=");
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut mark = 0;
    while mark < marks.len() {
        table[marks[mark] as usize] = true;
        mark += 1;
    }
    table
};
/// The end of the last line of a head, and the empty line behind it.
const END: &[u8] = b"\r\n\r\n";
static END_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(END));
/// Fields that take a closer look than at themselves.
const ODD: Kinds = Kinds::HOP.and(Kinds::REPEATED);
const ODD_REQUEST: Kinds = ODD.and(Kinds::CODING).and(Kinds::EXPECT);
/// Most fields of one head; 128 × 2 pointers of stack while parsing.
pub const FIELDS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RequestHead, HeadError> {
        let mut scanner = HeadScanner::default();
        match scanner.scan(text.as_bytes(), 65_536)? {
            Some(length) => parse_request(&Bytes::copy_from_slice(&text.as_bytes()[..length])),
            None => Err(HeadError::Malformed),
        }
    }

    #[test]
    fn what_a_server_says_twice_or_folds_is_taken_where_it_means_one_thing() {
        let parsed = |lines: &str| {
            let head = Bytes::from(format!("HTTP/1.1 200 OK\r\n{lines}\r\n"));
            parse_response(&head, &Method::GET)
        };
        let folded = parsed("X-A: one\r\n  two\r\n\tthree\r\nContent-Length: 3\r\n").unwrap();
        assert_eq!(
            (&folded.headers["x-a"], folded.framing),
            (&"one two three".parse().unwrap(), Framing::Length(3))
        );
        let repeated = parsed("Content-Length: 3\r\nContent-Length: 3\r\n").unwrap();
        assert_eq!((repeated.framing, repeated.keep_alive), (Framing::Length(3), true));
        let both = parsed("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n").unwrap();
        assert_eq!((both.framing, both.keep_alive), (Framing::Chunked, false));
        assert!(both.headers.is_empty());
        assert_eq!(parsed("X-B : 1\r\n").unwrap().headers["x-b"], "1");
        for lines in [
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: 3, 3\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            " X: 1\r\n",
        ] {
            assert!(parsed(lines).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn an_expectation_that_nobody_knows_is_417() {
        let parsed = |expect: &str| {
            parse_request(&Bytes::from(format!("GET / HTTP/1.1\r\nHost: a\r\nExpect: {expect}\r\n\r\n")))
        };
        assert!(parsed("100-Continue").unwrap().expect_continue);
        assert_eq!(parsed("coffee").unwrap_err().status(), StatusCode::EXPECTATION_FAILED);
    }

    #[test]
    fn a_plain_request_is_read() {
        let head = parse("GET /a?b=c HTTP/1.1\r\nHost: x.example:81\r\nA: 1\r\na: 2\r\n\r\n").unwrap();
        assert_eq!(head.uri, "/a?b=c");
        assert_eq!(head.host, "x.example:81");
        assert_eq!(head.headers.get_all("a").iter().count(), 2);
        assert!(head.keep_alive);
        assert_eq!(head.framing, Framing::Empty);
    }

    #[test]
    fn smuggling_shapes_are_refused_by_name() {
        for (text, want) in [
            ("GET / HTTP/1.1\nHost: x\r\n\r\n", "head_bare_lf"),
            ("GET / HTTP/1.1\r\nHost: x\n\r\n\r\n", "head_bare_lf"),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", "head_obs_fold"),
            ("GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", "head_malformed"),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", "head_malformed"),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "head_host"),
            ("GET / HTTP/1.1\r\n\r\n", "head_host"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "head_host"),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "head_host"),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "head_connect"),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", "head_target"),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", "head_version"),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "framing_both",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                "framing_length",
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", "framing_length"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", "framing_length"),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", "framing_coding"),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "framing_coding"),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                "framing_coding",
            ),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "framing_coding"),
        ] {
            assert_eq!(parse(text).err().map(HeadError::reason), Some(want), "{text:?}");
        }
    }

    #[test]
    fn characters_that_no_uri_has_are_escaped_before_anybody_reads_them() {
        let target = |text: &str| {
            let head = parse(&format!("GET {text} HTTP/1.1\r\nHost: a\r\n\r\n"));
            head.map(|head| head.uri.to_string()).map_err(HeadError::reason)
        };
        for (raw, want) in [
            ("/a<b>\"^`{|}", "/a%3Cb%3E%22%5E%60%7B%7C%7D"),
            ("/?a#b", "/?a%23b"),
            ("/?\"<^`{|}>?", "/?%22%3C^`{|}%3E?"),
            ("/é<?é>", "/é%3C?é%3E"),
            ("http://h/a<b?c>d", "http://h/a%3Cb?c%3Ed"),
            ("http://h?c>d", "http://h/?c%3Ed"),
            ("/http://h/<", "/http://h/%3C"),
        ] {
            assert_eq!(target(raw).as_deref(), Ok(want), "{raw}");
        }
        for raw in ["/a#b", "/#", "/a#?b", "http://h#a", "http://h<i/a", "<", "a<b", "http://<"] {
            assert_eq!(target(raw), Err("head_target"), "{raw}");
        }
    }

    #[test]
    fn the_scanner_finds_the_same_end_however_the_head_is_split() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest";
        for split in 0..text.len() {
            let mut scanner = HeadScanner::default();
            let first = scanner.scan(&text[..split], 1000).unwrap();
            let end = match first {
                Some(end) => Some(end),
                None => scanner.scan(text, 1000).unwrap(),
            };
            assert_eq!(end, Some(27), "split at {split}");
        }
    }

    #[test]
    fn a_bare_line_feed_is_refused_by_whoever_sees_it() {
        for text in [
            "\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\nA: 1\r\n\r\n",
        ] {
            let (mut scanner, mut finder) = (HeadScanner::default(), HeadScanner::default());
            assert_eq!(scanner.scan(text.as_bytes(), 1000), Err(HeadError::BareLf), "{text:?}");
            assert_eq!(finder.find(text.as_bytes(), 1000), Ok(Some(text.len())), "{text:?}");
            assert_eq!(parse_request(&text.into()).err(), Some(HeadError::BareLf), "{text:?}");
            assert_eq!(finder.find(text.as_bytes(), 10), Err(HeadError::BareLf), "{text:?}");
            assert_eq!(
                finder.find(&text.as_bytes()[..text.len() - 1], 1000),
                Err(HeadError::BareLf),
                "{text:?}"
            );
            let answer = text.replace("GET / HTTP/1.1", "HTTP/1.1 200 OK");
            assert_eq!(
                parse_response(&answer.into(), &Method::GET).err(),
                Some(HeadError::BareLf),
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_upgrade_needs_connection_and_upgrade_and_no_body() {
        let asks = |text: &str| parse(text).unwrap().upgrade.map(String::from);
        assert_eq!(
            asks(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
            ),
            Some("websocket".to_owned())
        );
        assert_eq!(asks("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"), None);
        assert_eq!(asks("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"), None);
    }
}
