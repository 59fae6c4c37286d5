//! The TCP routers of one entry point, compiled.

use std::sync::Arc;

use adit_config::dynamic::{TcpDynamic, TcpRouter};
use adit_route::router::Disabled;
use adit_route::tcp::{TcpRouterSpec, TcpTable};

use super::layer::TcpLayers;
use super::route::{RouteTls, TcpRoute};
use super::service::TcpServices;
use crate::tls::options::{DEFAULT_OPTIONS, TlsOptionSets};

/// What routers refer to by name.
#[derive(Clone, Copy, Debug)]
pub struct TcpParts<'a> {
    /// Middlewares.
    pub layers: &'a TcpLayers,
    /// Services.
    pub services: &'a TcpServices,
    /// TLS options.
    pub options: &'a TlsOptionSets,
}

/// The routers of one entry point.
#[derive(Debug, Default)]
pub struct TcpRouters {
    /// Those without TLS.
    pub plain: TcpTable<Arc<TcpRoute>>,
    /// Those with TLS.
    pub secure: TcpTable<Arc<TcpRoute>>,
    /// Those at fault, with the reason.
    pub disabled: Vec<Disabled>,
}

impl TcpRouters {
    /// Compiles the routers that name `entry_point`, or none if it is a default one (`is_default`). A router at fault is
    /// left out alone.
    pub fn compile(dynamic: &TcpDynamic, entry_point: &str, is_default: bool, parts: TcpParts<'_>) -> Self {
        let mut disabled = Vec::new();
        let (mut plain, mut secure) = (Vec::new(), Vec::new());
        for (name, router) in &dynamic.routers {
            let here = match router.entry_points.is_empty() {
                true => is_default,
                false => router.entry_points.iter().any(|name| name == entry_point),
            };
            if !here {
                continue;
            }
            match route(name, router, parts) {
                Ok(target) => {
                    let specs = if router.tls.is_some() { &mut secure } else { &mut plain };
                    specs.push(TcpRouterSpec {
                        name: name.clone(),
                        rule: router.rule.clone(),
                        priority: router.priority,
                        provider: 0,
                        tls: router.tls.is_some(),
                        target: Arc::new(target),
                    });
                }
                Err(reason) => disabled.push(Disabled { name: name.clone(), reason }),
            }
        }
        let (plain, faults) = TcpTable::build(plain);
        disabled.extend(faults);
        let (secure, faults) = TcpTable::build(secure);
        disabled.extend(faults);
        Self { plain, secure, disabled }
    }
}

fn route(name: &str, router: &TcpRouter, parts: TcpParts<'_>) -> Result<TcpRoute, String> {
    if let Some(fault) = &router.fault {
        return Err(fault.clone());
    }
    if router.service.is_empty() {
        return Err("the router names no service".to_owned());
    }
    let tls = match &router.tls {
        None => RouteTls::Plain,
        Some(tls) if tls.passthrough => RouteTls::Passthrough,
        Some(tls) => {
            let options = tls.options.as_deref().unwrap_or(DEFAULT_OPTIONS);
            RouteTls::Terminate(Arc::clone(parts.options.find(options)?))
        }
    };
    Ok(TcpRoute {
        name: name.into(),
        tls,
        chain: parts.layers.chain(&router.middlewares)?,
        service: parts.services.find(&router.service)?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use adit_config::dynamic::{TcpLoadBalancer, TcpRouterTls, TcpService};

    use super::*;
    use crate::tls::CertificateStore;

    fn router(rule: &str, change: impl FnOnce(&mut TcpRouter)) -> TcpRouter {
        let mut router = TcpRouter { rule: rule.to_owned(), service: "s".to_owned(), ..TcpRouter::default() };
        change(&mut router);
        router
    }

    #[test]
    fn routers_are_sorted_by_entry_point_and_tls_and_faults_stay_alone() {
        let tls = |options: Option<&str>| {
            Some(TcpRouterTls { options: options.map(str::to_owned), ..TcpRouterTls::default() })
        };
        let mut dynamic = TcpDynamic::default();
        dynamic.services.insert("s".to_owned(), TcpService::LoadBalancer(TcpLoadBalancer::default()));
        let mut add = |name: &str, router| dynamic.routers.insert(name.to_owned(), router);
        add("plain", router("HostSNI(`*`)", |_| ()));
        add("elsewhere", router("HostSNI(`*`)", |r| r.entry_points = vec!["other".to_owned()]));
        add("secure", router("HostSNI(`a.test`)", |r| r.tls = tls(None)));
        add("options", router("HostSNI(`a.test`)", |r| r.tls = tls(Some("nope"))));
        add("service", router("HostSNI(`*`)", |r| r.service = "nope".to_owned()));
        add("middleware", router("HostSNI(`*`)", |r| r.middlewares = vec!["nope".to_owned()]));
        add("rule", router("HostSNI(`a.test`)", |_| ()));
        let store = Arc::new(CertificateStore::default());
        let options = TlsOptionSets::compile(&BTreeMap::new(), &store, None);
        let services = TcpServices::compile(&dynamic, None);
        let layers = TcpLayers::default();
        let parts = TcpParts { layers: &layers, services: &services, options: &options };
        let routers = TcpRouters::compile(&dynamic, "web", true, parts);
        assert_eq!((routers.plain.routers().len(), routers.secure.routers().len()), (1, 1));
        let names: Vec<&str> = routers.disabled.iter().map(|disabled| disabled.name.as_str()).collect();
        assert_eq!(names, ["middleware", "options", "service", "rule"]);
        let others = TcpRouters::compile(&dynamic, "other", false, parts);
        assert_eq!(others.plain.routers().len(), 1);
    }
}
