//! `http`: routers, services and transports.

use super::{
    BalancerStrategy, CertificatePair, Cookie, Domain, Failover, FailoverErrors, ForwardingTimeouts,
    HealthCheck, HealthCheckMode, HighestRandomWeight, HttpDynamic, LoadBalancer, Mirror, Mirroring,
    Observability, PassiveHealthCheck, PeerSan, Router, RouterTls, SameSite, Server, ServersTransport,
    Service, ServiceKind, WeightedService, WeightedServices,
    forms::Block,
    read_middlewares::read_middleware,
    read_tls::{read_pair, read_version},
};
use crate::read::{Field, Section};

pub(super) fn read_http(field: &Field<'_>) -> Option<HttpDynamic> {
    let mut section = field.block()?;
    let http = HttpDynamic {
        routers: section.optional("routers", |field| field.objects(read_router)).unwrap_or_default(),
        services: section.optional("services", |field| field.objects(read_service)).unwrap_or_default(),
        middlewares: section
            .optional("middlewares", |field| field.objects(read_middleware))
            .unwrap_or_default(),
        servers_transports: section
            .optional("serversTransports", |field| field.objects(read_transport))
            .unwrap_or_default(),
    };
    section.refuse(&["models"]);
    section.finish();
    Some(http)
}

fn read_router(field: &Field<'_>) -> Option<Router> {
    let mut section = field.element()?;
    let mut router = Router::default();
    section.set("entryPoints", &mut router.entry_points, Field::strings);
    section.set("middlewares", &mut router.middlewares, Field::strings);
    section.set("service", &mut router.service, Field::string);
    section.set("rule", &mut router.rule, Field::string);
    section.set("priority", &mut router.priority, Field::whole);
    router.tls = section.optional("tls", read_router_tls);
    section.set("observability", &mut router.observability, read_observability);
    read_rule_syntax(&mut section);
    if let Some(field) = section.take("parentRefs") {
        field.fault("routers with parents are not supported");
    }
    section.finish();
    router.fault = field.sink.take_fault();
    Some(router)
}

/// Only the third version's rules are read; the older are named, not misread.
pub(super) fn read_rule_syntax(section: &mut Section<'_>) {
    let Some(field) = section.take("ruleSyntax") else { return };
    match field.text() {
        Some("" | "v3" | "default") | None => {}
        Some(_) => field.fault("only rules of version 3 are supported (`Host(`a`) || Host(`b`)`)"),
    }
}

/// TLS of a router or an entry point.
pub(crate) fn read_router_tls(field: &Field<'_>) -> Option<RouterTls> {
    let mut section = match field.open_block() {
        Block::Off => return None,
        Block::Defaults => return Some(RouterTls::default()),
        Block::Section(section) => section,
    };
    let tls = RouterTls {
        options: section.optional("options", Field::filled),
        cert_resolver: section.optional("certResolver", Field::filled),
        domains: section.optional("domains", read_domains).unwrap_or_default(),
    };
    section.finish();
    Some(tls)
}

pub(super) fn read_domains(field: &Field<'_>) -> Option<Vec<Domain>> {
    Some(field.items().iter().filter_map(read_domain).collect())
}

pub(super) fn read_domain(field: &Field<'_>) -> Option<Domain> {
    let mut section = field.element()?;
    let mut domain = Domain::default();
    section.set("main", &mut domain.main, Field::string);
    section.set("sans", &mut domain.sans, Field::strings);
    section.finish();
    Some(domain)
}

fn read_observability(field: &Field<'_>) -> Option<Observability> {
    let mut section = field.block()?;
    let observability = Observability {
        access_logs: section.optional("accessLogs", Field::truth),
        metrics: section.optional("metrics", Field::truth),
    };
    read_tracing(&mut section);
    section.finish();
    Some(observability)
}

/// There is no tracing yet: asking for it is accepted, since files carry it everywhere, and said.
pub(crate) fn read_tracing(section: &mut Section<'_>) {
    if let Some(field) = section.take("tracing").filter(|field| field.truth() == Some(true)) {
        field.warn("tracing is not implemented in this version");
    }
    if let Some(field) = section.take("traceVerbosity") {
        field.text();
    }
}

