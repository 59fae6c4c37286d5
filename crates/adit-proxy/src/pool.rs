//! Idle connections to one origin, last used first.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::h1::client::OriginConnection;

/// Idle connections to one origin.
///
/// The newest is used first: it is the least likely to have been closed by the origin, and the others can go idle.
#[derive(Debug)]
pub struct Pool {
    idle: Mutex<Vec<IdleConnection>>,
    /// Most idle connections kept (cloudflared's `keepAliveConnections`); each costs a descriptor here and there.
    idle_max: usize,
    /// How long an idle connection is kept.
    idle_timeout: Duration,
}

#[derive(Debug)]
struct IdleConnection {
    connection: OriginConnection,
    /// The TLS name it was opened for, where one pool serves several.
    name: Option<Arc<str>>,
    since: Instant,
}

/// Where a connection returns to after an exchange.
#[derive(Clone, Debug)]
pub struct Home {
    pool: Weak<Pool>,
    name: Option<Arc<str>>,
}

impl Pool {
    /// An empty pool.
    pub fn new(idle_max: usize, idle_timeout: Duration) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::new(Vec::new()), idle_max, idle_timeout })
    }

    /// The newest idle connection opened for `name` that its origin has not closed.
    pub fn take(&self, name: Option<&str>) -> Option<OriginConnection> {
        loop {
            let mut candidate = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                let at = idle.iter().rposition(|i| i.name.as_deref() == name)?;
                idle.remove(at)
            };
            if candidate.since.elapsed() < self.idle_timeout && candidate.connection.is_fresh() {
                return Some(candidate.connection);
            }
        }
    }

    /// The ticket with which a connection opened for `name` comes back.
    pub fn home(self: &Arc<Self>, name: Option<Arc<str>>) -> Home {
        Home { pool: Arc::downgrade(self), name }
    }

    /// Closes connections that have been idle for too long; to be called now and then.
    pub fn sweep(&self) {
        let expired: Vec<_> = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            // Oldest first: connections are put at the end.
            let keep = idle.iter().position(|i| i.since.elapsed() < self.idle_timeout).unwrap_or(idle.len());
            idle.drain(..keep).collect()
        };
        drop(expired);
    }

    /// How many connections are idle now.
    pub fn idle_connections(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Home {
    /// Gives a connection back after a complete exchange; closed if the pool is full or gone.
    pub fn put(&self, connection: OriginConnection) {
        let Some(pool) = self.pool.upgrade() else { return };
        let dropped = {
            let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = (idle.len() >= pool.idle_max && !idle.is_empty()).then(|| idle.remove(0));
            if pool.idle_max > 0 {
                idle.push(IdleConnection { connection, name: self.name.clone(), since: Instant::now() });
            }
            oldest
        };
        // Closing a socket is a system call: outside the lock.
        drop(dropped);
    }
}
