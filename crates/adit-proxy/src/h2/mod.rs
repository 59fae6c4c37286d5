//! HTTP/2 (RFC 9113) over the `h2` crate, both sides.

pub mod client;
pub(crate) mod fields;
mod gathered;
pub mod server;
mod stream;
mod streams;
pub(crate) mod websocket;
