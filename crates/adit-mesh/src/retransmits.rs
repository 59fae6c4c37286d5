//! Sees which TCP data inside the mesh is sent again: what gets lost on the way, told by the kernel's own
//! retransmissions and therefore with any peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far some flows have come. A sample: flows that share a place take turns.
#[derive(Debug)]
pub(crate) struct Retransmits {
    flows: Vec<Flow>,
}

/// TCP data on its way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) destination: IpAddr,
    /// Bytes of payload.
    pub(crate) sent: u32,
    /// Of these, bytes that were sent before.
    pub(crate) repeated: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    /// Hash of addresses and ports; 0 for none yet.
    tag: u64,
    /// The sequence number after the last byte sent.
    end: u32,
    /// Bytes before this were first sent before the present window; sending them again repairs older losses.
    floor: u32,
    /// How far those repairs have come; TCP makes them in order.
    repaired: u32,
}

impl Default for Retransmits {
    fn default() -> Self {
        Self { flows: vec![Flow::default(); FLOWS] }
    }
}

impl Retransmits {
    /// Whether repairs of what was sent so far tell of losses before now, and count only when they in
    /// turn are repeated.
    pub(crate) fn forgive_old(&mut self, forgive: bool) {
        for flow in &mut self.flows {
            let oldest = flow.end.wrapping_sub(FLIGHT_MAX);
            (flow.floor, flow.repaired) = (if forgive { flow.end } else { oldest }, oldest);
        }
    }

    /// Looks at a packet from the device; nothing unless it is TCP with a fair amount of data.
    pub(crate) fn observe(&mut self, packet: &[u8]) -> Option<Seen> {
        let (destination, addresses, transport) = match packet.first()? >> 4 {
            4 if packet.len() >= 40 && packet[0] == 0x45 && packet[9] == TCP && packet[6] & 0x3f == 0 => {
                let destination = *packet[16..].first_chunk::<4>()?;
                (IpAddr::from(Ipv4Addr::from(destination)), 12..20, 20)
            }
            6 if packet.len() >= 60 && packet[6] == TCP => {
                let destination = *packet[24..].first_chunk::<16>()?;
                (IpAddr::from(Ipv6Addr::from(destination)), 8..40, 40)
            }
            _ => return None,
        };
        let header = usize::from(packet[transport + 12] >> 4) * 4;
        let sent = u32::try_from(packet.len().checked_sub(transport + header)?).ok()?;
        if sent < SENT_MIN {
            return None;
        }
        let tag = tag(&packet[addresses], &packet[transport..transport + 4]);
        let sequence = u32::from_be_bytes(*packet[transport + 4..].first_chunk::<4>()?);
        let end = sequence.wrapping_add(sent);
        let place = usize::try_from(tag % FLOWS as u64).ok()?;
        let flow = &mut self.flows[place];
        // So far from what was seen last is another connection, or this one after much that was not looked at.
        if flow.tag != tag || sequence.wrapping_sub(flow.end).cast_signed().unsigned_abs() > FLIGHT_MAX {
            let oldest = sequence.wrapping_sub(FLIGHT_MAX);
            *flow = Flow { tag, end, floor: oldest, repaired: oldest };
            return Some(Seen { destination, sent, repeated: 0 });
        }
        if ahead(end, flow.end) > 0 {
            flow.forget_before(end.wrapping_sub(FLIGHT_MAX));
        }
        let old = ahead(flow.floor, sequence).min(sent);
        let old_end = sequence.wrapping_add(old);
        let again = ahead(flow.repaired, sequence).min(old);
        let repeated = again + ahead(flow.end, old_end).min(sent - old);
        if old > 0 && ahead(old_end, flow.repaired) > 0 {
            flow.repaired = old_end;
        }
        if ahead(end, flow.end) > 0 {
            flow.end = end;
        }
        Some(Seen { destination, sent, repeated })
    }
}

impl Flow {
    /// Takes the marks along: one that stayed behind by 2 GiB would count as ahead, and everything as sent before.
    fn forget_before(&mut self, oldest: u32) {
        self.floor = if ahead(oldest, self.floor) > 0 { oldest } else { self.floor };
        self.repaired = if ahead(oldest, self.repaired) > 0 { oldest } else { self.repaired };
    }
}

/// How far `one` is ahead of `other`, 0 if it is behind (RFC 9293 section 3.4).
fn ahead(one: u32, other: u32) -> u32 {
    u32::try_from(one.wrapping_sub(other).cast_signed()).unwrap_or_default()
}

