//! `mesh`: a WireGuard node, written here, in a wg-quick file, or in both.
//!
//! Everything is first noted in a [`Draft`]: a wg-quick file fills it, then the section's own keys go over it, and what
//! comes out is checked as a whole.

mod draft;
mod keys;
mod model;
mod policy;
mod section;
mod values;
mod wg_quick;

pub use keys::{PeerKey, PrivateKey};
pub use model::{
    Mesh, MeshEndpoint, MeshMode, MeshNetwork, MeshParty, MeshPeer, MeshPolicy, MeshProtocol, MeshRule,
    MeshTable,
};
pub(crate) use section::read_mesh;

/// About 400 bytes each with its networks here and 30 KiB in the engine once it has a session: 300 MiB in the worst case.
const PEERS_MAX: usize = 10_000;
/// As many as an announcement between two nodes holds; each costs a thread and up to 60 MiB of buffers.
const LANES_MAX: u64 = 8;
/// Of one peer or this node: routes of a large site. With [`PEERS_MAX`] bounded by the size of the file.
const NETWORKS_MAX: usize = 4_096;
