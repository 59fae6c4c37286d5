//! `Config`: what `adit.yaml` says once it is checked and every default filled in.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::{
    AccessLog, CertificateResolver, EntryPoint, HostPattern, Ingress, InternalServices, Mesh, Metrics,
    Position, Providers, Secret, TunnelCredentials, TunnelId, dynamic::Dynamic,
};

/// The whole checked configuration of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Public listeners by name (`entryPoints`).
    pub entry_points: BTreeMap<String, EntryPoint>,
    /// Certificates of TLS entry points that are files (`tls.certificates`); [`Dynamic::tls`] has all of `tls`.
    pub tls: Tls,
    /// The connector (`tunnel`), if this process is one.
    pub tunnel: Option<Tunnel>,
    /// The edge (`edge`), if this process is one.
    pub edge: Option<Edge>,
    /// The mesh node (`mesh`), if this process is one.
    pub mesh: Option<Mesh>,
    /// Admin endpoint (`admin`).
    pub admin: Admin,
    /// Process log (`log`).
    pub log: Log,
    /// Access log (`accessLog`); absent = none is written.
    pub access_log: Option<AccessLog>,
    /// Exporters of metrics beside the admin endpoint (`metrics`).
    pub metrics: Metrics,
    /// Our own services that routers may name.
    pub internals: InternalServices,
    /// Where further dynamic configuration comes from (`providers`).
    pub providers: Providers,
    /// Routers, services, middlewares and TLS written in this file (`http`, `tcp`, `udp`, `tls`), and the warnings of the
    /// whole file.
    pub dynamic: Dynamic,
    /// Bounds on what peers can make grow (`limits`).
    pub limits: Limits,
    /// How the process ends (`shutdown`).
    pub shutdown: Shutdown,
    /// Where made keys and certificates are kept (`state-dir`); absent = they live as long as the process.
    pub state_dir: Option<PathBuf>,
    /// Files whose content is part of this value, in the order read: reload when one of them changes.
    pub sources: Vec<PathBuf>,
    /// Place of every key that was written; keys not in it are defaults.
    pub origins: BTreeMap<String, Origin>,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// File as named on the command line or in the configuration.
    pub file: String,
    /// Place in it; absent for JSON and flags.
    pub position: Option<Position>,
}

/// Certificates for TLS entry points.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Chosen by server name; the first is used if no name matches.
    pub certificates: Vec<CertificateFiles>,
    /// Certificates got by ACME, by resolver (`certificatesResolvers`).
    pub resolvers: BTreeMap<String, CertificateResolver>,
}

/// A certificate chain and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// A connector: one tunnel, several connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Name for logs, if one was given.
    pub name: Option<String>,
    /// What it registers with.
    pub credentials: CredentialsSource,
    /// Edge addresses `host:port`, one per wanted connection. Empty = Cloudflare's discovery, or with
    /// [`CredentialsSource::InProcess`] the edge of this process.
    pub edge: Vec<String>,
    /// PEM file that replaces all trusted roots towards the edge.
    pub ca: Option<PathBuf>,
    /// Connections to keep up; never more than there are edge addresses.
    pub connections: u8,
    /// Transport towards the edge.
    pub protocol: Protocol,
    /// How long requests in flight may take after the tunnel unregistered.
    pub grace_period: Duration,
    /// Cap of the backoff exponent: attempt k waits below 2^k seconds.
    pub retries: u8,
    /// Failed dials after which `auto` may fall back to HTTP/2.
    pub edge_address_retries: u8,
    /// Longest wait for an answer on the control stream.
    pub rpc_timeout: Duration,
    /// Extra feature strings for registration.
    pub features: Vec<String>,
    /// Offer only post-quantum key exchange.
    pub post_quantum: bool,
    /// Local address of connections to the edge.
    pub edge_bind_address: Option<IpAddr>,
    /// Address family towards the edge.
    pub edge_ip_version: EdgeIpVersion,
    /// Region prefix of edge discovery, such as `us` or `fed`.
    pub region: Option<String>,
    /// Sent to origins as `Cf-Warp-Tag-<name>`.
    pub tags: Vec<Tag>,
    /// Name of this connector among a tunnel's connectors.
    pub label: Option<String>,
    /// Longest blocked write to a request stream; zero = no limit.
    pub write_stream_timeout: Duration,
    /// Turns off path MTU discovery.
    pub disable_pmtu_discovery: bool,
    /// Which origin answers what.
    pub ingress: Ingress,
    /// Where routers answer what comes in: names of entry points that stand for the tunnel where no listener has them.
    pub entry_points: Vec<String>,
    /// TCP and UDP flows routed by address.
    pub warp_routing: WarpRouting,
    /// Flags explicitly set, as pushed to the edge with the ingress rules (`tunnel-protocol.md §3.7`).
    pub pushed_flags: BTreeMap<String, String>,
}

/// Where a connector's credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialsSource {
    /// Given by token or credentials file.
    Given(TunnelCredentials),
    /// Those of the tunnel of this name that this process's edge declares.
    InProcess(String),
}

/// Transport between connector and edge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// QUIC, falling back to HTTP/2 where QUIC never worked.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// HTTP/2 over TLS over TCP only.
    Http2,
}

/// Address family towards the edge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EdgeIpVersion {
    /// The family of the first resolved address first.
    #[default]
    Auto,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// One `NAME=VALUE` tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Name, usable in a header name.
    pub name: String,
    /// Value, usable as a header value.
    pub value: String,
}

