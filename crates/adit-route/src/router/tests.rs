use proptest::prelude::*;

use super::*;

/// A request in one line: method, host, path with query, headers.
#[derive(Debug)]
struct Ask {
    method: Method,
    host: String,
    path: String,
    query: String,
    headers: HeaderMap,
    content_length: Option<u64>,
    peer: IpAddr,
    mesh: Option<MeshIdentity>,
    tls: bool,
}

impl Ask {
    fn get(host: &str, target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self {
            method: Method::GET,
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: HeaderMap::new(),
            content_length: None,
            peer: [127, 0, 0, 1].into(),
            mesh: None,
            tls: false,
        }
    }

    fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().unwrap());
        self
    }

    fn head(&self) -> HttpHead<'_> {
        HttpHead {
            entry_point: "web",
            tls: self.tls,
            host: &self.host,
            path: &self.path,
            query: &self.query,
            method: &self.method,
            headers: &self.headers,
            content_length: self.content_length,
            peer: self.peer,
            mesh: self.mesh.as_ref(),
        }
    }
}

fn spec(name: &str, rule: &str) -> RouterSpec<()> {
    RouterSpec {
        name: name.to_owned(),
        rule: rule.to_owned(),
        priority: 0,
        provider: 0,
        is_internal: false,
        entry_points: vec!["web".to_owned()],
        tls: false,
        any_scheme: false,
        target: (),
    }
}

fn table(rules: &[(&str, &str)]) -> RouterTable<()> {
    let (table, disabled) = RouterTable::build(rules.iter().map(|(name, rule)| spec(name, rule)));
    assert!(disabled.is_empty(), "{disabled:?}");
    table
}

fn winner<'t>(table: &'t RouterTable<()>, ask: &Ask) -> &'t str {
    table.decide(&ask.head()).map_or("", |router| router.name.as_str())
}

fn does_match(rule: &str, ask: &Ask) -> bool {
    winner(&table(&[("r", rule)]), ask) == "r"
}

#[test]
fn the_longest_rule_is_asked_first() {
    let table = table(&[
        ("all", "PathPrefix(`/`)"),
        ("host", "Host(`a.example`)"),
        ("api", "Host(`a.example`) && PathPrefix(`/api`)"),
        ("regexp", "HostRegexp(`^.+\\.example$`)"),
    ]);
    assert_eq!(winner(&table, &Ask::get("a.example", "/api/x")), "api");
    // The trap that Traefik's users know: the expression is longer than the name.
    assert_eq!(winner(&table, &Ask::get("a.example", "/")), "regexp");
    assert_eq!(winner(&table, &Ask::get("b.test", "/")), "all");
}

#[test]
fn a_given_priority_counts_and_a_reserved_one_is_refused() {
    let low = RouterSpec { priority: -5, ..spec("low", "Host(`a.example`) && PathPrefix(`/`)") };
    let high = RouterSpec { priority: 100, ..spec("high", "PathPrefix(`/`)") };
    let reserved = RouterSpec { priority: PRIORITY_MAX + 1, ..spec("reserved", "PathPrefix(`/`)") };
    let (table, disabled) = RouterTable::build([low.clone(), high, reserved.clone()]);
    assert_eq!(winner(&table, &Ask::get("a.example", "/")), "high");
    assert_eq!(disabled[0].name, "reserved");
    let (table, disabled) = RouterTable::build([low, RouterSpec { is_internal: true, ..reserved }]);
    assert!(disabled.is_empty());
    assert_eq!(winner(&table, &Ask::get("a.example", "/")), "reserved");
}

#[test]
fn ties_go_by_provider_and_then_by_name() {
    let (table, _) = RouterTable::build([
        RouterSpec { provider: 1, ..spec("a", "Host(`x.example`)") },
        RouterSpec { provider: 0, ..spec("d", "Host(`x.example`)") },
    ]);
    assert_eq!(winner(&table, &Ask::get("x.example", "/")), "d");
    let (table, _) = RouterTable::build([spec("z", "Host(`x.example`)"), spec("y", "Host(`x.example`)")]);
    assert_eq!(winner(&table, &Ask::get("x.example", "/")), "y");
}

#[test]
fn entry_points_and_tls_keep_routers_apart() {
    let (table, _) = RouterTable::build([
        RouterSpec { tls: true, ..spec("secure", "Host(`a.example`)") },
        RouterSpec {
            entry_points: vec!["other".to_owned()],
            ..spec("other", "Host(`a.example`) && PathPrefix(`/`)")
        },
    ]);
    let mut ask = Ask::get("a.example", "/");
    assert_eq!(winner(&table, &ask), "");
    ask.tls = true;
    assert_eq!(winner(&table, &ask), "secure");
}

