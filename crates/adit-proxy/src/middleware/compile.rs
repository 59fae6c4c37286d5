//! From configuration to layers: every middleware by itself, so that a bad one disables only the routers that use it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adit_config::dynamic::{self, Middleware, PemSource};

use super::basic_auth::BasicAuth;
use super::buffering::Buffering;
use super::circuit_breaker::CircuitBreaker;
use super::client_cert::PassTlsClientCert;
use super::compress::Compress;
use super::content_type::ContentType;
use super::digest_auth::DigestAuth;
use super::encoded_characters::EncodedCharacters;
use super::errors::Errors;
use super::forward_auth::ForwardAuth;
use super::grpc_web::GrpcWeb;
use super::headers::Headers;
use super::in_flight::InFlight;
use super::ip_allow_list::IpAllowList;
use super::path::{AddPrefix, ReplacePath, ReplacePathRegex, StripPrefix, StripPrefixRegex};
use super::rate_limit::RateLimit;
use super::redirect::{RedirectRegex, RedirectScheme};
use super::retry::Retry;
use super::{Chain, Layer};
use crate::service::Resolve;

/// All middlewares of one configuration, by their qualified names (`name@provider`).
///
/// Kept until the next configuration is compiled: what did not change goes over into it with its state.
#[derive(Default)]
pub struct Layers {
    compiled: BTreeMap<String, Compiled>,
    /// Buckets, counters and circuits: one per router (or service) and use, as in Traefik.
    instances: Mutex<Instances>,
    /// Those of the configuration before: whoever is still there takes his own over, the rest goes with this value.
    carried: Instances,
}

/// One place where a middleware with state is used: by whom, which, and the how-manieth time.
type Use = (String, String, usize);

struct Compiled {
    config: Arc<Middleware>,
    /// The layer where all users share one; or why it must not be used.
    result: Result<Kind, String>,
}

enum Kind {
    Shared(Layer),
    /// Made for each use.
    PerUse,
    /// Nothing by itself.
    Chain(Vec<String>),
    /// Made for each use, with its service.
    Errors,
}

impl Layers {
    /// Compiles every middleware; faults are kept with it, see [`Self::faults`].
    pub fn compile(configs: &BTreeMap<String, Middleware>, previous: Option<&Self>) -> Self {
        let mut layers = Self::default();
        for (name, config) in configs {
            let before = previous
                .and_then(|previous| previous.compiled.get(name))
                .filter(|before| *before.config == *config && !reads_files(config));
            let compiled = match before {
                Some(Compiled { config, result: Ok(Kind::Shared(layer)) }) => {
                    Compiled { config: Arc::clone(config), result: Ok(Kind::Shared(layer.clone())) }
                }
                _ => Compiled { config: Arc::new(config.clone()), result: kind(name, config) },
            };
            layers.compiled.insert(name.clone(), compiled);
        }
        if let Some(previous) = previous {
            layers.carried = lock(&previous.instances).clone();
        }
        layers
    }

    /// The layers of a router or service, in the order of `names`; names without a provider are of the user's own.
    ///
    /// `user` is the router's or service's qualified name. `services` finds the service of an `errors` middleware.
    ///
    /// # Errors
    /// Why the user has to be disabled, in words for the operator.
    pub fn chain(&self, user: &str, names: &[String], services: &mut Resolve<'_>) -> Result<Chain, String> {
        let mut building = Building {
            layers: self,
            user,
            services,
            found: Vec::new(),
            path: Vec::new(),
            uses: HashMap::new(),
        };
        building.add_all(names, user)?;
        Ok(building.found.into())
    }

