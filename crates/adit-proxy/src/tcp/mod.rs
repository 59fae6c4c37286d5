//! TCP routers and services: connections that are routed by server name, ALPN or address and then relayed byte by byte.
//!
//! `listen.rs` hands a connection over with what it read ahead; [`route::TcpRoute`] asks its middlewares, takes a server
//! from its service and relays until both directions have ended.
//!
//! Read first: `table.rs` → `route.rs` → `service.rs` → `relay.rs`.

pub mod health;
pub mod layer;
pub(crate) mod postgres;
pub mod relay;
pub mod route;
pub mod service;
pub mod splice;
pub mod table;
pub mod transport;
