//! What basicAuth and digestAuth share: lists of users, the answer to strangers, what the upstream learns.

use std::path::Path;

use adit_config::Secret;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::headers::field_name;
use crate::message::{Request, Response};

/// What is done with the request of a user who may pass.
pub(super) struct Admission {
    header_field: Option<HeaderName>,
    remove_header: bool,
}

impl Admission {
    pub(super) fn new(header_field: Option<&str>, remove_header: bool) -> Result<Self, String> {
        let header_field = header_field.filter(|name| !name.is_empty()).map(field_name).transpose()?;
        Ok(Self { header_field, remove_header })
    }

    /// Tells the upstream who asks; what the visitor wrote into that field goes, and so do its trailers, where it could say
    /// it again.
    pub(super) fn apply(&self, request: &mut Request, user: &str) {
        let headers = &mut request.headers;
        if self.remove_header {
            headers.remove(header::AUTHORIZATION);
        }
        if let Some(name) = &self.header_field {
            request.body.limit_trailers(Vec::new());
            headers.remove(name);
            if let Ok(value) = HeaderValue::from_bytes(user.as_bytes()) {
                headers.insert(name, value);
            }
        }
    }
}

/// The lines of the file, then those of the configuration: a name that comes twice has its last hash.
pub(super) fn read(users: &[Secret], file: Option<&Path>) -> Result<Vec<Secret>, String> {
    let mut all = Vec::new();
    if let Some(file) = file {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let text = Zeroizing::new(text);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        all.extend(lines.map(|line| Secret::new(line.as_bytes().to_vec())));
    }
    all.extend(users.iter().cloned());
    Ok(all)
}

/// The challenge to whoever has not shown a right password.
pub(super) fn unauthorized(challenge: HeaderValue) -> Response {
    let mut response = Response::text(StatusCode::UNAUTHORIZED, "text/plain", "401 Unauthorized\n");
    response.headers.insert(header::WWW_AUTHENTICATE, challenge);
    response
}
