//! adit's HTTP data path: it listens, ends TLS, reads requests, forwards them to origins and streams the answers back.
//!
//! It never decides where a request goes (`adit-route` does), never knows what a tunnel is, and never sees where the
//! configuration came from. It never holds a whole body, except where an origin insists on a length
//! (`disableChunkedEncoding`).
//!
//! Contract: a [`message::Request`] comes in with its content unread; whoever answers it pulls the content as fast as
//! it can pass it on. Dropping a future or a body aborts that direction on every hop behind it.
//!
//! Read first: `message.rs`, `body.rs`, then `listen.rs` → `h1/server.rs` → `origin.rs` → `h1/client.rs`.

pub mod body;
pub mod clock;
pub mod connect;
pub mod date;
pub mod drain;
pub mod fields;
pub mod forwarded;
pub mod h1;
pub mod h2;
pub mod h3;
pub mod headers;
pub mod idle;
pub mod inlet;
pub mod io;
pub mod lanes;
pub mod listen;
pub mod mesh;
pub mod message;
pub mod metrics;
pub mod middleware;
mod names;
pub mod origin;
pub mod pool;
pub mod proxy_protocol;
pub mod rescue;
pub mod service;
pub mod tcp;
pub mod tls;
pub mod udp;
mod wanted;
pub mod write;
