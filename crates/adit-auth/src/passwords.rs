//! Names and hashed passwords as `htpasswd` writes them: bcrypt, apr1-MD5, MD5 and SHA-1.

use std::collections::BTreeMap;
use std::fmt;

use adit_config::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// Longest password that is looked at, in bytes; MD5-crypt works through it a thousand times.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Who may pass with which password.
#[derive(Clone)]
pub struct Passwords {
    hashes: BTreeMap<String, Secret>,
}

/// Why a list of users is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UsersError {
    /// Not `name:hash` (or `name:realm:hash` for digests), counted from 1. The text is a secret and is not shown.
    #[error("user {0} is not name and hash, separated by colons")]
    Malformed(usize),
    /// Nobody could pass.
    #[error("no users")]
    Empty,
}

/// A name and a password as a visitor sent them (RFC 7617 §2).
#[derive(Clone)]
pub struct BasicCredentials {
    /// The name, in the clear.
    pub user: String,
    password: Secret,
}

/// Stands for a password that was found right, so that it need not be hashed slowly again; worthless without its key.
#[derive(Clone, Copy)]
pub struct Fingerprint([u8; 32]);

impl Passwords {
    /// Reads `name:hash` texts; a name that comes twice has its last hash.
    ///
    /// # Errors
    /// [`UsersError`].
    pub fn parse<'a>(users: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, UsersError> {
        let mut hashes = BTreeMap::new();
        for (index, user) in users.into_iter().enumerate() {
            let [name, hash] = fields(user).ok_or(UsersError::Malformed(index + 1))?;
            hashes.insert(name.to_owned(), Secret::new(hash.as_bytes().to_vec()));
        }
        if hashes.is_empty() {
            return Err(UsersError::Empty);
        }
        Ok(Self { hashes })
    }

    /// Whether the password is the user's. Takes as long for a name that nobody has (with the hash of another user,
    /// which is the same work where all use one kind): up to a second with bcrypt, so not on a thread that serves.
    pub fn verify(&self, credentials: &BasicCredentials) -> bool {
        let password = credentials.password.expose();
        if password.len() > PASSWORD_BYTES_MAX {
            return false;
        }
        match self.hashes.get(&credentials.user) {
            Some(hash) => matches(password, hash.expose()),
            None => {
                if let Some(hash) = self.hashes.values().next() {
                    let _ = matches(password, hash.expose());
                }
                false
            }
        }
    }

    /// Whether there is such a user.
    pub fn knows(&self, user: &str) -> bool {
        self.hashes.contains_key(user)
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("users", &self.hashes.len()).finish_non_exhaustive()
    }
}

impl BasicCredentials {
    /// Reads an `Authorization` field; the scheme's case does not matter.
    pub fn parse(authorization: &[u8]) -> Option<Self> {
        let (scheme, rest) = authorization.split_at_checked(SCHEME.len())?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return None;
        }
        let decoded = zeroize::Zeroizing::new(STANDARD.decode(rest).ok()?);
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
        Some(Self { user, password: Secret::new(decoded[colon + 1..].to_vec()) })
    }

    /// The fingerprint under a random `key` of the caller's.
    pub fn fingerprint(&self, key: &[u8; 32]) -> Fingerprint {
        let mut hash = Sha256::new();
        hash.update(key);
        hash.update((self.user.len() as u64).to_be_bytes());
        hash.update(self.user.as_bytes());
        hash.update(self.password.expose());
        Fingerprint(hash.finalize().into())
    }
}

impl fmt::Debug for BasicCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(***)")
    }
}

/// Splits at colons into exactly so many parts.
pub(crate) fn fields<const N: usize>(user: &[u8]) -> Option<[&str; N]> {
    let parts: Vec<&str> = std::str::from_utf8(user).ok()?.split(':').collect();
    parts.try_into().ok()
}

fn matches(password: &[u8], hash: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(hash) else { return false };
    if let Some(encoded) = text.strip_prefix("{SHA}") {
        let made = STANDARD.encode(Sha1::digest(password));
        return made.as_bytes().ct_eq(encoded.as_bytes()).into();
    }
    if ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|kind| text.starts_with(kind)) {
        return bcrypt::verify(password, text).unwrap_or(false);
    }
    let mut parts = text.splitn(4, '$');
    let (Some(""), Some(kind), Some(salt), Some(_)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let magic = format!("${kind}$");
    md5_crypt(password, salt.as_bytes(), magic.as_bytes()).as_bytes().ct_eq(hash).into()
}

