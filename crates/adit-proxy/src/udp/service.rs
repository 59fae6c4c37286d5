//! UDP services: which server a session goes to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use adit_config::dynamic::{UdpDynamic, UdpRouter, UdpService};
use adit_route::mesh::MeshIdentity;
use adit_route::udp::{UdpHead, UdpRouterSpec, UdpTable};

use crate::mesh::MeshVisitors;
use crate::tcp::service::WeightedTurn;
use crate::tcp::transport::ServerAddress;

/// All UDP services by name, or why one is not to be used.
#[derive(Debug, Default)]
pub struct UdpServices {
    services: BTreeMap<String, Result<Arc<UdpNode>, String>>,
}

/// A compiled service.
#[derive(Debug)]
pub struct UdpNode {
    config: UdpService,
    kind: Kind,
    turn: Mutex<WeightedTurn>,
}

#[derive(Debug)]
enum Kind {
    Servers(Vec<ServerAddress>),
    Weighted(Vec<Arc<UdpNode>>),
}

/// What an entry point does with datagrams; built whole and swapped whole on every reload.
#[derive(Debug, Default)]
pub struct UdpRoutes {
    /// Its routers.
    pub table: UdpTable<UdpRoute>,
    /// Peers that may come here, on an entry point of the mesh; whoever is none of them is turned away.
    pub mesh: Option<MeshVisitors>,
}

/// One router at work.
#[derive(Clone, Debug)]
pub struct UdpRoute {
    /// The router's name.
    pub name: Arc<str>,
    /// Where sessions go.
    pub service: Arc<UdpNode>,
}

impl UdpServices {
    /// Compiles each; one that has not changed since `previous` keeps its turn.
    pub fn compile(dynamic: &UdpDynamic, previous: Option<&Self>) -> Self {
        let mut services = Self::default();
        for name in dynamic.services.keys() {
            // A fault is kept under the name.
            let _ = services.compile_one(name, dynamic, previous, &mut BTreeSet::new());
        }
        services
    }

    /// A service by its name.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find(&self, name: &str) -> Result<Arc<UdpNode>, String> {
        match self.services.get(name) {
            Some(Ok(node)) => Ok(Arc::clone(node)),
            Some(Err(reason)) => Err(format!("service {name}: {reason}")),
            None => Err(format!("service {name} does not exist")),
        }
    }

    /// The routers of an entry point, and those at fault or passed over: of those without a rule only one can have an
    /// entry point, the first by name.
    pub fn table(
        &self,
        dynamic: &UdpDynamic,
        entry_point: &str,
        is_default: bool,
    ) -> (UdpTable<UdpRoute>, Vec<(String, String)>) {
        let mut disabled = Vec::new();
        let mut specs = Vec::new();
        for (name, router) in &dynamic.routers {
            let here = match router.entry_points.is_empty() {
                true => is_default,
                false => router.entry_points.iter().any(|name| name == entry_point),
            };
            if !here {
                continue;
            }
            match self.spec(name, router) {
                Ok(spec) => specs.push(spec),
                Err(reason) => disabled.push((name.clone(), reason)),
            }
        }
        let (table, faults) = UdpTable::build(specs);
        let told = |reason: String| match reason.starts_with("UDP router ") {
            true => format!("entry point {entry_point}: {reason}"),
            false => reason,
        };
        disabled.extend(faults.into_iter().map(|fault| (fault.name, told(fault.reason))));
        (table, disabled)
    }

    fn spec(&self, name: &str, router: &UdpRouter) -> Result<UdpRouterSpec<UdpRoute>, String> {
        if let Some(fault) = &router.fault {
            return Err(fault.clone());
        }
        Ok(UdpRouterSpec {
            name: name.to_owned(),
            rule: router.rule.clone(),
            priority: router.priority,
            target: UdpRoute { name: name.into(), service: self.find(&router.service)? },
        })
    }

    /// Names and reasons of those at fault.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.services.iter().filter_map(|(name, node)| Some((name.as_str(), node.as_ref().err()?.as_str())))
    }

    fn compile_one(
        &mut self,
        name: &str,
        dynamic: &UdpDynamic,
        previous: Option<&Self>,
        above: &mut BTreeSet<String>,
    ) -> Result<Arc<UdpNode>, String> {
        if let Some(done) = self.services.get(name) {
            return done.clone();
        }
        let Some(config) = dynamic.services.get(name) else {
            return Err(format!("service {name} does not exist"));
        };
        if !above.insert(name.to_owned()) {
            return Err(format!("service {name} contains itself"));
        }
        let parts = match config {
            UdpService::Invalid(reason) => Err(reason.clone()),
            UdpService::LoadBalancer { servers } => addresses(servers),
            UdpService::Weighted { services } => {
                let child = |service: &adit_config::dynamic::WeightedService| {
                    self.compile_one(&service.name, dynamic, previous, above)
                };
                let weights = services.iter().map(|service| u64::from(service.weight)).collect();
                let children: Result<Vec<_>, _> = services.iter().map(child).collect();
                children.map(|children| (Kind::Weighted(children), weights))
            }
        };
        above.remove(name);
        let kept = previous.and_then(|previous| previous.services.get(name)?.as_ref().ok());
        let node = parts.map(|(kind, weights)| {
            if let Some(kept) = kept.filter(|kept| kept.config == *config && kept.kind.is_same(&kind)) {
                return Arc::clone(kept);
            }
            Arc::new(UdpNode { config: config.clone(), kind, turn: Mutex::new(WeightedTurn::new(weights)) })
        });
        self.services.insert(name.to_owned(), node.clone());
        node
    }
}

