//! What each connection is doing, for the admin endpoint and readiness.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use adit_tunnel_proto::{Protocol, Registered};
use uuid::Uuid;

/// What one connection of a connector is doing.
#[derive(Clone, Debug)]
pub struct ConnectionStatus {
    /// Index, 0 first.
    pub index: u8,
    /// Its phase.
    pub phase: ConnectionPhase,
    /// Transport in use or to be used.
    pub protocol: Protocol,
    /// The edge's address, once dialled.
    pub edge: Option<SocketAddr>,
    /// The edge's location name, once registered.
    pub location: Option<Arc<str>>,
    /// The edge's id of the connection, once registered.
    pub connection_id: Option<Uuid>,
    /// When the phase began.
    pub since: Instant,
}

/// The life of one connection of a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionPhase {
    /// Waiting for its backoff.
    Waiting,
    /// Dialling or registering.
    Connecting,
    /// Registered and serving.
    Registered,
    /// Unregistered, serving what is in flight.
    Draining,
    /// Over.
    Stopped,
}

/// All connections of one connector.
#[derive(Clone, Debug, Default)]
pub(super) struct Board(Arc<Mutex<Vec<ConnectionStatus>>>);

impl Board {
    pub(super) fn all(&self) -> Vec<ConnectionStatus> {
        self.lock().clone()
    }

    pub(super) fn ready(&self) -> usize {
        self.lock().iter().filter(|status| status.phase == ConnectionPhase::Registered).count()
    }

    /// The connection is being dialled; the protocol of the attempt before, if there was one.
    pub(super) fn connecting(&self, slot: u8, protocol: Protocol) -> Option<Protocol> {
        let mut all = self.lock();
        let before = all.get(usize::from(slot)).map(|status| status.protocol);
        while all.len() <= usize::from(slot) {
            let index = all.len() as u8;
            all.push(ConnectionStatus {
                index,
                phase: ConnectionPhase::Waiting,
                protocol,
                edge: None,
                location: None,
                connection_id: None,
                since: Instant::now(),
            });
        }
        let status = &mut all[usize::from(slot)];
        status.protocol = protocol;
        enter(status, ConnectionPhase::Connecting);
        before
    }

    pub(super) fn dialled(&self, slot: u8, edge: SocketAddr) {
        self.update(slot, |status| status.edge = Some(edge));
    }

    pub(super) fn registered(&self, slot: u8, registered: &Registered, location: Arc<str>) {
        self.update(slot, |status| {
            enter(status, ConnectionPhase::Registered);
            status.location = Some(location);
            status.connection_id = Some(registered.connection_id);
        });
    }

    pub(super) fn draining(&self, slot: u8) {
        self.update(slot, |status| enter(status, ConnectionPhase::Draining));
    }

    pub(super) fn waiting(&self, slot: u8) {
        self.update(slot, |status| enter(status, ConnectionPhase::Waiting));
    }

    pub(super) fn stopped(&self, slot: u8) {
        self.update(slot, |status| enter(status, ConnectionPhase::Stopped));
    }

    fn update(&self, slot: u8, change: impl FnOnce(&mut ConnectionStatus)) {
        if let Some(status) = self.lock().get_mut(usize::from(slot)) {
            change(status);
        }
    }

    /// A panic elsewhere cannot leave a status half written.
    fn lock(&self) -> MutexGuard<'_, Vec<ConnectionStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn enter(status: &mut ConnectionStatus, phase: ConnectionPhase) {
    status.phase = phase;
    status.since = Instant::now();
    if matches!(phase, ConnectionPhase::Connecting | ConnectionPhase::Waiting) {
        status.location = None;
        status.connection_id = None;
    }
}
