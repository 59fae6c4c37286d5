//! Entry points, providers and what is seen of requests from outside, in Traefik's words.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    Mesh,
    dynamic::{EncodedCharacters, RouterTls},
};

/// A public listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPoint {
    /// Where it listens. `[::]` stands for every address of both families.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub transport: EntryPointTransport,
    /// Whose addresses [`Self::address`] is of (`on`).
    pub on: EntryPointNetwork,
    /// For whom servers such as Kubernetes' API are asked to act (`impersonate`); without a meaning off the mesh.
    pub impersonate: Impersonation,
    /// Whether routers without entry points of their own use it; true for all if none says so.
    pub as_default: bool,
    /// Whether every router on it wants TLS (`http.tls` is written).
    pub tls: bool,
    /// What `http.tls` says for routers that say nothing; present exactly if [`Self::tls`].
    pub router_tls: Option<RouterTls>,
    /// Middlewares before those of each router.
    pub middlewares: Vec<String>,
    /// Redirects every request to another entry point.
    pub redirection: Option<Redirection>,
    /// Whether `.`, `..` and `//` are removed from paths before anything looks at them.
    pub sanitize_path: bool,
    /// Whether `;` in a query is escaped; else it separates like `&`.
    pub encode_query_semicolons: bool,
    /// Escaped characters that paths may have.
    pub encoded_characters: EncodedCharacters,
    /// Longest request head in bytes; absent = [`crate::Limits::header_bytes_max`].
    pub header_bytes_max: Option<u32>,
    /// What becomes of headers whose name has an underscore.
    pub underscore_headers: UnderscoreHeaders,
    /// Requests at once on one HTTP/2 connection; absent = [`crate::Limits::streams_per_connection_max`].
    pub http2_streams_max: Option<u32>,
    /// HTTP/3 on the same port over UDP.
    pub http3: Option<Http3>,
    /// Peers whose `X-Forwarded-*` headers are believed.
    pub forwarded_trusted: Vec<IpNet>,
    /// Whether everybody's `X-Forwarded-*` headers are believed.
    pub forwarded_insecure: bool,
    /// Headers named by `Connection` that middlewares still see.
    pub forwarded_connection: Vec<String>,
    /// Whether the peer is not appended to `X-Forwarded-For`.
    pub forwarded_not_append: bool,
    /// Whether `X-Forwarded-Scheme` and `X-Scheme` are set too.
    pub forwarded_scheme_headers: bool,
    /// Whether `X-Forwarded-Proto` of WebSocket handshakes is `ws` or `wss`, as Traefik has it; else `http` or `https`.
    pub forwarded_websocket_scheme: bool,
    /// Whose PROXY protocol headers are read; absent = the protocol is not looked for.
    pub proxy_protocol: Option<ProxyProtocolTrust>,
    /// Longest wait for a complete request head.
    pub read_header_timeout: Duration,
    /// Longest reading of one whole request, body included; absent = no limit, because uploads may take days.
    pub read_timeout: Option<Duration>,
    /// Longest writing of one whole response; absent = no limit.
    pub write_timeout: Option<Duration>,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long requests are still accepted once the process is stopping.
    pub request_accept_grace: Duration,
    /// How long requests in flight may take once the process is stopping.
    pub grace_period: Duration,
    /// How long a UDP session lives without datagrams (3 s).
    pub udp_timeout: Duration,
    /// Whether several processes may listen on the same port (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// Whether routers get requests for ACME challenges that are not ours (true; Traefik's default is false, and means so
    /// only where it answers challenges itself).
    pub acme_bypass: bool,
    /// Whether its requests are in the access log, unless their router says otherwise.
    pub access_logs: bool,
    /// Whether its requests are counted in metrics, unless their router says otherwise.
    pub metrics: bool,
}

/// What an entry point speaks below HTTP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EntryPointTransport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP: only UDP routers can be on it.
    Udp,
}

/// Who of the mesh may have a server act for somebody else than the request's credential says, by `Impersonate-…` as
/// Kubernetes takes it, or by `X-Remote-…` as it takes it from proxies that it trusts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Impersonation {
    /// Nobody: visitors' fields are removed.
    #[default]
    Nobody,
    /// This process: `Impersonate-User` is the peer, `Impersonate-Group` each of its groups; visitors' fields are removed.
    Peer,
    /// Visitors: their fields are passed on.
    Visitor,
}

