//! Digest authentication (RFC 7616) with MD5 and `qop=auth`, as `htdigest` files have it.
//!
//! A nonce carries its own time and a keyed hash of it, so a challenge costs no memory. Only a visitor who has shown a
//! right password leaves something behind: the count of its requests under that nonce, which must grow.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

use adit_config::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::passwords::{UsersError, fields};

/// Longest `Authorization` field that is looked at, in bytes.
pub const DIGEST_FIELD_BYTES_MAX: usize = 8 * 1024;

/// Who may pass with which digest, and what was seen of them.
pub struct Digests {
    realm: String,
    /// `H(user:realm:password)` in hexadecimal, by user; users of other realms are left out.
    hashes: BTreeMap<String, Secret>,
    key: [u8; 32],
    counts: Counts,
}

/// How a request's claim was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DigestVerdict {
    /// This user may pass.
    Pass(String),
    /// The password is right but the nonce too old or used before: with a new one the visitor's browser asks again by
    /// itself.
    Stale(String),
    /// Nothing, not a digest, or wrong; the name as claimed, if there was one.
    Refuse(Option<String>),
}

impl Digests {
    /// Reads `name:realm:hash` texts; `key` is random and the caller's.
    ///
    /// # Errors
    /// [`UsersError::Malformed`].
    pub fn parse<'a>(
        users: impl IntoIterator<Item = &'a [u8]>,
        realm: &str,
        key: [u8; 32],
    ) -> Result<Self, UsersError> {
        let mut hashes = BTreeMap::new();
        for (index, user) in users.into_iter().enumerate() {
            let [name, of_realm, hash] = fields(user).ok_or(UsersError::Malformed(index + 1))?;
            if of_realm == realm {
                hashes.insert(name.to_owned(), Secret::new(hash.as_bytes().to_vec()));
            }
        }
        Ok(Self { realm: realm.to_owned(), hashes, key, counts: Counts::default() })
    }

    /// The `WWW-Authenticate` field: `random` makes the nonce unlike any other.
    pub fn challenge(&self, random: [u8; 12], now_secs: u64, stale: bool) -> String {
        let Self { realm, .. } = self;
        let nonce = self.nonce(now_secs, random);
        let stale = if stale { ", stale=true" } else { "" };
        format!(
            "Digest realm=\"{realm}\", nonce=\"{nonce}\", opaque=\"{OPAQUE}\", algorithm=MD5, qop=\"auth\"{stale}"
        )
    }

    /// Judges an `Authorization` field on a request of `method` for `target` (path and query as they stand in its
    /// request line).
    pub fn verify(
        &mut self,
        authorization: &str,
        method: &str,
        is_target: impl Fn(&str) -> bool,
        now_secs: u64,
    ) -> DigestVerdict {
        let Some(claim) = Claim::parse(authorization) else { return DigestVerdict::Refuse(None) };
        let user = claim.user.clone();
        if !is_target(&claim.uri) || !self.is_right(&claim, method) {
            return DigestVerdict::Refuse(Some(user));
        }
        let Some(issued_secs) = self.issued_secs(&claim.nonce) else {
            return DigestVerdict::Refuse(Some(user));
        };
        let age_secs = now_secs.saturating_sub(issued_secs);
        if age_secs > NONCE_AGE_SECS_MAX || !self.counts.advance(&claim.nonce, issued_secs, claim.count) {
            return DigestVerdict::Stale(user);
        }
        DigestVerdict::Pass(user)
    }

    /// RFC 7616 §3.4.1; takes as long for a name that nobody has.
    fn is_right(&self, claim: &Claim, method: &str) -> bool {
        let known = self.hashes.get(&claim.user);
        let ha1 = known.map_or(&b""[..], Secret::expose);
        let ha2 = hex_md5(&[method.as_bytes(), b":", claim.uri.as_bytes()]);
        let expected = hex_md5(&[
            ha1,
            b":",
            claim.nonce.as_bytes(),
            b":",
            claim.count_text.as_bytes(),
            b":",
            claim.cnonce.as_bytes(),
            b":auth:",
            ha2.as_bytes(),
        ]);
        bool::from(expected.as_bytes().ct_eq(claim.response.as_bytes())) && known.is_some()
    }

    fn nonce(&self, issued_secs: u64, random: [u8; 12]) -> String {
        let mut bytes = Vec::with_capacity(NONCE_BYTES);
        bytes.extend_from_slice(&issued_secs.to_be_bytes());
        bytes.extend_from_slice(&random);
        bytes.extend_from_slice(&self.seal(&bytes));
        STANDARD.encode(bytes)
    }

    /// When the nonce was given out; none if it was not given out here.
    fn issued_secs(&self, nonce: &str) -> Option<u64> {
        let bytes: [u8; NONCE_BYTES] = STANDARD.decode(nonce).ok()?.try_into().ok()?;
        let (head, seal) = bytes.split_at(NONCE_BYTES - SEAL_BYTES);
        if !bool::from(self.seal(head).ct_eq(seal)) {
            return None;
        }
        head.first_chunk().map(|time| u64::from_be_bytes(*time))
    }

    /// A keyed hash; what is sealed always has one length, so nothing can be appended to it.
    fn seal(&self, head: &[u8]) -> [u8; SEAL_BYTES] {
        let hash: [u8; 32] = Sha256::new().chain_update(self.key).chain_update(head).finalize().into();
        let mut seal = [0; SEAL_BYTES];
        seal.copy_from_slice(&hash[..SEAL_BYTES]);
        seal
    }
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digests").field("users", &self.hashes.len()).finish_non_exhaustive()
    }
}

