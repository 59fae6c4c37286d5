//! One exchange on an origin's HTTP/1.1 connection.
//!
//! The upload and the download of an exchange are polled by the same task: first while the response head is awaited,
//! then by whoever pulls the response's content.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Uri};
use thiserror::Error;
use tokio::io::AsyncWrite;

use super::encode;
use super::framing::Framing;
use super::head::{self, HeadError, HeadScanner, ResponseHead};
use super::scratch;
use super::source::Content;
use crate::body::{Batch, Body, BodyError, BodySource, Length};
use crate::fields::Fields;
use crate::idle::Idle;
use crate::io::{Io, Reader, WriteIo};
use crate::message::Response;
use crate::pool::Home;
use crate::tcp::splice::{COPIED_BYTES_MIN, Pipe, Plain, SPLICED_BYTES_MIN, SPLICES_MAX};
use crate::write::{Stall, bytes_of};

/// A connection to an origin between exchanges.
#[derive(Debug)]
pub struct OriginConnection {
    reader: Reader,
    writer: WriteIo,
}

/// A request as the origin is to get it; the fields that frame it are added here.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Method.
    pub method: &'a Method,
    /// Only path and query are sent.
    pub uri: &'a Uri,
    /// The `Host` field.
    pub host: &'a str,
    /// End-to-end fields.
    pub headers: &'a Fields,
    /// The protocol to switch to, if the visitor asked.
    pub upgrade: Option<&'a str>,
}

/// Limits of one exchange.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeLimits {
    /// Bytes of a response head.
    pub head_bytes_max: usize,
    /// From the end of the request's content to the response head; none for streams that take their time.
    pub head_timeout: Option<Duration>,
    /// Without a byte of the response's content.
    pub body_idle_timeout: Option<Duration>,
    /// Without the origin taking a byte of the upload.
    pub write_idle_timeout: Duration,
}

/// Why no response came.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// The origin closed the connection before the first byte of a response. On a connection that was used before
    /// this can mean that the request was never seen.
    #[error("the origin closed the connection without a response")]
    Closed(#[source] Option<io::Error>),
    /// The origin's response head cannot be trusted.
    #[error("the origin sent an invalid response head")]
    Head(#[from] HeadError),
    /// No response head in time.
    #[error("the origin did not answer in time")]
    Timeout,
    /// The visitor's content ended early; the origin saw an aborted request.
    #[error("the request's content ended early")]
    RequestBody(#[from] BodyError),
}

impl OriginConnection {
    /// Takes a fresh connection.
    pub fn new(io: Io) -> Self {
        let (read, writer) = io.into_split();
        Self { reader: Reader::new(read, BytesMut::new()), writer }
    }

    /// True unless the origin has closed the connection or sent something unasked.
    pub fn is_fresh(&mut self) -> bool {
        self.reader.buffer.is_empty() && self.reader.is_silent()
    }

    /// The connection, if it [`Self::is_fresh`] also as the kernel knows it, which the reactor may not have asked for a while.
    pub(crate) fn if_fresh_now(mut self) -> Option<Self> {
        if !self.is_fresh() {
            return None;
        }
        let (reader, writer) = self.reader.if_silent(self.writer)?;
        Some(Self { reader, writer })
    }

    /// Sends a request; what is returned is the response once its head is there, or [`ExchangeError`], after which the
    /// connection is closed.
    ///
    /// The connection goes `home` when the exchange is complete and the origin keeps it open. `body` is left in place
    /// as long as nothing was taken from it.
    pub fn send<'a>(
        self,
        request: &Outgoing<'a>,
        body: Body,
        limits: &'a ExchangeLimits,
        home: Home,
    ) -> Exchange<'a> {
        let length = body.length();
        let mut out = scratch::batch();
        out.push_back(encode_head(request, length));
        let upload = Upload {
            out,
            chunked: length == Length::Unknown,
            raw: length == Length::Raw,
            body,
            writer: self.writer,
            // Bytes behind an upgrade belong to the new protocol: until the origin has agreed to it they would be read
            // as another request, past every rule.
            state: if length == Length::Raw { UploadState::AwaitingUpgrade } else { UploadState::Sending },
            stall: Stall::new(limits.write_idle_timeout),
            may_splice: matches!(length, Length::Known(bytes) if bytes >= SPLICED_BYTES_MIN),
            pipe: None,
            copied_first: 0,
            is_complete: false,
        };
        Exchange {
            connection: Some((self.reader, upload, home)),
            scanner: HeadScanner::default(),
            timeout: limits.head_timeout.map(Idle::new),
            method: request.method,
            upgrade: request.upgrade,
            limits,
        }
    }
}

