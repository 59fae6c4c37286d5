//! The `service` of a rule.

use std::{fmt, net::Ipv6Addr, path::PathBuf, str::FromStr};

use super::IpRule;
use crate::Hostname;

/// Who answers the requests of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// An HTTP server over TCP.
    Http {
        /// `https` and `wss`.
        tls: bool,
        /// `host` or `host:port`; IPv6 literals in brackets.
        authority: String,
    },
    /// An HTTP server on a Unix socket.
    Unix {
        /// Path of the socket.
        path: PathBuf,
        /// Whether it speaks TLS.
        tls: bool,
    },
    /// An empty answer of this status, 100 to 999.
    Status(u16),
    /// The built-in sample origin.
    HelloWorld,
    /// TCP over WebSocket: parsed so that rule files can be examined, not served yet.
    Stream(StreamService),
}

/// A service that is a byte stream inside a WebSocket (`tunnel-protocol.md §4.6`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamService {
    /// A fixed destination.
    Tcp {
        /// `tcp`, `ssh`, `rdp`, `smb` or any other.
        scheme: String,
        /// `host` or `host:port`, with the scheme's default port filled in where it has one.
        authority: String,
    },
    /// The destination comes with each request.
    Bastion,
    /// A SOCKS5 proxy with its rules in order; nothing matched = denied.
    Socks(Vec<IpRule>),
}

/// Why a text is no service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// No scheme or no host.
    #[error("not a valid address: it needs a scheme and a hostname, as in `http://localhost:8080`")]
    Address,
    /// A path, even `/`.
    #[error(
        "not a valid address: ingress rules do not support proxying to a different path, \
         the visitor's path is used"
    )]
    Path,
    /// User name and password in the address.
    #[error("not a valid address: user and password are not sent to origins")]
    UserInformation,
    /// `http_status:` without a number from 100 to 999.
    #[error("invalid HTTP status code: expected a number from 100 to 999")]
    Status,
    /// `unix:` without a path.
    #[error("not a valid address: `unix:` needs the path of a socket")]
    UnixPath,
}

impl Service {
    /// Whether TLS is spoken towards the origin.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Http { tls: true, .. } | Self::Unix { tls: true, .. })
    }
}

impl FromStr for Service {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix+tls:") {
            return unix(path, true);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path, false);
        }
        if let Some(code) = text.strip_prefix("http_status:") {
            let status = code.parse().ok().filter(|code| (100..=999).contains(code));
            return status.map(Self::Status).ok_or(ServiceError::Status);
        }
        match text {
            "hello_world" | "hello-world" => Ok(Self::HelloWorld),
            "bastion" => Ok(Self::Stream(StreamService::Bastion)),
            "socks-proxy" => Ok(Self::Stream(StreamService::Socks(Vec::new()))),
            _ => address(text),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { tls: false, authority } => write!(f, "http://{authority}"),
            Self::Http { tls: true, authority } => write!(f, "https://{authority}"),
            Self::Unix { path, tls: false } => write!(f, "unix:{}", path.display()),
            Self::Unix { path, tls: true } => write!(f, "unix+tls:{}", path.display()),
            Self::Status(code) => write!(f, "http_status:{code}"),
            Self::HelloWorld => f.write_str("hello_world"),
            Self::Stream(StreamService::Tcp { scheme, authority }) => write!(f, "{scheme}://{authority}"),
            Self::Stream(StreamService::Bastion) => f.write_str("bastion"),
            Self::Stream(StreamService::Socks(_)) => f.write_str("socks-proxy"),
        }
    }
}

fn unix(path: &str, tls: bool) -> Result<Service, ServiceError> {
    match path.is_empty() || path.contains('\0') {
        true => Err(ServiceError::UnixPath),
        false => Ok(Service::Unix { path: path.into(), tls }),
    }
}

/// `scheme://host[:port]` and nothing after it.
fn address(text: &str) -> Result<Service, ServiceError> {
    let (scheme, rest) = text.split_once("://").ok_or(ServiceError::Address)?;
    if !is_scheme(scheme) {
        return Err(ServiceError::Address);
    }
    if rest.contains(['/', '?', '#']) {
        return Err(if rest.starts_with('/') { ServiceError::Address } else { ServiceError::Path });
    }
    if rest.contains('@') {
        return Err(ServiceError::UserInformation);
    }
    let scheme = scheme.to_ascii_lowercase();
    let (host, port) = host_and_port(rest)?;
    let with_port = |port: Option<u16>| match port {
        Some(port) => format!("{host}:{port}"),
        None => host.clone(),
    };
    Ok(match scheme.as_str() {
        "http" | "ws" => Service::Http { tls: false, authority: with_port(port) },
        "https" | "wss" => Service::Http { tls: true, authority: with_port(port) },
        _ => {
            let known = STREAM_PORTS.iter().find(|(name, _)| *name == scheme).map(|(_, port)| *port);
            Service::Stream(StreamService::Tcp { authority: with_port(port.or(known)), scheme })
        }
    })
}

