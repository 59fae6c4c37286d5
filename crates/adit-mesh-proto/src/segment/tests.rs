//! Split and coalesce against naive models.

use proptest::prelude::*;

use super::checksum::{Sum, pseudo_header};
use super::{Coalescer, Offload, OffloadKind, PartialChecksum, SplitError, Splitter};

/// What a packet is made of, before any checksum.
#[derive(Debug, Clone)]
struct Recipe {
    v6: bool,
    tcp: bool,
    flow: u8,
    id: u16,
    df: bool,
    sequence: u32,
    flags: u8,
    ack: u32,
    payload: Vec<u8>,
    options: bool,
    corrupt: bool,
    fragment: bool,
}

impl Recipe {
    fn new(v6: bool, tcp: bool, payload_len: usize) -> Self {
        let payload = (0..payload_len).map(|at| u8::try_from(at % 251).unwrap()).collect();
        Self {
            v6,
            tcp,
            flow: 0,
            id: 7,
            df: true,
            sequence: 1000,
            flags: 0x10,
            ack: 5,
            payload,
            options: true,
            corrupt: false,
            fragment: false,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![0x10, self.flow, 0x20, 0x02];
        if self.tcp {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.ack.to_be_bytes());
            bytes.extend([if self.options { 0x80 } else { 0x50 }, self.flags, 0x20, 0, 0, 0, 0, 0]);
            if self.options {
                bytes.extend([1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
            }
        } else {
            bytes.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn build(&self) -> Vec<u8> {
        let transport = self.transport();
        let protocol = if self.tcp { 6 } else { 17 };
        let mut packet = if self.v6 {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(u16::try_from(transport.len()).unwrap().to_be_bytes());
            header.extend([protocol, 64]);
            header.extend([0xfd; 15]);
            header.extend([1]);
            header.extend([0xfd; 15]);
            header.extend([2]);
            header
        } else {
            let total = u16::try_from(20 + transport.len()).unwrap();
            let mut header = vec![0x45, 0];
            header.extend(total.to_be_bytes());
            header.extend(self.id.to_be_bytes());
            header.extend([if self.df { 0x40 } else { 0 } | if self.fragment { 0x20 } else { 0 }, 0]);
            header.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let checksum = Sum::default().with(&header).finish();
            header[10..12].copy_from_slice(&checksum);
            header
        };
        let start = packet.len();
        packet.extend(&transport);
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let len = u16::try_from(transport.len()).unwrap();
        let checksum = pseudo_header(&packet[addresses], protocol, len).with(&packet[start..]).finish();
        let at = start + if self.tcp { 16 } else { 6 };
        // RFC 768: zero says that there is none.
        let checksum = if !self.tcp && checksum == [0, 0] { [0xff, 0xff] } else { checksum };
        packet[at..at + 2].copy_from_slice(&checksum);
        if self.corrupt {
            *packet.last_mut().unwrap() ^= 0x55;
        }
        packet
    }
}

/// Splits the slow way: each packet built from scratch.
fn naive_split(whole: &Recipe, segment_size: usize) -> Vec<Vec<u8>> {
    let count = whole.payload.len().div_ceil(segment_size).max(1);
    (0..count)
        .map(|index| {
            let from = index * segment_size;
            let to = (from + segment_size).min(whole.payload.len());
            let mut one = whole.clone();
            one.payload = whole.payload[from..to].to_vec();
            one.id = whole.id.wrapping_add(u16::try_from(index).unwrap());
            one.sequence = whole.sequence.wrapping_add(u32::try_from(from).unwrap());
            if index + 1 < count {
                one.flags &= !0x09;
            }
            if index > 0 {
                one.flags &= !0x80;
            }
            one.build()
        })
        .collect()
}

fn offload_of(recipe: &Recipe, segment_size: usize) -> Offload {
    Offload {
        kind: match (recipe.tcp, recipe.v6) {
            (true, false) => OffloadKind::Tcp4,
            (true, true) => OffloadKind::Tcp6,
            (false, _) => OffloadKind::Udp,
        },
        // As on the forward path: of no use.
        header_len: 9999,
        segment_size: u16::try_from(segment_size).unwrap(),
        partial_checksum: None,
    }
}

fn split(packet: &[u8], offload: Offload) -> Result<Vec<Vec<u8>>, SplitError> {
    let mut packet = packet.to_vec();
    let mut splitter = Splitter::new(&mut packet, offload)?;
    let mut segments = Vec::new();
    while let Some(segment) = splitter.next() {
        segments.push(segment.to_vec());
        // What encryption in place would do.
        segment.fill(0xee);
    }
    Ok(segments)
}

/// Runs packets through a coalescer and gives (key, offload, packet) in order.
fn coalesce(coalescer: &mut Coalescer, packets: &[(u32, Vec<u8>)]) -> Vec<(u32, Offload, Vec<u8>)> {
    for (key, packet) in packets {
        let slot = coalescer.slot(packet.len() + 16).expect("room for a batch");
        slot[..packet.len()].copy_from_slice(packet);
        slot[packet.len()..].fill(0xaa);
        coalescer.commit(packet.len(), *key);
    }
    let mut merged = Vec::new();
    while let Some(one) = coalescer.poll() {
        merged.push((one.key, one.offload, one.contents.to_vec()));
    }
    merged
}

/// What names a flow, and everything else that must stay in order with it.
fn flow_of(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 6 { packet[40..44].to_vec() } else { [&packet[9..10], &packet[20..24]].concat() }
}

/// Where fragmentation is forbidden the IPv4 id means nothing (RFC 6864), and segmentation offloads
/// number as they like.
fn without_atomic_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn recipes() -> impl Strategy<Value = Vec<(u32, Recipe)>> {
    let step = (0_u8..3, any::<[bool; 2]>(), 0_u32..2, 0_u8..40, 0_usize..4);
    proptest::collection::vec(step, 1..64).prop_map(|steps| {
        let mut sequences = [0xffff_f000_u32; 3];
        let mut ids = [0xfffa_u16; 3];
        let mut recipes = Vec::new();
        for (flow, [v6, _], key, mishap, size) in steps {
            let tcp = flow != 2;
            let v6 = v6 && flow == 1;
            let mut recipe = Recipe::new(v6, tcp, [100, 100, 60, 0][size]);
            let at = usize::from(flow);
            recipe.flow = flow;
            recipe.sequence = sequences[at];
            recipe.id = ids[at];
            match mishap {
                0 => recipe.sequence = recipe.sequence.wrapping_add(1),
                1 => recipe.corrupt = !recipe.payload.is_empty(),
                2 => recipe.fragment = true,
                3 => recipe.flags |= 0x08,
                4 => recipe.flags |= 0x01,
                5 => recipe.flags |= 0x80,
                6 => recipe.flags |= 0x04,
                7 => recipe.ack += 1,
                8 => recipe.options = false,
                9 => recipe.id = recipe.id.wrapping_add(9),
                10 => recipe.df = false,
                11 => recipe.id = 0,
                _ => {}
            }
            sequences[at] = sequences[at].wrapping_add(u32::try_from(recipe.payload.len()).unwrap());
            ids[at] = ids[at].wrapping_add(1);
            recipes.push((key / 2 * u32::from(mishap == 12), recipe));
        }
        recipes
    })
}

#[test]
fn a_udp_checksum_of_zero_goes_out_as_all_ones() {
    // The last of five segments has it.
    let whole = Recipe { id: 0xfffe, sequence: 0xffff_ff00, ..Recipe::new(true, false, 6905) };
    let segments = split(&whole.build(), offload_of(&whole, 1381)).unwrap();
    assert_eq!(segments[4][46..48], [0xff, 0xff]);
    assert_eq!(segments, naive_split(&whole, 1381));
}

proptest! {
    #[test]
    fn splitting_gives_what_building_each_packet_gives(
        v6: bool, tcp: bool, payload in 1_usize..9000, segment_size in 1_usize..1400, flags in any::<u8>(),
    ) {
        let mut whole = Recipe::new(v6, tcp, payload);
        whole.flags = flags;
        whole.id = 0xfffe;
        whole.sequence = 0xffff_ff00;
        let segments = split(&whole.build(), offload_of(&whole, segment_size)).unwrap();
        prop_assert_eq!(segments, naive_split(&whole, segment_size));
    }

    #[test]
    fn splitting_random_bytes_never_panics(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0_u8..16, kind in 0_usize..4,
        segment_size in 1_u16..200, start: u16, offset: u16, partial: bool,
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | (*first & 0xf);
        }
        if let Some(protocol) = bytes.get_mut(9) {
            *protocol = [6, 6, 17, 17][kind];
        }
        let kind = [OffloadKind::None, OffloadKind::Tcp4, OffloadKind::Tcp6, OffloadKind::Udp][kind];
        let partial_checksum = partial.then_some(PartialChecksum { start: start % 220, offset: offset % 40 });
        let offload = Offload { kind, header_len: 0, segment_size, partial_checksum };
        if let Ok(segments) = split(&bytes, offload) {
            prop_assert!(!segments.is_empty());
        }
    }

    #[test]
    fn splitting_what_was_coalesced_gives_the_packets_back_in_each_flows_order(recipes in recipes()) {
        let mut coalescer = Coalescer::new(64);
        let packets: Vec<_> = recipes.iter().map(|(key, recipe)| (*key, recipe.build())).collect();
        let merged = coalesce(&mut coalescer, &packets);
        let mut out = Vec::new();
        for (key, offload, packet) in &merged {
            for segment in split(packet, *offload).unwrap() {
                out.push((*key, segment));
            }
        }
        prop_assert_eq!(out.len(), packets.len());
        for flow in packets.iter().map(|(key, packet)| (*key, flow_of(packet))) {
            let of_flow = |list: &[(u32, Vec<u8>)]| -> Vec<Vec<u8>> {
                let same = list.iter().filter(|(key, packet)| (*key, flow_of(packet)) == flow);
                same.map(|(_, packet)| without_atomic_id(packet)).collect()
            };
            prop_assert_eq!(of_flow(&out), of_flow(&packets));
        }
        prop_assert_eq!(coalescer.room(), 64);
    }

    #[test]
    fn coalescing_random_bytes_never_panics_and_loses_nothing(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..80), 1..32),
    ) {
        let mut coalescer = Coalescer::new(32);
        let packets: Vec<_> = packets.into_iter().map(|mut packet| {
            packet[0] = if packet[0] & 1 == 0 { 0x45 } else { 0x60 };
            (0, packet)
        }).collect();
        let merged: Vec<_> =
            coalesce(&mut coalescer, &packets).into_iter().map(|(key, _, packet)| (key, packet)).collect();
        prop_assert_eq!(merged, packets);
    }
}

fn train(recipe: &Recipe, segment_size: usize) -> Vec<(u32, Vec<u8>)> {
    naive_split(recipe, segment_size).into_iter().map(|packet| (0, packet)).collect()
}

#[test]
fn a_train_of_one_flow_becomes_one_packet_with_the_kernels_offload() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let whole = Recipe::new(v6, tcp, 40 * 1368 + 11);
        let merged = coalesce(&mut Coalescer::new(64), &train(&whole, 1368));
        assert_eq!(merged.len(), 1);
        let offload = merged[0].1;
        assert_eq!(offload.segment_size, 1368);
        let transport = if v6 { 40 } else { 20 };
        let offset = if tcp { 16 } else { 6 };
        assert_eq!(offload.partial_checksum, Some(PartialChecksum { start: transport, offset }));
        assert_eq!(merged[0].2.len(), whole.build().len());
    }
}

