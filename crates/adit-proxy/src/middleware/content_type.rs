//! contentType: guesses a missing content type from the first bytes, as Go's server does.

use adit_config::dynamic;
use http::StatusCode;
use http::header::{self, HeaderValue};

use super::peek::{SAMPLE_BYTES_MAX, peek};
use super::{Around, BoxFuture, Ctx, Next};
use crate::body::Length;
use crate::message::{Request, Response};

/// `contentType`.
pub(super) struct ContentType {
    is_on: bool,
}

impl ContentType {
    pub(super) fn new(config: &dynamic::ContentType) -> Self {
        Self { is_on: config.auto_detect != Some(false) }
    }
}

impl Around for ContentType {
    fn handle<'a>(&'a self, request: Request, ctx: &'a mut Ctx, next: Next<'a>) -> BoxFuture<'a, Response> {
        if !self.is_on {
            return next.run(request, ctx);
        }
        Box::pin(async move {
            let mut response = next.run(request, ctx).await;
            let has_content = !response.status.is_informational()
                && !matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
                && !matches!(response.body.length(), Length::Known(0) | Length::Raw);
            let is_told = response.headers.contains_key(header::CONTENT_TYPE);
            if !has_content || is_told || response.headers.contains_key(header::CONTENT_ENCODING) {
                return response;
            }
            let peeked = peek(response.body, SAMPLE_BYTES_MAX as u64).await;
            response.body = peeked.body;
            if !peeked.sample.is_empty() {
                let guess = HeaderValue::from_static(sniff(&peeked.sample));
                response.headers.insert(header::CONTENT_TYPE, guess);
            }
            response
        })
    }
}

/// WHATWG MIME Sniffing §7, in the subset and with the names of Go.
fn sniff(data: &[u8]) -> &'static str {
    let text_at = data.iter().position(|byte| !matches!(byte, b'\t' | b'\n' | 0x0c | b'\r' | b' '));
    let text = text_at.and_then(|at| data.get(at..)).unwrap_or_default();
    if HTML_TAGS.iter().any(|tag| begins_tag(text, tag)) {
        return "text/html; charset=utf-8";
    }
    if text.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    for (signature, name) in SIGNATURES {
        let fits = data.len() >= signature.len()
            && signature.iter().zip(data).all(|(wanted, byte)| *wanted == ANY || *wanted == i16::from(*byte));
        if fits {
            return name;
        }
    }
    if is_mp4(data) {
        return "video/mp4";
    }
    let is_binary = |byte: &u8| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    if text.iter().any(is_binary) { "application/octet-stream" } else { "text/plain; charset=utf-8" }
}

fn begins_tag(text: &[u8], tag: &[u8]) -> bool {
    let Some((start, rest)) = text.split_at_checked(tag.len()) else { return false };
    start.eq_ignore_ascii_case(tag) && matches!(rest.first(), Some(b' ' | b'>'))
}

/// An ISO base media file whose brands name mp4.
fn is_mp4(data: &[u8]) -> bool {
    let Some(size) = data.first_chunk().map(|size| u32::from_be_bytes(*size) as usize) else { return false };
    if data.len() < 12 || data.len() < size || !size.is_multiple_of(4) || &data[4..8] != b"ftyp" {
        return false;
    }
    let mut brands = data[..size].chunks_exact(4).enumerate().skip(2);
    brands.any(|(index, brand)| index != 3 && brand.starts_with(b"mp4"))
}

const HTML_TAGS: [&[u8]; 17] = [
    b"<!DOCTYPE HTML",
    b"<HTML",
    b"<HEAD",
    b"<SCRIPT",
    b"<IFRAME",
    b"<H1",
    b"<DIV",
    b"<FONT",
    b"<TABLE",
    b"<A",
    b"<STYLE",
    b"<TITLE",
    b"<B",
    b"<BODY",
    b"<BR",
    b"<P",
    b"<!--",
];

/// In a signature: any byte.
const ANY: i16 = -1;

/// A signature of so many bytes, dots standing for any byte.
const fn signature<const N: usize>(text: &[u8; N]) -> [i16; N] {
    let mut out = [ANY; N];
    let mut at = 0;
    while at < N {
        if text[at] != b'.' {
            out[at] = text[at] as i16;
        }
        at += 1;
    }
    out
}

