//! `certificatesResolvers`: certificates got by ACME, in Traefik's words.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    Config, EntryPointTransport, Secret, check,
    dynamic::{Block, PemSource},
    entry_points::duration,
    read::{Field, Section, Sink},
};

/// One resolver: how certificates are got for routers that name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateResolver {
    /// Address for the CA's notices.
    pub email: Option<String>,
    /// URL of the CA's directory; Let's Encrypt's by default.
    pub directory: String,
    /// Where account and certificates are kept, relative to the configuration's directory (`acme.json`).
    pub storage: PathBuf,
    /// Keys of certificates; absent = P-256.
    pub key_type: Option<AcmeKeyType>,
    /// External account binding (RFC 8555 §7.3.4).
    pub external_account: Option<ExternalAccount>,
    /// Common name of the root to prefer among alternative chains.
    pub preferred_chain: Option<String>,
    /// Certificate profile asked for.
    pub profile: Option<String>,
    /// Life of a certificate, by which its renewal is planned (90 days).
    pub certificates_duration: Duration,
    /// Longest wait for one answer of the CA (2 min).
    pub client_timeout: Duration,
    /// Longest wait for an order to become a certificate (30 s).
    pub certificate_timeout: Duration,
    /// Roots for the CA's own server, in place of the system's.
    pub ca_certificates: Vec<PemSource>,
    /// Whether the system's roots are used beside `ca_certificates`.
    pub ca_system_roots: bool,
    /// Server name of the CA's own server, if it is not its URL's.
    pub ca_server_name: Option<String>,
    /// How we show that a name is ours.
    pub challenge: AcmeChallenge,
}

/// Kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeKeyType {
    /// P-256.
    Ec256,
    /// P-384.
    Ec384,
    /// RSA, 2048 bits.
    Rsa2048,
    /// RSA, 4096 bits.
    Rsa4096,
    /// RSA, 8192 bits.
    Rsa8192,
}

/// A key that the CA has given for a new account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// Its name.
    pub key_id: String,
    /// The key.
    pub key: Secret,
}

/// How we show that a name is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a file on port 80 (`httpChallenge`, RFC 8555 §8.3).
    Http {
        /// Entry point that the CA reaches.
        entry_point: String,
        /// Wait before the CA is told to look.
        delay: Duration,
    },
    /// By a certificate on port 443 (`tlsChallenge`, RFC 8737).
    Tls {
        /// Wait before the CA is told to look.
        delay: Duration,
    },
    /// By a TXT record (`dnsChallenge`, RFC 8555 §8.4), set by dynamic update.
    Dns(Box<DnsChallenge>),
}

/// Dynamic update of a zone (RFC 2136) with a TSIG key (RFC 8945).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsChallenge {
    /// `host:port` of the name server that takes updates.
    pub nameserver: String,
    /// Zone; absent = found by asking for SOA.
    pub zone: Option<String>,
    /// Key for signing updates; absent = they are not signed.
    pub key: Option<TsigKey>,
    /// `host:port` of servers asked whether the record is visible; empty = `nameserver`.
    pub resolvers: Vec<String>,
    /// Whether nobody is asked.
    pub disable_checks: bool,
    /// Wait before the first question.
    pub delay_before_checks: Duration,
}

/// A TSIG key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TsigKey {
    /// Its name.
    pub name: String,
    /// `hmac-sha256` (default), `hmac-sha384` or `hmac-sha512`.
    pub algorithm: String,
    /// The key.
    pub secret: Secret,
}

/// Reads every resolver.
pub(crate) fn read_resolvers(field: &Field<'_>) -> BTreeMap<String, CertificateResolver> {
    let read = |(name, field): (&str, Field<'_>)| {
        let mut section = field.section()?;
        let resolver = section.require("acme").and_then(|field| read_acme(&field));
        section.refuse(&["tailscale"]);
        section.finish();
        Some((name.to_owned(), resolver?))
    };
    field.named().into_iter().filter_map(read).collect()
}

