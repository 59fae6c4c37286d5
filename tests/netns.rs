//! The mesh between network namespaces: adit with itself and with other implementations of WireGuard.

#[path = "netns/applications.rs"]
mod applications;
#[path = "netns/bench.rs"]
mod bench;
#[path = "netns/blackhole.rs"]
mod blackhole;
#[path = "netns/floods.rs"]
mod floods;
#[path = "netns/interop.rs"]
mod interop;
#[path = "netns/lanes.rs"]
mod lanes;
#[path = "netns/listeners.rs"]
mod listeners;
#[path = "netns/moves.rs"]
mod moves;
#[path = "netns/netstack.rs"]
mod netstack;
#[path = "netns/owners.rs"]
mod owners;
#[path = "netns/paths.rs"]
mod paths;
#[path = "netns/sites.rs"]
mod sites;
mod support;

use support::netns::{Cable, Engine};
use support::{require, skip};

/// What every case here needs; nothing, with a printed reason, where something is missing.
fn cable(mtu: u32) -> Option<Cable> {
    let programs = ["ip", "curl", "wg", "ping", "nft", "iperf3"];
    programs.iter().all(|program| require(program)).then(|| Cable::lay(mtu))?
}

/// wireguard-go, which Debian has.
fn stock() -> Option<Engine> {
    let engine = Engine::wireguard_go();
    if engine.is_none() {
        skip("wireguard-go is not installed");
    }
    engine
}
