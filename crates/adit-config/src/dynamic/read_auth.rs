//! `basicAuth`, `digestAuth`, `forwardAuth`.

use super::{BasicAuth, ClientTls, DigestAuth, ForwardAuth};
use crate::read::Field;

pub(super) fn read_basic_auth(field: &Field<'_>) -> Option<BasicAuth> {
    let mut section = field.block()?;
    let mut auth = BasicAuth::default();
    section.set("users", &mut auth.users, Field::secrets);
    auth.users_file = section.optional("usersFile", Field::path);
    section.set("realm", &mut auth.realm, Field::filled);
    section.set("removeHeader", &mut auth.remove_header, Field::truth);
    auth.header_field = section.optional("headerField", Field::filled);
    section.finish();
    Some(auth)
}

pub(super) fn read_digest_auth(field: &Field<'_>) -> Option<DigestAuth> {
    let mut section = field.block()?;
    let mut auth = DigestAuth::default();
    section.set("users", &mut auth.users, Field::secrets);
    auth.users_file = section.optional("usersFile", Field::path);
    section.set("realm", &mut auth.realm, Field::filled);
    section.set("removeHeader", &mut auth.remove_header, Field::truth);
    auth.header_field = section.optional("headerField", Field::filled);
    section.finish();
    Some(auth)
}

pub(super) fn read_forward_auth(field: &Field<'_>) -> Option<ForwardAuth> {
    let mut section = field.block()?;
    let mut auth = ForwardAuth::default();
    section.set("address", &mut auth.address, Field::string);
    auth.tls = section.optional("tls", read_client_tls);
    auth.trust_forward_header = section.optional("trustForwardHeader", Field::truth);
    section.set("authResponseHeaders", &mut auth.auth_response_headers, Field::strings);
    auth.auth_response_headers_regex = section.optional("authResponseHeadersRegex", Field::filled);
    section.set("authRequestHeaders", &mut auth.auth_request_headers, Field::strings);
    section.set("maxResponseBodySize", &mut auth.response_body_bytes_max, Field::bytes_max);
    section.set("addAuthCookiesToResponse", &mut auth.add_auth_cookies_to_response, Field::strings);
    auth.header_field = section.optional("headerField", Field::filled);
    section.set("forwardBody", &mut auth.forward_body, Field::truth);
    section.set("maxBodySize", &mut auth.body_bytes_max, Field::bytes_max);
    section.set("preserveLocationHeader", &mut auth.preserve_location_header, Field::truth);
    section.set("preserveRequestMethod", &mut auth.preserve_request_method, Field::truth);
    auth.auth_signin_url = section.optional("authSigninURL", Field::filled);
    section.finish();
    Some(auth)
}

fn read_client_tls(field: &Field<'_>) -> Option<ClientTls> {
    let mut section = field.block()?;
    let mut tls = ClientTls {
        ca: section.optional("ca", Field::pem),
        cert: section.optional("cert", Field::pem),
        key: section.optional("key", Field::pem),
        insecure_skip_verify: false,
    };
    section.set("insecureSkipVerify", &mut tls.insecure_skip_verify, Field::truth);
    if let Some(field) = section.take("caOptional") {
        field.truth();
        field.warn("deprecated: has no effect");
    }
    section.finish();
    Some(tls)
}
