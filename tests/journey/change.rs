//! Journeys during which something changes: ends die, configurations are replaced, processes drain.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::daemon::{Daemon, edge_yaml};
use crate::support::origin::Origin;
use crate::support::visitor::{Visitor, visit};
use crate::support::wait_for;
use crate::way::{HOST, HOSTNAMES, Kind, Way, binary, certificates, connect};

/// Requests that must have gone through on each side of a change.
const REQUESTS_AROUND: usize = 40;

/// Visitors that come one after another in four lines until told to stop.
struct Load {
    stop: AtomicBool,
    good: AtomicUsize,
    bad: Mutex<Vec<String>>,
}

impl Load {
    fn new() -> Self {
        Self { stop: AtomicBool::new(false), good: AtomicUsize::new(0), bad: Mutex::new(Vec::new()) }
    }

    /// Runs `during` while visitors keep coming, and returns what went wrong for them.
    fn around(web: SocketAddr, during: impl FnOnce(&Self)) -> Vec<String> {
        let load = Self::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| load.visit_until_stopped(web));
            }
            load.wait_for_good("before");
            during(&load);
            load.wait_for_good("after");
            load.stop.store(true, Ordering::Relaxed);
        });
        load.bad.into_inner().unwrap_or_default()
    }

    fn visit_until_stopped(&self, web: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            match visit(web, HOST, "/download/20000") {
                Ok(seen) if (seen.status, seen.bytes, seen.patterned) == (200, 20_000, true) => {
                    self.good.fetch_add(1, Ordering::Relaxed);
                }
                other => {
                    let text = format!("{other:?}");
                    self.bad.lock().expect("nobody panics with it").push(text.chars().take(200).collect());
                }
            }
        }
    }

    /// Waits for more good requests than there are now.
    fn wait_for_good(&self, when: &str) {
        let wanted = self.good.load(Ordering::Relaxed) + REQUESTS_AROUND;
        wait_for(&format!("requests to get through {when} the change"), || {
            (self.good.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    }
}

#[test]
fn slow_a_killed_connector_is_replaced_by_the_other_and_comes_back() {
    let origin = Origin::start();
    let Some(mut way) = Way::start(Kind::Adit, &origin.url()) else { return };
    let mut second = way.another_connector("1s");
    second.wait_for_line("Registered tunnel connection");
    let web = way.web;
    let failures = Load::around(web, |load| {
        way.connector.signal("KILL");
        load.wait_for_good("right after");
        way.connector = way.another_connector("1s");
    });
    // Those that were under way in the killed process, and those sent to it until its silence is noticed.
    assert!(
        failures.iter().all(|failure| failure.contains("status: 5") || failure.contains("Err(")),
        "{failures:?}"
    );
}

#[test]
fn slow_an_edge_that_comes_back_is_found_again() {
    let origin = Origin::start();
    let certificates = certificates();
    let mut edge = Daemon::start(&edge_yaml(&certificates, "127.0.0.1:0", HOSTNAMES));
    let address = edge.address("connectors", "");
    let connector =
        connect(&binary(Kind::Adit).expect("adit is built"), &certificates, address, &origin.url(), "1s");
    let through =
        |web| wait_for("a request to get through", || visit(web, HOST, "/").ok().filter(|s| s.status == 200));
    through(edge.address("visitors", "entry point web"));
    edge.process().signal("KILL");
    edge.process().wait();
    drop(edge);
    let mut edge = Daemon::start(&edge_yaml(&certificates, &address.to_string(), HOSTNAMES));
    through(edge.address("visitors", "entry point web"));
    drop(connector);
}

#[test]
fn slow_a_connector_that_drains_fails_no_request() {
    let origin = Origin::start();
    let Some(mut way) = Way::start(Kind::Adit, &origin.url()) else { return };
    let mut second = way.another_connector("30s");
    second.wait_for_line("Registered tunnel connection");
    let failures = Load::around(way.web, |_| {
        way.connector.signal("TERM");
        assert_eq!(way.connector.wait().code(), Some(0));
    });
    assert!(failures.is_empty(), "{} failed, such as {}", failures.len(), failures[0]);
}

#[test]
fn slow_a_reload_fails_no_request_and_a_bad_one_changes_nothing() {
    let origin = Origin::start();
    let Some(mut way) = Way::start(Kind::Adit, &origin.url()) else { return };
    let more = edge_yaml(&way.certificates, "127.0.0.1:0", "\"*.home.example\", \"other.example\"");
    let failures = Load::around(way.web, |load| {
        way.edge.rewrite("edge: { listen: nonsense }\n");
        way.edge.process().signal("HUP");
        load.wait_for_good("after the bad reload");
        way.edge.rewrite(&more);
        way.edge.process().signal("HUP");
        way.edge.process().wait_for_line("configuration reloaded");
    });
    assert!(failures.is_empty(), "{} failed, such as {}", failures.len(), failures[0]);
    // Within what the tunnel is now allowed to serve.
    wait_for("the new host to be served", || {
        visit(way.web, "other.example", "/").ok().filter(|seen| seen.status == 200)
    });
}

#[test]
fn slow_an_edge_that_drains_finishes_what_it_has() {
    let origin = Origin::start();
    let Some(mut way) = Way::start(Kind::Adit, &origin.url()) else { return };
    let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
    let web = way.web;
    std::thread::scope(|scope| {
        let held = scope.spawn(move || visitor.get(HOST, "/hold", ""));
        wait_for("the origin to have the request", || {
            origin.seen().iter().any(|seen| seen.head.contains("/hold")).then_some(())
        });
        way.edge.process().signal("TERM");
        wait_for("the listener to close", || visit(web, HOST, "/").is_err().then_some(()));
        origin.release();
        let held =
            held.join().expect("the visitor does not panic").expect("the request in flight is answered");
        assert_eq!((held.status, held.text.as_str()), (200, "held"));
    });
    assert_eq!(way.edge.process().wait().code(), Some(0));
}

#[test]
fn slow_a_visitor_who_leaves_frees_the_origin() {
    let origin = Origin::start();
    let Some(way) = Way::start(Kind::Adit, &origin.url()) else { return };
    let mut visitor = Visitor::connect(way.web).expect("the edge accepts");
    visitor
        .write(format!("GET /endless HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())
        .expect("the edge reads");
    wait_for("the origin to write", || (origin.endless_bytes() > 0).then_some(()));
    drop(visitor);
    wait_for("the origin to be told", || origin.endless_ended().then_some(()));
    way.wait_until_through();
}
