//! Who of the mesh may speak at this moment: entry points on the mesh know a peer by its source address, and addresses
//! change hands.
//!
//! A reload of the mesh goes in three steps: [`MeshGate::hold`] turns away whoever speaks from an address that is about to
//! move, then the engine takes the new peers, then everything that decides is swapped and [`MeshGate::open`] ends the
//! connections of whoever is no longer who he was. In between a moving address is nobody.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use adit_route::mesh::{MeshIdentity, MeshPeers, MovingAddresses};
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::watch;

/// The mesh's gate, one for all entry points of a process.
#[derive(Debug)]
pub struct MeshGate {
    moving: ArcSwapOption<MovingAddresses>,
    peers: ArcSwap<MeshPeers>,
    /// Counts changes of either.
    turns: watch::Sender<u64>,
}

/// The peers that an entry point of the mesh decides by, behind the gate.
#[derive(Clone, Debug)]
pub struct MeshVisitors {
    peers: Arc<MeshPeers>,
    gate: Arc<MeshGate>,
    /// Whether an address is this machine's own; another only in tests, which have no other addresses to speak from.
    is_own: fn(IpAddr) -> bool,
}

/// A peer let in: its connection lasts no longer than it is this peer.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) identity: Arc<MeshIdentity>,
    address: IpAddr,
    gate: Arc<MeshGate>,
    turns: watch::Receiver<u64>,
}

impl MeshGate {
    /// Keeps everybody from the addresses that will have changed hands when `after` is in force.
    pub fn hold(&self, after: &MeshPeers) {
        self.moving.store(self.peers.load().moving(after).map(Arc::new));
        self.turn();
    }

    /// `peers` are in force everywhere: who is another now than when it came has to come again.
    pub fn open(&self, peers: Arc<MeshPeers>) {
        self.peers.store(peers);
        self.moving.store(None);
        self.turn();
    }

    /// The [`Self::hold`] was for nothing: everything is as it was.
    pub fn reopen(&self) {
        self.moving.store(None);
        self.turn();
    }

    /// Whether an address is about to change hands.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.moving.load().as_ref().is_some_and(|moving| moving.contains(address))
    }

    fn turn(&self) {
        self.turns.send_modify(|turn| *turn = turn.wrapping_add(1));
    }

    fn knows(&self, address: IpAddr, identity: &MeshIdentity) -> bool {
        !self.holds(address) && self.peers.load().identify(address).is_some_and(|now| **now == *identity)
    }
}

impl Default for MeshGate {
    fn default() -> Self {
        Self { moving: ArcSwapOption::empty(), peers: ArcSwap::default(), turns: watch::channel(0).0 }
    }
}

impl MeshVisitors {
    /// Decides by `peers`.
    pub fn new(peers: Arc<MeshPeers>, gate: Arc<MeshGate>) -> Self {
        Self { peers, gate, is_own: is_of_this_machine }
    }

    /// Tells of changes of the gate from now on.
    pub(crate) fn turns(&self) -> watch::Receiver<u64> {
        self.gate.turns.subscribe()
    }

    /// Whether one of this machine's own programs speaks from an address: see [`is_of_this_machine`].
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        (self.is_own)(address)
    }

    /// The peer that speaks from an address; `None` if nobody of the mesh does, or not at this moment.
    pub fn identify(&self, address: IpAddr) -> Option<&Arc<MeshIdentity>> {
        self.peers.identify(address).filter(|_| !self.gate.holds(address))
    }

    /// Lets in whoever speaks from an address, until that is another.
    pub(crate) fn admit(&self, address: IpAddr) -> Option<Admitted> {
        if self.is_own(address) {
            return None;
        }
        // Before the look: no change after it is missed.
        let turns = self.gate.turns.subscribe();
        let identity = Arc::clone(self.identify(address)?);
        Some(Admitted { identity, address, gate: Arc::clone(&self.gate), turns })
    }
}

/// Whether an address is one of this machine's own. Its programs reach the mesh's sockets without passing the engine, and a
/// peer may be allowed a network that holds our address, or all there are.
fn is_of_this_machine(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    let any: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    let bound = any.map(|any| UdpSocket::bind((any, 0)).ok());
    let [v6, v4] = &bound;
    let socket = match if address.is_ipv6() { v6 } else { v4 } {
        Some(socket) => socket,
        // A machine without this family has no such address; one without descriptors cannot tell.
        None => return bound.iter().all(Option::is_none),
    };
    // Nothing is sent: towards its own address the kernel chooses that same address.
    let chosen = socket.connect((address, DISCARD_PORT)).and_then(|()| socket.local_addr());
    match chosen {
        Ok(chosen) => chosen.ip().to_canonical() == address,
        // What has no route is elsewhere: a netstack's peers, say.
        Err(error) => !matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable),
    }
}

