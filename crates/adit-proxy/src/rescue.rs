//! What a visitor sees when something fails: the one place where errors become statuses and pages.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, StatusCode};

use crate::message::Response;

/// The hop of a request's way that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The visitor's request itself.
    Visitor,
    /// The edge: no such host, no such tunnel.
    Edge,
    /// Between edge and connector.
    Tunnel,
    /// Between connector and origin, or the origin itself.
    Origin,
}

/// A failure as a page: what, where, and the id under which the log has more.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Status of the answer.
    pub status: StatusCode,
    /// Where the request got stuck.
    pub hop: Hop,
    /// The failure's name in logs and metrics.
    pub reason: &'static str,
    /// One sentence for the visitor; never an address or path of the inside.
    pub sentence: &'static str,
    /// Id of the request in the log.
    pub request_id: String,
}

impl Failure {
    /// The page, as HTML if the visitor's browser wants it, else as one line of text.
    pub fn into_response(self, request_headers: &HeaderMap) -> Response {
        let wants_html = request_headers
            .get(header::ACCEPT)
            .is_some_and(|accept| accept.as_bytes().windows(9).any(|w| w.eq_ignore_ascii_case(b"text/html")));
        let mut response = if wants_html {
            Response::text(self.status, "text/html; charset=utf-8", self.html())
        } else {
            let Self { status, reason, sentence, request_id, .. } = &self;
            let line = format!("{} {sentence} (reason {reason}, request {request_id})\n", status.as_u16());
            Response::text(self.status, "text/plain; charset=utf-8", line)
        };
        response.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    fn html(&self) -> Bytes {
        let code = self.status.as_u16();
        let hops: String = HOPS
            .iter()
            .map(|(hop, name)| {
                let (class, word) = match (*hop as u8).cmp(&(self.hop as u8)) {
                    std::cmp::Ordering::Less => ("ok", "works"),
                    std::cmp::Ordering::Equal => ("bad", "failed"),
                    std::cmp::Ordering::Greater => ("unknown", "not reached"),
                };
                format!("<li class=\"{class}\"><b>{name}</b><span>{word}</span></li>")
            })
            .collect();
        let Self { sentence, reason, request_id, .. } = self;
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>{code}</title><style>{STYLE}</style><main><h1>{code}</h1><p>{sentence}</p><ol>{hops}</ol>\
             <p class=small>reason <code>{reason}</code> · request <code>{request_id}</code></p></main>"
        )
        .into()
    }
}

const HOPS: [(Hop, &str); 4] =
    [(Hop::Visitor, "You"), (Hop::Edge, "Edge"), (Hop::Tunnel, "Tunnel"), (Hop::Origin, "Origin")];

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f6f7f9;color:#1c2430}\
main{max-width:40rem;margin:12vh auto;padding:0 1.5rem}h1{font-size:4rem;margin:0;font-weight:700}\
ol{list-style:none;display:flex;flex-wrap:wrap;gap:.75rem;padding:0;margin:2rem 0}\
li{flex:1 1 7rem;padding:.75rem 1rem;border-radius:.5rem;background:#fff;border-top:4px solid #b6bec9}\
li b,li span{display:block}li span{font-size:.85rem;color:#5a6675}\
.ok{border-color:#2e9e5b}.bad{border-color:#d23f3f}.bad span{color:#b02a2a;font-weight:600}\
.small{font-size:.85rem;color:#5a6675}\
@media(prefers-color-scheme:dark){body{background:#14181f;color:#e6eaf0}li{background:#1e242e}.bad span{color:#ff7b7b}}";

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Failure {
        Failure {
            status: StatusCode::BAD_GATEWAY,
            hop: Hop::Origin,
            reason: "origin_connect",
            sentence: "The service behind this name does not answer.",
            request_id: "abc".to_owned(),
        }
    }

    #[test]
    fn a_browser_gets_a_page_and_everyone_else_a_line() {
        let mut headers = HeaderMap::new();
        let plain = failure().into_response(&headers);
        assert_eq!(plain.headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/html,*/*"));
        let page = failure().into_response(&headers);
        assert_eq!(page.headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    }
}
