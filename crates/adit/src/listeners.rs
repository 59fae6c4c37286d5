//! The public entry points while the process runs: started, changed on reload, drained.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use adit_config::{Config, EntryPoint};
use adit_proxy::drain::{self, DrainSignal};
use adit_proxy::h1::server::Options;
use adit_proxy::listen::{ListenError, Listener, ListenerOptions};
use adit_proxy::message::Service;
use adit_proxy::metrics::Metrics;
use adit_proxy::tls::CertificateStore;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::task::{JoinHandle, JoinSet};

/// All entry points that are listening.
#[derive(Debug)]
pub(crate) struct Listeners {
    running: BTreeMap<String, Running>,
    /// Those that a reload took away, still serving what they had.
    leaving: JoinSet<()>,
    tls: Arc<ServerConfig>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Running {
    settings: Settings,
    address: SocketAddr,
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

/// Listeners that are bound and not yet running.
#[derive(Debug)]
pub(crate) struct Prepared {
    bound: Vec<(String, Settings, Listener)>,
    names: Vec<String>,
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
    /// An entry point that stays on its address with other settings is bound again only after the old one has
    /// stopped accepting; see [`Self::commit`].
    ///
    /// # Errors
    /// [`ListenersError`] of the first that cannot be bound.
    pub(crate) fn prepare(&mut self, config: &Config, names: &[String]) -> Result<Prepared, ListenersError> {
        let mut bound = Vec::new();
        for name in names {
            let Some(entry_point) = config.entry_points.get(name) else { continue };
            if entry_point.tls && config.tls.certificates.is_empty() {
                return Err(ListenersError::NoCertificate(name.clone()));
            }
            let settings = Settings { entry_point: entry_point.clone(), limits: config.limits.clone() };
            let running = self.running.get(name);
            if running.is_some_and(|r| r.settings == settings) {
                continue;
            }
            if running.is_some_and(|r| r.settings.entry_point.address == entry_point.address) {
                // The address is ours already: two sockets on it would split the visitors.
                if let Some(running) = self.running.remove(name) {
                    self.leave(running);
                }
            }
            let listener = self.bind(name, &settings)?;
            bound.push((name.clone(), settings, listener));
        }
        Ok(Prepared { bound, names: names.to_vec() })
    }

    /// Starts what was prepared and lets go of what the configuration no longer has.
    pub(crate) fn commit<S: Service>(&mut self, prepared: Prepared, service: &Arc<S>) {
        let gone: Vec<String> =
            self.running.keys().filter(|n| !prepared.names.contains(n)).cloned().collect();
        for name in gone {
            if let Some(running) = self.running.remove(&name) {
                tracing::info!(entry_point = %name, address = %running.address, "entry point closed");
                self.leave(running);
            }
        }
        for (name, settings, listener) in prepared.bound {
            let Ok(address) = listener.local_addr() else { continue };
            let (drain, drained) = drain::channel();
            let task = tokio::spawn(listener.run(Arc::clone(service), drained));
            tracing::info!(entry_point = %name, %address, tls = settings.entry_point.tls, "entry point listens");
            if let Some(old) = self.running.insert(name, Running { settings, address, drain, task }) {
                self.leave(old);
            }
        }
    }

    /// Name, bound address and whether TLS.
    pub(crate) fn addresses(&self) -> Vec<(String, SocketAddr, bool)> {
        self.running.iter().map(|(name, r)| (name.clone(), r.address, r.settings.entry_point.tls)).collect()
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

    fn bind(&self, name: &str, settings: &Settings) -> Result<Listener, ListenError> {
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
        let options = ListenerOptions {
            name: name.to_owned(),
            tls: entry_point.tls.then(|| Arc::clone(&self.tls)),
            connections_max: limits.connections_max as usize,
            connection,
        };
        Listener::bind(entry_point.address, options)
    }
}

/// Stands for "no limit": longer than any process lives.
const FOREVER: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 24 * 3600);
