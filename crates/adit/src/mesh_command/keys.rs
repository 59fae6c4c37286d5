//! Keys as `wg` makes and writes them.

use std::io::Read as _;

use adit_config::{PeerKey, PrivateKey};
use rand::TryRng as _;
use zeroize::Zeroizing;

use super::Failure;

/// A new private key from the system's randomness.
pub(super) fn new() -> Result<PrivateKey, Failure> {
    let mut bytes = Zeroizing::new(random()?);
    // RFC 7748 §5: what every implementation does when it uses the key; `wg` writes it so.
    bytes[0] &= 248;
    bytes[31] = (bytes[31] & 127) | 64;
    Ok(PrivateKey::new(*bytes))
}

/// The public half.
pub(super) fn public_of(key: &PrivateKey) -> PeerKey {
    PeerKey(adit_mesh_proto::PrivateKey::new(*key.expose()).public().0)
}

/// `genkey` and `genpsk`.
pub(super) fn generate(is_private: bool) -> Result<(), Failure> {
    let key = if is_private { new()? } else { PrivateKey::new(random()?) };
    crate::print(&format!("{}\n", key.to_base64().as_str()));
    Ok(())
}

/// `pubkey`.
pub(super) fn public() -> Result<(), Failure> {
    let key = read_standard_input()?;
    crate::print(&format!("{}\n", public_of(&key)));
    Ok(())
}

/// A key on standard input.
pub(super) fn read_standard_input() -> Result<PrivateKey, Failure> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().take(KEY_TEXT_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
    PrivateKey::from_base64(&text)
        .ok_or_else(|| Failure::new("expected a private key on standard input: 44 characters of base64"))
}

fn random() -> Result<[u8; 32], Failure> {
    let mut bytes = [0; 32];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Failure::new(format!("the system has no randomness: {error}")))?;
    Ok(bytes)
}

/// 44 characters and some white space.
const KEY_TEXT_BYTES_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_the_one_of_rfc_7748() {
        // §6.1, Alice.
        let private = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
            0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = public_of(&PrivateKey::new(private));
        assert_eq!(public.0[..4], [0x85, 0x20, 0xf0, 0x09]);
    }

    #[test]
    fn new_keys_differ_and_are_clamped() {
        let (one, other) = (new().ok().unwrap(), new().ok().unwrap());
        assert!(one != other);
        assert_eq!((one.expose()[0] & 7, one.expose()[31] >> 6), (0, 1));
    }
}
