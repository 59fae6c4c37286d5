//! Opening connections to origins: names, addresses, unix sockets, TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::inlet::{ByteStream, Datagrams, Inlet};
use crate::io::Io;

/// Where an origin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A name or literal address, and a port.
    Tcp {
        /// Without brackets.
        host: String,
        /// As written or the scheme's default.
        port: u16,
    },
    /// A unix socket's path.
    Unix(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How to reach an origin.
#[derive(Clone, Debug)]
pub struct Connector {
    /// Where.
    pub target: Target,
    /// With TLS, and which trust.
    pub tls: Option<Arc<ClientConfig>>,
    /// For name resolution and TCP together.
    pub connect_timeout: Duration,
    /// For the TLS handshake.
    pub tls_timeout: Duration,
    /// Interval of TCP keep-alive probes; zero for none.
    pub tcp_keep_alive: Duration,
    /// Try one address family after the other instead of both at once.
    pub no_happy_eyeballs: bool,
}

/// Why an origin could not be reached; cheap to clone, because all who waited for one connection get the same answer.
#[derive(Clone, Debug, Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// Refused, unreachable, no such socket.
    #[error("cannot connect to {target}")]
    Connect {
        /// Where to.
        target: String,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// Not in time.
    #[error("connecting to {0} took too long")]
    ConnectTimeout(String),
    /// The handshake failed: certificate, version, protocol.
    #[error("TLS handshake with {target} failed")]
    Tls {
        /// Who with.
        target: String,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// Not in time.
    #[error("the TLS handshake with {0} took too long")]
    TlsTimeout(String),
    /// The name to verify is not a DNS name or address.
    #[error("{0:?} is not a name that a certificate can carry")]
    ServerName(String),
}

impl ConnectError {
    /// The name of this error in logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "origin_resolve",
            Self::Connect { .. } => "origin_connect",
            Self::ConnectTimeout(_) => "origin_connect_timeout",
            Self::Tls { .. } => "origin_tls",
            Self::TlsTimeout(_) => "origin_tls_timeout",
            Self::ServerName(_) => "origin_server_name",
        }
    }
}

impl Connector {
    /// Opens a connection; `server_name` is the name to verify where TLS is spoken.
    ///
    /// # Errors
    /// [`ConnectError`], within the two time-outs.
    pub async fn connect(&self, server_name: Option<&str>) -> Result<Io, ConnectError> {
        self.connect_over(self.tls.as_ref(), server_name).await
    }

    /// The same with other TLS settings, such as for an exchange that only HTTP/1.1 can carry.
    ///
    /// # Errors
    /// [`ConnectError`], within the two time-outs.
    pub async fn connect_over(
        &self,
        tls: Option<&Arc<ClientConfig>>,
        server_name: Option<&str>,
    ) -> Result<Io, ConnectError> {
        match &self.target {
            Target::Tcp { host, port } => {
                let stream = timeout(self.connect_timeout, self.connect_tcp(host, *port))
                    .await
                    .map_err(|_| ConnectError::ConnectTimeout(self.target.to_string()))??;
                match tls {
                    None => Ok(Io::from(stream)),
                    Some(tls) => {
                        let tls = self.handshake(tls, server_name.unwrap_or(host), stream).await?;
                        Ok(Io::TlsClient(Box::new(tls)))
                    }
                }
            }
            Target::Unix(path) => {
                let stream = timeout(self.connect_timeout, UnixStream::connect(path))
                    .await
                    .map_err(|_| ConnectError::ConnectTimeout(self.target.to_string()))?
                    .map_err(|source| self.connect_error(source))?;
                match tls {
                    None => Ok(Io::Unix(stream)),
                    Some(tls) => {
                        let tls = self.handshake(tls, server_name.unwrap_or("localhost"), stream).await?;
                        Ok(Io::TlsUnix(Box::new(tls)))
                    }
                }
            }
        }
    }

