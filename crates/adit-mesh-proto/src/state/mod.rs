//! The engine's state, one concern per file; `mesh.rs` only dispatches.

pub(crate) mod flows;
pub(crate) mod health;
pub(crate) mod lanes;
pub(crate) mod limiter;
pub(crate) mod peer;
pub(crate) mod peers;
pub(crate) mod policy;
pub(crate) mod routes;
pub(crate) mod timers;
pub(crate) mod trains;
