//! HTTP middlewares. Texts that a middleware compiles (regular expressions, networks, expressions) are as written.

use std::{collections::BTreeMap, time::Duration};

use super::PemSource;
use crate::Secret;

/// One HTTP middleware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Middleware {
    /// `addPrefix`.
    AddPrefix(AddPrefix),
    /// `basicAuth`.
    BasicAuth(BasicAuth),
    /// `buffering`.
    Buffering(Buffering),
    /// `chain`.
    Chain(Chain),
    /// `circuitBreaker`.
    CircuitBreaker(CircuitBreaker),
    /// `compress`.
    Compress(Compress),
    /// `contentType`.
    ContentType(ContentType),
    /// `digestAuth`.
    DigestAuth(DigestAuth),
    /// `encodedCharacters`.
    EncodedCharacters(EncodedCharacters),
    /// `errors`.
    Errors(Errors),
    /// `forwardAuth`.
    ForwardAuth(Box<ForwardAuth>),
    /// `grpcWeb`.
    GrpcWeb(GrpcWeb),
    /// `headers`.
    Headers(Box<Headers>),
    /// `ipAllowList`, and `ipWhiteList` as its old name.
    IpAllowList(IpAllowList),
    /// `inFlightReq`.
    InFlightReq(InFlightReq),
    /// `passTLSClientCert`.
    PassTlsClientCert(PassTlsClientCert),
    /// `rateLimit`.
    RateLimit(RateLimit),
    /// `redirectRegex`.
    RedirectRegex(RedirectRegex),
    /// `redirectScheme`.
    RedirectScheme(RedirectScheme),
    /// `replacePath`.
    ReplacePath(ReplacePath),
    /// `replacePathRegex`.
    ReplacePathRegex(ReplacePathRegex),
    /// `retry`.
    Retry(Retry),
    /// `stripPrefix`.
    StripPrefix(StripPrefix),
    /// `stripPrefixRegex`.
    StripPrefixRegex(StripPrefixRegex),
    /// Not a middleware (several kinds, none, or one that is not supported), and why: routers that use it are disabled
    /// with this reason.
    Invalid(String),
}

/// Puts a prefix before the path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddPrefix {
    /// The prefix; empty is a fault.
    pub prefix: String,
}

/// Asks for name and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// `user:hash` each (bcrypt, apr1-MD5, SHA1).
    pub users: Vec<Secret>,
    /// File of such lines, as written.
    pub users_file: Option<std::path::PathBuf>,
    /// Realm; `traefik` by default.
    pub realm: String,
    /// Whether the server does not see `Authorization`.
    pub remove_header: bool,
    /// Header that tells the server the user's name.
    pub header_field: Option<String>,
}

/// Digest authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestAuth {
    /// `user:realm:hash` each.
    pub users: Vec<Secret>,
    /// File of such lines, as written.
    pub users_file: Option<std::path::PathBuf>,
    /// Realm; `traefik` by default.
    pub realm: String,
    /// Whether the server does not see `Authorization`.
    pub remove_header: bool,
    /// Header that tells the server the user's name.
    pub header_field: Option<String>,
}

/// Limits on bodies, and buffering where a retry needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffering {
    /// Longest request body in bytes; 0 = no limit.
    pub request_body_bytes_max: u64,
    /// Bytes of it that may be held in memory (1 MiB).
    pub request_memory_bytes_max: u64,
    /// Longest response body in bytes; 0 = no limit.
    pub response_body_bytes_max: u64,
    /// Bytes of it that may be held in memory (1 MiB).
    pub response_memory_bytes_max: u64,
    /// When to try again, such as `Attempts() < 3 && ResponseCode() == 503`.
    pub retry_expression: Option<String>,
}

/// Several middlewares under one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Their names as written.
    pub middlewares: Vec<String>,
}

/// Stops asking a service that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// When it opens, such as `NetworkErrorRatio() > 0.5`.
    pub expression: String,
    /// From one look at the expression to the next (100 ms).
    pub check_period: Duration,
    /// How long it stays open (10 s).
    pub fallback_duration: Duration,
    /// How long it takes to let everything through again (10 s).
    pub recovery_duration: Duration,
    /// Status while it is open (503).
    pub response_code: u16,
}

/// Compresses responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compress {
    /// Content types left as they are.
    pub excluded_content_types: Vec<String>,
    /// If not empty: the only content types compressed. Both lists together are a fault.
    pub included_content_types: Vec<String>,
    /// Shorter bodies are left as they are (1024 bytes).
    pub response_body_bytes_min: u64,
    /// Encodings in order of preference (`gzip`, `br`, `zstd`).
    pub encodings: Vec<String>,
    /// Encoding for requests without `Accept-Encoding`.
    pub default_encoding: Option<String>,
}

