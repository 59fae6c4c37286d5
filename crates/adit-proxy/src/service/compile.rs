//! From the configuration's services to nodes: names, references, what is carried over.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use adit_config::dynamic::{
    BalancerStrategy, Cookie, Failover as FailoverSettings, LoadBalancer, Mirroring as MirroringSettings,
    ServersTransport, Service, ServiceKind, WeightedService,
};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::balancer::{Balancer, Member};
use super::failover::{self, Failover};
use super::health::{HealthTask, Probed};
use super::mirror::Mirroring;
use super::node::{Child, Inner, Internal, Node, ServerGroup, ServiceGroup, ServiceStatus};
use super::server::{Rules, Server};
use super::sticky::Sticky;
use super::transport::Transport;
use super::url::ServerUrl;
use crate::middleware::{Chain, Target};

/// What services are made from.
#[derive(Clone, Copy)]
pub struct Blueprint<'a> {
    /// By `name@provider`. References inside may leave the provider out if it is the same.
    pub services: &'a BTreeMap<String, Service>,
    /// By `name@provider`; `default@internal`, if there, is used by services that name none.
    pub transports: &'a BTreeMap<String, ServersTransport>,
    /// Services that are no servers, by whole name (`ping@internal`), or why one cannot be used.
    pub internal: &'a BTreeMap<String, Result<Arc<dyn Target>, String>>,
    /// Makes the middlewares of services.
    pub chains: &'a ChainBuilder<'a>,
}

/// Makes the chain of a service (`name@provider`) from middleware names; the last argument finds services that
/// middlewares refer to.
pub type ChainBuilder<'a> = dyn Fn(&str, &[String], &mut Resolve<'_>) -> Result<Chain, String> + 'a;

/// Finds a service by `name@provider`, or says why it cannot be used.
pub type Resolve<'a> = dyn FnMut(&str) -> Result<Arc<dyn Target>, String> + 'a;

/// All services of one configuration.
#[derive(Default)]
pub struct Services {
    nodes: BTreeMap<String, Result<Arc<Node>, String>>,
    transports: BTreeMap<String, Result<Arc<Transport>, String>>,
    sweeper: Option<AbortHandle>,
}

impl Services {
    /// Makes all services. What `previous` knows of servers that are still there is kept: health, places in line,
    /// load, connections, probes.
    ///
    /// Probes and the sweeping of idle connections run as tasks if there is a runtime, and end with the value.
    pub fn compile(blueprint: Blueprint<'_>, previous: Option<&Self>) -> Self {
        let mut compiler = Compiler {
            blueprint,
            previous,
            nodes: BTreeMap::new(),
            transports: compile_transports(blueprint.transports, previous),
            under_way: Vec::new(),
        };
        for (name, target) in blueprint.internal {
            let node = target.clone().map(|target| {
                Arc::new(Node::new(name.as_str().into(), None, Inner::Internal(Internal(target))))
            });
            compiler.nodes.insert(name.clone(), node);
        }
        for name in blueprint.services.keys() {
            let _ = compiler.node(name);
        }
        let Compiler { nodes, transports, .. } = compiler;
        let sweeper = start_sweeper(transports.values().filter_map(|t| t.clone().ok()).collect());
        Self { nodes, transports, sweeper }
    }

    /// A service by `name@provider`.
    ///
    /// # Errors
    /// Why it cannot be used: there is none of this name, or it is at fault.
    pub fn node(&self, name: &str) -> Result<Arc<Node>, String> {
        self.nodes.get(name).cloned().unwrap_or_else(|| Err(missing(name)))
    }

    /// Services that are disabled, each with its reason.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        let written = self.nodes.iter().filter(|(name, _)| !name.ends_with(INTERNAL));
        written.filter_map(|(name, node)| Some((name.as_str(), node.as_ref().err()?.as_str())))
    }

    /// Transports that are disabled, each with its reason.
    pub fn transport_faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.transports.iter().filter_map(|(name, t)| Some((name.as_str(), t.as_ref().err()?.as_str())))
    }

    /// The services in use, for the API and the metrics.
    pub fn statuses(&self) -> impl Iterator<Item = ServiceStatus> {
        let written = self.nodes.iter().filter(|(name, _)| !name.ends_with(INTERNAL));
        written.filter_map(|(_, node)| Some(node.as_ref().ok()?.status()))
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if let Some(sweeper) = &self.sweeper {
            sweeper.abort();
        }
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("names", &self.nodes.keys()).finish_non_exhaustive()
    }
}

