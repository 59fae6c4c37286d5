//! Keys of WireGuard: Curve25519 for identities, 32 symmetric bytes between two peers.

use std::fmt;

use boringtun::x25519;

/// Curve25519 public key: the identity of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// Curve25519 private key of this node; wiped when dropped, never shown.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

/// Symmetric key that both ends mix into the handshake; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey([u8; 32]);

impl PrivateKey {
    /// Takes 32 bytes as they stand in a configuration; X25519 clamps them itself when used.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(x25519::StaticSecret::from(bytes))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    /// The 32 bytes, for writing a key file or a peer's configuration.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub(crate) fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

impl PresharedKey {
    /// Takes the 32 bytes that both ends know.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes, for writing a peer's configuration.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl PublicKey {
    pub(crate) fn x25519(self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }
}

impl Drop for PresharedKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_never_show_themselves() {
        let private = PrivateKey::new([7; 32]);
        let preshared = PresharedKey::new([7; 32]);
        assert_eq!(format!("{private:?} {preshared:?}"), "*** ***");
    }
}
