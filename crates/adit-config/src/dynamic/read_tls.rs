//! `tls`: certificates, options and stores.

use super::{
    CertificatePair, ClientAuth, ClientAuthType, DefaultGeneratedCert, TlsCertificate, TlsDynamic,
    TlsOptions, TlsStore, TlsVersion, read_http::read_domain,
};
use crate::read::{Field, Section};

pub(super) fn read_tls(field: &Field<'_>) -> Option<TlsDynamic> {
    let mut section = field.block()?;
    let mut tls = TlsDynamic::default();
    section.set("certificates", &mut tls.certificates, |field| {
        Some(field.items().iter().filter_map(read_certificate).collect())
    });
    section.set("options", &mut tls.options, |field| field.objects(read_options));
    section.set("stores", &mut tls.stores, |field| {
        for (_, store) in field.named().iter().filter(|(name, _)| *name != DEFAULT_STORE) {
            store.warn("only the store named `default` is used");
        }
        field.objects(read_store)
    });
    section.finish();
    Some(tls)
}

fn read_certificate(field: &Field<'_>) -> Option<TlsCertificate> {
    let mut section = field.element()?;
    let pair = read_pair(&mut section);
    let stores = section.optional("stores", Field::strings).unwrap_or_default();
    section.finish();
    Some(TlsCertificate { pair: pair?, stores })
}

/// `certFile` and `keyFile`, which may be texts too.
pub(super) fn read_pair(section: &mut Section<'_>) -> Option<CertificatePair> {
    let cert = section.require("certFile").and_then(|field| field.pem());
    let key = section.require("keyFile").and_then(|field| field.pem());
    Some(CertificatePair { cert: cert?, key: key? })
}

/// A version; another text is the object's fault.
pub(super) fn read_version(field: &Field<'_>) -> Option<TlsVersion> {
    Some(match field.text()? {
        "" => return None,
        "VersionTLS10" => TlsVersion::V1_0,
        "VersionTLS11" => TlsVersion::V1_1,
        "VersionTLS12" => TlsVersion::V1_2,
        "VersionTLS13" => TlsVersion::V1_3,
        _ => {
            field.fault("expected `VersionTLS12` or `VersionTLS13`");
            return None;
        }
    })
}

fn read_options(field: &Field<'_>) -> Option<TlsOptions> {
    let mut section = field.element()?;
    let mut options = TlsOptions::default();
    section.set("cipherSuites", &mut options.cipher_suites, Field::strings);
    options.version_min = section.optional("minVersion", read_version);
    options.version_max = section.optional("maxVersion", read_version);
    section.set("curvePreferences", &mut options.curve_preferences, Field::strings);
    section.set("clientAuth", &mut options.client_auth, read_client_auth);
    section.set("sniStrict", &mut options.sni_strict, Field::truth);
    section.set("alpnProtocols", &mut options.alpn_protocols, Field::strings);
    section.set("disableSessionTickets", &mut options.disable_session_tickets, Field::truth);
    if let Some(field) = section.take("preferServerCipherSuites") {
        field.truth();
        field.warn("has no effect: the server's order is always preferred");
    }
    section.finish();
    options.fault = field.sink.take_fault();
    Some(options)
}

fn read_client_auth(field: &Field<'_>) -> Option<ClientAuth> {
    let mut section = field.block()?;
    let ca_files = section.optional("caFiles", Field::pems).unwrap_or_default();
    let kind = section.optional("clientAuthType", |field| {
        Some(match field.text()? {
            "" => return None,
            "NoClientCert" => ClientAuthType::None,
            "RequestClientCert" => ClientAuthType::Request,
            "RequireAnyClientCert" => ClientAuthType::RequireAny,
            "VerifyClientCertIfGiven" => ClientAuthType::VerifyIfGiven,
            "RequireAndVerifyClientCert" => ClientAuthType::RequireAndVerify,
            _ => {
                field.fault("expected one of Go's names such as `RequireAndVerifyClientCert`");
                return None;
            }
        })
    });
    section.finish();
    let default = if ca_files.is_empty() { ClientAuthType::None } else { ClientAuthType::RequireAndVerify };
    let kind = kind.unwrap_or(default);
    if ca_files.is_empty() && matches!(kind, ClientAuthType::VerifyIfGiven | ClientAuthType::RequireAndVerify)
    {
        field.fault("checking client certificates needs `caFiles`");
    }
    Some(ClientAuth { ca_files, kind })
}

fn read_store(field: &Field<'_>) -> Option<TlsStore> {
    let mut section = field.element()?;
    let store = TlsStore {
        default_certificate: section.optional("defaultCertificate", |field| {
            let mut section = field.block()?;
            let pair = read_pair(&mut section);
            section.finish();
            pair
        }),
        default_generated_cert: section.optional("defaultGeneratedCert", |field| {
            let mut section = field.block()?;
            let generated = DefaultGeneratedCert {
                resolver: section.optional("resolver", Field::string).unwrap_or_default(),
                domain: section.optional("domain", read_domain).unwrap_or_default(),
            };
            section.finish();
            Some(generated)
        }),
    };
    section.finish();
    Some(store)
}

/// The only store that Traefik, and we, use.
const DEFAULT_STORE: &str = "default";
