//! basicAuth: name and password with every request (RFC 7617).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use adit_auth::{BasicCredentials, Fingerprint, Passwords};
use adit_config::dynamic;
use http::StatusCode;
use http::header::{self, HeaderValue};

use super::headers::field_value;
use super::turns::Turns;
use super::users::{self, Admission};
use super::{Around, BoxFuture, Ctx, Next, reply};
use crate::message::{Request, Response};

/// `basicAuth`.
pub(super) struct BasicAuth {
    passwords: Arc<Passwords>,
    challenge: HeaderValue,
    admission: Admission,
    key: [u8; 32],
    /// The last right password of each user, so that bcrypt is worked out once per user and not once per request: at
    /// most one entry per configured user.
    verified: Mutex<HashMap<String, Fingerprint>>,
    /// Guesses that are hashed at once: somebody who tries passwords takes so many cores and no more.
    hashing: Arc<Turns>,
}

/// What is known of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    Wrong,
    /// Too many wait already.
    Busy,
}

impl BasicAuth {
    pub(super) fn new(config: &dynamic::BasicAuth) -> Result<Self, String> {
        let users = users::read(&config.users, config.users_file.as_deref())?;
        let passwords = Passwords::parse(users.iter().map(|user| user.expose()));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            passwords: Arc::new(passwords.map_err(|error| error.to_string())?),
            challenge: field_value("realm", &format!("Basic realm=\"{}\"", config.realm))?,
            admission: Admission::new(config.header_field.as_deref(), config.remove_header)?,
            key: rand::random(),
            verified: Mutex::default(),
            hashing: Turns::new(cores.div_ceil(2)),
        })
    }

    fn is_known(&self, user: &str, fingerprint: Fingerprint) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(user) == Some(&fingerprint)
    }

    async fn verify(&self, credentials: BasicCredentials, client: IpAddr) -> Verdict {
        let Some(turn) = self.hashing.take(client).await else { return Verdict::Busy };
        let fingerprint = credentials.fingerprint(&self.key);
        // Who asks for many things at once is known after the first of them.
        if self.is_known(&credentials.user, fingerprint) {
            return Verdict::Right;
        }
        let user = credentials.user.clone();
        let passwords = Arc::clone(&self.passwords);
        let hashing = tokio::task::spawn_blocking(move || {
            // A hash that has begun runs to its end whether or not the visitor is still there: it counts as long.
            let _turn = turn;
            passwords.verify(&credentials)
        });
        if !hashing.await.unwrap_or(false) {
            return Verdict::Wrong;
        }
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(user, fingerprint);
        Verdict::Right
    }
}

impl Around for BasicAuth {
    fn handle<'a>(
        &'a self,
        mut request: Request,
        ctx: &'a mut Ctx,
        next: Next<'a>,
    ) -> BoxFuture<'a, Response> {
        let credentials =
            request.headers.get(header::AUTHORIZATION).and_then(|v| BasicCredentials::parse(v.as_bytes()));
        let Some(credentials) = credentials else {
            ctx.refused("basic_auth_missing");
            return Box::pin(std::future::ready(users::unauthorized(self.challenge.clone())));
        };
        let user = credentials.user.clone();
        ctx.log.user = Some(user.as_str().into());
        if self.is_known(&user, credentials.fingerprint(&self.key)) {
            self.admission.apply(&mut request, &user);
            return next.run(request, ctx);
        }
        Box::pin(async move {
            match self.verify(credentials, ctx.forwarded_client.unwrap_or(ctx.client)).await {
                Verdict::Right => {}
                Verdict::Wrong => {
                    ctx.refused("basic_auth_wrong");
                    return users::unauthorized(self.challenge.clone());
                }
                Verdict::Busy => {
                    ctx.refused("basic_auth_busy");
                    let mut busy = reply::status_text(StatusCode::SERVICE_UNAVAILABLE);
                    busy.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                    return busy;
                }
            }
            self.admission.apply(&mut request, &user);
            next.run(request, ctx).await
        })
    }
}

#[cfg(test)]
mod tests {
    use adit_config::Secret;

    use super::super::tests::{Echo, ctx, request, request_with};
    use super::super::{Layer, run};
    use super::*;

