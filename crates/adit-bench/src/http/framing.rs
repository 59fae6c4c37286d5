//! Where a body of HTTP/1.1 ends (RFC 9112 §6, §7.1). Bodies are counted, never kept.

/// A body that is being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BodyReader {
    Length(u64),
    Chunked(Chunk),
    UntilClose,
}

/// Where in the chunked coding the next byte stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Size so far, and digits of it.
    Size(u64, u8),
    /// The rest of a size's line.
    Extension(u64),
    Data(u64),
    DataEnd,
    /// Bytes of the trailer's present line, and of the trailer.
    Trailer(u32, u32),
    Done,
}

/// A body that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl BodyReader {
    /// The body of a message with these fields; `until_close` for answers that have none of them.
    pub(crate) fn of(headers: &[httparse::Header<'_>], until_close: bool) -> Result<Self, Malformed> {
        let mut reader = None;
        for header in headers {
            if header.name.eq_ignore_ascii_case("content-length") {
                let length = std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
                let length = Self::Length(length.ok_or(Malformed)?);
                if reader.as_ref().is_some_and(|other| *other != length) {
                    return Err(Malformed);
                }
                reader = Some(length);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                if reader.is_some() || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed);
                }
                reader = Some(Self::Chunked(Chunk::Size(0, 0)));
            }
        }
        Ok(reader.unwrap_or(if until_close { Self::UntilClose } else { Self::Length(0) }))
    }

    /// Whether the body is complete.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// Takes what belongs to the body from the start of `bytes`: how many were taken, and how many are content.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(usize, u64), Malformed> {
        match self {
            Self::UntilClose => Ok((bytes.len(), bytes.len() as u64)),
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok((taken, taken as u64))
            }
            Self::Chunked(chunk) => take_chunked(chunk, bytes),
        }
    }
}

fn take_chunked(chunk: &mut Chunk, bytes: &[u8]) -> Result<(usize, u64), Malformed> {
    let (mut at, mut content) = (0, 0);
    while at < bytes.len() && *chunk != Chunk::Done {
        if let Chunk::Data(left) = chunk {
            let taken = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
            at += taken;
            content += taken as u64;
            *left -= taken as u64;
            if *left == 0 {
                *chunk = Chunk::DataEnd;
            }
            continue;
        }
        *chunk = step(chunk, bytes[at])?;
        at += 1;
    }
    Ok((at, content))
}

fn step(chunk: &Chunk, byte: u8) -> Result<Chunk, Malformed> {
    Ok(match (chunk, byte) {
        (Chunk::Size(size, digits), byte) if byte.is_ascii_hexdigit() && *digits < 15 => {
            let digit = (byte as char).to_digit(16).unwrap_or_default();
            Chunk::Size(size * 16 + u64::from(digit), digits + 1)
        }
        (Chunk::Size(size, digits), b'\r' | b';' | b' ' | b'\t') if *digits > 0 => Chunk::Extension(*size),
        (Chunk::Extension(0), b'\n') => Chunk::Trailer(0, 0),
        (Chunk::Extension(size), b'\n') => Chunk::Data(*size),
        (Chunk::Extension(size), _) => Chunk::Extension(*size),
        (Chunk::DataEnd, b'\r') => Chunk::DataEnd,
        (Chunk::DataEnd, b'\n') => Chunk::Size(0, 0),
        (Chunk::Trailer(0, _), b'\n') => Chunk::Done,
        (Chunk::Trailer(_, all), b'\n') => Chunk::Trailer(0, *all),
        (Chunk::Trailer(line, all), b'\r') => Chunk::Trailer(*line, *all),
        (Chunk::Trailer(line, all), _) if *all < TRAILER_BYTES_MAX => Chunk::Trailer(line + 1, all + 1),
        _ => return Err(Malformed),
    })
}

const TRAILER_BYTES_MAX: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    fn chunked() -> BodyReader {
        BodyReader::Chunked(Chunk::Size(0, 0))
    }

    #[test]
    fn a_chunked_body_is_counted_whole_or_byte_by_byte() {
        let wire = b"5\r\nhello\r\na;x=y\r\n0123456789\r\n0\r\nx: y\r\n\r\nGET";
        let mut reader = chunked();
        assert_eq!(reader.take(wire), Ok((wire.len() - 3, 15)));
        assert!(reader.is_done());
        let (mut reader, mut content, mut at) = (chunked(), 0, 0);
        while !reader.is_done() {
            content += reader.take(&wire[at..=at]).unwrap().1;
            at += 1;
        }
        assert_eq!((at, content), (wire.len() - 3, 15));
    }

    #[test]
    fn a_length_takes_no_more_than_its_own() {
        let mut reader = BodyReader::Length(3);
        assert_eq!(reader.take(b"abcdef"), Ok((3, 3)));
        assert!(reader.is_done());
    }

    #[test]
    fn two_framings_or_none_that_can_be_read_are_malformed() {
        let header = |name, value| httparse::Header { name, value };
        let length = header("Content-Length", b"5".as_slice());
        let chunked = header("Transfer-Encoding", b"chunked".as_slice());
        assert_eq!(BodyReader::of(&[length, chunked], true), Err(Malformed));
        assert_eq!(BodyReader::of(&[length, header("content-length", b"6")], true), Err(Malformed));
        assert_eq!(BodyReader::of(&[header("content-length", b"+x")], true), Err(Malformed));
        assert_eq!(BodyReader::of(&[], true), Ok(BodyReader::UntilClose));
        assert!(take_chunked(&mut Chunk::Size(0, 0), b"zz\r\n").is_err());
        assert!(take_chunked(&mut Chunk::Size(0, 0), b"ffffffffffffffffff\r\n").is_err());
    }
}
