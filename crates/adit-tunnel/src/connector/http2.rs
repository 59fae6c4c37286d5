//! One HTTP/2 connection of a connector (tunnel-protocol.md §2.3, §6).
use super::shared::{Dial, Shared};
use crate::request::RequestHandler;
use adit_tunnel_proto::Failure;
use std::sync::Arc;
pub(super) async fn run<H: RequestHandler>(shared: Arc<Shared<H>>, dial: Dial) -> Failure {
    let _ = (&shared.tcp, dial);
    Failure::Dial
}
