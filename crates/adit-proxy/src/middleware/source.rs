//! Whose request it is: the address behind `ipStrategy`, and the key behind `sourceCriterion`.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use adit_config::dynamic;
use http::HeaderMap;
use http::header::HeaderName;
use ipnet::IpNet;

use super::Ctx;
use crate::headers::X_FORWARDED_FOR;
use crate::message::Request;

/// Addresses and networks.
#[derive(Debug)]
pub(super) struct Networks(Vec<IpNet>);

impl Networks {
    pub(super) fn parse(texts: &[String]) -> Result<Self, String> {
        texts.iter().map(|text| network(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `address` is one of them; text that is no address is not.
    pub(super) fn contains(&self, address: &str) -> bool {
        address.parse().is_ok_and(|address: IpAddr| {
            let address = address.to_canonical();
            self.0.iter().any(|network| network.contains(&address))
        })
    }
}

/// Which address counts as the visitor's.
#[derive(Debug)]
pub(super) enum Strategy {
    Client {
        ipv6_prefix: Option<u8>,
    },
    /// Entry of `X-Forwarded-For` from the right, from 1.
    Depth {
        depth: usize,
        ipv6_prefix: Option<u8>,
    },
    /// The first entry from the right outside of these.
    Outside(Networks),
}

impl Strategy {
    pub(super) fn new(config: Option<&dynamic::IpStrategy>) -> Result<Self, String> {
        let Some(config) = config else { return Ok(Self::Client { ipv6_prefix: None }) };
        let ipv6_prefix = match config.ipv6_subnet {
            None => None,
            Some(length @ 1..=128) => u8::try_from(length).ok(),
            Some(length) => return Err(format!("ipv6Subnet: {length} is not a prefix length from 1 to 128")),
        };
        if let Ok(depth @ 1..) = usize::try_from(config.depth) {
            return Ok(Self::Depth { depth, ipv6_prefix });
        }
        if !config.excluded_ips.is_empty() {
            return Networks::parse(&config.excluded_ips).map(Self::Outside);
        }
        Ok(Self::Client { ipv6_prefix })
    }

    /// The address as text; empty if the field it is to be in has too few entries.
    pub(super) fn address(&self, headers: &HeaderMap, ctx: &Ctx) -> String {
        match self {
            Self::Client { ipv6_prefix } => masked(&ctx.client.to_string(), *ipv6_prefix),
            Self::Depth { depth, ipv6_prefix } => {
                let all = forwarded_for(headers);
                let entry = all.rsplit(',').nth(depth - 1).unwrap_or_default().trim();
                masked(entry, *ipv6_prefix)
            }
            Self::Outside(networks) => {
                let all = forwarded_for(headers);
                let mut entries = all.rsplit(',').map(str::trim).filter(|entry| !entry.is_empty());
                entries.find(|entry| !networks.contains(entry)).unwrap_or_default().to_owned()
            }
        }
    }
}

/// What counts as one source of requests.
#[derive(Debug)]
pub(super) enum Criterion {
    Address(Strategy),
    Header(HeaderName),
    Host,
}

impl Criterion {
    /// `default` where the configuration names nothing.
    pub(super) fn new(config: Option<&dynamic::SourceCriterion>, default: Self) -> Result<Self, String> {
        let Some(config) = config else { return Ok(default) };
        let header = config.request_header_name.as_deref().filter(|name| !name.is_empty());
        match (&config.ip_strategy, header, config.request_host) {
            (None, None, false) => Ok(default),
            (Some(strategy), None, false) => Strategy::new(Some(strategy)).map(Self::Address),
            (None, Some(name), false) => {
                let name = HeaderName::try_from(name);
                name.map(Self::Header).map_err(|_| "requestHeaderName is not a field name".to_owned())
            }
            (None, None, true) => Ok(Self::Host),
            (Some(_), Some(_), _) => {
                Err("ipStrategy and requestHeaderName are mutually exclusive".to_owned())
            }
            (Some(_), _, true) => Err("ipStrategy and requestHost are mutually exclusive".to_owned()),
            (_, Some(_), true) => Err("requestHost and requestHeaderName are mutually exclusive".to_owned()),
        }
    }

    /// A number that stands for the source. Visitors choose header values, so what is kept per source must not grow
    /// with them; the hash is keyed, so nobody can look for two sources that share a number.
    pub(super) fn key(&self, hasher: &RandomState, request: &Request, ctx: &Ctx) -> u64 {
        match self {
            Self::Address(strategy) => hasher.hash_one(strategy.address(&request.headers, ctx)),
            Self::Header(name) => {
                hasher.hash_one(request.headers.get(name).map_or(&b""[..], |v| v.as_bytes()))
            }
            Self::Host => hasher.hash_one(&request.host),
        }
    }
}

/// All lines of `X-Forwarded-For` as one list.
pub(super) fn forwarded_for(headers: &HeaderMap) -> String {
    let mut lines = headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
    let mut all = lines.next().unwrap_or_default().to_owned();
    for line in lines {
        all.push_str(", ");
        all.push_str(line);
    }
    all
}

/// An entry of a forwarded list without the port that some hops add.
pub(super) fn without_port(entry: &str) -> &str {
    if entry.parse::<IpAddr>().is_ok() {
        return entry;
    }
    entry.parse::<std::net::SocketAddr>().map_or(entry, |_| {
        let (host, _) = entry.rsplit_once(':').unwrap_or((entry, ""));
        host.trim_start_matches('[').trim_end_matches(']')
    })
}

fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    text.parse().map_err(|_| format!("{text:?} is not an address or network"))
}

/// The first address of the entry's IPv6 network; anything else as it is.
fn masked(entry: &str, ipv6_prefix: Option<u8>) -> String {
    let network = ipv6_prefix.and_then(|length| {
        let address: std::net::Ipv6Addr = entry.parse().ok()?;
        ipnet::Ipv6Net::new(address, length).ok()
    });
    network.map_or_else(|| entry.to_owned(), |network| network.network().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ctx, request_with};
    use super::*;

    fn address(strategy: &dynamic::IpStrategy, forwarded: &str) -> String {
        let request = request_with("/", &[("x-forwarded-for", forwarded)]);
        Strategy::new(Some(strategy)).unwrap().address(&request.headers, &ctx())
    }

    fn at_depth(depth: i64) -> dynamic::IpStrategy {
        dynamic::IpStrategy { depth, ..Default::default() }
    }

    #[test]
    fn depth_counts_from_the_right_and_too_few_entries_are_nobody() {
        assert_eq!(address(&at_depth(2), "10.0.0.1, 1.1.1.1"), "10.0.0.1");
        assert_eq!(address(&at_depth(3), "10.0.0.1, 1.1.1.1"), "");
        let by_subnet = dynamic::IpStrategy { depth: 1, ipv6_subnet: Some(64), ..Default::default() };
        assert_eq!(address(&by_subnet, "2001:db8:1:2:3::4"), "2001:db8:1:2::");
    }

    #[test]
    fn excluded_entries_are_skipped_from_the_right() {
        let excluded = vec!["172.16.0.0/12".to_owned(), "::1".to_owned()];
        let strategy = dynamic::IpStrategy { excluded_ips: excluded, ..Default::default() };
        assert_eq!(address(&strategy, "10.0.0.1, 9.9.9.9, 172.16.0.9,, ::1"), "9.9.9.9");
        assert_eq!(address(&strategy, "172.16.0.9"), "");
    }

    #[test]
    fn without_a_strategy_the_list_is_not_looked_at() {
        assert_eq!(address(&dynamic::IpStrategy::default(), "1.2.3.4"), ctx().client.to_string());
        assert!(Strategy::new(Some(&dynamic::IpStrategy { ipv6_subnet: Some(0), ..at_depth(0) })).is_err());
    }

    #[test]
    fn networks_know_mapped_addresses_and_ports_come_off() {
        let networks = Networks::parse(&["10.0.0.0/8".to_owned(), "2001:db8::1".to_owned()]).unwrap();
        assert!(networks.contains("::ffff:10.1.1.1") && networks.contains("2001:db8::1"));
        assert!(!networks.contains("11.0.0.1") && !networks.contains("x") && !networks.contains(""));
        assert_eq!(without_port("10.1.1.1:80"), "10.1.1.1");
        assert_eq!(without_port("[2001:db8::1]:80"), "2001:db8::1");
        assert_eq!(without_port("2001:db8::1"), "2001:db8::1");
    }

    #[test]
    fn only_one_criterion_may_be_named() {
        let two = dynamic::SourceCriterion {
            ip_strategy: None,
            request_header_name: Some("X-Key".to_owned()),
            request_host: true,
        };
        assert!(Criterion::new(Some(&two), Criterion::Host).is_err());
    }
}
