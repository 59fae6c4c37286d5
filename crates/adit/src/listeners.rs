//! The public entry points while the process runs: started, changed on reload, drained.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use adit_config::{Config, EntryPoint};
use adit_proxy::drain::{self, DrainSignal};
use adit_proxy::h1::server::Options;
use adit_proxy::listen::{ListenError, Listener, ListenerHandle, ListenerOptions};
use adit_proxy::message::Service;
use adit_proxy::metrics::Metrics;
use adit_proxy::tls::CertificateStore;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::task::{JoinHandle, JoinSet};

/// All entry points that are listening.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// By where they listen: a socket outlives changes of name and settings.
    running: BTreeMap<Place, Running>,
    /// Those that a reload took away, still serving what they had.
    leaving: JoinSet<()>,
    tls: Arc<ServerConfig>,
    metrics: Arc<Metrics>,
}

/// The configured address; where the port is for the system to choose, entry points are told apart by name.
type Place = (SocketAddr, Option<String>);

#[derive(Debug)]
struct Running {
    name: String,
    settings: Settings,
    address: SocketAddr,
    handle: ListenerHandle,
    drain: DrainSignal,
    task: JoinHandle<()>,
}

/// What a listener is started with; a change of any of it restarts the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    entry_point: EntryPoint,
    limits: adit_config::Limits,
}

/// Why the entry points cannot be as configured.
#[derive(Debug, Error)]
pub(crate) enum ListenersError {
    /// One cannot be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// An entry point that TLS visitors would reach without a certificate.
    #[error("entry point {0} speaks TLS, but tls.certificates is empty")]
    NoCertificate(String),
}

/// What is to listen, with the sockets that are new.
#[derive(Debug)]
pub(crate) struct Prepared {
    wanted: BTreeMap<Place, (String, Settings, Option<Listener>)>,
}

impl Listeners {
    /// None yet.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub(crate) fn new(store: &Arc<CertificateStore>, metrics: Arc<Metrics>) -> Result<Self, ListenersError> {
        Ok(Self { running: BTreeMap::new(), leaving: JoinSet::new(), tls: store.server_config()?, metrics })
    }

    /// Binds what `config` has and we do not have yet; nothing that runs is touched.
    ///
    /// # Errors
    /// [`ListenersError`] of the first that cannot be bound.
    pub(crate) fn prepare(&self, config: &Config, names: &[String]) -> Result<Prepared, ListenersError> {
        let mut wanted = BTreeMap::new();
        for name in names {
            let Some(entry_point) = config.entry_points.get(name) else { continue };
            if entry_point.tls && config.tls.certificates.is_empty() {
                return Err(ListenersError::NoCertificate(name.clone()));
            }
            let settings = Settings { entry_point: entry_point.clone(), limits: config.limits.clone() };
            let address = entry_point.address;
            let place = (address, (address.port() == 0).then(|| name.clone()));
            let listener = match self.running.contains_key(&place) {
                true => None,
                false => Some(Listener::bind(address, self.options(name, &settings))?),
            };
            wanted.insert(place, (name.clone(), settings, listener));
        }
        Ok(Prepared { wanted })
    }

    /// Starts what was prepared, changes what stays, and lets go of what the configuration no longer has.
    pub(crate) fn commit<S: Service>(&mut self, prepared: Prepared, service: &Arc<S>) {
        let gone: Vec<Place> =
            self.running.keys().filter(|p| !prepared.wanted.contains_key(p)).cloned().collect();
        for running in gone.iter().filter_map(|place| self.running.remove(place)).collect::<Vec<_>>() {
            tracing::info!(entry_point = %running.name, address = %running.address, "entry point closed");
            self.leave(running);
        }
        for (place, (name, settings, listener)) in prepared.wanted {
            let options = self.options(&name, &settings);
            match (self.running.get_mut(&place), listener) {
                (Some(running), _) => {
                    if running.settings != settings || running.name != name {
                        running.handle.set(options);
                        (running.name, running.settings) = (name, settings);
                    }
                }
                (None, Some(listener)) => {
                    let Ok(address) = listener.local_addr() else { continue };
                    let (drain, drained) = drain::channel();
                    let handle = listener.handle();
                    let task = tokio::spawn(listener.run(Arc::clone(service), drained));
                    let tls = settings.entry_point.tls;
                    tracing::info!(entry_point = %name, %address, tls, "entry point listens");
                    self.running.insert(place, Running { name, settings, address, handle, drain, task });
                }
                (None, None) => {}
            }
        }
        // Those that have finished leaving are forgotten.
        while self.leaving.try_join_next().is_some() {}
    }

    /// Name, bound address and whether TLS.
    pub(crate) fn addresses(&self) -> Vec<(String, SocketAddr, bool)> {
        self.running.values().map(|r| (r.name.clone(), r.address, r.settings.entry_point.tls)).collect()
    }

    /// Stops accepting and waits until every visitor has its answer; drop the future to cut the rest.
    pub(crate) async fn drain(&mut self) {
        for (_, running) in std::mem::take(&mut self.running) {
            self.leave(running);
        }
        while self.leaving.join_next().await.is_some() {}
    }

    fn leave(&mut self, running: Running) {
        running.drain.start();
        self.leaving.spawn(async move {
            // Keeps the signal alive for as long as somebody listens to it.
            let _drain = running.drain;
            let mut task = running.task;
            if tokio::time::timeout(running.settings.entry_point.grace_period, &mut task).await.is_err() {
                tracing::warn!(address = %running.address, reason = "grace_period", "entry point's last requests are cut");
                task.abort();
            }
        });
    }

    fn options(&self, name: &str, settings: &Settings) -> ListenerOptions {
        let entry_point = &settings.entry_point;
        let limits = &settings.limits;
        let body_idle_timeout =
            if limits.body_idle_timeout.is_zero() { FOREVER } else { limits.body_idle_timeout };
        let connection = Options {
            header_timeout: entry_point.read_header_timeout,
            keep_alive_timeout: entry_point.idle_timeout,
            body_idle_timeout,
            write_idle_timeout: body_idle_timeout,
            read_timeout: entry_point.read_timeout,
            write_timeout: entry_point.write_timeout,
            head_bytes_max: limits.header_bytes_max as usize,
            head_fields_max: usize::from(limits.headers_max),
            streams_max: limits.streams_per_connection_max,
            metrics: Arc::clone(&self.metrics),
        };
        ListenerOptions {
            name: name.to_owned(),
            tls: entry_point.tls.then(|| Arc::clone(&self.tls)),
            connections_max: limits.connections_max as usize,
            connection,
        }
    }
}

/// Stands for "no limit": longer than any process lives.
const FOREVER: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 24 * 3600);