#[test]
fn two_interleaved_flows_become_one_packet_each() {
    let mut first = Recipe::new(false, true, 20 * 500);
    let mut second = first.clone();
    first.flow = 1;
    second.flow = 2;
    let mixed: Vec<_> =
        train(&first, 500).into_iter().zip(train(&second, 500)).flat_map(|(a, b)| [a, b]).collect();
    let merged = coalesce(&mut Coalescer::new(64), &mixed);
    assert_eq!(merged.len(), 2);
    assert_eq!(split(&merged[0].2, merged[0].1).unwrap(), naive_split(&first, 500));
    assert_eq!(split(&merged[1].2, merged[1].1).unwrap(), naive_split(&second, 500));
}

#[test]
fn a_wrong_checksum_is_never_laundered() {
    let mut packets = train(&Recipe::new(false, true, 3 * 500), 500);
    let last = packets[1].1.len() - 1;
    packets[1].1[last] ^= 1;
    let merged = coalesce(&mut Coalescer::new(64), &packets);
    assert_eq!(merged.len(), 3);
    assert_eq!(merged[1].1, Offload::NONE);
    assert_eq!(merged[1].2, packets[1].1);
}

#[test]
fn push_and_fin_end_a_group_and_stay_on_its_last_segment() {
    let mut whole = Recipe::new(false, true, 3 * 500);
    whole.flags |= 0x09;
    let mut packets = train(&whole, 500);
    let mut next = Recipe::new(false, true, 500);
    next.sequence = whole.sequence + 1500;
    next.id = whole.id + 3;
    packets.push((0, next.build()));
    let merged = coalesce(&mut Coalescer::new(64), &packets);
    assert_eq!(merged.len(), 2);
    assert_eq!(merged[0].2[33] & 0x09, 0x09);
}

