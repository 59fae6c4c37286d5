//! `adit check`: everything that is wrong with routers, services, middlewares and TLS, each with its place.
//!
//! What a daemon would compile is compiled here as well, outside of a runtime: nothing is probed and nothing is listened on.

mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use adit_config::dynamic::{Dynamic, PemSource};
use adit_config::{Config, EntryPoint, EntryPointTransport, Problem};
use adit_proxy::middleware::Layers;
use adit_proxy::service::{Blueprint, Services};
use adit_proxy::tcp::layer::TcpLayers;
use adit_proxy::tcp::service::TcpServices;
use adit_proxy::tcp::table::{TcpParts, TcpRouters};
use adit_proxy::tls::options::TlsOptionSets;
use adit_proxy::tls::{CertificateStore, Certificates};
use adit_proxy::udp::UdpServices;
use adit_route::router::{RouterSpec, RouterTable};

use self::places::Places;
use crate::acme::{TcpHosts, Unwanted};
use crate::daemon::ingress::inputs;
use crate::gateway::files::Files;
use crate::gateway::merge::qualified;
use crate::gateway::{Generation, Inputs};

/// What a check has found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Each disables an object, or keeps a file from being taken; a line each.
    pub(crate) problems: Vec<String>,
    /// Served, and very likely not what was meant; a line each.
    pub(crate) warnings: Vec<String>,
}

/// Looks at everything that `config` and its dynamic files have for the ingress.
pub(crate) fn check(config: &Config) -> Findings {
    let (mut inputs, _) = inputs(config, &mut Files::default());
    let (places, unreadable) = Places::read(config);
    // Told below, with their places.
    inputs.faults.clear();
    let mut check =
        Check { config, places, problems: Vec::new(), warnings: Vec::new(), tcp_hosts: Vec::new() };
    check.problems.extend(check.places.duplicates());
    check.warnings.extend(check.places.warnings());
    let options = check.tls(&inputs.dynamic);
    check.entry_points(&inputs);
    check.streams(&inputs.dynamic, &options);
    check.http(inputs, &options);
    let mut problems: Vec<String> =
        unreadable.iter().flat_map(|text| text.lines().map(str::to_owned)).collect();
    problems.extend(lines(check.problems, ""));
    Findings { problems, warnings: lines(check.warnings, "warning: ") }
}

struct Check<'a> {
    config: &'a Config,
    places: Places<'a>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    tcp_hosts: Vec<TcpHosts>,
}