/// A request that was sent and its response's head that is waited for: [`OriginConnection::send`].
///
/// Written out, and not an `async fn`: every request is one, and those are copied by each that hands them on.
#[must_use = "it does nothing unless it is polled"]
pub struct Exchange<'a> {
    /// None once there is a response.
    connection: Option<(Reader, Upload, Home)>,
    scanner: HeadScanner,
    timeout: Option<Idle>,
    method: &'a Method,
    /// The protocol that was asked for.
    upgrade: Option<&'a str>,
    limits: &'a ExchangeLimits,
}

impl Future for Exchange<'_> {
    type Output = Result<Response, ExchangeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let head = ready!(this.poll_head(cx));
        let Some((reader, upload, home)) = this.connection.take() else {
            return Poll::Ready(Err(ExchangeError::Closed(None)));
        };
        Poll::Ready(head.map(|head| into_response(head, reader, upload, this.limits, home)))
    }
}

impl Exchange<'_> {
    /// Moves the upload on and looks for a head that is to be believed.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, ExchangeError>> {
        let Some((reader, upload, _)) = &mut self.connection else {
            return Poll::Ready(Err(ExchangeError::Closed(None)));
        };
        match upload.poll(cx) {
            Poll::Ready(result) => result?,
            // The clock starts when the request is out.
            Poll::Pending => {
                if upload.state != UploadState::AwaitingUpgrade
                    && let Some(timeout) = &mut self.timeout
                {
                    timeout.touch();
                }
            }
        }
        let head = poll_final_head(reader, &mut self.scanner, self.method, self.limits.head_bytes_max, cx);
        let Poll::Ready(head) = head else {
            if let Some(timeout) = &mut self.timeout {
                ready!(timeout.poll(cx));
                return Poll::Ready(Err(ExchangeError::Timeout));
            }
            return Poll::Pending;
        };
        match (&head, upload.state) {
            (Ok(head), UploadState::AwaitingUpgrade) if head.framing == Framing::Raw => {
                upload.state = UploadState::Sending;
            }
            // RFC 9110 §15.2.2: a protocol that nobody asked to switch to.
            (Ok(head), _) if head.framing == Framing::Raw => {
                return Poll::Ready(Err(HeadError::UnaskedUpgrade.into()));
            }
            _ => {}
        }
        let head = match (head, upload.state) {
            (Err(ExchangeError::Closed(None)), UploadState::Failed(error)) => {
                return Poll::Ready(Err(ExchangeError::Closed(Some(error.into()))));
            }
            (head, _) => head?,
        };
        if head.status == StatusCode::SWITCHING_PROTOCOLS && !is_agreed(&head.headers, self.upgrade) {
            return Poll::Ready(Err(HeadError::Malformed.into()));
        }
        Poll::Ready(Ok(head))
    }
}

/// The request's way to the origin.
struct Upload {
    out: Batch,
    body: Body,
    chunked: bool,
    raw: bool,
    writer: WriteIo,
    state: UploadState,
    stall: Stall,
    /// Much content of a known length: the kernel is asked to move it.
    may_splice: bool,
    pipe: Option<Pipe>,
    /// Content that is copied before a pipe is asked for again.
    copied_first: u64,
    /// All content is in the pipe, or through it.
    is_complete: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum UploadState {
    /// Only the head goes out.
    AwaitingUpgrade,
    Sending,
    /// The content is complete; what is left is in `out`.
    Flushing,
    Done,
    /// The origin takes no more; it may still answer.
    Failed(io::ErrorKind),
}

impl Upload {
    /// The connection for the next exchange.
    fn finished(self, reader: Reader) -> OriginConnection {
        OriginConnection { reader, writer: self.writer }
    }

    /// Moves as much as both sides allow. Ready when there is nothing left to do.
    ///
    /// # Errors
    /// The visitor's: the origin's write errors end the upload, not the exchange.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let mut rounds = 0;
        loop {
            if matches!(self.state, UploadState::Done | UploadState::Failed(_)) {
                // Others begin before this one is answered.
                scratch::keep(std::mem::take(&mut self.out));
                return Poll::Ready(Ok(()));
            }
            if self.splices() {
                if rounds == SPLICES_MAX {
                    // Others of the lane have their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                rounds += 1;
                ready!(self.poll_splice(cx))?;
                continue;
            }
            // The head waits for the first content that is there already: one write for both.
            if self.state == UploadState::Sending && self.out.len() <= 1 {
                match self.poll_body(cx) {
                    Poll::Ready(more) => {
                        if !more? {
                            self.state = UploadState::Flushing;
                        }
                    }
                    Poll::Pending if self.out.is_empty() => {
                        let _ = Pin::new(&mut self.writer).poll_flush(cx);
                        return Poll::Pending;
                    }
                    Poll::Pending => {}
                }
            }
            if let Err(error) = ready!(self.poll_write(cx)) {
                self.state = UploadState::Failed(error.kind());
            }
            if self.state == UploadState::AwaitingUpgrade {
                return Poll::Pending;
            }
        }
    }