/// Where an entry point can be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EntryPointNetwork {
    /// On the machine's addresses.
    #[default]
    Host,
    /// On the mesh's addresses only: nothing answers anywhere else.
    Mesh,
}

/// Where an entry point sends all its visitors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    /// Name of another entry point, or a port such as `:443`.
    pub to: String,
    /// Scheme (`https`).
    pub scheme: String,
    /// 301/308 in place of 302/307 (true).
    pub permanent: bool,
    /// Priority among the routers of the entry point.
    pub priority: i64,
}

/// What becomes of request headers whose name has an underscore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnderscoreHeaders {
    /// Passed on.
    #[default]
    Keep,
    /// Removed before routing.
    Delete,
    /// The request is answered with 400.
    Reject,
}

/// HTTP/3 of an entry point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Http3 {
    /// Port in `Alt-Svc`; absent = the one listened on.
    pub advertised_port: Option<u16>,
}

/// Whose PROXY protocol headers count; from others the header is read and ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyProtocolTrust {
    /// Peers believed.
    pub trusted: Vec<IpNet>,
    /// Whether everybody is.
    pub insecure: bool,
}

/// Sources of dynamic configuration beside this file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Providers {
    /// Files.
    pub file: Option<FileProvider>,
    /// Changes within this time are taken as one (`providersThrottleDuration`, 2 s).
    pub throttle: Duration,
}

/// Traefik dynamic files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProvider {
    /// Which.
    pub files: DynamicFiles,
    /// Whether changes are taken over as they happen (true).
    pub watch: bool,
}

/// One file or all of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DynamicFiles {
    /// This file.
    File(PathBuf),
    /// Every `.yml`, `.yaml` and `.toml` file in and below this directory.
    Directory(PathBuf),
}

/// The access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// File appended to; absent = standard output.
    pub file_path: Option<PathBuf>,
    /// Form of its lines.
    pub format: AccessLogFormat,
    /// Lines held before writing; 0 = each line at once.
    pub buffered_lines_max: u32,
    /// Which requests are logged.
    pub filters: AccessLogFilters,
    /// Which fields are logged.
    pub fields: AccessLogFields,
    /// Whether requests to our own services (`…@internal`) are logged.
    pub add_internals: bool,
}

/// Form of the access log's lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Common Log Format with Traefik's further columns.
    #[default]
    Common,
    /// Common Log Format with referrer and user agent.
    GenericClf,
    /// One object a line.
    Json,
    /// Our own form, for people.
    Text,
}

/// Which requests are logged: those for which any filter holds; all if there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessLogFilters {
    /// Ranges of status codes, ends included.
    pub status_codes: Vec<(u16, u16)>,
    /// Whether requests that were retried are logged.
    pub retry_attempts: bool,
    /// Requests that took longer are logged; zero = no such filter.
    pub duration_min: Duration,
}

/// Which fields are logged; what is dropped is `-` in the forms with columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogFields {
    /// Fields not named; keep by default.
    pub default_mode: FieldMode,
    /// By field name.
    pub names: BTreeMap<String, FieldMode>,
    /// Headers not named; drop by default.
    pub headers_default_mode: FieldMode,
    /// By header name as written.
    pub headers: BTreeMap<String, FieldMode>,
    /// Whether the query is part of `RequestPath`; keep by default.
    pub query_parameters: FieldMode,
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldMode {
    /// Logged.
    Keep,
    /// Not logged.
    Drop,
    /// Logged as `REDACTED` (headers only).
    Redact,
}

/// Which of our own services routers may name (`api@internal`, …).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InternalServices {
    /// `api@internal` and `dashboard@internal`: there is a section `api`.
    pub api: bool,
    /// `ping@internal`: there is a section `ping`.
    pub ping: bool,
}

/// Exporters of metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Traefik's metric names.
    pub prometheus: Option<Prometheus>,
    /// Whether requests to our own services count.
    pub add_internals: bool,
}

