//! May this connector register this tunnel?

use std::collections::HashMap;

use adit_config::{Secret, TunnelId};
use subtle::{Choice, ConstantTimeEq as _};

/// The secrets of all tunnels that may register, each with what the caller wants back, such as the tunnel's name.
#[derive(Debug, Clone)]
pub struct TunnelSecrets<T> {
    tunnels: HashMap<TunnelId, Entry<T>>,
    /// Compared where there is no such tunnel, so that this takes the same time.
    decoy: Padded,
}

/// What a connector shows.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// Account tag, compared where the tunnel demands one.
    pub account_tag: &'a str,
    /// Tunnel to register.
    pub tunnel_id: TunnelId,
    /// Secret bytes, as decoded from the registration.
    pub secret: &'a [u8],
}

/// Why a connector may not register.
///
/// The text starts with `Unauthorized`, which makes a stock connector retry at start (`tunnel-protocol.md §3.5`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TunnelRefusal {
    /// Unknown tunnel, wrong account or wrong secret; which one is not told.
    #[error("Unauthorized: unknown tunnel or wrong secret")]
    Unauthorized,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    account_tag: Option<String>,
    secret: Padded,
    value: T,
}

/// Length and bytes of a secret in a fixed length, so that comparing takes the same time for every secret.
#[derive(Debug, Clone)]
struct Padded(Secret);

impl TunnelRefusal {
    /// Its name in logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
        }
    }
}

impl<T> Default for TunnelSecrets<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> TunnelSecrets<T> {
    /// No tunnel may register yet.
    pub fn new() -> Self {
        Self { tunnels: HashMap::new(), decoy: Padded::new(b"") }
    }

    /// Lets a tunnel register; an earlier entry of the same id is replaced.
    pub fn insert(&mut self, id: TunnelId, account_tag: Option<String>, secret: &Secret, value: T) {
        self.tunnels.insert(id, Entry { account_tag, secret: Padded::new(secret.expose()), value });
    }

    /// Checks what a connector shows, in a time that does not depend on whether the tunnel exists or how much of the
    /// secret is right.
    pub fn check(&self, presented: &Presented<'_>) -> Result<&T, TunnelRefusal> {
        let entry = self.tunnels.get(&presented.tunnel_id);
        let expected = entry.map_or(&self.decoy, |entry| &entry.secret);
        let tag = entry.and_then(|entry| entry.account_tag.as_deref()).unwrap_or(presented.account_tag);
        let is_right = expected.is(presented.secret) & tag.as_bytes().ct_eq(presented.account_tag.as_bytes());
        match entry {
            Some(entry) if bool::from(is_right) => Ok(&entry.value),
            _ => Err(TunnelRefusal::Unauthorized),
        }
    }
}

impl Padded {
    fn new(secret: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(2 + SECRET_BYTES_MAX);
        let length = u16::try_from(secret.len()).unwrap_or(u16::MAX);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&secret[..secret.len().min(SECRET_BYTES_MAX)]);
        bytes.resize(2 + SECRET_BYTES_MAX, 0);
        Self(Secret::new(bytes))
    }

    /// Whether this is that secret; empty and overlong ones are never right.
    fn is(&self, secret: &[u8]) -> Choice {
        let fits = (1..=SECRET_BYTES_MAX).contains(&secret.len());
        self.0.expose().ct_eq(Self::new(secret).0.expose()) & Choice::from(u8::from(fits))
    }
}

/// As much as `adit.yaml` allows; also the work of one check, about a microsecond.
const SECRET_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2b7a10-5a3c-4c5e-9d1f-2f6d1c0b7e55";

    fn secrets(account_tag: Option<&str>) -> TunnelSecrets<&'static str> {
        let mut secrets = TunnelSecrets::new();
        let secret = Secret::new(vec![7; 32]);
        secrets.insert(ID.parse().unwrap(), account_tag.map(str::to_owned), &secret, "home");
        secrets
    }

    fn presented<'a>(id: &str, account_tag: &'a str, secret: &'a [u8]) -> Presented<'a> {
        Presented { account_tag, tunnel_id: id.parse().unwrap(), secret }
    }

    #[test]
    fn the_right_secret_opens_its_tunnel() {
        assert_eq!(secrets(None).check(&presented(ID, "any", &[7; 32])), Ok(&"home"));
        assert_eq!(secrets(Some("a")).check(&presented(ID, "a", &[7; 32])), Ok(&"home"));
    }

    #[test]
    fn everything_else_gets_one_and_the_same_answer() {
        let other = "00000000-0000-0000-0000-000000000000";
        let (long, short) = (vec![7; 2000], vec![7; 31]);
        for (id, secret) in
            [(ID, vec![8; 32]), (ID, vec![]), (ID, long), (ID, short), (other, vec![7; 32]), (other, vec![])]
        {
            let refusal = secrets(None).check(&presented(id, "any", &secret)).unwrap_err();
            assert_eq!(refusal.to_string(), "Unauthorized: unknown tunnel or wrong secret");
        }
        assert!(secrets(Some("a")).check(&presented(ID, "b", &[7; 32])).is_err());
    }

    #[test]
    fn a_padded_secret_differs_from_one_with_zeroes_behind() {
        let mut secrets = TunnelSecrets::new();
        secrets.insert(ID.parse().unwrap(), None, &Secret::new(vec![1]), ());
        assert!(secrets.check(&presented(ID, "", &[1, 0])).is_err());
        assert!(secrets.check(&presented(ID, "", &[1])).is_ok());
    }

    #[test]
    fn secrets_do_not_show_in_debug() {
        assert!(!format!("{:?}", secrets(None)).contains("7, 7"));
    }
}
