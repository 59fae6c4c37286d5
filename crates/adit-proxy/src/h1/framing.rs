//! Where a message ends (RFC 9112 §6), decided once and strictly, and the chunked coding (§7.1).

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use thiserror::Error;

use crate::body::{BodyError, Length};
use crate::headers;

/// How a message's content is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No content.
    Empty,
    /// Exactly this many bytes, more than none.
    Length(u64),
    /// Chunked coding.
    Chunked,
    /// Until the origin closes (responses only).
    UntilClose,
    /// Both directions are raw after this head.
    Raw,
}

impl Framing {
    /// The same as a body's length.
    pub fn length(self) -> Length {
        match self {
            Self::Empty => Length::Known(0),
            Self::Length(bytes) => Length::Known(bytes),
            Self::Chunked | Self::UntilClose => Length::Unknown,
            Self::Raw => Length::Raw,
        }
    }
}

/// Why a head does not say where its content ends.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FramingError {
    /// `Content-Length` and `Transfer-Encoding` together: the classic request smuggling shape.
    #[error("both Content-Length and Transfer-Encoding")]
    Both,
    /// A `Content-Length` that is repeated or not a number.
    #[error("repeated or malformed Content-Length")]
    Length,
    /// A `Transfer-Encoding` that is not exactly `chunked`, or in HTTP/1.0.
    #[error("a Transfer-Encoding other than chunked")]
    UnknownCoding,
}

impl FramingError {
    /// The name of this error in logs and metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Both => "framing_both",
            Self::Length => "framing_length",
            Self::UnknownCoding => "framing_coding",
        }
    }
}

/// The framing of a request.
///
/// # Errors
/// Everything that is not unambiguous.
pub fn of_request(headers: &HeaderMap, version: Version) -> Result<Framing, FramingError> {
    Ok(declared(headers, version)?.unwrap_or(Framing::Empty))
}

/// The framing of a response to `method`.
///
/// A server says little more than what was asked of it, so that what it says twice is taken where it can be: equal lengths
/// are one, and a chunked coding wins over a length (RFC 9112 §6.3; the connection is not used again then).
///
/// # Errors
/// As for requests: a response that two parsers can read in two ways is not forwarded.
pub fn of_response(
    headers: &HeaderMap,
    status: StatusCode,
    method: &Method,
    version: Version,
) -> Result<Framing, FramingError> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Framing::Raw);
    }
    let declared = match headers.contains_key(header::TRANSFER_ENCODING) {
        true => coding(headers, version)?,
        false => length(headers, true)?,
    };
    Ok(of_content(declared, status, method))
}

/// The framing of a response to `method` whose fields have declared this.
pub(super) fn of_content(declared: Option<Framing>, status: StatusCode, method: &Method) -> Framing {
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    if bodiless { Framing::Empty } else { declared.unwrap_or(Framing::UntilClose) }
}

/// Removes the fields that frame a message: the next hop gets its own.
pub fn strip(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
}

/// Reads `Content-Length` and `Transfer-Encoding`; `None` if neither is there.
fn declared(headers: &HeaderMap, version: Version) -> Result<Option<Framing>, FramingError> {
    match (headers.contains_key(header::TRANSFER_ENCODING), headers.contains_key(header::CONTENT_LENGTH)) {
        (true, true) => Err(FramingError::Both),
        (true, false) => coding(headers, version),
        (false, _) => length(headers, false),
    }
}

fn coding(headers: &HeaderMap, version: Version) -> Result<Option<Framing>, FramingError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(None) };
    let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    match is_chunked && codings.next().is_none() && version == Version::HTTP_11 {
        true => Ok(Some(Framing::Chunked)),
        false => Err(FramingError::UnknownCoding),
    }
}

fn length(headers: &HeaderMap, may_repeat: bool) -> Result<Option<Framing>, FramingError> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    if lengths.any(|other| !may_repeat || other != length) {
        return Err(FramingError::Length);
    }
    of_length(Some(length.as_bytes()))
}