/// Settings of flows routed by address (`tunnel-protocol.md §7.3`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarpRouting {
    /// Longest wait for a TCP connection.
    pub connect_timeout: Duration,
    /// Flows at once; zero = no limit.
    pub active_flows_max: u64,
    /// TCP keep-alive period.
    pub tcp_keep_alive: Duration,
}

/// The edge: accepts connectors and routes visitors into their tunnels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// Where connectors dial: UDP (QUIC) and TCP (HTTP/2) on the same address.
    pub listen: SocketAddr,
    /// Certificate shown to connectors; absent = made at start.
    pub certificate: Option<CertificateFiles>,
    /// Entry points whose visitors are routed into tunnels.
    pub public: Vec<String>,
    /// Tunnels that may register.
    pub tunnels: Vec<EdgeTunnel>,
    /// Location name told to connectors and shown to visitors.
    pub location: String,
    /// Longest time from accepting a connection to its registration.
    pub registration_timeout: Duration,
    /// How long requests in flight may take after a connector unregistered or the edge is stopping.
    pub grace_period: Duration,
}

/// One tunnel that may register at the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeTunnel {
    /// Unique name.
    pub name: String,
    /// Absent only for the in-process tunnel: made at start.
    pub id: Option<TunnelId>,
    /// Absent only for the in-process tunnel: made at start.
    pub secret: Option<Secret>,
    /// Account tag that a connector must give; absent = any.
    pub account_tag: Option<String>,
    /// Hosts it serves. Hosts learnt from its connector's rules must be covered by one of these.
    pub hostnames: Vec<HostPattern>,
    /// Connections at once over all its connectors.
    pub connections_max: u16,
}

/// The admin endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
}

/// The process log, on stderr.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Lowest level written.
    pub level: LogLevel,
    /// Text or JSON.
    pub format: LogFormat,
}

/// Lowest level that a log writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything, per packet.
    Trace,
    /// Per request and decision.
    Debug,
    /// States that a human cares about.
    #[default]
    Info,
    /// Worth a look tomorrow.
    Warn,
    /// The process or a tunnel is down.
    Error,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Bounds on what peers can make grow; each is also the worst case of memory it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request or response head.
    pub header_bytes_max: u32,
    /// Header lines of one head.
    pub headers_max: u16,
    /// Visitors' connections per entry point.
    pub connections_max: u32,
    /// Requests at once on one visitor's HTTP/2 connection.
    pub streams_per_connection_max: u32,
    /// Requests at once on one tunnel connection.
    pub streams_per_tunnel_connection_max: u32,
    /// Connectors' connections at the edge, registered or not.
    pub tunnel_connections_max: u32,
    /// Hosts learnt from one tunnel's connectors.
    pub hostnames_per_tunnel_max: u16,
    /// How long a body may stand still in both directions before the request is ended; zero = no limit.
    pub body_idle_timeout: Duration,
}

/// How the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// From the signal to the moment when what still runs is cut off.
    pub grace_period: Duration,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN_PORT) }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace_period: GRACE_PERIOD_DEFAULT }
    }
}

impl Default for WarpRouting {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            active_flows_max: 0,
            tcp_keep_alive: Duration::from_secs(30),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Browsers stay below 16 KiB; cookies of single sign-on reach 32 KiB.
            header_bytes_max: 64 * 1024,
            headers_max: 128,
            // 10,000 connections × (64 KiB head + buffers) stay below 2 GiB per entry point in the worst case.
            connections_max: 10_000,
            streams_per_connection_max: 250,
            streams_per_tunnel_connection_max: 1_000,
            tunnel_connections_max: 4_096,
            hostnames_per_tunnel_max: 256,
            body_idle_timeout: Duration::from_secs(300),
        }
    }
}

impl Tunnel {
    /// A tunnel with the given credentials and rules and every other setting at its default.
    pub fn new(credentials: CredentialsSource, ingress: Ingress) -> Self {
        Self {
            name: None,
            credentials,
            edge: Vec::new(),
            ca: None,
            connections: 4,
            protocol: Protocol::Auto,
            grace_period: GRACE_PERIOD_DEFAULT,
            retries: 5,
            edge_address_retries: 8,
            rpc_timeout: Duration::from_secs(5),
            features: Vec::new(),
            post_quantum: false,
            edge_bind_address: None,
            edge_ip_version: EdgeIpVersion::Auto,
            region: None,
            tags: Vec::new(),
            label: None,
            write_stream_timeout: Duration::ZERO,
            disable_pmtu_discovery: false,
            ingress,
            warp_routing: WarpRouting::default(),
            pushed_flags: BTreeMap::new(),
            entry_points: ["web", "websecure"].map(str::to_owned).to_vec(),
        }
    }
}

/// cloudflared's default (`tunnel-protocol.md §3.6`), used for the whole process.
pub const GRACE_PERIOD_DEFAULT: Duration = Duration::from_secs(30);
/// cloudflared's maximum (`tunnel-protocol.md §7.5`).
pub const TUNNEL_GRACE_PERIOD_MAX: Duration = Duration::from_secs(180);
/// First of cloudflared's default metrics ports (`tunnel-protocol.md §8.1`).
pub const ADMIN_PORT: u16 = 20241;
