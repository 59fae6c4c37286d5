//! TCP services: which server a connection goes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_config::dynamic::{TcpDynamic, TcpLoadBalancer, TcpServersTransport, TcpService, WeightedService};

use super::health::{self, Health, Prober};
use super::transport::{DialError, ServerAddress, Transport};
use crate::io::Io;
use crate::proxy_protocol::Addresses;

/// All TCP services by name, or why one is not to be used.
#[derive(Debug, Default)]
pub struct TcpServices {
    services: BTreeMap<String, Result<Arc<TcpNode>, String>>,
}

/// A compiled service.
#[derive(Debug)]
pub struct TcpNode {
    config: Compiled,
    kind: Kind,
}

/// What a node was made from: equal means that it can stay.
#[derive(Debug, PartialEq, Eq)]
struct Compiled {
    service: TcpService,
    transport: Option<TcpServersTransport>,
}

#[derive(Debug)]
enum Kind {
    Servers(Servers),
    Weighted { children: Vec<Arc<TcpNode>>, turn: Mutex<WeightedTurn>, reports_health: bool },
}

#[derive(Debug)]
struct Servers {
    servers: Vec<(ServerAddress, Arc<Health>)>,
    next: Mutex<usize>,
    transport: Transport,
    /// Keeps the probes running.
    _prober: Option<Prober>,
}

/// A connection to a server.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub io: Io,
    /// Where to.
    pub server: String,
    /// See [`Transport::termination_delay`].
    pub termination_delay: Option<Duration>,
}

/// Why a connection gets no server.
#[derive(Debug, thiserror::Error)]
pub enum NoServer {
    /// None is configured, or all are down.
    #[error("no server is available")]
    Unavailable,
    /// Every one that was tried failed; this is the last failure.
    #[error("no server could be reached")]
    Unreachable(#[source] DialError),
}

impl NoServer {
    /// The name of this failure in logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable => "tcp_no_server",
            Self::Unreachable(error) => error.reason(),
        }
    }
}

impl TcpServices {
    /// Compiles each; one that has not changed since `previous` keeps its health and its turn. Must be called on a tokio
    /// runtime: health checks start here.
    pub fn compile(dynamic: &TcpDynamic, previous: Option<&Self>) -> Self {
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
    pub fn find(&self, name: &str) -> Result<Arc<TcpNode>, String> {
        match self.services.get(name) {
            Some(Ok(node)) => Ok(Arc::clone(node)),
            Some(Err(reason)) => Err(format!("service {name}: {reason}")),
            None => Err(format!("service {name} does not exist")),
        }
    }

    /// Names and reasons of those at fault.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.services.iter().filter_map(|(name, node)| Some((name.as_str(), node.as_ref().err()?.as_str())))
    }

    /// Each server of each service with its state, for the API and metrics.
    pub fn servers(&self) -> impl Iterator<Item = (&str, String, bool)> {
        self.services.iter().flat_map(|(name, node)| {
            let servers = match node.as_ref().map(|node| &node.kind) {
                Ok(Kind::Servers(servers)) => servers.servers.as_slice(),
                _ => &[],
            };
            servers.iter().map(move |(address, health)| (name.as_str(), address.to_string(), health.is_up()))
        })
    }

    fn compile_one(
        &mut self,
        name: &str,
        dynamic: &TcpDynamic,
        previous: Option<&Self>,
        above: &mut BTreeSet<String>,
    ) -> Result<Arc<TcpNode>, String> {
        if let Some(done) = self.services.get(name) {
            return done.clone();
        }
        let Some(service) = dynamic.services.get(name) else {
            return Err(format!("service {name} does not exist"));
        };
        if !above.insert(name.to_owned()) {
            return Err(format!("service {name} contains itself"));
        }
        let kept = previous.and_then(|previous| previous.services.get(name)?.as_ref().ok());
        let node = match service {
            TcpService::Invalid(reason) => Err(reason.clone()),
            TcpService::LoadBalancer(balancer) => servers(service, balancer, dynamic, kept),
            TcpService::Weighted { services, health_check } => {
                self.weighted(services, dynamic, previous, above).map(|(children, weights)| {
                    let config = Compiled { service: service.clone(), transport: None };
                    if let Some(kept) = kept.filter(|kept| kept.config == config && kept.has(&children)) {
                        return Arc::clone(kept);
                    }
                    let turn = Mutex::new(WeightedTurn::new(weights));
                    let kind = Kind::Weighted { children, turn, reports_health: *health_check };
                    Arc::new(TcpNode { config, kind })
                })
            }
        };
        above.remove(name);
        self.services.insert(name.to_owned(), node.clone());
        node
    }

