//! What the API tells of middlewares: their options in Traefik's words, secrets left out.

use std::collections::BTreeMap;
use std::time::Duration;

use adit_config::dynamic::{
    BasicAuth, Buffering, ClientTls, Compress, EncodedCharacters, ForwardAuth, Headers, IpStrategy,
    Middleware, PassTlsClientCert, Retry, SourceCriterion, TlsClientCertNames,
};
use serde_json::{Map, Value, json};

/// The options of a middleware, as they stand under its kind; those that say nothing are left out.
pub(super) fn options(middleware: &Middleware) -> Value {
    pruned(match middleware {
        Middleware::AddPrefix(m) => json!({ "prefix": m.prefix }),
        Middleware::BasicAuth(m) => users(m),
        Middleware::DigestAuth(m) => json!({
            "users": masked(m.users.len()), "usersFile": m.users_file, "realm": m.realm,
            "removeHeader": m.remove_header, "headerField": m.header_field,
        }),
        Middleware::Buffering(m) => buffering(m),
        Middleware::Chain(m) => json!({ "middlewares": m.middlewares }),
        Middleware::CircuitBreaker(m) => json!({
            "expression": m.expression, "checkPeriod": duration(m.check_period),
            "fallbackDuration": duration(m.fallback_duration), "recoveryDuration": duration(m.recovery_duration),
            "responseCode": m.response_code,
        }),
        Middleware::Compress(m) => compress(m),
        Middleware::ContentType(m) => json!({ "autoDetect": m.auto_detect }),
        Middleware::EncodedCharacters(m) => encoded_characters(*m),
        Middleware::Errors(m) => json!({
            "status": m.status, "statusRewrites": m.status_rewrites, "service": m.service, "query": m.query,
            "errorRequestHeaders": m.error_request_headers,
        }),
        Middleware::ForwardAuth(m) => forward_auth(m),
        Middleware::GrpcWeb(m) => json!({ "allowOrigins": m.allow_origins }),
        Middleware::Headers(m) => headers(m),
        Middleware::IpAllowList(m) => json!({
            "sourceRange": m.source_range, "ipStrategy": m.ip_strategy.as_ref().map(ip_strategy),
            "rejectStatusCode": m.reject_status_code,
        }),
        Middleware::InFlightReq(m) => json!({
            "amount": m.amount, "sourceCriterion": m.source_criterion.as_ref().map(source_criterion),
        }),
        Middleware::PassTlsClientCert(m) => pass_tls_client_cert(m),
        Middleware::RateLimit(m) => json!({
            "average": m.average, "period": duration(m.period), "burst": m.burst,
            "sourceCriterion": m.source_criterion.as_ref().map(source_criterion),
        }),
        Middleware::RedirectRegex(m) => {
            let replacement = super::view::without_userinfo(&m.replacement);
            json!({ "regex": m.regex, "replacement": replacement, "permanent": m.permanent })
        }
        Middleware::RedirectScheme(m) => {
            json!({ "scheme": m.scheme, "port": m.port, "permanent": m.permanent })
        }
        Middleware::ReplacePath(m) => json!({ "path": m.path }),
        Middleware::ReplacePathRegex(m) => json!({ "regex": m.regex, "replacement": m.replacement }),
        Middleware::Retry(m) => retry(m),
        Middleware::StripPrefix(m) => json!({ "prefixes": m.prefixes, "forceSlash": m.force_slash }),
        Middleware::StripPrefixRegex(m) => json!({ "regex": m.regex }),
        Middleware::Invalid(_) => Value::Null,
    })
}

fn users(m: &BasicAuth) -> Value {
    json!({
        "users": masked(m.users.len()), "usersFile": m.users_file, "realm": m.realm,
        "removeHeader": m.remove_header, "headerField": m.header_field,
    })
}

fn buffering(m: &Buffering) -> Value {
    json!({
        "maxRequestBodyBytes": m.request_body_bytes_max, "memRequestBodyBytes": m.request_memory_bytes_max,
        "maxResponseBodyBytes": m.response_body_bytes_max, "memResponseBodyBytes": m.response_memory_bytes_max,
        "retryExpression": m.retry_expression,
    })
}

