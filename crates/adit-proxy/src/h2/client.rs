//! HTTP/2 to an origin: few connections, shared by all requests.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use http::{HeaderMap, Uri};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gathered::Gathered;
use super::stream::{Incoming, Outgoing};
use crate::body::{Batch, Body, BodyError, BodySource, Length};
use crate::h1::framing;
use crate::headers;
use crate::idle::Idle;
use crate::io::Io;
use crate::message::{Request, Response};

/// The connections to an origin that speaks HTTP/2.
///
/// Requests share one connection until it carries as many streams as the origin allows; then another is opened.
#[derive(Debug)]
pub struct H2Origin {
    connections: Mutex<Vec<Connection>>,
    options: H2Options,
}

/// How connections to an origin are kept.
#[derive(Clone, Copy, Debug)]
pub struct H2Options {
    /// How long a connection without streams is kept.
    pub idle_timeout: Duration,
    /// From the end of a request's content to the response head.
    pub head_timeout: Option<Duration>,
    /// Silence after which a connection is pinged; none for no pings.
    pub ping_after: Option<Duration>,
    /// Wait for the answer to a ping.
    pub ping_timeout: Duration,
}

/// A place on a connection; given back when the response's content is through.
#[derive(Debug)]
pub struct Lease {
    sender: SendRequest<Bytes>,
    stream: StreamCount,
}

/// Why an exchange over HTTP/2 failed.
#[derive(Debug, Error)]
pub enum H2Error {
    /// The connection or stream.
    #[error("HTTP/2 error")]
    Protocol(#[source] h2::Error),
    /// The origin said that it has not looked at the request (RFC 9113 §8.7), or it never went out.
    #[error("the origin took no more requests on this connection")]
    Unprocessed(#[source] h2::Error),
    /// The request cannot be written as HTTP/2.
    #[error("the request target cannot be sent over HTTP/2")]
    Target(#[from] http::Error),
    /// The preface took too long.
    #[error("the origin's HTTP/2 preface did not arrive in time")]
    Handshake,
    /// No response head in time.
    #[error("the origin did not answer in time")]
    Timeout,
}

impl Default for H2Options {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(90),
            head_timeout: None,
            ping_after: None,
            ping_timeout: Duration::from_secs(15),
        }
    }
}

impl H2Origin {
    /// No connection yet.
    pub fn new(options: H2Options) -> Self {
        Self { connections: Mutex::default(), options }
    }

    /// A place on an open connection that has one free; on the least loaded one if no more may be opened.
    pub fn take(&self) -> Option<Lease> {
        let mut connections = self.lock();
        connections.retain(|connection| !connection.closed.load(Ordering::Acquire));
        let free = connections.iter().find(|c| c.streams() < c.streams_max());
        match free {
            Some(connection) => Some(connection.lease()),
            None if connections.len() < CONNECTIONS_MAX => None,
            None => connections.iter().min_by_key(|c| c.streams()).map(Connection::lease),
        }
    }

    /// Starts HTTP/2 on a fresh connection, which later requests share.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn start(&self, io: Io) -> Result<Lease, H2Error> {
        let connection = self.handshake(io).await?;
        let lease = connection.lease();
        let mut connections = self.lock();
        // Beyond the limit it serves this one exchange and closes with it.
        if connections.len() < CONNECTIONS_MAX {
            connections.push(connection);
        }
        Ok(lease)
    }

