//! HTTP/1.1 (RFC 9112), both sides, written for a proxy.
//!
//! Why not hyper here: a gateway must see and refuse what a lenient parser repairs (bare LF, both framings, folded
//! lines), has to hand over both directions of an upgraded connection, and is measured against nginx; ARCHITECTURE.md
//! records the decision. `httparse` still reads the lines.

pub mod client;
pub mod encode;
pub mod framing;
pub mod head;
mod plain;
pub(crate) mod scratch;
pub mod server;
pub mod source;
