//! TLS options that ask for client certificates, and routers that are at fault on one entry point only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::adit::Adit;
use crate::support::certificates::Certificates;
use crate::support::curl::curl;
use crate::support::nginx::Nginx;
use crate::support::{TempFolder, require, wait_for};

/// Two TLS entry points, certificates for all names, and TLS options `mutual`.
fn configuration(certificates: &Certificates) -> String {
    format!(
        "entryPoints:\n  web: {{ address: \"127.0.0.1:0\" }}\n  other: {{ address: \"127.0.0.1:0\" }}\n\
         providers: {{ file: {{ filename: dynamic.yml }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         tls:\n  certificates: [ {{ certFile: {}, keyFile: {} }} ]\n",
        certificates.certificate().display(),
        certificates.key().display()
    )
}

fn dynamic(routers: &str, url: &str, authority: &Certificates) -> String {
    format!(
        "http:\n  routers:\n{routers}  services:\n    \
         s: {{ loadBalancer: {{ servers: [ {{ url: \"{url}\" }} ] }} }}\n\
         tls:\n  options:\n    mutual:\n      clientAuth: {{ caFiles: [ {} ], clientAuthType: RequireAndVerifyClientCert }}\n    \
         broken:\n      clientAuth: {{ caFiles: [ /does/not/exist.pem ], clientAuthType: RequireAndVerifyClientCert }}\n",
        authority.authority().display()
    )
}

#[test]
fn client_certificates_cannot_be_stepped_around() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 reached; }");
    let certificates = Certificates::for_names(&["s.test", "ok.test", "z.test", "h.test", "late.test"]);
    let folder = TempFolder::new("mutual");
    let routers = "    \
         branch: { entryPoints: [ web ], rule: \"Host(`s.test`) || PathPrefix(`/secret`)\", service: s, tls: { options: mutual } }\n    \
         own: { entryPoints: [ web ], rule: \"Host(`h.test`)\", service: s, tls: { options: mutual } }\n    \
         same: { entryPoints: [ other ], rule: \"Host(`h.test`)\", service: s, tls: {} }\n    \
         unknown: { entryPoints: [ web ], rule: \"Path(`/unknown`)\", service: s, tls: { options: nope } }\n    \
         broken: { entryPoints: [ web ], rule: \"Host(`z.test`) && Path(`/broken`)\", service: s, tls: { options: broken } }\n    \
         late: { entryPoints: [ web ], rule: \"Host(`late.test`)\", service: s, tls: {} }\n    \
         ok: { entryPoints: [ web ], rule: \"Host(`ok.test`)\", service: s, tls: {} }\n";
    folder.write("dynamic.yml", dynamic(routers, &nginx.url(), &certificates));
    let mut adit = Adit::start_in(folder, "mutual", &configuration(&certificates));
    let (web, other) = (adit.entry_point("web"), adit.entry_point("other"));
    let status = |url: &str, host: &str| curl(web, url, &["-k", "-H", host]).status;
    assert_eq!(status("https://ok.test/", "Host: ok.test"), 200);
    assert_eq!(status("https://ok.test/secret", "Host: q.test"), 421, "a branch of the rule without a host");
    assert_eq!(status("https://ok.test/", "Host: h.test"), 421, "a host with other options elsewhere");
    assert_eq!(curl(other, "https://h.test/", &["-k"]).status, 200);
    assert_eq!(status("https://ok.test/unknown", "Host: q.test"), 404, "options that do not exist");
    assert_eq!(status("https://h.test/", "Host: h.test"), 0, "no certificate, no handshake");
    assert_eq!(status("https://z.test/broken", "Host: z.test"), 0, "options that cannot be used");
    let api = router_status(&adit, "broken");
    assert_eq!(api, "disabled");

    // A connection from before a reload is not one that was asked.
    let mut kept = connect(web, "late.test", &certificates);
    assert!(ask(&mut kept, "late.test").starts_with("HTTP/1.1 200"));
    let later =
        routers.replace("service: s, tls: {} }\n    ok:", "service: s, tls: { options: mutual } }\n    ok:");
    adit.folder().write("dynamic.yml", dynamic(&later, &nginx.url(), &certificates));
    wait_for("the reload", || (status("https://late.test/", "Host: late.test") == 0).then_some(()));
    assert!(ask(&mut kept, "late.test").starts_with("HTTP/1.1 421"));
    assert!(adit.process().ended().is_none());
}

#[test]
fn a_router_is_taken_off_the_entry_points_concerned_alone() {
    if !require("nginx") || !require("curl") {
        return;
    }
    let nginx = Nginx::start("location / { return 200 reached; }");
    let folder = TempFolder::new("partial");
    folder.write(
        "dynamic.yml",
        format!(
            "http:\n  routers:\n    some: {{ entryPoints: [ a, nowhere ], rule: \"Host(`some.test`)\", service: s }}\n    \
             every: {{ rule: \"Host(`every.test`)\", service: s }}\n    \
             none: {{ entryPoints: [ nowhere ], rule: \"Host(`none.test`)\", service: s }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [ {{ url: \"{}\" }} ] }} }}\n",
            nginx.url()
        ),
    );
    let adit = Adit::start_in(
        folder,
        "partial",
        "entryPoints:\n  a: { address: \"127.0.0.1:0\" }\n  \
         m: { address: \"127.0.0.1:0\", http: { middlewares: [ gone@file ] } }\n  z: { address: \"127.0.0.1:0\" }\n\
         providers: { file: { filename: dynamic.yml } }\nadmin: { address: \"127.0.0.1:0\" }\n",
    );
    let status = |entry_point: &str, host: &str| {
        curl(adit.entry_point(entry_point), &format!("http://{host}/"), &[]).status
    };
    assert_eq!(["a", "m", "z"].map(|entry_point| status(entry_point, "every.test")), [200, 404, 200]);
    assert_eq!((status("a", "some.test"), status("z", "some.test")), (200, 404));
    let statuses = ["some", "every", "none"].map(|name| router_status(&adit, name));
    assert_eq!(statuses, ["warning", "warning", "disabled"]);
}

fn router_status(adit: &Adit, name: &str) -> String {
    let answer = adit.get(&format!("/api/http/routers/{name}@file"));
    let router: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    router["status"].as_str().unwrap_or_default().to_owned()
}

/// A visitor's connection that stays open.
fn connect(
    address: SocketAddr,
    name: &str,
    certificates: &Certificates,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(certificates.authority()).expect("the test's authority");
    roots.add(authority).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider's versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a session");
    StreamOwned::new(session, TcpStream::connect(address).expect("adit listens"))
}

/// Asks once; the answer's first bytes.
fn ask(stream: &mut StreamOwned<ClientConnection, TcpStream>, host: &str) -> String {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).expect("sent");
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[..read]).into_owned()
}