#[test]
fn packets_of_different_peers_never_merge() {
    let mut packets = train(&Recipe::new(false, true, 2 * 500), 500);
    packets[1].0 = 1;
    assert_eq!(coalesce(&mut Coalescer::new(64), &packets).len(), 2);
}

#[test]
fn a_group_stops_at_the_longest_ip_packet() {
    let merged = coalesce(&mut Coalescer::new(128), &train(&Recipe::new(false, true, 60_000), 1368));
    assert_eq!(merged.len(), 1);
    let mut packets = train(&Recipe::new(false, true, 60_000), 1368);
    let mut more = Recipe::new(false, true, 43 * 1368);
    packets.pop();
    more.sequence = 1000 + 43 * 1368;
    more.id = 7 + 43;
    packets.extend(train(&more, 1368));
    let merged = coalesce(&mut Coalescer::new(128), &packets);
    assert_eq!(merged.len(), 2);
    assert!(merged.iter().all(|(_, _, packet)| packet.len() <= 65_535));
    let segments: Vec<_> =
        merged.iter().flat_map(|(_, offload, packet)| split(packet, *offload).unwrap()).collect();
    assert_eq!(segments, packets.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>());
}

#[test]
fn aborting_restores_what_the_packet_covered() {
    let mut coalescer = Coalescer::new(8);
    let packets = train(&Recipe::new(false, true, 3 * 500), 500);
    for (_, packet) in &packets {
        coalescer.slot(600).unwrap().fill(0xcc);
        coalescer.abort();
        coalescer.slot(packet.len() + 16).unwrap()[..packet.len()].copy_from_slice(packet);
        coalescer.commit(packet.len(), 0);
        coalescer.slot(600).unwrap().fill(0xcc);
    }
    let merged = coalescer.poll().unwrap();
    let (offload, whole) = (merged.offload, merged.contents.to_vec());
    assert_eq!(
        split(&whole, offload).unwrap(),
        packets.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>()
    );
    assert!(coalescer.poll().is_none());
}

