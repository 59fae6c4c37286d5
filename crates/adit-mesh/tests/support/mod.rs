//! Two nodes in netstack mode with a wire between them that may lose and reorder; one thread runs it all.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use adit_mesh::Device;
use adit_mesh::netstack::{Limits, Netstack, Stack};
use adit_mesh_proto::{Config, Mesh, Outgoing, Path, PeerConfig, PrivateKey};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// How the wire treats datagrams that carry data.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wire {
    /// Of a thousand.
    pub(crate) lost: u64,
    /// Of a thousand: comes after the next one.
    pub(crate) late: u64,
}

/// Both nodes' stacks; the first is 10.0.0.1 and fd00::1, the second 10.0.0.2 and fd00::2.
pub(crate) struct Pair {
    pub(crate) stacks: [Stack; 2],
    pub(crate) lost: Arc<AtomicU64>,
    disown: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

struct Node {
    mesh: Mesh,
    stack: Netstack,
    /// Datagrams on their way to it.
    inbound: VecDeque<Vec<u8>>,
    held_back: Option<Vec<u8>>,
}

impl Pair {
    pub(crate) fn new(wire: Wire, limits: Limits) -> Self {
        let mut nodes = Vec::new();
        let mut stacks = Vec::new();
        for number in 0..2 {
            let config = config(number);
            let (stack, handle) = Netstack::new(config.addresses.clone(), config.mtu, limits).unwrap();
            let mesh = Mesh::new(config, [number + 1; 32], Instant::now());
            nodes.push(Node { mesh, stack, inbound: VecDeque::new(), held_back: None });
            stacks.push(handle);
        }
        let (disown, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let lost = Arc::new(AtomicU64::new(0));
        let world = World {
            nodes: nodes.try_into().ok().unwrap(),
            wire,
            random: 0x9e37_79b9_7f4a_7c15,
            lost: Arc::clone(&lost),
            disown: Arc::clone(&disown),
            buffer: vec![0; 70_000],
            wake: Arc::clone(&wake),
        };
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || world.run(&stopping));
        Self { stacks: stacks.try_into().ok().unwrap(), lost, disown, stop, wake, thread: Some(thread) }
    }

    /// Tells the first node's stack that no address belongs to anybody any more.
    pub(crate) fn disown(&self) {
        self.disown.store(true, Ordering::SeqCst);
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).unwrap();
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

struct World {
    nodes: [Node; 2],
    wire: Wire,
    random: u64,
    lost: Arc<AtomicU64>,
    disown: Arc<AtomicBool>,
    buffer: Vec<u8>,
    wake: Arc<OwnedFd>,
}

impl World {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            let now = Instant::now();
            let mut busy = false;
            if self.disown.swap(false, Ordering::SeqCst) {
                self.nodes[0].stack.forget_others(&|_| None);
            }
            for number in 0..2 {
                busy |= self.turn(number, now);
            }
            if !busy {
                self.wait(now);
            }
        }
    }

    /// What a lane does in one turn.
    fn turn(&mut self, number: usize, now: Instant) -> bool {
        let Node { mesh, stack, inbound, .. } = &mut self.nodes[number];
        let mut busy = false;
        if mesh.poll_timeout().is_some_and(|at| at <= now) {
            mesh.handle_timeout(now);
        }
        for _ in 0..64 {
            let Some(datagram) = inbound.pop_front() else { break };
            busy = true;
            let path = Path { remote: outer(1 - u8::try_from(number).unwrap()), local: None };
            let len = datagram.len();
            mesh.handle_datagram(path, &datagram, len, now);
        }
        while let Some(packet) = mesh.poll_packet() {
            stack.write(&packet, now).unwrap();
        }
        for _ in 0..16 {
            let Ok((offload, range)) = stack.read(&mut self.buffer, now) else { break };
            busy = true;
            mesh.handle_packet(Outgoing { contents: &mut self.buffer[range], offload }, now);
        }
        let mut sent = Vec::new();
        while let Some(transmit) = mesh.poll_transmit() {
            let size = transmit.segment_size.unwrap_or(transmit.contents.len());
            sent.extend(transmit.contents.chunks(size).map(<[u8]>::to_vec));
        }
        while mesh.poll_event().is_some() {}
        for datagram in sent {
            self.launch(1 - number, datagram);
        }
        busy
    }

    fn launch(&mut self, to: usize, datagram: Vec<u8>) {
        let is_data = datagram[0] == 4;
        if is_data && self.draw() % 1000 < self.wire.lost {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let late = is_data && self.draw() % 1000 < self.wire.late;
        let node = &mut self.nodes[to];
        if late && node.held_back.is_none() {
            node.held_back = Some(datagram);
            return;
        }
        node.inbound.push_back(datagram);
        node.inbound.extend(node.held_back.take());
    }

    fn wait(&self, now: Instant) {
        let deadlines = self.nodes.iter().flat_map(|n| [n.mesh.poll_timeout(), n.stack.poll_timeout()]);
        let timeout = deadlines.flatten().min().map(|at| at.saturating_duration_since(now));
        let timeout = timeout.unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(1));
        let mut fds: Vec<_> = self
            .nodes
            .iter()
            .map(|n| PollFd::from_borrowed_fd(n.stack.readiness().unwrap(), PollFlags::IN))
            .collect();
        fds.push(PollFd::new(&self.wake, PollFlags::IN));
        poll(&mut fds, Some(&Timespec::try_from(timeout).unwrap())).unwrap();
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

fn outer(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, number + 1]), 51820)
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::new([8 * (number + 1); 32])
}

fn config(number: u8) -> Config {
    let other = 1 - number;
    let peer = PeerConfig {
        name: "other".into(),
        public_key: key(other).public(),
        preshared_key: None,
        allowed_ips: vec![
            format!("10.0.0.{}/32", other + 1).parse().unwrap(),
            format!("fd00::{}/128", other + 1).parse().unwrap(),
        ],
        endpoint: Some(outer(other)),
        keepalive: None,
        mtu: None,
        groups: Vec::new(),
    };
    Config {
        private_key: key(number),
        addresses: vec![
            format!("10.0.0.{}/24", number + 1).parse().unwrap(),
            format!("fd00::{}/64", number + 1).parse().unwrap(),
        ],
        mtu: 1408,
        peers: vec![peer],
        policy: None,
    }
}
