//! Certificates by ACME from pebble, shown to curl, which trusts pebble's root and nothing else.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::adit::Adit;
use crate::support::curl::curl;
use crate::support::knot::{KEY, Knot};
use crate::support::pebble::{EXTERNAL_KEY, Pebble, PebbleOptions};
use crate::support::{TempFolder, free_tcp_port, note, require, wait_for};

fn have(programs: &[&str]) -> bool {
    programs.iter().all(|program| require(program))
}

/// Entry points on the ports where the CA looks, a server that answers nothing, and routers of the test's.
fn configuration(pebble: &Pebble, resolvers: &str, routers: &str) -> String {
    configuration_on((pebble.http_port, pebble.tls_port), resolvers, routers)
}

fn configuration_on((http, tls): (u16, u16), resolvers: &str, routers: &str) -> String {
    format!(
        "entryPoints:\n  web: {{ address: \"127.0.0.1:{http}\", http: {{ redirections: {{ entryPoint: {{ to: \
         websecure }} }} }} }}\n  websecure: {{ address: \"127.0.0.1:{tls}\", allowACMEByPass: false, http: {{ tls: {{}} }} }}\n\
         admin: {{ address: \"127.0.0.1:0\" }}\nshutdown: {{ grace-period: 1s }}\n\
         certificatesResolvers:\n{resolvers}http:\n  services: {{ s: {{ loadBalancer: {{ servers: [ {{ url: \
         \"http://127.0.0.1:1\" }} ] }} }} }}\n  routers:\n{routers}"
    )
}

fn router(name: &str, rule: &str, resolver: &str) -> String {
    format!("    {name}: {{ rule: \"{rule}\", service: s, tls: {{ certResolver: {resolver} }} }}\n")
}

/// Waits until every wanted certificate is there.
#[track_caller]
fn wait_until_valid(adit: &Adit, count: usize) -> Vec<Value> {
    wait_for(&format!("{count} certificates"), || {
        let all = certificates(adit);
        let are_valid = all.iter().all(|certificate| certificate["state"] == "valid");
        (all.len() == count && are_valid).then_some(all)
    })
}

fn certificates(adit: &Adit) -> Vec<Value> {
    adit.status()["certificates"].as_array().cloned().unwrap_or_default()
}

/// Whether curl is content with the certificate of `host`.
fn is_trusted(pebble: &Pebble, address: SocketAddr, host: &str) -> bool {
    is_trusted_by(&pebble.root(0), address, host)
}

fn is_trusted_by(root: &Path, address: SocketAddr, host: &str) -> bool {
    let seen = curl(address, &format!("https://{host}/"), &["--cacert", &root.display().to_string()]);
    assert!(seen.exit == Some(60) || seen.exit == Some(0), "{seen:?}");
    seen.exit == Some(0)
}

