//! The name by which connector and edge mean the same tunnel.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// A tunnel's UUID; printed in lower case with hyphens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(pub Uuid);

impl TunnelId {
    /// The 16 bytes in network order, as registration carries them (`tunnel-protocol.md §3.4`).
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From 16 bytes in network order; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }
}

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for TunnelId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_id_survives_text_and_bytes() {
        let id: TunnelId = "3F2B7A10-0000-4000-8000-0000000000AB".parse().unwrap();
        assert_eq!(id.to_string(), "3f2b7a10-0000-4000-8000-0000000000ab");
        assert_eq!(TunnelId::from_slice(id.as_bytes()), Some(id));
        assert_eq!(TunnelId::from_slice(b"short"), None);
        assert!("home".parse::<TunnelId>().is_err());
    }
}
