//! basicAuth: name and password with every request (RFC 7617).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use adit_auth::{BasicCredentials, Fingerprint, Passwords};
use adit_config::dynamic;
use http::StatusCode;
use http::header::{self, HeaderValue};
use tokio::sync::Semaphore;

use super::headers::field_value;
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
    hashing: Arc<Semaphore>,
    /// Where those who wait for their turn come from; at most [`WAITING_MAX`].
    waiting: Mutex<Vec<IpAddr>>,
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
            hashing: Arc::new(Semaphore::new(cores.div_ceil(2))),
            waiting: Mutex::default(),
        })
    }

    fn is_known(&self, user: &str, fingerprint: Fingerprint) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(user) == Some(&fingerprint)
    }

    async fn verify(&self, credentials: BasicCredentials, client: IpAddr) -> Verdict {
        let Some(place) = self.queue(network(client)) else { return Verdict::Busy };
        // Closed never: the semaphore lives as long as the layer.
        let Ok(permit) = Arc::clone(&self.hashing).acquire_owned().await else { return Verdict::Busy };
        drop(place);
        let fingerprint = credentials.fingerprint(&self.key);
        // Who asks for many things at once is known after the first of them.
        if self.is_known(&credentials.user, fingerprint) {
            return Verdict::Right;
        }
        let user = credentials.user.clone();
        let passwords = Arc::clone(&self.passwords);
        let hashing = tokio::task::spawn_blocking(move || {
            // A hash that has begun runs to its end whether or not the visitor is still there: it counts as long.
            let _permit = permit;
            passwords.verify(&credentials)
        });
        if !hashing.await.unwrap_or(false) {
            return Verdict::Wrong;
        }
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(user, fingerprint);
        Verdict::Right
    }

    /// A place among those who wait; none if there are too many, in all or from the same network.
    fn queue(&self, network: IpAddr) -> Option<Place<'_>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let neighbours = waiting.iter().filter(|other| **other == network).count();
        if waiting.len() >= WAITING_MAX || neighbours >= NETWORK_WAITING_MAX {
            return None;
        }
        waiting.push(network);
        Some(Place { waiting: &self.waiting, network })
    }
}

/// One who waits; gone when dropped.
struct Place<'a> {
    waiting: &'a Mutex<Vec<IpAddr>>,
    network: IpAddr,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = waiting.iter().position(|other| *other == self.network) {
            waiting.swap_remove(at);
        }
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
            match self.verify(credentials, ctx.client).await {
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

/// The part of an address that one visitor cannot change at will.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// Passwords that wait to be hashed, of one layer. Each is a request that is held, and bcrypt takes a quarter of a second
/// for one: more would wait longer than visitors do. Memory is that of the requests' heads, 16 MiB at worst.
const WAITING_MAX: usize = 256;
/// The same of one network, so that who guesses does not keep everybody else waiting; a page's parts that are asked for at
/// once still fit.
const NETWORK_WAITING_MAX: usize = 64;

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
        let permits = layer.hashing.available_permits();
        let credentials = BasicCredentials::parse(b"Basic dGVzdDpib2d1cw==").unwrap();
        let mut asking = Box::pin(layer.verify(credentials, [127, 0, 0, 1].into()));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(asking.as_mut().poll(&mut cx).is_pending());
        drop(asking);
        assert_eq!(layer.hashing.available_permits(), permits - 1);
        assert!(layer.waiting.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn who_guesses_waits_in_a_line_of_its_own_and_beyond_it_is_sent_away() {
        let layer = BasicAuth::new(&config()).unwrap();
        let permits = u32::try_from(layer.hashing.available_permits()).unwrap();
        let all = layer.hashing.acquire_many(permits).await.unwrap();
        let places: Vec<_> = (0..NETWORK_WAITING_MAX)
            .map(|host| layer.queue(network(format!("2001:db8::{host:x}").parse().unwrap())).unwrap())
            .collect();
        let wrong = || BasicCredentials::parse(b"Basic dGVzdDpib2d1cw==").unwrap();
        assert_eq!(layer.verify(wrong(), "2001:db8::ffff".parse().unwrap()).await, Verdict::Busy);
        drop((places, all));
        assert_eq!(layer.verify(wrong(), "2001:db8::ffff".parse().unwrap()).await, Verdict::Wrong);
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
