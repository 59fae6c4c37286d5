//! What happens when a hop fails, and when it comes back.

use crate::support::curl::curl;
use crate::support::load::{Load, Outcome};
use crate::support::nginx::Nginx;
use crate::support::{free_udp_port, require, wait_for};
use crate::{start_connector, start_edge};

#[test]
fn each_failure_has_its_status_and_names_the_hop() {
    if !require("curl") {
        return;
    }
    let edge = start_edge("127.0.0.1:0");
    let web = edge.entry_point("web");
    let seen = curl(web, "http://nobody.test/", &[]);
    assert_eq!(seen.status, 404, "{seen:?}");
    assert!(seen.text().contains("unknown_host"), "{}", seen.text());
    let seen = curl(web, "http://a.home.test/", &["-H", "Accept: text/html"]);
    assert_eq!(seen.status, 530, "{seen:?}");
    assert!(seen.text().contains("The tunnel to this service is down"), "{}", seen.text());
    // A port that nobody listens on.
    let connector = start_connector(&edge, "http://127.0.0.1:1");
    let seen = curl(web, "http://a.home.test/", &[]);
    assert_eq!(seen.status, 502, "{seen:?}");
    assert!(seen.text().contains("origin_failed"), "{}", seen.text());
    assert!(!seen.text().contains("127.0.0.1:1"), "the inside's addresses stay inside: {}", seen.text());
    assert_eq!(connector.stop(), Some(0));
}

#[test]
fn slow_a_killed_connector_breaks_only_what_it_carried_and_comes_back() {
    if !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 ok; }");
    let edge = start_edge("127.0.0.1:0");
    let mut connector = start_connector(&edge, &nginx.url());
    let load = Load::start(edge.entry_point("web"), "a.home.test", "/", 8);
    wait_for("some load", || (edge.metric("adit_requests_total{class=\"2xx\"}") > 50.0).then_some(()));
    connector.process().signal("KILL");
    connector.process().wait();
    // A lost connector is noticed within its idle timeout of 5 s.
    wait_for("the edge to notice", || {
        (edge.status()["edge"]["tunnels"][0]["connections"].as_array()?.is_empty()).then_some(())
    });
    let _back = start_connector(&edge, &nginx.url());
    let before = edge.metric("adit_requests_total{class=\"2xx\"}");
    wait_for("answers again", || {
        (edge.metric("adit_requests_total{class=\"2xx\"}") > before + 50.0).then_some(())
    });
    let outcomes = load.finish();
    let odd: Vec<_> = outcomes.iter().filter(|o| !matches!(o, Outcome::Answered(200 | 502 | 530))).collect();
    assert!(odd.is_empty(), "every request is answered, if only by a page: {odd:?}");
}

#[test]
fn slow_a_killed_edge_is_found_again_by_its_connector() {
    if !require("nginx") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 ok; }");
    let listen = format!("127.0.0.1:{}", free_udp_port());
    let mut edge = start_edge(&listen);
    let connector = start_connector(&edge, &nginx.url());
    let state =
        std::fs::read(edge.folder().path().join("state/edge-ca.key")).expect("the authority's key is kept");
    let authority =
        std::fs::read(edge.folder().path().join("state/edge-ca.pem")).expect("the authority is kept");
    edge.process().signal("KILL");
    edge.process().wait();
    let folder = crate::TempFolder::new("edge");
    std::fs::create_dir(folder.path().join("state")).expect("a folder is made");
    folder.write("state/edge-ca.key", state);
    folder.write("state/edge-ca.pem", authority);
    let again = crate::Adit::start_in(folder, "edge", &crate::edge_configuration(&listen));
    again.wait_for_connections(2);
    let load = Load::start(again.entry_point("web"), "a.home.test", "/", 2);
    wait_for("answers", || (again.metric("adit_requests_total{class=\"2xx\"}") > 20.0).then_some(()));
    assert!(load.finish().iter().all(|outcome| *outcome == Outcome::Answered(200)));
    assert_eq!(connector.stop(), Some(0));
}
