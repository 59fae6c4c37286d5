//! The fuzz target's function with commands made up by proptest: what needs no fuzzer to be found is found by `cargo test`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, unreachable_pub)]

#[path = "../../../tests/fuzz/src/mesh.rs"]
mod target;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_series_of_commands_breaks_the_session(
        commands in prop::collection::vec(
            (any::<u8>(), prop::collection::vec(prop_oneof![Just(0x45_u8), Just(0x60), Just(0), any::<u8>()], 0..120)),
            0..30,
        ),
    ) {
        let mut data = Vec::new();
        for (kind, bytes) in commands {
            data.push(kind);
            data.push(u8::try_from(bytes.len()).unwrap());
            data.extend(bytes);
        }
        target::mesh(&data);
    }

    #[test]
    fn no_damage_to_real_packets_breaks_the_session(
        damage in prop::collection::vec((2..4_u8, 0..4_usize, prop::collection::vec((0..70_usize, any::<u8>()), 0..6)), 1..20),
    ) {
        let mut data = Vec::new();
        for (kind, which, changes) in damage {
            let mut bytes = if kind == 3 { vec![which as u8, 100, 20, 16] } else { Vec::new() };
            let start = bytes.len();
            bytes.extend(real_packet(which));
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(start + at) {
                    *byte = value;
                }
            }
            data.extend([kind, u8::try_from(bytes.len()).unwrap()]);
            data.extend(bytes);
        }
        target::mesh(&data);
    }
}

/// UDP and TCP over both versions.
fn real_packet(which: usize) -> Vec<u8> {
    let (v6, tcp) = (which % 2 == 1, which >= 2);
    let mut transport = vec![0x10, 0, 0x20, 0, 0, 30, 0, 0];
    if tcp {
        transport.extend([0, 0, 0, 1, 0x60, 0x02, 1, 0, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
    }
    transport.resize(30, 0x5a);
    let mut packet = vec![0; if v6 { 40 } else { 20 }];
    let total = u8::try_from(packet.len() + transport.len()).unwrap();
    let protocol = if tcp { 6 } else { 17 };
    if v6 {
        (packet[0], packet[5], packet[6], packet[7]) = (0x60, 30, protocol, 64);
        (packet[8], packet[23], packet[24], packet[39]) = (0xfd, 1, 0xfd, 2);
    } else {
        (packet[0], packet[3], packet[6], packet[8], packet[9]) = (0x45, total, 0x40, 64, protocol);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    }
    packet.extend(transport);
    packet
}
