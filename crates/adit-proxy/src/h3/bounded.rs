//! quinn's streams as `h3` wants them, with a limit on frames.
//!
//! `h3` keeps a frame in memory until it is whole, whatever its length says. These wrappers read the frame headers that
//! pass and end a connection whose visitor announces a frame (other than DATA, which streams) above the limit.

use std::task::{Context, Poll};

use ::h3::error::Code;
use ::h3::quic::{
    BidiStream, Connection, ConnectionErrorIncoming, OpenStreams, RecvStream, SendStream,
    StreamErrorIncoming, StreamId, WriteBuf,
};
use bytes::{Buf, Bytes};

/// A connection whose frames are limited.
pub(super) struct BoundedConnection {
    inner: h3_quinn::Connection,
    connection: quinn::Connection,
    frame_bytes_max: u64,
}

/// See [`BoundedConnection`].
pub(super) struct BoundedOpener {
    inner: h3_quinn::OpenStreams,
    connection: quinn::Connection,
    frame_bytes_max: u64,
}

/// A request's stream.
pub(super) struct BoundedBidi<B: Buf> {
    inner: h3_quinn::BidiStream<B>,
    meter: Meter,
}

/// A stream's receiving half.
pub(super) struct BoundedRecv {
    inner: h3_quinn::RecvStream,
    meter: Meter,
}

impl BoundedConnection {
    pub(super) fn new(connection: quinn::Connection, frame_bytes_max: u64) -> Self {
        Self { inner: h3_quinn::Connection::new(connection.clone()), connection, frame_bytes_max }
    }
}

impl<B: Buf> Connection<B> for BoundedConnection {
    type RecvStream = BoundedRecv;
    type OpenStreams = BoundedOpener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let accepted = Connection::<B>::poll_accept_recv(&mut self.inner, cx);
        let meter = || Meter::new(State::StreamType, self.connection.clone(), self.frame_bytes_max);
        accepted.map_ok(|inner| BoundedRecv { inner, meter: meter() })
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        let meter = || Meter::new(State::FrameType, self.connection.clone(), self.frame_bytes_max);
        self.inner.poll_accept_bidi(cx).map_ok(|inner| BoundedBidi { inner, meter: meter() })
    }

    fn opener(&self) -> Self::OpenStreams {
        BoundedOpener {
            inner: Connection::<B>::opener(&self.inner),
            connection: self.connection.clone(),
            frame_bytes_max: self.frame_bytes_max,
        }
    }
}

macro_rules! open_streams {
    ($name:ty) => {
        impl<B: Buf> OpenStreams<B> for $name {
            type BidiStream = BoundedBidi<B>;
            type SendStream = h3_quinn::SendStream<B>;

            fn poll_open_bidi(
                &mut self,
                cx: &mut Context<'_>,
            ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
                let meter = || Meter::new(State::FrameType, self.connection.clone(), self.frame_bytes_max);
                self.inner.poll_open_bidi(cx).map_ok(|inner| BoundedBidi { inner, meter: meter() })
            }

            fn poll_open_send(
                &mut self,
                cx: &mut Context<'_>,
            ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
                self.inner.poll_open_send(cx)
            }

            fn close(&mut self, code: Code, reason: &[u8]) {
                OpenStreams::<B>::close(&mut self.inner, code, reason);
            }
        }
    };
}

open_streams!(BoundedConnection);
open_streams!(BoundedOpener);

impl<B: Buf> SendStream<B> for BoundedBidi<B> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.inner.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.inner.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.inner.send_id()
    }
}

impl<B: Buf> RecvStream for BoundedBidi<B> {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let data = self.inner.poll_data(cx);
        self.meter.check(data)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.inner.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.inner.recv_id()
    }
}

impl<B: Buf> BidiStream<B> for BoundedBidi<B> {
    type SendStream = h3_quinn::SendStream<B>;
    type RecvStream = BoundedRecv;

    fn split(self) -> (Self::SendStream, Self::RecvStream) {
        let (send, inner) = self.inner.split();
        (send, BoundedRecv { inner, meter: self.meter })
    }
}

impl RecvStream for BoundedRecv {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let data = self.inner.poll_data(cx);
        self.meter.check(data)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.inner.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.inner.recv_id()
    }
}

/// Follows the frames of one stream.
struct Meter {
    frames: Frames,
    connection: quinn::Connection,
}

