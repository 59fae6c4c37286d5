//! The mesh's data plane as a state machine: IP packets in, WireGuard datagrams out, and back.
//!
//! This crate decides; it never opens a socket or a TUN device, looks at a clock, spawns a thread, or
//! touches a file. `adit-mesh` is its shell.
//!
//! # Contract
//! Input: `handle_*(…, now)`. Output: `poll_transmit`, `poll_packet`, `poll_event`, `poll_timeout`.
//! After any input, drain outputs until empty before the next input or wait. `now` never goes
//! backwards. Nothing blocks, allocates per packet, logs above TRACE per packet, or panics on what a
//! peer sends. Each input's work is bounded; each buffer has a constant cap and a drop reason.
//! Randomness comes from a generator given at construction.
//!
//! # Where to begin
//! `mesh.rs` dispatches; `outbound.rs` and `inbound.rs` are the way of a packet; `session.rs` is boringtun and what it lacks;
//! `state/` holds one concern per file; `segment/` splits and joins packets. `examples/loopback.rs` says what it costs.

mod clamp;
mod config;
mod control;
mod drops;
mod icmp;
mod inbound;
mod ip;
mod keys;
mod lanes;
mod mesh;
mod outbound;
mod packet;
mod probing;
pub mod segment;
mod session;
mod state;

pub use config::{Config, PEERS_MAX, PeerConfig, Policy, Protocol, Rule, Source};
pub use control::LANES_MAX;
pub use drops::{DropCounts, DropReason};
pub use keys::{PresharedKey, PrivateKey, PublicKey};
pub use lanes::Lane;
pub use mesh::Mesh;
pub use packet::{
    Damage, Event, Incoming, LaneAddress, LanePeer, MeshStatistics, Outgoing, Path, PeerId, PeerSnapshot,
    PeerStatistics, Transmit,
};
pub use state::flows::FlowTable;