/// Guesses a missing content type from the body, as Go does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContentType {
    /// Old switch: `Some(false)` turns guessing off.
    pub auto_detect: Option<bool>,
}

/// Which escaped characters a path may have; by default none here, all at an entry point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodedCharacters {
    /// `%2F`.
    pub allow_slash: bool,
    /// `%5C`.
    pub allow_back_slash: bool,
    /// `%00`.
    pub allow_null: bool,
    /// `%3B`.
    pub allow_semicolon: bool,
    /// `%25`.
    pub allow_percent: bool,
    /// `%3F`.
    pub allow_question_mark: bool,
    /// `%23`.
    pub allow_hash: bool,
}

/// Error pages from a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Errors {
    /// Codes and ranges as written, such as `500-599`.
    pub status: Vec<String>,
    /// Code or range as written → code that the visitor gets.
    pub status_rewrites: BTreeMap<String, u16>,
    /// Service of the pages, as written.
    pub service: String,
    /// Path and query asked of it, with `{status}`, `{originalStatus}`, `{url}`.
    pub query: String,
    /// Request headers passed on to it; absent = all, empty = none.
    pub error_request_headers: Option<Vec<String>>,
}

/// Asks another server whether a request may pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForwardAuth {
    /// URL asked.
    pub address: String,
    /// TLS towards it.
    pub tls: Option<ClientTls>,
    /// Whether incoming `X-Forwarded-*` are kept; absent = the old mixed behaviour (`ingress-features.md §3.3`).
    pub trust_forward_header: Option<bool>,
    /// Headers of its answer that the server sees.
    pub auth_response_headers: Vec<String>,
    /// Regular expression of further such headers.
    pub auth_response_headers_regex: Option<String>,
    /// Request headers that it sees; empty = all.
    pub auth_request_headers: Vec<String>,
    /// Longest body of its answer in bytes; absent = no limit of the operator's.
    pub response_body_bytes_max: Option<u64>,
    /// Cookies of its answer that the visitor gets.
    pub add_auth_cookies_to_response: Vec<String>,
    /// Header of its answer with the user's name, for the access log.
    pub header_field: Option<String>,
    /// Whether it sees the body.
    pub forward_body: bool,
    /// Longest body that it sees in bytes; absent = no limit of the operator's.
    pub body_bytes_max: Option<u64>,
    /// Whether its `Location` stays relative.
    pub preserve_location_header: bool,
    /// Whether it is asked with the request's method; else `GET`.
    pub preserve_request_method: bool,
    /// Where a visitor is sent on 401.
    pub auth_signin_url: Option<String>,
}

/// TLS towards another server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Roots in place of the system's.
    pub ca: Option<PemSource>,
    /// Client certificate.
    pub cert: Option<PemSource>,
    /// Its key.
    pub key: Option<PemSource>,
    /// Whether certificates are not checked.
    pub insecure_skip_verify: bool,
}

/// Translates gRPC-Web.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrpcWeb {
    /// Origins that may call; `*` = all.
    pub allow_origins: Vec<String>,
}

/// Sets, removes and adds headers; CORS; security headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// An option of the second version is set, which has no effect: the middleware may be one that does nothing.
    pub has_removed_options: bool,
    /// Set on the request; an empty value removes; `Host` sets the host. Names as written.
    pub custom_request_headers: BTreeMap<String, String>,
    /// Set on the response; an empty value removes.
    pub custom_response_headers: BTreeMap<String, String>,
    /// CORS: credentials are allowed.
    pub access_control_allow_credentials: bool,
    /// CORS: headers allowed.
    pub access_control_allow_headers: Vec<String>,
    /// CORS: methods allowed.
    pub access_control_allow_methods: Vec<String>,
    /// CORS: origins allowed.
    pub access_control_allow_origin_list: Vec<String>,
    /// CORS: regular expressions of origins allowed.
    pub access_control_allow_origin_list_regex: Vec<String>,
    /// CORS: headers that scripts may read.
    pub access_control_expose_headers: Vec<String>,
    /// CORS: how long a preflight answer is good, in seconds.
    pub access_control_max_age_s: Option<i64>,
    /// Whether `Vary: Origin` is added.
    pub add_vary_header: bool,
    /// Hosts served; empty = all.
    pub allowed_hosts: Vec<String>,
    /// Headers that may hold the host.
    pub hosts_proxy_headers: Vec<String>,
    /// Headers and values that mean the visitor uses TLS.
    pub ssl_proxy_headers: BTreeMap<String, String>,
    /// `Strict-Transport-Security` max-age in seconds.
    pub sts_seconds: Option<i64>,
    /// … with `includeSubDomains`.
    pub sts_include_subdomains: bool,
    /// … with `preload`.
    pub sts_preload: bool,
    /// … on plain HTTP too.
    pub force_sts_header: bool,
    /// `X-Frame-Options: DENY`.
    pub frame_deny: bool,
    /// Value of `X-Frame-Options`.
    pub custom_frame_options_value: Option<String>,
    /// `X-Content-Type-Options: nosniff`.
    pub content_type_nosniff: bool,
    /// `X-XSS-Protection: 1; mode=block`.
    pub browser_xss_filter: bool,
    /// Value of `X-XSS-Protection`.
    pub custom_browser_xss_value: Option<String>,
    /// `Content-Security-Policy`.
    pub content_security_policy: Option<String>,
    /// `Content-Security-Policy-Report-Only`.
    pub content_security_policy_report_only: Option<String>,
    /// `Public-Key-Pins`.
    pub public_key: Option<String>,
    /// `Referrer-Policy`.
    pub referrer_policy: Option<String>,
    /// `Permissions-Policy`.
    pub permissions_policy: Option<String>,
    /// Turns off allowed hosts and STS while developing.
    pub is_development: bool,
}