/// FreeBSD's MD5 password hash; Apache's differs from it only in its magic, `$apr1$`.
fn md5_crypt(password: &[u8], salt: &[u8], magic: &[u8]) -> String {
    let mut outer = Md5::new();
    outer.update(password);
    outer.update(magic);
    outer.update(salt);
    let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    for chunk in password.chunks(inner.len()) {
        outer.update(&inner[..chunk.len()]);
    }
    let mut bits = password.len();
    while bits != 0 {
        outer.update(if bits & 1 == 1 { &[0] } else { &password[..1] });
        bits >>= 1;
    }
    let mut state: [u8; 16] = outer.finalize().into();
    for round in 0..MD5_CRYPT_ROUNDS {
        let mut hash = Md5::new();
        hash.update(if round & 1 == 1 { password } else { &state[..] });
        if round % 3 != 0 {
            hash.update(salt);
        }
        if round % 7 != 0 {
            hash.update(password);
        }
        hash.update(if round & 1 == 1 { &state[..] } else { password });
        state = hash.finalize().into();
    }
    let mut out = String::from_utf8_lossy(magic).into_owned();
    out.push_str(&String::from_utf8_lossy(salt));
    out.push('$');
    for group in MD5_CRYPT_ORDER {
        let mut value = group.iter().fold(0u32, |value, index| value << 8 | u32::from(state[*index]));
        let digits = if group.len() == 1 { 2 } else { 4 };
        for _ in 0..digits {
            out.push(char::from(CRYPT_DIGITS[(value & 63) as usize]));
            value >>= 6;
        }
    }
    out
}

const SCHEME: &[u8] = b"Basic ";
const MD5_CRYPT_ROUNDS: usize = 1000;
/// Which bytes of the state make up which digits, most significant first.
const MD5_CRYPT_ORDER: [&[usize]; 6] =
    [&[0, 6, 12], &[1, 7, 13], &[2, 8, 14], &[3, 9, 15], &[4, 10, 5], &[11]];
const CRYPT_DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn credentials(user: &str, password: &str) -> BasicCredentials {
        let encoded = STANDARD.encode(format!("{user}:{password}"));
        BasicCredentials::parse(format!("basic {encoded}").as_bytes()).unwrap()
    }

    fn passwords(users: &[&str]) -> Passwords {
        Passwords::parse(users.iter().map(|user| user.as_bytes())).unwrap()
    }

    #[test]
    fn each_kind_of_hash_is_known() {
        let users = passwords(&[
            "apr1:$apr1$H6uskkkW$IgXLP6ewTrSuBkTrqE8wj/",
            "sha:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
            "bcrypt:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC",
            "plain:test",
        ]);
        assert!(users.verify(&credentials("apr1", "test")));
        assert!(!users.verify(&credentials("apr1", "bogus")));
        assert!(users.verify(&credentials("sha", "password")));
        assert!(users.verify(&credentials("bcrypt", "myPassword")));
        assert!(!users.verify(&credentials("bcrypt", "mypassword")));
        assert!(!users.verify(&credentials("plain", "test")));
        assert!(!users.verify(&credentials("nobody", "test")));
    }

    #[test]
    fn an_empty_password_and_an_overlong_one_are_only_wrong() {
        let users = passwords(&["apr1:$apr1$H6uskkkW$IgXLP6ewTrSuBkTrqE8wj/"]);
        assert!(!users.verify(&credentials("apr1", "")));
        assert!(!users.verify(&credentials("apr1", &"x".repeat(PASSWORD_BYTES_MAX + 1))));
    }

    #[test]
    fn a_malformed_user_is_named_by_its_place_only() {
        let error = Passwords::parse([&b"a:b"[..], b"nohash"]).unwrap_err();
        assert_eq!(error, UsersError::Malformed(2));
        assert!(Passwords::parse([&b"a:b:c"[..]]).is_err());
        assert_eq!(Passwords::parse([]).unwrap_err(), UsersError::Empty);
    }

    #[test]
    fn fingerprints_tell_names_passwords_and_keys_apart() {
        let one = credentials("a", "bc").fingerprint(&[1; 32]);
        assert_eq!(one, credentials("a", "bc").fingerprint(&[1; 32]));
        assert_ne!(one, credentials("ab", "c").fingerprint(&[1; 32]));
        assert_ne!(one, credentials("a", "bc").fingerprint(&[2; 32]));
    }

    proptest! {
        #[test]
        fn any_field_and_any_hash_are_read_without_a_panic(field in prop::collection::vec(any::<u8>(), 0..80), hash in ".{0,40}") {
            let _ = BasicCredentials::parse(&field);
            let _ = matches(&field, hash.as_bytes());
        }
    }
}
