//! What an entry point offers in TLS, seen by OpenSSL's programs.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::ingress::Ingress;
use crate::support::adit::Adit;
use crate::support::certificates::Certificates;
use crate::support::require;

#[test]
fn slow_sslscan_finds_nothing_weak() {
    if !require("sslscan") {
        return;
    }
    let certificates = Certificates::for_names(&["web.test"]);
    let adit = Ingress::to("http://127.0.0.1:1").with_tls(&certificates).start();
    let web = adit.entry_point("web").to_string();
    let mut command = Command::new("sslscan");
    let output = command.args(["--no-colour", "--sni-name=web.test", &web]).output().expect("sslscan starts");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    for old in ["SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"] {
        assert!(
            report.lines().any(|line| line.starts_with(old) && line.ends_with("disabled")),
            "{old}: {report}"
        );
    }
    let ciphers: Vec<&str> =
        report.lines().filter(|line| line.starts_with("Preferred") || line.starts_with("Accepted")).collect();
    assert!(ciphers.len() >= 6, "{report}");
    let is_strong = |line: &&&str| line.contains("GCM") || line.contains("CHACHA20");
    let weak: Vec<&&str> = ciphers.iter().filter(|line| !is_strong(line)).collect();
    assert!(weak.is_empty(), "{weak:?}");
    let forward_secret = |line: &&&str| line.contains("TLS_") || line.contains("ECDHE");
    assert!(ciphers.iter().all(|line| forward_secret(&line)), "{ciphers:?}");
    let vulnerable =
        report.lines().find(|line| line.contains("vulnerable") && !line.contains("not vulnerable"));
    assert_eq!(vulnerable, None);
    assert!(report.contains("Session renegotiation not supported"), "{report}");
}

/// An entry point whose hosts have TLS options of their own.
fn start_with_options(certificates: &Certificates) -> Adit {
    let router = |name: &str, options: &str| {
        format!(
            "    {name}: {{ rule: \"Host(`{name}.web.test`)\", service: s, tls: {{ options: {options} }} }}\n"
        )
    };
    let configuration = format!(
        "entryPoints: {{ web: {{ address: \"127.0.0.1:0\" }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         http:\n  routers:\n{}{}{}{}  services:\n    s: {{ loadBalancer: {{ servers: [ {{ url: \"http://127.0.0.1:1\" }} ] }} }}\n\
         tls:\n  certificates: [ {{ certFile: {}, keyFile: {} }} ]\n  options:\n    default: {{ sniStrict: true }}\n    \
         new: {{ minVersion: VersionTLS13 }}\n    old: {{ maxVersion: VersionTLS12 }}\n    \
         one: {{ maxVersion: VersionTLS12, cipherSuites: [ TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 ] }}\n    \
         known: {{ clientAuth: {{ caFiles: [ {} ], clientAuthType: RequireAndVerifyClientCert }} }}\n",
        router("new", "new"),
        router("old", "old"),
        router("one", "one"),
        router("known", "known"),
        certificates.certificate().display(),
        certificates.key().display(),
        certificates.authority().display()
    );
    Adit::start("tls", &configuration)
}

/// Asks with `openssl s_client`: the protocol and cipher agreed on and the status of `GET /`; `None` if there was no answer.
fn connect(web: SocketAddr, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &web.to_string(), "-ign_eof"]).args(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let name = arguments.iter().skip_while(|argument| **argument != "-servername").nth(1).unwrap_or(&"none");
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut child.stdin.take()?, request.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let agreed = text.lines().find(|line| line.starts_with("New, "))?;
    let status = text.lines().find(|line| line.contains("HTTP/1.1 "))?;
    Some(format!("{agreed} {status}"))
}

#[test]
fn versions_ciphers_names_and_client_certificates_are_as_the_options_say() {
    if !require("openssl") {
        return;
    }
    let certificates = Certificates::for_names(&["*.web.test", "web.test"]);
    let adit = start_with_options(&certificates);
    let web = adit.entry_point("web");
    let of = |name: &str, more: &[&str]| {
        let name = format!("{name}.web.test");
        connect(web, &[&["-servername", name.as_str()][..], more].concat())
    };
    let agreed = |seen: Option<String>, wanted: &str| {
        assert!(
            seen.as_deref().is_some_and(|seen| seen.contains(wanted) && seen.contains("502")),
            "{wanted}: {seen:?}"
        );
    };
    agreed(of("new", &["-tls1_3"]), "TLSv1.3");
    assert_eq!(of("new", &["-tls1_2"]), None, "minVersion");
    agreed(of("old", &["-tls1_2"]), "TLSv1.2");
    assert_eq!(of("old", &["-tls1_3"]), None, "maxVersion");
    agreed(of("one", &[]), "CHACHA20");
    assert_eq!(of("one", &["-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]), None, "cipherSuites");
    // sniStrict: a name without a certificate, and no name at all.
    assert_eq!(connect(web, &["-servername", "other.test"]), None);
    assert_eq!(connect(web, &["-noservername"]), None);
    let [certificate, key] =
        [certificates.certificate(), certificates.key()].map(|path| path.display().to_string());
    assert_eq!(of("known", &[]), None, "no certificate");
    agreed(of("known", &["-cert", &certificate, "-key", &key]), "TLSv1.3");
    let stranger = Certificates::for_names(&["stranger.test"]);
    let [certificate, key] = [stranger.certificate(), stranger.key()].map(|path| path.display().to_string());
    assert_eq!(of("known", &["-cert", &certificate, "-key", &key]), None, "a certificate of someone else");
}
