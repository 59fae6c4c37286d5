//! C35, C42, C43, C46: configuration pushed by the edge, ingress rules, Access, credentials.

use serde_json::{Value, json};

use crate::support::connector::{Connector, Options, TUNNEL};
use crate::support::edge::Edge;
use crate::support::origin::Origin;
use crate::support::{TempFolder, require_python};

/// The secret of the tests' token: 32 times `x`, base64.
const SECRET: &str = "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg=";

fn push(edge: &mut Edge, version: i32, config: &Value) -> (Value, String) {
    edge.tell(&json!({"do": "configure", "id": version, "version": version, "config": config}));
    let answer = edge.wait_for("configured", |event| event["id"] == version);
    (answer["version"].clone(), answer["error"].as_str().unwrap_or_default().to_owned())
}

fn status(edge: &mut Edge, host: &str, path: &str) -> Option<u64> {
    let dest = format!("https://{host}{path}");
    edge.exchange(&json!({"do": "request", "id": dest, "host": host, "dest": dest})).status()
}

#[test]
fn c35_pushed_configurations_replace_each_other_by_version() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let origin = Origin::start();
    let _connector = Connector::start(&edge, &origin.url(), Options::default());
    edge.wait_for_registration();
    let teapot = json!({"ingress": [{"service": "http_status:418"}], "unknown-key": 1});
    assert_eq!(push(&mut edge, 5, &teapot), (json!(5), String::new()));
    assert_eq!(status(&mut edge, "a.example", "/"), Some(418));

    let gone = json!({"ingress": [{"service": "http_status:410"}]});
    assert_eq!(
        push(&mut edge, 4, &gone),
        (json!(5), String::new()),
        "an old version is ignored without an error"
    );
    assert_eq!(push(&mut edge, 5, &gone), (json!(5), String::new()), "and so is the same one");
    assert_eq!(status(&mut edge, "a.example", "/"), Some(418));

    let (version, error) = push(&mut edge, 6, &json!({"ingress": [{"service": "nonsense"}]}));
    assert_eq!(version, json!(5), "a bad one keeps the old");
    assert!(error.contains("nonsense"), "{error}");
    let fraction =
        json!({"originRequest": {"connectTimeout": 0.5}, "ingress": [{"service": "http_status:410"}]});
    let (version, error) = push(&mut edge, 7, &fraction);
    assert_eq!(version, json!(5), "durations are whole seconds");
    assert_ne!(error, "");
    edge.tell(&json!({"do": "configure", "id": "broken", "version": 8, "text": "{"}));
    let answer = edge.wait_for("configured", |event| event["id"] == "broken");
    assert_ne!(answer["error"], "");
    assert_eq!(status(&mut edge, "a.example", "/x"), Some(418));

    assert_eq!(push(&mut edge, 9, &json!({"ingress": []})), (json!(9), String::new()));
    assert_eq!(status(&mut edge, "a.example", "/y"), Some(503), "no rules, no service");
}

#[test]
fn c42_ingress_rules_of_a_configuration_file_choose_the_service() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let folder = TempFolder::new("config");
    folder.write("c.json", credentials(["AccountTag", "TunnelSecret", "TunnelID"]));
    let config = folder.write(
        "config.yml",
        format!(
            "tunnel: {TUNNEL_ID}\ncredentials-file: {}\ningress:\n\
             - {{ hostname: exact.example, path: '^/api/', service: 'http_status:201' }}\n\
             - {{ hostname: exact.example, path: '\\.jpe?g$', service: 'http_status:202' }}\n\
             - {{ hostname: exact.example, service: 'http_status:203' }}\n\
             - {{ hostname: '*.wild.example', service: 'http_status:205' }}\n\
             - {{ hostname: 'b\u{fc}cher.example', service: 'http_status:206' }}\n\
             - {{ service: 'http_status:404' }}\n",
            folder.path().join("c.json").display()
        ),
    );
    let _connector = configured(&edge, &config.display().to_string());
    let registered = edge.wait_for_registration();
    assert_eq!((&registered["tunnel"], &registered["account"]), (&json!(TUNNEL), &json!("account")));
    for (host, path, expected) in [
        ("exact.example", "/api/x", 201),
        ("exact.example", "/v1/api/x", 203),
        ("exact.example", "/a/b.jpeg", 202),
        ("exact.example", "/a/b.jpeg?size=1", 202),
        ("exact.example", "/a/b%2ejpg", 202),
        ("exact.example:8443", "/", 203),
        ("a.wild.example", "/", 205),
        ("a.b.wild.example", "/", 205),
        ("wild.example", "/", 404),
        ("awild.example", "/", 404),
        ("xn--bcher-kva.example", "/", 206),
        ("other.example", "/", 404),
    ] {
        assert_eq!(status(&mut edge, host, path), Some(expected), "{host}{path}");
    }
}

