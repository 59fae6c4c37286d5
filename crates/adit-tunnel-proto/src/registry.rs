//! The edge's book of tunnels and connections: who may register, who is there, which hosts were
//! learnt (tunnel-protocol.md §3.5, §3.7; E4, E6, E20).

use std::{collections::BTreeMap, time::Duration};

use adit_config::{HostPattern, Secret, TunnelId, hostnames_in_push};
use thiserror::Error;
use uuid::Uuid;

use crate::registration::{Registration, Rejection};

/// A tunnel that may register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The tunnel.
    pub id: TunnelId,
    /// Its name, for logs.
    pub name: String,
    /// What its connectors must know.
    pub secret: Secret,
    /// Account tag that its connectors must give; absent = any.
    pub account_tag: Option<String>,
    /// Hosts it may serve.
    pub hostnames: Vec<HostPattern>,
    /// Connections at once over all its connectors.
    pub connections_max: u16,
}

/// The edge's number for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey(pub u64);

/// Why a registration is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No such tunnel.
    #[error("tunnel is not declared")]
    UnknownTunnel,
    /// Wrong secret.
    #[error("tunnel secret is wrong")]
    WrongSecret,
    /// Wrong account tag.
    #[error("account tag is wrong")]
    WrongAccount,
    /// The connector already has this connection here.
    #[error("connection exists already")]
    Duplicate,
    /// The tunnel has as many connections as it may.
    #[error("tunnel has too many connections")]
    TooManyConnections,
    /// The connection has registered before.
    #[error("connection is registered already")]
    Twice,
}

impl Refusal {
    /// The name under which logs and metrics count it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::UnknownTunnel => "unknown_tunnel",
            Self::WrongSecret => "wrong_secret",
            Self::WrongAccount => "wrong_account",
            Self::Duplicate => "duplicate_connection",
            Self::TooManyConnections => "too_many_connections",
            Self::Twice => "registered_twice",
        }
    }

    /// What the connector is told. Wrong credentials look the same whichever part is wrong, so that
    /// nobody can ask which tunnels exist.
    pub fn rejection(self) -> Rejection {
        match self {
            Self::UnknownTunnel | Self::WrongSecret | Self::WrongAccount => {
                Rejection::permanent("tunnel credentials are not accepted here")
            }
            Self::Duplicate => Rejection::duplicate(),
            Self::TooManyConnections => {
                Rejection::temporary("tunnel has as many connections as it may", TOO_MANY_CONNECTIONS_WAIT)
            }
            Self::Twice => Rejection::permanent("connection is registered already"),
        }
    }
}

/// What a registration changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// An older connection that the new one replaces; to be closed.
    pub superseded: Option<ConnectionKey>,
}

/// What was learnt from pushed rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learnt {
    /// Hosts taken.
    pub taken: usize,
    /// Hosts that the tunnel may not serve.
    pub not_allowed: usize,
}

/// Why pushed rules are not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LearnError {
    /// The connection is not registered.
    #[error("connection is not registered")]
    NotRegistered,
    /// The rules are of no use.
    #[error("pushed rules are of no use")]
    Push(#[from] adit_config::PushError),
}

impl LearnError {
    /// The name under which logs and metrics count it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotRegistered => "not_registered",
            Self::Push(adit_config::PushError::TooMany(_)) => "too_many_hostnames",
            Self::Push(_) => "malformed_configuration",
        }
    }
}

/// The book.
#[derive(Debug)]
pub struct Registry {
    hostnames_max: usize,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    /// Bounded by the sum of the tunnels' `connections_max`.
    connections: BTreeMap<ConnectionKey, Connection>,
}

#[derive(Debug)]
struct Tunnel {
    grant: Grant,
    /// Hosts by the connector that pushed them; at most one entry per connection, plus the last
    /// connector's, kept while the tunnel is down so that its visitors hear so instead of 404.
    learnt: BTreeMap<Uuid, Vec<HostPattern>>,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    tunnel: TunnelId,
    client: Uuid,
    index: u8,
}

