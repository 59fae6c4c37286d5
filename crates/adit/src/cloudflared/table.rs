//! Every flag of `cloudflared tunnel` and `cloudflared tunnel run`, and what adit does with it.
//!
//! The command line, the reading of environment and file, and `docs/cloudflared-flags.md` are all made from this table
//! (`tunnel-protocol.md §7.7`).

/// One flag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    /// Name on the command line and in the configuration file.
    pub(crate) name: &'static str,
    /// Other names; those of one letter are short options.
    pub(crate) aliases: &'static [&'static str],
    pub(crate) level: Level,
    /// Environment variables, earlier wins.
    pub(crate) env: &'static [&'static str],
    pub(crate) kind: Kind,
    /// What applies if it is not given, as shown to the operator.
    pub(crate) default: &'static str,
    pub(crate) disposition: Disposition,
    /// Whether it may stand in the configuration file.
    pub(crate) in_file: bool,
}

/// Where on the command line a flag may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Before `run`.
    Tunnel,
    /// After `run`.
    Run,
    /// Before or after `run`; after wins.
    Both,
}

/// What a flag's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// Repeatable; commas separate too.
    List,
    /// Alone or with `=true` or `=false`.
    Switch,
    Number,
    Duration,
}

/// What adit does with a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Means what it means in cloudflared, or what the note says.
    Implemented(&'static str),
    /// Accepted without effect, for this reason.
    Ignored(&'static str),
    /// An error if set, for this reason.
    Refused(&'static str),
}

use Disposition::{Ignored, Implemented, Refused};
use Kind::{Duration, List, Number, Switch, Text};
use Level::{Both, Run, Tunnel};

impl Flag {
    const fn new(name: &'static str, level: Level, kind: Kind, disposition: Disposition) -> Self {
        Self { name, aliases: &[], level, env: &[], kind, default: "", disposition, in_file: true }
    }

    const fn alias(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn env(self, env: &'static [&'static str]) -> Self {
        Self { env, ..self }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn not_in_file(self) -> Self {
        Self { in_file: false, ..self }
    }
}

/// The flag of a name or alias.
pub(crate) fn flag(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().flat_map(|group| group.iter()).find(|flag| flag.name == name || flag.aliases.contains(&name))
}

/// All flags.
pub(crate) fn flags() -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().flat_map(|group| group.iter())
}

const FLAGS: [&[Flag]; 7] =
    [CREDENTIALS, EDGE, OPERATION, ORIGIN, FLOWS_AND_MANAGEMENT, WITHOUT_EFFECT_IN_CLOUDFLARED, ACCOUNT];

const CREDENTIALS: &[Flag] = &[
    Flag::new("config", Tunnel, Text, Implemented("")).default("searched").not_in_file(),
    Flag::new("origincert", Tunnel, Text, Implemented("Its directory is searched for credentials files"))
        .env(&["TUNNEL_ORIGIN_CERT"])
        .default("searched"),
    Flag::new("token", Run, Text, Implemented("")).env(&["TUNNEL_TOKEN"]),
    Flag::new("token-file", Run, Text, Implemented("")).env(&["TUNNEL_TOKEN_FILE"]),
    Flag::new("credentials-file", Both, Text, Implemented(""))
        .alias(&["cred-file"])
        .env(&["TUNNEL_CRED_FILE"])
        .default("searched"),
    Flag::new("credentials-contents", Run, Text, Implemented("")).env(&["TUNNEL_CRED_CONTENTS"]),
];

const EDGE: &[Flag] = &[
    Flag::new("protocol", Both, Text, Implemented(""))
        .alias(&["p"])
        .env(&["TUNNEL_TRANSPORT_PROTOCOL"])
        .default("auto"),
    Flag::new("post-quantum", Both, Switch, Implemented(""))
        .alias(&["pq"])
        .env(&["TUNNEL_POST_QUANTUM"])
        .default("false"),
    Flag::new("features", Run, List, Implemented("")).alias(&["F"]),
    Flag::new("edge", Tunnel, List, Implemented("")).env(&["TUNNEL_EDGE"]).default("discovery"),
    Flag::new("cacert", Tunnel, Text, Implemented("")).env(&["TUNNEL_CACERT"]),
    Flag::new("region", Tunnel, Text, Implemented("")).env(&["TUNNEL_REGION"]),
    Flag::new("edge-ip-version", Tunnel, Text, Implemented(""))
        .env(&["TUNNEL_EDGE_IP_VERSION"])
        .default("auto"),
    Flag::new("edge-bind-address", Tunnel, Text, Implemented("")).env(&["TUNNEL_EDGE_BIND_ADDRESS"]),
    Flag::new("ha-connections", Tunnel, Number, Implemented("")).default("4"),
    Flag::new("rpc-timeout", Tunnel, Duration, Implemented("")).default("5s"),
    Flag::new("max-edge-addr-retries", Tunnel, Number, Implemented("")).default("8"),
    Flag::new("retries", Tunnel, Number, Implemented("")).env(&["TUNNEL_RETRIES"]).default("5"),
    Flag::new(
        "write-stream-timeout",
        Tunnel,
        Duration,
        Ignored("Bodies that stand still end by a limit of their own"),
    )
    .env(&["TUNNEL_STREAM_WRITE_TIMEOUT"])
    .default("0s"),
    Flag::new("quic-disable-pmtu-discovery", Tunnel, Switch, Implemented(""))
        .env(&["TUNNEL_DISABLE_QUIC_PMTU"])
        .default("false"),
    Flag::new("quic-connection-level-flow-control-limit", Tunnel, Number, Ignored(WINDOWS))
        .env(&["TUNNEL_QUIC_CONN_LEVEL_FLOW_CONTROL_LIMIT"])
        .default("30 MiB"),
    Flag::new("quic-stream-level-flow-control-limit", Tunnel, Number, Ignored(WINDOWS))
        .env(&["TUNNEL_QUIC_STREAM_LEVEL_FLOW_CONTROL_LIMIT"])
        .default("6 MiB"),
];

const OPERATION: &[Flag] = &[
    Flag::new("grace-period", Tunnel, Duration, Implemented("")).env(&["TUNNEL_GRACE_PERIOD"]).default("30s"),
    Flag::new("metrics", Tunnel, Text, Implemented(""))
        .env(&["TUNNEL_METRICS"])
        .default("first free of localhost:20241 to 20245"),
    Flag::new("metrics-update-freq", Tunnel, Duration, Ignored("Metrics are always current"))
        .env(&["TUNNEL_METRICS_UPDATE_FREQ"])
        .default("5s"),
    Flag::new("pidfile", Tunnel, Text, Ignored("The service manager is told by `READY=1`"))
        .env(&["TUNNEL_PIDFILE"]),
    Flag::new("loglevel", Tunnel, Text, Implemented("`fatal` means `error`"))
        .env(&["TUNNEL_LOGLEVEL"])
        .default("info"),
    Flag::new("transport-loglevel", Tunnel, Text, Ignored("One level for all: `loglevel`"))
        .alias(&["proto-loglevel"])
        .env(&["TUNNEL_PROTO_LOGLEVEL", "TUNNEL_TRANSPORT_LOGLEVEL"])
        .default("info"),
    Flag::new("logfile", Tunnel, Text, Ignored(LOG_FILES)).env(&["TUNNEL_LOGFILE"]),
    Flag::new("log-directory", Tunnel, Text, Ignored(LOG_FILES)).env(&["TUNNEL_LOGDIRECTORY"]),
    Flag::new("output", Tunnel, Text, Implemented(""))
        .env(&["TUNNEL_MANAGEMENT_OUTPUT", "TUNNEL_LOG_OUTPUT"])
        .default("default")
        .not_in_file(),
    Flag::new("trace-output", Tunnel, Text, Ignored("There is no Go execution trace to write"))
        .env(&["TUNNEL_TRACE_OUTPUT"]),
    Flag::new("tag", Tunnel, List, Implemented("")).env(&["TUNNEL_TAG"]),
    Flag::new("label", Tunnel, Text, Ignored(MANAGEMENT)),
    Flag::new("no-autoupdate", Tunnel, Switch, Implemented(UPDATES)).env(&["NO_AUTOUPDATE"]).default("false"),
    Flag::new("autoupdate-freq", Tunnel, Duration, Ignored(UPDATES)).default("24h"),
    Flag::new("is-autoupdated", Tunnel, Switch, Ignored(UPDATES)).default("false"),
    Flag::new(
        "no-prechecks",
        Tunnel,
        Switch,
        Implemented("adit makes no pre-checks: the first dial shows the same"),
    )
    .env(&["TUNNEL_NO_PRECHECKS"])
    .default("false"),
    Flag::new("stdin-control", Tunnel, Switch, Refused("A test aid of cloudflared's own"))
        .env(&["STDIN_CONTROL"])
        .default("false"),
];

const ORIGIN: &[Flag] = &[
    Flag::new("url", Both, Text, Implemented("")).env(&["TUNNEL_URL"]),
    Flag::new("hello-world", Both, Switch, Implemented("adit's own sample origin"))
        .env(&["TUNNEL_HELLO_WORLD"])
        .default("false"),
    Flag::new("unix-socket", Both, Text, Implemented("")).env(&["TUNNEL_UNIX_SOCKET"]),
    Flag::new("bastion", Both, Switch, Refused(STREAMS)).env(&["TUNNEL_BASTION"]).default("false"),
    Flag::new("socks5", Both, Switch, Refused(STREAMS)).env(&["TUNNEL_SOCKS"]).default("false"),
    Flag::new("proxy-connect-timeout", Both, Duration, Implemented("")).default("30s"),
    Flag::new("proxy-tls-timeout", Both, Duration, Implemented("")).default("10s"),
    Flag::new("proxy-tcp-keepalive", Both, Duration, Implemented("")).default("30s"),
    Flag::new("proxy-no-happy-eyeballs", Both, Switch, Implemented("")).default("false"),
    Flag::new("proxy-keepalive-connections", Both, Number, Implemented("")).default("100"),
    Flag::new("proxy-keepalive-timeout", Both, Duration, Implemented("")).default("90s"),
    Flag::new("proxy-connection-timeout", Both, Duration, Ignored(OBSOLETE)).default("90s"),
    Flag::new("proxy-expect-continue-timeout", Both, Duration, Ignored(OBSOLETE)).default("90s"),
    Flag::new("http-host-header", Both, Text, Implemented("")).env(&["TUNNEL_HTTP_HOST_HEADER"]),
    Flag::new("origin-server-name", Both, Text, Implemented("")).env(&["TUNNEL_ORIGIN_SERVER_NAME"]),
    Flag::new("origin-ca-pool", Both, Text, Implemented("")).env(&["TUNNEL_ORIGIN_CA_POOL"]),
    Flag::new("no-tls-verify", Both, Switch, Implemented("")).env(&["NO_TLS_VERIFY"]).default("false"),
    Flag::new("no-chunked-encoding", Both, Switch, Implemented("Buffers and sends `Content-Length`"))
        .env(&["TUNNEL_NO_CHUNKED_ENCODING"])
        .default("false"),
    Flag::new("http2-origin", Both, Switch, Implemented(""))
        .env(&["TUNNEL_ORIGIN_ENABLE_HTTP2"])
        .default("false"),
    Flag::new("proxy-address", Both, Text, Ignored(OBSOLETE)).env(&["TUNNEL_PROXY_ADDRESS"]),
    Flag::new("proxy-port", Both, Number, Ignored(OBSOLETE)).env(&["TUNNEL_PROXY_PORT"]),
];

const FLOWS_AND_MANAGEMENT: &[Flag] = &[
    Flag::new("max-active-flows", Run, Number, Ignored(FLOWS))
        .env(&["TUNNEL_MAX_ACTIVE_FLOWS"])
        .not_in_file(),
    Flag::new("dns-resolver-addrs", Run, List, Ignored(FLOWS))
        .env(&["TUNNEL_DNS_RESOLVER_ADDRS"])
        .not_in_file(),
    Flag::new("icmpv4-src", Run, Text, Ignored(FLOWS)).env(&["TUNNEL_ICMPV4_SRC"]).not_in_file(),
    Flag::new("icmpv6-src", Run, Text, Ignored(FLOWS)).env(&["TUNNEL_ICMPV6_SRC"]).not_in_file(),
    Flag::new("management-hostname", Both, Text, Ignored(MANAGEMENT)).env(&["TUNNEL_MANAGEMENT_HOSTNAME"]),
    Flag::new("management-diagnostics", Tunnel, Switch, Ignored(MANAGEMENT))
        .env(&["TUNNEL_MANAGEMENT_DIAGNOSTICS"])
        .default("true"),
    Flag::new("service-op-ip", Both, Text, Ignored(MANAGEMENT)).env(&["TUNNEL_SERVICE_OP_IP"]),
];

const WITHOUT_EFFECT_IN_CLOUDFLARED: &[Flag] = &[
    Flag::new("compression-quality", Tunnel, Number, Ignored(OBSOLETE)).env(&["TUNNEL_COMPRESSION_LEVEL"]),
    Flag::new("use-reconnect-token", Tunnel, Switch, Ignored(OBSOLETE)).env(&["TUNNEL_USE_RECONNECT_TOKEN"]),
    Flag::new("dial-edge-timeout", Tunnel, Duration, Ignored(OBSOLETE)).env(&["DIAL_EDGE_TIMEOUT"]),
    Flag::new("heartbeat-interval", Tunnel, Duration, Ignored(OBSOLETE)),
    Flag::new("heartbeat-count", Tunnel, Number, Ignored(OBSOLETE)),
    Flag::new("id", Tunnel, Text, Ignored(OBSOLETE)).env(&["TUNNEL_ID"]),
    Flag::new("api-key", Tunnel, Text, Ignored(OBSOLETE)).env(&["TUNNEL_API_KEY"]),
    Flag::new("api-email", Tunnel, Text, Ignored(OBSOLETE)).env(&["TUNNEL_API_EMAIL"]),
    Flag::new("api-ca-key", Tunnel, Text, Ignored(OBSOLETE)).env(&["TUNNEL_API_CA_KEY"]),
    Flag::new("ui", Tunnel, Switch, Ignored(OBSOLETE)),
    Flag::new("proxy-dns", Tunnel, Switch, Ignored(OBSOLETE)),
    Flag::new("proxy-dns-port", Tunnel, Number, Ignored(OBSOLETE)),
    Flag::new("proxy-dns-address", Tunnel, Text, Ignored(OBSOLETE)),
    Flag::new("proxy-dns-upstream", Tunnel, List, Ignored(OBSOLETE)),
    Flag::new("proxy-dns-max-upstream-conns", Tunnel, Number, Ignored(OBSOLETE)),
    Flag::new("proxy-dns-bootstrap", Tunnel, List, Ignored(OBSOLETE)),
    Flag::new("local-ssh-port", Both, Text, Ignored(SSH)).env(&["LOCAL_SSH_PORT"]),
    Flag::new("ssh-idle-timeout", Both, Duration, Ignored(SSH)).env(&["SSH_IDLE_TIMEOUT"]),
    Flag::new("ssh-max-timeout", Both, Duration, Ignored(SSH)).env(&["SSH_MAX_TIMEOUT"]),
    Flag::new("bucket-name", Both, Text, Ignored(SSH)),
    Flag::new("region-name", Both, Text, Ignored(SSH)),
    Flag::new("secret-id", Both, Text, Ignored(SSH)),
    Flag::new("access-key-id", Both, Text, Ignored(SSH)),
    Flag::new("session-token", Both, Text, Ignored(SSH)),
    Flag::new("s3-url-host", Both, Text, Ignored(SSH)),
    Flag::new("host-key-path", Both, Text, Ignored(SSH)),
    Flag::new("ssh-server", Both, Switch, Ignored(SSH)).env(&["TUNNEL_SSH_SERVER"]),
];

const ACCOUNT: &[Flag] = &[
    Flag::new("name", Tunnel, Text, Refused(API)).alias(&["n"]).env(&["TUNNEL_NAME"]),
    Flag::new("hostname", Tunnel, Text, Ignored("A tunnel that exists keeps its DNS records"))
        .env(&["TUNNEL_HOSTNAME"]),
    Flag::new("lb-pool", Tunnel, Text, Ignored(API)).env(&["TUNNEL_LB_POOL"]),
    Flag::new("api-url", Tunnel, Text, Ignored(API)).env(&["TUNNEL_API_URL"]),
    Flag::new("quick-service", Tunnel, Text, Ignored(API)),
    Flag::new("max-fetch-size", Tunnel, Number, Ignored(API)).env(&["TUNNEL_MAX_FETCH_SIZE"]),
    Flag::new("overwrite-dns", Tunnel, Switch, Ignored(API))
        .alias(&["f"])
        .env(&["TUNNEL_FORCE_PROVISIONING_DNS"]),
];

const API: &str = "adit does not speak the account API";
const FLOWS: &str = "TCP, UDP and ICMP routed by address are not carried yet";
const LOG_FILES: &str = "The log goes to standard error, for the service manager to keep";
const MANAGEMENT: &str = "adit has no management service inside the connector";
const OBSOLETE: &str = "Without effect in cloudflared too";
const SSH: &str = "Leftover of cloudflared's SSH server, which is gone";
const STREAMS: &str = "TCP over WebSocket is not served yet";
const UPDATES: &str = "adit never replaces itself";
const WINDOWS: &str = "adit sizes its windows itself";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_aliases_and_variables_are_unique() {
        let mut names = HashSet::new();
        let mut variables = HashSet::new();
        for flag in flags() {
            for name in flag.aliases.iter().chain([&flag.name]) {
                assert!(names.insert(*name), "{name}");
            }
            for variable in flag.env {
                assert!(variables.insert(*variable), "{variable}");
            }
        }
    }

    #[test]
    fn an_alias_leads_to_its_flag() {
        assert_eq!(flag("pq").unwrap().name, "post-quantum");
        assert_eq!(flag("cred-file").unwrap().name, "credentials-file");
        assert!(flag("bogus").is_none());
    }
}
