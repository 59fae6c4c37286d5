//! Request head + table → decision: who answers this request.
//!
//! A [`Table`] is built once from checked configuration and then only read, by every request of a process, behind an
//! `Arc` that is swapped whole on reload.
//!
//! It never opens a connection, reads a body, looks at the clock or knows what an endpoint is: endpoints are the
//! caller's own type.
//!
//! Contract: [`Table::decide`] allocates nothing for a lower-case ASCII host and a path without percent escapes, takes
//! time that does not grow with the number of exact hosts, and answers every input with a [`Decision`]; it never panics.
//!
//! Read first: `table.rs` (what is matched), then `decide.rs` (how).

mod decide;
mod host;
mod table;

pub use decide::{Decision, Head, Outcome, Refusal, Verdict};
pub use host::{MANAGEMENT_HOST, host_without_port};
pub use table::{Route, Table, Target};
