//! Services: who answers the requests that a router has taken (`ingress-features.md §4`).
//!
//! A [`Node`] is one configured service: servers behind a balancer, services by weight, a service with mirrors, or one
//! with a fallback. [`Services::compile`] makes all nodes of a configuration; what makes no sense disables that node and
//! those that need it, with a reason, and nothing else.
//!
//! Contract: a node turns every failure into a response (`failure.rs`). Health, places in line, load and connections
//! belong to a server by service and URL, and outlive a reload; probes end with the last node that uses them.
//!
//! Read first: `compile.rs` → `node.rs` → `server.rs`.

mod balancer;
mod compile;
mod failover;
mod failure;
mod health;
mod mirror;
mod node;
mod probe;
pub mod replay;
mod schedule;
mod server;
mod state;
mod sticky;
pub(crate) mod tls;
mod transport;
mod url;

pub use compile::{Blueprint, ChainBuilder, Resolve, Services};
pub use mirror::dropped_copies;
pub use node::{Node, ServerStatus, ServiceStatus};
