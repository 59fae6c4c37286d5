//! Services against real servers in the clear: balancing, health, sticky sessions, mirrors, failover, reload.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use adit_config::dynamic::{
    BalancerStrategy, Cookie, Failover, FailoverErrors, ForwardingTimeouts, HealthCheck, LoadBalancer,
    Mirror, Mirroring, PassiveHealthCheck, ServersTransport, ServiceKind, WeightedService, WeightedServices,
};
use adit_proxy::body::{Body, Length};
use adit_proxy::middleware::{Outcome, Target};
use http::{Method, StatusCode};
use support::*;

fn weighted(shares: &[(&str, u32)]) -> WeightedServices {
    let services = shares.iter().map(|(name, weight)| WeightedService {
        name: (*name).to_owned(),
        written: (*name).to_owned(),
        weight: *weight,
    });
    WeightedServices { services: services.collect(), sticky: None, health_check: false }
}

fn failover(service: &str, fallback: &str, status: &[&str]) -> Failover {
    let errors = FailoverErrors {
        status: status.iter().map(|s| (*s).to_owned()).collect(),
        request_body_bytes_max: None,
    };
    Failover {
        service: service.to_owned(),
        fallback: fallback.to_owned(),
        health_check: false,
        errors: (!status.is_empty()).then_some(errors),
    }
}

fn probed(urls: &[&str]) -> LoadBalancer {
    let check = HealthCheck {
        path: "/healthz".to_owned(),
        interval: Duration::from_millis(20),
        unhealthy_interval: Duration::from_millis(20),
        ..HealthCheck::default()
    };
    LoadBalancer { health_check: Some(check), ..balancer(urls) }
}

fn post(body: &'static str) -> adit_proxy::message::Request {
    let mut post = request("/x");
    post.method = Method::POST;
    post.body = Body::full(body);
    post
}

#[tokio::test]
async fn three_to_one_is_six_of_eight() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    let plan = Plan::default().servers("a", &[&a.url()]).servers("b", &[&b.url()]);
    let services = plan.with("w", ServiceKind::Weighted(weighted(&[("a", 3), ("b", 1)]))).compile(None);
    for _ in 0..8 {
        get(&services, "w").await;
    }
    assert_eq!((a.asked().len(), b.asked().len()), (6, 2));
}

#[tokio::test]
async fn no_server_is_503_and_a_refusing_one_502() {
    let services = Plan::default().servers("none", &[]).servers("refused", &[&refused()]).compile(None);
    let none = get(&services, "none").await;
    assert_eq!((none.status.as_u16(), none.body.as_str()), (503, "no available server\n"));
    assert_eq!(none.headers["x-content-type-options"], "nosniff");
    assert_eq!(none.ctx.outcome, Outcome::Unasked);
    let refused = get(&services, "refused").await;
    assert_eq!((refused.status.as_u16(), refused.body.as_str()), (502, "Bad Gateway"));
    assert!(refused.headers.is_empty());
    assert_eq!(refused.ctx.outcome, Outcome::Unsent);
    assert_eq!(refused.ctx.log.refusal, Some("origin_connect"));
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_made_up_for_by_another() {
    let a = Origin::start("a").await;
    let services = Plan::default().servers("s", &[&refused(), &a.url()]).compile(None);
    for _ in 0..4 {
        let answer = ask(&services, "s", post("content")).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "a"));
        assert_eq!(answer.ctx.outcome, Outcome::Answered);
    }
    assert!(a.asked().iter().all(|asked| asked.ends_with("\r\n\r\ncontent")), "{:?}", a.asked());
    assert!(a.asked().iter().all(|asked| asked.matches("X-Forwarded-For").count() == 1));
}