    fn weighted(
        &mut self,
        services: &[WeightedService],
        dynamic: &TcpDynamic,
        previous: Option<&Self>,
        above: &mut BTreeSet<String>,
    ) -> Result<(Vec<Arc<TcpNode>>, Vec<u64>), String> {
        let mut children = Vec::new();
        let mut weights = Vec::new();
        for service in services {
            let name = service.name.as_str();
            children.push(self.compile_one(name, dynamic, previous, above)?);
            weights.push(u64::from(service.weight));
        }
        Ok((children, weights))
    }
}

impl TcpNode {
    /// Takes a server and connects to it. A server that cannot be reached is passed over for the next one: no byte has
    /// been sent yet, so nothing can happen twice.
    ///
    /// # Errors
    /// [`NoServer`].
    pub async fn dial(&self, visitor: &Addresses) -> Result<Dialled, NoServer> {
        let mut node = self;
        let mut depth = 0;
        let servers = loop {
            match &node.kind {
                Kind::Servers(servers) => break servers,
                Kind::Weighted { children, turn, .. } => {
                    let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    let chosen = turn.next(|index| children[index].is_up()).ok_or(NoServer::Unavailable)?;
                    node = &children[chosen];
                }
            }
            depth += 1;
            debug_assert!(depth < 1000, "compilation refuses services that contain themselves");
        };
        servers.dial(visitor).await
    }

    fn has(&self, others: &[Arc<Self>]) -> bool {
        let Kind::Weighted { children, .. } = &self.kind else { return false };
        children.len() == others.len() && children.iter().zip(others).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// False if every server below is known to be down.
    pub fn is_up(&self) -> bool {
        match &self.kind {
            Kind::Servers(servers) => servers.servers.iter().any(|(_, health)| health.is_up()),
            Kind::Weighted { children, reports_health, .. } => {
                !reports_health || children.iter().any(|child| child.is_up())
            }
        }
    }
}

impl Servers {
    async fn dial(&self, visitor: &Addresses) -> Result<Dialled, NoServer> {
        let start = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let start = *next;
            *next = next.wrapping_add(1);
            start
        };
        let count = self.servers.len();
        let in_turn = (0..count).map(|offset| &self.servers[(start.wrapping_add(offset)) % count]);
        let mut failure = NoServer::Unavailable;
        for (address, _) in in_turn.filter(|(_, health)| health.is_up()).take(ATTEMPTS_MAX) {
            match self.transport.dial(address, visitor).await {
                Ok(io) => {
                    let termination_delay = self.transport.termination_delay();
                    return Ok(Dialled { io, server: address.to_string(), termination_delay });
                }
                Err(error) => {
                    tracing::debug!(server = %address, %error, reason = error.reason(), "TCP server not reached");
                    failure = NoServer::Unreachable(error);
                }
            }
        }
        Err(failure)
    }
}

fn servers(
    service: &TcpService,
    balancer: &TcpLoadBalancer,
    dynamic: &TcpDynamic,
    kept: Option<&Arc<TcpNode>>,
) -> Result<Arc<TcpNode>, String> {
    let transport = match &balancer.servers_transport {
        None => TcpServersTransport::default(),
        Some(name) => dynamic
            .servers_transports
            .get(name)
            .ok_or_else(|| format!("serversTransport {name} does not exist"))?
            .clone(),
    };
    let config = Compiled { service: service.clone(), transport: Some(transport) };
    // The content of certificate files may have changed under the same names.
    let tls = config.transport.as_ref().and_then(|transport| transport.tls.as_ref());
    let has_files = tls.is_some_and(|tls| !tls.root_cas.is_empty() || !tls.certificates.is_empty());
    if let Some(kept) = kept.filter(|kept| kept.config == config && !has_files) {
        return Ok(Arc::clone(kept));
    }
    let settings = config.transport.clone().unwrap_or_default();
    let transport = Transport::compile(balancer, &settings)?;
    let servers = balancer
        .servers
        .iter()
        .map(|server| Ok((ServerAddress::parse(&server.address, server.tls)?, Arc::default())))
        .collect::<Result<Vec<_>, DialError>>()
        .map_err(|error| error.to_string())?;
    let _prober = balancer.health_check.as_ref().map(|config| health::start(config, &transport, &servers));
    let kind = Kind::Servers(Servers { servers, next: Mutex::new(0), transport, _prober });
    Ok(Arc::new(TcpNode { config, kind }))
}

