//! Credential + keys + now → identity or refusal.
//!
//! Checked here are the secret by which a connector registers a tunnel ([`TunnelSecrets`]), the token by which a visitor
//! passes Cloudflare Access ([`verify_access`]), and names with passwords ([`Passwords`], [`Digests`]).
//!
//! It never fetches keys, looks at the clock, opens a socket or knows routes: keys come as text, the time as a number.
//!
//! Contract: what a peer sends never panics and is bounded before it is parsed; a wrong secret and an unknown tunnel
//! give one answer in one time; no credential is ever part of an error.
//!
//! Read first: `tunnel.rs`, then `access.rs`.

mod access;
mod digest;
mod keys;
mod passwords;
mod tunnel;

pub use access::{ACCESS_HEADER, AccessRefusal, Identity, TOKEN_BYTES_MAX, verify_access};
pub use digest::{DIGEST_FIELD_BYTES_MAX, DigestVerdict, Digests};
pub use keys::{Keys, KeysError};
pub use passwords::{BasicCredentials, Fingerprint, PASSWORD_BYTES_MAX, Passwords, UsersError};
pub use tunnel::{Presented, TunnelRefusal, TunnelSecrets};