fn compress(m: &Compress) -> Value {
    json!({
        "excludedContentTypes": m.excluded_content_types, "includedContentTypes": m.included_content_types,
        "minResponseBodyBytes": m.response_body_bytes_min, "encodings": m.encodings,
        "defaultEncoding": m.default_encoding,
    })
}

fn encoded_characters(m: EncodedCharacters) -> Value {
    json!({
        "allowEncodedSlash": m.allow_slash, "allowEncodedBackSlash": m.allow_back_slash,
        "allowEncodedNullCharacter": m.allow_null, "allowEncodedSemicolon": m.allow_semicolon,
        "allowEncodedPercent": m.allow_percent, "allowEncodedQuestionMark": m.allow_question_mark,
        "allowEncodedHash": m.allow_hash,
    })
}

fn forward_auth(m: &ForwardAuth) -> Value {
    json!({
        "address": address(&m.address), "tls": m.tls.as_ref().map(client_tls),
        "trustForwardHeader": m.trust_forward_header, "authResponseHeaders": m.auth_response_headers,
        "authResponseHeadersRegex": m.auth_response_headers_regex, "authRequestHeaders": m.auth_request_headers,
        "maxResponseBodySize": m.response_body_bytes_max,
        "addAuthCookiesToResponse": m.add_auth_cookies_to_response, "headerField": m.header_field,
        "forwardBody": m.forward_body, "maxBodySize": m.body_bytes_max,
        "preserveLocationHeader": m.preserve_location_header, "preserveRequestMethod": m.preserve_request_method,
        "authSigninURL": m.auth_signin_url.as_deref().map(address),
    })
}

/// That there are certificates and a key; what they are is read from files, or no one's business.
fn client_tls(tls: &ClientTls) -> Value {
    let given = |is_there: bool| is_there.then_some(MASK);
    json!({
        "ca": given(tls.ca.is_some()), "cert": given(tls.cert.is_some()), "key": given(tls.key.is_some()),
        "insecureSkipVerify": tls.insecure_skip_verify,
    })
}

fn headers(m: &Headers) -> Value {
    let mut all = json!({
        "customRequestHeaders": told_of(&m.custom_request_headers), "customResponseHeaders": m.custom_response_headers,
        "accessControlAllowCredentials": m.access_control_allow_credentials,
        "accessControlAllowHeaders": m.access_control_allow_headers,
        "accessControlAllowMethods": m.access_control_allow_methods,
        "accessControlAllowOriginList": m.access_control_allow_origin_list,
        "accessControlAllowOriginListRegex": m.access_control_allow_origin_list_regex,
        "accessControlExposeHeaders": m.access_control_expose_headers,
        "accessControlMaxAge": m.access_control_max_age_s, "addVaryHeader": m.add_vary_header,
    });
    let security = json!({
        "allowedHosts": m.allowed_hosts, "hostsProxyHeaders": m.hosts_proxy_headers,
        "sslProxyHeaders": m.ssl_proxy_headers, "stsSeconds": m.sts_seconds,
        "stsIncludeSubdomains": m.sts_include_subdomains, "stsPreload": m.sts_preload,
        "forceSTSHeader": m.force_sts_header, "frameDeny": m.frame_deny,
        "customFrameOptionsValue": m.custom_frame_options_value, "contentTypeNosniff": m.content_type_nosniff,
        "browserXssFilter": m.browser_xss_filter, "customBrowserXSSValue": m.custom_browser_xss_value,
        "contentSecurityPolicy": m.content_security_policy,
        "contentSecurityPolicyReportOnly": m.content_security_policy_report_only, "publicKey": m.public_key,
        "referrerPolicy": m.referrer_policy, "permissionsPolicy": m.permissions_policy,
        "isDevelopment": m.is_development,
    });
    if let (Value::Object(all), Value::Object(security)) = (&mut all, security) {
        all.extend(security);
    }
    all
}

fn ip_strategy(strategy: &IpStrategy) -> Value {
    json!({
        "depth": strategy.depth, "excludedIPs": strategy.excluded_ips, "ipv6Subnet": strategy.ipv6_subnet,
    })
}

fn source_criterion(criterion: &SourceCriterion) -> Value {
    json!({
        "ipStrategy": criterion.ip_strategy.as_ref().map(ip_strategy),
        "requestHeaderName": criterion.request_header_name, "requestHost": criterion.request_host,
    })
}

