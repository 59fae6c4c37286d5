//! inFlightReq: a bound on requests at once per source.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adit_config::dynamic;
use http::StatusCode;

use super::source::Criterion;
use super::{Around, BoxFuture, Ctx, Next, held};
use crate::body::Body;
use crate::message::{Request, Response};

/// `inFlightReq`.
pub(super) struct InFlight {
    amount: i64,
    criterion: Criterion,
    hasher: RandomState,
    /// Requests at once by source; a source without any is not in it, so there are never more entries than requests.
    counts: Arc<Counts>,
}

impl InFlight {
    pub(super) fn new(config: &dynamic::InFlightReq) -> Result<Self, String> {
        Ok(Self {
            amount: config.amount,
            criterion: Criterion::new(config.source_criterion.as_ref(), Criterion::Host)?,
            hasher: RandomState::new(),
            counts: Arc::default(),
        })
    }

    fn enter(&self, key: u64) -> Option<Slot> {
        let mut counts = lock(&self.counts);
        let count = counts.entry(key).or_insert(0);
        if *count >= self.amount {
            if *count == 0 {
                counts.remove(&key);
            }
            return None;
        }
        *count += 1;
        Some(Slot { counts: Arc::clone(&self.counts), key })
    }
}

impl Around for InFlight {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        let Some(slot) = self.enter(self.criterion.key(&self.hasher, &request, ctx)) else {
            ctx.refused("in_flight_limit");
            let mut response = Response::status(StatusCode::TOO_MANY_REQUESTS);
            response.body = Body::full(format!("max connections reached: {}", self.amount));
            return Box::pin(std::future::ready(response));
        };
        Box::pin(async move {
            let mut response = next.run(request, ctx).await;
            response.body = held::hold(response.body, slot);
            response
        })
    }
}

type Counts = Mutex<HashMap<u64, i64>>;

/// One request's place.
struct Slot {
    counts: Arc<Counts>,
    key: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

fn lock(counts: &Counts) -> MutexGuard<'_, HashMap<u64, i64>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Echo, ctx, request};
    use super::super::{Layer, run};
    use super::*;

    #[tokio::test]
    async fn a_place_is_free_again_when_the_answer_is_through_and_not_before() {
        let config = dynamic::InFlightReq { amount: 1, source_criterion: None };
        let chain = [Layer::around("m", InFlight::new(&config).unwrap())];
        let streaming = Echo::streaming("answer");
        let (mut first_ctx, mut second_ctx) = (ctx(), ctx());
        let first = run(&chain, &streaming, request("/"), &mut first_ctx).await;
        let second = run(&chain, &streaming, request("/"), &mut second_ctx).await;
        assert_eq!(second.status, StatusCode::TOO_MANY_REQUESTS);
        let mut other = request("/");
        other.host = "other.test".to_owned();
        assert_eq!(run(&chain, &streaming, other, &mut second_ctx).await.status, 200);
        drop(first);
        assert_eq!(run(&chain, &streaming, request("/"), &mut second_ctx).await.status, 200);
    }
}