impl Registry {
    /// A book with these tunnels, each learning at most `hostnames_max` hosts from one connector.
    pub fn new(grants: Vec<Grant>, hostnames_max: usize) -> Self {
        let mut registry = Self { hostnames_max, tunnels: BTreeMap::new(), connections: BTreeMap::new() };
        registry.replace_grants(grants);
        registry
    }

    /// Replaces the declared tunnels; the connections to close, because their tunnel is gone or its
    /// credentials changed: they are registered no more.
    pub fn replace_grants(&mut self, grants: Vec<Grant>) -> Vec<ConnectionKey> {
        let mut old = std::mem::take(&mut self.tunnels);
        let mut kept = Vec::new();
        for grant in grants {
            let before = old.remove(&grant.id);
            let mut learnt = BTreeMap::new();
            if let Some(before) = before
                && before.grant.secret == grant.secret
                && before.grant.account_tag == grant.account_tag
            {
                kept.push(grant.id);
                learnt = before.learnt;
                for patterns in learnt.values_mut() {
                    patterns.retain(|pattern| allows(&grant, pattern));
                }
            }
            self.tunnels.insert(grant.id, Tunnel { grant, learnt });
        }
        let gone = self.connections.extract_if(.., |_, connection| !kept.contains(&connection.tunnel));
        gone.map(|(key, _)| key).collect()
    }

    /// Whether a connection is registered and neither gone nor revoked.
    pub fn is_registered(&self, key: ConnectionKey) -> bool {
        self.connections.contains_key(&key)
    }

    /// Admits or refuses a connection.
    ///
    /// A duplicate is a connection with the client id *and* index of one that is there (E6 in the
    /// reference speaks of the client id alone, but a stock connector given one edge address twice
    /// must be able to have two connections to one process). If the older one is `silent`, the
    /// connector has given it up and it is superseded instead.
    ///
    /// # Errors
    /// Any [`Refusal`].
    pub fn register(
        &mut self,
        key: ConnectionKey,
        registration: &Registration,
        secrets_match: impl FnOnce(&Secret, &Secret) -> bool,
        silent: impl FnOnce(ConnectionKey) -> bool,
    ) -> Result<Admission, Refusal> {
        if self.connections.contains_key(&key) {
            return Err(Refusal::Twice);
        }
        let Some(tunnel) = self.tunnels.get(&registration.tunnel) else {
            // Costs what a wrong secret costs, so that time does not tell which tunnels exist.
            secrets_match(&registration.secret, &registration.secret);
            return Err(Refusal::UnknownTunnel);
        };
        if !secrets_match(&tunnel.grant.secret, &registration.secret) {
            return Err(Refusal::WrongSecret);
        }
        if tunnel.grant.account_tag.as_ref().is_some_and(|tag| *tag != registration.account_tag) {
            return Err(Refusal::WrongAccount);
        }
        let connection = Connection {
            tunnel: registration.tunnel,
            client: registration.client.id,
            index: registration.index,
        };
        let older = self.find(&connection);
        if let Some(older) = older
            && !registration.replace_existing
            && !silent(older)
        {
            return Err(Refusal::Duplicate);
        }
        let count = self.connections.values().filter(|other| other.tunnel == connection.tunnel).count();
        if count - usize::from(older.is_some()) >= usize::from(tunnel.grant.connections_max) {
            return Err(Refusal::TooManyConnections);
        }
        if let Some(older) = older {
            self.connections.remove(&older);
        }
        self.connections.insert(key, connection);
        Ok(Admission { superseded: older })
    }

    /// A connection is gone. Hosts learnt from its connector go with the connector's last
    /// connection, unless that was the tunnel's last too.
    pub fn disconnect(&mut self, key: ConnectionKey) {
        let Some(gone) = self.connections.remove(&key) else { return };
        let mut others = self.connections.values().filter(|other| other.tunnel == gone.tunnel).peekable();
        if others.peek().is_none() || others.any(|other| other.client == gone.client) {
            return;
        }
        if let Some(tunnel) = self.tunnels.get_mut(&gone.tunnel) {
            tunnel.learnt.remove(&gone.client);
        }
    }