const SIGNATURES: [(&[i16], &str); 31] = [
    (&signature(b"%PDF-"), "application/pdf"),
    (&signature(b"%!PS-Adobe-"), "application/postscript"),
    (&[0xfe, 0xff, ANY, ANY], "text/plain; charset=utf-16be"),
    (&[0xff, 0xfe, ANY, ANY], "text/plain; charset=utf-16le"),
    (&[0xef, 0xbb, 0xbf, ANY], "text/plain; charset=utf-8"),
    (&[0, 0, 1, 0], "image/x-icon"),
    (&[0, 0, 2, 0], "image/x-icon"),
    (&signature(b"BM"), "image/bmp"),
    (&signature(b"GIF87a"), "image/gif"),
    (&signature(b"GIF89a"), "image/gif"),
    (&signature(b"RIFF....WEBPVP"), "image/webp"),
    (&signature(b"\x89PNG\r\n\x1a\n"), "image/png"),
    (&[0xff, 0xd8, 0xff], "image/jpeg"),
    (&signature(b"FORM....AIFF"), "audio/aiff"),
    (&signature(b"ID3"), "audio/mpeg"),
    (&signature(b"OggS\0"), "application/ogg"),
    (&signature(b"MThd\0\0\0\x06"), "audio/midi"),
    (&signature(b"RIFF....AVI "), "video/avi"),
    (&signature(b"RIFF....WAVE"), "audio/wave"),
    (&[0x1a, 0x45, 0xdf, 0xa3], "video/webm"),
    (&FONT_OBJECT, "application/vnd.ms-fontobject"),
    (&[0, 1, 0, 0], "font/ttf"),
    (&signature(b"OTTO"), "font/otf"),
    (&signature(b"ttcf"), "font/collection"),
    (&signature(b"wOFF"), "font/woff"),
    (&signature(b"wOF2"), "font/woff2"),
    (&[0x1f, 0x8b, 8], "application/x-gzip"),
    (&signature(b"PK\x03\x04"), "application/zip"),
    (&signature(b"Rar!\x1a\x07\0"), "application/x-rar-compressed"),
    (&signature(b"Rar!\x1a\x07\x01\0"), "application/x-rar-compressed"),
    (&signature(b"\0asm"), "application/wasm"),
];

/// 34 bytes of anything, then `LP`.
const FONT_OBJECT: [i16; 36] = {
    let mut out = [ANY; 36];
    out[34] = b'L' as i16;
    out[35] = b'P' as i16;
    out
};

#[cfg(test)]
mod tests {
    use super::super::tests::{Echo, content, ctx, request};
    use super::super::{Layer, run};
    use super::*;

    #[test]
    fn types_are_those_of_go() {
        for (data, name) in [
            (&b" \n<!doctype HTML>\n"[..], "text/html; charset=utf-8"),
            (b"<p >", "text/html; charset=utf-8"),
            (b"<pre>", "text/plain; charset=utf-8"),
            (b"<?xml version", "text/xml; charset=utf-8"),
            (b"{\"a\":1}", "text/plain; charset=utf-8"),
            (b"GIF89a...", "image/gif"),
            (b"RIFFabcdWAVEfmt", "audio/wave"),
            (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video/mp4"),
            (b"\x1f\x8b\x08\0", "application/x-gzip"),
            (b"a\x01", "application/octet-stream"),
        ] {
            assert_eq!(sniff(data), name, "{data:?}");
        }
    }

    #[tokio::test]
    async fn only_a_missing_type_is_guessed() {
        let chain = [Layer::around("m", ContentType::new(&dynamic::ContentType::default()))];
        let response = run(&chain, &Echo::streaming("<html>"), request("/"), &mut ctx()).await;
        assert_eq!(response.headers["content-type"], "text/html; charset=utf-8");
        assert_eq!(content(response.body).await, b"<html>");
        let told = Echo::text("<html>").with("content-type", "a/b");
        let response = run(&chain, &told, request("/"), &mut ctx()).await;
        assert_eq!(response.headers["content-type"], "a/b");
        let off = [Layer::around("m", ContentType::new(&dynamic::ContentType { auto_detect: Some(false) }))];
        let response = run(&off, &Echo::text("<html>"), request("/"), &mut ctx()).await;
        assert!(!response.headers.contains_key("content-type"));
    }
}
