//! One configuration out of several: every object under `name@provider`, every reference spelt out.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use adit_config::dynamic::{Dynamic, Middleware, ServiceKind, TcpService, UdpService};

/// A part of the configuration with the name of who provides it.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// `file`, `inline`, …: what stands behind the `@`.
    pub(crate) provider: &'static str,
    /// For messages: the file, or where else it comes from.
    pub(crate) origin: String,
    /// The part.
    pub(crate) dynamic: Dynamic,
}

/// Puts the parts together. An object that two parts of one provider have is taken from the first; the second is named
/// in `notes`.
pub(crate) fn merge(parts: &[Part], notes: &mut Vec<String>) -> Dynamic {
    let mut all = Dynamic::default();
    for part in parts {
        let qualify = |name: &str| qualified(name, part.provider);
        let mut dynamic = part.dynamic.clone();
        qualify_http(&mut dynamic, &qualify);
        qualify_tcp(&mut dynamic, &qualify);
        let mut into = Into { part, notes };
        into.add("router", &mut all.http.routers, dynamic.http.routers);
        into.add("service", &mut all.http.services, dynamic.http.services);
        into.add("middleware", &mut all.http.middlewares, dynamic.http.middlewares);
        into.add("serversTransport", &mut all.http.servers_transports, dynamic.http.servers_transports);
        into.add("TCP router", &mut all.tcp.routers, dynamic.tcp.routers);
        into.add("TCP service", &mut all.tcp.services, dynamic.tcp.services);
        into.add("TCP middleware", &mut all.tcp.middlewares, dynamic.tcp.middlewares);
        into.add("TCP serversTransport", &mut all.tcp.servers_transports, dynamic.tcp.servers_transports);
        into.add("UDP router", &mut all.udp.routers, dynamic.udp.routers);
        into.add("UDP service", &mut all.udp.services, dynamic.udp.services);
        into.add_tls("TLS options", &mut all.tls.options, dynamic.tls.options);
        into.add_tls("TLS store", &mut all.tls.stores, dynamic.tls.stores);
        all.tls.certificates.extend(dynamic.tls.certificates);
    }
    all
}

/// `name@provider`; names that say their provider are left alone.
pub(crate) fn qualified(name: &str, provider: &str) -> String {
    if name.contains('@') { name.to_owned() } else { format!("{name}@{provider}") }
}

/// The name of an object where it is defined. One that is written with an `@` stays its provider's all the same: it cannot
/// stand in for another provider's.
fn defined(name: &str, provider: &str) -> String {
    format!("{name}@{provider}")
}

struct Into<'a> {
    part: &'a Part,
    notes: &'a mut Vec<String>,
}

impl Into<'_> {
    fn add<T>(&mut self, kind: &str, all: &mut BTreeMap<String, T>, some: BTreeMap<String, T>) {
        for (name, object) in some {
            let name = self.define(kind, &name);
            self.put(kind, all, name, object);
        }
    }

    fn define(&mut self, kind: &str, name: &str) -> String {
        let defined = defined(name, self.part.provider);
        if name.contains('@') {
            let origin = &self.part.origin;
            self.notes.push(format!("{kind} {name} of {origin} is known as {defined}: write it without `@`"));
        }
        defined
    }

    /// The set and the store named `default` are one for all providers.
    fn add_tls<T>(&mut self, kind: &str, all: &mut BTreeMap<String, T>, some: BTreeMap<String, T>) {
        for (name, object) in some {
            let name = if name == "default" { name } else { self.define(kind, &name) };
            self.put(kind, all, name, object);
        }
    }

    fn put<T>(&mut self, kind: &str, all: &mut BTreeMap<String, T>, name: String, object: T) {
        match all.entry(name) {
            Entry::Occupied(taken) => {
                let (name, origin) = (taken.key(), &self.part.origin);
                self.notes.push(format!("{kind} {name} of {origin} is defined already and skipped"));
            }
            Entry::Vacant(free) => {
                free.insert(object);
            }
        }
    }
}