/// The fields of an `Authorization: Digest` that matter.
struct Claim {
    user: String,
    nonce: String,
    uri: String,
    response: String,
    cnonce: String,
    count: u64,
    count_text: String,
}

impl Claim {
    fn parse(authorization: &str) -> Option<Self> {
        if authorization.len() > DIGEST_FIELD_BYTES_MAX {
            return None;
        }
        let (scheme, parameters) = authorization.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("digest") {
            return None;
        }
        let mut fields = parameters_of(parameters);
        let mut take = |name: &str| fields.remove(name);
        let is_md5 = take("algorithm").is_none_or(|algorithm| algorithm.eq_ignore_ascii_case("MD5"));
        if !is_md5 || take("opaque").as_deref() != Some(OPAQUE) || take("qop").as_deref() != Some("auth") {
            return None;
        }
        let count_text = take("nc")?;
        Some(Self {
            user: take("username")?,
            nonce: take("nonce")?,
            uri: take("uri")?,
            response: take("response")?,
            cnonce: take("cnonce")?,
            count: u64::from_str_radix(&count_text, 16).ok()?,
            count_text,
        })
    }
}

/// `name=value` and `name="value"` separated by commas; a backslash quotes inside quotes (RFC 9110 §5.6.4).
fn parameters_of(text: &str) -> HashMap<String, String> {
    let mut fields = HashMap::new();
    let mut chars = text.chars().peekable();
    while chars.peek().is_some() {
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| !matches!(c, '=' | ',')) {
            name.push(c);
        }
        let mut value = String::new();
        if chars.next_if_eq(&'=').is_some() {
            let quoted = chars.next_if_eq(&'"').is_some();
            while let Some(c) = chars.next_if(|c| quoted || *c != ',') {
                match c {
                    '"' if quoted => break,
                    '\\' if quoted => value.extend(chars.next()),
                    _ => value.push(c),
                }
            }
            while chars.next_if(|c| *c != ',').is_some() {}
        }
        chars.next_if_eq(&',');
        fields.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    fields
}

/// The highest count seen under each nonce that somebody used rightly.
#[derive(Default)]
struct Counts {
    seen: HashMap<String, u64>,
    order: VecDeque<(String, u64)>,
    /// Nonces given out until then are not taken any more: their counts have been forgotten.
    forgotten_until_secs: u64,
}

impl Counts {
    /// Whether this count is new under its nonce; it is not from then on.
    fn advance(&mut self, nonce: &str, issued_secs: u64, count: u64) -> bool {
        if let Some(last) = self.seen.get_mut(nonce) {
            let is_new = count > *last;
            *last = count.max(*last);
            return is_new;
        }
        if issued_secs <= self.forgotten_until_secs && self.forgotten_until_secs != 0 {
            return false;
        }
        if self.seen.len() >= NONCES_MAX
            && let Some((oldest, issued_secs)) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
            self.forgotten_until_secs = self.forgotten_until_secs.max(issued_secs);
        }
        self.seen.insert(nonce.to_owned(), count);
        self.order.push_back((nonce.to_owned(), issued_secs));
        true
    }
}

fn hex_md5(parts: &[&[u8]]) -> String {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let digest: [u8; 16] = hash.finalize().into();
    digest.iter().fold(String::with_capacity(32), |mut text, byte| {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
        text
    })
}

