//! `tcp` and `udp`.

use super::{
    ProxyProtocolVersion, TcpDynamic, TcpHealthCheck, TcpLoadBalancer, TcpMiddleware, TcpRouter,
    TcpRouterTls, TcpServer, TcpServersTransport, TcpService, TcpTlsClient, UdpDynamic, UdpRouter,
    UdpService,
    forms::Block,
    read_http::{
        read_domains, read_health_switch, read_pairs, read_rule_syntax, read_sans, read_weighted_services,
        refuse_spiffe,
    },
};
use crate::read::Field;

pub(super) fn read_tcp(field: &Field<'_>) -> Option<TcpDynamic> {
    let mut section = field.block()?;
    let mut tcp = TcpDynamic::default();
    section.set("routers", &mut tcp.routers, |field| field.objects(read_router));
    section.set("services", &mut tcp.services, |field| field.objects(read_service));
    section.set("middlewares", &mut tcp.middlewares, |field| field.objects(read_middleware));
    section.set("serversTransports", &mut tcp.servers_transports, |field| field.objects(read_transport));
    section.finish();
    Some(tcp)
}

fn read_router(field: &Field<'_>) -> Option<TcpRouter> {
    let mut section = field.element()?;
    let mut router = TcpRouter::default();
    section.set("entryPoints", &mut router.entry_points, Field::strings);
    section.set("middlewares", &mut router.middlewares, Field::strings);
    section.set("service", &mut router.service, Field::string);
    section.set("rule", &mut router.rule, Field::string);
    section.set("priority", &mut router.priority, Field::whole);
    router.tls = section.optional("tls", read_router_tls);
    read_rule_syntax(&mut section);
    section.finish();
    router.fault = field.sink.take_fault();
    Some(router)
}

fn read_router_tls(field: &Field<'_>) -> Option<TcpRouterTls> {
    let mut section = match field.open_block() {
        Block::Off => return None,
        Block::Defaults => return Some(TcpRouterTls::default()),
        Block::Section(section) => section,
    };
    let mut tls = TcpRouterTls::default();
    section.set("passthrough", &mut tls.passthrough, Field::truth);
    tls.options = section.optional("options", Field::filled);
    tls.cert_resolver = section.optional("certResolver", Field::filled);
    section.set("domains", &mut tls.domains, read_domains);
    section.finish();
    Some(tls)
}

fn read_service(field: &Field<'_>) -> Option<TcpService> {
    let mut section = field.element()?;
    let balancer = section.optional("loadBalancer", read_load_balancer).map(TcpService::LoadBalancer);
    let weighted = section.optional("weighted", |field| {
        let mut section = field.block()?;
        let weighted = TcpService::Weighted {
            services: section.optional("services", read_weighted_services).unwrap_or_default(),
            health_check: read_health_switch(&mut section),
        };
        section.finish();
        Some(weighted)
    });
    section.finish();
    Some(one_kind(field, balancer, weighted, TcpService::Invalid))
}

/// The one kind that was written, or why there is none.
fn one_kind<T>(
    field: &Field<'_>,
    first: Option<T>,
    second: Option<T>,
    invalid: impl FnOnce(String) -> T,
) -> T {
    match (field.sink.take_fault(), first, second) {
        (Some(fault), ..) => invalid(fault),
        (None, Some(kind), None) | (None, None, Some(kind)) => kind,
        (None, Some(_), Some(_)) => invalid("one service cannot be of several kinds".to_owned()),
        (None, None, None) => invalid("the service is of no kind".to_owned()),
    }
}

fn read_load_balancer(field: &Field<'_>) -> Option<TcpLoadBalancer> {
    let mut section = field.block()?;
    let mut balancer = TcpLoadBalancer::default();
    section.set("servers", &mut balancer.servers, |field| {
        let read = |field: &Field<'_>| {
            let mut section = field.element()?;
            let mut server = TcpServer::default();
            section.set("address", &mut server.address, Field::string);
            section.set("tls", &mut server.tls, Field::truth);
            section.finish();
            Some(server)
        };
        Some(field.items().iter().filter_map(read).collect())
    });
    balancer.servers_transport = section.optional("serversTransport", Field::filled);
    balancer.proxy_protocol = section.optional("proxyProtocol", read_proxy_protocol);
    balancer.termination_delay = section
        .optional("terminationDelay", |field| {
            // Here, unlike in a transport, a number alone means milliseconds.
            field.whole().map(|delay_ms| u64::try_from(delay_ms).ok())
        })
        .flatten()
        .map(std::time::Duration::from_millis);
    balancer.health_check = section.optional("healthCheck", read_health_check);
    section.finish();
    Some(balancer)
}

fn read_proxy_protocol(field: &Field<'_>) -> Option<ProxyProtocolVersion> {
    let mut section = match field.open_block() {
        Block::Off => return None,
        Block::Defaults => return Some(ProxyProtocolVersion::V2),
        Block::Section(section) => section,
    };
    let mut version = ProxyProtocolVersion::V2;
    section.set("version", &mut version, |field| match field.whole()? {
        1 => Some(ProxyProtocolVersion::V1),
        2 => Some(ProxyProtocolVersion::V2),
        _ => {
            field.fault("expected `1` or `2`");
            None
        }
    });
    section.finish();
    Some(version)
}

