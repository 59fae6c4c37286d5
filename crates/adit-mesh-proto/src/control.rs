//! What two adit nodes say to each other inside the tunnel: probes and their answers.
//!
//! They are IPv6 packets between two addresses of the discard prefix (RFC 6666), which no host has. A peer that is no adit
//! drops them, because their source is not among the allowed IPs; adit takes them only from inside a session, and never
//! lets one from its own side out.

use std::net::Ipv6Addr;

use crate::ip::{IPV6_LEN, IpHeader};

/// A probe or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) kind: Kind,
    /// Random number of the probe; an answer repeats it.
    pub(crate) id: u64,
    /// Random number of the sender's counters: another one means that they began anew.
    pub(crate) epoch: u32,
    /// Authenticated data messages that the sender had from the receiver.
    pub(crate) received: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Probe,
    Answer,
}

impl Control {
    /// Writes the packet into all of `packet`, which has at least [`CONTROL_LEN`] bytes and is padded with zeros.
    pub(crate) fn write(&self, packet: &mut [u8]) -> Option<()> {
        let payload = u16::try_from(packet.len().checked_sub(IPV6_LEN)?).ok()?;
        packet.get(..CONTROL_LEN)?;
        packet.fill(0);
        (packet[0], packet[6], packet[7]) = (0x60, EXPERIMENT, 1);
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet[8..24].copy_from_slice(&FROM.octets());
        packet[24..40].copy_from_slice(&TO.octets());
        packet[40..44].copy_from_slice(MAGIC);
        packet[44] = VERSION;
        packet[45] = if self.kind == Kind::Probe { 1 } else { 2 };
        packet[48..56].copy_from_slice(&self.id.to_be_bytes());
        packet[56..60].copy_from_slice(&self.epoch.to_be_bytes());
        packet[60..68].copy_from_slice(&self.received.to_be_bytes());
        Some(())
    }

    /// Reads a packet of which [`is_control`] is true; `None` for kinds and versions to come, which are ignored.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let packet: &[u8; CONTROL_LEN] = packet.first_chunk()?;
        let kind = match (packet[44], packet[45]) {
            (VERSION, 1) => Kind::Probe,
            (VERSION, 2) => Kind::Answer,
            _ => return None,
        };
        Some(Self {
            kind,
            id: u64::from_be_bytes(*packet[48..].first_chunk()?),
            epoch: u32::from_be_bytes(*packet[56..].first_chunk()?),
            received: u64::from_be_bytes(*packet[60..].first_chunk()?),
        })
        .filter(|_| packet[40..44] == *MAGIC)
    }
}

/// Whether a packet is of this kind by its addresses.
#[inline]
pub(crate) fn is_control(header: &IpHeader) -> bool {
    header.source == FROM
}

/// Shortest packet: a multiple of 16, as everything inside the tunnel.
pub(crate) const CONTROL_LEN: usize = 80;

const FROM: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);
const TO: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 2);
/// Protocol number for experimentation (RFC 3692).
const EXPERIMENT: u8 = 253;
const MAGIC: &[u8; 4] = b"adit";
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again_at_any_length(
            probe in any::<bool>(), id in any::<u64>(), epoch in any::<u32>(), received in any::<u64>(),
            len in CONTROL_LEN..1500,
        ) {
            let kind = if probe { Kind::Probe } else { Kind::Answer };
            let control = Control { kind, id, epoch, received };
            let mut packet = vec![0xff; len];
            control.write(&mut packet).unwrap();
            let header = IpHeader::parse(&packet).unwrap();
            prop_assert!(is_control(&header) && header.len == len);
            prop_assert_eq!(Control::parse(&packet), Some(control));
        }

        #[test]
        fn other_bytes_are_ignored(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Control::parse(&bytes), None);
        }
    }
}
