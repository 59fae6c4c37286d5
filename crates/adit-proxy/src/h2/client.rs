//! HTTP/2 to an origin: one connection, shared by all requests.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Uri};
use thiserror::Error;

use super::stream::{Incoming, Outgoing};
use crate::body::{Batch, Body, BodyError, BodySource, Length};
use crate::h1::framing;
use crate::headers;
use crate::io::Io;
use crate::message::{Request, Response};

/// The connection to an origin that speaks HTTP/2, if one is open.
#[derive(Debug, Default)]
pub struct H2Origin {
    sender: Mutex<Option<SendRequest<Bytes>>>,
}

/// Why an exchange over HTTP/2 failed.
#[derive(Debug, Error)]
pub enum H2Error {
    /// The connection or stream.
    #[error("HTTP/2 error")]
    Protocol(#[from] h2::Error),
    /// The request cannot be written as HTTP/2.
    #[error("the request target cannot be sent over HTTP/2")]
    Target(#[from] http::Error),
    /// The preface took too long.
    #[error("the origin's HTTP/2 preface did not arrive in time")]
    Handshake,
}

impl H2Error {
    /// True if the origin has certainly not acted on the request (RFC 9113 §8.7).
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::Protocol(error) => {
                error.reason() == Some(h2::Reason::REFUSED_STREAM)
                    || (error.is_go_away() && error.is_remote())
            }
            Self::Target(_) | Self::Handshake => false,
        }
    }
}

impl H2Origin {
    /// A handle on the open connection.
    pub fn take(&self) -> Option<SendRequest<Bytes>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts HTTP/2 on a fresh connection, which later requests share.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn start(&self, io: Io) -> Result<SendRequest<Bytes>, H2Error> {
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let (sender, connection) = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(io))
            .await
            .map_err(|_| H2Error::Handshake)??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP/2 connection to the origin ended");
            }
        });
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        Ok(sender)
    }

    /// The open connection, if it takes another request; a dead one is forgotten.
    pub async fn ready(&self) -> Option<SendRequest<Bytes>> {
        let sender = self.take()?;
        match sender.ready().await {
            Ok(sender) => Some(sender),
            Err(_) => {
                self.forget();
                None
            }
        }
    }

    fn forget(&self) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sends one request.
    ///
    /// # Errors
    /// [`H2Error`]; a dead connection is forgotten.
    pub async fn send(
        &self,
        sender: SendRequest<Bytes>,
        request: Request,
        secure: bool,
    ) -> Result<Response, H2Error> {
        match exchange(sender, request, secure).await {
            Ok(response) => Ok(response),
            Err(error) => {
                // A stream's failure leaves the connection alone only if the origin reset just this stream.
                if !matches!(&error, H2Error::Protocol(e) if e.is_reset()) {
                    self.forget();
                }
                Err(error)
            }
        }
    }
}

async fn exchange(sender: SendRequest<Bytes>, request: Request, secure: bool) -> Result<Response, H2Error> {
    let mut sender = sender.ready().await?;
    let uri = Uri::builder()
        .scheme(if secure { "https" } else { "http" })
        .authority(request.host.as_str())
        .path_and_query(&*crate::h1::encode::target(&request.uri))
        .build()?;
    let mut head = http::Request::new(());
    *head.method_mut() = request.method;
    *head.uri_mut() = uri;
    *head.headers_mut() = request.headers;
    headers::keep_te_trailers(head.headers_mut());
    if let Length::Known(bytes) = request.body.length()
        && bytes > 0
    {
        head.headers_mut().insert(http::header::CONTENT_LENGTH, bytes.into());
    }
    let ends = request.body.is_empty();
    let (mut response, stream) = sender.send_request(head, ends)?;
    let mut upload = (!ends).then(|| Outgoing::new(stream, request.body, WRITE_IDLE_TIMEOUT));
    let response = poll_fn(|cx| {
        poll_upload(&mut upload, cx);
        std::pin::Pin::new(&mut response).poll(cx)
    })
    .await?;
    let (parts, stream) = response.into_parts();
    let mut headers = parts.headers;
    let declared = headers.remove(http::header::CONTENT_LENGTH);
    let length = match declared.as_ref().and_then(framing::parse_length) {
        _ if stream.is_end_stream() => Length::Known(0),
        Some(bytes) => Length::Known(bytes),
        None => Length::Unknown,
    };
    let body = if length == Length::Known(0) {
        if let Some(described) = declared {
            headers.insert(http::header::CONTENT_LENGTH, described);
        }
        Body::empty()
    } else {
        Body::stream(Exchange { incoming: Incoming::new(stream, None), upload }, length)
    };
    Ok(Response { status: parts.status, headers, body })
}

/// A response's content with the upload that still runs beside it.
struct Exchange {
    incoming: Incoming,
    upload: Option<Outgoing>,
}

impl BodySource for Exchange {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        self.poll_background(cx);
        let more = ready!(self.incoming.poll_chunks(cx, out))?;
        Poll::Ready(Ok(more))
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.incoming.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        poll_upload(&mut self.upload, cx);
    }
}

fn poll_upload(upload: &mut Option<Outgoing>, cx: &mut Context<'_>) {
    if let Some(running) = upload
        && running.poll(cx).is_ready()
    {
        *upload = None;
    }
}

/// Download credit of one stream.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Download credit of all streams of the connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// An origin that grants no upload credit for this long is given up.
const WRITE_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// For the origin's preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
