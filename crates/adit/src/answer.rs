//! An answer that reports how it ended: to the access log, the metrics, and whoever counts requests in flight.

use std::task::{Context, Poll, ready};
use std::time::{Instant, SystemTime};

use adit_proxy::body::{Batch, Body, BodyError, BodySource};
use adit_proxy::message::{Request, Response};
use http::HeaderMap;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::access_log::{AccessLog, Entry};

/// Counts what public listeners answer.
#[derive(Clone, Debug)]
pub(crate) struct RequestMetrics {
    in_flight: IntGauge,
    /// By first digit of the status; looked up once, not for each request.
    answered: [IntCounter; 5],
    failed: IntCounterVec,
    duration: Histogram,
}

/// A request that is being answered; dropping it counts it as done.
#[derive(Debug)]
pub(crate) struct Exchange {
    entry: Option<Entry>,
    began: Instant,
    log: Option<AccessLog>,
    metrics: RequestMetrics,
}

impl RequestMetrics {
    /// Creates and registers the counters.
    ///
    /// # Errors
    /// If the registry has them already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let buckets = vec![0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];
        let answered = IntCounterVec::new(
            Opts::new("adit_requests_total", "Requests answered, by class of status"),
            &["class"],
        )?;
        registry.register(Box::new(answered.clone()))?;
        let metrics = Self {
            in_flight: IntGauge::new("adit_requests_in_flight", "Requests being answered")?,
            answered: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| answered.with_label_values(&[class])),
            failed: IntCounterVec::new(
                Opts::new(
                    "adit_requests_failed_total",
                    "Requests answered by adit itself because a hop failed",
                ),
                &["reason"],
            )?,
            duration: Histogram::with_opts(
                HistogramOpts::new("adit_request_duration_seconds", "From request head to end of answer")
                    .buckets(buckets),
            )?,
        };
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.failed.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        Ok(metrics)
    }

    /// Counts a failure under its name.
    pub(crate) fn failed(&self, reason: &str) {
        self.failed.with_label_values(&[reason]).inc();
    }

    /// Requests being answered now.
    pub(crate) fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }
}

impl Exchange {
    /// Starts the clock.
    pub(crate) fn begin(
        request: &Request,
        request_id: &str,
        metrics: &RequestMetrics,
        log: Option<&AccessLog>,
    ) -> Self {
        metrics.in_flight.inc();
        let entry = log.map(|_| Entry {
            started: SystemTime::now(),
            duration: std::time::Duration::ZERO,
            request_id: request_id.to_owned(),
            client: request.visitor.remote.ip(),
            method: request.method.clone(),
            host: request.host.clone(),
            path: request.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            version: request.version,
            status: 0,
            bytes: 0,
            route: String::new(),
            reason: "",
        });
        Self { entry, began: Instant::now(), log: log.cloned(), metrics: metrics.clone() }
    }

    /// Says whose request it is, where a trusted hop told.
    pub(crate) fn asked_by(&mut self, client: std::net::IpAddr) {
        if let Some(entry) = &mut self.entry {
            entry.client = client;
        }
    }

    /// Says who answered.
    pub(crate) fn answered_by(&mut self, route: &str) {
        if let Some(entry) = &mut self.entry {
            route.clone_into(&mut entry.route);
        }
    }

    /// Says that we answered because a hop failed.
    pub(crate) fn failed(&mut self, reason: &'static str) {
        self.metrics.failed(reason);
        if let Some(entry) = &mut self.entry {
            entry.reason = reason;
        }
    }

    /// Wraps the answer so that its end is seen.
    pub(crate) fn finish_with(mut self, response: Response) -> Response {
        let class = usize::from(response.status.as_u16() / 100).clamp(1, 5) - 1;
        self.metrics.answered[class].inc();
        if let Some(entry) = &mut self.entry {
            entry.status = response.status.as_u16();
        }
        let Response { status, headers, body } = response;
        let length = body.length();
        let body = if body.is_replayable() {
            if let (Some(entry), adit_proxy::body::Length::Known(bytes)) = (&mut self.entry, length) {
                entry.bytes = bytes;
            }
            body
        } else {
            Body::stream(Counted { body, exchange: self }, length)
        };
        Response { status, headers, body }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        let duration = self.began.elapsed();
        self.metrics.duration.observe(duration.as_secs_f64());
        if let (Some(log), Some(mut entry)) = (&self.log, self.entry.take()) {
            entry.duration = duration;
            log.write(entry);
        }
    }
}

struct Counted {
    body: Body,
    exchange: Exchange,
}

impl BodySource for Counted {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        let before = out.len();
        let result = ready!(self.body.poll_chunks(cx, out));
        if let Some(entry) = &mut self.exchange.entry {
            entry.bytes += out.iter().skip(before).map(|chunk| chunk.len() as u64).sum::<u64>();
        }
        if let Err(error) = &result {
            self.exchange.failed(error.reason());
        }
        Poll::Ready(result)
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}
