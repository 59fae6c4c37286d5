//! WireGuard's keys: 32 bytes, written as 44 characters of base64.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// A public key (X25519), and with it the identity of a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub [u8; 32]);

/// A private or preshared key: `Debug` prints `***`, memory is wiped on drop.
///
/// `==` takes time that depends on the content: it serves reload comparison of the operator's own values.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PeerKey {
    /// Reads base64 as `wg` writes it, surrounding white space ignored; `None` if it is not a key or all zero.
    pub fn from_base64(text: &str) -> Option<Self> {
        decode(text).map(|key| Self(*key)).filter(|key| key.0 != [0; 32])
    }

    /// The start of the key in characters that may stand in names and metric labels.
    pub fn short(&self) -> String {
        let swap = |c: char| match c {
            '+' => '-',
            '/' => '_',
            c => c,
        };
        self.to_string().chars().take(SHORT_CHARS).map(swap).collect()
    }
}

impl PrivateKey {
    /// Takes ownership of the bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads base64 as `wg` writes it, surrounding white space ignored; `None` if it is not a key.
    pub fn from_base64(text: &str) -> Option<Self> {
        decode(text).map(Self)
    }

    /// The bytes, for the one place that uses them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Base64 as `wg` writes it, wiped on drop.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_slice()))
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn decode(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let text = text.trim();
    if text.len() != KEY_CHARS {
        return None;
    }
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

/// 32 bytes in base64 with padding.
const KEY_CHARS: usize = 44;
/// 48 bits: nobody confuses two of ten thousand peers by it.
const SHORT_CHARS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_wg_writes_them() {
        let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let key = PeerKey::from_base64(&format!(" {text}\n")).unwrap();
        assert_eq!(key.to_string(), text);
        assert_eq!(key.short(), "xTIBA5rb");
        assert_eq!(PrivateKey::from_base64(text).unwrap().to_base64().as_str(), text);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "AAAA", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg", &"!".repeat(44)] {
            assert_eq!(PeerKey::from_base64(text), None, "{text}");
            assert_eq!(PrivateKey::from_base64(text), None, "{text}");
        }
        let zero = PrivateKey::new([0; 32]).to_base64();
        assert_eq!(PeerKey::from_base64(&zero), None);
    }

    #[test]
    fn a_private_key_is_never_printed() {
        let key = PrivateKey::new([7; 32]);
        assert_eq!(format!("{key} {key:?}"), "*** ***");
    }
}
