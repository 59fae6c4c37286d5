//! Requests counted under Traefik's metric names, which its dashboards are built on (`ingress-features.md §7.1`).
//!
//! Label values come from bounded sets: entry points, routers and services of the configuration, known methods, registered
//! status codes. Each lane adds up what it has answered and looks at nothing that another lane writes to; the sums become
//! those of the registry when it asks.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_config::Prometheus;
use adit_proxy::lanes::PerLane;
use adit_proxy::message::Request;
use adit_proxy::middleware::TlsInfo;
use arc_swap::ArcSwap;
use http::header::{ACCEPT, UPGRADE};
use http::{Method, StatusCode};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use self::tally::{Alike, Tallies, Target};

mod tally;

/// All of it, for one process.
#[derive(Debug)]
pub(crate) struct TraefikMetrics {
    families: Arc<Families>,
    retries: IntCounterVec,
    reloads: IntCounter,
    last_reload: IntGauge,
    /// Whether answers of our own (`…@internal`) count.
    pub(crate) add_internals: bool,
}

/// The metrics of all kinds of objects.
#[derive(Debug)]
struct Families {
    entry_points: Option<Family>,
    routers: Option<Family>,
    services: Option<Family>,
    lanes: PerLane<Mutex<Tallies>>,
}

/// Asked by the registry.
struct Collected(Arc<Families>);

/// Who had part in an answer. Empty names stand for nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) entry_point: &'a str,
    pub(crate) router: &'a str,
    pub(crate) service: &'a str,
    /// What the service answered.
    pub(crate) service_status: u16,
    /// Attempts after the first.
    pub(crate) retries: u32,
}

/// What one request was, in label values.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    method: usize,
    protocol: usize,
    tls: Option<Arc<TlsInfo>>,
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) duration: Duration,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// Names of what is configured, for which label sets are kept.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) entry_points: HashSet<String>,
    /// Name and service.
    pub(crate) routers: HashSet<(String, String)>,
    pub(crate) services: HashSet<String>,
}

/// The five metrics of one kind of object.
#[derive(Debug)]
struct Family {
    requests: IntCounterVec,
    requests_tls: IntCounterVec,
    duration: HistogramVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    scopes: ArcSwap<HashMap<String, Arc<Scope>>>,
}

/// One object and the label sets it was seen with.
#[derive(Debug)]
struct Scope {
    labels: Vec<String>,
    series: ArcSwap<HashMap<Key, Arc<Series>>>,
    series_tls: ArcSwap<HashMap<(&'static str, &'static str), IntCounter>>,
}

/// Status code, index of the method, index of the protocol.
type Key = (u16, usize, usize);

#[derive(Debug)]
struct Series {
    requests: IntCounter,
    duration: Histogram,
    received: IntCounter,
    sent: IntCounter,
}

impl Asked {
    pub(crate) fn of(request: &Request) -> Self {
        Self {
            method: METHODS
                .iter()
                .position(|known| *known == request.method.as_str())
                .unwrap_or(METHODS.len() - 1),
            protocol: protocol(request),
            tls: request.visitor.tls.clone(),
        }
    }
}

