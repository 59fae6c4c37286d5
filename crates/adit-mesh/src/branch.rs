//! What stands behind a further lane: packets that the first lane hands over, and the same device for those that come.
//!
//! One lane alone reads the device, so that the packets of a flow stay in order however lanes come and go: they go one
//! after the other into the queue of one lane. Reading takes a tenth of what sealing takes.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Instant;

use adit_mesh_proto::Incoming;
use adit_mesh_proto::segment::Offload;
use rustix::event::{EventfdFlags, eventfd};

use crate::device::{Device, Packet};
use crate::tun::Tun;

/// The device of a further lane.
#[derive(Debug)]
pub(crate) struct Branch {
    tun: Tun,
    parcels: Receiver<Parcel>,
    spent: SyncSender<Vec<u8>>,
    wake: Arc<OwnedFd>,
}

/// The first lane's end of a branch.
#[derive(Debug)]
pub(crate) struct Outbox {
    parcels: SyncSender<Parcel>,
    /// Buffers that come back.
    spent: Receiver<Vec<u8>>,
    wake: Arc<OwnedFd>,
    /// A buffer that was not needed.
    spare: Option<Vec<u8>>,
    /// Whether something was handed over since the last [`Outbox::flush`].
    waiting: bool,
}

/// Why a packet was not handed over; its buffer is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// The lane does not keep up.
    Full,
    /// The lane has ended.
    Gone,
}

#[derive(Debug)]
struct Parcel {
    buffer: Vec<u8>,
    packet: Packet,
}

impl Branch {
    /// A branch of `tun`.
    ///
    /// # Errors
    /// No descriptor left.
    pub(crate) fn new(tun: &Tun) -> io::Result<(Self, Outbox)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, parcels) = sync_channel(PARCELS_MAX);
        let (spent, returned) = sync_channel(PARCELS_MAX);
        let outbox =
            Outbox { parcels: sender, spent: returned, wake: Arc::clone(&wake), spare: None, waiting: false };
        Ok((Self { tun: tun.try_clone()?, parcels, spent, wake }, outbox))
    }

    fn next(&self) -> io::Result<Parcel> {
        let mut count = [0; 8];
        for _ in 0..2 {
            match self.parcels.try_recv() {
                Ok(parcel) => return Ok(parcel),
                Err(TryRecvError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
                // Looked at once more behind it: what comes later makes it readable again.
                Err(TryRecvError::Empty) => _ = rustix::io::read(&self.wake, &mut count),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Device for Branch {
    fn read(&mut self, buffer: &mut Vec<u8>, _now: Instant) -> io::Result<(Offload, Range<usize>)> {
        let Parcel { buffer: full, packet } = self.next()?;
        let empty = std::mem::replace(buffer, full);
        // There is room for as many as there are parcels; a buffer more or less is no matter.
        let _ = self.spent.try_send(empty);
        Ok(packet)
    }

    fn write(&mut self, packet: &Incoming<'_>, now: Instant) -> io::Result<()> {
        Device::write(&mut self.tun, packet, now)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wake.as_fd())
    }
}

impl Outbox {
    /// Hands over the packet in `buffer`, which becomes another buffer of the same length.
    pub(crate) fn hand_over(&mut self, buffer: &mut Vec<u8>, packet: Packet) -> Result<(), NotTaken> {
        let empty = self.spare.take().or_else(|| self.spent.try_recv().ok());
        let empty = empty.unwrap_or_else(|| vec![0; buffer.len()]);
        let parcel = Parcel { buffer: std::mem::replace(buffer, empty), packet };
        let (parcel, reason) = match self.parcels.try_send(parcel) {
            Ok(()) => {
                self.waiting = true;
                return Ok(());
            }
            Err(TrySendError::Full(parcel)) => (parcel, NotTaken::Full),
            Err(TrySendError::Disconnected(parcel)) => (parcel, NotTaken::Gone),
        };
        self.spare = Some(std::mem::replace(buffer, parcel.buffer));
        Err(reason)
    }

    /// Wakes the lane if something was handed over: once for all of a turn.
    pub(crate) fn flush(&mut self) {
        if std::mem::take(&mut self.waiting) {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }
}

/// Packets handed over and not yet taken, as many as a burst of a few flows has; 64 KiB each, 8 MiB a lane, and as much
/// again in buffers on their way back at the very worst.
const PARCELS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// A branch whose device is a file that nobody looks at.
    fn branch() -> (Branch, Outbox) {
        Branch::new(&Tun::of_file(std::fs::File::open("/dev/null").unwrap())).unwrap()
    }

    fn packet(number: u8) -> (Vec<u8>, Packet) {
        (vec![number; 100], (Offload::NONE, 0..100))
    }

    #[test]
    fn packets_come_out_in_the_order_in_which_they_were_handed_over_and_buffers_go_round() {
        let (mut branch, mut outbox) = branch();
        let mut taken = vec![0; 100];
        for round in 0..10 {
            for number in 0..12 {
                let (mut buffer, packet) = packet(round * 12 + number);
                outbox.hand_over(&mut buffer, packet).unwrap();
                assert_eq!(buffer.len(), 100);
            }
            outbox.flush();
            for number in 0..12 {
                branch.read(&mut taken, Instant::now()).unwrap();
                assert_eq!(taken, [round * 12 + number; 100]);
            }
            let empty = branch.read(&mut taken, Instant::now()).unwrap_err();
            assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_full_or_finished_lane_gives_the_packet_back() {
        let (branch, mut outbox) = branch();
        for _ in 0..PARCELS_MAX {
            let (mut buffer, packet) = packet(1);
            outbox.hand_over(&mut buffer, packet).unwrap();
        }
        for _ in 0..2 {
            let (mut buffer, packet) = packet(2);
            assert_eq!(outbox.hand_over(&mut buffer, packet), Err(NotTaken::Full));
            assert_eq!(buffer, [2; 100]);
        }
        drop(branch);
        let (mut buffer, packet) = packet(3);
        assert_eq!(outbox.hand_over(&mut buffer, packet), Err(NotTaken::Gone));
        assert_eq!(buffer, [3; 100]);
    }
}
