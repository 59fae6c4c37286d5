//! One resolver while the process runs: what is wanted, what is there, what is due.
//!
//! ```text
//! wanted ──┐                    due?                      ok
//! storage ─┴─► held ─► publish ──────► lock ─► order ───────────► storage ─► held …
//!                         ▲                      │ error
//!                         └── rest (≤ POLL) ◄────┴─ wait that grows
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use adit_config::{AcmeChallenge, CertificateResolver};
use tokio::sync::watch;

use crate::account::Path;
use crate::client::Seen;
use crate::dns::{Dns, TxtRecord};
use crate::error::{AcmeError, Retry};
use crate::order::Order;
use crate::renewal::Renewals;
use crate::schedule;
use crate::service::Parts;
use crate::status::{CertificateState, CertificateStatus};
use crate::store::{Fingerprint, Issued, Lock, Section, Store};
use crate::wanted::{self, Wanted};

/// The task of one resolver.
pub(crate) struct Keeper {
    name: String,
    /// Tells this task's certificates from those of one that had the name before.
    id: u64,
    resolver: CertificateResolver,
    /// Closed = to end.
    wanted: watch::Receiver<Vec<Wanted>>,
    parts: Arc<Parts>,
    store: Store,
    /// What the storage had when it was read last.
    section: Section,
    /// Places in it.
    by_name: HashMap<String, Vec<usize>>,
    fingerprint: Option<Fingerprint>,
    store_problem: Option<AcmeError>,
    /// Issued, and could not be written yet.
    unsaved: Vec<(Vec<String>, Issued)>,
    saved_last: Option<Instant>,
    attempts: HashMap<Vec<String>, Attempt>,
    /// Names just issued → not ordered again before this, whatever clocks and the CA say.
    rests: HashMap<Vec<String>, Instant>,
    renewals: Renewals,
    /// No order of any names before this.
    pause_until: SystemTime,
}

/// What was tried for one set of names.
#[derive(Clone, Debug)]
struct Attempt {
    failures: u32,
    next: SystemTime,
    error: AcmeError,
}

impl Keeper {
    /// Reads the storage, so that what is there is shown to the first visitor already.
    pub(crate) fn new(
        (name, id): (&str, u64),
        resolver: CertificateResolver,
        wanted: watch::Receiver<Vec<Wanted>>,
        parts: Arc<Parts>,
    ) -> Self {
        let store = Store::new(&resolver.storage);
        let mut keeper = Self {
            name: name.to_owned(),
            id,
            resolver,
            wanted,
            parts,
            store,
            section: Section::default(),
            by_name: HashMap::new(),
            fingerprint: None,
            store_problem: None,
            unsaved: Vec::new(),
            saved_last: None,
            attempts: HashMap::new(),
            rests: HashMap::new(),
            renewals: Renewals::default(),
            pause_until: SystemTime::UNIX_EPOCH,
        };
        keeper.read_store();
        keeper.publish();
        keeper
    }

