//! What `capnpc` makes of `schema/*.capnp`, committed so that building needs no generator
//! (`tests/schema.rs` regenerates and compares where the `capnp` tool is installed).

#[rustfmt::skip]
#[allow(clippy::all, clippy::too_many_lines, dead_code, missing_docs, unreachable_pub, unused_qualifications, unused_variables, elided_lifetimes_in_paths)]
pub(crate) mod quic_metadata_protocol_capnp;
#[rustfmt::skip]
#[allow(clippy::all, clippy::too_many_lines, dead_code, missing_docs, unreachable_pub, unused_qualifications, unused_variables, elided_lifetimes_in_paths)]
pub(crate) mod tunnelrpc_capnp;