/// Reports entry points and resolvers that are named and do not exist, and what a CA will not find.
pub(crate) fn check_resolvers(config: &Config, sink: &Sink<'_>) {
    for (name, resolver) in &config.tls.resolvers {
        let key = format!("certificatesResolvers.{name}.acme");
        match &resolver.challenge {
            AcmeChallenge::Http { entry_point, .. } => {
                check_http(config, sink, &format!("{key}.httpChallenge.entryPoint"), entry_point);
            }
            AcmeChallenge::Tls { .. } => check_tls(config, sink, &format!("{key}.tlsChallenge")),
            AcmeChallenge::Dns(_) => {}
        }
    }
    for (name, entry_point) in &config.entry_points {
        let resolver = entry_point.router_tls.as_ref().and_then(|tls| tls.cert_resolver.as_ref());
        let written = |resolver: &str| sink.has(&format!("certificatesResolvers.{resolver}"));
        if let Some(resolver) =
            resolver.filter(|name| !config.tls.resolvers.contains_key(*name) && !written(name))
        {
            let key = format!("entryPoints.{name}.http.tls.certResolver");
            sink.reject_at(&key, resolver, "there is no resolver of this name in `certificatesResolvers`");
        }
    }
}

/// RFC 8555 §8.3: the CA asks on port 80, in the clear.
fn check_http(config: &Config, sink: &Sink<'_>, key: &str, name: &str) {
    match config.entry_points.get(name) {
        None if check::has_entry_point(config, sink, name) => {}
        None => sink.reject_at(key, name, "there is no entry point of this name"),
        Some(entry_point) if entry_point.transport == EntryPointTransport::Udp => {
            sink.reject_at(key, name, "expected an entry point over TCP: the CA asks by HTTP");
        }
        Some(entry_point) if entry_point.address.port() != HTTP_PORT => {
            let port = entry_point.address.port();
            let note = format!("the CA asks on port 80: something must send what comes there to port {port}");
            sink.warn_at(key, name, note);
        }
        Some(_) => {}
    }
}

/// RFC 8737 §3: the CA asks on port 443; every entry point over TCP answers it.
fn check_tls(config: &Config, sink: &Sink<'_>, key: &str) {
    let over_tcp = || config.entry_points.values().filter(|e| e.transport == EntryPointTransport::Tcp);
    if over_tcp().next().is_none() {
        sink.reject_at(key, "", "there is no entry point over TCP that the CA could ask");
    } else if over_tcp().all(|entry_point| entry_point.address.port() != HTTPS_PORT) {
        let note = "the CA asks on port 443 and no entry point listens there: something must send it to one";
        sink.warn_at(key, "", note);
    }
}

fn read_acme(field: &Field<'_>) -> Option<CertificateResolver> {
    let mut section = field.section()?;
    let challenge = read_challenge(&mut section);
    let mut resolver = CertificateResolver {
        email: section.optional("email", Field::filled),
        directory: LETS_ENCRYPT.to_owned(),
        storage: section.optional("storage", Field::path).unwrap_or_else(|| field.beside("acme.json")),
        key_type: section.optional("keyType", read_key_type),
        external_account: section.optional("eab", read_external_account),
        preferred_chain: section.optional("preferredChain", Field::filled),
        profile: section.optional("profile", Field::filled),
        certificates_duration: Duration::from_secs(CERTIFICATE_HOURS * 3600),
        client_timeout: Duration::from_secs(120),
        certificate_timeout: Duration::from_secs(30),
        ca_certificates: section.optional("caCertificates", Field::pems).unwrap_or_default(),
        ca_system_roots: section.optional("caSystemCertPool", Field::boolean).unwrap_or_default(),
        ca_server_name: section.optional("caServerName", Field::filled),
        challenge: AcmeChallenge::Tls { delay: Duration::ZERO },
    };
    section.set("caServer", &mut resolver.directory, |field| {
        field.parse("an `https://` URL", |text| text.starts_with("https://").then(|| text.to_owned()))
    });
    section.set("certificatesDuration", &mut resolver.certificates_duration, |field| {
        field.integer(1..=24 * 3650).map(|hours: u64| Duration::from_secs(hours * 3600))
    });
    section.set("clientTimeout", &mut resolver.client_timeout, duration);
    section.set("certificateTimeout", &mut resolver.certificate_timeout, duration);
    section.refuse(&["clientResponseHeaderTimeout", "disableCommonName", "emailAddresses"]);
    section.finish();
    let Some(challenge) = challenge else {
        // A challenge that was written and is wrong has its own problems.
        if !CHALLENGES.iter().any(|key| field.sink.has(&format!("{}.{key}", field.path))) {
            field.reject_hidden("expected `httpChallenge`, `tlsChallenge` or `dnsChallenge`");
        }
        return None;
    };
    Some(CertificateResolver { challenge, ..resolver })
}

