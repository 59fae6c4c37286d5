//! basicAuth: name and password with every request (RFC 7617).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use adit_auth::{BasicCredentials, Fingerprint, Passwords};
use adit_config::dynamic;
use http::header::{self, HeaderValue};
use tokio::sync::Semaphore;

use super::headers::field_value;
use super::users::{self, Admission};
use super::{Around, BoxFuture, Ctx, Next};
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
    hashing: Semaphore,
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
            hashing: Semaphore::new(cores.div_ceil(2)),
        })
    }

    fn is_known(&self, user: &str, fingerprint: Fingerprint) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(user) == Some(&fingerprint)
    }

    async fn verify(&self, credentials: BasicCredentials) -> bool {
        // Closed never: the semaphore lives as long as the layer.
        let Ok(_permit) = self.hashing.acquire().await else { return false };
        let fingerprint = credentials.fingerprint(&self.key);
        let user = credentials.user.clone();
        let passwords = Arc::clone(&self.passwords);
        let hashing = tokio::task::spawn_blocking(move || passwords.verify(&credentials));
        let is_right = hashing.await.unwrap_or(false);
        if is_right {
            self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(user, fingerprint);
        }
        is_right
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
            self.admission.apply(&mut request.headers, &user);
            return next.run(request, ctx);
        }
        Box::pin(async move {
            if !self.verify(credentials).await {
                ctx.refused("basic_auth_wrong");
                return users::unauthorized(self.challenge.clone());
            }
            self.admission.apply(&mut request.headers, &user);
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
