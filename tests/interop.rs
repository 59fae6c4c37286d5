//! The ingress against programs that nobody here wrote: gRPC, WebSocket and TLS suites, browsers, attackers.

mod support;

#[path = "interop/grpc.rs"]
mod grpc;
#[path = "interop/ingress.rs"]
mod ingress;
