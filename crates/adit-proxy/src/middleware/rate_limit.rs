//! rateLimit: a token bucket per source.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use adit_config::dynamic;
use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER};
use tokio::time::{Instant, sleep};

use super::source::{Criterion, Strategy};
use super::{Around, BoxFuture, Ctx, Next, go_duration, reply};
use crate::message::{Request, Response};

/// `rateLimit`.
pub(super) struct RateLimit {
    rate: Option<Rate>,
    criterion: Criterion,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

impl RateLimit {
    pub(super) fn new(config: &dynamic::RateLimit) -> Result<Self, String> {
        let client = Criterion::Address(Strategy::Client { ipv6_prefix: None });
        Ok(Self {
            rate: (config.average > 0).then(|| Rate::new(config)),
            criterion: Criterion::new(config.source_criterion.as_ref(), client)?,
            hasher: RandomState::new(),
            shards: Default::default(),
        })
    }

    fn take(&self, rate: &Rate, request: &Request, ctx: &Ctx) -> Verdict {
        let key = self.criterion.key(&self.hasher, request, ctx);
        // The highest bits: the map inside uses the lowest.
        let shard = &self.shards[usize::try_from(key >> 60).unwrap_or(0) % SHARDS];
        let now = Instant::now();
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.bucket(key, rate, now).take(rate, now)
    }
}

impl Around for RateLimit {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        let Some(rate) = &self.rate else { return next.run(request, ctx) };
        match self.take(rate, &request, ctx) {
            Verdict::Pass(delay) if delay.is_zero() => next.run(request, ctx),
            Verdict::Pass(delay) => Box::pin(async move {
                sleep(delay).await;
                next.run(request, ctx).await
            }),
            Verdict::Refuse(delay) => {
                ctx.refused("rate_limit");
                Box::pin(std::future::ready(too_many(delay)))
            }
        }
    }
}

/// How fast tokens come back, and what a shortfall may cost.
#[derive(Clone, Copy, Debug)]
struct Rate {
    tokens_per_second: f64,
    burst: f64,
    /// A request that lacks less than this much time waits instead of being refused.
    delay_max: Duration,
    /// From an empty bucket, the tokens that waiting requests took ahead included, to a full one.
    refill: Duration,
}

impl Rate {
    fn new(config: &dynamic::RateLimit) -> Self {
        let period = if config.period.is_zero() { Duration::from_secs(1) } else { config.period };
        let tokens_per_second = config.average as f64 / period.as_secs_f64();
        // Half the gap between two tokens, but half a second where less than one comes per second.
        let delay_max = match tokens_per_second {
            slow if slow < 1.0 => Duration::from_millis(500),
            fast => Duration::from_secs_f64(0.5 / fast.trunc()),
        };
        let burst = config.burst.max(1) as f64;
        let refill = Duration::try_from_secs_f64((burst + 1.0) / tokens_per_second).unwrap_or(Duration::MAX);
        Self { tokens_per_second, burst, delay_max, refill: refill.saturating_add(delay_max) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// After this long.
    Pass(Duration),
    /// Come back in this long.
    Refuse(Duration),
}

impl Bucket {
    fn take(&mut self, rate: &Rate, now: Instant) -> Verdict {
        let gained = now.saturating_duration_since(self.since).as_secs_f64() * rate.tokens_per_second;
        self.tokens = (self.tokens + gained).min(rate.burst);
        self.since = now;
        let left = self.tokens - 1.0;
        let delay = Duration::try_from_secs_f64((-left).max(0.0) / rate.tokens_per_second);
        let delay = delay.unwrap_or(Duration::MAX);
        if delay > rate.delay_max {
            return Verdict::Refuse(delay);
        }
        self.tokens = left;
        Verdict::Pass(delay)
    }
}

/// Buckets in two generations: when the young one is full, or so old that a bucket not used since is full again, the old
/// one is forgotten. So only those buckets are lost that nobody has used for longest, in constant time.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<u64, Bucket>,
    old: HashMap<u64, Bucket>,
    /// When the young generation began.
    since: Option<Instant>,
}

impl Shard {
    fn bucket(&mut self, key: u64, rate: &Rate, now: Instant) -> &mut Bucket {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) > rate.refill {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        if !self.young.contains_key(&key) {
            if self.young.len() >= GENERATION_BUCKETS_MAX {
                self.old = std::mem::take(&mut self.young);
                self.since = Some(now);
            }
            let bucket = self.old.remove(&key).unwrap_or(Bucket { tokens: rate.burst, since: now });
            self.young.insert(key, bucket);
        }
        self.young.entry(key).or_insert(Bucket { tokens: rate.burst, since: now })
    }
}

fn too_many(delay: Duration) -> Response {
    let mut response = reply::status_text(StatusCode::TOO_MANY_REQUESTS);
    response.headers.insert(RETRY_AFTER, HeaderValue::from(delay.as_secs_f64().ceil() as u64));
    if let Ok(value) = HeaderValue::try_from(go_duration::format(delay)) {
        response.headers.insert("x-retry-in", value);
    }
    response
}

/// Locks that requests of different sources do not share.
const SHARDS: usize = 16;
/// 16 shards of two generations hold 65,536 sources per middleware, as many as Traefik: under 4 MiB.
const GENERATION_BUCKETS_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{Echo, ctx, request, status_of};
    use super::super::{Layer, run};
    use super::*;

