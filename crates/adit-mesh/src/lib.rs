//! Runs [`adit_mesh_proto`] over a TUN device and a UDP socket, in batches, one thread per lane.
//!
//! This crate moves bytes: what is sent to whom, and what is dropped, `adit-mesh-proto` decides. It
//! never knows HTTP or the tunnel.
//!
//! # Where to begin
//! `lane.rs` is the loop; `tun.rs` and `udp.rs` are its two ends.

mod branch;
mod coalescing;
mod device;
mod fleet;
mod health;
mod lane;
mod metrics;
pub mod netlink;
pub mod netstack;
mod node;
mod plan;
mod pump;
mod resolve;
mod retransmits;
mod statistics;
mod transmit;
mod trial;
pub mod tun;
pub mod uapi;
pub mod udp;

pub use device::Device;
pub use lane::{EventSink, LaneEnded, LaneHandle, LaneLoad, LaneSnapshot, ReconfigureError, SNAPSHOT_WAIT};
pub use metrics::MeshMetrics;
pub use node::{Node, NodeError};
pub use statistics::IoStatistics;
