//! Traefik's dynamic files, as operators have them.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used, clippy::panic)]

use std::{fs, path::Path, time::Duration};

use adit_config::dynamic::{
    BalancerStrategy, ClientAuthType, Dynamic, Format, Middleware, PemSource, ProxyProtocolVersion, SameSite,
    ServiceKind, TcpMiddleware, TcpService, TlsVersion,
};
use proptest::prelude::*;

fn read(name: &str) -> Result<Dynamic, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dynamic").join(name);
    let format = Format::of_path(&path).unwrap();
    Dynamic::parse(&fs::read_to_string(path).unwrap(), name, format).map_err(|problems| problems.to_string())
}

fn yaml(text: &str) -> Result<Dynamic, String> {
    Dynamic::parse(text, "d/t.yml", Format::Yaml).map_err(|problems| problems.to_string())
}

#[test]
fn routers_are_read_with_every_option() {
    let dynamic = read("whole.yml").unwrap();
    let app = &dynamic.http.routers["app"];
    assert_eq!((app.priority, app.service.as_str()), (42, "app"));
    assert_eq!(app.entry_points, ["web", "websecure"]);
    assert_eq!(app.middlewares, ["auth@file", "limit"]);
    let tls = app.tls.as_ref().unwrap();
    assert_eq!((tls.options.as_deref(), tls.cert_resolver.as_deref()), (Some("modern"), Some("le")));
    assert_eq!(tls.domains[0].sans, ["b.example", "c.example"]);
    assert_eq!((app.observability.access_logs, app.observability.metrics), (Some(false), Some(true)));
    assert!(dynamic.http.routers["plain"].tls.is_some());
    assert!(dynamic.http.routers["child"].fault.as_ref().unwrap().contains("parents"));
    assert!(dynamic.http.routers["old"].fault.as_ref().unwrap().contains("ruleSyntax"));
    assert_eq!(dynamic.origins["http.routers.app.rule"].position.unwrap().line, 6);
}

#[test]
fn load_balancers_are_read_with_every_option() {
    let dynamic = read("whole.yml").unwrap();
    let ServiceKind::LoadBalancer(app) = &dynamic.http.services["app"].kind else { panic!() };
    assert_eq!(dynamic.http.services["app"].middlewares, ["limit"]);
    assert_eq!(app.strategy, BalancerStrategy::P2c);
    assert_eq!(app.servers.iter().map(|server| server.weight).collect::<Vec<_>>(), [3, 0, 0]);
    assert!(app.servers[1].preserve_path && app.servers[2].fenced && !app.pass_host_header);
    let cookie = app.sticky.as_ref().unwrap();
    assert_eq!((cookie.same_site, cookie.path.as_deref(), cookie.max_age_s), (Some(SameSite::Lax), None, 60));
    let check = app.health_check.as_ref().unwrap();
    assert_eq!((check.status, check.port, check.interval), (Some(204), Some(81), Duration::from_secs(10)));
    assert_eq!(check.unhealthy_interval, Duration::from_secs(10));
    assert_eq!(app.passive_health_check.as_ref().unwrap().failure_window, Duration::from_secs(3));
    assert_eq!((app.flush_interval, app.servers_transport.as_deref()), (Duration::ZERO, Some("mtls")));
}

