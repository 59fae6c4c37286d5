//! TCP's maximum segment size, lowered in SYNs so that connections fit the tunnel from their first segment on: path MTU
//! discovery would find out too, but only where ICMP gets through.

use crate::ip::{IpHeader, Shape, TCP};
use crate::segment::checksum;

/// Lowers the MSS option of a SYN to what packets of `mtu` bytes carry. With `partial` the checksum does not cover the
/// segment yet and stays as it is.
#[inline]
pub(crate) fn clamp_mss(header: &IpHeader, packet: &mut [u8], mtu: usize, partial: bool) {
    let is_syn = header.protocol == TCP
        && header.shape == Shape::Plain
        && packet.get(header.transport + 13).is_some_and(|flags| flags & SYN != 0);
    if !is_syn {
        return;
    }
    let fitting = mtu.saturating_sub(header.transport + TCP_LEN);
    let Ok(fitting) = u16::try_from(fitting) else { return };
    if let Some(segment) = packet.get_mut(header.transport..header.len) {
        lower(segment, fitting, partial);
    }
}

fn lower(segment: &mut [u8], fitting: u16, partial: bool) {
    let Some(at) = find_option(segment) else { return };
    let stated = u16::from_be_bytes([segment[at], segment[at + 1]]);
    if stated <= fitting {
        return;
    }
    segment[at..at + 2].copy_from_slice(&fitting.to_be_bytes());
    if !partial {
        // A number at an odd place counts with its bytes exchanged.
        let swap = at % 2 == 1;
        let (old, new) = if swap { (stated.swap_bytes(), fitting.swap_bytes()) } else { (stated, fitting) };
        let sum = checksum::update([segment[16], segment[17]], old, new);
        segment[16..18].copy_from_slice(&sum);
    }
}

/// Where the value of the MSS option stands (RFC 9293 section 3.2).
fn find_option(segment: &[u8]) -> Option<usize> {
    let end = usize::from(segment.get(12)? >> 4) * 4;
    let mut at = TCP_LEN;
    while at < end.min(segment.len()) {
        match (segment[at], segment.get(at + 1).copied()) {
            (0, _) => return None,
            (1, _) => at += 1,
            (2, Some(4)) if at + 4 <= segment.len() => return Some(at + 2),
            (_, Some(len)) if len >= 2 => at += usize::from(len),
            _ => return None,
        }
    }
    None
}

const SYN: u8 = 2;
const TCP_LEN: usize = 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::tests::packet;
    use crate::segment::checksum::pseudo_header;

    fn syn(source: &str, destination: &str, options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0; TCP_LEN];
        let words = u8::try_from((TCP_LEN + options.len()) / 4).unwrap();
        (segment[12], segment[13]) = (words << 4, SYN);
        segment.extend(options);
        let mut packet = packet(source, destination, TCP, &segment);
        let header = IpHeader::parse(&packet).unwrap();
        let sum = sum_of(&packet, &header).finish();
        packet[header.transport + 16..header.transport + 18].copy_from_slice(&sum);
        packet
    }

    fn sum_of(packet: &[u8], header: &IpHeader) -> checksum::Sum {
        let addresses = if header.source.is_ipv4() { &packet[12..20] } else { &packet[8..40] };
        let segment = &packet[header.transport..];
        pseudo_header(addresses, TCP, u16::try_from(segment.len()).unwrap()).with(segment)
    }

    #[test]
    fn a_larger_mss_is_lowered_and_a_smaller_one_left_alone() {
        let cases = [("10.0.0.1", "10.0.0.2", 1368_u16), ("fd00::1", "fd00::2", 1348)];
        for (source, destination, fitting) in cases {
            for (stated, expected) in [(1460, fitting), (536, 536)] {
                for padding in [&[][..], &[1, 1], &[1]] {
                    let mut options = padding.to_vec();
                    options.extend([2, 4]);
                    options.extend(u16::to_be_bytes(stated));
                    options.resize(8, 0);
                    let mut packet = syn(source, destination, &options);
                    let header = IpHeader::parse(&packet).unwrap();
                    clamp_mss(&header, &mut packet, 1408, false);
                    let at = header.transport + TCP_LEN + padding.len() + 2;
                    assert_eq!(packet[at..at + 2], expected.to_be_bytes());
                    assert!(sum_of(&packet, &header).is_valid(), "{stated} behind {padding:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_options_are_read_without_a_panic(
            options in prop::collection::vec(any::<u8>(), 0..44), words in any::<u8>(),
        ) {
            let mut segment = vec![0; TCP_LEN];
            (segment[12], segment[13]) = (words, SYN);
            segment.extend(options);
            let mut packet = packet("10.0.0.1", "10.0.0.2", TCP, &segment);
            let header = IpHeader::parse(&packet).unwrap();
            clamp_mss(&header, &mut packet, 1280, false);
        }
    }
}
