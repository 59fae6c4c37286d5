//! What other programs read of the ingress: Traefik's metrics, `Alt-Svc`, and WebSockets that HTTP/2 opens.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::ingress::{Ingress, ask, serve};
use crate::support::adit::Adit;
use crate::support::certificates::Certificates;
use crate::support::curl::curl;
use crate::support::nginx::Nginx;
use crate::support::visitor::Visitor;
use crate::support::{require, require_python_with, wait_for};

#[test]
fn open_connections_are_counted_by_entry_point_and_protocol() {
    let mut ingress = Ingress::to("http://127.0.0.1:1");
    ingress.more.push_str("metrics: { prometheus: {} }\n");
    let adit = ingress.start();
    let open = || adit.metric("traefik_open_connections{entrypoint=\"web\",protocol=\"TCP\"}");
    assert_eq!(open(), 0.0);
    let mut visitors: Vec<Visitor> =
        (0..3).map(|_| Visitor::connect(adit.entry_point("web")).expect("accepted")).collect();
    assert_eq!(visitors[0].get("a.test", "/").expect("an answer").status, 502);
    wait_for("three open connections", || (open() == 3.0).then_some(()));
    drop(visitors);
    wait_for("none", || (open() == 0.0).then_some(()));
}

#[test]
fn alt_svc_names_the_port_that_the_system_chose() {
    if !require("curl") {
        return;
    }
    let certificates = Certificates::for_names(&["web.test"]);
    let adit = Ingress::to("http://127.0.0.1:1").with_tls(&certificates).with("http3: {}").start();
    let web = adit.entry_point("web");
    let seen = curl(web, "https://web.test/", &["--insecure"]);
    let wanted = format!("alt-svc: h3=\":{}\"", web.port());
    assert!(seen.headers.to_lowercase().contains(&wanted), "{wanted}: {seen:?}");
}

#[test]
fn every_attempt_counts_as_a_request_of_its_service() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 503; }");
    let configuration = format!(
        "entryPoints: {{ web: {{ address: \"127.0.0.1:0\" }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         metrics: {{ prometheus: {{}} }}\nhttp:\n  routers:\n    \
         r: {{ rule: \"PathPrefix(`/`)\", service: s, middlewares: [ again ] }}\n  middlewares:\n    \
         again: {{ retry: {{ attempts: 3, status: [ \"503\" ] }} }}\n  services:\n    \
         s: {{ loadBalancer: {{ servers: [ {{ url: \"{}\" }} ] }} }}\n",
        nginx.url()
    );
    let adit = Adit::start("attempts", &configuration);
    assert_eq!(curl(adit.entry_point("web"), "http://a.test/", &[]).status, 503);
    let sum = |metric: &str| {
        let metrics = adit.get("/metrics").body;
        let lines = metrics.lines().filter(|line| line.starts_with(metric));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    wait_for("the request to be counted", || {
        (sum("traefik_entrypoint_requests_total{") == 1.0).then_some(())
    });
    assert_eq!(sum("traefik_service_requests_total{"), 3.0);
    assert_eq!(sum("traefik_service_retries_total{"), 2.0);
}

#[test]
fn a_websocket_over_http2_opens_only_where_the_origin_proves_that_it_speaks_it() {
    let Some(python) = require_python_with("hpack, websockets") else { return };
    let (_server, address) = serve(&python, "websocket_echo.py", &[]);
    let adit = Ingress::to(&format!("http://{address}")).start();
    let seen = ask(&python, "h2_websocket.py", &[&adit.entry_point("web").to_string()]);
    assert_eq!((&seen["status"], &seen["echo"]), (&200.into(), &"hello".into()), "{seen}");
    let liar = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = liar.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in liar.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: bm90IHRoZSBhbnN3ZXI=\r\n\r\n",
            );
        }
    });
    let adit = Ingress::to(&format!("http://{address}")).start();
    let seen = ask(&python, "h2_websocket.py", &[&adit.entry_point("web").to_string()]);
    assert_eq!(seen["status"], 502, "{seen}");
    assert_eq!(adit.metric("adit_requests_failed_total{reason=\"websocket_accept\"}"), 1.0);
}
