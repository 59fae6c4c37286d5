//! UDP routers: who goes to which service, one session per visitor address (ingress-features.md §1.4).
//!
//! A session is a socket of its own towards the server, so that answers find their visitor; it ends after a silence.
//!
//! Read first: `listener.rs` → `session.rs`; `service.rs` chooses the server.

mod listener;
mod service;
mod session;

pub use listener::{UdpHandle, UdpListener, UdpOptions};
pub use service::{UdpNode, UdpRoute, UdpRoutes, UdpServices};
