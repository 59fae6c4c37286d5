//! All resolvers of the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_config::CertificateResolver;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::challenges::Challenges;
use crate::client::Transport;
use crate::keeper::Keeper;
use crate::metrics::Metrics;
use crate::status::Board;
use crate::store::Issued;
use crate::wanted::Wanted;

/// Makes the way to a resolver's CA, or says why there is none.
pub(crate) type MakeTransport =
    dyn Fn(&CertificateResolver) -> Result<Arc<dyn Transport>, String> + Send + Sync;

/// What all resolvers share.
pub struct Parts {
    /// Read by whoever serves visitors.
    pub challenges: Arc<Challenges>,
    /// Counters.
    pub metrics: Metrics,
    /// Read by the status page.
    pub board: Arc<Board>,
    /// Makes the way to a CA; its authorities are read anew for each order.
    pub transport: Box<MakeTransport>,
    /// Takes all certificates in use whenever they change.
    pub sink: Box<dyn Fn(Vec<Issued>) + Send + Sync>,
    /// What each resolver has, with the id of its task.
    pub published: Mutex<HashMap<String, (u64, Vec<Issued>)>>,
}

/// The resolvers that run.
pub struct Acme {
    parts: Arc<Parts>,
    running: BTreeMap<String, Running>,
    tasks: JoinSet<()>,
    next_id: u64,
    open: watch::Sender<bool>,
}

#[derive(Debug)]
struct Running {
    resolver: CertificateResolver,
    wanted: watch::Sender<Vec<Wanted>>,
}

impl Parts {
    /// Takes a resolver's certificates if its task is still the one in charge; says whether it is.
    pub(crate) fn publish(&self, resolver: &str, id: u64, certificates: &[&Issued]) -> bool {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((in_charge, have)) = published.get_mut(resolver) else { return false };
        if *in_charge != id {
            return false;
        }
        let is_same = have.len() == certificates.len()
            && have.iter().zip(certificates).all(|(have, new)| have.chain == new.chain);
        if !is_same {
            *have = certificates.iter().copied().cloned().collect();
            (self.sink)(all(&published));
        }
        true
    }

    fn put_in_charge(&self, resolver: &str, id: u64) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.entry(resolver.to_owned()).or_default().0 = id;
    }

    fn forget(&self, resolver: &str) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.remove(resolver);
        (self.sink)(all(&published));
        self.metrics.forget(resolver);
        self.board.forget(resolver);
    }
}

impl Acme {
    /// None yet.
    pub fn new(parts: Arc<Parts>) -> Self {
        Self {
            parts,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            next_id: 0,
            open: watch::Sender::new(false),
        }
    }

    /// Lets orders begin: from now on challenges can be asked for.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Takes what is wanted now. Resolvers that did not change go on with what they do; others are started or ended. To be
    /// called inside a runtime.
    pub fn apply(&mut self, resolvers: &BTreeMap<String, CertificateResolver>, wanted: &[Wanted]) {
        while self.tasks.try_join_next().is_some() {}
        self.parts.challenges.share_with(resolvers.values().map(|resolver| resolver.storage.clone()));
        let gone: Vec<String> =
            self.running.keys().filter(|name| !resolvers.contains_key(*name)).cloned().collect();
        for name in gone {
            self.running.remove(&name);
            self.parts.forget(&name);
        }
        for (name, resolver) in resolvers {
            let mine: Vec<Wanted> = wanted.iter().filter(|w| w.resolver == *name).cloned().collect();
            match self.running.get(name) {
                Some(running) if running.resolver == *resolver => {
                    running.wanted.send_if_modified(|now| {
                        let is_new = *now != mine;
                        *now = mine;
                        is_new
                    });
                }
                _ => self.start(name, resolver, mine),
            }
        }
    }

    fn start(&mut self, name: &str, resolver: &CertificateResolver, mine: Vec<Wanted>) {
        self.next_id += 1;
        self.parts.put_in_charge(name, self.next_id);
        let (sender, receiver) = watch::channel(mine);
        let identity = (name, self.next_id);
        let keeper = Keeper::new(identity, resolver.clone(), receiver, Arc::clone(&self.parts));
        self.tasks.spawn(keeper.run(self.open.subscribe()));
        self.running.insert(name.to_owned(), Running { resolver: resolver.clone(), wanted: sender });
    }

    /// Ends all orders and waits until what they have set elsewhere is removed.
    pub async fn stop(&mut self) {
        self.running.clear();
        let _ = tokio::time::timeout(STOP_TIMEOUT, async { while self.tasks.join_next().await.is_some() {} })
            .await;
    }
}

impl std::fmt::Debug for Acme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acme").field("running", &self.running.keys()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("challenges", &self.challenges).finish_non_exhaustive()
    }
}

fn all(published: &HashMap<String, (u64, Vec<Issued>)>) -> Vec<Issued> {
    let mut names: Vec<&String> = published.keys().collect();
    // The order decides who wins a name that two resolvers have: it must not change from one time to the next.
    names.sort();
    names.into_iter().flat_map(|name| published[name].1.iter().cloned()).collect()
}

/// One order's records in DNS.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);