    /// Learns hosts from rules pushed on a connection, within what the tunnel may serve.
    ///
    /// # Errors
    /// When the rules are of no use; what was learnt before stays.
    pub fn learn(&mut self, key: ConnectionKey, json: &[u8]) -> Result<Learnt, LearnError> {
        let connection = *self.connections.get(&key).ok_or(LearnError::NotRegistered)?;
        let mut patterns = hostnames_in_push(json, self.hostnames_max)?;
        let live = |client: &Uuid| {
            self.connections
                .values()
                .any(|other| other.tunnel == connection.tunnel && other.client == *client)
        };
        let tunnel = self.tunnels.get_mut(&connection.tunnel).ok_or(LearnError::NotRegistered)?;
        let pushed = patterns.len();
        patterns.retain(|pattern| allows(&tunnel.grant, pattern));
        let learnt = Learnt { taken: patterns.len(), not_allowed: pushed - patterns.len() };
        // What a connector of an earlier life pushed is out of date now.
        tunnel.learnt.retain(|client, _| live(client));
        tunnel.learnt.insert(connection.client, patterns);
        Ok(learnt)
    }

    /// All learnt hosts by tunnel, sorted and each once.
    pub fn learnt(&self) -> Vec<(TunnelId, Vec<HostPattern>)> {
        let hosts = |tunnel: &Tunnel| {
            let mut hosts: Vec<HostPattern> = tunnel.learnt.values().flatten().cloned().collect();
            hosts.sort();
            hosts.dedup();
            hosts
        };
        self.tunnels.iter().map(|(id, tunnel)| (*id, hosts(tunnel))).collect()
    }

    /// The declared tunnels.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.tunnels.values().map(|tunnel| &tunnel.grant)
    }

    /// One declared tunnel.
    pub fn grant(&self, id: TunnelId) -> Option<&Grant> {
        self.tunnels.get(&id).map(|tunnel| &tunnel.grant)
    }

    fn find(&self, wanted: &Connection) -> Option<ConnectionKey> {
        let same = |other: &Connection| {
            other.tunnel == wanted.tunnel && other.client == wanted.client && other.index == wanted.index
        };
        self.connections.iter().find(|(_, other)| same(other)).map(|(key, _)| *key)
    }
}

/// One connection as a choice for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Requests in flight.
    pub in_flight: usize,
    /// Takes no new request (E20).
    pub draining: bool,
    /// Not heard from for a while.
    pub silent: bool,
}

/// Why no connection can take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickError {
    /// There is none.
    NoConnection,
    /// All are draining.
    Draining,
    /// All carry as many requests as they may.
    Full,
}

/// Picks, of `count` connections, the one with the least load, looking from `start` on so that ties
/// take turns; a silent one only if no other is left. `candidate` is asked once for each.
///
/// # Errors
/// When none can take a request.
pub fn pick(
    count: usize,
    start: usize,
    in_flight_max: usize,
    candidate: impl Fn(usize) -> Candidate,
) -> Result<usize, PickError> {
    let (mut best, mut live) = (None, false);
    for offset in 0..count {
        let at = start.wrapping_add(offset) % count;
        let Candidate { in_flight, draining, silent } = candidate(at);
        live |= !draining;
        let better = best.is_none_or(|(rank, _)| (silent, in_flight) < rank);
        if !draining && in_flight < in_flight_max && better {
            best = Some(((silent, in_flight), at));
        }
    }
    match best {
        Some((_, at)) => Ok(at),
        None if count == 0 => Err(PickError::NoConnection),
        None if live => Err(PickError::Full),
        None => Err(PickError::Draining),
    }
}

fn allows(grant: &Grant, pattern: &HostPattern) -> bool {
    grant.hostnames.iter().any(|allowed| allowed.covers(pattern))
}

/// How long a connector waits when its tunnel is full.
const TOO_MANY_CONNECTIONS_WAIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
