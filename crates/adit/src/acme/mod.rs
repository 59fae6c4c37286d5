//! Certificates by ACME in this process: `adit-acme` wired to routers, listeners and our own HTTP client.

mod transport;
mod wanted;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use adit_acme::{Acme, Board, CertificateStatus, Challenges, Issued, Metrics, Parts, Transport};
use adit_config::CertificateResolver;
use adit_proxy::listen::TlsChallenges;
use adit_proxy::middleware::BoxFuture;
use adit_proxy::tls::{CertificateStore, LoadedCertificate};
use prometheus::Registry;
use rustls::ServerConfig;
use serde_json::{Value, json};

use self::transport::CaTransport;
pub(crate) use self::wanted::{TcpHosts, Unwanted, wanted};

/// What the parts of the process that serve visitors read.
#[derive(Clone, Debug)]
pub(crate) struct AcmeViews {
    pub(crate) challenges: Arc<Challenges>,
    pub(crate) board: Arc<Board>,
    metrics: Metrics,
}

impl AcmeViews {
    /// Nothing pending, nothing wanted.
    ///
    /// # Errors
    /// If the registry has the metrics already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Metrics::new(registry)?;
        let challenges = Arc::new(Challenges::new(metrics.clone()));
        Ok(Self { challenges, board: Arc::default(), metrics })
    }

    /// The resolvers, none running yet; what they get is shown by `store`.
    pub(crate) fn resolvers(&self, store: &Arc<CertificateStore>) -> Acme {
        let store = Arc::clone(store);
        Acme::new(Arc::new(Parts {
            challenges: Arc::clone(&self.challenges),
            metrics: self.metrics.clone(),
            board: Arc::clone(&self.board),
            transport: Box::new(transport),
            sink: Box::new(move |issued| show(&store, issued)),
            published: std::sync::Mutex::default(),
        }))
    }

    /// For the status page.
    pub(crate) fn status(&self) -> Vec<Value> {
        self.board.all().iter().map(status).collect()
    }

    /// For the listeners.
    pub(crate) fn tls_challenges(&self) -> Arc<dyn TlsChallenges> {
        Arc::new(PendingTls(Arc::clone(&self.challenges)))
    }
}

#[derive(Debug)]
struct PendingTls(Arc<Challenges>);

impl TlsChallenges for PendingTls {
    fn look(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.look())
    }

    fn answer(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
        self.0.tls_answer(server_name)
    }
}

fn transport(resolver: &CertificateResolver) -> Result<Arc<dyn Transport>, String> {
    Ok(Arc::new(CaTransport::new(resolver)?))
}

fn show(store: &CertificateStore, issued: Vec<Issued>) {
    let load = |issued: Issued| {
        let names = issued.names.join(", ");
        let loaded = match issued.key() {
            Some(key) => LoadedCertificate::obtained(issued.chain, key),
            None => Err("no key".to_owned()),
        };
        loaded.inspect_err(|why| tracing::error!(%names, reason = "certificate", %why, "not shown")).ok()
    };
    store.swap_obtained(issued.into_iter().filter_map(load).collect());
}

fn status(status: &CertificateStatus) -> Value {
    let seconds = |at: Option<SystemTime>| {
        at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs())
    };
    json!({
        "resolver": status.resolver,
        "names": status.names,
        "state": status.state.name(),
        "not_after": seconds(status.not_after),
        "not_after_in_seconds": status.not_after.map(|at| {
            at.duration_since(SystemTime::now()).map_or(0, |left| left.as_secs())
        }),
        "next": seconds(status.next),
        "reason": status.problem.as_ref().map(|problem| problem.0),
        "problem": status.problem.as_ref().map(|problem| &problem.1),
    })
}
