//! `headers`, whose options are many.

use super::Headers;
use crate::read::{Field, Section};

pub(super) fn read_headers(field: &Field<'_>) -> Option<Headers> {
    let mut section = field.block()?;
    let mut headers = Headers::default();
    section.set("customRequestHeaders", &mut headers.custom_request_headers, Field::string_map);
    section.set("customResponseHeaders", &mut headers.custom_response_headers, Field::string_map);
    read_cors(&mut section, &mut headers);
    read_hosts(&mut section, &mut headers);
    read_security(&mut section, &mut headers);
    headers.has_removed_options = warn_of_removed(&mut section);
    section.finish();
    Some(headers)
}

fn read_cors(section: &mut Section<'_>, headers: &mut Headers) {
    let h = headers;
    section.set("accessControlAllowCredentials", &mut h.access_control_allow_credentials, Field::truth);
    section.set("accessControlAllowHeaders", &mut h.access_control_allow_headers, Field::strings);
    section.set("accessControlAllowMethods", &mut h.access_control_allow_methods, Field::strings);
    section.set("accessControlAllowOriginList", &mut h.access_control_allow_origin_list, Field::strings);
    section.set(
        "accessControlAllowOriginListRegex",
        &mut h.access_control_allow_origin_list_regex,
        Field::strings,
    );
    section.set("accessControlExposeHeaders", &mut h.access_control_expose_headers, Field::strings);
    h.access_control_max_age_s = section.optional("accessControlMaxAge", Field::whole);
    section.set("addVaryHeader", &mut h.add_vary_header, Field::truth);
}

fn read_hosts(section: &mut Section<'_>, headers: &mut Headers) {
    section.set("allowedHosts", &mut headers.allowed_hosts, Field::strings);
    section.set("hostsProxyHeaders", &mut headers.hosts_proxy_headers, Field::strings);
    section.set("sslProxyHeaders", &mut headers.ssl_proxy_headers, Field::string_map);
    section.set("isDevelopment", &mut headers.is_development, Field::truth);
}

fn read_security(section: &mut Section<'_>, headers: &mut Headers) {
    let h = headers;
    h.sts_seconds = section.optional("stsSeconds", Field::whole);
    section.set("stsIncludeSubdomains", &mut h.sts_include_subdomains, Field::truth);
    section.set("stsPreload", &mut h.sts_preload, Field::truth);
    section.set("forceSTSHeader", &mut h.force_sts_header, Field::truth);
    section.set("frameDeny", &mut h.frame_deny, Field::truth);
    h.custom_frame_options_value = section.optional("customFrameOptionsValue", Field::filled);
    section.set("contentTypeNosniff", &mut h.content_type_nosniff, Field::truth);
    section.set("browserXssFilter", &mut h.browser_xss_filter, Field::truth);
    h.custom_browser_xss_value = section.optional("customBrowserXSSValue", Field::filled);
    h.content_security_policy = section.optional("contentSecurityPolicy", Field::filled);
    h.content_security_policy_report_only =
        section.optional("contentSecurityPolicyReportOnly", Field::filled);
    h.public_key = section.optional("publicKey", Field::filled);
    h.referrer_policy = section.optional("referrerPolicy", Field::filled);
    h.permissions_policy = section.optional("permissionsPolicy", Field::filled);
}

/// Options of the second version, which the third takes and ignores: files that still have them are served, and told.
fn warn_of_removed(section: &mut Section<'_>) -> bool {
    let mut found = false;
    for (key, instead) in REMOVED {
        let Some(field) = section.take(key) else { continue };
        match field.text() {
            Some("" | "false") => field.warn("has no effect any more"),
            Some(_) => {
                found = true;
                field.warn(format!("this option was removed and has no effect: use `{instead}`"));
            }
            None => {}
        }
    }
    found
}

const REMOVED: [(&str, &str); 5] = [
    ("featurePolicy", "permissionsPolicy"),
    ("sslRedirect", "redirectScheme"),
    ("sslTemporaryRedirect", "redirectScheme"),
    ("sslHost", "redirectRegex"),
    ("sslForceHost", "redirectRegex"),
];