/// Lets only some addresses through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpAllowList {
    /// Addresses and networks as written; empty is a fault.
    pub source_range: Vec<String>,
    /// Whose address counts; absent = the direct peer's.
    pub ip_strategy: Option<IpStrategy>,
    /// Status of a refusal (403).
    pub reject_status_code: Option<u16>,
}

/// Whose address counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpStrategy {
    /// Entry of `X-Forwarded-For` from the right, from 1; 0 = not used.
    pub depth: i64,
    /// Addresses and networks skipped from the right of `X-Forwarded-For`, as written.
    pub excluded_ips: Vec<String>,
    /// Prefix length that stands for a whole IPv6 network (1 to 128; else a fault).
    pub ipv6_subnet: Option<i64>,
}

/// Bounds requests at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InFlightReq {
    /// Requests at once per source.
    pub amount: i64,
    /// What a source is; absent = the request's host.
    pub source_criterion: Option<SourceCriterion>,
}

/// What counts as one source; at most one may be given, else it is a fault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceCriterion {
    /// Address.
    pub ip_strategy: Option<IpStrategy>,
    /// Value of a header.
    pub request_header_name: Option<String>,
    /// The request's host.
    pub request_host: bool,
}

/// Tells the server about the client's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PassTlsClientCert {
    /// Whether the whole chain is sent, escaped.
    pub pem: bool,
    /// Fields sent.
    pub info: Option<TlsClientCertFields>,
}

/// Fields of a client certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsClientCertFields {
    /// End of validity.
    pub not_after: bool,
    /// Start of validity.
    pub not_before: bool,
    /// Alternative names.
    pub sans: bool,
    /// Serial number.
    pub serial_number: bool,
    /// Parts of the subject.
    pub subject: Option<TlsClientCertNames>,
    /// Parts of the issuer.
    pub issuer: Option<TlsClientCertNames>,
}

/// Parts of a distinguished name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TlsClientCertNames {
    /// C.
    pub country: bool,
    /// ST.
    pub province: bool,
    /// L.
    pub locality: bool,
    /// O.
    pub organization: bool,
    /// OU (subject only).
    pub organizational_unit: bool,
    /// CN.
    pub common_name: bool,
    /// SN.
    pub serial_number: bool,
    /// DC.
    pub domain_component: bool,
}

/// Bounds requests over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per period; 0 = no limit.
    pub average: i64,
    /// The period (1 s).
    pub period: Duration,
    /// Requests at once (1).
    pub burst: i64,
    /// What a source is; absent = the direct peer's address.
    pub source_criterion: Option<SourceCriterion>,
}

/// Redirects by a regular expression over the whole URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedirectRegex {
    /// The expression.
    pub regex: String,
    /// Replacement in Go's form (`$1`, `${1}`).
    pub replacement: String,
    /// 301/308 in place of 302/307.
    pub permanent: bool,
}

/// Redirects to another scheme.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedirectScheme {
    /// The scheme; empty is a fault.
    pub scheme: String,
    /// The port, as written.
    pub port: Option<String>,
    /// 301/308 in place of 302/307.
    pub permanent: bool,
}

/// Sets the path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplacePath {
    /// The path.
    pub path: String,
}

/// Sets the path by a regular expression.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplacePathRegex {
    /// The expression.
    pub regex: String,
    /// Replacement in Go's form.
    pub replacement: String,
}

