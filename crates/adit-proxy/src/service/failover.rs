//! One service, and another for when it fails: by health, or by what it answers.

use std::ops::RangeInclusive;
use std::sync::Arc;

use adit_config::dynamic::Failover as Settings;
use http::StatusCode;

use super::failure;
use super::node::Node;
use super::replay::{Overflow, Replay};
use crate::body::{Body, Length};
use crate::message::{Request, Response};
use crate::middleware::{Ctx, Target as _};

/// A service with a fallback.
#[derive(Debug)]
pub(super) struct Failover {
    service: Arc<Node>,
    fallback: Arc<Node>,
    health_check: bool,
    /// Answers that send the request on to the fallback.
    statuses: Vec<RangeInclusive<u16>>,
    request_bytes_max: Option<u64>,
}

impl Failover {
    /// Takes over settings.
    ///
    /// # Errors
    /// What makes no sense: nothing that could tell of a failure, or statuses that are none.
    pub(super) fn new(settings: &Settings, service: Arc<Node>, fallback: Arc<Node>) -> Result<Self, String> {
        let statuses = match &settings.errors {
            Some(errors) => errors.status.iter().map(|text| range(text)).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        if statuses.is_empty() && !service.reports_health() {
            return Err(no_health(service.name()));
        }
        if settings.health_check && !fallback.reports_health() {
            return Err(no_health(fallback.name()));
        }
        Ok(Self {
            service,
            fallback,
            health_check: settings.health_check,
            statuses,
            request_bytes_max: settings.errors.as_ref().and_then(|errors| errors.request_body_bytes_max),
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_service_up() || self.is_fallback_up()
    }

    pub(super) fn reports_health(&self) -> bool {
        self.health_check
    }

    fn is_service_up(&self) -> bool {
        !self.service.reports_health() || self.service.is_up()
    }

    fn is_fallback_up(&self) -> bool {
        !self.health_check || self.fallback.is_up()
    }

    pub(super) async fn call(&self, request: Request, ctx: &mut Ctx) -> Response {
        if !self.is_service_up() {
            return self.fall_back(request, ctx).await;
        }
        if self.statuses.is_empty() {
            return self.service.call(request, ctx).await;
        }
        let (first, second, replay) = match self.split(request) {
            Ok(parts) => parts,
            Err(TooLarge) => {
                ctx.refused("failover_body_too_large");
                return failure::plain(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large\n");
            }
        };
        let response = self.service.call(first, ctx).await;
        if !self.statuses.iter().any(|range| range.contains(&response.status.as_u16())) {
            return response;
        }
        // Without its whole content a request is another request: then the answer is what it is.
        let Some(body) = replay.attempt() else {
            tracing::debug!(service = self.service.name(), "the content was too large to fail over");
            return response;
        };
        drop(response);
        self.fall_back(Request { body, ..second }, ctx).await
    }

    async fn fall_back(&self, request: Request, ctx: &mut Ctx) -> Response {
        if self.is_fallback_up() {
            return self.fallback.call(request, ctx).await;
        }
        ctx.refused("no_available_server");
        failure::plain(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable\n")
    }

    /// The request, the same without content, and the content for both.
    fn split(&self, request: Request) -> Result<(Request, Request, Replay), TooLarge> {
        // The bytes of an upgraded connection are not sent twice; before the upgrade none are taken.
        let limit = if request.upgrade.is_some() { Some(0) } else { self.request_bytes_max };
        let overflow = if request.upgrade.is_some() { Overflow::Forget } else { Overflow::Refuse };
        if let (Length::Known(bytes), Some(max)) = (request.body.length(), limit)
            && bytes > max
        {
            return Err(TooLarge);
        }
        let (mut first, second) = duplicate(request);
        let replay = Replay::new(std::mem::replace(&mut first.body, Body::empty()), limit, overflow);
        first.body = replay.attempt().unwrap_or_else(Body::empty);
        Ok((first, second, replay))
    }
}

/// More content announced than may be kept.
struct TooLarge;

/// A request and a second one with the same head and no content.
pub(super) fn duplicate(request: Request) -> (Request, Request) {
    let second = Request {
        method: request.method.clone(),
        uri: request.uri.clone(),
        version: request.version,
        host: request.host.clone(),
        headers: request.headers.clone(),
        body: Body::empty(),
        upgrade: request.upgrade.clone(),
        visitor: Arc::clone(&request.visitor),
    };
    (request, second)
}

/// What is wrong with a service that is to be watched and cannot be.
pub(super) fn no_health(service: &str) -> String {
    format!("the service {service:?} has no healthCheck, so its health is not known")
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (number(low), number(high)) {
        (Some(low), Some(high)) => Ok(low..=high),
        _ => Err(format!("errors.status: {text:?} is neither a status nor a range of them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_numbers_or_ranges() {
        assert_eq!(range("500-599"), Ok(500..=599));
        assert_eq!(range("404"), Ok(404..=404));
        assert!(range("5xx").is_err());
        assert!(range("").is_err());
    }
}
