//! passTLSClientCert: tells the upstream about the certificate the visitor showed.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use adit_config::dynamic::{self, TlsClientCertFields, TlsClientCertNames};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

use super::{Ctx, Edit, go_url};
use crate::message::{Request, Response};

/// `passTLSClientCert`.
pub(super) struct PassTlsClientCert {
    pem: bool,
    fields: Option<TlsClientCertFields>,
}

impl PassTlsClientCert {
    pub(super) fn new(config: &dynamic::PassTlsClientCert) -> Self {
        Self { pem: config.pem, fields: config.info.clone() }
    }
}

impl Edit for PassTlsClientCert {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let chain = match &ctx.tls {
            Some(tls) if !tls.client_certificates.is_empty() => &tls.client_certificates,
            _ => return ControlFlow::Continue(()),
        };
        if self.pem {
            // PEM without its head and line ends.
            let all: Vec<String> = chain.iter().map(|certificate| STANDARD.encode(certificate)).collect();
            set(request, X_FORWARDED_TLS_CLIENT_CERT, &all.join(","));
        }
        if let Some(fields) = &self.fields {
            let all: Vec<String> = chain.iter().map(|certificate| describe(certificate, fields)).collect();
            set(request, X_FORWARDED_TLS_CLIENT_CERT_INFO, &go_url::query_escape(&all.join(",")));
        }
        ControlFlow::Continue(())
    }
}

/// `Subject="…";Issuer="…";…`, without the parts that are empty or not asked for.
fn describe(certificate: &CertificateDer<'_>, fields: &TlsClientCertFields) -> String {
    // rustls has verified or at least parsed it before.
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return String::new() };
    let mut parts = Vec::new();
    let mut push = |name: &str, value: String| {
        if !value.is_empty() {
            parts.push(format!("{name}=\"{value}\""));
        }
    };
    if let Some(names) = &fields.subject {
        push("Subject", distinguished_name(certificate.subject(), names, names.organizational_unit));
    }
    if let Some(names) = &fields.issuer {
        push("Issuer", distinguished_name(certificate.issuer(), names, false));
    }
    if fields.serial_number {
        push("SerialNumber", certificate.tbs_certificate.serial.to_string());
    }
    if fields.not_before {
        push("NB", certificate.validity().not_before.timestamp().to_string());
    }
    if fields.not_after {
        push("NA", certificate.validity().not_after.timestamp().to_string());
    }
    if fields.sans {
        push("SAN", alternative_names(&certificate));
    }
    parts.join(";")
}

fn distinguished_name(name: &X509Name<'_>, wanted: &TlsClientCertNames, with_unit: bool) -> String {
    let values = |oid: &str| -> Vec<String> {
        let attributes =
            name.iter_attributes().filter(|attribute| attribute.attr_type().to_id_string() == oid);
        attributes.filter_map(|attribute| attribute.as_str().ok().map(str::to_owned)).collect()
    };
    // These two have one value in Go's view of a name: the last.
    let last = |oid: &str| values(oid).into_iter().next_back().into_iter().collect();
    let attributes: [(bool, &str, Vec<String>); 8] = [
        (wanted.domain_component, "DC", values("0.9.2342.19200300.100.1.25")),
        (wanted.country, "C", values("2.5.4.6")),
        (wanted.province, "ST", values("2.5.4.8")),
        (wanted.locality, "L", values("2.5.4.7")),
        (wanted.organization, "O", values("2.5.4.10")),
        (with_unit, "OU", values("2.5.4.11")),
        (wanted.serial_number, "SN", last("2.5.4.5")),
        (wanted.common_name, "CN", last("2.5.4.3")),
    ];
    let mut parts = Vec::new();
    for (is_wanted, label, values) in attributes {
        if is_wanted {
            parts.extend(
                values.iter().filter(|value| !value.is_empty()).map(|value| format!("{label}={value}")),
            );
        }
    }
    parts.join(",")
}

/// Names, mail addresses, addresses, URIs: in this order, whatever the certificate's.
fn alternative_names(certificate: &X509Certificate<'_>) -> String {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return String::new() };
    let mut kinds: [Vec<String>; 4] = Default::default();
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => kinds[0].push((*name).to_owned()),
            GeneralName::RFC822Name(name) => kinds[1].push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => kinds[2].extend(address(bytes)),
            GeneralName::URI(uri) => kinds[3].push((*uri).to_owned()),
            _ => {}
        }
    }
    kinds.concat().join(",")
}

fn address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).to_string()),
        16 => bytes.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).to_string()),
        _ => None,
    }
}

fn set(request: &mut Request, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        request.headers.insert(name, value);
    }
}

const X_FORWARDED_TLS_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-tls-client-cert");
const X_FORWARDED_TLS_CLIENT_CERT_INFO: HeaderName =
    HeaderName::from_static("x-forwarded-tls-client-cert-info");

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};

    use super::super::TlsInfo;
    use super::super::tests::{ctx, request};
    use super::*;

    fn certificate() -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress("10.0.0.1".parse().unwrap()));
        params.distinguished_name.push(DnType::CountryName, "FR");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "Unit");
        params.distinguished_name.push(DnType::CommonName, "client name");
        params.serial_number = Some(SerialNumber::from(258));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_upstream_learns_what_was_asked_for() {
        let names = TlsClientCertNames {
            country: true,
            organizational_unit: true,
            common_name: true,
            ..Default::default()
        };
        let info = TlsClientCertFields {
            subject: Some(names),
            issuer: Some(names),
            serial_number: true,
            sans: true,
            ..Default::default()
        };
        let edit = PassTlsClientCert::new(&dynamic::PassTlsClientCert { pem: true, info: Some(info) });
        let mut request = request("/");
        let mut ctx = ctx();
        let certificate = certificate();
        ctx.tls =
            Some(Arc::new(TlsInfo { client_certificates: vec![certificate.clone()], ..TlsInfo::default() }));
        assert!(edit.edit(&mut request, &mut ctx).is_continue());
        assert_eq!(request.headers["x-forwarded-tls-client-cert"], STANDARD.encode(certificate));
        let expected = "Subject=\"C=FR,OU=Unit,CN=client name\";Issuer=\"C=FR,CN=client name\";\
                        SerialNumber=\"258\";SAN=\"a.test,10.0.0.1\"";
        assert_eq!(request.headers["x-forwarded-tls-client-cert-info"], go_url::query_escape(expected));
    }

    #[test]
    fn without_a_certificate_nothing_is_said() {
        let edit = PassTlsClientCert::new(&dynamic::PassTlsClientCert { pem: true, info: None });
        let mut request = request("/");
        assert!(edit.edit(&mut request, &mut ctx()).is_continue());
        assert!(request.headers.is_empty());
    }
}