#[test]
fn certificates_come_by_http_01_and_tls_alpn_01_and_outlive_a_restart() {
    if !have(&["pebble", "curl"]) {
        return;
    }
    let pebble = Pebble::start(&PebbleOptions::default());
    let storage = TempFolder::new("storage");
    let acme = format!("storage: {}/acme.json, {}", storage.path().display(), pebble.resolver());
    let resolvers = format!(
        "  files: {{ acme: {{ email: a@b.test, {acme}, httpChallenge: {{ entryPoint: web }} }} }}\n  \
         names: {{ acme: {{ {acme}, keyType: EC384, tlsChallenge: {{}} }} }}\n"
    );
    let routers = [
        router("a", "Host(`a.test`) || Host(`b.test`)", "files"),
        router("c", "Host(`c.test`)", "names"),
        "    d: { rule: \"Host(`d.test`)\", service: s, tls: {} }\n".to_owned(),
        router("e", "Host(`127.0.0.1`)", "files"),
    ];
    let configuration = configuration(&pebble, &resolvers, &routers.concat());
    let adit = Adit::start("acme", &configuration);
    let (web, safe) = (adit.entry_point("web"), adit.entry_point("websecure"));
    let all = wait_until_valid(&adit, 3);
    assert_eq!(all[0]["names"], serde_json::json!(["a.test", "b.test"]));
    for (host, expected) in
        [("a.test", true), ("b.test", true), ("c.test", true), ("d.test", false), ("127.0.0.1", true)]
    {
        assert_eq!(is_trusted(&pebble, safe, host), expected, "{host}");
    }
    assert_eq!(adit.metric("adit_acme_orders_total{resolver=\"files\",result=\"issued\"}"), 2.0);
    assert!(adit.metric("adit_acme_challenges_answered_total{type=\"tls-alpn-01\"}") >= 1.0);
    assert_eq!(adit.metric("adit_acme_challenges_pending"), 0.0);
    // A token that is not ours is the routers', here nobody's, and is not redirected.
    let other = curl(web, "http://a.test/.well-known/acme-challenge/other", &[]);
    assert_eq!(other.status, 404, "{other:?}");
    assert_eq!(curl(web, "http://a.test/x", &[]).status, 301);
    // Unless the entry point keeps routers away from challenges.
    let asked = |path: &str| curl(safe, &format!("https://a.test/{path}"), &["--insecure"]).status;
    assert_eq!((asked("x"), asked(".well-known/acme-challenge/other")), (502, 404));
    let file = storage.path().join("acme.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let effective = adit.get("/config").body;
    assert!(!effective.contains("PRIVATE KEY") && effective.contains("certificatesResolvers"));
    assert_eq!(adit.stop(), Some(0));

    let adit = Adit::start("acme", &configuration);
    assert_eq!(certificates(&adit).iter().filter(|c| c["state"] == "valid").count(), 3, "at once");
    assert!(is_trusted(&pebble, adit.entry_point("websecure"), "b.test"));
    assert_eq!(pebble.issued(), 3, "nothing was ordered again");
}

#[test]
fn slow_a_certificate_is_renewed_before_it_ends_and_shown_at_once() {
    if !have(&["pebble", "curl"]) {
        return;
    }
    let pebble = Pebble::start(&PebbleOptions { seconds: 18, ..PebbleOptions::default() });
    let resolvers = format!("  le: {{ acme: {{ {}, tlsChallenge: {{}} }} }}\n", pebble.resolver());
    let adit = Adit::start("acme", &configuration(&pebble, &resolvers, &router("a", "Host(`a.test`)", "le")));
    let first = wait_until_valid(&adit, 1)[0]["not_after"].as_u64().expect("an end");
    let safe = adit.entry_point("websecure");
    assert!(is_trusted(&pebble, safe, "a.test"));
    wait_for("the renewal", || (certificates(&adit)[0]["not_after"].as_u64()? > first).then_some(()));
    assert!(is_trusted(&pebble, safe, "a.test"));
    assert!(pebble.issued() >= 2);
    assert_eq!(adit.metric("adit_acme_orders_total{resolver=\"le\",result=\"validation\"}"), 0.0);
}

#[test]
fn processes_share_storage_and_challenges_and_each_certificate_is_ordered_once() {
    if !have(&["pebble", "curl"]) {
        return;
    }
    let pebble = Pebble::start(&PebbleOptions::default());
    let storage = TempFolder::new("storage");
    let acme = format!("storage: {}/acme.json, {}", storage.path().display(), pebble.resolver());
    let resolvers = format!(
        "  files: {{ acme: {{ {acme}, httpChallenge: {{ entryPoint: web }} }} }}\n  \
         names: {{ acme: {{ {acme}, tlsChallenge: {{}} }} }}\n"
    );
    let routers = [router("a", "Host(`a.test`)", "files"), router("b", "Host(`b.test`)", "names")].concat();
    // The CA reaches only the first, which wants nothing; the second orders.
    let nothing = "    z: { rule: \"Host(`z.test`)\", service: s, tls: {} }\n";
    let first = Adit::start("acme", &configuration(&pebble, &resolvers, nothing));
    let second =
        Adit::start("acme", &configuration_on((free_tcp_port(), free_tcp_port()), &resolvers, &routers));
    wait_until_valid(&second, 2);
    first.configure(&configuration(&pebble, &resolvers, &routers));
    wait_until_valid(&first, 2);
    for (adit, host) in [(&first, "a.test"), (&first, "b.test"), (&second, "a.test"), (&second, "b.test")] {
        assert!(is_trusted(&pebble, adit.entry_point("websecure"), host), "{host}");
    }
    assert_eq!(pebble.issued(), 2, "each certificate once");
    let left: Vec<_> =
        fs::read_dir(storage.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the storage and its lock: {left:?}");
}

#[test]
fn wildcards_come_by_dns_01_and_its_records_are_removed() {
    if !have(&["pebble", "curl", "knotd"]) {
        return;
    }
    let knot = Knot::start();
    let pebble = Pebble::start(&PebbleOptions { dns: Some(knot.address()), ..PebbleOptions::default() });
    let resolvers = format!(
        "  le:\n    acme:\n      {{ {}, dnsChallenge: {{ provider: rfc2136, rfc2136: {{ nameserver: \"{}\", tsigKey: adit, \
         tsigSecret: {KEY} }} }} }}\n",
        pebble.resolver(),
        knot.address()
    );
    let routers = "    a: { rule: \"Host(`x.dns.test`)\", service: s, tls: { certResolver: le, domains: [ { main: \
         '*.dns.test', sans: [ dns.test ] } ] } }\n    \
         b: { rule: \"Host(`www.alias.dns.test`)\", service: s, tls: { certResolver: le, domains: [ { main: \
         alias.dns.test } ] } }\n    \
         c: { rule: \"Host(`never.dns.test`)\", service: s, tls: { certResolver: le } }\n";
    let adit = Adit::start("acme", &configuration(&pebble, &resolvers, routers));
    // The third needs none: the wildcard covers it; so it does the second's name.
    wait_until_valid(&adit, 1);
    let safe = adit.entry_point("websecure");
    for host in ["x.dns.test", "dns.test", "never.dns.test", "alias.dns.test"] {
        assert!(is_trusted(&pebble, safe, host), "{host}");
    }
    assert!(!knot.has("_acme-challenge"), "{}", knot.output());
    // A key that the server does not know changes nothing there, and is named.
    let stranger = resolvers.replace(KEY, "c3RyYW5nZXI=");
    adit.configure(&configuration(&pebble, &stranger, &router("d", "Host(`deep.alias.dns.test`)", "le")));
    wait_for("the refusal", || (certificates(&adit)[0]["reason"] == "dns_update").then_some(()));

    // An alias leads to a name that takes the record; a name below the wildcard's reach needs its own certificate.
    let routers = router("d", "Host(`deep.alias.dns.test`) || Host(`alias.dns.test`)", "le");
    adit.configure(&configuration(&pebble, &resolvers, &routers));
    wait_until_valid(&adit, 1);
    assert!(is_trusted(&pebble, safe, "deep.alias.dns.test"));
    wait_for("the records to go", || (!knot.has("_acme-challenge.elsewhere")).then_some(()));
}

#[test]
fn what_the_ca_refuses_is_named_and_tried_again_later() {
    if !have(&["pebble", "curl"]) {
        return;
    }
    let pebble = Pebble::start(&PebbleOptions { external_accounts: true, ..PebbleOptions::default() });
    // The CA looks where nobody listens.
    let ports = (free_tcp_port(), free_tcp_port());
    let good = format!("{}, eab: {{ kid: kid-1, hmacEncoded: {EXTERNAL_KEY} }}", pebble.resolver());
    let resolvers = format!(
        "  le: {{ acme: {{ {good}, storage: a.json, tlsChallenge: {{}} }} }}\n  \
         stranger: {{ acme: {{ {}, storage: b.json, tlsChallenge: {{}} }} }}\n  \
         gone: {{ acme: {{ caServer: 'https://127.0.0.1:1/dir', storage: c.json, tlsChallenge: {{}} }} }}\n",
        pebble.resolver()
    );
    let routers = [
        router("a", "Host(`a.test`)", "le"),
        router("b", "Host(`b.test`)", "stranger"),
        router("c", "Host(`c.test`)", "gone"),
        router("d", "Host(`d.test`)", "missing"),
        router("e", "PathPrefix(`/`)", "le"),
        "    f: { rule: \"Host(`f.test`)\", service: s, tls: { certResolver: le, domains: [ { main: '*.f.test' } ] } }\n"
            .to_owned(),
    ];
    let adit = Adit::start("acme", &configuration_on(ports, &resolvers, &routers.concat()));
    let reasons = wait_for("three failures", || {
        let all = certificates(&adit);
        let reasons: Vec<_> =
            all.iter().filter_map(|c| Some((c["names"][0].as_str()?, c["reason"].as_str()?))).collect();
        (reasons.len() == 3).then(|| format!("{reasons:?}"))
    });
    assert_eq!(
        reasons,
        "[(\"c.test\", \"ca_unreachable\"), (\"a.test\", \"validation\"), (\"b.test\", \"ca_refused\")]"
    );
    let status = adit.status();
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("no certificate resolver missing"), "{warnings}");
    assert!(warnings.contains("need `dnsChallenge`") && warnings.contains("no name to get"), "{warnings}");
    assert_eq!(adit.metric("adit_acme_orders_total{resolver=\"le\",result=\"validation\"}"), 1.0);
    assert_eq!(adit.metric("adit_acme_certificates{resolver=\"le\",state=\"failed\"}"), 1.0);
    // Served all the same, with a certificate that nobody trusts.
    let safe = adit.entry_point("websecure");
    assert_eq!(curl(safe, "https://a.test/", &["--insecure"]).status, 502);
    assert!(!adit.get("/config").body.contains(&EXTERNAL_KEY[..20]), "masked");
    let page = adit.get("/").body;
    assert!(page.contains("Certificates") && page.contains("validation"), "{page}");
    // A resolver that goes takes its certificates with it, and one that comes is started.
    let resolvers = format!("  new: {{ acme: {{ {good}, storage: d.json, tlsChallenge: {{}} }} }}\n");
    adit.configure(&configuration_on(ports, &resolvers, &router("a", "Host(`g.test`)", "new")));
    wait_for("the new resolver", || {
        let all = certificates(&adit);
        (all.len() == 1 && all[0]["names"][0] == "g.test" && all[0]["reason"] == "validation").then_some(())
    });
}

#[test]
fn the_preferred_chain_is_chosen_among_those_that_the_ca_offers() {
    if !have(&["pebble", "curl"]) {
        return;
    }
    let pebble = Pebble::start(&PebbleOptions::default());
    let (first, second) = (pebble.root(0), pebble.root(1));
    let text = fs::read(&second).expect("the root was written");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text).expect("the root is PEM");
    let parsed = pem.parse_x509().expect("the root is a certificate");
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let resolvers = format!(
        "  le: {{ acme: {{ {}, keyType: RSA2048, preferredChain: \"{}\", tlsChallenge: {{}} }} }}\n",
        pebble.resolver(),
        name.expect("the root has a name")
    );
    let adit = Adit::start("acme", &configuration(&pebble, &resolvers, &router("a", "Host(`a.test`)", "le")));
    wait_until_valid(&adit, 1);
    let safe = adit.entry_point("websecure");
    assert!(is_trusted_by(&second, safe, "a.test") && !is_trusted_by(&first, safe, "a.test"));
}

