//! Middlewares that rewrite the path: addPrefix, stripPrefix, stripPrefixRegex, replacePath, replacePathRegex.
//!
//! All work on the encoded path and look at the decoded one where the operator's text is meant decoded. A rewrite that
//! leaves a path which an upstream would read differently (`//`, `..`) is answered with 400, never passed on.

use std::ops::ControlFlow;

use adit_config::dynamic;
use adit_route::compile_go_regex;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use regex::Regex;

use super::template::Template;
use super::{Ctx, Edit, go_url, reply};
use crate::message::{Request, Response};

/// `addPrefix`.
pub(super) struct AddPrefix {
    /// Encoded.
    prefix: String,
}

impl AddPrefix {
    pub(super) fn new(config: &dynamic::AddPrefix) -> Result<Self, String> {
        if config.prefix.is_empty() {
            return Err("prefix cannot be empty".to_owned());
        }
        Ok(Self { prefix: go_url::escape(config.prefix.as_bytes()) })
    }
}

impl Edit for AddPrefix {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let path = format!("{}{}", self.prefix, request.uri.path());
        set_path(request, ctx, &path)
    }
}

/// `stripPrefix`.
pub(super) struct StripPrefix {
    prefixes: Vec<String>,
    force_slash: bool,
}

impl StripPrefix {
    pub(super) fn new(config: &dynamic::StripPrefix) -> Self {
        Self {
            prefixes: config.prefixes.iter().map(|prefix| prefix.trim().to_owned()).collect(),
            force_slash: config.force_slash,
        }
    }
}

impl Edit for StripPrefix {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let Ok(decoded) = go_url::unescape(request.uri.path()) else { return bad_path(ctx) };
        let found = self.prefixes.iter().find(|prefix| decoded.starts_with(prefix.as_bytes()));
        match found {
            Some(prefix) => strip(request, ctx, prefix.as_bytes(), self.force_slash),
            None => ControlFlow::Continue(()),
        }
    }
}

/// `stripPrefixRegex`.
pub(super) struct StripPrefixRegex {
    expressions: Vec<Regex>,
}

impl StripPrefixRegex {
    pub(super) fn new(config: &dynamic::StripPrefixRegex) -> Result<Self, String> {
        let expressions =
            config.regex.iter().map(|text| compile_go_regex(text.trim())).collect::<Result<_, _>>()?;
        Ok(Self { expressions })
    }
}

impl Edit for StripPrefixRegex {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let Ok(decoded) = go_url::unescape(request.uri.path()) else { return bad_path(ctx) };
        let decoded = String::from_utf8_lossy(&decoded).into_owned();
        // A pattern need not be anchored, but what it finds counts only at the start.
        let found = self
            .expressions
            .iter()
            .filter_map(|expression| expression.find(&decoded))
            .find(|found| !found.is_empty() && decoded.starts_with(found.as_str()));
        match found {
            Some(found) => strip(request, ctx, found.as_str().as_bytes(), false),
            None => ControlFlow::Continue(()),
        }
    }
}

/// `replacePath`.
pub(super) struct ReplacePath {
    path: String,
}

impl ReplacePath {
    pub(super) fn new(config: &dynamic::ReplacePath) -> Self {
        Self { path: config.path.clone() }
    }
}

impl Edit for ReplacePath {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        append(request, X_REPLACED_PATH, request.uri.path().to_owned().as_bytes());
        replace(request, ctx, &self.path)
    }
}

/// `replacePathRegex`.
pub(super) struct ReplacePathRegex {
    expression: Regex,
    replacement: Template,
}

impl ReplacePathRegex {
    pub(super) fn new(config: &dynamic::ReplacePathRegex) -> Result<Self, String> {
        Ok(Self {
            expression: compile_go_regex(config.regex.trim())?,
            replacement: Template::parse(config.replacement.trim()),
        })
    }
}

impl Edit for ReplacePathRegex {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        let current = request.uri.path().to_owned();
        if !self.expression.is_match(&current) {
            return ControlFlow::Continue(());
        }
        append(request, X_REPLACED_PATH, current.as_bytes());
        let path = self.replacement.replace_all(&self.expression, &current);
        replace(request, ctx, &path)?;
        if !path.is_empty() && !go_url::is_clean(&path) {
            return bad_path(ctx);
        }
        ControlFlow::Continue(())
    }
}

/// Takes a decoded prefix off the encoded path and tells the upstream about it.
fn strip(request: &mut Request, ctx: &mut Ctx, prefix: &[u8], force_slash: bool) -> ControlFlow<Response> {
    let path = request.uri.path();
    let rest = path.get(encoded_length(path, prefix.len())..).unwrap_or("").to_owned();
    let rest = match force_slash {
        true => format!("/{}", rest.strip_prefix('/').unwrap_or(&rest)),
        false => go_url::with_leading_slash(rest),
    };
    if !rest.is_empty() && !go_url::is_clean(&rest) {
        return bad_path(ctx);
    }
    append(request, X_FORWARDED_PREFIX, prefix);
    set_path(request, ctx, &rest)
}

