//! Who is connected: the registry's decisions, and the routes that requests read without a lock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::ThreadId,
    time::Instant,
};

use adit_auth::{Presented, TunnelSecrets};
use adit_config::{HostPattern, Secret, TunnelId};
use adit_tunnel_proto::{
    Admission, Client, ConnectionKey, Grant, LearnError, Learnt, Refusal, Registration, Registry,
    features::datagram_version,
};
use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::status::{EdgeConnectionStatus, TunnelStatus};
use crate::{
    in_flight::{Load, Unanswered},
    metrics::EdgeMetrics,
    reader::Readers,
    request::ConnectionLabel,
};

/// A registered connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: ConnectionKey,
    pub(super) id: Uuid,
    pub(super) tunnel: TunnelId,
    pub(super) client: Client,
    pub(super) label: ConnectionLabel,
    pub(super) quic: quinn::Connection,
    /// The thread that runs it, where that is always the same.
    pub(super) lane: Option<ThreadId>,
    pub(super) load: Arc<Load>,
    pub(super) unanswered: Unanswered,
    pub(super) draining: AtomicBool,
    pub(super) silent: AtomicBool,
    /// Others come first: slow readers hold its window, or it did not take a head in time.
    pub(super) stalled: AtomicBool,
    /// Its request streams' receiving halves.
    pub(super) readers: Arc<Readers>,
    pub(super) since: Instant,
    /// Tells the connection's task to close it.
    pub(super) close: Notify,
}

/// A tunnel's connections, as requests see them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    pub(super) connections: ArcSwap<Vec<Arc<Connection>>>,
    /// Where the next pick begins, so that equal loads take turns.
    pub(super) turn: AtomicUsize,
}

/// Hosts learnt from connectors' rules, by tunnel.
pub type LearntHostnames = Arc<Vec<(TunnelId, Vec<HostPattern>)>>;

/// The registry, the routes and what was learnt.
#[derive(Debug)]
pub(super) struct Book {
    registry: Mutex<Registry>,
    routes: ArcSwap<HashMap<TunnelId, Arc<Routes>>>,
    live: Mutex<BTreeMap<ConnectionKey, Arc<Connection>>>,
    learnt: watch::Sender<LearntHostnames>,
    next_key: AtomicUsize,
    registered: AtomicUsize,
}

impl Book {
    pub(super) fn new(grants: Vec<Grant>, hostnames_max: usize) -> Self {
        let routes = grants.iter().map(|grant| (grant.id, Arc::default())).collect();
        let registry = Registry::new(grants, hostnames_max);
        Self {
            learnt: watch::Sender::new(Arc::new(registry.learnt())),
            registry: Mutex::new(registry),
            routes: ArcSwap::from_pointee(routes),
            live: Mutex::default(),
            next_key: AtomicUsize::new(0),
            registered: AtomicUsize::new(0),
        }
    }

    /// A number for a new connection.
    pub(super) fn key(&self) -> ConnectionKey {
        ConnectionKey(self.next_key.fetch_add(1, Ordering::Relaxed) as u64)
    }

