//! `adit check` and `adit route explain` on the ingress' configuration, without a daemon.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::TempFolder;

#[test]
fn check_names_the_place_of_every_fault_in_a_dynamic_file() {
    let folder = folder(FAULTY);
    let output = check(&folder);
    let lines = lines(&folder, &output.stderr);
    assert_eq!(output.status.code(), Some(78), "{lines:#?}");
    assert!(output.stdout.is_empty());
    for expected in [
        "dynamic.yml:3:19: http.routers.rule.rule: rule `Host(`: ",
        "dynamic.yml:4:54: http.routers.middle.middlewares[0]: there is no middleware absent@file",
        "dynamic.yml:5:49: http.routers.service.service: there is no service absent@file",
        "dynamic.yml:6:65: http.routers.entry.entryPoints[0]: there is no entry point nowhere",
        "dynamic.yml:7:55: http.routers.several.middlewares[0]: there is no middleware absent@file",
        "dynamic.yml:7:74: http.routers.several.service: there is no service absent@file",
        "dynamic.yml:13:10: http.middlewares.bad: ",
        "dynamic.yml:16:26: tcp.routers.db.entryPoints[0]: there is no entry point nowhere",
        "dynamic.yml:19:30: udp.routers.dns.service: service absent@file does not exist",
        "dynamic.yml:20:36: tls.certificates[0].certFile: ",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "no `{expected}` in {lines:#?}");
    }
    assert!(!lines.iter().any(|line| line.contains("routers.good")), "{lines:#?}");
}

#[test]
fn check_reads_every_file_of_a_folder_and_names_what_none_can_take() {
    let folder = TempFolder::new("check");
    std::fs::create_dir(folder.path().join("dynamic")).expect("a temporary folder takes a folder");
    folder.write(
        "dynamic/a.yml",
        "http:\n  services:\n    a: { loadBalancer: { servers: [ { url: 'http://127.0.0.1:1' } ] } }\n",
    );
    folder.write(
        "dynamic/b.yml",
        "http:\n  services:\n    a: { loadBalancer: { servers: [ { url: 'http://127.0.0.1:2' } ] } }\n",
    );
    folder.write("dynamic/c.toml", "[http.services.c.loadBalancer]\nunknown = 1\n");
    folder.write(
        "adit.yaml",
        "entryPoints: { web: { address: ':80' } }\nproviders: { file: { directory: dynamic } }\n",
    );
    let output = check(&folder);
    let lines = lines(&folder, &output.stderr);
    assert_eq!(output.status.code(), Some(78), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("dynamic/c.toml:2:")), "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.starts_with("dynamic/b.yml:3:8: http.services.a: is skipped")),
        "{lines:#?}"
    );
}

#[test]
fn a_shadowed_router_is_a_warning_and_no_failure() {
    let folder = TempFolder::new("check");
    folder.write(
        "adit.yaml",
        "entryPoints: { web: { address: ':80' } }\nhttp:\n  routers:\n    all: { rule: 'PathPrefix(`/`)', service: s, priority: 100 }\n    \
         one: { rule: 'Host(`a.test`)', service: s }\n  services:\n    s: { loadBalancer: { servers: [ { url: 'http://127.0.0.1:1' } ] } }\n",
    );
    let output = check(&folder);
    let lines = lines(&folder, &output.stderr);
    assert_eq!(output.status.code(), Some(0), "{lines:#?}");
    let expected = "adit.yaml:5:18: http.routers.one.rule: warning: never answers on web";
    assert!(lines.iter().any(|line| line.starts_with(expected)), "{lines:#?}");
    assert!(!output.stdout.is_empty(), "the effective values");
}

