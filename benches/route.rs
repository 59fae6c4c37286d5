//! `cargo bench -p adit --bench route`: what a routing decision costs with 1, 100 and 10,000 routers.
//!
//! The peer is the table itself at one router: a decision must not grow with what it does not choose.
#![allow(clippy::print_stdout, reason = "its table is what a bench is for")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use adit_route::router::{HttpHead, RouterSpec, RouterTable};
use http::{HeaderMap, Method};

fn main() {
    let sizes = [1, 100, 10_000].map(|size| (size, table(size)));
    let (method, headers) = (Method::GET, HeaderMap::new());
    let mut medians = Vec::new();
    for (size, table) in &sizes {
        let hosts: Vec<String> = (0..*size).map(|n| format!("app{n}.example.com")).collect();
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let started = Instant::now();
                for host in hosts.iter().cycle().take(DECISIONS) {
                    let found = table.decide(&HttpHead {
                        entry_point: "web",
                        tls: false,
                        host: black_box(host),
                        path: "/api/v1/items/42",
                        query: "",
                        method: &method,
                        headers: &headers,
                        content_length: None,
                        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
                        mesh: None,
                    });
                    assert!(black_box(found).is_some(), "every host has a router");
                }
                started.elapsed().as_secs_f64() * 1e9 / DECISIONS as f64
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        medians.push((*size, rounds[ROUNDS / 2]));
    }
    let one = medians.first().map_or(1.0, |(_, nanoseconds)| *nanoseconds);
    for (size, nanoseconds) in medians {
        println!("{size:>6} routers: {nanoseconds:>6.0} ns a decision, {:.2}x", nanoseconds / one);
    }
}

fn table(size: usize) -> RouterTable<usize> {
    let specs = (0..size).map(|n| RouterSpec {
        name: format!("r{n}"),
        rule: format!("Host(`app{n}.example.com`) && PathPrefix(`/api`)"),
        priority: 0,
        provider: 0,
        is_internal: false,
        entry_points: vec!["web".to_owned()],
        tls: false,
        any_scheme: false,
        target: n,
    });
    let (table, disabled) = RouterTable::build(specs.collect::<Vec<_>>());
    assert!(disabled.is_empty(), "the rules are right");
    table
}

const ROUNDS: usize = 7;
const DECISIONS: usize = 1_000_000;