/// How many bytes of `path` stand for its first `decoded` decoded ones.
fn encoded_length(path: &str, decoded: usize) -> usize {
    let bytes = path.as_bytes();
    let mut at = 0;
    for _ in 0..decoded {
        match bytes.get(at) {
            Some(b'%') => at += 3,
            Some(_) => at += 1,
            None => break,
        }
    }
    at.min(bytes.len())
}

fn replace(request: &mut Request, ctx: &mut Ctx, path: &str) -> ControlFlow<Response> {
    match go_url::escaped(path) {
        Ok(path) => set_path(request, ctx, &path),
        Err(error) => {
            ctx.refused("path_replacement_invalid");
            ControlFlow::Break(reply::error(StatusCode::INTERNAL_SERVER_ERROR, &error))
        }
    }
}

fn set_path(request: &mut Request, ctx: &mut Ctx, path: &str) -> ControlFlow<Response> {
    match go_url::set_path(request, path) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => bad_path(ctx),
    }
}

fn bad_path(ctx: &mut Ctx) -> ControlFlow<Response> {
    ctx.refused("path_unclean");
    ControlFlow::Break(reply::error(StatusCode::BAD_REQUEST, reply::text(StatusCode::BAD_REQUEST)))
}

fn append(request: &mut Request, name: HeaderName, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        request.headers.append(name, value);
    }
}

const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_REPLACED_PATH: HeaderName = HeaderName::from_static("x-replaced-path");

#[cfg(test)]
mod tests {
    use super::super::tests::{ctx, request};
    use super::*;

    fn after(edit: &dyn Edit, target: &str) -> Result<Request, StatusCode> {
        let mut request = request(target);
        match edit.edit(&mut request, &mut ctx()) {
            ControlFlow::Continue(()) => Ok(request),
            ControlFlow::Break(response) => Err(response.status),
        }
    }

    fn target_after(edit: &dyn Edit, target: &str) -> String {
        go_url::target(&after(edit, target).unwrap().uri).to_owned()
    }

    fn strip_prefix(prefixes: &[&str]) -> StripPrefix {
        let prefixes = prefixes.iter().map(|p| (*p).to_owned()).collect();
        StripPrefix::new(&dynamic::StripPrefix { prefixes, force_slash: false })
    }

    #[test]
    fn the_first_prefix_in_the_list_is_stripped_character_by_character() {
        assert_eq!(target_after(&strip_prefix(&["/a", "/a/b"]), "/a/b/c"), "/b/c");
        assert_eq!(target_after(&strip_prefix(&["/stat"]), "/status"), "/us");
        assert_eq!(target_after(&strip_prefix(&["/api"]), "/api"), "/");
        assert_eq!(target_after(&strip_prefix(&["/api"]), "/api/a%2Fb?q"), "/a%2Fb?q");
        assert_eq!(target_after(&strip_prefix(&["/a b"]), "/a%20b/c%20d"), "/c%20d");
    }

    #[test]
    fn a_rest_that_reads_as_another_path_is_refused() {
        assert_eq!(after(&strip_prefix(&["/api"]), "/api/../admin").unwrap_err(), StatusCode::BAD_REQUEST);
        assert_eq!(after(&strip_prefix(&["/api/"]), "/api///x").unwrap_err(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_regular_expression_strips_only_at_the_start() {
        let strip = |regex: &str| {
            StripPrefixRegex::new(&dynamic::StripPrefixRegex { regex: vec![regex.to_owned()] }).unwrap()
        };
        let request = after(&strip("/v[0-9]+/"), "/v2/users").unwrap();
        assert_eq!(request.uri.path(), "/users");
        assert_eq!(request.headers["x-forwarded-prefix"], "/v2/");
        assert_eq!(target_after(&strip("/v[0-9]+"), "/api/v2/x"), "/api/v2/x");
    }

    #[test]
    fn replacements_keep_the_query_and_tell_the_old_path() {
        let fixed = ReplacePath::new(&dynamic::ReplacePath { path: "/fixed".to_owned() });
        let request = after(&fixed, "/any%2Fx?q=1").unwrap();
        assert_eq!(go_url::target(&request.uri), "/fixed?q=1");
        assert_eq!(request.headers["x-replaced-path"], "/any%2Fx");
        let regex = |regex: &str, replacement: &str| {
            ReplacePathRegex::new(&dynamic::ReplacePathRegex {
                regex: regex.to_owned(),
                replacement: replacement.to_owned(),
            })
            .unwrap()
        };
        assert_eq!(target_after(&regex("^/old/(.*)", "/new/$1"), "/old/a/b"), "/new/a/b");
        assert_eq!(after(&regex("^/old(.*)", "/new/$1"), "/old/a").unwrap_err(), StatusCode::BAD_REQUEST);
        let broken = after(&regex("^/old(.*)", "/%zz$1"), "/old/a").unwrap_err();
        assert_eq!(broken, StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn a_prefix_is_encoded_once() {
        let add = AddPrefix::new(&dynamic::AddPrefix { prefix: "/a b".to_owned() }).unwrap();
        assert_eq!(target_after(&add, "/x?y=1"), "/a%20b/x?y=1");
        assert!(AddPrefix::new(&dynamic::AddPrefix::default()).is_err());
    }
}