/// Tries again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all; below 1 is a fault.
    pub attempts: i64,
    /// Longest time for all attempts; zero = no limit.
    pub timeout: Duration,
    /// Wait before the second attempt, doubled each time; zero = none.
    pub initial_interval: Duration,
    /// Longest request body kept for another try in bytes (2 MiB); absent = no limit of the operator's.
    pub request_body_bytes_max: Option<u64>,
    /// Codes and ranges as written that are tried again; empty = only network failures.
    pub status: Vec<String>,
    /// Whether network failures are not tried again.
    pub disable_retry_on_network_error: bool,
    /// Whether methods that are not idempotent are tried again too.
    pub retry_non_idempotent_method: bool,
}

/// Removes a prefix of the path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StripPrefix {
    /// Prefixes; the first that fits is removed.
    pub prefixes: Vec<String>,
    /// Old switch: whether a rest that is empty becomes a slash (Traefik's code says false, whatever its text says).
    pub force_slash: bool,
}

/// Removes a prefix of the path by a regular expression.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StripPrefixRegex {
    /// Expressions.
    pub regex: Vec<String>,
}

impl Middleware {
    /// The kind as Traefik writes it, such as `stripPrefix`; `invalid` for none.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AddPrefix(_) => "addPrefix",
            Self::BasicAuth(_) => "basicAuth",
            Self::Buffering(_) => "buffering",
            Self::Chain(_) => "chain",
            Self::CircuitBreaker(_) => "circuitBreaker",
            Self::Compress(_) => "compress",
            Self::ContentType(_) => "contentType",
            Self::DigestAuth(_) => "digestAuth",
            Self::EncodedCharacters(_) => "encodedCharacters",
            Self::Errors(_) => "errors",
            Self::ForwardAuth(_) => "forwardAuth",
            Self::GrpcWeb(_) => "grpcWeb",
            Self::Headers(_) => "headers",
            Self::IpAllowList(_) => "ipAllowList",
            Self::InFlightReq(_) => "inFlightReq",
            Self::PassTlsClientCert(_) => "passTLSClientCert",
            Self::RateLimit(_) => "rateLimit",
            Self::RedirectRegex(_) => "redirectRegex",
            Self::RedirectScheme(_) => "redirectScheme",
            Self::ReplacePath(_) => "replacePath",
            Self::ReplacePathRegex(_) => "replacePathRegex",
            Self::Retry(_) => "retry",
            Self::StripPrefix(_) => "stripPrefix",
            Self::StripPrefixRegex(_) => "stripPrefixRegex",
            Self::Invalid(_) => "invalid",
        }
    }
}

impl EncodedCharacters {
    /// Everything allowed: an entry point's default.
    pub const ALL: Self = Self {
        allow_slash: true,
        allow_back_slash: true,
        allow_null: true,
        allow_semicolon: true,
        allow_percent: true,
        allow_question_mark: true,
        allow_hash: true,
    };
}

impl Default for BasicAuth {
    fn default() -> Self {
        Self {
            users: Vec::new(),
            users_file: None,
            realm: REALM.to_owned(),
            remove_header: false,
            header_field: None,
        }
    }
}

impl Default for DigestAuth {
    fn default() -> Self {
        Self {
            users: Vec::new(),
            users_file: None,
            realm: REALM.to_owned(),
            remove_header: false,
            header_field: None,
        }
    }
}

impl Default for Buffering {
    fn default() -> Self {
        Self {
            request_body_bytes_max: 0,
            request_memory_bytes_max: 1 << 20,
            response_body_bytes_max: 0,
            response_memory_bytes_max: 1 << 20,
            retry_expression: None,
        }
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            expression: String::new(),
            check_period: Duration::from_millis(100),
            fallback_duration: Duration::from_secs(10),
            recovery_duration: Duration::from_secs(10),
            response_code: 503,
        }
    }
}

impl Default for Compress {
    fn default() -> Self {
        Self {
            excluded_content_types: Vec::new(),
            included_content_types: Vec::new(),
            response_body_bytes_min: 1024,
            encodings: ["gzip", "br", "zstd"].map(str::to_owned).to_vec(),
            default_encoding: None,
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { average: 0, period: Duration::from_secs(1), burst: 1, source_criterion: None }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 0,
            timeout: Duration::ZERO,
            initial_interval: Duration::ZERO,
            request_body_bytes_max: Some(2 << 20),
            status: Vec::new(),
            disable_retry_on_network_error: false,
            retry_non_idempotent_method: false,
        }
    }
}

/// Traefik's realm, which browsers and password stores remember.
const REALM: &str = "traefik";
