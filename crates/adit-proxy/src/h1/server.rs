//! One visitor's HTTP/1.1 connection: a single task reads heads, calls the service, writes answers.
//!
//! The request's content is read by whoever the service handed it to, straight from the socket; the answer's content is
//! pulled by this task. No channel lies between them, so back-pressure is the socket's.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::{Method, StatusCode, Version};
use tokio::io::AsyncWrite;

use super::encode;
use super::framing::Framing;
use super::head::{self, HeadError, HeadScanner, RequestHead};
use super::scratch;
use super::source::Content;
use crate::body::{Batch, Body, BodyError, BodySource, Length};
use crate::date;
use crate::drain::Drain;
use crate::fields::Kinds;
use crate::headers;
use crate::idle::{Deadline, Idle};
use crate::io::{Io, Reader, WriteIo};
use crate::message::{Request, Response, Service, Visitor};
use crate::metrics::Metrics;
use crate::tcp::splice::{COPIED_BYTES_MIN, Pipe, Pipes, Plain, SPLICED_BYTES_MIN, SPLICES_MAX};
use crate::write::{Stall, bytes_of};

/// Limits of one connection; all times are silences, none limits a whole transfer.
#[derive(Clone, Debug)]
pub struct Options {
    /// From the first byte of a head to its last; ends slow-header attacks.
    pub header_timeout: Duration,
    /// Between two requests.
    pub keep_alive_timeout: Duration,
    /// Without a byte of a request's content while it is wanted.
    pub body_idle_timeout: Duration,
    /// Without the visitor taking a byte of the answer.
    pub write_idle_timeout: Duration,
    /// For the whole of a request's content; none lets uploads take as long as they move.
    pub read_timeout: Option<Duration>,
    /// For the whole of an answer's content.
    pub write_timeout: Option<Duration>,
    /// Bytes of a request head.
    pub head_bytes_max: usize,
    /// Fields of a request head; at most [`head::FIELDS_MAX`] with HTTP/1.1.
    pub head_fields_max: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// Where refusals are counted.
    pub metrics: Arc<Metrics>,
}

/// Serves requests until either side closes, a limit bites or `drain` begins.
pub async fn serve<S: Service>(
    io: Io,
    read_ahead: BytesMut,
    service: &S,
    visitor: &Arc<Visitor>,
    options: &Options,
    drain: &Drain,
) {
    let (read, write) = io.into_split();
    let mut connection = Connection {
        reader: Some(Reader::new(read, read_ahead)),
        writer: write,
        options,
        drain,
        stall: Stall::new(options.write_idle_timeout),
        idle: Idle::new(options.keep_alive_timeout),
        draining: Some(Box::pin(drain.settled())),
        raw: false,
    };
    while let Some(head) = connection.next_head().await {
        if connection.exchange(head, service, visitor).await == After::Close {
            break;
        }
    }
    connection.close().await;
}

struct Connection<'a> {
    /// Absent while a request's content owns it.
    reader: Option<Reader>,
    writer: WriteIo,
    options: &'a Options,
    drain: &'a Drain,
    stall: Stall,
    /// Time for the next head, and between heads; one timer for all requests.
    idle: Idle,
    /// [`Drain::settled`], asked once for all requests; none once it has answered.
    draining: Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>,
    /// The connection was upgraded: its end is content, not an abort.
    raw: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    KeepAlive,
    Close,
}

/// What the content of a request and its connection tell each other.
#[derive(Debug, Default)]
struct Handback {
    /// The reader, when the content is read or given up.
    reader: Option<Reader>,
    /// The content was read to its end, so the next head follows.
    complete: bool,
    /// Somebody wants the content and the visitor waits for `100 Continue`.
    wants_continue: bool,
    continued: bool,
    waker: Option<Waker>,
}

type SharedHandback = Arc<Mutex<Handback>>;