struct Compiler<'a> {
    blueprint: Blueprint<'a>,
    previous: Option<&'a Services>,
    nodes: BTreeMap<String, Result<Arc<Node>, String>>,
    transports: BTreeMap<String, Result<Arc<Transport>, String>>,
    /// Services being made, outermost first: one that is needed again is needed by itself.
    under_way: Vec<String>,
}

impl Compiler<'_> {
    /// The node of `name@provider`, made if need be.
    fn node(&mut self, name: &str) -> Result<Arc<Node>, String> {
        if let Some(node) = self.nodes.get(name) {
            return node.clone();
        }
        let service = self.blueprint.services.get(name).ok_or_else(|| missing(name))?;
        if self.under_way.iter().any(|n| n == name) {
            return Err(format!("the service {name:?} leads back to itself: {}", self.under_way.join(" → ")));
        }
        if self.under_way.len() >= DEPTH_MAX {
            return Err(format!("the service {name:?} is nested more than {DEPTH_MAX} deep"));
        }
        self.under_way.push(name.to_owned());
        let node = self.make(name, service);
        self.under_way.pop();
        self.nodes.insert(name.to_owned(), node.clone());
        node
    }

    fn make(&mut self, name: &str, service: &Service) -> Result<Arc<Node>, String> {
        let id: Arc<str> = name.into();
        let inner = match &service.kind {
            ServiceKind::LoadBalancer(settings) => Inner::Servers(self.load_balancer(&id, settings)?),
            ServiceKind::Weighted(settings) => {
                let group = Group {
                    services: &settings.services,
                    health_check: settings.health_check,
                    sticky: settings.sticky.as_ref(),
                    strategy: BalancerStrategy::Wrr,
                    kind: "weighted",
                };
                Inner::Services(self.services(name, &group)?)
            }
            ServiceKind::HighestRandomWeight(settings) => {
                let group = Group {
                    services: &settings.services,
                    health_check: settings.health_check,
                    sticky: None,
                    strategy: BalancerStrategy::Hrw,
                    kind: "highestrandomweight",
                };
                Inner::Services(self.services(name, &group)?)
            }
            ServiceKind::Mirroring(settings) => Inner::Mirroring(self.mirroring(name, settings)?),
            ServiceKind::Failover(settings) => Inner::Failover(self.failover(name, settings)?),
            ServiceKind::Invalid(reason) => return Err(reason.clone()),
        };
        let chain = if service.middlewares.is_empty() {
            None
        } else {
            let chains = self.blueprint.chains;
            let mut resolve = |name: &str| Ok(self.node(name)? as Arc<dyn Target>);
            Some(chains(name, &service.middlewares, &mut resolve)?)
        };
        Ok(Arc::new(Node::new(id, chain, inner)))
    }

    fn load_balancer(&mut self, id: &Arc<str>, settings: &LoadBalancer) -> Result<ServerGroup, String> {
        let transport = self.transport(id, settings.servers_transport.as_deref())?;
        let previous = self.before(id);
        let rules = Arc::new(Rules {
            service: (&**id).into(),
            pass_host_header: settings.pass_host_header,
            passive: settings.passive_health_check.clone(),
            is_probed: settings.health_check.is_some(),
            counts_load: matches!(settings.strategy, BalancerStrategy::P2c | BalancerStrategy::LeastTime),
        });
        let mut servers = Vec::with_capacity(settings.servers.len());
        for server in &settings.servers {
            let url = ServerUrl::parse(&server.url)?;
            let state = previous.and_then(|node| node.server_state(&server.url)).cloned().unwrap_or_default();
            state.reset(rules.is_probed, rules.passive.is_some());
            servers.push(Server {
                text: server.url.as_str().into(),
                origin: transport.origin(&url)?,
                url,
                settings: server.clone(),
                state,
                rules: Arc::clone(&rules),
            });
        }
        let health = match &settings.health_check {
            None => None,
            Some(check) => {
                let probed = servers.iter().map(probed).collect();
                let before = previous.and_then(Node::health_task);
                Some(HealthTask::start(id, check, &transport, probed, before)?)
            }
        };
        let all = servers.iter().map(|s| (Arc::from(&*s.text), Arc::clone(&s.state))).collect();
        let sticky = |members: &[Server]| sticky(settings.sticky.as_ref(), id, members);
        let line = previous.and_then(Node::schedule);
        let balancer = Balancer::new(servers, settings.strategy, sticky, line.as_ref());
        Ok(ServerGroup { balancer, rules, all, health })
    }

    fn services(&mut self, name: &str, group: &Group<'_>) -> Result<ServiceGroup, String> {
        let mut children = Vec::with_capacity(group.services.len());
        for service in group.services {
            let node = self.referenced(name, &service.name)?;
            if group.health_check && !node.reports_health() {
                return Err(failover::no_health(node.name()));
            }
            children.push(Child {
                name: service.written.as_str().into(),
                weight: service.weight,
                node,
                watched: group.health_check,
            });
        }
        let line = self.before(name).and_then(Node::schedule);
        let sticky = |members: &[Child]| sticky(group.sticky, name, members);
        let balancer = Balancer::new(children, group.strategy, sticky, line.as_ref());
        Ok(ServiceGroup { balancer, kind: group.kind, health_check: group.health_check })
    }

    fn mirroring(&mut self, name: &str, settings: &MirroringSettings) -> Result<Mirroring, String> {
        let service = self.referenced(name, &settings.service)?;
        let mirrors =
            settings.mirrors.iter().map(|m| self.referenced(name, &m.name)).collect::<Result<_, _>>()?;
        Mirroring::new(settings, service, mirrors)
    }

    fn failover(&mut self, name: &str, settings: &FailoverSettings) -> Result<Failover, String> {
        let service = self.referenced(name, &settings.service)?;
        let fallback = self.referenced(name, &settings.fallback)?;
        Failover::new(settings, service, fallback)
    }

    /// A service that `from` names.
    fn referenced(&mut self, from: &str, name: &str) -> Result<Arc<Node>, String> {
        let name = qualified(name, from);
        self.node(&name).map_err(|why| format!("cannot use {name:?}: {why}"))
    }

    fn transport(&mut self, from: &str, name: Option<&str>) -> Result<Arc<Transport>, String> {
        let name = match name.filter(|name| !name.is_empty()) {
            Some(name) => qualified(name, from),
            None => DEFAULT_TRANSPORT.to_owned(),
        };
        match self.transports.get(&name) {
            Some(transport) => {
                transport.clone().map_err(|why| format!("serversTransport {name:?} cannot be used: {why}"))
            }
            None => Err(format!("the serversTransport {name:?} does not exist")),
        }
    }

    /// The node of this name before the reload.
    fn before(&self, name: &str) -> Option<&Node> {
        self.previous?.nodes.get(name)?.as_deref().ok()
    }
}

