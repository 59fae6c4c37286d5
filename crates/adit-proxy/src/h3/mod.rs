//! HTTP/3 (RFC 9114) to visitors, over quinn and the `h3` crate.
//!
//! Its UDP socket has the same port as its entry point's TCP socket, and visitors learn of it by `Alt-Svc`. Requests reach
//! the same service as those of HTTP/1.1 and HTTP/2. WebSocket over HTTP/3 (RFC 9220) is not offered: browsers open
//! WebSockets over TCP then.
//!
//! Read first: `listener.rs` → `connection.rs` → `stream.rs`; `bounded.rs` limits what `h3` would hold.

mod bounded;
mod connection;
pub mod listener;
mod stream;
#[cfg(test)]
mod tests;

use http::HeaderValue;

/// The value of `Alt-Svc` (RFC 7838) that tells visitors of HTTP/3 on a UDP port of the same host, for 30 days.
pub fn alt_svc(port: u16) -> HeaderValue {
    HeaderValue::try_from(format!("h3=\":{port}\"; ma=2592000")).unwrap_or(HeaderValue::from_static("clear"))
}