#[test]
fn c43_access_is_required_on_a_rule_and_at_top_level() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let origin = Origin::start();
    let _connector = Connector::start(&edge, &origin.url(), Options::default());
    edge.wait_for_registration();
    let access = json!({"access": {"required": true, "teamName": "team", "audTag": ["tag"]}});
    let on_rule = json!({"ingress": [
        {"hostname": "open.example", "service": origin.url()},
        {"service": origin.url(), "originRequest": access},
    ]});
    assert_eq!(push(&mut edge, 1, &on_rule), (json!(1), String::new()));
    assert_eq!(status(&mut edge, "open.example", "/"), Some(200));
    assert_eq!(status(&mut edge, "closed.example", "/"), Some(403), "no token");
    let at_top = json!({"originRequest": access, "ingress": [{"service": origin.url()}]});
    assert_eq!(push(&mut edge, 2, &at_top), (json!(2), String::new()));
    assert_eq!(status(&mut edge, "any.example", "/"), Some(403), "no token");
    // A token that is none must not pass either; whether it is 403 or an error is the connector's choice.
    let request = json!({"do": "request", "id": "forged", "host": "any.example",
        "headers": [["Cf-Access-Jwt-Assertion", "not.a.token"]]});
    let forged = edge.exchange(&request);
    assert!(forged.status() == Some(403) || !forged.error().is_empty(), "{:?}", forged.head);
    assert_eq!(origin.seen().len(), 1, "only the open host reached the origin");
}

#[test]
fn c46_credentials_files_are_read_whatever_the_case_of_their_keys() {
    let Some(python) = require_python() else { return };
    let folder = TempFolder::new("credentials");
    for (name, keys) in [
        ("usual.json", ["AccountTag", "TunnelSecret", "TunnelID"]),
        ("lower.json", ["accounttag", "tunnelsecret", "tunnelid"]),
    ] {
        let mut edge = Edge::start(&python, 2);
        let file = folder.write(name, credentials(keys));
        let after_run = vec![
            "--credentials-file".to_owned(),
            file.display().to_string(),
            "--url".to_owned(),
            NO_ORIGIN.to_owned(),
        ];
        let mut options = Options { after_run, ..Options::default() };
        options.after_run.push(TUNNEL_ID.to_owned());
        let _connector = Connector::start_with(&edge, &options);
        let registered = edge.wait_for_registration();
        assert_eq!(registered["account"], "account", "{name}");
        assert_eq!(registered["secret"], "78".repeat(32), "{name}");
        assert_eq!(registered["tunnel"], TUNNEL, "{name}");
    }
}

#[test]
fn c46_a_token_comes_from_a_file() {
    let Some(python) = require_python() else { return };
    let mut edge = Edge::start(&python, 2);
    let folder = TempFolder::new("token");
    let file = folder.write("token", format!("{}\n", crate::support::connector::TOKEN));
    let after_run = vec!["--token-file".to_owned(), file.display().to_string()];
    let _connector = Connector::start(&edge, NO_ORIGIN, Options { after_run, ..Options::default() });
    assert_eq!(edge.wait_for_registration()["tunnel"], TUNNEL);
}

const TUNNEL_ID: &str = "11111111-2222-3333-4444-555555555555";
const NO_ORIGIN: &str = "http://127.0.0.1:9";

fn credentials(keys: [&str; 3]) -> String {
    json!({keys[0]: "account", keys[1]: SECRET, keys[2]: TUNNEL_ID}).to_string()
}

/// A connector whose tunnel, credentials and rules come from a configuration file.
fn configured(edge: &Edge, config: &str) -> Connector {
    let before_run = vec!["--config".to_owned(), config.to_owned()];
    // Any flag that starts with `--cred` keeps the token away; the file names the same credentials.
    let file = config.replace("config.yml", "c.json");
    let after_run = vec!["--credentials-file".to_owned(), file];
    Connector::start_with(edge, &Options { before_run, after_run, ..Options::default() })
}
