//! Access tokens on ingress rules: fetches the team's keys, lets `adit-auth` decide (tunnel-protocol.md §7.6).

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_auth::{ACCESS_HEADER, AccessRefusal, Keys, verify_access};
use adit_config::{AccessRequirement, OriginSettings, Service};
use adit_proxy::body::{Batch, Body};
use adit_proxy::message::{Request, Visitor};
use adit_proxy::origin::Origin;
use arc_swap::ArcSwapOption;
use http::{HeaderMap, Method, StatusCode, Uri};
use thiserror::Error;
use tokio::sync::Mutex;

/// Guards one rule. Fails closed: without keys nobody passes.
#[derive(Debug)]
pub(crate) struct AccessGate {
    requirement: AccessRequirement,
    host: String,
    keys: ArcSwapOption<Fetched>,
    /// The last fetch that failed: asked again only after a while, whoever asks.
    failed: ArcSwapOption<(Instant, String)>,
    /// One fetch at a time, however many requests wait for it.
    fetching: Mutex<()>,
}

#[derive(Debug)]
struct Fetched {
    keys: Keys,
    at: Instant,
}

/// Why a request does not pass.
#[derive(Debug, Error)]
pub(crate) enum GateError {
    /// The token.
    #[error("access refused: {0}")]
    Refused(#[from] AccessRefusal),
    /// The keys to check it with.
    #[error("access keys of {host} are not to be had: {why}")]
    Keys {
        /// Where they were asked for.
        host: String,
        /// What went wrong.
        why: String,
    },
}

impl GateError {
    /// The name of this error in logs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason(),
            Self::Keys { .. } => "access_keys",
        }
    }

    /// The status to answer with; `None` where cloudflared fails the request instead (502 at the edge).
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused(refusal) if refusal.is_forbidden() => Some(StatusCode::FORBIDDEN),
            _ => None,
        }
    }
}

impl AccessGate {
    /// A gate for what a rule requires.
    pub(crate) fn new(requirement: &AccessRequirement) -> Self {
        let issuer = requirement.issuer();
        let host = issuer.trim_start_matches("https://").to_owned();
        let (keys, failed, fetching) = (ArcSwapOption::empty(), ArcSwapOption::empty(), Mutex::new(()));
        Self { requirement: requirement.clone(), host, keys, failed, fetching }
    }

    /// Passes a request whose token is good.
    ///
    /// # Errors
    /// [`GateError`].
    pub(crate) async fn check(&self, headers: &HeaderMap) -> Result<(), GateError> {
        let token = headers.get(ACCESS_HEADER).ok_or(AccessRefusal::Missing)?;
        let token = token.to_str().map_err(|_| AccessRefusal::Malformed)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let fetched = self.keys(KEYS_AGE_MAX).await?;
        match verify_access(Some(token), &fetched.keys, &self.requirement, now) {
            // The team may have rotated its keys since; asked again, but not for each forged token.
            Err(AccessRefusal::Signature) if fetched.at.elapsed() > KEYS_AGE_MIN => {
                let fetched = self.keys(KEYS_AGE_MIN).await?;
                verify_access(Some(token), &fetched.keys, &self.requirement, now)?;
            }
            result => {
                result?;
            }
        }
        Ok(())
    }

    async fn keys(&self, age_max: Duration) -> Result<Arc<Fetched>, GateError> {
        let fresh = || self.keys.load_full().filter(|k| k.at.elapsed() < age_max);
        if let Some(keys) = fresh() {
            return Ok(keys);
        }
        let _one = self.fetching.lock().await;
        if let Some(keys) = fresh() {
            return Ok(keys);
        }
        let no_keys = |why: &str| GateError::Keys { host: self.host.clone(), why: why.to_owned() };
        if let Some(failed) = self.failed.load_full().filter(|f| f.0.elapsed() < FAILURE_AGE_MAX) {
            return Err(no_keys(&failed.1));
        }
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, self.fetch()).await;
        let keys = match fetched.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(keys) => keys,
            Err(why) => {
                let error = no_keys(&why);
                self.failed.store(Some(Arc::new((Instant::now(), why))));
                return Err(error);
            }
        };
        let fetched = Arc::new(Fetched { keys, at: Instant::now() });
        self.keys.store(Some(Arc::clone(&fetched)));
        Ok(fetched)
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let service = Service::Http { tls: true, authority: self.host.clone() };
        let settings = OriginSettings { keep_alive_connections: 0, ..OriginSettings::default() };
        let origin = Origin::new(&service, &settings).map_err(|e| e.to_string())?;
        let unspecified = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        let visitor = Visitor {
            remote: unspecified,
            local: unspecified,
            secure: true,
            tls: None,
            entry_point: "access".into(),
            peer: None,
            address: adit_proxy::message::AddressText::default(),
        };
        let request = Request {
            method: Method::GET,
            uri: Uri::from_static(KEYS_PATH),
            version: http::Version::HTTP_11,
            host: self.host.clone(),
            headers: HeaderMap::new().into(),
            body: Body::empty(),
            upgrade: None,
            visitor: Arc::new(visitor),
        };
        let mut response = origin.send(request).await.map_err(|error| crate::ingress::chain(&error))?;
        if response.status != StatusCode::OK {
            return Err(format!("status {}", response.status.as_u16()));
        }
        let mut json = Vec::new();
        loop {
            let mut batch = Batch::new();
            let more =
                poll_fn(|cx| response.body.poll_chunks(cx, &mut batch)).await.map_err(|e| e.to_string())?;
            batch.iter().for_each(|chunk| json.extend_from_slice(chunk));
            if json.len() > KEYS_BYTES_MAX {
                return Err("the key set is too large".to_owned());
            }
            if !more {
                break;
            }
        }
        let text = std::str::from_utf8(&json).map_err(|_| "the key set is not UTF-8".to_owned())?;
        Keys::from_json(text).map_err(|e| e.to_string())
    }
}

const KEYS_PATH: &str = "/cdn-cgi/access/certs";
/// Keys are asked for again after this.
const KEYS_AGE_MAX: Duration = Duration::from_secs(3600);
/// And, for a token that names an unknown key, not more often than this.
const KEYS_AGE_MIN: Duration = Duration::from_secs(60);
/// After a failed fetch, requests are refused at once for this long instead of queueing for the next.
const FAILURE_AGE_MAX: Duration = Duration::from_secs(5);
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// A team has a handful of keys of about 2 KiB.
const KEYS_BYTES_MAX: usize = 256 * 1024;
