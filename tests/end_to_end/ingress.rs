//! The ingress with real servers behind it: providers, reload, TLS, TCP, UDP, and what comes through the tunnel.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use crate::support::adit::Adit;
use crate::support::certificates::Certificates;
use crate::support::curl::curl;
use crate::support::nginx::Nginx;
use crate::support::{TempFolder, require, wait_for};
use crate::{TOKEN, start_edge};

fn configuration(provider: &str) -> String {
    format!(
        "entryPoints:\n  web: {{ address: \"127.0.0.1:0\" }}\nproviders: {{ file: {{ {provider} }} }}\n\
         admin: {{ address: \"127.0.0.1:0\" }}\n"
    )
}

fn router(name: &str, rule: &str, url: &str) -> String {
    format!(
        "http:\n  routers:\n    {name}: {{ rule: \"{rule}\", service: {name} }}\n  services:\n    \
         {name}: {{ loadBalancer: {{ servers: [ {{ url: \"{url}\" }} ] }} }}\n"
    )
}

#[test]
fn a_bad_file_and_a_bad_router_are_disabled_alone_and_say_why() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 \"$request_uri\"; }");
    let folder = TempFolder::new("ingress");
    std::fs::create_dir(folder.path().join("dynamic")).expect("a folder is made");
    folder.write("dynamic/good.yml", router("good", "PathPrefix(`/good`)", &nginx.url()));
    folder.write("dynamic/bad.yml", "http:\n  routerz: {}\n");
    let odd = router("odd", "Path(`", &nginx.url());
    folder.write(
        "dynamic/stray.yml",
        "tcp:\n  routers:\n    stray: { entryPoints: [ nowhere ], rule: \"HostSNI(`*`)\", service: s }\n  \
         services:\n    s: { loadBalancer: { servers: [ { address: \"127.0.0.1:1\" } ] } }\n",
    );
    folder.write("dynamic/odd.yml", odd);
    let mut adit = Adit::start_in(folder, "ingress", &configuration("directory: dynamic"));
    let web = adit.entry_point("web");
    assert_eq!(curl(web, "http://a.test/good/x?y", &[]).text(), "/good/x?y");
    let missing = curl(web, "http://a.test/other", &[]);
    assert_eq!((missing.status, missing.text().as_str()), (404, "404 page not found\n"));
    let problems = adit.status()["problems"].to_string();
    assert!(problems.contains("bad.yml:2:3") && problems.contains("odd@file"), "{problems}");
    assert!(problems.contains("stray@file") && problems.contains("nowhere"), "{problems}");
    // Mended, and taken by watching alone.
    let mended = router("odd", "Path(`/odd`)", &nginx.url());
    adit.folder().write("dynamic/odd.yml", mended);
    wait_for("the mended router", || (curl(web, "http://a.test/odd", &[]).status == 200).then_some(()));
    // A file that breaks keeps what it had.
    adit.folder().write("dynamic/good.yml", "http: [");
    wait_for("the fault", || adit.status()["problems"].to_string().contains("good.yml").then_some(()));
    assert_eq!(curl(web, "http://a.test/good", &[]).status, 200);
    assert!(adit.process().ended().is_none());
}

#[test]
fn state_of_untouched_objects_survives_a_reload() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 ok; }");
    let folder = TempFolder::new("ingress");
    let dynamic = |more: &str| {
        format!(
            "http:\n  routers:\n    r: {{ rule: \"PathPrefix(`/`)\", service: s, middlewares: [ m ] }}\n{more}  \
             middlewares:\n    m: {{ rateLimit: {{ average: 1, period: 1h, burst: 2 }} }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"{}\" }} ] }} }}\n",
            nginx.url()
        )
    };
    folder.write("dynamic.yml", dynamic(""));
    let adit = Adit::start_in(folder, "ingress", &configuration("filename: dynamic.yml"));
    let ask = || curl(adit.entry_point("web"), "http://a.test/", &[]).status;
    assert_eq!((ask(), ask(), ask()), (200, 200, 429));
    adit.folder().write("dynamic.yml", dynamic("    q: { rule: \"Path(`/q`)\", service: s }\n"));
    wait_for("the second router", || adit.get("/api/http/routers").body.contains("q@file").then_some(()));
    assert_eq!(ask(), 429, "the bucket is the same");
}

