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
///
/// An idle connection needs a place, of which there are as many as may be idle. Places belong to lanes and stay with them
/// while their connections are in use, so that lanes ask each other only when they run out.
#[derive(Debug)]
pub struct Pool {
    shards: Box<[Arc<Shard>]>,
    /// Most idle connections kept (cloudflared's `keepAliveConnections`); each costs a descriptor here and there.
    idle_max: usize,
    /// How long an idle connection is kept.
    idle_timeout: Duration,
    /// Places that no lane has yet.
    places_left: AtomicUsize,
}

/// The idle connections of one lane; alone on its cache lines, or two lanes would slow each other.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    state: Mutex<State>,
    /// How many there are, for those who have not the lock.
    count: AtomicUsize,
    /// How many places it has, likewise.
    places: AtomicUsize,
    /// How many places no other lane may take from it.
    share: usize,
    pool: Weak<Pool>,
}

#[derive(Debug, Default)]
struct State {
    /// Never more than places.
    idle: Vec<IdleConnection>,
    places: usize,
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
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        debug_assert!(state.idle.len() <= state.places, "each idle connection has a place");
        self.count.store(state.idle.len(), Ordering::Relaxed);
        self.places.store(state.places, Ordering::Relaxed);
        result
    }

    fn take(&self, name: Option<&str>) -> Option<IdleConnection> {
        self.with(|State { idle, .. }| {
            let at = idle.iter().rposition(|i| i.name.as_deref() == name)?;
            Some(idle.remove(at))
        })
    }

    /// Keeps a connection, where there is a place that is not in use; gives it back if not.
    fn keep(&self, one: IdleConnection, new_places: usize) -> Option<IdleConnection> {
        self.with(|state| {
            state.places += new_places;
            if state.idle.len() == state.places {
                return Some(one);
            }
            state.idle.push(one);
            None
        })
    }

    /// Keeps a connection in the place of the oldest; what is closed for it.
    fn exchange(&self, one: IdleConnection) -> IdleConnection {
        self.with(|State { idle, .. }| {
            if idle.is_empty() {
                return one;
            }
            let oldest = idle.remove(0);
            idle.push(one);
            oldest
        })
    }

    /// Gives up a place that is not in use; or, where it `may_be_in_use`, one beyond its share, with the connection that has
    /// it.
    fn give_up_place(&self, may_be_in_use: bool) -> Option<Option<IdleConnection>> {
        self.with(|State { idle, places }| {
            let is_free = idle.len() < *places;
            let is_beyond_share = may_be_in_use && *places > self.share;
            if !is_free && !is_beyond_share {
                return None;
            }
            *places -= 1;
            Some((!is_free).then(|| idle.remove(0)))
        })
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(idle_max: usize, idle_timeout: Duration) -> Arc<Self> {
        Arc::new_cyclic(|pool| {
            let shards = lanes::shards();
            let shard = |_| {
                Arc::new(Shard {
                    state: Mutex::default(),
                    count: AtomicUsize::new(0),
                    places: AtomicUsize::new(0),
                    share: idle_max / shards,
                    pool: Weak::clone(pool),
                })
            };
            let places_left = AtomicUsize::new(idle_max);
            Self { shards: (0..shards).map(shard).collect(), idle_max, idle_timeout, places_left }
        })
    }

    /// The newest idle connection opened for `name` that its origin has not closed: as far as the reactor has heard, or, for
    /// a request that can be sent only `once`, as the kernel knows.
    pub fn take(&self, name: Option<&str>, once: bool) -> Option<OriginConnection> {
        loop {
            let IdleConnection { mut connection, since, .. } =
                self.own().take(name).or_else(|| self.take_elsewhere(name))?;
            if clock::now() - since >= self.idle_timeout {
                continue;
            }
            if !once && connection.is_fresh() {
                return Some(connection);
            }
            if once && let Some(connection) = connection.if_fresh_now() {
                return Some(connection);
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
            let expired: Vec<_> = shard.with(|State { idle, .. }| {
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

    /// A place for `shard`, which has `own`: one that nobody has, that nobody uses, or, up to its share, one of a lane with more
    /// than that; with the connection that is closed for it.
    fn place_for(&self, shard: &Shard, own: usize) -> Option<Option<IdleConnection>> {
        let left = |left: usize| left.checked_sub(1);
        if self.places_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok() {
            return Some(None);
        }
        let others = || self.shards.iter().filter(|other| !std::ptr::eq(&***other, shard));
        let has_free =
            |other: &&Arc<Shard>| other.count.load(Ordering::Relaxed) < other.places.load(Ordering::Relaxed);
        let free = others().filter(has_free).find_map(|other| other.give_up_place(false));
        if free.is_some() || own >= shard.share {
            return free;
        }
        others().find_map(|other| other.give_up_place(true))
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
        // Closing a socket is a system call: outside the lock.
        let Some(one) = shard.keep(one, 0) else { return };
        let own = shard.places.load(Ordering::Relaxed);
        let place = shard.pool.upgrade().and_then(|pool| pool.place_for(&shard, own));
        let left = shard.keep(one, usize::from(place.is_some()));
        drop(left.map(|one| shard.exchange(one)));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, poll};
    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::inlet::Inlet;
    use crate::io::Io;
    use crate::tls;

    /// Puts new connections into a lane's part of the pool.
    async fn put(pool: &Pool, lane: usize, connections: usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let home = Home { shard: Arc::downgrade(&pool.shards[lane]), name: None };
        for _ in 0..connections {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            home.put(OriginConnection::new(Io::Tcp(stream)));
        }
    }

    fn idle_of(pool: &Pool, lane: usize) -> usize {
        pool.shards[lane].count.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn all_lanes_together_keep_no_more_than_the_limit_and_each_has_its_share() {
        let pool = Pool::new(20, Duration::from_secs(60));
        let share = pool.shards[0].share;
        put(&pool, 1, 30).await;
        assert_eq!((idle_of(&pool, 1), pool.idle_connections()), (20, 20), "who is alone has all");
        put(&pool, 0, share + 5).await;
        assert_eq!((idle_of(&pool, 0), pool.idle_connections()), (share, 20));
        let taken: Vec<_> = (0..share).filter_map(|_| pool.shards[1].take(None)).collect();
        assert_eq!(taken.len(), share);
        put(&pool, 0, 50).await;
        assert_eq!(pool.idle_connections(), 20, "places of connections in use are not kept for them");
        put(&pool, 1, 50).await;
        assert!(idle_of(&pool, 1) >= share && pool.idle_connections() == 20);
    }

    /// Closes the far end of a connection that waits in the pool, at a moment when the reactor cannot hear of it.
    fn close(far: Io, near: impl AsFd) {
        drop(far);
        // That the kernel has heard does not mean that the reactor has: it has no turn until somebody awaits something.
        assert_eq!(poll(&mut [PollFd::new(&near, PollFlags::IN)], None), Ok(1));
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// Both ends of a connection through TLS.
    async fn tls_pair(near: TcpStream, far: TcpStream) -> (Io, Io) {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let chain: Vec<CertificateDer<'static>> = vec![made.cert.der().clone()];
        let server = rustls::ServerConfig::builder_with_provider(tls::provider());
        let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut server = server.with_single_cert(chain, key.into()).unwrap();
        // They would wait to be read; the first answer brings them otherwise.
        server.send_tls13_tickets = 0;
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let connector = TlsConnector::from(tls::client_config(None, true, false).unwrap());
        let name = ServerName::try_from("a.test").unwrap();
        let (near, far) =
            tokio::join!(connector.connect(name, Inlet::Tcp(near)), acceptor.accept(Inlet::Tcp(far)));
        (Io::TlsClient(Box::new(near.unwrap())), Io::TlsServer(Box::new(far.unwrap())))
    }

    #[tokio::test]
    async fn what_an_origin_has_closed_a_moment_ago_is_not_taken_for_what_can_be_sent_once() {
        for is_tls in [false, true] {
            let (near, far) = pair().await;
            let watched = near.as_fd().try_clone_to_owned().unwrap();
            let (near, far) = match is_tls {
                true => tls_pair(near, far).await,
                false => (Io::Tcp(near), Io::Tcp(far)),
            };
            let pool = Pool::new(4, Duration::from_secs(60));
            pool.home(None).put(OriginConnection::new(near));
            let kept = pool.take(None, true).expect("it is open");
            pool.home(None).put(kept);
            close(far, &watched);
            let before = pool.take(None, false).expect("the reactor has not heard");
            pool.home(None).put(before);
            assert!(pool.take(None, true).is_none(), "{is_tls}");
        }
    }

    #[tokio::test]
    async fn a_pool_of_nothing_keeps_nothing() {
        let pool = Pool::new(0, Duration::from_secs(60));
        put(&pool, 0, 2).await;
        assert_eq!(pool.idle_connections(), 0);
    }
}
