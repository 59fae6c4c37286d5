//! The mesh while the process runs: started, changed on reload, shown, ended.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use adit_config::{Config, Mesh, MeshMode, MeshNetwork, MeshPeer};
use adit_mesh::netlink::networks_of;
use adit_mesh::netstack::{Stack, StackMetrics};
use adit_mesh::uapi::{Uapi, UapiDevice, UapiPeer};
use adit_mesh::{LaneHandle, LaneSnapshot, MeshMetrics, Node, NodeError};
use adit_mesh_proto::{DropCounts, PeerSnapshot, PresharedKey, PrivateKey, PublicKey};
use prometheus::Registry;
use serde_json::{Map, Value, json};

use super::DaemonError;
use crate::mesh_entry;

/// The mesh of a process, if its configuration has one.
#[derive(Debug)]
pub(super) struct RunningMesh {
    running: Option<RunningNode>,
    /// A change that may still have to be taken back.
    undo: Option<Undo>,
    metrics: Watches,
}

/// The registry's view of whatever runs.
#[derive(Debug)]
struct Watches {
    mesh: MeshMetrics,
    stack: StackMetrics,
}

/// The node, and who looks at it.
#[derive(Debug)]
struct RunningNode {
    node: Node,
    view: Arc<MeshView>,
    /// As given to the node: interfaces of named networks looked up.
    settings: Mesh,
    /// A change has failed on the way: it is neither what it was nor what it was to be.
    is_half_changed: bool,
    _uapi: Option<Uapi>,
}

/// What admin endpoint and WireGuard's socket see.
#[derive(Debug)]
pub(crate) struct MeshView {
    settings: Mutex<Arc<Mesh>>,
    lane: LaneHandle,
    port: u16,
}

/// How a change is taken back if something else of a reload fails.
#[derive(Debug)]
enum Undo {
    /// There was none.
    End,
    /// It was this.
    Become(Box<Mesh>),
}

impl RunningMesh {
    /// Starts what `config` has; to be done before entry points are bound on it.
    ///
    /// # Errors
    /// [`NodeError`], or metrics whose names are taken.
    pub(super) fn start(config: &Config, registry: &Registry) -> Result<Self, DaemonError> {
        let metrics =
            Watches { mesh: MeshMetrics::register(registry)?, stack: StackMetrics::register(registry)? };
        let running = config.mesh.as_ref().map(|mesh| RunningNode::start(mesh, &metrics)).transpose()?;
        Ok(Self { running, undo: None, metrics })
    }

    /// Whether [`Self::change`] can take `config` without a restart; touches nothing.
    ///
    /// # Errors
    /// [`NodeError::Restart`].
    pub(super) fn check(&self, config: &Config) -> Result<(), NodeError> {
        match (&self.running, &config.mesh) {
            (Some(running), Some(mesh)) => running.node.check(mesh, &running.settings),
            _ => Ok(()),
        }
    }

