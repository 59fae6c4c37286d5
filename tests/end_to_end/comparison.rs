//! What `benches/compare` makes of its measurements: a bench has no tests of its own.

#[path = "../../benches/compare/table.rs"]
#[allow(dead_code, reason = "the report reads the rest")]
mod table;
#[path = "../../benches/compare/version.rs"]
mod version;

use table::{ADIT, Against, Bound, Figure, Sample, Section};
use version::version_in;

fn cost(value: f64, failed: f64) -> Option<Sample> {
    Some(vec![(Figure::CpuSecondsPer100k, value), (Figure::Failed, failed)])
}

/// A section with runs of adit and of two peers, and the outcome of asking to be no dearer than the best of them.
fn outcome(ours: Vec<Option<Sample>>) -> (String, bool) {
    let mut section = Section::new("s", "about");
    ours.into_iter().for_each(|sample| section.add("w", ADIT, sample));
    section.add("w", "dear", cost(4.0, 0.0));
    section.add("w", "cheap", cost(2.0, 0.0));
    section.ask("w", Figure::CpuSecondsPer100k, Against::Best(&["dear", "cheap"]), Bound::AtMost(1.05));
    let outcome = section.outcomes().remove(0).1.expect("it was measured");
    (outcome.measured, outcome.reached)
}

#[test]
fn a_target_is_held_against_the_cheapest_peer() {
    assert_eq!(outcome(vec![cost(2.0, 0.0)]), ("1.00x".to_owned(), true));
    assert_eq!(outcome(vec![cost(3.0, 0.0)]), ("1.50x".to_owned(), false));
}

#[test]
fn a_target_is_missed_by_whoever_failed_a_run_or_a_request() {
    assert_eq!(outcome(vec![cost(1.0, 0.0), None]), ("0.50x, 1 of 2 runs failed".to_owned(), false));
    assert_eq!(outcome(vec![cost(1.0, 3.0)]), ("0.50x, 3 failed".to_owned(), false));
    assert_eq!(outcome(vec![None, None]), ("2 of 2 runs failed".to_owned(), false));
}

#[test]
fn a_version_is_neither_a_date_nor_the_compilers() {
    for (said, version) in [
        ("nginx version: nginx/1.22.1\n", Some("1.22.1")),
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\n", Some("2.6.12-1+deb12u4")),
        ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer\n", Some("4.1.0-3+b2")),
        ("wireguard-go v0.0.20250522\n\nUserspace\n", Some("v0.0.20250522")),
        (
            "rathole\nBuild Timestamp:     2026-11-22T16:57:16.949367141Z\nBuild Version:       0.5.0\n",
            Some("0.5.0"),
        ),
        ("cloudflared version DEV (built unknown)\n", None),
        ("Version:      dev\nGo version:   go1.26.8\nBuilt:        2026-11-22_04:00:00PM\n", None),
    ] {
        assert_eq!(version_in(said).as_deref(), version, "{said}");
    }
}
