//! This process as a node of a mesh: interface, socket and lane, made and changed from the configuration.

use std::io;
use std::time::Instant;

use adit_config::Mesh;
use ipnet::IpNet;

use crate::lane::{LaneHandle, spawn};
use crate::netlink::{Interface, InterfaceError};
use crate::plan::{engine_config, interface_spec, key_of, literal_endpoint, socket_spec};
use crate::resolve::Resolver;
use crate::tun::{Tun, TunError};
use crate::udp::{Socket, SocketError, SocketSpec};

/// A node in TUN mode. Dropping it ends the lane and removes the interface.
#[derive(Debug)]
pub struct Node {
    interface: Interface,
    lane: LaneHandle,
    port: u16,
    addresses: Vec<IpNet>,
    spec: SocketSpec,
    resolver: Resolver,
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
    /// The lane has ended, because its device is gone.
    #[error(transparent)]
    Ended(#[from] crate::LaneEnded),
    /// A change that needs a new node.
    #[error("`mesh.{0}` changes only with a restart")]
    Restart(&'static str),
}

impl Node {
    /// Opens the TUN device, sets it up, binds the socket and starts the lane. Names of endpoints are
    /// looked up in the background.
    ///
    /// # Errors
    /// [`NodeError`]; needs CAP_NET_ADMIN.
    pub fn start(mesh: &Mesh) -> Result<Self, NodeError> {
        let tun = Tun::open(&mesh.interface, false)?;
        let mut interface = Interface::find(&mesh.interface)?;
        interface.apply(&interface_spec(mesh))?;
        let spec = socket_spec(mesh);
        let socket = Socket::bind(&spec)?;
        let port = socket.port();
        let engine =
            adit_mesh_proto::Mesh::new(engine_config(mesh, literal_endpoint), rand::random(), Instant::now());
        let resolver = Resolver::start().map_err(NodeError::Thread)?;
        let alarm = resolver.alarm();
        let events = Box::new(move |event| alarm.on_event(&event));
        let lane = spawn(engine, tun, socket, events).map_err(NodeError::Thread)?;
        resolver.watch(mesh, &lane);
        Ok(Self { interface, lane, port, addresses: mesh.addresses.clone(), spec, resolver })
    }

    /// Becomes what `mesh` says; untouched peers keep their sessions.
    ///
    /// # Errors
    /// [`NodeError`]; a change that needs a restart is refused before anything has changed.
    pub fn reconfigure(&mut self, mesh: &Mesh, running: &Mesh) -> Result<(), NodeError> {
        if mesh.interface != running.interface {
            return Err(NodeError::Restart("interface"));
        }
        if mesh.mode != running.mode {
            return Err(NodeError::Restart("mode"));
        }
        let spec = socket_spec(mesh);
        if spec.port != self.spec.port {
            return Err(NodeError::Restart("listen-port"));
        }
        if spec.mark != self.spec.mark {
            return Err(NodeError::Restart("fwmark"));
        }
        self.interface.apply(&interface_spec(mesh))?;
        let known = self.resolver.addresses();
        let config =
            engine_config(mesh, |peer| literal_endpoint(peer).or_else(|| known.get(&key_of(peer)).copied()));
        self.lane.reconfigure(config)?;
        self.addresses.clone_from(&mesh.addresses);
        self.resolver.watch(mesh, &self.lane);
        Ok(())
    }

    /// Steers and shows the lane.
    #[must_use]
    pub fn lane(&self) -> &LaneHandle {
        &self.lane
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

impl Drop for Node {
    fn drop(&mut self) {
        self.lane.stop();
    }
}