    /// Name and reason of each middleware that must not be used.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.compiled.iter().filter_map(|(name, compiled)| {
            compiled.result.as_ref().err().map(|why| (name.as_str(), why.as_str()))
        })
    }

    /// Why this middleware must not be used; none if it may be, or is unknown.
    pub fn fault(&self, name: &str) -> Option<&str> {
        self.compiled.get(name)?.result.as_ref().err().map(String::as_str)
    }

    /// The state of one use, kept from the configuration before if nothing about it changed.
    fn instance(&self, key: Use, config: &Arc<Middleware>) -> Result<Layer, String> {
        let mut instances = lock(&self.instances);
        let before = instances.get(&key).or_else(|| self.carried.get(&key));
        let layer = match before {
            Some((before, layer)) if before == config => layer.clone(),
            _ => with_state(&key.1, config)?,
        };
        instances.insert(key, (Arc::clone(config), layer.clone()));
        Ok(layer)
    }
}

/// A chain being put together.
struct Building<'a, 'b> {
    layers: &'a Layers,
    user: &'a str,
    services: &'a mut Resolve<'b>,
    found: Vec<Layer>,
    /// Chains that the current name is in.
    path: Vec<String>,
    /// Tells several uses of one middleware by one user apart.
    uses: HashMap<String, usize>,
}

impl Building<'_, '_> {
    fn add_all(&mut self, names: &[String], written_in: &str) -> Result<(), String> {
        names.iter().try_for_each(|name| self.add(&qualified(name, written_in)))
    }

    fn add(&mut self, name: &str) -> Result<(), String> {
        let layers = self.layers;
        let Some(compiled) = layers.compiled.get(name) else {
            return Err(format!("middleware {name:?} does not exist"));
        };
        let kind = compiled.result.as_ref().map_err(|why| format!("middleware {name:?}: {why}"))?;
        if self.path.iter().any(|outer| outer == name) {
            return Err(format!("middleware {name:?}: recursion through {}", self.path.join(" -> ")));
        }
        if self.found.len() >= LAYERS_MAX {
            return Err(format!("more than {LAYERS_MAX} middlewares"));
        }
        match (kind, &*compiled.config) {
            (Kind::Chain(names), _) => {
                self.path.push(name.to_owned());
                self.add_all(names, name)?;
                self.path.pop();
            }
            (Kind::Shared(layer), _) => self.found.push(layer.clone()),
            (Kind::Errors, Middleware::Errors(config)) => {
                let pages = (self.services)(&qualified(&config.service, name));
                let pages = pages.map_err(|why| format!("middleware {name:?}: {why}"))?;
                self.found.push(Layer::around(name, Errors::new(config, pages)?));
            }
            (Kind::PerUse | Kind::Errors, _) => {
                let uses = self.uses.entry(name.to_owned()).or_insert(0);
                *uses += 1;
                let key = (self.user.to_owned(), name.to_owned(), *uses);
                self.found.push(layers.instance(key, &compiled.config)?);
            }
        }
        Ok(())
    }
}

/// A name as it is known: one without provider is of the provider in which it is written.
fn qualified(name: &str, written_in: &str) -> String {
    match (name.contains('@'), written_in.rsplit_once('@')) {
        (false, Some((_, provider))) => format!("{name}@{provider}"),
        _ => name.to_owned(),
    }
}

fn kind(name: &str, config: &Middleware) -> Result<Kind, String> {
    match config {
        Middleware::Chain(chain) => Ok(Kind::Chain(chain.middlewares.clone())),
        Middleware::Errors(config) => Errors::check(config).map(|()| Kind::Errors),
        Middleware::RateLimit(_) | Middleware::InFlightReq(_) | Middleware::CircuitBreaker(_) => {
            with_state(name, config).map(|_| Kind::PerUse)
        }
        config => shared(name, config).map(Kind::Shared),
    }
}

fn with_state(name: &str, config: &Middleware) -> Result<Layer, String> {
    match config {
        Middleware::RateLimit(config) => RateLimit::new(config).map(|m| Layer::around(name, m)),
        Middleware::InFlightReq(config) => InFlight::new(config).map(|m| Layer::around(name, m)),
        Middleware::CircuitBreaker(config) => CircuitBreaker::new(config).map(|m| Layer::around(name, m)),
        _ => Err("not a middleware with state".to_owned()),
    }
}

