//! What two adit nodes say to each other inside the tunnel: probes, their answers, and which lanes they have.
//!
//! They are IPv6 packets between two addresses of the discard prefix (RFC 6666), which no host has. A peer that is no adit
//! drops them, because their source is not among the allowed IPs; adit takes them only from inside a session, and never
//! lets one from its own side out.

use std::net::Ipv6Addr;

use crate::ip::{IPV6_LEN, IpHeader};
use crate::keys::PublicKey;
use crate::packet::LaneAddress;

/// Anything that an adit says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Control(Control),
    Announcement(Announcement),
}

/// By which further lanes the sender can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announcement {
    /// As in [`Control`].
    pub(crate) epoch: u32,
    /// At most [`LANES_MAX`] less the one that everybody has.
    pub(crate) lanes: Vec<LaneAddress>,
}

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
        write_head(packet, if self.kind == Kind::Probe { PROBE } else { ANSWER })?;
        packet[48..56].copy_from_slice(&self.id.to_be_bytes());
        packet[56..60].copy_from_slice(&self.epoch.to_be_bytes());
        packet[60..68].copy_from_slice(&self.received.to_be_bytes());
        Some(())
    }
}

impl Announcement {
    /// Its length as a packet, a multiple of 16.
    pub(crate) fn len(&self) -> usize {
        (LANES_AT + self.lanes.len() * LANE_LEN).next_multiple_of(16).max(CONTROL_LEN)
    }

    /// Writes the packet into all of `packet`, which is [`Self::len`] bytes long.
    pub(crate) fn write(&self, packet: &mut [u8]) -> Option<()> {
        write_head(packet, LANES)?;
        packet[56..60].copy_from_slice(&self.epoch.to_be_bytes());
        packet[60] = u8::try_from(self.lanes.len()).ok()?;
        let places = packet.get_mut(LANES_AT..)?.chunks_exact_mut(LANE_LEN);
        for (place, lane) in places.zip(&self.lanes) {
            place[..2].copy_from_slice(&lane.port.to_be_bytes());
            place[2..].copy_from_slice(&lane.key.0);
        }
        Some(())
    }
}

impl Message {
    /// Reads a packet of which [`is_control`] is true; `None` for kinds and versions to come, which are ignored.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let head: &[u8; CONTROL_LEN] = packet.first_chunk()?;
        if head[40..44] != *MAGIC || head[44] != VERSION {
            return None;
        }
        let epoch = u32::from_be_bytes(*head[56..].first_chunk()?);
        let kind = match head[45] {
            PROBE => Kind::Probe,
            ANSWER => Kind::Answer,
            LANES => {
                let count = usize::from(head[60]).min(LANES_MAX - 1);
                let lanes = packet.get(LANES_AT..LANES_AT + count * LANE_LEN)?.chunks_exact(LANE_LEN);
                let lanes = lanes.filter_map(read_lane).collect();
                return Some(Self::Announcement(Announcement { epoch, lanes }));
            }
            _ => return None,
        };
        let id = u64::from_be_bytes(*head[48..].first_chunk()?);
        let received = u64::from_be_bytes(*head[60..].first_chunk()?);
        Some(Self::Control(Control { kind, id, epoch, received }))
    }
}

fn write_head(packet: &mut [u8], kind: u8) -> Option<()> {
    let payload = u16::try_from(packet.len().checked_sub(IPV6_LEN)?).ok()?;
    packet.get(..CONTROL_LEN)?;
    packet.fill(0);
    (packet[0], packet[6], packet[7]) = (0x60, EXPERIMENT, 1);
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    packet[8..24].copy_from_slice(&FROM.octets());
    packet[24..40].copy_from_slice(&TO.octets());
    packet[40..44].copy_from_slice(MAGIC);
    (packet[44], packet[45]) = (VERSION, kind);
    Some(())
}

fn read_lane(bytes: &[u8]) -> Option<LaneAddress> {
    let port = u16::from_be_bytes(*bytes.first_chunk()?);
    Some(LaneAddress { key: PublicKey(*bytes[2..].first_chunk()?), port })
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
const PROBE: u8 = 1;
const ANSWER: u8 = 2;
const LANES: u8 = 3;
/// Lanes of a node, the one that everybody has included.
pub const LANES_MAX: usize = 8;
/// Where the first lane stands in an announcement; a port and a key each.
const LANES_AT: usize = 64;
const LANE_LEN: usize = 2 + 32;
/// Longest announcement.
pub(crate) const ANNOUNCEMENT_LEN_MAX: usize = (LANES_AT + (LANES_MAX - 1) * LANE_LEN).next_multiple_of(16);

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
            prop_assert_eq!(Message::parse(&packet), Some(Message::Control(control)));
        }

        #[test]
        fn lanes_that_are_announced_are_read_again(
            epoch in any::<u32>(),
            lanes in prop::collection::vec((any::<[u8; 32]>(), any::<u16>()), 0..LANES_MAX),
        ) {
            let lanes = lanes.into_iter().map(|(key, port)| LaneAddress { key: PublicKey(key), port }).collect();
            let announcement = Announcement { epoch, lanes };
            let mut packet = vec![0xff; announcement.len()];
            prop_assert!(packet.len() <= ANNOUNCEMENT_LEN_MAX);
            announcement.write(&mut packet).unwrap();
            prop_assert_eq!(Message::parse(&packet), Some(Message::Announcement(announcement)));
            for len in 0..packet.len() {
                Message::parse(&packet[..len]);
            }
        }

        #[test]
        fn other_bytes_are_ignored(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Message::parse(&bytes), None);
        }
    }
}
