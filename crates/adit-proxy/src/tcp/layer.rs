//! TCP middlewares: a connection passes all of them or is closed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use adit_config::dynamic::TcpMiddleware;
use ipnet::IpNet;

/// One compiled middleware.
#[derive(Debug)]
pub struct TcpLayer {
    name: String,
    config: TcpMiddleware,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    IpAllowList(Vec<IpNet>),
    InFlight {
        amount: usize,
        /// Bounded by the connections of the listeners.
        counts: Mutex<HashMap<IpAddr, usize>>,
    },
}

/// A connection's place in the count of an `inFlightConn`; given back on drop.
#[derive(Debug)]
pub struct Admission {
    layer: Arc<TcpLayer>,
    address: IpAddr,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not from an allowed address.
    NotAllowed,
    /// Too many of one address.
    TooMany,
}

impl Refusal {
    /// The name of this refusal in logs and metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotAllowed => "tcp_ip_not_allowed",
            Self::TooMany => "tcp_in_flight",
        }
    }
}

/// All TCP middlewares by name, or why one is not to be used.
#[derive(Debug, Default)]
pub struct TcpLayers {
    layers: BTreeMap<String, Result<Arc<TcpLayer>, String>>,
}

impl TcpLayers {
    /// Compiles each; one that has not changed since `previous` keeps its counts.
    pub fn compile(configs: &BTreeMap<String, TcpMiddleware>, previous: Option<&Self>) -> Self {
        let layers = configs
            .iter()
            .map(|(name, config)| {
                let kept = previous
                    .and_then(|previous| previous.layers.get(name)?.as_ref().ok())
                    .filter(|layer| layer.config == *config);
                let layer = match kept {
                    Some(layer) => Ok(Arc::clone(layer)),
                    None => compile(config)
                        .map(|kind| Arc::new(TcpLayer { name: name.clone(), config: config.clone(), kind })),
                };
                (name.clone(), layer)
            })
            .collect();
        Self { layers }
    }

    /// The middlewares of a router, in its order.
    ///
    /// # Errors
    /// The first that does not exist or is at fault: the router must not be served without it.
    pub fn chain(&self, names: &[String]) -> Result<Arc<[Arc<TcpLayer>]>, String> {
        names
            .iter()
            .map(|name| match self.layers.get(name) {
                Some(Ok(layer)) => Ok(Arc::clone(layer)),
                Some(Err(reason)) => Err(format!("middleware {name}: {reason}")),
                None => Err(format!("middleware {name} does not exist")),
            })
            .collect()
    }

    /// Names and reasons of those at fault.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.layers.iter().filter_map(|(name, layer)| Some((name.as_str(), layer.as_ref().err()?.as_str())))
    }
}

impl TcpLayer {
    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets a connection pass, or not. The admission must live as long as the connection.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Option<Admission>, Refusal> {
        let address = address.to_canonical();
        match &self.kind {
            Kind::IpAllowList(networks) => match networks.iter().any(|network| network.contains(&address)) {
                true => Ok(None),
                false => Err(Refusal::NotAllowed),
            },
            Kind::InFlight { amount, counts } => {
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                let count = counts.get(&address).copied().unwrap_or(0);
                if count >= *amount {
                    return Err(Refusal::TooMany);
                }
                counts.insert(address, count + 1);
                Ok(Some(Admission { layer: Arc::clone(self), address }))
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let Kind::InFlight { counts, .. } = &self.layer.kind else { return };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

fn compile(config: &TcpMiddleware) -> Result<Kind, String> {
    match config {
        TcpMiddleware::Invalid(reason) => Err(reason.clone()),
        TcpMiddleware::InFlightConn { amount } => match usize::try_from(*amount) {
            Ok(amount) if amount > 0 => Ok(Kind::InFlight { amount, counts: Mutex::new(HashMap::new()) }),
            _ => Err("inFlightConn.amount must be above 0".to_owned()),
        },
        TcpMiddleware::IpAllowList { source_range } => {
            if source_range.is_empty() {
                return Err("ipAllowList.sourceRange is empty".to_owned());
            }
            source_range.iter().map(|text| network(text)).collect::<Result<_, _>>().map(Kind::IpAllowList)
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(address).ok_or_else(|| format!("{text:?} is neither an address nor a network"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(config: TcpMiddleware, previous: Option<&TcpLayers>) -> TcpLayers {
        TcpLayers::compile(&[("m".to_owned(), config)].into(), previous)
    }

    fn only(layers: &TcpLayers) -> Arc<TcpLayer> {
        Arc::clone(&layers.chain(&["m".to_owned()]).unwrap()[0])
    }

    #[test]
    fn addresses_outside_the_list_are_refused() {
        let source_range = vec!["10.0.0.0/8".to_owned(), "192.0.2.1".to_owned()];
        let layer = only(&layers(TcpMiddleware::IpAllowList { source_range }, None));
        assert!(layer.admit("10.2.3.4".parse().unwrap()).is_ok());
        assert!(layer.admit("::ffff:192.0.2.1".parse().unwrap()).is_ok());
        assert_eq!(layer.admit("192.0.2.2".parse().unwrap()).err(), Some(Refusal::NotAllowed));
    }

    #[test]
    fn connections_of_one_address_are_counted_over_a_reload() {
        let config = TcpMiddleware::InFlightConn { amount: 1 };
        let first = layers(config.clone(), None);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let held = only(&first).admit(address).unwrap();
        let second = layers(config, Some(&first));
        assert_eq!(only(&second).admit(address).err(), Some(Refusal::TooMany));
        assert!(only(&second).admit("192.0.2.2".parse().unwrap()).is_ok());
        drop(held);
        assert!(only(&second).admit(address).is_ok());
    }

    #[test]
    fn faults_are_named() {
        let empty = layers(TcpMiddleware::IpAllowList { source_range: Vec::new() }, None);
        assert!(empty.chain(&["m".to_owned()]).unwrap_err().contains("sourceRange"));
        assert!(empty.chain(&["n".to_owned()]).unwrap_err().contains("does not exist"));
        assert_eq!(empty.faults().count(), 1);
    }
}
