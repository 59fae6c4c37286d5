//! Datagrams that leave one behind the other by one system call (`UDP_SEGMENT`, udp(7)).

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// What waits for the end of a turn, or for room in the socket's buffer.
///
/// The kernel cuts a send into segments of one size, of which only the last may be shorter.
#[derive(Debug, Default)]
pub(super) struct Train {
    bytes: Vec<u8>,
    /// Bytes at the front that are sent.
    sent: usize,
    head: Option<Head>,
    /// The last segment is a short one: nothing may follow.
    closed: bool,
}

/// What all segments have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    source: Option<IpAddr>,
    segment: usize,
}

impl Train {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == self.sent
    }

    /// Bytes held since it was empty, sent ones included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The same buffer with nothing in it.
    pub(super) fn take_empty(&mut self) -> Self {
        let mut train = std::mem::take(self);
        train.clear();
        train
    }

    /// Whether `transmit` may go with what waits, if anything does.
    pub(super) fn takes(&self, transmit: &Transmit<'_>) -> bool {
        self.is_empty() || (!self.closed && self.head == Some(Head::of(transmit)))
    }

    /// Appends a transmit that [`Train::takes`] agreed to.
    pub(super) fn push(&mut self, transmit: &Transmit<'_>) {
        debug_assert!(self.takes(transmit), "the transmit belongs to another train");
        if self.is_empty() {
            self.clear();
        }
        let head = Head::of(transmit);
        self.bytes.extend_from_slice(transmit.contents);
        self.closed = !transmit.contents.len().is_multiple_of(head.segment);
        self.head = Some(head);
    }

    /// Whether it holds what one send takes, so that holding it longer gains nothing.
    pub(super) fn is_full(&self) -> bool {
        self.head.is_some_and(|head| self.bytes.len() - self.sent >= head.send_bytes_max())
    }

    /// Whether another turn like those before would fit into the same send.
    pub(super) fn has_room(&self) -> bool {
        let Some(head) = self.head else { return false };
        let more = DATAGRAMS_PER_TURN * head.segment;
        !self.is_empty() && !self.closed && self.bytes.len() - self.sent + more <= head.send_bytes_max()
    }

    /// What the next send is to carry.
    pub(super) fn front(&self) -> Option<Transmit<'_>> {
        let head = self.head?;
        let rest = &self.bytes[self.sent..];
        let contents = &rest[..rest.len().min(head.send_bytes_max())];
        (!contents.is_empty()).then_some(Transmit {
            destination: head.destination,
            ecn: head.ecn,
            contents,
            segment_size: (contents.len() > head.segment).then_some(head.segment),
            src_ip: head.source,
        })
    }

    /// Takes off what [`Train::front`] gave.
    pub(super) fn handle_sent(&mut self) {
        let front = self.front().map_or(0, |transmit| transmit.contents.len());
        self.sent += front;
        if self.is_empty() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
        self.head = None;
        self.closed = false;
    }
}

impl Head {
    fn of(transmit: &Transmit<'_>) -> Self {
        Self {
            destination: transmit.destination,
            ecn: transmit.ecn,
            source: transmit.src_ip,
            segment: transmit.segment_size.unwrap_or(transmit.contents.len()).max(1),
        }
    }

    fn send_bytes_max(self) -> usize {
        (SEND_BYTES_MAX / self.segment).clamp(1, SEGMENTS_MAX) * self.segment
    }
}

/// What quinn's driver sends in one turn (its `MAX_TRANSMIT_DATAGRAMS`).
const DATAGRAMS_PER_TURN: usize = 20;
/// Segments of one send (`UDP_MAX_SEGMENTS` of older kernels).
const SEGMENTS_MAX: usize = 64;
/// Bytes of one send: what IPv4 leaves of 65,535 after its header and UDP's.
pub(super) const SEND_BYTES_MAX: usize = 65_507;

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: usize = 1452;

    fn transmit(contents: &[u8], segment: Option<usize>) -> Transmit<'_> {
        let destination = "192.0.2.1:7844".parse().unwrap();
        Transmit { destination, ecn: None, contents, segment_size: segment, src_ip: None }
    }

    #[test]
    fn two_turns_of_full_datagrams_leave_by_one_send() {
        let (mut train, contents) = (Train::default(), vec![1; 10 * SEGMENT]);
        let ten = transmit(&contents, Some(SEGMENT));
        for _ in 0..2 {
            assert!(train.takes(&ten) && !train.is_full());
            train.push(&ten);
        }
        assert!(train.has_room());
        for _ in 0..2 {
            assert!(train.takes(&ten) && !train.is_full());
            train.push(&ten);
        }
        assert!(!train.has_room());
        let front = train.front().unwrap();
        assert_eq!((front.contents.len(), front.segment_size), (40 * SEGMENT, Some(SEGMENT)));
        train.handle_sent();
        assert!(train.is_empty() && train.front().is_none());
    }

    #[test]
    fn nothing_follows_a_short_segment_or_goes_with_another_path() {
        let (mut train, contents) = (Train::default(), vec![1; 10 * SEGMENT]);
        train.push(&transmit(&contents, Some(SEGMENT)));
        let elsewhere =
            Transmit { destination: "192.0.2.2:7844".parse().unwrap(), ..transmit(&contents, Some(SEGMENT)) };
        let marked = Transmit { ecn: Some(EcnCodepoint::Ect0), ..transmit(&contents, Some(SEGMENT)) };
        let probe = transmit(&contents[..1400], None);
        for other in [elsewhere, marked, probe] {
            assert!(!train.takes(&other));
        }
        train.push(&transmit(&contents[..SEGMENT + 7], Some(SEGMENT)));
        assert!(!train.takes(&transmit(&contents, Some(SEGMENT))) && !train.has_room());
        assert_eq!(train.front().unwrap().contents.len(), 11 * SEGMENT + 7);
    }

    #[test]
    fn what_exceeds_one_send_is_cut_between_segments() {
        let (mut train, contents) = (Train::default(), vec![1; 10 * 8952]);
        train.push(&transmit(&contents, Some(8952)));
        assert!(train.is_full());
        let mut sends = Vec::new();
        while let Some(front) = train.front() {
            sends.push(front.contents.len() / 8952);
            train.handle_sent();
        }
        assert_eq!(sends, [7, 3]);
    }

    #[test]
    fn a_single_datagram_is_sent_without_segmentation() {
        let mut train = Train::default();
        train.push(&transmit(&[1; 60], None));
        assert_eq!(train.front().unwrap().segment_size, None);
    }
}
