//! This process as a node of a mesh: interface or stack, socket and lane, made and changed from the configuration.

use std::io;
use std::time::Instant;

use adit_config::{Mesh, MeshMode};
use adit_mesh_proto::{Config, FlowTable, Lane, LaneAddress, PrivateKey};
use ipnet::IpNet;

use crate::branch::{Branch, Outbox};
use crate::device::Device;
use crate::lane::{Gear, LaneHandle, spawn};
use crate::netlink::{Interface, InterfaceError};
use crate::netstack::{Limits, Netstack, Stack};
use crate::plan::{engine_config, interface_spec, key_of, literal_endpoint, socket_spec};
use crate::resolve::Resolver;
use crate::tun::{Tun, TunError};
use crate::udp::{Socket, SocketError, SocketSpec};

/// A node. Dropping it ends the lane and removes the interface.
#[derive(Debug)]
pub struct Node {
    inside: Inside,
    lane: LaneHandle,
    port: u16,
    addresses: Vec<IpNet>,
    spec: SocketSpec,
    resolver: Resolver,
}

/// Who takes what comes out of the mesh.
#[derive(Debug)]
enum Inside {
    /// The kernel.
    Tun(Interface),
    /// This process.
    Stack(Stack),
}

/// Why a node does not start or change.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Its addresses, routes or MTU.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// The UDP socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No thread or descriptor left.
    #[error("cannot start the mesh's thread")]
    Thread(#[source] io::Error),
    /// The lane has ended, because its device is gone, or does not answer.
    #[error(transparent)]
    Lane(#[from] crate::ReconfigureError),
    /// A change that needs a new node.
    #[error("`mesh.{0}` changes only with a restart")]
    Restart(&'static str),
}

impl Node {
    /// Makes the interface or the stack, binds the socket and starts the lane. Names of endpoints are looked up in the
    /// background.
    ///
    /// # Errors
    /// [`NodeError`]; a TUN device needs CAP_NET_ADMIN.
    pub fn start(mesh: &Mesh) -> Result<Self, NodeError> {
        match mesh.mode {
            MeshMode::Tun => {
                let tun = Tun::open(&mesh.interface, false)?;
                let mut interface = Interface::find(&mesh.interface)?;
                interface.apply(&interface_spec(mesh))?;
                let branches = (1..mesh.lanes).map(|_| Branch::new(&tun)).collect::<io::Result<_>>();
                Self::run(mesh, tun, branches.map_err(NodeError::Thread)?, Inside::Tun(interface))
            }
            MeshMode::Netstack => {
                let (netstack, stack) = Netstack::new(mesh.addresses.clone(), mesh.mtu, Limits::default())
                    .map_err(NodeError::Thread)?;
                Self::run(mesh, netstack, Vec::new(), Inside::Stack(stack))
            }
        }
    }

    fn run<D: Device + 'static>(
        mesh: &Mesh,
        device: D,
        branches: Vec<(Branch, Outbox)>,
        inside: Inside,
    ) -> Result<Self, NodeError> {
        let spec = socket_spec(mesh);
        let socket = Socket::bind(&spec)?;
        let port = socket.port();
        let config = engine_config(mesh, literal_endpoint);
        let now = Instant::now();
        let flows = FlowTable::new(now);
        let mut further = Vec::new();
        let mut addresses = Vec::new();
        for (number, (device, outbox)) in (1..).zip(branches) {
            let (gear, address) = further_lane(&config, device, &flows, &spec.of_lane(number))?;
            addresses.push(address);
            further.push((gear, outbox));
        }
        let engine =
            adit_mesh_proto::Mesh::on_lane(config, Lane::First(addresses), flows, rand::random(), now);
        let resolver = Resolver::start().map_err(NodeError::Thread)?;
        let alarm = resolver.alarm();
        let events = Box::new(move |event| alarm.on_event(&event));
        let gear = Gear { mesh: engine, device, socket };
        let lane = spawn(gear, further, events).map_err(NodeError::Thread)?;
        resolver.watch(mesh, &lane);
        Ok(Self { inside, lane, port, addresses: mesh.addresses.clone(), spec, resolver })
    }

    /// Whether [`Self::reconfigure`] can take `mesh` without a restart; touches nothing.
    ///
    /// # Errors
    /// [`NodeError::Restart`].
    pub fn check(&self, mesh: &Mesh, running: &Mesh) -> Result<(), NodeError> {
        let spec = socket_spec(mesh);
        let changes = [
            ("interface", mesh.interface != running.interface),
            ("mode", mesh.mode != running.mode),
            ("lanes", mesh.lanes != running.lanes),
            ("listen-port", spec.port != self.spec.port),
            ("fwmark", spec.mark != self.spec.mark),
        ];
        match changes.into_iter().find(|(_, changed)| *changed) {
            Some((key, _)) => Err(NodeError::Restart(key)),
            None => Ok(()),
        }
    }

    /// Becomes what `mesh` says; untouched peers keep their sessions.
    ///
    /// # Errors
    /// [`NodeError`]; a change that needs a restart is refused before anything has changed.
    pub fn reconfigure(&mut self, mesh: &Mesh, running: &Mesh) -> Result<(), NodeError> {
        self.check(mesh, running)?;
        self.relocate(mesh)?;
        self.change_peers(mesh)
    }

    /// Takes a [`Self::reconfigure`] back. Who owns which address comes first and does not depend on the interface.
    ///
    /// # Errors
    /// [`NodeError::Interface`] if only the interface is not what it was; with all others the owners are not, either.
    pub fn restore(&mut self, before: &Mesh) -> Result<(), NodeError> {
        self.change_peers(before)?;
        Ok(self.relocate(before)?)
    }

    fn relocate(&mut self, mesh: &Mesh) -> Result<(), InterfaceError> {
        match &mut self.inside {
            Inside::Tun(interface) => interface.apply(&interface_spec(mesh))?,
            Inside::Stack(stack) => stack.relocate(mesh.addresses.clone(), mesh.mtu),
        }
        self.addresses.clone_from(&mesh.addresses);
        Ok(())
    }

    fn change_peers(&mut self, mesh: &Mesh) -> Result<(), NodeError> {
        let known = self.resolver.addresses();
        let config =
            engine_config(mesh, |peer| literal_endpoint(peer).or_else(|| known.get(&key_of(peer)).copied()));
        self.lane.reconfigure(config)?;
        self.resolver.watch(mesh, &self.lane);
        Ok(())
    }

    /// Steers and shows the lane.
    #[must_use]
    pub fn lane(&self) -> &LaneHandle {
        &self.lane
    }

    /// Opens listeners and connections in netstack mode.
    #[must_use]
    pub fn stack(&self) -> Option<&Stack> {
        match &self.inside {
            Inside::Tun(_) => None,
            Inside::Stack(stack) => Some(stack),
        }
    }

    /// The UDP port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its addresses in the mesh.
    #[must_use]
    pub fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }
}

/// A further lane's engine and socket, and what peers have to know of them. Its key lives as long as the lane: peers learn
/// it from the first lane, where they know us.
fn further_lane(
    config: &Config,
    device: Branch,
    flows: &FlowTable,
    spec: &SocketSpec,
) -> Result<(Gear<Branch>, LaneAddress), NodeError> {
    let socket = Socket::bind(spec)?;
    let private_key = PrivateKey::new(rand::random());
    let address = LaneAddress { key: private_key.public(), port: socket.port() };
    let config = Config { private_key, ..config.clone() };
    let mesh =
        adit_mesh_proto::Mesh::on_lane(config, Lane::Further, flows.clone(), rand::random(), Instant::now());
    Ok((Gear { mesh, device, socket }, address))
}

impl Drop for Node {
    fn drop(&mut self) {
        self.lane.stop();
    }
}