/// FNV-1a over four bytes at a time: flows only have to differ, nobody gains by making them collide.
fn tag(addresses: &[u8], ports: &[u8]) -> u64 {
    let words = addresses.as_chunks::<4>().0.iter().chain(ports.as_chunks::<4>().0);
    let hash = words.fold(0xcbf2_9ce4_8422_2325_u64, |hash, word| {
        (hash ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash ^ hash >> 32) | 1
}

const TCP: u8 = 6;
/// Flows sampled; 24 bytes each, 6 KiB.
const FLOWS: usize = 256;
/// Longest window of TCP (RFC 7323 section 2.3): nothing older is ever sent again.
const FLIGHT_MAX: u32 = 1 << 30;
/// Less payload than this is neither a train nor the repetition of a part of one.
const SENT_MIN: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(port: u8, sequence: u32, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 40 + payload];
        packet[0] = 0x45;
        packet[9] = TCP;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[21] = port;
        packet[24..28].copy_from_slice(&sequence.to_be_bytes());
        packet[32] = 0x50;
        packet
    }

    fn repeated(sampler: &mut Retransmits, port: u8, sequence: u32, payload: usize) -> u32 {
        sampler.observe(&packet(port, sequence, payload)).unwrap().repeated
    }

    #[test]
    fn only_data_sent_before_counts_as_repeated() {
        let mut sampler = Retransmits::default();
        let start = u32::MAX - 1500;
        assert_eq!(repeated(&mut sampler, 1, start, 1000), 0);
        assert_eq!(repeated(&mut sampler, 1, start.wrapping_add(1000), 1000), 0);
        assert_eq!(repeated(&mut sampler, 1, start.wrapping_add(500), 1000), 1000);
        assert_eq!(repeated(&mut sampler, 1, start.wrapping_add(1500), 1000), 500);
        assert_eq!(repeated(&mut sampler, 1, start.wrapping_add(2500), 1000), 0);
        assert_eq!(repeated(&mut sampler, 2, start, 1000), 0);
    }

    #[test]
    fn repairs_of_older_losses_are_forgiven_once() {
        let mut sampler = Retransmits::default();
        repeated(&mut sampler, 1, 0, 5000);
        sampler.forgive_old(true);
        assert_eq!(repeated(&mut sampler, 1, 1000, 1000), 0);
        assert_eq!(repeated(&mut sampler, 1, 3000, 1000), 0);
        assert_eq!(repeated(&mut sampler, 1, 3500, 1000), 500);
        // Old and new data at once, then the same again.
        assert_eq!(repeated(&mut sampler, 1, 4500, 2000), 0);
        assert_eq!(repeated(&mut sampler, 1, 4500, 2000), 2000);
        sampler.forgive_old(false);
        assert_eq!(repeated(&mut sampler, 1, 1000, 2000), 2000);
    }

    #[test]
    fn a_flow_of_many_gigabytes_repeats_nothing() {
        let mut sampler = Retransmits::default();
        let payload = 60_000_u32;
        let mut segment = packet(1, 0, payload as usize);
        let mut sequence = 7_u32;
        for sent in 0..400_000_u32 {
            segment[24..28].copy_from_slice(&sequence.to_be_bytes());
            assert_eq!(sampler.observe(&segment).unwrap().repeated, 0, "after {sent} segments");
            if sent.is_multiple_of(50_000) {
                sampler.forgive_old(sent.is_multiple_of(100_000));
            }
            sequence = sequence.wrapping_add(payload);
        }
        assert_eq!(sampler.observe(&packet(1, sequence.wrapping_sub(1000), 1000)).unwrap().repeated, 1000);
    }

    #[test]
    fn a_flow_that_went_on_unseen_begins_anew() {
        let mut sampler = Retransmits::default();
        repeated(&mut sampler, 1, 0, 1000);
        for sequence in [FLIGHT_MAX * 2, FLIGHT_MAX * 3 + 1, 0] {
            assert_eq!(repeated(&mut sampler, 1, sequence, 1000), 0);
        }
    }

    #[test]
    fn small_packets_and_what_is_not_tcp_say_nothing() {
        let mut sampler = Retransmits::default();
        assert_eq!(sampler.observe(&packet(1, 0, 100)), None);
        let mut udp = packet(1, 0, 1000);
        udp[9] = 17;
        assert_eq!(sampler.observe(&udp), None);
        let mut short = packet(1, 0, 1000);
        short[32] = 0xf0;
        short.truncate(60);
        assert_eq!(sampler.observe(&short), None);
        assert_eq!(sampler.observe(&[]), None);
    }
}
