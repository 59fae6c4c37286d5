//! Certificates by ACME (RFC 8555): what is wanted, ordering it, answering challenges, keeping it on disk, renewing it.
//!
//! Never knows routers, listeners or how HTTP is spoken: it is told which names are wanted ([`Wanted`]), sends its
//! requests through a [`Transport`] it is handed, and gives certificates to a callback. Pending challenges are read by
//! whoever serves visitors ([`Challenges`]).
//!
//! Contract: one task a resolver ([`Acme::apply`] starts, changes and ends them); a failure is one [`AcmeError`] with one
//! name in log, metric and status, and is followed by a wait that grows. The storage is shared by processes through a lock
//! file: one orders, the others take what it wrote. Read `keeper.rs` first, then `order.rs`.

mod account;
mod challenges;
mod client;
mod dns;
mod error;
mod keeper;
mod key;
mod metrics;
mod order;
mod renewal;
mod schedule;
mod service;
mod shared;
mod status;
mod store;
mod wanted;

pub use challenges::Challenges;
pub use client::{Exchange, Transport};
pub use error::AcmeError;
pub use metrics::Metrics;
pub use service::{Acme, Parts};
pub use status::{Board, CertificateState, CertificateStatus};
pub use store::Issued;
pub use wanted::{NAMES_MAX, Wanted};