fn pass_tls_client_cert(m: &PassTlsClientCert) -> Value {
    let names = |names: TlsClientCertNames| {
        json!({
            "country": names.country, "province": names.province, "locality": names.locality,
            "organization": names.organization, "organizationalUnit": names.organizational_unit,
            "commonName": names.common_name, "serialNumber": names.serial_number,
            "domainComponent": names.domain_component,
        })
    };
    let info = m.info.as_ref().map(|info| {
        json!({
            "notAfter": info.not_after, "notBefore": info.not_before, "sans": info.sans,
            "serialNumber": info.serial_number, "subject": info.subject.map(names),
            "issuer": info.issuer.map(names),
        })
    });
    json!({ "pem": m.pem, "info": info })
}

fn retry(m: &Retry) -> Value {
    json!({
        "attempts": m.attempts, "timeout": duration(m.timeout), "initialInterval": duration(m.initial_interval),
        "maxRequestBodyBytes": m.request_body_bytes_max, "status": m.status,
        "disableRetryOnNetworkError": m.disable_retry_on_network_error,
        "retryNonIdempotentMethod": m.retry_non_idempotent_method,
    })
}

/// What is set for servers may be their keys; what is removed is not.
fn told_of(headers: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    headers.iter().map(|(name, value)| (name.as_str(), if value.is_empty() { "" } else { MASK })).collect()
}

/// An address without user information and query, either of which may hold a key.
fn address(url: &str) -> String {
    let url = super::view::without_userinfo(url);
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

fn duration(duration: Duration) -> Option<String> {
    (!duration.is_zero()).then(|| adit_config::format_duration(duration))
}

fn masked(count: usize) -> Vec<&'static str> {
    vec![MASK; count]
}

/// Without what is null, false, zero or empty; an object that loses all of it stays as an empty one.
fn pruned(value: Value) -> Value {
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(true) | Value::Object(_) => false,
    };
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !says_nothing(value));
            let kept: Map<String, Value> = kept.map(|(name, value)| (name, pruned(value))).collect();
            Value::Object(kept.into_iter().filter(|(name, value)| !is_empty_map(name, value)).collect())
        }
        other => other,
    }
}

/// Lists of headers are left out when there are none; a strategy without options is one all the same.
fn is_empty_map(name: &str, value: &Value) -> bool {
    let is_list = name.ends_with("Headers") || name == "statusRewrites";
    is_list && value.as_object().is_some_and(Map::is_empty)
}

/// In place of what nobody is to read.
const MASK: &str = "***";

#[cfg(test)]
mod tests {
    use adit_config::dynamic::{Dynamic, Format};

    use super::*;

    #[test]
    fn options_are_as_written_and_secrets_are_not() {
        let text = "http:\n  middlewares:\n    a: { stripPrefix: { prefixes: [ /api ] } }\n    \
                    b: { basicAuth: { users: [ \"u:$apr1$x$yyyyyyyyyyyyyyyyyyyyyy\" ], realm: home } }\n    \
                    c: { headers: { stsSeconds: 9, customRequestHeaders: { X-A: b } } }\n    \
                    e: { forwardAuth: { address: \"http://u:p@auth/x?token=t\", authSigninURL: \"https://u:p@in/?k=v\" } }\n    \
                    d: { rateLimit: { average: 5, sourceCriterion: { ipStrategy: {} } } }\n";
        let dynamic = Dynamic::parse(text, "f.yml", Format::Yaml).unwrap();
        let of = |name: &str| options(&dynamic.http.middlewares[name]);
        assert_eq!(of("a"), json!({ "prefixes": ["/api"] }));
        assert_eq!(of("b"), json!({ "users": ["***"], "realm": "home" }));
        assert_eq!(of("c"), json!({ "stsSeconds": 9, "customRequestHeaders": { "X-A": "***" } }));
        assert_eq!(of("e"), json!({ "address": "http://auth/x", "authSigninURL": "https://in/" }));
        assert_eq!(
            of("d"),
            json!({ "average": 5, "period": "1s", "burst": 1, "sourceCriterion": { "ipStrategy": {} } })
        );
    }
}