impl Check<'_> {
    fn problem(&mut self, kind: &str, name: &str, below: &str, reason: &str) {
        self.problems.extend(self.places.problems(kind, name, below, reason));
    }

    fn warn(&mut self, kind: &str, name: &str, below: &str, reason: &str) {
        self.warnings.extend(self.places.problems(kind, name, below, reason));
    }

    fn faults<'f>(&mut self, kind: &str, faults: impl Iterator<Item = (&'f str, &'f str)>) {
        for (name, reason) in faults {
            self.problem(kind, name, "", reason);
        }
    }

    /// Middlewares that entry points put before all routers.
    fn entry_points(&mut self, inputs: &Inputs) {
        for (name, settings) in &self.config.entry_points {
            for (index, middleware) in settings.middlewares.iter().enumerate() {
                let is_known = |provider: &&str| {
                    inputs.dynamic.http.middlewares.contains_key(&qualified(middleware, provider))
                };
                if !["inline", "file"].iter().any(is_known) {
                    let key = format!("entryPoints.{name}.http.middlewares[{index}]");
                    let reason = format!("there is no middleware {middleware}");
                    self.problems.push(self.places.in_configuration(&key, &reason));
                }
            }
        }
    }

    fn tls(&mut self, dynamic: &Dynamic) -> TlsOptionSets {
        let (certificates, errors) = Certificates::compile(&dynamic.tls, None);
        for error in &errors {
            self.problems.push(self.places.certificate(&error.subject, &error.reason));
        }
        let store = Arc::new(CertificateStore::default());
        store.swap(certificates);
        let options = TlsOptionSets::compile(&dynamic.tls.options, &store, None);
        self.faults("tls.options", options.faults());
        for (name, reason) in options.warnings() {
            self.warn("tls.options", name, "", reason);
        }
        options
    }

    fn streams(&mut self, dynamic: &Dynamic, options: &TlsOptionSets) {
        // Health checks want a runtime to be started in; this one is never driven, so that none of them begins.
        let runtime = tokio::runtime::Builder::new_current_thread().build().ok();
        let _entered = runtime.as_ref().map(tokio::runtime::Runtime::enter);
        let layers = TcpLayers::compile(&dynamic.tcp.middlewares, None);
        let services = TcpServices::compile(&dynamic.tcp, None);
        self.faults("tcp.middlewares", layers.faults());
        self.faults("tcp.services", services.faults());
        let mut everywhere = dynamic.tcp.clone();
        everywhere.routers.values_mut().for_each(|router| router.entry_points.clear());
        let parts = TcpParts { layers: &layers, services: &services, options };
        let routers = TcpRouters::compile(&everywhere, "", true, parts);
        self.tcp_hosts = routers.secure.routers().iter().map(TcpHosts::of).collect();
        for disabled in routers.disabled {
            let below = if disabled.reason.starts_with("rule ") { ".rule" } else { "" };
            self.problem("tcp.routers", &disabled.name, below, &disabled.reason);
        }
        for (name, router) in &dynamic.tcp.routers {
            self.stream_entry_points("tcp.routers", name, &router.entry_points);
        }
        self.udp(dynamic);
    }

    fn udp(&mut self, dynamic: &Dynamic) {
        let services = UdpServices::compile(&dynamic.udp, None);
        self.faults("udp.services", services.faults());
        for (name, router) in &dynamic.udp.routers {
            self.stream_entry_points("udp.routers", name, &router.entry_points);
            if let Err(reason) = services.find(&router.service) {
                self.problem("udp.routers", name, ".service", &reason);
            }
        }
        let udp = self.config.entry_points.iter().filter(|(_, entry_point)| is_udp(entry_point));
        let faults = |(name, entry_point): (&String, &EntryPoint)| {
            services.table(&dynamic.udp, name, entry_point.as_default).1
        };
        // A router on several entry points is at fault once; faults of services are told with these.
        let faults: BTreeSet<_> = udp.flat_map(faults).collect();
        for (router, reason) in faults.iter().filter(|(_, reason)| !reason.starts_with("service ")) {
            let below = if reason.starts_with("rule ") { ".rule" } else { "" };
            self.problem("udp.routers", router, below, reason);
        }
    }

    fn stream_entry_points(&mut self, kind: &str, router: &str, names: &[String]) {
        let wants_udp = kind == "udp.routers";
        for (index, name) in names.iter().enumerate() {
            let below = format!(".entryPoints[{index}]");
            match self.config.entry_points.get(name) {
                None => self.problem(kind, router, &below, &format!("there is no entry point {name}")),
                Some(found) if is_udp(found) != wants_udp => {
                    let transport = if wants_udp { "TCP" } else { "UDP" };
                    self.problem(kind, router, &below, &format!("entry point {name} takes {transport}"));
                }
                Some(_) => {}
            }
        }
    }

    fn http(&mut self, inputs: Inputs, options: &TlsOptionSets) {
        let http = &inputs.dynamic.http;
        let layers = Layers::compile(&http.middlewares, None);
        let services = Services::compile(
            Blueprint {
                services: &http.services,
                transports: &http.servers_transports,
                internal: &inputs.internal.targets(),
                chains: &|user, names, resolve| layers.chain(user, names, resolve),
            },
            None,
        );
        self.faults("http.serversTransports", services.transport_faults());
        self.faults("http.services", services.faults());
        let middlewares = bad_middlewares(http.middlewares.keys(), &layers, &services);
        self.faults("http.middlewares", middlewares.iter().map(|(name, why)| (name.as_str(), why.as_str())));
        let generation = Generation::compile(inputs, None);
        self.routers(&generation, &middlewares, options);
        self.suspicions(&generation);
        self.certificates(&generation);
    }

    /// Certificates that are asked for and cannot be had.
    fn certificates(&mut self, generation: &Generation) {
        let (certificates, _) = Certificates::compile(&generation.inputs.dynamic.tls, None);
        let is_configured = |name: &str| certificates.covers(name);
        for unwanted in crate::acme::wanted(self.config, generation, &self.tcp_hosts, &is_configured).warnings
        {
            let Unwanted { who, why } = unwanted;
            match who.kind {
                "http.routers" | "tcp.routers" => self.warn(who.kind, &who.name, ".tls.certResolver", &why),
                _ => {
                    let key = format!("{}.{}", who.kind, who.name);
                    self.warnings.push(self.places.in_configuration(&key, &why));
                }
            }
        }
    }

    /// All that is wrong with each router, where a daemon is content with the first.
    fn routers(
        &mut self,
        generation: &Generation,
        bad_middlewares: &BTreeMap<String, String>,
        options: &TlsOptionSets,
    ) {
        let http = &generation.inputs.dynamic.http;
        let verdicts = &generation.verdicts;
        let bad_rules = bad_rules(&generation.inputs.dynamic);
        for (name, router) in &http.routers {
            let mut reasons: Vec<(String, String)> = bad_rules.get(name).cloned().into_iter().collect();
            for (index, entry_point) in router.entry_points.iter().enumerate() {
                let reason = match generation.inputs.entry_points.get(entry_point) {
                    None if generation.inputs.has_entry_point(entry_point) => continue,
                    None => format!("there is no entry point {entry_point}"),
                    Some(found) if is_udp(found) => format!("entry point {entry_point} takes UDP"),
                    Some(_) => continue,
                };
                reasons.push((format!(".entryPoints[{index}]"), reason));
            }
            for (index, middleware) in router.middlewares.iter().enumerate() {
                let reason = unusable("middleware", middleware, &http.middlewares, bad_middlewares);
                reasons.extend(reason.map(|reason| (format!(".middlewares[{index}]"), reason)));
            }
            let service = match router.service.is_empty() {
                // Where reading has found a fault, that fault says more.
                true => router.fault.is_none().then(|| "names no service".to_owned()),
                false => match generation.inputs.internal.targets().remove(&router.service) {
                    Some(own) => own.err(),
                    None => unusable("service", &router.service, &http.services, &verdicts.services),
                },
            };
            reasons.extend(service.map(|reason| (".service".to_owned(), reason)));
            let wanted = router.tls.as_ref().and_then(|tls| tls.options.as_ref());
            let refused = wanted.and_then(|wanted| options.find(wanted).err());
            reasons.extend(refused.map(|reason| (".tls.options".to_owned(), reason)));
            let verdict = verdicts.routers.get(name);
            if let Some(fault) = router.fault.as_ref().or(verdict.filter(|_| reasons.is_empty())) {
                reasons.push((String::new(), fault.clone()));
            }
            for (below, reason) in reasons {
                self.problem("http.routers", name, &below, &reason);
            }
        }
    }

    /// What is served and very likely not meant.
    fn suspicions(&mut self, generation: &Generation) {
        for shadow in generation.table.shadows() {
            let reason = format!(
                "never answers on {} for requests such as {}: {} comes first",
                shadow.entry_point, shadow.example, shadow.by
            );
            self.warn("http.routers", &shadow.router, ".rule", &reason);
        }
        for router in generation.table.routers() {
            for reason in router.suspicions() {
                self.warn("http.routers", &router.name, ".rule", reason);
            }
        }
        for reason in generation.tls_warnings() {
            let named = generation.table.routers().iter().find(|router| {
                let is_host = |host: &String| reason.starts_with(&format!("host {host} "));
                reason.starts_with(&format!("router {} ", router.name))
                    || (router.tls && router.hosts().iter().any(is_host))
            });
            match named {
                Some(router) => self.warn("http.routers", &router.name, ".tls.options", reason),
                None => self.warnings.push(self.places.in_configuration("tls", reason)),
            }
        }
    }
}

