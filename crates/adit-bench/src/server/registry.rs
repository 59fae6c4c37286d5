//! Runs under way: how many, whose, and the streams that arrive for them.

use std::collections::HashMap;
use std::net::{IpAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::census::{Census, Counted};
use crate::plan::{Plan, Transport};
use crate::udp::UdpFlow;
use crate::wire::{Cookie, Header, Refusal};

/// What a server allows.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Runs at once. Threads and memory of a run are those of its streams.
    pub(crate) tests: usize,
    /// Runs at once of one address.
    pub(crate) tests_per_address: usize,
    /// Streams of a run, both directions together.
    pub(crate) streams: u16,
    /// How long a run may be, warm-up included.
    pub(crate) duration: Duration,
}

/// A stream that has come for a run.
#[derive(Debug)]
pub(crate) enum Arrived {
    Tcp(TcpStream),
    Udp(UdpFlow),
    Quic { connection: quinn::Connection, send: quinn::SendStream, receive: quinn::RecvStream },
}

/// The runs under way.
#[derive(Debug)]
pub(crate) struct Registry {
    limits: Limits,
    runs: Mutex<HashMap<Cookie, Run>>,
    sessions: Arc<watch::Sender<usize>>,
    census: Arc<Census>,
    refused: Mutex<HashMap<Refusal, u64>>,
}

#[derive(Debug)]
struct Run {
    address: IpAddr,
    /// Of QUIC streams, where the run uses QUIC.
    quic: Option<Option<u32>>,
    arrivals: mpsc::Sender<(Header, Arrived)>,
}

/// The place of one run, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    registry: Arc<super::Server>,
    pub(crate) cookie: Cookie,
    pub(crate) arrivals: mpsc::Receiver<(Header, Arrived)>,
    counted: Counted,
}

/// A control connection that is open.
#[derive(Debug)]
pub(crate) struct Session(Arc<watch::Sender<usize>>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Registry {
    pub(crate) fn new(limits: Limits, census: Arc<Census>) -> Self {
        Self {
            limits,
            runs: Mutex::default(),
            sessions: Arc::new(watch::Sender::new(0)),
            census,
            refused: Mutex::default(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Hands a stream to its run; one that nobody waits for is closed.
    pub(crate) fn arrive(&self, header: Header, stream: Arrived) {
        let sender = self.runs().get(&header.cookie).map(|run| run.arrivals.clone());
        let taken = sender.is_some_and(|sender| sender.try_send((header, stream)).is_ok());
        if !taken {
            self.count(Refusal::Malformed);
        }
    }

    /// The window of a QUIC connection from `address`; `None` where no run uses QUIC at all, so that it is refused.
    pub(crate) fn quic_window(&self, address: IpAddr) -> Option<Option<u32>> {
        let runs = self.runs();
        let own = runs.values().find(|run| run.address == address && run.quic.is_some());
        // Behind some NATs, UDP has another address than TCP.
        own.or_else(|| runs.values().find(|run| run.quic.is_some())).and_then(|run| run.quic)
    }

    /// Whether a run of this cookie is under way.
    pub(crate) fn knows(&self, cookie: &Cookie) -> bool {
        self.runs().contains_key(cookie)
    }

    pub(crate) fn count(&self, refusal: Refusal) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(refusal).or_default() += 1;
    }

    /// What was refused so far, by reason.
    pub(crate) fn refused(&self) -> Vec<(Refusal, u64)> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        Refusal::ALL.into_iter().filter_map(|reason| Some((reason, *refused.get(&reason)?))).collect()
    }

    /// Counts a control connection until the guard is dropped.
    pub(crate) fn session(&self) -> Session {
        self.sessions.send_modify(|count| *count += 1);
        Session(Arc::clone(&self.sessions))
    }

    /// Waits until all clients have been told how their runs ended, at most `patience`.
    pub(crate) async fn idle(&self, patience: Duration) {
        let mut sessions = self.sessions.subscribe();
        let _ = tokio::time::timeout(patience, sessions.wait_for(|count| *count == 0)).await;
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<Cookie, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Takes a place for a run from `address`, if there is one.
    pub(crate) fn take(
        server: &Arc<super::Server>,
        address: IpAddr,
        plan: &Plan,
        cookie: Cookie,
    ) -> Option<Self> {
        let registry = &server.registry;
        let mut runs = registry.runs();
        let of_address = runs.values().filter(|run| run.address == address).count();
        if runs.len() >= registry.limits.tests || of_address >= registry.limits.tests_per_address {
            return None;
        }
        let quic = (plan.transport == Transport::Quic).then_some(plan.window);
        let of_quic = || runs.values().filter(|run| run.address == address).filter_map(|run| run.quic);
        // A connection does not say which run it is for before its window is granted.
        if quic.is_some_and(|window| of_quic().any(|other| other != window)) {
            return None;
        }
        let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
        runs.insert(cookie, Run { address, quic, arrivals: sender });
        Some(Self { registry: Arc::clone(server), cookie, arrivals, counted: registry.census.enter() })
    }

    /// Whether no other run of either kind was under way since this one began.
    pub(crate) fn was_alone(&self) -> bool {
        self.counted.was_alone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let registry = &self.registry.registry;
        let mut runs = registry.runs();
        runs.remove(&self.cookie);
    }
}

/// Streams that have come and are not taken yet: those of a whole run.
const ARRIVALS_MAX: usize = 2 * crate::plan::STREAMS_MAX as usize + 8;