#[test]
fn matchers_read_what_traefik_s_read() {
    let ask = || Ask::get("A.Example:8080", "/Foo/bar?k=v&k=w&e=");
    for (rule, expected) in [
        ("Host(`a.example`)", true),
        ("Host(`A.EXAMPLE.`)", true),
        ("Host(`*.example`)", true),
        ("Host(`*`)", true),
        ("Host(`[::1]`)", false),
        ("HostRegexp(`^a\\.`)", true),
        ("HostRegexp(`^A`)", false),
        ("Path(`/Foo/bar`)", true),
        ("Path(`/foo/bar`)", false),
        ("Path(`/Foo/bar/`)", false),
        ("PathPrefix(`/Fo`)", true),
        ("PathRegexp(`bar$`)", true),
        ("Method(`get`)", true),
        ("Method(`HEAD`)", false),
        ("Query(`k`, `w`)", true),
        ("Query(`K`, `w`)", false),
        ("Query(`k`)", false),
        ("Query(`e`)", true),
        ("QueryRegexp(`k`, `^v`)", true),
        ("QueryRegexp(`e`)", true),
        ("QueryRegexp(`none`, `.*`)", false),
        ("ClientIP(`127.0.0.1`)", true),
        ("ClientIP(`127.0.0.0/8`)", true),
        ("ClientIP(`::ffff:127.0.0.1`)", true),
        ("ClientIP(`10.0.0.0/8`)", false),
        ("Header(`x-a`, `1, 2`)", true),
        ("Header(`X-A`, `1`)", false),
        ("Header(`X-A`, `3`)", true),
        ("Header(`Host`, `a.example`)", false),
        ("Header(`bad name`, `a`)", false),
        ("HeaderRegexp(`X-A`, `^[0-9]$`)", true),
        ("!Host(`a.example`) || !(Method(`POST`) || Path(`/x`))", true),
    ] {
        let ask = ask().with_header("x-a", "1, 2").with_header("x-a", "3").with_header("host", "a.example");
        assert_eq!(does_match(rule, &ask), expected, "{rule}");
    }
    let nobody = Ask::get("", "/");
    assert!(
        does_match("Host(`*`)", &nobody)
            && !does_match("Host(`a`)", &nobody)
            && does_match("!Host(`a`)", &nobody)
    );
}

#[test]
fn a_router_whose_rule_is_wrong_is_left_out_alone() {
    for bad in [
        "Host(`bücher.example`)",
        "HostRegexp(`ü`)",
        "HostRegexp(`(?=a)`)",
        "Path(`a`)",
        "PathPrefix(`a`)",
        "PathRegexp(`[`)",
        "Header(`a`)",
        "Header(`a`, `b`, `c`)",
        "Query(`a`, `b`, `c`)",
        "Method(`GET`, `POST`)",
        "ClientIP(`localhost`)",
        "ClientIP(`10.0.0.0/8`, `::1`)",
        "HostSNI(`a`)",
        "",
    ] {
        let (table, disabled) = RouterTable::build([spec("bad", bad), spec("good", "PathPrefix(`/`)")]);
        assert_eq!(disabled.len(), 1, "{bad}");
        assert!(disabled[0].reason.starts_with("rule `"), "{}", disabled[0].reason);
        assert!(!disabled[0].reason.contains('\n'));
        assert_eq!(winner(&table, &Ask::get("a", "/")), "good");
    }
}

#[test]
fn a_rule_knows_its_hosts() {
    let table = table(&[("r", "Host(`B.example`) || Host(`a.example`) && !Host(`c.example`)")]);
    assert_eq!(table.routers()[0].hosts(), ["a.example", "b.example"]);
}

#[test]
fn explain_says_why_each_router_lost() {
    let (table, _) = RouterTable::build([
        spec("api", "Host(`a.example`) && PathPrefix(`/api`) && Method(`POST`)"),
        spec("app", "Host(`a.example`)"),
        spec("any", "Path(`/x`) || Path(`/api`)"),
        spec("neither", "Path(`/x`) || Path(`/y`)"),
        spec("last", "PathPrefix(`/`)"),
        RouterSpec { tls: true, ..spec("secure", "PathPrefix(`/`)") },
        RouterSpec { entry_points: vec!["other".to_owned()], ..spec("elsewhere", "PathPrefix(`/`)") },
    ]);
    let ask = Ask::get("a.example", "/api");
    let outcomes: Vec<(&str, RouterOutcome)> = table
        .explain(&ask.head())
        .into_iter()
        .map(|verdict| (verdict.router.name.as_str(), verdict.outcome))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("api", RouterOutcome::Differs("Method(`POST`)".into())),
            ("any", RouterOutcome::Wins),
            ("neither", RouterOutcome::Differs("none of Path(`/x`) or Path(`/y`)".into())),
            ("app", RouterOutcome::Outranked),
            ("elsewhere", RouterOutcome::OtherEntryPoint),
            ("last", RouterOutcome::Outranked),
            ("secure", RouterOutcome::OtherTls),
        ]
    );
}