impl TraefikMetrics {
    /// Creates and registers what the configuration wants.
    ///
    /// # Errors
    /// If the registry has them already.
    pub(crate) fn new(
        settings: &Prometheus,
        add_internals: bool,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let buckets: Vec<f64> = settings.buckets.iter().map(Duration::as_secs_f64).collect();
        let family = |wanted: bool, kind: &str, labels: &[&str]| {
            wanted.then(|| Family::new(kind, labels, &buckets)).transpose()
        };
        let families = Arc::new(Families {
            entry_points: family(settings.entry_points_labels, "entrypoint", &["entrypoint"])?,
            routers: family(settings.routers_labels, "router", &["router", "service"])?,
            services: family(settings.services_labels, "service", &["service"])?,
            lanes: PerLane::new(Mutex::default),
        });
        let collected = Collected(Arc::clone(&families));
        let metrics = Self {
            families,
            retries: IntCounterVec::new(
                Opts::new("traefik_service_retries_total", "Attempts after the first, by service"),
                &["service"],
            )?,
            reloads: IntCounter::new("traefik_config_reloads_total", "Reloads of the configuration")?,
            last_reload: IntGauge::new(
                "traefik_config_last_reload_success",
                "When the configuration was last taken, in seconds since 1970",
            )?,
            add_internals,
        };
        if metrics.has_services() {
            registry.register(Box::new(metrics.retries.clone()))?;
        }
        if !collected.desc().is_empty() {
            registry.register(Box::new(collected))?;
        }
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.last_reload.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn has_services(&self) -> bool {
        self.families.services.is_some()
    }

    /// A configuration was taken.
    pub(crate) fn reloaded(&self) {
        self.reloads.inc();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_reload.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// Keeps label sets of what is configured; those of anything else are removed.
    pub(crate) fn configure(&self, names: Names) {
        let Families { entry_points, routers, services, lanes } = &*self.families;
        if let Some(family) = entry_points {
            family.configure(names.entry_points.into_iter().map(|name| (name.clone(), vec![name])));
        }
        if let Some(family) = routers {
            let scopes = names.routers.into_iter().map(|(name, service)| (name.clone(), vec![name, service]));
            family.configure(scopes);
        }
        if let Some(family) = services {
            for gone in family.scopes.load().keys().filter(|name| !names.services.contains(*name)) {
                let _ = self.retries.remove_label_values(&[gone]);
            }
            family.configure(names.services.into_iter().map(|name| (name.clone(), vec![name])));
        }
        lanes.iter().for_each(|lane| lock(lane).clear());
    }

    /// Counts an answer for everybody who had part in it.
    pub(crate) fn count(&self, part: &Part<'_>, asked: &Asked, answered: Answered) {
        let alike = Alike {
            entry_point: part.entry_point,
            router: part.router,
            service: part.service,
            status: code(answered.status),
            service_status: code(part.service_status),
            method: asked.method,
            protocol: asked.protocol,
            tls: asked.tls.as_ref().map(|tls| (tls.version, tls.cipher)),
        };
        let families = &*self.families;
        lock(families.lanes.own()).find(&alike, || families.targets(&alike)).add(
            answered.duration,
            answered.received,
            answered.sent,
        );
        if part.retries > 0 {
            self.retried(part.service, part.retries);
        }
    }

    /// Counts an answer of a service that was replaced by another.
    pub(crate) fn replaced(&self, service: &str, asked: &Asked, answered: Answered) {
        let part = Part { entry_point: "", router: "", service, service_status: answered.status, retries: 0 };
        self.count(&part, asked, answered);
    }

    fn retried(&self, service: &str, retries: u32) {
        let scopes = self.families.services.as_ref().map(|family| family.scopes.load());
        if scopes.is_some_and(|scopes| scopes.contains_key(service)) {
            self.retries.with_label_values(&[service]).inc_by(u64::from(retries));
        }
    }
}

impl Families {
    /// The label sets of all that is configured of these.
    fn targets(&self, alike: &Alike<'_>) -> Vec<Target> {
        let Alike { entry_point, router, service, status, service_status, .. } = *alike;
        let of = |family: &Option<Family>, name: &str, status: u16| {
            family.as_ref()?.target(name, (status, alike.method, alike.protocol), alike.tls)
        };
        let entry_point = of(&self.entry_points, entry_point, status);
        let router = of(&self.routers, router, status);
        let service = of(&self.services, service, service_status);
        [entry_point, router, service].into_iter().flatten().collect()
    }

    fn collectors(&self) -> impl Iterator<Item = &dyn Collector> {
        [&self.entry_points, &self.routers, &self.services].into_iter().flatten().flat_map(|family| {
            let Family { requests, requests_tls, duration, received, sent, .. } = family;
            [requests as &dyn Collector, requests_tls, duration, received, sent]
        })
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.0.collectors().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.lanes.iter().for_each(|lane| lock(lane).flush());
        self.0.collectors().flat_map(Collector::collect).collect()
    }
}

impl Family {
    fn new(kind: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self> {
        let with = |own: &[&'static str]| -> Vec<String> {
            own.iter().copied().chain(labels.iter().copied()).map(str::to_owned).collect()
        };
        let name = |what: &str| format!("traefik_{kind}_{what}");
        let of = |what: &str, help: &str, own: &[&'static str]| {
            let labels = with(own);
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            IntCounterVec::new(Opts::new(name(what), help), &labels)
        };
        let options =
            HistogramOpts::new(name("request_duration_seconds"), "From request head to end of answer")
                .buckets(buckets.to_vec());
        let duration_labels = with(&REQUEST_LABELS);
        let duration_labels: Vec<&str> = duration_labels.iter().map(String::as_str).collect();
        let duration = HistogramVec::new(options, &duration_labels)?;
        Ok(Self {
            requests: of("requests_total", "Requests answered", &REQUEST_LABELS)?,
            requests_tls: of("requests_tls_total", "Requests over TLS", &["tls_version", "tls_cipher"])?,
            duration,
            received: of("requests_bytes_total", "Bytes of requests' content", &REQUEST_LABELS)?,
            sent: of("responses_bytes_total", "Bytes of answers' content", &REQUEST_LABELS)?,
            scopes: ArcSwap::default(),
        })
    }

    fn configure(&self, wanted: impl Iterator<Item = (String, Vec<String>)>) {
        let old = self.scopes.load_full();
        let scopes: HashMap<String, Arc<Scope>> = wanted
            .map(|(name, labels)| match old.get(&name).filter(|scope| scope.labels == labels) {
                Some(scope) => (name, Arc::clone(scope)),
                None => (name, Arc::new(Scope::new(labels))),
            })
            .collect();
        let scopes = Arc::new(scopes);
        // Before the others are forgotten: nobody begins to count under them again.
        self.scopes.store(Arc::clone(&scopes));
        for (name, scope) in &*old {
            if scopes.get(name).is_none_or(|kept| !Arc::ptr_eq(kept, scope)) {
                self.forget(scope);
            }
        }
    }

    fn forget(&self, scope: &Scope) {
        for key in scope.series.load().keys() {
            let code = key.0.to_string();
            let labels = scope.labels_of(&code, *key);
            let _ = self.requests.remove_label_values(&labels);
            let _ = self.duration.remove_label_values(&labels);
            let _ = self.received.remove_label_values(&labels);
            let _ = self.sent.remove_label_values(&labels);
        }
        for (version, cipher) in scope.series_tls.load().keys() {
            let _ = self.requests_tls.remove_label_values(&scope.with(&[version, cipher]));
        }
    }

    /// Where requests of an object are counted; none if it is not configured (any more).
    fn target(&self, name: &str, key: Key, tls: Option<(&'static str, &'static str)>) -> Option<Target> {
        let scopes = self.scopes.load();
        let scope = scopes.get(name)?;
        let known = scope.series.load().get(&key).cloned();
        let series = known.unwrap_or_else(|| self.make_series(scope, key));
        let tls = tls.map(|tls| {
            let known = scope.series_tls.load().get(&tls).cloned();
            known.unwrap_or_else(|| self.make_tls(scope, tls))
        });
        Some(Target::new(series, tls))
    }

    /// A label set's first request.
    fn make_series(&self, scope: &Scope, key: Key) -> Arc<Series> {
        let code = key.0.to_string();
        let labels = scope.labels_of(&code, key);
        let series = Arc::new(Series {
            requests: self.requests.with_label_values(&labels),
            duration: self.duration.with_label_values(&labels),
            received: self.received.with_label_values(&labels),
            sent: self.sent.with_label_values(&labels),
        });
        scope.series.rcu(|all| {
            let mut all = HashMap::clone(all);
            all.insert(key, Arc::clone(&series));
            all
        });
        series
    }

    fn make_tls(&self, scope: &Scope, key: (&'static str, &'static str)) -> IntCounter {
        let counter = self.requests_tls.with_label_values(&scope.with(&[key.0, key.1]));
        scope.series_tls.rcu(|all| {
            let mut all = HashMap::clone(all);
            all.insert(key, counter.clone());
            all
        });
        counter
    }
}

impl Scope {
    fn new(labels: Vec<String>) -> Self {
        Self { labels, series: ArcSwap::default(), series_tls: ArcSwap::default() }
    }

    fn labels_of<'a>(&'a self, code: &'a str, key: Key) -> Vec<&'a str> {
        self.with(&[code, METHODS[key.1], PROTOCOLS[key.2]])
    }

    fn with<'a>(&'a self, own: &[&'a str]) -> Vec<&'a str> {
        own.iter().copied().chain(self.labels.iter().map(String::as_str)).collect()
    }
}

/// A code that nobody registered counts as the first of its class, one without a class as 500 (RFC 9110 §15).
fn code(status: u16) -> u16 {
    let registered = StatusCode::from_u16(status).is_ok_and(|status| status.canonical_reason().is_some());
    match status {
        // The visitor went away; the tunnel is down.
        499 | 530 => status,
        _ if registered => status,
        100..=599 => status / 100 * 100,
        _ => 500,
    }
}

fn protocol(request: &Request) -> usize {
    let is = |name, wanted: &str| {
        request.headers.first(name).is_some_and(|value| value.eq_ignore_ascii_case(wanted.as_bytes()))
    };
    if request.upgrade.as_deref().is_some_and(|to| to.eq_ignore_ascii_case("websocket"))
        || is(&UPGRADE, "websocket")
    {
        return 1;
    }
    let accept = || request.headers.first(&ACCEPT);
    if request.method == Method::GET && accept() == Some(b"text/event-stream") { 2 } else { 0 }
}

fn lock(lane: &Mutex<Tallies>) -> MutexGuard<'_, Tallies> {
    // Sums are whole between two statements.
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// RFC 9110 §9, RFC 5789 and HTTP/2's preface; the last stands for all others, which are the visitor's to make up.
const METHODS: [&str; 11] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "PRI",
    "EXTENSION_METHOD",
];
const PROTOCOLS: [&str; 3] = ["http", "websocket", "sse"];
const REQUEST_LABELS: [&str; 3] = ["code", "method", "protocol"];

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Prometheus {
        Prometheus { routers_labels: true, ..Prometheus::default() }
    }

    fn names(service: &str) -> Names {
        Names {
            entry_points: ["web".to_owned()].into(),
            routers: [("r@file".to_owned(), service.to_owned())].into(),
            services: [service.to_owned()].into(),
        }
    }

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    const ANSWERED: Answered =
        Answered { status: 200, duration: Duration::from_millis(1), received: 3, sent: 5 };

    #[test]
    fn label_sets_of_what_is_gone_are_removed() {
        let registry = Registry::new();
        let metrics = TraefikMetrics::new(&settings(), false, &registry).unwrap();
        let asked = Asked { method: METHODS.len() - 1, protocol: 0, tls: None };
        metrics.configure(names("s@file"));
        let part =
            Part { entry_point: "web", router: "r@file", service: "s@file", service_status: 200, retries: 2 };
        metrics.count(&part, &asked, ANSWERED);
        metrics.replaced("other@file", &asked, ANSWERED);
        let before = text(&registry);
        for line in [
            "traefik_entrypoint_requests_total{code=\"200\",entrypoint=\"web\",method=\"EXTENSION_METHOD\",protocol=\"http\"} 1",
            "traefik_router_responses_bytes_total{code=\"200\",method=\"EXTENSION_METHOD\",protocol=\"http\",router=\"r@file\",service=\"s@file\"} 5",
            "traefik_service_requests_bytes_total{code=\"200\",method=\"EXTENSION_METHOD\",protocol=\"http\",service=\"s@file\"} 3",
            "traefik_service_retries_total{service=\"s@file\"} 2",
        ] {
            assert!(before.contains(line), "{line}\n{before}");
        }
        assert!(!before.contains("other@file"));
        assert_eq!(before, text(&registry), "nothing is added twice");
        metrics.count(&part, &asked, ANSWERED);
        metrics.configure(names("t@file"));
        let after = text(&registry);
        assert!(!after.contains("s@file"), "{after}");
        let twice = "traefik_entrypoint_request_duration_seconds_count{code=\"200\",entrypoint=\"web\",\
                     method=\"EXTENSION_METHOD\",protocol=\"http\"} 2";
        assert!(after.contains(twice), "{after}");
    }

    #[test]
    fn lanes_begin_anew_when_they_have_counted_many_kinds() {
        let registry = Registry::new();
        let metrics = TraefikMetrics::new(&settings(), false, &registry).unwrap();
        metrics.configure(names("s@file"));
        let asked = Asked { method: 0, protocol: 0, tls: None };
        for number in 0..3000 {
            let service = format!("unknown-{number}");
            let part =
                Part { entry_point: "web", router: "", service: &service, service_status: 200, retries: 1 };
            metrics.count(&part, &asked, ANSWERED);
        }
        let text = text(&registry);
        let all = "traefik_entrypoint_requests_total{code=\"200\",entrypoint=\"web\",method=\"GET\",protocol=\"http\"} 3000";
        assert!(text.contains(all), "{text}");
        assert!(!text.contains("unknown"));
    }

    #[test]
    fn codes_come_from_a_bounded_set() {
        assert_eq!([200, 299, 499, 530, 799, 0].map(code), [200, 200, 499, 530, 500, 500]);
    }
}