#[test]
fn an_order_that_a_stop_cuts_short_leaves_nothing_behind() {
    if !have(&["pebble", "curl", "knotd"]) {
        return;
    }
    let knot = Knot::start();
    let pebble = Pebble::start(&PebbleOptions { dns: Some(knot.address()), ..PebbleOptions::default() });
    let storage = TempFolder::new("storage");
    let resolvers = format!(
        "  le:\n    acme:\n      {{ storage: {}/acme.json, {}, dnsChallenge: {{ provider: rfc2136, propagation: {{ \
         delayBeforeChecks: 10m }}, rfc2136: {{ nameserver: \"{}\", zone: dns.test, tsigKey: adit., tsigSecret: {KEY} }} }} }}\n",
        storage.path().display(),
        pebble.resolver(),
        knot.address()
    );
    let adit =
        Adit::start("acme", &configuration(&pebble, &resolvers, &router("a", "Host(`a.dns.test`)", "le")));
    wait_for("the record", || knot.has("_acme-challenge.a").then_some(()));
    assert_eq!(adit.stop(), Some(0));
    assert!(!knot.has("_acme-challenge.a"), "{}", knot.output());
    let text = fs::read(storage.path().join("acme.json")).expect("the account was kept");
    let stored: Value = serde_json::from_slice(&text).expect("the storage is whole");
    assert!(stored["le"]["adit"]["account"].is_object());
    let left: Vec<_> =
        fs::read_dir(storage.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the storage and its lock: {left:?}");
}

#[test]
fn the_edge_gets_certificates_for_the_hosts_of_its_tunnels() {
    if !have(&["pebble", "curl"]) {
        return;
    }
    let pebble = Pebble::start(&PebbleOptions::default());
    let configuration = format!(
        "state-dir: state\nentryPoints:\n  safe: {{ address: \"127.0.0.1:{}\", http: {{ tls: {{ certResolver: le }} }} }}\n\
         certificatesResolvers: {{ le: {{ acme: {{ {}, tlsChallenge: {{}} }} }} }}\n\
         edge:\n  listen: \"127.0.0.1:0\"\n  public: [ safe ]\n  tunnels:\n    - {{ name: home, id: {}, \
         secret: \"{}\", hostnames: [ a.home.test, \"*.b.test\" ] }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n",
        pebble.tls_port,
        pebble.resolver(),
        crate::TUNNEL_ID,
        crate::SECRET
    );
    let adit = Adit::start("acme", &configuration);
    wait_until_valid(&adit, 1);
    let root = pebble.root(0).display().to_string();
    let seen = curl(adit.entry_point("safe"), "https://a.home.test/", &["--cacert", &root]);
    assert_eq!((seen.exit, seen.status), (Some(0), 530), "{seen:?}");
}

#[test]
fn a_certificate_that_the_ca_wants_renewed_is_renewed_early() {
    if !have(&["pebble", "curl"]) {
        return;
    }
    let pebble = Pebble::start(&PebbleOptions::default());
    if !pebble.has_renewal_information() {
        // Debian's is older; nothing that could be installed would change that.
        return note("skipped: this `pebble` has no renewal information (RFC 9773, since 2.6)");
    }
    let storage = TempFolder::new("storage");
    let file = storage.path().join("acme.json");
    let resolvers = format!(
        "  le: {{ acme: {{ storage: {}, {}, tlsChallenge: {{}} }} }}\n",
        file.display(),
        pebble.resolver()
    );
    let configuration = configuration(&pebble, &resolvers, &router("a", "Host(`a.test`)", "le"));
    let adit = Adit::start("acme", &configuration);
    wait_until_valid(&adit, 1);
    assert_eq!(adit.stop(), Some(0));
    let stored: Value = serde_json::from_slice(&fs::read(&file).unwrap()).expect("the storage is whole");
    let chain = stored["le"]["Certificates"][0]["certificate"].as_str().expect("a chain");
    let chain = String::from_utf8(STANDARD.decode(chain).expect("base64")).expect("PEM");
    let window = r#"{"suggestedWindow":{"start":"2020-01-01T00:00:00Z","end":"2020-01-02T00:00:00Z"}}"#;
    pebble.set_renewal_information(&chain, window);
    let adit = Adit::start("acme", &configuration);
    wait_for("the early renewal", || (pebble.issued() == 2).then_some(()));
    wait_until_valid(&adit, 1);
    assert!(is_trusted(&pebble, adit.entry_point("websecure"), "a.test"));
}
