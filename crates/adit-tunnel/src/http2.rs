//! Bodies over the HTTP/2 transport (tunnel-protocol.md §6), with its flow control as back-pressure.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use adit_tunnel_proto::{
    ResponseHead,
    http2::{failure_headers, response_parts},
};
use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, Response, StatusCode};

use crate::streams::{CHUNKS_MAX, Loss, SendHalf, StreamError, reset_soon};

/// A request body received from the edge.
#[derive(Debug)]
pub(crate) struct RecvBody(h2::RecvStream);

impl RecvBody {
    pub(crate) fn new(stream: h2::RecvStream) -> Self {
        Self(stream)
    }

    pub(crate) fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut VecDeque<Bytes>,
    ) -> Poll<Result<bool, StreamError>> {
        let mut taken = 0;
        for _ in 0..FRAMES_MAX {
            match self.0.poll_data(cx) {
                // The frame that ends a body often carries nothing else, and any other may: no chunk.
                Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => {}
                Poll::Ready(Some(Ok(chunk))) => {
                    // The window reopens as chunks are handed out: whoever holds `out` decides
                    // when to ask for more. Releasing what was received cannot overflow.
                    drop(self.0.flow_control().release_capacity(chunk.len()));
                    out.push_back(chunk);
                    taken += 1;
                    if taken == CHUNKS_MAX {
                        break;
                    }
                }
                _ if taken > 0 => break,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(stream_error(&error))),
                Poll::Ready(None) => return Poll::Ready(Ok(false)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if taken == 0 {
            // Nothing but empty frames so far: others first, then on.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(true))
    }

    /// HTTP/2 has no way to refuse only a request's body before its end; dropping the stream
    /// releases its window and h2 resets it when the response ends first.
    pub(crate) fn stop(&mut self) {
        let used = self.0.flow_control().used_capacity();
        drop(self.0.flow_control().release_capacity(used));
    }
}

/// A response body sent to the edge.
#[derive(Debug)]
pub(crate) struct SendBody(h2::SendStream<Bytes>);

impl SendBody {
    pub(crate) fn new(stream: h2::SendStream<Bytes>) -> Self {
        Self(stream)
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<Result<(), StreamError>> {
        while let Some(front) = chunks.front_mut() {
            if front.is_empty() {
                chunks.pop_front();
                continue;
            }
            if self.0.capacity() == 0 {
                self.0.reserve_capacity(front.len());
                match ready!(self.0.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(stream_error(&error))),
                    None => return Poll::Ready(Err(StreamError::Stopped)),
                }
            }
            let count = front.len().min(self.0.capacity());
            if count == 0 {
                continue;
            }
            let chunk = front.split_to(count);
            self.0.send_data(chunk, false).map_err(|error| stream_error(&error))?;
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn finish(&mut self, trailers: Option<HeaderMap>) {
        // Fails only for a stream that is already closed: nothing left to end.
        drop(match trailers {
            Some(trailers) => self.0.send_trailers(trailers),
            None => self.0.send_data(Bytes::new(), true),
        });
    }

    pub(crate) fn reset(mut self) {
        reset_soon(move || self.0.send_reset(Reason::INTERNAL_ERROR));
    }

    pub(crate) fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(match ready!(self.0.poll_reset(cx)) {
            Ok(_) => Err(StreamError::Stopped),
            Err(error) => Err(stream_error(&error)),
        })
    }
}

/// The way to answer one HTTP/2 request.
#[derive(Debug)]
pub(crate) struct Respond(SendResponse<Bytes>);

impl Respond {
    /// Ready when the edge no longer wants the answer.
    pub(crate) fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_reset(cx).map(drop)
    }

    pub(crate) fn new(respond: SendResponse<Bytes>) -> Self {
        Self(respond)
    }

    /// Sends a response head in the tunnel's dialect.
    pub(crate) fn head(self, head: &ResponseHead) -> Result<SendHalf, StreamError> {
        let (status, headers) = response_parts(head);
        self.send(status, headers)
    }

    /// Says that a flow was opened.
    pub(crate) fn accept(self) -> Result<SendHalf, StreamError> {
        self.head(&ResponseHead { status: StatusCode::OK, headers: HeaderMap::new() })
    }

    /// Answers 502 in the tunnel's dialect.
    pub(crate) fn fail(mut self, rate_limited: bool) {
        let response = response_of(StatusCode::BAD_GATEWAY, failure_headers(rate_limited));
        // Fails only when the edge has already given the request up.
        drop(self.0.send_response(response, true));
    }

    /// Sends a plain head, with no header of the tunnel's dialect (control and configuration).
    pub(crate) fn send(mut self, status: StatusCode, headers: HeaderMap) -> Result<SendHalf, StreamError> {
        let stream = self
            .0
            .send_response(response_of(status, headers), false)
            .map_err(|error| stream_error(&error))?;
        Ok(SendHalf::http2(SendBody::new(stream)))
    }
}

fn response_of(status: StatusCode, headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// What an HTTP/2 error means for one stream.
pub(crate) fn stream_error(error: &h2::Error) -> StreamError {
    if error.is_reset() {
        StreamError::Reset
    } else if error.is_io() {
        StreamError::ConnectionLost(Loss::Transport)
    } else if error.is_go_away() {
        StreamError::ConnectionLost(Loss::ClosedByPeer)
    } else {
        StreamError::Closed
    }
}

/// DATA frames looked at in one poll; a peer may send empty ones without end.
const FRAMES_MAX: usize = 4 * CHUNKS_MAX;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn the_empty_frame_that_ends_a_websocket_over_http2_is_its_end_and_no_chunk() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (server, client) = tokio::join!(h2::server::handshake(near), h2::client::handshake(far));
        let (mut server, (mut requests, connection)) = (server.unwrap(), client.unwrap());
        tokio::spawn(connection);
        let request = http::Request::get("https://a.example/").body(()).unwrap();
        let (_response, mut send) = requests.send_request(request, false).unwrap();
        for (bytes, ends) in [("", false), ("one", false), ("", false), ("two", false), ("", true)] {
            send.send_data(Bytes::from(bytes), ends).unwrap();
        }
        let (request, _respond) = server.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        let mut body = RecvBody::new(request.into_body());
        let (mut all, mut chunks) = (Vec::new(), VecDeque::new());
        while poll_fn(|cx| body.poll_chunks(cx, &mut chunks)).await.unwrap() {
            assert!(!chunks.is_empty() && chunks.iter().all(|chunk| !chunk.is_empty()));
            all.extend(chunks.drain(..).flatten());
        }
        assert_eq!(all, b"onetwo");
    }
}
