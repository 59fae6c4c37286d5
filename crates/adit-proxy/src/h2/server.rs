//! One visitor's HTTP/2 connection: one task for the connection and all its requests.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::fields::{self, Refused};
use super::gathered::Gathered;
use super::stream::{Incoming, Outgoing, SendFailure};
use super::streams::Streams;
use super::websocket;
use crate::body::{Body, Length};
use crate::drain::Drain;
use crate::h1::server::Options;
use crate::idle::{Deadline, Idle};
use crate::message::{Request, Response, Service, Visitor};
use crate::metrics::Metrics;
use crate::wanted;

/// Serves requests until the connection ends or `drain` begins and the last stream is done.
pub async fn serve<S: Service>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    service: &Arc<S>,
    visitor: &Arc<Visitor>,
    options: &Options,
    drain: &Drain,
) {
    let io = Gathered::new(io);
    let handshake = builder(options).handshake::<_, Bytes>(io.clone());
    let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await else {
        options.metrics.refused("h2_handshake");
        return;
    };
    io.hold();
    let exchange = Arc::new(Exchange {
        service: Arc::clone(service),
        visitor: Arc::clone(visitor),
        options: options.clone(),
    });
    let mut session = Session {
        connection,
        io,
        streams: Streams::new(),
        options,
        drained: pin!(drain.started()),
        draining: false,
        look: Idle::new(options.keep_alive_timeout),
        stall: (0, Idle::new(options.write_idle_timeout)),
    };
    poll_fn(|cx| session.poll(cx, |asked| begin(asked, &exchange))).await;
}

/// A connection and what is being answered on it.
struct Session<'a, I, D, F> {
    connection: Connection<Gathered<I>, Bytes>,
    /// The same stream as the connection's.
    io: Gathered<I>,
    streams: Streams<F>,
    options: &'a Options,
    drained: Pin<&'a mut D>,
    draining: bool,
    /// One timer serves all requests of the connection.
    look: Idle,
    /// How long nothing has been written since this.
    stall: (usize, Idle),
}

type Asked = (http::Request<RecvStream>, SendResponse<Bytes>);

impl<I, D, F> Session<'_, I, D, F>
where
    I: AsyncRead + AsyncWrite + Unpin,
    D: Future<Output = ()>,
    F: Future<Output = ()>,
{
    /// One turn: what was woken, then the connection with the frames of all, until there is nothing left to do at the moment.
    fn poll(&mut self, cx: &mut Context<'_>, begin: impl Fn(Asked) -> Option<F>) -> Poll<()> {
        self.streams.begin(cx);
        let waker = self.streams.connection_waker();
        let mut own = Context::from_waker(&waker);
        for _ in 0..PASSES_MAX {
            self.streams.begin_pass();
            let mut more = true;
            while more {
                more = self.streams.poll_some();
                if self.streams.take_connection() && self.poll_connection(&mut own, &begin).is_ready() {
                    return Poll::Ready(());
                }
            }
            if !self.streams.are_woken() {
                break;
            }
        }
        if let Poll::Ready(Err(error)) = self.io.poll_drain(&mut own) {
            tracing::debug!(%error, reason = "h2_connection", "connection ended");
            return Poll::Ready(());
        }
        self.streams.end(cx);
        Poll::Pending
    }

    /// Ready at the end of the connection.
    fn poll_connection(&mut self, cx: &mut Context<'_>, begin: impl Fn(Asked) -> Option<F>) -> Poll<()> {
        self.io.begin();
        for _ in 0..ACCEPTED_MAX {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok(asked))) => {
                    self.look.touch();
                    // As for its polls: a fault of one is not to end those beside it.
                    let answer = catch_unwind(AssertUnwindSafe(|| begin(asked)));
                    if let Ok(Some(answer)) = answer {
                        self.streams.push(answer);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, reason = "h2_connection", "connection ended");
                    if !error.is_io() {
                        self.options.metrics.refused("h2_protocol");
                    }
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return self.poll_end(cx),
            }
        }
        // Those that were accepted come first.
        self.streams.wake_connection();
        Poll::Pending
    }

    /// Looks whether the connection is to end: in a drain, or because nothing is asked on it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.draining && self.drained.as_mut().poll(cx).is_ready() {
            self.shut_down();
            // What waits then has the write limit from here on, however long it has waited before.
            self.stall.1.touch();
            return Poll::Pending;
        }
        if self.look.poll(cx).is_pending() {
            return Poll::Pending;
        }
        let idle = self.streams.is_empty();
        // What has been answered may still wait for room in the visitor's windows and in its socket.
        let has_more = self.connection.has_streams() || self.io.is_waiting();
        if idle && has_more && !self.is_stalled(cx) {
            self.look.restart(GOAWAY_TIME);
            self.streams.wake_connection();
            return Poll::Pending;
        }
        if idle && self.draining {
            // GOAWAY waits for an answer that a silent visitor never gives.
            self.options.metrics.refused("h2_silent");
            return Poll::Ready(());
        }
        if idle {
            self.shut_down();
        } else {
            self.look.restart(if self.draining { GOAWAY_TIME } else { self.options.keep_alive_timeout });
            self.streams.wake_connection();
        }
        Poll::Pending
    }

    /// Whether the visitor has taken nothing for too long.
    fn is_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        let (before, since) = (self.stall.0, &mut self.stall.1);
        let written = self.io.written();
        if written != before {
            self.stall.0 = written;
            since.touch();
        }
        since.poll(cx).is_ready()
    }

    /// Takes no more requests.
    fn shut_down(&mut self) {
        self.draining = true;
        self.connection.graceful_shutdown();
        self.look.restart(GOAWAY_TIME);
        self.streams.wake_connection();
    }
}

