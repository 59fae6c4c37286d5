//! `originRequest`: how an origin is spoken to (`tunnel-protocol.md §7.4`).

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;

/// Settings towards one origin, with cloudflared's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginSettings {
    /// Longest TCP connect.
    pub connect_timeout: Duration,
    /// Longest TLS handshake.
    pub tls_timeout: Duration,
    /// TCP keep-alive period.
    pub tcp_keep_alive: Duration,
    /// Turns off trying IPv4 and IPv6 side by side.
    pub no_happy_eyeballs: bool,
    /// Idle connections kept.
    pub keep_alive_connections: u32,
    /// How long an idle connection is kept.
    pub keep_alive_timeout: Duration,
    /// Replaces the `Host` header; the original goes to `X-Forwarded-Host`.
    pub http_host_header: Option<String>,
    /// Name in SNI and certificate verification.
    pub origin_server_name: Option<String>,
    /// Takes that name from the request's host (after `http_host_header`).
    pub match_sni_to_host: bool,
    /// PEM roots trusted besides the system's.
    pub ca_pool: Option<PathBuf>,
    /// Accepts any certificate.
    pub no_tls_verify: bool,
    /// Never sends a chunked body: buffers and sends `Content-Length` instead (C44).
    pub disable_chunked_encoding: bool,
    /// Offers HTTP/2 by ALPN to TLS origins.
    pub http2_origin: bool,
    /// Visitors must show an Access token.
    pub access: Option<AccessRequirement>,
    /// Makes the rule a bastion.
    pub bastion_mode: bool,
    /// Rules of a `socks-proxy`.
    pub ip_rules: Vec<IpRule>,
    /// Accepted and shown, without effect, as in cloudflared.
    pub proxy_address: String,
    /// Accepted and shown, without effect, as in cloudflared.
    pub proxy_port: u16,
    /// Empty or `socks`.
    pub proxy_type: String,
}

/// Visitors must show a token of this Access team (`tunnel-protocol.md §7.6`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccessRequirement {
    /// Team whose keys sign; if empty, no token can be right.
    pub team_name: String,
    /// Audiences of which the token must have one; if empty, no token can be right.
    pub aud_tags: Vec<String>,
    /// `fed`, or empty for the world.
    pub environment: String,
}

/// One rule of a SOCKS proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpRule {
    /// Destinations that it is for.
    pub prefix: IpNet,
    /// Ports that it is for, sorted; empty = all.
    pub ports: Vec<u16>,
    /// Whether they are allowed.
    pub allow: bool,
}

impl AccessRequirement {
    /// The issuer that a token must name exactly; its keys are at `<issuer>/cdn-cgi/access/certs`.
    pub fn issuer(&self) -> String {
        let middle = if self.environment == "fed" { ".fed" } else { "" };
        format!("https://{}{middle}.cloudflareaccess.com", self.team_name)
    }
}

impl Default for OriginSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            tls_timeout: Duration::from_secs(10),
            tcp_keep_alive: Duration::from_secs(30),
            no_happy_eyeballs: false,
            keep_alive_connections: 100,
            keep_alive_timeout: Duration::from_secs(90),
            http_host_header: None,
            origin_server_name: None,
            match_sni_to_host: false,
            ca_pool: None,
            no_tls_verify: false,
            disable_chunked_encoding: false,
            http2_origin: false,
            access: None,
            bastion_mode: false,
            ip_rules: Vec::new(),
            proxy_address: "127.0.0.1".to_owned(),
            proxy_port: 0,
            proxy_type: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_depends_on_the_environment() {
        let mut access =
            AccessRequirement { team_name: "team".into(), aud_tags: Vec::new(), environment: String::new() };
        assert_eq!(access.issuer(), "https://team.cloudflareaccess.com");
        access.environment = "fed".into();
        assert_eq!(access.issuer(), "https://team.fed.cloudflareaccess.com");
    }
}