/// Interleaved weighted round robin: in each round a child with weight n is chosen n times, evenly spread.
#[derive(Debug)]
pub(crate) struct WeightedTurn {
    weights: Vec<u64>,
    credits: Vec<i128>,
}

impl WeightedTurn {
    /// A child of weight 0 is never chosen.
    pub(crate) fn new(weights: Vec<u64>) -> Self {
        let credits = vec![0; weights.len()];
        Self { weights, credits }
    }

    /// The child whose turn it is among those that are usable.
    pub(crate) fn next(&mut self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for index in 0..self.weights.len() {
            if self.weights[index] == 0 || !usable(index) {
                continue;
            }
            let weight = i128::from(self.weights[index]);
            self.credits[index] += weight;
            total += weight;
            if best.is_none_or(|best| self.credits[index] > self.credits[best]) {
                best = Some(index);
            }
        }
        let best = best?;
        self.credits[best] -= total;
        Some(best)
    }
}

/// Servers tried for one connection before it is given up: a visitor waits for no more than this many time-outs.
const ATTEMPTS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use adit_config::dynamic::TcpServer;
    use tokio::net::TcpListener;

    use super::*;

    fn balancer(addresses: &[String]) -> TcpService {
        let server = |address: &String| TcpServer { address: address.clone(), tls: false };
        TcpService::LoadBalancer(TcpLoadBalancer {
            servers: addresses.iter().map(server).collect(),
            ..TcpLoadBalancer::default()
        })
    }

    fn dynamic(services: &[(&str, TcpService)]) -> TcpDynamic {
        let services = services.iter().map(|(name, service)| ((*name).to_owned(), service.clone())).collect();
        TcpDynamic { services, ..TcpDynamic::default() }
    }

    fn weighted(parts: &[(&str, u32)]) -> TcpService {
        let part = |(name, weight): &(&str, u32)| WeightedService {
            name: (*name).to_owned(),
            written: (*name).to_owned(),
            weight: *weight,
        };
        TcpService::Weighted { services: parts.iter().map(part).collect(), health_check: false }
    }

    fn somebody() -> Addresses {
        let address = "192.0.2.1:7".parse().unwrap();
        Addresses { source: address, destination: address }
    }

    #[test]
    fn weights_are_kept_exactly_and_spread() {
        let mut turn = WeightedTurn::new(vec![3, 1, 0]);
        let chosen: Vec<_> = (0..8).map(|_| turn.next(|_| true).unwrap()).collect();
        assert_eq!(chosen.iter().filter(|index| **index == 0).count(), 6);
        assert_eq!(chosen, [0, 0, 1, 0, 0, 0, 1, 0]);
        assert_eq!(turn.next(|index| index == 2), None);
    }

    #[tokio::test]
    async fn servers_take_turns_and_a_dead_one_is_passed_over() {
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = {
            let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
            closed.local_addr().unwrap().to_string()
        };
        let (live, other) = (live.local_addr().unwrap(), other.local_addr().unwrap());
        let all = [live.to_string(), dead, other.to_string()];
        let services = TcpServices::compile(&dynamic(&[("t", balancer(&all))]), None);
        let node = services.find("t").unwrap();
        let mut reached = Vec::new();
        for _ in 0..3 {
            reached.push(node.dial(&somebody()).await.unwrap().server);
        }
        assert_eq!(reached, [live.to_string(), other.to_string(), other.to_string()]);
    }

    #[tokio::test]
    async fn services_that_contain_themselves_or_nobody_are_at_fault() {
        let services = TcpServices::compile(
            &dynamic(&[
                ("a", weighted(&[("b", 1)])),
                ("b", weighted(&[("a", 1)])),
                ("c", weighted(&[("x", 1)])),
            ]),
            None,
        );
        assert_eq!(services.faults().count(), 3);
        assert!(services.find("a").unwrap_err().contains("itself"));
    }

    #[tokio::test]
    async fn an_empty_service_has_no_server() {
        let services = TcpServices::compile(&dynamic(&[("t", balancer(&[]))]), None);
        let failure = services.find("t").unwrap().dial(&somebody()).await.unwrap_err();
        assert_eq!(failure.reason(), "tcp_no_server");
    }

    #[tokio::test]
    async fn an_unchanged_service_keeps_its_turn_over_a_reload() {
        let config = dynamic(&[("t", balancer(&["127.0.0.1:1".to_owned()]))]);
        let first = TcpServices::compile(&config, None);
        let second = TcpServices::compile(&config, Some(&first));
        assert!(Arc::ptr_eq(&first.find("t").unwrap(), &second.find("t").unwrap()));
    }
}