fn builder(options: &Options) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(options.streams_max)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(options.head_bytes_max).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .enable_connect_protocol();
    builder
}

/// What the requests of a connection share.
struct Exchange<S> {
    service: Arc<S>,
    visitor: Arc<Visitor>,
    options: Options,
}

/// What answers a request; none if that is done.
fn begin<S: Service>(
    (request, mut respond): Asked,
    exchange: &Arc<Exchange<S>>,
) -> Option<impl Future<Output = ()> + use<S>> {
    let is_head = *request.method() == Method::HEAD;
    match translate(request, exchange) {
        Ok((request, wanted)) => Some(answer(request, wanted, (respond, is_head), Arc::clone(exchange))),
        Err(refused) => {
            exchange.options.metrics.refused(refused.reason);
            let mut refusal = http::Response::new(());
            *refusal.status_mut() = refused.status;
            let _ = respond.send_response(refusal, true);
            None
        }
    }
}

/// No `async fn`, which would keep its arguments twice: this future is moved as a whole once for each request. So nothing large
/// is kept in it while it waits, either.
#[expect(clippy::manual_async_fn, reason = "what it returns is smaller")]
fn answer<S: Service>(
    request: Request,
    mut wanted: Option<oneshot::Receiver<()>>,
    (mut respond, is_head): (SendResponse<Bytes>, bool),
    exchange: Arc<Exchange<S>>,
) -> impl Future<Output = ()> + use<S> {
    async move {
        let Exchange { service, options, .. } = &*exchange;
        let mut ending = Ending { metrics: &options.metrics, is_answered: false };
        let is_upgrade = request.upgrade.is_some();
        let mut begun = {
            let mut call = pin!(service.call(request));
            poll_fn(|cx| {
                if let Poll::Ready(response) = call.as_mut().poll(cx) {
                    return Poll::Ready(Some(send(response, is_upgrade, &mut respond, is_head, options)));
                }
                if let Some(waiting) = &mut wanted
                    && let Poll::Ready(result) = Pin::new(waiting).poll(cx)
                {
                    wanted = None;
                    if result.is_ok() {
                        let _ = respond.send_informational(wanted::go_on());
                    }
                }
                // The visitor reset the stream: dropping the call aborts the exchange with the origin.
                respond.poll_reset(cx).map(|_| None)
            })
            .await
        };
        let sent = match &mut begun {
            Some(Ok(Some(outgoing))) => poll_fn(|cx| outgoing.poll(cx)).await,
            Some(Ok(None)) => Ok(()),
            Some(Err(failure)) => Err(*failure),
            None => return,
        };
        match sent {
            Ok(()) => ending.is_answered = true,
            Err(SendFailure::Stalled) => options.metrics.refused("write_stalled"),
            Err(SendFailure::Peer | SendFailure::Body) => {}
        }
    }
}

/// Counts an exchange that ends before its answer is complete, with its connection too.
struct Ending<'a> {
    metrics: &'a Metrics,
    is_answered: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.metrics.aborted();
        }
    }
}