/// The framing that a `Content-Length` declares, if there is one.
pub(super) fn of_length(value: Option<&[u8]>) -> Result<Option<Framing>, FramingError> {
    let Some(value) = value else { return Ok(None) };
    match length_in(value).ok_or(FramingError::Length)? {
        0 => Ok(Some(Framing::Empty)),
        bytes => Ok(Some(Framing::Length(bytes))),
    }
}

/// A `Content-Length` value: digits only (RFC 9110 §8.6).
pub fn parse_length(value: &HeaderValue) -> Option<u64> {
    length_in(value.as_bytes())
}

fn length_in(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, d| sum.checked_mul(10)?.checked_add(u64::from(d - b'0')))
}

/// Takes the chunked coding off, chunk data without a copy.
#[derive(Debug)]
pub struct ChunkedDecoder {
    state: ChunkState,
    /// Extension and trailer bytes so far: they carry nothing we forward unbounded.
    overhead: usize,
    trailers: Option<HeaderMap>,
}

#[derive(Debug, PartialEq, Eq)]
enum ChunkState {
    Size,
    Data(u64),
    DataEnd,
    Trailer,
    Done,
}

/// What [`ChunkedDecoder::decode`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Content.
    Data(Bytes),
    /// More input is needed.
    More,
    /// The last chunk and the trailer section are through.
    Done,
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self { state: ChunkState::Size, overhead: 0, trailers: None }
    }
}

impl ChunkedDecoder {
    /// Decodes the next piece of `input`.
    ///
    /// # Errors
    /// [`BodyError::Chunked`] and [`BodyError::Trailers`] for anything but the grammar with CRLF line ends.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Chunk, BodyError> {
        loop {
            match self.state {
                ChunkState::Size => {
                    match take_line(input, SIZE_LINE_BYTES_MAX).map_err(|()| BodyError::Chunked)? {
                        Some(line) => self.size(&line)?,
                        None => return Ok(Chunk::More),
                    }
                }
                ChunkState::Data(left) => {
                    if input.is_empty() {
                        return Ok(Chunk::More);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let left = left - take as u64;
                    self.state = if left == 0 { ChunkState::DataEnd } else { ChunkState::Data(left) };
                    return Ok(Chunk::Data(input.split_to(take).freeze()));
                }
                ChunkState::DataEnd => {
                    if input.len() < 2 {
                        return if input.first().is_none_or(|b| *b == b'\r') {
                            Ok(Chunk::More)
                        } else {
                            Err(BodyError::Chunked)
                        };
                    }
                    if input[..2] != *b"\r\n" {
                        return Err(BodyError::Chunked);
                    }
                    input.advance(2);
                    self.state = ChunkState::Size;
                }
                ChunkState::Trailer => {
                    match take_line(input, TRAILER_BYTES_MAX).map_err(|()| BodyError::Trailers)? {
                        Some(line) if line.is_empty() => self.state = ChunkState::Done,
                        Some(line) => self.trailer(&line)?,
                        None => return Ok(Chunk::More),
                    }
                }
                ChunkState::Done => return Ok(Chunk::Done),
            }
        }
    }

    /// The trailer section, once.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    fn size(&mut self, line: &[u8]) -> Result<(), BodyError> {
        let (digits, extension) = match memchr::memchr(b';', line) {
            Some(at) => (line[..at].trim_ascii_end(), line.len() - at),
            None => (line, 0),
        };
        // RFC 9112 §7.1.1: a token or quoted string, neither of which holds control characters.
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(BodyError::Chunked);
        }
        self.overhead += extension;
        if digits.is_empty() || digits.len() > 15 || self.overhead > EXTENSION_BYTES_MAX {
            return Err(BodyError::Chunked);
        }
        let mut size = 0u64;
        for digit in digits {
            let value = (*digit as char).to_digit(16).ok_or(BodyError::Chunked)?;
            size = size * 16 + u64::from(value);
        }
        self.state = if size == 0 { ChunkState::Trailer } else { ChunkState::Data(size) };
        if size == 0 {
            self.overhead = 0;
        }
        Ok(())
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), BodyError> {
        self.overhead += line.len() + 2;
        let trailers = self.trailers.get_or_insert_default();
        if self.overhead > TRAILER_BYTES_MAX || trailers.len() >= TRAILER_FIELDS_MAX {
            return Err(BodyError::Trailers);
        }
        let colon = memchr::memchr(b':', line).ok_or(BodyError::Trailers)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| BodyError::Trailers)?;
        let value =
            HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| BodyError::Trailers)?;
        if headers::may_trail(&name) {
            trailers.append(name, value);
        }
        Ok(())
    }
}

