//! One visitor's HTTP/3 connection: a task for the connection and one for each request.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::h3::error::Code;
use ::h3::server::RequestResolver;
use bytes::Bytes;
use http::{Method, Version};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::bounded::BoundedConnection;
use super::stream::{self, Incoming, SendFailure, Sender};
use crate::body::{Body, Length};
use crate::drain::Drain;
use crate::h1::server::Options;
use crate::h2::fields::{self, Refused};
use crate::idle::Deadline;
use crate::message::{Request, Response, Service, Visitor};
use crate::wanted;

/// What the requests of a connection share.
struct Exchange<S> {
    service: Arc<S>,
    visitor: Arc<Visitor>,
    options: Options,
}

/// Serves requests until the connection ends or `drain` begins and the last request is answered.
pub(super) async fn serve<S: Service>(
    connection: quinn::Connection,
    service: Arc<S>,
    visitor: Arc<Visitor>,
    options: &Options,
    drain: &Drain,
) {
    let metrics = Arc::clone(&options.metrics);
    // A field section is compressed: no frame that it comes in is larger than what it may become.
    let bounded = BoundedConnection::new(connection.clone(), options.head_bytes_max as u64);
    let mut builder = ::h3::server::builder();
    builder.max_field_section_size(options.head_bytes_max as u64);
    let Ok(Ok(mut http)) = timeout(SETTINGS_TIMEOUT, builder.build::<_, Bytes>(bounded)).await else {
        return metrics.refused("h3_settings");
    };
    let exchange = Arc::new(Exchange { service, visitor, options: options.clone() });
    let mut requests = JoinSet::new();
    let mut draining = false;
    let mut look = Instant::now() + options.keep_alive_timeout;
    loop {
        tokio::select! {
            // A visitor that resets its streams gets no more answers made at once than one that does not.
            accepted = http.accept(), if requests.len() < options.streams_max as usize => match accepted {
                Ok(Some(resolver)) => {
                    requests.spawn(answer(resolver, Arc::clone(&exchange)));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, reason = "h3_connection", "connection ended");
                    return;
                }
            },
            Some(_) = requests.join_next() => {
                look = Instant::now() + if draining { GOAWAY_TIME } else { options.keep_alive_timeout };
            }
            () = sleep_until(look), if requests.is_empty() => {
                if draining {
                    break;
                }
                draining = true;
                look = Instant::now() + GOAWAY_TIME;
                let _ = http.shutdown(0).await;
            }
            () = drain.started(), if !draining => {
                draining = true;
                look = Instant::now() + GOAWAY_TIME;
                let _ = http.shutdown(0).await;
            }
        }
    }
    while requests.join_next().await.is_some() {}
    connection.close(NO_ERROR, b"");
}

async fn answer<S: Service>(resolver: RequestResolver<BoundedConnection, Bytes>, exchange: Arc<Exchange<S>>) {
    let options = &exchange.options;
    let metrics = &options.metrics;
    let (request, stream) = match timeout(options.header_timeout, resolver.resolve_request()).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(error)) => {
            tracing::debug!(%error, reason = "h3_head", "request head refused");
            return metrics.refused("h3_head");
        }
        Err(_) => return metrics.refused("head_slow"),
    };
    let is_head = *request.method() == Method::HEAD;
    let (mut sender, receiver) = stream.split();
    let head = match fields::read(request.into_parts().0, None, options.head_fields_max) {
        Ok(head) => head,
        Err(refused) => return refuse(&mut sender, &refused, options).await,
    };
    let body = match head.length {
        Some(0) => Body::empty(),
        length => {
            let known = length.map_or(Length::Unknown, Length::Known);
            let body = Body::stream(Incoming::new(receiver, length, options.body_idle_timeout), known);
            Deadline::limit(body, options.read_timeout)
        }
    };
    let (body, wanted) = match head.expects_continue && !body.is_empty() {
        true => {
            let (body, wanted) = wanted::announced(body);
            (body, Some(wanted))
        }
        false => (body, None),
    };
    let request = Request {
        method: head.method,
        uri: head.uri,
        version: Version::HTTP_3,
        host: head.host,
        headers: fields::lines(&head.headers),
        body,
        upgrade: None,
        visitor: Arc::clone(&exchange.visitor),
    };
    let mut call = pin!(exchange.service.call(request));
    let response = match wanted {
        None => call.await,
        Some(wanted) => tokio::select! {
            biased;
            response = &mut call => response,
            Ok(()) = wanted => {
                // Three bytes of a field section: a visitor that does not take them takes no answer either.
                let _ = timeout(options.write_idle_timeout, sender.send_response(wanted::go_on())).await;
                call.await
            }
        },
    };
    let (head, body) = fields::write(response, is_head);
    let body = Deadline::limit(body, options.write_timeout);
    if let Err(failure) = stream::send(&mut sender, head, body, options.write_idle_timeout).await {
        if failure == SendFailure::Stalled {
            sender.stop_stream(Code::H3_REQUEST_CANCELLED);
            metrics.refused("write_stalled");
        }
        metrics.aborted();
    }
}

async fn refuse(sender: &mut Sender, refused: &Refused, options: &Options) {
    options.metrics.refused(refused.reason);
    let (head, body) = fields::write(Response::status(refused.status), false);
    let _ = stream::send(sender, head, body, options.write_idle_timeout).await;
}

/// For the visitor's and our own control streams.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(10);
/// From GOAWAY, or the last answer after it, to the end of the connection.
const GOAWAY_TIME: Duration = Duration::from_secs(3);
/// `H3_NO_ERROR` (RFC 9114 §8.1).
const NO_ERROR: quinn::VarInt = quinn::VarInt::from_u32(0x0100);
