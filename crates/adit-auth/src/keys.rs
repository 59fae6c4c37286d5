//! The public keys of an Access team, from the JSON text that its certificate address serves (RFC 7517).

use std::fmt;

use jsonwebtoken::DecodingKey;
use serde_json::Value;

/// RSA keys by their id.
#[derive(Clone, Default)]
pub struct Keys {
    keys: Vec<(String, DecodingKey)>,
}

/// Why a text is no key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum KeysError {
    /// Longer than any key set.
    #[error("key set is longer than 256 KiB")]
    TooLong,
    /// Not JSON with a list `keys`.
    #[error("key set is not JSON with a list of keys")]
    NotKeys,
    /// More keys than a team has.
    #[error("key set has more than 64 keys")]
    TooMany,
}

impl Keys {
    /// Reads a key set; keys that are no RSA signature keys, or are broken, are left out.
    pub fn from_json(text: &str) -> Result<Self, KeysError> {
        if text.len() > KEYS_BYTES_MAX {
            return Err(KeysError::TooLong);
        }
        let set: Value = serde_json::from_str(text).map_err(|_| KeysError::NotKeys)?;
        let entries = set.get("keys").and_then(Value::as_array).ok_or(KeysError::NotKeys)?;
        if entries.len() > KEYS_MAX {
            return Err(KeysError::TooMany);
        }
        Ok(Self { keys: entries.iter().filter_map(read_key).collect() })
    }

    /// Number of usable keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no usable key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys that may have signed: that of the id if one is named, otherwise all.
    pub(crate) fn candidates<'a>(&'a self, id: Option<&'a str>) -> impl Iterator<Item = &'a DecodingKey> {
        self.keys.iter().filter(move |(known, _)| id.is_none_or(|id| id == known)).map(|(_, key)| key)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

fn read_key(entry: &Value) -> Option<(String, DecodingKey)> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let is_usable = text("kty") == Some("RSA")
        && text("use").is_none_or(|usage| usage == "sig")
        && text("alg").is_none_or(|algorithm| algorithm == "RS256");
    let (modulus, exponent) = (text("n")?, text("e")?);
    if !is_usable || modulus.len() > MODULUS_CHARS_MAX || exponent.len() > EXPONENT_CHARS_MAX {
        return None;
    }
    let key = DecodingKey::from_rsa_components(modulus, exponent).ok()?;
    Some((text("kid").unwrap_or_default().to_owned(), key))
}

/// Real key sets have about 5 KiB.
const KEYS_BYTES_MAX: usize = 256 * 1024;
/// Teams rotate between two; also bounds the signatures that one token can make us check.
const KEYS_MAX: usize = 64;
/// 8192 bits in base64: larger keys only cost time.
const MODULUS_CHARS_MAX: usize = 1400;
/// 64 bits in base64.
const EXPONENT_CHARS_MAX: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rsa_signature_keys_are_kept() {
        let text = r#"{"keys": [
            {"kid": "a", "kty": "RSA", "alg": "RS256", "use": "sig", "n": "AQAB", "e": "AQAB"},
            {"kid": "b", "kty": "EC", "n": "AQAB", "e": "AQAB"},
            {"kid": "c", "kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB"},
            {"kid": "d", "kty": "RSA", "alg": "RS512", "n": "AQAB", "e": "AQAB"},
            {"kid": "e", "kty": "RSA", "n": "%", "e": "AQAB"},
            {"kid": "f", "kty": "RSA"}, 7]}"#;
        assert_eq!(format!("{:?}", Keys::from_json(text).unwrap()), r#"["a"]"#);
    }

    #[test]
    fn each_bad_key_set_has_its_name() {
        let error = |text: &str| Keys::from_json(text).unwrap_err();
        assert_eq!(error("{"), KeysError::NotKeys);
        assert_eq!(error("{}"), KeysError::NotKeys);
        assert_eq!(error(&" ".repeat(KEYS_BYTES_MAX + 1)), KeysError::TooLong);
        assert_eq!(error(&format!(r#"{{"keys": [{}1]}}"#, "1,".repeat(KEYS_MAX))), KeysError::TooMany);
        assert!(Keys::from_json(r#"{"keys": []}"#).unwrap().is_empty());
    }
}