/// Takes a line without its CRLF; `Err` for a bare LF or a line over `bytes_max`.
fn take_line(input: &mut BytesMut, bytes_max: usize) -> Result<Option<BytesMut>, ()> {
    match memchr::memchr(b'\n', input) {
        Some(lf) if lf > bytes_max || lf == 0 || input[lf - 1] != b'\r' => Err(()),
        Some(lf) => {
            let mut line = input.split_to(lf + 1);
            line.truncate(lf - 1);
            // A CR inside a line is read as a line end by some parsers.
            if line.contains(&b'\r') { Err(()) } else { Ok(Some(line)) }
        }
        None if input.len() > bytes_max => Err(()),
        None => Ok(None),
    }
}

/// A chunk-size line: 15 digits and a short extension.
const SIZE_LINE_BYTES_MAX: usize = 1024;
/// All chunk extensions of one body; nobody uses them, floods do.
const EXTENSION_BYTES_MAX: usize = 16 * 1024;
/// The trailer section of one body, as large as a small head.
const TRAILER_BYTES_MAX: usize = 16 * 1024;
/// Fields in a trailer section.
const TRAILER_FIELDS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(wire: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>), BodyError> {
        let mut decoder = ChunkedDecoder::default();
        let mut input = BytesMut::new();
        let mut out = Vec::new();
        let mut rest = wire;
        loop {
            match decoder.decode(&mut input)? {
                Chunk::Data(data) => out.extend_from_slice(&data),
                Chunk::Done => return Ok((out, decoder.take_trailers())),
                Chunk::More if rest.is_empty() => return Err(BodyError::Truncated),
                Chunk::More => {
                    let (head, tail) = rest.split_at(step.min(rest.len()));
                    input.extend_from_slice(head);
                    rest = tail;
                }
            }
        }
    }

    #[test]
    fn chunks_extensions_and_trailers_are_read() {
        let wire = b"4;a=b\r\nWiki\r\n5\r\npedia\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n";
        for step in 1..wire.len() {
            let (body, trailers) = decode_all(wire, step).unwrap();
            assert_eq!(body, b"Wikipedia");
            let trailers = trailers.unwrap();
            assert_eq!(trailers["x-sum"], "1");
            assert!(!trailers.contains_key("host"), "a trailer cannot change the routing");
        }
    }

    #[test]
    fn sloppy_chunk_framing_is_refused() {
        for wire in [
            &b"4\nWiki\r\n0\r\n\r\n"[..],
            b"4\r\nWikiXX0\r\n\r\n",
            b"-4\r\nWiki\r\n0\r\n\r\n",
            b"0x4\r\nWiki\r\n0\r\n\r\n",
            b"\r\n4\r\nWiki\r\n0\r\n\r\n",
            b" 4\r\nWiki\r\n0\r\n\r\n",
            b"fffffffffffffffff\r\n",
            b"4;a=\0\r\nWiki\r\n0\r\n\r\n",
            b"4\r\nWiki\r\n0\r\nBad Name: 1\r\n\r\n",
        ] {
            assert!(decode_all(wire, 64).is_err(), "{:?}", String::from_utf8_lossy(wire));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic_the_decoder(wire: Vec<u8>, step in 1usize..64) {
            let _ = decode_all(&wire, step);
        }

        #[test]
        fn what_the_encoder_writes_is_read_back(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
            step in 1usize..64,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (body, _) = decode_all(&wire, step).unwrap();
            prop_assert_eq!(body, chunks.concat());
        }
    }
}
