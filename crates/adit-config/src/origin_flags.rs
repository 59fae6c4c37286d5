//! cloudflared's flags for a tunnel with a single origin (`tunnel-protocol.md §7.4`, last paragraph).

use std::net::Ipv6Addr;

use crate::{
    OriginSettings, Service, StreamService,
    read::{Field, Section},
};

/// The service flags seen so far; later layers replace earlier ones.
#[derive(Default)]
pub(crate) struct SingleOrigin {
    hello_world: bool,
    bastion: bool,
    url: Option<Service>,
    unix_socket: Option<Service>,
}

impl SingleOrigin {
    pub(crate) fn read(&mut self, section: &mut Section<'_>) {
        section.set("hello-world", &mut self.hello_world, switch);
        section.set("bastion", &mut self.bastion, switch);
        section.set("url", &mut self.url, |field| field.try_parse(origin_url).map(Some));
        let unix_socket = section.take("unix-socket");
        if let (Some(field), Some(_)) = (&unix_socket, &self.url) {
            field.reject("expected either `url` or `unix-socket`, not both");
        }
        if let Some(field) = unix_socket {
            self.unix_socket = field.try_parse(|text| format!("unix:{text}").parse::<Service>());
        }
    }

    pub(crate) fn into_service(self) -> Option<Service> {
        match self {
            Self { hello_world: true, .. } => Some(Service::HelloWorld),
            Self { bastion: true, .. } => Some(Service::Stream(StreamService::Bastion)),
            Self { url, unix_socket, .. } => url.or(unix_socket),
        }
    }
}

/// Reads the flags that say how the single origin is spoken to.
pub(crate) fn read_origin_flags(section: &mut Section<'_>, settings: &mut OriginSettings) {
    let s = settings;
    section.set("proxy-connect-timeout", &mut s.connect_timeout, Field::duration);
    section.set("proxy-tls-timeout", &mut s.tls_timeout, Field::duration);
    section.set("proxy-tcp-keepalive", &mut s.tcp_keep_alive, Field::duration);
    section.set("proxy-no-happy-eyeballs", &mut s.no_happy_eyeballs, switch);
    section.set("proxy-keepalive-connections", &mut s.keep_alive_connections, |field| {
        field.integer(0..=100_000)
    });
    section.set("proxy-keepalive-timeout", &mut s.keep_alive_timeout, Field::duration);
    section.set("http-host-header", &mut s.http_host_header, |field| {
        field.parse("a value that can stand in a header", |text| {
            text.parse::<http::HeaderValue>()
                .ok()
                .map(|_| Some(text.to_owned()).filter(|text| !text.is_empty()))
        })
    });
    section.set("origin-server-name", &mut s.origin_server_name, |field| match field.text()? {
        "" => Some(None),
        _ => field.try_parse(|text| text.parse::<crate::Hostname>()).map(|name| Some(name.to_string())),
    });
    section.set("match-sni-to-host", &mut s.match_sni_to_host, switch);
    section.set("origin-ca-pool", &mut s.ca_pool, |field| match field.text()? {
        "" => Some(None),
        _ => field.path().map(Some),
    });
    section.set("no-tls-verify", &mut s.no_tls_verify, switch);
    section.set("no-chunked-encoding", &mut s.disable_chunked_encoding, switch);
    section.set("http2-origin", &mut s.http2_origin, switch);
    section.set("bastion", &mut s.bastion_mode, switch);
    section.set("proxy-address", &mut s.proxy_address, |field| field.text().map(str::to_owned));
    section.set("proxy-port", &mut s.proxy_port, |field| field.integer(0..=65535));
    section.set("socks5", &mut s.proxy_type, |field| {
        switch(field).map(|on| if on { "socks".to_owned() } else { String::new() })
    });
}

/// A boolean as Go's flag parser takes it, which knows more words than YAML.
fn switch(field: &Field<'_>) -> Option<bool> {
    field.parse("`true` or `false`", |text| match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    })
}

/// `--url`: scheme `http` if none is given, a path is dropped because the visitor's path is used.
fn origin_url(text: &str) -> Result<Service, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if !URL_SCHEMES.contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(format!("`{scheme}` is not supported: expected one of {}", URL_SCHEMES.join(", ")));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = match authority.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => authority.to_owned(),
    };
    format!("{scheme}://{authority}").parse().map_err(|error: crate::ServiceError| error.to_string())
}

const URL_SCHEMES: [&str; 6] = ["http", "https", "rdp", "ssh", "smb", "tcp"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_url_needs_no_scheme() {
        for (text, service) in [
            ("localhost:8080", "http://localhost:8080"),
            ("localhost", "http://localhost"),
            ("127.0.0.1", "http://127.0.0.1"),
            ("::1", "http://[::1]"),
            ("[::1]:80", "http://[::1]:80"),
            ("https://localhost:8443/api?x", "https://localhost:8443"),
            ("ssh://host", "ssh://host:22"),
        ] {
            assert_eq!(origin_url(text).unwrap().to_string(), service);
        }
        for text in ["", "ftp://host", "ws://host", "http://", "/path"] {
            assert!(origin_url(text).is_err(), "{text}");
        }
    }
}