/// Routers whose rule or priority no table takes: the key below the router, and the reason.
fn bad_rules(dynamic: &Dynamic) -> BTreeMap<String, (String, String)> {
    let specs = dynamic.http.routers.iter().map(|(name, router)| RouterSpec {
        name: name.clone(),
        rule: router.rule.clone(),
        priority: router.priority,
        provider: 0,
        is_internal: false,
        entry_points: Vec::new(),
        tls: false,
        any_scheme: false,
        target: (),
    });
    let (_, disabled) = RouterTable::build(specs);
    let of = |reason: &str| if reason.starts_with("priorities ") { ".priority" } else { ".rule" };
    disabled.into_iter().map(|d| (d.name, (of(&d.reason).to_owned(), d.reason))).collect()
}

/// Middlewares that cannot be used, alone or because of what they refer to.
fn bad_middlewares<'n>(
    names: impl Iterator<Item = &'n String>,
    layers: &Layers,
    services: &Services,
) -> BTreeMap<String, String> {
    let fault = |name: &String| {
        let mut resolve = |service: &str| Ok(services.node(service)? as Arc<_>);
        let alone = layers.fault(name).map(str::to_owned);
        alone.or_else(|| layers.chain(name, std::slice::from_ref(name), &mut resolve).err())
    };
    names.filter_map(|name| Some((name.clone(), fault(name)?))).collect()
}

/// Why an object cannot be referred to.
fn unusable<T>(
    kind: &str,
    name: &str,
    all: &BTreeMap<String, T>,
    faults: &BTreeMap<String, String>,
) -> Option<String> {
    match faults.contains_key(name) {
        true => Some(format!("{kind} {name} cannot be used")),
        false => (!all.contains_key(name)).then(|| format!("there is no {kind} {name}")),
    }
}

fn is_udp(entry_point: &EntryPoint) -> bool {
    entry_point.transport == EntryPointTransport::Udp
}

/// In the order of their places, each once.
fn lines(mut problems: Vec<Problem>, mark: &str) -> Vec<String> {
    problems.sort_by(|left, right| {
        let place = |p: &Problem| (p.file.clone(), p.position, p.key.clone(), p.expected.clone());
        place(left).cmp(&place(right))
    });
    problems.dedup();
    problems
        .into_iter()
        .map(|problem| Problem { expected: format!("{mark}{}", problem.expected), ..problem }.to_string())
        .collect()
}

/// How a certificate's source is called in messages.
fn is_source(source: &PemSource, subject: &str) -> bool {
    matches!(source, PemSource::File(path) if subject == path.display().to_string())
}