/// Traefik's metric names, beside ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prometheus {
    /// `traefik_entrypoint_*` (true).
    pub entry_points_labels: bool,
    /// `traefik_router_*` (false).
    pub routers_labels: bool,
    /// `traefik_service_*` (true).
    pub services_labels: bool,
    /// Upper bounds of the duration histograms, ascending.
    pub buckets: Vec<Duration>,
}

impl EntryPoint {
    /// An entry point at an address with every other setting at its default.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            transport: EntryPointTransport::Tcp,
            on: EntryPointNetwork::Host,
            impersonate: Impersonation::Nobody,
            as_default: false,
            tls: false,
            router_tls: None,
            middlewares: Vec::new(),
            redirection: None,
            sanitize_path: true,
            encode_query_semicolons: false,
            encoded_characters: EncodedCharacters::ALL,
            header_bytes_max: None,
            underscore_headers: UnderscoreHeaders::Keep,
            http2_streams_max: None,
            http3: None,
            forwarded_trusted: Vec::new(),
            forwarded_insecure: false,
            forwarded_connection: Vec::new(),
            forwarded_not_append: false,
            forwarded_scheme_headers: false,
            forwarded_websocket_scheme: true,
            proxy_protocol: None,
            read_header_timeout: Duration::from_secs(10),
            read_timeout: None,
            write_timeout: None,
            // Traefik's default.
            idle_timeout: Duration::from_secs(180),
            request_accept_grace: Duration::ZERO,
            grace_period: crate::GRACE_PERIOD_DEFAULT,
            // Traefik's default.
            udp_timeout: Duration::from_secs(3),
            reuse_port: false,
            acme_bypass: true,
            access_logs: true,
            metrics: true,
        }
    }

    /// Where it listens on a mesh: its port on the node's addresses that its own address covers.
    pub fn mesh_addresses(&self, mesh: &Mesh) -> Vec<SocketAddr> {
        let ip = self.address.ip();
        let covers = |address: &IpAddr| match ip {
            IpAddr::V6(ip) if ip.is_unspecified() => true,
            IpAddr::V4(ip) if ip.is_unspecified() => address.is_ipv4(),
            ip => ip == *address,
        };
        let addresses = mesh.addresses.iter().map(IpNet::addr).filter(covers);
        addresses.map(|address| SocketAddr::new(address, self.address.port())).collect()
    }

    /// Whether this peer's `X-Forwarded-*` headers are believed.
    pub fn trusts_forwarded(&self, peer: IpAddr) -> bool {
        self.forwarded_insecure || contains(&self.forwarded_trusted, peer)
    }
}

impl ProxyProtocolTrust {
    /// Whether this peer's PROXY protocol header counts.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.insecure || contains(&self.trusted, peer)
    }
}

impl Default for Redirection {
    fn default() -> Self {
        Self {
            to: String::new(),
            scheme: "https".to_owned(),
            permanent: true,
            // Above everything that routers of an operator may have (`ingress-features.md §1.3`).
            priority: i64::MAX - 1,
        }
    }
}

impl Default for Providers {
    fn default() -> Self {
        Self { file: None, throttle: Duration::from_secs(2) }
    }
}

impl Default for AccessLogFields {
    fn default() -> Self {
        Self {
            default_mode: FieldMode::Keep,
            names: BTreeMap::new(),
            headers_default_mode: FieldMode::Drop,
            headers: BTreeMap::new(),
            query_parameters: FieldMode::Keep,
        }
    }
}

impl Default for Prometheus {
    fn default() -> Self {
        Self {
            entry_points_labels: true,
            routers_labels: false,
            services_labels: true,
            // Traefik's four and finer ones between them, so that its dashboards still add up.
            buckets: [5, 10, 25, 50, 100, 300, 600, 1200, 2500, 5000].map(Duration::from_millis).to_vec(),
        }
    }
}

/// An IPv4 peer on a socket of both families counts as IPv4.
fn contains(networks: &[IpNet], peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    networks.iter().any(|network| network.contains(&peer))
}

/// Stands in while the rest of an entry point without a good address is read for more problems.
pub(crate) const PLACEHOLDER_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