#[tokio::test]
async fn servers_see_the_visitors_host_address_and_nothing_made_up() {
    let a = Origin::start("a").await;
    let services = Plan::default().servers("s", &[&format!("{}/base", a.url())]).compile(None);
    let mut asking = request("/a%2Fb?x=1&y=2");
    asking.headers.insert("connection", "keep-alive, x-hop".parse().unwrap());
    asking.headers.insert("x-hop", "1".parse().unwrap());
    asking.headers.insert("te", "trailers, deflate".parse().unwrap());
    asking.headers.append("x-forwarded-for", "198.51.100.1".parse().unwrap());
    asking.headers.append("x-forwarded-for", "198.51.100.2".parse().unwrap());
    let answer = ask(&services, "s", asking).await;
    let want = "GET /a%2Fb?x=1&y=2 HTTP/1.1\r\nHost: pub.test\r\nTe: trailers\r\n\
                X-Forwarded-For: 198.51.100.1, 198.51.100.2, 192.0.2.7\r\n\r\n";
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&a.asked()[0]), lines(want));
    assert_eq!(answer.ctx.log.service.as_deref(), Some("s@file"));
    assert_eq!(answer.ctx.log.service_url.as_deref(), Some(format!("{}/base", a.url()).as_str()));
    assert_eq!(answer.ctx.log.origin_status, Some(StatusCode::OK));
}

#[tokio::test]
async fn hosts_and_paths_are_the_servers_where_asked_for() {
    let a = Origin::start("a").await;
    let mut settings = LoadBalancer { pass_host_header: false, ..balancer(&[&format!("{}/base", a.url())]) };
    settings.servers[0].preserve_path = true;
    let services = Plan::default().with("s", ServiceKind::LoadBalancer(settings)).compile(None);
    ask(&services, "s", request("/y")).await;
    let want = format!("GET /base/y HTTP/1.1\r\nHost: {}\r\n", a.address);
    assert!(a.asked()[0].starts_with(&want), "{:?}", a.asked());
}

#[tokio::test]
async fn a_cookie_keeps_a_visitor_with_a_server() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    let cookie = Cookie { name: Some("lb".to_owned()), ..Cookie::default() };
    let settings = LoadBalancer { sticky: Some(cookie), ..balancer(&[&a.url(), &b.url()]) };
    let services = Plan::default().with("s", ServiceKind::LoadBalancer(settings)).compile(None);
    let first = get(&services, "s").await;
    let set = first.headers["set-cookie"].to_str().unwrap().to_owned();
    let pair = set.split(';').next().unwrap().to_owned();
    for _ in 0..4 {
        let mut again = request("/");
        again.headers.insert("cookie", pair.parse().unwrap());
        let answer = ask(&services, "s", again).await;
        assert_eq!(answer.body, first.body);
        assert!(!answer.headers.contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn a_weighted_services_cookie_is_made_of_the_name_as_written() {
    let a = Origin::start("a").await;
    let value = |written: &'static str| {
        let plan = Plan::default().servers("a", &[&a.url()]);
        let cookie = Cookie { name: Some("w".to_owned()), ..Cookie::default() };
        let settings = WeightedServices { sticky: Some(cookie), ..weighted(&[(written, 1)]) };
        let services = plan.with("w", ServiceKind::Weighted(settings)).compile(None);
        async move { get(&services, "w").await.headers["set-cookie"].clone() }
    };
    // The first 16 hexadecimal digits of SHA-256 of "a", and of "a@file".
    assert_eq!(value("a").await, "w=ca978112ca1bbdca; Path=/");
    assert_eq!(value("a@file").await, "w=2bfa7ea762adbfdb; Path=/");
}

#[tokio::test]
async fn a_failing_probe_takes_a_server_out_at_once_and_a_good_one_brings_it_back() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    b.health.store(500, Ordering::SeqCst);
    let settings = probed(&[&a.url(), &b.url()]);
    let services = Plan::default().with("s", ServiceKind::LoadBalancer(settings)).compile(None);
    let down = || services.statuses().any(|s| s.servers.iter().any(|server| !server.up));
    until(down).await;
    for _ in 0..4 {
        assert_eq!(get(&services, "s").await.body, "a");
    }
    b.health.store(204, Ordering::SeqCst);
    until(|| !down()).await;
    let mut bodies = vec![get(&services, "s").await.body, get(&services, "s").await.body];
    bodies.sort();
    assert_eq!(bodies, ["a", "b"]);
}

#[tokio::test]
async fn probes_end_with_their_service_and_go_on_over_a_reload() {
    let a = Origin::start("a").await;
    a.health.store(500, Ordering::SeqCst);
    let plan = Plan::default().with("s", ServiceKind::LoadBalancer(probed(&[&a.url()])));
    let first = plan.compile(None);
    until(|| first.statuses().all(|s| !s.up)).await;
    let second = plan.compile(Some(&first));
    drop(first);
    assert_eq!(get(&second, "s").await.status, 503, "health is known from before");
    let probes = a.probes.load(Ordering::SeqCst);
    until(|| a.probes.load(Ordering::SeqCst) > probes + 1).await;
    let third = Plan::default().servers("s", &[&a.url()]).compile(Some(&second));
    assert_eq!(get(&third, "s").await.status, 200, "nobody asks any more, so it counts as up");
}