    /// Whether what is to be sent next goes through a pipe, or is in it already.
    fn splices(&self) -> bool {
        self.may_splice && self.copied_first == 0 && self.state == UploadState::Sending && self.out.is_empty()
    }

    /// Has the kernel move what fits into a pipe; without one, and where somebody looks at the content, the rest is copied.
    fn poll_splice(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        if self.pipe.is_none() && self.writer.socket().is_some() {
            self.pipe = self.body.lend_pipe();
        }
        let (Some(pipe), Some(socket)) = (&mut self.pipe, self.writer.socket()) else {
            self.may_splice = false;
            return Poll::Ready(Ok(()));
        };
        if pipe.filled() == 0 {
            match self.body.poll_pipe(cx, pipe) {
                Poll::Ready(Ok(Some(more))) => self.is_complete = !more,
                Poll::Ready(Ok(None)) => {
                    (self.may_splice, self.pipe) = (false, None);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // Others may have the pipe meanwhile.
                    self.pipe = None;
                    return Poll::Pending;
                }
            }
        }
        let drained = match self.stall.poll_pipe(socket, cx, pipe) {
            Poll::Ready(drained) => drained,
            Poll::Pending => {
                let content = ready!(pipe.poll_reclaim(cx));
                (self.pipe, self.copied_first) = (None, COPIED_BYTES_MIN);
                content.map(|content| self.out.push_back(content))
            }
        };
        self.state = match drained {
            Err(error) => UploadState::Failed(error.kind()),
            Ok(()) if self.is_complete => UploadState::Flushing,
            Ok(()) => UploadState::Sending,
        };
        if self.state != UploadState::Sending {
            self.pipe = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        if !self.chunked {
            let more = ready!(self.body.poll_chunks(cx, &mut self.out))?;
            self.copied_first = self.copied_first.saturating_sub(bytes_of(&self.out));
            return Poll::Ready(Ok(more));
        }
        let mut batch = Batch::new();
        let more = ready!(self.body.poll_chunks(cx, &mut batch))?;
        encode::chunk(&mut batch);
        self.out.append(&mut batch);
        if !more {
            self.out.push_back(encode::last_chunk(self.body.take_trailers().as_ref()));
        }
        Poll::Ready(Ok(more))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stall.poll_write(&mut self.writer, cx, &mut self.out))?;
        if self.state == UploadState::Flushing {
            if self.raw {
                // The visitor ended its direction: the origin sees the end too, its own direction goes on.
                ready!(Pin::new(&mut self.writer).poll_shutdown(cx))?;
            } else {
                ready!(self.stall.poll_flush(&mut self.writer, cx))?;
            }
            self.state = UploadState::Done;
        }
        Poll::Ready(Ok(()))
    }
}

/// A response's content on its way from the origin, with the upload that still runs beside it.
struct OriginSource {
    reader: Option<Reader>,
    content: Content,
    upload: Option<Upload>,
    /// Where the connection goes afterwards, if it can be used again.
    home: Option<Home>,
}

impl BodySource for OriginSource {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        self.poll_background(cx);
        if self.upload.as_ref().is_some_and(|u| u.raw && matches!(u.state, UploadState::Failed(_))) {
            // Half an upgraded connection is of no use to either side.
            return Poll::Ready(Err(BodyError::Truncated));
        }
        let Some(reader) = self.reader.as_mut() else { return Poll::Ready(Ok(false)) };
        let more = ready!(self.content.poll_chunks(reader, cx, out))?;
        if !more {
            self.go_home();
        }
        Poll::Ready(Ok(more))
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<Option<bool>, BodyError>> {
        self.poll_background(cx);
        let Some(reader) = &mut self.reader else { return Poll::Ready(Ok(None)) };
        let more = ready!(self.content.poll_pipe(reader, cx, pipe))?;
        if more.is_some() {
            reader.expect_little();
        }
        if more == Some(false) {
            self.go_home();
        }
        Poll::Ready(Ok(more))
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.content.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        let Some(upload) = self.upload.as_mut() else { return };
        if let Poll::Ready(Err(_)) = upload.poll(cx) {
            // The visitor broke off: the origin is to see it, the connection is not used again.
            self.home = None;
            upload.state = UploadState::Failed(io::ErrorKind::ConnectionAborted);
        }
    }
}

impl OriginSource {
    fn go_home(&mut self) {
        if let (Some(reader), Some(upload), Some(home)) =
            (self.reader.take(), self.upload.take(), self.home.take())
            && upload.state == UploadState::Done
        {
            home.put(upload.finished(reader));
        }
    }
}

fn into_response(
    head: ResponseHead,
    mut reader: Reader,
    upload: Upload,
    limits: &ExchangeLimits,
    home: Home,
) -> Response {
    let ResponseHead { status, headers, framing, keep_alive } = head;
    let home = (keep_alive && framing != Framing::Raw).then_some(home);
    let body = match framing {
        // What is here already needs no stream, and the connection is free for the next request at once.
        Framing::Length(bytes)
            if bytes <= reader.buffer.len() as u64 && upload.state == UploadState::Done =>
        {
            let content = reader.buffer.split_to(usize::try_from(bytes).unwrap_or(0)).freeze();
            return_home(home, reader, upload);
            Body::full(content)
        }
        Framing::Empty => {
            return_home(home, reader, upload);
            Body::empty()
        }
        _ => Body::stream(
            OriginSource {
                reader: Some(reader),
                content: Content::new(framing, limits.body_idle_timeout),
                upload: Some(upload),
                home,
            },
            framing.length(),
        ),
    };
    Response { status, headers, body }
}

/// RFC 9110 §7.8: a server switches only to what was asked for.
fn is_agreed(headers: &HeaderMap, asked: Option<&str>) -> bool {
    let answered = headers.get(http::header::UPGRADE);
    match (asked, answered) {
        (Some(asked), Some(answered)) => answered.as_bytes().eq_ignore_ascii_case(asked.as_bytes()),
        // Some servers of old leave the field out.
        (Some(_), None) => true,
        (None, _) => false,
    }
}

fn return_home(home: Option<Home>, reader: Reader, upload: Upload) {
    if let Some(home) = home
        && upload.state == UploadState::Done
    {
        home.put(upload.finished(reader));
    }
}

/// Reads heads until one that is not interim (RFC 9110 §15.2); the tunnel's wire has no place for the others.
fn poll_final_head(
    reader: &mut Reader,
    scanner: &mut HeadScanner,
    method: &Method,
    bytes_max: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<ResponseHead, ExchangeError>> {
    loop {
        if !reader.buffer.is_empty()
            && let Some(length) = scanner.find(&reader.buffer, bytes_max)?
        {
            let head = head::parse_response(&reader.buffer.split_to(length).freeze(), method)?;
            if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                continue;
            }
            return Poll::Ready(Ok(head));
        }
        match ready!(reader.poll_fill(cx)) {
            Ok(0) if reader.buffer.is_empty() => return Poll::Ready(Err(ExchangeError::Closed(None))),
            Ok(0) => return Poll::Ready(Err(HeadError::Malformed.into())),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Err(ExchangeError::Closed(Some(error)))),
        }
    }
}

fn encode_head(request: &Outgoing<'_>, length: Length) -> Bytes {
    // The target as it is sent, `Host` and what frames the content come on top.
    let bytes = request.headers.bytes() + request.uri.path().len() + request.host.len() + HEAD_BYTES_SPARE;
    scratch::encode(bytes, |out| write_head(out, request, length))
}

fn write_head(out: &mut BytesMut, request: &Outgoing<'_>, length: Length) {
    encode::request_head(out, request.method, request.uri, request.host, request.headers);
    if let Some(protocol) = request.upgrade {
        encode::field(out, "Connection", b"Upgrade");
        encode::field(out, "Upgrade", protocol.as_bytes());
    }
    // RFC 9110 §8.6: methods that anticipate content say so even when there is none.
    let anticipates = matches!(*request.method, Method::POST | Method::PUT | Method::PATCH);
    if length != Length::Known(0) || (anticipates && request.upgrade.is_none()) {
        encode::framing(out, length);
    }
    out.put_slice(b"\r\n");
}

/// What a head has besides its fields; one with a long query asks for more.
const HEAD_BYTES_SPARE: usize = 512;