    /// Starts or changes the mesh, so that entry points can be bound on it. One that is to go stays until
    /// [`Self::commit`]: somebody still listens on it.
    ///
    /// # Errors
    /// [`NodeError`]; [`Self::restore`] is to follow.
    pub(super) fn change(&mut self, config: &Config) -> Result<(), NodeError> {
        match (&mut self.running, &config.mesh) {
            (Some(running), Some(mesh)) => {
                let settings = looked_up(mesh);
                if settings != running.settings || running.is_half_changed {
                    self.undo = Some(Undo::Become(Box::new(running.settings.clone())));
                    running.take(settings)?;
                }
            }
            (None, Some(mesh)) => {
                self.running = Some(RunningNode::start(mesh, &self.metrics)?);
                self.undo = Some(Undo::End);
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// Takes back what [`Self::change`] did, if it did anything.
    ///
    /// # Errors
    /// [`NodeError`] if addresses do not belong to whom they did: nobody may be known by them until that is mended, by
    /// trying again before the next change.
    pub(super) fn restore(&mut self) -> Result<(), NodeError> {
        match (&self.undo, &mut self.running) {
            (Some(Undo::Become(before)), Some(running)) => running.restore(before)?,
            (Some(Undo::End), running) => *running = None,
            _ => {}
        }
        self.undo = None;
        Ok(())
    }

    /// Whether [`Self::restore`] has failed.
    pub(super) fn is_to_be_restored(&self) -> bool {
        self.undo.is_some()
    }

    /// Whether entry points can be bound at this address of the mesh as it is.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        let running = self.running.as_ref().filter(|running| !running.is_half_changed);
        running.is_some_and(|running| running.settings.addresses.iter().any(|net| net.addr() == address))
    }

    /// Stays with what [`Self::change`] did, and ends a mesh that `config` no longer has.
    pub(super) fn commit(&mut self, config: &Config) {
        self.undo = None;
        if config.mesh.is_none() && self.running.take().is_some() {
            tracing::info!("mesh is down");
        }
    }

    /// Where entry points on the mesh listen, if the kernel does not know of it.
    pub(super) fn stack(&self) -> Option<Stack> {
        self.running.as_ref()?.node.stack().cloned()
    }

    /// Waits until the stack has delivered what closed connections still hold: a kernel does so for a process that has
    /// ended, the stack ends with it.
    pub(super) async fn deliver(&self) {
        let Some(stack) = self.stack() else { return };
        let delivered = async {
            while stack.statistics().connections > 0 {
                tokio::time::sleep(DELIVERY_LOOK).await;
            }
        };
        if tokio::time::timeout(DELIVERY_MAX, delivered).await.is_err() {
            let connections = stack.statistics().connections;
            tracing::debug!(connections, reason = "delivery", "connections on the mesh are cut");
        }
    }

    /// For the admin endpoint.
    pub(super) fn view(&self) -> Option<Arc<MeshView>> {
        self.running.as_ref().map(|running| Arc::clone(&running.view))
    }

    /// Says so when the interface was taken away: nothing else does, and entry points on it are dead.
    pub(super) fn watch(&self) {
        if self.running.as_ref().is_some_and(|running| running.node.lane().is_ended()) {
            tracing::error!(reason = "mesh_ended", "the mesh has ended, its interface is gone: restart adit");
        }
    }
}

impl RunningNode {
    /// Makes the interface and starts the lane.
    ///
    /// # Errors
    /// [`NodeError`]; nothing is left behind.
    fn start(mesh: &Mesh, metrics: &Watches) -> Result<Self, NodeError> {
        let settings = looked_up(mesh);
        let node = Node::start(&settings)?;
        warn_of_forwarding(&settings);
        metrics.mesh.watch(node.lane());
        if let Some(stack) = node.stack() {
            metrics.stack.watch(stack);
        }
        mesh_entry::route_through(node.stack(), &settings);
        let view = Arc::new(MeshView {
            settings: Mutex::new(Arc::new(settings.clone())),
            lane: node.lane().clone(),
            port: node.port(),
        });
        let seen = Arc::clone(&view);
        let uapi = Uapi::open(&settings.interface, move || seen.device());
        if let Err(error) = &uapi {
            let error = crate::ingress::chain(error);
            tracing::warn!(%error, reason = "uapi", "`wg show` does not see the mesh");
        }
        let (interface, port, peers) = (&settings.interface, node.port(), settings.peers.len());
        tracing::info!(%interface, port, peers, mtu = settings.mtu, "mesh is up");
        Ok(Self { node, view, settings, is_half_changed: false, _uapi: uapi.ok() })
    }

    /// Becomes exactly this; untouched peers keep their sessions.
    ///
    /// # Errors
    /// [`NodeError`]; see [`Node::reconfigure`].
    fn take(&mut self, settings: Mesh) -> Result<(), NodeError> {
        self.is_half_changed = true;
        self.node.reconfigure(&settings, &self.settings)?;
        tracing::info!(interface = %settings.interface, peers = settings.peers.len(), "mesh changed");
        self.settle(settings);
        self.is_half_changed = false;
        Ok(())
    }

    /// Becomes what it was before a change. That an interface does not is said and nothing worse: who is who, the lane
    /// decides.
    fn restore(&mut self, before: &Mesh) -> Result<(), NodeError> {
        self.is_half_changed = true;
        let restored = self.node.restore(before);
        if let Err(error) = &restored {
            let error = crate::ingress::chain(error);
            tracing::error!(%error, reason = "mesh_restore", "the mesh stays half changed");
        }
        match restored {
            Ok(()) => self.is_half_changed = false,
            Err(NodeError::Interface(_)) => {}
            Err(error) => return Err(error),
        }
        tracing::info!(interface = %before.interface, peers = before.peers.len(), "mesh changed back");
        self.settle(before.clone());
        Ok(())
    }

    /// Everything beside the node that goes by the settings.
    fn settle(&mut self, settings: Mesh) {
        mesh_entry::route_through(self.node.stack(), &settings);
        warn_of_forwarding(&settings);
        *self.view.settings.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings.clone());
        self.settings = settings;
    }
}

impl Drop for RunningNode {
    fn drop(&mut self) {
        mesh_entry::route_directly();
    }
}

impl MeshView {
    fn settings(&self) -> Arc<Mesh> {
        Arc::clone(&self.settings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For `/api/mesh`. Blocks for as long as the lane needs for one turn.
    pub(crate) fn show(&self) -> Value {
        let settings = self.settings();
        let snapshot = self.lane.snapshot().ok();
        let public = PrivateKey::new(*settings.private_key.expose()).public();
        let drops = snapshot.as_ref().map(|seen| {
            let io = seen.io.drops().into_iter().map(|(reason, count)| (reason.to_owned(), count.into()));
            drops(&seen.mesh.drops).into_iter().chain(io).collect::<Map<_, _>>()
        });
        let seen = by_key(snapshot.as_ref());
        let peers = settings.peers.iter().map(|peer| peer_view(peer, seen.get(&peer.public_key.0).copied()));
        let mode = match settings.mode {
            MeshMode::Tun => "tun",
            MeshMode::Netstack => "netstack",
        };
        json!({
            "mode": mode,
            "interface": settings.interface,
            "running": snapshot.is_some(),
            "publicKey": adit_config::PeerKey(public.0).to_string(),
            "listenPort": self.port,
            "fwmark": settings.fwmark.map(|mark| format!("{mark:#x}")),
            "addresses": settings.addresses,
            "mtu": settings.mtu,
            "lanes": settings.lanes,
            "drops": drops,
            "peers": peers.collect::<Vec<_>>(),
        })
    }

    /// For WireGuard's socket.
    fn device(&self) -> UapiDevice {
        let settings = self.settings();
        let snapshot = self.lane.snapshot().ok();
        let seen = by_key(snapshot.as_ref());
        UapiDevice {
            private_key: PrivateKey::new(*settings.private_key.expose()),
            listen_port: self.port,
            fwmark: settings.fwmark,
            peers: settings
                .peers
                .iter()
                .map(|peer| uapi_peer(peer, seen.get(&peer.public_key.0).copied()))
                .collect(),
        }
    }
}

fn peer_view(peer: &MeshPeer, seen: Option<&PeerSnapshot>) -> Value {
    let statistics = seen.map(|seen| &seen.statistics);
    json!({
        "name": peer.name,
        "publicKey": peer.public_key.to_string(),
        "presharedKey": peer.preshared_key.is_some(),
        "endpoint": seen.and_then(|seen| seen.path).map(|path| path.remote.to_string()),
        "allowedIps": peer.allowed_ips,
        "groups": peer.groups,
        "persistentKeepaliveSeconds": peer.persistent_keepalive.map(|every| every.as_secs()),
        "connected": seen.is_some_and(|seen| seen.connected),
        "reachable": seen.is_some_and(|seen| seen.reachable),
        "latestHandshakeSeconds": seen.and_then(|seen| seen.last_handshake).map(|at| at.elapsed().as_secs()),
        "latencyMs": seen.and_then(|seen| seen.latency).map(|latency| latency.as_secs_f64() * 1000.0),
        "loss": seen.map(|seen| seen.loss),
        "sentLoss": seen.and_then(|seen| seen.sent_loss),
        "pathMtu": seen.and_then(|seen| seen.path_mtu),
        "lanes": seen.map(|seen| seen.lanes),
        "lanesUp": seen.map(|seen| seen.lanes_up),
        "sentBytes": statistics.map_or(0, |s| s.sent_bytes),
        "receivedBytes": statistics.map_or(0, |s| s.received_bytes),
        "handshakes": statistics.map_or(0, |s| s.handshakes),
        "drops": statistics.map(|s| drops(&s.drops)),
    })
}

fn uapi_peer(peer: &MeshPeer, seen: Option<&PeerSnapshot>) -> UapiPeer {
    UapiPeer {
        public_key: PublicKey(peer.public_key.0),
        preshared_key: peer.preshared_key.as_ref().map(|key| PresharedKey::new(*key.expose())),
        endpoint: seen.and_then(|seen| seen.path).map(|path| path.remote),
        last_handshake: seen.and_then(|seen| seen.last_handshake).and_then(wall_clock),
        sent_bytes: seen.map_or(0, |seen| seen.statistics.sent_bytes),
        received_bytes: seen.map_or(0, |seen| seen.statistics.received_bytes),
        keepalive: peer.persistent_keepalive,
        allowed_ips: peer.allowed_ips.clone(),
    }
}

/// What the lane knows of each peer, by key: ten thousand are still joined at once.
fn by_key(snapshot: Option<&LaneSnapshot>) -> HashMap<[u8; 32], &PeerSnapshot> {
    snapshot.iter().flat_map(|snapshot| &snapshot.peers).map(|seen| (seen.public_key.0, seen)).collect()
}

/// Only those that occurred.
fn drops(counts: &DropCounts) -> Map<String, Value> {
    let counted = counts.iter().filter(|(_, count)| *count > 0);
    counted.map(|(reason, count)| (reason.name().to_owned(), count.into())).collect()
}

fn wall_clock(at: Instant) -> Option<SystemTime> {
    SystemTime::now().checked_sub(at.elapsed())
}

/// Puts the networks of interfaces in the place of their names; an interface that is not there stands for none.
fn looked_up(mesh: &Mesh) -> Mesh {
    let mut mesh = mesh.clone();
    for (name, network) in &mut mesh.networks {
        let MeshNetwork::Interface(interface) = network else { continue };
        match networks_of(interface) {
            Ok(found) => *network = MeshNetwork::Cidrs(found),
            Err(error) => {
                tracing::warn!(network = %name, %interface, %error, "its rules allow nothing: no such interface");
                *network = MeshNetwork::Cidrs(Vec::new());
            }
        }
    }
    mesh
}

/// What is routed for others needs a kernel that forwards; adit does not change that setting of the whole machine.
fn warn_of_forwarding(mesh: &Mesh) {
    let is_off = |file: &str| std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "0");
    for (v4, file, setting) in FORWARDING {
        if mesh.advertise.iter().any(|net| net.addr().is_ipv4() == v4) && is_off(file) {
            tracing::warn!(setting, "networks are advertised and the kernel does not forward: set it to 1");
        }
    }
}

/// For the last bytes of connections and their peers' word that they have them.
const DELIVERY_MAX: Duration = Duration::from_secs(5);
/// Between two looks at what is left.
const DELIVERY_LOOK: Duration = Duration::from_millis(10);
const FORWARDING: [(bool, &str, &str); 2] = [
    (true, "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
    (false, "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
];