#[tokio::test]
async fn probes_are_made_as_asked_for() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    b.health.store(302, Ordering::SeqCst);
    let check = HealthCheck {
        path: "/healthz?deep".to_owned(),
        method: "HEAD".to_owned(),
        hostname: Some("probe.test".to_owned()),
        headers: [("X-Probe".to_owned(), "1".to_owned())].into(),
        port: Some(b.address.port()),
        ..HealthCheck::default()
    };
    // The server is one, the port that is probed another; a redirect that never ends is no health.
    let settings = LoadBalancer { health_check: Some(check.clone()), ..balancer(&[&a.url()]) };
    let unfollowed = HealthCheck { follow_redirects: false, ..check };
    let plain = LoadBalancer { health_check: Some(unfollowed), ..balancer(&[&a.url()]) };
    let services = Plan::default()
        .with("s", ServiceKind::LoadBalancer(settings))
        .with("t", ServiceKind::LoadBalancer(plain))
        .compile(None);
    until(|| services.statuses().any(|s| &*s.name == "s@file" && !s.up)).await;
    until(|| b.probes.load(Ordering::SeqCst) == 12).await;
    assert!(services.statuses().any(|s| &*s.name == "t@file" && s.up), "302 counts as well");
    let heads = b.probe_heads.lock().unwrap();
    assert!(
        heads.iter().all(|h| h.starts_with("HEAD /healthz") && h.contains("Host: probe.test\r\n")),
        "{heads:?}"
    );
    assert!(heads.iter().all(|h| h.contains("X-Probe: 1\r\n")));
    assert!(heads[0].starts_with("HEAD /healthz?deep HTTP/1.1"));
    assert!(heads.iter().any(|h| h.starts_with("HEAD /healthz/again?x HTTP/1.1")));
    assert_eq!(a.probes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn visitors_failures_take_a_server_out() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    b.status.store(500, Ordering::SeqCst);
    let passive = PassiveHealthCheck { failure_window: Duration::from_secs(60), failed_attempts_max: 1 };
    let settings = LoadBalancer { passive_health_check: Some(passive), ..balancer(&[&a.url(), &b.url()]) };
    let services = Plan::default().with("s", ServiceKind::LoadBalancer(settings)).compile(None);
    for _ in 0..6 {
        get(&services, "s").await;
    }
    assert_eq!(b.asked().len(), 1);
}

#[tokio::test]
async fn parents_learn_of_health_only_where_all_ask_for_it() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    a.health.store(500, Ordering::SeqCst);
    let group = WeightedServices { health_check: true, ..weighted(&[("a", 1), ("b", 1)]) };
    let services = Plan::default()
        .with("a", ServiceKind::LoadBalancer(probed(&[&a.url()])))
        .with("b", ServiceKind::LoadBalancer(probed(&[&b.url()])))
        .servers("plain", &[&b.url()])
        .with("w", ServiceKind::Weighted(group))
        .with(
            "deaf",
            ServiceKind::Weighted(WeightedServices { health_check: true, ..weighted(&[("plain", 1)]) }),
        )
        .with("fo", ServiceKind::Failover(failover("a", "plain", &[])))
        .with("blind", ServiceKind::Failover(failover("plain", "a", &[])))
        .compile(None);
    until(|| services.statuses().any(|s| &*s.name == "a@file" && !s.up)).await;
    for _ in 0..4 {
        assert_eq!(get(&services, "w").await.body, "b");
        assert_eq!(get(&services, "fo").await.body, "b");
    }
    let faults: Vec<&str> = services.faults().map(|(name, _)| name).collect();
    assert_eq!(faults, ["blind@file", "deaf@file"]);
}

