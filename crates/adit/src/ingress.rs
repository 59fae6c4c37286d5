//! The connector's rules with the origins behind them.

use std::sync::{Arc, Mutex, PoisonError};

use adit_config::{Ingress, IngressRule, OriginSettings, RemoteConfig, Service};
use adit_proxy::message::Request;
use adit_proxy::origin::{Origin, OriginError};
use adit_route::{Decision, Head, Refusal, Table, Target};
use arc_swap::ArcSwap;
use http::StatusCode;
use thiserror::Error;

use crate::access::AccessGate;

/// What answers the requests of one rule.
#[derive(Clone, Debug)]
pub(crate) enum Answerer {
    /// A connection to somewhere.
    Origin(Arc<Origin>),
    /// The sample origin.
    Hello,
}

/// What is to happen with a request.
#[derive(Debug)]
pub(crate) struct Routed<'a> {
    /// Who may ask; checked before anything else.
    pub access: Option<&'a AccessGate>,
    /// Who answers.
    pub answer: Result<&'a Answerer, StatusCode>,
}

/// One generation of rules.
#[derive(Debug)]
pub(crate) struct Served {
    table: Table<Answerer>,
    /// By rule.
    gates: Vec<Option<AccessGate>>,
    ingress: Ingress,
}

/// The rules in force; replaced whole.
#[derive(Debug)]
pub(crate) struct IngressState {
    current: ArcSwap<Served>,
    /// One change at a time: a push and a reload must not overwrite each other half way.
    change: Mutex<()>,
    remote: ArcSwap<Option<i32>>,
}

/// Why rules cannot be served.
#[derive(Debug, Error)]
pub(crate) enum IngressError {
    /// An origin's settings.
    #[error("rule {rule}: the origin cannot be set up")]
    Origin {
        /// From 1, as in messages of `ingress validate`.
        rule: usize,
        /// Why.
        source: OriginError,
    },
    /// A service that is parsed but not served.
    #[error("rule {rule}: {service} is not served: TCP over WebSocket is not implemented")]
    Unserved {
        /// From 1.
        rule: usize,
        /// As written.
        service: String,
    },
}

impl Served {
    /// Compiles rules; origins that did not change are taken over from `previous` with their open connections.
    ///
    /// # Errors
    /// [`IngressError`] of the first rule that cannot be served.
    pub(crate) fn build(ingress: &Ingress, previous: Option<&Self>) -> Result<Self, IngressError> {
        let mut failed = None;
        let mut answerers = Vec::with_capacity(ingress.rules.len());
        for (index, rule) in ingress.rules.iter().enumerate() {
            match answerer(index + 1, rule, previous) {
                Ok(answerer) => answerers.push(answerer),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let table = Table::from_ingress(ingress, |index, _| answerers[index].clone());
        let gates =
            ingress.rules.iter().map(|rule| rule.origin.access.as_ref().map(AccessGate::new)).collect();
        Ok(Self { table, gates, ingress: ingress.clone() })
    }

    /// What the rules say of a request; there always is a rule, because the last takes everything.
    ///
    /// # Errors
    /// A path that cannot be compared with the rules.
    pub(crate) fn decide(&self, request: &Request) -> Result<Routed<'_>, Refusal> {
        let head = Head { host: &request.host, path: request.uri.path(), method: &request.method };
        let (index, answer) = match self.table.decide(&head) {
            Decision::Forward { route, endpoint } => (route.index, Ok(endpoint)),
            Decision::Respond { route, status } => (route.index, Err(status)),
            Decision::Refuse(refusal) => return Err(refusal),
        };
        Ok(Routed { access: self.gates.get(index).and_then(Option::as_ref), answer })
    }

    fn answerers(&self) -> impl Iterator<Item = (usize, &Answerer)> {
        self.table.routes().iter().filter_map(|route| match &route.target {
            Target::Forward(answerer) => Some((route.index, answerer)),
            Target::Respond(_) => None,
        })
    }

    fn origin_of(&self, service: &Service, settings: &OriginSettings) -> Option<Answerer> {
        let index = self.ingress.rules.iter().position(|r| r.service == *service && r.origin == *settings)?;
        self.answerers().find(|(of, _)| *of == index).map(|(_, answerer)| answerer.clone())
    }
}

impl IngressState {
    /// Starts with the given rules.
    ///
    /// # Errors
    /// [`IngressError`].
    pub(crate) fn new(ingress: &Ingress) -> Result<Self, IngressError> {
        Ok(Self {
            current: ArcSwap::from_pointee(Served::build(ingress, None)?),
            change: Mutex::new(()),
            remote: ArcSwap::from_pointee(None),
        })
    }

    /// The rules in force.
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<Served>> {
        self.current.load()
    }

    /// Compiles rules to go in the place of those in force.
    ///
    /// # Errors
    /// [`IngressError`].
    pub(crate) fn compile(&self, ingress: &Ingress) -> Result<Served, IngressError> {
        Served::build(ingress, Some(&self.current.load()))
    }

    /// Takes rules from the configuration file. Rules that the edge pushed stay in force: they are newer.
    pub(crate) fn apply_local(&self, served: Served) {
        let _one = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.remote.load().is_none() {
            self.current.store(Arc::new(served));
        }
    }

    /// Takes rules pushed by the edge.
    ///
    /// # Errors
    /// Every problem of the push, in words for the edge; the old rules stay.
    pub(crate) fn apply_remote(&self, version: i32, json: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(json).map_err(|_| "the configuration is not UTF-8".to_owned())?;
        let remote = RemoteConfig::from_json(text).map_err(|problems| problems.to_string())?;
        let _one = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let served =
            Served::build(&remote.ingress, Some(&self.current.load())).map_err(|error| chain(&error))?;
        self.current.store(Arc::new(served));
        self.remote.store(Arc::new(Some(version)));
        Ok(())
    }

    /// Version of the edge's push in force; -1 = the local rules are (tunnel-protocol.md §3.7).
    pub(crate) fn version(&self) -> i32 {
        self.remote.load().unwrap_or(-1)
    }

    /// The rules in force, as configured.
    pub(crate) fn ingress(&self) -> Ingress {
        self.current.load().ingress.clone()
    }

    /// Closes origin connections idle for too long.
    pub(crate) fn sweep(&self) {
        for (_, answerer) in self.current.load().answerers() {
            if let Answerer::Origin(origin) = answerer {
                origin.sweep();
            }
        }
    }
}

fn answerer(number: usize, rule: &IngressRule, previous: Option<&Served>) -> Result<Answerer, IngressError> {
    match &rule.service {
        // Statuses are answered by the table itself.
        Service::HelloWorld | Service::Status(_) => Ok(Answerer::Hello),
        Service::Stream(_) => {
            Err(IngressError::Unserved { rule: number, service: rule.service_text.clone() })
        }
        service @ (Service::Http { .. } | Service::Unix { .. }) => {
            if let Some(kept) = previous.and_then(|p| p.origin_of(service, &rule.origin)) {
                return Ok(kept);
            }
            let origin = Origin::new(service, &rule.origin)
                .map_err(|source| IngressError::Origin { rule: number, source })?;
            Ok(Answerer::Origin(Arc::new(origin)))
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