/// Means nothing, but RFC 7616 §3.3 has clients send it back.
const OPAQUE: &str = "YWRpdA==";
const SEAL_BYTES: usize = 16;
const NONCE_BYTES: usize = 8 + 12 + SEAL_BYTES;
/// How long a nonce can be used; then the browser gets a new one without asking its user.
const NONCE_AGE_SECS_MAX: u64 = 3600;
/// Nonces in use at once that counts are kept of: under 1 MiB. Beyond, the oldest is not taken any more.
const NONCES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is(target: &str) -> impl Fn(&str) -> bool {
        move |uri| uri == target
    }

    const NOW: u64 = 1_700_000_000;
    const USER: &[u8] = b"test:traefik:a2688e031edb4be6a3797f3882655c05";

    fn digests() -> Digests {
        Digests::parse([USER], "traefik", [7; 32]).unwrap()
    }

    fn nonce_of(challenge: &str) -> String {
        parameters_of(challenge.strip_prefix("Digest ").unwrap()).remove("nonce").unwrap()
    }

    fn answer(nonce: &str, password: &str, uri: &str, count: u64) -> String {
        let ha1 = hex_md5(&[b"test:traefik:", password.as_bytes()]);
        let ha2 = hex_md5(&[b"GET:", uri.as_bytes()]);
        let text = format!("{ha1}:{nonce}:{count:08x}:c\"n:auth:{ha2}");
        let response = hex_md5(&[text.as_bytes()]);
        format!(
            "Digest username=\"test\", realm=\"traefik\", nonce=\"{nonce}\", uri=\"{uri}\", qop=auth, \
             nc={count:08x}, cnonce=\"c\\\"n\", response=\"{response}\", opaque=\"{OPAQUE}\", algorithm=MD5"
        )
    }

    #[test]
    fn a_right_answer_passes_once() {
        let mut digests = digests();
        let nonce = nonce_of(&digests.challenge([1; 12], NOW, false));
        let answer = answer(&nonce, "test", "/a?b=1,2", 1);
        assert_eq!(
            digests.verify(&answer, "GET", is("/a?b=1,2"), NOW),
            DigestVerdict::Pass("test".to_owned())
        );
        assert_eq!(
            digests.verify(&answer, "GET", is("/a?b=1,2"), NOW),
            DigestVerdict::Stale("test".to_owned())
        );
        let next = self::answer(&nonce, "test", "/a", 2);
        assert_eq!(digests.verify(&next, "GET", is("/a"), NOW), DigestVerdict::Pass("test".to_owned()));
    }

    #[test]
    fn wrong_password_other_target_other_method_and_forged_nonce_are_refused() {
        let mut digests = digests();
        let nonce = nonce_of(&digests.challenge([1; 12], NOW, false));
        let refused = DigestVerdict::Refuse(Some("test".to_owned()));
        assert_eq!(digests.verify(&answer(&nonce, "bogus", "/", 1), "GET", is("/"), NOW), refused);
        assert_eq!(digests.verify(&answer(&nonce, "test", "/", 1), "GET", is("/admin"), NOW), refused);
        assert_eq!(digests.verify(&answer(&nonce, "test", "/", 1), "POST", is("/"), NOW), refused);
        let forged = STANDARD.encode([0; NONCE_BYTES]);
        assert_eq!(digests.verify(&answer(&forged, "test", "/", 1), "GET", is("/"), NOW), refused);
    }

    #[test]
    fn an_old_nonce_is_stale() {
        let mut digests = digests();
        let nonce = nonce_of(&digests.challenge([1; 12], NOW, true));
        let late = NOW + NONCE_AGE_SECS_MAX + 1;
        let verdict = digests.verify(&answer(&nonce, "test", "/", 1), "GET", is("/"), late);
        assert_eq!(verdict, DigestVerdict::Stale("test".to_owned()));
    }

    #[test]
    fn forgotten_nonces_cannot_be_replayed() {
        let mut counts = Counts::default();
        for index in 0..=NONCES_MAX {
            assert!(counts.advance(&index.to_string(), NOW + index as u64, 1));
        }
        assert!(!counts.advance("0", NOW, 1));
        assert_eq!(counts.seen.len(), NONCES_MAX);
    }

    #[test]
    fn users_of_another_realm_do_not_pass() {
        let mut digests = Digests::parse([USER], "other", [7; 32]).unwrap();
        let nonce = nonce_of(&digests.challenge([1; 12], NOW, false));
        assert!(matches!(
            digests.verify(&answer(&nonce, "test", "/", 1), "GET", is("/"), NOW),
            DigestVerdict::Refuse(Some(_))
        ));
        assert!(Digests::parse([&b"a:b"[..]], "traefik", [0; 32]).is_err());
    }

    proptest! {
        #[test]
        fn any_field_is_judged_without_a_panic(field in "(Digest )?.{0,80}") {
            let _ = digests().verify(&field, "GET", is("/"), NOW);
        }
    }
}