impl Meter {
    fn new(state: State, connection: quinn::Connection, frame_bytes_max: u64) -> Self {
        Self { frames: Frames { state, partial: Vec::new(), frame_bytes_max }, connection }
    }

    fn check(
        &mut self,
        data: Poll<Result<Option<Bytes>, StreamErrorIncoming>>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if let Poll::Ready(Ok(Some(bytes))) = &data
            && !self.frames.follow(bytes)
        {
            let reason = "frame larger than allowed";
            self.connection.close(EXCESSIVE_LOAD, reason.as_bytes());
            return Poll::Ready(Err(StreamErrorIncoming::ConnectionErrorIncoming {
                connection_error: ConnectionErrorIncoming::InternalError(reason.to_owned()),
            }));
        }
        data
    }
}

/// The frame structure of a stream (RFC 9114 §7.1), as far as its bytes have come.
#[derive(Debug)]
struct Frames {
    state: State,
    /// The first bytes of a variable-length integer: at most 8.
    partial: Vec<u8>,
    frame_bytes_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first integer of a one-way stream (RFC 9114 §6.2).
    StreamType,
    FrameType,
    FrameLength {
        is_data: bool,
    },
    Payload {
        left: u64,
    },
    /// Not frames: QPACK, or a type that `h3` gives up itself.
    Opaque,
}

impl Frames {
    /// False if a frame is announced that is too large to be held.
    fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.state {
                State::Opaque => return true,
                State::Payload { left } => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[here..];
                    let left = left - here as u64;
                    self.state = if left == 0 { State::FrameType } else { State::Payload { left } };
                }
                state => {
                    self.partial.push(bytes[0]);
                    bytes = &bytes[1..];
                    let Some(value) = varint(&self.partial) else { continue };
                    self.partial.clear();
                    match self.after(state, value) {
                        Some(next) => self.state = next,
                        None => return false,
                    }
                }
            }
        }
        true
    }

    fn after(&self, state: State, value: u64) -> Option<State> {
        Some(match state {
            State::StreamType if value == CONTROL_STREAM => State::FrameType,
            State::FrameType => State::FrameLength { is_data: value == DATA_FRAME },
            State::FrameLength { is_data } if is_data || value <= self.frame_bytes_max => match value {
                0 => State::FrameType,
                left => State::Payload { left },
            },
            State::FrameLength { .. } => return None,
            State::StreamType | State::Payload { .. } | State::Opaque => State::Opaque,
        })
    }
}

/// RFC 9000 §16; `None` while bytes are missing.
fn varint(bytes: &[u8]) -> Option<u64> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    if bytes.len() < length {
        return None;
    }
    let start = u64::from(first & 0x3f);
    Some(bytes[1..length].iter().fold(start, |value, byte| value << 8 | u64::from(*byte)))
}

const CONTROL_STREAM: u64 = 0;
const DATA_FRAME: u64 = 0;
/// `H3_EXCESSIVE_LOAD` (RFC 9114 §8.1).
const EXCESSIVE_LOAD: quinn::VarInt = quinn::VarInt::from_u32(0x0107);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(state: State) -> Frames {
        Frames { state, partial: Vec::new(), frame_bytes_max: 100 }
    }

    #[test]
    fn data_streams_and_other_frames_are_limited() {
        let mut request = vec![1, 3, 0, 0, 0];
        request.extend_from_slice(&[0, 0x80, 0x10, 0, 0]);
        request.extend(std::iter::repeat_n(7, 0x10_0000));
        request.extend_from_slice(&[1, 0x40, 100]);
        for step in [1, 7, 1400] {
            let mut frames = frames(State::FrameType);
            assert!(request.chunks(step).all(|chunk| frames.follow(chunk)));
            assert_eq!(frames.state, State::Payload { left: 100 });
        }
        assert!(!frames(State::FrameType).follow(&[1, 0x40, 101]));
        assert!(!frames(State::FrameType).follow(&[0x21, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]));
    }

    #[test]
    fn only_the_control_stream_carries_frames() {
        assert!(!frames(State::StreamType).follow(&[0, 4, 0x40, 101]));
        assert!(frames(State::StreamType).follow(&[2, 4, 0x40, 101]));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic_and_chunking_changes_nothing(bytes: Vec<u8>, step in 1usize..9) {
            let whole = frames(State::FrameType).follow(&bytes);
            let mut stepped = frames(State::FrameType);
            prop_assert_eq!(bytes.chunks(step).all(|chunk| stepped.follow(chunk)), whole);
        }
    }
}
