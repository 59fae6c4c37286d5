//! compress: answers in gzip, brotli or zstd, as they stream.

mod accept;
mod encoder;

use adit_config::dynamic;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

use self::accept::{Choice, Coding, Preference};
use super::headers::vary;
use super::peek::peek;
use super::{Around, BoxFuture, Ctx, Next, go_url};
use crate::body::Length;
use crate::message::{Request, Response};

/// `compress`.
pub(super) struct Compress {
    preference: Preference,
    /// Media types, lower case.
    excluded: Vec<String>,
    /// If not empty: the only ones.
    included: Vec<String>,
    body_bytes_min: u64,
}

impl Compress {
    pub(super) fn new(config: &dynamic::Compress) -> Result<Self, String> {
        if !config.excluded_content_types.is_empty() && !config.included_content_types.is_empty() {
            return Err(
                "excludedContentTypes and includedContentTypes options are mutually exclusive".to_owned()
            );
        }
        let coding =
            |name: &String| Coding::parse(name).ok_or_else(|| format!("unsupported encoding: {name}"));
        let codings: Vec<Coding> = config.encodings.iter().map(coding).collect::<Result<_, _>>()?;
        if codings.is_empty() {
            return Err("at least one encoding must be specified".to_owned());
        }
        let default =
            config.default_encoding.as_ref().filter(|name| !name.is_empty()).map(coding).transpose()?;
        if let Some(coding) = default.filter(|coding| !codings.contains(coding)) {
            return Err(format!("unsupported default encoding: {}", coding.name()));
        }
        let body_bytes_min = match config.response_body_bytes_min {
            0 => BODY_BYTES_MIN,
            bytes => bytes.min(BODY_BYTES_MIN_MAX),
        };
        Ok(Self {
            preference: Preference { codings, default },
            excluded: media_types(&config.excluded_content_types)?,
            included: media_types(&config.included_content_types)?,
            body_bytes_min,
        })
    }