#[tokio::test]
async fn an_error_status_goes_to_the_fallback_with_the_same_content() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    a.status.store(503, Ordering::SeqCst);
    b.status.store(503, Ordering::SeqCst);
    let services = Plan::default()
        .servers("a", &[&a.url()])
        .servers("b", &[&b.url()])
        .servers("gone", &[&refused()])
        .with("fo", ServiceKind::Failover(failover("a", "b", &["500-599"])))
        .with("fo-gone", ServiceKind::Failover(failover("gone", "b", &["502"])))
        .compile(None);
    let answer = ask(&services, "fo", post("content")).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (503, "b"));
    ask(&services, "fo-gone", post("content")).await;
    assert!([a.asked(), b.asked()].concat().iter().all(|asked| asked.ends_with("\r\n\r\ncontent")));
    assert_eq!((a.asked().len(), b.asked().len()), (1, 2));
    a.status.store(200, Ordering::SeqCst);
    assert_eq!(get(&services, "fo").await.body, "a");
}

#[tokio::test]
async fn content_over_failovers_limit_is_413() {
    let a = Origin::start("a").await;
    let mut settings = failover("a", "a", &["500"]);
    settings.errors.as_mut().unwrap().request_body_bytes_max = Some(3);
    let plan = Plan::default().servers("a", &[&a.url()]);
    let services = plan.with("fo", ServiceKind::Failover(settings)).compile(None);
    let answer = ask(&services, "fo", post("four")).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (413, "Request body too large\n"));
    assert_eq!(ask(&services, "fo", post("one")).await.status, 200);
}

#[tokio::test]
async fn mirrors_get_their_share_with_the_same_content() {
    let (a, b, c) = (Origin::start("a").await, Origin::start("b").await, Origin::start("c").await);
    let mirror = |name: &str, percent| Mirror { name: name.to_owned(), percent };
    let settings = Mirroring {
        service: "a".to_owned(),
        mirrors: vec![mirror("b", 100), mirror("c", 50)],
        ..Mirroring::default()
    };
    let services = Plan::default()
        .servers("a", &[&a.url()])
        .servers("b", &[&b.url()])
        .servers("c", &[&c.url()])
        .with("m", ServiceKind::Mirroring(settings))
        .with(
            "wrong",
            ServiceKind::Mirroring(Mirroring {
                service: "a".to_owned(),
                mirrors: vec![mirror("b", 101)],
                ..Mirroring::default()
            }),
        )
        .compile(None);
    for _ in 0..4 {
        assert_eq!(ask(&services, "m", post("abc")).await.body, "a");
    }
    until(|| b.asked().len() == 4 && c.asked().len() == 2).await;
    assert!([b.asked(), c.asked()].concat().iter().all(|asked| asked.ends_with("\r\n\r\nabc")));
    assert_eq!(services.faults().map(|(name, _)| name).collect::<Vec<_>>(), ["wrong@file"]);
}

#[tokio::test]
async fn content_over_a_mirrors_limit_reaches_the_service_only() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    let settings = Mirroring {
        service: "a".to_owned(),
        mirrors: vec![Mirror { name: "b".to_owned(), percent: 100 }],
        body_bytes_max: Some(3),
        ..Mirroring::default()
    };
    let plan = Plan::default().servers("a", &[&a.url()]).servers("b", &[&b.url()]);
    let services = plan.with("m", ServiceKind::Mirroring(settings)).compile(None);
    ask(&services, "m", post("four")).await;
    ask(&services, "m", post("one")).await;
    until(|| !b.asked().is_empty()).await;
    assert_eq!(a.asked().len(), 2);
    assert!(b.asked()[0].ends_with("\r\n\r\none"));
}

#[tokio::test]
async fn a_server_that_does_not_answer_in_time_is_504() {
    let a = Origin::start("a").await;
    let timeouts = ForwardingTimeouts {
        response_header: Some(Duration::from_millis(50)),
        ..ForwardingTimeouts::default()
    };
    let transport = ServersTransport { timeouts, ..ServersTransport::default() };
    let settings = LoadBalancer { servers_transport: Some("t".to_owned()), ..balancer(&[&a.url()]) };
    let plan = Plan::default().transport("t", transport);
    let services = plan.with("s", ServiceKind::LoadBalancer(settings)).compile(None);
    let answer = ask(&services, "s", request("/hang")).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (504, "Gateway Timeout"));
    assert_eq!(answer.ctx.outcome, Outcome::Failed);
    assert_eq!(get(&services, "s").await.status, 200);
}

