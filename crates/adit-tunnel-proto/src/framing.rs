//! Cap'n Proto's unpacked stream framing, decoded from chunks of any size under limits.
//!
//! Invariant: nothing is allocated for a message before its announced size has passed the limit,
//! so a peer costs at most `message_bytes_max` plus one received chunk.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bounds on one framed message.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// Largest number of segments.
    pub segments_max: u32,
    /// Largest message in bytes, segment table included.
    pub message_bytes_max: usize,
}

/// Why a byte stream is not a sequence of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FramingError {
    /// More segments announced than allowed.
    #[error("message announces {segments} segments, at most {SEGMENTS_MAX} are allowed")]
    TooManySegments {
        /// What the segment table said.
        segments: u64,
    },
    /// A larger message announced than allowed.
    #[error("message announces {bytes} bytes, at most {bytes_max} are allowed")]
    TooLarge {
        /// What the segment table said.
        bytes: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// The stream ended inside a message.
    #[error("stream ended inside a message")]
    Truncated,
}

impl FramingError {
    /// The name under which logs and metrics count this error.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooManySegments { .. } => "too_many_segments",
            Self::TooLarge { .. } => "message_too_large",
            Self::Truncated => "truncated",
        }
    }
}

/// Received bytes not yet consumed: one borrowed chunk as long as that suffices, else a growing copy.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuffer(Store);

#[derive(Debug)]
enum Store {
    One(Bytes),
    Many(BytesMut),
}

impl Default for Store {
    fn default() -> Self {
        Self::One(Bytes::new())
    }
}

impl ChunkBuffer {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        match &mut self.0 {
            Store::One(first) if first.is_empty() => *first = chunk,
            Store::One(first) => {
                let mut joined = BytesMut::with_capacity((first.len() + chunk.len()).next_power_of_two());
                joined.extend_from_slice(first);
                joined.extend_from_slice(&chunk);
                self.0 = Store::Many(joined);
            }
            Store::Many(joined) => joined.extend_from_slice(&chunk),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Store::One(bytes) => bytes,
            Store::Many(bytes) => bytes,
        }
    }

    pub(crate) fn advance(&mut self, count: usize) {
        match &mut self.0 {
            Store::One(bytes) => bytes.advance(count),
            Store::Many(bytes) => bytes.advance(count),
        }
    }

    pub(crate) fn take(&mut self, count: usize) -> Bytes {
        let taken = match &mut self.0 {
            Store::One(bytes) => bytes.split_to(count),
            Store::Many(bytes) => bytes.split_to(count).freeze(),
        };
        if self.as_slice().is_empty() {
            self.0 = Store::default();
        }
        taken
    }

    pub(crate) fn take_rest(&mut self) -> Bytes {
        let count = self.as_slice().len();
        self.take(count)
    }
}

/// Cuts a byte stream into messages; feed chunks, then drain messages.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: FrameLimits,
    buffer: ChunkBuffer,
}

impl FrameDecoder {
    /// A decoder for messages within `limits`.
    pub fn new(limits: FrameLimits) -> Self {
        Self { limits, buffer: ChunkBuffer::default() }
    }

    /// Takes the next received bytes.
    pub fn handle_chunk(&mut self, chunk: Bytes) {
        self.buffer.push(chunk);
    }

    /// The next whole message, segment table included; `None` until more bytes arrive.
    ///
    /// # Errors
    /// When the segment table announces more than the limits allow.
    pub fn poll_message(&mut self) -> Result<Option<Bytes>, FramingError> {
        match frame_length(self.buffer.as_slice(), self.limits)? {
            Some(length) if length <= self.buffer.as_slice().len() => Ok(Some(self.buffer.take(length))),
            _ => Ok(None),
        }
    }

    /// Takes the end of the stream.
    ///
    /// # Errors
    /// [`FramingError::Truncated`] when it fell inside a message.
    pub fn handle_end(&self) -> Result<(), FramingError> {
        if self.buffer.as_slice().is_empty() { Ok(()) } else { Err(FramingError::Truncated) }
    }
}

