//! The ingress against programs that nobody here wrote: gRPC, WebSocket and TLS suites, browsers, attackers.

mod support;

#[path = "interop/browser.rs"]
mod browser;
#[path = "interop/features.rs"]
mod features;
#[path = "interop/floods.rs"]
mod floods;
#[path = "interop/grpc.rs"]
mod grpc;
#[path = "interop/h2_shapes.rs"]
mod h2_shapes;
#[path = "interop/ingress.rs"]
mod ingress;
#[path = "interop/relay.rs"]
mod relay;
#[path = "interop/responses.rs"]
mod responses;
#[path = "interop/shapes.rs"]
mod shapes;
#[path = "interop/slow.rs"]
mod slow;
#[path = "interop/smuggling.rs"]
mod smuggling;
#[path = "interop/tls.rs"]
mod tls;
#[path = "interop/watch.rs"]
mod watch;
#[path = "interop/websocket.rs"]
mod websocket;