#[test]
fn one_port_serves_https_by_name_passthrough_and_plain_tcp() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let own = Certificates::for_names(&["web.test"]);
    let other = Certificates::for_names(&["deep.test"]);
    let nginx = Nginx::start("location / { return 200 plain; }");
    let port = crate::support::free_tcp_port();
    let deep = Nginx::start(&format!(
        "listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {};\nlocation / {{ return 200 deep; }}",
        other.certificate().display(),
        other.key().display()
    ));
    let folder = TempFolder::new("ingress");
    folder.write(
        "dynamic.yml",
        format!(
            "http:\n  routers:\n    web: {{ rule: \"Host(`web.test`)\", service: s, tls: {{}} }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"{}\" }} ] }} }}\ntcp:\n  routers:\n    \
             deep: {{ rule: \"HostSNI(`deep.test`)\", service: t, tls: {{ passthrough: true }} }}\n  services:\n    \
             t: {{ loadBalancer: {{ servers: [ {{ address: \"127.0.0.1:{port}\" }} ] }} }}\ntls:\n  certificates:\n    \
             - {{ certFile: {}, keyFile: {} }}\n",
            nginx.url(),
            own.certificate().display(),
            own.key().display()
        ),
    );
    let adit = Adit::start_in(folder, "ingress", &configuration("filename: dynamic.yml"));
    let web = adit.entry_point("web");
    let authority = own.authority().display().to_string();
    let seen = curl(web, "https://web.test/", &["--cacert", &authority]);
    assert_eq!((seen.text().as_str(), seen.version.as_str()), ("plain", "2"), "{seen:?}");
    let authority = other.authority().display().to_string();
    let seen = curl(web, "https://deep.test/", &["--cacert", &authority, "--http1.1"]);
    assert_eq!(seen.text(), "deep", "the server behind ended TLS itself: {seen:?}");
    assert_eq!(curl(web, "http://web.test/", &[]).status, 404, "a TLS router takes no plain visitor");
    drop(deep);
}

#[test]
fn tcp_and_udp_routers_carry_bytes() {
    let folder = TempFolder::new("ingress");
    let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let (tcp, udp) = (server.local_addr().expect("bound"), datagrams.local_addr().expect("bound"));
    folder.write(
        "dynamic.yml",
        format!(
            "tcp:\n  routers:\n    t: {{ entryPoints: [ tcp ], rule: \"HostSNI(`*`)\", service: t }}\n  services:\n    \
             t: {{ loadBalancer: {{ servers: [ {{ address: \"{tcp}\" }} ] }} }}\nudp:\n  routers:\n    \
             u: {{ entryPoints: [ udp ], service: u }}\n  services:\n    \
             u: {{ loadBalancer: {{ servers: [ {{ address: \"{udp}\" }} ] }} }}\n"
        ),
    );
    let configuration = "entryPoints:\n  tcp: { address: \"127.0.0.1:0\" }\n  udp: { address: \"127.0.0.1:0/udp\" }\n\
         providers: { file: { filename: dynamic.yml } }\nadmin: { address: \"127.0.0.1:0\" }\n";
    let adit = Adit::start_in(folder, "ingress", configuration);
    std::thread::spawn(move || {
        // The server speaks first, hears until the visitor's end, and still answers: both half-closes cross.
        let (mut stream, _) = server.accept().expect("a connection");
        stream.write_all(b"hello ").expect("written");
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).expect("the visitor's end comes through");
        stream.write_all(&heard).expect("written");
    });
    let mut visitor = TcpStream::connect(adit.entry_point("tcp")).expect("the entry point listens");
    let mut first = [0; 6];
    visitor.read_exact(&mut first).expect("the server speaks first");
    visitor.write_all(b"visitor").expect("written");
    visitor.shutdown(std::net::Shutdown::Write).expect("half closed");
    let mut rest = String::new();
    visitor.read_to_string(&mut rest).expect("the answer");
    assert_eq!((&first, rest.as_str()), (b"hello ", "visitor"));
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..length], from);
        }
    });
    let visitor = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    visitor.set_read_timeout(Some(crate::support::PATIENCE)).expect("a timeout");
    visitor.send_to(b"ping", adit.entry_point("udp")).expect("sent");
    let mut buffer = [0; 16];
    let length = visitor.recv(&mut buffer).expect("an answer");
    assert_eq!(&buffer[..length], b"ping");
}

#[test]
fn what_comes_through_the_tunnel_meets_the_same_routers_with_its_true_client() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start(
        "location / { return 200 \"$http_x_forwarded_for $http_x_real_ip $http_x_forwarded_proto $http_host $uri\"; }",
    );
    let edge = start_edge("127.0.0.1:0");
    let folder = TempFolder::new("connector");
    let dynamic = router("r", "Host(`a.home.test`) && ClientIP(`127.0.0.1`)", &nginx.url())
        .replace("service: r }", "service: r, middlewares: [ strip ] }");
    folder.write(
        "dynamic.yml",
        format!("{dynamic}  middlewares:\n    strip: {{ stripPrefix: {{ prefixes: [ /api ] }} }}\n"),
    );
    let address = edge.edge();
    let configuration = format!(
        "tunnel:\n  token: \"{TOKEN}\"\n  edge: [ \"{address}\", \"{address}\" ]\n  ca: {}\n  connections: 2\n\
         providers: {{ file: {{ filename: dynamic.yml }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n",
        edge.folder().path().join("state/edge-ca.pem").display()
    );
    let _connector = Adit::start_in(folder, "connector", &configuration);
    edge.wait_for_connections(2);
    let seen = curl(edge.entry_point("web"), "http://a.home.test/api/x", &["-H", "X-Forwarded-For: 6.6.6.6"]);
    assert_eq!(seen.text(), "127.0.0.1 127.0.0.1 http a.home.test /x", "{seen:?}");
    assert_eq!(curl(edge.entry_point("web"), "http://b.home.test/", &[]).status, 404);
}