impl Admitted {
    /// Returns when whoever speaks from the address is another, or the same under another name or in other groups.
    pub(crate) async fn changed(&mut self) {
        while self.turns.changed().await.is_ok() {
            if !self.gate.knows(self.address, &self.identity) {
                return;
            }
        }
        // The gate is a part of ours: it cannot have gone.
        std::future::pending().await
    }
}

/// Any port would do.
const DISCARD_PORT: u16 = 9;

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use adit_config::{Config, PeerKey};
    use tokio::time::timeout;

    use super::*;

    /// Peers with one key each, by name, networks and groups.
    pub(crate) fn peers(of: &[(&str, u8, &str, &str)]) -> Arc<MeshPeers> {
        let peer = |(name, key, nets, groups): &(&str, u8, &str, &str)| {
            let key = PeerKey([*key; 32]);
            format!("    {name}: {{ public-key: {key}, allowed-ips: [{nets}], groups: [{groups}] }}\n")
        };
        let peers: String = of.iter().map(peer).collect();
        let key = PeerKey([99; 32]);
        let text = format!("mesh:\n  private-key: {key}\n  address: 10.9.0.1/24\n  peers:\n{peers}");
        let config = Config::parse(&text, "t.yaml", &|_: &std::path::Path| Err(String::new())).unwrap();
        Arc::new(MeshPeers::new(&config.mesh.unwrap()))
    }

    /// Takes programs of this machine for peers.
    pub(crate) fn believing(peers: Arc<MeshPeers>, gate: Arc<MeshGate>) -> MeshVisitors {
        MeshVisitors { is_own: |_| false, ..MeshVisitors::new(peers, gate) }
    }

    fn name(visitors: &MeshVisitors, address: &str) -> Option<String> {
        visitors.identify(address.parse().unwrap()).map(|identity| identity.name.to_string())
    }

    #[tokio::test]
    async fn programs_of_this_machine_are_no_peers_whatever_the_networks_of_a_peer() {
        let everything = peers(&[("exit", 1, "0.0.0.0/0, ::/0", "")]);
        let gate = Arc::new(MeshGate::default());
        gate.open(Arc::clone(&everything));
        let visitors = MeshVisitors::new(everything, gate);
        let is_let_in = |address: &str| visitors.admit(address.parse().unwrap()).is_some();
        for own in ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1", "0.0.0.0"] {
            assert!(!is_let_in(own), "{own}");
        }
        assert!(is_let_in("192.0.2.7"));
    }

    #[tokio::test]
    async fn an_address_that_moves_is_nobody_until_everything_has_changed() {
        let before = peers(&[("alice", 1, "10.9.0.5", ""), ("bob", 2, "10.9.0.3", "")]);
        let after = peers(&[("bob", 2, "10.9.0.3, 10.9.0.5", "")]);
        let gate = Arc::new(MeshGate::default());
        gate.open(Arc::clone(&before));
        let visitors = MeshVisitors::new(before, Arc::clone(&gate));
        let mut alice = visitors.admit("10.9.0.5".parse().unwrap()).unwrap();
        let mut bob = visitors.admit("10.9.0.3".parse().unwrap()).unwrap();
        gate.hold(&after);
        assert_eq!(name(&visitors, "10.9.0.5"), None);
        assert_eq!(name(&visitors, "10.9.0.3").as_deref(), Some("bob"));
        timeout(Duration::from_secs(5), alice.changed()).await.expect("her connections end");
        // Taken back: she is who she was.
        gate.reopen();
        assert_eq!(name(&visitors, "10.9.0.5").as_deref(), Some("alice"));
        gate.hold(&after);
        let renewed = MeshVisitors::new(Arc::clone(&after), Arc::clone(&gate));
        assert_eq!(name(&renewed, "10.9.0.5"), None, "not even who will have it");
        gate.open(after);
        assert_eq!(name(&renewed, "10.9.0.5").as_deref(), Some("bob"));
        assert!(timeout(Duration::from_millis(10), bob.changed()).await.is_err(), "bob is bob all the time");
    }

    #[tokio::test]
    async fn who_is_in_other_groups_has_to_come_again() {
        let before = peers(&[("bob", 2, "10.9.0.3", "admins")]);
        let gate = Arc::new(MeshGate::default());
        gate.open(Arc::clone(&before));
        let mut bob =
            MeshVisitors::new(before, Arc::clone(&gate)).admit("10.9.0.3".parse().unwrap()).unwrap();
        let after = peers(&[("bob", 2, "10.9.0.3", "")]);
        gate.hold(&after);
        gate.open(after);
        timeout(Duration::from_secs(5), bob.changed()).await.expect("the connection ends");
    }
}
