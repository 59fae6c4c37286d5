//! Endpoints by name: looked up at the start, and again while their peer does not answer.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_config::{Mesh, MeshEndpoint};
use adit_mesh_proto::{Event, PublicKey};

use crate::lane::{LaneHandle, WeakLane};
use crate::plan::{key_of, literal_endpoint};

/// Looks names up on a thread of its own, which ends when this and the lane
/// are dropped (a lookup on its way may take
/// until the system's resolver gives up).
#[derive(Debug)]
pub(crate) struct Resolver {
    names: Arc<Mutex<Vec<Name>>>,
    requests: SyncSender<Request>,
}

/// Tells the resolver that a peer went silent.
#[derive(Debug, Clone)]
pub(crate) struct Alarm(SyncSender<Request>);

#[derive(Debug, Clone)]
struct Name {
    key: PublicKey,
    endpoint: MeshEndpoint,
    address: Option<SocketAddr>,
}

enum Request {
    Watch(WeakLane),
    LookNow,
}

impl Resolver {
    /// # Errors
    /// No thread left.
    pub(crate) fn start() -> io::Result<Self> {
        let names = Arc::new(Mutex::new(Vec::new()));
        let (requests, receiver) = sync_channel(REQUESTS_MAX);
        let shared = Arc::clone(&names);
        std::thread::Builder::new().name("mesh-resolve".to_owned()).spawn(move || run(&shared, &receiver))?;
        Ok(Self { names, requests })
    }

    /// For the lane's events.
    pub(crate) fn alarm(&self) -> Alarm {
        Alarm(self.requests.clone())
    }

    /// Looks after the names in `mesh` from now on, and tells `lane` what they resolve to.
    pub(crate) fn watch(&self, mesh: &Mesh, lane: &LaneHandle) {
        let known = self.addresses();
        let named = mesh.peers.iter().filter(|peer| literal_endpoint(peer).is_none());
        let watched = named.filter_map(|peer| {
            let key = key_of(peer);
            Some(Name { key, endpoint: peer.endpoint.clone()?, address: known.get(&key).copied() })
        });
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = watched.collect();
        // The thread only lacks room when it is about to look anyhow, with an older handle of the same lane.
        let _ = self.requests.try_send(Request::Watch(lane.downgrade()));
    }

    /// What is known so far.
    pub(crate) fn addresses(&self) -> HashMap<PublicKey, SocketAddr> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().filter_map(|name| Some((name.key, name.address?))).collect()
    }
}

impl Alarm {
    /// Asks for a look if the event says that a peer does not answer.
    pub(crate) fn on_event(&self, event: &Event) {
        if matches!(event, Event::SessionExpired { .. } | Event::Reachability { reachable: false, .. }) {
            let (Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) =
                self.0.try_send(Request::LookNow);
        }
    }
}

fn run(names: &Mutex<Vec<Name>>, requests: &Receiver<Request>) {
    let mut lane: Option<WeakLane> = None;
    loop {
        match requests.recv_timeout(INTERVAL) {
            Ok(Request::Watch(handle)) => lane = Some(handle),
            Ok(Request::LookNow) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Some(lane) = lane.as_ref().and_then(WeakLane::upgrade) {
            look(names, &lane);
        }
    }
}

/// One round over all names whose peer does not answer or has no address yet.
fn look(names: &Mutex<Vec<Name>>, lane: &LaneHandle) {
    let watched = names.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if watched.is_empty() {
        return;
    }
    let Ok(snapshot) = lane.snapshot() else { return };
    let silent: HashMap<PublicKey, bool> =
        snapshot.peers.iter().map(|peer| (peer.public_key, !peer.reachable || peer.path.is_none())).collect();
    for name in watched {
        if name.address.is_some() && !silent.get(&name.key).copied().unwrap_or_default() {
            continue;
        }
        let Some(address) = lookup(&name) else { continue };
        if name.address != Some(address) {
            tracing::info!(endpoint = %name.endpoint, %address, "endpoint resolved");
            let _ = lane.set_endpoint(name.key, address);
        }
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = names.iter_mut().find(|entry| entry.key == name.key) {
            entry.address = Some(address);
        }
    }
}

/// The name's address; the one after the last where it has several, because that one does not answer.
fn lookup(name: &Name) -> Option<SocketAddr> {
    match (name.endpoint.host.as_str(), name.endpoint.port).to_socket_addrs() {
        Ok(found) => {
            let found: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
            let last = found.iter().position(|address| Some(*address) == name.address);
            found.get(last.map_or(0, |last| last + 1)).or(found.first()).copied()
        }
        Err(error) => {
            tracing::warn!(endpoint = %name.endpoint, %error, "endpoint cannot be resolved");
            None
        }
    }
}

/// How often silent peers' names are looked up.
const INTERVAL: Duration = Duration::from_secs(30);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;
/// Requests beyond these are only repetitions.
const REQUESTS_MAX: usize = 4;
