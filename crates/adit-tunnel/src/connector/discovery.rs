//! Finds the edge through DNS where no address is configured (tunnel-protocol.md §1.1).

use std::{net::SocketAddr, time::Duration};

use adit_config::EdgeIpVersion;
use hickory_resolver::{
    Resolver, TokioResolver,
    proto::rr::{RData, rdata::SRV},
};
use tokio::time::timeout;

/// Addresses of the edge, per region: each SRV target is a region, the first two count. Empty when
/// nothing was found, which is logged.
pub(super) async fn discover(region: Option<String>, ip_version: EdgeIpVersion) -> [Vec<SocketAddr>; 2] {
    let name = match region.filter(|region| !region.is_empty()) {
        Some(region) => format!("_{region}-v2-origintunneld._tcp.argotunnel.com."),
        None => "_v2-origintunneld._tcp.argotunnel.com.".to_owned(),
    };
    match timeout(DISCOVERY_TIMEOUT, lookup(&name, ip_version)).await {
        Ok(Ok(found)) => found,
        Ok(Err(reason)) => {
            tracing::error!(name, reason, "edge discovery failed");
            Default::default()
        }
        Err(_) => {
            tracing::error!(name, reason = "timeout", "edge discovery failed");
            Default::default()
        }
    }
}

async fn lookup(name: &str, ip_version: EdgeIpVersion) -> Result<[Vec<SocketAddr>; 2], String> {
    let resolver: TokioResolver =
        Resolver::builder_tokio().and_then(|builder| builder.build()).map_err(|error| error.to_string())?;
    let answer = resolver.srv_lookup(name).await.map_err(|error| error.to_string())?;
    let mut targets: Vec<&SRV> = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        })
        .collect();
    targets.sort_by_key(|srv| srv.priority);
    let mut regions = [Vec::new(), Vec::new()];
    if targets.len() < regions.len() {
        return Err(format!("{} regions found, 2 are needed", targets.len()));
    }
    for (region, target) in regions.iter_mut().zip(targets) {
        let found = resolver.lookup_ip(target.target.clone()).await.map_err(|error| error.to_string())?;
        let addresses = found.iter().filter(|ip| match ip_version {
            EdgeIpVersion::Auto => true,
            EdgeIpVersion::V4 => ip.is_ipv4(),
            EdgeIpVersion::V6 => ip.is_ipv6(),
        });
        region.extend(addresses.map(|ip| SocketAddr::new(ip, target.port)));
    }
    Ok(regions)
}

/// Longest wait for all of a discovery.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(15);
