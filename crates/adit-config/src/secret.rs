//! Bytes that must never be shown.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// Secret bytes: `Debug` and `Display` print `***`, memory is wiped on drop.
///
/// `==` takes time that depends on the content: it serves reload comparison of the operator's own values; what a peer
/// sends is checked by `adit-auth` in constant time.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes ownership of the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads standard base64 with padding, surrounding white space ignored; `None` if it is not that.
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text.trim()).ok().map(Self::new)
    }

    /// The bytes, for the one place that compares or sends them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Standard base64 with padding, wiped on drop.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_slice()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new(b"hunter2".to_vec());
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
    }

    #[test]
    fn base64_comes_back_as_it_was() {
        let secret = Secret::from_base64(" aGVsbG8= \n").unwrap();
        assert_eq!(secret.expose(), b"hello");
        assert_eq!(secret.to_base64().as_str(), "aGVsbG8=");
        assert_eq!(Secret::from_base64("not base64!"), None);
    }
}
