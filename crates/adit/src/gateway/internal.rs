//! Services of our own that routers may name: `noop@internal`, `ping@internal`, `api@internal`, … (`ingress-features.md §2.2`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use adit_config::Config;
use adit_proxy::message::{Request, Response};
use adit_proxy::middleware::{BoxFuture, Ctx, Target};
use http::{Method, StatusCode};

use crate::admin::Admin;

/// What they need: the process's view of itself, and which of them were asked for.
#[derive(Clone, Default)]
pub(crate) struct Internal {
    /// Filled once the admin endpoint is there.
    admin: Arc<OnceLock<Weak<Admin>>>,
    enabled: [bool; 4],
}

/// One service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// `418 I'm a teapot`: for routers whose middlewares answer.
    Noop,
    /// As `/ping` of the admin endpoint.
    Ping,
    /// Its `/api/…`.
    Api,
    /// Its status page.
    Dashboard,
    /// Its `/metrics`.
    Prometheus,
}

impl Internal {
    /// Those that a configuration asks for; `self`'s view of the process stays.
    pub(crate) fn of(&self, config: &Config) -> Self {
        let (api, ping) = (config.internals.api, config.internals.ping);
        Self {
            admin: Arc::clone(&self.admin),
            enabled: [ping, api, api, config.metrics.prometheus.is_some()],
        }
    }

    /// Lets them see the process.
    pub(crate) fn show(&self, admin: &Arc<Admin>) {
        // A second process in this process does not exist.
        let _ = self.admin.set(Arc::downgrade(admin));
    }

    /// All of them by name; those that were not asked for say so to routers that name them.
    pub(crate) fn targets(&self) -> BTreeMap<String, Result<Arc<dyn Target>, String>> {
        let [ping, api, dashboard, prometheus] = self.enabled;
        [
            (Part::Noop, true, ""),
            (Part::Ping, ping, "ping: {}"),
            (Part::Api, api, "api: {}"),
            (Part::Dashboard, dashboard, "api: {}"),
            (Part::Prometheus, prometheus, "metrics: { prometheus: {} }"),
        ]
        .into_iter()
        .map(|(part, is_enabled, key)| {
            let name = part.name().to_owned();
            if !is_enabled {
                return (name.clone(), Err(format!("the service {name} needs `{key}` in the configuration")));
            }
            let target = Own { part, admin: Arc::clone(&self.admin) };
            (name, Ok(Arc::new(target) as Arc<dyn Target>))
        })
        .collect()
    }
}

impl fmt::Debug for Internal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Internal").field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Noop => "noop@internal",
            Self::Ping => "ping@internal",
            Self::Api => "api@internal",
            Self::Dashboard => "dashboard@internal",
            Self::Prometheus => "prometheus@internal",
        }
    }
}

struct Own {
    part: Part,
    admin: Arc<OnceLock<Weak<Admin>>>,
}

impl Target for Own {
    fn call<'a>(&'a self, request: Request, ctx: &'a mut Ctx) -> BoxFuture<'a, Response> {
        ctx.log.service = Some(self.part.name().into());
        let response = match (self.part, self.admin.get().and_then(Weak::upgrade)) {
            (Part::Noop, _) => Response::status(StatusCode::IM_A_TEAPOT),
            (_, None) => Response::status(StatusCode::SERVICE_UNAVAILABLE),
            _ if !matches!(request.method, Method::GET | Method::HEAD) => {
                Response::status(StatusCode::METHOD_NOT_ALLOWED)
            }
            (part, Some(admin)) => admin.answer_part(part, &request),
        };
        Box::pin(std::future::ready(response))
    }
}
