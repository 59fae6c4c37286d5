//! Decisions of a table of HTTP routers.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use adit_route::router::{HttpHead, RouterSpec, RouterTable};
use http::{HeaderMap, HeaderValue, Method};

pub(crate) fn one(turns: u32) {
    by_host(1, turns);
}

pub(crate) fn hundred(turns: u32) {
    by_host(100, turns);
}

pub(crate) fn ten_thousand(turns: u32) {
    by_host(10_000, turns);
}

pub(crate) fn expression(turns: u32) {
    let rule = "Host(`app.example.com`) && PathRegexp(`^/api/v[0-9]+/items/[a-z0-9-]+$`) && Header(`x-kind`, `full`)";
    decide(&table([rule.to_owned()]), &["app.example.com".to_owned()], turns);
}

fn by_host(routers: usize, turns: u32) {
    let hosts: Vec<String> = (0..routers).map(|n| format!("app{n}.example.com")).collect();
    decide(&table(hosts.iter().map(|host| format!("Host(`{host}`) && PathPrefix(`/api`)"))), &hosts, turns);
}

fn decide(table: &RouterTable<usize>, hosts: &[String], turns: u32) {
    let mut headers = HeaderMap::new();
    headers.insert("x-kind", HeaderValue::from_static("full"));
    for host in hosts.iter().cycle().take(turns as usize) {
        let found = table.decide(&HttpHead {
            entry_point: "web",
            tls: false,
            host: black_box(host),
            path: "/api/v1/items/42",
            query: "",
            method: &Method::GET,
            headers: &headers,
            content_length: None,
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            mesh: None,
        });
        assert!(black_box(found).is_some(), "every host has a router");
    }
}

fn table(rules: impl IntoIterator<Item = String>) -> RouterTable<usize> {
    let spec = |(n, rule): (usize, String)| RouterSpec {
        name: format!("r{n}"),
        rule,
        priority: 0,
        provider: 0,
        is_internal: false,
        entry_points: vec!["web".to_owned()],
        tls: false,
        any_scheme: false,
        target: n,
    };
    let (table, disabled) = RouterTable::build(rules.into_iter().enumerate().map(spec).collect::<Vec<_>>());
    assert!(disabled.is_empty(), "the rules are right");
    table
}
