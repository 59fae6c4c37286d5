//! Idle connections to one origin, last used first.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::h1::client::OriginConnection;
use crate::lanes;

/// Idle connections to one origin.
///
/// The newest is used first: it is the least likely to have been closed by the origin, and the others can go idle. Each
/// lane has its own: a connection wakes the lane that opened it.
#[derive(Debug)]
pub struct Pool {
    shards: Box<[Arc<Shard>]>,
    /// Most idle connections kept (cloudflared's `keepAliveConnections`); each costs a descriptor here and there.
    idle_max: usize,
    /// How long an idle connection is kept.
    idle_timeout: Duration,
}

/// The idle connections of one lane; alone on its cache lines, or two lanes would slow each other.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    idle: Mutex<Vec<IdleConnection>>,
    /// How many there are, for those who have not the lock.
    count: AtomicUsize,
    /// How many it may have without asking how many the others have.
    share: usize,
    pool: Weak<Pool>,
}

#[derive(Debug)]
struct IdleConnection {
    connection: OriginConnection,
    /// The TLS name it was opened for, where one pool serves several.
    name: Option<Arc<str>>,
    since: Instant,
}

/// Where a connection returns to after an exchange: the lane that took it out.
#[derive(Clone, Debug)]
pub struct Home {
    shard: Weak<Shard>,
    name: Option<Arc<str>>,
}

impl Shard {
    fn with<R>(&self, change: impl FnOnce(&mut Vec<IdleConnection>) -> R) -> R {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut idle);
        self.count.store(idle.len(), Ordering::Relaxed);
        result
    }

    fn take(&self, name: Option<&str>) -> Option<IdleConnection> {
        self.with(|idle| {
            let at = idle.iter().rposition(|i| i.name.as_deref() == name)?;
            Some(idle.remove(at))
        })
    }

    /// Whether one more than its `own` is too many. Others are asked only by who has more than its share: as long as nobody
    /// has, all together have no more than the limit.
    fn is_full(&self, own: usize) -> bool {
        own >= self.share && self.pool.upgrade().is_none_or(|pool| pool.idle_connections() >= pool.idle_max)
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(idle_max: usize, idle_timeout: Duration) -> Arc<Self> {
        Arc::new_cyclic(|pool| {
            let shards = lanes::shards();
            let shard = |_| {
                let (idle, count, pool) = (Mutex::default(), AtomicUsize::new(0), Weak::clone(pool));
                Arc::new(Shard { idle, count, share: idle_max / shards, pool })
            };
            Self { shards: (0..shards).map(shard).collect(), idle_max, idle_timeout }
        })
    }

    /// The newest idle connection opened for `name` that its origin has not closed.
    pub fn take(&self, name: Option<&str>) -> Option<OriginConnection> {
        loop {
            let mut candidate = self.own().take(name).or_else(|| self.take_elsewhere(name))?;
            if clock::now() - candidate.since < self.idle_timeout && candidate.connection.is_fresh() {
                return Some(candidate.connection);
            }
        }
    }

    /// The ticket with which a connection opened for `name` comes back.
    pub fn home(&self, name: Option<Arc<str>>) -> Home {
        Home { shard: Arc::downgrade(self.own()), name }
    }

    /// Closes connections that have been idle for too long; to be called now and then.
    pub fn sweep(&self) {
        for shard in &self.shards {
            let expired: Vec<_> = shard.with(|idle| {
                // Oldest first: connections are put at the end.
                let keep =
                    idle.iter().position(|i| i.since.elapsed() < self.idle_timeout).unwrap_or(idle.len());
                idle.drain(..keep).collect()
            });
            drop(expired);
        }
    }

    /// How many connections are idle now.
    pub fn idle_connections(&self) -> usize {
        self.shards.iter().map(|shard| shard.count.load(Ordering::Relaxed)).sum()
    }

    fn own(&self) -> &Arc<Shard> {
        &self.shards[lanes::own_of(self.shards.len())]
    }

    /// Another lane's, where there may be fewer connections than lanes; else each lane opens its own.
    fn take_elsewhere(&self, name: Option<&str>) -> Option<IdleConnection> {
        let is_scarce = self.idle_max < self.shards.len();
        self.shards.iter().filter(|_| is_scarce).find_map(|shard| shard.take(name))
    }
}

impl Home {
    /// Gives a connection back after a complete exchange; closed if the pool is full or gone.
    pub fn put(&self, connection: OriginConnection) {
        let Some(shard) = self.shard.upgrade() else { return };
        let one = IdleConnection { connection, name: self.name.clone(), since: clock::now() };
        let dropped = shard.with(|idle| {
            if !shard.is_full(idle.len()) {
                idle.push(one);
                return None;
            }
            if idle.is_empty() {
                return Some(one);
            }
            let oldest = idle.remove(0);
            idle.push(one);
            Some(oldest)
        });
        // Closing a socket is a system call: outside the lock.
        drop(dropped);
    }
}