#[test]
fn a_router_that_is_never_reached_is_named() {
    let table = table(&[
        ("app", "Host(`app.example.com`)"),
        ("wild", "HostRegexp(`^.+\\.example\\.com$`)"),
        ("api", "Host(`app.example.com`) && PathPrefix(`/api`)"),
        ("read", "Host(`app.example.com`) && PathPrefix(`/api`) && Method(`GET`)"),
        ("v1", "Host(`app.example.com`) && PathPrefix(`/api/v1`)"),
        ("two", "Host(`app.example.com`) || Host(`b.test`)"),
    ]);
    let shadows = table.shadows();
    let named: Vec<(&str, &str)> =
        shadows.iter().map(|shadow| (shadow.router.as_str(), shadow.by.as_str())).collect();
    assert_eq!(named, [("app", "two")]);
    assert_eq!(shadows[0].example, "app.example.com/");
}

#[test]
fn rules_that_cannot_mean_what_they_say_are_pointed_at() {
    let suspicions = |rule: &str| table(&[("r", rule)]).routers()[0].suspicions().join("; ");
    for (rule, word) in [
        ("Host(`{sub:[a-z]+}.example`)", "HostRegexp"),
        ("PathPrefix(`/{id}`)", "PathRegexp"),
        ("Host(`a.example:8080`)", "no port"),
        ("Path(`/`) || !Host(`[::1]`)", "no brackets"),
        ("Host(`a.*.example`)", "whole label"),
        ("Path(`/a?b=c`)", "query"),
    ] {
        assert!(suspicions(rule).contains(word), "{rule}: {}", suspicions(rule));
    }
    assert_eq!(suspicions("Host(`*.example`) && Host(`*`) && Path(`/a`)"), "");
}

#[test]
fn ten_thousand_hosts_are_not_compared_one_by_one() {
    let rules: Vec<(String, String)> = (0..10_000)
        .map(|n| (format!("r{n}"), format!("Host(`h{n}.example`) && PathPrefix(`/p{n}`)")))
        .collect();
    let (table, _) = RouterTable::build(rules.iter().map(|(name, rule)| spec(name, rule)));
    let index = &table.entry_points["web"][0];
    let mut asked = 0;
    let best = index.first("h77.example", "/p77/x", |_| {
        asked += 1;
        true
    });
    assert_eq!(
        (best.map(|position| table.routers[position as usize].name.as_str()), asked),
        (Some("r77"), 1)
    );
}

#[test]
fn ten_thousand_paths_of_one_host_are_not_compared_one_by_one() {
    let rules: Vec<(String, String)> = (0..10_000)
        .map(|n| (format!("r{n}"), format!("Host(`a.example`) && PathPrefix(`/p{n:05}/`)")))
        .collect();
    let (table, _) = RouterTable::build(rules.iter().map(|(name, rule)| spec(name, rule)));
    let mut asked = 0;
    table.entry_points["web"][0].first("a.example", "/p00077/x", |_| {
        asked += 1;
        true
    });
    assert_eq!(asked, 1);
    assert_eq!(winner(&table, &Ask::get("a.example", "/p00077/x")), "r77");
}

/// The table without its index: every router in turn.
fn naive<'t>(table: &'t RouterTable<()>, head: &HttpHead<'_>) -> Option<&'t str> {
    let router = table.routers.iter().find(|router| {
        router.tls == head.tls
            && router.entry_points.iter().any(|name| name == head.entry_point)
            && router.matches(head)
    })?;
    Some(&router.name)
}