fn shared(name: &str, config: &Middleware) -> Result<Layer, String> {
    match config {
        Middleware::AddPrefix(config) => AddPrefix::new(config).map(|m| Layer::edit(name, m)),
        Middleware::BasicAuth(config) => BasicAuth::new(config).map(|m| Layer::around(name, m)),
        Middleware::Buffering(config) => Buffering::new(config).map(|m| Layer::around(name, m)),
        Middleware::Compress(config) => Compress::new(config).map(|m| Layer::around(name, m)),
        Middleware::ContentType(config) => Ok(Layer::around(name, ContentType::new(config))),
        Middleware::DigestAuth(config) => DigestAuth::new(config).map(|m| Layer::edit(name, m)),
        Middleware::EncodedCharacters(config) => Ok(Layer::edit(name, EncodedCharacters::new(config))),
        Middleware::ForwardAuth(config) => ForwardAuth::new(config).map(|m| Layer::around(name, m)),
        Middleware::GrpcWeb(config) => Ok(Layer::around(name, GrpcWeb::new(config))),
        Middleware::Headers(config) => Headers::new(config).map(|m| Layer::around(name, m)),
        Middleware::IpAllowList(config) => IpAllowList::new(config).map(|m| Layer::edit(name, m)),
        Middleware::PassTlsClientCert(config) => Ok(Layer::edit(name, PassTlsClientCert::new(config))),
        Middleware::RedirectRegex(config) => RedirectRegex::new(config).map(|m| Layer::edit(name, m)),
        Middleware::RedirectScheme(config) => RedirectScheme::new(config).map(|m| Layer::edit(name, m)),
        Middleware::ReplacePath(config) => Ok(Layer::edit(name, ReplacePath::new(config))),
        Middleware::ReplacePathRegex(config) => ReplacePathRegex::new(config).map(|m| Layer::edit(name, m)),
        Middleware::Retry(config) => Retry::new(config).map(|m| Layer::around(name, m)),
        Middleware::StripPrefix(config) => Ok(Layer::edit(name, StripPrefix::new(config))),
        Middleware::StripPrefixRegex(config) => StripPrefixRegex::new(config).map(|m| Layer::edit(name, m)),
        Middleware::Invalid(why) => Err(why.clone()),
        Middleware::Chain(_)
        | Middleware::Errors(_)
        | Middleware::RateLimit(_)
        | Middleware::InFlightReq(_)
        | Middleware::CircuitBreaker(_) => Err("made for each use".to_owned()),
    }
}

/// Whether the middleware may have changed though its configuration did not.
fn reads_files(config: &Middleware) -> bool {
    match config {
        Middleware::BasicAuth(dynamic::BasicAuth { users_file, .. })
        | Middleware::DigestAuth(dynamic::DigestAuth { users_file, .. }) => users_file.is_some(),
        Middleware::ForwardAuth(config) => config.tls.as_ref().is_some_and(|tls| {
            [&tls.ca, &tls.cert, &tls.key].iter().any(|source| matches!(source, Some(PemSource::File(_))))
        }),
        _ => false,
    }
}

type Instances = HashMap<Use, (Arc<Middleware>, Layer)>;

fn lock(instances: &Mutex<Instances>) -> MutexGuard<'_, Instances> {
    instances.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Layers of one router; chains of chains could grow beyond any stack otherwise.
