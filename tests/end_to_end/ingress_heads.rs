//! Heads of requests as operators of Traefik know them, and files that come while the process runs.

use std::net::SocketAddr;

use crate::support::adit::Adit;
use crate::support::curl::curl;
use crate::support::nginx::Nginx;
use crate::support::{TempFolder, require, wait_for};

/// A router for everything, and one for content of three bytes.
fn start(nginx: &Nginx, http: &str) -> (Adit, SocketAddr) {
    let url = nginx.url();
    let adit = Adit::start(
        "heads",
        &format!(
            "admin: {{ address: \"127.0.0.1:0\" }}\nentryPoints:\n  web: {{ address: \"127.0.0.1:0\"{http} }}\n\
             http:\n  routers:\n    all: {{ rule: \"PathPrefix(`/`)\", service: s }}\n    \
             three: {{ rule: \"Header(`Content-Length`, `3`)\", service: s, middlewares: [ three ] }}\n  \
             middlewares:\n    three: {{ addPrefix: {{ prefix: /three }} }}\n  \
             services:\n    s: {{ loadBalancer: {{ servers: [ {{ url: \"{url}\" }} ] }} }}\n"
        ),
    );
    let web = adit.entry_point("web");
    (adit, web)
}

#[test]
fn a_question_about_the_server_is_asked_of_no_router() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 $request_uri; }");
    let (_adit, web) = start(&nginx, "");
    let seen = curl(web, "http://a.test/", &["-X", "OPTIONS", "--request-target", "*"]);
    assert_eq!((seen.status, seen.text().as_str()), (200, ""));
    assert_eq!(curl(web, "http://a.test/", &["-X", "OPTIONS"]).text(), "/");
}

#[test]
fn odd_targets_reach_the_server_in_one_spelling() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 $request_uri; }");
    let (_adit, web) = start(&nginx, "");
    let target = |target: &str| curl(web, "http://a.test/", &["--request-target", target]);
    assert_eq!(target("/a<b>`?c#d").text(), "/a%3Cb%3E%60?c%23d");
    assert_eq!(target("/a#b").status, 400);
    assert_eq!(curl(web, "http://a.test/x", &["-d", "abc"]).text(), "/three/x");
    assert_eq!(curl(web, "http://a.test/x", &["-d", "abcd"]).text(), "/x");
}

#[test]
fn heads_may_be_as_much_longer_than_told_as_gos_server_lets_them_be() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 $request_uri; }");
    let (_adit, web) = start(&nginx, ", http: { maxHeaderBytes: 4096 }");
    let with = |bytes: usize| curl(web, "http://a.test/", &["-H", &format!("X-Long: {}", "a".repeat(bytes))]);
    assert_eq!(with(6000).status, 200);
    assert_eq!(with(9000).status, 431);
}

#[test]
fn a_file_that_is_added_to_a_watched_folder_is_served_and_a_lost_folder_changes_nothing() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 $request_uri; }");
    let folder = TempFolder::new("added");
    std::fs::create_dir_all(folder.path().join("dynamic")).expect("a folder is made");
    let adit = Adit::start_in(
        folder,
        "added",
        "entryPoints:\n  web: { address: \"127.0.0.1:0\" }\nproviders: { file: { directory: dynamic } }\n\
         admin: { address: \"127.0.0.1:0\" }\n",
    );
    let web = adit.entry_point("web");
    let route = format!(
        "http:\n  routers:\n    r: {{ rule: \"PathPrefix(`/`)\", service: s }}\n  services:\n    \
         s: {{ loadBalancer: {{ servers: [ {{ url: \"{}\" }} ] }} }}\n",
        nginx.url()
    );
    wait_for("the daemon", || (adit.get("/ready").status == 200).then_some(()));
    std::fs::create_dir(adit.folder().path().join("dynamic/team")).expect("a folder is made");
    adit.folder().write("dynamic/team/r.yml", route);
    let is_served = || curl(web, "http://a.test/", &[]).status == 200;
    wait_for("the new route", || is_served().then_some(()));
    let dynamic = adit.folder().path().join("dynamic");
    std::fs::rename(&dynamic, adit.folder().path().join("away")).expect("a folder is moved");
    let problems = || adit.status()["problems"].to_string();
    wait_for("the problem", || problems().contains("stays in force").then_some(()));
    assert!(is_served());
}
