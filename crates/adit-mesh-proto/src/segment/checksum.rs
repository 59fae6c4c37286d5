//! The Internet checksum (RFC 1071), summed in wide words.
//!
//! One's complement addition does not mind the byte order (RFC 1071 section 2 B), so sums are taken in
//! native order over 32-bit words and only the final 16 bits are put on the wire in that same order.

/// A running sum; fold it with [`Sum::finish`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`. All pieces but the last must have an even length.
    #[inline]
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        // Four independent sums let the compiler use vector registers; each holds 2^32 additions
        // without overflow, far more than one packet of 65,535 bytes has.
        let mut lanes = [0_u64; 4];
        let (blocks, tail) = bytes.as_chunks::<16>();
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum = self.0 + lanes.iter().sum::<u64>();
        let (pairs, odd) = tail.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// Adds one 16-bit number.
    #[inline]
    #[must_use]
    pub fn with_u16(self, number: u16) -> Self {
        Self(self.0 + u64::from(number.to_be()))
    }

    /// The two bytes to store: the complement of the folded sum.
    #[inline]
    #[must_use]
    pub fn finish(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The two bytes of a partial checksum: the folded sum itself, which the kernel completes.
    #[inline]
    #[must_use]
    pub fn partial(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// Whether a sum that includes its checksum is right (RFC 1071 section 1).
    #[inline]
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    #[inline]
    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).expect("the loop ends at 16 bits")
    }
}

/// Sum over the pseudo-header of TCP or UDP: source and destination (both as on the wire, together 8
/// or 32 bytes), protocol number and transport length (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline]
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, transport_len: u16) -> Sum {
    Sum::default().with(addresses).with_u16(u16::from(protocol)).with_u16(transport_len)
}

/// The checksum after one 16-bit number that it covers has changed (RFC 1624, equation 3).
#[must_use]
pub fn update(checksum: [u8; 2], old: u16, new: u16) -> [u8; 2] {
    let complement = u16::from_be_bytes(checksum);
    Sum::default().with_u16(!complement).with_u16(!old).with_u16(new).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn the_sum_equals_that_of_the_naive_loop(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let expected = naive(&bytes);
            let got = u16::from_be_bytes(Sum::default().with(&bytes).finish());
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn pieces_sum_like_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..150) {
            let cut = (cut * 2).min(bytes.len() & !1);
            let (first, second) = bytes.split_at(cut);
            prop_assert_eq!(Sum::default().with(first).with(second).finish(), Sum::default().with(&bytes).finish());
        }

        #[test]
        fn an_updated_checksum_equals_a_new_one(mut bytes in proptest::collection::vec(1_u8.., 24..60), new: u16) {
            bytes[10..12].fill(0);
            let before = Sum::default().with(&bytes).finish();
            let old = u16::from_be_bytes([bytes[20], bytes[21]]);
            bytes[20..22].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), Sum::default().with(&bytes).finish());
        }

        #[test]
        fn a_packet_with_its_checksum_is_valid(mut bytes in proptest::collection::vec(any::<u8>(), 20..60)) {
            bytes[10..12].fill(0);
            let checksum = Sum::default().with(&bytes).finish();
            bytes[10..12].copy_from_slice(&checksum);
            prop_assert!(Sum::default().with(&bytes).is_valid());
            bytes[0] ^= 1;
            prop_assert!(!Sum::default().with(&bytes).is_valid());
        }
    }
}