/// Where several are written, Traefik's order decides.
fn read_challenge(section: &mut Section<'_>) -> Option<AcmeChallenge> {
    let dns = section.optional("dnsChallenge", read_dns).map(Box::new).map(AcmeChallenge::Dns);
    let http = section.optional("httpChallenge", |field| {
        let mut section = field.section()?;
        let entry_point = section.require("entryPoint").and_then(|field| field.filled());
        let delay = section.optional("delay", duration).unwrap_or_default();
        section.finish();
        Some(AcmeChallenge::Http { entry_point: entry_point?, delay })
    });
    let tls = section.optional("tlsChallenge", |field| {
        let delay = match field.open_block() {
            Block::Off => return None,
            Block::Defaults => Duration::ZERO,
            Block::Section(mut section) => {
                let delay = section.optional("delay", duration).unwrap_or_default();
                section.finish();
                delay
            }
        };
        Some(AcmeChallenge::Tls { delay })
    });
    dns.or(http).or(tls)
}

fn read_dns(field: &Field<'_>) -> Option<DnsChallenge> {
    let mut section = field.section()?;
    let is_ours = section.require("provider").is_some_and(|field| {
        field
            .parse("`rfc2136`, the only provider that is built in", |text| (text == "rfc2136").then_some(()))
            .is_some()
    });
    let update = section.require("rfc2136").and_then(|field| read_update(&field));
    let mut challenge = DnsChallenge {
        resolvers: section.optional("resolvers", Field::strings).unwrap_or_default(),
        delay_before_checks: section.optional("delayBeforeCheck", duration).unwrap_or_default(),
        disable_checks: section.optional("disablePropagationCheck", Field::boolean).unwrap_or_default(),
        ..update?
    };
    if let Some(mut propagation) = section.take("propagation").and_then(|field| field.section()) {
        propagation.set("disableChecks", &mut challenge.disable_checks, Field::boolean);
        propagation.set("delayBeforeChecks", &mut challenge.delay_before_checks, duration);
        propagation.refuse(&["disableANSChecks", "requireAllRNS"]);
        propagation.finish();
    }
    section.finish();
    is_ours.then_some(challenge)
}

/// What Traefik takes from the environment (`RFC2136_…`).
fn read_update(field: &Field<'_>) -> Option<DnsChallenge> {
    let mut section = field.section()?;
    let nameserver = section.require("nameserver").and_then(|field| {
        field.parse("`host:port`, or a host for port 53", |text| match crate::is_host_and_port(text) {
            true => Some(text.to_owned()),
            false => Some(format!("{text}:53")).filter(|text| crate::is_host_and_port(text)),
        })
    });
    let zone = section.optional("zone", Field::filled);
    let name = section.optional("tsigKey", Field::filled);
    let secret = section.optional("tsigSecret", |field| {
        let secret = field.scalar().and_then(Secret::from_base64);
        if secret.is_none() {
            field.reject_hidden("expected base64");
        }
        secret
    });
    let algorithm = section.optional("tsigAlgorithm", |field| {
        field.parse("`hmac-sha256`, `hmac-sha384` or `hmac-sha512`", |text| {
            let text = text.trim_end_matches('.').to_ascii_lowercase();
            ["hmac-sha256", "hmac-sha384", "hmac-sha512"].contains(&text.as_str()).then_some(text)
        })
    });
    section.finish();
    let key = match (name, secret) {
        (Some(name), Some(secret)) => {
            let algorithm = algorithm.unwrap_or_else(|| "hmac-sha256".to_owned());
            Some(TsigKey { name, algorithm, secret })
        }
        (None, None) => None,
        _ => {
            field.reject_hidden("`tsigKey` and `tsigSecret` belong together");
            return None;
        }
    };
    Some(DnsChallenge {
        nameserver: nameserver?,
        zone,
        key,
        resolvers: Vec::new(),
        disable_checks: false,
        delay_before_checks: Duration::ZERO,
    })
}

