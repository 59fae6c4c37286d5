//! The options of `headers` that protect visitors: allowed hosts, HSTS, framing, content and referrer policies.

use adit_config::dynamic;
use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

use super::headers::{field_name, field_value};
use super::{Ctx, go_url};
use crate::message::Request;

/// Fields that tell browsers to be careful, and which hosts are served at all.
pub(super) struct Security {
    allowed_hosts: Vec<String>,
    hosts_proxy_headers: Vec<HeaderName>,
    ssl_proxy_headers: Vec<(HeaderName, String)>,
    fields: Vec<(HeaderName, HeaderValue)>,
    /// Only on TLS: a browser ignores both on plain HTTP, where anyone could have written them (RFC 6797 §7.2).
    secure_fields: Vec<(HeaderName, HeaderValue)>,
}

impl Security {
    /// None if no option is set.
    pub(super) fn new(config: &dynamic::Headers) -> Result<Option<Self>, String> {
        if !is_set(config) {
            return Ok(None);
        }
        let mut security = Self {
            allowed_hosts: if config.is_development { Vec::new() } else { config.allowed_hosts.clone() },
            hosts_proxy_headers: names(&config.hosts_proxy_headers)?,
            ssl_proxy_headers: Vec::new(),
            fields: fields(config)?,
            secure_fields: Vec::new(),
        };
        for (name, value) in &config.ssl_proxy_headers {
            security.ssl_proxy_headers.push((field_name(name)?, value.clone()));
        }
        if config.is_development {
            return Ok(Some(security));
        }
        if let Some(seconds) = config.sts_seconds.filter(|seconds| *seconds != 0) {
            let subdomains = if config.sts_include_subdomains { "; includeSubDomains" } else { "" };
            let preload = if config.sts_preload { "; preload" } else { "" };
            let value = field_value("stsSeconds", &format!("max-age={seconds}{subdomains}{preload}"))?;
            let list =
                if config.force_sts_header { &mut security.fields } else { &mut security.secure_fields };
            list.push((header::STRICT_TRANSPORT_SECURITY, value));
        }
        if let Some(value) = text(&config.public_key) {
            security.secure_fields.push((header::PUBLIC_KEY_PINS, field_value("publicKey", value)?));
        }
        Ok(Some(security))
    }

    /// Whether the host asked for is served.
    pub(super) fn is_allowed(&self, request: &Request) -> bool {
        if self.allowed_hosts.is_empty() {
            return true;
        }
        let told = self.hosts_proxy_headers.iter().find_map(|name| {
            request.headers.get(name).and_then(|value| value.to_str().ok()).filter(|host| !host.is_empty())
        });
        let host = told.unwrap_or(&request.host);
        self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }

    /// Whether the visitor's way here is encrypted, by its own hop or by what a hop in front says.
    pub(super) fn is_secure(&self, request: &Request, ctx: &Ctx) -> bool {
        let says = |(name, value): &(HeaderName, String)| {
            go_url::field(&request.headers, name.as_str()).unwrap_or_default() == value
        };
        ctx.secure || self.ssl_proxy_headers.iter().any(says)
    }

    /// Sets the fields on an answer, in place of the upstream's.
    pub(super) fn mark(&self, headers: &mut HeaderMap, is_secure: bool) {
        let secure = if is_secure { &self.secure_fields[..] } else { &[] };
        for (name, value) in self.fields.iter().chain(secure) {
            headers.insert(name, value.clone());
        }
    }
}

fn is_set(config: &dynamic::Headers) -> bool {
    let switches = [
        config.sts_include_subdomains,
        config.sts_preload,
        config.force_sts_header,
        config.frame_deny,
        config.content_type_nosniff,
        config.browser_xss_filter,
        config.is_development,
        config.sts_seconds.is_some(),
        !config.allowed_hosts.is_empty(),
        !config.hosts_proxy_headers.is_empty(),
        !config.ssl_proxy_headers.is_empty(),
    ];
    let texts = [
        &config.custom_frame_options_value,
        &config.custom_browser_xss_value,
        &config.content_security_policy,
        &config.content_security_policy_report_only,
        &config.public_key,
        &config.referrer_policy,
        &config.permissions_policy,
    ];
    switches.contains(&true) || texts.iter().any(|value| text(value).is_some())
}

