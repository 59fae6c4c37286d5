//! Names to addresses.

use std::net::{IpAddr, SocketAddr};

use crate::error::BenchError;
use crate::options::Family;

/// Addresses of `host` of the wanted kind, in the resolver's order.
pub(crate) async fn resolve(
    host: &str,
    port: u16,
    family: Option<Family>,
    bind: Option<IpAddr>,
) -> Result<Vec<SocketAddr>, BenchError> {
    let failed = |why: String| BenchError::Resolve { host: host.to_owned(), why };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let found = tokio::net::lookup_host((bare, port)).await.map_err(|error| failed(error.to_string()))?;
    let family = family.or(bind.map(|ip| if ip.is_ipv4() { Family::V4 } else { Family::V6 }));
    let wanted = |address: &SocketAddr| match family {
        None => true,
        Some(Family::V4) => address.is_ipv4(),
        Some(Family::V6) => address.is_ipv6(),
    };
    let addresses: Vec<SocketAddr> = found.filter(wanted).take(ADDRESSES_MAX).collect();
    match (addresses.is_empty(), family) {
        (false, _) => Ok(addresses),
        (true, Some(Family::V4)) => Err(failed("it has no IPv4 address".to_owned())),
        (true, Some(Family::V6)) => Err(failed("it has no IPv6 address".to_owned())),
        (true, None) => Err(failed("it has no address".to_owned())),
    }
}

/// Tried one after the other.
const ADDRESSES_MAX: usize = 8;
