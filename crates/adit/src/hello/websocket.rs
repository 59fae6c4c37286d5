//! A WebSocket echo (RFC 6455) over the raw stream behind a 101.

use std::pin::Pin;
use std::task::{Context, Poll};

use adit_proxy::body::{Batch, Body, BodyError, BodySource, Length};
use adit_proxy::message::{Request, Response};
use adit_proxy::write::poll_write_batch;
use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use http::header::{self, HeaderValue};
use tokio::io::{AsyncWrite, DuplexStream, ReadHalf, WriteHalf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Answers the handshake and sends every message back.
pub(super) fn echo(request: Request) -> Response {
    let key = request.headers.get(header::SEC_WEBSOCKET_KEY).cloned();
    let (Some(key), true) = (key, request.upgrade.as_deref() == Some("websocket")) else {
        return Response::text(
            StatusCode::UPGRADE_REQUIRED,
            "text/plain; charset=utf-8",
            "this path speaks WebSocket\n",
        );
    };
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return Response::status(StatusCode::BAD_REQUEST);
    };
    let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
    tokio::spawn(serve(theirs));
    let (read, write) = tokio::io::split(ours);
    let source = Raw { read, write: Some(write), incoming: request.body, batch: Batch::new() };
    let mut response = Response::status(StatusCode::SWITCHING_PROTOCOLS);
    response.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response.body = Body::stream(source, Length::Raw);
    response
}

async fn serve(io: DuplexStream) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// The byte stream between the visitor and the echo.
struct Raw {
    read: ReadHalf<DuplexStream>,
    write: Option<WriteHalf<DuplexStream>>,
    incoming: Body,
    batch: Batch,
}

impl BodySource for Raw {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        use tokio::io::AsyncReadExt;
        self.poll_background(cx);
        let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
        let mut reading = std::pin::pin!(self.read.read_buf(&mut buffer));
        match reading.as_mut().poll(cx) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Ok(false)),
            Poll::Ready(Ok(_)) => {
                out.push_back(buffer.freeze());
                Poll::Ready(Ok(true))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        while let Some(write) = &mut self.write {
            if !self.batch.is_empty() {
                match poll_write_batch(write, cx, &mut self.batch) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => self.write = None,
                    Poll::Pending => return,
                }
                continue;
            }
            match self.incoming.poll_chunks(cx, &mut self.batch) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) if !self.batch.is_empty() => {}
                Poll::Ready(_) => {
                    let _ = Pin::new(write).poll_shutdown(cx);
                    self.write = None;
                }
                Poll::Pending => return,
            }
        }
    }
}

/// Between the tunnel and the echo, each way.
const BUFFER_BYTES: usize = 64 * 1024;
/// Largest message echoed; one is held in memory at a time.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