impl Kind {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Servers(a), Self::Servers(b)) => a == b,
            (Self::Weighted(a), Self::Weighted(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
            }
            _ => false,
        }
    }
}

impl UdpRoutes {
    /// Which router takes the datagrams of an address, and which peer of the mesh sends them.
    ///
    /// # Errors
    /// The refusal's name.
    pub(super) fn admit(
        &self,
        address: IpAddr,
    ) -> Result<(&UdpRoute, Option<&Arc<MeshIdentity>>), &'static str> {
        let address = address.to_canonical();
        let peer = match &self.mesh {
            None => None,
            Some(visitors) => Some(visitors.identify(address).ok_or("mesh_peer_unknown")?),
        };
        let head = UdpHead { peer: address, mesh: peer.map(|peer| &**peer) };
        Ok((self.table.decide(&head).ok_or("udp_no_route")?, peer))
    }
}

impl UdpNode {
    /// The server whose turn it is; `None` if there is none.
    pub fn choose(&self) -> Option<&ServerAddress> {
        let mut node = self;
        loop {
            let index = node.turn.lock().unwrap_or_else(PoisonError::into_inner).next(|_| true)?;
            match &node.kind {
                Kind::Servers(servers) => return servers.get(index),
                Kind::Weighted(children) => node = children.get(index)?,
            }
        }
    }
}

fn addresses(servers: &[String]) -> Result<(Kind, Vec<u64>), String> {
    let addresses = servers
        .iter()
        .map(|server| ServerAddress::parse(server, false).map_err(|error| error.to_string()))
        .collect::<Result<Vec<_>, _>>()?;
    let weights = vec![1; addresses.len()];
    Ok((Kind::Servers(addresses), weights))
}

#[cfg(test)]
mod tests {
    use adit_config::dynamic::{UdpRouter, WeightedService};

    use super::*;

    fn dynamic(services: &[(&str, UdpService)]) -> UdpDynamic {
        let services = services.iter().map(|(name, service)| ((*name).to_owned(), service.clone())).collect();
        UdpDynamic { services, ..UdpDynamic::default() }
    }

    fn servers(servers: &[&str]) -> UdpService {
        UdpService::LoadBalancer { servers: servers.iter().map(|server| (*server).to_owned()).collect() }
    }

    #[test]
    fn servers_take_turns_by_weight() {
        let part =
            |name: &str, weight| WeightedService { name: name.to_owned(), written: name.to_owned(), weight };
        let dynamic = dynamic(&[
            ("w", UdpService::Weighted { services: vec![part("a", 2), part("b", 1), part("c", 0)] }),
            ("a", servers(&["127.0.0.1:1"])),
            ("b", servers(&["127.0.0.1:2"])),
            ("c", servers(&["127.0.0.1:3"])),
        ]);
        let services = UdpServices::compile(&dynamic, None);
        let node = services.find("w").unwrap();
        let chosen: Vec<String> = (0..6).map(|_| node.choose().unwrap().to_string()).collect();
        assert_eq!(chosen.iter().filter(|server| *server == "127.0.0.1:1").count(), 4);
        assert_eq!(chosen.iter().filter(|server| *server == "127.0.0.1:3").count(), 0);
        let again = UdpServices::compile(&dynamic, Some(&services));
        assert!(Arc::ptr_eq(&node, &again.find("w").unwrap()));
    }

    #[test]
    fn one_router_has_an_entry_point_and_the_others_are_told_why_not() {
        let mut dynamic = dynamic(&[("s", servers(&["127.0.0.1:1"])), ("bad", servers(&["nowhere"]))]);
        for (name, service) in [("a", "bad"), ("b", "s"), ("c", "s")] {
            let router = UdpRouter {
                entry_points: vec!["dns".to_owned()],
                service: service.to_owned(),
                ..UdpRouter::default()
            };
            dynamic.routers.insert(name.to_owned(), router);
        }
        let services = UdpServices::compile(&dynamic, None);
        let (table, disabled) = services.table(&dynamic, "dns", false);
        let routes = |table| UdpRoutes { table, mesh: None };
        let visitor = [192, 0, 2, 1].into();
        assert_eq!(&*routes(table).admit(visitor).unwrap().0.name, "b");
        assert_eq!(
            disabled,
            [
                ("a".to_owned(), services.find("bad").unwrap_err()),
                ("c".to_owned(), "entry point dns: UDP router b takes everybody there already".to_owned()),
            ]
        );
        let (none, _) = services.table(&dynamic, "other", true);
        assert_eq!(routes(none).admit(visitor).unwrap_err(), "udp_no_route");
    }
}