#[test]
fn services_of_services_are_read_and_wrong_ones_stay_alone() {
    let dynamic = read("whole.yml").unwrap();
    let kind = |name: &str| &dynamic.http.services[name].kind;
    let ServiceKind::Weighted(two) = kind("two") else { panic!() };
    assert!(two.health_check && two.sticky.is_some() && two.services[1].weight == 1);
    let ServiceKind::Mirroring(copy) = kind("copy") else { panic!() };
    assert_eq!((copy.mirror_body, copy.body_bytes_max, copy.mirrors[0].percent), (false, Some(1024), 10));
    let ServiceKind::Failover(safe) = kind("safe") else { panic!() };
    assert_eq!(safe.errors.as_ref().unwrap().request_body_bytes_max, None);
    assert!(matches!(kind("hash"), ServiceKind::HighestRandomWeight(_)));
    for (name, reason) in [("none", "of no kind"), ("both", "several kinds"), ("odd", "`fastest`")] {
        let ServiceKind::Invalid(found) = kind(name) else { panic!("{name}") };
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn middlewares_are_read_and_wrong_ones_stay_alone() {
    let dynamic = read("whole.yml").unwrap();
    let middleware = |name: &str| &dynamic.http.middlewares[name];
    let Middleware::RateLimit(limit) = middleware("limit") else { panic!() };
    let strategy = limit.source_criterion.as_ref().unwrap().ip_strategy.as_ref().unwrap();
    assert_eq!((limit.period, strategy.depth, strategy.ipv6_subnet), (Duration::from_secs(60), 1, Some(64)));
    let Middleware::BasicAuth(auth) = middleware("auth") else { panic!() };
    assert_eq!(auth.users[1].expose(), b"b:{SHA}y");
    assert!(!format!("{auth:?}").contains("SHA"));
    let Middleware::BasicAuth(list) = middleware("list") else { panic!() };
    assert_eq!(list.users[1].expose(), b"b:2");
    assert!(matches!(middleware("squeeze"), Middleware::Compress(compress) if compress.encodings.len() == 3));
    assert!(matches!(middleware("white"), Middleware::IpAllowList(list) if list.ip_strategy.is_some()));
    let Middleware::ForwardAuth(forward) = middleware("fa") else { panic!() };
    assert_eq!((forward.trust_forward_header, forward.body_bytes_max), (Some(false), None));
    assert_eq!(forward.response_body_bytes_max, Some(10));
    let Middleware::PassTlsClientCert(pass) = middleware("pass") else { panic!() };
    assert!(pass.info.as_ref().unwrap().subject.unwrap().organizational_unit);
    for (name, reason) in
        [("off", "of no kind"), ("three", "several kinds"), ("foreign", "plugins"), ("redis", "Redis")]
    {
        let Middleware::Invalid(found) = middleware(name) else { panic!("{name}") };
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn transports_tcp_udp_and_tls_are_read() {
    let dynamic = read("whole.yml").unwrap();
    let mtls = &dynamic.http.servers_transports["mtls"];
    assert_eq!(mtls.root_cas[0], PemSource::File("ca.pem".into()));
    assert!(matches!(&mtls.root_cas[1], PemSource::Inline(pem) if pem.expose().starts_with(b"-----BEGIN")));
    assert_eq!((mtls.timeouts.dial, mtls.timeouts.idle_connection), (Some(Duration::from_secs(5)), None));
    assert!(dynamic.http.servers_transports["spiffe"].fault.is_some());
    let TcpService::LoadBalancer(db) = &dynamic.tcp.services["db"] else { panic!() };
    assert_eq!(db.proxy_protocol, Some(ProxyProtocolVersion::V2));
    assert_eq!(db.termination_delay, Some(Duration::from_millis(50)));
    assert!(dynamic.tcp.routers["db"].tls.as_ref().unwrap().passthrough);
    assert_eq!(dynamic.tcp.middlewares["few"], TcpMiddleware::InFlightConn { amount: 3 });
    let transport = &dynamic.tcp.servers_transports["t"];
    assert_eq!((transport.dial_keep_alive, transport.termination_delay), (None, Some(Duration::ZERO)));
    assert_eq!(transport.proxy_protocol, Some(ProxyProtocolVersion::V1));
    assert_eq!(dynamic.udp.services.len(), 2);
    let modern = &dynamic.tls.options["modern"];
    assert_eq!((modern.version_min, modern.sni_strict), (Some(TlsVersion::V1_3), true));
    assert_eq!(dynamic.tls.options["mutual"].client_auth.kind, ClientAuthType::RequireAndVerify);
    let fault = dynamic.tls.options["wrong"].fault.as_ref().unwrap();
    assert!(fault.contains("minVersion") && fault.contains("caFiles"), "{fault}");
    assert!(dynamic.tls.options["plain"].fault.is_none());
    let warnings = dynamic.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(warnings.contains("tracing") && warnings.contains("caOptional"), "{warnings}");
}

#[test]
fn a_wrong_file_is_refused_with_every_problem() {
    for name in ["bad.yml", "bad.toml"] {
        let found = format!("{}\n", read(name).unwrap_err());
        assert!(!found.contains("a:secret"), "{found}");
        let expected =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dynamic").join(format!("{name}.expected"));
        if std::env::var_os("ADIT_BLESS").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        assert_eq!(found, fs::read_to_string(&expected).unwrap_or_default(), "{name}");
    }
}

#[test]
fn toml_says_the_same_as_yaml() {
    let toml = "[http.routers.r]\nrule = \"Host(`a`)\"\nservice = \"s\"\n[http.routers.r.tls]\n\
                [http.services.s.loadBalancer]\n[[http.services.s.loadBalancer.servers]]\nurl = \"http://a\"\n";
    let yaml_text = "http:\n  routers: { r: { rule: \"Host(`a`)\", service: s, tls: {} } }\n  \
                     services: { s: { loadBalancer: { servers: [ { url: http://a } ] } } }\n";
    let from_toml = Dynamic::parse(toml, "t", Format::Toml).unwrap();
    let from_yaml = Dynamic::parse(yaml_text, "t", Format::Yaml).unwrap();
    assert_eq!((from_toml.http, from_toml.tls), (from_yaml.http, from_yaml.tls));
}

#[test]
fn keys_match_in_any_case_and_names_keep_theirs() {
    let dynamic = yaml("HTTP: { MIDDLEWARES: { StripIt: { STRIPPREFIX: { Prefixes: [ /x ] } } } }").unwrap();
    assert!(
        matches!(&dynamic.http.middlewares["StripIt"], Middleware::StripPrefix(strip) if strip.prefixes == ["/x"])
    );
}

#[test]
fn empty_blocks_are_refused_but_where_they_mean_something() {
    for text in
        ["http: {}", "http: { routers: {} }", "http: { middlewares: { a: { stripPrefix: {} } } }", "tls: {}"]
    {
        assert!(yaml(text).unwrap_err().contains("empty"), "{text}");
    }
    for text in [
        "",
        "# nothing\n",
        "http:\n",
        "http: { middlewares: { a: {} } }",
        "http: { middlewares: { a: } }",
        "http: { middlewares: { a: { compress: {} }, b: { contentType: {} } } }",
        "http: { routers: { r: { tls: {} } } }",
        "http: { services: { s: { loadBalancer: { sticky: {} } }, t: { loadBalancer: { sticky: { cookie: {} } } } } }",
    ] {
        yaml(text).unwrap_or_else(|problems| panic!("{text}: {problems}"));
    }
}

#[test]
fn go_templates_are_named() {
    let error = yaml("http:\n  # {{ fine }}\n  routers:\n{{ range . }}\n").unwrap_err();
    assert!(error.starts_with("d/t.yml:4:1: Go template"), "{error}");
}

#[test]
fn a_byte_order_mark_is_no_key() {
    let text = "\u{feff}http: { routers: { r: { rule: x } } }\n";
    assert_eq!(yaml(text).unwrap().http.routers.len(), 1);
    let toml = "\u{feff}[http.routers.r]\nrule = 'x'\n";
    assert_eq!(Dynamic::parse(toml, "t", Format::Toml).unwrap().http.routers.len(), 1);
}

#[test]
fn paths_are_relative_to_the_file() {
    let dynamic = yaml("tls: { certificates: [ { certFile: a.pem, keyFile: /k.pem } ] }").unwrap();
    let pair = &dynamic.tls.certificates[0].pair;
    assert_eq!(pair.cert, PemSource::File("d/a.pem".into()));
    assert_eq!(pair.key, PemSource::File("/k.pem".into()));
}

#[test]
fn the_second_object_of_a_name_is_left_out() {
    let mut all = Dynamic::parse("http: { routers: { r: { rule: A } } }", "a.yml", Format::Yaml).unwrap();
    let more = "http:\n  routers: { r: { rule: B }, s: { rule: C } }\n";
    all.merge(Dynamic::parse(more, "b.yml", Format::Yaml).unwrap());
    assert_eq!(all.http.routers["r"].rule, "A");
    assert_eq!(all.http.routers.len(), 2);
    assert_eq!(
        all.warnings[0].to_string(),
        "b.yml:2:17: http.routers.r: left out, because an earlier file has an object of this name"
    );
    assert!(!all.is_empty() && Dynamic::default().is_empty());
}

#[test]
fn only_dynamic_files_have_a_format() {
    for (path, format) in [
        ("a.yml", Some(Format::Yaml)),
        ("d/a.yaml", Some(Format::Yaml)),
        ("a.toml", Some(Format::Toml)),
        ("a.json", None),
        ("a", None),
        (".yml", None),
    ] {
        assert_eq!(Format::of_path(Path::new(path)), format, "{path}");
    }
}

#[test]
fn a_site_of_ten_thousand_routers_fits_into_one_file() {
    let mut text = String::from("http:\n  routers:\n");
    for n in 0..10_000 {
        text += &format!("    r{n}:\n      rule: Host(`h{n}.example`)\n      service: s{n}\n");
    }
    text += "  services:\n";
    for n in 0..10_000 {
        text += &format!(
            "    s{n}:\n      loadBalancer:\n        servers:\n          - url: http://10.0.0.1:80\n"
        );
    }
    assert_eq!(yaml(&text).unwrap().http.routers.len(), 10_000);
}

proptest! {
    #[test]
    fn any_structure_is_read_or_refused(
        keys in prop::collection::vec(prop::sample::select(vec![
            "http", "tcp", "tls", "routers", "services", "middlewares", "r", "rule", "loadBalancer", "servers", "url",
            "headers", "compress", "tls", "options", "sticky", "cookie", "weighted", "name",
        ]), 1..7),
        value in prop::sample::select(vec!["{}", "[]", "x", "1", "true", "[x, 1]", "{ a: b }", "~", "[{}]", "-1s"]),
    ) {
        let opened: String = keys.iter().map(|key| format!("{{ {key}: ")).collect();
        let text = format!("{opened}{value}{}", " }".repeat(keys.len()));
        let _ = yaml(&text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        let _ = Dynamic::parse(&text, "t", Format::Yaml);
        let _ = Dynamic::parse(&text, "t", Format::Toml);
    }
}

#[test]
fn a_negative_limit_of_bytes_disables_the_middleware_instead_of_lifting_the_limit() {
    for key in ["maxRequestBodyBytes", "memRequestBodyBytes", "maxResponseBodyBytes", "memResponseBodyBytes"]
    {
        let dynamic =
            yaml(&format!("http: {{ middlewares: {{ m: {{ buffering: {{ {key}: -1 }} }} }} }}")).unwrap();
        let Middleware::Invalid(fault) = &dynamic.http.middlewares["m"] else { panic!("{key}") };
        assert!(fault.contains(key), "{fault}");
    }
}

#[test]
fn removed_header_options_are_served_with_a_warning() {
    let dynamic = yaml(
        "http: { middlewares: { m: { headers: { sslRedirect: true, sslHost: a.test, frameDeny: true } } } }",
    )
    .unwrap();
    let Middleware::Headers(headers) = &dynamic.http.middlewares["m"] else { panic!() };
    assert!(headers.frame_deny);
    let warnings: Vec<String> = dynamic.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("`redirectScheme`"), "{warnings:?}");
}

#[test]
fn numbers_are_read_as_gos_yaml_has_them() {
    for (text, want) in [
        ("0x3", 3),
        ("0o17", 15),
        ("017", 15),
        ("0b11", 3),
        ("1_000", 1000),
        ("1e3", 1000),
        ("2.0", 2),
        ("+4", 4),
    ] {
        let dynamic =
            yaml(&format!("http: {{ middlewares: {{ m: {{ inFlightReq: {{ amount: {text} }} }} }} }}"))
                .unwrap();
        let Middleware::InFlightReq(limit) = &dynamic.http.middlewares["m"] else { panic!("{text}") };
        assert_eq!(limit.amount, want, "{text}");
    }
    for text in ["'0x3'", "1.5", "0x", "0x-3", "0xg", "e3", "1e99", "inf", "nan", "1__e"] {
        let text = format!("http: {{ middlewares: {{ m: {{ inFlightReq: {{ amount: {text} }} }} }} }}");
        assert!(yaml(&text).is_err(), "{text}");
    }
}

#[test]
fn only_the_first_document_counts() {
    let text = "http: { routers: { a: { rule: 'Path(`/`)', service: s } } }\n---\nhttp: [what\n";
    let dynamic = yaml(text).unwrap();
    assert_eq!(dynamic.http.routers.len(), 1);
    assert!(dynamic.warnings[0].to_string().contains(":2:"), "{}", dynamic.warnings[0]);
    assert!(yaml("---\nhttp: {}\n").is_err(), "an empty block stays a problem");
    assert!(yaml("---\n").unwrap().is_empty());
}

#[test]
fn a_negative_duration_disables_at_most_its_object() {
    let dynamic = yaml(
        "http:\n  middlewares:\n    r: { retry: { attempts: 2, initialInterval: -1s } }\n    l: { rateLimit: { average: 1, period: -1s } }\n",
    )
    .unwrap();
    let Middleware::Retry(retry) = &dynamic.http.middlewares["r"] else { panic!() };
    assert_eq!(retry.initial_interval, Duration::ZERO);
    let Middleware::Invalid(fault) = &dynamic.http.middlewares["l"] else { panic!() };
    assert!(fault.contains("period"), "{fault}");
}

#[test]
fn a_cookies_expiry_is_read_and_empty_lists_count_as_none() {
    let text = "
http:
  services:
    s:
      loadBalancer:
        servers: [ { url: http://a } ]
        sticky: { cookie: { expires: 3600 } }
  middlewares:
    c: { compress: { encodings: [] } }
    e: { errors: { status: [ '500' ], service: s, errorRequestHeaders: [] } }
";
    let dynamic = yaml(text).unwrap();
    let ServiceKind::LoadBalancer(balancer) = &dynamic.http.services["s"].kind else { panic!() };
    assert_eq!(balancer.sticky.as_ref().unwrap().expires_s, 3600);
    let Middleware::Compress(compress) = &dynamic.http.middlewares["c"] else { panic!() };
    assert_eq!(compress.encodings.len(), 3);
    let Middleware::Errors(errors) = &dynamic.http.middlewares["e"] else { panic!() };
    assert!(errors.error_request_headers.is_none());
}
