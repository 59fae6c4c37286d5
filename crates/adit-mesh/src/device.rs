//! What stands behind a lane: the TUN device, or a network stack in this process.

use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use adit_mesh_proto::segment::{Offload, VIRTIO_HEADER_LEN};
use adit_mesh_proto::{Incoming, PeerId};

use crate::tun::Tun;

/// What a packet that was read needs done, and where in the buffer it stands.
pub(crate) type Packet = (Offload, Range<usize>);

/// Source and sink of IP packets. Owned by the lane's thread; nothing here blocks.
pub trait Device: Send {
    /// The next packet for the mesh, written into `buffer` ([`crate::tun::READ_LEN`] bytes and some to
    /// spare for padding, which may be exchanged for others); says what it needs done and where it stands.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, `InvalidData` for one that makes no sense, anything else when
    /// the device is gone.
    fn read(&mut self, buffer: &mut Vec<u8>, now: Instant) -> io::Result<(Offload, Range<usize>)>;

    /// Takes a packet from a peer.
    ///
    /// # Errors
    /// `InvalidInput` if it does not understand `packet.offload`; anything else if it cannot take it.
    fn write(&mut self, packet: &Incoming<'_>, now: Instant) -> io::Result<()>;

    /// Becomes readable when [`Device::read`] has something; `None` if only [`Device::poll_timeout`]
    /// and what is written to it make it so.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// Lets go of what it holds for peers that are no longer who `owner` says that an address belongs to.
    fn forget_others(&mut self, owner: &dyn Fn(IpAddr) -> Option<PeerId>) {
        let _ = owner;
    }

    /// When [`Device::read`] is to be asked again even though nothing is readable.
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

impl Device for Tun {
    fn read(&mut self, buffer: &mut Vec<u8>, _now: Instant) -> io::Result<(Offload, Range<usize>)> {
        let len = Tun::read(self, buffer)?;
        let header = buffer.get(..len).unwrap_or_default();
        let offload =
            Offload::parse(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((offload, VIRTIO_HEADER_LEN..len))
    }

    fn write(&mut self, packet: &Incoming<'_>, _now: Instant) -> io::Result<()> {
        Tun::write(self, &packet.offload, packet.contents)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}
