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
        let path = format!("{}{}", self.prefix, current(request, ctx));
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
        let Ok(decoded) = go_url::unescape(current(request, ctx)) else { return bad_path(ctx) };
        let found = self.prefixes.iter().find(|prefix| decoded.starts_with(prefix.as_bytes()));
        match found {
            Some(prefix) => strip(request, ctx, &decoded, prefix.as_bytes(), self.force_slash),
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
        let Ok(decoded) = go_url::unescape(current(request, ctx)) else { return bad_path(ctx) };
        let text = String::from_utf8_lossy(&decoded);
        // A pattern need not be anchored, but what it finds counts only at the start.
        let found = self
            .expressions
            .iter()
            .filter_map(|expression| expression.find(&text))
            .find(|found| !found.is_empty() && decoded.starts_with(found.as_str().as_bytes()));
        match found {
            Some(found) => strip(request, ctx, &decoded, found.as_str().as_bytes(), false),
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
        let current = current(request, ctx).to_owned();
        append(request, X_REPLACED_PATH, current.as_bytes());
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
        let current = current(request, ctx).to_owned();
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
fn strip(
    request: &mut Request,
    ctx: &mut Ctx,
    decoded: &[u8],
    prefix: &[u8],
    force_slash: bool,
) -> ControlFlow<Response> {
    let path = current(request, ctx);
    let written = with_slash(&path.as_bytes()[encoded_length(path, prefix.len())..], force_slash);
    let decoded = with_slash(&decoded[prefix.len()..], force_slash);
    // Where the prefix ended inside or before an escaped slash, what is written no longer says what is left.
    let written = match String::from_utf8(written) {
        Ok(written) if go_url::unescape(&written).is_ok_and(|bytes| bytes == decoded) => written,
        _ => go_url::escape(&decoded),
    };
    if !written.is_empty() && !go_url::is_clean(&written) {
        return bad_path(ctx);
    }
    append(request, X_FORWARDED_PREFIX, prefix);
    set_path(request, ctx, &written)
}

fn with_slash(rest: &[u8], force_slash: bool) -> Vec<u8> {
    match rest {
        [] if !force_slash => Vec::new(),
        [b'/', ..] => rest.to_vec(),
        rest => [b"/", rest].concat(),
    }
}

/// The path as the middlewares before have left it: empty if they stripped all of it.
fn current<'a>(request: &'a Request, ctx: &Ctx) -> &'a str {
    match request.uri.path() {
        "/" if ctx.path_is_empty => "",
        path => path,
    }
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
        Ok(()) => {
            ctx.path_is_empty = path.is_empty();
            ControlFlow::Continue(())
        }
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
        after_all(&[edit], target)
    }

    fn after_all(edits: &[&dyn Edit], target: &str) -> Result<Request, StatusCode> {
        let (mut request, mut ctx) = (request(target), ctx());
        for edit in edits {
            if let ControlFlow::Break(response) = edit.edit(&mut request, &mut ctx) {
                return Err(response.status);
            }
        }
        Ok(request)
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
    fn a_prefix_that_ends_at_an_escaped_slash_leaves_what_was_meant() {
        for (prefix, target, want) in [
            ("/a", "/a%2fx", Some("/x")),
            ("/a/b", "/a%2Fb%2Fc", Some("/c")),
            ("/a", "/a/x%2Fy", Some("/x%2Fy")),
            ("/a", "/a%2F..%2Fbar", None),
            ("/a", "/a%2f%2fx", None),
            ("/a", "/a%2F%2E%2E%2Fbar", None),
        ] {
            let stripped = after(&strip_prefix(&[prefix]), target);
            let path = stripped.as_ref().map(|request| request.uri.path()).map_err(|status| *status);
            assert_eq!(path, want.ok_or(StatusCode::BAD_REQUEST), "{target}");
            let regex = dynamic::StripPrefixRegex { regex: vec![format!("^{prefix}")] };
            let by_regex = after(&StripPrefixRegex::new(&regex).unwrap(), target);
            assert_eq!(by_regex.map(|request| request.uri), stripped.map(|request| request.uri), "{target}");
        }
    }

    #[test]
    fn what_follows_a_path_stripped_to_nothing_begins_with_nothing() {
        let strip = strip_prefix(&["/a"]);
        let add = AddPrefix::new(&dynamic::AddPrefix { prefix: "/z".to_owned() }).unwrap();
        let replace = ReplacePathRegex::new(&dynamic::ReplacePathRegex {
            regex: "^(.*)$".to_owned(),
            replacement: "/p$1".to_owned(),
        })
        .unwrap();
        let target = |edits: &[&dyn Edit], target: &str| {
            go_url::target(&after_all(edits, target).unwrap().uri).to_owned()
        };
        assert_eq!(target(&[&strip, &add], "/a"), "/z");
        assert_eq!(target(&[&strip, &add], "/a?q"), "/z?q");
        assert_eq!(target(&[&strip, &add], "/a/"), "/z/");
        assert_eq!(target(&[&strip, &add, &strip], "/a"), "/z");
        let replaced = after_all(&[&strip, &replace], "/a").unwrap();
        assert_eq!(
            (replaced.uri.path(), &replaced.headers["x-replaced-path"]),
            ("/p", &HeaderValue::from_static(""))
        );
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