    /// Starts HTTP/2 on a fresh connection for one exchange only.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn start_alone(&self, io: Io) -> Result<Lease, H2Error> {
        Ok(self.handshake(io).await?.lease())
    }

    async fn handshake(&self, io: Io) -> Result<Connection, H2Error> {
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX);
        let reads = Arc::new(AtomicU64::new(0));
        let io = Gathered::new(Watched { io, reads: Arc::clone(&reads) });
        let handshake = builder.handshake::<_, Bytes>(io.clone());
        let (sender, mut driver) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| H2Error::Handshake)?
            .map_err(H2Error::Unprocessed)?;
        io.hold();
        let closed = Arc::new(AtomicBool::new(false));
        let pings = self.options.ping_after.and_then(|after| Some((after, driver.ping_pong()?)));
        let (gone, ping_timeout) = (Arc::clone(&closed), self.options.ping_timeout);
        tokio::spawn(async move {
            // What the streams of a turn have to send goes out together.
            let driven = poll_fn(|cx| {
                io.begin();
                match Pin::new(&mut driver).poll(cx) {
                    Poll::Ready(result) => Poll::Ready(result.map_err(|error| error.to_string())),
                    Poll::Pending => match io.poll_drain(cx) {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error.to_string())),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    },
                }
            });
            let result = match pings {
                Some((after, pings)) => tokio::select! {
                    result = driven => result,
                    () = keep_alive(pings, &reads, after, ping_timeout) => Err("no answer to a ping".to_owned()),
                },
                None => driven.await,
            };
            gone.store(true, Ordering::Release);
            if let Err(error) = result {
                tracing::debug!(%error, "HTTP/2 connection to the origin ended");
            }
        });
        let load = Load { streams: AtomicUsize::new(0), began: Instant::now(), idle_ms: AtomicU64::new(0) };
        Ok(Connection { sender, closed, load: Arc::new(load) })
    }

    /// Sends one request.
    ///
    /// # Errors
    /// [`H2Error`]; a dead connection is forgotten.
    pub async fn send(&self, lease: Lease, request: Request, secure: bool) -> Result<Response, H2Error> {
        let load = Arc::clone(&lease.stream.0);
        let result = exchange(lease, request, secure, self.options.head_timeout).await;
        if let Err(H2Error::Protocol(error) | H2Error::Unprocessed(error)) = &result
            && !error.is_reset()
        {
            // More than this stream is concerned: the connection is going away or gone.
            self.forget_connection(&load);
        }
        result
    }

    /// Takes a connection out of use that a request found unusable.
    pub fn forget(&self, lease: &Lease) {
        self.forget_connection(&lease.stream.0);
    }

    fn forget_connection(&self, load: &Arc<Load>) {
        self.lock().retain(|connection| !Arc::ptr_eq(&connection.load, load));
    }

    /// Closes connections that have carried nothing for too long.
    pub fn sweep(&self) {
        self.lock().retain(|connection| {
            !connection.closed.load(Ordering::Acquire)
                && (connection.streams() > 0 || connection.load.idle() < self.options.idle_timeout)
        });
    }

    /// Open connections now.
    pub fn connections(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Waits until the connection takes another stream.
    ///
    /// # Errors
    /// The connection is gone; nothing of the request went out, and [`H2Origin::forget`] is to be called.
    pub async fn ready(mut self) -> Result<Self, (Self, H2Error)> {
        match poll_fn(|cx| self.sender.poll_ready(cx)).await {
            Ok(()) => Ok(self),
            Err(error) => Err((self, H2Error::Unprocessed(error))),
        }
    }
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Bytes>,
    closed: Arc<AtomicBool>,
    load: Arc<Load>,
}

impl Connection {
    fn streams(&self) -> usize {
        self.load.streams.load(Ordering::Relaxed)
    }

    fn streams_max(&self) -> usize {
        // An origin that allows none at the moment makes the request wait, not dial.
        self.sender.current_max_send_streams().max(1)
    }

    /// Counted here, under the list's lock, so that two requests do not take the last place.
    fn lease(&self) -> Lease {
        self.load.streams.fetch_add(1, Ordering::Relaxed);
        Lease { sender: self.sender.clone(), stream: StreamCount(Arc::clone(&self.load)) }
    }
}

/// What a connection carries.
#[derive(Debug)]
struct Load {
    streams: AtomicUsize,
    began: Instant,
    /// Milliseconds after `began` when the last stream ended.
    idle_ms: AtomicU64,
}

