//! Request head + table → decision: who answers this request.
//!
//! There are four tables: [`router::RouterTable`] for HTTP routers in Traefik's rule language, [`tcp::TcpTable`] for
//! connections, [`udp::UdpTable`] for datagrams, and [`Table`] for the ingress rules of tunnels. Each is built once from checked configuration and then
//! only read, by every request of a process, behind an `Arc` that is swapped whole on reload. [`path`] brings a request's
//! target into the one form that is both matched and sent.
//!
//! It never opens a connection, reads a body, looks at the clock or knows what an endpoint is: endpoints are the
//! caller's own type.
//!
//! Contract: deciding takes time that does not grow with the number of exact hosts and paths, allocates nothing for a
//! lower-case ASCII host and a path without percent escapes, and answers every input; nothing here panics. What is wrong
//! with one router disables that router alone.
//!
//! Read first: `rule.rs` (what is said), `router.rs` (how it is decided), `index.rs` (why that is fast); for tunnels
//! `table.rs` and `decide.rs`.

mod condition;
mod decide;
mod go_regex;
mod host;
mod host_rule;
mod index;
pub mod mesh;
pub mod path;
pub mod router;
pub mod rule;
mod table;
pub mod tcp;
pub mod udp;

pub use decide::{Decision, Head, Outcome, Refusal, Verdict};
pub use go_regex::compile_go_regex;
pub use host::{MANAGEMENT_HOST, host_without_port};
pub use table::{Route, Table, Target};