    /// Keeps certificates until nobody wants the resolver any more. Orders begin once `open` says that challenges can be
    /// answered.
    pub(crate) async fn run(mut self, mut open: watch::Receiver<bool>) {
        let _ = open.wait_for(|open| *open).await;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            self.forget_attempts(&wanted);
            self.save_rest_later();
            if self.store.fingerprint() != self.fingerprint || self.store_problem.is_some() {
                self.read_store();
            }
            self.publish();
            let due = wanted.iter().min_by_key(|wanted| self.due(wanted));
            let now = SystemTime::now();
            let next = match due {
                Some(due) if self.store_problem.is_none() && self.due(due).max(self.pause_until) <= now => {
                    self.attempt(due).await;
                    // However it ended: something else may be due, or this again after a wait.
                    now + Duration::from_millis(1)
                }
                Some(due) => {
                    let due = self.due(due).max(self.pause_until);
                    self.ask_renewals(&wanted).await;
                    due
                }
                None => now + POLL_INTERVAL,
            };
            let pause = next.duration_since(now).unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.wanted.changed() => if changed.is_err() { break },
            }
        }
    }

    /// Names that are not wanted for a moment keep their wait: a configuration that comes and goes must not order each time.
    fn forget_attempts(&mut self, wanted: &[Wanted]) {
        let now = SystemTime::now();
        let waits = self.attempts.len() < ATTEMPTS_MAX;
        self.attempts.retain(|names, attempt| {
            (waits && attempt.next > now) || wanted.iter().any(|wanted| wanted.names == *names)
        });
        self.rests.retain(|_, until| *until > Instant::now());
    }

    fn read_store(&mut self) {
        let fingerprint = self.store.fingerprint();
        match self.store.load(&self.name) {
            Ok(section) => {
                self.by_name = by_name(&section.certificates);
                (self.section, self.store_problem) = (section, None);
            }
            Err(error) => {
                if self.store_problem.is_none() {
                    let (resolver, reason) = (&self.name, error.reason());
                    tracing::error!(%resolver, reason, %error, "no certificates are ordered");
                    self.parts.metrics.ordered(resolver, reason);
                }
                self.store_problem = Some(error);
            }
        }
        self.fingerprint = fingerprint;
    }

    /// The best certificate for what is wanted, that of the configured CA first.
    fn held(&self, wanted: &Wanted) -> Option<&Issued> {
        let now = SystemTime::now();
        // Whatever covers all names covers the first.
        let first = wanted.names.first()?;
        let parent = first.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let places =
            [Some(first), parent.as_ref()].into_iter().flatten().filter_map(|name| self.by_name.get(name));
        let stored = places.flatten().map(|index| &self.section.certificates[*index]);
        stored
            .chain(self.unsaved.iter().map(|(_, issued)| issued))
            .filter(|issued| {
                issued.not_after > now && wanted.names.iter().all(|name| wanted::covers(&issued.names, name))
            })
            .max_by_key(|issued| (self.is_ours(issued), issued.not_after))
    }

    fn is_ours(&self, issued: &Issued) -> bool {
        issued.directory.as_ref().is_none_or(|directory| *directory == self.resolver.directory)
    }

    /// When something is to be done about a certificate.
    fn due(&self, wanted: &Wanted) -> SystemTime {
        let renewal = self.held(wanted).filter(|issued| self.is_ours(issued)).map(|issued| {
            let planned = self.resolver.certificates_duration;
            let scheduled = schedule::renew_at(issued.not_before, issued.not_after, planned);
            self.renewals.renew_at(issued).map_or(scheduled, |advised| advised.min(scheduled))
        });
        let earliest = renewal.unwrap_or(SystemTime::UNIX_EPOCH);
        let earliest = match self.rests.get(&wanted.names) {
            Some(until) => earliest.max(SystemTime::now() + until.saturating_duration_since(Instant::now())),
            None => earliest,
        };
        self.attempts.get(&wanted.names).map_or(earliest, |attempt| attempt.next.max(earliest))
    }

    /// Asks the CA when it wants certificates renewed; a CA that cannot say so is left alone for a while.
    async fn ask_renewals(&mut self, wanted: &[Wanted]) {
        let now = SystemTime::now();
        let mut renewals = std::mem::take(&mut self.renewals);
        let in_use: Vec<&Issued> = wanted
            .iter()
            .filter_map(|wanted| self.held(wanted))
            .filter(|issued| self.is_ours(issued))
            .collect();
        renewals.retain(&in_use);
        let due: Vec<&Issued> = in_use.into_iter().filter(|issued| renewals.is_due(issued, now)).collect();
        if let (Some(first), None) = (due.first(), &self.store_problem) {
            let asking = async {
                let transport = (self.parts.transport)(&self.resolver).map_err(AcmeError::Trust)?;
                let path = Path { resolver: &self.resolver, transport, seen: Arc::default() };
                let Some(account) = path.open(self.section.account.as_ref()).await? else {
                    return Err(AcmeError::AccountGone("there is none yet".to_owned()));
                };
                for issued in due.iter().take(ASKED_MAX) {
                    renewals.ask(&account, issued).await?;
                }
                Ok::<(), AcmeError>(())
            };
            let asked = tokio::select! {
                asked = asking => asked,
                () = ended(self.wanted.clone()) => Ok(()),
            };
            if let Err(error) = asked {
                tracing::debug!(resolver = %self.name, %error, "the CA does not say when to renew");
                if renewals.is_due(first, now) {
                    renewals.failed(first.renewal_id.as_deref().unwrap_or_default(), now, false);
                }
            }
        }
        self.renewals = renewals;
    }

    /// Orders, unless another process does or has done it.
    async fn attempt(&mut self, wanted: &Wanted) {
        let lock = match self.store.try_lock() {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                tracing::debug!(resolver = %self.name, "another process or resolver orders");
                tokio::time::sleep(LOCK_INTERVAL).await;
                return;
            }
            Err(error) => return self.failed(wanted, error, None),
        };
        self.save_rest(&lock);
        // Somebody else may have got it while we waited for the lock.
        self.read_store();
        if self.store_problem.is_some() || self.due(wanted) > SystemTime::now() {
            return;
        }
        let (names, resolver) = (wanted.names.join(", "), self.name.clone());
        tracing::info!(%resolver, %names, "ordering a certificate");
        let seen = Arc::new(Seen::default());
        match self.order(wanted, &lock, &seen).await {
            Ok(issued) => {
                tracing::info!(%resolver, %names, "certificate issued");
                self.parts.metrics.ordered(&resolver, "issued");
                self.attempts.remove(&wanted.names);
                let life = issued.not_after.duration_since(issued.not_before).unwrap_or_default();
                self.rests
                    .insert(wanted.names.clone(), Instant::now() + (life / 3).clamp(REST_MIN, REST_MAX));
                self.unsaved.retain(|(names, _)| *names != wanted.names);
                self.unsaved.push((wanted.names.clone(), issued));
                self.save_rest(&lock);
                self.read_store();
            }
            Err(AcmeError::Cancelled) => {}
            Err(error) => self.failed(wanted, error, seen.take_retry_after()),
        }
    }

    /// Tries once in a while to write what could not be written.
    fn save_rest_later(&mut self) {
        let waited = self.saved_last.is_none_or(|at| at.elapsed() >= SAVE_INTERVAL);
        if !self.unsaved.is_empty()
            && waited
            && let Ok(Some(lock)) = self.store.try_lock()
        {
            self.save_rest(&lock);
        }
    }

    /// Certificates that could not be written are used all the same, and written as soon as that works.
    fn save_rest(&mut self, lock: &Lock) {
        self.saved_last = Some(Instant::now());
        while let Some((names, issued)) = self.unsaved.first() {
            if let Err(error) = self.store.save_certificate(lock, &self.name, (names, issued)) {
                let (resolver, reason) = (&self.name, error.reason());
                tracing::error!(%resolver, reason, %error, "a certificate is in use but cannot be kept");
                self.parts.metrics.ordered(resolver, reason);
                return;
            }
            self.unsaved.remove(0);
        }
    }

    async fn order(&self, wanted: &Wanted, lock: &Lock, seen: &Arc<Seen>) -> Result<Issued, AcmeError> {
        let records = Mutex::new(Vec::new());
        let result = tokio::select! {
            result = tokio::time::timeout(ORDER_TIMEOUT, self.exchange(wanted, lock, (seen, &records))) => {
                result.unwrap_or(Err(AcmeError::Timeout("completed")))
            }
            () = self.publish_changes() => Err(AcmeError::Cancelled),
        };
        self.clear(&records).await;
        result
    }

    async fn exchange(
        &self,
        wanted: &Wanted,
        lock: &Lock,
        (seen, records): (&Arc<Seen>, &Mutex<Vec<TxtRecord>>),
    ) -> Result<Issued, AcmeError> {
        let transport = (self.parts.transport)(&self.resolver).map_err(AcmeError::Trust)?;
        let path = Path { resolver: &self.resolver, transport, seen: Arc::clone(seen) };
        let order = Order {
            resolver: &self.resolver,
            names: &wanted.names,
            replaces: self.held(wanted).and_then(|held| self.renewals.replaces(held)),
            challenges: &self.parts.challenges,
            seen,
            records,
        };
        if let Some(account) = path.open(self.section.account.as_ref()).await? {
            match order.obtain(&account).await {
                // The CA was set up anew, or the account was removed there.
                Err(AcmeError::AccountGone(why)) => {
                    tracing::warn!(resolver = %self.name, %why, "the account is gone, registering a new one");
                }
                result => return result,
            }
        }
        let account = path.create(&self.store, lock, &self.name).await?;
        order.obtain(&account).await
    }

    /// Removes the order's records from DNS, however it ended.
    async fn clear(&self, records: &Mutex<Vec<TxtRecord>>) {
        let AcmeChallenge::Dns(settings) = &self.resolver.challenge else { return };
        let records = std::mem::take(&mut *records.lock().unwrap_or_else(PoisonError::into_inner));
        let removing = async {
            for record in &records {
                if let Err(error) = Dns::new(settings).remove(record).await {
                    tracing::warn!(resolver = %self.name, reason = "dns_cleanup", %error, "a record stays in DNS");
                }
            }
        };
        if tokio::time::timeout(CLEAR_TIMEOUT, removing).await.is_err() {
            tracing::warn!(resolver = %self.name, reason = "dns_cleanup", "records stay in DNS");
        }
    }

    fn failed(&mut self, wanted: &Wanted, error: AcmeError, retry_after: Option<SystemTime>) {
        let failures = self.attempts.get(&wanted.names).map_or(0, |attempt| attempt.failures) + 1;
        let now = SystemTime::now();
        let wait = schedule::wait(error.retry(), failures, rand::random());
        let next = retry_after.map_or(now + wait, |at| at.max(now + wait));
        let (resolver, names, reason) = (&self.name, wanted.names.join(", "), error.reason());
        let next_seconds = next.duration_since(now).unwrap_or_default().as_secs();
        tracing::error!(%resolver, %names, reason, %error, failures, next_seconds, "no certificate");
        self.parts.metrics.ordered(resolver, reason);
        self.pause_until = match error.retry() {
            // The limit is the account's: the next names would only be told the same.
            Retry::MuchLater => next.clamp(now + PAUSE_LIMITED, now + PAUSE_LIMITED_MAX),
            Retry::Soon => now + PAUSE_UNREACHABLE,
            Retry::Later => self.pause_until,
        };
        self.attempts.insert(wanted.names.clone(), Attempt { failures, next, error });
    }

    /// Hands on what there is, and says how things stand.
    fn publish(&self) {
        let wanted = self.wanted.borrow().clone();
        let mut statuses = Vec::with_capacity(wanted.len());
        let mut usable: Vec<&Issued> = Vec::new();
        for wanted in &wanted {
            let held = self.held(wanted);
            usable.extend(held.filter(|held| !usable.iter().any(|other| std::ptr::eq(*other, *held))));
            statuses.push(self.status(wanted, held));
        }
        let count = |state| statuses.iter().filter(|status| status.state == state).count();
        let states = [CertificateState::Valid, CertificateState::Waiting, CertificateState::Failed];
        if !self.parts.publish(&self.name, self.id, &usable) {
            return;
        }
        self.parts.metrics.states(&self.name, states.map(|state| (state.name(), count(state))));
        let first = statuses.iter().filter_map(|status| status.not_after).min();
        self.parts.metrics.first_expiry(&self.name, first);
        self.parts.board.set(&self.name, statuses);
    }

    /// Shows what is wanted from now on and there already, until nobody wants the resolver any more: an order takes minutes.
    async fn publish_changes(&self) {
        let mut wanted = self.wanted.clone();
        while wanted.changed().await.is_ok() {
            self.publish();
        }
    }

    fn status(&self, wanted: &Wanted, held: Option<&Issued>) -> CertificateStatus {
        let attempt = self.attempts.get(&wanted.names);
        let error = self.store_problem.as_ref().or(attempt.map(|attempt| &attempt.error));
        let state = match (held, error) {
            (Some(_), _) => CertificateState::Valid,
            (None, Some(_)) => CertificateState::Failed,
            (None, None) => CertificateState::Waiting,
        };
        let next = Some(self.due(wanted)).filter(|due| *due > SystemTime::UNIX_EPOCH);
        CertificateStatus {
            resolver: self.name.clone(),
            names: wanted.names.clone(),
            state,
            not_after: held.map(|held| held.not_after),
            next,
            problem: error.map(|error| (error.reason(), error.to_string())),
        }
    }
}