fn read_service(field: &Field<'_>) -> Option<Service> {
    let mut section = field.element()?;
    let middlewares = section.optional("middlewares", Field::strings).unwrap_or_default();
    let mut kinds: Vec<ServiceKind> = [
        section.optional("loadBalancer", read_load_balancer).map(ServiceKind::LoadBalancer),
        section.optional("weighted", read_weighted).map(ServiceKind::Weighted),
        section.optional("mirroring", read_mirroring).map(ServiceKind::Mirroring),
        section.optional("failover", read_failover).map(ServiceKind::Failover),
        section.optional("highestRandomWeight", read_highest).map(ServiceKind::HighestRandomWeight),
    ]
    .into_iter()
    .flatten()
    .collect();
    section.finish();
    let kind = match (field.sink.take_fault(), kinds.pop()) {
        (Some(fault), _) => ServiceKind::Invalid(fault),
        (None, Some(kind)) if kinds.is_empty() => kind,
        (None, Some(_)) => ServiceKind::Invalid("one service cannot be of several kinds".to_owned()),
        (None, None) => ServiceKind::Invalid("the service is of no kind".to_owned()),
    };
    Some(Service { middlewares, kind })
}

fn read_load_balancer(field: &Field<'_>) -> Option<LoadBalancer> {
    let mut section = field.block()?;
    let mut balancer = LoadBalancer::default();
    section.set("servers", &mut balancer.servers, |field| {
        Some(field.items().iter().filter_map(read_server).collect())
    });
    balancer.sticky = section.optional("sticky", read_sticky);
    section.set("strategy", &mut balancer.strategy, |field| {
        Some(match field.text()? {
            "wrr" | "" => BalancerStrategy::Wrr,
            "p2c" => BalancerStrategy::P2c,
            "hrw" => BalancerStrategy::Hrw,
            "leasttime" => BalancerStrategy::LeastTime,
            _ => {
                field.fault("expected `wrr`, `p2c`, `hrw` or `leasttime`");
                return None;
            }
        })
    });
    balancer.health_check = section.optional("healthCheck", read_health_check);
    balancer.passive_health_check = section.optional("passiveHealthCheck", read_passive);
    section.set("passHostHeader", &mut balancer.pass_host_header, Field::truth);
    section.set("responseForwarding", &mut balancer.flush_interval, |field| {
        let mut section = field.block()?;
        let interval = section.optional("flushInterval", Field::limit_duration);
        section.finish();
        interval.map(Option::unwrap_or_default)
    });
    balancer.servers_transport = section.optional("serversTransport", Field::filled);
    section.finish();
    Some(balancer)
}

fn read_server(field: &Field<'_>) -> Option<Server> {
    let mut section = field.element()?;
    let mut server = Server { url: String::new(), weight: 1, preserve_path: false, fenced: false };
    section.set("url", &mut server.url, Field::string);
    section.set("weight", &mut server.weight, Field::weight);
    section.set("preservePath", &mut server.preserve_path, Field::truth);
    section.set("fenced", &mut server.fenced, Field::truth);
    section.finish();
    Some(server)
}

/// `sticky`, of which only the cookie exists.
fn read_sticky(field: &Field<'_>) -> Option<Cookie> {
    let Block::Section(mut section) = field.open_block() else { return None };
    let cookie = section.optional("cookie", |field| match field.open_block() {
        Block::Off => None,
        Block::Defaults => Some(Cookie::default()),
        Block::Section(section) => Some(read_cookie(section)),
    });
    section.finish();
    cookie
}

fn read_cookie(mut section: Section<'_>) -> Cookie {
    let mut cookie = Cookie { name: section.optional("name", Field::filled), ..Cookie::default() };
    section.set("secure", &mut cookie.secure, Field::truth);
    section.set("httpOnly", &mut cookie.http_only, Field::truth);
    cookie.same_site =
        section.optional("sameSite", |field| match field.text()?.to_ascii_lowercase().as_str() {
            "" => None,
            "none" => Some(SameSite::None),
            "lax" => Some(SameSite::Lax),
            "strict" => Some(SameSite::Strict),
            _ => {
                field.fault("expected `none`, `lax` or `strict`");
                None
            }
        });
    section.set("maxAge", &mut cookie.max_age_s, Field::whole);
    section.set("expires", &mut cookie.expires_s, Field::whole);
    section.set("path", &mut cookie.path, |field| Some(field.filled()));
    cookie.domain = section.optional("domain", Field::filled);
    section.finish();
    cookie
}