#[test]
fn a_full_coalescer_says_so_and_takes_more_after_polling() {
    let mut coalescer = Coalescer::new(2);
    for _ in 0..2 {
        coalescer.slot(100).unwrap()[..60].fill(0);
        coalescer.commit(60, 0);
    }
    assert!(coalescer.slot(100).is_none());
    assert!(coalescer.poll().is_some());
    assert!(coalescer.slot(100).is_some());
    coalescer.clear();
    assert!(coalescer.is_empty());
    assert_eq!(coalescer.room(), 2);
    assert!(coalescer.slot(70_000).is_none());
}

#[test]
fn a_single_packet_gets_its_checksum_completed() {
    let recipe = Recipe::new(false, true, 99);
    let right = recipe.build();
    let mut packet = right.clone();
    let partial = pseudo_header(&packet[12..20], 6, u16::try_from(packet.len() - 20).unwrap()).partial();
    packet[36..38].copy_from_slice(&partial);
    let offload =
        Offload { partial_checksum: Some(PartialChecksum { start: 20, offset: 16 }), ..Offload::NONE };
    assert_eq!(split(&packet, offload).unwrap(), [right]);
    let outside =
        Offload { partial_checksum: Some(PartialChecksum { start: 120, offset: 600 }), ..Offload::NONE };
    assert_eq!(split(&packet, outside), Err(SplitError::Checksum));
}

#[test]
fn headers_and_offload_that_do_not_fit_are_refused_by_name() {
    let whole = Recipe::new(false, true, 3000);
    let offload = offload_of(&whole, 1000);
    assert_eq!(
        split(&whole.build(), Offload { kind: OffloadKind::Tcp6, ..offload }),
        Err(SplitError::Version)
    );
    assert_eq!(
        split(&whole.build(), Offload { kind: OffloadKind::Udp, ..offload }),
        Err(SplitError::Protocol)
    );
    assert_eq!(split(&whole.build()[..39], offload), Err(SplitError::Truncated));
    let mut fragment = whole;
    fragment.fragment = true;
    assert_eq!(split(&fragment.build(), offload), Err(SplitError::Protocol));
    assert_eq!(split(&vec![0x45; 65_536], offload), Err(SplitError::Oversize));
}