fn read_key_type(field: &Field<'_>) -> Option<AcmeKeyType> {
    field.parse("`EC256`, `EC384`, `RSA2048`, `RSA4096` or `RSA8192`", |text| {
        Some(match text {
            "EC256" => AcmeKeyType::Ec256,
            "EC384" => AcmeKeyType::Ec384,
            "RSA2048" => AcmeKeyType::Rsa2048,
            "RSA4096" => AcmeKeyType::Rsa4096,
            "RSA8192" => AcmeKeyType::Rsa8192,
            _ => return None,
        })
    })
}

fn read_external_account(field: &Field<'_>) -> Option<ExternalAccount> {
    let mut section = field.section()?;
    let key_id = section.require("kid").and_then(|field| field.filled());
    let key = section.require("hmacEncoded").and_then(|field| {
        let key = field.scalar().and_then(|text| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok());
        if key.is_none() {
            field.reject_hidden("expected base64 in its URL form");
        }
        key.map(Secret::new)
    });
    section.finish();
    Some(ExternalAccount { key_id: key_id?, key: key? })
}

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;
/// Keys of challenges.
const CHALLENGES: [&str; 3] = ["dnsChallenge", "httpChallenge", "tlsChallenge"];
/// Traefik's default CA.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// 90 days.
const CERTIFICATE_HOURS: u64 = 2160;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{read::Dialect, yaml::Node};

    fn read(text: &str) -> Result<BTreeMap<String, CertificateResolver>, String> {
        let (node, _) = Node::from_yaml(text, "d/adit.yaml").unwrap();
        let sink = Sink::new("d/adit.yaml", Dialect::Adit);
        let resolvers = read_resolvers(&sink.root(&node));
        let problems: Vec<String> = sink.finish().problems.iter().map(ToString::to_string).collect();
        if problems.is_empty() { Ok(resolvers) } else { Err(problems.join("\n")) }
    }

    #[test]
    fn each_challenge_has_its_options() {
        let resolvers = read(
            "web: { acme: { email: a@b.example, httpChallenge: { entryPoint: web, delay: 5 } } }\n\
             tls: { acme: { tlsChallenge: {}, keyType: EC384, storage: /x.json, caServer: https://ca.test/dir,\n\
             \x20 eab: { kid: k, hmacEncoded: AQID }, certificatesDuration: 24 } }\n\
             dns: { acme: { dnsChallenge: { provider: rfc2136, resolvers: [ 'ns:53' ], rfc2136: { nameserver: ns.test,\n\
             \x20 tsigKey: k., tsigSecret: AQID, tsigAlgorithm: HMAC-SHA512. }, propagation: { delayBeforeChecks: 1s } } } }\n",
        )
        .unwrap();
        let web = &resolvers["web"];
        assert_eq!(web.storage, PathBuf::from("d/acme.json"));
        let delay = Duration::from_secs(5);
        assert_eq!(web.challenge, AcmeChallenge::Http { entry_point: "web".into(), delay });
        let tls = &resolvers["tls"];
        assert_eq!((tls.key_type, tls.directory.as_str()), (Some(AcmeKeyType::Ec384), "https://ca.test/dir"));
        assert_eq!(tls.external_account.as_ref().unwrap().key.expose(), [1, 2, 3]);
        assert_eq!(tls.certificates_duration, Duration::from_secs(86_400));
        let AcmeChallenge::Dns(dns) = &resolvers["dns"].challenge else { panic!() };
        assert_eq!((dns.nameserver.as_str(), dns.resolvers.len()), ("ns.test:53", 1));
        assert_eq!(dns.key.as_ref().unwrap().algorithm, "hmac-sha512");
        assert_eq!(dns.delay_before_checks, Duration::from_secs(1));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (text, reason) in [
            ("a: { acme: { email: x } }", "expected `httpChallenge`"),
            ("a: { tailscale: {} }", "not implemented"),
            ("a: { acme: { dnsChallenge: { provider: cloudflare } } }", "only provider"),
            ("a: { acme: { httpChallenge: {} } }", "`entryPoint` is missing"),
            ("a: { acme: { tlsChallenge: {}, keyType: DSA } }", "EC256"),
            ("a: { acme: { tlsChallenge: {}, caServer: http://x } }", "https"),
            ("a: { acme: { tlsChallenge: {}, eab: { kid: k, hmacEncoded: '!' } } }", "base64"),
            (
                "a: { acme: { dnsChallenge: { provider: rfc2136, rfc2136: { nameserver: n, tsigKey: k } } } }",
                "belong together",
            ),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.contains(reason), "{text}: {found}");
        }
    }
}
