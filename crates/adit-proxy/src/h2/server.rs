//! One visitor's HTTP/2 connection: a task for the connection and one for each request.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::fields::{self, Refused};
use super::gathered::Gathered;
use super::stream::{Incoming, Outgoing, SendFailure};
use super::websocket;
use crate::body::{Body, Length};
use crate::clock;
use crate::drain::Drain;
use crate::h1::server::Options;
use crate::idle::{Deadline, Idle};
use crate::message::{Request, Response, Service, Visitor};
use crate::wanted;

/// Serves requests until the connection ends or `drain` begins and the last stream is done.
pub async fn serve<S: Service>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    service: &Arc<S>,
    visitor: &Arc<Visitor>,
    options: &Options,
    drain: &Drain,
) {
    let (metrics, builder) = (&options.metrics, builder(options));
    let io = Gathered::new(io);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(io));
    let Ok(Ok(mut connection)) = handshake.await else {
        metrics.refused("h2_handshake");
        return;
    };
    // Cloned into each request: more than one owner means that something is being answered.
    let exchange = Arc::new(Exchange {
        service: Arc::clone(service),
        visitor: Arc::clone(visitor),
        options: options.clone(),
    });
    let mut draining = false;
    // One timer and one wait for a drain serve all requests of the connection.
    let mut look = Idle::new(options.keep_alive_timeout);
    let mut drained = pin!(drain.started());
    loop {
        let next = poll_fn(|cx| {
            if let Poll::Ready(accepted) = connection.poll_accept(cx) {
                return Poll::Ready(Next::Accepted(accepted));
            }
            if !draining && drained.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Next::Drain);
            }
            look.poll(cx).map(|()| Next::Look)
        });
        let accepted = match next.await {
            Next::Accepted(accepted) => accepted,
            Next::Look => {
                let busy = Arc::strong_count(&exchange) > 1;
                if !busy && draining {
                    // GOAWAY waits for an answer that a silent visitor never gives.
                    metrics.refused("h2_silent");
                    return;
                }
                if !busy {
                    draining = true;
                    connection.graceful_shutdown();
                }
                look.restart(if draining { GOAWAY_TIME } else { options.keep_alive_timeout });
                continue;
            }
            Next::Drain => {
                draining = true;
                connection.graceful_shutdown();
                look.restart(GOAWAY_TIME);
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                look.touch();
                // Behind a pointer, because spawning moves a future several times.
                tokio::spawn(Box::pin(clock::ticking(answer(request, respond, Arc::clone(&exchange)))));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, reason = "h2_connection", "connection ended");
                if !error.is_io() {
                    metrics.refused("h2_protocol");
                }
                return;
            }
            None => return,
        }
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

/// What a connection is to see to.
enum Next<A> {
    Accepted(A),
    /// Whether anything is being answered.
    Look,
    Drain,
}

/// What the requests of a connection share.
struct Exchange<S> {
    service: Arc<S>,
    visitor: Arc<Visitor>,
    options: Options,
}

async fn answer<S: Service>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    exchange: Arc<Exchange<S>>,
) {
    let metrics = &exchange.options.metrics;
    let is_head = *request.method() == Method::HEAD;
    let (request, mut wanted) = match translate(request, &exchange) {
        Ok(translated) => translated,
        Err(refused) => {
            metrics.refused(refused.reason);
            let mut refusal = http::Response::new(());
            *refusal.status_mut() = refused.status;
            let _ = respond.send_response(refusal, true);
            return;
        }
    };
    let is_upgrade = request.upgrade.is_some();
    let mut call = pin!(exchange.service.call(request));
    let response = poll_fn(|cx| {
        if let Poll::Ready(response) = call.as_mut().poll(cx) {
            return Poll::Ready(Some(response));
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
    .await;
    let Some(response) = response else {
        metrics.aborted();
        return;
    };
    let response = if is_upgrade { websocket::answer(response) } else { response };
    // The whole-time limits are for messages, not for what an upgraded connection carries.
    let limit = exchange.options.write_timeout.filter(|_| response.body.length() != Length::Raw);
    let body = Deadline::limit(response.body, limit);
    let response = Response { body, ..response };
    if let Err(failure) = send(response, &mut respond, is_head, exchange.options.write_idle_timeout).await {
        if failure == SendFailure::Stalled {
            metrics.refused("write_stalled");
        }
        metrics.aborted();
    }
}

async fn send(
    response: Response,
    respond: &mut SendResponse<Bytes>,
    is_head: bool,
    stall: Duration,
) -> Result<(), SendFailure> {
    let (head, body) = fields::write(response, is_head);
    let ends = body.is_empty();
    let stream = respond.send_response(head, ends).map_err(|_| SendFailure::Peer)?;
    if ends {
        return Ok(());
    }
    let mut outgoing = Outgoing::new(stream, body, stall);
    poll_fn(|cx| outgoing.poll(cx)).await
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
        headers: headers.into(),
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
/// From GOAWAY, or the last answer after it, to the end of the connection.
const GOAWAY_TIME: Duration = Duration::from_secs(3);
/// For the client preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http::header::{self, HeaderValue};

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
        fn poll_chunks(
            &mut self,
            cx: &mut std::task::Context<'_>,
            out: &mut Batch,
        ) -> Poll<Result<bool, BodyError>> {
            self.0.poll_chunks(cx, out)
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
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let (_start, drain) = drain::channel();
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
            serve(theirs, &Arc::new(Echo), &Arc::new(visitor), &options(), &drain).await;
        });
        let (mut sender, mut connection) = h2::client::handshake(ours).await.unwrap();
        // The server's settings allow extended CONNECT; they must have arrived.
        poll_fn(|cx| {
            let _ = Future::poll(Pin::new(&mut connection), cx);
            if sender.is_extended_connect_protocol_enabled() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        tokio::spawn(connection);
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        sender
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