fn leaf() -> impl Strategy<Value = String> {
    let host = prop::sample::select(vec!["a.x", "b.x", "*.x", "*", "a.x.", "c.b.x", "*.b.x", "*x"]);
    let path = prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/ab", "/b", "/é"]);
    prop_oneof![
        host.prop_map(|host| format!("Host(`{host}`)")),
        prop::sample::select(vec!["^a", "x$", "b", "^$"]).prop_map(|regex| format!("HostRegexp(`{regex}`)")),
        path.clone().prop_map(|path| format!("Path(`{path}`)")),
        path.prop_map(|path| format!("PathPrefix(`{path}`)")),
        prop::sample::select(vec!["GET", "POST"]).prop_map(|method| format!("Method(`{method}`)")),
        Just("Query(`q`, `1`)".to_owned()),
        Just("Header(`h`, `1`)".to_owned()),
    ]
}

fn rule() -> impl Strategy<Value = String> {
    leaf().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join(" && "))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join(" || "))),
            inner.prop_map(|part| format!("!{part}")),
        ]
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let host =
        prop::sample::select(vec!["a.x", "A.x:80", "b.x", "a.x.", "c.b.x", "x", "", "q.q", ".x", "d.c.b.x"]);
    let target = prop::sample::select(vec!["/", "/a", "/a/", "/a/b?q=1", "/ab", "/b?q=2", "/abc", "/é", "*"]);
    (host, target, any::<[bool; 3]>()).prop_map(|(host, target, [is_post, has_header, tls])| {
        let mut ask = Ask::get(host, target);
        ask.tls = tls;
        if is_post {
            ask.method = Method::POST;
        }
        match has_header {
            true => ask.with_header("h", "1"),
            false => ask,
        }
    })
}

#[test]
fn rules_know_the_peer_of_the_mesh_and_nobody_else() {
    let laptop = MeshIdentity {
        name: "laptop".into(),
        key: adit_config::PeerKey([1; 32]),
        groups: vec!["admins".into()],
    };
    let cases = [
        ("MeshPeer(`laptop`)", true, false),
        ("MeshPeer(`phone`)", false, false),
        ("MeshGroup(`admins`)", true, false),
        ("MeshGroup(`guests`)", false, false),
        ("MeshGroup(`guests`) || MeshPeer(`laptop`)", true, false),
        ("!MeshGroup(`admins`)", false, true),
    ];
    for (rule, inside, outside) in cases {
        let (table, disabled) = RouterTable::build([spec("r", rule)]);
        assert!(disabled.is_empty(), "{disabled:?}");
        let ask = |mesh| Ask { mesh, ..Ask::get("a.test", "/") };
        assert_eq!(table.decide(&ask(Some(laptop.clone())).head()).is_some(), inside, "{rule}");
        assert_eq!(table.decide(&ask(None).head()).is_some(), outside, "{rule}");
        assert!(table.shadows().is_empty());
    }
    let (_, disabled) = RouterTable::build([spec("r", "MeshPeer(`a`, `b`)")]);
    assert!(disabled[0].reason.contains("takes 1 argument"), "{disabled:?}");
}

proptest! {
    #[test]
    fn the_table_decides_as_asking_every_router_in_turn_does(
        rules in prop::collection::vec((rule(), -2_i64..3, any::<bool>()), 1..20),
        asks in prop::collection::vec(ask(), 1..12),
    ) {
        let specs = rules.iter().enumerate().map(|(index, (rule, priority, tls))| RouterSpec {
            priority: *priority,
            tls: *tls,
            ..spec(&format!("r{index}"), rule)
        });
        let (table, disabled) = RouterTable::build(specs);
        prop_assert!(disabled.is_empty(), "{:?}", disabled);
        for ask in &asks {
            let decided = table.decide(&ask.head()).map(|router| router.name.as_str());
            prop_assert_eq!(decided, naive(&table, &ask.head()));
            let wins = table.explain(&ask.head()).into_iter().find(|verdict| verdict.outcome == RouterOutcome::Wins);
            prop_assert_eq!(decided, wins.map(|verdict| verdict.router.name.as_str()));
        }
        let _ = table.shadows();
    }

    #[test]
    fn any_rule_text_is_compiled_or_refused(rule in "[HhostPaM()`\"!&|,/*a-c. ]{0,40}") {
        let _ = RouterTable::build([spec("r", &rule)]);
    }
}

#[test]
fn rules_see_the_length_of_the_content_as_a_header() {
    let ask = |content_length| Ask { content_length, ..Ask::get("a.test", "/") };
    assert!(does_match("Header(`Content-Length`, `3`)", &ask(Some(3))));
    assert!(!does_match("Header(`Content-Length`, `3`)", &ask(Some(33))));
    assert!(does_match("HeaderRegexp(`content-length`, `^[0-9]{2}$`)", &ask(Some(33))));
    assert!(!does_match("HeaderRegexp(`Content-Length`, `.*`)", &ask(None)));
}