fn fields(config: &dynamic::Headers) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let or = |value: &Option<String>, switch: bool, fixed: &str| {
        text(value).map(str::to_owned).or_else(|| switch.then(|| fixed.to_owned()))
    };
    let wanted = [
        (header::X_FRAME_OPTIONS, or(&config.custom_frame_options_value, config.frame_deny, "DENY")),
        (header::X_CONTENT_TYPE_OPTIONS, config.content_type_nosniff.then(|| "nosniff".to_owned())),
        (
            header::X_XSS_PROTECTION,
            or(&config.custom_browser_xss_value, config.browser_xss_filter, "1; mode=block"),
        ),
        (header::CONTENT_SECURITY_POLICY, config.content_security_policy.clone()),
        (header::CONTENT_SECURITY_POLICY_REPORT_ONLY, config.content_security_policy_report_only.clone()),
        (header::REFERRER_POLICY, config.referrer_policy.clone()),
        (HeaderName::from_static("permissions-policy"), config.permissions_policy.clone()),
    ];
    let mut fields = Vec::new();
    for (name, value) in wanted {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let value = field_value(name.as_str(), &value)?;
            fields.push((name, value));
        }
    }
    Ok(fields)
}

fn names(texts: &[String]) -> Result<Vec<HeaderName>, String> {
    texts.iter().map(|text| field_name(text)).collect()
}

fn text(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ctx, request, request_with};
    use super::*;

    fn marked(config: &dynamic::Headers, is_secure: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("x-frame-options", HeaderValue::from_static("upstream"));
        Security::new(config).unwrap().unwrap().mark(&mut headers, is_secure);
        headers
    }

    #[test]
    fn transport_security_is_told_on_tls_only_unless_forced() {
        let sts = dynamic::Headers {
            sts_seconds: Some(15),
            sts_include_subdomains: true,
            sts_preload: true,
            ..Default::default()
        };
        let value = "max-age=15; includeSubDomains; preload";
        assert_eq!(marked(&sts, true)["strict-transport-security"], value);
        assert!(!marked(&sts, false).contains_key("strict-transport-security"));
        let forced = dynamic::Headers { force_sts_header: true, ..sts.clone() };
        assert_eq!(marked(&forced, false)["strict-transport-security"], value);
        let developing = dynamic::Headers { is_development: true, ..sts };
        assert!(!marked(&developing, true).contains_key("strict-transport-security"));
    }

    #[test]
    fn a_hop_in_front_may_tell_of_tls() {
        let config = dynamic::Headers {
            ssl_proxy_headers: [("X-Forwarded-Proto".to_owned(), "https".to_owned())].into(),
            ..Default::default()
        };
        let security = Security::new(&config).unwrap().unwrap();
        assert!(security.is_secure(&request_with("/", &[("x-forwarded-proto", "https")]), &ctx()));
        assert!(!security.is_secure(&request("/"), &ctx()));
    }

    #[test]
    fn own_values_come_before_switches_and_replace_the_upstreams() {
        let config = dynamic::Headers {
            frame_deny: true,
            custom_frame_options_value: Some("SAMEORIGIN".to_owned()),
            browser_xss_filter: true,
            content_type_nosniff: true,
            referrer_policy: Some("no-referrer".to_owned()),
            ..Default::default()
        };
        let headers = marked(&config, false);
        assert_eq!(headers["x-frame-options"], "SAMEORIGIN");
        assert_eq!(headers["x-xss-protection"], "1; mode=block");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
    }
}