impl Load {
    fn idle(&self) -> Duration {
        let since = Duration::from_millis(self.idle_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(since)
    }
}

/// One stream, counted until it is dropped.
#[derive(Debug)]
struct StreamCount(Arc<Load>);

impl Drop for StreamCount {
    fn drop(&mut self) {
        let ended = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_ms.store(ended, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn exchange(
    lease: Lease,
    request: Request,
    secure: bool,
    head_timeout: Option<Duration>,
) -> Result<Response, H2Error> {
    let Lease { mut sender, stream: count } = lease;
    let ends = request.body.is_empty();
    let (head, body) = into_head(request, secure)?;
    let (mut response, stream) = sender.send_request(head, ends).map_err(H2Error::Unprocessed)?;
    drop(sender);
    let mut upload = (!ends).then(|| Outgoing::new(stream, body, WRITE_IDLE_TIMEOUT));
    let mut timeout = head_timeout.map(Idle::new);
    let response = poll_fn(|cx| {
        poll_upload(&mut upload, cx);
        if let Poll::Ready(response) = Pin::new(&mut response).poll(cx) {
            return Poll::Ready(response.map_err(classify));
        }
        let Some(timeout) = &mut timeout else { return Poll::Pending };
        if upload.is_some() {
            timeout.touch();
        }
        timeout.poll(cx).map(|()| Err(H2Error::Timeout))
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
        Body::stream(Exchange { incoming: Incoming::new(stream, None), upload, _count: count }, length)
    };
    Ok(Response { status: parts.status, headers: headers.into(), body })
}

fn into_head(request: Request, secure: bool) -> Result<(http::Request<()>, Body), H2Error> {
    let uri = Uri::builder()
        .scheme(if secure { "https" } else { "http" })
        .authority(request.host.as_str())
        .path_and_query(&*crate::h1::encode::target(&request.uri))
        .build()?;
    let mut head = http::Request::new(());
    *head.method_mut() = request.method;
    *head.uri_mut() = uri;
    *head.headers_mut() = request.headers.into_map();
    headers::keep_te_trailers(head.headers_mut());
    if let Length::Known(bytes) = request.body.length()
        && bytes > 0
    {
        head.headers_mut().insert(http::header::CONTENT_LENGTH, bytes.into());
    }
    Ok((head, request.body))
}

/// RFC 9113 §8.7: a stream that was refused, or that a GOAWAY left out, was not processed.
fn classify(error: h2::Error) -> H2Error {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let left_out = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
    if refused || left_out { H2Error::Unprocessed(error) } else { H2Error::Protocol(error) }
}

/// Ends when the other side is silent and does not answer a ping either.
async fn keep_alive(mut pings: PingPong, reads: &AtomicU64, after: Duration, timeout: Duration) {
    loop {
        let seen = reads.load(Ordering::Relaxed);
        tokio::time::sleep(after).await;
        if reads.load(Ordering::Relaxed) == seen
            && !matches!(tokio::time::timeout(timeout, pings.ping(Ping::opaque())).await, Ok(Ok(_)))
        {
            return;
        }
    }
}

/// A socket that tells whether anything arrived.
struct Watched {
    io: Io,
    reads: Arc<AtomicU64>,
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        this.reads.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// A response's content with the upload that still runs beside it.
struct Exchange {
    incoming: Incoming,
    upload: Option<Outgoing>,
    _count: StreamCount,
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

/// Connections to one origin: with 100 streams each, more requests at once than one process asks of one server. Worst
/// case memory is the connections' windows, 256 MiB, and only if the origin fills them all and nobody reads.
const CONNECTIONS_MAX: usize = 16;
/// Download credit of one stream.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Download credit of all streams of the connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Header fields of one response, uncompressed; as much as over HTTP/1.1.
const HEADER_LIST_BYTES_MAX: u32 = 256 * 1024;
/// An origin that grants no upload credit for this long is given up.
const WRITE_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// For the origin's preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