/// RFC 3986 §3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), ServiceError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (literal, tail) = rest.split_once(']').ok_or(ServiceError::Address)?;
            let address: Ipv6Addr = literal.parse().map_err(|_| ServiceError::Address)?;
            (format!("[{address}]"), tail.strip_prefix(':').or(tail.is_empty().then_some("")))
        }
        None => {
            let (name, port) = text.split_once(':').unwrap_or((text, ""));
            let name: Hostname = name.parse().map_err(|_| ServiceError::Address)?;
            (name.to_string(), Some(port))
        }
    };
    match port {
        Some("") => Ok((host, None)),
        Some(port) => {
            let port = port.parse().ok().filter(|port| *port > 0).ok_or(ServiceError::Address)?;
            Ok((host, Some(port)))
        }
        None => Err(ServiceError::Address),
    }
}

/// Ports that cloudflared fills in (`tunnel-protocol.md §7.4`).
const STREAM_PORTS: [(&str, u16); 4] = [("ssh", 22), ("rdp", 3389), ("smb", 445), ("tcp", 7864)];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn service(text: &str) -> Result<Service, ServiceError> {
        text.parse()
    }

    fn http(tls: bool, authority: &str) -> Result<Service, ServiceError> {
        Ok(Service::Http { tls, authority: authority.into() })
    }

    #[test]
    fn web_addresses_are_http_with_or_without_tls() {
        assert_eq!(service("http://localhost:8000"), http(false, "localhost:8000"));
        assert_eq!(service("HTTPS://My_App"), http(true, "my_app"));
        assert_eq!(service("ws://10.0.0.1"), http(false, "10.0.0.1"));
        assert_eq!(service("wss://[::1]:9"), http(true, "[::1]:9"));
    }

    #[test]
    fn sockets_statuses_and_the_sample_are_named() {
        assert_eq!(service("unix:/run/a.sock"), Ok(Service::Unix { path: "/run/a.sock".into(), tls: false }));
        assert_eq!(service("unix+tls:/a"), Ok(Service::Unix { path: "/a".into(), tls: true }));
        assert_eq!(service("http_status:404"), Ok(Service::Status(404)));
        assert_eq!(service("hello-world"), Ok(Service::HelloWorld));
        assert_eq!(service("hello_world"), Ok(Service::HelloWorld));
    }

    #[test]
    fn streams_get_the_port_of_their_scheme() {
        for (text, shown) in [
            ("ssh://host", "ssh://host:22"),
            ("rdp://host", "rdp://host:3389"),
            ("smb://host:1", "smb://host:1"),
            ("tcp://host", "tcp://host:7864"),
            ("foo://host", "foo://host"),
            ("bastion", "bastion"),
            ("socks-proxy", "socks-proxy"),
        ] {
            let parsed = service(text).unwrap();
            assert!(matches!(parsed, Service::Stream(_)));
            assert_eq!(parsed.to_string(), shown);
        }
    }

    #[test]
    fn each_bad_service_has_its_name() {
        for (text, error) in [
            ("", ServiceError::Address),
            ("localhost:8080", ServiceError::Address),
            ("http://", ServiceError::Address),
            ("http:///a", ServiceError::Address),
            ("//host", ServiceError::Address),
            ("http://host:0", ServiceError::Address),
            ("http://host:99999", ServiceError::Address),
            ("http://[::1", ServiceError::Address),
            ("http://[::1]a", ServiceError::Address),
            ("http://host/", ServiceError::Path),
            ("http://host:80/path", ServiceError::Path),
            ("http://host?q", ServiceError::Path),
            ("http://me:pw@host", ServiceError::UserInformation),
            ("http_status:99", ServiceError::Status),
            ("http_status:1000", ServiceError::Status),
            ("http_status:ok", ServiceError::Status),
            ("unix:", ServiceError::UnixPath),
        ] {
            assert_eq!(service(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_parsed_service_survives_its_text(text in "[a-z]{2,5}://[a-z.:\\[\\]0-9@/]{0,20}") {
            if let Ok(parsed) = service(&text) {
                prop_assert_eq!(service(&parsed.to_string()), Ok(parsed));
            }
        }

        #[test]
        fn any_text_is_a_service_or_an_error(text in "\\PC{0,60}") {
            let _ = service(&text);
        }
    }
}
