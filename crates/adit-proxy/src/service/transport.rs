//! Transports and the connections they make: one [`Origin`] for each server and transport, kept over reloads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_config::dynamic::ServersTransport;
use rustls::ClientConfig;

use super::tls::{self, Material};
use super::url::{Scheme, ServerUrl};
use crate::connect::Connector;
use crate::h2::client::H2Options;
use crate::origin::{Origin, OriginOptions, Protocol};

/// One `serversTransport`, ready for use.
pub(super) struct Transport {
    settings: ServersTransport,
    material: Material,
    /// Made when the first `https` server asks for it: without authorities on the machine, plain servers still work.
    tls: Mutex<Option<Result<Arc<ClientConfig>, String>>>,
    origins: Mutex<HashMap<Endpoint, Arc<Origin>>>,
}

/// What connections are shared by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Endpoint {
    scheme: Scheme,
    host: String,
    port: u16,
}

impl Transport {
    /// Takes over settings and reads their files; `previous` is used on if nothing changed, with its connections.
    ///
    /// # Errors
    /// What is wrong with it, in words for the operator.
    pub(super) fn compile(
        settings: &ServersTransport,
        previous: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, String> {
        if let Some(fault) = &settings.fault {
            return Err(fault.clone());
        }
        let material = Material::read(settings)?;
        if let Some(previous) = previous
            && previous.settings == *settings
            && previous.material == material
        {
            return Ok(Arc::clone(previous));
        }
        let transport =
            Self { settings: settings.clone(), material, tls: Mutex::default(), origins: Mutex::default() };
        let is_default = ServersTransport {
            timeouts: settings.timeouts.clone(),
            idle_connections_per_host_max: settings.idle_connections_per_host_max,
            disable_http2: settings.disable_http2,
            ..ServersTransport::default()
        };
        if is_default != *settings {
            // Whoever wrote TLS settings wants to hear now what is wrong with them.
            transport.tls()?;
        }
        Ok(Arc::new(transport))
    }

    /// The connections to a server; shared by all services that use this transport.
    ///
    /// # Errors
    /// What is wrong with the TLS settings.
    pub(super) fn origin(&self, url: &ServerUrl) -> Result<Arc<Origin>, String> {
        let endpoint = Endpoint { scheme: url.scheme, host: url.host.clone(), port: url.port };
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(origin) = origins.get(&endpoint) {
            return Ok(Arc::clone(origin));
        }
        let origin = Arc::new(Origin::with(self.options(url)?));
        origins.insert(endpoint, Arc::clone(&origin));
        Ok(origin)
    }

    /// The settings of connections to a server, for whoever wants connections of its own.
    ///
    /// # Errors
    /// What is wrong with the TLS settings.
    pub(super) fn options(&self, url: &ServerUrl) -> Result<OriginOptions, String> {
        let timeouts = &self.settings.timeouts;
        let (tls, protocol) = match url.scheme {
            Scheme::Http => (None, Protocol::Http1),
            Scheme::H2c => (None, Protocol::Http2),
            Scheme::Https if self.settings.disable_http2 => (Some(self.tls()?), Protocol::Http1),
            Scheme::Https => (Some(self.tls()?), Protocol::Negotiated),
        };
        Ok(OriginOptions {
            connector: Connector {
                target: url.target(),
                tls,
                connect_timeout: timeouts.dial.unwrap_or(Duration::MAX),
                tls_timeout: TLS_TIMEOUT,
                tcp_keep_alive: TCP_KEEP_ALIVE,
                no_happy_eyeballs: false,
            },
            protocol,
            server_name: self.settings.server_name.clone().filter(|name| !name.is_empty()),
            idle_max: match self.settings.idle_connections_per_host_max {
                0 => IDLE_CONNECTIONS,
                max => usize::try_from(max).unwrap_or(0).min(IDLE_CONNECTIONS_MAX),
            },
            h2: H2Options {
                idle_timeout: timeouts.idle_connection.unwrap_or(Duration::MAX),
                head_timeout: timeouts.response_header,
                ping_after: timeouts.read_idle,
                ping_timeout: timeouts.ping.unwrap_or(Duration::MAX),
            },
        })
    }

    /// Drops what no service uses any more, and connections idle for too long.
    pub(super) fn sweep(&self) {
        let origins: Vec<Arc<Origin>> = {
            let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
            origins.retain(|_, origin| Arc::strong_count(origin) > 1);
            origins.values().cloned().collect()
        };
        for origin in origins {
            origin.sweep();
        }
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let mut made = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        made.get_or_insert_with(|| {
            let mut config = tls::client_config(&self.settings, &self.material)?;
            config.alpn_protocols = match self.settings.disable_http2 {
                true => vec![b"http/1.1".to_vec()],
                false => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            };
            Ok(Arc::new(config))
        })
        .clone()
    }
}

/// Go's time-out of a TLS handshake, which Traefik does not let change.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of TCP keep-alive probes, as Traefik's.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Idle HTTP/1.1 connections kept per server unless said otherwise: Traefik's own default transport keeps as many, a
/// named one only Go's two, which costs a connection for nearly every request under load and is seen by nobody.
const IDLE_CONNECTIONS: usize = 200;
/// Idle connections per server, whatever is asked for: a descriptor each.
const IDLE_CONNECTIONS_MAX: usize = 10_000;