/// Sends the head of an answer; then the content is to follow, if there is any.
fn send(
    response: Response,
    is_upgrade: bool,
    respond: &mut SendResponse<Bytes>,
    is_head: bool,
    options: &Options,
) -> Result<Option<Outgoing>, SendFailure> {
    let response = if is_upgrade { websocket::answer(response) } else { response };
    // The whole-time limits are for messages, not for what an upgraded connection carries.
    let limit = options.write_timeout.filter(|_| response.body.length() != Length::Raw);
    let body = Deadline::limit(response.body, limit);
    let (head, body) = fields::write(Response { body, ..response }, is_head);
    let ends = body.is_empty();
    let stream = respond.send_response(head, ends).map_err(|_| SendFailure::Peer)?;
    Ok((!ends).then(|| Outgoing::new(stream, body, options.write_idle_timeout)))
}

/// The request in our own form, with the checks that HTTP/1.1's parser does for its side; and what tells when its content
/// is wanted, if the visitor waits for that.
fn translate<S>(
    request: http::Request<RecvStream>,
    exchange: &Exchange<S>,
) -> Result<(Request, Option<oneshot::Receiver<()>>), Refused> {
    let (parts, stream) = request.into_parts();
    let protocol = parts.extensions.get::<h2::ext::Protocol>().map(|protocol| protocol.as_str().to_owned());
    let head = fields::read(parts, protocol.as_deref(), exchange.options.head_fields_max)?;
    let fields::Head { method, uri, host, mut headers, is_websocket, length, expects_continue } = head;
    let options = &exchange.options;
    let body = if is_websocket {
        websocket::prepare(&mut headers);
        Body::stream(Incoming::new(stream, None), Length::Raw)
    } else if stream.is_end_stream() || length == Some(0) {
        Body::empty()
    } else {
        let length = length.map_or(Length::Unknown, Length::Known);
        let body = Body::stream(Incoming::new(stream, Some(options.body_idle_timeout)), length);
        Deadline::limit(body, options.read_timeout)
    };
    let (body, wanted) = match expects_continue && !body.is_empty() && !is_websocket {
        true => {
            let (body, wanted) = wanted::announced(body);
            (body, Some(wanted))
        }
        false => (body, None),
    };
    let request = Request {
        method,
        uri,
        version: http::Version::HTTP_2,
        host,
        // A handshake's fields are looked up one by one.
        headers: if is_websocket { headers.into() } else { fields::lines(&headers) },
        body,
        upgrade: is_websocket.then(|| websocket::PROTOCOL.into()),
        visitor: Arc::clone(&exchange.visitor),
    };
    Ok((request, wanted))
}

