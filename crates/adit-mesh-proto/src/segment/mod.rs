//! Segmentation in user space: super-packets from the TUN device into MTU-sized packets, and back.
//!
//! The kernel hands over TCP and UDP super-packets of up to 64 KiB with a virtio header and takes such
//! packets in turn, which makes one system call carry some 45 packets. [`Splitter`] cuts the former in
//! place; [`Coalescer`] rebuilds the latter, merging only what the kernel's own receive offload would
//! merge, so that splitting its output again gives the packets that came in.

pub mod checksum;
mod coalesce;
mod flow;
mod split;
mod virtio;

pub use coalesce::{Coalescer, Merged};
pub use split::{SplitError, Splitter};
pub use virtio::{MalformedOffload, Offload, OffloadKind, PartialChecksum, VIRTIO_HEADER_LEN};

#[cfg(test)]
mod tests;
