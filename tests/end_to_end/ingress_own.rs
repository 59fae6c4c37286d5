//! What adit answers itself on an entry point: its own services, redirects, signals that concern only a part of it.

use std::process::Command;

use crate::support::adit::Adit;
use crate::support::curl::curl;
use crate::support::nginx::Nginx;
use crate::support::{TempFolder, require};
use crate::{TOKEN, start_edge};

#[test]
fn routers_may_name_our_own_services_where_they_were_asked_for() {
    if !require("curl") {
        return;
    }
    let adit = Adit::start(
        "own",
        "entryPoints:\n  web: { address: \"127.0.0.1:0\" }\nadmin: { address: \"127.0.0.1:0\" }\nping: {}\n\
         http:\n  routers:\n    \
         moved: { rule: \"Host(`old.test`)\", service: noop@internal, middlewares: [ moved ] }\n    \
         teapot: { rule: \"Host(`teapot.test`)\", service: noop@internal }\n    \
         ping: { rule: \"Path(`/alive`)\", service: ping@internal }\n    \
         api: { rule: \"PathPrefix(`/api`)\", service: api@internal }\n  \
         middlewares:\n    moved: { redirectRegex: { regex: \"^http://old.test/(.*)\", replacement: \"http://new.test/$1\", permanent: true } }\n",
    );
    let web = adit.entry_point("web");
    let moved = curl(web, "http://old.test/x", &[]);
    assert_eq!(moved.status, 301);
    assert!(moved.headers.contains("http://new.test/x"), "{}", moved.headers);
    assert_eq!(curl(web, "http://teapot.test/", &[]).status, 418);
    let alive = curl(web, "http://a.test/alive", &[]);
    assert_eq!((alive.status, alive.text().as_str()), (200, "OK"));
    assert_eq!(curl(web, "http://a.test/api/overview", &[]).status, 404, "there is no section `api`");
    let problems = adit.status()["problems"].to_string();
    assert!(problems.contains("api@internal") && problems.contains("api: {}"), "{problems}");
}

#[test]
fn the_api_is_served_where_a_router_names_it_and_its_section_is_there() {
    if !require("curl") {
        return;
    }
    let adit = Adit::start(
        "own",
        "entryPoints:\n  web: { address: \"127.0.0.1:0\" }\nadmin: { address: \"127.0.0.1:0\" }\napi: {}\n\
         http:\n  routers:\n    \
         api: { rule: \"PathPrefix(`/api`) || PathPrefix(`/dashboard`)\", service: api@internal }\n  services:\n    \
         s: { loadBalancer: { servers: [ { url: \"http://user:hidden@127.0.0.1:1/\" } ] } }\n\
         tcp:\n  routers:\n    t: { rule: \"HostSNI(`db.test`)\", service: t, tls: { passthrough: true } }\n  services:\n    \
         t: { loadBalancer: { servers: [ { address: \"127.0.0.1:1\" } ] } }\n",
    );
    let web = adit.entry_point("web");
    let raw = curl(web, "http://a.test/api/rawdata", &[]).text();
    let data: serde_json::Value = serde_json::from_str(&raw).expect("JSON");
    assert_eq!(data["tcpRouters"]["t@inline"]["tls"]["passthrough"], true);
    assert_eq!(data["services"]["s@inline"]["loadBalancer"]["servers"][0]["url"], "http://127.0.0.1:1/");
    assert!(!raw.contains("hidden"), "{raw}");
    let one = curl(web, "http://a.test/api/http/routers/api%40inline", &[]);
    assert_eq!(one.status, 200);
    let missing = curl(web, "http://a.test/api/http/routers/zz", &[]);
    assert_eq!((missing.status, missing.text().trim()), (404, r#"{"message":"router not found: zz"}"#));
    assert!(curl(web, "http://a.test/dashboard/", &[]).text().contains("<html"));
    assert_eq!(curl(web, "http://a.test/api/status", &[]).status, 404, "only Traefik's part");
    // A page from elsewhere whose name points here cannot read the admin endpoint.
    let admin = adit.status()["admin"].as_str().unwrap_or_default().parse().expect("an address");
    assert_eq!(curl(admin, "http://evil.test/api/rawdata", &[]).status, 421);
    assert_eq!(curl(admin, "http://localhost/api/rawdata", &[]).status, 200);
}

#[test]
fn a_redirect_does_not_send_a_visitor_to_where_a_trusted_hop_says_it_is() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 reached; }");
    let adit = Adit::start(
        "own",
        &format!(
            "entryPoints:\n  web:\n    address: \"127.0.0.1:0\"\n    forwardedHeaders: {{ trustedIPs: [ 127.0.0.1 ] }}\n    \
             http: {{ redirections: {{ entryPoint: {{ to: \":443\", scheme: https }} }} }}\n\
             admin: {{ address: \"127.0.0.1:0\" }}\nhttp:\n  routers:\n    \
             r: {{ rule: \"Host(`a.test`)\", service: s, priority: 1 }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"{}\" }} ] }} }}\n",
            nginx.url()
        ),
    );
    let web = adit.entry_point("web");
    assert_eq!(curl(web, "http://a.test/", &[]).status, 301);
    assert_eq!(curl(web, "http://a.test/", &["-H", "X-Forwarded-Proto: https"]).text(), "reached");
}

#[test]
fn log_rotation_ends_no_process_that_writes_no_access_log() {
    if !require("kill") {
        return;
    }
    let mut adit = Adit::start(
        "own",
        "admin: { address: \"127.0.0.1:0\" }\nentryPoints:\n  web: { address: \"127.0.0.1:0\" }\n",
    );
    let process = adit.process().id().to_string();
    assert!(Command::new("kill").args(["-USR1", &process]).status().expect("kill runs").success());
    assert_eq!(adit.get("/ping").status, 200);
    assert!(adit.process().ended().is_none());
}

#[test]
fn a_tunnel_serves_files_that_name_the_usual_entry_points_and_tls() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 $uri; }");
    let edge = start_edge("127.0.0.1:0");
    let folder = TempFolder::new("connector");
    folder.write(
        "dynamic.yml",
        format!(
            "http:\n  routers:\n    \
             secure: {{ entryPoints: [ websecure ], rule: \"Host(`a.home.test`)\", service: s, tls: {{}} }}\n    \
             inside: {{ entryPoints: [ internal ], rule: \"Host(`b.home.test`)\", service: s }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"{}\" }} ] }} }}\n",
            nginx.url()
        ),
    );
    let address = edge.edge();
    let configuration = format!(
        "tunnel:\n  token: \"{TOKEN}\"\n  edge: [ \"{address}\", \"{address}\" ]\n  ca: {}\n  connections: 2\n\
         providers: {{ file: {{ filename: dynamic.yml }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n",
        edge.folder().path().join("state/edge-ca.pem").display()
    );
    let connector = Adit::start_in(folder, "connector", &configuration);
    edge.wait_for_connections(2);
    assert_eq!(curl(edge.entry_point("web"), "http://a.home.test/x", &[]).text(), "/x");
    assert_eq!(curl(edge.entry_point("web"), "http://b.home.test/x", &[]).status, 404);
    assert!(connector.status()["problems"].to_string().contains("internal"));
}