fn read_health_check(field: &Field<'_>) -> Option<TcpHealthCheck> {
    let mut check = TcpHealthCheck::default();
    let mut section = match field.open_block() {
        Block::Off => return None,
        Block::Defaults => return Some(check),
        Block::Section(section) => section,
    };
    check.port = section.optional("port", |field| field.whole_in(0..=65535)).filter(|port| *port > 0);
    section.set("send", &mut check.send, Field::string);
    section.set("expect", &mut check.expect, Field::string);
    section.set("interval", &mut check.interval, |field| field.period(TcpHealthCheck::default().interval));
    check.unhealthy_interval = check.interval;
    let interval = check.interval;
    section.set("unhealthyInterval", &mut check.unhealthy_interval, |field| field.period(interval));
    section.set("timeout", &mut check.timeout, |field| field.period(TcpHealthCheck::default().timeout));
    section.finish();
    Some(check)
}

fn read_middleware(field: &Field<'_>) -> Option<TcpMiddleware> {
    let mut section = field.element()?;
    let read_source_range = |field: &Field<'_>| {
        let mut section = field.block()?;
        let source_range = section.optional("sourceRange", Field::strings).unwrap_or_default();
        section.finish();
        Some(TcpMiddleware::IpAllowList { source_range })
    };
    let mut kinds: Vec<TcpMiddleware> = [
        section.optional("inFlightConn", |field| {
            let mut section = field.block()?;
            let amount = section.optional("amount", Field::whole).unwrap_or_default();
            section.finish();
            Some(TcpMiddleware::InFlightConn { amount })
        }),
        section.optional("ipAllowList", read_source_range),
        section.optional("ipWhiteList", read_source_range),
    ]
    .into_iter()
    .flatten()
    .collect();
    section.finish();
    Some(match (field.sink.take_fault(), kinds.pop()) {
        (Some(fault), _) => TcpMiddleware::Invalid(fault),
        (None, Some(kind)) if kinds.is_empty() => kind,
        (None, Some(_)) => TcpMiddleware::Invalid("one middleware cannot be of several kinds".to_owned()),
        (None, None) => TcpMiddleware::Invalid("the middleware is of no kind".to_owned()),
    })
}

fn read_transport(field: &Field<'_>) -> Option<TcpServersTransport> {
    let mut section = field.element()?;
    let mut transport = TcpServersTransport::default();
    section.set("dialKeepAlive", &mut transport.dial_keep_alive, |field| {
        // Negative = off; zero = the default.
        field.limit_duration().map(|period| match field.scalar() {
            Some(text) if text.starts_with('-') => None,
            _ => period.or(TcpServersTransport::default().dial_keep_alive),
        })
    });
    section.set("dialTimeout", &mut transport.dial_timeout, Field::limit_duration);
    transport.proxy_protocol = section.optional("proxyProtocol", read_proxy_protocol);
    section.set("terminationDelay", &mut transport.termination_delay, |field| {
        match field.scalar().is_some_and(|text| text.starts_with('-')) {
            true => field.limit_duration(),
            false => field.go_duration().map(Some),
        }
    });
    transport.tls = section.optional("tls", read_tls_client);
    section.finish();
    transport.fault = field.sink.take_fault();
    Some(transport)
}

fn read_tls_client(field: &Field<'_>) -> Option<TcpTlsClient> {
    let mut tls = TcpTlsClient::default();
    let mut section = match field.open_block() {
        Block::Off => return None,
        Block::Defaults => return Some(tls),
        Block::Section(section) => section,
    };
    tls.server_name = section.optional("serverName", Field::filled);
    section.set("insecureSkipVerify", &mut tls.insecure_skip_verify, Field::truth);
    section.set("rootCAs", &mut tls.root_cas, Field::pems);
    section.set("certificates", &mut tls.certificates, read_pairs);
    tls.peer_cert_uri = section.optional("peerCertURI", Field::filled);
    section.set("peerCertSANs", &mut tls.peer_cert_sans, read_sans);
    refuse_spiffe(&mut section);
    section.finish();
    Some(tls)
}

pub(super) fn read_udp(field: &Field<'_>) -> Option<UdpDynamic> {
    let mut section = field.block()?;
    let mut udp = UdpDynamic::default();
    section.set("routers", &mut udp.routers, |field| {
        field.objects(|field| {
            let mut section = field.element()?;
            let mut router = UdpRouter::default();
            section.set("entryPoints", &mut router.entry_points, Field::strings);
            section.set("service", &mut router.service, Field::string);
            section.set("rule", &mut router.rule, |field| {
                let rule = field.string()?;
                if rule.trim().is_empty() {
                    // What was to restrict a port must not open it.
                    field.reject("a rule; without the key, the router takes everybody");
                }
                Some(rule)
            });
            section.set("priority", &mut router.priority, Field::whole);
            section.finish();
            router.fault = field.sink.take_fault();
            Some(router)
        })
    });
    section.set("services", &mut udp.services, |field| field.objects(read_udp_service));
    section.finish();
    Some(udp)
}

fn read_udp_service(field: &Field<'_>) -> Option<UdpService> {
    let mut section = field.element()?;
    let balancer = section.optional("loadBalancer", |field| {
        let mut section = field.block()?;
        let read = |field: &Field<'_>| {
            let mut section = field.element()?;
            let address = section.require("address").and_then(|field| field.string());
            section.finish();
            address
        };
        let servers = section
            .optional("servers", |field| Some(field.items().iter().filter_map(read).collect()))
            .unwrap_or_default();
        section.finish();
        Some(UdpService::LoadBalancer { servers })
    });
    let weighted = section.optional("weighted", |field| {
        let mut section = field.block()?;
        let services = section.optional("services", read_weighted_services).unwrap_or_default();
        section.finish();
        Some(UdpService::Weighted { services })
    });
    section.finish();
    Some(one_kind(field, balancer, weighted, UdpService::Invalid))
}