/// Services to choose among, whatever they are called in the configuration.
struct Group<'a> {
    services: &'a [WeightedService],
    health_check: bool,
    sticky: Option<&'a Cookie>,
    strategy: BalancerStrategy,
    kind: &'static str,
}

fn compile_transports(
    settings: &BTreeMap<String, ServersTransport>,
    previous: Option<&Services>,
) -> BTreeMap<String, Result<Arc<Transport>, String>> {
    let compile = |name: &str, settings: &ServersTransport| {
        let before = previous.and_then(|p| p.transports.get(name)).and_then(|t| t.as_ref().ok());
        Transport::compile(settings, before)
    };
    let mut transports: BTreeMap<_, _> =
        settings.iter().map(|(name, settings)| (name.clone(), compile(name, settings))).collect();
    transports
        .entry(DEFAULT_TRANSPORT.to_owned())
        .or_insert_with(|| compile(DEFAULT_TRANSPORT, &ServersTransport::default()));
    transports
}

fn start_sweeper(transports: Vec<Arc<Transport>>) -> Option<AbortHandle> {
    let task = Handle::try_current().ok()?.spawn(async move {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            for transport in &transports {
                transport.sweep();
            }
        }
    });
    Some(task.abort_handle())
}

fn probed(server: &Server) -> Probed {
    Probed { text: Arc::from(&*server.text), url: server.url.clone(), state: Arc::clone(&server.state) }
}

fn sticky<M: Member>(cookie: Option<&Cookie>, service: &str, members: &[M]) -> Option<Sticky> {
    cookie.map(|cookie| Sticky::new(cookie, service, members.iter().map(Member::name)))
}

fn missing(name: &str) -> String {
    format!("the service {name:?} does not exist")
}

/// `name@provider`, the provider being that of the object `from` unless it is written.
fn qualified(name: &str, from: &str) -> String {
    match (name.contains('@'), from.rsplit_once('@')) {
        (false, Some((_, provider))) => format!("{name}@{provider}"),
        _ => name.to_owned(),
    }
}

/// The transport of services that name none.
const DEFAULT_TRANSPORT: &str = "default@internal";
/// Services within services; each level is a call within a call for every request.
/// What our own services are named behind.
const INTERNAL: &str = "@internal";
const DEPTH_MAX: usize = 32;
/// Idle connections are closed up to this much too late.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