/// Returns when nobody wants the resolver any more.
async fn ended(mut wanted: watch::Receiver<Vec<Wanted>>) {
    while wanted.changed().await.is_ok() {}
}

fn by_name(certificates: &[Issued]) -> HashMap<String, Vec<usize>> {
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, issued) in certificates.iter().enumerate() {
        for name in &issued.names {
            places.entry(name.clone()).or_default().push(index);
        }
    }
    places
}

/// Sets of names whose last failure is remembered after they are no longer wanted, about 1 KiB each.
const ATTEMPTS_MAX: usize = 2000;
/// The storage is looked at this often, so that what another process got is shown soon.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Between two looks at a lock that somebody else has.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);
/// 100 names validated one after the other by a slow CA, or a DNS server whose secondaries are slow; then the lock is
/// given back to others.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);
/// What stopped one order (a limit of the CA, no connection) would stop the next of a thousand as well.
const PAUSE_LIMITED: Duration = Duration::from_secs(60);
/// A CA that counts by the name and not by the account costs the other names no more.
const PAUSE_LIMITED_MAX: Duration = Duration::from_secs(3600);
const PAUSE_UNREACHABLE: Duration = Duration::from_secs(5);
/// A certificate that is due again as soon as it is there (a clock that is wrong, a CA that wants everything renewed) is
/// not ordered again before a third of its life, within these bounds.
const REST_MIN: Duration = Duration::from_secs(5);
const REST_MAX: Duration = Duration::from_secs(24 * 3600);
/// A full disk is looked at this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// Certificates that the CA is asked about in a row, each by a request of its own.
const ASKED_MAX: usize = 50;
/// A process that stops does not wait longer for its name server.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A resolver as a configuration file would give it.
    pub(crate) fn resolver(challenge: &str) -> CertificateResolver {
        let text = format!(
            "entryPoints: {{ web: {{ address: \":80\" }} }}\n\
             certificatesResolvers: {{ le: {{ acme: {{ {challenge} }} }} }}\n"
        );
        let no_files = |_: &std::path::Path| Err("no file".to_owned());
        let config = adit_config::Config::parse(&text, "adit.yaml", &no_files).unwrap();
        config.tls.resolvers["le"].clone()
    }

    /// A CA that takes its time.
    struct Slow;

    impl crate::Transport for Slow {
        fn send(&self, _: http::Request<bytes::Bytes>, _: usize) -> crate::Exchange {
            Box::pin(std::future::pending())
        }
    }

    struct Nobody;

    impl crate::Transport for Nobody {
        fn send(&self, _: http::Request<bytes::Bytes>, _: usize) -> crate::Exchange {
            Box::pin(std::future::ready(Err("nobody is there".to_owned())))
        }
    }

    fn parts() -> Arc<Parts> {
        let metrics = crate::Metrics::new(&prometheus::Registry::new()).unwrap();
        Arc::new(Parts {
            challenges: Arc::new(crate::Challenges::new(metrics.clone())),
            metrics,
            board: Arc::default(),
            transport: Box::new(|_| Ok(Arc::new(Nobody))),
            sink: Box::new(|_| {}),
            published: Mutex::new([("le".to_owned(), (1, Vec::new()))].into()),
        })
    }

    /// What a test holds on to.
    struct Held {
        folder: std::path::PathBuf,
        wanted: watch::Sender<Vec<Wanted>>,
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    /// A keeper of a storage in a folder of its own, with what is wanted.
    fn keeper(folder: &str, names: &[&str]) -> (Keeper, Wanted, Held) {
        let folder = std::env::temp_dir().join(format!("adit-keeper-{folder}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let mut resolver = resolver("tlsChallenge: {}, caServer: 'https://ca.test/dir'");
        resolver.storage = folder.join("acme.json");
        let names = names.iter().map(|name| (*name).to_owned());
        let wanted = Wanted::new(("le", &resolver), names).unwrap();
        let (sender, receiver) = watch::channel(vec![wanted.clone()]);
        let keeper = Keeper::new(("le", 1), resolver, receiver, parts());
        (keeper, wanted, Held { folder, wanted: sender })
    }

    fn save(keeper: &mut Keeper, names: &[&str], end: i64, directory: &str) {
        let mut issued = crate::store::tests::issued(names, -1000, end);
        issued.directory = Some(directory.to_owned());
        let lock = keeper.store.try_lock().unwrap().unwrap();
        keeper.store.save_certificate(&lock, "le", (&issued.names.clone(), &issued)).unwrap();
        drop(lock);
        keeper.read_store();
    }

    #[tokio::test]
    async fn the_best_certificate_is_held_and_one_of_another_ca_is_replaced() {
        let (mut keeper, wanted, _held) = keeper("held", &["a.test", "x.b.test"]);
        assert!(keeper.held(&wanted).is_none() && keeper.due(&wanted) == SystemTime::UNIX_EPOCH);
        save(&mut keeper, &["a.test"], 900_000, "https://ca.test/dir");
        assert!(keeper.held(&wanted).is_none(), "not all names");
        save(&mut keeper, &["a.test", "*.b.test", "c.test"], 5_000_000, "https://staging.test/dir");
        assert!(keeper.held(&wanted).is_some(), "shown until there is a better one");
        assert_eq!(keeper.due(&wanted), SystemTime::UNIX_EPOCH);
        save(&mut keeper, &["a.test", "x.b.test"], 900_000, "https://ca.test/dir");
        assert!(keeper.is_ours(keeper.held(&wanted).unwrap()));
        assert!(keeper.due(&wanted) > SystemTime::now());
        save(&mut keeper, &["x.b.test", "a.test"], -1, "https://ca.test/dir");
        assert_eq!(keeper.held(&wanted).unwrap().names.len(), 3, "the expired one is not shown");
    }

    #[tokio::test]
    async fn a_failed_order_is_named_and_waits() {
        let (mut keeper, wanted, _held) = keeper("failed", &["a.test"]);
        keeper.attempt(&wanted).await;
        keeper.publish();
        let status = keeper.parts.board.all().remove(0);
        assert_eq!((status.state, status.problem.unwrap().0), (CertificateState::Failed, "ca_unreachable"));
        let wait = keeper.due(&wanted).duration_since(SystemTime::now()).unwrap();
        assert!(wait > Duration::from_secs(5) && wait < Duration::from_secs(15), "{wait:?}");
        keeper.forget_attempts(&[]);
        assert_eq!(keeper.attempts.len(), 1, "not wanted for a moment");
        keeper.failed(&wanted, AcmeError::RateLimited(String::new()), None);
        assert!(keeper.due(&wanted) > SystemTime::now() + Duration::from_secs(3600));
    }

    #[tokio::test]
    async fn a_certificate_that_is_there_is_shown_while_another_is_ordered() {
        let (mut keeper, wanted, held) = keeper("meanwhile", &["a.test"]);
        let slow = Parts { transport: Box::new(|_| Ok(Arc::new(Slow))), ..Arc::into_inner(parts()).unwrap() };
        keeper.parts = Arc::new(slow);
        save(&mut keeper, &["b.test"], 5_000_000, "https://ca.test/dir");
        let other = Wanted::new(("le", &keeper.resolver), ["b.test".to_owned()]).unwrap();
        let board = Arc::clone(&keeper.parts.board);
        let shown = async {
            held.wanted.send_replace(vec![wanted.clone(), other]);
            while !board.all().iter().any(|status| status.state == CertificateState::Valid) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = keeper.attempt(&wanted) => panic!("the CA has answered"),
            shown = tokio::time::timeout(Duration::from_secs(10), shown) => shown.expect("b.test is shown"),
        }
    }

    #[tokio::test]
    async fn what_was_just_issued_is_not_ordered_again_at_once() {
        let (mut keeper, wanted, _held) = keeper("rest", &["a.test"]);
        keeper.rests.insert(wanted.names.clone(), Instant::now() + Duration::from_secs(100));
        assert!(keeper.due(&wanted) > SystemTime::now() + Duration::from_secs(90));
    }

    #[tokio::test]
    async fn a_certificate_that_cannot_be_written_is_used_and_written_later() {
        let (mut keeper, wanted, _held) = keeper("unsaved", &["a.test"]);
        let path = keeper.resolver.storage.clone();
        std::fs::write(&path, "not JSON").unwrap();
        let mut issued = crate::store::tests::issued(&["a.test"], -10, 5_000_000);
        issued.directory = Some(keeper.resolver.directory.clone());
        keeper.unsaved.push((wanted.names.clone(), issued));
        keeper.save_rest_later();
        assert_eq!(keeper.unsaved.len(), 1);
        assert!(keeper.held(&wanted).is_some() && keeper.due(&wanted) > SystemTime::now());
        std::fs::remove_file(&path).unwrap();
        keeper.saved_last = None;
        keeper.save_rest_later();
        assert!(keeper.unsaved.is_empty() && path.exists());
    }
}