#[test]
fn explain_names_the_winner_its_way_and_why_others_lost() {
    let folder = folder(ROUTES);
    let output = explain(&folder, &["GET", "http://a.test/api/x", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let explained: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let here = &explained[0];
    assert_eq!(here["entryPoint"], "web");
    assert_eq!(here["router"]["name"], "api@file");
    let names: Vec<&str> = here["router"]["middlewares"]
        .as_array()
        .map(|all| all.iter().filter_map(|one| one["name"].as_str()).collect())
        .unwrap_or_default();
    assert_eq!(names, ["first@file", "second@file"], "a chain stands for its parts");
    assert_eq!(here["router"]["service"]["name"], "s@file");
    let reason = |name: &str| {
        let others = here["others"].as_array().cloned().unwrap_or_default();
        let other = others.into_iter().find(|other| other["name"] == name).unwrap_or_default();
        other["reason"].as_str().unwrap_or_default().to_owned()
    };
    assert!(reason("host@file").contains("lower priority"), "{here:#}");
    assert!(reason("header@file").contains("does not match Header(`x-beta`, `1`)"), "{here:#}");
    assert_eq!(reason("secure@file"), "wants TLS");
    assert_eq!(reason("inner@file"), "is on internal only");
    assert!(reason("broken@file").starts_with("is disabled: "), "{here:#}");
}

#[test]
fn explain_heeds_scheme_header_address_and_entry_point() {
    let folder = folder(ROUTES);
    for (arguments, winner) in [
        (["GET", "https://a.test/", "--from", "127.0.0.1"], "secure@file"),
        (["GET", "http://a.test/api", "-H", "X-Beta: 1"], "header@file"),
        (["GET", "http://other.test/", "-H", "Host: a.test"], "host@file"),
        (["GET", "http://any.test/", "--from", "10.1.2.3"], "client@file"),
        (["GET", "http://any.test/", "--entry-point", "internal"], "inner@file"),
    ] {
        let output = explain(&folder, &arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
        assert!(text.contains(&format!("router {winner} ")), "{arguments:?}: {text}");
    }
}

#[test]
fn explain_fails_where_nobody_answers_and_names_bad_arguments() {
    let folder = folder(ROUTES);
    let output = explain(&folder, &["GET", "http://any.test/"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no router answers: 404"), "{output:?}");
    for (arguments, named) in [
        (["G T", "http://a.test/", "--from", "127.0.0.1"], "`G T`"),
        (["GET", "a.test/", "--from", "127.0.0.1"], "`a.test/`"),
        (["GET", "http://a.test/", "-H", "nonsense"], "`nonsense`"),
        (["GET", "http://a.test/", "--from", "somewhere"], "`somewhere`"),
        (["GET", "http://a.test/", "--entry-point", "nowhere"], "`nowhere`"),
    ] {
        let output = explain(&folder, &arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{arguments:?}: {output:?}");
    }
}

/// A configuration with this dynamic file.
fn folder(dynamic: &str) -> TempFolder {
    let folder = TempFolder::new("check");
    folder.write("dynamic.yml", dynamic);
    folder.write(
        "adit.yaml",
        "entryPoints:\n  web: { address: ':80', asDefault: true }\n  internal: { address: ':81' }\n\
         providers: { file: { filename: dynamic.yml } }\n",
    );
    folder
}

fn check(folder: &TempFolder) -> Output {
    adit(&["check", "--config", &configuration(folder)])
}

fn explain(folder: &TempFolder, arguments: &[&str]) -> Output {
    let configuration = configuration(folder);
    adit(&[&["route", "explain"], arguments, &["--config", &configuration]].concat())
}

fn configuration(folder: &TempFolder) -> String {
    folder.path().join("adit.yaml").display().to_string()
}

fn adit(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_adit")).args(arguments).output().expect("the binary starts")
}

/// Lines with file names relative to the folder.
fn lines(folder: &TempFolder, text: &[u8]) -> Vec<String> {
    let prefix = format!("{}/", folder.path().display());
    String::from_utf8_lossy(text).lines().map(|line| line.replacen(&prefix, "", 1)).collect()
}

const FAULTY: &str = "http:
  routers:
    rule: { rule: 'Host(', service: s }
    middle: { rule: 'Host(`m.test`)', middlewares: [ absent ], service: s }
    service: { rule: 'Host(`s.test`)', service: absent }
    entry: { rule: 'Host(`e.test`)', service: s, entryPoints: [ nowhere ] }
    several: { rule: 'Host(`v.test`)', middlewares: [ absent ], service: absent }
    good: { rule: 'Host(`g.test`)', service: s }
  services:
    s: { loadBalancer: { servers: [ { url: 'http://127.0.0.1:1' } ] } }
  middlewares:
    fine: { addPrefix: { prefix: /x } }
    bad: { ipAllowList: { sourceRange: [ nonsense ] } }
tcp:
  routers:
    db: { entryPoints: [ nowhere ], rule: 'HostSNI(`*`)', service: db }
  services: { db: { loadBalancer: { healthCheck: {}, servers: [ { address: '127.0.0.1:1' } ] } } }
udp:
  routers: { dns: { service: absent } }
tls: { certificates: [ { certFile: absent.pem, keyFile: absent.key } ] }
";

const ROUTES: &str = "http:
  routers:
    api: { rule: 'Host(`a.test`) && PathPrefix(`/api`)', service: s, middlewares: [ both ] }
    host: { rule: 'Host(`a.test`)', service: s }
    header: { rule: 'Header(`X-Beta`, `1`)', service: s, priority: 1000 }
    secure: { rule: 'Host(`a.test`)', service: s, tls: {} }
    client: { rule: 'ClientIP(`10.0.0.0/8`)', service: s }
    inner: { rule: 'PathPrefix(`/`)', service: s, entryPoints: [ internal ] }
    broken: { rule: 'Host(', service: s }
  middlewares:
    first: { addPrefix: { prefix: /x } }
    second: { stripPrefix: { prefixes: [ /y ] } }
    both: { chain: { middlewares: [ first, second ] } }
  services:
    s: { loadBalancer: { servers: [ { url: 'http://127.0.0.1:1' } ] } }
";
