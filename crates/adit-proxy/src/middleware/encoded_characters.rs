//! encodedCharacters: refuses escapes that an upstream might decode into a path of its own.

use std::ops::ControlFlow;

use adit_config::dynamic;
use adit_route::path::check_encoded;
use http::StatusCode;

use super::{Ctx, Edit};
use crate::message::{Request, Response};

/// `encodedCharacters`.
pub(super) struct EncodedCharacters(dynamic::EncodedCharacters);

impl EncodedCharacters {
    pub(super) fn new(config: &dynamic::EncodedCharacters) -> Self {
        Self(*config)
    }
}

impl Edit for EncodedCharacters {
    fn edit(&self, request: &mut Request, ctx: &mut Ctx) -> ControlFlow<Response> {
        match check_encoded(request.uri.path(), &self.0) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => {
                ctx.refused("path_encoded_character");
                ControlFlow::Break(Response::status(StatusCode::BAD_REQUEST))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ctx, request};
    use super::*;

    #[test]
    fn only_what_is_allowed_passes_encoded() {
        let allow_slash = dynamic::EncodedCharacters { allow_slash: true, ..Default::default() };
        let refused = |config: &dynamic::EncodedCharacters, target: &str| {
            EncodedCharacters::new(config).edit(&mut request(target), &mut ctx()).is_break()
        };
        assert!(!refused(&allow_slash, "/a%2fb%20c"));
        assert!(refused(&allow_slash, "/a%5Cb"));
        assert!(refused(&dynamic::EncodedCharacters::default(), "/a%2Fb"));
        assert!(!refused(&dynamic::EncodedCharacters::ALL, "/%2F%5C%00%3B%25%3F%23"));
    }
}