const LAYERS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::super::run;
    use super::super::tests::{Echo, ctx, request};
    use super::*;
    use crate::middleware::Target;

    fn configs(all: &[(&str, Middleware)]) -> BTreeMap<String, Middleware> {
        all.iter().map(|(name, config)| ((*name).to_owned(), config.clone())).collect()
    }

    fn add_prefix(prefix: &str) -> Middleware {
        Middleware::AddPrefix(dynamic::AddPrefix { prefix: prefix.to_owned() })
    }

    fn chain_of(names: &[&str]) -> Middleware {
        let middlewares = names.iter().map(|name| (*name).to_owned()).collect();
        Middleware::Chain(dynamic::Chain { middlewares })
    }

    fn once_an_hour() -> Middleware {
        Middleware::RateLimit(dynamic::RateLimit {
            average: 1,
            period: std::time::Duration::from_secs(3600),
            ..Default::default()
        })
    }

    fn chain(layers: &Layers, user: &str, name: &str) -> Result<Chain, String> {
        layers.chain(user, &[name.to_owned()], &mut |name| Err(format!("service {name:?} does not exist")))
    }

    async fn status(chain: &Chain) -> u16 {
        run(chain, &Echo::default(), request("/"), &mut ctx()).await.status.as_u16()
    }

    #[tokio::test]
    async fn chains_are_flattened_in_order_and_names_are_of_their_own_provider() {
        let all = configs(&[
            ("one@file", add_prefix("/1")),
            ("two@file", add_prefix("/2")),
            ("c@file", chain_of(&["one", "two@file"])),
        ]);
        let chain = chain(&Layers::compile(&all, None), "r@inline", "c@file").unwrap();
        let target = Echo::default();
        run(&chain, &target, request("/x"), &mut ctx()).await;
        assert_eq!(target.seen().uri, "/2/1/x");
    }

    #[test]
    fn unknown_recursive_and_invalid_ones_are_refused_by_name() {
        let all = configs(&[
            ("a@file", chain_of(&["b"])),
            ("b@file", chain_of(&["a"])),
            ("bad@file", add_prefix("")),
            ("none@file", Middleware::Invalid("no kind".to_owned())),
            (
                "pages@file",
                Middleware::Errors(dynamic::Errors { service: "p".to_owned(), ..Default::default() }),
            ),
        ]);
        let layers = Layers::compile(&all, None);
        for (name, why) in [
            ("a", "recursion"),
            ("bad", "prefix cannot be empty"),
            ("none", "no kind"),
            ("nope", "middleware \"nope@file\" does not exist"),
            ("pages", "service \"p@file\" does not exist"),
        ] {
            let refused = chain(&layers, "r@file", name).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert_eq!(layers.faults().count(), 2);
        assert_eq!(layers.fault("none@file"), Some("no kind"));
    }

    #[tokio::test]
    async fn state_is_each_routers_own_and_survives_a_reload_unless_the_options_change() {
        let all = configs(&[("m", once_an_hour())]);
        let first = Layers::compile(&all, None);
        assert_eq!(status(&chain(&first, "r1", "m").unwrap()).await, 200);
        assert_eq!(status(&chain(&first, "r2", "m").unwrap()).await, 200);
        assert_eq!(status(&chain(&first, "r1", "m").unwrap()).await, 429);
        let second = Layers::compile(&all, Some(&first));
        assert_eq!(status(&chain(&second, "r1", "m").unwrap()).await, 429);
        let changed = Middleware::RateLimit(dynamic::RateLimit { average: 2, ..Default::default() });
        let third = Layers::compile(&configs(&[("m", changed)]), Some(&second));
        assert_eq!(status(&chain(&third, "r1", "m").unwrap()).await, 200);
        assert_eq!(lock(&third.instances).len(), 1, "the state of users that are gone is not kept");
    }

    #[tokio::test]
    async fn error_pages_find_their_service() {
        let config = dynamic::Errors { service: "p".to_owned(), ..Default::default() };
        let layers = Layers::compile(&configs(&[("m@file", Middleware::Errors(config))]), None);
        let mut asked = Vec::new();
        let chain = layers.chain("r@file", &["m".to_owned()], &mut |name| {
            asked.push(name.to_owned());
            Ok(Arc::new(Echo::default()) as Arc<dyn Target>)
        });
        assert_eq!((chain.unwrap().len(), asked), (1, vec!["p@file".to_owned()]));
    }
}
