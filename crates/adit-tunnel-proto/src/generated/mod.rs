//! What `capnpc` makes of `schema/*.capnp`, committed so that building needs no generator
//! (`tests/schema.rs` regenerates and compares where the `capnp` tool is installed).

#![allow(
    clippy::all,
    clippy::unwrap_used,
    clippy::too_many_lines,
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code is not ours to style"
)]

#[rustfmt::skip]
pub(crate) mod quic_metadata_protocol_capnp;
#[rustfmt::skip]
pub(crate) mod tunnelrpc_capnp;