    fn config() -> dynamic::BasicAuth {
        dynamic::BasicAuth {
            users: vec![Secret::new(b"test:$apr1$H6uskkkW$IgXLP6ewTrSuBkTrqE8wj/".to_vec())],
            remove_header: true,
            header_field: Some("X-User".to_owned()),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn the_right_password_passes_and_the_upstream_learns_the_name_only() {
        let layer = BasicAuth::new(&config()).unwrap();
        let chain = [Layer::around("m", layer)];
        let target = Echo::default();
        for _ in 0..2 {
            let asked = request_with("/", &[("authorization", "Basic dGVzdDp0ZXN0"), ("x-user", "root")]);
            let mut ctx = ctx();
            assert_eq!(run(&chain, &target, asked, &mut ctx).await.status, 200);
            let seen = target.seen();
            assert_eq!(seen.headers["x-user"], "test");
            assert!(!seen.headers.contains_key("authorization"));
            assert_eq!(ctx.log.user.as_deref(), Some("test"));
        }
    }

    #[tokio::test]
    async fn no_password_and_a_wrong_one_are_challenged_before_and_after_a_right_one() {
        let chain = [Layer::around("m", BasicAuth::new(&config()).unwrap())];
        let right = request_with("/", &[("authorization", "Basic dGVzdDp0ZXN0")]);
        assert_eq!(run(&chain, &Echo::default(), right, &mut ctx()).await.status, 200);
        for asked in [request("/"), request_with("/", &[("authorization", "Basic dGVzdDpib2d1cw==")])] {
            let response = run(&chain, &Echo::default(), asked, &mut ctx()).await;
            assert_eq!(response.status, 401);
            assert_eq!(response.headers["www-authenticate"], "Basic realm=\"traefik\"");
        }
    }

    #[tokio::test]
    async fn a_hash_counts_until_it_is_done_even_if_the_visitor_has_left() {
        // Cost 12: it runs much longer than what is looked at here.
        let slow = b"test:$2y$12$EXRkfkdmXn2gzds2SSitu.MW9.gAVqa9eLS1//RYtYCG1uaFHoBPG";
        let config =
            dynamic::BasicAuth { users: vec![Secret::new(slow.to_vec())], ..dynamic::BasicAuth::default() };
        let layer = BasicAuth::new(&config).unwrap();
        let (free, _) = layer.hashing.state();
        let credentials = BasicCredentials::parse(b"Basic dGVzdDpib2d1cw==").unwrap();
        let mut asking = Box::pin(layer.verify(credentials, [127, 0, 0, 1].into()));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(asking.as_mut().poll(&mut cx).is_pending());
        drop(asking);
        assert_eq!(layer.hashing.state(), (free - 1, 0));
    }

    #[tokio::test]
    async fn behind_a_balancer_each_visitor_waits_in_a_line_of_its_own() {
        let chain = [Layer::around("m", BasicAuth::new(&config()).unwrap())];
        let target = Echo::default();
        let ask = |last: u8| {
            let wrong = request_with("/", &[("authorization", "Basic dGVzdDpib2d1cw==")]);
            let mut ctx = ctx();
            ctx.forwarded_client = Some([198, 51, 100, last].into());
            let (chain, target) = (&chain, &target);
            async move { run(chain, target, wrong, &mut ctx).await.status }
        };
        // One visitor fills its own line; another one's guess is still looked at.
        let many = futures_of((0..80).map(|_| ask(1)).collect());
        let (statuses, other) = tokio::join!(many, ask(2));
        assert_eq!(other, 401);
        assert!(statuses.contains(&StatusCode::SERVICE_UNAVAILABLE), "{statuses:?}");
    }

    /// Runs all of them at once.
    async fn futures_of<F: Future<Output = StatusCode>>(futures: Vec<F>) -> Vec<StatusCode> {
        let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
        std::future::poll_fn(|cx| {
            for (future, status) in futures.iter_mut().filter(|(_, status)| status.is_none()) {
                if let std::task::Poll::Ready(found) = future.as_mut().poll(cx) {
                    *status = Some(found);
                }
            }
            let all: Option<Vec<StatusCode>> = futures.iter().map(|(_, status)| *status).collect();
            all.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }

    #[test]
    fn users_come_from_a_file_too_and_bad_ones_are_a_fault() {
        let path = std::env::temp_dir().join(format!("adit-users-{}", std::process::id()));
        std::fs::write(&path, "# people\n\n  a:{SHA}x  \n").unwrap();
        let mut config = config();
        config.users_file = Some(path.clone());
        assert!(BasicAuth::new(&config).unwrap().passwords.knows("a"));
        std::fs::remove_file(path).unwrap();
        assert!(BasicAuth::new(&config).is_err());
        let malformed =
            dynamic::BasicAuth { users: vec![Secret::new(b"nohash".to_vec())], ..Default::default() };
        assert!(BasicAuth::new(&malformed).is_err());
        assert!(BasicAuth::new(&dynamic::BasicAuth::default()).is_err());
    }
}