    /// Whether answers of this type are compressed.
    fn takes(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return self.included.is_empty() };
        // What is no media type is none of those that are excluded.
        let Some(media_type) = value.to_str().ok().and_then(media_type) else {
            return self.included.is_empty();
        };
        if !self.included.is_empty() {
            return self.included.contains(&media_type);
        }
        // gRPC compresses its own messages; events are read one by one, and some readers take no coding.
        let is_never = is_grpc(&media_type) || media_type == "text/event-stream";
        !is_never && !self.excluded.contains(&media_type)
    }

    fn is_eligible(&self, response: &Response) -> bool {
        let headers = &response.headers;
        let has_content = !response.status.is_informational()
            && !matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let is_long_enough = match response.body.length() {
            Length::Known(bytes) => bytes >= self.body_bytes_min,
            Length::Unknown => true,
            Length::Raw => false,
        };
        has_content
            && is_long_enough
            && !headers.contains_key(header::CONTENT_ENCODING)
            // A part of something plain is no part of the same thing compressed.
            && !headers.contains_key(header::CONTENT_RANGE)
            && !forbids_transformation(headers)
            && self.takes(headers)
    }

    async fn compress(&self, mut response: Response, coding: Coding) -> Response {
        vary(&mut response.headers, "Accept-Encoding");
        if !self.is_eligible(&response) {
            return response;
        }
        let body = match response.body.length() {
            Length::Unknown => {
                let peeked = peek(response.body, self.body_bytes_min).await;
                if peeked.is_complete && peeked.bytes < self.body_bytes_min {
                    return Response { body: peeked.body, ..response };
                }
                peeked.body
            }
            _ => response.body,
        };
        match encoder::compressed(body, coding) {
            Ok(body) => {
                response.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
                response.headers.remove(header::ACCEPT_RANGES);
                Response { body, ..response }
            }
            Err(_) => Response::status(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

impl Around for Compress {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        if request.method == Method::HEAD || request.upgrade.is_some() {
            return next.run(request, ctx);
        }
        let sent = go_url::field(&request.headers, "content-type").and_then(media_type).unwrap_or_default();
        if is_grpc(&sent) || self.excluded.contains(&sent) {
            return next.run(request, ctx);
        }
        match self.preference.choose(&request.headers) {
            Choice::Untouched => next.run(request, ctx),
            Choice::PlainFor(_) => Box::pin(async move {
                let mut response = next.run(request, ctx).await;
                vary(&mut response.headers, "Accept-Encoding");
                response
            }),
            Choice::Encode(coding) => {
                Box::pin(async move { self.compress(next.run(request, ctx).await, coding).await })
            }
        }
    }
}

/// gRPC's own type, with or without a format; gRPC-Web's is another, for browsers, which know codings.
fn is_grpc(media_type: &str) -> bool {
    media_type.strip_prefix("application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// RFC 9110 §7.7.
fn forbids_transformation(headers: &HeaderMap) -> bool {
    headers.get_all(header::CACHE_CONTROL).iter().any(|line| {
        let mut directives = line.as_bytes().split(|byte| *byte == b',');
        directives.any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
    })
}

fn media_types(texts: &[String]) -> Result<Vec<String>, String> {
    let parse = |text: &String| media_type(text).ok_or_else(|| format!("{text:?} is not a media type"));
    texts.iter().map(parse).collect()
}

/// Type and subtype in lower case, without parameters.
fn media_type(text: &str) -> Option<String> {
    let media_type = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_token = |token: &str| {
        !token.is_empty()
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let is_valid = match media_type.split_once('/') {
        Some((kind, subtype)) => is_token(kind) && is_token(subtype),
        None => is_token(&media_type),
    };
    is_valid.then_some(media_type)
}

/// Shorter answers gain nothing.
const BODY_BYTES_MIN: u64 = 1024;
/// How much of an answer without a length is held back at most to see whether it is worth compressing.
const BODY_BYTES_MIN_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read as _;

    use super::super::tests::{Echo, content, ctx, request_with};
    use super::super::{Layer, run};
    use super::*;
    use crate::body::Batch;

    async fn asked(config: &dynamic::Compress, target: &Echo, accept: &str) -> Response {
        let chain = [Layer::around("m", Compress::new(config).unwrap())];
        let request = request_with("/", &[("accept-encoding", accept)]);
        run(&chain, target, request, &mut ctx()).await
    }

    fn decoded(coding: &str, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            "gzip" => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).map(drop),
            "br" => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out).map(drop),
            _ => zstd::stream::copy_decode(bytes, &mut out),
        }
        .unwrap();
        out
    }

    #[tokio::test]
    async fn each_coding_comes_back_as_it_was() {
        let text = "compress me ".repeat(50_000);
        for coding in ["gzip", "br", "zstd"] {
            for target in [Echo::text(&text), Echo::streaming(&text)] {
                let response = asked(&dynamic::Compress::default(), &target, coding).await;
                assert_eq!(response.headers["content-encoding"], coding);
                assert_eq!(response.headers["vary"], "Accept-Encoding");
                assert_eq!(response.body.length(), Length::Unknown);
                let bytes = content(response.body).await;
                assert!(bytes.len() < text.len() / 10);
                assert!(decoded(coding, &bytes) == text.as_bytes());
            }
        }
    }

    #[tokio::test]
    async fn what_a_paused_stream_has_sent_can_be_decoded_at_once() {
        for coding in ["gzip", "br", "zstd"] {
            let (target, _sender) = Echo::paused_after("data: 1\n\n");
            let mut response = asked(&dynamic::Compress::default(), &target, coding).await;
            assert_eq!(response.headers["content-encoding"], coding);
            let mut batch = Batch::new();
            let more = poll_fn(|cx| response.body.poll_chunks(cx, &mut batch)).await;
            assert_eq!(more, Ok(true));
            let bytes: Vec<u8> = batch.iter().flatten().copied().collect();
            let mut first = [0; 9];
            match coding {
                "gzip" => flate2::read::GzDecoder::new(&bytes[..]).read_exact(&mut first),
                "br" => brotli::Decompressor::new(&bytes[..], 4096).read_exact(&mut first),
                _ => zstd::stream::read::Decoder::new(&bytes[..]).unwrap().read_exact(&mut first),
            }
            .unwrap();
            assert_eq!(&first, b"data: 1\n\n");
        }
    }

    #[tokio::test]
    async fn events_grpc_encoded_partial_and_short_answers_stay_as_they_are() {
        let long = "x".repeat(4000);
        let plain = [
            Echo::text(&long).with("content-type", "text/event-stream"),
            Echo::text(&long).with("content-type", "application/grpc+proto"),
            Echo::text(&long).with("content-encoding", "br"),
            Echo::text(&long).with("content-range", "bytes 0-3999/8000"),
            Echo::text(&long).with("cache-control", "public, No-Transform"),
            Echo::text("short"),
            Echo::streaming("short"),
        ];
        for target in plain {
            let before = target.seen_headers();
            let response = asked(&dynamic::Compress::default(), &target, "gzip").await;
            assert_eq!(response.headers.get("content-encoding"), before.get("content-encoding"));
        }
    }

    #[tokio::test]
    async fn grpc_web_and_what_is_no_media_type_are_compressed() {
        for kind in ["application/grpc-web+proto", "application/grpc-web-text", "not a type"] {
            let target = Echo::text(&"x".repeat(4000)).with("content-type", kind);
            let response = asked(&dynamic::Compress::default(), &target, "gzip").await;
            assert_eq!(response.headers["content-encoding"], "gzip", "{kind}");
        }
    }

    #[tokio::test]
    async fn the_operators_lists_of_types_hold() {
        let long = Echo::text(&"x".repeat(4000)).with("content-type", "Text/Plain; charset=utf-8");
        let excluding =
            dynamic::Compress { excluded_content_types: vec!["text/plain".to_owned()], ..Default::default() };
        assert!(!asked(&excluding, &long, "gzip").await.headers.contains_key("content-encoding"));
        let including =
            dynamic::Compress { included_content_types: vec!["text/plain".to_owned()], ..Default::default() };
        assert!(asked(&including, &long, "gzip").await.headers.contains_key("content-encoding"));
        let both = dynamic::Compress { excluded_content_types: vec!["a/b".to_owned()], ..including };
        assert!(Compress::new(&both).is_err());
        let unknown = dynamic::Compress { encodings: vec!["deflate".to_owned()], ..Default::default() };
        assert!(Compress::new(&unknown).is_err());
    }
}