#[tokio::test]
async fn connections_outlive_a_reload_that_does_not_concern_them() {
    let a = Origin::start("a").await;
    let plan = Plan::default().servers("s", &[&a.url()]);
    let mut services = plan.compile(None);
    for _ in 0..3 {
        assert_eq!(get(&services, "s").await.status, 200);
        services = plan.compile(Some(&services));
    }
    assert_eq!(a.connections.load(Ordering::SeqCst), 1);
    let closing = ServersTransport { idle_connections_per_host_max: -1, ..ServersTransport::default() };
    let settings = LoadBalancer { servers_transport: Some("t".to_owned()), ..balancer(&[&a.url()]) };
    let plan = Plan::default().transport("t", closing).with("s", ServiceKind::LoadBalancer(settings));
    let services = plan.compile(Some(&services));
    for _ in 0..2 {
        get(&services, "s").await;
    }
    assert_eq!(a.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_upgrade_is_spliced_through_any_kind_of_service() {
    let a = Origin::start("a").await;
    let services = Plan::default()
        .servers("a", &[&a.url()])
        .with("fo", ServiceKind::Failover(failover("a", "a", &["500-599"])))
        .with("w", ServiceKind::Weighted(weighted(&[("fo", 1)])))
        .compile(None);
    let node = services.node("w@file").unwrap();
    let mut asking = request("/ws");
    // As it comes over HTTP/2: no key, and another method (RFC 8441).
    asking.method = Method::CONNECT;
    asking.upgrade = Some("websocket".into());
    asking.body = Body::stream(Once(Some("ping")), Length::Raw);
    let answer = node.call(asking, &mut ctx()).await;
    assert_eq!(answer.status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.body.length(), Length::Raw);
    drop(services);
    assert_eq!(read(answer.body).await.0, "ping");
    assert!(a.asked()[0].starts_with("GET /ws HTTP/1.1\r\n"));
    assert!(a.asked()[0].contains("Sec-WebSocket-Key: "));
}

/// One chunk and the end.
struct Once(Option<&'static str>);

impl adit_proxy::body::BodySource for Once {
    fn poll_chunks(
        &mut self,
        _cx: &mut std::task::Context<'_>,
        out: &mut adit_proxy::body::Batch,
    ) -> std::task::Poll<Result<bool, adit_proxy::body::BodyError>> {
        out.extend(self.0.take().map(|text| bytes::Bytes::from_static(text.as_bytes())));
        std::task::Poll::Ready(Ok(false))
    }
}

#[tokio::test]
async fn strategies_look_at_load_and_time() {
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    let of = |strategy| LoadBalancer { strategy, ..balancer(&[&a.url(), &b.url()]) };
    let services = Plan::default()
        .with("p2c", ServiceKind::LoadBalancer(of(BalancerStrategy::P2c)))
        .with("hrw", ServiceKind::LoadBalancer(of(BalancerStrategy::Hrw)))
        .with("least", ServiceKind::LoadBalancer(of(BalancerStrategy::LeastTime)))
        .compile(None);
    let node = services.node("p2c@file").unwrap();
    let hanging = tokio::spawn(async move { node.call(request("/hang"), &mut ctx()).await });
    until(|| a.connections.load(Ordering::SeqCst) + b.connections.load(Ordering::SeqCst) > 0).await;
    let first = get(&services, "p2c").await.body;
    for _ in 0..5 {
        assert_eq!(get(&services, "p2c").await.body, first, "the other one is busy");
    }
    hanging.abort();
    let one = get(&services, "hrw").await.body;
    for _ in 0..5 {
        assert_eq!(get(&services, "hrw").await.body, one);
    }
    assert_eq!(get(&services, "least").await.status, 200);
}

#[tokio::test]
async fn what_makes_no_sense_is_disabled_alone() {
    let a = Origin::start("a").await;
    let elsewhere = LoadBalancer { servers_transport: Some("t".to_owned()), ..balancer(&[&a.url()]) };
    let mut plan = Plan::default()
        .servers("good", &[&a.url()])
        .servers("bad-url", &["10.0.0.1:80"])
        .with("nowhere", ServiceKind::LoadBalancer(elsewhere))
        .with("w", ServiceKind::Weighted(weighted(&[("good", 1), ("nope", 1)])))
        .with("x", ServiceKind::Weighted(weighted(&[("y", 1)])))
        .with("y", ServiceKind::Weighted(weighted(&[("x", 1)])))
        .with("two", ServiceKind::Invalid("two kinds in one".to_owned()));
    let mut with_middleware = service(ServiceKind::LoadBalancer(balancer(&[&a.url()])));
    with_middleware.middlewares.push("m".to_owned());
    plan.services.insert("m@file".to_owned(), with_middleware);
    let services = plan.compile(None);
    let faults: Vec<(&str, &str)> = services.faults().collect();
    let names: Vec<&str> = faults.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["bad-url@file", "m@file", "nowhere@file", "two@file", "w@file", "x@file", "y@file"]);
    assert!(
        faults.iter().any(|(_, why)| why.contains("nope@file") && why.contains("does not exist")),
        "{faults:?}"
    );
    assert!(services.node("nope@file").is_err());
    assert_eq!(get(&services, "good").await.status, 200);
}

#[tokio::test]
async fn only_one_word_about_framing_and_host_reaches_a_server() {
    let a = Origin::start("a").await;
    let services = Plan::default().servers("s", &[&a.url()]).compile(None);
    let forged = |mut request: adit_proxy::message::Request| {
        for (name, value) in [("content-length", "0"), ("transfer-encoding", "chunked"), ("host", "evil")] {
            request.headers.append(name, value.parse().unwrap());
        }
        request
    };
    let mut upgrade = forged(request("/"));
    upgrade.upgrade = Some("websocket".into());
    upgrade.body = Body::stream(Nothing, Length::Raw);
    let node = services.node("s@file").unwrap();
    assert_eq!(node.call(upgrade, &mut ctx()).await.status, 101);
    ask(&services, "s", forged(post("GET /admin HTTP/1.1\r\nHost: internal\r\nX: "))).await;
    assert_eq!(ask(&services, "s", forged(request("/innocent"))).await.body, "a");
    let asked = a.asked();
    let lines = |head: &str, name: &str| {
        let head = head.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        head.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect::<Vec<_>>()
    };
    let lengths: Vec<_> = asked.iter().map(|head| lines(head, "content-length:")).collect();
    assert_eq!(lengths, [vec![], vec!["content-length: 40".to_owned()], vec![]], "{asked:?}");
    assert!(asked.iter().all(|head| lines(head, "transfer-encoding:").is_empty()), "{asked:?}");
    assert!(asked.iter().all(|head| lines(head, "host:") == ["host: pub.test"]), "{asked:?}");
}

/// A visitor that has sent nothing yet.
struct Nothing;

impl adit_proxy::body::BodySource for Nothing {
    fn poll_chunks(
        &mut self,
        _cx: &mut std::task::Context<'_>,
        _out: &mut adit_proxy::body::Batch,
    ) -> std::task::Poll<Result<bool, adit_proxy::body::BodyError>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn only_announced_trailers_of_a_visitor_reach_a_server() {
    let a = Origin::start("a").await;
    let services = Plan::default().servers("s", &[&a.url()]).compile(None);
    let mut asking = request("/");
    asking.method = Method::POST;
    asking.headers.insert("trailer", "X-Sum, X-Never".parse().unwrap());
    asking.body = Body::stream(Trailed, Length::Unknown);
    ask(&services, "s", asking).await;
    assert!(a.asked()[0].ends_with("0\r\nX-Sum: 1\r\n\r\n"), "{:?}", a.asked());
    assert!(a.asked()[0].contains("\r\nTrailer: X-Sum, X-Never\r\n"), "{:?}", a.asked());
}

/// Content whose sender says more behind it than it has announced.
struct Trailed;

impl adit_proxy::body::BodySource for Trailed {
    fn poll_chunks(
        &mut self,
        _cx: &mut std::task::Context<'_>,
        out: &mut adit_proxy::body::Batch,
    ) -> std::task::Poll<Result<bool, adit_proxy::body::BodyError>> {
        out.push_back("content".into());
        std::task::Poll::Ready(Ok(false))
    }

    fn take_trailers(&mut self) -> Option<http::HeaderMap> {
        let fields = [("x-sum", "1"), ("remote-user", "root")];
        let fields = fields.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Some(http::HeaderMap::from_iter(fields))
    }
}