/// Whole length in bytes of the message that `bytes` begins with, once its segment table is complete.
pub(crate) fn frame_length(bytes: &[u8], limits: FrameLimits) -> Result<Option<usize>, FramingError> {
    let Some(first) = read_u32(bytes, 0) else { return Ok(None) };
    let segments = u64::from(first) + 1;
    if segments > u64::from(limits.segments_max) {
        return Err(FramingError::TooManySegments { segments });
    }
    // `segments` is at most `segments_max`, so the table fits in memory and in usize.
    let segments = segments as usize;
    let table_bytes = (4 + 4 * segments).next_multiple_of(8);
    if bytes.len() < table_bytes {
        return Ok(None);
    }
    let words: u64 = (0..segments).filter_map(|index| read_u32(bytes, 4 + 4 * index)).map(u64::from).sum();
    let length = table_bytes as u64 + words * 8;
    if length > limits.message_bytes_max as u64 {
        return Err(FramingError::TooLarge { bytes: length, bytes_max: limits.message_bytes_max });
    }
    Ok(Some(length as usize))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// As many segments as the reference accepts (tunnel-protocol.md §3.1); a table of 2 KiB.
pub const SEGMENTS_MAX: u32 = 512;

/// Limits of one RPC message. The largest honest one is a configuration push; 1 MiB holds some
/// 5,000 ingress rules. Worst case per control or RPC stream: 1 MiB plus one chunk.
pub const RPC_LIMITS: FrameLimits =
    FrameLimits { segments_max: SEGMENTS_MAX, message_bytes_max: 1024 * 1024 };

/// Limits of one request or response head. Visitors' headers are capped well below by the
/// listener; 256 KiB leaves room for origins with large cookies. Worst case per stream: 256 KiB
/// plus one chunk.
pub const HEAD_LIMITS: FrameLimits =
    FrameLimits { segments_max: SEGMENTS_MAX, message_bytes_max: 256 * 1024 };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(segments: &[usize]) -> Vec<u8> {
        let mut out = ((segments.len() - 1) as u32).to_le_bytes().to_vec();
        for words in segments {
            out.extend((*words as u32).to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend(std::iter::repeat_n(7, segments.iter().sum::<usize>() * 8));
        out
    }

    #[test]
    fn a_message_larger_than_the_limit_is_refused_from_its_table_alone() {
        let mut decoder = FrameDecoder::new(HEAD_LIMITS);
        decoder.handle_chunk(Bytes::from_static(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]));
        assert!(matches!(decoder.poll_message(), Err(FramingError::TooLarge { .. })));
    }

    #[test]
    fn too_many_segments_are_refused_from_four_bytes() {
        let mut decoder = FrameDecoder::new(RPC_LIMITS);
        decoder.handle_chunk(Bytes::copy_from_slice(&512u32.to_le_bytes()));
        assert_eq!(decoder.poll_message(), Err(FramingError::TooManySegments { segments: 513 }));
    }

    #[test]
    fn an_end_inside_a_message_is_truncation() {
        let mut decoder = FrameDecoder::new(RPC_LIMITS);
        decoder.handle_chunk(Bytes::from_static(&[0, 0, 0, 0, 1]));
        assert_eq!(decoder.poll_message(), Ok(None));
        assert_eq!(decoder.handle_end(), Err(FramingError::Truncated));
    }

    proptest! {
        #[test]
        fn messages_survive_any_split(
            shapes in proptest::collection::vec(proptest::collection::vec(0usize..6, 1..5), 1..6),
            step in 1usize..40,
        ) {
            let messages: Vec<Vec<u8>> = shapes.iter().map(|shape| frame(shape)).collect();
            let all = messages.concat();
            let mut decoder = FrameDecoder::new(RPC_LIMITS);
            let mut seen = Vec::new();
            for chunk in all.chunks(step) {
                decoder.handle_chunk(Bytes::copy_from_slice(chunk));
                while let Some(message) = decoder.poll_message().unwrap() {
                    seen.push(message.to_vec());
                }
            }
            prop_assert_eq!(seen, messages);
            prop_assert_eq!(decoder.handle_end(), Ok(()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = FrameDecoder::new(HEAD_LIMITS);
            decoder.handle_chunk(Bytes::from(bytes));
            while let Ok(Some(_)) = decoder.poll_message() {}
        }
    }
}