    /// Registered connections.
    pub(super) fn registered(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    /// A tunnel's connections; `None` for a tunnel that is not declared.
    pub(super) fn routes(&self, tunnel: TunnelId) -> Option<Arc<Routes>> {
        self.routes.load().get(&tunnel).cloned()
    }

    /// Asks whether a connection may register.
    pub(super) fn register(
        &self,
        key: ConnectionKey,
        registration: &Registration,
    ) -> Result<Admission, Refusal> {
        // Looked up before the registry is locked, so that no two locks are held in both orders.
        let silent: Vec<ConnectionKey> = lock(&self.live)
            .values()
            .filter(|connection| connection.silent.load(Ordering::Relaxed))
            .map(|connection| connection.key)
            .collect();
        lock(&self.registry).register(key, registration, secrets_match, |older| silent.contains(&older))
    }

    /// A registered connection takes requests from now on; `false` if its admission was revoked in
    /// the meantime, by a reload or by a connection that superseded it.
    pub(super) fn enter(&self, connection: &Arc<Connection>) -> bool {
        // Held to the end: whoever revokes the admission does so before, and it shows here, or after,
        // and finds the connection to close. Nothing locks the two in the other order.
        let registry = lock(&self.registry);
        if !registry.is_registered(connection.key) {
            return false;
        }
        self.registered.fetch_add(1, Ordering::Relaxed);
        lock(&self.live).insert(connection.key, Arc::clone(connection));
        if let Some(routes) = self.routes(connection.tunnel) {
            routes.connections.rcu(|connections| {
                let mut connections = Vec::clone(connections);
                connections.push(Arc::clone(connection));
                connections
            });
        }
        true
    }

    /// A registered connection is gone, or takes no requests any more because another superseded it.
    pub(super) fn leave(&self, connection: &Connection) {
        lock(&self.registry).disconnect(connection.key);
        if lock(&self.live).remove(&connection.key).is_none() {
            return;
        }
        self.registered.fetch_sub(1, Ordering::Relaxed);
        if let Some(routes) = self.routes(connection.tunnel) {
            routes.connections.rcu(|connections| {
                let others = connections.iter().filter(|other| other.key != connection.key);
                others.cloned().collect::<Vec<_>>()
            });
        }
    }

    /// Tells a connection's task to close it.
    pub(super) fn close(&self, key: ConnectionKey) {
        if let Some(connection) = lock(&self.live).get(&key) {
            connection.draining.store(true, Ordering::SeqCst);
            connection.close.notify_one();
        }
    }

    /// Learns hosts from pushed rules.
    pub(super) fn learn(&self, key: ConnectionKey, json: &[u8]) -> Result<Learnt, LearnError> {
        lock(&self.registry).learn(key, json)
    }

    /// Announces the learnt hosts if they changed.
    pub(super) fn publish(&self, metrics: &EdgeMetrics) {
        let registry = lock(&self.registry);
        let learnt = registry.learnt();
        let count: usize = learnt.iter().map(|(_, hosts)| hosts.len()).sum();
        metrics.hostnames.set(count.try_into().unwrap_or(i64::MAX));
        // Still locked, so that of two announcements the newer one comes last.
        self.learnt.send_if_modified(|announced| {
            let changed = **announced != learnt;
            if changed {
                *announced = Arc::new(learnt);
            }
            changed
        });
        drop(registry);
    }

    pub(super) fn learnt(&self) -> watch::Receiver<LearntHostnames> {
        self.learnt.subscribe()
    }

    /// Replaces the declared tunnels; how many connections are closed for it.
    pub(super) fn replace_grants(&self, grants: Vec<Grant>) -> usize {
        let ids: Vec<TunnelId> = grants.iter().map(|grant| grant.id).collect();
        let gone = lock(&self.registry).replace_grants(grants);
        let old = self.routes.load();
        let kept = |id: &TunnelId| old.get(id).cloned().unwrap_or_default();
        self.routes.store(Arc::new(ids.iter().map(|id| (*id, kept(id))).collect()));
        for key in &gone {
            self.close(*key);
        }
        gone.len()
    }

    pub(super) fn status(&self) -> Vec<TunnelStatus> {
        let grants: Vec<(TunnelId, String)> =
            lock(&self.registry).grants().map(|grant| (grant.id, grant.name.clone())).collect();
        let connections = |id| match self.routes(id) {
            Some(routes) => routes.connections.load().iter().map(|connection| connection.status()).collect(),
            None => Vec::new(),
        };
        grants.into_iter().map(|(id, name)| TunnelStatus { id, name, connections: connections(id) }).collect()
    }

    /// Requests in flight on all connections.
    pub(super) fn in_flight(&self) -> usize {
        lock(&self.live).values().map(|connection| connection.load.count()).sum()
    }

    /// Returns when no request is in flight.
    pub(super) async fn wait_idle(&self) {
        loop {
            let busy = lock(&self.live).values().find(|other| other.load.count() > 0).cloned();
            match busy {
                Some(connection) => connection.load.wait_idle().await,
                None => return,
            }
        }
    }
}

impl Connection {
    fn status(&self) -> EdgeConnectionStatus {
        EdgeConnectionStatus {
            id: self.id,
            index: self.label.index,
            connector_id: self.client.id,
            version: self.client.version.clone(),
            arch: self.client.arch.clone(),
            features: self.client.features.clone(),
            datagrams: datagram_version(&self.client.features),
            remote: self.label.peer,
            in_flight: self.load.count(),
            draining: self.draining.load(Ordering::Relaxed),
            since: self.since,
            rtt: self.quic.rtt(),
        }
    }
}

/// As `adit-auth` compares them, in a time that tells nothing of how much was right.
fn secrets_match(known: &Secret, given: &Secret) -> bool {
    let tunnel_id = TunnelId(Uuid::nil());
    let mut secrets = TunnelSecrets::new();
    secrets.insert(tunnel_id, None, known, ());
    secrets.check(&Presented { account_tag: "", tunnel_id, secret: given.expose() }).is_ok()
}

/// No section that holds a lock can leave its data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
