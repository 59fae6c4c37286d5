//! The connector against an edge that nobody here wrote: statements C1 to C46 of the protocol description that concern HTTP,
//! one test for each group, through the binary's own command line. `ADIT_CONNECTOR` runs them on another binary.

mod support;

#[path = "conformance/configuration.rs"]
mod configuration;
#[path = "conformance/handshake.rs"]
mod handshake;
#[path = "conformance/http2.rs"]
mod http2;
#[path = "conformance/registration.rs"]
mod registration;
#[path = "conformance/requests.rs"]
mod requests;
#[path = "conformance/shutdown.rs"]
mod shutdown;
#[path = "conformance/surface.rs"]
mod surface;