fn qualify_http(dynamic: &mut Dynamic, qualify: &impl Fn(&str) -> String) {
    let each = |names: &mut Vec<String>| names.iter_mut().for_each(|name| *name = qualify(name));
    for router in dynamic.http.routers.values_mut() {
        each(&mut router.middlewares);
        if !router.service.is_empty() {
            router.service = qualify(&router.service);
        }
        if let Some(options) =
            router.tls.as_mut().and_then(|tls| tls.options.as_mut()).filter(|o| *o != "default")
        {
            *options = qualify(options);
        }
    }
    for service in dynamic.http.services.values_mut() {
        each(&mut service.middlewares);
        match &mut service.kind {
            ServiceKind::LoadBalancer(balancer) => {
                if let Some(transport) = balancer.servers_transport.as_mut() {
                    *transport = qualify(transport);
                }
            }
            ServiceKind::Weighted(weighted) => {
                weighted.services.iter_mut().for_each(|service| service.name = qualify(&service.name));
            }
            ServiceKind::Mirroring(mirroring) => {
                mirroring.service = qualify(&mirroring.service);
                mirroring.mirrors.iter_mut().for_each(|mirror| mirror.name = qualify(&mirror.name));
            }
            ServiceKind::Failover(failover) => {
                failover.service = qualify(&failover.service);
                failover.fallback = qualify(&failover.fallback);
            }
            ServiceKind::HighestRandomWeight(weighted) => {
                weighted.services.iter_mut().for_each(|service| service.name = qualify(&service.name));
            }
            ServiceKind::Invalid(_) => {}
        }
    }
    for middleware in dynamic.http.middlewares.values_mut() {
        match middleware {
            Middleware::Chain(chain) => each(&mut chain.middlewares),
            Middleware::Errors(errors) => errors.service = qualify(&errors.service),
            _ => {}
        }
    }
}

fn qualify_tcp(dynamic: &mut Dynamic, qualify: &impl Fn(&str) -> String) {
    for router in dynamic.tcp.routers.values_mut() {
        router.middlewares.iter_mut().for_each(|name| *name = qualify(name));
        router.service = qualify(&router.service);
        if let Some(options) =
            router.tls.as_mut().and_then(|tls| tls.options.as_mut()).filter(|o| *o != "default")
        {
            *options = qualify(options);
        }
    }
    for service in dynamic.tcp.services.values_mut() {
        match service {
            TcpService::LoadBalancer(balancer) => {
                if let Some(transport) = balancer.servers_transport.as_mut() {
                    *transport = qualify(transport);
                }
            }
            TcpService::Weighted { services, .. } => {
                services.iter_mut().for_each(|service| service.name = qualify(&service.name));
            }
            TcpService::Invalid(_) => {}
        }
    }
    dynamic.udp.routers.values_mut().for_each(|router| router.service = qualify(&router.service));
    for service in dynamic.udp.services.values_mut() {
        if let UdpService::Weighted { services, .. } = service {
            services.iter_mut().for_each(|service| service.name = qualify(&service.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use adit_config::dynamic::Format;

    use super::*;

    fn part(provider: &'static str, text: &str) -> Part {
        let dynamic = Dynamic::parse(text, "t.yml", Format::Yaml).unwrap();
        Part { provider, origin: provider.to_owned(), dynamic }
    }

    #[test]
    fn a_definition_cannot_enter_another_providers_namespace() {
        let mut notes = Vec::new();
        let file = part(
            "file",
            "http: { middlewares: { 'auth@inline': { addPrefix: { prefix: /x } } }, routers: { r: { rule: 'Path(`/`)', \
             service: s, middlewares: [auth@inline] } } }\ntls: { options: { 'o@inline': { sniStrict: true } } }",
        );
        let all = merge(&[file], &mut notes);
        assert_eq!(all.http.middlewares.keys().collect::<Vec<_>>(), ["auth@inline@file"]);
        assert_eq!(all.http.routers["r@file"].middlewares, ["auth@inline"]);
        assert_eq!(all.tls.options.keys().collect::<Vec<_>>(), ["o@inline@file"]);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains("known as auth@inline@file"), "{notes:?}");
    }
}
