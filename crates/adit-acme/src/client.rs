//! Requests to the CA: bounded in time and size, with what instant-acme does not hand on kept beside.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};

/// An exchange under way: the whole answer, or why there is none.
pub type Exchange = Pin<Box<dyn Future<Output = Result<Response<Bytes>, String>> + Send>>;

/// Speaks HTTP for us; one for each resolver, because each may trust other authorities.
pub trait Transport: Send + Sync + 'static {
    /// Sends a request with an absolute `https` URI. An answer larger than `bytes_max` is an error.
    fn send(&self, request: Request<Bytes>, bytes_max: usize) -> Exchange;
}

/// What instant-acme sends its requests with.
pub(crate) struct Client {
    transport: Arc<dyn Transport>,
    timeout: Duration,
    seen: Arc<Seen>,
}

/// What the CA said beside the answers.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    /// When the CA wants to be asked again.
    retry_after: Option<SystemTime>,
    /// Other chains for the certificate (RFC 8555 §7.4.2).
    alternates: Vec<String>,
    /// The last chain that came.
    chain: Option<Bytes>,
}

impl Client {
    pub(crate) fn new(transport: Arc<dyn Transport>, timeout: Duration, seen: &Arc<Seen>) -> Box<Self> {
        Box::new(Self { transport, timeout, seen: Arc::clone(seen) })
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let (transport, seen, timeout) = (Arc::clone(&self.transport), Arc::clone(&self.seen), self.timeout);
        Box::pin(async move {
            let fail = |why: String| instant_acme::Error::Other(why.into());
            let (parts, body) = request.into_parts();
            let mut body = BytesResponse::from(Response::new(body)).body;
            let body = body.into_bytes().await.map_err(instant_acme::Error::Other)?;
            let exchange = transport.send(Request::from_parts(parts, body), ANSWER_BYTES_MAX);
            let answer = tokio::time::timeout(timeout, exchange).await;
            let answer = answer.map_err(|_| fail(format!("no answer within {} s", timeout.as_secs())))?;
            let (parts, body) = answer.map_err(fail)?.into_parts();
            seen.note(&parts.headers, &body);
            if parts.status.is_server_error() && serde_json::from_slice::<serde_json::Value>(&body).is_err() {
                return Err(fail(format!("status {}", parts.status.as_u16())));
            }
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

impl Seen {
    fn note(&self, headers: &HeaderMap, body: &Bytes) {
        let mut notes = self.lock();
        if let Some(at) = retry_after(headers, SystemTime::now()) {
            notes.retry_after = Some(at);
        }
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.split(';').next().is_some_and(|kind| kind.trim() == CHAIN_TYPE) {
            notes.chain = Some(body.clone());
            notes.alternates.extend(alternates(headers));
            notes.alternates.truncate(ALTERNATES_MAX);
        }
    }

    /// When the CA wants to be asked again, if it said so since the last call.
    pub(crate) fn take_retry_after(&self) -> Option<SystemTime> {
        self.lock().retry_after.take()
    }

    /// Addresses of other chains for the certificate that came last.
    pub(crate) fn take_alternates(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().alternates)
    }

    /// The chain that came last.
    pub(crate) fn take_chain(&self) -> Option<Bytes> {
        self.lock().chain.take()
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RFC 9110 §10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<SystemTime> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse::<u64>() {
        Ok(seconds) => now.checked_add(Duration::from_secs(seconds.min(RETRY_SECONDS_MAX))),
        Err(_) => {
            let latest = now.checked_add(Duration::from_secs(RETRY_SECONDS_MAX))?;
            httpdate::parse_http_date(text).ok().map(|at| at.min(latest))
        }
    }
}

/// `Link: <…>;rel="alternate"` (RFC 8555 §7.4.2).
fn alternates(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let values = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_alternate = parameters.split(';').any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "alternate"
        });
        is_alternate.then(|| target.to_owned())
    })
}

const CHAIN_TYPE: &str = "application/pem-certificate-chain";
/// A chain has a few KiB, a directory less; only one answer is held at a time for each resolver.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Let's Encrypt has two.
const ALTERNATES_MAX: usize = 8;
/// A week: longer is a mistake, and the wait would outlive the certificate.
const RETRY_SECONDS_MAX: u64 = 7 * 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_waits_are_read_off_the_fields() {
        let mut headers = HeaderMap::new();
        headers.append(header::LINK, "<https://ca/dir>;rel=\"index\"".parse().unwrap());
        headers.append(
            header::LINK,
            "<https://ca/1>; rel=\"alternate\", <https://ca/2>;rel=alternate".parse().unwrap(),
        );
        assert_eq!(alternates(&headers).collect::<Vec<_>>(), ["https://ca/1", "https://ca/2"]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        headers.insert(header::RETRY_AFTER, "60".parse().unwrap());
        assert_eq!(retry_after(&headers, now), Some(now + Duration::from_secs(60)));
        headers.insert(header::RETRY_AFTER, "Sun, 09 Sep 2001 01:47:40 GMT".parse().unwrap());
        assert_eq!(retry_after(&headers, now), Some(now + Duration::from_secs(60)));
        headers.insert(header::RETRY_AFTER, "99999999999999".parse().unwrap());
        assert_eq!(retry_after(&headers, now), Some(now + Duration::from_secs(RETRY_SECONDS_MAX)));
    }
}