/// Upload credit of one stream: fills 400 Mbit/s at 20 ms.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Upload credit of all streams of a connection, so the most that a visitor can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Download bytes buffered per stream beyond the socket.
const SEND_BUFFER_BYTES_MAX: usize = 512 * 1024;
/// Streams reset by us that are remembered for late frames.
const RESET_STREAMS_MAX: usize = 64;
/// Streams that a visitor may open and reset before we see them (rapid reset, CVE-2023-44487): then the connection ends.
const PENDING_RESETS_MAX: usize = 32;
/// How often a turn looks at what its own work has woken, before others have theirs: answers fill the windows that frames
/// written in the same turn have opened.
const PASSES_MAX: u32 = 4;
/// Requests accepted in a pass; more wait for those to be begun.
const ACCEPTED_MAX: u32 = 64;
/// From GOAWAY, or the last answer after it, to the end of the connection.
const GOAWAY_TIME: Duration = Duration::from_secs(3);
/// For the client preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::StatusCode;
    use http::header::{self, HeaderValue};
    use tokio::io::{DuplexStream, ReadBuf};
    use tokio::sync::Notify;

    use super::*;
    use crate::body::{Batch, BodyError, BodySource};
    use crate::drain;
    use crate::metrics::Metrics;

    /// Echoes upgraded bytes; answers everything else 204.
    struct Echo;

    impl Service for Echo {
        async fn call(&self, request: Request) -> Response {
            if request.upgrade.is_none() {
                return Response::status(StatusCode::NO_CONTENT);
            }
            assert_eq!(request.method, Method::GET);
            assert_eq!(request.uri.path(), "/chat");
            assert!(request.headers.contains_key("sec-websocket-key"));
            let mut response = Response::status(StatusCode::SWITCHING_PROTOCOLS);
            response.headers.insert("sec-websocket-accept", HeaderValue::from_static("x"));
            response.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            response.body = Body::stream(Back(request.body), Length::Raw);
            response
        }
    }

    struct Back(Body);

    impl BodySource for Back {
        fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
            self.0.poll_chunks(cx, out)
        }
    }

    /// Answers 1 KiB at once.
    struct Page;

    impl Service for Page {
        async fn call(&self, _request: Request) -> Response {
            Response::text(StatusCode::OK, "text/plain", vec![b'x'; 1024])
        }
    }

    /// Answers at once with more than a pipe takes and less than a window.
    struct Large;

    impl Service for Large {
        async fn call(&self, _request: Request) -> Response {
            Response::text(StatusCode::OK, "text/plain", vec![b'x'; LARGE_BYTES])
        }
    }

    const LARGE_BYTES: usize = 60_000;

    /// Says that it was asked, and never answers.
    struct Never(Arc<Notify>);

    impl Service for Never {
        async fn call(&self, _request: Request) -> Response {
            self.0.notify_one();
            std::future::pending().await
        }
    }

    /// A stream that counts what is written to it.
    struct Counting(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// Answers 400 to content that is broken.
    struct Strict;

    impl Service for Strict {
        async fn call(&self, mut request: Request) -> Response {
            loop {
                match poll_fn(|cx| request.body.poll_chunks(cx, &mut Batch::new())).await {
                    Ok(true) => {}
                    Ok(false) => return Response::status(StatusCode::OK),
                    Err(error) => {
                        assert_eq!(error, BodyError::Trailers);
                        return Response::status(StatusCode::BAD_REQUEST);
                    }
                }
            }
        }
    }

    fn options() -> Options {
        let second = Duration::from_secs(1);
        Options {
            header_timeout: second,
            keep_alive_timeout: second,
            body_idle_timeout: second,
            write_idle_timeout: second,
            read_timeout: Some(second),
            write_timeout: Some(second),
            head_bytes_max: 16_384,
            head_fields_max: 64,
            streams_max: 8,
            metrics: Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap()),
        }
    }

    async fn client() -> h2::client::SendRequest<Bytes> {
        client_of(Echo, options()).await.sender
    }

    struct Client {
        sender: h2::client::SendRequest<Bytes>,
        connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
        /// What the server has written, in pieces.
        writes: Arc<AtomicUsize>,
    }

    async fn client_of(service: impl Service, options: Options) -> Client {
        let (mut sender, connection, writes) = open(service, options, 64 * 1024).await;
        let connection = tokio::spawn(connection);
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        Client { sender, connection, writes }
    }

    /// A connection over a pipe of some size.
    async fn open(
        service: impl Service,
        options: Options,
        bytes: usize,
    ) -> (h2::client::SendRequest<Bytes>, h2::client::Connection<DuplexStream>, Arc<AtomicUsize>) {
        open_until(std::future::pending(), service, options, bytes).await
    }

    /// A connection that is drained when `end` is ready.
    async fn open_until(
        end: impl Future<Output = ()> + Send + 'static,
        service: impl Service,
        options: Options,
        bytes: usize,
    ) -> (h2::client::SendRequest<Bytes>, h2::client::Connection<DuplexStream>, Arc<AtomicUsize>) {
        let (ours, theirs) = tokio::io::duplex(bytes);
        let writes = Arc::new(AtomicUsize::new(0));
        let theirs = Counting(theirs, Arc::clone(&writes));
        let (start, drain) = drain::channel();
        tokio::spawn(async move {
            end.await;
            start.start();
        });
        tokio::spawn(async move {
            let address = "192.0.2.1:1".parse().unwrap();
            let visitor = Visitor {
                remote: address,
                local: address,
                secure: false,
                entry_point: "web".into(),
                peer: None,
                tls: None,
                address: crate::message::AddressText::default(),
            };
            serve(theirs, &Arc::new(service), &Arc::new(visitor), &options, &drain).await;
        });
        let (sender, mut connection) = h2::client::handshake(ours).await.unwrap();
        // The server's settings allow extended CONNECT; they must have arrived.
        poll_fn(|cx| {
            let _ = Future::poll(Pin::new(&mut connection), cx);
            if sender.is_extended_connect_protocol_enabled() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        (sender, connection, writes)
    }

    fn get() -> http::Request<()> {
        http::Request::builder().uri("https://a.test/").body(()).unwrap()
    }

    #[tokio::test]
    async fn answers_of_one_turn_leave_in_one_write() {
        let Client { mut sender, writes, .. } = client_of(Page, options()).await;
        let before = writes.load(Ordering::SeqCst);
        let answers: Vec<_> = (0..8).map(|_| sender.send_request(get(), true).unwrap().0).collect();
        for answer in answers {
            let mut body = answer.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap().len(), 1024);
        }
        assert_eq!(writes.load(Ordering::SeqCst) - before, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_gives_an_answer_of_which_nothing_was_taken_the_whole_write_limit() {
        let options = Options { write_idle_timeout: Duration::from_secs(30), ..options() };
        let drain = tokio::time::sleep(Duration::from_secs(28));
        let (mut sender, mut connection, _) = open_until(drain, Large, options, 4096).await;
        let (answer, _) = sender.send_request(get(), true).unwrap();
        poll_fn(|cx| {
            let _ = Pin::new(&mut connection).poll(cx);
            Poll::Ready(())
        })
        .await;
        // Longer than is left of the limit that began with the answer.
        tokio::time::sleep(Duration::from_secs(50)).await;
        tokio::spawn(connection);
        let (mut body, mut bytes) = (answer.await.unwrap().into_body(), 0);
        while let Some(data) = body.data().await {
            bytes += data.unwrap().len();
        }
        assert_eq!(bytes, LARGE_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_only_when_the_visitor_has_what_was_answered_or_takes_nothing() {
        for silence in [8, 60] {
            let options = Options { write_idle_timeout: Duration::from_secs(30), ..options() };
            let (mut sender, mut connection, _) = open(Large, options, 4096).await;
            let (answer, _) = sender.send_request(get(), true).unwrap();
            // The request goes out; then nothing is read, for longer than an idle connection may last.
            poll_fn(|cx| {
                let _ = Pin::new(&mut connection).poll(cx);
                Poll::Ready(())
            })
            .await;
            tokio::time::sleep(Duration::from_secs(silence)).await;
            let connection = tokio::spawn(connection);
            let mut bytes = 0;
            if let Ok(answer) = answer.await {
                let mut body = answer.into_body();
                while let Some(Ok(data)) = body.data().await {
                    bytes += data.len();
                }
            }
            assert_eq!(bytes == LARGE_BYTES, silence == 8, "{bytes} after {silence} s");
            drop(sender);
            let _ = connection.await;
        }
    }

    #[tokio::test]
    async fn what_was_being_answered_is_counted_when_the_connection_goes() {
        let (asked, registry) = (Arc::new(Notify::new()), prometheus::Registry::new());
        let options = Options { metrics: Arc::new(Metrics::new(&registry).unwrap()), ..options() };
        let Client { mut sender, connection, .. } = client_of(Never(Arc::clone(&asked)), options).await;
        let _answer = sender.send_request(get(), true).unwrap();
        asked.notified().await;
        connection.abort();
        let aborted = || {
            let families = registry.gather();
            let family = families.iter().find(|family| family.name() == "adit_proxy_aborted_total");
            family.is_some_and(|family| family.get_metric()[0].get_counter().get_value() >= 1.0)
        };
        let counted = async {
            while !aborted() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), counted).await.unwrap();
    }

    #[tokio::test]
    async fn a_trailer_whose_name_is_no_token_breaks_the_content() {
        for (name, status) in [(&b"x-sum"[..], StatusCode::OK), (b"x\"sum", StatusCode::BAD_REQUEST)] {
            let mut sender = client_of(Strict, options()).await.sender;
            let (answer, mut content) = sender.send_request(get(), false).unwrap();
            content.send_data(Bytes::from_static(b"1"), false).unwrap();
            let name = header::HeaderName::from_lowercase(name).unwrap();
            content.send_trailers([(name, HeaderValue::from_static("v"))].into_iter().collect()).unwrap();
            assert_eq!(answer.await.unwrap().status(), status);
        }
    }

    fn connect(protocol: Option<&'static str>) -> http::Request<()> {
        let uri = if protocol.is_some() { "https://a.test/chat" } else { "a.test:443" };
        let mut request = http::Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
        }
        request
    }

    #[tokio::test]
    async fn a_websocket_is_opened_by_extended_connect() {
        let (response, mut send) = client().await.send_request(connect(Some("websocket")), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        assert!(!response.headers().contains_key(header::UPGRADE));
        send.send_data(Bytes::from_static(b"ping"), false).unwrap();
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "ping");
        send.send_data(Bytes::new(), true).unwrap();
        assert!(body.data().await.is_none_or(|data| data.unwrap().is_empty()));
    }

    #[tokio::test]
    async fn other_connects_are_not_implemented() {
        for protocol in [None, Some("connect-udp")] {
            let (response, _send) = client().await.send_request(connect(protocol), true).unwrap();
            assert_eq!(response.await.unwrap().status(), StatusCode::NOT_IMPLEMENTED);
        }
    }
}
