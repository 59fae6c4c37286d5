//! Heads that cross a tunnel, with what a browser and a usual application send.

use std::hint::black_box;

use adit_tunnel_proto::{
    ConnectResponse, Preamble, PreambleDecoder, RequestHead, ResponseDecoder, ResponseHead,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

pub(crate) fn encode_request(turns: u32) {
    let head = request_head();
    for _ in 0..turns {
        black_box(adit_tunnel_proto::encode_request(black_box(&head)).expect("the head is right"));
    }
}

pub(crate) fn request(turns: u32) {
    let head = request_head();
    for _ in 0..turns {
        let bytes = adit_tunnel_proto::encode_request(black_box(&head)).expect("the head is right");
        let mut decoder = PreambleDecoder::new();
        decoder.handle_chunk(bytes);
        assert!(matches!(decoder.poll_lines(), Ok(Some(Preamble::Request(_)))), "it is whole");
    }
}

pub(crate) fn encode_response(turns: u32) {
    let head = response_head();
    for _ in 0..turns {
        black_box(encoded(black_box(&head)));
    }
}

pub(crate) fn response(turns: u32) {
    let head = response_head();
    for _ in 0..turns {
        let mut decoder = ResponseDecoder::new();
        decoder.handle_chunk(encoded(black_box(&head)));
        assert!(matches!(decoder.poll_lines(), Ok(Some(ConnectResponse::Head(_)))), "it is whole");
    }
}

fn encoded(head: &ConnectResponse) -> Bytes {
    adit_tunnel_proto::encode_response(head).expect("the head is right")
}

fn request_head() -> RequestHead {
    let mut head =
        RequestHead::new(Method::GET, "https://app.example.com/api/v1/items/42", "app.example.com");
    head.headers = headers(&[
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("cookie", "session=0123456789abcdef0123456789abcdef; theme=dark"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("cf-connecting-ip", "203.0.113.7"),
        ("cf-ray", "0123456789abcdef-FRA"),
        ("priority", "u=0, i"),
    ]);
    head
}

fn response_head() -> ConnectResponse {
    ConnectResponse::Head(ResponseHead {
        status: StatusCode::OK,
        headers: headers(&[
            ("content-type", "text/html; charset=utf-8"),
            ("content-length", "1024"),
            ("date", "Sun, 22 Nov 2026 12:00:00 GMT"),
            ("server", "nginx"),
            ("etag", "\"0123456789abcdef\""),
            ("cache-control", "no-cache"),
        ]),
    })
}

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    fields.iter().map(field).collect()
}