fn read_health_check(field: &Field<'_>) -> Option<HealthCheck> {
    let mut section = field.block()?;
    let mut check = HealthCheck::default();
    section.set("mode", &mut check.mode, |field| match field.text()? {
        "http" | "" => Some(HealthCheckMode::Http),
        "grpc" => Some(HealthCheckMode::Grpc),
        _ => {
            field.fault("expected `http` or `grpc`");
            None
        }
    });
    check.scheme = section.optional("scheme", Field::filled);
    section.set("path", &mut check.path, Field::string);
    section.set("method", &mut check.method, Field::filled);
    check.status = section.optional("status", |field| field.whole_in(0..=999)).filter(|status| *status > 0);
    check.port = section.optional("port", |field| field.whole_in(0..=65535)).filter(|port| *port > 0);
    section.set("interval", &mut check.interval, |field| field.period(HealthCheck::default().interval));
    check.unhealthy_interval = check.interval;
    let interval = check.interval;
    section.set("unhealthyInterval", &mut check.unhealthy_interval, |field| field.period(interval));
    section.set("timeout", &mut check.timeout, |field| field.period(HealthCheck::default().timeout));
    check.hostname = section.optional("hostname", Field::filled);
    section.set("followRedirects", &mut check.follow_redirects, Field::truth);
    section.set("headers", &mut check.headers, Field::string_map);
    section.finish();
    Some(check)
}

fn read_passive(field: &Field<'_>) -> Option<PassiveHealthCheck> {
    let mut section = field.block()?;
    let mut check = PassiveHealthCheck::default();
    let default = check.failure_window;
    section.set("failureWindow", &mut check.failure_window, |field| field.period(default));
    section.set("maxFailedAttempts", &mut check.failed_attempts_max, |field| {
        field.whole_in(0..=u64::from(u32::MAX))
    });
    section.finish();
    Some(check)
}

fn read_weighted(field: &Field<'_>) -> Option<WeightedServices> {
    let mut section = field.block()?;
    let weighted = WeightedServices {
        services: section.optional("services", read_weighted_services).unwrap_or_default(),
        sticky: section.optional("sticky", read_sticky),
        health_check: read_health_switch(&mut section),
    };
    section.finish();
    Some(weighted)
}

fn read_highest(field: &Field<'_>) -> Option<HighestRandomWeight> {
    let mut section = field.block()?;
    let highest = HighestRandomWeight {
        services: section.optional("services", read_weighted_services).unwrap_or_default(),
        health_check: read_health_switch(&mut section),
    };
    section.finish();
    Some(highest)
}

pub(super) fn read_weighted_services(field: &Field<'_>) -> Option<Vec<WeightedService>> {
    let read = |field: &Field<'_>| {
        let mut section = field.element()?;
        let mut service = WeightedService { name: String::new(), written: String::new(), weight: 1 };
        section.set("name", &mut service.name, Field::string);
        section.set("weight", &mut service.weight, Field::weight);
        section.finish();
        service.written.clone_from(&service.name);
        Some(service)
    };
    Some(field.items().iter().filter_map(read).collect())
}

/// `healthCheck: {}` of a service of services, which has no options.
pub(super) fn read_health_switch(section: &mut Section<'_>) -> bool {
    let Some(field) = section.take("healthCheck") else { return false };
    match field.open_block() {
        Block::Off => false,
        Block::Defaults => true,
        Block::Section(section) => {
            section.finish();
            true
        }
    }
}

fn read_mirroring(field: &Field<'_>) -> Option<Mirroring> {
    let mut section = field.block()?;
    let mut mirroring = Mirroring::default();
    section.set("service", &mut mirroring.service, Field::string);
    section.set("mirrorBody", &mut mirroring.mirror_body, Field::truth);
    section.set("maxBodySize", &mut mirroring.body_bytes_max, Field::bytes_max);
    section.set("mirrors", &mut mirroring.mirrors, |field| {
        let read = |field: &Field<'_>| {
            let mut section = field.element()?;
            let mut mirror = Mirror { name: String::new(), percent: 0 };
            section.set("name", &mut mirror.name, Field::string);
            section.set("percent", &mut mirror.percent, Field::whole);
            section.finish();
            Some(mirror)
        };
        Some(field.items().iter().filter_map(read).collect())
    });
    mirroring.health_check = read_health_switch(&mut section);
    section.finish();
    Some(mirroring)
}

