//! The TUN device: super-packets in and out, each behind its virtio header.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use adit_mesh_proto::segment::{Offload, VIRTIO_HEADER_LEN};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

/// One queue of a TUN device with virtio headers and segmentation offload.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    offloads: Offloads,
}

/// Which segmentation the kernel agreed to leave to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// TCP super-packets, both IP versions.
    pub tcp: bool,
    /// UDP super-packets, both IP versions (Linux 6.2 and later).
    pub udp: bool,
}

/// Why a TUN device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// Interface names have 1 to 15 bytes without `/` and spaces.
    #[error("`{0}` is no interface name: 1 to 15 bytes without slash or space are")]
    Name(String),
    /// `/dev/net/tun` is missing or may not be opened.
    #[error("cannot open {DEVICE}")]
    Open(#[source] io::Error),
    /// The device could not be created: no CAP_NET_ADMIN, or the name belongs to something else.
    #[error("cannot create the TUN device `{name}`")]
    Create {
        /// Wanted name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Header size or offloads were refused.
    #[error("cannot set up `{option}` of the TUN device")]
    Option {
        /// Which one.
        option: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Tun {
    /// Creates the device `name` (or joins it, with one more queue, where `multi_queue`), with as many
    /// offloads as the kernel knows. The device vanishes with its last queue.
    ///
    /// # Errors
    /// [`TunError`]; without CAP_NET_ADMIN in the network namespace always.
    pub fn open(name: &str, multi_queue: bool) -> Result<Self, TunError> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(TunError::Open)?;
        let mut request = InterfaceRequest::new(name, multi_queue)?;
        attach(&file, &mut request).map_err(|source| TunError::Create { name: name.to_owned(), source })?;
        let option = |option| move |source| TunError::Option { option, source };
        set_header_len(&file).map_err(option("TUNSETVNETHDRSZ"))?;
        rustix::io::ioctl_fionbio(&file, true).map_err(|source| option("FIONBIO")(source.into()))?;
        let mut tun = Self { file, name: name.to_owned(), offloads: Offloads { tcp: true, udp: true } };
        if tun.set_offloads(tun.offloads).is_err() {
            tun.set_offloads(Offloads { tcp: true, udp: false }).map_err(option("TUNSETOFFLOAD"))?;
        }
        Ok(tun)
    }

    /// The same queue once more, for another thread to write to.
    ///
    /// # Errors
    /// No descriptor left.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, name: self.name.clone(), offloads: self.offloads })
    }

    /// Something that is no device at all.
    #[cfg(test)]
    pub(crate) fn of_file(file: File) -> Self {
        Self { file, name: String::new(), offloads: Offloads { tcp: false, udp: false } }
    }

    /// Asks the kernel to leave only `offloads` to us from now on.
    ///
    /// # Errors
    /// What the kernel says to `TUNSETOFFLOAD`.
    pub fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let mut flags = TUN_F_CSUM;
        if offloads.tcp {
            flags |= TUN_F_TSO4 | TUN_F_TSO6;
        }
        if offloads.udp {
            flags |= TUN_F_USO4 | TUN_F_USO6;
        }
        set_offload_flags(&self.file, flags)?;
        self.offloads = offloads;
        Ok(())
    }

    /// What the kernel leaves to us.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one packet, virtio header first, into `buffer` ([`READ_LEN`] bytes hold any).
    ///
    /// # Errors
    /// `WouldBlock` when there is none; anything else means that the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.file, buffer)?)
    }

    /// Hands the kernel one packet.
    ///
    /// # Errors
    /// `InvalidInput` if the kernel refuses what `offload` says, `WouldBlock` and others if it cannot
    /// take the packet now.
    pub fn write(&self, offload: &Offload, packet: &[u8]) -> io::Result<()> {
        let header = offload.encode();
        rustix::io::writev(&self.file, &[IoSlice::new(&header), IoSlice::new(packet)])?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `struct ifreq` as far as `TUNSETIFF` looks at it, with the rest of its 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_LEN],
    flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn new(name: &str, multi_queue: bool) -> Result<Self, TunError> {
        let valid = !name.is_empty()
            && name.len() < NAME_LEN
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
            && !matches!(name, "." | "..");
        if !valid {
            return Err(TunError::Name(name.to_owned()));
        }
        let mut bytes = [0; NAME_LEN];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let queues = if multi_queue { IFF_MULTI_QUEUE } else { 0 };
        Ok(Self { name: bytes, flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | queues, rest: [0; 22] })
    }
}

#[expect(unsafe_code, reason = "ioctls have no safe form")]
fn attach(file: &File, request: &mut InterfaceRequest) -> io::Result<()> {
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, whose size and layout the type has.
    let call = unsafe { Updater::<'_, TUNSETIFF, InterfaceRequest>::new(request) };
    // SAFETY: `file` is open for the whole call, and `call` borrows its argument.
    Ok(unsafe { ioctl(file, call) }?)
}

#[expect(unsafe_code, reason = "ioctls have no safe form")]
fn set_header_len(file: &File) -> io::Result<()> {
    let len = i32::try_from(VIRTIO_HEADER_LEN).expect("ten");
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    let call = unsafe { Setter::<TUNSETVNETHDRSZ, i32>::new(len) };
    // SAFETY: `file` is open for the whole call, and `call` owns its argument.
    Ok(unsafe { ioctl(file, call) }?)
}

#[expect(unsafe_code, reason = "ioctls have no safe form")]
fn set_offload_flags(file: &File, flags: usize) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags as the argument itself and dereferences nothing.
    let call = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags) };
    // SAFETY: `file` is open for the whole call.
    Ok(unsafe { ioctl(file, call) }?)
}

/// Longest read: a virtio header and the longest IP packet.
pub const READ_LEN: usize = VIRTIO_HEADER_LEN + 65_535;

const DEVICE: &str = "/dev/net/tun";
const NAME_LEN: usize = 16;
// linux/if_tun.h
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);
const IFF_TUN: u16 = 0x0001;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_cut_or_refuse_are_errors() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a b", "..", "ä"] {
            assert!(matches!(InterfaceRequest::new(name, false), Err(TunError::Name(_))), "{name}");
        }
        assert!(InterfaceRequest::new("fifteen-bytes-x", false).is_ok());
    }

    #[test]
    fn the_request_has_the_kernels_size() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }
}