#[test]
fn an_entry_point_redirects_to_another_but_not_challenges() {
    if !require("curl") {
        return;
    }
    let configuration = "entryPoints:\n  web:\n    address: \"127.0.0.1:0\"\n    http: { redirections: { entryPoint: { to: websecure } } }\n  \
         websecure: { address: \"127.0.0.1:18443\" }\nadmin: { address: \"127.0.0.1:0\" }\n\
         http:\n  routers:\n    r: { rule: \"PathPrefix(`/`)\", service: s }\n  services:\n    \
         s: { loadBalancer: { servers: [ { url: \"http://127.0.0.1:1\" } ] } }\n";
    let port = crate::support::free_tcp_port();
    let adit = Adit::start("ingress", &configuration.replace("18443", &port.to_string()));
    let web = adit.entry_point("web");
    let seen = curl(web, "http://a.test:80/x?y", &[]);
    assert_eq!(seen.status, 301, "{seen:?}");
    assert!(seen.headers.contains(&format!("Location: https://a.test:{port}/x?y")), "{seen:?}");
    assert_eq!(curl(web, "http://a.test/.well-known/acme-challenge/t", &[]).status, 502);
}

#[test]
fn http3_is_offered_and_serves_the_same_routers() {
    let Some(python) = crate::support::require_python() else { return };
    if !require("nginx") || !require("curl") {
        return;
    }
    let certificates = Certificates::for_names(&["web.test"]);
    let nginx = Nginx::start(
        "client_max_body_size 0;\nlocation / { return 200 \"$uri $http_x_forwarded_proto $http_x_forwarded_for\"; }",
    );
    let port = crate::support::free_tcp_port();
    let configuration = format!(
        "entryPoints:\n  web: {{ address: \"127.0.0.1:{port}\", http: {{ tls: {{}} }}, http3: {{ advertisedPort: 443 }} }}\n\
         admin: {{ address: \"127.0.0.1:0\" }}\n{}tls:\n  certificates:\n    - {{ certFile: {}, keyFile: {} }}\n",
        router("r", "Host(`web.test`)", &nginx.url()),
        certificates.certificate().display(),
        certificates.key().display()
    );
    let adit = Adit::start("ingress", &configuration);
    let web = adit.entry_point("web");
    let authority = certificates.authority().display().to_string();
    let seen = curl(web, "https://web.test/x", &["--cacert", &authority]);
    assert!(seen.headers.to_lowercase().contains("alt-svc: h3=\":443\""), "{seen:?}");
    let ask = |arguments: &[&str]| {
        let script = crate::support::project_root().join("tests/peer/h3_client.py");
        let output = std::process::Command::new(&python)
            .arg(script)
            .arg(web.to_string())
            .args(arguments)
            .output()
            .expect("python runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str::<serde_json::Value>(&text)
            .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    };
    let seen = ask(&["web.test", "GET", "/y", "0"]);
    let length = "/y https 127.0.0.1".len();
    assert_eq!((&seen["status"], &seen["length"]), (&200.into(), &length.into()), "{seen}");
    let seen = ask(&["web.test", "POST", "/z", "3000000"]);
    assert_eq!(seen["status"], 200, "{seen}");
    assert_eq!(ask(&["other.test", "GET", "/", "0"])["status"], 404);
}

#[test]
fn a_stopping_entry_point_still_accepts_for_its_grace_and_ping_says_so() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 ok; }");
    let configuration = format!(
        "entryPoints:\n  web:\n    address: \"127.0.0.1:0\"\n    \
         transport: {{ lifeCycle: {{ requestAcceptGraceTimeout: 3s, graceTimeOut: 5s }} }}\n\
         admin: {{ address: \"127.0.0.1:0\" }}\n{}",
        router("r", "PathPrefix(`/`)", &nginx.url())
    );
    let mut adit = Adit::start("ingress", &configuration);
    let web = adit.entry_point("web");
    assert_eq!(adit.get("/ping").status, 200);
    adit.process().signal("TERM");
    wait_for("a ping that says so", || (adit.get("/ping").status == 503).then_some(()));
    assert_eq!(curl(web, "http://a.test/", &[]).text(), "ok");
    assert_eq!(adit.process().wait().code(), Some(0));
}