fn read_failover(field: &Field<'_>) -> Option<Failover> {
    let mut section = field.block()?;
    let failover = Failover {
        service: section.optional("service", Field::string).unwrap_or_default(),
        fallback: section.optional("fallback", Field::string).unwrap_or_default(),
        health_check: read_health_switch(&mut section),
        errors: section.optional("errors", |field| {
            let mut section = field.block()?;
            let errors = FailoverErrors {
                status: section.optional("status", Field::strings).unwrap_or_default(),
                request_body_bytes_max: section.optional("maxRequestBodyBytes", Field::bytes_max).flatten(),
            };
            section.finish();
            Some(errors)
        }),
    };
    section.finish();
    Some(failover)
}

fn read_transport(field: &Field<'_>) -> Option<ServersTransport> {
    let mut section = field.element()?;
    let mut transport = ServersTransport::default();
    section.set("insecureSkipVerify", &mut transport.insecure_skip_verify, Field::truth);
    transport.server_name = section.optional("serverName", Field::filled);
    section.set("rootCAs", &mut transport.root_cas, Field::pems);
    section.set("certificates", &mut transport.certificates, read_pairs);
    section.set("cipherSuites", &mut transport.cipher_suites, Field::strings);
    transport.version_min = section.optional("minVersion", read_version);
    transport.version_max = section.optional("maxVersion", read_version);
    section.set("maxIdleConnsPerHost", &mut transport.idle_connections_per_host_max, Field::whole);
    section.set("forwardingTimeouts", &mut transport.timeouts, read_timeouts);
    section.set("disableHTTP2", &mut transport.disable_http2, Field::truth);
    transport.peer_cert_uri = section.optional("peerCertURI", Field::filled);
    section.set("peerCertSANs", &mut transport.peer_cert_sans, read_sans);
    refuse_spiffe(&mut section);
    section.finish();
    transport.fault = field.sink.take_fault();
    Some(transport)
}

pub(super) fn refuse_spiffe(section: &mut Section<'_>) {
    if let Some(field) = section.take("spiffe") {
        field.fault("SPIFFE is not supported");
    }
}

pub(super) fn read_pairs(field: &Field<'_>) -> Option<Vec<CertificatePair>> {
    let read = |field: &Field<'_>| {
        let mut section = field.element()?;
        let pair = read_pair(&mut section);
        section.finish();
        pair
    };
    Some(field.items().iter().filter_map(read).collect())
}

pub(super) fn read_sans(field: &Field<'_>) -> Option<Vec<PeerSan>> {
    let read = |field: &Field<'_>| {
        let mut section = field.element()?;
        let value = section.require("value").and_then(|field| field.string());
        let kind = section.require("type");
        section.finish();
        let (value, kind) = (value?, kind?);
        match kind.text()? {
            "DNSName" => Some(PeerSan::Dns(value)),
            "URI" => Some(PeerSan::Uri(value)),
            _ => {
                kind.fault("expected `DNSName` or `URI`");
                None
            }
        }
    };
    Some(field.items().iter().filter_map(read).collect())
}

fn read_timeouts(field: &Field<'_>) -> Option<ForwardingTimeouts> {
    let mut section = field.block()?;
    let mut timeouts = ForwardingTimeouts::default();
    section.set("dialTimeout", &mut timeouts.dial, Field::limit_duration);
    section.set("responseHeaderTimeout", &mut timeouts.response_header, Field::limit_duration);
    section.set("idleConnTimeout", &mut timeouts.idle_connection, Field::limit_duration);
    section.set("readIdleTimeout", &mut timeouts.read_idle, Field::limit_duration);
    section.set("pingTimeout", &mut timeouts.ping, Field::limit_duration);
    section.finish();
    Some(timeouts)
}