    async fn handshake<S>(
        &self,
        tls: &Arc<ClientConfig>,
        name: &str,
        stream: S,
    ) -> Result<tokio_rustls::client::TlsStream<S>, ConnectError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let name =
            ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::ServerName(name.to_owned()))?;
        timeout(self.tls_timeout, TlsConnector::from(Arc::clone(tls)).connect(name, stream))
            .await
            .map_err(|_| ConnectError::TlsTimeout(self.target.to_string()))?
            .map_err(|source| ConnectError::Tls { target: self.target.to_string(), source: Arc::new(source) })
    }

    async fn connect_tcp(&self, host: &str, port: u16) -> Result<Inlet, ConnectError> {
        let addresses: Vec<SocketAddr> = match host.parse() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => tokio::net::lookup_host((host, port))
                .await
                .map_err(|source| ConnectError::Resolve { host: host.to_owned(), source: Arc::new(source) })?
                .take(ADDRESSES_MAX)
                .collect(),
        };
        let stream = if self.no_happy_eyeballs || addresses.len() < 2 {
            one_by_one(addresses).await
        } else {
            staggered(interleave(addresses)).await
        };
        let stream = match stream.map_err(|source| self.connect_error(source))? {
            Inlet::Tcp(stream) => stream,
            other => return Ok(other),
        };
        stream.set_nodelay(true).map_err(|source| self.connect_error(source))?;
        if !self.tcp_keep_alive.is_zero() {
            let probes =
                TcpKeepalive::new().with_time(self.tcp_keep_alive).with_interval(self.tcp_keep_alive);
            SockRef::from(&stream).set_tcp_keepalive(&probes).map_err(|source| self.connect_error(source))?;
        }
        Ok(Inlet::Tcp(stream))
    }

    fn connect_error(&self, source: io::Error) -> ConnectError {
        ConnectError::Connect { target: self.target.to_string(), source: Arc::new(source) }
    }
}

/// Opens connections that the kernel cannot: to addresses behind a network stack of this process.
pub trait Dial: Send + Sync {
    /// Whether connections to this address are to be opened here.
    fn covers(&self, address: IpAddr) -> bool;

    /// Opens one.
    fn connect(&self, address: SocketAddr) -> Dialling;

    /// Opens a socket for datagrams to this address.
    ///
    /// # Errors
    /// The stack's.
    fn datagrams(&self, address: IpAddr) -> io::Result<Box<dyn Datagrams>>;
}

/// A connection being opened by a [`Dial`].
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send>>;

/// Has connections to addresses that `dial` covers opened by it from now on: as a kernel's routing table, there is one
/// for the whole process.
pub fn route_through(dial: Option<Box<dyn Dial>>) {
    ROUTE.store(dial.map(Arc::new));
}

static ROUTE: ArcSwapOption<Box<dyn Dial>> = ArcSwapOption::const_empty();

fn route_to(address: IpAddr) -> Option<Arc<Box<dyn Dial>>> {
    ROUTE.load_full().filter(|dial| dial.covers(address.to_canonical()))
}

/// A socket for datagrams to this address, if the kernel has no way there.
pub(crate) fn datagrams_to(address: IpAddr) -> Option<io::Result<Box<dyn Datagrams>>> {
    Some(route_to(address)?.datagrams(address.to_canonical()))
}

async fn open(address: SocketAddr) -> io::Result<Inlet> {
    match route_to(address.ip()) {
        Some(dial) => dial.connect(address).await.map(Inlet::Other),
        None => TcpStream::connect(address).await.map(Inlet::Tcp),
    }
}

async fn one_by_one(addresses: Vec<SocketAddr>) -> io::Result<Inlet> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match open(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// RFC 8305 §5: the next attempt starts after a short delay or as soon as one failed.
async fn staggered(addresses: Vec<SocketAddr>) -> io::Result<Inlet> {
    let mut attempts = JoinSet::new();
    let mut rest = addresses.into_iter();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = rest.next() {
            attempts.spawn(open(address));
        } else if attempts.is_empty() {
            return Err(last);
        }
        let more = rest.len() > 0;
        tokio::select! {
            Some(finished) = attempts.join_next() => match finished {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            },
            () = tokio::time::sleep(ATTEMPT_DELAY), if more => {}
        }
    }
}

/// RFC 8305 §4: families alternate, the resolver's first choice first.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|a| a.is_ipv6() == first_is_v6);
    first.reverse();
    second.reverse();
    let mut ordered = Vec::with_capacity(first.len() + second.len());
    while !first.is_empty() || !second.is_empty() {
        ordered.extend(first.pop());
        ordered.extend(second.pop());
    }
    ordered
}

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;
/// RFC 8305 §8, Connection Attempt Delay.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_families_alternate() {
        let list = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1"].map(|a| a.parse().unwrap());
        let ordered: Vec<String> = interleave(list.to_vec()).iter().map(ToString::to_string).collect();
        assert_eq!(ordered, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
    }

    #[tokio::test]
    async fn a_dead_first_address_does_not_stop_the_second() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = {
            let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            closed.local_addr().unwrap()
        };
        let stream = staggered(vec![dead, listener.local_addr().unwrap()]).await.unwrap();
        let Inlet::Tcp(stream) = stream else { panic!("not a socket of the kernel") };
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }
}