    fn rate(average: i64, period: Duration, burst: i64) -> Rate {
        Rate::new(&dynamic::RateLimit { average, period, burst, source_criterion: None })
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_rest_is_told_when_to_come_back() {
        let config = dynamic::RateLimit {
            average: 1,
            period: Duration::from_secs(3600),
            burst: 3,
            source_criterion: None,
        };
        let chain = [Layer::around("m", RateLimit::new(&config).unwrap())];
        for _ in 0..3 {
            assert_eq!(status_of(&chain, request("/")).await, 200);
        }
        let mut ctx = ctx();
        let response = run(&chain, &Echo::default(), request("/"), &mut ctx).await;
        assert_eq!((response.status.as_u16(), ctx.log.refusal), (429, Some("rate_limit")));
        assert_eq!(response.headers["retry-after"], "3600");
        assert_eq!(response.headers["x-retry-in"], "1h0m0s");
        ctx.client = "127.0.0.2".parse().unwrap();
        assert_eq!(run(&chain, &Echo::default(), request("/"), &mut ctx).await.status, 200);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(status_of(&chain, request("/")).await, 200);
    }

    #[test]
    fn a_small_shortfall_waits() {
        let rate = rate(10, Duration::from_secs(1), 1);
        let start = Instant::now();
        let mut bucket = Bucket { tokens: 1.0, since: start };
        assert_eq!(bucket.take(&rate, start), Verdict::Pass(Duration::ZERO));
        assert!(matches!(bucket.take(&rate, start), Verdict::Refuse(_)));
        let soon = start + Duration::from_millis(60);
        assert!(matches!(bucket.take(&rate, soon), Verdict::Pass(delay) if !delay.is_zero()));
    }

    #[test]
    fn buckets_that_are_full_again_are_forgotten() {
        let rate = rate(1, Duration::from_secs(1), 1);
        let (start, mut shard) = (Instant::now(), Shard::default());
        for key in 0..100 {
            shard.bucket(key, &rate, start);
        }
        for minutes in 1..=2 {
            shard.bucket(0, &rate, start + Duration::from_secs(60 * minutes));
        }
        assert_eq!(shard.young.len() + shard.old.len(), 1);
    }

    #[test]
    fn sources_are_bounded() {
        let rate = rate(1, Duration::from_secs(1), 1);
        let mut shard = Shard::default();
        for key in 0..100_000 {
            shard.bucket(key, &rate, Instant::now());
        }
        assert!(shard.young.len() + shard.old.len() <= 2 * GENERATION_BUCKETS_MAX);
    }

    proptest! {
        #[test]
        fn never_more_pass_than_burst_and_rate_allow(gaps in prop::collection::vec(0u64..500, 1..200)) {
            let rate = rate(5, Duration::from_secs(1), 3);
            let start = Instant::now();
            let mut bucket = Bucket { tokens: rate.burst, since: start };
            let mut at = Duration::ZERO;
            let mut passed = 0.0;
            for gap in gaps {
                at += Duration::from_millis(gap);
                if let Verdict::Pass(_) = bucket.take(&rate, start + at) {
                    passed += 1.0;
                }
            }
            // One more for the request that waits.
            prop_assert!(passed <= 3.0 + 1.0 + at.as_secs_f64() * 5.0);
        }
    }
}
