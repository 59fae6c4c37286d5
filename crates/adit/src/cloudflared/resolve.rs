//! From command line, environment and files to a configuration: command line over environment over file over default.

use std::{fmt, path::PathBuf};

use adit_config::{
    Admin, CloudflaredFile, Config, CredentialsSource, FileSource, Ingress, Log, LogFormat, LogLevel,
    Problem, Problems, Settings, Shutdown, Tls, Tunnel, TunnelCredentials, TunnelId,
};
use clap::ArgMatches;

use super::{
    CompatError,
    command::given,
    files::Files,
    table::{self, Disposition, Kind},
};

/// The environment, or what stands for it in tests.
pub(crate) trait Environment {
    /// The value of a variable; absent and empty are the same.
    fn variable(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Environment for F {
    fn variable(&self, name: &str) -> Option<String> {
        self(name).filter(|value| !value.is_empty())
    }
}

/// What was said on the command line and in the environment; files are read each time it is resolved.
///
/// `Debug` shows names of flags only: a value may be a token.
#[derive(Clone)]
pub(crate) struct Invocation {
    /// `--config`.
    config: Option<String>,
    /// Tunnel named after `run`.
    tunnel: Option<String>,
    /// Layers over the file, lowest first.
    layers: Vec<(&'static str, Values)>,
    home: Option<PathBuf>,
}

type Values = Vec<(String, Vec<String>)>;

/// What `tunnel run` runs.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// One tunnel and nothing else.
    pub(crate) config: Config,
    /// Addresses to try for the metrics, in order.
    pub(crate) metrics: Vec<String>,
    /// What the operator should know, such as flags without effect.
    pub(crate) notes: Vec<String>,
}

impl Invocation {
    /// Takes what stands before and after the subcommand.
    pub(crate) fn new(before: &[&ArgMatches], after: &ArgMatches, environment: &dyn Environment) -> Self {
        let of_level = |matches: &&ArgMatches| ("command line", given(matches));
        let mut layers = vec![("environment", from_environment(environment))];
        layers.extend(before.iter().map(of_level));
        layers.push(("command line", given(after)));
        let named = layers.iter().rev().flat_map(|(_, values)| values).find(|(name, _)| name == "config");
        Self {
            config: named.and_then(|(_, values)| values.last().cloned()),
            tunnel: None,
            layers,
            home: environment.variable("HOME").map(PathBuf::from),
        }
    }

    /// Names the tunnel to run.
    pub(crate) fn with_tunnel(self, tunnel: Option<String>) -> Self {
        Self { tunnel, ..self }
    }

    /// The configuration file, read now.
    pub(crate) fn file(
        &self,
        source: &dyn FileSource,
    ) -> Result<Option<(PathBuf, CloudflaredFile)>, CompatError> {
        Files::new(source, self.home.clone()).configuration(self.config.as_deref())
    }

    /// Everything that flags say, the file's included.
    pub(crate) fn settings(&self, file: Option<&CloudflaredFile>) -> Settings {
        let mut settings = file.map(|file| file.settings().clone()).unwrap_or_default();
        settings.rename(|name| table::flag(name).filter(|flag| flag.in_file).map(|flag| flag.name));
        for (source, values) in &self.layers {
            settings.push_layer(source, values.iter().cloned());
        }
        settings
    }

    /// What to run.
    pub(crate) fn resolve(&self, source: &dyn FileSource) -> Result<Resolved, CompatError> {
        let files = Files::new(source, self.home.clone());
        let (path, file) = self.file(source)?.unzip();
        let settings = self.settings(file.as_ref());
        let mut notes = notes(file.as_ref(), &settings)?;
        let (name, credentials) = self.credentials(&files, &settings, file.as_ref())?;
        let ingress = ingress(&settings, file.as_ref(), &mut notes)?;
        let mut tunnel = Tunnel::new(CredentialsSource::Given(credentials), ingress);
        tunnel.name = name;
        if let Some(file) = &file {
            tunnel.warp_routing = file.warp_routing.clone();
        }
        settings.apply(&mut tunnel)?;
        tunnel.ca = tunnel.ca.map(|path| files.expand(&path.display().to_string()));
        tunnel.settle_region().map_err(|reason| CompatError::Usage(format!("--{reason}")))?;
        let shutdown = Shutdown { grace_period: tunnel.grace_period };
        let log = log(&settings, &mut notes);
        let config = Config {
            entry_points: std::collections::BTreeMap::new(),
            tls: Tls::default(),
            tunnel: Some(tunnel),
            edge: None,
            mesh: None,
            admin: Admin::default(),
            log,
            access_log: None,
            metrics: adit_config::Metrics::default(),
            internals: adit_config::InternalServices::default(),
            providers: adit_config::Providers::default(),
            dynamic: adit_config::dynamic::Dynamic::default(),
            limits: adit_config::Limits::default(),
            shutdown,
            state_dir: None,
            sources: path.into_iter().collect(),
            origins: std::collections::BTreeMap::new(),
        };
        Ok(Resolved { config, metrics: metrics(&settings), notes })
    }

    /// Name (if it is one) and credentials of the tunnel (`tunnel-protocol.md §7.1`, lookup order).
    fn credentials(
        &self,
        files: &Files<'_>,
        settings: &Settings,
        file: Option<&CloudflaredFile>,
    ) -> Result<(Option<String>, TunnelCredentials), CompatError> {
        let given = |flag: &str| settings.text(flag).filter(|text| !text.is_empty()).map(str::to_owned);
        let token = match (given("token"), given("token-file")) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => Some(files.text(&files.expand(&path)).map_err(|reason| {
                CompatError::Usage(format!("Failed to read token file: {path}: {reason}"))
            })?),
            (None, None) => None,
        };
        if let Some(token) = token {
            return TunnelCredentials::from_token(&token)
                .map(|credentials| (None, credentials))
                .map_err(|error| CompatError::Usage(format!("Provided Tunnel token is not valid: {error}")));
        }
        let in_file = file.and_then(|file| file.tunnel.clone());
        let tunnel = self.tunnel.clone().or(in_file).filter(|tunnel| !tunnel.is_empty());
        let tunnel = tunnel.ok_or_else(|| {
            let reason = "`tunnel run` requires the ID or name of the tunnel to run as the last argument, \
                 or `tunnel` in the configuration file, or a token";
            CompatError::Usage(reason.to_owned())
        })?;
        let credentials = files.credentials(&tunnel, settings)?;
        let name = tunnel.parse::<TunnelId>().is_err().then_some(tunnel);
        Ok((name, credentials))
    }
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.layers.iter().flat_map(|(_, values)| values).map(|(name, _)| name);
        f.debug_struct("Invocation")
            .field("config", &self.config)
            .field("tunnel", &self.tunnel)
            .field("flags", &names.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl From<CompatError> for Problems {
    fn from(error: CompatError) -> Self {
        match error {
            CompatError::Configuration(problems) => problems,
            other => Self(vec![Problem::of_file("cloudflared command line", other.to_string())]),
        }
    }
}

fn from_environment(environment: &dyn Environment) -> Values {
    let value = |flag: &table::Flag| {
        let text = flag.env.iter().find_map(|variable| environment.variable(variable))?;
        let values = match flag.kind {
            Kind::List => text.split(',').map(|part| part.trim().to_owned()).collect(),
            Kind::Text | Kind::Switch | Kind::Number | Kind::Duration => vec![text],
        };
        Some((flag.name.to_owned(), values))
    };
    table::flags().filter_map(value).collect()
}

/// What is set without effect; an error for the first flag that is refused.
fn notes(file: Option<&CloudflaredFile>, settings: &Settings) -> Result<Vec<String>, CompatError> {
    let mut notes = Vec::new();
    if let Some(file) = file {
        notes.extend(file.warnings.iter().map(ToString::to_string));
        let unusable = |name: &str| table::flag(name).is_none_or(|flag| !flag.in_file);
        let names = file.settings().names();
        notes.extend(names.iter().filter(|(name, _)| unusable(name)).map(|(_, problem)| problem.to_string()));
    }
    for flag in table::flags() {
        let is_set = match flag.kind {
            Kind::Switch => settings.is_on(flag.name),
            Kind::Text | Kind::List | Kind::Number | Kind::Duration => settings.is_set(flag.name),
        };
        match flag.disposition {
            Disposition::Ignored(reason) if is_set => {
                notes.push(format!("--{} has no effect: {reason}", flag.name));
            }
            Disposition::Refused(reason) if is_set => {
                return Err(CompatError::Refused { flag: flag.name, reason });
            }
            Disposition::Implemented(_) | Disposition::Ignored(_) | Disposition::Refused(_) => {}
        }
    }
    Ok(notes)
}

/// The file's rules, or the single origin of the flags, or 503 for every request.
fn ingress(
    settings: &Settings,
    file: Option<&CloudflaredFile>,
    notes: &mut Vec<String>,
) -> Result<Ingress, CompatError> {
    let common = file.map(|file| file.origin_request.clone()).unwrap_or_default();
    let ingress = match file.and_then(|file| file.ingress.clone()) {
        Some(ingress) => ingress,
        None => settings.single_origin(&common)?.unwrap_or_else(|| {
            if !settings.is_set("token") {
                notes.push(
                    "no ingress rules were given: every request is answered with 503 until the edge sends some"
                        .to_owned(),
                );
            }
            Ingress::unavailable()
        }),
    };
    match ingress.unserved().first() {
        Some(index) => Err(CompatError::Validation(format!(
            "rule #{} `{}`: TCP over WebSocket is not served yet",
            index + 1,
            ingress.rules[*index].service_text
        ))),
        None => Ok(ingress),
    }
}

fn log(settings: &Settings, notes: &mut Vec<String>) -> Log {
    let level = match settings.text("loglevel").unwrap_or("info") {
        "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warn" => LogLevel::Warn,
        "error" | "fatal" => LogLevel::Error,
        other => {
            notes.push(format!("--loglevel {other} is not known: info is used"));
            LogLevel::Info
        }
    };
    let format = if settings.text("output") == Some("json") { LogFormat::Json } else { LogFormat::Text };
    Log { level, format }
}

/// `localhost:0`, the default, means the known ports and then any (`tunnel-protocol.md §8.1`).
fn metrics(settings: &Settings) -> Vec<String> {
    match settings.text("metrics").filter(|address| !address.is_empty() && *address != METRICS_DEFAULT) {
        Some(address) => vec![address.to_owned()],
        None => {
            let ports = METRICS_PORTS.chain([0]);
            ports.map(|port| format!("127.0.0.1:{port}")).collect()
        }
    }
}

const METRICS_DEFAULT: &str = "localhost:0";
const METRICS_PORTS: std::ops::RangeInclusive<u16> = 20241..=20245;

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path, time::Duration};

    use adit_config::Protocol;

    use super::*;

    const ID: &str = "3f2b7a10-5a3c-4c5e-9d1f-2f6d1c0b7e55";
    const CREDENTIALS: &str =
        r#"{"AccountTag":"file","TunnelSecret":"AAAA","TunnelID":"3f2b7a10-5a3c-4c5e-9d1f-2f6d1c0b7e55"}"#;
    /// `{"a":"token","s":"AAAA","t":ID}`.
    const TOKEN: &str =
        "eyJhIjoidG9rZW4iLCJzIjoiQUFBQSIsInQiOiIzZjJiN2ExMC01YTNjLTRjNWUtOWQxZi0yZjZkMWMwYjdlNTUifQ==";

    /// Resolves `cloudflared tunnel …` over named files and variables.
    fn resolved(
        line: &str,
        variables: &[(&str, &str)],
        files: &[(&str, &str)],
    ) -> Result<Resolved, CompatError> {
        let variables: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment = move |name: &str| variables.get(name).cloned();
        let files: HashMap<PathBuf, Vec<u8>> =
            files.iter().map(|(path, text)| (path.into(), text.as_bytes().to_vec())).collect();
        let source = move |path: &Path| files.get(path).cloned().ok_or_else(|| "no such file".to_owned());
        let matches = super::super::parse(line.split(' '))?;
        let tunnel = matches.subcommand_matches("tunnel").unwrap();
        let run = tunnel.subcommand_matches("run").unwrap();
        let name = run.get_one::<String>("TUNNEL").cloned();
        Invocation::new(&[&matches, tunnel], run, &environment).with_tunnel(name).resolve(&source)
    }

    fn tunnel(line: &str, variables: &[(&str, &str)], files: &[(&str, &str)]) -> Tunnel {
        resolved(line, variables, files).unwrap().config.tunnel.unwrap()
    }

    fn account(tunnel: &Tunnel) -> &str {
        match &tunnel.credentials {
            CredentialsSource::Given(credentials) => &credentials.account_tag,
            CredentialsSource::InProcess(_) => panic!(),
        }
    }

    fn failure(line: &str, files: &[(&str, &str)]) -> (u8, String) {
        let error = resolved(line, &[("HOME", "/home/me")], files).unwrap_err();
        (error.exit_code(), error.to_string())
    }

    #[test]
    fn the_token_form_runs() {
        let line = format!(
            "cloudflared tunnel --edge 127.0.0.1:7844 --edge 127.0.0.1:7844 --cacert CA.pem --protocol quic \
             --ha-connections 2 --no-autoupdate --no-prechecks --grace-period 2s run --token {TOKEN} --url http://127.0.0.1:8080"
        );
        let resolved = resolved(&line, &[], &[]).unwrap();
        assert_eq!(resolved.notes, [""; 0]);
        assert_eq!(resolved.metrics.first().map(String::as_str), Some("127.0.0.1:20241"));
        let tunnel = resolved.config.tunnel.unwrap();
        assert_eq!(tunnel.edge, ["127.0.0.1:7844", "127.0.0.1:7844"]);
        assert_eq!((tunnel.connections, tunnel.protocol), (2, Protocol::Quic));
        assert_eq!(tunnel.grace_period, Duration::from_secs(2));
        assert_eq!(tunnel.ingress.rules[0].service.to_string(), "http://127.0.0.1:8080");
        assert_eq!(account(&tunnel), "token");
    }

    #[test]
    fn the_configuration_form_runs() {
        let config = format!(
            "tunnel: {ID}\ncredentials-file: ~/c.json\nedge: [\"127.0.0.1:7844\"]\nprotocol: http2\n\
             ingress:\n  - service: http_status:404\n"
        );
        let files = [("/etc/c.yml", config.as_str()), ("/home/me/c.json", CREDENTIALS)];
        let line = "cloudflared tunnel --config /etc/c.yml run";
        let tunnel = tunnel(line, &[("HOME", "/home/me")], &files);
        assert_eq!((account(&tunnel), tunnel.protocol), ("file", Protocol::Http2));
    }

    #[test]
    fn the_environment_form_runs() {
        let variables = [
            ("TUNNEL_EDGE", "127.0.0.1:1,127.0.0.1:2"),
            ("TUNNEL_TRANSPORT_PROTOCOL", "http2"),
            ("TUNNEL_TOKEN", TOKEN),
            ("NO_AUTOUPDATE", "true"),
            ("TUNNEL_URL", "localhost:8000"),
            ("TUNNEL_POST_QUANTUM", "1"),
        ];
        let tunnel = tunnel("cloudflared tunnel run", &variables, &[]);
        assert_eq!(tunnel.edge, ["127.0.0.1:1", "127.0.0.1:2"]);
        assert!(tunnel.post_quantum);
        assert_eq!(tunnel.ingress.rules[0].service.to_string(), "http://localhost:8000");
    }

    #[test]
    fn the_command_line_wins_over_the_environment_over_the_file() {
        let files = [("/c.yml", "retries: 1\nregion: file\nlabel: x\nprotocol: http2\n")];
        let variables = [("TUNNEL_RETRIES", "2"), ("TUNNEL_REGION", "environment"), ("TUNNEL_TOKEN", TOKEN)];
        let line = "cloudflared tunnel --config /c.yml --retries 3 --protocol auto run --protocol quic";
        let tunnel = tunnel(line, &variables, &files);
        assert_eq!((tunnel.retries, tunnel.region.as_deref()), (3, Some("environment")));
        assert_eq!(tunnel.protocol, Protocol::Quic);
    }

    #[test]
    fn files_are_searched_where_cloudflared_searches() {
        let config = ("/home/me/.cloudflared/config.yml", "ingress: [{service: hello_world}]\n");
        let credentials = format!("/etc/cloudflared/{ID}.json");
        let line = format!("cloudflared tunnel run {ID}");
        let found = tunnel(&line, &[("HOME", "/home/me")], &[config, (&credentials, CREDENTIALS)]);
        assert_eq!(account(&found), "file");
        assert_eq!(found.ingress.rules[0].service.to_string(), "hello_world");
        let beside = format!("/certs/{ID}.json");
        let variables = [("TUNNEL_ORIGIN_CERT", "/certs/cert.pem")];
        assert_eq!(account(&tunnel(&line, &variables, &[(&beside, CREDENTIALS)])), "file");
    }

    #[test]
    fn a_name_is_found_in_its_credentials() {
        let line = "cloudflared tunnel run --cred-file /c.json home";
        let found = tunnel(line, &[], &[("/c.json", CREDENTIALS)]);
        assert_eq!(found.name.as_deref(), Some("home"));
        let contents = [("TUNNEL_CRED_CONTENTS", CREDENTIALS)];
        assert_eq!(account(&tunnel("cloudflared tunnel run home", &contents, &[])), "file");
    }

    #[test]
    fn unusable_tokens_and_missing_tunnels_are_255() {
        for (line, phrase) in [
            ("cloudflared tunnel run --token bad", "token is not valid"),
            ("cloudflared tunnel run --token-file /none", "Failed to read token file"),
            ("cloudflared tunnel run", "requires the ID or name of the tunnel"),
        ] {
            let (code, text) = failure(line, &[]);
            assert_eq!(code, 255, "{text}");
            assert!(text.contains(phrase), "{text}");
        }
    }

    #[test]
    fn everything_else_that_is_wrong_is_1() {
        let bad = ("/bad.yml", "ingress: [{hostname: a.b, service: http://x}]\n");
        let stream = ("/stream.yml", "ingress: [{service: ssh://x}]\n");
        for (line, phrase) in [
            ("cloudflared tunnel --config /none run".to_owned(), "cannot read the configuration file /none"),
            ("cloudflared tunnel --config /bad.yml run".into(), "last ingress rule"),
            (format!("cloudflared tunnel --config /stream.yml run --token {TOKEN}"), "not served yet"),
            (format!("cloudflared tunnel run {ID}"), "credentials file not found"),
            ("cloudflared tunnel run home".into(), "cannot find the id of the tunnel `home`"),
            ("cloudflared tunnel run --cred-file /cert.pem home".into(), "`.pem` is the certificate"),
            (format!("cloudflared tunnel --grace-period 4m run --token {TOKEN}"), "from 0s to 3m"),
            (format!("cloudflared tunnel --tag x run --token {TOKEN}"), "expected a tag"),
            (format!("cloudflared tunnel run --bastion --token {TOKEN}"), "--bastion is not supported"),
        ] {
            let (code, text) = failure(&line, &[bad, stream]);
            assert_eq!(code, 1, "{text}");
            assert!(text.contains(phrase), "{text}");
        }
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let files = [("/c.yml", "bogus: 1\noutput: json\ningress: [{service: http_status:404, x: 1}]\n")];
        let line =
            format!("cloudflared tunnel --config /c.yml --label a --loglevel loud run --token {TOKEN}");
        let notes = resolved(&line, &[], &files).unwrap().notes.join("\n");
        for phrase in [
            "bogus: unknown flag",
            "output: unknown flag",
            "--label has no effect",
            "loud is not known",
            "ingress[0].x",
        ] {
            assert!(notes.contains(phrase), "{phrase}: {notes}");
        }
        assert_eq!(resolved(&line, &[], &files).unwrap().config.log.format, LogFormat::Text);
    }

    #[test]
    fn an_endpoint_in_the_token_is_the_region() {
        let token = TunnelCredentials {
            endpoint: Some("fed".into()),
            ..TunnelCredentials::from_token(TOKEN).unwrap()
        };
        let token = token.to_token();
        let found = tunnel(&format!("cloudflared tunnel run --token {}", *token), &[], &[]);
        assert_eq!(found.region.as_deref(), Some("fed"));
        let (code, text) = failure(&format!("cloudflared tunnel --region us run --token {}", *token), &[]);
        assert!(text.contains("region"), "{text}");
        assert_ne!(code, 0);
    }

    #[test]
    fn a_named_metrics_address_is_the_only_one() {
        let line = format!("cloudflared tunnel --metrics localhost:9 run --token {TOKEN}");
        assert_eq!(resolved(&line, &[], &[]).unwrap().metrics, ["localhost:9"]);
    }
}
