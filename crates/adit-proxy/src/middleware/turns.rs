//! Work that few may do at once, given out network by network: whoever asks for much waits behind itself.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A number of turns at once, and lines of those who wait for theirs.
#[derive(Debug)]
pub(super) struct Turns {
    lines: Mutex<Lines>,
}

/// One's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
}

#[derive(Debug)]
struct Lines {
    free: usize,
    /// By network, none of them empty; at most [`WAITING_MAX`] in all.
    by_network: HashMap<IpAddr, VecDeque<Waiting>>,
    /// Networks with a line, in the order of their turns.
    order: VecDeque<IpAddr>,
    waiting: usize,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    called: oneshot::Sender<Turn>,
}

/// A place in a line; given up when dropped.
struct Place<'t> {
    turns: &'t Turns,
    network: IpAddr,
    id: u64,
}

impl Turns {
    /// `count` at once.
    pub(super) fn new(count: usize) -> Arc<Self> {
        let lines =
            Lines { free: count, by_network: HashMap::new(), order: VecDeque::new(), waiting: 0, next: 0 };
        Arc::new(Self { lines: Mutex::new(lines) })
    }

    /// Waits for the turn of somebody at this address; `None` if too many wait already, in all or in its network.
    pub(super) async fn take(self: &Arc<Self>, address: IpAddr) -> Option<Turn> {
        let network = network(address);
        let (place, called) = {
            let mut lines = self.lock();
            if lines.free > 0 {
                lines.free -= 1;
                return Some(Turn { turns: Arc::clone(self) });
            }
            lines.make_room(network)?;
            let (called, calling) = oneshot::channel();
            (Place { turns: self, network, id: lines.push(network, called) }, calling)
        };
        let turn = called.await.ok();
        drop(place);
        turn
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many turns nobody has, and how many wait.
    #[cfg(test)]
    pub(super) fn state(&self) -> (usize, usize) {
        let lines = self.lock();
        (lines.free, lines.waiting)
    }
}

impl Lines {
    /// Where all lines together are full, the last of the longest gives way to a shorter one.
    fn make_room(&mut self, network: IpAddr) -> Option<()> {
        let own = self.by_network.get(&network).map_or(0, VecDeque::len);
        if own >= NETWORK_WAITING_MAX {
            return None;
        }
        if self.waiting >= WAITING_MAX {
            let (longest, line) = self.by_network.iter().max_by_key(|(_, line)| line.len())?;
            let last = line.back().filter(|_| line.len() > own + 1)?.id;
            self.remove(*longest, last);
        }
        Some(())
    }

    fn push(&mut self, network: IpAddr, called: oneshot::Sender<Turn>) -> u64 {
        let line = self.by_network.entry(network).or_default();
        if line.is_empty() {
            self.order.push_back(network);
        }
        let id = self.next;
        line.push_back(Waiting { id, called });
        (self.next, self.waiting) = (id + 1, self.waiting + 1);
        id
    }

    /// Who is next: the first in the line of the network whose turn it is.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let network = self.order.pop_front()?;
        let line = self.by_network.get_mut(&network)?;
        let first = line.pop_front()?;
        match line.is_empty() {
            true => drop(self.by_network.remove(&network)),
            false => self.order.push_back(network),
        }
        self.waiting -= 1;
        Some(first.called)
    }

    fn remove(&mut self, network: IpAddr, id: u64) {
        let Some(line) = self.by_network.get_mut(&network) else { return };
        let Some(at) = line.iter().position(|waiting| waiting.id == id) else { return };
        line.remove(at);
        self.waiting -= 1;
        if line.is_empty() {
            self.by_network.remove(&network);
            self.order.retain(|other| *other != network);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.turns.lock();
        let Some(next) = lines.next() else {
            lines.free += 1;
            return;
        };
        drop(lines);
        // Who has left in this moment hands it on in turn.
        drop(next.send(Self { turns: Arc::clone(&self.turns) }));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.lock().remove(self.network, self.id);
    }
}

/// The part of an address that one visitor cannot change at will.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// Those who wait, in all. Each is a request that is held, and bcrypt takes a quarter of a second for one: more would wait
/// longer than visitors do. Memory is that of the requests' heads, 16 MiB at worst.
const WAITING_MAX: usize = 256;
/// The same of one network; a page's parts that are asked for at once still fit.
const NETWORK_WAITING_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Taking<'t> = Pin<Box<dyn Future<Output = Option<Turn>> + 't>>;

    fn taking<'t>(turns: &'t Arc<Turns>, address: &str) -> Taking<'t> {
        let mut taking: Taking<'t> = Box::pin(turns.take(address.parse().unwrap()));
        assert!(poll(&mut taking).is_pending());
        taking
    }

    fn poll(taking: &mut Taking<'_>) -> Poll<Option<Turn>> {
        taking.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn networks_take_turns_however_long_their_lines_are() {
        let turns = Turns::new(1);
        let Poll::Ready(Some(turn)) = poll(&mut (Box::pin(turns.take([192, 0, 2, 9].into())) as Taking<'_>))
        else {
            panic!("a free turn is taken at once")
        };
        // One network under many addresses.
        let mut many: Vec<_> = (0..50).map(|n| taking(&turns, &format!("2001:db8::{n:x}"))).collect();
        let mut one = taking(&turns, "192.0.2.1");
        drop(turn);
        let Poll::Ready(Some(turn)) = poll(&mut many[0]) else { panic!("the first of all") };
        assert!(poll(&mut one).is_pending());
        drop(turn);
        assert!(poll(&mut many[1]).is_pending(), "the other network's turn");
        let Poll::Ready(Some(turn)) = poll(&mut one) else { panic!("the second network") };
        // Who leaves gives its place up, and its turn if it had been called.
        drop(many.remove(2));
        drop(turn);
        drop(many.remove(1));
        let Poll::Ready(Some(turn)) = poll(&mut many[1]) else { panic!("the next that is still there") };
        drop((turn, one, many));
        assert_eq!(turns.state(), (1, 0));
    }

    #[test]
    fn full_lines_send_the_longest_away_and_not_the_newcomer() {
        let turns = Turns::new(1);
        let held = poll(&mut (Box::pin(turns.take([192, 0, 2, 9].into())) as Taking<'_>));
        let mut waiting = Vec::new();
        for net in 0..4 {
            waiting.extend((0..NETWORK_WAITING_MAX).map(|_| taking(&turns, &format!("10.0.{net}.1"))));
        }
        assert_eq!(turns.state(), (0, WAITING_MAX));
        assert!(matches!(
            poll(&mut (Box::pin(turns.take([10, 0, 0, 1].into())) as Taking<'_>)),
            Poll::Ready(None)
        ));
        let newcomer = taking(&turns, "192.0.2.1");
        assert_eq!(turns.state(), (0, WAITING_MAX));
        let sent_away =
            waiting.iter_mut().map(poll).filter(|polled| matches!(polled, Poll::Ready(None))).count();
        assert_eq!(sent_away, 1);
        drop((held, waiting, newcomer));
        assert_eq!(turns.state(), (1, 0));
    }
}