impl Connection<'_> {
    /// The next request head; `None` if the connection is to be closed.
    async fn next_head(&mut self) -> Option<RequestHead> {
        let reader = self.reader.as_mut()?;
        let mut scanner = HeadScanner::default();
        let options = self.options;
        let (idle, draining) = (&mut self.idle, &mut self.draining);
        idle.restart(options.keep_alive_timeout);
        let mut started = false;
        let scanned = poll_fn(|cx| {
            let head = poll_head(reader, &mut scanner, idle, &mut started, options, cx);
            if head.is_ready() {
                return head;
            }
            if draining.as_mut().is_some_and(|draining| draining.as_mut().poll(cx).is_ready()) {
                *draining = None;
            }
            // An idle connection is closed at once on shutdown; one that has begun a request gets its answer.
            let is_over = draining.is_none() && reader.buffer.is_empty();
            if is_over { Poll::Ready(Ok(None)) } else { Poll::Pending }
        })
        .await;
        let error = match scanned {
            Ok(Some(length)) => {
                let bytes = self.reader.as_mut()?.buffer.split_to(length).freeze();
                match head::parse_request(&bytes) {
                    Ok(head) if head.headers.len() > options.head_fields_max => HeadError::TooManyFields,
                    Ok(head) => return Some(head),
                    Err(error) => error,
                }
            }
            Ok(None) => return None,
            Err(Refused::Head(error)) => error,
            Err(Refused::Slow) => {
                options.metrics.refused("head_slow");
                self.refuse(StatusCode::REQUEST_TIMEOUT, "the request head did not arrive in time").await;
                return None;
            }
        };
        options.metrics.refused(error.reason());
        tracing::debug!(reason = error.reason(), "request head refused");
        self.refuse(error.status(), &error.to_string()).await;
        None
    }

    /// Answers a head that cannot be trusted, and nothing after it.
    async fn refuse(&mut self, status: StatusCode, why: &str) {
        let mut out = BytesMut::new();
        let mut response = Response::text(status, "text/plain; charset=utf-8", format!("{why}\n"));
        response.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        encode::response_head(&mut out, status, &response.headers);
        encode::framing(&mut out, response.body.length());
        out.put_slice(b"\r\n");
        let mut sending = Sending::new(out.freeze(), response.body, Encoding::Plain);
        let _ = poll_fn(|cx| self.poll_send(cx, &mut sending, None)).await;
    }

    async fn exchange<S: Service>(
        &mut self,
        head: RequestHead,
        service: &S,
        visitor: &Arc<Visitor>,
    ) -> After {
        let method = head.method.clone();
        let (version, wants_keep_alive) = (head.version, head.keep_alive);
        let upgrade_asked = head.upgrade.is_some();
        let (request, handback) = self.request(head, visitor);
        let mut call = pin!(service.call(request));
        let response = poll_fn(|cx| self.poll_response(cx, call.as_mut(), handback.as_ref())).await;
        let Ok(response) = response else {
            self.options.metrics.aborted();
            return After::Close;
        };
        let raw = upgrade_asked && response.status == StatusCode::SWITCHING_PROTOCOLS;
        self.raw = raw;
        if raw {
            // There is no next head to wait for, and many of these are open for long.
            self.idle.disarm();
        }
        let limit = self.options.write_timeout.filter(|_| !raw);
        let response = Response { body: Deadline::limit(response.body, limit), ..response };
        let mut keep_alive = wants_keep_alive && !raw && !self.drain.is_started();
        let mut sending = start_answer(response, &method, version, &mut keep_alive, raw);
        let sent = poll_fn(|cx| self.poll_send(cx, &mut sending, handback.as_ref())).await;
        // The upload that belongs to the answer lets go of the reader.
        drop((sending.body, sending.pipe));
        scratch::keep(sending.out);
        if sent.is_err() {
            self.options.metrics.aborted();
            return After::Close;
        }
        let complete = self.take_back(handback.as_ref());
        if keep_alive && complete { After::KeepAlive } else { After::Close }
    }

    /// The request for the service; its content takes the reader along.
    fn request(&mut self, head: RequestHead, visitor: &Arc<Visitor>) -> (Request, Option<SharedHandback>) {
        let framing = if head.upgrade.is_some() { Framing::Raw } else { head.framing };
        let (body, handback) = match self.reader.take() {
            Some(reader) if framing != Framing::Empty => {
                let handback = SharedHandback::default();
                let is_much = matches!(framing, Framing::Length(bytes) if bytes >= SPLICED_BYTES_MIN);
                let source = RequestSource {
                    reader: Some(reader),
                    content: Content::new(framing, Some(self.options.body_idle_timeout)),
                    waits_for_continue: head.expect_continue,
                    is_untouched_upgrade: framing == Framing::Raw,
                    handback: Arc::clone(&handback),
                    pipes: is_much.then(|| self.options.metrics.pipes().clone()),
                };
                let body = Body::stream(source, framing.length());
                // The whole-time limits are for messages, not for what an upgraded connection carries.
                let limit = self.options.read_timeout.filter(|_| framing != Framing::Raw);
                (Deadline::limit(body, limit), Some(handback))
            }
            reader => {
                self.reader = reader;
                (Body::empty(), None)
            }
        };
        let request = Request {
            method: head.method,
            uri: head.uri,
            version: head.version,
            host: head.host,
            headers: head.headers,
            body,
            upgrade: head.upgrade,
            visitor: Arc::clone(visitor),
        };
        (request, handback)
    }

    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        mut call: Pin<&mut impl Future<Output = Response>>,
        handback: Option<&SharedHandback>,
    ) -> Poll<Result<Response, VisitorGone>> {
        loop {
            if let Poll::Ready(response) = call.as_mut().poll(cx) {
                return Poll::Ready(Ok(response));
            }
            let wants_continue = handback.is_some_and(|h| lock(h).wants_continue);
            if !wants_continue {
                return self.poll_visitor_gone(cx, handback).map(Err);
            }
            if let Some(handback) = handback {
                // At once, so that a flush that has to wait does not lead to a second one.
                lock(handback).wants_continue = false;
            }
            let mut batch: Batch = [Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n")].into();
            // 25 bytes fit into an empty send buffer; if they do not, the visitor does not read at all.
            match self.stall.poll_write(&mut self.writer, cx, &mut batch) {
                Poll::Ready(Ok(())) => {}
                _ => return Poll::Ready(Err(VisitorGone)),
            }
            // What a flush cannot move now goes out with the next write.
            let _ = self.stall.poll_flush(&mut self.writer, cx);
            if let Some(handback) = handback {
                let mut state = lock(handback);
                state.continued = true;
                if let Some(waker) = state.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// Ready when the visitor closed its connection while its answer is being made.
    fn poll_visitor_gone(
        &mut self,
        cx: &mut Context<'_>,
        handback: Option<&SharedHandback>,
    ) -> Poll<VisitorGone> {
        if self.reader.is_none() {
            self.take_back(handback);
        }
        if self.raw {
            return Poll::Pending;
        }
        let Some(reader) = self.reader.as_mut() else { return Poll::Pending };
        // Requests sent ahead are kept, up to a limit; beyond it the socket holds them.
        while reader.buffer.len() < PIPELINED_BYTES_MAX {
            match ready!(reader.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(VisitorGone),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Sending,
        handback: Option<&SharedHandback>,
    ) -> Poll<Result<(), SendError>> {
        let mut rounds = 0;
        loop {
            if sending.splices() {
                if rounds == SPLICES_MAX {
                    // Others of the lane have their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                rounds += 1;
                if !ready!(self.poll_splice(cx, sending, handback))? {
                    (sending.may_splice, sending.pipe) = (false, None);
                }
            } else if !sending.done && !sending.is_stuck {
                match sending.poll_body(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(SendError::Body(error))),
                    Poll::Pending if sending.out.is_empty() => {
                        self.poll_flushed(cx)?;
                        return self.poll_visitor_gone(cx, handback).map(|_| Err(SendError::VisitorGone));
                    }
                    Poll::Pending => {}
                }
            }
            let written = self.stall.poll_write(&mut self.writer, cx, &mut sending.out);
            sending.is_stuck = written.is_pending();
            match written {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.send_error(error))),
                Poll::Pending => return sending.poll_stuck(cx),
            }
            if sending.done {
                ready!(self.stall.poll_flush(&mut self.writer, cx))
                    .map_err(|error| self.send_error(error))?;
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Has the kernel move what fits into a pipe; false if the content has to be copied.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Sending,
        handback: Option<&SharedHandback>,
    ) -> Poll<Result<bool, SendError>> {
        if sending.pipe.is_none() && self.writer.socket().is_some() {
            sending.pipe = self.options.metrics.pipes().lend();
        }
        let Some(pipe) = &mut sending.pipe else { return Poll::Ready(Ok(false)) };
        if pipe.filled() == 0 {
            match sending.body.poll_pipe(cx, pipe) {
                Poll::Ready(Ok(Some(more))) => sending.done = !more,
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(false)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(SendError::Body(error))),
                Poll::Pending => {
                    // Others may have the pipe meanwhile.
                    sending.pipe = None;
                    return self.poll_visitor_gone(cx, handback).map(|_| Err(SendError::VisitorGone));
                }
            }
        }
        let Some(socket) = self.writer.socket() else { return Poll::Ready(Ok(false)) };
        match self.stall.poll_pipe(socket, cx, pipe) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(true)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.send_error(error))),
            Poll::Pending => match pipe.poll_reclaim(cx) {
                Poll::Ready(Ok(content)) => {
                    sending.copy(content);
                    Poll::Ready(Ok(true))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(self.send_error(error))),
                Poll::Pending => sending.poll_stuck(cx),
            },
        }
    }

    /// Starts a flush; what it cannot move yet is waited for under the stall limit.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Result<(), SendError> {
        match self.stall.poll_flush(&mut self.writer, cx) {
            Poll::Ready(Err(error)) => Err(self.send_error(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn send_error(&self, error: io::Error) -> SendError {
        if error.kind() == io::ErrorKind::TimedOut {
            self.options.metrics.refused("write_stalled");
            return SendError::Stalled;
        }
        SendError::Socket(error)
    }

    /// Takes the reader back from a finished request; true if the next head follows in it.
    fn take_back(&mut self, handback: Option<&SharedHandback>) -> bool {
        let Some(handback) = handback else { return true };
        let mut state = lock(handback);
        if let Some(reader) = state.reader.take() {
            self.reader = Some(reader);
        }
        state.complete && self.reader.is_some()
    }

    /// Closes so that what was written still arrives: a socket closed with unread input resets the connection.
    async fn close(mut self) {
        let closing = async {
            let shut = poll_fn(|cx| Pin::new(&mut self.writer).poll_shutdown(cx));
            tokio::time::timeout(LINGER_SILENCE_MAX, shut).await??;
            while let Some(reader) = self.reader.as_mut() {
                reader.buffer.clear();
                let read =
                    tokio::time::timeout(LINGER_SILENCE_MAX, poll_fn(|cx| reader.poll_fill(cx))).await??;
                if read == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(LINGER_TIME_MAX, closing).await;
    }
}

/// An answer on its way out.
struct Sending {
    /// Encoded bytes ready for the socket.
    out: Batch,
    body: Body,
    encoding: Encoding,
    done: bool,
    /// The socket has no room for `out`: nothing is added, whoever wakes the task.
    is_stuck: bool,
    /// Much content of a known length: the kernel is asked to move it.
    may_splice: bool,
    pipe: Option<Pipe>,
    /// Content that is copied before a pipe is asked for again.
    copied_first: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Framed by length, by close, or raw.
    Plain,
    Chunked,
}

impl Sending {
    fn new(out: Bytes, body: Body, encoding: Encoding) -> Self {
        let may_splice = encoding == Encoding::Plain
            && matches!(body.length(), Length::Known(bytes) if bytes >= SPLICED_BYTES_MIN);
        let mut batch = scratch::batch();
        batch.push_back(out);
        Self {
            out: batch,
            body,
            encoding,
            done: false,
            is_stuck: false,
            may_splice,
            pipe: None,
            copied_first: 0,
        }
    }

    /// Whether what is to be sent next goes through a pipe, or is in it already.
    fn splices(&self) -> bool {
        let is_filled = self.pipe.as_ref().is_some_and(|pipe| pipe.filled() > 0);
        self.may_splice && self.copied_first == 0 && self.out.is_empty() && (!self.done || is_filled)
    }

    /// Goes on without the pipe, in which this was left.
    fn copy(&mut self, content: Bytes) {
        self.out.push_back(content);
        (self.pipe, self.is_stuck, self.copied_first) = (None, true, COPIED_BYTES_MIN);
    }

    /// What goes on while the socket has no room.
    fn poll_stuck<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, SendError>> {
        // The upload that belongs to this exchange.
        self.body.poll_background(cx);
        self.body.poll_due(cx).map(|()| Err(SendError::Body(BodyError::Late)))
    }

    /// Moves the next chunks of the body, encoded, to `out`.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        if self.encoding == Encoding::Plain {
            let more = ready!(self.body.poll_chunks(cx, &mut self.out))?;
            self.done = !more;
            self.copied_first = self.copied_first.saturating_sub(bytes_of(&self.out));
            return Poll::Ready(Ok(()));
        }
        let mut batch = Batch::new();
        let more = ready!(self.body.poll_chunks(cx, &mut batch))?;
        encode::chunk(&mut batch);
        self.out.append(&mut batch);
        if !more {
            self.out.push_back(encode::last_chunk(self.body.take_trailers().as_ref()));
            self.done = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// Encodes the head of an answer, with little content behind it, and decides how its content is framed.
fn start_answer(
    response: Response,
    method: &Method,
    version: Version,
    keep_alive: &mut bool,
    raw: bool,
) -> Sending {
    let (mut body, mut encoding, mut done) = (Body::empty(), Encoding::Plain, false);
    let bytes = response.headers.bytes() + HEAD_BYTES_SPARE;
    let head = scratch::encode(bytes, |out| {
        (body, encoding) = write_head(out, response, method, version, keep_alive, raw);
        out.put_slice(b"\r\n");
        // One buffer is written for less than two.
        let little = if encoding == Encoding::Plain { body.take_little(MERGED_BYTES_MAX) } else { None };
        done = little.is_some();
        out.put_slice(&little.unwrap_or_default());
    });
    Sending { done, ..Sending::new(head, body, encoding) }
}

/// Writes a head without its end; what is left is the content, and how it is to be encoded.
fn write_head(
    out: &mut BytesMut,
    mut response: Response,
    method: &Method,
    version: Version,
    keep_alive: &mut bool,
    raw: bool,
) -> (Body, Encoding) {
    let status = response.status;
    let described = match response.headers.lack(Kinds::LENGTH) {
        true => None,
        false => response.headers.remove(header::CONTENT_LENGTH),
    };
    remove_own_fields(&mut response, version, raw);
    encode::response_head(out, status, &response.headers);
    if !response.headers.has_date() {
        date::with_now(|now| encode::field(out, "Date", now));
    }
    let mut encoding = Encoding::Plain;
    let mut body = response.body;
    if raw {
        return (body, encoding);
    }
    let bodiless =
        *method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if bodiless {
        // The length that a GET would have had, if the origin told it (RFC 9110 §8.6).
        let known = match body.length() {
            Length::Known(bytes) if bytes > 0 => Some(bytes),
            _ => described.as_ref().and_then(super::framing::parse_length),
        };
        if let Some(bytes) = known.filter(|_| status != StatusCode::NO_CONTENT) {
            encode::content_length(out, bytes);
        }
        body = Body::empty();
    } else {
        match body.length() {
            Length::Unknown if version == Version::HTTP_11 => encoding = Encoding::Chunked,
            Length::Unknown | Length::Raw => *keep_alive = false,
            Length::Known(_) => {}
        }
        if encoding == Encoding::Chunked || matches!(body.length(), Length::Known(_)) {
            encode::framing(out, body.length());
        }
    }
    if !*keep_alive {
        encode::field(out, "Connection", b"close");
    } else if version == Version::HTTP_10 {
        encode::field(out, "Connection", b"keep-alive");
    }
    (body, encoding)
}

/// Takes off what this side of the connection alone says (RFC 9112 §6.1, §9.6): a middleware may have put it there, and a
/// second word about framing would make the rest of the connection unreadable.
fn remove_own_fields(response: &mut Response, version: Version, raw: bool) {
    if raw {
        response.headers.remove(header::TRANSFER_ENCODING);
        return;
    }
    headers::remove_hop_by_hop_but_trailer(&mut response.headers, response.body.length());
    if version != Version::HTTP_11 {
        response.headers.remove(header::TRAILER);
    }
}

/// A request's content while its reader is out of the connection's hands.
struct RequestSource {
    reader: Option<Reader>,
    content: Content,
    waits_for_continue: bool,
    /// An upgrade that nobody took up: what follows the head is the next request.
    is_untouched_upgrade: bool,
    handback: SharedHandback,
    /// Where there is much content of a known length.
    pipes: Option<Pipes>,
}

impl BodySource for RequestSource {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        ready!(self.poll_continued(cx));
        let Some(reader) = self.reader.as_mut() else { return Poll::Ready(Ok(false)) };
        let more = ready!(self.content.poll_chunks(reader, cx, out))?;
        self.is_untouched_upgrade = false;
        if !more {
            self.hand_back(true);
        }
        Poll::Ready(Ok(more))
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<Option<bool>, BodyError>> {
        ready!(self.poll_continued(cx));
        let Some(reader) = self.reader.as_mut() else { return Poll::Ready(Ok(None)) };
        let more = ready!(self.content.poll_pipe(reader, cx, pipe))?;
        if more.is_some() {
            reader.expect_little();
        }
        if more == Some(false) {
            self.hand_back(true);
        }
        Poll::Ready(Ok(more))
    }

    fn lend_pipe(&self) -> Option<Pipe> {
        self.reader.as_ref()?.socket()?;
        self.pipes.as_ref()?.lend()
    }

    fn take_trailers(&mut self) -> Option<http::HeaderMap> {
        self.content.take_trailers()
    }
}

impl RequestSource {
    /// RFC 9110 §10.1.1: asks for the content where that is waited for; a visitor that did not wait needs no 100.
    fn poll_continued(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let has_none = self.reader.as_ref().is_some_and(|reader| reader.buffer.is_empty());
        if self.waits_for_continue && has_none {
            let mut state = lock(&self.handback);
            if !state.continued {
                state.wants_continue = true;
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        self.waits_for_continue = false;
        Poll::Ready(())
    }

    fn hand_back(&mut self, complete: bool) {
        if let Some(reader) = self.reader.take() {
            let mut state = lock(&self.handback);
            state.reader = Some(reader);
            state.complete = complete;
        }
    }
}

impl Drop for RequestSource {
    fn drop(&mut self) {
        self.hand_back(self.is_untouched_upgrade);
    }
}

enum Refused {
    Head(HeadError),
    Slow,
}

struct VisitorGone;

#[derive(Debug)]
#[expect(dead_code, reason = "the reasons are for the debugger and the log of a test")]
enum SendError {
    Body(BodyError),
    Socket(io::Error),
    Stalled,
    VisitorGone,
}

fn poll_head(
    reader: &mut Reader,
    scanner: &mut HeadScanner,
    idle: &mut Idle,
    started: &mut bool,
    options: &Options,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<usize>, Refused>> {
    loop {
        if !*started {
            head::skip_empty_lines(&mut reader.buffer);
        }
        if !reader.buffer.is_empty() {
            if !*started {
                *started = true;
                idle.restart(options.header_timeout);
            }
            if let Some(length) =
                scanner.find(&reader.buffer, options.head_bytes_max).map_err(Refused::Head)?
            {
                return Poll::Ready(Ok(Some(length)));
            }
        }
        match reader.poll_fill(cx) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Ok(None)),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => {
                ready!(idle.poll(cx));
                return Poll::Ready(if *started { Err(Refused::Slow) } else { Ok(None) });
            }
        }
    }
}

fn lock(handback: &SharedHandback) -> std::sync::MutexGuard<'_, Handback> {
    // Nothing panics while the lock is held; a poisoned state is still consistent.
    handback.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Content behind a head, and what a head has besides its fields.
const HEAD_BYTES_SPARE: usize = MERGED_BYTES_MAX + 256;
/// Content copied behind its head.
const MERGED_BYTES_MAX: usize = 4 * 1024;
/// Requests sent ahead of an answer that are read to notice a closed connection.
const PIPELINED_BYTES_MAX: usize = 64 * 1024;
/// How long a visitor that has been answered may go on sending a request that nobody wants: a socket closed with unread
/// input takes what it still has to send with it.
const LINGER_TIME_MAX: Duration = Duration::from_secs(30);
/// How long it may be silent meanwhile.
const LINGER_SILENCE_MAX: Duration = Duration::from_secs(2);
