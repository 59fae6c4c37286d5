//! What the operator said, checked: text in, [`Config`] out.
//!
//! This crate turns `adit.yaml`, Traefik's dynamic files ([`dynamic`]), cloudflared's `config.yml`, tokens, credentials
//! files and pushed configurations into checked values, and holds the nouns that every other crate shares ([`Hostname`], [`TunnelId`], [`Secret`]).
//!
//! It never opens a file, reads the environment, looks at the clock or knows how anything runs: contents of files come
//! from a [`FileSource`] that the caller hands in.
//!
//! Contract: nothing here panics on any input; reading does not stop at the first mistake but returns every [`Problem`]
//! with its place; a value of a public type is checked, so nobody checks it again; secrets are [`Secret`] from the moment
//! they are read and never show in a problem.
//!
//! Read first: `model.rs` (what there is), then `document.rs` (how it is read); for routers and their kin `dynamic/model.rs`,
//! then `dynamic/parse.rs`.

mod acme;
mod check;
mod cloudflared;
mod credentials;
mod document;
pub mod dynamic;
mod edge;
mod effective;
mod entry_points;
mod hostname;
mod ingress;
mod mesh;
mod model;
mod model_ingress;
mod observing;
mod origin_flags;
mod problem;
mod providers;
mod read;
mod secret;
mod toml;
mod tunnel;
mod tunnel_id;
mod units;
mod yaml;

pub use acme::{AcmeChallenge, AcmeKeyType, CertificateResolver, DnsChallenge, ExternalAccount, TsigKey};
pub use cloudflared::{CloudflaredFile, Settings};
pub use credentials::{CredentialsError, OriginCertificate, TunnelCredentials};
pub use document::FileSource;
pub use hostname::{HostPattern, Hostname, HostnameError};
pub use ingress::{
    AccessRequirement, Ingress, IngressRule, IpRule, OriginSettings, PushError, RemoteConfig, Service,
    ServiceError, StreamService, hostnames_in_push, path_regex,
};
pub use mesh::{
    Mesh, MeshEndpoint, MeshMode, MeshNetwork, MeshParty, MeshPeer, MeshPolicy, MeshProtocol, MeshRule,
    MeshTable, PeerKey, PrivateKey,
};
pub use model::{
    ADMIN_PORT, Admin, CertificateFiles, Config, CredentialsSource, Edge, EdgeIpVersion, EdgeTunnel,
    GRACE_PERIOD_DEFAULT, Limits, Log, LogFormat, LogLevel, Origin, Protocol, Shutdown,
    TUNNEL_GRACE_PERIOD_MAX, Tag, Tls, Tunnel, WarpRouting,
};
pub use model_ingress::{
    AccessLog, AccessLogFields, AccessLogFilters, AccessLogFormat, DynamicFiles, EntryPoint,
    EntryPointNetwork, EntryPointTransport, FieldMode, FileProvider, Http3, Impersonation, InternalServices,
    Metrics, Prometheus, Providers, ProxyProtocolTrust, Redirection, UnderscoreHeaders,
};
pub use problem::{Position, Problem, Problems};
pub use secret::Secret;
pub use tunnel_id::TunnelId;
pub use units::{
    DURATION_MAX, format_duration, format_size, is_host_and_port, parse_duration, parse_listen_address,
    parse_size,
};
