//! digestAuth: a password that is proven, not sent (RFC 7616).

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use adit_auth::{DigestVerdict, Digests};
use adit_config::dynamic;
use adit_route::path::{normalize, normalize_query};
use http::StatusCode;
use http::header::HeaderValue;

use super::headers::field_value;
use super::users::{self, Admission};
use super::{Ctx, Edit, go_url, reply};
use crate::message::{Request, Response};

/// `digestAuth`.
pub(super) struct DigestAuth {
    /// Held for one hash at a time.
    digests: Mutex<Digests>,
    admission: Admission,
}

impl DigestAuth {
    pub(super) fn new(config: &dynamic::DigestAuth) -> Result<Self, String> {
        field_value("realm", &config.realm)?;
        let users = users::read(&config.users, config.users_file.as_deref())?;
        let digests = Digests::parse(users.iter().map(|user| user.expose()), &config.realm, rand::random());
        Ok(Self {
            digests: Mutex::new(digests.map_err(|error| error.to_string())?),
            admission: Admission::new(config.header_field.as_deref(), config.remove_header)?,
        })
    }

    fn challenge(digests: &Digests, stale: bool) -> Response {
        match HeaderValue::try_from(digests.challenge(rand::random(), now_secs(), stale)) {
            Ok(challenge) => users::unauthorized(challenge),
            Err(_) => reply::status_text(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

impl Edit for DigestAuth {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let claim = go_url::field(&request.headers, "authorization").unwrap_or_default();
        let target = go_url::target(&request.uri);
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        let (user, is_stale) =
            match digests.verify(claim, request.method.as_str(), |uri| is_same(uri, target), now_secs()) {
                DigestVerdict::Pass(user) => {
                    drop(digests);
                    self.admission.apply(request, &user);
                    ctx.log.user = Some(user.into());
                    return ControlFlow::Continue(());
                }
                DigestVerdict::Stale(user) => (Some(user), true),
                DigestVerdict::Refuse(user) => (user, false),
            };
        ctx.refused(if is_stale { "digest_auth_stale" } else { "digest_auth_refused" });
        ctx.log.user = user.map(Into::into);
        ControlFlow::Break(Self::challenge(&digests, is_stale))
    }
}

/// Whether a claim is for `target` (RFC 7616 §3.4.6). A visitor claims what it sent, and `target` is what that was cleaned
/// to: any spelling of it is the same target. Some clients leave out the query.
fn is_same(uri: &str, target: &str) -> bool {
    let split = |text: &'_ str| {
        text.split_once('?')
            .map_or((text.to_owned(), None), |(path, query)| (path.to_owned(), Some(query.to_owned())))
    };
    let ((claimed, claimed_query), (path, query)) = (split(uri), split(target));
    let is_path = claimed == path
        || [true, false]
            .into_iter()
            .any(|sanitize| normalize(&claimed, sanitize).is_ok_and(|normal| normal.upstream_path == path));
    let is_query = |claimed: &str| {
        query.as_deref().is_some_and(|query| {
            claimed == query
                || [true, false].into_iter().any(|encode| normalize_query(claimed, encode).upstream == query)
        })
    };
    is_path && claimed_query.as_deref().is_none_or(is_query)
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use adit_config::Secret;

    use super::super::tests::{ctx, request};
    use super::*;

    #[test]
    fn a_claim_is_for_any_spelling_of_the_target_and_for_no_other() {
        for (uri, target) in
            [("/a%41", "/aA"), ("/x?a;b", "/x?a&b"), ("/x", "/x?q"), ("/x/../y", "/y"), ("/a%2fb", "/a%2Fb")]
        {
            assert!(is_same(uri, target), "{uri} {target}");
        }
        for (uri, target) in [("/a%2fb", "/a/b"), ("/x?a", "/x?b"), ("/x?a", "/x"), ("/y", "/x"), ("", "/x")]
        {
            assert!(!is_same(uri, target), "{uri} {target}");
        }
    }

    #[test]
    fn a_stranger_is_challenged_with_a_nonce_of_its_own() {
        let user = Secret::new(b"test:traefik:a2688e031edb4be6a3797f3882655c05".to_vec());
        let config = dynamic::DigestAuth { users: vec![user], ..Default::default() };
        let auth = DigestAuth::new(&config).unwrap();
        let challenge = || {
            let mut ctx = ctx();
            let ControlFlow::Break(response) = auth.edit(&mut request("/"), &mut ctx) else {
                panic!("let through");
            };
            assert_eq!((response.status.as_u16(), ctx.log.refusal), (401, Some("digest_auth_refused")));
            response.headers["www-authenticate"].to_str().unwrap().to_owned()
        };
        let first = challenge();
        assert!(first.starts_with("Digest realm=\"traefik\", nonce=\""), "{first}");
        assert_ne!(first, challenge());
    }
}
